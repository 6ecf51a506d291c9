"""The engine: groups and commits, conditions, idempotency, epochs, and nothing out before its commit."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lattice.core.draft import Condition, OpDraft
from lattice.core.engine import (
    META_CLOCK,
    META_LOG_ROOT,
    META_STATE_ROOT,
    Acknowledged,
    Alarm,
    Answer,
    Append,
    Applied,
    CloseRound,
    Engine,
    Frozen,
    Gossiped,
    Judged,
    OpenRound,
    Publish,
    PublishProof,
    Refused,
    Remember,
    Remembered,
    RoundAnswered,
    RoundStep,
    Served,
)
from lattice.core.entry import OpKind, Version, parse_entry
from lattice.core.errors import LatticeError, MalformedError
from lattice.core.limits import (
    CLOCK_AHEAD_MS_MAX,
    GOSSIP_BYTES,
    GROUP_BYTES_MAX,
    IDEMPOTENCY_LIFE_S,
    KEY_BYTES_MAX,
    KIB,
    OPS_MAX,
    VALUE_BYTES_MAX,
)
from lattice.core.messages import (
    Entries,
    Heads,
    HeadsFlag,
    Roots,
    Want,
    WantEntries,
    decode_messages,
    encode_messages,
)
from lattice.core.rows import LogHead, LogKey
from lattice.storage.memory import Disk, MemoryStore
from lattice.testing.reference import (
    compute_log_root,
    compute_state,
    compute_state_root,
    find_forgeries,
    read_ledger,
)
from tests.core.core_kit import NETWORK, NOW_MS, Author, Replica, forged, only, page, put


def draft(key: bytes, value: bytes = b"1") -> OpDraft:
    return OpDraft(OpKind.PUT, key, value)


def write(*drafts: OpDraft, **options: Any) -> Append:
    return Replica.append(*drafts, **options)


def results(outputs: list[Any]) -> dict[int, Any]:
    return {output.token: output.result for output in outputs if isinstance(output, Acknowledged)}


def refusals(outputs: list[Any]) -> list[str]:
    return [output.error.code for output in outputs if isinstance(output, Refused)]


def assert_sound(replica: Replica) -> None:
    ledger = read_ledger(replica.store)
    assert not list(find_forgeries(NETWORK, ledger))
    assert compute_state_root(compute_state(NETWORK, ledger)) == replica.engine.roots.state_root
    assert compute_log_root(ledger.heads.items()) == replica.engine.roots.log_root
    assert replica.engine.roots.entry_count == replica.store.entry_count() == ledger.size


@pytest.fixture
def node() -> Replica:
    return Replica(1)


# Groups and commits.


def test_waiting_writes_share_one_entry(node: Replica) -> None:
    writes = [write(draft(b"%d" % number, b"v%d" % number)) for number in range(5)]
    outputs = node.run(*writes)
    landed = [results(outputs)[event.token] for event in writes]
    assert len({(result.id, result.seq) for result in landed}) == 1
    assert [result.versions for result in landed] == [(Version(landed[0].id, n),) for n in range(5)]
    assert node.store.entry_count() == 1
    assert [node.value(b"%d" % number) for number in range(5)] == [[b"v%d" % n] for n in range(5)]
    assert {result.state_root for result in landed} == {node.engine.roots.state_root}
    assert {result.log_root for result in landed} == {node.engine.roots.log_root}
    assert_sound(node)


def test_a_batch_is_atomic_and_keeps_its_order(node: Replica) -> None:
    event = write(draft(b"a"), OpDraft(OpKind.ADD, b"n", amount=4), draft(b"b"), OpDraft(OpKind.DELETE, b"a"))
    result = results(node.run(write(draft(b"x")), event))[event.token]
    assert [version.op_index for version in result.versions] == [1, 2, 3, 4]
    assert node.value(b"a") == []
    state = node.store.key_state(b"n")
    assert state is not None
    assert state.total == 4


def test_a_write_to_the_same_key_closes_the_group(node: Replica) -> None:
    first, second, third = write(draft(b"k", b"1")), write(draft(b"o")), write(draft(b"k", b"2"))
    landed = results(node.run(first, second, third))
    assert landed[first.token].seq == landed[second.token].seq == 0
    assert landed[third.token].seq == 1
    assert node.value(b"k") == [b"2"]
    row = node.store.entry_by_id(landed[third.token].id)
    assert row is not None
    (op,) = parse_entry(NETWORK, row.header, row.ops).parsed_ops()
    assert op is not None
    assert op.over == landed[first.token].versions, "the later write names the earlier"
    assert_sound(node)


def test_one_seal_a_commit(node: Replica) -> None:
    outputs = node.run(*[write(draft(b"same", b"%d" % number)) for number in range(10)])
    publish = only(outputs, Publish)
    assert (len(publish.entries.frames), len(publish.entries.seals)) == (10, 1)
    assert publish.entries.seals[0].seq == 9
    assert [seal.seq for seal in node.batches[0].seals] == [9]
    node.put(b"more")
    log = LogKey(node.key.public_key, node.engine.epoch or 0)
    assert [seal.seq for seal in node.store.seals(*log, 0, 99)] == [10]
    assert_sound(node)


def test_mandatory_seals_within_a_commit(node: Replica) -> None:
    node.run(*[write(draft(b"same", b"%d" % number)) for number in range(70)])
    assert [seal.seq for seal in node.batches[0].seals] == [63, 69]
    node.run(write(draft(b"k", bytes(20 * KIB))), write(draft(b"k")), write(draft(b"k")))
    log = LogKey(node.key.public_key, node.engine.epoch or 0)
    assert [seal.seq for seal in node.store.seals(*log, 0, 99)] == [63, 70, 72]
    assert_sound(node)


def test_groups_are_closed_by_ops_and_by_bytes(node: Replica) -> None:
    many = [write(*[draft(b"%d/%d" % (n, i)) for i in range(100)]) for n in range(4)]
    landed = results(node.run(*many))
    assert [landed[event.token].seq for event in many] == [0, 0, 1, 1]
    large = [write(draft(b"large/%d" % n, bytes(GROUP_BYTES_MAX // 2))) for n in range(3)]
    landed = results(node.run(*large))
    assert [landed[event.token].seq for event in large] == [2, 3, 4]
    assert_sound(node)


def test_the_largest_write_goes_through(node: Replica) -> None:
    node.write(*[draft(b"%d" % number) for number in range(OPS_MAX)])
    node.write(draft(b"a", bytes(VALUE_BYTES_MAX)), draft(b"b", bytes(VALUE_BYTES_MAX - 300)))
    assert_sound(node)


@pytest.mark.parametrize(
    ("event", "code"),
    [
        (write(*[draft(b"%d" % number) for number in range(OPS_MAX + 1)]), "too_large"),
        (write(), "too_large"),
        (write(draft(b"a", bytes(VALUE_BYTES_MAX)), draft(b"b", bytes(VALUE_BYTES_MAX))), "too_large"),
        (write(draft(b"a", bytes(VALUE_BYTES_MAX + 1))), "too_large"),
        (write(draft(b"")), "bad_key"),
        (write(draft(b"k" * (KEY_BYTES_MAX + 1))), "bad_key"),
        (write(draft(b"\xff")), "bad_key"),
        (write(draft(b"a"), draft(b"\xed\xa0\x80")), "bad_key"),
        (write(OpDraft(OpKind.ADD, b"n", amount=2**53)), "bad_value"),
        (write(OpDraft(OpKind.ADD, b"n", amount=-(2**53))), "bad_value"),
        (write(OpDraft(OpKind.PUT, b"k", over=(Version(bytes(32), 0),) * 257)), "bad_request"),
    ],
)
def test_a_refused_write_stores_nothing(node: Replica, event: Append, code: str) -> None:
    outputs = node.run(write(draft(b"before")), event, write(draft(b"after")))
    assert refusals(outputs) == [code]
    assert len(results(outputs)) == 2
    assert node.store.entry_count() == 1
    assert node.engine.state_size == 2
    assert node.engine.statistics()["ops_skipped"] == 0


def test_a_refusal_alone_needs_no_commit(node: Replica) -> None:
    node.handle(write())
    assert node.engine.settle() is None
    assert refusals(node.engine.committed()) == ["too_large"]
    assert node.engine.epoch is None


def test_a_delete_carries_no_value(node: Replica) -> None:
    node.put(b"k")
    node.write(OpDraft(OpKind.DELETE, b"k", value=b"ignored"))
    assert node.value(b"k") == []
    assert node.engine.statistics()["ops_skipped"] == 0


def test_a_write_without_names_replaces_everything_live_here(node: Replica) -> None:
    one, two = Author(5), Author(6)
    for author in (one, two):
        entry = author.write(put(b"k", b"theirs"), clock=2**64 - 1)
        node.take(page([entry], [author.seal(entry)]))
    assert len(node.value(b"k")) == 2
    node.put(b"k", b"ours")
    assert node.value(b"k") == [b"ours"], "even over clocks that lie"
    node.write(OpDraft(OpKind.DELETE, b"k"))
    assert node.value(b"k") == []


def test_a_write_with_names_replaces_only_those(node: Replica) -> None:
    author = Author(5)
    entry = author.write(put(b"k", b"theirs"))
    node.take(page([entry], [author.seal(entry)]))
    node.write(OpDraft(OpKind.PUT, b"k", b"ours", over=()))
    assert sorted(node.value(b"k")) == [b"ours", b"theirs"]


# Conditions.


def condition(key: bytes = b"k", **what: Any) -> Condition:
    return Condition(key, **what)


def test_conditions(node: Replica) -> None:
    def attempt(**what: Any) -> list[str]:
        return refusals(node.run(write(draft(b"k"), conditions=[condition(**what)])))

    nothing = Version(bytes(32), 0)
    assert attempt(present=True) == attempt(match=(nothing,)) == ["precondition_failed"]
    assert attempt(absent=True) == []
    assert attempt(absent=True) == attempt(match=(nothing,)) == ["precondition_failed"]
    assert attempt(present=True) == []
    state = node.store.key_state(b"k")
    assert state is not None
    assert attempt(match=(nothing, None)) == ["precondition_failed"]
    assert attempt(match=(nothing, state.live[0].version)) == []
    assert attempt(match=(nothing, state.live[0].version)) == ["precondition_failed"]
    node.write(OpDraft(OpKind.DELETE, b"k"))
    assert attempt(present=True) == attempt(match=(None,)) == ["precondition_failed"]
    node.write(OpDraft(OpKind.ADD, b"k", amount=0))
    assert attempt(match=(nothing,)) == ["precondition_failed"]
    assert attempt(match=(None,)) == []  # a counter is there, and no version
    node.write(OpDraft(OpKind.DELETE, b"k"))
    assert attempt(absent=True) == []


def test_conditions_see_the_writes_before_them_in_the_same_commit(node: Replica) -> None:
    first = write(draft(b"k", b"1"), conditions=[condition(absent=True)])
    second = write(draft(b"k", b"2"), conditions=[condition(absent=True)])
    third = write(draft(b"other"), conditions=[condition(present=True)])
    outputs = node.run(first, second, third)
    assert set(results(outputs)) == {first.token, third.token}
    assert [output.token for output in outputs if isinstance(output, Refused)] == [second.token]
    assert node.value(b"k") == [b"1"]


@pytest.mark.parametrize("holds", [True, False])
def test_a_condition_on_another_key_sees_the_group_too(node: Replica, holds: bool) -> None:
    guarded = write(
        draft(b"other"), conditions=[condition(present=True) if holds else condition(absent=True)]
    )
    outputs = node.run(write(draft(b"k")), guarded)
    assert (guarded.token in results(outputs)) is holds
    assert node.value(b"other") == ([b"1"] if holds else [])


def test_a_race_of_increments_under_if_match_has_one_winner_each(node: Replica) -> None:
    version = node.put(b"k", b"0").versions[0]
    racers = [write(draft(b"k", b"%d" % n), conditions=[condition(match=(version,))]) for n in range(5)]
    outputs = node.run(*racers)
    assert list(results(outputs)) == [racers[0].token]
    assert refusals(outputs) == ["precondition_failed"] * 4


def test_the_match_is_against_the_winner(node: Replica) -> None:
    versions = []
    for number, clock in ((5, 10), (6, 20)):
        author = Author(number)
        entry = author.write(put(b"k"), clock=clock)
        node.take(page([entry], [author.seal(entry)]))
        versions.append(Version(entry.id, 0))
    assert refusals(node.run(write(draft(b"k"), conditions=[condition(match=(versions[0],))]))) == [
        "precondition_failed"
    ]
    assert refusals(node.run(write(draft(b"k"), conditions=[condition(match=(versions[1],))]))) == []


# Idempotency.


def keyed(key: bytes, digest: bytes = b"d", data: bytes = b"k") -> Append:
    return write(draft(data), idempotency_key=key, digest=digest)


def test_a_repeat_in_the_same_commit(node: Replica) -> None:
    first, again = keyed(b"i"), keyed(b"i")
    landed = results(node.run(first, again))
    assert landed[again.token] == landed[first.token]._replace(repeated=True)
    assert not landed[first.token].repeated
    assert node.store.entry_count() == 1


def test_a_repeat_whose_first_is_in_a_closed_group(node: Replica) -> None:
    first, other, again = keyed(b"i"), write(draft(b"k")), keyed(b"i")
    landed = results(node.run(first, other, again))
    assert landed[again.token].seq == 0
    assert node.store.entry_count() == 2


def test_a_repeat_in_a_later_commit_and_after_a_restart(node: Replica) -> None:
    first = keyed(b"i")
    original = results(node.run(first))[first.token]
    node.put(b"other")
    for replica in (node, node.restarted()):
        again = keyed(b"i")
        assert results(replica.run(again)) == {again.token: original._replace(repeated=True)}
        assert replica.store.entry_count() == 2
    assert original.state_root != node.engine.roots.state_root


def test_a_repeat_of_a_batch_has_all_its_versions(node: Replica) -> None:
    drafts = [draft(b"a"), draft(b"b"), OpDraft(OpKind.ADD, b"n", amount=1)]
    first = write(*drafts, idempotency_key=b"i", digest=b"d")
    original = results(node.run(write(draft(b"x")), first))[first.token]
    again = write(*drafts, idempotency_key=b"i", digest=b"d")
    assert results(node.run(again))[again.token].versions == original.versions
    assert [version.op_index for version in original.versions] == [1, 2, 3]


@pytest.mark.parametrize("when", ["same commit", "later", "restarted"])
def test_another_request_under_the_same_key_is_refused(node: Replica, when: str) -> None:
    first, other = keyed(b"i", b"one"), keyed(b"i", b"two")
    if when == "same commit":
        outputs = node.run(first, other)
    else:
        node.run(first)
        node = node.restarted() if when == "restarted" else node
        outputs = node.run(other)
    assert refusals(outputs) == ["idempotency_mismatch"]
    assert node.store.entry_count() == 1


def test_a_refused_write_leaves_its_key_free(node: Replica) -> None:
    refused = write(draft(b"k"), conditions=[condition(present=True)], idempotency_key=b"i", digest=b"d")
    assert refusals(node.run(refused)) == ["precondition_failed"]
    assert len(results(node.run(keyed(b"i")))) == 1


def test_idempotency_ends_after_a_day(node: Replica) -> None:
    node.run(keyed(b"i"))
    node.now_ms += IDEMPOTENCY_LIFE_S * 1000 - 1
    again = keyed(b"i")
    assert results(node.run(again))[again.token].repeated
    node.now_ms += 1
    fresh = keyed(b"i")
    assert not results(node.run(fresh))[fresh.token].repeated
    assert node.store.entry_count() == 2


# Epochs.


def test_an_epoch_is_drawn_at_the_first_write(node: Replica) -> None:
    author = Author(5)
    entry = author.write()
    node.take(page([entry], [author.seal(entry)]))
    node.run(OpenRound(1, b"", "p2p", False), CloseRound(1))
    assert (node.engine.epoch, node.engine.newest_own()) == (None, None)
    node.engine.handle(write(draft(b"a")), now_ms=NOW_MS, entropy=bytes(7) + b"\7")
    node.commit()
    assert node.engine.epoch == 7
    epoch, seq, entry_id = node.engine.newest_own() or (0, 0, b"")
    assert (epoch, seq) == (7, 0)
    assert node.store.entry_id_at(node.key.public_key, 7, 0) == entry_id
    assert node.put(b"b").epoch == 7


def test_a_restart_draws_another(node: Replica) -> None:
    first = node.put(b"a")
    again = node.restarted()
    assert again.engine.epoch is None
    second = again.put(b"a", b"2")
    assert second.epoch != first.epoch
    assert (second.seq, again.value(b"a")) == (0, [b"2"])
    assert_sound(again)


def test_an_epoch_that_exists_is_not_drawn_again(node: Replica) -> None:
    epochs = []
    for _ in range(3):
        node.engine.handle(write(draft(b"a")), now_ms=NOW_MS, entropy=b"\xff" * 8)
        node.commit()
        epochs.append(node.engine.epoch)
        node.engine.end_epoch()
    assert epochs == [2**64 - 1, 0, 1]
    assert_sound(node)


def test_an_epoch_ended_between_writes(node: Replica) -> None:
    first = node.put(b"a")
    node.engine.end_epoch()
    assert node.engine.newest_own() is None
    second = node.put(b"a")
    assert (second.epoch != first.epoch, second.seq) == (True, 0)
    assert_sound(node)


def test_what_waits_when_an_epoch_ends_goes_into_the_next(node: Replica) -> None:
    before = node.put(b"a")
    node.handle(write(draft(b"b")), write(draft(b"b")), write(draft(b"c")))
    node.engine.end_epoch()
    waiting = write(draft(b"d"))
    node.handle(waiting)
    outputs = node.commit()
    landed = sorted(results(outputs).values(), key=lambda result: result.clock)
    assert [result.epoch == before.epoch for result in landed] == [True, False, False, False]
    assert_sound(node)
    reader = Replica(9)
    first = node.batches[0].entries[0]
    reader.take(Entries(((first.header, first.ops),), tuple(node.batches[0].seals)))
    for output in outputs:
        if isinstance(output, Publish):
            assert only(reader.take(output.entries), Judged).authentic
    assert reader.engine.roots == node.engine.roots


def twin_of(node: Replica) -> Author:
    """Somebody who has this node's key."""
    twin = Author(0)
    twin.key = node.key
    return twin


