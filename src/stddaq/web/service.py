"""`stddaq-rest`: the daemon of the page and of the configuration service."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import Generator, Sequence
from functools import partial
from pathlib import Path

from stddaq.config import DetectorConfig
from stddaq.daemon import log, metrics
from stddaq.daemon import main as daemon
from stddaq.daemon.access import add_token_option, read_token, token_of
from stddaq.daemon.arguments import ArgumentParser, Seconds, existing_directory, port_number, web_address
from stddaq.daemon.end_watch import EndWatch
from stddaq.daemon.forced_exit import exit_when_a_thread_fails
from stddaq.daemon.metrics import Registry
from stddaq.daemon.metrics_page import published_page, published_pages
from stddaq.daemon.output import open_closed_streams
from stddaq.daemon.service_manager import service_manager
from stddaq.daemon.tasks import start_lasting_task
from stddaq.errors import ConfigError
from stddaq.text import bind_error_text, mismatch
from stddaq.web.monitoring import MonitoredDetector, Monitoring
from stddaq.web.response_counts import ResponseCounts
from stddaq.web.rights import Rights
from stddaq.web.tls import TlsFiles, add_tls_options, tls_files
from stddaq.wire.default_addresses import DEFAULT_CONFIG_PORT, TOKEN_VARIABLE

NAME = "stddaq-rest"
# For 64 pages: each has three WebSockets, and browsers open up to six connections for requests.
MAX_CONNECTIONS = 9 * 64
SHUT_DOWN_S = 1
UNREAD_TIMEOUT_S = 30.0
HEARTBEAT_S = 0.5


def main(argv: Sequence[str] | None = None) -> int:
    """The command `stddaq-rest`."""
    parser = ArgumentParser(
        NAME,
        "Serve a page with live images, configurations, HDF5 files and simulators over HTTP.",
    )
    parser.add_argument(
        "detector_json_filename", nargs="+", metavar="CONFIG", help="path to configuration file; one or more"
    )
    parser.add_argument(
        "-p", "--port", type=port_number, default=DEFAULT_CONFIG_PORT, help="port (default 5000)"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1)")
    parser.add_argument(
        "--root",
        type=existing_directory,
        action="append",
        default=[],
        metavar="DIRECTORY",
        help="read and make HDF5 files only below this directory; may be repeated "
        "(default: no files are used)",
    )
    add_token_option(parser)
    add_rights_options(parser)
    add_tls_options(parser)
    parser.add_driver_url()
    parser.add_argument(
        "--compat",
        action="store_true",
        help="also serve the older REST (/writer, /daq) for clients such as std-daq-client",
    )
    parser.add_argument(
        "--grafana-url",
        type=web_address,
        metavar="URL",
        help="dashboard of Grafana that the page links to",
    )
    parser.add_argument(
        "--state-directory",
        type=existing_directory,
        default=_state_directory(),
        metavar="DIRECTORY",
        help="keep the list of recent runs there (default: that of systemd, else it is kept until the end "
        "of the service)",
    )
    parser.add_argument(
        "--file-timeout",
        type=Seconds(3600),
        default=20.0,
        metavar="SECONDS",
        help="timeout of requests for files (default 20)",
    )
    open_closed_streams()
    args = parser.parse_intermixed_args(argv)
    with daemon.refused_start(NAME):
        daemon.raise_descriptor_limit()
        _serve(args)
    # The interpreter removes signal handlers before it exits; a signal then would change the exit code.
    for number in daemon.STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    return 0


def add_rights_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of who may do what."""
    parser.add_argument(
        "--allow-control",
        action="store_true",
        help="without a token: let all users of this machine control runs and set configurations "
        "(default: they may view)",
    )
    parser.add_argument(
        "--view-token-file",
        type=Path,
        metavar="FILE",
        help="file with a second token, with which one may view",
    )
    parser.add_argument(
        "--anonymous-view",
        action="store_true",
        help="without a token: show images, state and losses, but no paths, users and configurations",
    )
    parser.add_argument(
        "--allowed-host",
        action="append",
        default=[],
        metavar="NAME",
        help="further name by which browsers reach this service; may be repeated",
    )


