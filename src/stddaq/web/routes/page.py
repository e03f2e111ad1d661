"""The page at `/`, the description of the requests at `/docs`, and their scripts and styles.

They are plain files of this package; nothing comes from elsewhere.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from fastapi import APIRouter, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

_DIRECTORY = Path(__file__).parent.parent / "dashboard"
_PAGES = ("index.html", "docs.html")
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}

SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}


def router() -> APIRouter:
    """Return the routes. The path of a file contains a digest of all, so that browsers never mix versions."""
    routes = APIRouter(include_in_schema=False)
    files = {path.name: path.read_bytes() for path in sorted(_DIRECTORY.iterdir()) if path.suffix in _TYPES}
    digest = hashlib.sha256(b"".join(name.encode() + text for name, text in files.items())).hexdigest()[:16]
    index, docs = (files.pop(name).replace(b"static/", f"static/{digest}/".encode()) for name in _PAGES)

    def answer(request: Request, page: bytes) -> Response:
        headers = {"ETag": f'"{digest}"', "Cache-Control": "no-cache"}
        if request.headers.get("if-none-match") == headers["ETag"]:
            return Response(status_code=304, headers=headers)
        return Response(page, media_type=_TYPES[".html"], headers=headers)

    @routes.get("/")
    async def get_page(request: Request) -> Response:
        return answer(request, index)

    @routes.get("/docs")
    async def get_docs(request: Request) -> Response:
        return answer(request, docs)

    @routes.get("/static/{version}/{name}")
    async def static(version: str, name: str) -> Response:
        if version != digest or name not in files:
            raise HTTPException(404)
        headers = {"Cache-Control": "public, max-age=31536000, immutable"}
        return Response(files[name], media_type=_TYPES[Path(name).suffix], headers=headers)

    return routes
