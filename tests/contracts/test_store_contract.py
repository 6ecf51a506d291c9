"""One suite for every store: whatever it is made of, it answers like a list of rows."""

from __future__ import annotations

from hashlib import sha256

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lattice.core.entry import OpKind, Seal, Version
from lattice.core.errors import LatticeError
from lattice.core.limits import FROZEN_NEVER
from lattice.core.rows import (
    Batch,
    EdgeRow,
    EntryRow,
    ForkRow,
    IdempotentRow,
    KeyState,
    LiveVersion,
    LogHead,
    LogKey,
    OpRow,
)

from .ledgers import LOGS, EntryPlan, Ledger, Model, OpPlan, assert_same
from .stores import KINDS, Kind, opened

each_store = pytest.mark.parametrize("kind", KINDS)

keys = st.sampled_from([b"a", b"a/1", b"a/2", b"b", "é/ü".encode(), b"\x00", b"z" * 300])
puts = st.builds(
    lambda key, value, over: OpPlan(OpKind.PUT, key, value, over_live=over),
    keys,
    st.binary(max_size=400),
    st.booleans(),
)
deletes = st.builds(lambda key: OpPlan(OpKind.DELETE, key), keys)
adds = st.builds(
    lambda key, amount: OpPlan(OpKind.ADD, key, amount=amount), keys, st.integers(-(2**53) + 1, 2**53 - 1)
)
plans = st.builds(
    EntryPlan,
    st.integers(0, len(LOGS) - 1),
    st.lists(st.one_of(puts, deletes, adds), min_size=1, max_size=6),
    st.integers(0, 2**64 - 1),
)
commits = st.lists(st.lists(plans, min_size=1, max_size=5), min_size=1, max_size=6)


@each_store
def test_a_new_store_answers_that_it_holds_nothing(kind: Kind) -> None:
    with opened(kind) as made:
        assert_same(made.store, Model())
        assert made.store.idempotent(b"key", 0) is None
        assert made.store.free_bytes() > 0


@each_store
@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(commits, st.data())
def test_random_batches_read_back_like_a_list_of_rows(
    kind: Kind, batches: list[list[EntryPlan]], data: st.DataObject
) -> None:
    ledger, model = Ledger(), Model()
    with opened(kind) as made:
        for batch_plans in batches:
            batch = ledger.batch(batch_plans)
            made.store.commit(batch)
            model.take(batch)
            if data.draw(st.booleans(), label="reopen"):
                made.reopen()
        assert_same(made.store, model)
        assert_same(made.reopen(), model)


@each_store
def test_a_batch_of_nothing_changes_nothing(kind: Kind) -> None:
    with opened(kind) as made:
        made.store.commit(Batch())
        assert_same(made.store, Model())


@each_store
def test_integers_keep_every_bit(kind: Kind) -> None:
    author, epoch = b"\xff" * 32, 2**64 - 1
    live = LiveVersion(b"\x01" * 32, 65_535, b"\x02" * 32, 2**64 - 1, author, epoch, 2**35, 2**31, 2**17)
    states = {
        b"large": KeyState(b"large", (live,), 2**40, 10**200),
        b"small": KeyState(b"small", (), 3, -(10**200)),
        b"zero": KeyState(b"zero", (), 1, 0),
        b"gone": KeyState(b"gone"),
    }
    heads = {
        LogKey(author, epoch): LogHead(5, b"\x03" * 32, 2**64 - 2),
        LogKey(author, 0): LogHead(-1, bytes(32), 0),
        LogKey(bytes(32), 2**63): LogHead(0, b"\x04" * 32, FROZEN_NEVER),
    }
    with opened(kind) as made:
        made.store.commit(Batch(keys=states, logs=heads))
        assert {key: made.store.key_state(key) for key in states} == states
        assert made.store.log_heads() == heads
        assert [state.key for state in made.store.page_keys(b"", None, 9)] == [b"large", b"small", b"zero"]


@each_store
def test_a_key_may_have_hundreds_of_siblings(kind: Kind) -> None:
    live = tuple(
        LiveVersion(number.to_bytes(32, "big"), 0, bytes(32), number, bytes(32), number, 0, 10, 5)
        for number in range(600)
    )
    state = KeyState(b"key", live, 7, 70)
    with opened(kind) as made:
        made.store.commit(Batch(keys={b"key": state}))
        assert made.store.key_state(b"key") == state
        after = state._replace(live=live[1:2])
        made.store.commit(Batch(keys={b"key": after}))
        assert made.store.key_state(b"key") == after


def _entry(log: LogKey, seq: int, size: int = 10) -> EntryRow:
    entry_id = sha256(repr((log, seq)).encode()).digest()
    return EntryRow(*log, seq, entry_id, bytes(130), b"x" * size, "p2p", b"p" * 32, 5)


