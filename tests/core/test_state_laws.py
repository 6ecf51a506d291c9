"""The laws of the state: a pure function of the set of entries, and taking out is the inverse of putting in.

Separate from the single rules because these draw whole histories, forked logs among them, and judge them by
what the set alone says: the test finds out by itself where a log parts, and what is left of it.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lattice.core.engine import Frozen, Gossiped
from lattice.core.entry import Entry, OpKind, Version, encode_op
from lattice.core.forks import FORK_PROOF
from lattice.core.limits import FROZEN_NEVER
from lattice.core.messages import Entries, Proof
from lattice.core.rows import LogHead, LogKey
from lattice.testing.reference import (
    Ledger,
    compute_log_root,
    compute_state,
    compute_state_root,
    find_forgeries,
    read_ledger,
)
from tests.core.core_kit import NETWORK, Author, Replica, add, delete, page, put, sync

KEYS = (b"a", b"b", "ü".encode())


# What was written.


@dataclass(frozen=True)
class Stretch:
    """Entries of one log that follow each other, sealed at the last; of a forked log always from seq 0 on,
    so that whoever has it can tell where it parts from any other."""

    author: Author
    entries: tuple[Entry, ...]

    @property
    def log(self) -> LogKey:
        header = self.entries[0].header
        return LogKey(header.author, header.epoch)


@dataclass(frozen=True)
class World:
    """Logs of a few authors, and of some of them the branches, each a whole chain."""

    logs: tuple[Stretch, ...]
    branches: tuple[Stretch, ...]

    def stretches(self, chance: random.Random) -> list[Stretch]:
        """All of it, cut another way each time, overlapping now and then."""
        forked = {branch.log for branch in self.branches}
        found = list(self.branches)
        for whole in self.logs:
            entries = whole.entries
            inner = sorted(chance.sample(range(1, len(entries)), chance.randint(0, len(entries) - 1)))
            first = 0
            for cut in [*inner, len(entries)]:
                start = 0 if whole.log in forked else max(0, first - chance.choice([0, 0, 1]))
                found.append(Stretch(whole.author, entries[start:cut]))
                first = cut
        return found


def draw_op(chance: random.Random, index: int, known: Sequence[Version]) -> bytes:
    key = chance.choice(KEYS)
    over = chance.sample(known, min(len(known), chance.choice([0, 0, 1, 2])))
    own = [chance.randrange(index + 1) for _ in range(chance.choice([0, 0, 0, 1]))] if index else []
    match chance.choice(["put", "put", "put", "delete", "add", "unknown", "broken"]):
        case "put":
            return put(key, b"%d" % chance.randrange(100), over=over, own=own)
        case "delete":
            return delete(key, over=over, own=own)
        case "add":
            return add(key, chance.choice([1, -1, 0, 2**53 - 1, -5]))
        case "unknown":
            return bytes([chance.choice([42, 43])]) + put(key, over=over)[1:]
        case _:
            return chance.choice([b"", b"\1", put(b"\xff"), encode_op(OpKind.DELETE, key, value=b"x")])


@dataclass
class Pen:
    """Writes entries with random ops, which may name whatever was written before them by anybody."""

    chance: random.Random
    known: list[Version] = field(default_factory=lambda: [Version(bytes(32), 0)])

    def write(self, author: Author, epoch: int, after: Entry | None = None) -> Entry:
        ops = [draw_op(self.chance, index, self.known) for index in range(self.chance.randint(1, 5))]
        entry = author.write(*ops, epoch=epoch, clock=self.chance.randrange(5), after=after)
        self.known += [Version(entry.id, index) for index in range(len(ops))]
        return entry

    def branch(self, author: Author, epoch: int, stem: Sequence[Entry]) -> list[Entry]:
        """A chain that leaves `stem` somewhere, at its first entry maybe."""
        chain = list(stem[: self.chance.randrange(len(stem))])
        for _ in range(self.chance.randint(1, 3)):
            if chain:
                chain.append(self.write(author, epoch, after=chain[-1]))
            else:
                again = Author(0)
                again.key = author.key
                chain.append(self.write(again, epoch))
        return chain


def draw_world(chance: random.Random) -> World:
    authors = [Author(number) for number in range(chance.randint(1, 3))]
    plans = [(author, epoch) for author in authors for epoch in range(chance.randint(1, 2))]
    pen = Pen(chance)
    logs: dict[LogKey, list[Entry]] = {}
    branches: list[Stretch] = []
    for count in (chance.randint(1, 10), chance.randint(0, 4)):
        for _ in range(count):
            author, epoch = chance.choice(plans)
            logs.setdefault(author.log(epoch), []).append(pen.write(author, epoch))
        # What is written afterwards may name what stands on a branch.
        for author, epoch in plans:
            stems = [logs[author.log(epoch)]] if author.log(epoch) in logs else []
            for _ in range(chance.choice([0, 0, 1, 2]) if stems else 0):
                stems.append(pen.branch(author, epoch, chance.choice(stems)))
                branches.append(Stretch(author, tuple(stems[-1])))
    by_log = {author.log(epoch): author for author, epoch in plans}
    return World(
        tuple(Stretch(by_log[log], tuple(run)) for log, run in sorted(logs.items())), tuple(branches)
    )


# What the set says.


@dataclass
class Outcome:
    """What any node must hold that was given these stretches, whatever the order: of each log the entries
    without a gap, up to where two of its ids stand at one seq."""

    held: list[Stretch]
    ledger: Ledger

    @classmethod
    def of(cls, given: Iterable[Stretch]) -> Outcome:
        found: dict[LogKey, dict[int, dict[bytes, Entry]]] = {}
        authors: dict[LogKey, Author] = {}
        for stretch in given:
            authors[stretch.log] = stretch.author
            by_seq = found.setdefault(stretch.log, {})
            for entry in stretch.entries:
                by_seq.setdefault(entry.header.seq, {})[entry.id] = entry
        outcome = cls([], Ledger())
        for log, by_seq in found.items():
            run: list[Entry] = []
            while len(by_seq.get(len(run), ())) == 1:
                run += by_seq[len(run)].values()
            frozen = len(run) if len(run) in by_seq else FROZEN_NEVER
            if run:
                outcome.held.append(Stretch(authors[log], tuple(run)))
            if run or frozen != FROZEN_NEVER:
                name = run[-1].id if run else bytes(32)
                outcome.ledger.heads[log] = LogHead(len(run) - 1, name, frozen)
                outcome.ledger.logs[log] = [(entry.header_bytes, entry.ops) for entry in run]
        return outcome

    def plain(self, proofs: Iterable[Proof]) -> Replica:
        """A node that was never given anything else, and knows of the forks by their proofs only."""
        replica = Replica(50)
        for stretch in self.held:
            replica.take(message_of([stretch]))
        for proof in proofs:
            replica.take(Entries((), ()), proofs=[proof])
        return replica

    def assert_held_by(self, replica: Replica) -> None:
        """By code that shares nothing with the engine but the shapes of rows."""
        ledger = read_ledger(replica.store)
        assert list(find_forgeries(NETWORK, ledger)) == []
        assert ledger.heads == self.ledger.heads
        assert {log: run for log, run in ledger.logs.items() if run} == {
            log: run for log, run in self.ledger.logs.items() if run
        }
        content = compute_state(NETWORK, self.ledger)
        roots = replica.engine.roots
        assert roots.state_root == compute_state_root(content)
        assert roots.log_root == compute_log_root(self.ledger.heads.items())
        assert roots.entry_count == replica.store.entry_count() == self.ledger.size
        for key in KEYS:
            state = replica.store.key_state(key)
            live = {(held.id, held.op_index) for held in state.live} if state is not None else set()
            assert live == (set(content[key].live) if key in content else set())
            counter = (state.adds, state.total) if state is not None else (0, 0)
            assert counter == ((content[key].adds, content[key].total) if key in content else (0, 0))
            assert len({(held.author, held.epoch) for held in state.live} if state else ()) == len(live)


def message_of(stretches: Iterable[Stretch]) -> Entries:
    parts = list(stretches)
    return page(
        [entry for part in parts for entry in part.entries],
        [part.author.seal(part.entries[-1]) for part in parts],
    )


def rows_of(replica: Replica) -> dict[str, Any]:
    """All that the entries of a node made of its store. No part of the state: the bare row that a key which
    holds nothing leaves, who brought an entry, and seals that are kept besides the necessary ones."""
    store = replica.store
    states = {key: store.key_state(key) for key in KEYS}
    logs = store.log_heads()
    return {
        "heads": logs,
        "roots": replica.engine.roots,
        "entries": {log: [row[3:6] for row in store.entries(*log, 0, 2**62, 2**62)] for log in logs},
        "keys": {key: state for key, state in states.items() if state is not None and state.present},
        "ops": {key: store.history(key, 1000) for key in KEYS},
        "edges": {key: list(store.edges([key])) for key in KEYS},
        "latest puts": {(key, log): store.latest_put(key, *log) for key in KEYS for log in logs},
        "buckets": store.buckets(),
        "novelties": replica.engine.novelties(),
    }


def proofs_of(replica: Replica) -> list[Proof]:
    rows = map(replica.store.fork_row, replica.store.frozen_logs())
    return [Proof(FORK_PROOF, row.proof) for row in rows]


# How it arrives.


def arrivals(given: Sequence[Stretch], chance: random.Random) -> list[list[list[Stretch]]]:
    """Commits of messages of stretches: in any order, some of them twice, grouped at both levels."""
    plan = [*given, *chance.sample(given, len(given) // 4)]
    chance.shuffle(plan)
    commits: list[list[list[Stretch]]] = []
    while plan:
        messages: list[list[Stretch]] = []
        for _ in range(chance.choice([1, 1, 2, 4])):
            size = min(len(plan), chance.choice([1, 1, 2, 3]))
            messages += [[plan.pop() for _ in range(size)]] if size else []
        commits.append(messages)
    return commits


def arrive(replica: Replica, commit: Iterable[Iterable[Stretch]]) -> None:
    for number, message in enumerate(commit):
        replica.handle(Gossiped(number, b"p" * 32, "gossip", message_of(message), ()))
    replica.commit()


def deliver(given: Sequence[Stretch], chance: random.Random, number: int = 50) -> Replica:
    replica = Replica(number)
    before = replica
    for commit in arrivals(given, chance):
        if chance.random() < 0.1:
            replica = replica.restarted()
        arrive(replica, commit)
    if replica is not before:  # what waited for a gap to be filled is gone with the process
        for commit in arrivals(given, chance):
            arrive(replica, commit)
    return replica


@pytest.mark.slow
@settings(max_examples=120, deadline=None)
@given(st.randoms(use_true_random=False))
def test_any_order_of_arrival_gives_the_same_bytes(chance: random.Random) -> None:
    """Any permutation, duplication and grouping of a set, and of any part of it."""
    given = draw_world(chance).stretches(chance)
    if chance.random() < 0.3:
        given = chance.sample(given, chance.randint(1, len(given)))
    outcome = Outcome.of(given)
    one, two = deliver(given, chance), deliver(given, chance)
    outcome.assert_held_by(one)
    expected = rows_of(outcome.plain(proofs_of(one)))
    assert rows_of(one) == expected
    assert rows_of(two) == expected
    assert rows_of(one.restarted()) == expected


@pytest.mark.slow
@settings(max_examples=80, deadline=None)
@given(st.randoms(use_true_random=False))
def test_every_part_of_a_delivery_is_the_state_of_its_set(chance: random.Random) -> None:
    """The state is kept up to date op by op and must equal the one computed from nothing each time."""
    replica = Replica(50)
    so_far: list[Stretch] = []
    for commit in arrivals(draw_world(chance).stretches(chance), chance):
        arrive(replica, commit)
        so_far += [stretch for message in commit for stretch in message]
        Outcome.of(so_far).assert_held_by(replica)
        assert Replica(50, replica.store).engine.roots == replica.engine.roots


@pytest.mark.slow
@settings(max_examples=80, deadline=None)
@given(st.randoms(use_true_random=False))
def test_parts_given_to_several_come_to_the_state_of_the_whole(chance: random.Random) -> None:
    """Each is given a part; rounds make of them what the set of everything says."""
    world = draw_world(chance)
    parts = [world.stretches(chance) for _ in range(chance.randint(2, 3))]
    parts = [chance.sample(part, chance.randint(0, len(part))) for part in parts]
    replicas = [deliver(part, chance, 50 + at) if part else Replica(50 + at) for at, part in enumerate(parts)]
    # A gap in the middle is filled in the second exchange at the latest.
    for _ in range(4):
        for one, other in [(0, 1), (1, len(replicas) - 1), (1, 0)]:
            assert one == other or not sync(replicas[one], replicas[other]).result.defect
    outcome = Outcome.of([stretch for part in parts for stretch in part])
    for replica in replicas:
        outcome.assert_held_by(replica)
        assert rows_of(replica) == rows_of(outcome.plain(proofs_of(replica)))


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(st.randoms(use_true_random=False))
def test_taking_out_is_the_exact_inverse_of_putting_in(chance: random.Random) -> None:
    """Cut after cut, at one log and the other, at a lower and a lower seq: each time as if what it took out
    had never been there, though whatever else came before it and after it may name what went."""
    assert_inverse(chance, Counter())


def assert_inverse(chance: random.Random, seen: Counter[str]) -> None:
    world = draw_world(chance)
    logs = list(world.logs)
    replica = Replica(50)
    arrive(replica, [[stretch] for stretch in logs])
    so_far = list(logs)
    # Lower and lower, as far as they go: then every one of them takes something out.
    for branch in sorted(world.branches, key=lambda b: -_parting(b, logs)):
        before, skipped = rows_of(replica), replica.engine.statistics()["ops_skipped"]
        outputs = replica.take(message_of([branch]))
        so_far.append(branch)
        outcome = Outcome.of(so_far)
        plain = outcome.plain(proofs_of(replica))
        after = rows_of(replica)
        assert after == rows_of(plain)
        assert replica.engine.statistics()["ops_skipped"] == plain.engine.statistics()["ops_skipped"]
        frozen = [output.fork for output in outputs if isinstance(output, Frozen)]
        seen["cuts"] += len(frozen)
        seen["cuts of a log that was cut before"] += sum(
            before["heads"][branch.log].frozen != FROZEN_NEVER for _ in frozen
        )
        seen["no longer counted as unknown"] += before["novelties"] != after["novelties"]
        seen["no longer counted as skipped"] += skipped != replica.engine.statistics()["ops_skipped"]
        for key in KEYS:
            _note_key(seen, before["keys"].get(key), after["keys"].get(key))


def _parting(branch: Stretch, logs: Sequence[Stretch]) -> int:
    """The seq at which a branch leaves the log that it is one of."""
    trunk = next(whole.entries for whole in logs if whole.log == branch.log)
    return next(
        (at for at, (a, b) in enumerate(zip(trunk, branch.entries, strict=False)) if a.id != b.id), len(trunk)
    )


def _note_key(seen: Counter[str], before: Any, after: Any) -> None:
    was = {held.version for held in before.live} if before else set()
    now = {held.version for held in after.live} if after else set()
    seen["versions taken out"] += len(was - now)
    seen["versions live again"] += len(now - was)
    seen["siblings live again"] += bool(now - was) and len(now) > 1
    seen["adds taken out"] += (before.adds if before else 0) - (after.adds if after else 0)


LEAST = {
    "cuts": 150,
    "cuts of a log that was cut before": 30,
    "versions taken out": 80,
    "versions live again": 30,
    "siblings live again": 10,
    "adds taken out": 50,
    "no longer counted as unknown": 50,
    "no longer counted as skipped": 50,
}


@pytest.mark.slow
def test_the_histories_hold_enough_of_everything() -> None:
    """Or the law of taking out looks at nothing."""
    seen: Counter[str] = Counter()
    for seed in range(150):
        assert_inverse(random.Random(seed), seen)
    assert {name: seen[name] for name, least in LEAST.items() if seen[name] < least} == {}
