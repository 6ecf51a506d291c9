"""Logs: the rule of acceptance to the letter, what waits, which seals are kept, and pages."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lattice.core import acceptance
from lattice.core.acceptance import Accepted
from lattice.core.entry import Entry, Seal, must_be_sealed, parse_header
from lattice.core.limits import BAD_SEALS_MAX, KIB, PAGE_BYTES, PENDING_ENTRY_OVERHEAD_BYTES
from lattice.core.log import Logs, Origin
from lattice.core.messages import Entries
from lattice.core.pending import Pending
from lattice.core.rows import Batch, LogHead, LogKey
from lattice.storage.memory import MemoryStore
from lattice.testing.reference import find_forgeries, read_ledger
from tests.core.core_kit import NETWORK, Author, altered, forged, page, put, vectors

ORIGIN = Origin(b"p" * 32, "p2p", 1)
LARGE = bytes(17 * KIB)


class Held:
    """The logs of one node over a memory store; each `take` is a commit."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.logs = Logs(NETWORK, self.store)

    def take(self, *messages: Entries) -> Accepted:
        batch = Batch()
        self.logs.begin(batch)
        results = [self.logs.accept(message, ORIGIN) for message in messages]
        self.store.commit(batch)
        self.logs.begin(Batch())
        return results[-1]

    def give(self, entries: Sequence[Entry], *seals: Seal) -> Accepted:
        return self.take(page(entries, seals))

    def head(self, log: LogKey) -> int:
        assert self.store.log_heads().get(log, LogHead(-1, bytes(32))) == self.logs.heads.get(log)
        return self.logs.heads.get(log).seq

    def kept(self, log: LogKey) -> list[int]:
        return [seal.seq for seal in self.store.seals(*log, 0, 2**62)]

    def is_sound(self) -> bool:
        """By code that shares nothing with the product: chains, ids, ops, seals."""
        return not list(find_forgeries(NETWORK, read_ledger(self.store)))


@pytest.fixture
def held() -> Held:
    return Held()


@pytest.fixture
def author() -> Author:
    return Author()


@pytest.fixture
def verifications(monkeypatch: pytest.MonkeyPatch) -> list[Seal]:
    """The seals that were verified, in order."""
    done: list[Seal] = []
    real = acceptance.seal_verifies

    def counting(network_id: bytes, seal: Seal) -> bool:
        done.append(seal)
        return real(network_id, seal)

    monkeypatch.setattr(acceptance, "seal_verifies", counting)
    return done


# The rule.


def test_a_seal_takes_everything_below_it_in(held: Held, author: Author) -> None:
    entries = author.write_many(10)
    result = held.give(entries, author.seal(entries[-1]))
    assert [entry.id for entry in result.entries] == [entry.id for entry in entries]
    assert [row.id for row in result.rows] == [entry.id for entry in entries]
    assert (result.refused, result.conflicts, result.duplicates, result.pending) == ({}, set(), 0, 0)
    assert held.head(author.log()) == 9
    assert held.is_sound()


def test_without_a_seal_nothing_is_data(held: Held, author: Author) -> None:
    entries = author.write_many(5)
    result = held.give(entries)
    assert (result.entries, result.refused) == ([], {"unsealed": 5})
    assert (held.head(author.log()), held.logs.pending_bytes) == (-1, 0)
    assert held.store.entry_count() == 0


def test_what_is_above_the_highest_seal_is_no_data(held: Held, author: Author) -> None:
    entries = author.write_many(8)
    result = held.give(entries, author.seal(entries[4]))
    assert len(result.entries) == 5
    assert result.refused == {"unsealed": 3}
    assert held.logs.pending_bytes == 0


def test_a_failing_seal_falls_back_to_the_next_lower(held: Held, author: Author) -> None:
    entries = author.write_many(8)
    result = held.give(
        entries, author.seal(entries[2]), author.seal(entries[5]), forged(author.seal(entries[7]))
    )
    assert len(result.entries) == 6
    assert result.refused == {"bad_seal": 1, "unsealed": 2}
    assert held.kept(author.log()) == [5]


