"""Questions about the state tree and their answers: the frozen bytes, and nothing but MalformedError."""

from __future__ import annotations

import struct
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lattice.core.errors import MalformedError
from lattice.core.limits import PAGE_BYTES
from lattice.core.merkle import MerkleMap
from lattice.core.messages import Proof
from lattice.core.tree_proofs import (
    NUMBERS_MAX,
    TREE_ASK,
    TREE_NODES,
    TreeAsk,
    TreeNodes,
    answer_to,
    check_tree_proof,
    leads_to,
    pack_ask,
    pack_nodes,
    unpack_ask,
    unpack_nodes,
)
from tests.core.core_kit import altered, vectors

CASES = vectors("tree_proofs")
VALID = [case for case in CASES if case["valid"]]
MALFORMED = [case for case in CASES if not case["valid"]]
ROOT = sha256(b"a root").digest()


def named(cases: list[dict[str, Any]]) -> list[Any]:
    return [pytest.param(case, id=case["name"]) for case in cases]


# The page, read once more: no hash and no field here comes from the product.


def naive_hash(pairs: list[tuple[bytes, bytes]], depth: int, number: int) -> bytes:
    """The node `number` at `depth` of the tree with these pairs, by its definition."""
    if depth == 16:
        inside = sorted(pair for pair in pairs if int.from_bytes(pair[0][:2], "big") == number)
        return sha256(b"lattice/bucket/v1\0" + b"".join(name + leaf for name, leaf in inside)).digest()
    under = [pair for pair in pairs if int.from_bytes(pair[0][:2], "big") >> (16 - depth) == number]
    if not under:
        return EMPTY[depth]
    left, right = (naive_hash(under, depth + 1, 2 * number + side) for side in (0, 1))
    return sha256(b"lattice/node/v1\0" + left + right).digest()


EMPTY = {16: sha256(b"lattice/bucket/v1\0").digest()}
for level in range(15, -1, -1):
    EMPTY[level] = sha256(b"lattice/node/v1\0" + 2 * EMPTY[level + 1]).digest()


def pairs_of(case: dict[str, Any]) -> list[tuple[bytes, bytes]]:
    return [(bytes.fromhex(name), bytes.fromhex(leaf)) for name, leaf in case["pairs"]]


@pytest.mark.parametrize("case", named(VALID))
def test_the_frozen_bytes_field_by_field(case: dict[str, Any]) -> None:
    expected = bytes.fromhex(case["root"]) + struct.pack(">BI", case["depth"], len(case["numbers"]))
    for number in case["numbers"]:
        expected += struct.pack(">H", number)
        if case["kind"] == 4 and case["depth"] == 16:
            inside = [pair for pair in pairs_of(case) if pair[0][:2] == struct.pack(">H", number)]
            expected += struct.pack(">I", 64 * len(inside)) + b"".join(name + leaf for name, leaf in inside)
        elif case["kind"] == 4:
            below = range(256 * number, 256 * number + 256)
            expected += b"".join(naive_hash(pairs_of(case), case["depth"] + 8, node) for node in below)
    assert case["payload"] == expected.hex()
    if case["kind"] == 4:
        assert case["root"] == case["state_root"] == naive_hash(pairs_of(case), 0, 0).hex()


@pytest.mark.parametrize("case", named(VALID))
def test_what_the_bytes_say(case: dict[str, Any]) -> None:
    payload = bytes.fromhex(case["payload"])
    check_tree_proof(Proof(case["kind"], payload))
    told = (bytes.fromhex(case["root"]), case["depth"], tuple(case["numbers"]))
    if case["kind"] == TREE_ASK:
        assert unpack_ask(payload) == told
        assert pack_ask(unpack_ask(payload)) == payload
        return
    nodes = unpack_nodes(payload)
    assert (nodes.root, nodes.depth, tuple(number for number, _ in nodes.parts)) == told
    assert pack_nodes(nodes) == payload
    hashes = {number: naive_hash(pairs_of(case), nodes.depth, number) for number, _ in nodes.parts}
    assert leads_to(nodes, hashes)
    if nodes.parts:
        assert not leads_to(nodes, {**hashes, nodes.parts[-1][0]: ROOT})
        assert not leads_to(nodes, {}), "what was not asked for"
        (number, below), *rest = nodes.parts
        for at in range(0, len(below), 32):
            lie = nodes._replace(parts=((number, altered(below, at)), *rest))
            assert not leads_to(lie, hashes)


