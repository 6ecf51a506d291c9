"""Durability of the SQLite store: killed processes, failing syncs, a full disk."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest

from lattice.core.entry import OpKind
from lattice.core.errors import LatticeError
from lattice.core.rows import Batch
from lattice.storage.datadir import STORE_FILE, open_store
from lattice.storage.memory import MemoryStore
from lattice.storage.sqlite import FAILED_MARKER, SqliteStore
from tests.contracts.ledgers import NETWORK, EntryPlan, Ledger, OpPlan, assert_same_rows, workload

CHILD = Path(__file__).with_name("store_child.py")
strace = shutil.which("strace")
needs_strace = pytest.mark.skipif(strace is None, reason="strace is not installed")
needs_root = pytest.mark.skipif(
    sys.platform == "win32" or os.geteuid() != 0 or shutil.which("mount") is None,
    reason="mounting a small tmpfs needs root",
)


@contextmanager
def child(
    directory: Path, *prefix: str, entries_max: int = 40, commits: int = 100_000
) -> Iterator[tuple[subprocess.Popen[bytes], IO[bytes]]]:
    command = [sys.executable, str(CHILD), str(directory), str(entries_max), str(commits)]
    process = subprocess.Popen([*prefix, *command], stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        yield process, process.stdout
    finally:
        process.kill()
        process.stdout.close()
        process.wait()


def held_after(commits: int, entries_max: int = 40) -> MemoryStore:
    """What a store holds after so many commits of the workload."""
    store = MemoryStore()
    for _, batch in zip(range(commits), workload(Ledger(), entries_max), strict=False):
        store.commit(batch)
    return store


def commits_in(store: SqliteStore) -> int:
    last = store.meta("commit")
    return 0 if last is None else int.from_bytes(last, "big") + 1


@pytest.mark.slow
def test_twenty_kills_lose_no_acknowledged_commit(tmp_path: Path) -> None:
    draw = random.Random(20)
    acknowledged = unacknowledged = 0
    for _ in range(20):
        with child(tmp_path) as (process, out):
            assert out.readline() == b"open\n"
            for _ in range(draw.randrange(1, 12)):
                acknowledged = int(out.readline()) + 1
            process.send_signal(signal.SIGKILL)
            # What it still managed to say before the kill counts as acknowledged, too.
            for line in out:
                acknowledged = int(line) + 1
        store = open_store(tmp_path, NETWORK)
        held = commits_in(store)
        assert acknowledged <= held <= acknowledged + 1
        unacknowledged += held > acknowledged
        assert_same_rows(store, held_after(held))
        store.close()
    assert acknowledged > 60


@needs_strace
@pytest.mark.slow
def test_a_kill_at_any_write_leaves_whole_commits(tmp_path: Path) -> None:
    at_work = 0
    for at in range(3, 400, 16):
        directory = tmp_path / str(at)
        inject = f"inject=pwrite64:signal=KILL:when={at}"
        with child(
            directory, str(strace), "-f", "-qq", "-o", "/dev/null", "-e", "trace=pwrite64", "-e", inject
        ) as (_, out):
            said = out.read().split()
        acknowledged = len(said) - 1 if said else 0
        at_work += acknowledged > 0
        store = open_store(directory, NETWORK)
        held = commits_in(store)
        assert acknowledged <= held <= acknowledged + 1
        assert_same_rows(store, held_after(held))
        store.close()
    assert at_work >= 5


@needs_strace
@pytest.mark.slow
def test_every_commit_is_synced_before_it_returns(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    calls = "trace=write,pwrite64,fdatasync,fsync"
    tracing = (str(strace), "-f", "-y", "-qq", "-o", str(trace), "-e", calls)
    with child(tmp_path / "data", *tracing, commits=20) as (_, out):
        assert out.read().count(b"\n") == 21
    # Before each acknowledgement, the last thing done to the log is a sync that succeeded.
    last, commits = "", 0
    for line in trace.read_text().splitlines():
        if re.search(r"pwrite64\(\d+<[^>]*-wal>", line):
            last = "written"
        elif re.search(r"f(data)?sync\(\d+<[^>]*-wal>\)\s+= 0", line):
            last = "synced"
        elif match := re.search(r'write\(1<[^>]*>, "(\d+)\\n"', line):
            assert last == "synced", (
                f"commit {match[1]} was acknowledged when its log was {last or 'untouched'}"
            )
            last, commits = "", commits + 1
    assert commits == 20


@needs_strace
@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "entries_max", "when"),
    # The sync of a commit, early and late; the sync of the store itself in a checkpoint.
    [(STORE_FILE + "-wal", 40, 3), (STORE_FILE + "-wal", 40, 20), (STORE_FILE, 600, 1)],
)
def test_a_failed_sync_ends_writing_and_the_next_start_verifies_everything(
    tmp_path: Path, file: str, entries_max: int, when: int
) -> None:
    inject = f"inject=fdatasync,fsync:error=EIO:when={when}+"
    tracing = (
        str(strace),
        "-f",
        "-qq",
        "-o",
        "/dev/null",
        "-P",
        str(tmp_path / file),
        "-e",
        "trace=fdatasync,fsync",
        "-e",
        inject,
    )
    with child(tmp_path, *tracing, entries_max=entries_max) as (_, out):
        said = out.read().decode().split()
    assert said[0] == "open"
    *acknowledged, first, second, readable = said[1:]
    assert acknowledged
    assert (first, second) == ("store_failed", "store_failed")
    assert readable == acknowledged[-1]
    assert (tmp_path / FAILED_MARKER).exists()

    before = (tmp_path / STORE_FILE).stat().st_ino
    store = open_store(tmp_path, NETWORK)
    held = commits_in(store)
    assert len(acknowledged) <= held <= len(acknowledged) + 1
    assert_same_rows(store, held_after(held, entries_max))
    assert not (tmp_path / FAILED_MARKER).exists()
    # Written anew: pages that never reached the disk are not trusted to be there.
    assert (tmp_path / STORE_FILE).stat().st_ino != before
    store.close()


def test_after_a_failed_sync_a_store_that_does_not_verify_is_not_served(tmp_path: Path) -> None:
    ledger = Ledger()
    batch = ledger.batch([EntryPlan(0, [OpPlan(OpKind.PUT, b"key", b"value")])])
    batch.seals.clear()
    store = open_store(tmp_path, NETWORK)
    store.commit(batch)
    store.close()
    open_store(tmp_path, NETWORK).close()
    (tmp_path / FAILED_MARKER).touch()
    with pytest.raises(LatticeError, match=r"the seal of entry 0 is missing") as refused:
        open_store(tmp_path, NETWORK)
    assert refused.value.code == "store_corrupt"
    assert (tmp_path / FAILED_MARKER).exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    directory = tmp_path / "small"
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(directory)], check=True)
    yield directory
    subprocess.run(["umount", str(directory)], check=True)


@needs_root
def test_a_full_disk_refuses_commits_until_there_is_room(small_disk: Path) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(1024 * 1024))
    store = open_store(small_disk / "data", NETWORK)
    held = MemoryStore()
    refused, code = Batch(), None
    try:
        for batch in workload(Ledger()):
            try:
                store.commit(batch)
            except LatticeError as error:
                refused, code = batch, error.code
                break
            held.commit(batch)
        assert code == "no_space"
        assert_same_rows(store, held)
        with pytest.raises(LatticeError, match="No space"):
            store.commit(refused)
        assert_same_rows(store, held)
        ballast.unlink()
        store.commit(refused)
        held.commit(refused)
        assert_same_rows(store, held)
        assert not (small_disk / "data" / FAILED_MARKER).exists()
        store.close()
        store = open_store(small_disk / "data", NETWORK)
        assert_same_rows(store, held)
    finally:
        store.close()