@pytest.mark.parametrize("order", [1, -1])
def test_a_bad_seal_beside_a_good_one_does_not_hide_it(held: Held, author: Author, order: int) -> None:
    """Any valid seal counts: which one stands last in a message says nothing."""
    entries = author.write_many(3)
    good = author.seal(entries[2])
    elsewhere = author.seal(entries[1])._replace(seq=2)
    seals = [good, forged(good), elsewhere][::order]
    result = held.give(entries, *seals)
    assert [entry.id for entry in result.entries] == [entry.id for entry in entries]
    assert held.head(author.log()) == 2
    assert held.is_sound()


def test_a_seal_of_another_entry_or_log_is_none(held: Held, author: Author) -> None:
    entries = author.write_many(3)
    good = author.seal(entries[2])
    for wrong in (
        author.seal(entries[1])._replace(seq=2),
        good._replace(epoch=2),
        good._replace(seq=3),
        good._replace(author=Author(2).key.public_key),
        good._replace(id=entries[1].id),
    ):
        assert held.give(entries, wrong).entries == []
    assert len(held.give(entries, good).entries) == 3


def test_a_genuine_seal_does_not_cover_another_entry_at_its_seq(held: Held, author: Author) -> None:
    """Anybody can write an entry in an author's name; only the seal over its very id is the author's."""
    entries = author.write_many(3)
    forgery = author.write(put(b"forged"), after=entries[1])
    result = held.give([*entries[:2], forgery], author.seal(entries[2]))
    assert (result.entries, result.refused) == ([], {"unsealed": 3})
    held.give(entries[:2], author.seal(entries[1]))
    assert held.give([forgery], author.seal(entries[2])).entries == []
    assert len(held.give([entries[2]], author.seal(entries[2])).entries) == 1


def test_a_mandatory_seal_that_is_missing_ends_the_run_below_it(held: Held, author: Author) -> None:
    entries = author.write_many(70)
    result = held.give(entries, author.seal(entries[69]))
    assert (result.entries, result.refused) == ([], {"unsealed": 70})
    result = held.give(entries, author.seal(entries[40]), author.seal(entries[69]))
    assert len(result.entries) == 41
    assert result.refused == {"unsealed": 29}
    result = held.give(
        entries, forged(author.seal(entries[63])), author.seal(entries[62]), author.seal(entries[69])
    )
    assert len(result.entries) == 22
    assert result.refused == {"bad_seal": 1, "unsealed": 7}
    result = held.give(entries, author.seal(entries[63]), author.seal(entries[69]))
    assert len(result.entries) == 7
    assert (held.head(author.log()), held.is_sound()) == (69, True)


def test_a_large_entry_must_be_sealed_itself(held: Held, author: Author) -> None:
    small, large = author.write(), author.write(put(b"k", LARGE))
    last = author.write()
    assert large.must_be_sealed
    result = held.give([small, large, last], author.seal(small), author.seal(last))
    assert [entry.id for entry in result.entries] == [small.id]
    result = held.give([large, last], author.seal(large), author.seal(last))
    assert len(result.entries) == 2
    assert held.kept(author.log()) == [1, 2]


def test_the_size_is_judged_by_the_header(held: Held, author: Author) -> None:
    edge = author.write(put(b"k", bytes(16 * KIB - 127 - 4 - 10)))
    assert edge.size == 16 * KIB
    assert not edge.must_be_sealed
    over = author.write(put(b"k", bytes(16 * KIB - 127 - 4 - 10 + 1)))
    last = author.write()
    assert len(held.give([edge, over, last], author.seal(edge), author.seal(last)).entries) == 1


def accepted_by_the_rule(log: Sequence[Entry], present: set[int], valid: set[int], held: int) -> int:
    """How many entries above `held` are accepted: the rule as its prose says it, without finesse."""
    run = []
    for entry in log[held + 1 :]:
        if entry.header.seq not in present:
            break
        run.append(entry.header.seq)
    best = 0
    for seq in run:
        needed = [s for s in run if s <= seq and must_be_sealed(log[s].header)]
        if seq in valid and all(s in valid for s in needed):
            best = seq - held
    return best