def rights_of(args: argparse.Namespace) -> Rights:
    """Return the rights by the options. Raise `ConfigError`."""
    token, view_token = token_of(args), read_token(args.view_token_file, "--view-token-file")
    for option, is_given in (("--view-token-file", view_token), ("--anonymous-view", args.anonymous_view)):
        if token is None and is_given:
            raise ConfigError(mismatch(option, "--token-file, too", "none"))
    if token is not None and args.allow_control:
        advice = "with a token, only its owners control"
        raise ConfigError(mismatch("--allow-control", "a service without a token", "a token", advice))
    if token is not None and token == view_token:
        raise ConfigError(mismatch("--view-token-file", "another token than --token-file", "the same"))
    return Rights(
        token,
        view_token=view_token,
        anonymous_view=args.anonymous_view,
        allow_control=args.allow_control,
        hosts=[args.host, *args.allowed_host],
    )


def _state_directory() -> Path | None:
    """Return the directory that systemd has made for this service."""
    first = os.environ.get("STATE_DIRECTORY", "").partition(":")[0]
    return Path(first) if first else None


def _serve(args: argparse.Namespace) -> None:
    paths = [Path(name) for name in args.detector_json_filename]
    configs = [DetectorConfig.load(path) for path in paths]
    _check_names(paths, configs)
    if args.compat and len(configs) > 1:
        raise ConfigError(mismatch("--compat", "one CONFIG", f"{len(configs)}"))
    # The driver of a deployment has the same token; `rights_of` removes it from the environment.
    driver_token = os.environ.get(TOKEN_VARIABLE) or read_token(args.token_file, "--token-file")
    rights, tls = rights_of(args), tls_files(args)
    log.set_up(NAME, configs[0].log_level)
    stop = daemon.StopRequest()
    stop.catch_signals()
    EndWatch(stop, daemon.STOP_SIGNALS)
    monitored = [
        MonitoredDetector(config.detector_name, path, args.root)
        for config, path in zip(configs, paths, strict=True)
    ]
    etags = {config.detector_name: config.etag for config in configs}
    with (
        _listen(args.host, args.port) as listener,
        published_pages(etags),
        exit_when_a_thread_fails(),
    ):
        asyncio.run(_run(args, monitored, rights, tls, driver_token, listener, stop))


