"""The two trees: RFC 6962 against other implementations, the Merkle map against its definition."""

from __future__ import annotations

import random
import warnings
from hashlib import sha256

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pymerkle import InmemoryTree

from lattice.core.merkle import (
    BUCKET_COUNT,
    EMPTY_TREE,
    LeafTree,
    MerkleMap,
    bucket_hash,
    bucket_of,
    leaf_hash,
    map_root_from_path,
    node_hash,
    tree_root,
)
from tests.core.core_kit import raw_vectors

GOLDEN = raw_vectors("rfc6962")


def rfc_root(leaves: list[bytes]) -> bytes:
    """RFC 6962, section 2.1, as it is written there."""
    if len(leaves) <= 1:
        return sha256(b"\0" + leaves[0]).digest() if leaves else sha256(b"").digest()
    split = 1 << (len(leaves) - 1).bit_length() - 1
    return sha256(b"\1" + rfc_root(leaves[:split]) + rfc_root(leaves[split:])).digest()


@pytest.mark.parametrize("size", range(9))
def test_known_roots(size: int) -> None:
    leaves = [bytes.fromhex(leaf) for leaf in GOLDEN["leaves"][:size]]
    assert tree_root([leaf_hash(leaf) for leaf in leaves]).hex() == GOLDEN["roots"][size]
    assert rfc_root(leaves).hex() == GOLDEN["roots"][size]


def test_the_empty_tree() -> None:
    assert tree_root([]) == EMPTY_TREE == sha256(b"").digest()


@pytest.mark.slow
@given(st.lists(st.binary(max_size=8), max_size=70))
def test_the_tree_is_the_recursive_one(leaves: list[bytes]) -> None:
    assert tree_root([leaf_hash(leaf) for leaf in leaves]) == rfc_root(leaves)


@pytest.mark.slow
@given(
    st.lists(st.binary(max_size=4), max_size=40),
    st.lists(st.tuples(st.integers(0, 39), st.binary(max_size=4)), max_size=20),
)
def test_a_tree_whose_leaves_change(leaves: list[bytes], changes: list[tuple[int, bytes]]) -> None:
    tree = LeafTree([leaf_hash(leaf) for leaf in leaves])
    assert tree.root() == rfc_root(leaves)
    for index, leaf in changes:
        if index < len(leaves):
            leaves[index] = leaf
            tree.set(index, leaf_hash(leaf))
            assert tree.root() == rfc_root(leaves)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 13, 64, 100, 255, 256])