@pytest.fixture(scope="module")
def long_log() -> tuple[Author, list[Entry], list[Seal]]:
    author = Author(7)
    entries = [author.write(put(b"k", LARGE if n in (3, 40, 90) else b"1")) for n in range(140)]
    return author, entries, [author.seal(entry) for entry in entries]


SEQS = st.integers(0, 139) | st.sampled_from([3, 40, 62, 63, 64, 90, 126, 127, 128])


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(
    first=st.integers(-1, 100),
    gaps=st.sets(SEQS, max_size=2),
    sealed=st.sets(SEQS, max_size=12),
    failing=st.sets(SEQS, max_size=3),
    mandatory=st.booleans(),
    order=st.randoms(use_true_random=False),
)
def test_the_rule_in_all_kinds_of_messages(
    long_log: tuple[Author, list[Entry], list[Seal]],
    first: int,
    gaps: set[int],
    sealed: set[int],
    failing: set[int],
    mandatory: bool,
    order: object,
) -> None:
    author, entries, seals = long_log
    held = Held()
    below = {seq for seq in (3, 40, 63, 90, 127) if seq <= first} | ({first} - {-1})
    held.give(entries[: first + 1], *[seals[seq] for seq in sorted(below)])
    assert held.head(author.log()) == first
    if mandatory:
        sealed = sealed | {3, 40, 63, 90, 127}
    present = set(range(140)) - gaps
    given_seals = [forged(seals[seq]) if seq in failing else seals[seq] for seq in sealed]
    shown = [entries[seq] for seq in present]
    order.shuffle(shown)  # type: ignore[attr-defined]
    result = held.give(shown, *given_seals)
    expected = accepted_by_the_rule(entries, present, sealed - failing, first)
    assert len(result.entries) == expected
    assert held.head(author.log()) == first + expected
    assert held.is_sound()
    mandatory_kept = {seq for seq in (3, 40, 63, 90, 127) if seq <= first + expected}
    newest = {first + expected} - {-1}
    assert set(held.kept(author.log())) == mandatory_kept | newest


# Duplicates.


def test_duplicates_cost_no_verification(held: Held, author: Author, verifications: list[Seal]) -> None:
    entries = author.write_many(70)
    message = page(entries, [author.seal(entries[63]), author.seal(entries[69])])
    held.take(message)
    assert len(verifications) == 2
    result = held.take(message)
    assert (result.duplicates, result.entries, result.refused) == (70, [], {})
    assert len(verifications) == 2
    more = author.write_many(1)
    result = held.give([*entries, *more], author.seal(entries[63]), author.seal(more[0]))
    assert (result.duplicates, len(result.entries)) == (70, 1)
    assert len(verifications) == 3


def test_one_verification_for_a_whole_run(held: Held, author: Author, verifications: list[Seal]) -> None:
    entries = author.write_many(60)
    held.give(entries, *[author.seal(entry) for entry in entries])
    assert [seal.seq for seal in verifications] == [59]


def test_duplicates_with_other_ops_bytes_are_not_even_split(held: Held, author: Author) -> None:
    entry = author.write()
    held.give([entry], author.seal(entry))
    result = held.take(Entries(((entry.header_bytes, b"garbage"),), ()))
    assert (result.duplicates, result.refused) == (1, {})
    row = held.store.entry(*author.log(), 0)
    assert row is not None
    assert row.ops == entry.ops


def test_within_one_commit_duplicates_are_known_too(held: Held, author: Author) -> None:
    entry = author.write()
    message = page([entry], [author.seal(entry)])
    assert held.take(message, message).duplicates == 1
    assert held.store.entry_count() == 1


def test_malformed_entries_do_not_spoil_the_rest(held: Held, author: Author) -> None:
    entry = author.write()
    frames = ((entry.header_bytes, altered(entry.ops)), (bytes(127), b""), (entry.header_bytes, entry.ops))
    result = held.take(Entries(frames, (author.seal(entry),)))
    assert result.refused == {"malformed_entry": 2}
    assert len(result.entries) == 1


# What waits.