@pytest.mark.parametrize("case", named(MALFORMED))
def test_malformed_ones_are_refused(case: dict[str, Any]) -> None:
    with pytest.raises(MalformedError):
        check_tree_proof(Proof(case["kind"], bytes.fromhex(case["payload"])))


@pytest.mark.parametrize("kind", [0, 1, 2, 5, 255])
def test_other_kinds_are_not_looked_at(kind: int) -> None:
    check_tree_proof(Proof(kind, b"whatever"))


def test_an_answer_of_more_than_a_page_is_malformed() -> None:
    def bucket(number: int, count: int) -> tuple[int, bytes]:
        names = (struct.pack(">HI", number, key) + bytes(26) for key in range(count))
        return number, b"".join(name + bytes(32) for name in names)

    half = PAGE_BYTES // 128
    unpack_nodes(pack_nodes(TreeNodes(ROOT, 16, (bucket(1, half), bucket(2, half)))))
    with pytest.raises(MalformedError):
        unpack_nodes(pack_nodes(TreeNodes(ROOT, 16, (bucket(1, half), bucket(2, half + 1)))))


def test_buckets_that_do_not_fit_are_left_out() -> None:
    """Who grinds keys into one bucket keeps the others of the question from nobody."""
    crowd = b"".join(struct.pack(">HI", 1, key) + bytes(58) for key in range(PAGE_BYTES // 64))
    tree = MerkleMap({0: bytes(64), 1: crowd, 2: struct.pack(">H", 2) + bytes(62)})
    root = tree.root()
    nodes = answer_to(TreeAsk(root, 16, (0, 1, 2)), tree, root)
    assert [number for number, _ in nodes.parts] == [0, 2]
    assert unpack_nodes(pack_nodes(nodes)) == nodes


NUMBERS = {
    depth: st.lists(st.integers(0, 2**depth - 1), min_size=1, max_size=min(most, 2**depth), unique=True)
    for depth, most in NUMBERS_MAX.items()
}


@given(st.sampled_from(sorted(NUMBERS_MAX)).flatmap(lambda depth: st.tuples(st.just(depth), NUMBERS[depth])))
def test_questions_come_back(asked: tuple[int, list[int]]) -> None:
    depth, numbers = asked
    ask = TreeAsk(ROOT, depth, tuple(sorted(numbers)))
    assert unpack_ask(pack_ask(ask)) == ask


@given(
    st.sampled_from([TREE_ASK, TREE_NODES]),
    st.sampled_from([0, 8, 16]),
    st.binary(max_size=200),
    st.binary(min_size=32, max_size=32),
)
def test_random_payloads_never_raise_anything_else(kind: int, depth: int, rest: bytes, root: bytes) -> None:
    for payload in (rest, root + bytes([depth]) + rest, root + bytes([depth, 0, 0, 0]) + rest):
        try:
            check_tree_proof(Proof(kind, payload))
        except MalformedError:
            continue


@pytest.mark.slow
@given(st.sampled_from(VALID), st.data())
def test_altered_payloads_never_raise_anything_else(case: dict[str, Any], data: st.DataObject) -> None:
    payload = bytearray.fromhex(case["payload"])
    for at in data.draw(st.lists(st.integers(0, len(payload) - 1), min_size=1, max_size=3)):
        payload[at] = data.draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]))
    proof = Proof(case["kind"], bytes(payload))
    try:
        check_tree_proof(proof)
    except MalformedError:
        return
    if proof.kind == TREE_ASK:
        assert pack_ask(unpack_ask(proof.payload)) == proof.payload
    else:
        assert pack_nodes(unpack_nodes(proof.payload)) == proof.payload
