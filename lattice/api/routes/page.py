"""The routes of the status page: one document, its style and its script, as they lie in the package.

Separate because these hold no data and are public; what they show comes from the API under its classes.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Final

from fastapi import APIRouter, Response

_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def page_routes() -> APIRouter:
    """`/` and the two files that it loads; read once, so that a request touches no disk."""
    router = APIRouter(include_in_schema=False)
    html, css, js = (_read(name) for name in ("index.html", "page.css", "page.js"))

    @router.get("/")
    async def get_page() -> Response:
        return _serve(html, "text/html")

    @router.get("/page/page.css")
    async def get_style() -> Response:
        return _serve(css, "text/css")

    @router.get("/page/page.js")
    async def get_script() -> Response:
        return _serve(js, "text/javascript")

    return router


def _read(name: str) -> bytes:
    return (files("lattice.api") / "page" / name).read_bytes()


def _serve(content: bytes, media_type: str) -> Response:
    return Response(content, media_type=media_type, headers={"content-security-policy": _POLICY})