def test_a_gap_is_filled_later(held: Held, author: Author, verifications: list[Seal]) -> None:
    entries = author.write_many(12)
    result = held.give(entries[5:], author.seal(entries[11]))
    assert (result.entries, result.pending, result.refused) == ([], 7, {})
    size = sum(entry.size + PENDING_ENTRY_OVERHEAD_BYTES for entry in entries[5:])
    assert held.logs.pending_bytes == size
    result = held.give(entries[:5], author.seal(entries[4]))
    assert [entry.header.seq for entry in result.entries] == list(range(12))
    assert (held.head(author.log()), held.logs.pending_bytes) == (11, 0)
    # The seal of what waited was verified when it came, and not again.
    assert [seal.seq for seal in verifications] == [11]
    assert held.is_sound()


def test_a_gap_is_filled_by_what_only_the_waiting_seal_covers(held: Held, author: Author) -> None:
    entries = author.write_many(12)
    held.give(entries[5:], author.seal(entries[11]))
    assert len(held.give(entries[:5]).entries) == 12


def test_several_gaps(held: Held, author: Author) -> None:
    entries = author.write_many(30)
    for first, last in ((20, 29), (4, 9), (12, 18)):
        held.give(entries[first : last + 1], author.seal(entries[last]))
    assert held.head(author.log()) == -1
    assert len(held.give(entries[:4], author.seal(entries[3])).entries) == 10
    assert len(held.give(entries[10:12], author.seal(entries[11])).entries) == 9
    assert len(held.give([entries[19]], author.seal(entries[19])).entries) == 11
    assert (held.head(author.log()), held.logs.pending_bytes) == (29, 0)
    assert held.is_sound()


def test_mandatory_seals_are_asked_of_what_waits_too(held: Held, author: Author) -> None:
    entries = author.write_many(70)
    result = held.give(entries[50:], author.seal(entries[55]), author.seal(entries[69]))
    assert (result.pending, result.refused) == (6, {"unsealed": 14})
    result = held.give(entries[60:], author.seal(entries[63]), author.seal(entries[69]))
    assert result.pending == 10
    assert len(held.give(entries[:50], author.seal(entries[49])).entries) == 56
    assert len(held.give(entries[56:60], author.seal(entries[59])).entries) == 14
    assert held.kept(author.log()) == [63, 69]


def test_nothing_unauthentic_waits(held: Held, author: Author) -> None:
    entries = author.write_many(9)
    result = held.give(entries[5:], forged(author.seal(entries[8])), author.seal(entries[6]))
    assert (result.pending, result.refused) == (2, {"bad_seal": 1, "unsealed": 2})


def test_a_forged_entry_or_seal_does_not_displace_what_waits(held: Held, author: Author) -> None:
    entries = author.write_many(8)
    held.give(entries[4:], author.seal(entries[7]))
    junk = author.write(put(b"junk"), after=entries[4])
    result = held.give([*entries[:4], junk], author.seal(entries[3]), forged(author.seal(entries[7])))
    assert [entry.header.seq for entry in result.entries] == list(range(8))
    assert junk.id not in {entry.id for entry in result.entries}
    assert held.is_sound()


def test_a_waiting_branch_does_not_block_the_log(held: Held, author: Author) -> None:
    """An author that forks: one branch waits, the other chains to what is held and goes on."""
    entries = author.write_many(4)
    branch = [author.write(put(b"branch"), after=entries[0])]
    for _ in range(3):
        branch.append(author.write(put(b"branch"), after=branch[-1]))
    held.give(branch[1:], author.seal(branch[-1]))
    held.give(entries[:1], author.seal(entries[0]))
    result = held.give(entries[1:], author.seal(entries[3]))
    assert (held.head(author.log()), result.conflicts) == (3, {author.log()})
    assert held.is_sound()


