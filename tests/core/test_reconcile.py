"""Sync rounds: whatever two nodes hold, one round makes them equal, in few and small messages."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lattice.core.draft import OpDraft
from lattice.core.engine import Answer, OpenRound, RoundAnswered, RoundEnded, RoundStep, Served
from lattice.core.entry import OpKind
from lattice.core.envelope import Kind, Sealer
from lattice.core.limits import HEADS_LOGS_MAX, KIB, MIB, PADDING_BYTES, PAGE_BYTES
from lattice.core.log import Logs
from lattice.core.merkle import MerkleMap
from lattice.core.messages import (
    Entries,
    Heads,
    HeadsFlag,
    Message,
    Roots,
    Want,
    WantEntries,
    decode_messages,
    encode_messages,
)
from lattice.core.reconcile import Reconciler, RoundResult
from lattice.core.rows import LogHead, LogKey
from lattice.storage.memory import MemoryStore
from lattice.testing.reference import compute_state, compute_state_root, read_ledger
from tests.core.core_kit import NETWORK, Author, Replica, Synced, forged, only, page, put, sync


def of_kind(bodies: Sequence[bytes], kind: type[Message]) -> list[int]:
    """In which of the bodies a message of this kind is."""
    return [
        at
        for at, body in enumerate(bodies)
        if any(isinstance(message, kind) for message in decode_messages(body))
    ]


def assert_equal(one: Replica, two: Replica) -> None:
    assert one.engine.roots == two.engine.roots
    assert one.store.log_heads() == two.store.log_heads()
    assert one.store.buckets() == two.store.buckets()
    state = compute_state(NETWORK, read_ledger(one.store))
    assert compute_state_root(state) == one.engine.roots.state_root


def assert_complete(synced: Synced) -> None:
    assert synced.result.good
    assert synced.served is not None
    assert synced.served.good


def test_equal_replicas_need_one_round_trip_of_800_bytes() -> None:
    one, two = Replica(1), Replica(2)
    for number in range(20):
        one.put(b"%d" % number)
        two.put(b"%d" % (number + 10))
    assert_complete(sync(one, two))
    synced = sync(two, one)
    assert_complete(synced)
    assert (synced.result.equal, synced.result.reason) == (True, "equal")
    assert (len(synced.requests), len(synced.answers)) == (1, 1)
    sealers = [Sealer(node.key, NETWORK, {1: bytes(32)}, boot=1) for node in (two, one)]
    request = sealers[0].seal(Kind.REQUEST, synced.requests[0], bytes(24), to=one.key.public_key)
    answer = sealers[1].seal(Kind.ANSWER, synced.answers[0], bytes(24), to=two.key.public_key)
    assert len(request) + len(answer) <= 800


def test_two_empty_nodes_are_equal() -> None:
    synced = sync(Replica(1), Replica(2))
    assert_complete(synced)
    assert synced.result.equal


@pytest.mark.parametrize("behind", ["opener", "server"])
def test_ten_missing_entries(behind: str) -> None:
    one, two = Replica(1), Replica(2)
    one.put(b"first")
    two.put(b"other")
    assert_complete(sync(one, two))
    for number in range(10):
        (two if behind == "opener" else one).put(b"%d" % number)
    synced = sync(one, two)
    assert_complete(synced)
    assert synced.result.equal
    assert_equal(one, two)
    assert len(synced.requests) == (3 if behind == "opener" else 4)
    if behind == "opener":
        # They are there with the second answer; the third exchange only confirms it.
        assert of_kind(synced.answers, Entries) == [1]
        assert of_kind(synced.requests, WantEntries) == []
    else:
        assert of_kind(synced.answers, WantEntries) == [1]
        assert of_kind(synced.requests, Entries) == [2]
    size = sum(map(len, synced.requests + synced.answers))
    assert size < 6000


def test_a_newcomer_gets_everything() -> None:
    old, new = Replica(1), Replica(2)
    for number in range(30):
        old.put(b"%d" % number)
    synced = sync(new, old)
    assert_complete(synced)
    assert_equal(old, new)
    assert new.store.entry_count() == 30


def test_more_than_a_page_each_way() -> None:
    one, two = Replica(1), Replica(2)
    for node in (one, two):
        for number in range(36):
            node.put(b"%d" % number, bytes(100 * KIB))
    synced = sync(one, two)
    assert_complete(synced)
    assert_equal(one, two)
    pages = of_kind(synced.requests, Entries) + of_kind(synced.answers, Entries)
    assert len(pages) == 2 * 3
    assert max(map(len, synced.requests + synced.answers)) <= PAGE_BYTES + 300 * KIB
    assert sum(map(len, synced.requests + synced.answers)) < 2 * 36 * 100 * KIB * 1.05


def test_many_small_logs_share_pages() -> None:
    one, two = Replica(1), Replica(2)
    for number in range(60):
        author = Author(100 + number)
        entry = author.write(put(b"%d" % number))
        (one if number % 2 else two).take(page([entry], [author.seal(entry)]))
    synced = sync(one, two)
    assert_complete(synced)
    assert_equal(one, two)
    assert len(of_kind(synced.answers, Entries)) == 1


def scatter(chance: random.Random, replicas: Sequence[Replica]) -> None:
    """Give the replicas different parts of common logs, and writes and epochs of their own."""
    for number in range(chance.randint(0, 4)):
        author = Author(200 + number)
        length = chance.choice([1, 3, 64, 65, 70])
        entries = author.write_many(length)
        marks = [seq for seq in (63,) if seq < length]
        for replica in replicas:
            cut = chance.randint(0, length)
            if cut:
                seals = [author.seal(entries[seq]) for seq in {*[m for m in marks if m < cut], cut - 1}]
                replica.take(page(entries[:cut], seals))
    for replica in replicas:
        for _ in range(chance.randint(0, 4)):
            key = chance.choice([b"a", b"b", b"c"])
            draft = chance.choice(
                [
                    OpDraft(OpKind.PUT, key, b"v"),
                    OpDraft(OpKind.DELETE, key),
                    OpDraft(OpKind.ADD, key, amount=2),
                ]
            )
            replica.write(draft)
            if chance.random() < 0.3:
                replica.engine.end_epoch()


@pytest.mark.slow
@settings(max_examples=80, deadline=None)
@given(chance=st.randoms(use_true_random=False), padded=st.booleans())
def test_one_round_makes_any_two_replicas_equal(chance: random.Random, padded: bool) -> None:
    one, two = Replica(1), Replica(2)
    scatter(chance, [one, two])
    synced = sync(one, two, padded=padded)
    assert_complete(synced)
    assert synced.result.equal
    assert not synced.result.defect
    assert_equal(one, two)
    again = sync(two, one)
    assert (again.result.reason, len(again.requests)) == ("equal", 1)


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(st.randoms(use_true_random=False))
def test_rounds_along_a_chain_carry_everything_to_everybody(chance: random.Random) -> None:
    replicas = [Replica(number) for number in range(1, 5)]
    scatter(chance, replicas)
    pairs = [(0, 1), (1, 2), (2, 3), (2, 1), (1, 0)]
    for a, b in pairs:
        opener, server = (a, b) if chance.random() < 0.5 else (b, a)
        assert_complete(sync(replicas[opener], replicas[server]))
    for replica in replicas[1:3]:
        assert_equal(replicas[0], replica)
    assert_complete(sync(replicas[3], replicas[2]))
    assert_equal(replicas[0], replicas[3])


@pytest.mark.parametrize("differing", [False, True])
def test_a_padded_round_is_large_each_way_and_known_to_both(differing: bool) -> None:
    one, two = Replica(1), Replica(2)
    if differing:
        one.put(b"a")
        two.put(b"b")
    synced = sync(one, two, padded=True)
    assert_complete(synced)
    assert synced.result.padded
    assert synced.served is not None
    assert synced.served.padded
    assert len(synced.requests[0]) > PADDING_BYTES < len(synced.answers[0])
    assert all(len(body) < PADDING_BYTES for body in synced.requests[1:] + synced.answers[1:])
    assert not sync(one, two).result.padded


def test_a_write_during_the_round_does_not_make_it_bad() -> None:
    """Good means that each holds what the other named, not that both are equal."""
    one, two = Replica(1), Replica(2)
    one.put(b"a")
    two.put(b"b")
    step: RoundStep | RoundEnded = only(one.run(OpenRound(900, b"", "p2p", False)), RoundStep)
    turn = 0
    while isinstance(step, RoundStep):
        request = tuple(decode_messages(encode_messages(step.messages)))
        answer = only(two.run(Served(901, one.key.public_key, 1, "p2p", request)), Answer)
        turn += 1
        two.put(b"two/%d" % turn)
        one.put(b"one/%d" % turn)
        outputs = one.run(RoundAnswered(900, b"", "p2p", answer.messages))
        step = next(output for output in outputs if isinstance(output, RoundStep | RoundEnded))
    assert step.result.good
    assert not step.result.equal
    assert not step.result.defect


# A round with a peer that does not keep to it.


def opened(replica: Replica, answers: Sequence[Sequence[Message]], *, padded: bool = False) -> RoundResult:
    """Open a round and feed it these answers, the last of them for ever."""
    step: RoundStep | RoundEnded = only(replica.run(OpenRound(77, b"", "p2p", padded)), RoundStep)
    for turn in range(500):
        if isinstance(step, RoundEnded):
            return step.result
        answer = tuple(answers[min(turn, len(answers) - 1)])
        outputs = replica.run(RoundAnswered(77, b"", "p2p", answer))
        step = next(output for output in outputs if isinstance(output, RoundStep | RoundEnded))
    raise AssertionError("the round does not end")


OTHER_ROOTS = Roots(b"l" * 32, b"s" * 32, 1, 5)


def head_at(seq: int) -> LogHead:
    return LogHead(seq, b"i" * 32)


def test_answers_that_are_none() -> None:
    replica = Replica(1)
    heads = Heads(77, HeadsFlag.AUTHORS, OTHER_ROOTS)
    assert opened(replica, [[]]) == RoundResult(False, False, False, False, "no_heads")
    assert opened(replica, [[WantEntries(())]]).reason == "no_heads"
    assert opened(replica, [[heads], [heads]]).reason == "no_lists"
    assert opened(replica, [[heads], []]).reason == "no_lists"
    assert replica.engine.statistics()["rounds_open"] == 0


def test_a_padded_round_without_padding_in_the_answer_is_not_good() -> None:
    """The hole for large frames that padding is there to find."""
    replica = Replica(1)
    equal = Heads(77, HeadsFlag(0), replica.engine.roots)
    assert opened(replica, [[equal]]).good
    assert opened(replica, [[equal]], padded=True).reason == "no_heads"


def test_a_peer_that_keeps_what_it_names_to_itself() -> None:
    replica, log = Replica(1), LogKey(Author(5).key.public_key, 1)
    named = Heads(77, HeadsFlag.LISTS, OTHER_ROOTS, logs=((log.author, ((1, head_at(9)),)),))
    first = Heads(77, HeadsFlag.AUTHORS, OTHER_ROOTS, authors=((log.author, bytes(32)),))
    final = Heads(77, HeadsFlag.FINAL | HeadsFlag.HOLDS_ALL, OTHER_ROOTS)
    result = opened(replica, [[first], [named], [], [final]])
    assert (result.good, result.reason) == (False, "incomplete")


def test_a_peer_whose_entries_do_not_verify() -> None:
    replica, author = Replica(1), Author(5)
    entries = author.write_many(3)
    log = author.log()
    first = Heads(77, HeadsFlag.AUTHORS, OTHER_ROOTS, authors=((log.author, bytes(32)),))
    named = Heads(77, HeadsFlag.LISTS, OTHER_ROOTS, logs=((log.author, ((1, head_at(2)),)),))
    bad = page(entries, [forged(author.seal(entries[2]))])
    final = Heads(77, HeadsFlag.FINAL | HeadsFlag.HOLDS_ALL, OTHER_ROOTS)
    result = opened(replica, [[first], [named, bad], [bad], [final]])
    assert not result.good
    assert replica.store.entry_count() == 0
    assert replica.engine.refused["bad_seal"] == 2


def test_equal_log_roots_with_unequal_state_roots_are_a_defect() -> None:
    replica = Replica(1)
    ours = replica.engine.roots
    wrong = Heads(77, HeadsFlag(0), ours._replace(state_root=b"x" * 32))
    result = opened(replica, [[wrong]])
    assert (result.good, result.equal, result.defect) == (True, False, True)
    newer = Heads(77, HeadsFlag(0), ours._replace(state_root=b"x" * 32, rules=2))
    result = opened(replica, [[newer]])
    assert (result.equal, result.defect) == (False, False), "other rules: the roots are not compared"


def test_an_answer_to_a_round_that_is_closed_is_ignored() -> None:
    replica = Replica(1)
    assert replica.run(RoundAnswered(5, b"", "p2p", ())) == []


# The answering side, asked anything.


def reconciler() -> tuple[Reconciler, MemoryStore]:
    replica = Replica(1)
    for number in range(3):
        replica.put(b"%d" % number)
    logs = Logs(NETWORK, replica.store)
    return Reconciler(logs, lambda: replica.engine.roots, MerkleMap(replica.store.buckets())), replica.store


def test_wants_are_served_within_what_is_held() -> None:
    answering, store = reconciler()
    (log, head) = next(iter(store.log_heads().items()))
    huge = 2**64 - 2
    for want, served in (
        (Want(*log, 0, huge), 3),
        (Want(*log, 2, 2), 1),
        (Want(*log, 3, huge), 0),
        (Want(*log, huge, huge), 0),
        (Want(log.author, log.epoch ^ 1, 0, 5), 0),
        (Want(bytes(32), 0, 0, huge), 0),
    ):
        messages, _ = answering.answer((b"p", 1), [WantEntries((want,))])
        frames = [len(message.frames) for message in messages if isinstance(message, Entries)]
        assert frames == ([served] if served else []), want
    assert head.seq == 2


def test_the_last_exchange_of_an_unknown_round_is_not_good() -> None:
    answering, _ = reconciler()
    final = Heads(5, HeadsFlag.FINAL | HeadsFlag.HOLDS_ALL, OTHER_ROOTS)
    messages, served = answering.answer((b"p", 1), [final])
    assert served is not None
    assert not served.good
    assert isinstance(messages[0], Heads)
    assert HeadsFlag.HOLDS_ALL not in messages[0].flags


@pytest.mark.parametrize("first", [True, False])
def test_an_author_with_too_many_logs_does_not_keep_the_others_out(first: bool) -> None:
    """It was the end of the lists, for ever, for every author whose key is greater."""
    replica = Replica(1)
    replica.put(b"k")
    logs = Logs(NETWORK, replica.store)
    ((log, head),) = replica.store.log_heads().items()
    crowd, middling = (bytes(32), b"\x01" * 32) if first else (b"\xff" * 32, b"\xfe" * 32)
    for epoch in range(HEADS_LOGS_MAX + 1):
        logs.heads.set(LogKey(crowd, epoch), head)
    for epoch in range(HEADS_LOGS_MAX - 1):
        logs.heads.set(LogKey(middling, epoch), head)
    answering = Reconciler(logs, lambda: replica.engine.roots, MerkleMap(replica.store.buckets()))
    asked = Heads(5, HeadsFlag.LISTS, OTHER_ROOTS, logs=((crowd, ()), (log.author, ()), (middling, ())))
    messages, _ = answering.answer((b"p", 1), [asked])
    assert isinstance(messages[0], Heads)
    assert {author: len(listed) for author, listed in messages[0].logs} == {
        log.author: 1,
        middling: HEADS_LOGS_MAX - 1,
    }


def finished(answering: Reconciler, peer: tuple[bytes, int]) -> bool:
    """Whether the round 5 of this peer is still known, told by its end."""
    _, served = answering.answer(peer, [Heads(5, HeadsFlag.FINAL | HeadsFlag.HOLDS_ALL, OTHER_ROOTS)])
    assert served is not None
    return served.good


def test_boots_have_rounds_of_their_own_and_only_so_many_are_remembered() -> None:
    answering, _ = reconciler()
    start = Heads(5, HeadsFlag(0), OTHER_ROOTS)
    for boot in range(20):
        answering.answer((b"p", boot), [start])
    assert [finished(answering, (b"p", boot)) for boot in (19, 12, 11, 0)] == [True, True, False, False]
    for peer in range(600):
        answering.answer((b"%d" % peer, 1), [start])
    assert [finished(answering, (b"%d" % peer, 1)) for peer in (599, 88, 87, 0)] == [True, True, False, False]


def test_who_fills_the_lists_of_many_rounds_loses_those_and_nobody_else() -> None:
    """Held for all rounds that one key or many open, they were gigabytes."""
    answering, _ = reconciler()
    answering.answer((b"honest", 1), [Heads(5, HeadsFlag.LISTS, OTHER_ROOTS)])
    head = LogHead(0, bytes(32), 0)
    crowd = ((b"a" * 32, tuple((epoch, head) for epoch in range(HEADS_LOGS_MAX))),)
    flood = [b"%d" % number for number in range(12)]
    for peer in flood:
        answering.answer((peer, 1), [Heads(5, HeadsFlag.LISTS, OTHER_ROOTS, logs=crowd)])
    assert sum(len(session.targets) for session in answering._sessions.values()) <= 8 * HEADS_LOGS_MAX
    assert finished(answering, (b"honest", 1))
    assert [finished(answering, (peer, 1)) for peer in flood] == [False] * 4 + [True] * 8


@pytest.mark.parametrize("pushes", [False, True])
@pytest.mark.parametrize("crowd", [63, 64, 200])
def test_authors_beyond_one_message_are_reached_in_later_rounds(
    monkeypatch: pytest.MonkeyPatch, crowd: int, pushes: bool
) -> None:
    """Whoever writes under thousands of keys keeps no author out, however high its key is."""
    monkeypatch.setattr("lattice.core.reconcile.HEADS_AUTHORS_MAX", 64)
    authors = sorted(
        (Author(100 + number) for number in range(crowd + 4)), key=lambda each: each.key.public_key
    )
    one, two = Replica(1), Replica(2)
    for at, author in enumerate(authors):
        entry = author.write(put(b"%d" % at))
        fresh = page([entry], [author.seal(entry)])
        one.take(fresh)
        if 2 <= at < crowd + 2:  # of the lowest two and the highest two, that one knows nothing
            two.take(fresh)
    opener, server = (one, two) if pushes else (two, one)
    rounds = 0
    while one.engine.roots != two.engine.roots:
        rounds += 1
        assert rounds <= 60, "some authors are never reached"
        sync(opener, server)
    assert_equal(one, two)


def test_pages_are_bounded_whatever_is_asked() -> None:
    replica = Replica(1)
    for number in range(40):
        replica.put(b"%d" % number, bytes(100 * KIB))
    answering = Reconciler(
        Logs(NETWORK, replica.store), lambda: replica.engine.roots, MerkleMap(replica.store.buckets())
    )
    log = next(iter(replica.store.log_heads()))
    wants = (Want(*log, 0, 2**64 - 2),) * 50
    messages, _ = answering.answer((b"p", 1), [WantEntries(wants)])
    (entries,) = (message for message in messages if isinstance(message, Entries))
    assert PAGE_BYTES <= entries.size <= PAGE_BYTES + MIB
    assert len(encode_messages(messages)) < 4 * MIB


def test_a_log_with_two_branches_does_not_spoil_the_rounds_for_the_others() -> None:
    """Its author forked it: in one round both know the same lowest evidence, and keep what is below."""
    one, two, author = Replica(1), Replica(2), Author(5)
    entries = author.write_many(6)
    branch = [author.write(put(b"other"), after=entries[1])]
    branch += [author.write(put(b"more"), after=branch[0])]
    one.take(page(entries, [author.seal(entries[5])]))
    two.take(page([*entries[:2], *branch], [author.seal(branch[1])]))
    one.put(b"one")
    two.put(b"two")
    assert_complete(sync(two, one))
    for opener, server in ((one, two), (two, one)):
        synced = sync(opener, server)
        assert_complete(synced)
        assert synced.result.equal
    assert one.value(b"two") == two.value(b"one") == [b"1"]
    for replica in (one, two):
        assert replica.engine.heads[author.log()] == LogHead(1, entries[1].id, 2)
        assert replica.value(b"other") == []


def test_one_range_of_each_log_is_served() -> None:
    replica = Replica(1)
    for number in range(3):
        replica.put(b"%d" % number)
    answering = Reconciler(
        Logs(NETWORK, replica.store), lambda: replica.engine.roots, MerkleMap(replica.store.buckets())
    )
    (log,) = replica.store.log_heads()
    messages, _ = answering.answer((b"p", 1), [WantEntries((Want(*log, 0, 2), Want(*log, 2, 2)) * 100)])
    (entries,) = (message for message in messages if isinstance(message, Entries))
    assert len(entries.frames) == 3


@pytest.mark.parametrize("wanted", ["the same", "always longer", "headers", "what nobody holds"])
def test_a_peer_that_never_has_enough_does_not_hold_a_round_open(wanted: str) -> None:
    node = Replica(1)
    for number in range(70):
        node.put(b"k/%d" % number)
    (log,) = node.engine.heads
    roots = Roots(b"r" * 32, b"s" * 32, 1, 1)

    def wants(step: int) -> WantEntries:
        last = {"the same": 69, "always longer": 69 + step, "headers": 2**64 - 1, "what nobody holds": step}
        epoch = log.epoch + step if wanted == "what nobody holds" else log.epoch
        return WantEntries((Want(log.author, epoch, 0, last[wanted]),))

    token, peer = 1, b"p" * 32
    step: RoundStep | RoundEnded = only(node.run(OpenRound(token, peer, "http", False)), RoundStep)
    served = exchanges = 0
    while isinstance(step, RoundStep):
        exchanges += 1
        assert exchanges < 10, "the round does not end"
        served += sum(len(message.frames) for message in step.messages if isinstance(message, Entries))
        asked = next((message for message in step.messages if isinstance(message, Heads)), None)
        flags = HeadsFlag.LISTS if asked is not None and HeadsFlag.LISTS in asked.flags else HeadsFlag(0)
        answer = (Heads(token, flags, roots), wants(exchanges))
        outputs = node.run(RoundAnswered(token, peer, "http", answer))
        step = next(output for output in outputs if isinstance(output, RoundStep | RoundEnded))
    assert served == (70 if wanted in ("the same", "always longer") else 0), "all of it, and once"
    assert not step.result.good
