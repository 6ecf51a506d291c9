"""The routes that show the node: status, identity, known nodes, roots; and the switch of its mode.

Separate because operators and monitors live on these, and because status and state have a reduced
form for everybody else.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response
from starlette.responses import Response as PlainResponse

from ...core.errors import LatticeError
from ...core.limits import KEY_BYTES_MAX, PAGE_KEYS_MAX
from ...node.facade import LedgerView, NodeFacade
from ...schemas import Forks, Identity, Key, LedgerState, Nodes, Status, SwitchAnswer, headline
from ..access import API
from ..answers import answer, ledger_state, reduced
from ..guards import is_operator
from ..headers import parse_etags
from ..openapi import IF_NONE_MATCH, PROBLEMS
from ..paging import fork_page, key_page

_PAGE_TRIES = 3


def status_routes(node: NodeFacade) -> APIRouter:
    """`p2p/status`, `p2p/identity`, `nodes`, `forks`, `state` and `sync/switch` over this node."""
    router = APIRouter(prefix=API, tags=["node"], responses=PROBLEMS)

    @router.get("/p2p/status", response_model=Status, summary="Both lungs, peers, roots, alarms")
    async def get_status(request: Request) -> Response:
        status = node.status()
        status = replace(status, headline=headline(status))
        return answer(status if is_operator(request.scope) else reduced(status))

    @router.get("/p2p/identity", response_model=Identity, summary="The peer id and where it is dialled")
    async def get_identity() -> Response:
        addresses = node.status().listen_multiaddrs
        return answer(Identity(True, node.peer_id, addresses, node.name, node.network_id.hex()))

    @router.get("/nodes", response_model=Nodes, summary="The base URLs of the known peers")
    async def get_nodes() -> Response:
        urls = node.node_urls()
        return answer(Nodes(True, urls, len(urls)))

    @router.get("/forks", response_model=Forks, summary="A page of logs with two branches, and their proofs")
    async def get_forks(
        after: Annotated[
            str | None, Query(description="The next of the page before.", max_length=100)
        ] = None,
        limit: Annotated[int, Query(ge=1, le=PAGE_KEYS_MAX)] = 100,
    ) -> Response:
        found, following = await fork_page(node, after, limit)
        return answer(Forks(True, found, len(found), following))

    @router.get(
        "/state",
        response_model=LedgerState,
        summary="Both roots, sizes and heads, signed; with include=state a page of the keys",
        openapi_extra={"parameters": [IF_NONE_MATCH]},
    )
    async def get_state(
        request: Request,
        include: Annotated[Literal["state"] | None, Query()] = None,
        prefix: Annotated[str, Query(max_length=KEY_BYTES_MAX)] = "",
        after: Annotated[str | None, Query(max_length=KEY_BYTES_MAX)] = None,
        limit: Annotated[int, Query(ge=1, le=PAGE_KEYS_MAX)] = 100,
    ) -> Response:
        if include is not None and not is_operator(request.scope):
            raise LatticeError(
                "unauthorized", "Values are for operators: send the token, or leave out include."
            )
        view = node.ledger()
        tag = _tag(view)
        header = request.headers.get("if-none-match")
        if header is not None and tag[3:-1] in [given for given, _ in parse_etags(header)]:
            return PlainResponse(status_code=304, headers={"etag": tag})
        page: list[Key] | None = None
        following: str | None = None
        if include is not None:
            view, page, following = await _page_with_roots(node, prefix, after, limit)
        return answer(ledger_state(view, page, following), headers={"etag": _tag(view)})

    @router.post("/sync/switch", response_model=SwitchAnswer, summary="Choose the policy: auto, p2p or http")
    async def switch(mode: Annotated[str, Query(description="auto, p2p or http")] = "") -> Response:
        return answer(await node.switch(mode))

    return router


async def _page_with_roots(
    node: NodeFacade, prefix: str, after: str | None, limit: int
) -> tuple[LedgerView, list[Key], str | None]:
    """A page and the roots over it; when writes keep coming, the roots from just before the page."""
    for _ in range(_PAGE_TRIES):
        before = node.ledger()
        page, following = await key_page(node, prefix, after, limit)
        if node.ledger().state_root == before.state_root:
            break
    return before, page, following


def _tag(view: LedgerView) -> str:
    # Weak: the timestamp and the signature differ from answer to answer over the same roots.
    return f'W/"{view.state_root.hex()}.{view.log_root.hex()}"'
