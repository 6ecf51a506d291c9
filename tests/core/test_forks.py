"""Forks: what is a proof and what is none, where a log freezes, and that taking entries out is the
inverse of putting them in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lattice.core.draft import OpDraft
from lattice.core.engine import Acknowledged, Alarm, Applied, Frozen, Gossiped, Publish, Refused
from lattice.core.entry import Entry, OpKind, Version
from lattice.core.errors import MalformedError
from lattice.core.forks import (
    FORK_PROOF,
    HEADER_PATH,
    HeaderNode,
    HeaderPath,
    pack_fork_proof,
    pack_path,
    path_of,
    proof_of,
    proof_verifies,
    unpack_fork_proof,
    unpack_path,
)
from lattice.core.limits import FROZEN_NEVER
from lattice.core.messages import Entries, Proof
from lattice.core.rows import EdgeRow, EntryRow, KeyState, LogHead, LogKey
from lattice.storage.memory import MemoryStore
from tests.core.core_kit import (
    NETWORK,
    Author,
    Replica,
    add,
    altered,
    delete,
    node_key,
    only,
    page,
    put,
    sync,
    vectors,
)

NOTHING = Entries((), ())


def path(author: Author, run: Sequence[Entry]) -> HeaderPath:
    return path_of(NETWORK, [entry.header_bytes for entry in run], author.seal(run[-1]))


def branched(author: Author, length: int, at: int, more: int = 2) -> tuple[list[Entry], list[Entry]]:
    """A log of `length`, and the whole chain of a branch that leaves it at seq `at`."""
    entries = author.write_many(length)
    branch = entries[:at]
    for number in range(more):
        after = branch[-1] if branch else None
        if after is None:
            other = Author(0)
            other.key = author.key
            branch.append(other.write(put(b"branch")))
        else:
            branch.append(author.write(put(b"branch/%d" % number), after=after))
    return entries, branch


def fork_proof(author: Author, entries: Sequence[Entry], branch: Sequence[Entry], at: int) -> bytes:
    return pack_fork_proof(proof_of(path(author, entries[at : at + 1]), path(author, branch[at : at + 1])))


# Proofs.


def test_a_proof_comes_back_from_its_bytes() -> None:
    author = Author()
    entries, branch = branched(author, 5, 2)
    for one, other in (
        (path(author, entries[2:5]), path(author, branch[2:4])),
        (path(author, entries[2:3]), path(author, branch[3:4])),  # by a `prev`, one above
    ):
        proof = proof_of(one, other)
        assert unpack_fork_proof(NETWORK, pack_fork_proof(proof)) == proof
        assert (proof.log, proof.seq, proof.continues) == (author.log(), 2, entries[1].id)
        assert proof_verifies(NETWORK, proof)
        assert unpack_path(NETWORK, pack_path(one)) == one


def test_any_altered_byte_of_a_proof_makes_it_none() -> None:
    author = Author()
    entries, branch = branched(author, 4, 1)
    whole = pack_fork_proof(proof_of(path(author, entries[1:3]), path(author, branch[1:3])))
    for at in range(len(whole)):
        try:
            proof = unpack_fork_proof(NETWORK, altered(whole, at))
        except MalformedError:
            continue
        assert not proof_verifies(NETWORK, proof), at
    for cut in (whole[:-1], whole + b"\0", b""):
        with pytest.raises(MalformedError):
            unpack_fork_proof(NETWORK, cut)


def test_what_does_not_contradict_proves_nothing() -> None:
    author, other = Author(1), Author(2)
    entries, branch = branched(author, 6, 2)
    strange = other.write_many(6)
    ours = path(author, entries[2:4])
    for rival in (
        ours,
        path(author, entries[3:5]),  # continues it
        path(author, entries[4:6]),  # stands elsewhere
        path(author, branch[1:3]),  # below it
        path(other, strange[2:4]),  # another's log
    ):
        with pytest.raises(MalformedError):
            proof_of(ours, rival)


def test_a_path_is_a_run_of_at_most_64_to_its_seal() -> None:
    author = Author()
    entries = author.write_many(140)
    assert len(path(author, entries[64:128]).headers) == 64
    for run in ([], entries[63:65], entries[0:65], [entries[0], entries[2]], [entries[1], entries[0]]):
        with pytest.raises(MalformedError):
            path_of(NETWORK, [entry.header_bytes for entry in run], author.seal((run or entries)[-1]))
    with pytest.raises(MalformedError):
        path_of(NETWORK, [entry.header_bytes for entry in entries[:3]], author.seal(entries[3]))


# Freezing.


def test_a_prev_that_names_an_id_of_another_seq_is_evidence() -> None:
    author, node = Author(), Replica(1)
    entries = author.write_many(5)
    node.take(page(entries, [author.seal(entries[4])]))
    crooked = author.write(put(b"x"), after=entries[3])
    header = crooked.header._replace(prev=entries[1].id)
    assert header.seq == 4
    body = (header.pack(), crooked.ops)
    from lattice.core.entry import make_seal, parse_entry

    entry = parse_entry(NETWORK, *body)
    node.take(page([entry], [make_seal(author.key, NETWORK, entry.header, entry.id)]))
    # Against the held entry at 3 stands the name that the crooked header gives to what is below it.
    assert node.engine.heads[author.log()] == LogHead(2, entries[2].id, 3)


def test_a_fork_at_the_first_entry_leaves_an_empty_frozen_log() -> None:
    author, one, two = Author(), Replica(1), Replica(2)
    entries, branch = branched(author, 3, 0)
    one.take(page(entries, [author.seal(entries[2])]))
    one.take(page(branch, [author.seal(branch[-1])]))
    assert one.engine.heads[author.log()] == LogHead(-1, bytes(32), 0)
    assert sync(two, one).result.good
    assert two.engine.heads == one.engine.heads
    assert two.engine.roots == one.engine.roots
    two.take(page(entries, [author.seal(entries[2])]))
    assert two.store.entry_count() == 0


def test_a_newcomer_gets_the_prefix_that_only_the_proof_authenticates() -> None:
    author, one, two = Author(), Replica(1), Replica(2)
    entries, branch = branched(author, 40, 30)
    one.take(page(entries, [author.seal(entries[39])]))
    one.take(page(branch[30:], [author.seal(branch[-1])]))
    assert one.store.seals(*author.log(), 0, 100) == [], "the only seals were above the fork"
    synced = sync(two, one)
    assert synced.result.good
    assert two.engine.heads[author.log()] == LogHead(29, entries[29].id, 30)
    assert two.engine.roots == one.engine.roots


def test_whoever_knows_only_the_proof_asks_for_the_prefix() -> None:
    author, one, two = Author(), Replica(1), Replica(2)
    entries, branch = branched(author, 10, 6)
    one.take(page(entries, [author.seal(entries[9])]))
    one.take(page(branch[6:], [author.seal(branch[-1])]))
    two.take(NOTHING, proofs=[Proof(FORK_PROOF, fork_proof(author, entries, branch, 6))])
    assert two.engine.heads[author.log()] == LogHead(-1, bytes(32), 6)
    assert sync(one, two).result.good, "asked, the opener gives"
    assert two.engine.heads[author.log()] == LogHead(5, entries[5].id, 6)


def test_what_comes_is_compared_with_the_proof_so_far() -> None:
    """All that is held of the log is a proof of a fork high up, between two branches that both part lower."""
    author, node = Author(), Replica(1)
    entries, branch = branched(author, 10, 2, more=6)
    twig = [*branch[:6], author.write(put(b"twig"), after=branch[5])]
    node.take(NOTHING, proofs=[Proof(FORK_PROOF, fork_proof(author, branch, twig, 6))])
    assert node.engine.heads[author.log()].frozen == 6
    node.take(page(entries[:6], [author.seal(entries[5])]))
    assert node.engine.heads[author.log()] == LogHead(4, entries[4].id, 5)


def test_the_lowest_difference_is_found_by_halving() -> None:
    """A thousand entries of two branches that part low: a few stretches of headers, no entries."""
    author, one, two = Author(), Replica(1), Replica(2)
    entries, branch = branched(author, 1000, 200, 700)
    seals = [author.seal(entry) for entry in entries if entry.must_be_sealed or entry is entries[-1]]
    one.take(page(entries, seals))
    seals = [author.seal(entry) for entry in branch if entry.must_be_sealed or entry is branch[-1]]
    two.take(page(branch, seals))
    synced = sync(one, two)
    for replica in (one, two):
        assert replica.engine.heads[author.log()] == LogHead(199, entries[199].id, 200)
    assert one.engine.roots == two.engine.roots
    assert sum(map(len, synced.requests + synced.answers)) < 120_000
    # An opening, a halving of 15 stretches, an end; and never the same stretch twice.
    assert len(synced.requests) <= 6


def test_a_fork_below_two_forks_is_found_at_once() -> None:
    """Each knows another fork high up; what they hold below those parts far lower."""
    author, one, two = Author(), Replica(1), Replica(2)
    entries, branch = branched(author, 200, 50, 150)
    for replica, chain, fork_at in ((one, entries, 190), (two, branch, 180)):
        seals = [author.seal(entry) for entry in chain if entry.must_be_sealed or entry is chain[-1]]
        replica.take(page(chain, seals))
        rival = author.write(put(b"rival"), after=chain[fork_at - 1])
        replica.take(page([rival], [author.seal(rival)]))
        assert replica.engine.heads[author.log()].frozen == fork_at
    synced = sync(one, two)
    for replica in (one, two):
        assert replica.engine.heads[author.log()] == LogHead(49, entries[49].id, 50)
    assert synced.result.equal
    assert len(synced.requests) <= 6, "not one by one, from proof to proof"


def test_f_falls_and_never_rises() -> None:
    author, node = Author(), Replica(1)
    entries, branch = branched(author, 20, 10)
    lower = [author.write(put(b"lower"), after=entries[3])]
    node.take(page(entries, [author.seal(entries[19])]))
    seen = []
    for chain in (branch[10:], lower, branch[10:], entries[10:]):
        node.take(page(chain, [author.seal(chain[-1])]))
        seen.append(node.engine.heads[author.log()].frozen)
    assert seen == [10, 4, 4, 4]
    row = node.store.fork_row(author.log())
    assert (row.frozen, row.removed) == (4, 16)
    again = node.restarted()
    assert again.engine.heads == node.engine.heads
    assert again.store.frozen_logs() == [author.log()]
    assert again.store.fork_row(author.log()) == row
    assert again.take(page(entries, [author.seal(entries[19])]))
    assert again.engine.roots == node.engine.roots


def test_whoever_offers_frozen_entries_is_told_once() -> None:
    author, knows, offers = Author(), Replica(1), Replica(2)
    entries, branch = branched(author, 3, 1)
    knows.take(page(entries, [author.seal(entries[2])]))
    knows.take(page(branch, [author.seal(branch[-1])]))
    from lattice.core.engine import Answer, Served

    told = []
    for number in range(3):
        message = page(entries[1:], [author.seal(entries[2])])
        outputs = knows.run(Served(number, offers.key.public_key, 1, "http", (message,)))
        told.append([m for m in only(outputs, Answer).messages if isinstance(m, Proof)])
    assert [len(proofs) for proofs in told] == [1, 0, 0]
    offers.take(page(entries, [author.seal(entries[2])]))
    offers.take(NOTHING, proofs=told[0])
    assert offers.engine.heads == knows.engine.heads


def test_a_broken_or_foreign_proof_changes_nothing() -> None:
    author, node = Author(), Replica(1)
    entries, branch = branched(author, 4, 2)
    node.take(page(entries, [author.seal(entries[3])]))
    before = node.engine.roots
    whole = fork_proof(author, entries, branch, 2)
    unsigned = bytearray(whole)
    unsigned[-1] ^= 1
    for payload in (b"", whole[:-1], bytes(unsigned), whole + b"x"):
        node.take(NOTHING, proofs=[Proof(FORK_PROOF, payload)])
        node.take(NOTHING, proofs=[Proof(HEADER_PATH, payload)])
        node.take(NOTHING, proofs=[Proof(99, payload)])
    assert node.engine.roots == before
    assert node.engine.statistics()["refused_malformed_proof"] > 0
    node.take(NOTHING, proofs=[Proof(FORK_PROOF, whole)])
    assert node.engine.heads[author.log()].frozen == 2, "the honest control"


def test_a_write_that_a_cut_takes_out_in_its_own_commit_is_refused() -> None:
    """A twin's branch arrives in the very commit of our write: the write was never acknowledged."""
    node = Replica(1)
    first = node.put(b"a")
    twin = Author(0)
    twin.key = node_key(1)
    rows = node.store.entries(*LogKey(first.author, first.epoch), 0, 0, 1 << 20)
    from lattice.core.entry import parse_entry

    head = parse_entry(NETWORK, rows[0].header, rows[0].ops)
    branch = twin.write(put(b"z"), after=head)
    write = Replica.append(OpDraft(OpKind.PUT, b"a", b"2"))
    same_key = Replica.append(OpDraft(OpKind.PUT, b"a", b"3"))  # closes the entry of the first
    message = page([branch], [twin.seal(branch)])
    outputs = node.run(write, same_key, Gossiped(1, b"q" * 32, "gossip", message))
    assert only(outputs, Refused).token == write.token
    assert only(outputs, Frozen).fork.frozen == 1
    assert [output.code for output in outputs if isinstance(output, Alarm)] == ["stolen_epoch"]
    told = [row for output in outputs if isinstance(output, Applied) for row, _ in output.entries]
    landed = only(outputs, Acknowledged)
    assert landed.token == same_key.token
    assert landed.result.epoch != first.epoch
    assert [row.id for row in told] == [landed.result.id]
    published = [output.entries for output in outputs if isinstance(output, Publish)]
    assert [len(entries.frames) for entries in published] == [1]


