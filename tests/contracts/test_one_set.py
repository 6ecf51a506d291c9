"""One set of entries through nodes that differ in everything that may differ: limits, clocks, pages, stores,
orders, groups. They must come to the same bytes.

Separate from the laws of the state because those try the core with one store and the usual limits; what is
local to a node may delay an entry and must never decide about it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from lattice.core.engine import Gossiped
from lattice.core.entry import Entry, Seal
from lattice.core.limits import CLOCK_BEFORE_ALL_MS, FROZEN_NEVER, SEAL_INTERVAL
from lattice.storage.datadir import open_store
from lattice.storage.memory import MemoryStore
from lattice.testing.reference import (
    Ledger,
    compute_log_root,
    compute_state,
    compute_state_root,
    find_forgeries,
    read_ledger,
)
from tests.core.core_kit import NETWORK, NOW_MS, Author, Replica, add, delete, page, put, sync

KEYS = tuple(b"key/%d" % number for number in range(9))
CENTURY_MS = 100 * 365 * 86_400_000


@dataclass(frozen=True, slots=True)
class Kind:
    """How one node differs. A limit is given as the module that reads it, its name and another value."""

    name: str
    now_ms: int
    on_disk: bool
    limits: tuple[tuple[str, str, int], ...] = ()
    grouped: int = 4  # messages in one commit, at most


_SMALL_PAGES = (
    # A page has to reach a seal: it may be small, and no smaller than the longest stretch without one.
    ("log", "PAGE_BYTES", 40_000),
    ("reconcile", "PAGE_BYTES", 40_000),
    ("reconcile", "WANT_RANGES_MAX", 2),
)
_NO_ROOM = (("pending", "PENDING_AUTHOR_BYTES_MAX", 3_000), ("pending", "PENDING_BYTES_MAX", 5_000))
_FEW_AT_A_TIME = (("reconcile", "FORK_PROOFS_MAX", 1), ("reconcile", "HEADS_LOGS_MAX", 64))
KINDS = (
    Kind("plain", NOW_MS, on_disk=False),
    Kind("on disk, one message a commit", NOW_MS, on_disk=True, grouped=1),
    Kind("a clock that was never set, small pages", 0, on_disk=True, limits=_SMALL_PAGES),
    Kind("a century ahead, hardly room to wait", NOW_MS + CENTURY_MS, on_disk=False, limits=_NO_ROOM),
    Kind(
        "before all, little in a message",
        CLOCK_BEFORE_ALL_MS - 1,
        on_disk=False,
        limits=_FEW_AT_A_TIME,
        grouped=9,
    ),
)


class Node:
    """A replica of one kind; its limits are in force only while it works."""

    def __init__(self, number: int, kind: Kind, directory: Path, patch: pytest.MonkeyPatch) -> None:
        self.kind = kind
        self._patch = patch
        self.store = open_store(directory / str(number), NETWORK) if kind.on_disk else MemoryStore()
        self.replica = Replica(100 + number, self.store)
        self.replica.now_ms = kind.now_ms

    @contextmanager
    def at_work(self) -> Iterator[None]:
        with self._patch.context() as patch:
            for module, name, value in self.kind.limits:
                patch.setattr(f"lattice.core.{module}.{name}", value)
            yield

    def take(self, chance: random.Random, messages: Sequence[tuple[list[Entry], list[Seal]]]) -> None:
        """In an order of its own, some of it twice, several messages in a commit."""
        plan = [*messages, *chance.sample(messages, len(messages) // 3)]
        chance.shuffle(plan)
        with self.at_work():
            while plan:
                for entries, seals in [
                    plan.pop() for _ in range(min(len(plan), chance.randint(1, self.kind.grouped)))
                ]:
                    self._hear(entries, seals)
                self.replica.commit()

    def _hear(self, entries: list[Entry], seals: list[Seal]) -> None:
        message = page(entries, seals)
        self.replica.handle(Gossiped(next(Replica._tokens), b"p" * 32, "gossip", message, ()))

    def ledger(self) -> Ledger:
        return read_ledger(self.store)


def draw_set(chance: random.Random) -> list[tuple[list[Entry], list[Seal]]]:
    """Messages of several authors: every kind of op, unknown ones, names of others' versions, long logs, logs
    with branches. Each message is authenticated by itself."""
    messages: list[tuple[list[Entry], list[Seal]]] = []
    known: list[tuple[bytes, int]] = []
    for number in range(chance.randint(2, 4)):
        author = Author(number)
        for epoch in range(chance.randint(1, 2)):
            length = chance.choice([3, 10, SEAL_INTERVAL + 9])
            trunk = [
                author.write(*_ops(chance, known), epoch=epoch, clock=chance.randrange(9))
                for _ in range(length)
            ]
            messages += _cut(chance, author, trunk)
            for _ in range(chance.choice([0, 0, 1, 2]) if number else 0):  # the first is honest
                at = chance.randrange(length)
                branch, above = [], trunk[at - 1] if at else None
                for place in range(at, at + chance.randint(1, 4)):
                    if above is None:
                        above = _first_again(author, epoch, chance, known)
                    else:
                        above = author.write(*_ops(chance, known), put(b"branch/%d" % place), after=above)
                    branch.append(above)
                # The whole of it, since no seal of the trunk speaks for what lies below a branch.
                messages += [(trunk[:at] + branch, [author.seal(entry) for entry in (*trunk[:at], *branch)])]
    return messages


def _first_again(author: Author, epoch: int, chance: random.Random, known: list[tuple[bytes, int]]) -> Entry:
    """Another first entry of a log: a fork at 0."""
    other = Author.__new__(Author)
    other.key, other._heads = author.key, {}
    return other.write(*_ops(chance, known), put(b"branch/0"), epoch=epoch)


def _ops(chance: random.Random, known: list[tuple[bytes, int]]) -> list[bytes]:
    ops = []
    for index in range(chance.randint(1, 4)):
        key = chance.choice(KEYS)
        over = chance.sample(known, min(len(known), chance.randint(0, 2)))
        own = [chance.randrange(index)] if index and chance.random() < 0.3 else []
        ops.append(
            chance.choice(
                [
                    put(key, b'"%d"' % chance.randrange(50), over=over, own=own),
                    put(key, b"1"),
                    delete(key, over=over),
                    add(key, chance.choice([1, -4, 2**53 - 1])),
                    b"\x2a" + put(key, over=over)[1:],  # a kind that nobody knows yet
                ]
            )
        )
    return ops


def _cut(chance: random.Random, author: Author, log: list[Entry]) -> list[tuple[list[Entry], list[Seal]]]:
    """A log in stretches, overlapping now and then, each with the seals that it must have."""
    messages, first = [], 0
    while first < len(log):
        last = min(first + chance.randint(1, 20), len(log))
        stretch = log[max(0, first - chance.randint(0, 2)) : last]
        messages.append((stretch, [author.seal(entry) for entry in stretch if _is_sealed(entry, stretch)]))
        first = last
    return messages


def _is_sealed(entry: Entry, stretch: list[Entry]) -> bool:
    return entry is stretch[-1] or entry.header.seq % SEAL_INTERVAL == SEAL_INTERVAL - 1


def settle(nodes: Sequence[Node]) -> None:
    """Rounds along a ring, in both directions, until all show the same heads."""
    for _ in range(8):
        for opener, server in zip(nodes, [*nodes[1:], nodes[0]], strict=True):
            for one, other in ((opener, server), (server, opener)):
                with one.at_work(), other.at_work():
                    sync(one.replica, other.replica)
        if len({tuple(sorted(node.replica.engine.heads.items())) for node in nodes}) == 1:
            return
    raise AssertionError("heads are not equal after eight times around")


@pytest.mark.parametrize("seed", range(12))
def test_one_set_gives_the_same_bytes_whatever_is_local(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = random.Random(seed)
    messages = draw_set(chance)
    with ExitStack() as stack:
        nodes = [Node(number, kind, tmp_path, monkeypatch) for number, kind in enumerate(KINDS)]
        for node in nodes:
            stack.callback(node.store.close)
            # Nobody hears everything: the rest comes in rounds.
            node.take(chance, chance.sample(messages, chance.randint(len(messages) // 2, len(messages))))
        nodes[0].take(chance, messages)
        settle(nodes)
        ledgers = [node.ledger() for node in nodes]
        states = [compute_state(NETWORK, ledger) for ledger in ledgers]
        for node, ledger, state in zip(nodes, ledgers, states, strict=True):
            assert list(find_forgeries(NETWORK, ledger)) == [], node.kind.name
            assert ledger.heads == ledgers[0].heads, node.kind.name
            assert state == states[0], node.kind.name
            roots = node.replica.engine.roots
            assert roots.state_root == compute_state_root(state), node.kind.name
            assert roots.log_root == compute_log_root(ledger.heads.items()), node.kind.name
            assert {key: node.store.key_state(key) for key in states[0]} == {
                key: nodes[0].store.key_state(key) for key in states[0]
            }, node.kind.name
        assert states[0]
        branches = [entries for entries, _ in messages if b"branch/" in entries[-1].ops]
        frozen = [head for head in ledgers[0].heads.values() if head.frozen != FROZEN_NEVER]
        assert bool(frozen) == bool(branches)
