"""The tables of the SQLite store, their version, and the steps from one version to the next.

Separate because this is the format on disk: whoever reads the file with other tools finds it
described here, and a change of it must come with a migration.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping
from typing import Final

from ..core.errors import LatticeError

# "LTTC", in the header of the file: tells our store from any other SQLite database.
APPLICATION_ID: Final = 0x4C545443
SCHEMA_VERSION: Final = 2
# Half of SQLite's usual alternative: keys and ids come in random order, and every page that a
# commit touches is written whole.
PAGE_BYTES: Final = 4096

# The fork proof of a frozen log, by the log's number, with what freezing it took out.
_FORKS: Final = "CREATE TABLE forks (number INTEGER PRIMARY KEY, row BLOB NOT NULL)"

_TABLES: Final = (
    # Small named values: roots, clock, entry count.
    "CREATE TABLE meta (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID",
    # A log by its number. seq and id are NULL for a log that is named somewhere but has no head;
    # epoch and frozen are 8 bytes, big-endian.
    (
        "CREATE TABLE logs (number INTEGER PRIMARY KEY, author BLOB NOT NULL, epoch BLOB NOT NULL,"
        " seq INTEGER, id BLOB, frozen BLOB)"
    ),
    # slot = log number << 36 | seq: the entries of a log stand together, in order.
    (
        "CREATE TABLE entries (slot INTEGER PRIMARY KEY, id BLOB NOT NULL, header BLOB NOT NULL,"
        " ops BLOB NOT NULL, origin BLOB NOT NULL)"
    ),
    # Where the entries are by the first six bytes of their ids, and what is not in there yet: the
    # ids and slots of one commit to a row (see id_index.py).
    "CREATE TABLE ids (head BLOB NOT NULL, slot INTEGER NOT NULL, PRIMARY KEY (head, slot)) WITHOUT ROWID",
    "CREATE TABLE fresh_ids (number INTEGER PRIMARY KEY, packed BLOB NOT NULL)",
    "CREATE TABLE seals (slot INTEGER PRIMARY KEY, seal BLOB NOT NULL)",
    _FORKS,
    # All rows of a key side by side; the tail says what a row is (see packing.py).
    (
        "CREATE TABLE keys (key BLOB NOT NULL, tail BLOB NOT NULL, data BLOB NOT NULL,"
        " PRIMARY KEY (key, tail)) WITHOUT ROWID"
    ),
    # The buckets of the state tree: 64 to a group, and the leaves changed since (see leaf_log.py).
    "CREATE TABLE leaf_groups (number INTEGER PRIMARY KEY, packed BLOB NOT NULL)",
    "CREATE TABLE leaf_log (number INTEGER PRIMARY KEY, leaves BLOB NOT NULL)",
    (
        "CREATE TABLE idempotent (key BLOB PRIMARY KEY, row BLOB NOT NULL, expires_ms INTEGER NOT NULL)"
        " WITHOUT ROWID"
    ),
    "CREATE INDEX idempotent_by_expiry ON idempotent (expires_ms)",
)

Migration = Callable[[sqlite3.Connection], None]


def _add_forks(connection: sqlite3.Connection) -> None:
    connection.execute(_FORKS)


# The step that leads from the version that is the key to the next one.
MIGRATIONS: Final[Mapping[int, Migration]] = {1: _add_forks}


def create_tables(connection: sqlite3.Connection) -> None:
    """Make an empty store of the current version in an empty database, in WAL mode."""
    connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("BEGIN IMMEDIATE")
    for statement in _TABLES:
        connection.execute(statement)
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    connection.execute("COMMIT")


def schema_version(connection: sqlite3.Connection) -> int | None:
    """The version of the store in this database; None when it is no store of ours."""
    if connection.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
        return None
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    return version


def refuse_newer(version: int, known: int = SCHEMA_VERSION) -> None:
    """Raises LatticeError `store_too_new` when this program does not know the version."""
    if version > known:
        raise LatticeError(
            "store_too_new",
            f"The store has format {version} and this program knows formats up to {known}. Nothing was "
            "changed. Start the newer program again, or move the store file (not identity.key) aside: "
            "this program then makes a new one and its peers bring the ledger back.",
        )


def refuse_newer_rules(rules: int, known: int) -> None:
    """Raises LatticeError `store_too_new` when the state was computed by rules of a newer program."""
    if rules > known:
        raise LatticeError(
            "store_too_new",
            f"The state of the store was computed by rules {rules} and this program knows rules up to "
            f"{known}. Nothing was changed. Start the newer program again, or move the store file (not "
            "identity.key) aside: this program then makes a new one and its peers bring the ledger back.",
        )


def migrate(
    connection: sqlite3.Connection,
    version: int,
    migrations: Mapping[int, Migration] = MIGRATIONS,
    target: int = SCHEMA_VERSION,
) -> None:
    """Lead an older store up to `target`, in one transaction: all of it or nothing.

    Raises LatticeError `store_corrupt` for a version that no program ever wrote.
    """
    if version == target:
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        while version < target:
            step = migrations.get(version)
            if step is None:
                raise LatticeError(
                    "store_corrupt",
                    f"The store says that it has format {version}, from which there is no way to format "
                    f"{target}. Nothing was changed. Move the store file aside and start again.",
                )
            step(connection)
            version += 1
        connection.execute(f"PRAGMA user_version = {version}")
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