def own_head(node: Replica) -> Any:
    epoch, seq, _ = node.engine.newest_own() or (0, -1, b"")
    row = node.store.entry(node.key.public_key, epoch, seq)
    assert row is not None
    return parse_entry(NETWORK, row.header, row.ops)


def test_entries_under_our_key_and_epoch_are_an_alarm_and_end_the_epoch(node: Replica) -> None:
    node.put(b"a")
    twin = twin_of(node)
    stolen = twin.write(put(b"z"), after=own_head(node))
    outputs = node.take(page([stolen], [twin.seal(stolen)]), peer=b"q" * 32)
    alarm = only(outputs, Alarm)
    assert (alarm.code, alarm.subject) == ("stolen_epoch", b"q" * 32)
    assert node.engine.epoch is None
    after = node.put(b"b")
    assert (after.epoch != stolen.header.epoch, after.seq) == (True, 0)
    assert node.value(b"z") == [b"1"], "it is authentic all the same"
    assert_sound(node)


def test_a_write_that_waits_does_not_follow_a_stolen_entry(node: Replica) -> None:
    """Else the thief's next entry and ours would be a fork that we made."""
    node.put(b"a")
    twin = twin_of(node)
    stolen = twin.write(put(b"z"), after=own_head(node))
    waiting = write(draft(b"b"))
    message = page([stolen], [twin.seal(stolen)])
    outputs = node.run(waiting, Gossiped(1, b"q" * 32, "gossip", message))
    landed = results(outputs)[waiting.token]
    assert (landed.epoch != stolen.header.epoch, landed.seq) == (True, 0)
    assert_sound(node)


