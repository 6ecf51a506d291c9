"""The data directory: its lock, the making and the opening of the store in it.

Separate because everything that must hold before a store serves is decided here, in order: one
process, a known format, roots that verify, a settled log.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import sys
from pathlib import Path
from typing import Final, Self

from ..core.entry import entry_id
from ..core.errors import LatticeError
from ..core.heads import log_root
from ..core.merkle import MerkleMap
from ..core.messages import RULES_FIRST, RULES_VERSION
from ..core.state import META_RULES
from . import packing, schema
from .packing import corrupt
from .reader import SqliteReader, connect
from .rebuild import rebuild_state
from .sqlite import FAILED_MARKER, SqliteStore
from .sqlite_errors import denied, translated
from .verify import verify_all

STORE_FILE: Final = "ledger.sqlite"
LOCK_FILE: Final = "lock"
_NEW_SUFFIX: Final = ".new"
# The locked byte lies past the process id: on Windows a locked byte cannot be read by others.
_LOCKED_BYTE: Final = 1024
_DENIALS: Final = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR)


class DirectoryLock:
    """The exclusive hold of one process on a data directory; it ends with the process."""

    __slots__ = ("_fd", "path")

    def __init__(self, data_dir: Path) -> None:
        """Raises LatticeError `store_locked`, naming the directory and the process that holds it."""
        self.path = data_dir / LOCK_FILE
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            _lock_file(self._fd)
        except OSError as error:
            os.lseek(self._fd, 0, os.SEEK_SET)
            holder = os.read(self._fd, 20).decode("ascii", "replace").strip() or "unknown"
            os.close(self._fd)
            raise LatticeError(
                "store_locked",
                f"The data directory {data_dir} is in use by process {holder}. Stop that node, or give "
                "this one a directory of its own (LATTICE_DATA_DIR).",
            ) from error
        os.ftruncate(self._fd, 0)
        os.lseek(self._fd, 0, os.SEEK_SET)
        os.write(self._fd, f"{os.getpid()}\n".encode("ascii"))

    def release(self) -> None:
        """Give the directory free. May be called again. The file stays: removing it would let two
        processes lock two files of one name."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


if sys.platform == "win32":
    import msvcrt

    def _lock_file(fd: int) -> None:
        os.lseek(fd, _LOCKED_BYTE, os.SEEK_SET)
        msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _lock_file(fd: int) -> None:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


class LockedStore(SqliteStore):
    """A SqliteStore that holds its data directory and frees it when closed."""

    def __init__(self, path: Path, lock: DirectoryLock) -> None:
        super().__init__(path)
        self._directory = lock

    def close(self) -> None:
        super().close()
        self._directory.release()


def open_store(data_dir: Path, network_id: bytes) -> SqliteStore:
    """Open the store of a data directory for this process alone, making both if they are not there.

    Raises LatticeError: `store_locked` (another process has it), `store_busy` (one still reads it),
    `store_too_new`, `store_corrupt` or `store_denied` (then nothing was changed), `no_space`,
    `store_failed`. After a failed sync of an earlier run everything is verified first, which takes about
    a minute for a million entries.
    """
    path = data_dir / STORE_FILE
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        # The files may be writable where the directory is not; the store then lasts until its log must
        # be made anew.
        if not os.access(data_dir, os.R_OK | os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(data_dir))
        lock = DirectoryLock(data_dir)
    except OSError as error:
        raise _unusable(data_dir, error) from error
    try:
        store = _open_verified(path, lock, network_id)
    except sqlite3.Error as error:
        lock.release()
        raise translated(path, error) from error
    except OSError as error:
        lock.release()
        raise _unusable(data_dir, error) from error
    except BaseException:
        lock.release()
        raise
    try:
        store.settle()
    except BaseException:
        store.close()
        raise
    return store


def _open_verified(path: Path, lock: DirectoryLock, network_id: bytes) -> SqliteStore:
    """The store, made or migrated where that is needed, its roots recomputed."""
    marker = path.with_name(FAILED_MARKER)
    if not path.exists():
        _create(path)
    _adopt_format(path)
    store = LockedStore(path, lock)
    try:
        rules = _rules_of(store)
        schema.refuse_newer_rules(rules, RULES_VERSION)
    except BaseException:
        store.detach()
        raise
    if rules < RULES_VERSION:
        store = _with_state_of_today(path, lock, store)
    if marker.exists():
        _verify(store, network_id)
        store.detach()
        _rewrite(path)
        marker.unlink()
        sync_directory(path.parent)
        store = LockedStore(path, lock)
    _verify(store)
    return store


def _rules_of(reader: SqliteReader) -> int:
    """The state-rules number of a store; the first programs did not note it."""
    noted = reader.meta(META_RULES)
    return int.from_bytes(noted, "big") if noted is not None else RULES_FIRST


def _with_state_of_today(path: Path, lock: DirectoryLock, store: LockedStore) -> LockedStore:
    """The store after an upgrade that changed the state's rules: what an older program stored and did
    not apply may have a meaning now."""
    _verify(store)
    try:
        store.settle()
    finally:
        store.detach()
    new = path.with_name(path.name + _NEW_SUFFIX)
    _remove(new)
    rebuild_state(path, new)
    _put_in_place(new, path)
    return LockedStore(path, lock)


