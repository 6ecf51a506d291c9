"""Reading the SQLite store beside its commits: the old state or the new one, never a mixture."""

from __future__ import annotations

import gc
import threading
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lattice.core.forks import FORK_PROOF, HeaderPath, pack_fork_proof, path_of, proof_of
from lattice.core.limits import KEYS_READ_MAX
from lattice.core.log import Logs
from lattice.core.messages import Entries, Proof
from lattice.core.rows import Batch, IdempotentRow, KeyState, LogHead, LogKey
from lattice.storage.datadir import STORE_FILE, open_store
from lattice.storage.sqlite import SqliteStore
from tests.contracts.ledgers import NETWORK, Ledger, assert_same_rows, workload
from tests.core import core_kit
from tests.core.core_kit import Author, Replica, add, page, put

KEYS = [b"key/%03d" % number for number in range(200)]
LOG = LogKey(b"a" * 32, 1)


def numbered(number: int) -> Batch:
    """A batch that brings every row to one number."""
    return Batch(
        keys={key: KeyState(key, (), 1, number) for key in KEYS},
        logs={LOG: LogHead(number, b"\0" * 32)},
        meta={"number": number.to_bytes(4, "big")},
        buckets={0: number.to_bytes(32, "big") * 2},
    )


@pytest.mark.slow
def test_reads_during_commits_see_one_commit(tmp_path: Path) -> None:
    store = open_store(tmp_path, NETWORK)
    store.commit(numbered(0))
    last = 300

    def write() -> None:
        for number in range(1, last + 1):
            store.commit(numbered(number))

    writer = threading.Thread(target=write)
    writer.start()
    seen: set[int] = set()
    while writer.is_alive():
        totals = {state.total for state in store.page_keys(b"", None, 1000)}
        assert len(totals) == 1
        before = totals.pop()
        # Later reads see that commit or a later one.
        meta = int.from_bytes(store.meta("number") or b"", "big")
        state = store.key_state(KEYS[-1])
        assert state is not None
        assert before <= meta <= state.total <= store.log_heads()[LOG].seq
        seen.add(before)
    writer.join()
    assert store.page_keys(b"", None, 1)[0].total == last
    # The reader kept up with the writer, or it proved nothing.
    assert len(seen) > last // 10
    store.close()


