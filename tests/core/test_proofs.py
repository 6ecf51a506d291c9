"""Proofs of keys: what is there verifies, what is not there cannot be shown, no byte can be changed."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from merkletools import MerkleTools
from pymerkle import InmemoryTree
from pymerkle import verify_inclusion as pymerkle_verifies

from lattice.core.entry import Entry, Seal, Version, parse_entry
from lattice.core.errors import LatticeError, MalformedError
from lattice.core.identity import RECEIPT_TAG, STATE_TAG
from lattice.core.merkle import MerkleMap, bucket_of, leaf_hash, tree_root
from lattice.core.proofs import (
    KeyProof,
    ProofValue,
    ProofVersion,
    Proven,
    Statement,
    audit_path,
    parse_proof,
    proof_fields,
    root_from_audit_path,
    verify_proof,
)
from lattice.core.receipts import (
    Receipt,
    ReceiptStatement,
    parse_receipt,
    plain_path,
    receipt_fields,
    statement_body,
    verify_receipt,
)
from lattice.core.rows import KeyState, LiveVersion
from lattice.core.state import leaf_of
from tests.core.core_kit import NETWORK, Author, altered, node_key, put

SIGNER = node_key(50)


def live_of(entry: Entry, index: int = 0) -> LiveVersion:
    header = entry.header
    return LiveVersion(
        entry.id, index, entry.op_hashes[index], header.clock, header.author, header.epoch, header.seq, 0, 0
    )


def statement_of(tree: MerkleMap) -> Statement:
    body = tree.root() + sha256(b"log root").digest() + (1_700_000_000_000).to_bytes(8, "big")
    signature = SIGNER.sign(STATE_TAG, NETWORK, body)
    return Statement(SIGNER.public_key, tree.root(), body[32:64], 1_700_000_000_000, signature)


def prove(
    tree: MerkleMap,
    state: KeyState,
    entries: dict[bytes, Entry],
    value: ProofValue | None,
) -> KeyProof:
    number = bucket_of(sha256(state.key).digest())
    live = tuple(ProofVersion(v.id, v.op_index, v.op_hash, entries[v.id].header_bytes) for v in state.live)
    statement = statement_of(tree)
    path = tuple(tree.path(number))
    return KeyProof(
        NETWORK, state.key, live, state.adds, state.total, tree.bucket(number), path, value, statement
    )


def sample() -> tuple[MerkleMap, KeyProof, KeyProof, KeyProof]:
    """A tree with a proof of a key with siblings, of a counter, and of a key that is not there."""
    alice, bob = Author(1), Author(2)
    first = alice.write(put(b"a", b"1"), put(b"k", b"old"), put(b"b", b"2"), clock=5)
    later = [alice.write(put(b"x/%d" % number)) for number in range(2)]
    sibling = bob.write(put(b"k", b"lost"), clock=4)
    entries = {entry.id: entry for entry in (first, sibling, *later)}
    pair = sorted([live_of(first, 1), live_of(sibling)], key=lambda live: live.version)
    state = KeyState(b"k", tuple(pair), 3, -7)
    counter = KeyState(b"n", (), 1, 9)
    tree = MerkleMap()
    for held in (state, counter, KeyState(b"a", (live_of(first),)), KeyState(b"b", (live_of(first, 2),))):
        tree.set(sha256(held.key).digest(), leaf_of(held))
    tree.root()
    start, end = first.op_spans[1]
    value = ProofValue(
        first.ops[start:end],
        audit_path(first.op_hashes, 1),
        tuple(entry.header_bytes for entry in later),
        alice.seal(later[-1]).pack(),
    )
    return (
        tree,
        prove(tree, state, entries, value),
        prove(tree, counter, {}, None),
        prove(tree, KeyState(b"not there"), {}, None),
    )


TREE, PRESENT, COUNTER, ABSENT = sample()


def test_what_valid_proofs_show() -> None:
    proven = verify_proof(PRESENT)
    assert (proven.present, proven.value, proven.author) == (True, b"old", node_key(1).public_key)
    assert isinstance(proven.winner, Version)
    assert proven.winner.op_index == 1
    assert verify_proof(COUNTER) == Proven(True, None, None, None)
    assert verify_proof(ABSENT) == Proven(False, None, None, None)


@pytest.mark.parametrize("proof", [PRESENT, COUNTER, ABSENT], ids=["present", "counter", "absent"])
def test_the_json_form_is_the_same_proof(proof: KeyProof) -> None:
    assert parse_proof(json.loads(json.dumps(proof_fields(proof)))) == proof


def _bytes_within(data: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], str]]:
    """Every hex string of the JSON form with its place."""
    if isinstance(data, dict):
        for name, inner in data.items():
            if name not in ("format", "key", "version", "total", "signer"):
                yield from _bytes_within(inner, (*place, name))
    elif isinstance(data, list):
        for number, inner in enumerate(data):
            yield from _bytes_within(inner, (*place, number))
    elif isinstance(data, str) and data:
        yield place, data


def _with(data: Any, place: tuple[Any, ...], new: object) -> Any:
    copy = json.loads(json.dumps(data))
    inner = copy
    for step in place[:-1]:
        inner = inner[step]
    inner[place[-1]] = new
    return copy


@given(st.sampled_from([PRESENT, COUNTER, ABSENT]), st.data())
def test_no_byte_of_any_part_can_be_changed(proof: KeyProof, data: st.DataObject) -> None:
    fields = proof_fields(proof)
    place, text = data.draw(st.sampled_from(list(_bytes_within(fields))))
    raw = bytearray.fromhex(text)
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(MalformedError):
        verify_proof(parse_proof(_with(fields, place, raw.hex())))


@pytest.mark.parametrize(
    "change",
    [
        {"key": b"K"},
        {"adds": 4},
        {"total": -8},
        {"live": PRESENT.live[:1]},
        {"live": PRESENT.live[::-1]},
        {"path": PRESENT.path[:-1]},
        {"path": (*PRESENT.path, bytes(32))},
        {"value": None},
        {"network_id": sha256(b"another network").digest()},
        {"statement": PRESENT.statement._replace(signer=node_key(51).public_key)},
        {"statement": PRESENT.statement._replace(timestamp_ms=1)},
        {"live": tuple(v._replace(op_index=v.op_index + 1) for v in PRESENT.live)},
    ],
    ids=",".join,
)
def test_no_field_can_be_another(change: dict[str, Any]) -> None:
    with pytest.raises(MalformedError):
        verify_proof(dataclasses.replace(PRESENT, **change))


@given(st.lists(st.binary(min_size=1, max_size=3), min_size=1, max_size=30, unique=True), st.data())
def test_presence_and_absence_exclude_each_other(keys: list[bytes], data: st.DataObject) -> None:
    tree = MerkleMap()
    held = keys[: data.draw(st.integers(0, len(keys)))]
    for key in held:
        tree.set(sha256(key).digest(), leaf_of(KeyState(key, (), 1, 5)))
    tree.root()
    for key in keys:
        there = prove(tree, KeyState(key, (), 1, 5), {}, None)
        gone = prove(tree, KeyState(key), {}, None)
        right, wrong = (there, gone) if key in held else (gone, there)
        assert verify_proof(right).present is (key in held)
        with pytest.raises(MalformedError):
            verify_proof(wrong)


def test_a_bucket_out_of_order_hides_nothing() -> None:
    """Even under a root that is signed: pairs that are not ascending show neither presence nor absence."""
    crowd: dict[bytes, list[bytes]] = {}
    for number in range(3000):
        key = b"crowd/%d" % number
        crowd.setdefault(sha256(key).digest()[:2], []).append(key)
    first, second = next(keys for keys in crowd.values() if len(keys) > 1)[:2]
    leaf = leaf_of(KeyState(first, (), 1, 5)) or b""
    pairs = sorted(sha256(key).digest() + leaf for key in (first, second))
    number = bucket_of(sha256(first).digest())
    tree = MerkleMap({number: pairs[1] + pairs[0]})
    with pytest.raises(MalformedError, match="ascending"):
        verify_proof(prove(tree, KeyState(first, (), 1, 5), {}, None))


def test_the_seal_must_be_over_the_chain() -> None:
    value = PRESENT.value
    assert value is not None
    other = Seal(*dataclasses.astuple(SealFields.of(value.seal)))
    wrong = [
        value._replace(headers=value.headers[:1]),
        value._replace(headers=value.headers[::-1]),
        value._replace(headers=()),
        value._replace(seal=other._replace(seq=1).pack()),
        value._replace(seal=altered(value.seal)),
        value._replace(headers=value.headers * 40),
        value._replace(audit_path=value.audit_path[:-1]),
        value._replace(audit_path=(*value.audit_path, bytes(32))),
    ]
    for shown in wrong:
        with pytest.raises(MalformedError):
            verify_proof(dataclasses.replace(PRESENT, value=shown))


@dataclasses.dataclass
class SealFields:
    """A seal taken apart by the offsets of wire.md, section 6."""

    author: bytes
    epoch: int
    seq: int
    id: bytes
    signature: bytes

    @classmethod
    def of(cls, data: bytes) -> SealFields:
        numbers = int.from_bytes(data[32:40], "big"), int.from_bytes(data[40:48], "big")
        return cls(data[:32], *numbers, data[48:80], data[80:])


def test_an_entry_of_another_format_puts_nothing() -> None:
    """Its ops are not applied (wire.md, section 5), so whoever signed a root over one is in error."""
    alice = Author(1)
    written = alice.write(put(b"k", b"1"))
    entry = parse_entry(NETWORK, written.header._replace(version=2).pack(), written.ops)
    state = KeyState(b"k", (live_of(entry),))
    tree = MerkleMap()
    tree.set(sha256(b"k").digest(), leaf_of(state))
    tree.root()
    value = ProofValue(entry.ops[4:], (), (), alice.seal(entry).pack())
    with pytest.raises(MalformedError, match="format"):
        verify_proof(prove(tree, state, {entry.id: entry}, value))


# The audit path of RFC 6962.


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 8, 13, 64, 100, 255, 256])
def test_pymerkle_agrees_on_audit_paths(size: int) -> None:
    data = [b"op %d" % number for number in range(size)]
    leaves = [leaf_hash(one) for one in data]
    oracle = InmemoryTree(algorithm="sha256")
    for one in data:
        oracle.append_entry(one)
    for index in {0, 1, size // 2, size - 2, size - 1} & set(range(size)):
        path = audit_path(leaves, index)
        theirs = oracle.prove_inclusion(index + 1, size)
        pymerkle_verifies(leaves[index], oracle.get_root(), theirs)
        assert [step.hex() for step in path] == theirs.serialize()["path"][1:]
        assert root_from_audit_path(leaves[index], index, size, path) == oracle.get_root()


@given(st.integers(1, 70), st.data())
def test_an_audit_path_fits_one_place_only(size: int, data: st.DataObject) -> None:
    leaves = [leaf_hash(b"%d" % number) for number in range(size)]
    index = data.draw(st.integers(0, size - 1))
    other = data.draw(st.integers(0, size - 1))
    path = audit_path(leaves, index)
    root = tree_root(leaves)
    assert root_from_audit_path(leaves[index], index, size, path) == root
    if other != index:
        assert root_from_audit_path(leaves[index], other, size, path) != root
        assert root_from_audit_path(leaves[other], index, size, path) != root
    assert root_from_audit_path(leaves[index], index, size, (*path, bytes(32))) is None
    assert root_from_audit_path(leaves[index], size, size, path) is None


# The JSON form is read strictly.


@pytest.mark.parametrize(
    ("place", "new"),
    [
        (("format",), "lattice/proof/v2"),
        (("network",), "00"),
        (("network",), NETWORK.hex().upper()),
        (("key",), ""),
        (("key",), 7),
        (("key",), "\ud800"),
        (("present",), False),
        (("live",), {}),
        (("live", 0, "version"), "x"),
        (("adds",), True),
        (("adds",), -1),
        (("total",), "-0"),
        (("total",), "1e3"),
        (("total",), str(10**30)),
        (("bucket",), "0"),
        (("path",), [""] * 16),
        (("winner",), []),
        (("winner", "seal"), ""),
        (("statement",), None),
        (("statement", "signer"), "12D3KooW"),
        (("statement", "signer"), None),
        (("statement", "timestamp_ms"), 2**64),
    ],
)
def test_malformed_json_is_refused(place: tuple[Any, ...], new: object) -> None:
    with pytest.raises(LatticeError) as refused:
        parse_proof(_with(proof_fields(PRESENT), place, new))
    assert refused.value.code == "malformed"


@pytest.mark.parametrize("data", [None, [], "text", 7, {}, {"format": "lattice/proof/v1"}])
def test_what_is_no_proof_at_all(data: object) -> None:
    with pytest.raises(MalformedError):
        parse_proof(data)


def test_unknown_fields_are_ignored() -> None:
    assert parse_proof({**proof_fields(PRESENT), "success": True, "later": 1}) == PRESENT


# Receipts for merkletools.


def receipt_of(size: int, index: int) -> Receipt:
    states = [KeyState(b"k/%d" % number, (), 1, number) for number in range(size)]
    tree = MerkleMap({})
    for state in states:
        tree.set(sha256(state.key).digest(), leaf_of(state))
    root = tree.root()
    leaves = [leaf for _, leaf in tree.items()]
    target = leaf_of(states[index]) or b""
    top, steps = plain_path(leaves, leaves.index(target))
    signature = SIGNER.sign(RECEIPT_TAG, NETWORK, statement_body(root, top, 7))
    said = ReceiptStatement(SIGNER.public_key, root, 7, signature)
    return Receipt(NETWORK, states[index].key, (), 1, index, target, top, steps, said)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 6, 7, 8, 13, 64])
def test_merkletools_agrees_on_receipts(size: int) -> None:
    leaves = [sha256(b"leaf %d" % number).digest() for number in range(size)]
    oracle = MerkleTools(hash_type="sha256")
    oracle.add_leaf([leaf.hex() for leaf in leaves])
    oracle.make_tree()
    for index in range(size):
        root, steps = plain_path(leaves, index)
        assert root.hex() == oracle.get_merkle_root()
        assert [{step.side: step.sibling.hex()} for step in steps] == oracle.get_proof(index)


@given(st.integers(1, 20), st.data())
def test_no_byte_of_a_receipt_can_be_changed(size: int, data: st.DataObject) -> None:
    receipt = receipt_of(size, data.draw(st.integers(0, size - 1)))
    fields = receipt_fields(receipt)
    assert parse_receipt(json.loads(json.dumps(fields))) == receipt
    verify_receipt(receipt)
    place, text = data.draw(st.sampled_from(list(_bytes_within(fields))))
    raw = bytearray.fromhex(text)
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(MalformedError):
        verify_receipt(parse_receipt(_with(fields, place, raw.hex())))


def test_a_receipt_names_clock_and_author_by_true_headers() -> None:
    entry = Author(1).write(put(b"k", b"1"))
    state = KeyState(b"k", (live_of(entry),))
    leaf = leaf_of(state) or b""
    signature = SIGNER.sign(RECEIPT_TAG, NETWORK, statement_body(bytes(32), leaf, 7))
    said = ReceiptStatement(SIGNER.public_key, bytes(32), 7, signature)
    live = (ProofVersion(entry.id, 0, entry.op_hashes[0], entry.header_bytes),)
    receipt = Receipt(NETWORK, b"k", live, 0, 0, leaf, leaf, (), said)
    verify_receipt(receipt)
    other = (live[0]._replace(header=altered(entry.header_bytes)),)
    with pytest.raises(MalformedError, match="header"):
        verify_receipt(dataclasses.replace(receipt, live=other))


@pytest.mark.parametrize("step", [None, {}, {"left": "00"}, {"up": "00" * 32}, {"left": "0", "right": "0"}])
def test_a_step_has_one_side(step: object) -> None:
    with pytest.raises(MalformedError):
        parse_receipt({**receipt_fields(receipt_of(3, 1)), "proof": [step]})
