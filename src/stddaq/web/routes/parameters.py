"""Parameters that several routes take."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query

MAX_NAME_LENGTH = 64
# Names from requests become part of log lines and file names.
NAME = r"^[A-Za-z0-9_][A-Za-z0-9._@-]*$"

User = Annotated[
    str,
    Query(max_length=MAX_NAME_LENGTH, pattern=NAME, description="the user, for the logs and the history"),
]
Detector = Annotated[
    str | None,
    Query(
        max_length=MAX_NAME_LENGTH,
        pattern=NAME,
        description="detector_name; mandatory if the service has several configurations",
    ),
]