class _Paused(SqliteStore):
    """Stops in `commit` after SQLite has committed, until told to go on."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.written, self.go_on = threading.Event(), threading.Event()

    def _take_over(self, work: object) -> None:
        super()._take_over(work)  # type: ignore[arg-type]

    def _write(self, work: object) -> None:
        super()._write(work)  # type: ignore[arg-type]
        self.written.set()
        assert self.go_on.wait(10)


@pytest.mark.parametrize("read_before", [True, False])
def test_nothing_of_a_commit_is_read_before_it_has_returned(tmp_path: Path, read_before: bool) -> None:
    store = open_store(tmp_path, NETWORK)
    store.commit(numbered(1))
    store.close()
    paused = _Paused(tmp_path / STORE_FILE)
    if read_before:
        assert paused.key_state(KEYS[0]) is not None
    writer = threading.Thread(target=paused.commit, args=(numbered(2),))
    writer.start()
    assert paused.written.wait(10)
    for total in (1, 2):
        state = paused.key_state(KEYS[0])
        assert state is not None
        assert state.total == total
        assert paused.page_keys(b"", None, 1)[0].total == total
        assert paused.log_heads()[LOG].seq == total
        assert paused.meta("number") == total.to_bytes(4, "big")
        assert paused.buckets()[0] == total.to_bytes(32, "big") * 2
        paused.go_on.set()
        writer.join()
    paused.close()


def test_expired_results_are_pruned_some_at_a_time(tmp_path: Path) -> None:
    store = open_store(tmp_path, NETWORK)
    rows = [IdempotentRow(b"%d" % number, b"", b"", 1000 + number) for number in range(150)]
    rows.append(IdempotentRow(b"kept", b"", b"", 10**9))
    store.commit(Batch(idempotent=rows))
    count = "SELECT count(*) FROM idempotent"

    def stored() -> int:
        # The rows themselves: what is expired is not answered, pruned or not.
        store.meta("")
        return int(store._reading.execute(count).fetchone()[0])

    store.commit(Batch(meta={"a": b""}))
    assert stored() == 151
    assert store.idempotent(b"kept", 100_000) is not None
    left = []
    for _ in range(5):
        store.commit(Batch(meta={"a": b""}))
        left.append(stored())
    assert left == [87, 23, 1, 1, 1]
    # Not looked for again within a minute.
    store.commit(Batch(idempotent=[IdempotentRow(b"late", b"", b"", 100_500)]))
    store.idempotent(b"late", 101_000)
    store.commit(Batch(meta={"a": b""}))
    assert stored() == 2
    store.idempotent(b"late", 161_000)
    store.commit(Batch(meta={"a": b""}))
    assert stored() == 1
    store.close()


@pytest.mark.slow
def test_the_log_is_settled_again_and_again_under_constant_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lattice.storage.sqlite._CHECKPOINT_PAGES", 100)
    store = open_store(tmp_path, NETWORK)
    wal = tmp_path / (STORE_FILE + "-wal")
    ledger = Ledger()
    sizes = []
    for number, batch in zip(range(400), workload(ledger, 10), strict=False):
        store.commit(batch)
        # A read after each commit holds a snapshot until the next.
        assert store.meta("commit") == number.to_bytes(8, "big")
        sizes.append(wal.stat().st_size)
    # Each commit writes eight pages and more: never begun anew, the log would have 13 MB.
    assert max(sizes) < 2 * 1024 * 1024
    before = store
    store.close()
    store = open_store(tmp_path, NETWORK)
    assert store.entry_count() == before.entry_count()
    assert_same_rows(store, store)
    store.close()


def test_a_row_that_cannot_be_bound_leaves_nothing_behind(tmp_path: Path) -> None:
    store = open_store(tmp_path, NETWORK)
    store.commit(numbered(1))
    batch = numbered(2)
    batch.idempotent.append(IdempotentRow(b"key", b"", b"", 2**63))
    with pytest.raises(OverflowError):
        store.commit(batch)
    assert store.page_keys(b"", None, 1)[0].total == 1
    assert store.log_heads()[LOG].seq == 1
    store.commit(numbered(3))
    assert store.page_keys(b"", None, 1)[0].total == 3
    store.close()


def full_proof(epoch: int) -> Proof:
    """One of the largest: two branches of 64 headers each, of an author with this epoch."""

    def branch(key: bytes) -> HeaderPath:
        author = Author()
        run = [author.write(put(key), epoch=epoch) for _ in range(64)]
        return path_of(core_kit.NETWORK, [entry.header_bytes for entry in run], author.seal(run[-1]))

    return Proof(FORK_PROOF, pack_fork_proof(proof_of(branch(b"one"), branch(b"other"))))


@contextmanager
def growth(bytes_max: int) -> Iterator[None]:
    """What is done within leaves at most so many bytes more in memory."""
    gc.collect()
    before, _ = tracemalloc.get_traced_memory()
    yield
    gc.collect()
    assert tracemalloc.get_traced_memory()[0] - before < bytes_max


@pytest.mark.slow
def test_frozen_logs_do_not_fill_the_memory(tmp_path: Path) -> None:
    """One author can freeze any number of its logs; a proof taken apart has 90 KiB, packed 16."""
    count, each_max = 20, 2048
    proofs = [full_proof(epoch) for epoch in range(count + 1)]
    store = open_store(tmp_path, core_kit.NETWORK)
    node = Replica(1, store)
    node.take(Entries((), ()), proofs=[proofs.pop()])
    payloads = [bytearray(proof.payload) for proof in proofs]
    del proofs
    tracemalloc.start()
    try:
        with growth(count * each_max):
            for payload in payloads:
                node.take(Entries((), ()), proofs=[Proof(FORK_PROOF, bytes(payload))])
            node.batches.clear()
        assert len(store.frozen_logs()) == count + 1
        store.close()
        with growth(count * each_max):
            store = open_store(tmp_path, core_kit.NETWORK)
            logs = Logs(core_kit.NETWORK, store)
        for log in store.frozen_logs():
            assert len(logs.fork_proof(log).payload) == len(payloads[0]) > 16 * 1024
    finally:
        tracemalloc.stop()
        store.close()


@pytest.mark.slow
def test_a_cut_of_many_keys_is_a_few_statements(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each call into SQLite waits for Python's lock beside a busy loop: three for each key took a minute
    for ten thousand keys, and all writes waited."""
    forger, other = Author(1), Author(2)
    keys = [b"k/%d" % number for number in range(1280)]
    parts = [keys[at : at + 256] for at in range(0, len(keys), 256)]
    honest = [other.write(*[put(key) for key in part]) for part in parts]
    below = forger.write(*[put(key) for key in keys[100:300]])
    above = [forger.write(put(key), add(key, 5)) for key in keys[:3]]
    above += [forger.write(*[put(key, b"2") for key in part]) for part in parts]
    rival = forger.write(put(b"rival"), after=below)
    store = open_store(tmp_path, core_kit.NETWORK)
    cut, kept = Replica(1, store), Replica(2)
    for node in (cut, kept):
        node.take(page(honest, [other.seal(entry) for entry in honest]))
        node.take(page([below], [forger.seal(below)]))
    cut.take(page(above, [forger.seal(entry) for entry in above]))
    said: list[str] = []
    store._writing.set_trace_callback(said.append)
    cut.take(page([rival], [forger.seal(rival)]))
    store._writing.set_trace_callback(None)
    assert len([text for text in said if text.startswith("DELETE FROM keys")]) == 9
    assert len(said) < 40
    assert cut.engine.roots.state_root == kept.engine.roots.state_root
    for at in range(0, len(keys), KEYS_READ_MAX):
        chunk = sorted(keys)[at : at + KEYS_READ_MAX]
        assert store.key_states(chunk) == kept.store.key_states(chunk)
        for at_once in (1, 2, 7, 10_000):
            monkeypatch.setattr("lattice.storage.reader._EDGES_READ_MAX", at_once)
            assert list(store.edges(chunk)) == list(kept.store.edges(chunk))
    for key in keys:
        assert store.history(key, 100) == kept.store.history(key, 100)
        assert store.latest_put(key, *forger.log()) == kept.store.latest_put(key, *forger.log())
    store.close()
