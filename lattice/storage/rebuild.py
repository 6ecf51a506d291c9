"""The state of a store computed anew from its entries, in a copy that then takes the store's place.

Separate because it runs once after an upgrade to a program with other state rules, and must leave the
old store whole until the new one is.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ..core.entry import parse_stored
from ..core.merkle import MerkleMap
from ..core.messages import RULES_VERSION
from ..core.rows import Batch, EntryRow, LogKey
from ..core.state import META_NOVELTIES, META_RULES, State
from .reader import connect
from .sqlite import SqliteStore

_STATE_TABLES: Final = ("keys", "leaf_groups", "leaf_log")
_PAGE_BYTES: Final = 4 << 20


def rebuild_state(path: Path, new: Path) -> None:
    """Write the store `path` to `new` with its state as this program's rules make it. `path` must
    have an empty log; it is only read."""
    source = connect(path, "rw")
    try:
        source.execute("VACUUM INTO ?", (str(new),))
    finally:
        source.close()
    _forget_state(new)
    store = SqliteStore(new)
    try:
        _apply_all(store)
        store.settle()
    finally:
        store.close()


def _forget_state(path: Path) -> None:
    connection: sqlite3.Connection = connect(path, "rw")
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("BEGIN IMMEDIATE")
        for table in _STATE_TABLES:
            connection.execute(f"DELETE FROM {table}")
        connection.execute("DELETE FROM meta WHERE name = ?", (META_NOVELTIES,))
        connection.execute("COMMIT")
    finally:
        connection.close()


def _apply_all(store: SqliteStore) -> None:
    """Any order of entries gives the same state, so each log is taken from its start to its head."""
    state = State(store, MerkleMap())
    for log in sorted(store.log_heads()):
        for page in _pages(store, log):
            batch = Batch()
            state.begin(batch)
            for row in page:
                state.apply(parse_stored(row.id, row.header, row.ops))
            batch.meta["state_root"] = state.settle()
            store.commit(batch)
    batch = Batch()
    state.begin(batch)
    batch.meta["state_root"] = state.settle()
    batch.meta[META_RULES] = RULES_VERSION.to_bytes(2, "big")
    store.commit(batch)


def _pages(store: SqliteStore, log: LogKey) -> Iterator[list[EntryRow]]:
    first, last = 0, store.log_heads()[log].seq
    while first <= last:
        page = store.entries(log.author, log.epoch, first, last, _PAGE_BYTES)
        if not page:
            return
        yield page
        first = page[-1].seq + 1
