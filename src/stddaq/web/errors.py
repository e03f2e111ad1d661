"""Why a request is refused, with the HTTP status that says so."""

from __future__ import annotations

from stddaq.errors import StdDaqError


class HttpRefusalError(StdDaqError):
    """A request that is not carried out; nothing has changed.

    Attributes:
        status: the HTTP status code.
        detail: the reason, or several.
    """

    def __init__(self, status: int, detail: str | list[str]) -> None:
        super().__init__(detail if isinstance(detail, str) else "; ".join(detail))
        self.status, self.detail = status, detail