def test_a_branch_of_our_own_log_ends_the_epoch(node: Replica) -> None:
    node.put(b"a")
    head = own_head(node)
    node.put(b"b")
    twin = twin_of(node)
    branch = twin.write(put(b"z"), after=head)
    outputs = node.take(page([branch], [twin.seal(branch)]))
    assert [output.code for output in outputs if isinstance(output, Alarm)] == ["stolen_epoch"]
    assert only(outputs, Frozen).fork.frozen == 1
    assert node.engine.epoch is None
    assert refusals(node.run(write(draft(b"c")))) == []
    assert_sound(node)


def test_own_entries_of_earlier_epochs_come_home_without_an_alarm(node: Replica) -> None:
    """A disk that lost its tail: the peers have what it lost."""
    published = []
    for number in range(3):
        published += [out for out in node.run(write(draft(b"%d" % number))) if isinstance(out, Publish)]
    emptied = Replica(1, MemoryStore())
    emptied.put(b"new")
    for publish in published:
        assert not [out for out in emptied.take(publish.entries) if isinstance(out, Alarm)]
    assert emptied.store.entry_count() == 4
    assert emptied.engine.epoch is not None
    assert_sound(emptied)


# Commits that fail.


def test_nothing_leaves_before_committed(node: Replica) -> None:
    author = Author(5)
    entry = author.write()
    roots = node.engine.roots
    events = (
        write(draft(b"a")),
        write(),
        Gossiped(2, b"p" * 32, "gossip", page([entry], [author.seal(entry)])),
        Served(3, b"p" * 32, 1, "p2p", (WantEntries(()),)),
        OpenRound(4, b"p" * 32, "p2p", False),
        Remember(5, "policy", b"p2p"),
    )
    for event in events:
        assert node.engine.handle(event, now_ms=NOW_MS, entropy=bytes(8)) is None
    batch = node.engine.settle()
    assert batch is not None
    assert (node.engine.roots, node.engine.heads, node.engine.state_size) == (roots, {}, 0)
    assert node.store.entry_count() == 0
    node.store.commit(batch)
    outputs = node.engine.committed()
    kinds = {type(output) for output in outputs}
    assert kinds >= {Acknowledged, Refused, Judged, Answer, RoundStep, Remembered, Applied, Publish}
    assert node.engine.roots != roots
    assert node.store.meta("policy") == b"p2p"