def test_pending_is_capped_per_author_and_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = Author(1), Author(2)
    entries, others = one.write_many(12), two.write_many(12)
    cost = entries[1].size + PENDING_ENTRY_OVERHEAD_BYTES
    monkeypatch.setattr("lattice.core.pending.PENDING_AUTHOR_BYTES_MAX", 5 * cost)
    monkeypatch.setattr("lattice.core.pending.PENDING_BYTES_MAX", 8 * cost)
    pending = Pending()
    for entry in entries[1:10]:
        pending.add(one.log(), entry, None)
    assert (sorted(pending.of(one.log())), pending.dropped) == ([5, 6, 7, 8, 9], 4)
    for entry in others[1:6]:
        pending.add(two.log(), entry, None)
    assert (len(pending.of(two.log())), len(pending.of(one.log()))) == (5, 3)
    assert pending.bytes <= 8 * cost
    for log in (one.log(), two.log()):
        for seq in list(pending.of(log)):
            pending.discard(log, seq)
            pending.discard(log, seq)
    assert (pending.bytes, pending.of(one.log()), pending.of(two.log())) == (0, {}, {})


def test_what_waits_may_gain_its_seal(author: Author) -> None:
    first, second = author.write_many(2)
    pending = Pending()
    pending.add(author.log(), second, None)
    size = pending.bytes
    pending.add(author.log(), second, author.seal(second))
    assert (pending.of(author.log())[1].seal, pending.bytes) == (author.seal(second), size)
    pending.add(author.log(), author.write(put(b"other"), after=first), None)
    assert pending.of(author.log())[1].entry.id == second.id


# Authors.


@pytest.mark.parametrize("case", [case for case in vectors("bad_signatures") if not case["key_valid"]],
                         ids=lambda case: case["name"])  # fmt: skip
def test_an_author_with_a_bad_key_is_refused(held: Held, author: Author, case: dict[str, str]) -> None:
    bad = bytes.fromhex(case["seal"])[:32]
    entry = author.write()
    header = entry.header._replace(author=bad).pack()
    seal = author.seal(entry)._replace(author=bad)
    result = held.take(Entries(((header, entry.ops), (entry.header_bytes, entry.ops)), (seal,)))
    assert result.refused == {"bad_author_key": 1, "unsealed": 1}
    assert held.store.entry_count() == 0


