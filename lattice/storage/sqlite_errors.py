"""What each error of SQLite means to a store.

Separate because it is one table at the seam: past it nobody sees an exception of sqlite3.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Final

from ..core.errors import LatticeError
from .packing import corrupt

# Primary result codes, the low byte of an extended one (sqlite.org/rescode.html).
_BUSY: Final = 5
_READONLY: Final = 8
_IOERR: Final = 10
_CORRUPT: Final = 11
_FULL: Final = 13
_CANTOPEN: Final = 14
_CONSTRAINT: Final = 19
_NOTADB: Final = 26


def primary_code(error: sqlite3.Error) -> int:
    """The primary result code; 0 where Python's own checks raised the error."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def is_damage(error: sqlite3.Error) -> bool:
    return primary_code(error) in {_CORRUPT, _NOTADB}


def is_io(error: sqlite3.Error) -> bool:
    return primary_code(error) == _IOERR


def is_full(error: sqlite3.Error) -> bool:
    return primary_code(error) == _FULL


def is_conflict(error: sqlite3.Error) -> bool:
    return primary_code(error) == _CONSTRAINT


def denied(path: Path, why: str) -> LatticeError:
    """The error for a store that the operating system keeps from us, with the way out."""
    return LatticeError(
        "store_denied",
        f"{path} cannot be written by this user, or its disk is mounted read-only ({why}). Nothing was "
        "changed. Run as its owner, make it and its directory writable, or choose another LATTICE_DATA_DIR.",
    )


def translated(path: Path, error: sqlite3.Error) -> LatticeError:
    """The error to raise for one that came out of a read, an opening or a failed commit."""
    name = getattr(error, "sqlite_errorname", type(error).__name__)
    if is_damage(error):
        return corrupt(f"{path} cannot be read ({error}, {name})")
    if is_full(error):
        return LatticeError("no_space", f"No space is left for {path}. Free some, and writes go on.")
    if primary_code(error) == _BUSY:
        return LatticeError("store_locked", f"Another program holds {path}. Close it and start again.")
    if primary_code(error) in {_READONLY, _CANTOPEN}:
        return denied(path, name)
    if is_conflict(error):
        return LatticeError("internal", f"A commit to {path} broke a rule of its tables: {error}")
    return LatticeError(
        "store_failed",
        f"The store {path} failed ({error}, {name}). Look at the disk and its cabling, then start the "
        "node again: it verifies the store before it serves.",
    )
