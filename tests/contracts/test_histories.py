"""Histories over both stores: the newest of many ops, what is live, one moment, and little memory."""

from __future__ import annotations

import threading
import tracemalloc
from collections.abc import Callable

import pytest

from lattice.core.entry import OpKind, Version, parse_header
from lattice.core.errors import LatticeError
from lattice.core.history import KeyHistory, Written, rank
from lattice.core.limits import HISTORY_OPS_MAX, MIB
from lattice.core.rows import Batch, EntryRow, KeyState, LogHead, LogKey, OpRow
from lattice.node.evidence import read_history, show_history
from lattice.storage.memory import MemoryStore
from lattice.storage.port import Store

from .ledgers import LOGS, EntryPlan, Ledger, OpPlan
from .stores import KINDS, Kind, opened

each_store = pytest.mark.parametrize("kind", KINDS)
KEY = b"k"
FIRST, SECOND = (LogKey(LOGS[number][0].public_key, LOGS[number][1]) for number in (0, 4))


def put(value: bytes = b"1", *, over_live: bool = True) -> OpPlan:
    return OpPlan(OpKind.PUT, KEY, value, over_live=over_live)


def add(amount: int = 1) -> OpPlan:
    return OpPlan(OpKind.ADD, KEY, amount=amount)


def versions(history: KeyHistory) -> list[Version]:
    return [item.written.version for item in history.items]


def newest(store: Store, number: int) -> list[Version]:
    """The answer by the simplest means: all ops, sorted, cut."""

    def place(op: OpRow) -> tuple[int, bytes, Version]:
        row = store.entry(op.author, op.epoch, op.seq)
        assert row is not None
        return parse_header(row.header).clock, op.author, Version(op.id, op.op_index)

    return [version for *_, version in sorted(map(place, store.history(KEY, 10**6)), reverse=True)[:number]]


