"""Reading the SQLite store: every answer from one snapshot, every row checked.

Separate from committing because others read too: whoever verifies or exports a store beside a
running node opens this half alone, read-only.
"""

from __future__ import annotations

import sqlite3
import struct
from collections.abc import Iterator, Sequence
from heapq import merge, nlargest
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from threading import Lock
from typing import Any, Final, TypeAlias

from ..core.entry import ID_BYTES, OpKind, Seal, Version
from ..core.errors import LatticeError
from ..core.rows import (
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
from . import packing
from .id_index import HEAD_BYTES, IdIndex
from .leaf_log import LeafLog
from .packing import corrupt
from .sqlite_errors import translated

ENTRY_COUNT: Final = "store/entry_count"
_CACHE_KIB: Final = 16 * 1024
_BUSY_S: Final = 10.0

# A row as sqlite3 hands it out; its types are those of the columns in schema.py.
Row: TypeAlias = tuple[Any, ...]

_OP_TAGS: Final = (packing.PUT_TAG, packing.OP_TAG)

_STATES: Final = "SELECT key, data FROM keys WHERE tail = x'' AND key IN "
_STATE: Final = "SELECT data FROM keys WHERE key = ? AND tail = x''"
# Steps from key to key by seeking past its other rows, and stops as soon as there are enough. A key
# whose state is lost comes out with NULL; one that holds nothing begins with eleven zero bytes.
_PAGE: Final = (
    "WITH RECURSIVE page(key) AS ("
    " SELECT * FROM (SELECT key FROM keys WHERE key {above} ?1 AND key < ?2 ORDER BY key LIMIT 1)"
    " UNION ALL SELECT (SELECT k.key FROM keys k WHERE k.key > page.key AND k.key < ?2 ORDER BY k.key"
    " LIMIT 1) FROM page WHERE page.key IS NOT NULL)"
    " SELECT page.key, k.data FROM page LEFT JOIN keys k ON k.key = page.key AND k.tail = x''"
    " WHERE page.key IS NOT NULL AND substr(k.data, 1, 11) IS NOT zeroblob(11) LIMIT ?3"
)
_PAGE_AFTER: Final = _PAGE.format(above=">")
_PAGE_FROM: Final = _PAGE.format(above=">=")
_LAST_OP: Final = (
    "SELECT tail, data FROM keys WHERE key = ? AND tail >= ? AND tail < ? ORDER BY tail DESC LIMIT 1"
)
_OPS_DOWN: Final = (
    "SELECT tail, data FROM keys WHERE key = ? AND tail >= ? AND tail < ? ORDER BY tail DESC LIMIT ?"
)
_FIRST_OP: Final = "SELECT tail FROM keys WHERE key = ? AND tail >= ? AND tail < ? ORDER BY tail LIMIT 1"
_OPS: Final = "SELECT tail, data FROM keys WHERE key = ? AND tail >= ? AND tail < ? ORDER BY tail LIMIT ?"
_EDGE: Final = "SELECT tail, data FROM keys WHERE key = ? AND tail >= ? AND tail <= ? LIMIT 1"
_EDGES: Final = (
    "SELECT key, tail, data FROM keys WHERE tail >= ? AND tail < ? AND key IN {} ORDER BY key, tail LIMIT ?"
)
_EDGES_READ_MAX: Final = 10_000  # at once, save for a key that alone has more
_ENTRY_COLUMNS: Final = "SELECT slot, id, header, ops, origin FROM entries "
_ENTRY: Final = _ENTRY_COLUMNS + "WHERE slot = ?"
_SLOTS: Final = "SELECT slot FROM ids WHERE head = ?"
_ENTRIES: Final = _ENTRY_COLUMNS + "WHERE slot >= ? AND slot <= ? ORDER BY slot"
_ENTRY_ID: Final = "SELECT id FROM entries WHERE slot = ?"
_OPS_UP_TO: Final = "SELECT substr(ops, 1, ?) FROM entries WHERE slot = ?"
_SEALS: Final = "SELECT slot, seal FROM seals WHERE slot >= ? AND slot <= ? ORDER BY slot"
_FORK: Final = "SELECT row FROM forks WHERE number = ?"
_IDEMPOTENT: Final = "SELECT row, expires_ms FROM idempotent WHERE key = ? AND expires_ms > ?"
_META: Final = "SELECT value FROM meta WHERE name = ?"


def connect(path: Path, mode: str, *, cached_statements: int = 64) -> sqlite3.Connection:
    """A connection in autocommit, usable from any one thread at a time; mode `ro` or `rw`."""
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}",
        uri=True,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=cached_statements,
        timeout=_BUSY_S,
    )
    # All that is stored is bytes; a type flipped to text then decodes to nothing but itself.
    connection.text_factory = bytes
    return connection


