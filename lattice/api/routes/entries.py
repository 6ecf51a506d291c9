"""The route of atomic batches.

Separate from keys because a batch has no address of its own before it is written.
"""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from ...node.facade import NodeFacade
from ...schemas import Written
from ..access import API
from ..answers import written
from ..batch import parse_batch
from ..guards import body_of
from ..openapi import ACK, IDEMPOTENCY_KEY, OPS_BODY, PROBLEMS
from ..request import terms_of
from .keys import write_answer


def entry_routes(node: NodeFacade) -> APIRouter:
    """`entries` over this node."""
    router = APIRouter(prefix=API, tags=["entries"], responses=PROBLEMS)

    @router.post(
        "/entries",
        response_model=Written,
        status_code=201,
        summary="Write an atomic batch of ops as one entry",
        openapi_extra={"requestBody": OPS_BODY, "parameters": [ACK, IDEMPOTENCY_KEY]},
    )
    async def post_entries(request: Request) -> Response:
        terms = terms_of(request)
        drafts, conditions = parse_batch(body_of(request.scope))
        done = await node.append(
            drafts,
            conditions=conditions,
            idempotency_key=terms.idempotency_key,
            request_digest=terms.digest,
            ack=terms.ack,
        )
        return write_answer(written(done), 201)

    return router
