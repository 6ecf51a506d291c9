"""Single keys over HTTP: values, versions, conditions, idempotency, and every odd key there is."""

from __future__ import annotations

import httpx
import orjson
import pytest

from lattice.api.app import create_app
from lattice.client.calls import key_path
from lattice.core.draft import OpDraft
from lattice.core.entry import OpKind
from lattice.core.limits import (
    KEY_BYTES_MAX,
    MIB,
    SIBLING_BYTES,
    SIBLINGS_VALUES_BYTES,
    VALUE_BYTES_MAX,
    VALUE_DEPTH_MAX,
)
from lattice.node.node import Node
from tests.integration.api.api_kit import in_process, operator_access, problem, put_raw

KEYS = "/api/lattice/keys"


async def test_put_get_delete(operator: httpx.AsyncClient, node: Node) -> None:
    written = await operator.put(f"{KEYS}/branch/7", content=b'{ "city": "G\\u00e9n\\u00e8ve", "n": 1 }')
    assert written.status_code == 201
    body = written.json()
    assert body["success"] is True
    assert body["author"] == node.peer_id
    assert body["version"] == f"{body['id']}.0"
    assert body["versions"] == [body["version"]]
    assert written.headers["etag"] == f'"{body["version"]}"'
    assert body["merkle_root"] == node.ledger().state_root.hex()
    assert body["log_root"] == node.ledger().log_root.hex()

    shown = await operator.get(f"{KEYS}/branch/7")
    assert shown.headers["etag"] == written.headers["etag"]
    assert shown.json() == {
        "key": "branch/7",
        "value": {"city": "Génève", "n": 1},
        "version": body["version"],
        "author": node.peer_id,
        "clock": body["clock"],
        "siblings": [],
        "adds": 0,
        "total": None,
        "error": None,
    }
    # Stored is orjson's form of the value, not the writer's text.
    view = node.key(b"branch/7")
    assert view is not None
    assert view.value == '{"city":"Génève","n":1}'.encode()

    deleted = await operator.delete(f"{KEYS}/branch/7")
    assert (deleted.status_code, deleted.json()["seq"]) == (200, 1)
    problem(await operator.get(f"{KEYS}/branch/7"), 404, "not_found")
    problem(await operator.delete(f"{KEYS}/branch/7"), 404, "not_found")
    assert node.engine.roots.entry_count == 2


