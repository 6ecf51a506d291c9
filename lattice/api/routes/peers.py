"""The routes of the known peers: list them, add one, forget one, without a restart.

Separate from the status, which shows how peers fare and changes nothing.
"""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from ...core.errors import LatticeError
from ...node.facade import NodeFacade
from ...schemas import KnownPeers, PeerChange
from ...writable import parse_json
from ..access import API, decode_text
from ..answers import answer
from ..guards import body_of
from ..openapi import PROBLEMS

_BODY = {
    "required": True,
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["address"],
                "properties": {"address": {"type": "string"}},
            },
            "example": {"address": "http://192.0.2.7:8100"},
        }
    },
}


def peer_routes(node: NodeFacade) -> APIRouter:
    """`peers` and `peers/{key}` over this node."""
    router = APIRouter(prefix=API, tags=["peers"], responses=PROBLEMS)

    @router.get("/peers", response_model=KnownPeers, summary="The known peers, their addresses and sources")
    async def get_peers() -> Response:
        found = node.known_peers()
        return answer(KnownPeers(True, found, len(found)))

    @router.post(
        "/peers",
        response_model=PeerChange,
        status_code=201,
        summary="Know a peer by its multiaddr or base URL",
        openapi_extra={"requestBody": _BODY},
    )
    async def add_peer(request: Request) -> Response:
        return answer(PeerChange(True, await node.add_peer(_address(body_of(request.scope)))), 201)

    @router.delete(
        "/peers/{key:path}",
        response_model=PeerChange,
        summary="Forget the peer of this id or percent-encoded address",
    )
    async def forget_peer(request: Request) -> Response:
        name = decode_text(request.path_params["key"].encode("latin-1"), "peer")
        return answer(PeerChange(True, await node.forget_peer(name)))

    return router


def _address(body: bytes) -> str:
    try:
        parsed = parse_json(body, "body")
    except LatticeError as error:
        raise LatticeError("bad_request", error.message) from error
    if not isinstance(parsed, dict) or set(parsed) != {"address"} or not isinstance(parsed["address"], str):
        raise LatticeError("bad_request", 'The body is {"address": "…"} with a multiaddr or a base URL.')
    return parsed["address"]
