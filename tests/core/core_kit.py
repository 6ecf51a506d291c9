"""What the tests of the core share: authors that write by hand, replicas, and rounds between them.

Separate because most of these tests need a few entries with their seals, and some need two engines
that exchange messages without any transport.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

from lattice.core.draft import Appended, Condition, OpDraft
from lattice.core.engine import (
    META_STATE_ROOT,
    Acknowledged,
    Answer,
    Append,
    Engine,
    EngineInput,
    Gossiped,
    OpenRound,
    Output,
    RoundAnswered,
    RoundByPeer,
    RoundEnded,
    RoundStep,
    Served,
)
from lattice.core.entry import Entry, OpKind, Seal, Version, encode_op, make_entry, make_seal
from lattice.core.identity import NodeKey
from lattice.core.merkle import MerkleMap
from lattice.core.messages import Entries, Message, Proof, decode_messages, encode_messages
from lattice.core.reconcile import RoundResult, RoundServed
from lattice.core.rows import Batch, KeyState, LogKey
from lattice.core.state import leaf_of
from lattice.storage.memory import MemoryStore
from lattice.storage.port import Store

NETWORK = sha256(b"a network for the tests of the core").digest()
NOW_MS = 1_700_000_000_000

T = TypeVar("T")


def vectors(name: str) -> list[dict[str, Any]]:
    """The cases of tests/core/vectors/`name`.json."""
    cases: list[dict[str, Any]] = raw_vectors(name)["cases"]
    return cases


def raw_vectors(name: str) -> dict[str, Any]:
    path = Path(__file__).parent / "vectors" / f"{name}.json"
    loaded: dict[str, Any] = json.loads(path.read_text(encoding="ascii"))
    return loaded


def node_key(number: int) -> NodeKey:
    return NodeKey(sha256(b"node %d" % number).digest())


def put(key: bytes, value: bytes = b"1", *, over: Sequence[Version] = (), own: Sequence[int] = ()) -> bytes:
    return encode_op(OpKind.PUT, key, value=value, over=over, over_own=own)


def delete(key: bytes, *, over: Sequence[Version] = (), own: Sequence[int] = ()) -> bytes:
    return encode_op(OpKind.DELETE, key, over=over, over_own=own)


def add(key: bytes, amount: int) -> bytes:
    return encode_op(OpKind.ADD, key, amount=amount)


def altered(data: bytes, at: int = -1) -> bytes:
    """The same bytes with one bit flipped."""
    changed = bytearray(data)
    changed[at] ^= 1
    return bytes(changed)


def forged(seal: Seal) -> Seal:
    """The seal with a signature that does not verify."""
    return seal._replace(signature=altered(seal.signature, 5))


class Author:
    """Writes entries of its own logs by hand, without an engine."""

    def __init__(self, number: int = 1) -> None:
        self.key = node_key(number)
        self._heads: dict[int, Entry] = {}

    def log(self, epoch: int = 1) -> LogKey:
        return LogKey(self.key.public_key, epoch)

    def write(self, *ops: bytes, epoch: int = 1, clock: int = 1, after: Entry | None = None) -> Entry:
        """The next entry of this epoch, or one that follows `after` (a branch of the log)."""
        before = after if after is not None else self._heads.get(epoch)
        epoch = before.header.epoch if before is not None else epoch
        entry = make_entry(
            NETWORK,
            author=self.key.public_key,
            epoch=epoch,
            seq=before.header.seq + 1 if before is not None else 0,
            prev=before.id if before is not None else bytes(32),
            clock=clock,
            ops=ops or (put(b"k"),),
        )
        if after is None:
            self._heads[epoch] = entry
        return entry

    def write_many(self, number: int, *, epoch: int = 1) -> list[Entry]:
        return [self.write(put(b"k/%d" % n), epoch=epoch) for n in range(number)]

    def seal(self, entry: Entry) -> Seal:
        return make_seal(self.key, NETWORK, entry.header, entry.id)


def page(entries: Iterable[Entry], seals: Iterable[Seal] = ()) -> Entries:
    return Entries(tuple((entry.header_bytes, entry.ops) for entry in entries), tuple(seals))


def damage(store: Store, *states: KeyState) -> None:
    """What a defect does: these states of keys, leaves and root included, stand in place of those that
    follow from the entries. Who opens the store next believes them."""
    tree = MerkleMap(store.buckets())
    for state in states:
        tree.set(sha256(state.key).digest(), leaf_of(state))
    buckets = tree.changed_buckets()
    keys = {state.key: state for state in states}
    store.commit(Batch(keys=keys, buckets=buckets, meta={META_STATE_ROOT: tree.root()}))


def only(outputs: Iterable[Output], kind: type[T]) -> T:
    """The one output of this kind."""
    found = [output for output in outputs if isinstance(output, kind)]
    assert len(found) == 1, f"{len(found)} outputs of {kind.__name__}"
    return found[0]


class Replica:
    """An engine with its store; a crash or a restart is a new Replica on the same store."""

    _tokens = count(1)

    def __init__(self, number: int = 1, store: Any = None) -> None:
        self.key = node_key(number)
        self.store = store if store is not None else MemoryStore()
        self.engine = Engine(self.key, NETWORK, self.store)
        self.now_ms = NOW_MS
        self.batches: list[Batch] = []
        self._draws = 0

    def entropy(self) -> bytes:
        self._draws += 1
        return sha256(self.key.public_key + b"%d %d" % (id(self.store), self._draws)).digest()[:8]

    def handle(self, *events: EngineInput) -> None:
        for event in events:
            self.engine.handle(event, now_ms=self.now_ms, entropy=self.entropy())

    def commit(self) -> list[Output]:
        batch = self.engine.settle()
        if batch is not None:
            self.store.commit(batch)
            self.batches.append(batch)
        return self.engine.committed()

    def run(self, *events: EngineInput) -> list[Output]:
        """Handle these in one commit."""
        self.handle(*events)
        return self.commit()

    def restarted(self) -> Replica:
        fresh = Replica(0, self.store.reopened())
        fresh.key = self.key
        fresh.engine = Engine(self.key, NETWORK, fresh.store)
        fresh._draws = self._draws + 1000
        return fresh

    @classmethod
    def append(
        cls,
        *drafts: OpDraft,
        conditions: Sequence[Condition] = (),
        idempotency_key: bytes = b"",
        digest: bytes = b"",
    ) -> Append:
        return Append(next(cls._tokens), drafts, tuple(conditions), idempotency_key, digest)

    def write(self, *drafts: OpDraft) -> Appended:
        """One acknowledged write in a commit of its own."""
        return only(self.run(self.append(*drafts)), Acknowledged).result

    def put(self, key: bytes, value: bytes = b"1") -> Appended:
        return self.write(OpDraft(OpKind.PUT, key, value))

    def take(
        self, entries: Entries, lung: str = "gossip", peer: bytes = b"p" * 32, *, proofs: Sequence[Proof] = ()
    ) -> list[Output]:
        return self.run(Gossiped(next(self._tokens), peer, lung, entries, tuple(proofs)))

    def value(self, key: bytes) -> list[bytes]:
        """The values of all live versions of a key, in the order of their versions."""
        state = self.store.key_state(key)
        return [self.store.value(live) for live in state.live] if state is not None else []


@dataclass(slots=True)
class Synced:
    """How a round went: what both sides concluded, and the bodies that were exchanged."""

    result: RoundResult
    served: RoundServed | None
    requests: list[bytes]
    answers: list[bytes]


def sync(opener: Replica, server: Replica, *, padded: bool = False) -> Synced:
    """One round, every message through its bytes."""
    token = next(Replica._tokens)
    peer = server.key.public_key
    step: RoundStep | RoundEnded = only(opener.run(OpenRound(token, peer, "p2p", padded)), RoundStep)
    requests: list[bytes] = []
    answers: list[bytes] = []
    served: RoundServed | None = None
    while isinstance(step, RoundStep):
        assert len(requests) < 1000, "the round does not end"
        requests.append(encode_messages(step.messages))
        request: tuple[Message, ...] = tuple(decode_messages(requests[-1]))
        outputs = server.run(Served(token, opener.key.public_key, 1, "p2p", request))
        for output in outputs:
            if isinstance(output, RoundByPeer):
                served = output.served
        answers.append(encode_messages(only(outputs, Answer).messages))
        answer = tuple(decode_messages(answers[-1]))
        following = opener.run(RoundAnswered(token, peer, "p2p", answer))
        step = next(output for output in following if isinstance(output, RoundStep | RoundEnded))
    return Synced(step.result, served, requests, answers)
