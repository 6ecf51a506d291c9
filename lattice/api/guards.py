"""The guards in front of every route, as small pure ASGI middleware: Fence, Gate, PeerLimit, Intake.

Separate because they hold before any framework code runs and are shared by both listeners: the
server underneath has neither a body limit nor a body time-out of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import trio
from starlette.datastructures import MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..core.addresses import source_of
from ..core.errors import LatticeError
from ..core.limits import (
    ENVELOPE_BYTES_MAX,
    HTTP_BODY_BYTES_MAX,
    HTTP_BODY_TIMEOUT_S,
    HTTP_BODYLESS_BYTES_MAX,
    drips,
)
from ..observability.logs import TaggedLogger
from .access import Access, RouteClass, Rule, decode_text, rules_for
from .problems import Problem, method_not_allowed, problem, problem_of
from .refusals import CODE
from .turnstile import Turnstile

# After a refusal the rest of the body is read and dropped for a moment, so that a client that sends
# first and listens later still gets the answer and not a reset.
_DRAIN_BYTES_MAX: Final = 2 * HTTP_BODY_BYTES_MAX
_DRAIN_S: Final = 1.0

_BODY: Final = "lattice.body"
_OPERATOR: Final = "lattice.operator"
_CORS_ORIGIN: Final = "lattice.cors_origin"
_HEAD: Final = "lattice.head"
_PREFLIGHT_HEADERS: Final = (
    "authorization, content-type, if-match, if-none-match, idempotency-key, last-event-id"
)
_EXPOSED_HEADERS: Final = "etag, retry-after, idempotency-replayed"


def body_of(scope: Scope) -> bytes:
    """The request body that Intake has read."""
    body = scope[_BODY]
    assert isinstance(body, bytes)
    return body


def is_operator(scope: Scope) -> bool:
    """Whether Gate took the caller for an operator (public routes are open to others too)."""
    return bool(scope.get(_OPERATOR, False))


def is_head(scope: Scope) -> bool:
    """Whether the caller asked for the head alone: an endless body must end at once."""
    return bool(scope.get(_HEAD, False))


def client_of(scope: Scope) -> str:
    """The address of the other end of the connection, for logs and budgets."""
    client = scope.get("client")
    return str(client[0]) if client else ""


class Fence:
    """The outermost guard: HTTP only, HEAD as a GET without a body, every failure in problem form.

    Routing goes by the raw path: a key may hold slashes, newlines and `%2F`, and what Gate judged
    must be the very string that the router matches.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        logs: TaggedLogger | None = None,
        answered: Callable[[int], None] = lambda status: None,
        refused: Callable[[str], None] = lambda reason: None,
    ) -> None:
        """`answered` counts each answer by its status, `refused` each problem by its code."""
        self._app = app
        self._logs = logs
        self._answered = answered
        self._refused = refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": ""})
        else:
            await self._serve(scope, receive, send)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        raw = scope.get("raw_path") or scope["path"].encode("utf-8", "replace")
        inner = dict(scope, path=raw.decode("latin-1"))
        head = scope["method"] == "HEAD"
        if head:
            inner["method"] = "GET"
            inner[_HEAD] = True
        sender = _Sender(send, inner, drop_body=head, answered=self._answered, refused=self._refused)
        try:
            await self._app(inner, receive, sender)
        except LatticeError as error:
            await self._answer(error, inner, receive, sender)
        except Exception as error:  # the last seam before the server: nothing may leave as a bare 500
            if self._logs is not None:
                self._logs.defect("API", "A request met a defect", error, method=scope["method"])
            if sender.started:
                raise
            await refuse(
                problem("internal", "The request met a defect of this program; its log has the details."),
                inner,
                receive,
                sender,
            )

    async def _answer(self, error: LatticeError, scope: Scope, receive: Receive, sender: _Sender) -> None:
        if sender.started:
            raise error
        if self._logs is not None and error.kind.level != "INFO":
            say = self._logs.warning if error.kind.level == "WARNING" else self._logs.error
            say(
                "API", "A request was refused", code=error.code, detail=error.message, client=client_of(scope)
            )
        await refuse(problem_of(error), scope, receive, sender)


class _Sender:
    """Passes messages on, remembers whether the answer has begun, adds what every answer carries."""

    def __init__(
        self,
        send: Send,
        scope: Scope,
        *,
        drop_body: bool,
        answered: Callable[[int], None],
        refused: Callable[[str], None],
    ) -> None:
        self._send = send
        self._scope = scope
        self._drop_body = drop_body
        self._answered = answered
        self._refused = refused
        self.started = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            self._answered(message["status"])
            if CODE in message:
                self._refused(message[CODE])
            headers = MutableHeaders(scope=message)
            headers.setdefault("cache-control", "no-store")
            headers["x-content-type-options"] = "nosniff"
            origin = self._scope.get(_CORS_ORIGIN)
            if origin is not None:
                headers["access-control-allow-origin"] = origin
                headers["access-control-expose-headers"] = _EXPOSED_HEADERS
                headers.add_vary_header("Origin")
        elif self._drop_body and message["type"] == "http.response.body":
            message = {**message, "body": b""}
        await self._send(message)


