"""The state, one rule at a time: versions, names, counters, leaves. Its laws stand in test_state_laws."""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence
from hashlib import sha256
from typing import Any

import pytest

from lattice.core.entry import Entry, Novelty, OpKind, Version, make_seal, parse_entry
from lattice.core.merkle import MerkleMap
from lattice.core.messages import Entries
from lattice.core.rows import Batch, KeyState, LiveVersion, LogKey
from lattice.core.state import META_NOVELTIES, State, leaf_of, names_for, unpack_novelties, winner_first
from lattice.storage.memory import MemoryStore
from tests.core.core_kit import NETWORK, Author, Replica, add, delete, page, put, vectors

CASES = vectors("state")


def live_of(case: Sequence[Any]) -> LiveVersion:
    return LiveVersion(bytes.fromhex(case[0]), case[1], bytes.fromhex(case[2]), 0, b"", 0, 0, 0, 0)


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_vectors(case: dict[str, Any]) -> None:
    tree, pairs = MerkleMap(), dict[bytes, bytes]()
    for item in case["keys"]:
        key, total = bytes.fromhex(item["key"]), item["total"].encode()
        data = b"lattice/leaf/v1\0" + struct.pack(">I", len(key)) + key + struct.pack(">I", len(item["live"]))
        for name, index, op_hash in item["live"]:
            data += bytes.fromhex(name) + struct.pack(">H", index) + bytes.fromhex(op_hash)
        data += struct.pack(">QI", item["adds"], len(total)) + total
        leaf = sha256(data).digest()
        state = KeyState(key, tuple(map(live_of, item["live"])), item["adds"], int(item["total"]))
        assert leaf.hex() == item["leaf"]
        assert leaf_of(state) == leaf
        pairs[sha256(key).digest()] = leaf
        tree.set(sha256(key).digest(), leaf)
    buckets = [b""] * 65_536
    for key_hash in sorted(pairs):
        buckets[int.from_bytes(key_hash[:2], "big")] += key_hash + pairs[key_hash]
    level = [sha256(b"lattice/bucket/v1\0" + packed).digest() for packed in buckets]
    while len(level) > 1:
        level = [
            sha256(b"lattice/node/v1\0" + level[at] + level[at + 1]).digest()
            for at in range(0, len(level), 2)
        ]
    assert level[0].hex() == case["state_root"] == tree.root().hex()


def test_the_vectors_hold_a_shared_bucket_and_siblings_in_order() -> None:
    by_name = {case["name"]: case for case in CASES}
    hashes = [sha256(bytes.fromhex(item["key"])).digest() for item in by_name["a bucket"]["keys"]]
    assert len({key_hash[:2] for key_hash in hashes}) == 1
    assert len(hashes) == 2
    siblings = by_name["several"]["keys"][1]["live"]
    assert siblings == sorted(siblings)


def test_no_versions_and_no_adds_is_no_leaf() -> None:
    assert leaf_of(KeyState(b"k")) is None
    assert leaf_of(KeyState(b"k", (), 1, 0)) is not None


def test_the_winner_is_first_by_clock_author_version() -> None:
    def version(clock: int, author: bytes, name: bytes, index: int) -> LiveVersion:
        return LiveVersion(name, index, b"", clock, author, 0, 0, 0, 0)

    ordered = [
        version(9, b"a", b"a", 0),
        version(8, b"b", b"a", 0),
        version(8, b"a", b"b", 0),
        version(8, b"a", b"a", 2),
        version(8, b"a", b"a", 1),
    ]
    for seed in range(5):
        shuffled = random.Random(seed).sample(ordered, len(ordered))
        assert winner_first(shuffled) == tuple(ordered)


def test_a_write_names_the_smallest_256() -> None:
    live = tuple(
        LiveVersion(struct.pack(">32s", b"%04d" % n), 0, b"", 0, b"", 0, 0, 0, 0) for n in range(300)
    )
    assert names_for(KeyState(b"k", live)) == tuple(held.version for held in live[:256])
    assert names_for(None) == ()


# One rule at a time.


def state_of(*messages: Entries) -> Replica:
    replica = Replica(50)
    for message in messages:
        replica.take(message)
    return replica


def sealed(author: Author, *entries: Entry) -> Entries:
    return page(entries, [author.seal(entries[-1])])


def version(entry: Entry, index: int = 0) -> Version:
    return Version(entry.id, index)


