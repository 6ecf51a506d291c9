"""Status, identity, roots, paging, the switch, probes and the description of the API."""

from __future__ import annotations

import re
from dataclasses import fields, replace

import httpx
import orjson
import pytest

from lattice.api.answers import reduced
from lattice.api.app import create_app
from lattice.core.draft import OpDraft
from lattice.core.entry import OpKind
from lattice.core.identity import STATE_TAG, public_key_of, verify
from lattice.node.node import Node
from lattice.schemas import LungStatus, PeerStatus, Status, SyncedWith
from tests.integration.api.api_kit import Refusing, in_process, operator_access, problem, put_raw

STATE = "/api/lattice/state"
KEYS = "/api/lattice/keys"
STATUS = "/api/lattice/p2p/status"


async def test_status_has_every_field(operator: httpx.AsyncClient, node: Node) -> None:
    body = (await operator.get(STATUS)).json()
    assert set(body) == {one.name for one in fields(Status)}
    assert (body["success"], body["name"], body["peer_id"]) == (True, "nodeA", node.peer_id)
    assert body["merkle_root"] == node.ledger().state_root.hex()


async def test_identity_and_nodes(operator: httpx.AsyncClient, node: Node) -> None:
    identity = (await operator.get("/api/lattice/p2p/identity")).json()
    assert (identity["success"], identity["peer_id"], identity["listen_addrs"]) == (True, node.peer_id, [])
    node.know_url("http://192.0.2.7:8100")
    assert (await operator.get("/api/lattice/nodes")).json() == {
        "success": True,
        "nodes": ["http://192.0.2.7:8100"],
        "count": 1,
    }


async def test_the_state_is_signed_by_this_node(operator: httpx.AsyncClient, node: Node) -> None:
    await put_raw(node, b"k", b"1")
    body = (await operator.get(STATE)).json()
    assert (body["state_size"], body["entry_count"], body["signed"]) == (1, 1, True)
    (head,) = body["heads"]
    assert (head["author"], head["seq"], head["frozen"]) == (node.peer_id, 0, None)
    assert re.fullmatch(r"[0-9a-f]{16}", head["epoch"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", body["timestamp"])
    signed = bytes.fromhex(body["merkle_root"] + body["log_root"]) + body["timestamp_ms"].to_bytes(8, "big")
    signature = bytes.fromhex(body["signature"])
    key = public_key_of(node.peer_id)
    assert verify(STATE_TAG, node.network_id, key, signed, signature)
    assert not verify(STATE_TAG, node.network_id, key, signed[:-1] + b"\0", signature)
    assert (body["state"], body["next"]) == (None, None)


async def test_the_etag_of_the_state_follows_the_roots(operator: httpx.AsyncClient, node: Node) -> None:
    await put_raw(node, b"k", b"1")
    tag = (await operator.get(STATE)).headers["etag"]
    for query in ("", "?include=state"):
        unchanged = await operator.get(f"{STATE}{query}", headers={"If-None-Match": tag})
        assert (unchanged.status_code, unchanged.content, unchanged.headers["etag"]) == (304, b"", tag)
    await put_raw(node, b"k", b"2")
    changed = await operator.get(STATE, headers={"If-None-Match": tag})
    assert changed.status_code == 200
    assert changed.headers["etag"] != tag


@pytest.mark.parametrize(("path", "field"), [(f"{KEYS}?", "keys"), (f"{STATE}?include=state&", "state")])
async def test_pages_join_to_the_whole(
    path: str, field: str, operator: httpx.AsyncClient, node: Node
) -> None:
    names = sorted(f"{kind}/{number}" for kind in ("a", "b+&%", "é") for number in range(50))
    await node.append([OpDraft(OpKind.PUT, name.encode(), b"1") for name in names])
    for limit in (1, 7, 64, 65, 149, 150, 151, 1000):
        found: list[str] = []
        after: str | None = None
        while True:
            params = {"limit": str(limit)} | ({"after": after} if after is not None else {})
            body = (await operator.get(path + str(httpx.QueryParams(params)))).json()
            page = [one["key"] for one in body[field]]
            assert len(page) == min(limit, len(names) - len(found))
            found += page
            after = body["next"]
            if after is None:
                break
            assert after == page[-1]
        assert found == sorted(names, key=lambda name: name.encode())
    prefixed = (await operator.get(path + str(httpx.QueryParams({"prefix": "b+&%/4"})))).json()
    assert [one["key"] for one in prefixed[field]] == ["b+&%/4"] + [f"b+&%/{n}" for n in range(40, 50)]


@pytest.mark.slow
async def test_a_page_is_bounded_in_bytes(operator: httpx.AsyncClient, node: Node) -> None:
    value = orjson.dumps("x" * 100_000)
    for number in range(60):
        await put_raw(node, b"k/%03d" % number, value)
    first = await operator.get(KEYS, params={"limit": 1000})
    assert 4_000_000 < len(first.content) < 5_000_000
    rest = await operator.get(KEYS, params={"limit": 1000, "after": first.json()["next"]})
    assert rest.json()["next"] is None
    assert first.json()["count"] + rest.json()["count"] == 60


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=-1",
        "limit=1001",
        "limit=x",
        "limit=1.5",
        "limit=9223372036854775808",
        "limit=18446744073709551616",
        "limit=1e400",
        "prefix=" + "x" * 1025,
        "prefix=" + "%C3%A9" * 513,
        "after=" + "%C3%A9" * 513,
        "include=values",
    ],
)
async def test_queries_that_do_not_fit(query: str, operator: httpx.AsyncClient) -> None:
    problem(await operator.get(f"{STATE}?include=state&{query}"), 400, "bad_request")