def test_a_failed_commit_poisons_the_engine() -> None:
    node = Replica(1, MemoryStore(Disk(remembers=True)))
    acknowledged = node.put(b"before")
    node.run(OpenRound(40, b"p" * 32, "p2p", False))
    waiting = [write(draft(b"a")), write(draft(b"b"), idempotency_key=b"i"), write()]
    repeat = write(draft(b"b"), idempotency_key=b"i")
    node.handle(
        *waiting,
        repeat,
        Served(43, b"p" * 32, 1, "p2p", ()),
        OpenRound(44, b"p" * 32, "p2p", False),
        Remember(45, "n", b"v"),
        Gossiped(46, b"p" * 32, "gossip", page([])),
    )
    batch = node.engine.settle()
    assert batch is not None
    node.store.disk.error = "no_space"
    with pytest.raises(LatticeError):
        node.store.commit(batch)
    tokens = node.engine.abandon()
    assert set(tokens) == {*(event.token for event in waiting), repeat.token, 40, 43, 44, 45, 46}
    for action in (
        node.engine.committed,
        node.engine.settle,
        lambda: node.engine.handle(write(draft(b"x")), now_ms=NOW_MS, entropy=bytes(8)),
    ):
        with pytest.raises(LatticeError) as caught:
            action()
        assert caught.value.code == "store_failed"
    assert node.engine.roots.state_root == acknowledged.state_root, "reads come from the last commit"
    node.store.disk.error = None
    again = node.restarted()
    assert again.engine.roots.state_root == acknowledged.state_root
    assert again.store.entry_count() == 1
    again.put(b"a")
    assert_sound(again)


