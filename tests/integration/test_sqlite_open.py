"""Opening the SQLite store: one process, a known format, roots that verify, a settled log."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest

from lattice.core.errors import LatticeError
from lattice.core.rows import Batch, Reader
from lattice.storage import id_index, leaf_log, schema
from lattice.storage.datadir import LOCK_FILE, STORE_FILE, DirectoryLock, open_reader, open_store
from lattice.storage.memory import MemoryStore
from lattice.storage.sqlite import SqliteStore
from tests.contracts.ledgers import NETWORK, Ledger, assert_same_rows, workload
from tests.core.core_kit import Replica

CHILD = Path(__file__).with_name("store_child.py")


def filled(directory: Path, commits: int = 30) -> MemoryStore:
    """Fill a store and close it; returns what it holds."""
    store, held = open_store(directory, NETWORK), MemoryStore()
    for _, batch in zip(range(commits), workload(Ledger()), strict=False):
        store.commit(batch)
        held.commit(batch)
    store.close()
    return held


def digests(directory: Path) -> dict[str, bytes]:
    """What stands in the files of a directory, save the lock and what every reader makes."""
    return {
        path.name: sha256(path.read_bytes()).digest()
        for path in directory.iterdir()
        if path.name != LOCK_FILE and not path.name.endswith("-shm") and path.stat().st_size
    }


def assert_refused_untouched(directory: Path, code: str, match: str) -> None:
    before = digests(directory)
    with pytest.raises(LatticeError, match=match) as refused:
        open_store(directory, NETWORK)
    assert refused.value.code == code
    assert digests(directory) == before
    # The refusal let go of the directory.
    DirectoryLock(directory).release()


def test_a_second_process_is_told_who_has_the_directory(tmp_path: Path) -> None:
    arguments = [sys.executable, str(CHILD), str(tmp_path), "40", "100000"]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == b"open\n"
            with pytest.raises(LatticeError) as refused:
                open_store(tmp_path, NETWORK)
        finally:
            process.send_signal(signal.SIGKILL)
    assert refused.value.code == "store_locked"
    assert str(tmp_path) in refused.value.message
    assert f"process {process.pid}." in refused.value.message
    # Its end, however sudden, frees the directory.
    open_store(tmp_path, NETWORK).close()


def test_one_process_cannot_open_a_directory_twice(tmp_path: Path) -> None:
    store = open_store(tmp_path, NETWORK)
    with pytest.raises(LatticeError) as refused:
        open_store(tmp_path, NETWORK)
    assert refused.value.code == "store_locked"
    assert f"process {os.getpid()}." in refused.value.message
    store.close()
    store.close()
    open_store(tmp_path, NETWORK).close()


def test_a_start_beside_a_reader_of_before_may_be_tried_again(tmp_path: Path) -> None:
    """An export or a check that outlives the node: a supervisor must not take it for a wrong setting."""
    replica = Replica(3, open_store(tmp_path, NETWORK))
    replica.put(b"a")
    reader = open_reader(tmp_path)
    replica.put(b"b")
    replica.store.close()
    with pytest.raises(LatticeError, match="Wait for it, then start again") as refused:
        open_store(tmp_path, NETWORK)
    assert (refused.value.code, refused.value.kind.exit_code) == ("store_busy", 1)
    reader.close()
    open_store(tmp_path, NETWORK).close()


def test_the_log_of_an_unclean_end_is_settled_before_anything_is_served(tmp_path: Path) -> None:
    arguments = [sys.executable, str(CHILD), str(tmp_path), "40", "100000"]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        for _ in range(12):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        said = 11 + len(process.stdout.read().split())
    wal = tmp_path / (STORE_FILE + "-wal")
    assert wal.stat().st_size > 0
    store = open_store(tmp_path, NETWORK)
    assert wal.stat().st_size == 0
    assert int.from_bytes(store.meta("commit") or b"", "big") + 1 >= said
    store.close()


def test_making_a_store_leaves_only_whole_files(tmp_path: Path) -> None:
    # A making that was cut short is begun anew.
    (tmp_path / (STORE_FILE + ".new")).write_bytes(b"half a store")
    (tmp_path / (STORE_FILE + ".new-wal")).write_bytes(b"half a log")
    store = open_store(tmp_path / "deep" / "er", NETWORK)
    store.close()
    open_store(tmp_path, NETWORK).close()
    assert {path.name for path in tmp_path.iterdir()} == {STORE_FILE, LOCK_FILE, "deep"}


def test_a_store_of_a_newer_program_is_left_alone(tmp_path: Path) -> None:
    filled(tmp_path, 3)
    with sqlite3.connect(tmp_path / STORE_FILE) as connection:
        connection.execute(f"PRAGMA user_version = {schema.SCHEMA_VERSION + 1}")
    connection.close()
    assert_refused_untouched(tmp_path, "store_too_new", "Start the newer program again")
    with pytest.raises(LatticeError, match="newer program"):
        open_reader(tmp_path)


def test_an_older_store_is_led_up_step_by_step(tmp_path: Path) -> None:
    def second(connection: sqlite3.Connection) -> None:
        connection.execute("CREATE TABLE added (number INTEGER PRIMARY KEY)")

    def third(connection: sqlite3.Connection) -> None:
        connection.execute("INSERT INTO added VALUES (3)")

    connection = sqlite3.connect(tmp_path / "old", isolation_level=None)
    schema.create_tables(connection)
    schema.migrate(connection, 1, {}, 1)
    schema.migrate(connection, 1, {1: second, 2: third}, 3)
    assert schema.schema_version(connection) == 3
    assert connection.execute("SELECT number FROM added").fetchall() == [(3,)]
    connection.close()


def test_a_migration_that_fails_leaves_the_old_store(tmp_path: Path) -> None:
    def second(connection: sqlite3.Connection) -> None:
        connection.execute("CREATE TABLE added (number INTEGER PRIMARY KEY)")

    connection = sqlite3.connect(tmp_path / "old", isolation_level=None)
    schema.create_tables(connection)
    connection.execute("PRAGMA user_version = 1")
    with pytest.raises(LatticeError, match="no way to format 3") as refused:
        schema.migrate(connection, 1, {1: second}, 3)
    assert refused.value.code == "store_corrupt"
    assert schema.schema_version(connection) == 1
    assert connection.execute("SELECT name FROM sqlite_master WHERE name = 'added'").fetchall() == []
    connection.close()


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: b"this is a text and not a database, whatever its name says\n" * 100,
        lambda data: data[:50],
        lambda data: data[: len(data) // 2],
        lambda data: bytes(100) + data[100:],
        lambda data: data[:4096] + b"\xff" * (len(data) - 4096),
    ],
    ids=["empty", "a text", "cut in the header", "cut in half", "header of zeros", "body of ones"],
)
def test_a_file_that_is_no_store_is_refused_and_untouched(
    tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    filled(tmp_path)
    path = tmp_path / STORE_FILE
    path.write_bytes(damage(path.read_bytes()))
    assert_refused_untouched(tmp_path, "store_corrupt", "Nothing was changed. Stop the node, move its")


def test_a_log_without_its_store_is_refused_and_untouched(tmp_path: Path) -> None:
    store = open_store(tmp_path / "live", NETWORK)
    store.commit(next(workload(Ledger())))
    lost = tmp_path / "lost"
    lost.mkdir()
    shutil.copy(tmp_path / "live" / (STORE_FILE + "-wal"), lost)
    store.close()
    assert_refused_untouched(lost, "store_corrupt", "is gone, and its log")


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE leaf_log SET leaves = substr(leaves, 1, length(leaves) - 64) WHERE number = 9",
        "UPDATE leaf_log SET leaves = substr(leaves, 1, length(leaves) - 1) WHERE number = 9",
        "DELETE FROM leaf_log WHERE number = 9",
        "UPDATE logs SET seq = seq - 1 WHERE number = 3",
        "UPDATE logs SET id = randomblob(32) WHERE number = 3",
        "DELETE FROM logs WHERE number = 3",
        "UPDATE meta SET value = randomblob(36) WHERE name = 'state_root'",
        "UPDATE fresh_ids SET packed = x'00' WHERE number = 2",
        "DELETE FROM meta",
    ],
)
def test_heads_and_leaves_that_do_not_give_the_stored_roots_are_not_served(
    tmp_path: Path, change: str
) -> None:
    filled(tmp_path)
    with sqlite3.connect(tmp_path / STORE_FILE) as connection:
        assert connection.execute(change).rowcount > 0
    connection.close()
    assert_refused_untouched(tmp_path, "store_corrupt", "The store is damaged")


def test_a_reader_beside_a_running_node_keeps_to_one_snapshot(tmp_path: Path) -> None:
    held = filled(tmp_path)
    store = open_store(tmp_path, NETWORK)
    reader = open_reader(tmp_path)
    batches = workload(Ledger())
    for number, batch in enumerate(batches):
        if number >= 30:
            store.commit(batch)
        if number == 40:
            break
    assert_same_rows(reader, held)
    reader.close()
    reader = open_reader(tmp_path)
    assert_same_rows(reader, store)
    reader.close()
    store.close()
    with pytest.raises(LatticeError) as refused:
        open_reader(tmp_path / "nowhere")
    assert refused.value.code == "not_found"


def read_everything(store: SqliteStore, truth: MemoryStore) -> int:
    """Ask everything; an answer must be the truth or the error `store_corrupt`. Counts the errors.

    Where no root tells what must be there (history, ids), a row may be lost, never wrong.
    """
    errors = 0

    def ask(question: Callable[[Reader], object]) -> object:
        nonlocal errors
        try:
            return question(store)
        except LatticeError as error:
            if error.code != "store_corrupt":
                raise
            errors += 1
            return None

    def ask_truth(question: Callable[[Reader], object]) -> None:
        before = errors
        answer = ask(question)
        assert errors > before or answer == question(truth)

    ask_truth(lambda reader: reader.log_heads())
    ask_truth(lambda reader: reader.buckets())
    ask_truth(lambda reader: reader.entry_count())
    for name in ("state_root", "log_root", "commit"):
        ask_truth(lambda reader, name=name: reader.meta(name))
    for log, head in truth.log_heads().items():
        ask_truth(lambda reader, log=log: reader.entries(*log, 0, 2**62, 2**62))
        for seq in range(head.seq + 1):
            ask_truth(lambda reader, log=log, seq=seq: reader.entry(*log, seq))
            row = truth.entry(*log, seq)
            assert row is not None
            assert ask(lambda reader, row=row: reader.entry_by_id(row.id)) in (None, row)
    states = truth.page_keys(b"", None, 10**6)
    listed = ask(lambda reader: reader.page_keys(b"", None, 10**6)) or []
    assert isinstance(listed, list)
    assert [state for state in states if state in listed] == listed
    for state in states:
        before = errors
        ask_truth(lambda reader, key=state.key: reader.key_state(key))
        assert errors > before or not listed or state in listed
        history = ask(lambda reader, key=state.key: reader.history(key, 10**6)) or []
        assert isinstance(history, list)
        assert set(history) <= set(truth.history(state.key, 10**6))
        for live in state.live:
            ask_truth(lambda reader, live=live: reader.value(live))
    return errors


@pytest.mark.slow
@pytest.mark.parametrize("folded", [False, True], ids=["indexes in their logs", "indexes folded"])
def test_a_flipped_bit_is_found_or_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folded: bool
) -> None:
    if folded:
        monkeypatch.setattr(leaf_log, "_LOG_BYTES_MIN", 64)
        monkeypatch.setattr(leaf_log, "_GROUP_BYTES_MIN", 1)
        monkeypatch.setattr(id_index, "_FRESH_MAX", 0)
    truth = filled(tmp_path / "good", 20)
    good = (tmp_path / "good" / STORE_FILE).read_bytes()
    draw = random.Random(7)
    refused = found = harmless = 0
    for number in range(120):
        directory = tmp_path / str(number)
        directory.mkdir()
        at = draw.randrange(len(good))
        damaged = bytearray(good)
        damaged[at] ^= 1 << draw.randrange(8)
        (directory / STORE_FILE).write_bytes(damaged)
        try:
            store = open_store(directory, NETWORK)
        except LatticeError as error:
            refused += error.code in {"store_corrupt", "store_too_new"}
            continue
        errors = read_everything(store, truth)
        found += errors > 0
        harmless += errors == 0
        store.close()
        shutil.rmtree(directory)
    # Most bits are values; those of free space and of provenance nobody asked for are harmless.
    assert refused + found + harmless == 120
    assert refused >= 3
    assert found >= 40


@pytest.mark.slow
def test_a_flipped_bit_in_the_log_leaves_an_earlier_commit_whole(tmp_path: Path) -> None:
    live = tmp_path / "live"
    store = open_store(live, NETWORK)
    states: dict[bytes | None, MemoryStore] = {}
    batches: list[Batch] = []
    for number, batch in zip(range(10), workload(Ledger()), strict=False):
        store.commit(batch)
        batches.append(batch)
        held = MemoryStore()
        for earlier in batches[: number + 1]:
            held.commit(earlier)
        states[batch.meta["commit"]] = held
    states[None] = MemoryStore()
    files = {name: (live / name).read_bytes() for name in (STORE_FILE, STORE_FILE + "-wal")}
    draw = random.Random(8)
    lost = 0
    for number in range(40):
        directory = tmp_path / str(number)
        directory.mkdir()
        wal = bytearray(files[STORE_FILE + "-wal"])
        wal[draw.randrange(len(wal))] ^= 1 << draw.randrange(8)
        (directory / STORE_FILE).write_bytes(files[STORE_FILE])
        (directory / (STORE_FILE + "-wal")).write_bytes(wal)
        damaged = open_store(directory, NETWORK)
        assert_same_rows(damaged, states[damaged.meta("commit")])
        lost += damaged.meta("commit") != batches[-1].meta["commit"]
        damaged.close()
    assert lost > 0
    store.close()


def test_a_directory_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LatticeError, match=r"The data directory .*file cannot be used") as refused:
        open_store(tmp_path / "file", NETWORK)
    assert refused.value.code == "store_failed"
    (tmp_path / "data" / STORE_FILE).mkdir(parents=True)
    with pytest.raises(LatticeError, match=STORE_FILE) as refused:
        open_store(tmp_path / "data", NETWORK)
    assert refused.value.code == "store_failed"


def test_a_store_of_format_1_gains_the_table_of_forks(tmp_path: Path) -> None:
    """A store of before there were forks opens, and holds none."""
    open_store(tmp_path / "data", NETWORK).close()
    path = tmp_path / "data" / STORE_FILE
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("DROP TABLE forks")
    connection.execute("PRAGMA user_version = 1")
    connection.close()
    store = open_store(tmp_path / "data", NETWORK)
    assert store.frozen_logs() == []
    store.close()
    connection = sqlite3.connect(path)
    assert schema.schema_version(connection) == schema.SCHEMA_VERSION
    assert connection.execute("SELECT count(*) FROM forks").fetchone() == (0,)
    connection.close()
