"""The metadata of a run, from the configuration and from its start, for the files at its end."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from stddaq.config import DetectorConfig
from stddaq.errors import ConfigError
from stddaq.files.application_metadata import Layer, expected_images, layer_of_account, merge
from stddaq.wire.driver_messages import CommandError, StartCommand

# The origin of the gaps between modules.
_MODULES = "modules of the configuration"


def layers_of(
    config: DetectorConfig, start: StartCommand, added: Sequence[Mapping[str, Any]] = ()
) -> list[Layer]:
    """Return what is known of a run: by its start, and what clients `added` since."""
    known = [
        (_MODULES, _gaps_of(config)),
        ("configuration", config.nexus),
        ("start", start.nexus),
        *((f"annotate {number}", values) for number, values in enumerate(added, 1)),
    ]
    return [Layer(origin, values) for origin, values in known if values is not None]


def _gaps_of(config: DetectorConfig) -> Mapping[str, Any] | None:
    """Return the gaps between the modules; None if there are none, or the places are unknown."""
    if not config.module_positions:
        return None
    # Not at the top: many configurations have none.
    from stddaq.config.modules import gaps, position_mistakes

    if position_mistakes(config):
        return None
    found = [[gap.left, gap.top, gap.right - 1, gap.bottom - 1] for gap in gaps(config)]
    return {"detector": {"gaps": found}} if found else None


def layers_as_json(layers: Sequence[Layer]) -> str:
    """Return the layers for the request to create the master file; empty if there are none."""
    return json.dumps({layer.origin: layer.content for layer in layers}) if layers else ""


def missing_metadata(layers: Sequence[Layer], start: StartCommand, started_at: str) -> list[str] | None:
    """Return the values that the application file of a run will lack; None if it asks for none.

    Values that contradict each other are among them. Raise `CommandError` for values that contradict the
    definition.
    """
    if all(layer.origin == _MODULES for layer in layers):
        return None  # Without pydantic, which takes 11 MB of memory, and the rules.
    from stddaq.files.nxmx_rules import check_for_nxmx, contradictions, missing_for_nxmx

    # As if it ended well: its times will be known then.
    account = {"started_at": started_at, "finished_at": started_at, "outcome": "file_saved"}
    try:
        known = [layer_of_account(account), *layers]
        metadata = merge(known, expected_images({"n_image": start.n_image}))
        if metadata.values.definition is None:
            return None
        check_for_nxmx(metadata.values)
    except ConfigError as error:
        raise CommandError("invalid_field", f"nexus: {error}") from error
    missing = missing_for_nxmx(metadata)
    return missing + [key for key in contradictions(metadata.values) if key not in missing]
