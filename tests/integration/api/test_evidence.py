"""Histories, entries and proofs over HTTP, from a real node."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import httpx
import pytest
import trio
from merkletools import MerkleTools

from lattice import schemas
from lattice.client import calls
from lattice.core.draft import OpDraft
from lattice.core.entry import OpKind, parse_seal, seal_verifies
from lattice.core.proofs import parse_proof, verify_proof
from lattice.core.receipts import parse_receipt, verify_receipt
from lattice.node.evidence import prove
from lattice.node.node import Node
from lattice.storage.datadir import open_store
from tests.integration.api.api_kit import problem, put_raw

API = "/api/lattice"


async def test_the_history_of_a_key(operator: httpx.AsyncClient, node: Node) -> None:
    first = (await operator.put(f"{API}/keys/a/b", content=b'{"n":1}')).json()["version"]
    second = (await operator.put(f"{API}/keys/a/b", content=b"2")).json()["version"]
    gone = (await operator.delete(f"{API}/keys/a/b")).json()["version"]
    added = (
        await operator.post(f"{API}/entries", json={"ops": [{"op": "add", "key": "a/b", "amount": -3}]})
    ).json()["version"]
    last = (await operator.put(f"{API}/keys/a/b", content=b'"x"')).json()
    body = (await operator.get(f"{API}/history/a%2Fb")).json()
    shown = body["versions"]
    assert (body["key"], body["count"], body["complete"], body["next"]) == ("a/b", 5, True, None)
    assert [one["version"] for one in shown] == [last["version"], added, gone, second, first]
    assert [one["op"] for one in shown] == ["put", "add", "delete", "put", "put"]
    assert [one["value"] for one in shown] == ["x", None, None, 2, {"n": 1}]
    assert [one["amount"] for one in shown] == [None, -3, None, None, None]
    assert [one["live"] for one in shown] == [one["winner"] for one in shown] == [True] + [False] * 4
    replaced_by = {one["version"]: one["replaced_by"] for one in shown}
    assert replaced_by[first] == [second]
    assert gone in replaced_by[second]
    assert replaced_by[last["version"]] == replaced_by[added] == []
    newest = shown[0]
    assert (newest["id"], newest["seq"], newest["author"]) == (last["id"], last["seq"], node.peer_id)
    assert (newest["epoch"], newest["clock"], newest["op_index"]) == (last["epoch"], last["clock"], 0)
    assert (newest["lung"], newest["peer"]) == ("local", None)
    assert newest["arrived"].endswith("Z")


async def test_a_history_in_pages(operator: httpx.AsyncClient, node: Node) -> None:
    for number in range(7):
        await put_raw(node, b"k", b"%d" % number)
    whole = (await operator.get(f"{API}/history/k")).json()["versions"]
    paged, after = [], ""
    while True:
        page = (await operator.get(f"{API}/history/k?limit=3{after}")).json()
        paged += page["versions"]
        # A write between two pages moves nothing.
        await put_raw(node, b"k", b"later")
        if page["next"] is None:
            break
        after = f"&after={page['next']}"
    assert paged == whole or [one["version"] for one in paged] == [one["version"] for one in whole]
    assert len(paged) == 7
    problem(await operator.get(f"{API}/history/k?after=x"), 400, "bad_request")
    problem(await operator.get(f"{API}/history/k?after={'0' * 64}.0"), 400, "bad_request")
    problem(await operator.get(f"{API}/history/never"), 404, "not_found")


@pytest.mark.slow  # more ops than a history lists
async def test_of_very_many_ops_the_older_ones_are_left_out(operator: httpx.AsyncClient, node: Node) -> None:
    for _ in range(41):
        await node.append([OpDraft(OpKind.PUT, b"k", b"1")] * 256)
    last = (await operator.put(f"{API}/keys/k", content=b'"the winner"')).json()
    body = (await operator.get(f"{API}/history/k?limit=2")).json()
    assert body["complete"] is False
    newest = body["versions"][0]
    assert (newest["version"], newest["winner"], newest["value"]) == (last["version"], True, "the winner")
    assert body["versions"][1]["replaced_by"] == [newest["version"]]


async def test_values_that_are_not_json_do_not_break_a_history(
    operator: httpx.AsyncClient, node: Node
) -> None:
    await put_raw(node, b"k", b"\xff{")
    one = (await operator.get(f"{API}/history/k")).json()["versions"][0]
    assert (one["value"], one["error"]) == (None, "unreadable_value")
    op = (await operator.get(f"{API}/entries/{one['id']}")).json()["ops"][0]
    assert (op["value"], op["error"]) == (None, "unreadable_value")


async def test_one_entry(operator: httpx.AsyncClient, node: Node) -> None:
    await put_raw(node, b"before", b"1")
    ops = [
        {"op": "put", "key": "k", "value": [1]},
        {"op": "add", "key": "n", "amount": 5},
        {"op": "delete", "key": "before"},
    ]
    written = (await operator.post(f"{API}/entries", json={"ops": ops})).json()
    entry = (await operator.get(f"{API}/entries/{written['id']}")).json()
    assert {name: entry[name] for name in ("id", "author", "epoch", "seq", "clock")} == {
        name: written[name] for name in ("id", "author", "epoch", "seq", "clock")
    }
    assert [(op["op"], op["key"], op["value"], op["amount"]) for op in entry["ops"]] == [
        ("put", "k", [1], None),
        ("add", "n", None, 5),
        ("delete", "before", None, None),
    ]
    assert entry["ops"][2]["over"]
    seal = parse_seal(bytes.fromhex(entry["seal"]))
    assert (seal.id.hex(), seal_verifies(node.network_id, seal)) == (written["id"], True)
    problem(await operator.get(f"{API}/entries/{'0' * 64}"), 404, "not_found")
    problem(await operator.get(f"{API}/entries/{written['id'].upper()}"), 400, "bad_request")
    problem(await operator.get(f"{API}/entries/a/b"), 400, "bad_request")


async def test_entries_in_log_order(operator: httpx.AsyncClient, node: Node) -> None:
    for number in range(7):
        await put_raw(node, b"k/%d" % number, b"1")
    body = (await operator.get(f"{API}/entries")).json()
    assert [one["seq"] for one in body["entries"]] == list(range(7))
    assert (body["count"], body["next"]) == (7, None)
    assert body["entries"][1]["prev"] == body["entries"][0]["id"]
    assert all(one["ops"] is None for one in body["entries"])
    paged, query = [], "?limit=3"
    while query:
        page = (await operator.get(f"{API}/entries{query}")).json()
        paged += page["entries"]
        query = f"?limit=3&after={page['next']}" if page["next"] else ""
    assert paged == body["entries"]

    async def count(query: str) -> int:
        return int((await operator.get(f"{API}/entries?{query}")).json()["count"])

    epoch = body["entries"][0]["epoch"]
    assert await count(f"author={node.peer_id}&epoch={epoch}&lung=local") == 7
    assert await count("lung=gossip") == 0
    assert await count(f"epoch={int(epoch, 16) ^ 1:016x}") == 0
    other = "12D3KooWBmAwcd4PJNJvfV89HwE48nwkRmAgo8Vy3uQEyNNHBox2"
    assert await count(f"author={other}") == 0
    for wrong in ("author=x", "epoch=1", "after=1", f"after={'0' * 64}", "lung=pigeon", "limit=0"):
        problem(await operator.get(f"{API}/entries?{wrong}"), 400, "bad_request")


async def test_proofs_of_presence_and_absence(operator: httpx.AsyncClient, node: Node) -> None:
    for number in range(70):  # beyond one mandatory seal
        await put_raw(node, b"k/%d" % number, b'"value %d"' % number)
    await node.append([OpDraft(OpKind.ADD, b"k/5", amount=4)])
    for number in (0, 5, 63, 64, 69):
        body = (await operator.get(f"{API}/proof/k/{number}")).json()
        proof = parse_proof(body)
        proven = verify_proof(proof)
        assert (proven.present, proven.value) == (True, b'"value %d"' % number)
        assert body["statement"]["signer"] == node.peer_id
        assert body["statement"]["state_root"] == node.ledger().state_root.hex()
        assert (proof.network_id, proof.adds, proof.total) == (
            node.network_id,
            int(number == 5),
            4 * (number == 5),
        )
    absent = (await operator.get(f"{API}/proof/k/70")).json()
    assert (absent["present"], absent["winner"]) == (False, None)
    assert not verify_proof(parse_proof(absent)).present
    await operator.delete(f"{API}/keys/k/1")
    assert not verify_proof(parse_proof((await operator.get(f"{API}/proof/k/1")).json())).present


async def test_the_answer_has_the_documented_shape(operator: httpx.AsyncClient, node: Node) -> None:
    await put_raw(node, b"k", b"1")
    for query, missing in (
        ("", {"target_hash", "merkle_root", "proof"}),
        ("?format=merkletools", {"bucket", "path", "winner"}),
    ):
        body = (await operator.get(f"{API}/proof/k{query}")).json()
        documented = {field.name for field in dataclasses.fields(schemas.KeyProof)}
        assert set(body) == documented - missing
        live = {field.name for field in dataclasses.fields(schemas.ProvenVersion)}
        assert set(body["live"][0]) == live
    problem(await operator.get(f"{API}/proof/k?format=other"), 400, "bad_request")


@pytest.mark.parametrize("size", [1, 2, 3, 6, 13])
async def test_merkletools_itself_validates_a_receipt(
    size: int, operator: httpx.AsyncClient, node: Node
) -> None:
    for number in range(size):
        await put_raw(node, b"k/%d" % number, b"1")
    oracle = MerkleTools(hash_type="sha256")
    for number in range(size):
        body = (await operator.get(f"{API}/proof/k/{number}?format=merkletools")).json()
        arguments = body["proof"], body["target_hash"], body["merkle_root"]
        assert oracle.validate_proof(*arguments) is True
        assert oracle.validate_proof(body["proof"], "00" * 32, body["merkle_root"]) is False
        verify_receipt(parse_receipt(body))
        assert body["statement"]["state_root"] == node.ledger().state_root.hex()
    problem(await operator.get(f"{API}/proof/absent?format=merkletools"), 404, "not_found")


async def test_a_proof_while_a_commit_is_under_way(tmp_path: Path) -> None:
    """The engine's tree is then ahead of what is durable; the proof is of what is durable."""
    from lattice.core.engine import META_LOG_ROOT, META_STATE_ROOT, Append, Engine
    from lattice.core.identity import STATE_TAG
    from lattice.node.facade import LedgerView
    from tests.core.core_kit import NETWORK, NOW_MS, node_key

    key = node_key(1)
    store = open_store(tmp_path / "data", NETWORK)
    engine = Engine(key, NETWORK, store)

    def write(token: int, value: bytes) -> None:
        engine.handle(
            Append(token, (OpDraft(OpKind.PUT, b"k", value),)), now_ms=NOW_MS, entropy=bytes([token] * 8)
        )

    write(1, b"committed")
    batch = engine.settle()
    assert batch is not None
    store.commit(batch)
    engine.committed()
    write(2, b"not yet")
    assert engine.settle() is not None

    class Ledger:
        peer_id, network_id = key.peer_id, NETWORK

        def __init__(self) -> None:
            self.store, self.engine = store, engine

        def ledger(self) -> LedgerView:
            state_root, log_root = store.meta(META_STATE_ROOT), store.meta(META_LOG_ROOT)
            assert state_root is not None
            assert log_root is not None
            body = state_root + log_root + NOW_MS.to_bytes(8, "big")
            return LedgerView(state_root, log_root, 1, 1, {}, NOW_MS, key.sign(STATE_TAG, NETWORK, body))

    with trio.fail_after(30):
        proof = await prove(Ledger(), b"k")
    assert verify_proof(proof).value == b"committed"
    assert proof.statement.state_root == store.meta(META_STATE_ROOT)
    store.close()


async def test_the_calls_of_the_client(operator: httpx.AsyncClient, node: Node) -> None:
    await put_raw(node, b"a b", b"1")
    await put_raw(node, b"a b", b"2")

    async def send(call: calls.Call[calls.T]) -> calls.T:
        response = await operator.request(call.method, call.target)
        return call.read(response.status_code, response.content)

    history = await send(calls.history("a b", limit=1))
    assert [one.value for one in history.versions] == [2]
    rest = await send(calls.history("a b", after=history.next))
    assert [one.value for one in rest.versions] == [1]
    page = await send(calls.entries(author=node.peer_id, lung="local"))
    assert [one.seq for one in page.entries] == [0, 1]
    entry = await send(calls.entry(page.entries[0].id))
    assert entry.ops is not None
    assert entry.ops[0].key == "a b"
    assert verify_proof(parse_proof(await send(calls.proof("a b")))).value == b"2"
    verify_receipt(parse_receipt(await send(calls.proof("a b", merkletools=True))))