@pytest.mark.parametrize(
    "key",
    [
        "plain",
        "a/b/c",
        "/leading",
        "trailing/",
        "//",
        "a//b",
        ".",
        "..",
        "a/../b",
        "./x",
        "100%",
        "%2F",
        "%",
        "a b+c",
        "?query=1&x#fragment",
        "line\nbreak\r\n",
        "tab\tnul\0",
        "ключ/鍵/🔑",
        "é",
        "e\u0301",
        "\u202eright-to-left",
        "\x7f\x80",
        "k" * KEY_BYTES_MAX,
        "鍵" * (KEY_BYTES_MAX // 3),
    ],
)
async def test_any_text_is_a_key(key: str, operator: httpx.AsyncClient, node: Node) -> None:
    path = key_path(key)
    assert (await operator.put(path, content=b"1")).status_code == 201
    assert node.key(key.encode()) is not None
    assert (await operator.get(path)).json()["key"] == key
    listed = (await operator.get(KEYS)).json()["keys"]
    assert [one["key"] for one in listed] == [key]
    assert (await operator.delete(path)).status_code == 200
    assert node.key(key.encode()) is None


async def test_slashes_may_be_written_either_way(operator: httpx.AsyncClient) -> None:
    await operator.put(f"{KEYS}/a/b", content=b'"ab"')
    assert (await operator.get(f"{KEYS}/a%2Fb")).json()["value"] == "ab"
    assert (await operator.get(f"{KEYS}/a%2fb")).json()["value"] == "ab"
    assert (await operator.get(f"{KEYS}/%61/b")).json()["value"] == "ab"
    problem(await operator.get(f"{KEYS}/a%252Fb"), 404, "not_found")


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("", "bad_key"),
        ("%ff", "bad_request"),
        ("%c0%af", "bad_request"),
        ("%ed%a0%80", "bad_request"),
        ("x" * (KEY_BYTES_MAX + 1), "bad_key"),
        ("%C3%A9" * (KEY_BYTES_MAX // 2 + 1), "bad_key"),
    ],
)
async def test_what_is_no_key(path: str, code: str, operator: httpx.AsyncClient, node: Node) -> None:
    for method in ("GET", "PUT", "DELETE"):
        problem(await operator.request(method, f"{KEYS}/{path}", content=b"1"), 400, code)
    assert node.engine.roots.entry_count == 0


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (b"null", None),
        (b"0", 0),
        (b"-0.0", -0.0),
        (b" 1 ", 1),
        (b"9007199254740992", 2**53),
        (b"-9007199254740992", -(2**53)),
        (b"9007199254740993.0", 9007199254740992.0),
        (b"1e300", 1e300),
        (b"0.12345678901234567890", 0.12345678901234568),
        (b'"9223372036854775808"', "9223372036854775808"),
        (b'", 18446744073709551616 ,"', ", 18446744073709551616 ,"),
        (b'"\\ud83d\\udd11"', "🔑"),
        (b'{"a":1,"a":2}', {"a": 2}),
        (b"[" * VALUE_DEPTH_MAX + b"]" * VALUE_DEPTH_MAX, None),
        (orjson.dumps(["[{" * 500]), ["[{" * 500]),
        (orjson.dumps([[1]] * 200), [[1]] * 200),
    ],
)
async def test_values_that_are_taken(text: bytes, value: object, operator: httpx.AsyncClient) -> None:
    assert (await operator.put(f"{KEYS}/k", content=text)).status_code == 201
    shown = (await operator.get(f"{KEYS}/k")).json()
    if text.startswith(b"[[[["):
        assert orjson.dumps(shown["value"]) == text
    else:
        assert shown["value"] == value


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b" ",
        b"hello",
        b"{",
        b"1 2",
        b"[1,]",
        b"NaN",
        b"Infinity",
        b"1e400",
        b"-1e400",
        b"9007199254740993",
        b"-9007199254740993",
        b"9223372036854775807",
        b"9223372036854775808",
        b"18446744073709551615",
        b"18446744073709551616",
        b"-18446744073709551616",
        b'{"n":[1, 2, 123456789012345678901234567890]}',
        b"[0,9007199254740993]",
        b'{"a":9007199254740993,"a":1}',
        b"1" * 5000,
        b'"\xff"',
        b'"\xc0\xaf"',
        b'"\xed\xa0\x80"',
        b'"\\ud800"',
        b"\xef\xbb\xbf1",
        b'"\x01"',
        b"[" * (VALUE_DEPTH_MAX + 1) + b"]" * (VALUE_DEPTH_MAX + 1),
        b'{"a":' * (VALUE_DEPTH_MAX + 1) + b"1" + b"}" * (VALUE_DEPTH_MAX + 1),
        b"[" * 300 + b"]" * 300,
        b"[" * 10_000 + b"]" * 10_000,
        b"[" * 10_000,
    ],
)
async def test_values_that_are_refused(text: bytes, operator: httpx.AsyncClient, node: Node) -> None:
    problem(await operator.put(f"{KEYS}/k", content=text), 400, "bad_value")
    assert node.engine.roots.entry_count == 0


async def test_the_size_of_a_value_is_that_of_its_stored_form(operator: httpx.AsyncClient) -> None:
    fits = b'"' + b"x" * (VALUE_BYTES_MAX - 2) + b'"'
    assert (await operator.put(f"{KEYS}/k", content=b" " * 1000 + fits)).status_code == 201
    problem(await operator.put(f"{KEYS}/k", content=b'"x' + fits[1:]), 413, "too_large")


@pytest.mark.parametrize("stored", [b"\xff\x00", b"", b"{", b"1e400", b"[" * 65 + b"]" * 65, b"2" * 40])
async def test_a_stored_value_that_is_not_json(
    stored: bytes, operator: httpx.AsyncClient, node: Node
) -> None:
    await put_raw(node, b"bad", stored)
    await operator.put(f"{KEYS}/good", content=b"1")
    problem(await operator.get(f"{KEYS}/bad"), 409, "unreadable_value")
    for path, field in ((KEYS, "keys"), ("/api/lattice/state?include=state", "state")):
        shown = (await operator.get(path)).json()[field]
        assert [(one["key"], one["value"], one["error"]) for one in shown] == [
            ("bad", None, "unreadable_value"),
            ("good", 1, None),
        ]