def test_an_author_is_checked_once(held: Held, author: Author, monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[bytes] = []
    monkeypatch.setattr("lattice.core.log.is_valid_public_key", lambda key: not checked.append(key))
    for epoch in (1, 2, 2):
        entry = author.write(epoch=epoch)
        assert len(held.give([entry], author.seal(entry)).entries) == 1
    assert checked == [author.key.public_key]


def test_logs_are_told_apart_by_epoch(held: Held, author: Author) -> None:
    one, two = author.write_many(3, epoch=1), author.write_many(4, epoch=2**64 - 1)
    result = held.give([*two, *one], author.seal(one[-1]), author.seal(two[-1]))
    assert len(result.entries) == 7
    assert (held.head(author.log(1)), held.head(author.log(2**64 - 1))) == (2, 3)


# Branches.


def test_a_sealed_branch_of_a_held_log_is_a_conflict(held: Held, author: Author) -> None:
    entries = author.write_many(6)
    held.give(entries, author.seal(entries[5]))
    branch = author.write(put(b"other"), after=entries[2])
    assert held.give([branch]).refused == {"unsealed": 1}
    assert held.give([branch], forged(author.seal(branch))).conflicts == set()
    result = held.give([branch], author.seal(branch))
    assert (result.conflicts, result.entries) == ({author.log()}, [])
    above = author.write(put(b"more"), after=branch)
    assert held.give([branch, above], author.seal(above)).conflicts == {author.log()}
    assert held.head(author.log()) == 5


def test_a_sealed_entry_that_does_not_continue_the_head_is_a_conflict(held: Held, author: Author) -> None:
    entries = author.write_many(3)
    held.give(entries, author.seal(entries[2]))
    branch = author.write(put(b"other"), after=entries[1])
    above = author.write(put(b"more"), after=branch)
    assert held.give([above]).conflicts == set()
    assert held.give([above], author.seal(above)).conflicts == {author.log()}


def test_an_unsealed_63_between_a_header_and_its_seal_proves_nothing(held: Held, author: Author) -> None:
    entries = author.write_many(61)
    held.give(entries, author.seal(entries[60]))
    branch = [author.write(put(b"b"), after=entries[59])]
    while branch[-1].header.seq < 66:
        branch.append(author.write(put(b"b"), after=branch[-1]))
    assert held.give(branch, author.seal(branch[-1])).conflicts == set()
    sealed = [author.seal(entry) for entry in branch if entry.header.seq in (63, 66)]
    assert held.give(branch, *sealed).conflicts == {author.log()}


def test_nothing_from_a_frozen_seq_on_is_taken(author: Author) -> None:
    entries = author.write_many(6)
    store, log = MemoryStore(), author.log()
    first = Held()
    first.give(entries[:2], author.seal(entries[1]))
    batch = Batch()
    batch.logs[log] = LogHead(1, entries[1].id, 4)
    first.store.commit(batch)
    store = first.store.reopened()
    logs = Logs(NETWORK, store)
    logs.begin(Batch())
    seals = [author.seal(entries[seq]) for seq in (3, 5)]
    result = logs.accept(page(entries, seals), ORIGIN)
    assert [entry.header.seq for entry in result.entries] == [2, 3]
    assert result.refused == {"frozen": 2}
    assert logs.heads.get(log).frozen == 4


# Kept seals and pages.


def test_mandatory_seals_and_the_newest_are_kept(held: Held, author: Author) -> None:
    entries = author.write_many(200)
    for entry in entries:
        held.give([entry], author.seal(entry))
    assert held.kept(author.log()) == [63, 127, 191, 199]
    again = Held()
    again.give(entries, *[author.seal(entry) for entry in entries])
    assert again.kept(author.log()) == [63, 127, 191, 199]


def test_the_newest_seal_is_found_again_after_a_restart(held: Held, author: Author) -> None:
    entries = author.write_many(66)
    held.give(entries[:64], author.seal(entries[63]))
    held.logs = Logs(NETWORK, held.store.reopened())
    held.give([entries[64]], author.seal(entries[64]))
    held.logs = Logs(NETWORK, held.store)
    held.give([entries[65]], author.seal(entries[65]))
    assert held.kept(author.log()) == [63, 65]


def test_several_messages_in_one_commit_keep_one_newest_seal(held: Held, author: Author) -> None:
    entries = author.write_many(5)
    held.take(*[page([entry], [author.seal(entry)]) for entry in entries])
    assert held.kept(author.log()) == [4]


def test_pages_end_at_kept_seals_and_bring_every_reader_on(held: Held) -> None:
    author = Author()
    entries = [author.write(put(b"k", bytes(12 * KIB if n % 50 else 30 * KIB))) for n in range(200)]
    seals = [author.seal(entry) for entry in entries if entry.must_be_sealed or entry is entries[-1]]
    held.give(entries, *seals)
    log = author.log()
    for first in (0, 1, 50, 62, 63, 64, 130, 199):
        rows, row_seals = held.logs.page(log, first, 2**64 - 1)
        assert [row.seq for row in rows] == list(range(first, first + len(rows)))
        assert rows[-1].seq == row_seals[-1].seq
        assert all(first <= seal.seq <= rows[-1].seq for seal in row_seals)
        assert {s.seq for s in row_seals} >= {r.seq for r in rows if must_be_sealed(parse_header(r.header))}
    reader, first, pages = Held(), 0, 0
    while first < 200:
        rows, row_seals = held.logs.page(log, first, 199)
        size = sum(len(row.header) + len(row.ops) for row in rows)
        assert size <= PAGE_BYTES + 256 * KIB
        result = reader.take(Entries(tuple((row.header, row.ops) for row in rows), tuple(row_seals)))
        assert len(result.entries) == len(rows) > 0
        first += len(rows)
        pages += 1
    assert pages == 2
    assert reader.store.log_heads() == held.store.log_heads()
    assert reader.kept(log) == held.kept(log)


def test_the_largest_unsealed_stretch_fits_a_page(held: Held) -> None:
    author = Author()
    entries = [author.write(put(b"k", bytes(16 * KIB - 127 - 14))) for _ in range(63)]
    entries.append(author.write(put(b"k", bytes(127 * KIB)), put(b"k", bytes(127 * KIB))))
    held.give(entries, author.seal(entries[63]))
    rows, seals = held.logs.page(author.log(), 0, 10)
    assert (len(rows), [seal.seq for seal in seals]) == (64, [63])
    assert held.logs.page(author.log(), 0, 10, budget=500 * KIB) == ([], [])


def test_a_page_stops_at_the_first_seal_that_covers_what_was_wanted(held: Held, author: Author) -> None:
    entries = author.write_many(150)
    held.give(entries, *[author.seal(entries[seq]) for seq in (63, 127, 149)])
    log = author.log()

    def ends(first: int, last: int) -> tuple[int, list[int]]:
        rows, seals = held.logs.page(log, first, last)
        return rows[-1].seq, [seal.seq for seal in seals]

    assert ends(0, 0) == (63, [63])
    assert ends(0, 63) == (63, [63])
    assert ends(10, 64) == (127, [63, 127])
    assert ends(128, 128) == (149, [149])
    assert ends(0, 2**64 - 1) == (149, [63, 127, 149])
    assert held.logs.page(log, 150, 2**64 - 1) == ([], [])
    assert held.logs.page(LogKey(bytes(32), 1), 0, 5) == ([], [])


# Floods.


def test_a_flood_of_bad_seals_costs_few_verifications(
    held: Held, author: Author, verifications: list[Seal]
) -> None:
    entries = author.write_many(60)
    bad = [forged(author.seal(entry)) for entry in entries]
    result = held.give(entries, *bad[1:], author.seal(entries[0]))
    assert len(verifications) == BAD_SEALS_MAX
    assert result.refused == {"bad_seal": BAD_SEALS_MAX, "unsealed": 60}
    # An honest sender's message brings the same entries in.
    assert len(held.give(entries, author.seal(entries[59])).entries) == 60


def test_what_waits_is_not_verified_again_by_every_message(
    held: Held, author: Author, verifications: list[Seal]
) -> None:
    entries = author.write_many(40)
    held.give(entries[10:], *[author.seal(entry) for entry in entries[10:]])
    assert len(verifications) == 1
    for _ in range(5):
        held.give(entries[20:], author.seal(entries[39]))
    assert len(verifications) == 1


# What may be relayed.


def relayed(held: Held, message: Entries) -> bool:
    result = held.take(message)
    return held.logs.may_relay(message, result)


def test_what_may_be_relayed(held: Held, author: Author) -> None:
    entries = author.write_many(70)
    seals = {seq: author.seal(entries[seq]) for seq in (5, 10, 30, 63, 69)}
    assert relayed(held, page(entries[:6], [seals[5]]))
    assert relayed(held, page(entries[:6], [seals[5]])), "known to us, and still good for others"
    assert relayed(held, page(entries[6:31], [seals[10], seals[30]])), "a seal that nothing needed"
    assert relayed(held, page(entries[40:], [seals[63], seals[69]])), "it waits here, and is authentic"


def test_what_may_not_be_relayed(held: Held, author: Author) -> None:
    entries = author.write_many(70)
    seals = {seq: author.seal(entries[seq]) for seq in (5, 10, 63, 69)}
    held.give(entries, seals[63], seals[69])
    assert not relayed(held, page(entries[:6])), "no seal"
    assert not relayed(held, page(entries[:6], [forged(seals[5])])), "a bad seal over what we hold"
    assert not relayed(held, page(entries[:6], [seals[5], forged(seals[63])])), "a stray seal"
    assert not relayed(held, page(entries[:6], [seals[5], seals[10]])), "a seal without its entry"
    assert not relayed(held, page(entries[:7], [seals[5]])), "an entry above the seal"
    assert not relayed(held, page([entries[0], *entries[2:6]], [seals[5]])), "a gap"
    assert not relayed(held, page([entries[5], entries[5]], [seals[5]])), "an entry twice"
    assert not relayed(held, page(entries, [seals[69]])), "a mandatory seal is missing"
    more = author.write_many(2)
    assert not relayed(held, page(more, [author.seal(more[0]), forged(author.seal(more[1]))]))
    assert not relayed(held, Entries(((bytes(127), b""),), ()))