def test_an_abandoned_engine_names_writes_that_were_not_settled(node: Replica) -> None:
    event = write(draft(b"a"))
    node.handle(event)
    assert node.engine.abandon() == [event.token]


def test_the_steps_have_an_order(node: Replica) -> None:
    with pytest.raises(AssertionError):
        node.engine.committed()
    node.engine.settle()
    with pytest.raises(AssertionError):
        node.handle(write(draft(b"a")))
    assert node.engine.committed() == []
    node.put(b"a")


def test_roots_and_clock_are_stored_with_every_commit(node: Replica) -> None:
    result = node.put(b"a")
    assert node.store.meta(META_STATE_ROOT) == node.engine.roots.state_root == result.state_root
    assert node.store.meta(META_LOG_ROOT) == node.engine.roots.log_root == result.log_root
    assert node.store.meta(META_CLOCK) == result.clock.to_bytes(8, "big")
    again = Engine(node.key, NETWORK, node.store)
    assert again.roots == node.engine.roots


# Clocks.


def test_a_write_after_seeing_another_has_the_greater_clock(node: Replica) -> None:
    author = Author(5)
    ahead = (NOW_MS + CLOCK_AHEAD_MS_MAX) << 16
    entry = author.write(put(b"k"), clock=ahead)
    node.take(page([entry], [author.seal(entry)]))
    assert node.put(b"other").clock == ahead + 1
    again = node.restarted()
    assert again.put(b"other").clock == ahead + 2, "also after a restart"


