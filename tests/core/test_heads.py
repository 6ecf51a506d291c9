"""Heads: the frozen bytes of log heads, digests and log root, and an index that is never stale."""

from __future__ import annotations

import struct
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lattice.core.heads import (
    NO_HEAD,
    HeadsIndex,
    author_digest,
    log_root,
    pack_log_head,
    unpack_log_head,
)
from lattice.core.limits import FROZEN_NEVER
from lattice.core.rows import LogHead, LogKey
from tests.core.core_kit import vectors

CASES = vectors("heads")


def rfc_root(leaves: list[bytes]) -> bytes:
    """RFC 6962, section 2.1, over leaves that are not hashed yet."""
    if len(leaves) <= 1:
        return sha256(b"\0" + leaves[0]).digest() if leaves else sha256(b"").digest()
    split = 1 << (len(leaves) - 1).bit_length() - 1
    return sha256(b"\1" + rfc_root(leaves[:split]) + rfc_root(leaves[split:])).digest()


def naive_root(heads: dict[LogKey, LogHead]) -> bytes:
    packed: dict[bytes, bytes] = {}
    for log, head in sorted(heads.items()):
        seq = head.seq if head.seq >= 0 else 2**64 - 1
        data = struct.pack(">QQ", log.epoch, seq) + head.id + struct.pack(">Q", head.frozen)
        packed[log.author] = packed.get(log.author, b"") + data
    digests = {author: sha256(b"lattice/author/v1\0" + data).digest() for author, data in packed.items()}
    return rfc_root([author + digests[author] for author in sorted(digests)])


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_vectors(case: dict[str, Any]) -> None:
    heads: dict[LogKey, LogHead] = {}
    authors: dict[str, dict[int, LogHead]] = {}
    for log in case["logs"]:
        seq = 2**64 - 1 if log["seq"] < 0 else log["seq"]
        packed = struct.pack(">QQ", log["epoch"], seq) + bytes.fromhex(log["id"])
        packed += struct.pack(">Q", log["frozen"])
        head = LogHead(log["seq"], bytes.fromhex(log["id"]), log["frozen"])
        assert packed.hex() == log["bytes"]
        assert pack_log_head(log["epoch"], head) == packed
        assert unpack_log_head(packed) == (log["epoch"], head)
        heads[LogKey(bytes.fromhex(log["author"]), log["epoch"])] = head
        authors.setdefault(log["author"], {})[log["epoch"]] = head
    assert {author: author_digest(logs).hex() for author, logs in authors.items()} == case["digests"]
    assert naive_root(heads).hex() == case["log_root"] == log_root(heads).hex()


def test_the_digest_is_over_epochs_in_order() -> None:
    logs = {epoch: LogHead(0, bytes([epoch]) * 32) for epoch in (9, 2, 5)}
    expected = sha256(
        b"lattice/author/v1\0" + b"".join(pack_log_head(epoch, logs[epoch]) for epoch in (2, 5, 9))
    )
    assert author_digest(logs) == expected.digest()


AUTHORS = st.sampled_from([bytes([number]) * 32 for number in range(4)])
HEADS = st.builds(
    LogHead,
    st.integers(-1, 3),
    st.sampled_from([bytes(32), b"\1" * 32]),
    st.sampled_from([0, 2, FROZEN_NEVER]),
)


@pytest.mark.slow
@given(st.lists(st.tuples(st.builds(LogKey, AUTHORS, st.integers(0, 2)), HEADS, st.booleans()), max_size=25))
def test_the_index_is_the_naive_root_at_every_step(steps: list[tuple[LogKey, LogHead, bool]]) -> None:
    index, heads = HeadsIndex({}), dict[LogKey, LogHead]()
    for key, head, look in steps:
        index.set(key, head)
        if head.seq < 0 and head.frozen == FROZEN_NEVER:
            heads.pop(key, None)
        else:
            heads[key] = head
        if look:
            assert index.root() == naive_root(heads)
    assert index.root() == naive_root(heads) == log_root(heads) == HeadsIndex(heads).root()
    assert index.all() == heads
    assert index.digests() == sorted(index.digests())
    assert {author for author, _ in index.digests()} == {key.author for key in heads}
    for author in {key.author for key, _, _ in steps}:
        held = {key.epoch: head for key, head in heads.items() if key.author == author}
        assert index.logs_of(author) == held
        assert index.has_author(author) is bool(held)
        assert index.digest(author) == (author_digest(held) if held else None)


def test_a_log_that_is_not_held_has_no_head() -> None:
    index = HeadsIndex({})
    assert index.get(LogKey(bytes(32), 1)) == NO_HEAD == LogHead(-1, bytes(32), FROZEN_NEVER)
    assert index.root() == sha256(b"").digest()


def test_a_frozen_log_with_nothing_held_is_listed() -> None:
    key = LogKey(bytes(32), 1)
    frozen = {key: LogHead(-1, bytes(32), 0)}
    assert log_root(frozen) != log_root({})
    assert HeadsIndex(frozen).digest(key.author) is not None
