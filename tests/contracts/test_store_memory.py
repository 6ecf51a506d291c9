"""The ways in which a memory store fails when a simulator tells it to."""

from __future__ import annotations

import pytest

from lattice.core.errors import LatticeError
from lattice.core.rows import Batch
from lattice.storage.memory import Disk, MemoryStore


def _numbered(number: int) -> Batch:
    return Batch(meta={"number": bytes((number,))})


def _refusal(store: MemoryStore, batch: Batch) -> str:
    with pytest.raises(LatticeError) as refused:
        store.commit(batch)
    return refused.value.code


def test_a_full_disk_takes_commits_again_when_there_is_room() -> None:
    disk = Disk(free_bytes=0, error="no_space")
    store = MemoryStore(disk)
    assert store.free_bytes() == 0
    assert _refusal(store, _numbered(1)) == "no_space"
    assert store.meta("number") is None
    disk.error = None
    store.commit(_numbered(1))
    assert store.meta("number") == b"\1"


@pytest.mark.parametrize(("lands", "found"), [(False, b"\1"), (True, b"\2")])
def test_a_failed_write_ends_the_store_and_the_next_one_finds_it_or_not(lands: bool, found: bytes) -> None:
    disk = Disk(lands=lands)
    store = MemoryStore(disk)
    store.commit(_numbered(1))
    disk.error = "store_failed"
    assert _refusal(store, _numbered(2)) == "store_failed"
    disk.error = None
    assert _refusal(store, _numbered(3)) == "store_failed"
    # Reads go on from the last commit.
    assert store.meta("number") == b"\1"
    after = store.reopened()
    assert after.meta("number") == found
    after.commit(_numbered(4))
    assert after.meta("number") == b"\4"


def test_a_disk_that_lies_loses_the_last_commits() -> None:
    store = MemoryStore(Disk(remembers=True))
    for number in range(1, 6):
        store.commit(_numbered(number))
    after = store.reopened(lose=2)
    assert after.meta("number") == b"\3"
    after.commit(_numbered(9))
    assert after.reopened(lose=1).meta("number") == b"\3"
    assert after.reopened().meta("number") == b"\t"
    with pytest.raises(AssertionError):
        MemoryStore().reopened(lose=1)