def test_a_clock_that_lies_does_not_take_ours_along(node: Replica) -> None:
    author = Author(5)
    entry = author.write(put(b"k"), clock=2**64 - 1)
    node.take(page([entry], [author.seal(entry)]))
    assert node.put(b"other").clock == NOW_MS << 16
    assert node.engine.statistics()["clocks_skewed"] == 1


# What goes out, and what comes in.


@pytest.mark.parametrize("seed", range(6))
def test_every_payload_stands_for_itself(seed: int) -> None:
    """Whatever is written, each gossip payload is small, ends at a seal and is taken in order."""
    chance, node, reader = random.Random(seed), Replica(1), Replica(2)
    for _ in range(4):
        events = [
            write(draft(b"%d" % chance.randrange(30), bytes(chance.choice([1, 500, 9000, 20_000, 120_000]))))
            for _ in range(chance.randint(1, 30))
        ]
        if chance.random() < 0.5:
            node.handle(*events[:3])
            node.engine.end_epoch()
            events = events[3:]
        for output in node.run(*events):
            if not isinstance(output, Publish):
                continue
            sizes = [len(header) + len(ops) for header, ops in output.entries.frames]
            assert sum(sizes) <= GOSSIP_BYTES or len(sizes) == 1
            assert only(reader.take(output.entries), Judged).authentic
            assert reader.engine.statistics()["pending_bytes"] == 0
    assert reader.engine.refused == {}
    assert reader.engine.roots == node.engine.roots
    assert_sound(reader)


