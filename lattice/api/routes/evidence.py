"""The routes that show how the state came to be: histories, entries, proofs.

Separate from keys and entries because these only read, and read what the state itself does not hold.
"""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response

from ...core.entry import Version
from ...core.errors import LatticeError, MalformedError
from ...core.limits import PAGE_KEYS_MAX
from ...core.proofs import proof_fields
from ...core.receipts import receipt_fields
from ...node.facade import NodeFacade
from ...schemas import EntryInfo, EntryPage, History, KeyProof
from ..access import API
from ..answers import answer
from ..evidence import entry_detail, entry_page, history_page, parse_epoch, parse_id
from ..openapi import PROBLEMS
from ..request import key_of

_VERSION_CHARS_MAX = 70


def evidence_routes(node: NodeFacade) -> APIRouter:
    """`history/{key}`, `proof/{key}`, `entries` and `entries/{id}` over this node."""
    router = APIRouter(prefix=API, tags=["evidence"], responses=PROBLEMS)

    @router.get(
        "/history/{key:path}",
        response_model=History,
        summary="Every op of a key, newest first: what it wrote, what replaced it, which lung brought it",
    )
    async def get_history(
        request: Request,
        after: Annotated[str | None, Query(max_length=_VERSION_CHARS_MAX)] = None,
        limit: Annotated[int, Query(ge=1, le=PAGE_KEYS_MAX)] = 100,
    ) -> Response:
        text, key = key_of(request)
        return answer(history_page(await node.history(key, _version(after), limit), text))

    @router.get(
        "/proof/{key:path}",
        response_model=KeyProof,
        summary="A key, or its absence, under the signed state root; checked offline by `lattice verify`",
    )
    async def get_proof(
        request: Request,
        form: Annotated[Literal["lattice", "merkletools"], Query(alias="format")] = "lattice",
    ) -> Response:
        _, key = key_of(request)
        if form == "merkletools":
            fields = receipt_fields(await node.receipt(key))
        else:
            fields = proof_fields(await node.prove(key))
        return answer({"success": True, **fields})

    @router.get(
        "/entries",
        response_model=EntryPage,
        summary="A page of entries in log order (author, epoch, seq)",
    )
    async def get_entries(
        author: Annotated[str | None, Query(description="Only of this peer id.")] = None,
        epoch: Annotated[str | None, Query(description="Only of this epoch (16 hex digits).")] = None,
        after: Annotated[str | None, Query(description="Only behind the entry with this id.")] = None,
        limit: Annotated[int, Query(ge=1, le=PAGE_KEYS_MAX)] = 100,
        lung: Annotated[
            Literal["local", "p2p", "http", "gossip", "file"] | None,
            Query(description="Only what came this way."),
        ] = None,
    ) -> Response:
        wanted = None if epoch is None else parse_epoch(epoch)
        return answer(await entry_page(node, author, wanted, after, limit, lung))

    # The rest of the path, so that a slash in it is answered like any other id that there is not.
    @router.get(
        "/entries/{key:path}",
        response_model=EntryInfo,
        summary="One entry by its id, with its ops, its header and the seal over it",
    )
    async def get_entry(request: Request) -> Response:
        text, _ = key_of(request)
        found = node.entry(parse_id(text))
        if found is None:
            raise LatticeError("not_found", f"There is no entry {text}.")
        return answer(entry_detail(node.network_id, *found))

    return router


def _version(text: str | None) -> Version | None:
    try:
        return None if text is None else Version.parse(text)
    except MalformedError as error:
        raise LatticeError("bad_request", f"after: {error.message}.") from error
