"""The server half of the HTTP lung, and the probes of load balancers.

Separate because the sync listener serves exactly these and nothing else, without the framework.
"""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from starlette.responses import Response as PlainResponse

from ...core.errors import LatticeError
from ...node.facade import NodeFacade
from ...schemas import Health, Imported, Readiness
from ..access import API
from ..answers import answer
from ..guards import body_of, client_of, is_operator
from ..openapi import PROBLEMS, SEALED

SYNC_PATH = f"{API}/sync/messages"
OCTET_STREAM = "application/octet-stream"
_NO_DETAIL = "failing"


async def serve_envelope(node: NodeFacade, body: bytes, remote: str) -> PlainResponse:
    """The node's answer to one sealed envelope.

    Whoever is not of the network learns nothing from the refusal: which check failed is for the log.
    """
    try:
        sealed = await node.serve_sync(body, remote)
    except LatticeError as error:
        if error.code in ("envelope", "malformed"):
            raise LatticeError("envelope", "The envelope was refused.") from error
        raise
    return PlainResponse(sealed, 200, media_type=OCTET_STREAM)


def sync_routes(node: NodeFacade) -> APIRouter:
    """`sync/messages` and `import` over this node."""
    router = APIRouter(prefix=API, tags=["peers"], responses=PROBLEMS)

    @router.post(
        "/sync/messages",
        summary="One sealed envelope of another node, answered by one",
        response_class=PlainResponse,
        openapi_extra={"requestBody": SEALED},
        responses={200: {"content": {OCTET_STREAM: {"schema": {"type": "string", "format": "binary"}}}}},
    )
    async def post_messages(request: Request) -> Response:
        return await serve_envelope(node, body_of(request.scope), client_of(request.scope))

    @router.post(
        "/import",
        response_model=Imported,
        summary="One envelope of a parcel (`lattice export --sealed`), carried by hand",
        openapi_extra={"requestBody": SEALED},
    )
    async def post_import(request: Request) -> Response:
        return answer(await node.take_parcel(body_of(request.scope)))

    return router


def probe_routes(node: NodeFacade) -> APIRouter:
    """`/health`, `/livez` and `/readyz`."""
    router = APIRouter(tags=["probes"])

    @router.get("/health", response_model=Health, summary="The process answers")
    async def health() -> Response:
        return answer(Health("healthy"))

    @router.get("/livez", response_model=Health, summary="The process is alive")
    async def livez() -> Response:
        return answer(Health("alive"))

    @router.get(
        "/readyz",
        response_model=Readiness,
        summary="The node takes reads and writes; does not depend on peers",
        responses={503: {"model": Readiness, "description": "The failing checks"}},
    )
    async def readyz(request: Request) -> Response:
        checks = node.ready()
        if not is_operator(request.scope):
            checks = dict.fromkeys(checks, _NO_DETAIL)
        return answer(Readiness(not checks, checks), 503 if checks else 200)

    return router