def test_applied_tells_each_entry_with_its_own_keys(node: Replica) -> None:
    author = Author(5)
    entries = [author.write(put(b"%d" % n), put(b"%d/x" % n)) for n in range(3)]
    outputs = node.take(page(entries, [author.seal(entries[2])]), peer=b"q" * 32)
    applied = only(outputs, Applied).entries
    assert [(row.seq, row.id, keys) for row, keys in applied] == [
        (n, entries[n].id, (b"%d" % n, b"%d/x" % n)) for n in range(3)
    ]
    assert {(row.lung, row.peer, row.arrived_ms) for row, _ in applied} == {("gossip", b"q" * 32, NOW_MS)}
    own = only(node.run(write(draft(b"mine"))), Applied).entries
    assert [(row.lung, row.peer, keys) for row, keys in own] == [("local", b"", (b"mine",))]


def test_gossip_is_judged(node: Replica) -> None:
    author = Author(5)
    entries = author.write_many(4)
    good = page(entries[:2], [author.seal(entries[1])])
    assert only(node.take(good), Judged).authentic
    assert only(node.take(good), Judged).authentic
    assert not only(node.take(page(entries[2:], [forged(author.seal(entries[3]))])), Judged).authentic
    assert not only(node.take(page(entries[2:])), Judged).authentic
    assert node.engine.refused == {"bad_seal": 1, "unsealed": 4}
    assert node.engine.statistics()["refused_unsealed"] == 4


@pytest.mark.parametrize("lung", ["p2p", "http"])
def test_what_came_over_http_is_gossiped_on(node: Replica, lung: str) -> None:
    author = Author(5)
    entries = author.write_many(3)
    message = page(entries, [author.seal(entries[2])])

    def published(message: Entries) -> list[Entries]:
        outputs = node.run(Served(1, b"p" * 32, 1, lung, (message,)))
        return [output.entries for output in outputs if isinstance(output, Publish)]

    assert published(message) == ([message] if lung == "http" else [])
    assert published(message) == [], "nothing new"
    more = author.write_many(2)
    assert published(page(more, [author.seal(more[0]), forged(author.seal(more[1]))])) == []
    large = author.write(put(b"k", bytes(70 * KIB)), after=more[0])
    assert published(page([large], [author.seal(large)])) == []
    assert node.store.entry_count() == 5