def live(replica: Replica, key: bytes = b"k") -> set[Version]:
    state = replica.store.key_state(key)
    return {held.version for held in state.live} if state is not None else set()


def test_concurrent_puts_are_siblings_until_a_write_names_them() -> None:
    one, two = Author(1), Author(2)
    a, b = one.write(put(b"k", b"a")), two.write(put(b"k", b"b"))
    replica = state_of(sealed(one, a), sealed(two, b))
    assert live(replica) == {version(a), version(b)}
    c = one.write(put(b"k", b"c", over=[version(a), version(b)]))
    replica.take(sealed(one, c))
    assert live(replica) == {version(c)}


def test_a_put_replaces_the_latest_earlier_put_of_its_log_without_naming_it() -> None:
    author = Author(1)
    first, second, third = author.write(put(b"k")), author.write(put(b"other")), author.write(put(b"k"))
    replica = state_of(sealed(author, first, second, third))
    assert live(replica) == {version(third)}
    assert replica.store.is_named(b"k", version(first))


def test_the_implicit_edge_is_to_the_latest_put_only_and_also_to_a_dead_one() -> None:
    one, two = Author(1), Author(2)
    first = one.write(put(b"k"))
    ended = two.write(delete(b"k", over=[version(first)]))
    second = one.write(put(b"k"))
    replica = state_of(sealed(one, first), sealed(two, ended), sealed(one, second))
    assert live(replica) == {version(second)}
    assert edges_of(replica, second) == {(0, b"k", version(first))}


def test_a_delete_has_the_implicit_edge_too() -> None:
    author = Author(1)
    entries = [author.write(put(b"k")), author.write(delete(b"k"))]
    assert live(state_of(sealed(author, *entries))) == set()


def test_within_one_entry_the_order_of_ops_counts() -> None:
    author = Author(1)
    entry = author.write(put(b"k", b"1"), put(b"k", b"2"), delete(b"gone"), put(b"gone"), put(b"gone2"),
                         delete(b"gone2"))  # fmt: skip
    replica = state_of(sealed(author, entry))
    assert live(replica) == {version(entry, 1)}
    assert live(replica, b"gone") == {version(entry, 3)}
    assert live(replica, b"gone2") == set()


def test_other_logs_of_the_same_author_are_other_logs() -> None:
    author = Author(1)
    a, b = author.write(put(b"k"), epoch=1), author.write(put(b"k"), epoch=2)
    assert live(state_of(sealed(author, a), sealed(author, b))) == {version(a), version(b)}


def test_a_delete_ends_what_it_names_and_a_concurrent_put_survives() -> None:
    one, two, three = Author(1), Author(2), Author(3)
    a = one.write(put(b"k", b"a"))
    gone = two.write(delete(b"k", over=[version(a)]))
    concurrent = three.write(put(b"k", b"c", over=[version(a)]))
    for order in ((a, gone, concurrent), (concurrent, gone, a), (gone, a, concurrent), (gone, concurrent, a)):
        by = {a.id: one, gone.id: two, concurrent.id: three}
        replica = state_of(*[sealed(by[entry.id], entry) for entry in order])
        assert live(replica) == {version(concurrent)}


def test_an_edge_that_comes_before_its_version_counts() -> None:
    one, two = Author(1), Author(2)
    a = one.write(put(b"k"))
    gone = two.write(delete(b"k", over=[version(a)]))
    early, late = state_of(sealed(two, gone)), state_of(sealed(one, a))
    assert early.engine.state_size == 0
    assert late.engine.state_size == 1
    early.take(sealed(one, a))
    late.take(sealed(two, gone))
    assert live(early) == live(late) == set()
    assert early.engine.roots == late.engine.roots
    assert early.engine.roots.state_root == MerkleMap().root()


def test_a_name_of_another_keys_version_does_not_count() -> None:
    one, two = Author(1), Author(2)
    a = one.write(put(b"k"), put(b"k2"))
    wrong = two.write(
        put(b"k2", over=[version(a, 0)]), delete(b"k", over=[version(a, 1)]), put(b"x", own=[0])
    )
    for order in ((sealed(one, a), sealed(two, wrong)), (sealed(two, wrong), sealed(one, a))):
        replica = state_of(*order)
        assert live(replica, b"k") == {version(a, 0)}
        assert live(replica, b"k2") == {version(a, 1), version(wrong, 0)}
        assert live(replica, b"x") == {version(wrong, 2)}


