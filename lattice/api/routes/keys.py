"""The routes of single keys and of pages of keys.

Separate from the batch route because a key is addressed by its path and speaks HTTP's own language
of conditions: ETag, If-Match, If-None-Match.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from starlette.responses import Response as PlainResponse

from ...core.draft import Condition, OpDraft
from ...core.entry import OpKind
from ...core.errors import LatticeError
from ...core.limits import KEY_BYTES_MAX, PAGE_KEYS_MAX
from ...node.facade import KeyView, NodeFacade
from ...schemas import Key, KeyPage, Written
from ...writable import pack, parse_json
from ..access import API
from ..answers import KeyWriter, answer, tag_of, unreadable, written
from ..guards import body_of
from ..headers import parse_etags
from ..openapi import ACK, IDEMPOTENCY_KEY, IF_MATCH, IF_NONE_MATCH, JSON_VALUE, PROBLEMS
from ..paging import key_page
from ..request import conditions_of, key_of, terms_of


def key_routes(node: NodeFacade) -> APIRouter:
    """`keys` and `keys/{key}` over this node."""
    router = APIRouter(prefix=API, tags=["keys"], responses=PROBLEMS)

    @router.get("/keys", response_model=KeyPage, summary="A page of keys in byte order")
    async def get_keys(
        prefix: Annotated[str, Query(max_length=KEY_BYTES_MAX)] = "",
        after: Annotated[str | None, Query(max_length=KEY_BYTES_MAX)] = None,
        limit: Annotated[int, Query(ge=1, le=PAGE_KEYS_MAX)] = 100,
    ) -> Response:
        keys, following = await key_page(node, prefix, after, limit)
        return answer(KeyPage(True, keys, len(keys), following))

    @router.get(
        "/keys/{key:path}",
        response_model=Key,
        summary="One key: the winning value, its version, its siblings",
        openapi_extra={"parameters": [IF_NONE_MATCH]},
    )
    async def get_key(request: Request) -> Response:
        text, key = key_of(request)
        view = node.key(key)
        if view is None:
            raise LatticeError("not_found", f"There is no key {text[:100]!r}.")
        tag = tag_of(view)
        if _matches(request, view, tag):
            return PlainResponse(status_code=304, headers={"etag": tag})
        shown = KeyWriter(node).key(view)
        if shown.error is not None:
            raise unreadable(text)
        return answer(shown, headers={"etag": tag})

    @router.put(
        "/keys/{key:path}",
        response_model=Written,
        status_code=201,
        summary="Put a value: the body is the JSON value itself",
        openapi_extra={
            "requestBody": JSON_VALUE,
            "parameters": [ACK, IF_MATCH, IF_NONE_MATCH, IDEMPOTENCY_KEY],
        },
    )
    async def put_key(request: Request) -> Response:
        _, key = key_of(request)
        terms = terms_of(request)
        draft = OpDraft(OpKind.PUT, key, pack(parse_json(body_of(request.scope))))
        done = await node.append(
            [draft],
            conditions=conditions_of(request, key),
            idempotency_key=terms.idempotency_key,
            request_digest=terms.digest,
            ack=terms.ack,
        )
        return write_answer(written(done), 201)

    @router.delete(
        "/keys/{key:path}",
        response_model=Written,
        summary="Delete a key: every version that this node holds of it",
        openapi_extra={"parameters": [ACK, IF_MATCH, IDEMPOTENCY_KEY]},
    )
    async def delete_key(request: Request) -> Response:
        text, key = key_of(request)
        terms = terms_of(request)
        conditions = conditions_of(request, key)
        try:
            done = await node.append(
                [OpDraft(OpKind.DELETE, key)],
                conditions=conditions or [Condition(key, present=True)],
                idempotency_key=terms.idempotency_key,
                request_digest=terms.digest,
                ack=terms.ack,
            )
        except LatticeError as error:
            if error.code == "precondition_failed" and not conditions:
                raise LatticeError("not_found", f"There is no value under {text[:100]!r}.") from error
            raise
        return write_answer(written(done), 200)

    return router


def write_answer(done: Written, status: int) -> PlainResponse:
    """The answer to a write, with the version as ETag where it is one op's."""
    headers = {}
    if len(done.versions) == 1:
        headers["etag"] = f'"{done.version}"'
    if done.repeated:
        headers["idempotency-replayed"] = "true"
    return answer(done, status, headers)


def _matches(request: Request, view: KeyView, tag: str) -> bool:
    header = request.headers.get("if-none-match")
    if header is None:
        return False
    tags = [given for given, _ in parse_etags(header)]
    return tags == ["*"] or tag.strip('"') in tags