async def refuse(response: Problem, scope: Scope, receive: Receive, send: Send) -> None:
    """Send an answer although the request's body may not have been read, then close."""
    if _BODY in scope or not _has_body(scope["headers"]):
        await response(scope, receive, send)
        return
    if scope["http_version"].startswith("1"):
        response.headers["connection"] = "close"
    await send(response.start())
    await send({"type": "http.response.body", "body": bytes(response.body), "more_body": True})
    drained = 0
    with trio.move_on_after(_DRAIN_S):
        while drained <= _DRAIN_BYTES_MAX:
            message = await receive()
            drained += len(message.get("body", b""))
            if message["type"] != "http.request" or not message.get("more_body", False):
                break
    await send({"type": "http.response.body", "body": b""})


class Gate:
    """Host, Origin, the table of routes, and the class of the route, in this order."""

    def __init__(self, app: ASGIApp, *, access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        rules = rules_for(scope["path"])
        is_peer = any(rule.kind is RouteClass.PEER for rule in rules.values())
        # A node is called under any name that its peers were told, and no browser has a sealed envelope.
        host = "" if is_peer else self._checked_host(headers)
        origin = None if is_peer else self._checked_origin(headers, host)
        scope[_CORS_ORIGIN] = origin
        if not rules:
            raise LatticeError("not_found", "There is no such route; /docs lists what there is.")
        allowed = _methods(rules)
        if scope["method"] == "OPTIONS":
            await _options(allowed, is_cors=origin is not None)(scope, receive, send)
            return
        rule = rules.get(scope["method"])
        if rule is None:
            await refuse(method_not_allowed(allowed), scope, receive, send)
            return
        decode_text(scope["query_string"], "query")
        scope[_OPERATOR] = self._admit(rule, headers, scope, host)
        await self._app(scope, receive, send)

    def _checked_host(self, headers: list[tuple[bytes, bytes]]) -> str:
        hosts = [value for name, value in headers if name == b"host"]
        host = hosts[0].decode("latin-1") if len(hosts) == 1 else ""
        if not self._access.host_is_allowed(host):
            raise LatticeError(
                "bad_host",
                f"This node is not called {host[:100]!r}; if it should be, list it in LATTICE_ALLOWED_HOSTS.",
            )
        return host

    def _checked_origin(self, headers: list[tuple[bytes, bytes]], host: str) -> str | None:
        """The origin when it is one of LATTICE_CORS_ORIGINS, else None."""
        origins = [value.decode("latin-1") for name, value in headers if name == b"origin"]
        if not origins:
            return None
        if len(origins) > 1 or not self._access.origin_is_allowed(origins[0], host):
            raise LatticeError(
                "bad_origin",
                f"Pages of {origins[0][:100]!r} may not call; list the origin in LATTICE_CORS_ORIGINS.",
            )
        return origins[0] if origins[0] in self._access.cors_origins else None

    def _admit(self, rule: Rule, headers: list[tuple[bytes, bytes]], scope: Scope, host: str) -> bool:
        """Whether the caller is an operator. Raises `unauthorized` where only an operator may call."""
        if rule.kind is RouteClass.PEER:
            return False
        is_open = rule.kind is RouteClass.PUBLIC or (rule.status and self._access.public_status)
        try:
            operator = self._access.is_operator(headers, client_of(scope) or None, host)
        except LatticeError:
            if rule.kind is not RouteClass.PUBLIC:
                raise
            operator = False
        if not operator and not is_open:
            raise LatticeError(
                "unauthorized",
                "This route is for operators: call it from this machine by a loopback address and without a "
                "proxy, or send `Authorization: Bearer` with the content of LATTICE_API_TOKEN_FILE.",
            )
        return operator


def _methods(rules: Mapping[str, Rule]) -> tuple[str, ...]:
    more = ("HEAD", "OPTIONS") if "GET" in rules else ("OPTIONS",)
    return (*rules, *more)


def _options(allowed: tuple[str, ...], *, is_cors: bool) -> Response:
    headers = {"allow": ", ".join(allowed)}
    if is_cors:
        headers["access-control-allow-methods"] = ", ".join(allowed)
        headers["access-control-allow-headers"] = _PREFLIGHT_HEADERS
        headers["access-control-max-age"] = "600"
    return Response(status_code=204, headers=headers)


class PeerLimit:
    """Applies the Turnstile to routes of class PEER."""

    def __init__(self, app: ASGIApp, *, turnstile: Turnstile, is_peer: Callable[[Scope], bool]) -> None:
        self._app = app
        self._turnstile = turnstile
        self._is_peer = is_peer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not self._is_peer(scope):
            await self._app(scope, receive, send)
            return
        address = source_of(client_of(scope))
        start: Message | None = None
        refused = False

        async def send_with_room(message: Message) -> None:
            """An answer is let out when there is room for all of it: one that is not read stays in memory
            until the connection's time for writing is over, and a request of 300 bytes asks for 1.5 MiB."""
            nonlocal start, refused
            if message["type"] != "http.response.body":
                start = message
                return
            if refused:
                return
            size = len(message.get("body", b""))
            try:
                self._turnstile.hold(address, size)
            except LatticeError as error:
                # Said here: the framework takes an error in the middle of an answer for a defect.
                refused = True
                await problem_of(error)(scope, receive, send)
                return
            try:
                if start is not None:
                    begun, start = start, None
                    await send(begun)
                await send(message)
            finally:
                self._turnstile.let_go(address, size)

        self._turnstile.enter(address)
        try:
            await self._app(scope, receive, send_with_room)
        finally:
            self._turnstile.leave(address)


class Intake:
    """Reads the whole body before the route runs, under a cap and a deadline.

    Only the body is under the deadline: an answer may take long and may be an endless stream.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        turnstile: Turnstile | None = None,
        body_bytes_max: int = HTTP_BODY_BYTES_MAX,
        timeout_s: float = HTTP_BODY_TIMEOUT_S,
    ) -> None:
        """`turnstile` bounds the bytes of all bodies held at once; each has a cap of its own by route."""
        self._app = app
        self._turnstile = turnstile or Turnstile()
        self._body_bytes_max = body_bytes_max
        self._timeout_s = timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = _Body(
            self._turnstile, source_of(client_of(scope)), min(self._body_bytes_max, _body_cap(scope))
        )
        try:
            await self._serve(body, scope, receive, send)
        finally:
            body.let_go()

    async def _serve(self, body: _Body, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            with trio.fail_after(self._timeout_s):
                whole = await body.read(scope["headers"], receive)
        except trio.TooSlowError:
            raise LatticeError(
                "too_slow", f"The body did not arrive within {self._timeout_s:g} s; send it faster."
            ) from None
        if whole is None:
            return  # the client left in the middle of its request: nobody is there to answer
        scope[_BODY] = whole
        replayed = False

        async def replay() -> Message:
            nonlocal replayed
            if replayed:
                return await receive()
            replayed = True
            return {"type": "http.request", "body": whole, "more_body": False}

        await self._app(scope, replay, send)


class _Body:
    """One body on its way in, and the room that it has been given."""

    def __init__(self, turnstile: Turnstile, address: str, bytes_max: int) -> None:
        self._turnstile = turnstile
        self._address = address
        self._bytes_max = bytes_max
        self._held = 0

    def let_go(self) -> None:
        self._turnstile.let_go(self._address, self._held)
        self._held = 0

    async def read(self, headers: list[tuple[bytes, bytes]], receive: Receive) -> bytes | None:
        """The whole body; None when the client left. Raises `too_large`, `too_many`, `bad_request`."""
        for name, value in headers:
            if name == b"content-length" and (not value.isdigit() or int(value) > self._bytes_max):
                raise self._too_large()
            if name == b"content-encoding" and value.strip().lower() != b"identity":
                raise LatticeError("bad_request", "A compressed body is not taken; send it as it is.")
        parts: list[bytes] = []
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return None
            part = message.get("body", b"")
            if self._held + len(part) > self._bytes_max:
                raise self._too_large()
            if part:
                self._turnstile.hold(self._address, len(part))
                self._held += len(part)
                parts.append(part)
                if drips(len(parts), self._held):
                    raise LatticeError("too_slow", "The body comes in too many small pieces.")
            if not message.get("more_body", False):
                return parts[0] if len(parts) == 1 else b"".join(parts)

    def _too_large(self) -> LatticeError:
        return LatticeError("too_large", f"A body has at most {self._bytes_max} bytes here.")


def _body_cap(scope: Scope) -> int:
    """How large a body the route can use: nothing larger is read, let alone verified."""
    if any(rule.kind is RouteClass.PEER for rule in rules_for(scope["path"]).values()):
        return ENVELOPE_BYTES_MAX
    return HTTP_BODY_BYTES_MAX if scope["method"] in ("POST", "PUT") else HTTP_BODYLESS_BYTES_MAX


def _has_body(headers: list[tuple[bytes, bytes]]) -> bool:
    return any(
        name == b"transfer-encoding" or (name == b"content-length" and value.strip() != b"0")
        for name, value in headers
    )
