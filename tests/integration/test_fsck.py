"""fsck over real files: a clean store, one with a node beside it, each planted defect by its name.

Separate from the suite of `verify_all`, which plants defects in rows: here bytes of the file change,
and the checksums that SQLite does not have are those of the store.
"""

from __future__ import annotations

import json
import sqlite3
import tracemalloc
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import orjson
import pytest

from lattice.core.entry import OpKind
from lattice.core.merkle import MerkleMap
from lattice.core.rows import KeyState, LogKey
from lattice.core.state import leaf_of
from lattice.fsck import CheckReport, check_store
from lattice.storage import packing
from lattice.storage.datadir import STORE_FILE, open_store
from tests.contracts.ledgers import LOGS, NETWORK, EntryPlan, Ledger, OpPlan

LOG = LogKey(LOGS[0][0].public_key, LOGS[0][1])
ENTRIES = 130


def commit(data_dir: Path, ledger: Ledger, plans: list[list[EntryPlan]]) -> None:
    store = open_store(data_dir, NETWORK)
    try:
        for plan in plans:
            store.commit(ledger.batch(plan))
    finally:
        store.close()


def filled(data_dir: Path) -> Ledger:
    """One log of 130 entries over 20 keys, another with a counter and a deletion."""
    ledger = Ledger()
    plans = [
        [EntryPlan(0, [OpPlan(OpKind.PUT, b"k%02d" % (seq % 20), b"value %d" % seq)])]
        for seq in range(ENTRIES)
    ]
    plans.append([EntryPlan(5, [OpPlan(OpKind.ADD, b"count", amount=5), OpPlan(OpKind.DELETE, b"k01")])])
    commit(data_dir, ledger, plans)
    return ledger


def check(data_dir: Path) -> CheckReport:
    return check_store(data_dir, NETWORK, lambda done, of: None)


def test_a_clean_store(tmp_path: Path) -> None:
    ledger = filled(tmp_path)
    seen: list[tuple[int, int]] = []
    report = check_store(tmp_path, NETWORK, lambda done, of: seen.append((done, of)))
    assert report.problems == []
    assert report.clean
    assert report.state_recomputed
    assert (report.logs, report.entries, report.ops, report.keys) == (2, ENTRIES + 1, ENTRIES + 2, 20)
    assert report.merkle_root == ledger.tree.root().hex()
    assert seen[-1] == (ENTRIES + 1, ENTRIES + 1)


def test_beside_an_open_store_the_check_is_of_one_moment(tmp_path: Path) -> None:
    ledger = filled(tmp_path)
    store = open_store(tmp_path, NETWORK)

    def write_on(done: int, of: int) -> None:
        store.commit(ledger.batch([EntryPlan(0, [OpPlan(OpKind.PUT, b"k00", b"meanwhile")])]))

    try:
        during = check_store(tmp_path, NETWORK, write_on)
        after = check(tmp_path)
    finally:
        store.close()
    assert during.problems == after.problems == []
    assert during.entries == ENTRIES + 1
    assert after.entries > during.entries


Plant = Callable[[sqlite3.Connection, Ledger], None]


def _slot(seq: int) -> int:
    return packing.slot_of(1, seq)


def _flip(table: str, column: str, where: str) -> Plant:
    def plant(database: sqlite3.Connection, ledger: Ledger) -> None:
        rowid, data = database.execute(f"SELECT rowid, {column} FROM {table} WHERE {where}").fetchone()
        changed = data[:-1] + bytes((data[-1] ^ 1,))
        database.execute(f"UPDATE {table} SET {column} = ? WHERE rowid = ?", (changed, rowid))

    return plant


def _flip_leaf(database: sqlite3.Connection, ledger: Ledger) -> None:
    """The last bit of the leaf of key k07, in the log of leaves."""
    place = sha256(b"k07").digest()
    for number, leaves in database.execute("SELECT number, leaves FROM leaf_log").fetchall():
        at = leaves.find(place)
        if at >= 0:
            changed = bytearray(leaves)
            changed[at + 63] ^= 1
            database.execute("UPDATE leaf_log SET leaves = ? WHERE number = ?", (bytes(changed), number))


def _delete_entry(database: sqlite3.Connection, ledger: Ledger) -> None:
    database.execute("DELETE FROM entries WHERE slot = ?", (_slot(70),))


def _wrong_head(database: sqlite3.Connection, ledger: Ledger) -> None:
    database.execute("UPDATE logs SET id = ? WHERE number = 1", (bytes(32),))


def _put_state(database: sqlite3.Connection, ledger: Ledger, state: KeyState) -> None:
    """A row of a state with its checksum, its leaf and the root over it: only the entries know better."""
    numbers = {LOG: 1, LogKey(LOGS[5][0].public_key, LOGS[5][1]): 2}
    data = packing.checked(state.key, packing.STATE_TAIL, packing.pack_state(state, numbers))
    database.execute("UPDATE keys SET data = ? WHERE key = ? AND tail = x''", (data, state.key))
    tree: MerkleMap = ledger.tree
    leaf = leaf_of(state)
    tree.set(sha256(state.key).digest(), leaf)
    (last,) = database.execute("SELECT max(number) FROM leaf_log").fetchone()
    pair = sha256(state.key).digest() + (leaf or bytes(32))
    database.execute("INSERT INTO leaf_log VALUES (?, ?)", (last + 1, pair))
    root = packing.checked(b"meta", b"state_root", tree.root())
    database.execute("UPDATE meta SET value = ? WHERE name = 'state_root'", (root,))


