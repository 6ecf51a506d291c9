"""The route of events: what the node does, as it happens.

Separate because its answer has no end, unlike every other.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Request, Response

from ...core.limits import KEY_BYTES_MAX
from ...node.bus import Filter, parse_types
from ...node.facade import NodeFacade
from ..access import API
from ..event_stream import EVENT_STREAM, EventStream
from ..openapi import LAST_EVENT_ID, PROBLEMS

_ID_CHARS_MAX: Final = 64
_ANSWER: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "description": "Server-sent events of the types entry, mode, peer, alarm, policy and lost; "
        "the data of each is one JSON object",
        "content": {EVENT_STREAM: {"schema": {"type": "string"}}},
    }
}


def event_routes(node: NodeFacade) -> APIRouter:
    """`events` over this node."""
    router = APIRouter(prefix=API, tags=["events"], responses=PROBLEMS)

    @router.get(
        "/events",
        response_class=Response,
        responses=_ANSWER,
        summary="What happens, as server-sent events; resumes, and says what was lost",
        openapi_extra={"parameters": [LAST_EVENT_ID]},
    )
    async def get_events(
        request: Request,
        prefix: Annotated[
            str, Query(max_length=KEY_BYTES_MAX, description="Of entries, those that touch such a key.")
        ] = "",
        types: Annotated[
            str, Query(alias="type", max_length=200, description="Types, parted by commas; else all.")
        ] = "",
        after: Annotated[
            str | None, Query(max_length=_ID_CHARS_MAX, description="As Last-Event-ID, which is stronger.")
        ] = None,
        follow: Annotated[bool, Query(description="false: only what there is, then the end.")] = True,
    ) -> Response:
        # A browser that reconnects repeats the query of its first request: the header is the newer.
        last = request.headers.get("last-event-id") or after or None
        return EventStream(node.bus.reader(last, Filter(parse_types(types), prefix)), follow=follow)

    return router
