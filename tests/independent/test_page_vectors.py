"""The committed examples of every structure, read and made again by the independent peer.

Separate from the rounds with a real node: a difference here names the structure, and takes milliseconds.
"""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from nacl.signing import SigningKey

from tests.independent.forks import read_fork_proof
from tests.independent.ledger import author_digest, heads_root, leaf, map_root
from tests.independent.peer import Peer, Refused
from tests.independent.proofs import check_proof, check_receipt
from tests.independent.wire_format import (
    NOTHING,
    Beat,
    LogHead,
    Malformed,
    is_good_key,
    make_body,
    make_seal,
    peer_id,
    public_key_of,
    read_body,
    read_entry,
    read_op,
    read_seal,
    read_ticket,
    sha,
)

HERE = Path(__file__).resolve().parent
VECTORS = HERE.parent / "core" / "vectors"
CLIENT = ("wire_format", "forks", "ledger", "peer", "proofs")


def cases(name: str) -> list[Any]:
    return [
        pytest.param(case, id=str(case.get("name", number)))
        for number, case in enumerate(json.loads((VECTORS / f"{name}.json").read_text("utf-8"))["cases"])
    ]


def raw(text: str) -> bytes:
    return bytes.fromhex(text)


@pytest.mark.parametrize("module", CLIENT)
def test_the_client_imports_nothing_of_the_product(module: str) -> None:
    """Else it would agree with the product by being the product."""
    allowed = {"nacl", *(f"tests.independent.{name}" for name in CLIENT)} | set(sys.stdlib_module_names)
    named = []
    for node in ast.walk(ast.parse((HERE / f"{module}.py").read_text("utf-8"))):
        if isinstance(node, ast.Import):
            named += [alias.name for alias in node.names]
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0
            named.append(node.module or "")
        if isinstance(node, ast.Name):
            assert node.id not in {"__import__", "importlib", "exec", "eval"}
    assert {"hashlib", "__future__"} & set(named), "the check sees no imports"
    assert not [name for name in named if name not in allowed and name.split(".")[0] not in allowed]


@pytest.mark.parametrize("case", cases("network"))
def test_ticket(case: dict[str, Any]) -> None:
    ticket = read_ticket(case["ticket"])
    assert ticket.genesis == raw(case["genesis"])
    assert ticket.network_id == raw(case["network_id"])
    assert (ticket.key_number, ticket.network_key) == (case["key_number"], raw(case["network_key"]))
    for peer, expected in zip(ticket.peers, case["peers"], strict=True):
        assert (peer.public_key, peer.name) == (raw(expected["public_key"]), expected["name"])
        assert [list(peer.p2p), list(peer.http)] == [expected["p2p"], expected["http"]]
        assert peer_id(peer.public_key) == expected["peer_id"]
        assert public_key_of(expected["peer_id"]) == peer.public_key


def test_a_ticket_with_a_wrong_letter_is_refused() -> None:
    line = cases("network")[0].values[0]["ticket"]
    wrong = line[:-9] + ("B" if line[-9] != "B" else "C") + line[-8:]
    with pytest.raises(Malformed):
        read_ticket(wrong)


@pytest.mark.parametrize("case", cases("op"))
def test_op(case: dict[str, Any]) -> None:
    op = read_op(raw(case["bytes"]), case["index"])
    assert (op is not None) == case["applied"]
    if op is not None:
        assert (op.kind, op.key, op.body) == (case["kind"], raw(case["key"]), raw(case["body"]))
        assert len(op.names) == len(case["names"])


@pytest.mark.parametrize("case", cases("entry"))
def test_entry_and_seal(case: dict[str, Any]) -> None:
    network_id = raw(case["network_id"])
    entry = read_entry(network_id, raw(case["header"]), raw(case["ops_bytes"]))
    header = entry.header
    assert (entry.id, header.ops_root) == (raw(case["id"]), raw(case["ops_root"]))
    assert list(entry.ops) == [raw(op) for op in case["ops"]]
    assert [sha(b"\x00", op) for op in entry.ops] == [raw(op_hash) for op_hash in case["op_hashes"]]
    assert (header.author, header.epoch, header.seq) == (raw(case["author"]), case["epoch"], case["seq"])
    assert header.encode() == raw(case["header"])
    seal = read_seal(raw(case["seal"]))
    assert seal.is_valid(network_id)
    assert make_seal(network_id, SigningKey(raw(case["seed"])), entry) == seal