@each_store
def test_a_page_of_entries_is_cut_after_the_one_that_passes_the_limit(kind: Kind) -> None:
    log = LogKey(b"a" * 32, 1)
    rows = [_entry(log, seq, 870) for seq in range(5)]
    with opened(kind) as made:
        made.store.commit(Batch(entries=rows, logs={log: LogHead(4, rows[4].id)}))
        assert made.store.entries(*log, 0, 4, 1999) == rows[:2]
        assert made.store.entries(*log, 0, 4, 2000) == rows[:3]
        assert made.store.entries(*log, 3, 2**64 - 1, 0) == rows[3:4]
        assert made.store.entries(*log, 5, 9, 10**6) == []
        assert made.store.entries(b"b" * 32, 1, 0, 9, 10**6) == []
        assert made.store.entry(*log, 5) is None
        assert made.store.entry_by_id(b"short") is None
        assert made.store.entry_by_id(bytes(32)) is None


@each_store
def test_pages_of_keys_skip_what_is_gone_and_end_with_the_prefix(kind: Kind) -> None:
    names = [b"a", b"ab", b"ab/1", b"ab/2", b"ab/\xc3\xa9", b"ac", b"b"]
    states = {name: KeyState(name, (), 1, 1) for name in names}
    states[b"ab/1"] = KeyState(b"ab/1")
    log = LogKey(b"a" * 32, 1)
    ops = [OpRow(name, *log, 0, index, OpKind.ADD, bytes(32)) for index, name in enumerate(names * 3)]
    with opened(kind) as made:
        made.store.commit(Batch(keys=states, ops=ops))

        def page(prefix: bytes, after: bytes | None, limit: int = 10) -> list[bytes]:
            return [state.key for state in made.store.page_keys(prefix, after, limit)]

        assert page(b"", None) == [name for name in names if name != b"ab/1"]
        assert page(b"", None, 2) == [b"a", b"ab"]
        assert page(b"ab/", None) == [b"ab/2", b"ab/\xc3\xa9"]
        assert page(b"ab", b"ab", 1) == [b"ab/2"]
        assert page(b"ab", b"a") == [b"ab", b"ab/2", b"ab/\xc3\xa9"]
        assert page(b"ab", b"ab/1") == [b"ab/2", b"ab/\xc3\xa9"]
        assert page(b"ab", b"b") == []
        assert page(b"", None, 0) == []


@each_store
def test_the_latest_put_is_found_under_later_ops_of_other_kinds(kind: Kind) -> None:
    log, other = LogKey(b"b" * 32, 1), LogKey(b"a" * 32, 2)
    ops = [
        OpRow(b"key", *log, 1, 0, OpKind.PUT, b"\x01" * 32),
        OpRow(b"key", *log, 2, 3, OpKind.PUT, b"\x02" * 32),
        OpRow(b"key", *log, 2, 200, OpKind.PUT, b"\x02" * 32),
        OpRow(b"key", *log, 2, 201, OpKind.DELETE, b"\x02" * 32),
        OpRow(b"key", *log, 9, 0, OpKind.ADD, b"\x09" * 32),
        OpRow(b"key2", *log, 10, 0, OpKind.PUT, b"\x0a" * 32),
        OpRow(b"key", *other, 50, 0, OpKind.ADD, b"\x0b" * 32),
    ]
    with opened(kind) as made:
        # Ops of a later seq may be committed first in a batch: order in it means nothing.
        made.store.commit(Batch(ops=ops[::-1], keys={b"key": KeyState(b"key"), b"key2": KeyState(b"key2")}))
        assert made.store.latest_put(b"key", *log) == Version(b"\x02" * 32, 200)
        assert made.store.latest_put(b"key", *other) is None
        assert made.store.latest_put(b"key", b"c" * 32, 1) is None
        assert made.store.history(b"key", 100) == [ops[6], *ops[:5]]
        assert made.store.history(b"key", 3) == [ops[6], *ops[:2]]
        assert made.store.history(b"key", 0) == []


@each_store
def test_an_edge_counts_for_its_own_key_and_may_come_twice(kind: Kind) -> None:
    target = Version(b"\x05" * 32, 3)
    edge = EdgeRow(b"key", target, b"a" * 32, 1, 2, 3)
    with opened(kind) as made:
        made.store.commit(Batch(edges=[edge, edge], keys={b"key": KeyState(b"key")}))
        made.store.commit(Batch(edges=[edge], keys={b"key": KeyState(b"key")}))
        assert made.store.is_named(b"key", target)
        assert not made.store.is_named(b"ke", target)
        assert not made.store.is_named(b"key", Version(target.id, 2))
        assert not made.store.is_named(b"key", Version(target.id, 4))