@pytest.mark.slow  # thousands of ops
@each_store
def test_the_older_ops_are_left_out(kind: Kind) -> None:
    ledger, count = Ledger(), 12_000
    plans = [EntryPlan(0, [put(b"%d" % at)] * 250, clock=at) for at in range(count // 250)]
    with opened(kind) as made:
        made.store.commit(ledger.batch(plans))
        history = read_history(made.store, KEY)
        assert (len(history.items), history.complete) == (HISTORY_OPS_MAX, False)
        assert versions(history) == newest(made.store, HISTORY_OPS_MAX)
        assert history.items[0].winner
        oldest = history.items[-1]
        # What it replaces is known, though it is not listed itself.
        (row,) = made.store.newest_ops(KEY, FIRST, oldest.written.place, 1)
        assert oldest.replaces == (Version(row.id, row.op_index),)
        assert all(item.replaced_by for item in history.items[1:])


@each_store
@pytest.mark.parametrize("shown", [1, 2, 7, 30, 59, 60])
def test_the_newest_of_several_logs(kind: Kind, shown: int) -> None:
    ledger = Ledger()
    plans = [EntryPlan((0, 4, 5)[at % 3], [put(over_live=False), add()], clock=at // 2) for at in range(30)]
    with opened(kind) as made:
        made.store.commit(ledger.batch(plans))
        state = made.store.key_state(KEY)
        assert state is not None
        history = read_history(made.store, KEY, ops_max=shown)
        assert history.complete is (shown == 60)
        expected, listed = newest(made.store, shown), versions(history)
        assert [version for version in listed if version in expected] == expected
        assert {version for version in listed if version not in expected} <= {
            live.version for live in state.live
        }
        assert [item.written.version for item in history.items if item.winner] == [
            max(state.live, key=lambda live: (live.clock, live.author, live.id, live.op_index)).version
        ]


@each_store
def test_what_is_live_is_listed_however_old_it_is(kind: Kind) -> None:
    ledger = Ledger()
    plans = [
        EntryPlan(0, [put(b"before"), put(b"old")], clock=1),
        EntryPlan(4, [put(b"sibling", over_live=False)], clock=2),
        *(EntryPlan(log, [add()] * 50, clock=at) for at in range(3, 9) for log in (0, 4)),
    ]
    with opened(kind) as made:
        made.store.commit(ledger.batch(plans))
        history = read_history(made.store, KEY, ops_max=100)
        assert (len(history.items), history.complete) == (102, False)
        sibling, old = history.items[-2:]
        assert [(one.live, one.winner) for one in (sibling, old)] == [(True, True), (True, False)]
        assert (sibling.written.log, old.written.log) == (SECOND, FIRST)
        assert old.replaces == (Version(old.written.version.id, 0),)
        assert [one.written.version for one in history.items] == sorted(
            versions(history), key=lambda version: rank(_written(history, version)), reverse=True
        )


def _written(history: KeyHistory, version: Version) -> Written:
    return next(item.written for item in history.items if item.written.version == version)


@each_store
def test_an_op_that_replaces_very_many_ends_the_list_early(
    kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lattice.node.evidence.HISTORY_NAMES_MAX", 3)
    ledger = Ledger()
    plans = [EntryPlan(log, [put(over_live=False)], clock=1) for log in (0, 1, 2)]
    with opened(kind) as made:
        made.store.commit(ledger.batch(plans))
        made.store.commit(ledger.batch([EntryPlan(3, [put()], clock=2)]))
        made.store.commit(ledger.batch([EntryPlan(4, [put()], clock=3)]))
        history = read_history(made.store, KEY)
        assert [len(item.replaces) for item in history.items] == [1]
        assert (history.complete, history.items[0].winner) == (False, True)


@pytest.mark.slow  # 12 MB of entries
def test_entries_are_not_kept_and_each_is_read_once() -> None:
    """Entries of 120 KB: what is kept of an op must not hold the entry, nor an answer all values."""
    ledger, read = Ledger(), []
    large = OpPlan(OpKind.PUT, b"other", b"x" * 119_000, over_live=False)
    with opened("sqlite") as made:
        for at in range(100):
            made.store.commit(ledger.batch([EntryPlan(0, [large, *[put(b"y" * 50)] * 9], clock=at)]))
        entry = made.store.entry
        counting = _Wrapped(made.store, entry=lambda *place: read.append(place) or entry(*place))
        tracemalloc.start()
        try:
            history = read_history(counting, KEY)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert len(history.items) == 900
        assert len(read) == len(set(read)) == 100
        assert peak < 3 * MIB


@each_store
def test_a_history_is_that_of_one_moment(kind: Kind) -> None:
    """A write that comes while entries are read is neither listed nor said to have replaced anything."""
    ledger = Ledger()
    with opened(kind) as made:
        made.store.commit(ledger.batch([EntryPlan(0, [put(b"%d" % at)], clock=at) for at in range(5)]))
        later = iter([ledger.batch([EntryPlan(log, [put(b"late")], clock=9) for log in (0, 4)])])

        def entry(author: bytes, epoch: int, seq: int) -> EntryRow | None:
            for batch in later:
                made.store.commit(batch)
            return made.store.entry(author, epoch, seq)

        history = read_history(_Wrapped(made.store, entry=entry), KEY)
        assert [item.written.seq for item in history.items] == [4, 3, 2, 1, 0]
        assert [item.winner for item in history.items] == [True, False, False, False, False]
        assert not history.items[0].replaced_by
        assert len(read_history(made.store, KEY).items) == 7


class _Node:
    """Of a node what a history takes."""

    def __init__(self, store: object) -> None:
        self.store = store


class _Wrapped:
    """A store with some of its reads replaced."""

    def __init__(self, store: Store, **reads: object) -> None:
        self._store = store
        self._reads = reads

    def __getattr__(self, name: str) -> object:
        return self._reads.get(name, getattr(self._store, name))


@each_store
async def test_a_fork_that_cuts_the_log_meanwhile_is_no_damage(kind: Kind) -> None:
    ledger = Ledger()
    with opened(kind) as made:
        batch = ledger.batch([EntryPlan(0, [put(b"%d" % at)], clock=at) for at in range(5)])
        made.store.commit(batch)
        held = made.store.entry(*FIRST, 2)
        assert held is not None
        left = Version(held.id, 0)
        (live,) = ledger.states[KEY].live
        cut = Batch(
            cuts={FIRST: 3},
            cut_keys={FIRST: {KEY}},
            logs={FIRST: LogHead(2, held.id, 3)},
            keys={KEY: KeyState(KEY, (live._replace(id=left.id, seq=2, clock=2),))},
        )
        pending = iter([cut])

        def entry(author: bytes, epoch: int, seq: int) -> EntryRow | None:
            for batch in pending:
                made.store.commit(batch)
            return made.store.entry(author, epoch, seq)

        page = await show_history(_Node(_Wrapped(made.store, entry=entry)), KEY, None, 10)  # type: ignore[arg-type]
        assert [item.written.seq for item in page.items] == [2, 1, 0]
        assert [item.winner for item in page.items] == [True, False, False]
        assert page.values == (b"2", b"1", b"0")


@each_store
async def test_an_entry_that_is_lost_is_damage(kind: Kind) -> None:
    ledger = Ledger()
    with opened(kind) as made:
        made.store.commit(ledger.batch([EntryPlan(0, [put()], clock=1)]))
        broken = _Wrapped(made.store, entry=lambda *place: None)
        with pytest.raises(LatticeError) as raised:
            await show_history(_Node(broken), KEY, None, 10)  # type: ignore[arg-type]
        assert raised.value.code == "store_corrupt"


@pytest.mark.parametrize(("kind", "in_thread"), [("memory", False), ("sqlite", True)])
async def test_a_disk_is_read_in_a_thread_and_memory_in_line(kind: Kind, in_thread: bool) -> None:
    """A simulated node must not use threads; a real one must not stop for ten thousand reads."""
    ledger = Ledger()
    with opened(kind) as made:
        made.store.commit(ledger.batch([EntryPlan(0, [put()], clock=1)]))
        seen = set()

        def noting(read: Callable[..., object]) -> Callable[..., object]:
            def noted(*arguments: object) -> object:
                seen.add(threading.get_ident())
                return read(*arguments)

            return noted

        reads = ("entry", "key_state", "op_logs", "newest_ops", "log_heads")
        store = _Wrapped(made.store, **{name: noting(getattr(made.store, name)) for name in reads})
        page = await show_history(_Node(store), KEY, None, 10)  # type: ignore[arg-type]
        assert (len(page.items), page.is_last) == (1, True)
        assert (threading.get_ident() in seen) is not in_thread
        assert len(seen) == 1


def test_pages_are_bounded_by_the_bytes_that_they_show() -> None:
    ledger = Ledger()
    store = MemoryStore()
    sizes = [1000, 10, 1000, 10, 5000, 10]
    store.commit(ledger.batch([EntryPlan(0, [put(b"x" * size)], clock=at) for at, size in enumerate(sizes)]))
    history = read_history(store, KEY)
    pages, after = [], None
    while page := history.page(after, 3, 2000):
        pages.append([item.written.op.value_size for item in page])
        after = page[-1].written.version
    assert pages == [[10, 5000], [10, 1000, 10], [1000]]
    with pytest.raises(LatticeError, match="no version of this key"):
        history.page(Version(bytes(32), 0), 3, 2000)


def test_the_names_of_versions_count_as_well() -> None:
    ledger, store = Ledger(), MemoryStore()
    store.commit(ledger.batch([EntryPlan(log, [put(over_live=False)], clock=1) for log in range(11)]))
    store.commit(ledger.batch([EntryPlan(11, [put()], clock=2)]))
    history = read_history(store, KEY)
    assert len(history.items[0].replaces) == 11
    assert [len(history.page(None, 100, most)) for most in (100, 2000)] == [1, 12]