def test_own_names_count_for_the_same_key() -> None:
    one = Author(1)
    entry = one.write(put(b"k"), delete(b"k", own=[0]), put(b"k2"), put(b"k2", own=[2, 2]))
    replica = state_of(sealed(one, entry))
    assert live(replica) == set()
    assert live(replica, b"k2") == {version(entry, 3)}


def test_names_of_nothing_and_of_ops_that_are_no_puts_change_nothing() -> None:
    one, two = Author(1), Author(2)
    a = one.write(add(b"k", 5), put(b"k"))
    names = [version(a, 0), version(a, 200), Version(bytes(32), 0), Version(bytes(32), 65535)]
    b = two.write(put(b"k", over=names))
    replica = state_of(sealed(one, a), sealed(two, b))
    assert live(replica) == {version(a, 1), version(b)}
    state = replica.store.key_state(b"k")
    assert state is not None
    assert (state.adds, state.total) == (1, 5)


def test_counters_add_up_beyond_every_fixed_width() -> None:
    author = Author(1)
    most = 2**53 - 1
    entries = [author.write(*[add(b"n", most)] * 200) for _ in range(6)]
    replica = state_of(sealed(author, *entries))
    state = replica.store.key_state(b"n")
    assert state is not None
    assert (state.adds, state.total) == (1200, 1200 * most)
    assert state.total > 2**63
    back = author.write(*[add(b"n", -most)] * 200)
    replica.take(sealed(author, back))
    state = replica.store.key_state(b"n")
    assert state is not None
    assert state.total == 1000 * most


def test_a_counter_of_zero_is_there_and_independent_of_the_versions() -> None:
    author = Author(1)
    replica = state_of(sealed(author, author.write(add(b"k", 3), add(b"k", -3))))
    assert replica.engine.state_size == 1
    replica.take(sealed(author, author.write(put(b"k"), delete(b"k"))))
    state = replica.store.key_state(b"k")
    assert state is not None
    assert (state.live, state.adds, state.total, state.present) == ((), 2, 0, True)


def test_unknown_kinds_and_broken_ops_are_stored_and_not_applied() -> None:
    author = Author(1)
    broken = [b"\x09" + put(b"k")[1:], b"", put(b"\xff"), put(b"k", own=[4]), add(b"k", 2**53)]
    entry = author.write(*broken, put(b"k"))
    replica = state_of(sealed(author, entry))
    assert live(replica) == {version(entry, 5)}
    assert replica.engine.statistics()["ops_skipped"] == 5
    # Only what a newer program made calls for an upgrade, and it does so after a restart as well.
    assert replica.engine.novelties() == {"op kind 9": 1}
    assert State(replica.store, MerkleMap()).novelties == {Novelty(False, 9): 1}
    row = replica.store.entry_by_id(entry.id)
    assert row is not None
    assert row.ops == entry.ops
    assert [op.op_index for op in replica.store.history(b"k", 10)] == [5]


def test_an_unknown_format_version_is_chained_and_not_applied() -> None:
    author = Author(1)
    first = author.write(put(b"k", b"1"))
    header = first.header._replace(version=7, seq=1, prev=first.id)

    future = parse_entry(NETWORK, header.pack(), first.ops)
    last = author.write(put(b"k", b"2"), after=future)
    seal = make_seal(author.key, NETWORK, last.header, last.id)
    replica = state_of(page([first, future, last], [seal]))
    assert replica.store.entry_count() == 3
    assert live(replica) == {version(last)}
    assert replica.store.history(b"k", 9)[-1].seq == 2
    assert replica.engine.novelties() == {"entry format 7": 1}


def test_what_is_not_known_is_no_longer_counted_once_it_is_taken_out() -> None:
    author = Author(1)
    first, second = author.write(b"\x09" + put(b"k")[1:]), author.write(b"\xc8" + put(b"k")[1:], put(b"k"))
    reader = MemoryStore()
    state = State(reader, MerkleMap())
    batch = Batch()
    state.begin(batch)
    for entry in (first, second):
        state.apply(entry)
    assert {str(found): count for found, count in state.novelties.items()} == {
        "op kind 9": 1,
        "op kind 200": 1,
    }
    log = LogKey(author.key.public_key, second.header.epoch)
    state.remove(log, 1, [second])
    state.settle()
    assert unpack_novelties(batch.meta[META_NOVELTIES]) == {Novelty(False, 9): 1}
    assert state.skipped_ops == 1


