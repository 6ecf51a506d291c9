"""Atomic batches over HTTP."""

from __future__ import annotations

import httpx
import orjson
import pytest

from lattice.core.limits import ENTRY_BYTES_MAX, OPS_MAX
from lattice.node.node import Node
from tests.integration.api.api_kit import problem

ENTRIES = "/api/lattice/entries"
KEYS = "/api/lattice/keys"


def put(key: str, value: object, **more: object) -> dict[str, object]:
    return {"op": "put", "key": key, "value": value, **more}


async def post(client: httpx.AsyncClient, *ops: object, **headers: str) -> httpx.Response:
    return await client.post(ENTRIES, content=orjson.dumps({"ops": ops}), headers=headers)


async def test_a_batch_is_one_entry(operator: httpx.AsyncClient, node: Node) -> None:
    await post(operator, put("gone", 1))
    response = await post(
        operator,
        put("a", {"n": 1}),
        put("b", [1, 2]),
        {"op": "delete", "key": "gone"},
        {"op": "add", "key": "n", "amount": -3},
    )
    assert response.status_code == 201
    body = response.json()
    assert body["versions"] == [f"{body['id']}.{index}" for index in range(4)]
    assert body["version"] == body["versions"][0]
    assert "etag" not in response.headers
    assert node.engine.roots.entry_count == 2
    shown = {one["key"]: one for one in (await operator.get(KEYS)).json()["keys"]}
    assert set(shown) == {"a", "b", "n"}
    assert shown["a"]["value"] == {"n": 1}
    assert shown["n"]["total"] == -3


async def test_a_full_batch_fits_and_one_more_op_is_413(operator: httpx.AsyncClient, node: Node) -> None:
    ops = [put(f"k/{index}", index) for index in range(OPS_MAX)]
    response = await post(operator, *ops)
    assert response.status_code == 201
    assert len(response.json()["versions"]) == OPS_MAX
    assert "never split" in problem(await post(operator, *ops, put("more", 1)), 413, "too_large")
    assert node.engine.roots.entry_count == 1


async def test_more_bytes_than_an_entry_are_413(operator: httpx.AsyncClient, node: Node) -> None:
    half = "x" * (ENTRY_BYTES_MAX // 2 - 200)
    assert (await post(operator, put("a", half), put("b", half))).status_code == 201
    third = put("c", "x" * 1000)
    assert "never split" in problem(
        await post(operator, put("a", half), put("b", half), third), 413, "too_large"
    )
    assert node.engine.roots.entry_count == 1


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "bad_value"),
        (b"{", "bad_value"),
        (b"[]", "bad_request"),
        (b"{}", "bad_request"),
        (b'{"ops":{}}', "bad_request"),
        (b'{"ops":[]}', "bad_request"),
        (b'{"ops":[],"more":1}', "bad_request"),
        (b'{"ops":[1]}', "bad_request"),
        (b'{"ops":[null]}', "bad_request"),
        (b'{"ops":[{}]}', "bad_request"),
        (b'{"ops":[{"op":"put","key":"k"}]}', "bad_request"),
        (b'{"ops":[{"op":"put","value":1}]}', "bad_request"),
        (b'{"ops":[{"op":"put","key":1,"value":1}]}', "bad_request"),
        (b'{"ops":[{"op":"put","key":"k","value":1,"x":1}]}', "bad_request"),
        (b'{"ops":[{"op":"move","key":"k"}]}', "bad_request"),
        (b'{"ops":[{"op":["put"],"key":"k","value":1}]}', "bad_request"),
        (b'{"ops":[{"op":"delete","key":"k","value":1}]}', "bad_request"),
        (b'{"ops":[{"op":"add","key":"k"}]}', "bad_request"),
        (b'{"ops":[{"op":"add","key":"k","amount":1.0}]}', "bad_request"),
        (b'{"ops":[{"op":"add","key":"k","amount":true}]}', "bad_request"),
        (b'{"ops":[{"op":"add","key":"k","amount":"1"}]}', "bad_request"),
        (b'{"ops":[{"op":"add","key":"k","amount":9007199254740992}]}', "bad_request"),
        (b'{"ops":[{"op":"add","key":"k","amount":18446744073709551616}]}', "bad_value"),
        (b'{"ops":[{"op":"add","key":"k","amount":1,"over":[]}]}', "bad_request"),
        (b'{"ops":[{"op":"put","key":"k","value":1,"over":1}]}', "bad_request"),
        (b'{"ops":[{"op":"put","key":"k","value":1,"over":["x"]}]}', "bad_request"),
        (b'{"ops":[{"op":"put","key":"k","value":1,"over":[1]}]}', "bad_request"),
        (b'{"ops":[{"op":"put","key":"k","value":1,"if_match":1}]}', "bad_request"),
        (b'{"ops":[{"op":"put","key":"k","value":1,"if_none_match":"x"}]}', "bad_request"),
        (b'{"ops":[{"op":"put","key":"","value":1}]}', "bad_key"),
        (b'{"ops":[{"op":"put","key":"' + b"k" * 1025 + b'","value":1}]}', "bad_key"),
        (b'{"ops":[{"op":"put","key":"\\ud800","value":1}]}', "bad_value"),
        (b'{"ops":[{"op":"put","key":"\xc0\xaf","value":1}]}', "bad_value"),
        (b'{"ops":[{"op":"put","key":"k","value":9007199254740993}]}', "bad_value"),
        (b'{"ops":[{"op":"put","key":"k","value":1e400}]}', "bad_value"),
        (b'{"ops":[{"op":"put","key":"k","value":' + b"[" * 65 + b"]" * 65 + b"}]}", "bad_value"),
        (b'{"ops":[{"op":"put","key":"k","value":' + b"[" * 300 + b"]" * 300 + b"}]}", "bad_value"),
        (b"[" * 10_000, "bad_value"),
    ],
)
async def test_bodies_that_are_refused(
    body: bytes, code: str, operator: httpx.AsyncClient, node: Node
) -> None:
    problem(await operator.post(ENTRIES, content=body), 400, code)
    assert node.engine.roots.entry_count == 0


