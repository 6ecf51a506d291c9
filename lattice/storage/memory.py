"""The memory store: the same contract as SQLite's, without a disk, for simulation and tests.

Separate because a simulated node must commit in line (a thread would let its virtual clock run
on), and because a disk that fails on purpose belongs where no real store can import it by chance.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from heapq import nlargest

from ..core.entry import OpKind, Seal, Version
from ..core.errors import LatticeError
from ..core.rows import (
    Batch,
    EdgeRow,
    EntryRow,
    ForkRow,
    IdempotentRow,
    KeyState,
    LiveVersion,
    LogHead,
    LogKey,
    OpRow,
)
from .packing import corrupt, value_of

_FREE_BYTES: int = 1 << 40


@dataclass(slots=True)
class Disk:
    """What a simulator turns to make a memory store fail.

    `error` (`no_space` or `store_failed`) is raised by every commit while it is set. With `lands`
    a batch refused with `store_failed` is found whole at the next opening, as when the write was
    done and only its sync failed. `remembers` keeps every batch, for `reopened(lose=…)`.
    """

    free_bytes: int = _FREE_BYTES
    error: str | None = None
    lands: bool = False
    remembers: bool = False


@dataclass(slots=True)
class _Rows:
    """Everything stored. Ops and edges are grouped by key, so that a key is looked at alone."""

    entries: dict[LogKey, dict[int, EntryRow]] = field(default_factory=dict)
    by_id: dict[bytes, EntryRow] = field(default_factory=dict)
    seals: dict[LogKey, dict[int, Seal]] = field(default_factory=dict)
    heads: dict[LogKey, LogHead] = field(default_factory=dict)
    keys: dict[bytes, KeyState] = field(default_factory=dict)
    present: list[bytes] = field(default_factory=list)
    ops: dict[bytes, dict[tuple[LogKey, int, int], OpRow]] = field(default_factory=dict)
    puts: dict[tuple[bytes, LogKey], tuple[int, Version]] = field(default_factory=dict)
    edges: dict[bytes, dict[Version, set[EdgeRow]]] = field(default_factory=dict)
    buckets: dict[int, bytes] = field(default_factory=dict)
    idempotent: dict[bytes, IdempotentRow] = field(default_factory=dict)
    meta: dict[str, bytes] = field(default_factory=dict)
    forks: dict[LogKey, ForkRow] = field(default_factory=dict)


class MemoryStore:
    """A `Store` in dictionaries. It outlives the node that used it, like the disk that it stands
    for: after a crash the next node gets `reopened()`."""

    def __init__(self, disk: Disk | None = None) -> None:
        self.disk = disk if disk is not None else Disk()
        self._rows = _Rows()
        self._failed = False
        self._landed: Batch | None = None
        self._batches: list[Batch] = []

    @property
    def in_line(self) -> bool:
        return True

    def free_bytes(self) -> int:
        return self.disk.free_bytes

    def close(self) -> None:
        """Nothing to give back; the rows stay for `reopened`."""

    def reopened(self, lose: int = 0) -> MemoryStore:
        """The store as the next process finds it, on the same disk.

        `lose` takes back the last so many commits, as a disk does that says "synced" too early
        and then loses power; the disk must have been told to remember.
        """
        if lose and not self.disk.remembers:
            raise AssertionError("a disk that does not remember cannot lose single commits")
        landed = [] if self._landed is None else [self._landed]
        after = MemoryStore(self.disk)
        if lose:
            for batch in (self._batches + landed)[:-lose]:
                after._store(batch)
            return after
        after._rows = self._rows
        after._batches = self._batches
        for batch in landed:
            after._store(batch)
        return after

    def commit(self, batch: Batch) -> None:
        if self._failed:
            raise LatticeError("store_failed", "The store failed. Open it anew.")
        if self.disk.error == "no_space":
            raise LatticeError("no_space", "No space is left. Free some, and writes go on by themselves.")
        if self.disk.error is not None:
            self._failed = True
            self._landed = batch if self.disk.lands else None
            raise LatticeError(self.disk.error, "A write or its sync failed. Open the store anew.")
        fresh: set[tuple[bytes, int, int]] = set()
        for row in batch.entries:
            if row[:3] in fresh or self.entry(*row[:3]) is not None:
                raise LatticeError("internal", f"A commit holds entry {row.seq} of a log a second time.")
            fresh.add(row[:3])
        self._store(batch)

    def _store(self, batch: Batch) -> None:
        rows = self._rows
        if self.disk.remembers:
            self._batches.append(batch)
        for log, first in batch.cuts.items():
            self._cut(log, first, batch.cut_keys.get(log, ()))
        rows.forks.update(batch.forks)
        for row in batch.entries:
            rows.entries.setdefault(LogKey(row.author, row.epoch), {})[row.seq] = row
            rows.by_id[row.id] = row
        for author, epoch, seq in batch.seals_dropped:
            rows.seals.get(LogKey(author, epoch), {}).pop(seq, None)
        for seal in batch.seals:
            rows.seals.setdefault(LogKey(seal.author, seal.epoch), {})[seal.seq] = seal
        rows.heads.update(batch.logs)
        for state in batch.keys.values():
            self._store_key(state)
        for op in batch.ops:
            log = LogKey(op.author, op.epoch)
            rows.ops.setdefault(op.key, {})[log, op.seq, op.op_index] = op
            if op.kind is OpKind.PUT:
                latest = (op.seq, Version(op.id, op.op_index))
                before = rows.puts.get((op.key, log))
                if before is None or (before[0], before[1].op_index) < (op.seq, op.op_index):
                    rows.puts[op.key, log] = latest
        for edge in batch.edges:
            rows.edges.setdefault(edge.key, {}).setdefault(edge.target, set()).add(edge)
        for number, packed in batch.buckets.items():
            if packed:
                rows.buckets[number] = packed
            else:
                rows.buckets.pop(number, None)
        rows.idempotent.update((row.key, row) for row in batch.idempotent)
        rows.meta.update(batch.meta)

    def _cut(self, log: LogKey, first: int, keys: Iterable[bytes]) -> None:
        """Take a suffix of a log out, with its seals, its ops and its edges."""
        rows = self._rows
        entries = rows.entries.get(log, {})
        for seq in [seq for seq in entries if seq >= first]:
            del rows.by_id[entries.pop(seq).id]
        seals = rows.seals.get(log, {})
        for seq in [seq for seq in seals if seq >= first]:
            del seals[seq]
        for key in keys:
            ops = rows.ops.get(key, {})
            for place in [place for place in ops if place[0] == log and place[1] >= first]:
                del ops[place]
            puts = [op for place, op in ops.items() if place[0] == log and op.kind is OpKind.PUT]
            if puts:
                latest = max(puts, key=lambda op: (op.seq, op.op_index))
                rows.puts[key, log] = (latest.seq, Version(latest.id, latest.op_index))
            else:
                rows.puts.pop((key, log), None)
            edges = rows.edges.get(key, {})
            for target, namers in list(edges.items()):
                left = {edge for edge in namers if edge[2:4] != log or edge.seq < first}
                if left:
                    edges[target] = left
                else:
                    del edges[target]

    def _store_key(self, state: KeyState) -> None:
        before = self._rows.keys.get(state.key)
        was_present = before is not None and before.present
        if state.present and not was_present:
            insort(self._rows.present, state.key)
        elif was_present and not state.present:
            del self._rows.present[bisect_left(self._rows.present, state.key)]
        self._rows.keys[state.key] = state

    def log_heads(self) -> dict[LogKey, LogHead]:
        return dict(self._rows.heads)

    def buckets(self) -> dict[int, bytes]:
        return dict(self._rows.buckets)

    def meta(self, name: str) -> bytes | None:
        return self._rows.meta.get(name)

    def key_state(self, key: bytes) -> KeyState | None:
        return self._rows.keys.get(key)

    def key_states(self, keys: Sequence[bytes]) -> list[KeyState | None]:
        return [self._rows.keys.get(key) for key in keys]

    def page_keys(self, prefix: bytes, after: bytes | None, limit: int) -> list[KeyState]:
        present = self._rows.present
        at = bisect_left(present, prefix)
        if after is not None:
            at = max(at, bisect_right(present, after))
        page: list[KeyState] = []
        while at < len(present) and len(page) < limit and present[at].startswith(prefix):
            page.append(self._rows.keys[present[at]])
            at += 1
        return page

    def latest_put(
        self, key: bytes, author: bytes, epoch: int, below: tuple[int, int] | None = None
    ) -> Version | None:
        log = LogKey(author, epoch)
        if below is None:
            latest = self._rows.puts.get((key, log))
            return None if latest is None else latest[1]
        ops = self._rows.ops.get(key, {})
        place = max((at for at in _places(ops, log, below) if ops[at].kind is OpKind.PUT), default=None)
        return None if place is None else Version(ops[place].id, ops[place].op_index)

    def is_named(self, key: bytes, target: Version) -> bool:
        return target in self._rows.edges.get(key, {})

    def edges(self, keys: Sequence[bytes]) -> Iterator[EdgeRow]:
        for key in keys:
            yield from sorted(edge for namers in self._rows.edges.get(key, {}).values() for edge in namers)

    def frozen_logs(self) -> list[LogKey]:
        return sorted(self._rows.forks)

    def fork_row(self, log: LogKey) -> ForkRow | None:
        return self._rows.forks.get(log)

    def history(self, key: bytes, limit: int) -> list[OpRow]:
        ops = self._rows.ops.get(key, {})
        return [ops[place] for place in sorted(ops)[: max(0, limit)]]

    def op_logs(self, key: bytes) -> list[LogKey]:
        return sorted({log for log, _, _ in self._rows.ops.get(key, {})})

    def newest_ops(self, key: bytes, log: LogKey, below: tuple[int, int], limit: int) -> list[OpRow]:
        ops = self._rows.ops.get(key, {})
        return [ops[place] for place in nlargest(limit, _places(ops, log, below))]

    def entry(self, author: bytes, epoch: int, seq: int) -> EntryRow | None:
        return self._rows.entries.get(LogKey(author, epoch), {}).get(seq)

    def entry_by_id(self, entry_id: bytes) -> EntryRow | None:
        return self._rows.by_id.get(entry_id)

    def entry_id_at(self, author: bytes, epoch: int, seq: int) -> bytes | None:
        row = self.entry(author, epoch, seq)
        return None if row is None else row.id

    def entries(self, author: bytes, epoch: int, first: int, last: int, bytes_max: int) -> list[EntryRow]:
        held = self._rows.entries.get(LogKey(author, epoch), {})
        taken: list[EntryRow] = []
        seq = max(first, 0)
        # The entries of a log are contiguous, so the first that is not held is the end.
        while seq <= last and bytes_max >= 0 and seq in held:
            taken.append(held[seq])
            bytes_max -= len(held[seq].header) + len(held[seq].ops)
            seq += 1
        return taken

    def seals(self, author: bytes, epoch: int, first: int, last: int) -> list[Seal]:
        held = self._rows.seals.get(LogKey(author, epoch), {})
        return [held[seq] for seq in sorted(held) if first <= seq <= last]

    def value(self, version: LiveVersion) -> bytes:
        row = self.entry(version.author, version.epoch, version.seq)
        value = None if row is None else value_of(row.ops, version)
        if value is None:
            raise corrupt(f"the value of version {version.version} is not what its op hash says")
        return value

    def idempotent(self, key: bytes, now_ms: int) -> IdempotentRow | None:
        row = self._rows.idempotent.get(key)
        return row if row is not None and row.expires_ms > now_ms else None

    def entry_count(self) -> int:
        return len(self._rows.by_id)


def _places(
    ops: Iterable[tuple[LogKey, int, int]], log: LogKey, below: tuple[int, int]
) -> Iterator[tuple[LogKey, int, int]]:
    """Of the places of a key's ops those in one log before (seq, op index) `below`."""
    return (place for place in ops if place[0] == log and place[1:] < below)
