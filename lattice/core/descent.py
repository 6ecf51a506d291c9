"""The descent: which keys two state trees differ in, found from the root down in three exchanges.

Separate because it judges a defect and not a lack: equal sets of entries have led to two states, so
nothing is fetched and nothing is overwritten; all that comes out is names.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from .errors import MalformedError
from .limits import KEYS_NAMED_MAX
from .merkle import HASH_BYTES, LEAF_BYTES, MerkleMap
from .messages import Message, Proof
from .tree_proofs import (
    BUCKET_DEPTH,
    NUMBERS_MAX,
    TREE_ASK,
    TREE_NODES,
    TreeAsk,
    TreeNodes,
    leads_to,
    pack_ask,
    split_row,
    unpack_nodes,
)


class Side(StrEnum):
    """Where a key has a leaf."""

    HERE = "here only"
    THERE = "there only"
    BOTH = "different"


class KeyDifference(NamedTuple):
    """A key in which the states differ, by the SHA-256 of the key: the tree knows no other name."""

    key_hash: bytes
    side: Side


class Outcome(StrEnum):
    """How a descent ended. Only the first makes a claim."""

    FOUND = "found"
    NO_ANSWER = "no_answer"  # the peer does not know the question, or did not answer in time
    MOVED = "moved"  # one of the two states changed meanwhile
    MALFORMED = "malformed"
    FALSE = "false"  # the answer does not lead to the state root that the peer named


@dataclass(frozen=True, slots=True)
class Descent:
    """What was found: the lowest KEYS_NAMED_MAX by key hash, and how many keys differ; at least so many
    where it is not `complete`."""

    outcome: Outcome
    differences: tuple[KeyDifference, ...] = ()
    count: int = 0
    complete: bool = False


Exchanges = Generator[list[Message], Sequence[Message], Descent]


def descend(tree: MerkleMap, theirs: bytes, has_moved: Callable[[], bool]) -> Exchanges:
    """Compare our committed tree with the peer's, whose root is `theirs`. Yields messages to send;
    send() it the answer's messages. `has_moved`: whether our own state is another than at the start.

    There are three exchanges at most, whatever the peer answers: what one question has no room for is
    not opened, and counts as one key each.
    """
    nodes: dict[int, bytes] = {0: theirs}  # those that differ, with their hashes there
    unopened = 0
    found: list[KeyDifference] = []
    for depth, most in NUMBERS_MAX.items():
        asked = dict(sorted(nodes.items())[:most])
        if not asked:  # our own tree does not lead to our root
            break
        ask = TreeAsk(theirs, depth, tuple(asked))
        answer = yield [Proof(TREE_ASK, pack_ask(ask))]
        parts = _judged(answer, ask, asked, has_moved)
        if isinstance(parts, Outcome):
            return Descent(parts)
        unopened += len(nodes) - len(parts)
        if depth == BUCKET_DEPTH:
            found = [each for number, packed in parts for each in _compared(tree.bucket(number), packed)]
        else:
            nodes = _differing(tree, depth, parts)
    named = tuple(found[:KEYS_NAMED_MAX])
    return Descent(Outcome.FOUND, named, len(found) + unopened, bool(found) and not unopened)


def _judged(
    answer: Sequence[Message], ask: TreeAsk, asked: Mapping[int, bytes], has_moved: Callable[[], bool]
) -> tuple[tuple[int, bytes], ...] | Outcome:
    """The parts of an answer, or why there are none to go on with."""
    if has_moved():
        return Outcome.MOVED
    came = next((each for each in answer if isinstance(each, Proof) and each.kind == TREE_NODES), None)
    if came is None:
        return Outcome.NO_ANSWER
    try:
        nodes: TreeNodes = unpack_nodes(came.payload)
    except MalformedError:
        return Outcome.MALFORMED
    if nodes.root != ask.root:
        return Outcome.MOVED
    if nodes.depth != ask.depth or not leads_to(nodes, asked):
        return Outcome.FALSE
    if not nodes.parts and ask.depth != BUCKET_DEPTH:
        return Outcome.NO_ANSWER
    return nodes.parts


def _differing(tree: MerkleMap, depth: int, parts: Sequence[tuple[int, bytes]]) -> dict[int, bytes]:
    """The nodes eight levels further down that differ from ours, with their hashes there."""
    differing = {}
    for number, row in parts:
        theirs = split_row(row)
        for at, (here, there) in enumerate(zip(tree.below(depth, number), theirs, strict=True)):
            if here != there:
                differing[number << 8 | at] = there
    return differing


def _compared(here: bytes, there: bytes) -> Iterator[KeyDifference]:
    """The differences of two packed buckets, ascending by key hash."""
    ours, theirs = _leaves(here), _leaves(there)
    for key_hash in sorted(ours.keys() | theirs.keys()):
        if key_hash not in theirs:
            yield KeyDifference(key_hash, Side.HERE)
        elif key_hash not in ours:
            yield KeyDifference(key_hash, Side.THERE)
        elif ours[key_hash] != theirs[key_hash]:
            yield KeyDifference(key_hash, Side.BOTH)


def _leaves(packed: bytes) -> dict[bytes, bytes]:
    pairs = range(0, len(packed), LEAF_BYTES)
    return {packed[at : at + HASH_BYTES]: packed[at + HASH_BYTES : at + LEAF_BYTES] for at in pairs}
