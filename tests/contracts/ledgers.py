"""Real ledgers for the tests of stores: entries with chains, seals, states, roots, as batches.

Separate from the tests because the contract suite, the crash tests and their child processes must
make the very same batches from the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import count
from typing import NamedTuple

from lattice.core.entry import Entry, OpKind, Seal, Version, encode_op, make_entry, make_seal
from lattice.core.errors import LatticeError
from lattice.core.heads import log_root
from lattice.core.identity import NodeKey
from lattice.core.limits import KEYS_READ_MAX
from lattice.core.merkle import MerkleMap
from lattice.core.rows import (
    Batch,
    EdgeRow,
    EntryRow,
    IdempotentRow,
    KeyState,
    LiveVersion,
    LogHead,
    LogKey,
    OpRow,
    Reader,
)
from lattice.core.state import leaf_of

NETWORK = sha256(b"a network for the tests of stores").digest()
AUTHORS = tuple(NodeKey(bytes((number,)) * 32) for number in (1, 2, 3))
# The ends of the range as well: SQLite's integers end at 2^63-1.
LOGS = tuple((key, epoch) for key in AUTHORS for epoch in (0, 7, 2**63, 2**64 - 1))


class OpPlan(NamedTuple):
    """One op to write: `over_live` replaces every live version of its key."""

    kind: OpKind
    key: bytes
    value: bytes = b""
    amount: int = 0
    over_live: bool = True


class EntryPlan(NamedTuple):
    """One entry to write to LOGS[log]."""

    log: int
    ops: Sequence[OpPlan]
    clock: int = 1


@dataclass(slots=True)
class Ledger:
    """The writer: what it has made so far, by rules as simple as can be."""

    tree: MerkleMap = field(default_factory=MerkleMap)
    states: dict[bytes, KeyState] = field(default_factory=dict)
    heads: dict[LogKey, LogHead] = field(default_factory=dict)
    sealed: dict[LogKey, Seal] = field(default_factory=dict)
    latest: dict[tuple[bytes, LogKey], Version] = field(default_factory=dict)

    def batch(self, plans: Iterable[EntryPlan]) -> Batch:
        """The batch of one commit, its roots included; the ledger moves on at once."""
        batch = Batch()
        newest: dict[LogKey, tuple[NodeKey, Entry]] = {}
        for plan in plans:
            key, epoch = LOGS[plan.log]
            log = LogKey(key.public_key, epoch)
            head = self.heads.get(log, LogHead(-1, bytes(32)))
            entry = make_entry(
                NETWORK,
                author=log.author,
                epoch=epoch,
                seq=head.seq + 1,
                prev=head.id,
                clock=plan.clock,
                ops=[self._encode(op) for op in plan.ops],
            )
            lung = ("local", "p2p", "http", "gossip")[plan.log % 4]
            peer = b"" if lung == "local" else log.author
            batch.entries.append(
                EntryRow(*log, head.seq + 1, entry.id, entry.header_bytes, entry.ops, lung, peer, 10**12)
            )
            self.heads[log] = batch.logs[log] = LogHead(head.seq + 1, entry.id)
            self._apply(entry, batch, log)
            if entry.must_be_sealed:
                batch.seals.append(make_seal(key, NETWORK, entry.header, entry.id))
            newest[log] = key, entry
        self._seal(newest, batch)
        for name, state in batch.keys.items():
            self.tree.set(sha256(name).digest(), leaf_of(state))
        batch.buckets = self.tree.changed_buckets()
        batch.meta["state_root"] = self.tree.root()
        batch.meta["log_root"] = log_root(self.heads)
        return batch

    def _seal(self, newest: dict[LogKey, tuple[NodeKey, Entry]], batch: Batch) -> None:
        for log, (key, entry) in newest.items():
            before = self.sealed.pop(log, None)
            if before is not None:
                batch.seals_dropped.append((*log, before.seq))
            if not entry.must_be_sealed:
                seal = make_seal(key, NETWORK, entry.header, entry.id)
                batch.seals.append(seal)
                self.sealed[log] = seal

    def _encode(self, op: OpPlan) -> bytes:
        state = self.states.get(op.key)
        over = [live.version for live in state.live] if state is not None and op.over_live else []
        if op.kind is OpKind.ADD:
            return encode_op(op.kind, op.key, amount=op.amount)
        return encode_op(op.kind, op.key, value=op.value, over=over)

    def _apply(self, entry: Entry, batch: Batch, log: LogKey) -> None:
        header = entry.header
        for index, op in enumerate(entry.parsed_ops()):
            if op is None:
                raise AssertionError("the ledger wrote an op that does not parse")
            place = (*log, header.seq, index)
            batch.ops.append(OpRow(op.key, *place, op.kind, entry.id))
            named = set(op.over)
            if op.kind is not OpKind.ADD and (op.key, log) in self.latest:
                named.add(self.latest[op.key, log])
            batch.edges += [EdgeRow(op.key, target, *place) for target in sorted(named)]
            before = self.states.get(op.key, KeyState(op.key))
            live = tuple(held for held in before.live if held.version not in named)
            if op.kind is OpKind.PUT:
                self.latest[op.key, log] = Version(entry.id, index)
                put = LiveVersion(
                    entry.id,
                    index,
                    op.op_hash,
                    header.clock,
                    *log,
                    header.seq,
                    op.value_at,
                    op.value_size,
                )
                live = tuple(sorted((*live, put), key=lambda held: (held.id, held.op_index)))
            after = KeyState(op.key, live, before.adds + (op.kind is OpKind.ADD), before.total + op.amount)
            self.states[op.key] = batch.keys[op.key] = after


@dataclass(slots=True)
class Model:
    """A `Reader` that keeps every row in a list and looks through all of them each time."""

    rows: Batch = field(default_factory=Batch)

    def take(self, batch: Batch) -> None:
        dropped = set(batch.seals_dropped) | {seal[:3] for seal in batch.seals}
        self.rows.seals = [seal for seal in self.rows.seals if seal[:3] not in dropped] + batch.seals
        self.rows.entries += batch.entries
        self.rows.logs |= batch.logs
        self.rows.keys |= batch.keys
        self.rows.ops += batch.ops
        self.rows.edges += batch.edges
        self.rows.buckets |= batch.buckets
        fresh = {row.key for row in batch.idempotent}
        kept = [row for row in self.rows.idempotent if row.key not in fresh]
        self.rows.idempotent = kept + batch.idempotent
        self.rows.meta |= batch.meta

    def log_heads(self) -> dict[LogKey, LogHead]:
        return self.rows.logs

    def buckets(self) -> dict[int, bytes]:
        return {number: packed for number, packed in self.rows.buckets.items() if packed}

    def meta(self, name: str) -> bytes | None:
        return self.rows.meta.get(name)

    def key_state(self, key: bytes) -> KeyState | None:
        return self.rows.keys.get(key)

    def page_keys(self, prefix: bytes, after: bytes | None, limit: int) -> list[KeyState]:
        names = sorted(key for key in self.rows.keys if key.startswith(prefix))
        states = [self.rows.keys[key] for key in names if after is None or key > after]
        return [state for state in states if state.present][:limit]

    def latest_put(
        self, key: bytes, author: bytes, epoch: int, below: tuple[int, int] | None = None
    ) -> Version | None:
        puts = [op for op in self.rows.ops if op[:3] == (key, author, epoch) and op.kind is OpKind.PUT]
        puts = [op for op in puts if below is None or (op.seq, op.op_index) < below]
        latest = max(puts, key=lambda op: (op.seq, op.op_index), default=None)
        return None if latest is None else Version(latest.id, latest.op_index)

    def is_named(self, key: bytes, target: Version) -> bool:
        return any(edge.key == key and edge.target == target for edge in self.rows.edges)

    def history(self, key: bytes, limit: int) -> list[OpRow]:
        return sorted(op for op in self.rows.ops if op.key == key)[:limit]

    def op_logs(self, key: bytes) -> list[LogKey]:
        return sorted({LogKey(op.author, op.epoch) for op in self.rows.ops if op.key == key})

    def newest_ops(self, key: bytes, log: LogKey, below: tuple[int, int], limit: int) -> list[OpRow]:
        ops = [op for op in self.rows.ops if op[:3] == (key, *log) and (op.seq, op.op_index) < below]
        return sorted(ops, reverse=True)[:limit]

    def entry(self, author: bytes, epoch: int, seq: int) -> EntryRow | None:
        return next((row for row in self.rows.entries if row[:3] == (author, epoch, seq)), None)

    def entry_by_id(self, entry_id: bytes) -> EntryRow | None:
        return next((row for row in self.rows.entries if row.id == entry_id), None)

    def entry_id_at(self, author: bytes, epoch: int, seq: int) -> bytes | None:
        row = self.entry(author, epoch, seq)
        return None if row is None else row.id

    def entries(self, author: bytes, epoch: int, first: int, last: int, bytes_max: int) -> list[EntryRow]:
        taken: list[EntryRow] = []
        for row in sorted(row for row in self.rows.entries if row[:2] == (author, epoch)):
            if sum(len(held.header) + len(held.ops) for held in taken) > bytes_max:
                break
            if first <= row.seq <= last:
                taken.append(row)
        return taken

    def seals(self, author: bytes, epoch: int, first: int, last: int) -> list[Seal]:
        held = sorted(seal for seal in self.rows.seals if seal[:2] == (author, epoch))
        return [seal for seal in held if first <= seal.seq <= last]

    def value(self, version: LiveVersion) -> bytes:
        row = self.entry(version.author, version.epoch, version.seq)
        if row is None:
            raise LatticeError("store_corrupt", "no such entry")
        return row.ops[version.value_at : version.value_at + version.value_size]

    def idempotent(self, key: bytes, now_ms: int) -> IdempotentRow | None:
        return next((row for row in self.rows.idempotent if row.key == key and row.expires_ms > now_ms), None)

    def entry_count(self) -> int:
        return len(self.rows.entries)


def assert_same(reader: Reader, model: Model) -> None:
    """Every question of the port, for everything that the model knows and some that it does not."""
    assert reader.log_heads() == model.log_heads()
    assert reader.buckets() == model.buckets()
    assert reader.entry_count() == model.entry_count()
    assert [reader.meta(name) for name in ("state_root", "log_root", "other")] == [
        model.meta(name) for name in ("state_root", "log_root", "other")
    ]
    assert reader.page_keys(b"", None, 10_000) == model.page_keys(b"", None, 10_000)
    targets = {edge.target for edge in model.rows.edges}
    for row in model.rows.entries:
        targets.add(Version(row.id, 0))
        assert reader.entry_by_id(row.id) == row
        assert reader.entry(*row[:3]) == row
        assert reader.entry_id_at(*row[:3]) == row.id
    for key, epoch in LOGS:
        log = LogKey(key.public_key, epoch)
        for first, last, most in ((0, 2**62, 10**9), (1, 2, 10**9), (0, 2**62, 700), (10**6, 2**64 - 1, 1)):
            assert reader.entries(*log, first, last, most) == model.entries(*log, first, last, most)
            assert reader.seals(*log, first, last) == model.seals(*log, first, last)
    keys = sorted((*model.rows.keys, b"never written"))
    for at in range(0, len(keys), KEYS_READ_MAX):
        chunk = keys[at : at + KEYS_READ_MAX]
        assert reader.key_states(chunk) == [model.key_state(key) for key in chunk]
        assert list(reader.edges(chunk)) == sorted(edge for edge in model.rows.edges if edge.key in chunk)
    assert reader.key_states([]) == list(reader.edges([])) == []
    for key in keys:
        state = model.key_state(key)
        assert reader.key_state(key) == state
        assert reader.history(key, 1000) == model.history(key, 1000)
        assert reader.history(key, 2) == model.history(key, 2)
        assert reader.op_logs(key) == model.op_logs(key)
        assert reader.page_keys(key[:1], key, 3) == model.page_keys(key[:1], key, 3)
        for author, epoch in LOGS:
            log = LogKey(author.public_key, epoch)
            assert reader.latest_put(key, *log) == model.latest_put(key, *log)
            for below, most in (((2**36, 0), 10**6), ((2, 1), 10**6), ((2**35, 3), 2), ((0, 0), 1)):
                assert reader.latest_put(key, *log, below) == model.latest_put(key, *log, below)
                assert reader.newest_ops(key, log, below, most) == model.newest_ops(key, log, below, most)
        for target in targets:
            assert reader.is_named(key, target) == model.is_named(key, target)
        for live in state.live if state is not None else ():
            assert reader.value(live) == model.value(live)


def workload(ledger: Ledger, entries_max: int = 40) -> Iterator[Batch]:
    """An endless sequence of commits, the same each time; `meta["commit"]` counts them from 0.

    Small commits and large ones, new keys and old ones, every kind of op, all logs.
    """
    written = 0
    for number in count():
        plans = []
        for at in range(entries_max if number % 7 == 6 else 1 + number % 3):
            key = b"key/%04d" % (written * 7919 % 500)
            ops = [OpPlan(OpKind.PUT, key, b"value %d " % written * 10)]
            if written % 5 == 0:
                ops.append(OpPlan(OpKind.ADD, b"count/%d" % (written % 3), amount=written))
            if written % 11 == 0:
                ops.append(OpPlan(OpKind.DELETE, b"key/%04d" % (written * 31 % 500)))
            plans.append(EntryPlan((number + at) % len(LOGS), ops, clock=written))
            written += 1
        batch = ledger.batch(plans)
        batch.meta["commit"] = number.to_bytes(8, "big")
        yield batch


def assert_same_rows(reader: Reader, other: Reader) -> None:
    """Everything that can be listed is equal in two readers."""
    assert reader.meta("commit") == other.meta("commit")
    assert reader.log_heads() == other.log_heads()
    assert reader.buckets() == other.buckets()
    assert reader.entry_count() == other.entry_count()
    for log in other.log_heads():
        assert reader.entries(*log, 0, 2**62, 2**62) == other.entries(*log, 0, 2**62, 2**62)
        assert reader.seals(*log, 0, 2**62) == other.seals(*log, 0, 2**62)
    states = other.page_keys(b"", None, 10**6)
    assert reader.page_keys(b"", None, 10**6) == states
    for state in states:
        assert reader.key_state(state.key) == state
        assert reader.history(state.key, 10**6) == other.history(state.key, 10**6)
        for live in state.live:
            assert reader.value(live) == other.value(live)
            row = reader.entry_by_id(live.id)
            assert row is not None
            assert row == other.entry_by_id(live.id)