async def test_the_switch(operator: httpx.AsyncClient, node: Node) -> None:
    for mode in ("http", "p2p", "auto"):
        body = (await operator.post(f"/api/lattice/sync/switch?mode={mode}")).json()
        assert (body["success"], body["policy"]) == (True, mode)
        assert node.status().policy == mode
    for query in ("?mode=both", "?mode=", "", "?mode=AUTO%00", "?other=auto"):
        detail = problem(await operator.post(f"/api/lattice/sync/switch{query}"), 400, "bad_mode")
        assert all(mode in detail for mode in ("auto", "p2p", "http"))
    assert node.status().policy == "auto"


async def test_probes(node: Node) -> None:
    class Unready(Refusing):
        def ready(self) -> dict[str, str]:
            return {"store": "the disk /dev/sda1 failed"}

    async with in_process(create_app(node, operator_access()), client="192.0.2.7") as anybody:
        assert (await anybody.get("/health")).json() == {"status": "healthy"}
        assert (await anybody.get("/livez")).status_code == 200
        assert (await anybody.get("/readyz")).json() == {"ready": True, "checks": {}}
    app = create_app(Unready(node, ValueError()), operator_access())  # type: ignore[arg-type]
    async with in_process(app, client="192.0.2.7") as anybody, in_process(app) as operator:
        refused = await anybody.get("/readyz")
        assert (refused.status_code, refused.json()["checks"]) == (503, {"store": "failing"})
        assert (await operator.get("/readyz")).json()["checks"] == {"store": "the disk /dev/sda1 failed"}
        assert (await anybody.get("/livez")).status_code == 200


SECRET = "192.0.2.99"


def full_status(node: Node) -> Status:
    """A status with an address in every place that can hold one."""
    url = f"http://{SECRET}:8100"
    lung = LungStatus(False, 1.0, f"no route to {SECRET}")
    peer = PeerStatus(url, "nodeB", "dead", lung, lung, None, False, True, [url])
    return replace(
        node.status(),
        error=f"cannot listen on {SECRET}",
        listen_multiaddrs=[f"/ip4/{SECRET}/tcp/9000"],
        bootstrap_peers=[f"/ip4/{SECRET}/tcp/9000"],
        bridged_over_http=[url, node.peer_id],
        synced=[SyncedWith(url, "2026-01-01T00:00:00.000Z")],
        peers=[peer, replace(peer, id=node.peer_id)],
        alarms=[f"alarm about {SECRET}"],
        warnings=[f"warning about {SECRET}"],
    )


async def test_public_status_shows_roots_and_no_address(node: Node) -> None:
    class Spoken(Refusing):
        def status(self) -> Status:
            return full_status(node)

    await put_raw(node, b"private/key", b'"private value"')
    app = create_app(Spoken(node, ValueError()), operator_access(public_status=True))  # type: ignore[arg-type]
    async with in_process(app, client="192.0.2.7") as anybody, in_process(app) as operator:
        shown = await anybody.get(STATUS)
        assert shown.status_code == 200
        assert SECRET not in shown.text
        body = shown.json()
        assert body["merkle_root"] == node.ledger().state_root.hex()
        assert [peer["id"] for peer in body["peers"]] == ["not yet identified", node.peer_id]
        assert (len(body["alarms"]), len(body["warnings"])) == (1, 1)
        assert (await operator.get(STATUS)).text.count(SECRET) == 14
        state = await anybody.get(STATE)
        assert state.json()["log_root"] == node.ledger().log_root.hex()
        assert "private" not in state.text
        problem(await anybody.get(f"{STATE}?include=state"), 401, "unauthorized")
        for path in (KEYS, f"{KEYS}/private/key", "/api/lattice/nodes", "/api/lattice/p2p/identity"):
            problem(await anybody.get(path), 401, "unauthorized")
        problem(await anybody.post("/api/lattice/sync/switch?mode=http"), 401, "unauthorized")


async def test_reducing_keeps_every_field(node: Node) -> None:
    assert [one.name for one in fields(reduced(full_status(node)))] == [one.name for one in fields(Status)]


async def test_the_description_lists_every_route(operator: httpx.AsyncClient) -> None:
    schema = (await operator.get("/openapi.json")).json()
    assert schema["openapi"].startswith("3.1")
    assert {"get", "put", "delete"} == set(schema["paths"]["/api/lattice/keys/{key}"])
    assert "ops" in str(schema["paths"]["/api/lattice/entries"]["post"]["requestBody"])
    text = orjson.dumps(schema).decode()
    for name in re.findall(r"#/components/schemas/([A-Za-z0-9_]+)", text):
        assert name in schema["components"]["schemas"]
    assert "HTTPValidationError" not in text or "HTTPValidationError" in schema["components"]["schemas"]


async def test_the_docs_page_needs_no_other_server(operator: httpx.AsyncClient) -> None:
    page = await operator.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert "http:" not in page.text
    assert "https:" not in page.text
    assert "<script" not in page.text
    assert "src=" not in page.text
    assert "default-src 'none'" in page.headers["content-security-policy"]
    for path in ("/api/lattice/p2p/status", "/api/lattice/keys/{key}", "/api/lattice/entries", "/readyz"):
        assert path in page.text
