"""RFC 6962 trees over short lists, and the Merkle map that gives the state root.

Separate because both are pure hashing with a specification of their own and are checked against
other implementations (pymerkle, merkletools) in the tests.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from itertools import pairwise
from typing import Final

EMPTY_TREE: Final = sha256(b"").digest()
BUCKET_COUNT: Final = 65_536
HASH_BYTES: Final = 32
LEAF_BYTES: Final = 2 * HASH_BYTES  # a pair in a bucket: SHA-256 of the key, leaf of the key
_DEPTH: Final = 16
_ROW_LEVELS: Final = 8

# Domains of the Merkle map. RFC 6962 uses 0x00 and 0x01; these are others on purpose.
_BUCKET_TAG: Final = b"lattice/bucket/v1\0"
_NODE_TAG: Final = b"lattice/node/v1\0"


def leaf_hash(data: bytes) -> bytes:
    """RFC 6962, section 2.1: SHA-256(0x00 ‖ data)."""
    return sha256(b"\0" + data).digest()


def tree_root(leaves: Sequence[bytes]) -> bytes:
    """RFC 6962, section 2.1: the root over leaf hashes (already hashed with leaf_hash).

    Level by level, an odd last node moves up unchanged: the same tree as the RFC's recursive
    split at the largest power of two, without recursion.
    """
    if not leaves:
        return EMPTY_TREE
    level = list(leaves)
    while len(level) > 1:
        odd = level[-1] if len(level) % 2 else None
        level = [sha256(b"\1" + level[i] + level[i + 1]).digest() for i in range(0, len(level) - 1, 2)]
        if odd is not None:
            level.append(odd)
    return level[0]


class LeafTree:
    """An RFC 6962 tree whose leaves change one by one: a changed leaf costs the path above it."""

    __slots__ = ("_levels",)

    def __init__(self, leaves: Sequence[bytes]) -> None:
        """`leaves`: leaf hashes, as for tree_root."""
        self._levels = [list(leaves)]
        while len(self._levels[-1]) > 1:
            below = self._levels[-1]
            self._levels.append([_parent(below, at) for at in range((len(below) + 1) // 2)])

    def set(self, index: int, leaf: bytes) -> None:
        self._levels[0][index] = leaf
        for below, above in pairwise(self._levels):
            index >>= 1
            above[index] = _parent(below, index)

    def root(self) -> bytes:
        return self._levels[-1][0] if self._levels[0] else EMPTY_TREE


def _parent(below: Sequence[bytes], index: int) -> bytes:
    left = 2 * index
    if left + 1 == len(below):
        return below[left]
    return sha256(b"\1" + below[left] + below[left + 1]).digest()


def bucket_of(key_hash: bytes) -> int:
    """The bucket of a key: the first 16 bits of its SHA-256."""
    return key_hash[0] << 8 | key_hash[1]


def bucket_hash(packed: bytes) -> bytes:
    """The hash of a bucket: sorted 64-byte pairs (SHA-256 of the key, leaf of the key)."""
    return sha256(_BUCKET_TAG + packed).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    return sha256(_NODE_TAG + left + right).digest()


def root_over(hashes: Sequence[bytes]) -> bytes:
    """The node over a full row of hashes (1, 2, 4, 8 and so on of them)."""
    level = list(hashes)
    while len(level) > 1:
        level = [node_hash(level[at], level[at + 1]) for at in range(0, len(level), 2)]
    return level[0]


def _empty_levels() -> list[bytes]:
    hashes = [bucket_hash(b"")]
    for _ in range(_DEPTH):
        hashes.append(node_hash(hashes[-1], hashes[-1]))
    return hashes


class MerkleMap:
    """A map from key hash (32 bytes) to leaf (32 bytes) with a root that depends on content only.

    65,536 buckets under a binary tree. A bucket is one packed `bytes` of sorted pairs (64 MB at a
    million keys); the hashes of each level stand in a list, where equal ones are one object.
    Changes are collected and hashed once, at `root()`: 10 to 17 µs for a single change, less in
    batches that share buckets.
    """

    __slots__ = ("_buckets", "_dirty", "_levels", "_size")

    def __init__(self, buckets: Mapping[int, bytes] | None = None) -> None:
        """`buckets`: packed pairs by bucket number, as handed out by `changed_buckets`."""
        empty = _empty_levels()
        self._buckets: list[bytes] = [b""] * BUCKET_COUNT
        # _levels[0] holds the bucket hashes, _levels[16] the root.
        self._levels = [[empty[d]] * (BUCKET_COUNT >> d) for d in range(_DEPTH + 1)]
        self._dirty: set[int] = set()
        self._size = 0
        for number, packed in (buckets or {}).items():
            self._buckets[number] = packed
            self._size += len(packed) // LEAF_BYTES
            self._dirty.add(number)
        self._rehash()

    def __len__(self) -> int:
        """The number of keys."""
        return self._size

    def get(self, key_hash: bytes) -> bytes | None:
        """The leaf of a key, or None."""
        packed = self._buckets[bucket_of(key_hash)]
        at, found = _find(packed, key_hash)
        return packed[at + 32 : at + LEAF_BYTES] if found else None

    def set(self, key_hash: bytes, leaf: bytes | None) -> None:
        """Put the leaf of a key; None removes it. Takes effect in the next `root()`."""
        number = bucket_of(key_hash)
        packed = self._buckets[number]
        at, found = _find(packed, key_hash)
        tail = packed[at + LEAF_BYTES :] if found else packed[at:]
        if leaf is None:
            if not found:
                return
            self._buckets[number] = packed[:at] + tail
        else:
            self._buckets[number] = b"".join((packed[:at], key_hash, leaf, tail))
        self._size += (leaf is not None) - found
        self._dirty.add(number)

    def changed_buckets(self) -> dict[int, bytes]:
        """The buckets changed since the last `root()`, by number, packed; empty ones included."""
        return {number: self._buckets[number] for number in sorted(self._dirty)}

    def root(self) -> bytes:
        """The state root over all changes so far."""
        if self._dirty:
            self._rehash()
        return self._levels[_DEPTH][0]

    def bucket(self, number: int) -> bytes:
        return self._buckets[number]

    def path(self, number: int) -> list[bytes]:
        """The 16 sibling hashes from the bucket up to the root (call `root()` first)."""
        return [level[number >> depth ^ 1] for depth, level in enumerate(self._levels[:_DEPTH])]

    def below(self, depth: int, number: int) -> list[bytes]:
        """The 256 hashes eight levels below a node at depth 0 or 8 (call `root()` first)."""
        level = self._levels[_DEPTH - depth - _ROW_LEVELS]
        return level[number << _ROW_LEVELS : (number + 1) << _ROW_LEVELS]

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """All (key hash, leaf) in order of key hash."""
        for packed in self._buckets:
            for at in range(0, len(packed), LEAF_BYTES):
                yield packed[at : at + 32], packed[at + 32 : at + LEAF_BYTES]

    def _rehash(self) -> None:
        # A batch of 256 keys hashes 2,300 nodes here: the calls are written out for speed. Each
        # hash goes to its own place, so the order in which the sets are walked does not matter.
        tag, numbers, below = _NODE_TAG, self._dirty, self._levels[0]
        for number in numbers:
            below[number] = bucket_hash(self._buckets[number])
        for above in self._levels[1:]:
            numbers = {number >> 1 for number in numbers}
            for parent in numbers:
                child = parent << 1
                above[parent] = sha256(tag + below[child] + below[child + 1]).digest()
            below = above
        self._dirty = set()


def _find(packed: bytes, key_hash: bytes) -> tuple[int, bool]:
    """Byte offset of `key_hash` in a packed bucket, or where it belongs, and whether it is there."""
    if not packed:
        return 0, False
    pairs = range(len(packed) // LEAF_BYTES)
    at = bisect_left(pairs, key_hash, key=lambda i: packed[i * 64 : i * 64 + 32]) * LEAF_BYTES
    return at, packed[at : at + 32] == key_hash


def map_root_from_path(number: int, packed: bytes, path: Sequence[bytes]) -> bytes:
    """The root that a bucket with its path leads to: the check of inclusion and absence proofs."""
    digest = bucket_hash(packed)
    for sibling in path:
        digest = node_hash(sibling, digest) if number & 1 else node_hash(digest, sibling)
        number >>= 1
    return digest