async def test_siblings_and_counters(operator: httpx.AsyncClient, node: Node) -> None:
    first = await node.append([OpDraft(OpKind.PUT, b"k", b"1")])
    node.engine.end_epoch()  # a log of its own, so that the next put does not replace the first
    second = await node.append([OpDraft(OpKind.PUT, b"k", b'"two"', over=())])
    await node.append([OpDraft(OpKind.ADD, b"k", amount=5), OpDraft(OpKind.ADD, b"n", amount=-7)])
    shown = (await operator.get(f"{KEYS}/k")).json()
    assert (shown["value"], shown["version"]) == ("two", str(second.versions[0]))
    assert [(one["value"], one["version"]) for one in shown["siblings"]] == [(1, str(first.versions[0]))]
    assert (shown["adds"], shown["total"]) == (1, 5)
    counter = (await operator.get(f"{KEYS}/n")).json()
    assert (counter["value"], counter["version"], counter["total"]) == (None, None, -7)
    problem(await operator.delete(f"{KEYS}/n"), 404, "not_found")


async def put_siblings(node: Node, key: bytes, values: list[bytes]) -> None:
    """One live version for each value, the last the winner."""
    for value in values:
        await node.append([OpDraft(OpKind.PUT, key, value, over=())])
        node.engine.end_epoch()


def value_of(size: int, number: int) -> bytes:
    return orjson.dumps(f"{number}".ljust(size - 2, "x"))


@pytest.mark.slow  # 10 MB of siblings
async def test_siblings_are_all_listed_and_their_values_up_to_a_limit(
    operator: httpx.AsyncClient, node: Node
) -> None:
    values = [value_of(100_000, number) for number in range(100)]
    await put_siblings(node, b"k", values)
    answer = await operator.get(f"{KEYS}/k")
    assert len(answer.content) < 2.5 * MIB
    shown = answer.json()
    assert (shown["value"], shown["error"]) == (orjson.loads(values[99]), None)
    siblings = shown["siblings"]
    assert len({one["version"] for one in siblings}) == 99
    whole = [one for one in siblings if one["error"] is None]
    assert len(whole) == SIBLINGS_VALUES_BYTES // (100_000 + SIBLING_BYTES)
    newest = [orjson.loads(value) for value in values[98::-1]]
    assert [one["value"] for one in whole] == newest[: len(whole)]
    rest = siblings[len(whole) :]
    assert {(one["value"], one["error"]) for one in rest} == {(None, "value_left_out")}
    entry_id, _, index = rest[-1]["version"].partition(".")
    entry = (await operator.get(f"/api/lattice/entries/{entry_id}")).json()
    assert entry["ops"][int(index)]["value"] == orjson.loads(values[0])


async def test_a_sibling_that_is_not_json(operator: httpx.AsyncClient, node: Node) -> None:
    await put_siblings(node, b"k", [b"\xff{", b"1"])
    (sibling,) = (await operator.get(f"{KEYS}/k")).json()["siblings"]
    assert (sibling["value"], sibling["error"]) == (None, "unreadable_value")


@pytest.mark.slow  # 15 MB of siblings
@pytest.mark.parametrize("path", [KEYS, "/api/lattice/state?include=state"])
async def test_a_page_counts_siblings(path: str, operator: httpx.AsyncClient, node: Node) -> None:
    for key in range(5):
        await put_siblings(node, b"large/%d" % key, [value_of(100_000, number) for number in range(16)])
    for key in range(20):
        await put_siblings(node, b"small/%02d" % key, [b"%d" % number for number in range(20)])
    found: list[str] = []
    query: dict[str, str] = {"limit": "1000"}
    while True:
        answer = await operator.get(httpx.URL(path).copy_merge_params(query))
        assert len(answer.content) < 4.5 * MIB
        body = answer.json()
        page = body.get("keys") or body.get("state")
        found += [one["key"] for one in page]
        assert all(sibling["error"] is None for one in page for sibling in one["siblings"])
        if body["next"] is None:
            break
        query["after"] = body["next"]
    assert found == [f"large/{key}" for key in range(5)] + [f"small/{key:02d}" for key in range(20)]


