"""Verifying a whole store: a good one passes, and each kind of damage is named."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from lattice.core.entry import OpKind, Seal
from lattice.core.limits import SEAL_INTERVAL
from lattice.core.rows import Batch, EntryRow, KeyState, LogHead, LogKey
from lattice.storage.memory import MemoryStore
from lattice.storage.verify import PROBLEMS_MAX, verify_all

from .ledgers import LOGS, NETWORK, EntryPlan, Ledger, OpPlan
from .stores import KINDS, Kind, opened

ENTRIES = 3 * SEAL_INTERVAL
LOG = LogKey(LOGS[0][0].public_key, LOGS[0][1])


def batches() -> list[Batch]:
    """One log of three sealed stretches, one large entry, another log, keys of every kind."""
    ledger = Ledger()
    made = [
        ledger.batch([EntryPlan(0, [OpPlan(OpKind.PUT, b"k%d" % (seq % 50), b"v%d" % seq)])])
        for seq in range(ENTRIES - 1)
    ]
    made.append(ledger.batch([EntryPlan(0, [OpPlan(OpKind.PUT, b"large", bytes(20_000))])]))
    made.append(ledger.batch([EntryPlan(0, [OpPlan(OpKind.PUT, b"k1", b"a", over_live=False)])]))
    ops = [OpPlan(OpKind.PUT, b"m%d" % n, b"x") for n in range(100)] + [
        OpPlan(OpKind.ADD, b"count", amount=5)
    ]
    made.append(ledger.batch([EntryPlan(5, ops), EntryPlan(6, [OpPlan(OpKind.DELETE, b"m1")])]))
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_a_good_store_verifies(kind: Kind) -> None:
    with opened(kind) as made:
        for batch in batches():
            made.store.commit(batch)
        report = verify_all(made.store, NETWORK)
    assert report.problems == []
    assert (report.logs, report.entries) == (3, ENTRIES + 3)
    assert report.seals == ENTRIES // SEAL_INTERVAL + 3
    assert report.keys == 50 + 1 + 99 + 1


def _tampered(batch: Batch, where: Callable[[Batch], None]) -> Batch:
    where(batch)
    return batch


def _entry(change: Callable[[EntryRow], EntryRow]) -> Callable[[list[Batch]], None]:
    def tamper(made: list[Batch]) -> None:
        made[70].entries[0] = change(made[70].entries[0])

    return tamper


def _drop_seal(made: list[Batch]) -> None:
    made[SEAL_INTERVAL - 1].seals.clear()


def _drop_newest_seal(made: list[Batch]) -> None:
    made[-2].seals.clear()


def _forge_seal(made: list[Batch]) -> None:
    seals = made[SEAL_INTERVAL - 1].seals
    seals[0] = Seal(*seals[0][:4], bytes(64))


def _wrong_head(made: list[Batch]) -> None:
    made[-2].logs[LOG] = LogHead(ENTRIES, b"\1" * 32)


def _long_head(made: list[Batch]) -> None:
    made[-2].logs[LOG] = LogHead(ENTRIES + 1, b"\1" * 32)


def _wrong_live(made: list[Batch]) -> None:
    state = made[-1].keys[b"m7"]
    made[-1].keys[b"m7"] = state._replace(live=(state.live[0]._replace(clock=99),))


def _other_value(made: list[Batch]) -> None:
    state = made[-1].keys[b"m7"]
    live = state.live[0]
    made[-1].keys[b"m7"] = state._replace(live=(live._replace(value_at=live.value_at - 1),))


def _lost_key(made: list[Batch]) -> None:
    made[-1].keys[b"m7"] = KeyState(b"m7")


def _wrong_total(made: list[Batch]) -> None:
    made[-1].keys[b"count"] = KeyState(b"count", (), 1, 6)


def _wrong_root(made: list[Batch]) -> None:
    made[-1].meta["state_root"] = bytes(32)


@pytest.mark.parametrize(
    ("tamper", "problem"),
    [
        (_entry(lambda row: row._replace(ops=row.ops[:-1] + b"?")), "entry 70 does not verify"),
        (_entry(lambda row: row._replace(header=row.header[:-1] + b"?")), "entry 70 does not verify"),
        (_entry(lambda row: row._replace(id=bytes(32))), "entry 70 does not verify"),
        (lambda made: made[70].entries.clear(), "entry 70 is missing"),
        (_drop_seal, "the seal of entry 63 is missing"),
        (_drop_newest_seal, f"the seal of entry {ENTRIES} is missing"),
        (_forge_seal, "the seal of entry 63 does not verify"),
        (_wrong_head, f"its head is not the id of entry {ENTRIES}"),
        (_long_head, f"entry {ENTRIES + 1} is missing"),
        (_wrong_live, "of key b'm7' is not in its entry"),
        (_other_value, "of key b'm7' is not in its entry"),
        (_lost_key, "leaves for"),
        (_wrong_total, "key b'count' does not have the leaf"),
        (_wrong_root, "the stored state root is not"),
    ],
)
def test_each_damage_is_named(tamper: Callable[[list[Batch]], None], problem: str) -> None:
    made = batches()
    tamper(made)
    store = MemoryStore()
    for batch in made:
        store.commit(batch)
    report = verify_all(store, NETWORK)
    assert any(problem in found for found in report.problems), report.problems


def test_entries_of_another_network_do_not_verify_and_problems_are_capped() -> None:
    store = MemoryStore()
    for batch in batches():
        store.commit(batch)
    report = verify_all(store, bytes(32))
    assert len(report.problems) == PROBLEMS_MAX
    assert report.entries == 0
