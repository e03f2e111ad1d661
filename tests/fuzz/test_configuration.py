"""Every configuration file is used, or refused with one line."""

from __future__ import annotations

import copy
import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.processes.deployment import console_script, make_config
from support.tools.fuzzing import JSON_VALUES, deeply_nested, examples, mutated

from stddaq.config import DetectorConfig
from stddaq.config.model import KEYS
from stddaq.dataplane.ring_layout import RingGeometry
from stddaq.errors import ConfigError

SERVICES = Path(__file__).parents[2] / "services" / "config"
VALID = [json.loads(path.read_text()) for path in sorted(SERVICES.glob("*.json"))] + [make_config()]
REASON_LIMIT = 4000
# Far above what there will ever be: never a writer that is needed.
WRITER = 2**31 - 1


@st.composite
def almost_valid(draw: st.DrawFn) -> Any:
    """Generate configurations with some arbitrary values, missing keys and unknown keys."""
    content = copy.deepcopy(draw(st.sampled_from(VALID)))
    for _ in range(draw(st.integers(0, 3))):
        key = draw(st.sampled_from(KEYS) | st.text(max_size=10))
        if draw(st.booleans()):
            content[key] = draw(JSON_VALUES)
        else:
            content.pop(key, None)
    if draw(st.booleans()):
        content["module_positions"] = draw(
            st.dictionaries(
                st.sampled_from(["0", "1", "٣", "x", "", "7" * 5000, "\n" * 5000]),
                st.lists(st.integers(-2, 60) | st.just(10**400)) | st.just([1] * 5000),
                max_size=3,
            )
        )
    return content


TEXTS = st.one_of(
    almost_valid().map(lambda content: json.dumps(content).encode()),
    mutated(almost_valid().map(lambda content: json.dumps(content).encode())),
    JSON_VALUES.map(lambda value: json.dumps(value).encode()),
    st.binary(max_size=40),
    st.sampled_from([10, 200, 900, 990, 2000, 100_000]).map(lambda n: deeply_nested(n).encode()),
    st.sampled_from([900, 970, 980, 985, 990, 995]).map(
        lambda n: (
            json.dumps(VALID[0])[:-1].encode() + b', "detector_name2": ' + deeply_nested(n).encode() + b"}"
        )
    ),
)


def load(content: bytes) -> DetectorConfig | str:
    """Return the configuration, or the error that refuses it."""
    with tempfile.NamedTemporaryFile(prefix="stddaq-", suffix=".json") as file:
        file.write(content)
        file.flush()
        try:
            return DetectorConfig.load(file.name)
        except ConfigError as error:
            return str(error).removeprefix(file.name)


@pytest.mark.slow
@examples(125)
@given(TEXTS)
def test_any_configuration_file_is_used_or_refused_in_one_short_line(content: bytes) -> None:
    config = load(content)
    if isinstance(config, DetectorConfig):
        geometry = RingGeometry.of(config)
        assert geometry.segment_bytes >= config.n_slots * config.image_bytes > 0
        return
    assert config.startswith(": ")
    assert config.isprintable(), repr(config)
    assert len(config) <= REASON_LIMIT


@examples(5)
@given(TEXTS)
def test_a_service_starts_with_any_configuration_file_or_refuses_it(content: bytes) -> None:
    with tempfile.NamedTemporaryFile(prefix="stddaq-", suffix=".json") as file:
        file.write(content)
        file.flush()
        done = subprocess.run(
            [console_script("std_det_writer"), file.name, str(WRITER)],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    if isinstance(load(content), DetectorConfig):
        assert (done.returncode, done.stderr) == (0, "")
        return
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(f"std_det_writer: error: {file.name}: ")


def test_only_the_first_of_very_many_mistakes_are_named() -> None:
    content = make_config(module_positions={str(i): "nowhere" for i in range(20_000)})
    with pytest.raises(ConfigError, match="; and 19990 more mistakes") as refused:
        DetectorConfig.parse(content)
    assert len(str(refused.value)) <= REASON_LIMIT
