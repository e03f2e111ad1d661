"""The reference names everything that exists, and nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest

from stddaq.buffer import driver_service as buffer_driver
from stddaq.buffer import reader as buffer_reader
from stddaq.buffer import writer as buffer_writer
from stddaq.cli import main as stddaq
from stddaq.config.model import DEFAULTS, KEYS
from stddaq.forwarding import metadata_stream, metadata_sync, stream_sync
from stddaq.forwarding import receiver as stream_receiver
from stddaq.forwarding import sender as stream_sender
from stddaq.preview import service as preview_service
from stddaq.processing import compressors, delay_filter, gf_filter
from stddaq.sources import replay
from stddaq.sources.bsread import camera_server as simulate_pco
from stddaq.sources.bsread import receiver as bsread_receiver
from stddaq.sources.simulated import service as simulate
from stddaq.sources.udp import service as simulate_udp
from stddaq.streaming import service as live_stream_service
from stddaq.udp import converter, dump, module_sync_service, receiver
from stddaq.udp import replay as udp_replay
from stddaq.web import app as rest_app
from stddaq.web import service as rest_service
from stddaq.web.configurations import Configurations
from stddaq.web.h5_files import H5Files
from stddaq.web.routes.config import ConfigChanged
from stddaq.web.routes.files import FileStatus, Table
from stddaq.wire.driver_messages import ErrorType, StartCommand, Status
from stddaq.writing.driver import service as driver_service
from stddaq.writing.driver.account import RunAccount
from stddaq.writing.writer import meta_service as meta_writer_service
from stddaq.writing.writer import service as writer_service

Main = Callable[[list[str]], int]
SERVICES: dict[str, Main] = {
    "std_det_driver": driver_service.main,
    "std_det_writer": writer_service.main,
    "std_live_stream": live_stream_service.main,
    "std_det_meta_writer_gf": meta_writer_service.main_gf,
    "std_data_compress_h5bitshuffle_lz4": compressors.main_h5bitshuffle_lz4,
    "std_data_compress_blosc2": compressors.main_blosc2,
    "std_buffer_writer": buffer_writer.main,
    "std_buffer_reader": buffer_reader.main,
    "std_buffer_driver": buffer_driver.main,
    "std_gf_filter": gf_filter.main,
    "std_delay_filter": delay_filter.main,
    "std_preview": preview_service.main,
    "std_data_convert_gf": converter.main_gf,
    "std_data_convert_jf": converter.main_jf,
    "std_data_sync_module": module_sync_service.main,
    "std_stream_send": stream_sender.main,
    "std_stream_receive": stream_receiver.main,
    "std_data_sync_stream": stream_sync.main,
    "std_metadata_stream": metadata_stream.main,
    "std_data_sync_metadata": metadata_sync.main,
    "std_udp_recv_gf": receiver.main_gf,
    "std_udp_tools_dump": dump.main,
    "std_udp_tools_replay": udp_replay.main,
    "stddaq simulate-udp": simulate_udp.main,
    "stddaq-rest": rest_service.main,
    "stddaq simulate": simulate.main,
    "stddaq replay": replay.main,
    "stddaq simulate-pco": simulate_pco.main,
    "std_bsread_recv": bsread_receiver.main,
}
SUB_COMMANDS = (
    *("demo", "init", "up", "record", "status", "stop", "watch", "trigger", "info", "validate"),
    *(
        "plot-missing",
        "export",
        "aggregate",
        "nexus",
        "repair",
        "doctor",
        "plan",
        "units",
        "deployment",
        "completion",
    ),
)

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted(DOCS.rglob("*.md"))


def reference(name: str) -> str:
    return (DOCS / "reference" / f"{name}.md").read_text()


def anchors(page: Path) -> set[str]:
    """Return the anchors to which a link to the page may point."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(DOCS).as_posix())