@each_store
def test_seals_are_replaced_and_dropped(kind: Kind) -> None:
    log = LogKey(b"a" * 32, 2**64 - 1)
    made_seals = [Seal(*log, seq, bytes((seq,)) * 32, bytes((seq,)) * 64) for seq in range(4)]
    second = made_seals[2]._replace(signature=b"\xee" * 64)
    with opened(kind) as made:
        made.store.commit(Batch(seals=made_seals))
        assert made.store.seals(*log, 1, 2) == made_seals[1:3]
        made.store.commit(Batch(seals=[second], seals_dropped=[(*log, 1), (*log, 99), (b"b" * 32, 0, 0)]))
        assert made.store.seals(*log, 0, 2**64 - 1) == [made_seals[0], second, made_seals[3]]
        # A seal that one commit drops and keeps again is kept.
        made.store.commit(Batch(seals=[made_seals[3]], seals_dropped=[(*log, 3)]))
        assert made.store.seals(*log, 3, 3) == [made_seals[3]]


@each_store
def test_an_idempotent_result_expires_and_can_be_written_anew(kind: Kind) -> None:
    first = IdempotentRow(b"key", b"d" * 32, b"result", 1000)
    second = IdempotentRow(b"key", b"", b"", 5000)
    with opened(kind) as made:
        made.store.commit(Batch(idempotent=[first]))
        assert made.store.idempotent(b"key", 999) == first
        assert made.store.idempotent(b"key", 1000) is None
        made.store.commit(Batch(idempotent=[second]))
        assert made.store.idempotent(b"key", 1000) == second
        assert made.reopen().idempotent(b"key", 4999) == second


@each_store
def test_a_batch_that_fails_leaves_nothing_behind(kind: Kind) -> None:
    ledger, model = Ledger(), Model()
    good = ledger.batch([EntryPlan(0, [OpPlan(OpKind.PUT, b"kept", b"1")])])
    with opened(kind) as made:
        made.store.commit(good)
        model.take(good)
        bad = ledger.batch([EntryPlan(log, [OpPlan(OpKind.PUT, b"lost%d" % log, b"2")]) for log in (1, 0, 2)])
        bad.idempotent.append(IdempotentRow(b"lost", b"", b"", 10**15))
        bad.meta["other"] = b"lost"
        again = Batch(entries=[*bad.entries, good.entries[0]])
        for name in (
            "seals",
            "seals_dropped",
            "logs",
            "keys",
            "ops",
            "edges",
            "buckets",
            "idempotent",
            "meta",
        ):
            setattr(again, name, getattr(bad, name))
        with pytest.raises(LatticeError) as refused:
            made.store.commit(again)
        assert refused.value.code == "internal"
        assert_same(made.store, model)
        assert made.store.idempotent(b"lost", 0) is None
        for entry in bad.entries:
            assert made.store.entry_by_id(entry.id) is None
        # The same rows without the one at fault go in: the store is as good as before.
        made.store.commit(bad)
        model.take(bad)
        assert_same(made.store, model)
        assert_same(made.reopen(), model)


@each_store
def test_a_value_that_is_not_what_its_op_hash_says_is_never_answered(kind: Kind) -> None:
    ledger = Ledger()
    plans = [EntryPlan(0, [OpPlan(OpKind.PUT, b"k%d" % n, b"value %d" % n) for n in range(5)])]
    with opened(kind) as made:
        made.store.commit(ledger.batch(plans))
        live = ledger.states[b"k3"].live[0]
        assert made.store.value(live) == b"value 3"
        for wrong in (
            live._replace(value_at=live.value_at - 1),
            live._replace(value_size=live.value_size - 1),
            live._replace(op_index=2),
            live._replace(op_hash=bytes(32)),
            live._replace(seq=1),
            live._replace(epoch=99),
        ):
            with pytest.raises(LatticeError) as refused:
                made.store.value(wrong)
            assert refused.value.code == "store_corrupt"


@each_store
def test_forks_are_listed_by_log_and_read_one_by_one(kind: Kind) -> None:
    high, low = LogKey(b"b" * 32, 1), LogKey(b"a" * 32, 2**64 - 1)
    rows = [
        ForkRow(*high, 7, b"proof" * 100, 3, (b"k", "é".encode()), b"q" * 32, "gossip", 5),
        ForkRow(*low, 0, b"p", 0, (), b"", "local", 6),
    ]
    with opened(kind) as made:
        assert made.store.frozen_logs() == []
        assert made.store.fork_row(high) is None
        for row in rows:
            made.store.commit(Batch(forks={LogKey(row.author, row.epoch): row}))
        lower = rows[0]._replace(frozen=2, removed=8)
        made.store.commit(Batch(forks={high: lower}))
        for again in (False, True):
            store = made.reopen() if again else made.store
            assert store.frozen_logs() == [low, high]
            assert [store.fork_row(log) for log in (low, high)] == [rows[1], lower]
            assert store.fork_row(LogKey(b"a" * 32, 1)) is None