@pytest.mark.parametrize("case", cases("bad_signatures"))
def test_signature(case: dict[str, Any]) -> None:
    seal = read_seal(raw(case["seal"]))
    assert is_good_key(seal.author) == case["key_valid"]
    assert (is_good_key(seal.author) and seal.is_valid(raw(case["network_id"]))) == case["valid"]


@pytest.mark.parametrize("case", cases("envelope"))
def test_envelope(case: dict[str, Any]) -> None:
    ticket = read_ticket(cases("network")[0].values[0]["ticket"])
    assert ticket.network_id == raw(case["network_id"])
    reader = Peer(ticket, "http://127.0.0.1:1", SigningKey.generate())
    reader.public_key = raw(case["to"])  # whom this one is for
    opened = reader.open(raw(case["bytes"]))
    assert (opened.kind, opened.sender, opened.boot) == (case["kind"], raw(case["sender"]), case["boot"])
    assert (opened.counter, opened.reply_to) == (case["counter"], raw(case["reply_to"]))
    assert opened.body == raw(case["body"])
    reader.public_key = bytes(32) if any(reader.public_key) else bytes([1] * 32)
    if any(opened.to):
        with pytest.raises(Refused):
            reader.open(raw(case["bytes"]))


@pytest.mark.parametrize("case", cases("messages"))
def test_message(case: dict[str, Any]) -> None:
    messages = read_body(raw(case["bytes"]))
    assert len(messages) == 1
    if not isinstance(messages[0], Beat):  # this peer reads beats and sends none
        assert make_body(messages) == raw(case["bytes"])
    with pytest.raises(Malformed):
        read_body(raw(case["bytes"])[:-1])


@pytest.mark.parametrize("case", cases("heads"))
def test_heads(case: dict[str, Any]) -> None:
    logs: dict[bytes, list[LogHead]] = {}
    for log in case["logs"]:
        seq = NOTHING if log["seq"] == -1 else log["seq"]
        head = LogHead(log["epoch"], seq, raw(log["id"]), log["frozen"])
        assert head.encode() == raw(log["bytes"])
        logs.setdefault(raw(log["author"]), []).append(head)
    digests = {author: author_digest(heads) for author, heads in logs.items()}
    assert digests == {raw(author): raw(digest) for author, digest in case["digests"].items()}
    assert heads_root(digests) == raw(case["log_root"])


@pytest.mark.parametrize("case", cases("state"))
def test_state(case: dict[str, Any]) -> None:
    leaves = {}
    for key in case["keys"]:
        live = [(raw(entry_id), index, raw(op_hash)) for entry_id, index, op_hash in key["live"]]
        leaves[raw(key["key"])] = leaf(raw(key["key"]), live, key["adds"], int(key["total"]))
        assert leaves[raw(key["key"])] == raw(key["leaf"])
    assert map_root(leaves) == raw(case["state_root"])


@pytest.mark.parametrize("case", cases("fork_proofs"))
def test_fork_proof(case: dict[str, Any]) -> None:
    network, payload = raw(case["network_id"]), raw(case["payload"])
    if not case["valid"]:
        with pytest.raises(Malformed):
            read_fork_proof(network, payload)
        return
    proof = read_fork_proof(network, payload)
    assert (proof.fork, proof.continues) == (case["seq"], raw(case["continues"]))
    assert proof.encode() == payload


@pytest.mark.parametrize("case", cases("proofs"))
def test_proof_file(case: dict[str, Any]) -> None:
    if not case["valid"]:
        with pytest.raises(Malformed):
            check_proof(case["file"])
        return
    shown = check_proof(case["file"])
    version = shown.version and f"{shown.version[0].hex()}.{shown.version[1]}"
    author = shown.author and peer_id(shown.author)
    value = None if shown.value is None else shown.value.hex()
    assert case["shows"] == {
        "present": shown.present, "version": version, "author": author, "value": value,
    }  # fmt: skip


def test_the_seal_over_a_proof_below_a_fork_is_that_of_a_branch() -> None:
    (case,) = (one.values[0] for one in cases("proofs") if "fork_proof" in one.values[0])
    fork = read_fork_proof(raw(case["file"]["network"]), raw(case["fork_proof"]))
    winner = case["file"]["winner"]
    assert raw(winner["seal"]) == fork.first.seal.encode()
    assert [raw(header) for header in winner["headers"][-2:]] == [link.raw for link in fork.first.links]
    assert check_proof(case["file"]).author == fork.first.links[0].header.author


@pytest.mark.parametrize("case", cases("receipts"))
def test_receipt(case: dict[str, Any]) -> None:
    if case["valid"]:
        check_receipt(case["file"])
    else:
        with pytest.raises(Malformed):
            check_receipt(case["file"])
