"""The services of one episode of random harm: a source, perhaps a stage, and all that record and show."""

from __future__ import annotations

import contextlib
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from support.chaos.truth import Findings, Truth
from support.processes.deployment import SHM_DIRECTORY, Deployment, Service, free_port

from stddaq.client import DriverClient, DriverError
from stddaq.closing import Closing

TESTS = Path(__file__).parents[2]
CHAINS = ("plain", "plain", "compressed", "filtered", "third-party")
SERIALS_PER_PROCESS = 10**7
RATE_HZ = 700


class ChaosServices(Closing):
    """Starts, stops and restarts the services by name.

    Attributes:
        chain: which stage there is, or whether the source is of a third party.
        live_stream_address: of the live stream.
        running: the services by name, also those that have ended.
        ended: services to which a signal was sent that ends them.
    """

    def __init__(self, directory: Path, chance: random.Random, findings: Findings) -> None:
        """Start all services in `directory`."""
        self._random, self._findings = chance, findings
        self.chain = chance.choice(CHAINS)
        self.n_writers = chance.randint(2, 4)
        self.live_stream_address = f"tcp://127.0.0.1:{free_port()}"
        self.deployment = Deployment(
            directory,
            number_of_writers=self.n_writers,
            image_pixel_height=8,
            image_pixel_width=16,
            live_stream_configs={self.live_stream_address: {"type": "forward", "config": []}},
        )
        self.deployment.env["PYTHONPATH"] = str(TESTS)
        self._orders = directory / "orders.json"
        self.order(0)
        self._log = directory / "published"
        self.truth = Truth(self._log)
        self._n_sources = 0
        self._stopped: set[str] = set()
        self.running: dict[str, Service] = {}
        self.ended: set[Service] = set()
        self._client: DriverClient | None = None
        try:
            self.start_all()
        except BaseException:
            self.close()
            raise

    def _starters(self) -> dict[str, Callable[[], Service]]:
        deployment = self.deployment
        stream, ring = {
            "compressed": ("h5bitshuffle-lz4", "h5bitshuffle-lz4"),
            "filtered": ("filter", "image"),
        }.get(self.chain, ("image", "image"))
        starters: dict[str, Callable[[], Service]] = {"source": self._start_source}
        if self.chain == "compressed":
            starters["compressor"] = lambda: deployment.start(
                "std_data_compress_h5bitshuffle_lz4", "-t", 1, ready="ready"
            )
        if self.chain == "filtered":
            starters["filter"] = lambda: deployment.start("std_gf_filter", "-n")
        starters["driver"] = lambda: self._start_driver(stream)
        for i in range(self.n_writers):
            starters[f"writer {i}"] = lambda i=i: deployment.start("std_det_writer", i, "-s", ring)
        starters["meta"] = lambda: deployment.start("std_det_meta_writer_gf")
        starters["live stream"] = lambda: deployment.start("std_live_stream", self.live_stream_address)
        return starters

    def _start_source(self) -> Service:
        self.truth.read()
        first_id = 0
        if self.truth.published and self._random.random() < 0.7:
            first_id = max(image_id for image_id, _ in self.truth.published.values()) + 1
        serial = self._n_sources * SERIALS_PER_PROCESS + 1
        self._n_sources += 1
        program = (sys.executable, "-m", "support.peers.chaos_source")
        kind = "third-party" if self.chain == "third-party" else "own"
        return self.deployment.run(
            *program,
            self.deployment.config_path,
            self._log,
            self._orders,
            serial,
            first_id,
            RATE_HZ,
            kind,
            ready="ready",
        )

    def _start_driver(self, stream: str) -> Service:
        service, self._url = self.deployment.start_driver("-m", "-s", stream)
        return service

    def start_all(self) -> None:
        """Start every service."""
        for name, start in self._starters().items():
            self.running[name] = start()

    def start(self, name: str) -> None:
        """Start a service that has ended."""
        try:
            self.running[name] = self._starters()[name]()
        except AssertionError as error:
            self._findings.note("does not start", f"{name}: {error}")

    def order(self, disorder: float) -> None:
        """Set the probability of disorder of the source."""
        new = self._orders.with_suffix(".new")
        new.write_text(str(disorder))
        new.replace(self._orders)

    # The client of the driver.

    @property
    def client(self) -> DriverClient:
        """Return the connected client, a new one if there is none."""
        return self._client or self.new_client()

    def new_client(self) -> DriverClient:
        """Return a new connected client of the current driver."""
        self.close_client()
        self._client = DriverClient(self._url).connect()
        return self._client

    def close_client(self) -> None:
        """Close the connection to the driver."""
        if self._client is not None:
            with contextlib.suppress(DriverError):
                self._client.close()
            self._client = None

    # Signals.

    def end(self, name: str, number: int) -> None:
        """Send a signal that ends the service."""
        service = self.running[name]
        self.ended.add(service)
        service.send(number)

    def stop(self, name: str) -> None:
        """Stop the process of a service."""
        self._stopped.add(name)
        self.running[name].send(signal.SIGSTOP)

    def go_on(self, name: str) -> None:
        """Continue a service that was stopped."""
        self._stopped.discard(name)
        self.running[name].send(signal.SIGCONT)

    def go_on_all(self) -> None:
        """Continue all services that were stopped."""
        for name in list(self._stopped):
            self.go_on(name)

    def restart(self, name: str) -> None:
        """Start a service again if it has ended, or continue it."""
        service = self.running[name]
        if name in self._stopped:
            self.go_on(name)
        if service.returncode is None and service in self.ended:
            with contextlib.suppress(AssertionError):
                service.wait(30)
        if service.returncode is not None:
            self.start(name)

    def restart_ended(self) -> None:
        """Continue and restart services, as an operator does."""
        self.go_on_all()
        for name, service in list(self.running.items()):
            if service in self.ended:
                try:
                    code = service.wait(30)
                except AssertionError:
                    self._findings.note("hangs", f"{name} does not end after its signal\n{self.tail(name)}")
                    service.kill()
                    code = -signal.SIGKILL
                if code not in (0, -signal.SIGKILL):
                    self._findings.note(
                        "crash", f"{name}: exit code {code} after a signal\n{self.tail(name)}"
                    )
                self.start(name)
            elif service.returncode is not None:
                self._findings.note("ended", f"{name}: exit code {service.returncode}\n{self.tail(name)}")
                self.start(name)
        for path in SHM_DIRECTORY.glob(f"{self.deployment.detector_name}*-renamed"):
            path.unlink(missing_ok=True)

    def restart_everything(self) -> None:
        """Terminate services that did not recover, remove their leftovers, and start all again."""
        self.close_client()
        for name in reversed(list(self.running)):
            service = self.running[name]
            service.send(signal.SIGCONT)
            if service.returncode is None:
                try:
                    service.end(timeout=30)
                except AssertionError:
                    self._findings.note("hangs", f"{name} does not end after SIGTERM\n{self.tail(name)}")
                    service.kill()
        self.deployment.remove_leftovers()
        self.start_all()

    def tail(self, name: str, n: int = 8) -> str:
        """Return the last lines of a service."""
        lines = self.running[name].output.splitlines()
        return "\n".join(f"    {line}" for line in [line for line in lines if line.strip("! ")][-n:])

    def close(self) -> None:
        self.close_client()
        try:
            self.deployment.close()
        except AssertionError as error:
            self._findings.note("end", str(error))