def test_the_keys_whose_winner_or_counter_changed_are_named() -> None:
    author, other, node = Author(1), Author(2), Replica(1)
    honest = other.write(add(b"total", 1), put(b"stays"), add(b"both", 1), put(b"both"))
    first = author.write(put(b"first"))
    rest = author.write(
        add(b"total", 9), add(b"only", 0), add(b"none", 5), add(b"none", -5),
        delete(b"stays", over=[Version(honest.id, 1)]), add(b"both", 2),
    )  # fmt: skip
    rival = author.write(put(b"rival"), after=first)
    node.take(page([honest], [other.seal(honest)]))
    node.take(page([first, rest], [author.seal(rest)]))
    outputs = node.take(page([rival], [author.seal(rival)]))
    assert only(outputs, Frozen).fork.keys == (b"both", b"none", b"only", b"stays", b"total")


def test_a_key_with_the_same_winner_and_counter_is_not_named() -> None:
    author, other, node = Author(1), Author(2), Replica(1)
    first = author.write(put(b"first"))
    low = author.write(put(b"k"), delete(b"never there"))
    rival = author.write(put(b"rival"), after=first)
    high = other.write(put(b"k"), clock=2)
    node.take(page([high], [other.seal(high)]))
    node.take(page([first, low], [author.seal(low)]))
    assert only(node.take(page([rival], [author.seal(rival)])), Frozen).fork.keys == ()


