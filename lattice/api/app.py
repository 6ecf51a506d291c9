"""The two applications of a node: the API with everything, and the sync listener with one route.

Separate from the routes because here the guards are put in front of them, in their order.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.responses import HTMLResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from .. import schemas
from ..core.errors import LatticeError
from ..node.facade import NodeFacade
from ..observability.logs import TaggedLogger
from .access import Access, RouteClass, rules_for
from .answers import answer
from .guards import Fence, Gate, Intake, PeerLimit, body_of, client_of
from .metrics import AnswerCounts, metrics_routes
from .openapi import docs_page
from .problems import method_not_allowed, problem, problem_of
from .refusals import Refusals
from .routes.entries import entry_routes
from .routes.events import event_routes
from .routes.evidence import evidence_routes
from .routes.keys import key_routes
from .routes.page import page_routes
from .routes.peers import peer_routes
from .routes.status import status_routes
from .routes.sync import SYNC_PATH, probe_routes, serve_envelope, sync_routes
from .turnstile import Turnstile

_TITLE = "Lattice"
_VERSION = "1"
_DESCRIPTION = (
    "A node of a replicated ledger. Errors are problem details (RFC 9457) with a stable `code`. "
    "Operators call from the node's own machine, or with the token as `Authorization: Bearer`."
)


def create_app(
    node: NodeFacade,
    access: Access,
    *,
    logs: TaggedLogger | None = None,
    turnstile: Turnstile | None = None,
    refusals: Refusals | None = None,
) -> FastAPI:
    """The API of one node. Share one `turnstile` and one `refusals` between this, `create_sync_app`
    and the listeners of both."""
    answers = AnswerCounts()
    limits, refused = turnstile or Turnstile(), refusals or Refusals()
    app = FastAPI(
        title=_TITLE,
        version=_VERSION,
        description=_DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
        middleware=[
            Middleware(Fence, logs=logs, answered=answers.add, refused=refused.add),
            Middleware(Gate, access=access),
            Middleware(PeerLimit, turnstile=limits, is_peer=_is_peer),
            Middleware(Intake, turnstile=limits),
        ],
    )
    ledger = (key_routes, entry_routes, evidence_routes, event_routes)
    for router in (status_routes, peer_routes, *ledger, sync_routes, probe_routes):
        app.include_router(router(node))
    app.include_router(metrics_routes(node, answers, refused))
    app.include_router(page_routes())
    _add_docs(app)
    _add_handlers(app, logs)
    return app


def create_sync_app(
    node: NodeFacade,
    *,
    logs: TaggedLogger | None = None,
    turnstile: Turnstile | None = None,
    refusals: Refusals | None = None,
) -> ASGIApp:
    """What other nodes reach: POST sync/messages and /health, nothing else and no framework.

    No Host or Origin is checked here: peers call a node by whatever name they were told, and only
    the sealed envelope is proof.
    """
    limits = turnstile or Turnstile()
    limited = PeerLimit(Intake(_SyncApp(node), turnstile=limits), turnstile=limits, is_peer=_is_peer)
    return Fence(limited, logs=logs, refused=(refusals or Refusals()).add)


class _SyncApp:
    """Two routes by hand."""

    def __init__(self, node: NodeFacade) -> None:
        self._node = node

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        response = await self._respond(scope)
        await response(scope, receive, send)

    async def _respond(self, scope: Scope) -> Response:
        path, method = scope["path"], scope["method"]
        if path == SYNC_PATH:
            if method == "POST":
                return await serve_envelope(self._node, body_of(scope), client_of(scope))
            return method_not_allowed(("POST",))
        if path == "/health":
            return answer({"status": "healthy"}) if method == "GET" else method_not_allowed(("GET", "HEAD"))
        raise LatticeError("not_found", "This listener is for other nodes; the API is on another one.")


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


def _is_peer(scope: Scope) -> bool:
    return any(rule.kind is RouteClass.PEER for rule in rules_for(scope["path"]).values())


def _add_docs(app: FastAPI) -> None:
    def schema() -> dict[str, Any]:
        found = app.openapi()
        components = found.setdefault("components", {}).setdefault("schemas", {})
        components.setdefault("Problem", _problem_schema())
        return found

    @app.get("/openapi.json", include_in_schema=False)
    async def openapi_json() -> Response:
        return answer(schema())

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        policy = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; frame-ancestors 'none'"
        return HTMLResponse(docs_page(schema()), headers={"content-security-policy": policy})


def _problem_schema() -> dict[str, Any]:
    from pydantic import TypeAdapter  # FastAPI's own; only the description needs it

    return TypeAdapter(schemas.Problem).json_schema()


def _add_handlers(app: FastAPI, logs: TaggedLogger | None) -> None:
    @app.exception_handler(LatticeError)
    async def lattice_error(request: Request, error: LatticeError) -> Response:
        if logs is not None and error.kind.level == "ERROR":
            say = logs.error
            say("API", "A request failed", code=error.code, detail=error.message)
        return problem_of(error)

    @app.exception_handler(RequestValidationError)
    async def bad_query(request: Request, error: RequestValidationError) -> Response:
        # The Fence hides bodies from the framework, so only the query can be at fault.
        found = "; ".join(f"{item['loc'][-1]}: {item['msg']}" for item in error.errors())
        return problem("bad_request", f"The query does not fit: {found[:500]}.")

    @app.exception_handler(HTTPException)
    async def framework_error(request: Request, error: HTTPException) -> Response:
        # The Gate has already judged path and method, so this is a route that it knows and FastAPI
        # does not: a defect, unless it is one of these two.
        if error.status_code == 405:
            return method_not_allowed(tuple(rules_for(request.scope["path"])))
        return problem("not_found" if error.status_code == 404 else "internal", str(error.detail))
