"""Errors as problem details for HTTP APIs (RFC 9457), made from the one table of codes.

Separate because guards, routes and the sync listener must all answer errors in the same form, also
where no framework has been reached yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import orjson
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from ..core.errors import CODES, LatticeError
from .refusals import CODE

PROBLEM_TYPE: Final = "application/problem+json"

# Two answers of HTTP itself, which no other face can give.
_METHOD_TITLE: Final = "The method is not allowed here"
_RETRY_AFTER_S: Final = {"not_ready": 10, "no_space": 10, "store_failed": 10, "too_many": 1}


class Problem(Response):
    """An answer that says with its first message, to whoever counts, which problem it carries."""

    media_type = PROBLEM_TYPE

    def __init__(self, code: str, content: bytes, status: int, headers: Mapping[str, str]) -> None:
        super().__init__(content, status, headers)
        self.code = code

    def start(self) -> Message:
        return {
            "type": "http.response.start",
            "status": self.status_code,
            "headers": self.raw_headers,
            CODE: self.code,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send(self.start())
        await send({"type": "http.response.body", "body": self.body})


def problem(
    code: str, detail: str | None, *, headers: Mapping[str, str] | None = None, instance: str | None = None
) -> Problem:
    """The answer for an error code of the table; `detail` says what happened and what to do."""
    kind = CODES[code]
    return _response(kind.status, code, kind.title, detail, headers, instance)


def problem_of(error: LatticeError) -> Problem:
    return problem(error.code, error.message)


def method_not_allowed(allowed: tuple[str, ...]) -> Problem:
    """405 with the methods that the route knows."""
    listed = ", ".join(allowed)
    return _response(
        405, "method_not_allowed", _METHOD_TITLE, f"This route takes {listed}.", {"allow": listed}, None
    )


def _response(
    status: int,
    code: str,
    title: str,
    detail: str | None,
    headers: Mapping[str, str] | None,
    instance: str | None,
) -> Problem:
    body: dict[str, object] = {
        "success": False,
        "type": "about:blank",
        "title": title,
        "status": status,
        "code": code,
    }
    if detail is not None:
        body["detail"] = detail
    if instance is not None:
        body["instance"] = instance
    given = dict(headers or {})
    if status == 401:
        given["www-authenticate"] = 'Bearer realm="lattice"'
    if code in _RETRY_AFTER_S:
        given.setdefault("retry-after", str(_RETRY_AFTER_S[code]))
    # A detail may quote the request, lone surrogates included, which orjson would refuse.
    return Problem(code, _dumps(body), status, given)


def _dumps(body: dict[str, object]) -> bytes:
    try:
        return orjson.dumps(body)
    except orjson.JSONEncodeError:
        body["detail"] = str(body.get("detail", "")).encode("utf-8", "replace").decode("utf-8")
        return orjson.dumps(body)
