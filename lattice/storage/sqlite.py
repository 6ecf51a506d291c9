"""The SQLite store: one transaction per batch, durable when `commit` returns.

Separate from its reader because this half alone writes, and alone decides what a failed write
means.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ..core.errors import LatticeError
from ..core.rows import Batch, LogHead, LogKey
from . import packing, schema, sqlite_errors
from .id_index import IdChange
from .leaf_log import LeafChange
from .reader import ENTRY_COUNT, SqliteReader, connect, places

FAILED_MARKER: Final = "FSYNC_FAILED"

# Every call into SQLite gives up Python's lock, and under a busy loop each return costs up to a
# switch interval (5 ms): a thousand calls took 4.5 s where two took 30 ms. So many rows go in one
# statement, whose text is kept prepared for the full chunk.
_CHUNK_ROWS: Final = 500
_CACHED_STATEMENTS: Final = 24
_CACHE_KIB: Final = 32 * 1024
# A checkpoint comes when the write-ahead log is about this long: larger saves writing the same page
# twice, smaller keeps the one commit that waits for it short (4096 pages took 20 ms).
_CHECKPOINT_PAGES: Final = 4096
# SQLite does not tell the length of its log, so it is estimated from the rows written, by what the
# last checkpoint found. At first, as many as a row can take.
_ROWS_PER_COMMIT: Final = 8
_PAGES_PER_ROW_MAX: Final = 2.0
_PAGES_PER_ROW_MIN: Final = 0.05
_WAL_BYTES_KEPT: Final = 64 * 1024 * 1024
_PRUNE_MAX: Final = 64
_PRUNE_EVERY_MS: Final = 60_000
# Below this an I/O error is taken for what it is on a full disk: SQLite reports a shared-memory
# file that cannot grow as one.
_FULL_BELOW_BYTES: Final = 64 * 1024

_ENTRIES: Final = "INSERT OR ROLLBACK INTO entries VALUES "
_KEYS: Final = "INSERT OR REPLACE INTO keys VALUES "
_IDS: Final = "INSERT OR IGNORE INTO ids VALUES "
_SEALS: Final = "INSERT OR REPLACE INTO seals VALUES "
_LOGS: Final = "INSERT OR REPLACE INTO logs VALUES "
_GROUPS: Final = "INSERT OR REPLACE INTO leaf_groups VALUES "
_META: Final = "INSERT OR REPLACE INTO meta VALUES "
_FORKS: Final = "INSERT OR REPLACE INTO forks VALUES "
_CUT_ENTRIES: Final = "DELETE FROM entries WHERE slot >= ? AND slot <= ?"
_CUT_SEALS: Final = "DELETE FROM seals WHERE slot >= ? AND slot <= ?"
_CUT_OPS: Final = "DELETE FROM keys WHERE tail >= ? AND tail < ? AND key IN "
_CUT_EDGES: Final = (
    "DELETE FROM keys WHERE tail >= ? AND tail < ?"
    f" AND substr(tail, {packing.EDGE_SLOT_AT}, 8) BETWEEN ? AND ? AND key IN "
)
_IDEMPOTENT: Final = "INSERT OR REPLACE INTO idempotent VALUES "
_PRUNE: Final = (
    "DELETE FROM idempotent WHERE key IN"
    " (SELECT key FROM idempotent WHERE expires_ms <= ? ORDER BY expires_ms LIMIT ?)"
)


@dataclass(slots=True)
class _Work:
    """A batch as rows ready to bind, and what of it memory takes over once it is durable."""

    numbers: dict[LogKey, int]
    heads: dict[LogKey, LogHead]
    frozen: Iterable[LogKey] = ()
    entries: list[Sequence[Any]] = field(default_factory=list)
    keys: list[tuple[bytes, bytes, bytes]] = field(default_factory=list)
    seals: list[Sequence[Any]] = field(default_factory=list)
    seals_dropped: list[tuple[int]] = field(default_factory=list)
    logs: list[Sequence[Any]] = field(default_factory=list)
    meta: list[Sequence[Any]] = field(default_factory=list)
    idempotent: list[Sequence[Any]] = field(default_factory=list)
    cuts: list[tuple[int, int, Sequence[bytes]]] = field(default_factory=list)
    forks: list[Sequence[Any]] = field(default_factory=list)
    leaves: LeafChange | None = None
    ids: IdChange | None = None
    entry_count: int = 0
    rows: int = 0


class _Numbers(dict[tuple[bytes, int], int]):
    """The numbers of the logs that a batch names; one unknown to the store gets the next."""

    def __init__(self, known: Mapping[LogKey, int], first_free: int) -> None:
        super().__init__()
        self.fresh: dict[LogKey, int] = {}
        self._known = known
        self._first_free = first_free

    def __missing__(self, log: tuple[bytes, int]) -> int:
        key = LogKey(*log)
        number = self._known.get(key)
        if number is None:
            number = self.fresh[key] = self._first_free + len(self.fresh)
        self[log] = number
        return number


class SqliteStore(SqliteReader):
    """A `Store` in one file. Made by `datadir.open_store`, which checks it first.

    `commit` belongs to one thread at a time and may run beside reads in another.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._unpin()
        self._failure: str | None = None
        self._rows_written = 0
        self._pages_per_row = _PAGES_PER_ROW_MAX
        self._pruned_ms = 0
        try:
            self._writing = connect(path, "rw", cached_statements=_CACHED_STATEMENTS)
            self._writing.execute("PRAGMA synchronous = FULL")
            self._writing.execute("PRAGMA mmap_size = 0")
            self._writing.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
            self._writing.execute("PRAGMA temp_store = MEMORY")
            self._writing.execute("PRAGMA wal_autocheckpoint = 0")
            self._writing.execute(f"PRAGMA journal_size_limit = {_WAL_BYTES_KEPT}")
        except sqlite3.Error as error:
            self._reading.close()
            raise sqlite_errors.translated(path, error) from error

    @property
    def in_line(self) -> bool:
        return False

    def free_bytes(self) -> int:
        return shutil.disk_usage(self.path.parent).free

    def settle(self) -> None:
        """Move the whole write-ahead log into the store and empty it.

        What a killed process wrote and never synced is thereby durable before anyone reads it.
        Raises LatticeError `store_busy` while another program holds an older snapshot.
        """
        with self._lock:
            self._unpin()
        try:
            busy, _, _ = self._writing.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        except sqlite3.Error as error:
            raise self._failed(error) from error
        if busy:
            raise LatticeError(
                "store_busy", f"Another program still reads {self.path}. Wait for it, then start again."
            )
        self._rows_written = 0

    def commit(self, batch: Batch) -> None:
        if self._failure is not None:
            raise LatticeError("store_failed", self._failure)
        work = self._plan(batch)
        try:
            self._checkpoint_when_due()
            with self._lock:
                # Reads stay on the commit before this one until this one returns. Taken anew,
                # the snapshot of a settled log also lets SQLite begin that log from its start.
                self._unpin()
                self._pin()
            self._write(work)
        except sqlite3.Error as error:
            raise self._failed(error) from error
        finally:
            self._roll_back()
        with self._lock:
            self._take_over(work)
            self._unpin()
        self._rows_written += work.rows

    def close(self) -> None:
        # The reader first: the last connection to close settles the log. After a failure the
        # writer is closed already.
        super().close()
        self._writing.close()

    def detach(self) -> None:
        """Close without settling the log: the files stay as they are."""
        self._writing.close()
        super().close()

    def _plan(self, batch: Batch) -> _Work:
        """Make the rows. Nothing of the store changes yet."""
        numbers = _Numbers(self._numbers, len(self._logs))
        work = _Work(numbers.fresh, batch.logs)
        ops_bytes = 0
        ids = []
        for entry in batch.entries:
            slot = packing.slot_of(numbers[entry.author, entry.epoch], entry.seq)
            work.entries.append(packing.pack_entry(slot, entry))
            ids.append((entry.id, slot))
            ops_bytes += len(entry.ops)
        work.ids = self._ids.plan(ids)
        work.keys = packing.key_rows(batch, numbers)
        for seal in batch.seals:
            slot = packing.slot_of(numbers[seal.author, seal.epoch], seal.seq)
            work.seals.append((slot, packing.pack_seal(slot, seal)))
        for author, epoch, seq in batch.seals_dropped:
            work.seals_dropped.append((packing.slot_of(numbers[author, epoch], seq),))
        for row in batch.idempotent:
            work.idempotent.append((row.key, packing.pack_idempotent(row), row.expires_ms))
        work.leaves = self._leaves.plan(batch.buckets)
        removed = 0
        for key, first in batch.cuts.items():
            held = self._heads.get(key)
            if held is not None and held.seq >= first:
                removed += held.seq - first + 1
                work.cuts.append((self._numbers[key], first, sorted(batch.cut_keys.get(key, ()))))
        for key, fork in batch.forks.items():
            work.forks.append((numbers[key], packing.pack_fork(fork)))
        work.frozen = batch.forks.keys()
        work.entry_count = self._entry_count + len(batch.entries) - removed
        meta = dict(batch.meta)
        if batch.entries or removed:
            meta[ENTRY_COUNT] = work.entry_count.to_bytes(8, "big")
        work.meta = [(name, packing.checked(b"meta", name.encode(), value)) for name, value in meta.items()]
        for key, head in batch.logs.items():
            columns = (head.seq, head.id, packing.pack_u64(head.frozen))
            work.logs.append((numbers[key], key.author, packing.pack_u64(key.epoch), *columns))
        for key, number in numbers.fresh.items():
            if key not in batch.logs:
                work.logs.append((number, key.author, packing.pack_u64(key.epoch), None, None, None))
        work.rows = _ROWS_PER_COMMIT + len(work.entries) + len(batch.keys) + ops_bytes // schema.PAGE_BYTES
        return work

    def _write(self, work: _Work) -> None:
        write = self._writing
        write.execute("BEGIN IMMEDIATE")
        for number, first, keys in work.cuts:
            self._cut(number, first, keys)
        self._insert(_LOGS, work.logs)
        self._insert(_FORKS, work.forks)
        self._insert(_ENTRIES, work.entries)
        self._insert(_KEYS, work.keys)
        if work.seals_dropped:
            write.executemany("DELETE FROM seals WHERE slot = ?", work.seals_dropped)
        self._insert(_SEALS, work.seals)
        if work.ids is not None:
            write.execute("INSERT INTO fresh_ids VALUES (?, ?)", (work.ids.number, work.ids.packed))
            self._insert(_IDS, work.ids.rows)
            if work.ids.flushed:
                write.execute("DELETE FROM fresh_ids WHERE number <= ?", (work.ids.drop_to,))
        if work.leaves is not None:
            write.execute("INSERT INTO leaf_log VALUES (?, ?)", (work.leaves.number, work.leaves.leaves))
            self._insert(_GROUPS, work.leaves.groups)
            if work.leaves.drop_to is not None:
                write.execute("DELETE FROM leaf_log WHERE number <= ?", (work.leaves.drop_to,))
        self._insert(_IDEMPOTENT, work.idempotent)
        self._prune()
        self._insert(_META, work.meta)
        write.execute("COMMIT")

    def _cut(self, number: int, first: int, keys: Sequence[bytes]) -> None:
        """Delete a suffix of a log, its seals, and the ops and edges that these keys have of it: some
        hundred keys with one statement, as when rows go in."""
        write = self._writing
        slots = packing.slot_of(number, first), packing.slot_of(number, packing.SEQ_MAX)
        write.execute(_CUT_ENTRIES, slots)
        write.execute(_CUT_SEALS, slots)
        named_by = [packing.pack_u64(slot) for slot in slots]
        for start in range(0, len(keys), _CHUNK_ROWS):
            chunk = keys[start : start + _CHUNK_ROWS]
            for tag in (packing.PUT_TAG, packing.OP_TAG):
                write.execute(_CUT_OPS + places(chunk), (*packing.op_tails(tag, number, first), *chunk))
            write.execute(_CUT_EDGES + places(chunk), (*packing.ALL_EDGES, *named_by, *chunk))

    def _insert(self, sql: str, rows: Sequence[Sequence[Any]]) -> None:
        for start in range(0, len(rows), _CHUNK_ROWS):
            chunk = rows[start : start + _CHUNK_ROWS]
            one = "(" + ",".join("?" * len(chunk[0])) + ")"
            flat: list[Any] = []
            for row in chunk:
                flat += row
            self._writing.execute(sql + ",".join([one] * len(chunk)), flat)

    def _prune(self) -> None:
        """Drop idempotency rows that have expired, some at a time, at most once a minute."""
        now_ms = self._now_ms
        if now_ms - self._pruned_ms < _PRUNE_EVERY_MS:
            return
        if self._writing.execute(_PRUNE, (now_ms, _PRUNE_MAX)).rowcount < _PRUNE_MAX:
            self._pruned_ms = now_ms

    def _take_over(self, work: _Work) -> None:
        self._logs.extend(work.numbers)
        self._numbers.update(work.numbers)
        self._heads.update(work.heads)
        self._entry_count = work.entry_count
        for log in work.frozen:
            place = bisect_left(self._frozen, log)
            if self._frozen[place : place + 1] != [log]:
                self._frozen.insert(place, log)
        if work.leaves is not None:
            self._leaves.apply(work.leaves)
        if work.ids is not None:
            self._ids.apply(work.ids)

    def _checkpoint_when_due(self) -> None:
        if self._rows_written * self._pages_per_row < _CHECKPOINT_PAGES:
            return
        with self._lock:
            self._unpin()
        try:
            _, pages, _ = self._writing.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        except sqlite3.Error as error:
            # No room to grow the store: the log holds everything, and the commit may still fit.
            if not self._is_out_of_space(error):
                raise
            return
        found = pages / self._rows_written
        self._pages_per_row = min(max(found, _PAGES_PER_ROW_MIN), _PAGES_PER_ROW_MAX)
        self._rows_written = 0

    def _is_out_of_space(self, error: sqlite3.Error) -> bool:
        if sqlite_errors.is_full(error):
            return True
        return sqlite_errors.is_io(error) and self.free_bytes() < _FULL_BELOW_BYTES

    def _roll_back(self) -> None:
        """End a transaction that did not commit. One that cannot be ended ends the writer."""
        if self._failure is not None or not self._writing.in_transaction:
            return
        try:
            self._writing.execute("ROLLBACK")
        except sqlite3.Error as error:
            self._give_up(error)

    def _failed(self, error: sqlite3.Error) -> LatticeError:
        """What a failed write means: nothing for good when the disk is full, else the end."""
        if self._is_out_of_space(error):
            return LatticeError(
                "no_space", f"No space is left for {self.path}. Free some, and writes go on by themselves."
            )
        if not sqlite_errors.is_conflict(error):
            self._give_up(error)
        return sqlite_errors.translated(self.path, error)

    def _give_up(self, error: sqlite3.Error) -> None:
        """Write no more. After an error of the disk nobody knows what it holds (the kernel drops
        the pages that it could not write), so a marker makes the next start verify everything."""
        self._failure = sqlite_errors.translated(self.path, error).message
        if sqlite_errors.is_io(error):
            leave_marker(self.path.with_name(FAILED_MARKER), self._failure)
        # The reader stays open, so that closing the writer does not settle the log.
        self._writing.close()


def leave_marker(marker: Path, text: str) -> None:
    """Write the marker as well as a failing disk lets us."""
    try:
        with marker.open("w", encoding="utf-8") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        # The page cache may hold it still; and the next start re-verifies roots in any case.
        return