def test_every_link_has_a_target(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if link.startswith("http"):
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


def test_the_first_page_and_the_navigation_list_the_same_pages() -> None:
    text = (DOCS / "index.md").read_text()
    navigation = [
        f"{page}.md"
        for tree in re.findall(r"^```{toctree}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        for page in re.findall(r"^[a-z]\S+", tree, re.MULTILINE)
    ]
    assert re.findall(r"^\* \[.+\]\((.+)\)$", text, re.MULTILINE) == navigation


def test_every_decision_has_context_decision_and_consequence() -> None:
    decisions = sorted((DOCS / "explanations" / "decisions").glob("[0-9]*.md"))
    assert decisions
    for number, decision in enumerate(decisions, 1):
        text = decision.read_text()
        assert decision.name.startswith(f"{number:04d}-")
        assert text.startswith(f"# {number}. ")
        parts = re.findall(r"^\*\*(\w+)\.\*\*", text, re.MULTILINE)
        assert [part for part in parts if part != "Considered"] == ["Context", "Decision", "Consequence"]


def test_every_key_of_the_configuration_is_described_with_its_default() -> None:
    rows = re.findall(r"^\| (`.+?) \| .+? \| (.+?) \|", reference("configuration"), re.MULTILINE)
    described = {key: default for keys, default in rows for key in re.findall(r"`(\w+)`", keys)}
    for key in KEYS:
        assert described[key].strip("`") == _default(key), key
    assert described.keys() == set(KEYS)


def _default(key: str) -> str:
    if key not in DEFAULTS:
        return "mandatory"
    default = DEFAULTS[key]
    return "unset" if default is None else json.dumps(default).strip('"')


def test_every_field_status_and_error_of_the_websocket_is_described() -> None:
    text = reference("websocket")
    for name in (*StartCommand.__dataclass_fields__, *get_args(Status), *get_args(ErrorType)):
        assert re.search(rf"\b{name}\b", text), name


def test_every_key_of_the_account_is_described() -> None:
    account = reference("websocket").split("## The account of a run")[1]
    for key in RunAccount().result([], [], list_limit=None):
        assert f"`{key}`" in account, key


def test_every_path_and_key_of_the_configuration_service_is_described() -> None:
    text = reference("rest")
    for path in _paths_of_the_configuration_service():
        # Comparing the end is enough for paths with a parameter.
        assert path.rpartition("}")[2].removesuffix("/") in text, path
    for model in (ConfigChanged, FileStatus, Table):
        for key in model.model_fields.keys() - {"filename", "n_datasets"}:
            assert f"`{key}`" in text, key


def _paths_of_the_configuration_service() -> list[str]:
    app = rest_app.create_app(Configurations([]), H5Files([], 1.0))
    return list(app.openapi()["paths"])


def _options(main: Main, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> set[str]:
    """Return the long options in the output of `--help`."""
    with pytest.raises(SystemExit):
        main([*arguments, "--help"])
    # Options at the start of a line; in descriptions they may belong to other commands.
    return set(re.findall(r"^ +(?:-\w(?: \w+)?, )?(--[\w-]+)", capsys.readouterr().out, re.MULTILINE))


@pytest.mark.parametrize("service", SERVICES)
def test_every_option_of_a_service_is_described(service: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = reference("command-lines")
    options = _options(SERVICES[service], [], capsys)
    assert "--version" in options
    assert [option for option in sorted(options) if option not in text] == []


@pytest.mark.parametrize("name", SUB_COMMANDS)
def test_every_option_of_stddaq_is_described(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    described = re.findall(rf"^stddaq {name} .*(?:\n .*)*", reference("command-lines"), re.MULTILINE)
    assert len(described) == 1
    options = _options(stddaq, [name], capsys) - {"--help"}
    # The reference shows the short form of options that have one.
    short = {"--n-images": "-n", "--port": "-p", "--source_suffix": "-s", "--output": "-o"}
    short["--with_metadata_writer"] = "-m"
    missing = [o for o in sorted(options) if not re.search(rf"{short.get(o, o)}\b", described[0])]
    assert missing == []