@pytest.mark.parametrize("sign", [1, -1])
async def test_a_sum_beyond_what_json_numbers_hold(
    sign: int, operator: httpx.AsyncClient, node: Node
) -> None:
    """It was a 500 beyond 64 bits, and before that a number that many parsers round."""
    most = 2**53 - 1
    await node.append([OpDraft(OpKind.ADD, b"n", amount=sign * most)])
    assert (await operator.get(f"{KEYS}/n")).json()["total"] == sign * most
    await node.append([OpDraft(OpKind.ADD, b"n", amount=sign)])
    assert (await operator.get(f"{KEYS}/n")).json()["total"] == str(sign * 2**53)
    for _ in range(9):
        await node.append([OpDraft(OpKind.ADD, b"n", amount=sign * most)] * 256)
    total = sign * (2**53 + 9 * 256 * most)
    assert abs(total) > 2**64
    (shown,) = (await operator.get(KEYS)).json()["keys"]
    assert (shown["adds"], shown["total"]) == (2 + 9 * 256, str(total))


async def test_if_match(operator: httpx.AsyncClient, node: Node) -> None:
    first = (await operator.put(f"{KEYS}/k", content=b"1")).headers["etag"]
    second = await operator.put(f"{KEYS}/k", content=b"2", headers={"If-Match": first})
    assert second.status_code == 201
    held = second.headers["etag"]
    other = f'"{"0" * 64}.0"'
    for header in (first, f"W/{held}", other, f"{first}, {other}", '"what"'):
        for method in ("PUT", "DELETE"):
            response = await operator.request(method, f"{KEYS}/k", content=b"3", headers={"If-Match": header})
            problem(response, 412, "precondition_failed")
    for form in ("{bare}", "{other}, {held}", "*"):
        header = form.format(bare=held.strip('"'), other=other, held=held)
        response = await operator.put(f"{KEYS}/k", content=b"4", headers={"If-Match": header})
        assert response.status_code == 201
        held = response.headers["etag"]
    problem(
        await operator.put(f"{KEYS}/new", content=b"1", headers={"If-Match": "*"}), 412, "precondition_failed"
    )
    problem(await operator.delete(f"{KEYS}/new", headers={"If-Match": "*"}), 412, "precondition_failed")
    problem(await operator.put(f"{KEYS}/k", content=b"1", headers={"If-Match": '"open'}), 400, "bad_request")
    assert (await operator.delete(f"{KEYS}/k", headers={"If-Match": held})).status_code == 200


async def test_if_none_match(operator: httpx.AsyncClient) -> None:
    absent = {"If-None-Match": "*"}
    first = await operator.put(f"{KEYS}/k", content=b"1", headers=absent)
    assert first.status_code == 201
    problem(await operator.put(f"{KEYS}/k", content=b"2", headers=absent), 412, "precondition_failed")
    problem(
        await operator.put(f"{KEYS}/k", content=b"2", headers={"If-None-Match": first.headers["etag"]}),
        400,
        "bad_request",
    )
    for header in (first.headers["etag"], f"W/{first.headers['etag']}", f'"x", {first.headers["etag"]}', "*"):
        unchanged = await operator.get(f"{KEYS}/k", headers={"If-None-Match": header})
        assert (unchanged.status_code, unchanged.content) == (304, b"")
        assert unchanged.headers["etag"] == first.headers["etag"]
    assert (await operator.get(f"{KEYS}/k", headers={"If-None-Match": '"x"'})).status_code == 200
    await operator.delete(f"{KEYS}/k")
    assert (await operator.put(f"{KEYS}/k", content=b"3", headers=absent)).status_code == 201


async def test_a_counter_changes_the_etag(operator: httpx.AsyncClient, node: Node) -> None:
    before = (await operator.put(f"{KEYS}/k", content=b"1")).headers["etag"]
    await node.append([OpDraft(OpKind.ADD, b"k", amount=1)])
    response = await operator.get(f"{KEYS}/k", headers={"If-None-Match": before})
    assert response.status_code == 200
    tag = response.headers["etag"]
    assert tag != before
    assert (await operator.put(f"{KEYS}/k", content=b"2", headers={"If-Match": tag})).status_code == 201