# Taking out is the inverse of putting in.

KEYS = (b"a", b"b")


@st.composite
def histories(draw: Any) -> tuple[list[tuple[int, list[Any]]], int]:
    """Entries of two logs in turn as (log, ops), and the seq of log 0 from which it is cut."""
    one = st.tuples(
        st.sampled_from(["put", "delete", "add"]),
        st.sampled_from(KEYS),
        st.lists(st.integers(0, 30), max_size=3),
        st.integers(-5, 5),
    )
    entries = draw(
        st.lists(st.tuples(st.integers(0, 1), st.lists(one, min_size=1, max_size=3)), min_size=2, max_size=14)
    )
    return entries, draw(st.integers(0, 8))


def _entries(plan: Sequence[tuple[int, list[Any]]]) -> list[tuple[int, Entry]]:
    """Real entries; a name is the version of an earlier op of either log, as they come."""
    authors = (Author(1), Author(2))
    made: list[tuple[int, Entry]] = []
    versions: list[Version] = []
    for log, ops in plan:
        encoded = []
        for kind, key, names, amount in ops:
            over = [versions[name] for name in names if name < len(versions)]
            if kind == "put":
                encoded.append(put(key, b"%d" % amount, over=over))
            elif kind == "delete":
                encoded.append(delete(key, over=over))
            else:
                encoded.append(add(key, amount))
        entry = authors[log].write(*encoded)
        versions += [Version(entry.id, index) for index in range(len(ops))]
        made.append((log, entry))
    return made


