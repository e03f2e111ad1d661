"""How the service answers: JSON in ASCII, and refusals in one form."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from starlette.responses import Response

_REASONS: Mapping[int, str] = {
    400: "the request is not valid HTTP, or changes the detector",
    401: "the token is missing or wrong",
    403: "outside the roots, from another web site, protected, or without the right",
    404: "does not exist",
    408: "the body did not arrive in time",
    409: "the state of the file, configuration or simulator does not allow it",
    410: "the ring buffer no longer has the image",
    412: "the configuration has changed since it was read",
    413: "the body is too long",
    415: "the body is not declared as JSON",
    422: "the request, or what it names, is not valid; every mistake is named",
    429: "too soon after the last request, or too many wrong tokens or anonymous browsers of one address",
    502: "the driver does not answer",
    503: "too many requests are waiting, or the preview service is not running",
    504: "the file system or the preview service did not answer in time",
}


class JsonResponse(Response):
    """JSON in ASCII, because strings from clients may hold lone surrogates, which UTF-8 cannot encode."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode()


class Refusal(BaseModel):
    """The reason, or all reasons, why a request was refused."""

    detail: str | list[str]


def refusal(status: int, detail: str | list[str], headers: Mapping[str, str] | None = None) -> JsonResponse:
    """Return the response that refuses a request."""
    return JsonResponse({"detail": detail}, status, headers)


def described(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the description of refusals with these statuses, for OpenAPI."""
    return {status: {"model": Refusal, "description": _REASONS[status]} for status in statuses}
