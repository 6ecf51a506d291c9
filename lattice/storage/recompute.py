"""What each key holds, recomputed from the ops of all entries, in bounded memory.

Separate from the verification that uses it because entries come log by log and the state is key by
key: in between the ops are sorted on disk, in a temporary database that SQLite removes by itself.
"""

from __future__ import annotations

import sqlite3
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Any, Final, Self

from ..core.entry import Entry, Op, OpKind, Version
from ..core.rows import KeyState, LiveVersion, LogKey, OpRow, Reader

_SORT_KIB: Final = 16 * 1024
_CHUNK_ROWS: Final = 2000
# kind, entry id, op hash, clock, amount, value at, value size; the names follow
_ROW: Final = struct.Struct(">B32s32sQqII")
_NAME: Final = struct.Struct(">32sH")
_EPOCH: Final = struct.Struct(">Q")
_TABLE: Final = (
    "CREATE TABLE ops (key BLOB, author BLOB, epoch BLOB, seq INTEGER, op_index INTEGER, row BLOB)"
)
_SORTED: Final = "SELECT * FROM ops ORDER BY key, author, epoch, seq, op_index"


@dataclass(slots=True)
class MadeKey:
    """A key as the entries make it: its state, its ops, and the versions that they name."""

    state: KeyState
    ops: list[OpRow]
    named: set[Version]

    def differences(self, reader: Reader) -> Iterator[str]:
        """In what a store differs. Raises LatticeError for a row that cannot be read."""
        made = self.state
        held = reader.key_state(made.key)
        if held is None:
            yield "its state is missing"
            held = KeyState(made.key)
        if held.live != made.live:
            yield from _differing(held.live, made.live)
        if (held.adds, held.total) != (made.adds, made.total):
            yield (
                f"its counter is {held.total} after {held.adds} additions, "
                f"the entries make {made.total} after {made.adds}"
            )
        if reader.history(made.key, len(self.ops) + 1) != self.ops:
            yield "its history is not that of the entries"
        puts = {Version(op.id, op.op_index) for op in self.ops if op.kind is OpKind.PUT}
        for target in sorted(self.named | puts):
            if reader.is_named(made.key, target) != (target in self.named):
                yield f"the edge to version {target} " + (
                    "is missing" if target in self.named else "is made up"
                )


def _differing(held: tuple[LiveVersion, ...], made: tuple[LiveVersion, ...]) -> Iterator[str]:
    """The versions of which one side knows nothing, or something else."""
    for live in sorted({*held} - {*made}):
        yield f"version {live.version} is held as live, and is not after all entries"
    for live in sorted({*made} - {*held}):
        yield f"version {live.version} is live after all entries, and is not held so"
    if set(held) == set(made):
        yield "its live versions are out of order"


class OpSorter:
    """Takes the entries of each log in order, gives the keys in byte order."""

    def __init__(self) -> None:
        self._database = sqlite3.connect("", isolation_level=None)
        self._database.execute(f"PRAGMA cache_size = -{_SORT_KIB}")
        self._database.execute("PRAGMA temp_store = FILE")
        self._database.execute("PRAGMA journal_mode = OFF")
        self._database.execute("PRAGMA synchronous = OFF")
        self._database.execute(_TABLE)
        self._waiting: list[tuple[Any, ...]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()

    def add(self, entry: Entry) -> int:
        """Take the applicable ops of one entry; how many these are."""
        header = entry.header
        epoch = _EPOCH.pack(header.epoch)
        count = 0
        for index, op in enumerate(entry.parsed_ops()):
            if op is not None:
                row = _packed(entry, op)
                self._waiting.append((op.key, header.author, epoch, header.seq, index, row))
                count += 1
        if len(self._waiting) >= _CHUNK_ROWS:
            self._flush()
        return count

    def each_key(self) -> Iterator[MadeKey]:
        """Every key that any op names, also those of which nothing is left."""
        self._flush()
        for key, rows in groupby(self._database.execute(_SORTED), key=itemgetter(0)):
            yield _made(key, rows)

    def has(self, key: bytes) -> bool:
        """Whether any op names this key. The first question makes an index."""
        self._database.execute("CREATE INDEX IF NOT EXISTS ops_by_key ON ops (key)")
        found = self._database.execute("SELECT 1 FROM ops WHERE key = ? LIMIT 1", (key,)).fetchone()
        return found is not None

    def _flush(self) -> None:
        self._database.execute("BEGIN")
        self._database.executemany("INSERT INTO ops VALUES (?, ?, ?, ?, ?, ?)", self._waiting)
        self._database.execute("COMMIT")
        self._waiting.clear()


def _packed(entry: Entry, op: Op) -> bytes:
    names = [*op.over, *(Version(entry.id, index) for index in op.over_own)]
    clock = entry.header.clock
    head = _ROW.pack(op.kind, entry.id, op.op_hash, clock, op.amount, op.value_at, op.value_size)
    return head + b"".join(_NAME.pack(name.id, name.op_index) for name in names)


def _made(key: bytes, rows: Iterator[tuple[Any, ...]]) -> MadeKey:
    """The rule of the state, over all ops of one key: a version is live unless an op names it; each
    op that replaces names the put before it in its own log as well."""
    puts: dict[Version, LiveVersion] = {}
    named: set[Version] = set()
    latest: dict[LogKey, Version] = {}
    ops: list[OpRow] = []
    adds = total = 0
    for _, author, packed_epoch, seq, index, row in rows:
        kind, entry_id, op_hash, clock, amount, value_at, value_size = _ROW.unpack_from(row)
        log = LogKey(author, _EPOCH.unpack(packed_epoch)[0])
        version = Version(entry_id, index)
        ops.append(OpRow(key, *log, seq, index, OpKind(kind), entry_id))
        if kind == OpKind.ADD:
            adds += 1
            total += amount
            continue
        named.update(Version(*name) for name in _NAME.iter_unpack(row[_ROW.size :]))
        if log in latest:
            named.add(latest[log])
        if kind == OpKind.PUT:
            latest[log] = version
            puts[version] = LiveVersion(entry_id, index, op_hash, clock, *log, seq, value_at, value_size)
    live = tuple(puts[version] for version in sorted(puts.keys() - named))
    return MadeKey(KeyState(key, live, adds, total), ops, named)
