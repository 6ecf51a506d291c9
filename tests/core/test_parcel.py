"""Parcels: what the bodies of one bring to a member that holds something, or nothing."""

from __future__ import annotations

import pytest

from lattice.core import parcel
from lattice.core.engine import Gossiped
from lattice.core.messages import Entries, Proof, decode_messages
from tests.core.core_kit import NETWORK, NOW_MS, Author, Replica, page, put

HOUR_MS = 3_600_000
NOTHING = Entries((), ())


def carry(source: Replica, target: Replica, *, since_ms: int = 0) -> list[int]:
    """Bring a parcel from one to the other; the number of entries in each of its bodies."""
    counts = []
    for number, (body, count) in enumerate(parcel.bodies(NETWORK, source.store, since_ms)):
        messages = decode_messages(body)
        (entries,) = [each for each in messages if isinstance(each, Entries)] or [NOTHING]
        proofs = tuple(each for each in messages if isinstance(each, Proof))
        target.run(Gossiped(number, source.key.public_key, "file", entries, proofs))
        counts.append(count)
    return counts


@pytest.mark.parametrize("at", [0, 2])
def test_a_fork_that_was_found_later_goes_along_though_its_entries_do_not(at: int) -> None:
    """`at` 0: nothing of the log is held any more."""
    author, source, target = Author(3), Replica(1), Replica(2)
    entries = author.write_many(5)
    for replica in (source, target):
        replica.take(page(entries, [author.seal(entries[4])]))
    other = Author(3)
    branch = other.write_many(at)
    branch.append(other.write(put(b"branch")))
    source.now_ms = NOW_MS + HOUR_MS
    source.take(page(branch, [other.seal(branch[-1])]))
    assert source.store.log_heads()[author.log()].frozen == at
    before = source.engine.roots

    assert carry(source, target, since_ms=NOW_MS + HOUR_MS // 2) == [0]
    assert target.engine.roots.log_root == before.log_root
    assert target.engine.roots.state_root == before.state_root


def test_since_brings_what_follows_the_first_entry_that_came_later() -> None:
    author, source, target = Author(3), Replica(1), Replica(2)
    entries = author.write_many(5)
    for replica in (source, target):
        replica.take(page(entries[:3], [author.seal(entries[2])]))
    source.now_ms = NOW_MS + HOUR_MS
    source.take(page(entries[3:], [author.seal(entries[4])]))
    assert carry(source, target, since_ms=NOW_MS + HOUR_MS) == [2]
    assert target.engine.roots == source.engine.roots
    assert carry(source, Replica(4)) == [5]
    assert carry(source, target, since_ms=NOW_MS + 2 * HOUR_MS) == []