async def _run(
    args: argparse.Namespace,
    detectors: Sequence[MonitoredDetector],
    rights: Rights,
    tls: TlsFiles | None,
    driver_token: str | None,
    listener: socket.socket,
    stop: daemon.StopRequest,
) -> None:
    # Imported here so that wrong arguments are refused without delay.
    import uvicorn

    from stddaq.config.store import ConfigStore
    from stddaq.web.app import create_app
    from stddaq.web.configurations import Configurations
    from stddaq.web.h5_files import H5Files
    from stddaq.web.http_protocol import HttpProtocol
    from stddaq.web.live.driver_feed import DriverFeed
    from stddaq.web.live.session import MAX_MESSAGE_BYTES
    from stddaq.web.memory import Memory
    from stddaq.web.older_writer import OlderWriter
    from stddaq.web.routes import older
    from stddaq.web.routes.page import SECURITY_HEADERS
    from stddaq.web.runs import Runs
    from stddaq.web.websocket_protocol import WebSocketProtocol

    class Server(uvicorn.Server):
        @contextlib.contextmanager
        def capture_signals(self) -> Generator[None, None, None]:
            yield  # `StopRequest` catches the signals.

    _use_our_log("uvicorn")
    monitoring, responses = Monitoring(detectors, args.grafana_url), ResponseCounts()
    configurations = Configurations([ConfigStore(detector.config_path) for detector in detectors])
    files, driver = H5Files(args.root, args.file_timeout), DriverFeed(args.url, driver_token)
    memory = Memory(runs=Runs(args.state_directory))
    app = create_app(configurations, files, rights, monitoring, driver, memory)
    if args.compat:
        app.include_router(older.router(configurations, OlderWriter(driver, args.root), monitoring))
    settings = uvicorn.Config(
        responses.counting(app),
        http=HttpProtocol,
        ws=WebSocketProtocol,
        ws_max_size=MAX_MESSAGE_BYTES,
        ws_per_message_deflate=False,
        headers=list(SECURITY_HEADERS.items()),
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        ssl_certfile=tls.certificate if tls else None,
        ssl_keyfile=tls.key if tls else None,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_graceful_shutdown=SHUT_DOWN_S,
    )
    server = Server(settings)

    def check_stop() -> None:
        if stop.poll():
            # It stays readable.
            asyncio.get_running_loop().remove_reader(stop.fileno())
            server.should_exit = True
            # uvicorn reports the requests that it cancels now as errors, with tracebacks.
            logging.getLogger("uvicorn").setLevel(logging.CRITICAL)

    asyncio.get_running_loop().add_reader(stop.fileno(), check_stop)
    address, port = listener.getsockname()[:2]
    shown_address = f"[{address}]" if ":" in address else address
    log.ready("listening on %s://%s:%d", "https" if tls else "http", shown_address, port)
    registries = [_registry(detector.name, port, monitoring, responses) for detector in detectors]
    publishing = start_lasting_task(_publish(registries))
    async with memory.noting([detector.name for detector in detectors], driver, monitoring):
        await server.serve(sockets=[listener])
    publishing.cancel()
    service_manager.stopping()


def _registry(detector: str, port: int, monitoring: Monitoring, responses: ResponseCounts) -> Registry:
    registry = Registry(detector, NAME, str(port))
    registry.add(metrics.PAGES_REJECTED, lambda: monitoring.n_rejected[detector])
    monitoring.browsers[detector].register(registry)
    for key in responses.counts:
        method, status = key
        registry.add(
            metrics.HTTP_REQUESTS, partial(responses.counts.__getitem__, key), method=method, status=status
        )
    return registry


async def _publish(registries: Sequence[Registry]) -> None:
    pages = [published_page(registry, HEARTBEAT_S) for registry in registries]
    while True:
        service_manager.alive()
        for page in pages:
            if page:
                page.publish_if_due()
        await asyncio.sleep(HEARTBEAT_S)


def _check_names(paths: Sequence[Path], configs: Sequence[DetectorConfig]) -> None:
    names = [config.detector_name for config in configs]
    for position, name in enumerate(names):
        if name in names[:position]:
            raise ConfigError(
                mismatch(
                    f"{paths[position]}: detector_name",
                    "one configuration for each detector",
                    f"{name}, as in {paths[names.index(name)]}",
                )
            )


def _listen(host: str, port: int) -> socket.socket:
    """Return a listening socket; for port 0 the system chooses one. Raise `ConfigError`."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.create_server((str(address[0]), port), family=family, backlog=MAX_CONNECTIONS)
        # Connections inherit it: a client that does not read its answer is disconnected.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(UNREAD_TIMEOUT_S * 1000))
        return listener
    except OSError as error:
        reason = bind_error_text(error)
        raise ConfigError(f"--host {host} --port {port}: cannot listen there: {reason}") from error


def _use_our_log(name: str) -> None:
    """Write the warnings and errors of a library as log lines of this service."""
    logger = logging.getLogger(name)
    logger.handlers[:] = log.logger.handlers
    logger.propagate = False
    logger.setLevel(max(logging.WARNING, log.logger.level))
    logging.getLogger(f"{name}.error").addFilter(_is_no_refusal)


def _is_no_refusal(record: logging.LogRecord) -> bool:
    """Return False for the error that uvicorn 0.54 logs for each WebSocket that `Guard` refuses.

    It does so although the refusal has been sent. No upstream issue is known.
    """
    return record.msg != "ASGI callable returned without completing handshake."