async def test_one_bad_op_refuses_all_and_is_named(operator: httpx.AsyncClient, node: Node) -> None:
    response = await post(operator, put("a", 1), put("b", 2), {"op": "put", "key": "c"})
    assert "Op 2" in problem(response, 400, "bad_request")
    assert node.engine.roots.entry_count == 0


async def test_conditions_hold_for_the_whole_batch(operator: httpx.AsyncClient, node: Node) -> None:
    first = (await post(operator, put("a", 1))).json()["version"]
    absent = put("a", 2, if_none_match="*")
    problem(await post(operator, put("b", 1), absent), 412, "precondition_failed")
    problem(await post(operator, put("b", 1, if_match="*")), 412, "precondition_failed")
    assert (await operator.get(f"{KEYS}/b")).status_code == 404
    second = await post(operator, put("b", 1, if_none_match="*"), put("a", 2, if_match=first))
    assert second.status_code == 201
    problem(await post(operator, put("a", 3, if_match=first)), 412, "precondition_failed")
    deleted = await post(operator, {"op": "delete", "key": "a", "if_match": second.json()["versions"][1]})
    assert deleted.status_code == 201


async def test_over_names_what_is_replaced(operator: httpx.AsyncClient, node: Node) -> None:
    first = (await post(operator, put("k", 1))).json()["version"]
    node.engine.end_epoch()
    second = (await post(operator, put("k", 2, over=[]))).json()["version"]
    assert len((await operator.get(f"{KEYS}/k")).json()["siblings"]) == 1
    node.engine.end_epoch()
    third = (await post(operator, put("k", 3, over=[first]))).json()["version"]
    shown = (await operator.get(f"{KEYS}/k")).json()
    assert (shown["version"], [one["version"] for one in shown["siblings"]]) == (third, [second])


async def test_a_repeated_batch_answers_the_first_result(operator: httpx.AsyncClient, node: Node) -> None:
    once = {"Idempotency-Key": "batch-1"}
    body = orjson.dumps({"ops": [put("a", 1), put("b", 2)]})
    first = await operator.post(ENTRIES, content=body, headers=once)
    again = await operator.post(ENTRIES, content=body, headers=once)
    assert again.json() == first.json() | {"repeated": True}
    problem(await operator.post(ENTRIES, content=body + b" ", headers=once), 422, "idempotency_mismatch")
    assert node.engine.roots.entry_count == 1
