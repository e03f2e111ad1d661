"""Writers and metadata writers carry out any action of a driver, or answer with a reason."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st
from support.processes.deployment import Deployment, Service, console_script
from support.processes.recording import Rig, assert_saved, images_of
from support.tools.fuzzing import U32, U64, Health, assert_unharmed, examples, mutated

from stddaq.closing import Closing
from stddaq.dataplane.connections import open_socket
from stddaq.dataplane.endpoints import driver_to_writer, writer_to_driver
from stddaq.dataplane.ipc_sockets import Binding
from stddaq.wire.std_daq import writer_action_pb2 as pb

WRITERS: dict[str, dict[str, Any]] = {
    "std_det_writer": {"detector_type": "gigafrost"},
    "std_det_meta_writer_gf": {"detector_type": "gigafrost"},
    "std_det_meta_writer_jf": {"detector_type": "jungfrau-raw"},
    "std_det_meta_writer_eg": {"detector_type": "eiger"},
    "std_det_meta_writer_pco": {"detector_type": "pco"},
}
PIXELS = {"height": 32, "width": 48, "size": 32 * 48 * 2, "dtype": 2}
TEXTS = st.one_of(st.text(max_size=20), st.sampled_from(["", "\0", "a\0b", "\n", "x" * 300, "é", "\u2028"]))


class DriverSockets(Closing):
    """The driver's end of the connection to one writer; a context manager."""

    def __init__(self, detector_name: str, writer: str) -> None:
        self._context = zmq.Context()
        self._actions = open_socket(self._context, zmq.PUSH)
        self._responses = open_socket(self._context, zmq.PULL)
        self._endpoint = driver_to_writer(detector_name, writer)
        self._binding = Binding(self._actions, self._endpoint)
        self._responses.connect(writer_to_driver(detector_name, writer))
        self._n_requests = 0

    def send(self, message: bytes) -> None:
        """Send anything when the writer is connected."""
        assert self._actions.poll(60_000, zmq.POLLOUT), "the writer is not connected"
        self._actions.send(message)

    def ask(self, action: pb.WriterAction) -> pb.WriterResponse:
        """Send a request with a number of its own, and wait for the answer to it."""
        self._n_requests += 1
        action.request = 2**62 + self._n_requests
        self.send(action.SerializeToString())
        while self._responses.poll(60_000):
            response = pb.WriterResponse.FromString(self._responses.recv())
            assert len(response.reason) < 2000
            if response.request == action.request:
                return response
        pytest.fail("the writer does not answer")

    def close(self) -> None:
        self._binding.close()
        self._context.destroy(linger=0)


def metadata() -> st.SearchStrategy[Any]:
    """Generate fields of `ImageMetadata`: those of the detector, and any others."""
    enums = st.integers(0, 3) | st.sampled_from([24, 99, -1, 2**31 - 1])
    return st.one_of(
        st.fixed_dictionaries(
            {"image_id": U64, "status": st.integers(0, 3), "sequence": st.just(0) | U64}
        ).map(lambda fields: {**PIXELS, **fields}),
        st.fixed_dictionaries(
            {},
            optional=dict.fromkeys(("image_id", "height", "width", "size", "sequence"), U64)
            | dict.fromkeys(("dtype", "status", "compression"), enums),
        ),
    )


def requests(directory: Path) -> st.SearchStrategy[pb.WriterAction]:
    """Generate actions of all kinds, whose files are in `directory` or at impossible paths."""
    paths = st.one_of(
        st.sampled_from(
            ["a.h5", "a.h5", "b.h5", "", "missing/a.h5", "a.h5/b.h5", ".", "x" * 300, "\0", "a\0b", "\n"]
        )
        | st.text("abc/\0\n.é", max_size=12).map(lambda text: text.replace("..", "")),
    ).map(lambda name: f"{directory}/{name}") | st.just("")
    create = st.builds(
        pb.CreateWriterFile,
        path=paths,
        writer_id=st.sampled_from([0, 0, 0, 0, 1, -1, -2, -(2**31), 2**31 - 1]),
        overwrite=st.sampled_from([True, True, False]),
        number_of_writers=st.sampled_from([0, 1, 2]) | U64,
        division=st.sampled_from([0, 1, 2, 77, -1]),
        expected_images=st.sampled_from([0, 1, 10]) | U64,
        run_id=TEXTS,
        source=TEXTS,
    )
    record = st.builds(
        lambda fields, restarts: pb.RecordImage(image_metadata=fields, restarts=restarts),
        metadata(),
        st.sampled_from([0, 0, 0, 1]) | U32,
    )
    master = st.builds(
        pb.CreateMasterFile,
        path=paths,
        raw_files=st.lists(paths, max_size=3),
        metadata_file=paths,
        account=TEXTS | st.just('{"run_id": 1}') | st.just("[" * 20_000),
        overwrite=st.booleans(),
        nexus=TEXTS | st.sampled_from(['{"start": {}}', '{"start": 5}', "[1]", "[" * 20_000]),
        nxmx=paths,
    )
    actions = st.one_of(
        create.map(lambda part: pb.WriterAction(create_file=part)),
        record.map(lambda part: pb.WriterAction(record_image=part)),
        st.lists(record, max_size=5).map(
            lambda parts: pb.WriterAction(record_images=pb.RecordImages(images=parts))
        ),
        st.booleans().map(
            lambda discard: pb.WriterAction(close_file=pb.CloseWriterFile(discard_if_empty=discard))
        ),
        st.just(pb.WriterAction(confirm_last_image=pb.ConfirmLastImage())),
        master.map(lambda part: pb.WriterAction(create_master_file=part)),
        st.just(pb.WriterAction()),
    )
    return st.tuples(actions, st.sampled_from([0, 1, 2**64 - 1])).map(with_number)


