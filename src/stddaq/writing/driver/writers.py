"""The writers of the driver: requests to all of them, their answers and their reports."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Iterable
from typing import TypeVar

from stddaq.text import mismatch
from stddaq.wire.std_daq import writer_action_pb2 as pb
from stddaq.writing.driver.active_run import ActiveRun, RunError
from stddaq.writing.driver.distributor import META, Distributor
from stddaq.writing.driver.writer_peer import Answer

T = TypeVar("T")
# A new writer may need this long to connect; a run without it must be an error within 2 s.
CONNECT_TIMEOUT_S = 1.5
# One that replaces its process loads Python and HDF5, on an overloaded machine in seconds.
RESTART_TIMEOUT_S = 15.0
POLL_S = 0.01
# The distributor's thread answers within milliseconds; on an overloaded machine within seconds.
CALL_TIMEOUT_S = 30.0
# Reads of counters that another thread changes; the second read usually finds them unchanged.
MAX_LOOKS = 100


class Writers:
    """Requests to the writers, from the asyncio loop. Every wait is bounded.

    Attributes:
        source: the stream that they record.
    """

    def __init__(self, distributor: Distributor, source: str, *, by_arrival: bool) -> None:
        self._distributor, self.source, self._by_arrival = distributor, source, by_arrival
        self._peers, self._image_writers = distributor.peers, distributor.writers

    @property
    def have_metadata_writer(self) -> bool:
        """Whether a metadata writer takes part in the runs."""
        return len(self._peers) > len(self._image_writers)

    # Requests.

    async def call(self, function: Callable[[], T]) -> T:
        """Run `function` in the distributor's thread. Raises `RunError` when the thread does not answer."""
        try:
            # wait_for() can swallow a cancellation: https://github.com/python/cpython/issues/81839
            async with asyncio.timeout(CALL_TIMEOUT_S):
                return await asyncio.wrap_future(self._distributor.call(function))
        except TimeoutError as error:
            raise RunError(f"the driver's data path did not answer within {CALL_TIMEOUT_S:g} s") from error

    async def wait_until_connected(self) -> None:
        """Wait for new writers to connect. Raise `RunError` with the absent ones."""
        begin = time.monotonic()
        while absent := [peer for peer in self._peers if not peer.connected]:
            restarts = all(peer.is_restarting for peer in absent)
            if time.monotonic() - begin > (RESTART_TIMEOUT_S if restarts else CONNECT_TIMEOUT_S):
                raise RunError(f"{self._absence()}; nothing was created")
            await asyncio.sleep(POLL_S)

    def _absence(self) -> str:
        """Return which writers cannot take part in a run, and why."""
        absent = [peer.title for peer in self._peers if not (peer.connected or peer.obstacle)]
        reasons = [f"not connected: {', '.join(absent)}"] if absent else []
        return "; ".join([*(peer.obstacle for peer in self._peers if peer.obstacle), *reasons])

    async def create_files(self, run: ActiveRun) -> None:
        """Make each writer create its file. Raise `RunError`."""
        await self._request(run, self._create_file_actions(run))

    async def confirm_last_image(self, run: ActiveRun) -> None:
        """Wait until all images that were forwarded are in the files. Raises `RunError`."""
        await self._request(run, self._same_action(pb.WriterAction(confirm_last_image=pb.ConfirmLastImage())))
        for peer in self._peers:
            accounted = peer.reported.n_written + peer.reported.n_failed
            if accounted != peer.n_forwarded:
                got = f"{peer.reported.n_written} written, {peer.reported.n_failed} failed"
                raise RunError(mismatch(peer.title, f"{peer.n_forwarded} images", got))

    async def close_files(self, run: ActiveRun) -> None:
        """Make each writer close its file. Raise `RunError`, also for images that could not be written."""
        await self._request(run, self._same_action(pb.WriterAction(close_file=pb.CloseWriterFile())))
        failed = [peer for peer in self._image_writers if peer.reported.n_failed]
        if failed:
            raise RunError(
                "; ".join(f"{peer.title} failed to write {peer.reported.n_failed} images" for peer in failed)
            )

    def have_saved_all(self, run: ActiveRun) -> bool:
        """Whether all writers have written all images and closed their files."""
        return (
            bool(run.created)
            and run.closed >= {peer.name for peer in self._peers}
            and all(
                peer.connected
                and peer.reported.n_written == peer.n_forwarded
                and not (peer.reported.n_failed or peer.reported.failure)
                for peer in self._peers
            )
        )

    async def close_files_after_error(self, run: ActiveRun) -> None:
        """Make the connected writers close valid files."""
        # Empty files would only block the next attempt.
        close = pb.CloseWriterFile(discard_if_empty=not run.account.n_images)
        actions = self._same_action(pb.WriterAction(close_file=close))
        asked = [peer for peer in self._peers if peer.connected]
        answers = await self._ask(run, {peer.name: actions[peer.name] for peer in asked})
        if close.discard_if_empty:
            # A C++ writer keeps its file.
            run.discarded |= {p.name for p in asked if p.has_extensions and not answers[p.name].reason}

    async def create_master_file(self, run: ActiveRun, create: pb.CreateMasterFile, timeout: float) -> bool:
        """Make a writer create the master file, because it acts as the user of the run and has HDF5 loaded.

        Return False if no writer can, because all are C++ writers. Raise `RunError`.
        """
        able = next((peer for peer in self._image_writers if peer.has_extensions), None)
        if able:
            await self._request(run, {able.name: pb.WriterAction(create_master_file=create)}, timeout)
        return able is not None

    def _create_file_actions(self, run: ActiveRun) -> dict[str, pb.WriterAction]:
        start, n_writers = run.start, len(self._image_writers)
        common = pb.CreateWriterFile(
            writer_id=start.writer_id,
            overwrite=start.overwrite,
            number_of_writers=n_writers,
            division=pb.by_arrival if self._by_arrival else pb.by_image_id,
            run_id=run.id,
            source=self.source,
        )
        actions: dict[str, pb.WriterAction] = {}
        for i, path in enumerate(run.files.raw):
            action = pb.WriterAction(create_file=common)
            action.create_file.path = str(path)
            action.create_file.expected_images = -(-start.n_image // n_writers)
            actions[str(i)] = action
        if run.files.metadata:
            action = pb.WriterAction(create_file=common)
            action.create_file.path = str(run.files.metadata)
            actions[META] = action
        return actions

    def _same_action(self, action: pb.WriterAction) -> dict[str, pb.WriterAction]:
        actions = {peer.name: pb.WriterAction() for peer in self._peers}
        for copy in actions.values():
            copy.CopyFrom(action)
        return actions

    async def _request(
        self, run: ActiveRun, actions: dict[str, pb.WriterAction], timeout: float | None = None
    ) -> None:
        """Send requests to the named writers and wait for answers. Raise `RunError` with every failure."""
        answers = await self._ask(run, actions, timeout)
        for peer in self._peers:
            # A C++ writer reports no numbers; it confirms all images that it received.
            if (answer := answers.get(peer.name)) and not answer.reason and not peer.has_extensions:
                peer.reported.n_written = peer.n_forwarded
        failed = [answer for answer in answers.values() if answer.reason]
        run.is_late = bool(failed) and all(answer.timed_out for answer in failed)
        reasons = [answer.reason for answer in failed]
        reasons += [f"{p.title}: {p.reported.failure}" for p in self._peers if p.reported.failure]
        if reasons:
            raise RunError("; ".join(dict.fromkeys(reasons)))

    async def _ask(
        self, run: ActiveRun, actions: dict[str, pb.WriterAction], timeout: float | None = None
    ) -> dict[str, Answer]:
        answered = asyncio.wrap_future(self._distributor.ask(actions, timeout))
        # The distributor's thread gives up writers that do not answer; this notices when the thread hangs.
        while not (await asyncio.wait([answered], timeout=CALL_TIMEOUT_S))[0]:
            await self.call(lambda: None)
        answers = answered.result()
        confirmed = {name for name, answer in answers.items() if not answer.reason}
        run.created |= {name for name in confirmed if actions[name].HasField("create_file")}
        run.closed |= {name for name in confirmed if actions[name].HasField("close_file")}
        return answers

    # Reports.

    def n_recorded(self) -> int:
        """Return how many images are written and readable by other processes, or failed.

        C++ writers report nothing before the end; their received images are counted instead.
        """
        return sum(
            peer.reported.n_written + peer.reported.n_failed if peer.has_extensions else peer.n_forwarded
            for peer in self._image_writers
        )

    def n_overwritten(self) -> int:
        """Return how many images were overwritten before they were written."""
        return sum(peer.reported.n_overwritten for peer in self._image_writers)

    def n_failed(self) -> int:
        """Return how many images could not be written."""
        return sum(peer.reported.n_failed for peer in self._image_writers)

    def n_written(self) -> list[int]:
        """Return the images that each writer has written."""
        return [peer.reported.n_written for peer in self._image_writers]

    def n_forwarded(self) -> list[int]:
        """Return the images sent to each writer, all at one moment although the other thread continues.

        Two equal reads in a row mean that no image arrived between them. Readers of growing files need to
        know which images may still appear between those that they see.
        """
        found: list[int] = []
        for _ in range(MAX_LOOKS):
            before, found = found, [peer.n_forwarded for peer in self._image_writers]
            if found == before:
                break
        return found

    def overwritten_ids(self) -> list[int]:
        """Return the ids of overwritten images, sorted."""
        return sorted(itertools.chain(*(peer.reported.overwritten_ids for peer in self._image_writers)))

    def failed_ids(self, run: ActiveRun) -> list[int]:
        """Return the ids of images that could not be written or were not confirmed, sorted."""
        return sorted(itertools.chain(*(self._failed_ids(run, i) for i in range(len(self._image_writers)))))

    def _failed_ids(self, run: ActiveRun, number: int) -> Iterable[int]:
        peer = self._image_writers[number]
        reported = peer.reported
        if reported.n_written + len(reported.failed_ids) == peer.n_forwarded:
            return reported.failed_ids
        forwarded = run.account.ids_of(number, len(self._image_writers), self._by_arrival)
        named = set(reported.failed_ids)
        others = (image_id for image_id in forwarded if image_id not in named)
        # A writer cannot have written more than it received, whatever it reports.
        unconfirmed = itertools.islice(others, min(reported.n_written, peer.n_forwarded), None)
        return itertools.chain(reported.failed_ids, unconfirmed)
