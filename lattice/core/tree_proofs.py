"""Two kinds of Proof about the tree of the state: a question for what lies below some of its nodes, and
the answer to it.

Separate from the fork proofs because nobody signs these: what an answer says is believed only where it
leads, hash by hash, to the state root that the peer itself has named. The layout is in
docs/reference/wire.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Final, NamedTuple

from .codec import Reader, Writer
from .errors import MalformedError
from .limits import PAGE_BYTES, TREE_BUCKETS_MAX, TREE_SUBTREES_MAX
from .merkle import HASH_BYTES, LEAF_BYTES, MerkleMap, bucket_hash, bucket_of, root_over
from .messages import Message, Proof

TREE_ASK: Final = 3  # kinds of Proof
TREE_NODES: Final = 4
# From the root to the buckets in three questions: the depth of the nodes, and how many one may name.
NUMBERS_MAX: Final = {0: 1, 8: TREE_SUBTREES_MAX, 16: TREE_BUCKETS_MAX}
BUCKET_DEPTH: Final = 16
_ROW_BYTES: Final = 256 * HASH_BYTES


class TreeAsk(NamedTuple):
    """What lies below these nodes (ascending numbers at `depth`) of the tree with this state root?"""

    root: bytes
    depth: int
    numbers: tuple[int, ...]


class TreeNodes(NamedTuple):
    """What lies below nodes of the sender's tree, by ascending number: of one at depth 0 or 8 the 256
    hashes eight levels further down, of a bucket (depth 16) its packed pairs. `root` is the sender's
    state root; without parts if another was asked for."""

    root: bytes
    depth: int
    parts: tuple[tuple[int, bytes], ...]


def pack_ask(ask: TreeAsk) -> bytes:
    writer = Writer().raw(ask.root).u8(ask.depth).u32(len(ask.numbers))
    for number in ask.numbers:
        writer.u16(number)
    return writer.done()


def unpack_ask(data: bytes) -> TreeAsk:
    """The inverse of pack_ask. Raises MalformedError."""
    reader = Reader(data)
    root, depth = reader.take(HASH_BYTES), _read_depth(reader)
    numbers = tuple(reader.u16() for _ in range(reader.count(NUMBERS_MAX[depth])))
    reader.end()
    if not numbers:
        raise MalformedError("a question about the tree names no node")
    _check_numbers(depth, numbers)
    return TreeAsk(root, depth, numbers)


def pack_nodes(nodes: TreeNodes) -> bytes:
    writer = Writer().raw(nodes.root).u8(nodes.depth).u32(len(nodes.parts))
    for number, below in nodes.parts:
        writer.u16(number)
        if nodes.depth == BUCKET_DEPTH:
            writer.blob(below)
        else:
            writer.raw(below)
    return writer.done()


def unpack_nodes(data: bytes) -> TreeNodes:
    """The inverse of pack_nodes; no hash is compared with any other. Raises MalformedError."""
    reader = Reader(data)
    root, depth = reader.take(HASH_BYTES), _read_depth(reader)
    parts = []
    left = PAGE_BYTES
    for _ in range(reader.count(NUMBERS_MAX[depth])):
        number = reader.u16()
        if depth == BUCKET_DEPTH:
            below = reader.blob(left)
            _check_bucket(number, below)
            left -= len(below)
        else:
            below = reader.take(_ROW_BYTES)
        parts.append((number, below))
    reader.end()
    _check_numbers(depth, [number for number, _ in parts])
    return TreeNodes(root, depth, tuple(parts))


def _read_depth(reader: Reader) -> int:
    depth = reader.u8()
    if depth not in NUMBERS_MAX:
        raise MalformedError(f"the tree has no nodes to ask for at depth {depth}")
    return depth


def _check_numbers(depth: int, numbers: Sequence[int]) -> None:
    if any(above <= below for below, above in pairwise(numbers)):
        raise MalformedError("the numbers of the nodes are not ascending")
    if numbers and numbers[-1] >> depth:
        raise MalformedError(f"there is no node {numbers[-1]} at depth {depth}")


def _check_bucket(number: int, packed: bytes) -> None:
    if len(packed) % LEAF_BYTES:
        raise MalformedError("a bucket ends within a pair")
    hashes = [packed[at : at + HASH_BYTES] for at in range(0, len(packed), LEAF_BYTES)]
    if any(above <= below for below, above in pairwise(hashes)):
        raise MalformedError("the pairs of a bucket are not ascending")
    if hashes and not bucket_of(hashes[0]) == bucket_of(hashes[-1]) == number:
        raise MalformedError(f"bucket {number} holds a key of another one")


def check_tree_proof(proof: Proof) -> None:
    """Raises MalformedError if a proof is of one of these kinds and malformed."""
    if proof.kind == TREE_ASK:
        unpack_ask(proof.payload)
    elif proof.kind == TREE_NODES:
        unpack_nodes(proof.payload)


def asks_for_tree(messages: Sequence[Message]) -> bool:
    """Whether this is a question about the tree, which travels alone."""
    return len(messages) == 1 and isinstance(messages[0], Proof) and messages[0].kind == TREE_ASK


def answer_to(ask: TreeAsk, tree: MerkleMap, root: bytes) -> TreeNodes:
    """The answer out of the tree with this root. Buckets that do not fit into it are left out."""
    parts: list[tuple[int, bytes]] = []
    left = PAGE_BYTES
    for number in ask.numbers if ask.root == root else ():
        if ask.depth == BUCKET_DEPTH:
            below = tree.bucket(number)
            if len(below) > left:
                continue
            left -= len(below)
        else:
            below = b"".join(tree.below(ask.depth, number))
        parts.append((number, below))
    return TreeNodes(root, ask.depth, tuple(parts))


def hash_over(depth: int, below: bytes) -> bytes:
    """The hash of the node that these contents lie below."""
    return bucket_hash(below) if depth == BUCKET_DEPTH else root_over(split_row(below))


def split_row(row: bytes) -> list[bytes]:
    """The 256 hashes of a part at depth 0 or 8."""
    return [row[at : at + HASH_BYTES] for at in range(0, len(row), HASH_BYTES)]


def leads_to(nodes: TreeNodes, hashes: Mapping[int, bytes]) -> bool:
    """Whether every part is about one of these nodes and leads to its hash."""
    return all(hashes.get(number) == hash_over(nodes.depth, below) for number, below in nodes.parts)