def with_number(parts: tuple[pb.WriterAction, int]) -> pb.WriterAction:
    action = pb.WriterAction()
    action.CopyFrom(parts[0])
    action.request = parts[1]
    return action


@pytest.fixture
def start_writer(make_deployment: Callable[..., Deployment], directory: Path) -> Iterator[Any]:
    """Return a function that starts one of WRITERS, with a deployment and the sockets of its driver."""
    with ExitStack() as stack:

        def start(name: str, **overrides: Any) -> tuple[Deployment, Service, DriverSockets]:
            deployment = make_deployment(number_of_writers=1, **WRITERS[name], **overrides)
            service = start_in(directory, deployment, name)
            writer = "0" if name == "std_det_writer" else "meta"
            return deployment, service, stack.enter_context(DriverSockets(deployment.detector_name, writer))

        yield start


def start_in(directory: Path, deployment: Deployment, name: str) -> Service:
    """Start a writer in `directory`, where it would put files with relative names."""
    number = [0] if name == "std_det_writer" else []
    return deployment.run(console_script(name), deployment.config_path, *number, ready="ready", cwd=directory)


def close(driver: DriverSockets) -> None:
    """Make the writer close its files, and check that it answers in step."""
    driver.ask(pb.WriterAction(close_file=pb.CloseWriterFile()))


@pytest.mark.parametrize("name", WRITERS)
def test_any_action_is_carried_out_or_answered_with_a_reason(name: str, start_writer: Any, directory: Path):
    deployment, service, driver = start_writer(name, switch_user_active=True)
    close(driver)
    health = Health([service])
    request = requests(directory).map(lambda action: action.SerializeToString())

    @examples(30)
    @given(st.lists(request | mutated(request) | st.binary(max_size=40), max_size=15))
    def actions_are_survived(messages: list[bytes]) -> None:
        nonlocal service, health
        if service.returncode is not None:
            service = start_in(directory, deployment, name)
            health = Health([service])
        for message in messages:
            driver.send(message)
        close(driver)
        health.check()

    actions_are_survived()
    create = pb.CreateWriterFile(path=f"{directory}/last.h5", run_id="last", overwrite=True)
    assert driver.ask(pb.WriterAction(create_file=create)).code == pb.SUCCESS
    close(driver)
    assert_takes_part_in_a_perfect_run(deployment, directory, service, driver)


def assert_takes_part_in_a_perfect_run(
    deployment: Deployment, directory: Path, service: Service, driver: DriverSockets
) -> None:
    """Start a real driver and the other writers, and record a perfect run."""
    driver.__exit__(None, None, None)
    with Rig(deployment, directory) as rig:
        with_metadata_writer = "meta" in Path(service.command[0]).name
        rig.start_driver(*(["-m"] if with_metadata_writer else []))
        if with_metadata_writer:
            rig.start_writers()
        images = images_of(range(20))
        account = rig.record(images, file_prefix="perfect")
        assert_saved(account, images)
        assert (account["files"]["metadata"] is not None) == with_metadata_writer


BAD_ACTIONS = {
    "division": pb.WriterAction(create_file=pb.CreateWriterFile(path="a.h5", division=77)),  # pyright: ignore
    "path": pb.WriterAction(create_file=pb.CreateWriterFile(path="a\0b.h5")),
    "run_id": pb.WriterAction(create_file=pb.CreateWriterFile(path="a.h5", run_id="\0")),
    "writer_id": pb.WriterAction(create_file=pb.CreateWriterFile(path="a.h5", writer_id=-2)),
    "account": pb.WriterAction(create_master_file=pb.CreateMasterFile(path="m.h5", account="\0")),
    "raw_files": pb.WriterAction(create_master_file=pb.CreateMasterFile(path="m.h5", raw_files=["\0"])),
}


def test_values_that_no_file_can_hold_are_refused_by_name(start_writer: Any, directory: Path):
    """Each of these values made the writer exit."""
    _, service, driver = start_writer("std_det_writer", switch_user_active=True)
    for name, action in BAD_ACTIONS.items():
        response = driver.ask(action)
        assert response.code == pb.FAILURE, name
        assert response.reason.startswith(name), response.reason
    close(driver)
    assert_unharmed(service)
    assert list(directory.iterdir()) == []