def test_a_fork_freezes_the_log_and_is_told_once(node: Replica) -> None:
    author = Author(5)
    entries = author.write_many(3)
    node.take(page(entries, [author.seal(entries[2])]))
    branch = author.write(put(b"other"), after=entries[0])
    outputs = node.take(page([branch], [author.seal(branch)]), peer=b"q" * 32)
    fork = only(outputs, Frozen).fork
    assert (fork.author, fork.frozen, fork.removed) == (author.key.public_key, 1, 2)
    assert (fork.keys, fork.peer) == ((b"k/1", b"k/2"), b"q" * 32)
    assert only(outputs, PublishProof).proof.payload == fork.proof
    again = node.take(page([branch], [author.seal(branch)]))
    assert not [output for output in again if isinstance(output, Frozen | PublishProof)], "once is enough"
    assert node.engine.heads[author.log()] == LogHead(0, entries[0].id, 1)
    assert node.engine.roots.entry_count == node.store.entry_count() == 1
    assert_sound(node)


def test_entries_in_a_request_are_committed_before_it_is_answered(node: Replica) -> None:
    author = Author(5)
    entries = author.write_many(3)
    start = Heads(1, HeadsFlag(0), Roots(b"x" * 32, b"y" * 32, 1, 0))
    message = page(entries, [author.seal(entries[2])])
    outputs = node.run(Served(7, b"p" * 32, 1, "p2p", (start, message)))
    (heads,) = only(outputs, Answer).messages
    assert isinstance(heads, Heads)
    assert heads.roots == node.engine.roots
    assert heads.roots.entry_count == 3


def test_a_closed_round_is_forgotten(node: Replica) -> None:
    node.run(OpenRound(8, b"p" * 32, "p2p", False))
    assert node.engine.statistics()["rounds_open"] == 1
    node.run(CloseRound(8), CloseRound(9))
    assert node.engine.statistics()["rounds_open"] == 0
    assert node.run(RoundAnswered(8, b"p" * 32, "p2p", ())) == []


def test_remembered_values_reach_the_store(node: Replica) -> None:
    outputs = node.run(Remember(1, "a", b"1"), Remember(2, "a", b"2"))
    assert [output.token for output in outputs if isinstance(output, Remembered)] == [1, 2]
    assert node.store.meta("a") == b"2"


def test_the_batch_of_a_commit_changes_only_what_it_says(node: Replica) -> None:
    node.put(b"a")
    node.put(b"a")
    batch = node.batches[-1]
    assert (len(batch.entries), len(batch.seals), len(batch.seals_dropped), len(batch.logs)) == (1, 1, 1, 1)
    assert list(batch.keys) == [b"a"]
    assert (len(batch.ops), len(batch.edges), len(batch.buckets)) == (1, 1, 1)
    assert not batch.is_empty
    assert replace(
        batch, entries=[], seals=[], seals_dropped=[], logs={}, keys={}, buckets={}, meta={}
    ).is_empty


@pytest.mark.slow
@settings(max_examples=150)
@given(st.data())
def test_nothing_that_a_remote_says_raises(data: st.DataObject) -> None:
    """Real messages with bytes altered, as a request, as an answer in a round, and as gossip."""
    node, author = Replica(1), Author(5)
    entries = author.write_many(4)
    node.take(page(entries[:2], [author.seal(entries[1])]))
    head = LogHead(3, entries[3].id)
    log, other = author.log(), Author(6).log()
    sent = [
        Heads(1, HeadsFlag.AUTHORS, node.engine.roots, authors=((log.author, bytes(32)),)),
        Heads(1, HeadsFlag.LISTS, node.engine.roots, logs=((log.author, ((1, head),)), (other.author, ()))),
        Heads(1, HeadsFlag.FINAL, node.engine.roots),
        WantEntries((Want(*log, 0, 1), Want(*other, 0, 2**64 - 1))),
        page(entries[1:], [author.seal(entries[2]), author.seal(entries[3])]),
    ]
    changed = bytearray(encode_messages(data.draw(st.permutations(sent))))
    for at in data.draw(st.lists(st.integers(0, len(changed) - 1), max_size=6)):
        changed[at] = data.draw(st.integers(0, 255))
    try:
        messages = tuple(decode_messages(bytes(changed)))
    except MalformedError:
        return
    node.run(OpenRound(90, b"p" * 32, "p2p", False))
    events = [Served(91, b"p" * 32, 1, "http", messages), RoundAnswered(90, b"p" * 32, "p2p", messages)]
    events += [Gossiped(92, b"p" * 32, "gossip", m) for m in messages if isinstance(m, Entries)]
    node.run(*events)
    node.run(RoundAnswered(90, b"p" * 32, "p2p", messages))
    assert_sound(node)