def _unusable(data_dir: Path, error: OSError) -> LatticeError:
    """The error for a directory that the operating system refuses."""
    why = error.strerror or str(error)
    if error.errno == errno.ENOSPC:
        return LatticeError("no_space", f"No space is left in {data_dir}. Free some, then start again.")
    if error.errno in _DENIALS:
        return denied(Path(error.filename or data_dir), why)
    return LatticeError(
        "store_failed",
        f"The data directory {data_dir} cannot be used ({why}). Look at the disk and its cabling, then "
        "start the node again: it verifies the store before it serves.",
    )


def open_reader(data_dir: Path) -> SqliteReader:
    """Read the store of a data directory, also beside a running node: one snapshot until `close`.

    Raises LatticeError `not_found`, `store_too_new` or `store_corrupt`.
    """
    path = data_dir / STORE_FILE
    if not path.exists():
        raise LatticeError("not_found", f"There is no store in {data_dir}.")
    version = _version(path)
    if version < schema.SCHEMA_VERSION:
        raise LatticeError("store_failed", f"The store {path} has an old format. Start the node once.")
    reader = SqliteReader(path)
    try:
        schema.refuse_newer_rules(_rules_of(reader), RULES_VERSION)
    except BaseException:
        reader.close()
        raise
    return reader


def refuse_foreign(reader: SqliteReader, network_id: bytes) -> None:
    """Refuse a store that was filled in another network: none of its entries would verify anywhere.

    One entry tells, since each id is a hash over the network's. Raises LatticeError `store_foreign`.
    """
    for log in reader.log_heads():
        for row in reader.entries(log.author, log.epoch, 0, packing.SEQ_MAX, 1):
            if entry_id(network_id, row.header) != row.id:
                raise LatticeError(
                    "store_foreign",
                    f"The store {reader.path} is of another network than {network_id.hex()[:16]}…. Nothing "
                    "was changed. Restore the network.json that belongs to it, join its network again, or "
                    "choose another LATTICE_DATA_DIR.",
                )
            return


def verify_roots(reader: SqliteReader) -> None:
    """Recompute both roots from what is stored, and compare them with the stored ones.

    Raises LatticeError `store_corrupt`.
    """
    state = MerkleMap(reader.buckets()).root()
    if state != (reader.meta("state_root") or MerkleMap().root()):
        raise corrupt(f"the state tree in {reader.path} does not have the state root that was stored")
    heads = log_root(reader.log_heads())
    if heads != (reader.meta("log_root") or log_root({})):
        raise corrupt(f"the heads in {reader.path} do not have the log root that was stored")


def _create(path: Path) -> None:
    """Make an empty store under another name, and give it its own once it is on disk whole."""
    if _wal_of(path).exists() and _wal_of(path).stat().st_size:
        raise corrupt(f"{path} is gone, and its log {_wal_of(path).name} is still there")
    new = path.with_name(path.name + _NEW_SUFFIX)
    _remove(new)
    new.touch(mode=0o600)
    connection = connect(new, "rw")
    try:
        schema.create_tables(connection)
    finally:
        connection.close()
    _put_in_place(new, path)


def _adopt_format(path: Path) -> None:
    """Refuse a store that this program does not know, migrate one that is older."""
    version = _version(path)
    if version < schema.SCHEMA_VERSION:
        connection = connect(path, "rw")
        try:
            schema.migrate(connection, version)
        finally:
            connection.close()


def _version(path: Path) -> int:
    """The format of a store, read without touching it. Raises what `schema` refuses."""
    try:
        connection = connect(path, "ro")
        try:
            version = schema.schema_version(connection)
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise translated(path, error) from error
    if version is None:
        raise corrupt(f"{path} is not a store of this program")
    schema.refuse_newer(version)
    return version


def _verify(store: SqliteStore, network_id: bytes | None = None) -> None:
    """Roots always; with a network id everything. A store that does not verify is let go of
    without a change to it."""
    try:
        verify_roots(store)
        if network_id is not None:
            report = verify_all(store, network_id)
            if report.problems:
                raise corrupt(f"after a failed write {report.problems[0]}")
    except BaseException:
        store.detach()
        raise


def _rewrite(path: Path) -> None:
    """Copy the store into a new file and put that in place.

    The kernel reports a failed sync once, and may keep pages in memory that never reached the
    disk: what was read and verified just now must be written again to be durable.
    """
    new = path.with_name(path.name + _NEW_SUFFIX)
    _remove(new)
    connection = connect(path, "rw")
    try:
        busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if busy:
            raise LatticeError("store_busy", f"Another program still reads {path}. Close it first.")
        connection.execute("VACUUM INTO ?", (str(new),))
    finally:
        connection.close()
    connection = connect(new, "rw")
    try:
        connection.execute("PRAGMA journal_mode = WAL")
    finally:
        connection.close()
    _put_in_place(new, path)


def _put_in_place(new: Path, path: Path) -> None:
    """Sync a finished file, then rename it: at every moment the name is that of a whole store."""
    fd = os.open(new, os.O_RDWR)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
    os.replace(new, path)
    sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Make a rename durable. Windows has no such call, and journals its directories."""
    if sys.platform == "win32":
        return
    fd = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _remove(path: Path) -> None:
    for name in (
        path,
        _wal_of(path),
        path.with_name(path.name + "-shm"),
        path.with_name(path.name + "-journal"),
    ):
        name.unlink(missing_ok=True)


def _wal_of(path: Path) -> Path:
    return path.with_name(path.name + "-wal")