def _content(replica: Replica) -> Any:
    """All that the state holds, in every row of it; a key that holds nothing leaves a bare row."""
    store = replica.store
    states = {key: store.key_state(key) for key in KEYS}
    return (
        {key: state for key, state in states.items() if state is not None and state.present},
        {key: store.history(key, 100) for key in KEYS},
        {key: list(store.edges([key])) for key in KEYS},
        store.buckets(),
        {key: store.latest_put(key, Author(1).key.public_key, 1) for key in KEYS},
    )


@pytest.mark.parametrize("together", [False, True])
@settings(max_examples=150, deadline=None)
@given(history=histories())
def test_a_cut_is_the_exact_inverse(history: tuple[list[tuple[int, list[Any]]], int], together: bool) -> None:
    """Whatever was put in with it, before or after, in one commit or in several."""
    plan, first = history
    made = _entries(plan)
    authors = (Author(1), Author(2))
    length = sum(log == 0 for log, _ in made)
    if length <= first:
        return
    messages = [page([entry], [authors[log].seal(entry)]) for log, entry in made]
    ours = [entry for log, entry in made if log == 0]
    rival = Author(1).write(put(b"c"), after=ours[first - 1] if first else None)
    evidence = page([rival], [authors[0].seal(rival)])
    cut, kept = Replica(1), Replica(2)
    events = [Gossiped(number, b"p" * 32, "gossip", message) for number, message in enumerate(messages)]
    last = Gossiped(999, b"p" * 32, "gossip", evidence)
    if together:
        outputs = cut.run(*events, last)
    else:
        for event in events:
            cut.run(event)
        outputs = cut.run(last)
    assert only(outputs, Frozen).fork.frozen == first
    for event, (log, entry) in zip(events, made, strict=True):
        if log or entry.header.seq < first:
            kept.run(event)
    assert _content(cut) == _content(kept)
    assert cut.engine.roots.state_root == kept.engine.roots.state_root
    assert cut.engine.heads[authors[0].log()].frozen == first != FROZEN_NEVER