def _superseded_is_live(database: sqlite3.Connection, ledger: Ledger) -> None:
    """The version of k03 that its own log has replaced since is back, beside the newest."""
    live = ledger.states[b"k03"].live[0]
    older = database.execute("SELECT id, ops FROM entries WHERE slot = ?", (_slot(103),)).fetchone()
    old = live._replace(
        id=older[0], seq=103, op_hash=sha256(b"\0" + older[1][4:]).digest(), value_size=len(b"value 103")
    )
    _put_state(database, ledger, KeyState(b"k03", tuple(sorted((live, old)))))


def _live_is_lost(database: sqlite3.Connection, ledger: Ledger) -> None:
    _put_state(database, ledger, KeyState(b"k03"))


def _wrong_total(database: sqlite3.Connection, ledger: Ledger) -> None:
    _put_state(database, ledger, KeyState(b"count", (), 1, 6))


def _lost_edge(database: sqlite3.Connection, ledger: Ledger) -> None:
    database.execute("DELETE FROM keys WHERE key = ? AND substr(tail, 1, 1) = x'03'", (b"k01",))


def _lost_op(database: sqlite3.Connection, ledger: Ledger) -> None:
    database.execute("DELETE FROM keys WHERE key = ? AND substr(tail, 1, 1) = x'02'", (b"count",))


def _lost_seal(database: sqlite3.Connection, ledger: Ledger) -> None:
    database.execute("DELETE FROM seals WHERE slot = ?", (_slot(63),))


@pytest.mark.parametrize(
    ("plant", "text", "seq", "key"),
    [
        (_flip("entries", "ops", f"slot = {_slot(70)}"), "entry 70: entry ", 70, None),
        (_flip("seals", "seal", f"slot = {_slot(63)}"), "the seal of entry 63: a row of key", 63, None),
        (_flip("fresh_ids", "packed", "number = 3"), "does not match its checksum", None, None),
        (_flip_leaf, "key b'k07' does not have the leaf", None, "k07"),
        (_delete_entry, "entry 70: entry 70 of a log whose head is 129 is gone", 70, None),
        (_lost_seal, "the seal of entry 63 is missing", 63, None),
        (_wrong_head, f"its head is not the id of entry {ENTRIES - 1}", ENTRIES - 1, None),
        (_superseded_is_live, "is held as live, and is not after all entries", None, "k03"),
        (_live_is_lost, "is live after all entries, and is not held so", None, "k03"),
        (_wrong_total, "its counter is 6 after 1 additions, the entries make 5", None, "count"),
        (_lost_edge, "is missing", None, "k01"),
        (_lost_op, "its history is not that of the entries", None, "count"),
    ],
)
def test_each_planted_defect_is_named(
    plant: Plant, text: str, seq: int | None, key: str | None, tmp_path: Path
) -> None:
    ledger = filled(tmp_path)
    with sqlite3.connect(tmp_path / STORE_FILE) as database:
        plant(database, ledger)
    database.close()
    report = check(tmp_path)
    assert not report.clean
    named = [found for found in report.problems if text in found.text]
    assert [(found.seq, found.key) for found in named if (found.seq, found.key) == (seq, key)], (
        report.problems
    )
    if key is not None and text != "key b'k07' does not have the leaf":
        # Roots, leaves and checksums all agree with the defect: nothing else is accused.
        assert {found.key for found in report.problems} == {key}


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_entries(tmp_path: Path) -> None:
    """Entries of 400 bytes over 2,000 keys, of which one takes every tenth."""
    few, many = 20_000, 32_000  # the first fills every page and buffer that is used
    peaks = []
    for count in (few, many):
        directory = tmp_path / str(count)
        plans = [_plan_of_a_hot_key(number) for number in range(count)]
        commit(directory, Ledger(), [plans[at : at + 2000] for at in range(0, count, 2000)])
        tracemalloc.start()
        try:
            report = check(directory)
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
        assert report.problems == []
        assert report.entries == count
    assert peaks[1] - peaks[0] < 4 * 1024 * 1024, f"{peaks} for {(many - few) * 400} bytes more of entries"


def _plan_of_a_hot_key(number: int) -> EntryPlan:
    key = b"hot" if number % 10 == 0 else b"key/%d" % (number % 2000)
    return EntryPlan(0, [OpPlan(OpKind.PUT, key, bytes(300))])


def test_json_carries_every_finding(tmp_path: Path) -> None:
    ledger = filled(tmp_path)
    with sqlite3.connect(tmp_path / STORE_FILE) as database:
        _lost_seal(database, ledger)
    database.close()
    shown = json.loads(orjson.dumps(check(tmp_path)))
    assert shown["problem_count"] == 1
    assert shown["problems"][0]["seq"] == 63
    assert shown["problems"][0]["author"].startswith("12D3Koo")