@pytest.mark.parametrize(
    ("number", "text"), [(9, "entry format 9"), (255, "entry format 255"), (256, "entry formats above 255")]
)
def test_a_format_beyond_counting_is_named_as_one_of_many(number: int, text: str) -> None:
    assert str(Novelty(True, number)) == text


def test_siblings_are_at_most_the_number_of_logs() -> None:
    authors = [Author(number) for number in range(4)]
    messages = [
        sealed(author, author.write(put(b"k", b"%d" % turn))) for turn in range(5) for author in authors
    ]
    chance = random.Random(3)
    replica = state_of(*messages, *chance.sample(messages, 5))
    assert len(live(replica)) == 4


def test_the_leaf_knows_nothing_of_clocks_and_arrival() -> None:
    author, other = Author(1), Author(1)
    replicas = [
        state_of(sealed(writer, writer.write(put(b"k"), clock=clock)))
        for writer, clock in ((author, 1), (other, 2))
    ]
    one, two = (replica.store.key_state(b"k") for replica in replicas)
    assert one is not None
    assert two is not None
    assert one.live[0].op_hash == two.live[0].op_hash
    moved = one.live[0]._replace(clock=9, author=b"z" * 32, epoch=5, seq=5, value_at=9, value_size=9)
    assert leaf_of(one._replace(live=(moved,))) == leaf_of(one)


def test_values_of_any_size_and_content_are_kept() -> None:
    author = Author(1)
    values = [b"", b"\xff\0not json", bytes(131_072)]
    entry = author.write(*[put(b"%d" % n, value) for n, value in enumerate(values)])
    replica = state_of(sealed(author, entry))
    for number, value in enumerate(values):
        assert replica.value(b"%d" % number) == [value]


def edges_of(replica: Replica, entry: Entry) -> set[tuple[int, bytes, Version]]:
    """(op index, key, target) of all edges that an entry's ops were stored with."""
    return {
        (edge.op_index, edge.key, edge.target)
        for batch in replica.batches
        for edge in batch.edges
        if (edge.author, edge.epoch, edge.seq) == entry.header[1:4]
    }


def test_edges_are_stored_for_all_that_is_named_also_within_one_commit() -> None:
    """Edges to what is dead already, since taking out what ended it must not bring it back."""
    author = Author(1)
    first = author.write(put(b"k"), put(b"k"), delete(b"k", own=[0]), put(b"k"))
    second = author.write(put(b"k"), put(b"k2", own=[0]))
    replica = state_of(sealed(author, first, second))
    assert edges_of(replica, first) == {
        (1, b"k", version(first, 0)),
        (2, b"k", version(first, 0)),
        (2, b"k", version(first, 1)),
        (3, b"k", version(first, 1)),
    }
    assert edges_of(replica, second) == {
        (0, b"k", version(first, 3)),
        (1, b"k2", version(second, 0)),
    }


def test_the_rows_of_a_batch() -> None:
    """What the state writes for a store: ops in order, edges by the naming key, whole key states."""
    store, author = MemoryStore(), Author(1)
    batch = Batch()
    state = State(store, MerkleMap())
    state.begin(batch)
    first = author.write(put(b"k"), add(b"n", 2), delete(b"m", over=[Version(bytes(32), 3)]))
    second = author.write(put(b"k"))
    assert state.apply(first) == [b"k", b"n", b"m"]
    assert state.apply(second) == [b"k"]
    root = state.settle()
    log = LogKey(author.key.public_key, 1)
    places = [(op.key, op.seq, op.op_index, op.kind, op.id) for op in batch.ops]
    assert places == [
        (b"k", 0, 0, OpKind.PUT, first.id),
        (b"n", 0, 1, OpKind.ADD, first.id),
        (b"m", 0, 2, OpKind.DELETE, first.id),
        (b"k", 1, 0, OpKind.PUT, second.id),
    ]
    assert [(edge.key, edge.target, edge.seq, edge.op_index) for edge in batch.edges] == [
        (b"m", Version(bytes(32), 3), 0, 2),
        (b"k", version(first), 1, 0),
    ]
    assert all((row.author, row.epoch) == log for row in [*batch.ops, *batch.edges])
    assert batch.keys[b"m"] == KeyState(b"m"), "a touched key has a row even with nothing in it"
    rebuilt = MerkleMap({number: packed for number, packed in batch.buckets.items() if packed})
    assert rebuilt.root() == root