def test_pymerkle_agrees(size: int) -> None:
    oracle = InmemoryTree(algorithm="sha256")
    leaves = [b"leaf %d" % number for number in range(size)]
    for leaf in leaves:
        oracle.append_entry(leaf)
    assert tree_root([leaf_hash(leaf) for leaf in leaves]) == oracle.get_root()


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 13, 64])
def test_merkletools_agrees_on_the_shape(size: int) -> None:
    """merkletools has no domain separation, so it is fed our leaves and hashes its own nodes; the
    shape (an odd last node moves up) is what it can confirm."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from merkletools import MerkleTools
    oracle = MerkleTools(hash_type="sha256")
    leaves = [leaf_hash(b"leaf %d" % number) for number in range(size)]
    oracle.add_leaf([leaf.hex() for leaf in leaves])
    oracle.make_tree()

    def plain_root(level: list[bytes]) -> bytes:
        if len(level) == 1:
            return level[0]
        split = 1 << (len(level) - 1).bit_length() - 1
        return sha256(plain_root(level[:split]) + plain_root(level[split:])).digest()

    assert oracle.get_merkle_root() == plain_root(leaves).hex()
    if size > 1:
        assert oracle.get_merkle_root() != tree_root(leaves).hex()


def test_a_node_cannot_be_shown_as_a_leaf() -> None:
    pair = [leaf_hash(b"a"), leaf_hash(b"b")]
    assert tree_root(pair) != leaf_hash(pair[0] + pair[1])
    assert node_hash(*pair) not in (tree_root(pair), bucket_hash(pair[0] + pair[1]))


# The Merkle map.


def naive_root(content: dict[bytes, bytes]) -> bytes:
    """All 65,536 buckets and every node above, from their definition."""
    packed = [b""] * BUCKET_COUNT
    for key_hash in sorted(content):
        packed[int.from_bytes(key_hash[:2], "big")] += key_hash + content[key_hash]
    empty = sha256(b"lattice/bucket/v1\0").digest()
    level = [sha256(b"lattice/bucket/v1\0" + pairs).digest() if pairs else empty for pairs in packed]
    while len(level) > 1:
        known: dict[bytes, bytes] = {}
        above = []
        for at in range(0, len(level), 2):
            pair = level[at] + level[at + 1]
            if pair not in known:
                known[pair] = sha256(b"lattice/node/v1\0" + pair).digest()
            above.append(known[pair])
        level = above
    return level[0]


# Few distinct first bytes, so that keys meet in buckets and buckets are neighbours.
KEY_HASHES = st.builds(
    lambda bucket, rest: bytes(bucket) + sha256(b"%d" % rest).digest()[2:],
    st.tuples(st.sampled_from([0, 1, 127, 128, 255]), st.sampled_from([0, 1, 255])),
    st.integers(0, 5),
)
LEAVES = st.integers(0, 9).map(lambda number: sha256(b"leaf %d" % number).digest())
CHANGES = st.lists(st.tuples(KEY_HASHES, st.one_of(st.none(), LEAVES)), max_size=25)


@settings(max_examples=40, deadline=None)
@given(st.lists(CHANGES, max_size=4))
@pytest.mark.slow
def test_the_root_is_the_naive_one_after_every_batch(batches: list[list[tuple[bytes, bytes | None]]]) -> None:
    tree, content = MerkleMap(), dict[bytes, bytes]()
    for batch in batches:
        for key_hash, leaf in batch:
            tree.set(key_hash, leaf)
            if leaf is None:
                content.pop(key_hash, None)
            else:
                content[key_hash] = leaf
        assert tree.root() == naive_root(content)
        assert len(tree) == len(content)
        assert dict(tree.items()) == content
        assert [key_hash for key_hash, _ in tree.items()] == sorted(content)
        assert all(tree.get(key_hash) == leaf for key_hash, leaf in content.items())


@settings(max_examples=50, deadline=None)
@given(CHANGES, st.randoms(use_true_random=False))
@pytest.mark.slow
def test_history_does_not_matter(changes: list[tuple[bytes, bytes | None]], chance: random.Random) -> None:
    """Any path to the same content gives the same root and the same buckets."""
    content = {key_hash: leaf for key_hash, leaf in changes if leaf is not None}
    straight, wandering = MerkleMap(), MerkleMap()
    for key_hash, leaf in content.items():
        straight.set(key_hash, leaf)
    for key_hash, leaf in changes:
        wandering.set(key_hash, leaf)
        if chance.random() < 0.2:
            wandering.root()
    for key_hash in chance.sample(sorted(content), len(content)):
        wandering.set(key_hash, None)
        wandering.root()
        wandering.set(key_hash, content[key_hash])
    assert straight.root() == wandering.root()
    assert list(straight.items()) == list(wandering.items())


def test_an_emptied_map_is_an_empty_map() -> None:
    tree = MerkleMap()
    empty = tree.root()
    assert empty == naive_root({})
    tree.set(b"\1" * 32, b"\2" * 32)
    assert tree.root() != empty
    tree.set(b"\1" * 32, None)
    tree.set(b"\3" * 32, None)
    assert (tree.root(), len(tree)) == (empty, 0)


def test_changed_buckets_rebuild_the_map() -> None:
    chance, tree, stored = random.Random(5), MerkleMap(), dict[int, bytes]()
    keys = [chance.randbytes(32) for _ in range(300)]
    for step in range(4):
        for key_hash in chance.sample(keys, 150):
            tree.set(key_hash, None if chance.random() < 0.3 else chance.randbytes(32))
        changed = tree.changed_buckets()
        assert changed, step
        stored.update(changed)
        root = tree.root()
        assert tree.changed_buckets() == {}
        again = MerkleMap({number: packed for number, packed in stored.items() if packed})
        assert (again.root(), len(again)) == (root, len(tree))
        assert list(again.items()) == list(tree.items())


@pytest.mark.parametrize("seed", range(3))
def test_paths_prove_presence_and_absence(seed: int) -> None:
    chance, tree = random.Random(seed), MerkleMap()
    # Two keys in one bucket, one alone, and the first and the last bucket.
    shared = bytes([seed, 7])
    keys = [shared + chance.randbytes(30) for _ in range(2)]
    keys += [chance.randbytes(32), bytes(2) + chance.randbytes(30), b"\xff\xff" + chance.randbytes(30)]
    for key_hash in keys:
        tree.set(key_hash, chance.randbytes(32))
    root = tree.root()
    for key_hash in [*keys, chance.randbytes(32), shared + chance.randbytes(30)]:
        number = bucket_of(key_hash)
        packed, path = tree.bucket(number), tree.path(number)
        assert number == int.from_bytes(key_hash[:2], "big")
        assert len(path) == 16
        assert map_root_from_path(number, packed, path) == root
        leaf = tree.get(key_hash)
        assert (leaf is not None) is (key_hash in keys)
        assert (key_hash + (leaf or bytes(32)) in packed) is (key_hash in keys)
        if packed:  # an empty bucket beside an empty one hashes the same
            assert map_root_from_path(number ^ 1, packed, path) != root
        assert map_root_from_path(number, packed + key_hash + bytes(32), path) != root
        for at in range(16):
            wrong = [*path[:at], sha256(path[at]).digest(), *path[at + 1 :]]
            assert map_root_from_path(number, packed, wrong) != root