class _Counting(MemoryStore):
    """Counts how often it is asked for what."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: Counter[str] = Counter()

    def key_state(self, key: bytes) -> KeyState | None:
        self.asked["key"] += 1
        return super().key_state(key)

    def key_states(self, keys: Sequence[bytes]) -> list[KeyState | None]:
        self.asked["keys"] += 1
        return super().key_states(keys)

    def edges(self, keys: Sequence[bytes]) -> Iterator[EdgeRow]:
        self.asked["edges"] += 1
        return super().edges(keys)

    def entry_by_id(self, entry_id: bytes) -> EntryRow | None:
        self.asked["entry"] += 1
        return super().entry_by_id(entry_id)


def test_many_keys_are_taken_out_with_few_reads() -> None:
    """Whoever forks may have written any number of keys, and the node does nothing else meanwhile."""
    forger, other = Author(1), Author(2)
    keys = [[b"k/%d" % (256 * number + index) for index in range(256)] for number in range(5)]
    named = [other.write(*[put(key, b"theirs") for key in each]) for each in keys]
    first = forger.write(put(b"first"))
    ended = [
        forger.write(*[put(key, over=[Version(held.id, at)]) for at, key in enumerate(each)])
        for held, each in zip(named, keys, strict=True)
    ]
    rival = forger.write(put(b"rival"), after=first)
    plain, node = Replica(1), Replica(2, _Counting())
    for replica in (plain, node):
        replica.take(page(named, [other.seal(entry) for entry in named]))
        replica.take(page([first], [forger.seal(first)]))
    node.take(page(ended, [forger.seal(entry) for entry in ended]))
    assert node.value(b"k/0") == [b"1"]
    node.store.asked.clear()
    assert only(node.take(page([rival], [forger.seal(rival)])), Frozen).fork.removed == 5
    assert node.engine.roots.state_root == plain.engine.roots.state_root
    assert node.value(b"k/1279") == [b"theirs"]
    assert node.store.asked == {"keys": 3, "edges": 3, "entry": 5, "key": 1}


def test_what_comes_with_the_evidence_and_was_named_by_what_goes_is_live_once() -> None:
    """One message brings a version and the evidence against the log whose entry had named it in advance."""
    forker, other = Author(1), Author(2)
    named = other.write(put(b"k"))
    ended = forker.write(delete(b"k", over=[Version(named.id, 0)]))
    rival = Author(1).write(put(b"b"))
    node, plain = Replica(1), Replica(2)
    node.take(page([ended], [forker.seal(ended)]))
    outputs = node.take(page([named, rival], [other.seal(named), forker.seal(rival)]))
    assert only(outputs, Frozen).fork.removed == 1
    plain.take(page([named], [other.seal(named)]))
    assert [live.version for live in (node.store.key_state(b"k") or KeyState(b"")).live] == [
        Version(named.id, 0)
    ]
    assert node.engine.roots.state_root == plain.engine.roots.state_root
    after = other.write(put(b"k", b"2"))
    for replica in (node, plain):
        replica.take(page([after], [other.seal(after)]))
    assert _content(node) == _content(plain)


@pytest.mark.parametrize("case", vectors("fork_proofs"), ids=lambda case: case["name"])
def test_vectors(case: dict[str, Any]) -> None:
    network, payload = bytes.fromhex(case["network_id"]), bytes.fromhex(case["payload"])
    try:
        proof = unpack_fork_proof(network, payload)
    except MalformedError:
        assert not case["valid"]
        return
    assert proof_verifies(network, proof) == case["valid"]
    if case["valid"]:
        assert (proof.seq, proof.continues.hex()) == (case["seq"], case["continues"])
        assert pack_fork_proof(proof) == payload


def test_headers_alone_can_be_compared() -> None:
    author, node = Author(), Replica(1)
    entries = author.write_many(3)
    node.take(page(entries, [author.seal(entries[2])]))
    found = node.engine._logs.path(author.log(), 0)
    assert found is not None
    assert [header.id for header in found.headers] == [entry.id for entry in entries]
    assert all(isinstance(header, HeaderNode) for header in found.headers)
    assert node.engine._logs.path(author.log(), 3) is None
    assert node.engine._logs.path(Author(9).log(), 0) is None
