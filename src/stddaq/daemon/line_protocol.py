"""The line protocol of InfluxDB 1.x, see https://docs.influxdata.com/influxdb/v1/write_protocols/.

`std_det_driver,detector=NAME,source=image processed_times=0i,repetition_rate_hz=0.00 1795622400000000000`:
measurement, tags, fields, and the time of day in ns.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

# Numbers that identify a service and are not counts.
_NUMBERS_OF_SERVICES = ("id", "port")


def line_protocol(measurement: str, pairs: Mapping[str, object], epoch_ns: int) -> str:
    """Return one line. Texts, `id` and `port` are tags, all other numbers fields; floats get two decimals."""
    tags, fields = [_escaped(measurement, ", ")], []
    for key, value in pairs.items():
        if isinstance(value, str) or key in _NUMBERS_OF_SERVICES:
            tags.append(f"{key}={_escaped(str(value), ', =')}")
        elif isinstance(value, int):
            fields.append(f"{key}={value}i")
        elif isinstance(value, float) and math.isfinite(value):  # InfluxDB refuses NaN and infinity.
            fields.append(f"{key}={value:.2f}")
    return f"{','.join(tags)} {','.join(fields)} {epoch_ns}"


def _escaped(text: str, special: str) -> str:
    return "".join("\\" + c if c in special else c for c in text)