class SqliteReader:
    """A `Reader` over one snapshot of the store.

    What it answers was written so: a damaged row is `store_corrupt`. A lost one is, too, where the
    heads or the state tree tell that it must be there; a history, a latest put or an id whose row
    is lost without a trace is missed by `verify_all` only.

    The snapshot is that of the opening, and holds until `close`; SqliteStore moves it on with each
    commit. The lock keeps the committing thread from moving it in the middle of a read; a read
    never waits for the disk of a commit.
    """

    def __init__(self, path: Path) -> None:
        """Raises LatticeError `store_corrupt` when the store cannot be read."""
        self.path = path
        self._lock = Lock()
        self._pinned = False
        self._now_ms = 0
        try:
            self._reading = connect(path, "ro")
        except sqlite3.Error as error:
            raise translated(path, error) from error
        try:
            # Memory-mapped reads would be faster, but a failing disk would then kill the process.
            self._reading.execute("PRAGMA mmap_size = 0")
            self._reading.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
            self._load()
        except sqlite3.Error as error:
            self._reading.close()
            raise translated(path, error) from error
        except (TypeError, ValueError, struct.error) as error:
            self._reading.close()
            raise corrupt(f"a row of {path} makes no sense ({error})") from error
        except LatticeError:
            self._reading.close()
            raise

    def _load(self) -> None:
        """Read what is kept in memory: logs, heads, which are frozen, buckets, the entry count."""
        self._pin()
        # Numbers start at 1; the first place stays empty.
        self._logs: list[LogKey] = [LogKey(b"", 0)]
        self._heads: dict[LogKey, LogHead] = {}
        rows = self._reading.execute(
            "SELECT number, author, epoch, seq, id, frozen FROM logs ORDER BY number"
        )
        for number, author, epoch, seq, entry_id, frozen in rows:
            if number != len(self._logs) or len(epoch) != 8:
                raise corrupt(f"log number {number} of {self.path} is out of place")
            key = LogKey(author, packing.unpack_u64(epoch))
            self._logs.append(key)
            if seq is not None:
                self._heads[key] = LogHead(seq, entry_id, packing.unpack_u64(frozen))
        self._numbers = {key: number for number, key in enumerate(self._logs) if number}
        if len(self._numbers) != len(self._logs) - 1:
            raise corrupt(f"a log stands in {self.path} twice")
        self._leaves = LeafLog(
            self._reading.execute("SELECT number, packed FROM leaf_groups ORDER BY number"),
            self._reading.execute("SELECT number, leaves FROM leaf_log ORDER BY number"),
        )
        self._frozen: list[LogKey] = []
        for number, row in self._reading.execute("SELECT number, row FROM forks"):
            packing.unpack_fork(self._logs[number], row)  # checked like all else before anything is served
            self._frozen.append(self._logs[number])
        self._frozen.sort()
        self._ids = IdIndex(self._reading.execute("SELECT number, packed FROM fresh_ids ORDER BY number"))
        self._entry_count = int.from_bytes(self.meta(ENTRY_COUNT) or b"", "big")

    def _pin(self) -> None:
        """Take the snapshot of now, unless one is held."""
        if not self._pinned:
            self._reading.execute("BEGIN")
            self._reading.execute("SELECT 1 FROM meta LIMIT 1").fetchone()
            self._pinned = True

    def _unpin(self) -> None:
        if self._pinned:
            self._pinned = False
            self._reading.execute("COMMIT")

    def _one(self, sql: str, parameters: Row) -> Row | None:
        """The only row of a query, or None. The lock is held by the caller."""
        try:
            if not self._pinned:
                self._pin()
            row: Row | None = self._reading.execute(sql, parameters).fetchone()
            return row
        except sqlite3.Error as error:
            raise translated(self.path, error) from error

    def _all(self, sql: str, parameters: Row) -> list[Row]:
        try:
            if not self._pinned:
                self._pin()
            return self._reading.execute(sql, parameters).fetchall()
        except sqlite3.Error as error:
            raise translated(self.path, error) from error

    def log_heads(self) -> dict[LogKey, LogHead]:
        with self._lock:
            return dict(self._heads)

    def buckets(self) -> dict[int, bytes]:
        with self._lock:
            return dict(self._leaves.buckets)

    def entry_count(self) -> int:
        return self._entry_count

    def meta(self, name: str) -> bytes | None:
        with self._lock:
            row = self._one(_META, (name,))
        return None if row is None else packing.unchecked(b"meta", name.encode(), row[0])

    def key_state(self, key: bytes) -> KeyState | None:
        with self._lock:
            row = self._one(_STATE, (key,))
            if row is None:
                if self._leaves.holds(key):
                    raise corrupt(f"the row of key {key!r} is gone, its leaf is not")
                return None
        return packing.unpack_state(key, row[0], self._logs)

    def key_states(self, keys: Sequence[bytes]) -> list[KeyState | None]:
        with self._lock:
            rows: dict[bytes, bytes] = dict(self._all(_STATES + places(keys), tuple(keys)))
            lost = [key for key in keys if key not in rows and self._leaves.holds(key)]
        if lost:
            raise corrupt(f"the row of key {lost[0]!r} is gone, its leaf is not")
        found = ((key, rows.get(key)) for key in keys)
        return [None if row is None else packing.unpack_state(key, row, self._logs) for key, row in found]

    def page_keys(self, prefix: bytes, after: bytes | None, limit: int) -> list[KeyState]:
        sql, start = (_PAGE_FROM, prefix) if after is None or after < prefix else (_PAGE_AFTER, after)
        with self._lock:
            rows = self._all(sql, (start, _past(prefix), limit))
        lost = [key for key, data in rows if data is None]
        if lost:
            raise corrupt(f"key {lost[0]!r} has ops and no state")
        return [packing.unpack_state(key, data, self._logs) for key, data in rows]

    def latest_put(
        self, key: bytes, author: bytes, epoch: int, below: tuple[int, int] | None = None
    ) -> Version | None:
        number = self._numbers.get(LogKey(author, epoch))
        if number is None:
            return None
        with self._lock:
            row = self._one(_LAST_OP, (key, *packing.op_tails(packing.PUT_TAG, number, below=below)))
        if row is None:
            return None
        op = packing.unpack_op(key, *row)
        return Version(op.id, op.op_index)

    def is_named(self, key: bytes, target: Version) -> bool:
        with self._lock:
            row = self._one(_EDGE, (key, *packing.edge_tails(target)))
        if row is None:
            return False
        packing.unchecked(key, *row)
        return True

    def edges(self, keys: Sequence[bytes]) -> Iterator[EdgeRow]:
        left = list(keys)
        while left:
            rows = self._edge_rows(left, _EDGES_READ_MAX)
            asked, left = left, []
            if len(rows) == _EDGES_READ_MAX:
                # The last key may have more: it is read again with those behind it, or whole if it is alone.
                last = rows[-1][0]
                place = asked.index(last)
                if rows[0][0] == last:
                    rows = self._edge_rows([last], -1)
                    place += 1
                else:
                    rows = [row for row in rows if row[0] != last]
                left = asked[place:]
            for _, of_key in groupby(rows, itemgetter(0)):
                yield from sorted(self._edge_row(*row) for row in of_key)

    def _edge_rows(self, keys: Sequence[bytes], limit: int) -> list[Row]:
        with self._lock:
            return self._all(_EDGES.format(places(keys)), (*packing.ALL_EDGES, *keys, limit))

    def _edge_row(self, key: bytes, tail: bytes, data: bytes) -> EdgeRow:
        target, slot, index = packing.unpack_edge(key, tail, data)
        log = self._logs[packing.log_number_of(slot)]
        return EdgeRow(key, target, *log, packing.seq_of(slot), index)

    def frozen_logs(self) -> list[LogKey]:
        with self._lock:
            return self._frozen.copy()

    def fork_row(self, log: LogKey) -> ForkRow | None:
        number = self._numbers.get(log)
        if number is None:
            return None
        with self._lock:
            row = self._one(_FORK, (number,))
        return None if row is None else packing.unpack_fork(log, row[0])

    def history(self, key: bytes, limit: int) -> list[OpRow]:
        with self._lock:
            return list(islice(self._history(key, limit), max(0, limit)))

    def _history(self, key: bytes, limit: int) -> Iterator[OpRow]:
        for log, number in self._op_logs(key):
            for op in merge(*(self._ops(key, tag, number, limit) for tag in _OP_TAGS)):
                yield _op_row(key, log, op)

    def op_logs(self, key: bytes) -> list[LogKey]:
        with self._lock:
            return [log for log, _ in self._op_logs(key)]

    def newest_ops(self, key: bytes, log: LogKey, below: tuple[int, int], limit: int) -> list[OpRow]:
        number = self._numbers.get(log)
        if number is None:
            return []
        with self._lock:
            found = []
            for tag in _OP_TAGS:
                rows = self._all(_OPS_DOWN, (key, *packing.op_tails(tag, number, below=below), limit))
                found += [packing.unpack_op(key, tail, data) for tail, data in rows]
        return [_op_row(key, log, op) for op in nlargest(limit, found)]

    def _op_logs(self, key: bytes) -> list[tuple[LogKey, int]]:
        numbers = {number for tag in _OP_TAGS for number in self._log_numbers(key, tag)}
        return sorted((self._logs[number], number) for number in numbers)

    def _log_numbers(self, key: bytes, tag: int) -> Iterator[int]:
        """The logs that have ops of a key, by seeking from one to the next."""
        number = 0
        while number < len(self._logs):
            start, _ = packing.op_tails(tag, number)
            row = self._one(_FIRST_OP, (key, start, bytes((tag + 1,))))
            if row is None:
                return
            number = packing.log_number_of(int.from_bytes(row[0][1:9], "big"))
            if number >= len(self._logs):
                raise corrupt(f"an op of key {key!r} is of an unknown log")
            yield number
            number += 1

    def _ops(self, key: bytes, tag: int, number: int, limit: int) -> list[packing.StoredOp]:
        rows = self._all(_OPS, (key, *packing.op_tails(tag, number), limit))
        return [packing.unpack_op(key, tail, data) for tail, data in rows]

    def entry(self, author: bytes, epoch: int, seq: int) -> EntryRow | None:
        log = LogKey(author, epoch)
        number = self._numbers.get(log)
        if number is None or not 0 <= seq <= packing.SEQ_MAX:
            return None
        with self._lock:
            row = self._one(_ENTRY, (packing.slot_of(number, seq),))
            if row is None:
                self._assert_not_held(log, seq)
                return None
        return self._entry_row(row)

    def entry_by_id(self, entry_id: bytes) -> EntryRow | None:
        if len(entry_id) != ID_BYTES:
            return None
        with self._lock:
            slots = {slot for (slot,) in self._all(_SLOTS, (entry_id[:HEAD_BYTES],))}
            for slot in sorted(slots.union(self._ids.fresh_slots(entry_id))):
                row = self._one(_ENTRY, (slot,))
                if row is None:
                    if self._is_cut(slot):
                        continue
                    raise corrupt(f"the entry in slot {slot} is gone, its id is not")
                entry = self._entry_row(row)
                if entry.id == entry_id:
                    return entry
        return None

    def _is_cut(self, slot: int) -> bool:
        """Whether a fork took this entry out: its id stays in the index, and leads nowhere."""
        head = self._heads.get(self._logs[packing.log_number_of(slot)])
        return head is not None and packing.seq_of(slot) >= head.frozen

    def entry_id_at(self, author: bytes, epoch: int, seq: int) -> bytes | None:
        row = self.entry(author, epoch, seq)
        return None if row is None else row.id

    def entries(self, author: bytes, epoch: int, first: int, last: int, bytes_max: int) -> list[EntryRow]:
        log = LogKey(author, epoch)
        number = self._numbers.get(log)
        first, last = max(first, 0), min(last, packing.SEQ_MAX)
        if number is None or first > last:
            return []
        taken: list[EntryRow] = []
        with self._lock:
            try:
                if not self._pinned:
                    self._pin()
                slots = packing.slot_of(number, first), packing.slot_of(number, last)
                cursor = self._reading.execute(_ENTRIES, slots)
                for row in cursor:
                    entry = self._entry_row(row)
                    taken.append(entry)
                    bytes_max -= len(entry.header) + len(entry.ops)
                    if bytes_max < 0:
                        break
                cursor.close()
            except sqlite3.Error as error:
                raise translated(self.path, error) from error
            after = taken[-1].seq + 1 if taken else first
            if after - first != len(taken):
                raise corrupt(f"entries are missing between {first} and {after} of a log")
            if after <= last and bytes_max >= 0:
                self._assert_not_held(log, after)
        return taken

    def _entry_row(self, row: Row) -> EntryRow:
        number = packing.log_number_of(row[0])
        if not 0 < number < len(self._logs):
            raise corrupt(f"an entry stands in log number {number}, which is unknown")
        return packing.unpack_entry(self._logs[number], *row)

    def _assert_not_held(self, log: LogKey, seq: int) -> None:
        head = self._heads.get(log)
        if head is not None and seq <= head.seq:
            raise corrupt(f"entry {seq} of a log whose head is {head.seq} is gone")

    def seals(self, author: bytes, epoch: int, first: int, last: int) -> list[Seal]:
        log = LogKey(author, epoch)
        number = self._numbers.get(log)
        first, last = max(first, 0), min(last, packing.SEQ_MAX)
        if number is None or first > last:
            return []
        with self._lock:
            rows = self._all(_SEALS, (packing.slot_of(number, first), packing.slot_of(number, last)))
        return [packing.unpack_seal(log, slot, seal) for slot, seal in rows]

    def value(self, version: LiveVersion) -> bytes:
        number = self._numbers.get(LogKey(version.author, version.epoch))
        row = None
        if number is not None:
            end = version.value_at + version.value_size
            with self._lock:
                row = self._one(_OPS_UP_TO, (end, packing.slot_of(number, version.seq)))
        value = None if row is None else packing.value_of(row[0], version)
        if value is None:
            raise corrupt(f"the value of version {version.version} is not what its op hash says")
        return value

    def idempotent(self, key: bytes, now_ms: int) -> IdempotentRow | None:
        # The store has no clock of its own: what it prunes is measured by the last time asked for.
        self._now_ms = max(self._now_ms, now_ms)
        with self._lock:
            row = self._one(_IDEMPOTENT, (key, now_ms))
        return None if row is None else packing.unpack_idempotent(key, *row)

    def close(self) -> None:
        """Give up the snapshot and the file. May be called again."""
        with self._lock:
            self._pinned = False
            self._reading.close()


def _op_row(key: bytes, log: LogKey, op: packing.StoredOp) -> OpRow:
    return OpRow(key, *log, packing.seq_of(op.slot), op.op_index, OpKind(op.kind), op.id)


def places(keys: Sequence[bytes]) -> str:
    """So many places for parameters, as a list for IN."""
    return f"({','.join('?' * len(keys))})"


def _past(prefix: bytes) -> bytes:
    """The least bytes greater than everything with this prefix (keys are UTF-8, never 0xFF)."""
    return prefix + b"\xff"