async def test_the_etag_of_a_counter_without_a_value_matches(operator: httpx.AsyncClient, node: Node) -> None:
    await node.append([OpDraft(OpKind.ADD, b"n", amount=1)])
    tag = (await operator.get(f"{KEYS}/n")).headers["etag"]
    problem(
        await operator.put(f"{KEYS}/new", content=b"1", headers={"If-Match": tag}), 412, "precondition_failed"
    )
    assert (await operator.put(f"{KEYS}/n", content=b"1", headers={"If-Match": tag})).status_code == 201
    problem(
        await operator.put(f"{KEYS}/n", content=b"2", headers={"If-Match": tag}), 412, "precondition_failed"
    )


@pytest.mark.parametrize("tags", ["{held}", "{other}, {held}"])
async def test_a_conditional_write_repeated_answers_the_first_result(
    tags: str, operator: httpx.AsyncClient
) -> None:
    held = (await operator.put(f"{KEYS}/k", content=b"1")).headers["etag"]
    headers = {"If-Match": tags.format(held=held, other=f'"{"0" * 64}.0"'), "Idempotency-Key": "order-1"}
    first = await operator.put(f"{KEYS}/k", content=b"2", headers=headers)
    again = await operator.put(f"{KEYS}/k", content=b"2", headers=headers)
    assert (first.status_code, again.status_code) == (201, 201)
    assert again.headers["etag"] == first.headers["etag"]
    assert again.headers["idempotency-replayed"] == "true"


async def test_a_repeated_write_answers_the_first_result(operator: httpx.AsyncClient, node: Node) -> None:
    once = {"Idempotency-Key": "order-1"}
    first = await operator.put(f"{KEYS}/k", content=b"1", headers=once)
    again = await operator.put(f"{KEYS}/k", content=b"1", headers=once)
    assert again.status_code == 201
    assert again.json() == first.json() | {"repeated": True}
    assert again.headers["idempotency-replayed"] == "true"
    assert "idempotency-replayed" not in first.headers
    for method, path, content in (
        ("PUT", f"{KEYS}/k", b"2"),
        ("PUT", f"{KEYS}/other", b"1"),
        ("PUT", f"{KEYS}/k?ack=1", b"1"),
        ("DELETE", f"{KEYS}/k", b"1"),
    ):
        response = await operator.request(method, path, content=content, headers=once)
        problem(response, 422, "idempotency_mismatch")
    gone = {"Idempotency-Key": "order-2"}
    assert (await operator.delete(f"{KEYS}/k", headers=gone)).status_code == 200
    assert (await operator.delete(f"{KEYS}/k", headers=gone)).json()["repeated"] is True
    assert node.engine.roots.entry_count == 2


@pytest.mark.parametrize("key", ["", "with space", "x" * 256, "tab\t", "é"])
async def test_an_idempotency_key_is_visible_ascii(key: str, operator: httpx.AsyncClient) -> None:
    response = await operator.put(f"{KEYS}/k", content=b"1", headers={"Idempotency-Key": key.encode()})
    problem(response, 400, "bad_request")


@pytest.mark.parametrize("ack", ["0", "-1", "x", "1.0", "", "4097", "9" * 30, "٣", "+1"])
async def test_ack_is_a_count_of_nodes(ack: str, operator: httpx.AsyncClient, node: Node) -> None:
    response = await operator.put(f"{KEYS}/k", content=b"1", params={"ack": ack})
    problem(response, 400, "bad_request")
    assert node.engine.roots.entry_count == 0


async def test_ack_reaches_the_node(node: Node) -> None:
    seen: list[int] = []

    class Counting:
        def __getattr__(self, name: str) -> object:
            return getattr(node, name)

        async def append(self, ops: object, *, ack: int, **rest: object) -> object:
            seen.append(ack)
            return await node.append(ops, **rest)  # type: ignore[arg-type]

    async with in_process(create_app(Counting(), operator_access())) as client:  # type: ignore[arg-type]
        for method, path, body in (
            ("PUT", f"{KEYS}/k", b"1"),
            ("DELETE", f"{KEYS}/k", b""),
            ("POST", "/api/lattice/entries", b'{"ops":[{"op":"add","key":"n","amount":1}]}'),
        ):
            assert (await client.request(method, f"{path}?ack=3", content=body)).status_code in (200, 201)
    assert seen == [3, 3, 3]
