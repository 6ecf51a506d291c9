"""The two indexes that are brought up to date in shares: leaves by bucket, entries by id."""

from __future__ import annotations

from hashlib import sha256

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lattice.core.merkle import MerkleMap, bucket_of
from lattice.storage import id_index, leaf_log
from lattice.storage.id_index import IdIndex
from lattice.storage.leaf_log import LeafLog

PAIR = 64


class LeafTables:
    """The two tables as a store keeps them."""

    def __init__(self) -> None:
        self.groups: dict[int, bytes] = {}
        self.log: dict[int, bytes] = {}
        self.dropped = 0

    def commit(self, leaves: LeafLog, changed: dict[int, bytes]) -> None:
        change = leaves.plan(changed)
        if change is None:
            return
        assert change.number not in self.log
        self.log[change.number] = change.leaves
        self.groups.update(change.groups)
        if change.drop_to is not None:
            self.log = {number: row for number, row in self.log.items() if number > change.drop_to}
            self.dropped += 1
        leaves.apply(change)

    def opened(self) -> LeafLog:
        return LeafLog(sorted(self.groups.items()), sorted(self.log.items()))


# Few hashes in few buckets, so that pairs are changed, removed and put between others.
hashes = st.integers(0, 40).map(
    lambda number: bytes((0, number % 5 * 60)) + sha256(bytes((number,))).digest()[2:]
)
leaves_or_none = st.one_of(st.none(), st.integers(0, 9).map(lambda number: sha256(bytes((number,))).digest()))
changes = st.lists(st.dictionaries(hashes, leaves_or_none, max_size=12), max_size=25)


@pytest.mark.slow
@settings(deadline=None)
@given(changes, st.sets(st.integers(0, 25)))
def test_buckets_come_back_from_groups_and_log(
    commits: list[dict[bytes, bytes | None]], openings: set[int]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(leaf_log, "_LOG_BYTES_MIN", 3 * PAIR)
        patch.setattr(leaf_log, "_GROUP_BYTES_MIN", 600)
        tables, tree = LeafTables(), MerkleMap()
        leaves = tables.opened()
        for number, commit in enumerate(commits):
            for key_hash, leaf in commit.items():
                tree.set(key_hash, leaf)
            tables.commit(leaves, tree.changed_buckets())
            tree.root()
            if number in openings:
                leaves = tables.opened()
            assert (
                leaves.buckets
                == {bucket: tree.bucket(bucket) for bucket in range(2**16) if tree.bucket(bucket)}
                if number == len(commits) - 1
                else True
            )
        assert tables.opened().buckets == leaves.buckets
        assert MerkleMap(leaves.buckets).root() == tree.root()


def test_the_log_of_leaves_stays_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaf_log, "_LOG_BYTES_MIN", 20 * PAIR)
    tables, tree = LeafTables(), MerkleMap()
    leaves = tables.opened()
    longest = 0
    for number in range(3000):
        tree.set(sha256(b"%d" % number).digest(), sha256(b"leaf").digest())
        tables.commit(leaves, tree.changed_buckets())
        tree.root()
        longest = max(longest, sum(map(len, tables.log.values())))
    assert tables.dropped > 2
    # A rotation folds every group touched, each charged as 8 KiB against 8 times what is logged.
    assert longest < 1100 * 1024
    assert MerkleMap(tables.opened().buckets).root() == tree.root()


def test_a_leaf_is_found_only_as_the_beginning_of_a_pair() -> None:
    key = b"a key"
    key_hash = sha256(key).digest()
    number = bucket_of(key_hash)
    decoy = key_hash[:2] + bytes(30) + key_hash  # stands where a leaf should
    leaves = LeafLog([], [(1, decoy)])
    assert leaves.buckets == {number: decoy}
    assert not leaves.holds(key)
    leaves = LeafLog([], [(1, decoy), (2, key_hash + bytes(31) + b"\1")])
    assert leaves.holds(key)
    assert not leaves.holds(b"another key")


@pytest.mark.parametrize(
    ("groups", "log"),
    [
        ([(0, b"short")], []),
        ([(5000, bytes(256))], []),
        ([(1, bytes(256) + bytes(64))], []),
        ([], [(1, bytes(63))]),
    ],
)
def test_damaged_rows_of_leaves_are_refused(
    groups: list[tuple[int, bytes]], log: list[tuple[int, bytes]]
) -> None:
    with pytest.raises(ValueError, match=r"group|row"):
        LeafLog(groups, log)


class IdTables:
    def __init__(self) -> None:
        self.ids: set[tuple[bytes, int]] = set()
        self.fresh: dict[int, bytes] = {}

    def commit(self, index: IdIndex, added: list[tuple[bytes, int]]) -> int:
        change = index.plan(added)
        if change is None:
            return 0
        self.fresh[change.number] = change.packed
        assert list(change.rows) == sorted(change.rows) or len(change.flushed) > 1
        self.ids.update(change.rows)
        self.fresh = {number: row for number, row in self.fresh.items() if number > change.drop_to}
        index.apply(change)
        return len(change.rows)

    def opened(self) -> IdIndex:
        return IdIndex(sorted(self.fresh.items()))

    def find(self, index: IdIndex, entry_id: bytes) -> set[int]:
        held = {slot for head, slot in self.ids if head == entry_id[: id_index.HEAD_BYTES]}
        return held.union(index.fresh_slots(entry_id))


@pytest.mark.slow
@settings(deadline=None)
@given(st.lists(st.integers(0, 30), max_size=40), st.sets(st.integers(0, 40)), st.integers(0, 200))
def test_every_id_is_found_in_the_index_or_among_the_fresh(
    sizes: list[int], openings: set[int], fresh_max: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(id_index, "_FRESH_MAX", fresh_max)
        tables = IdTables()
        index = tables.opened()
        held: dict[bytes, int] = {}
        for number, size in enumerate(sizes):
            added = [(sha256(b"%d %d" % (number, at)).digest(), len(held) + at) for at in range(size)]
            tables.commit(index, added)
            held.update(added)
            if number in openings:
                index = tables.opened()
        for entry_id, slot in held.items():
            assert tables.find(index, entry_id) == {slot}
        assert tables.find(index, sha256(b"unknown").digest()) == set()


def test_two_ids_that_begin_alike_are_both_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(id_index, "_FRESH_MAX", 2)
    tables = IdTables()
    index = tables.opened()
    alike = [b"\x80same" + bytes((number,)) * 27 for number in (1, 1, 1)]
    alike = [head[:6] + bytes((number,)) * 26 for number, head in enumerate(alike)]
    for slot, entry_id in enumerate(alike):
        tables.commit(index, [(entry_id, slot)])
        assert tables.find(index, entry_id) == set(range(slot + 1))


@pytest.mark.slow
def test_rows_of_fresh_ids_are_dropped_after_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(id_index, "_FRESH_MAX", 640)
    tables = IdTables()
    index = tables.opened()
    ids = [sha256(b"%d" % number).digest() for number in range(4000)]
    flushed = [tables.commit(index, [(entry_id, number)]) for number, entry_id in enumerate(ids)]
    # One slice at a time, about twice 640 / 64 ids in each, and only when there are too many.
    assert max(flushed) < 50
    assert sum(1 for size in flushed if size) < 500
    assert len(tables.fresh) < 2000
    with pytest.raises(ValueError, match="row 1 of the fresh ids"):
        IdIndex([(1, b"\0")])
