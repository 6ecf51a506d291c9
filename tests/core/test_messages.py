"""The six messages: the frozen bytes, every value back and forth, and nothing but MalformedError."""

from __future__ import annotations

import struct
from dataclasses import replace
from hashlib import sha256

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lattice.core.entry import HEADER_BYTES, Seal
from lattice.core.errors import MalformedError
from lattice.core.limits import (
    ADDRESSES_MAX,
    HEADS_LOGS_MAX,
    HEARD_MAX,
    MESSAGES_MAX,
    PADDING_BYTES,
    WANT_RANGES_MAX,
)
from lattice.core.messages import (
    Addresses,
    Beat,
    BeatFlag,
    Entries,
    Heads,
    HeadsFlag,
    Hello,
    Message,
    Proof,
    Roots,
    Unknown,
    Want,
    WantEntries,
    decode_messages,
    encode_messages,
)
from lattice.core.rows import LogHead
from tests.core.core_kit import vectors

HASHES = st.binary(min_size=32, max_size=32)
U16, U32, U64 = st.integers(0, 2**16 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
TEXTS = st.text(max_size=12)
ADDRESSES = st.builds(Addresses, st.tuples(TEXTS, TEXTS) | st.just(()), st.tuples(TEXTS) | st.just(()))
ROOTS = st.builds(Roots, HASHES, HASHES, U16, U64)
LOG_HEADS = st.builds(LogHead, st.integers(-1, 2**64 - 2), HASHES, U64)
LISTS = st.tuples(HASHES, st.lists(st.tuples(U64, LOG_HEADS), max_size=3).map(tuple))
SEALS = st.builds(Seal, HASHES, U64, U64, HASHES, st.binary(min_size=64, max_size=64))
FRAMES = st.tuples(st.binary(min_size=HEADER_BYTES, max_size=HEADER_BYTES), st.binary(max_size=30))
RANGES = st.tuples(HASHES, U64, U64, U64).map(lambda w: Want(w[0], w[1], min(w[2:]), max(w[2:])))


def tuples(items: st.SearchStrategy[object], most: int = 3) -> st.SearchStrategy[tuple[object, ...]]:
    return st.lists(items, max_size=most).map(tuple)


MESSAGES: st.SearchStrategy[Message] = st.one_of(
    st.builds(Hello, U16, U16, TEXTS, U64, ADDRESSES, HASHES, HASHES),
    st.builds(
        Beat,
        ROOTS,
        st.sampled_from(["P2P", "HTTP", "ISOLATED"]),
        st.integers(0, 255).map(BeatFlag),
        U32,
        tuples(HASHES),
        st.none() | st.tuples(U64, U64, HASHES),
        TEXTS,
        ADDRESSES,
    ),
    st.builds(
        Heads,
        U64,
        st.integers(0, 255).map(HeadsFlag),
        ROOTS,
        U32,
        tuples(st.tuples(HASHES, HASHES)),
        st.lists(LISTS, max_size=3, unique_by=lambda listed: listed[0]).map(tuple),
        st.integers(0, 40),
    ),
    st.builds(WantEntries, tuples(RANGES)),
    st.builds(Entries, tuples(FRAMES), tuples(SEALS)),
    st.builds(Proof, st.integers(0, 255), st.binary(max_size=20)),
    st.builds(Unknown, st.integers(7, 255), st.binary(max_size=20)),
)


@given(st.lists(MESSAGES, max_size=4))
def test_messages_come_back(messages: list[Message]) -> None:
    data = encode_messages(messages)
    assert decode_messages(data) == messages
    assert encode_messages(decode_messages(data)) == data


@pytest.mark.slow
@settings(max_examples=200)
@given(MESSAGES)
def test_every_truncation_and_every_trailing_byte_is_malformed(message: Message) -> None:
    data = encode_messages([message])
    for cut in range(1, len(data)):
        with pytest.raises(MalformedError):
            decode_messages(data[:cut])
    with pytest.raises(MalformedError):
        decode_messages(data + b"\0")
    if not isinstance(message, Unknown):
        # The same inside the frame of the message: too short and too long for its fields.
        payload = data[5:]
        for inner in (payload[:-1], payload + b"\0"):
            with pytest.raises(MalformedError):
                decode_messages(data[:1] + struct.pack(">I", len(inner)) + inner)


@given(st.integers(0, 255), st.binary(max_size=400))
def test_random_payloads_never_raise_anything_else(number: int, payload: bytes) -> None:
    try:
        messages = decode_messages(bytes([number]) + struct.pack(">I", len(payload)) + payload)
    except MalformedError:
        return
    assert len(messages) == 1


@pytest.mark.slow
@settings(max_examples=300)
@given(MESSAGES, st.data())
def test_altered_messages_never_raise_anything_else(message: Message, data: st.DataObject) -> None:
    """A flipped byte in a good message goes deeper than random bytes do. Whatever is decoded can
    be encoded again."""
    changed = bytearray(encode_messages([message]))
    for at in data.draw(st.lists(st.integers(0, len(changed) - 1), min_size=1, max_size=3)):
        changed[at] = data.draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]))
    try:
        decoded = decode_messages(bytes(changed))
    except MalformedError:
        return
    assert decode_messages(encode_messages(decoded)) == decoded


# The frozen bytes, put together here field by field.

VECTORS = {case["name"]: bytes.fromhex(case["bytes"]) for case in vectors("messages")}
ENVELOPE = vectors("envelope")
ENTRY = vectors("entry")[0]
ENTRY_ID = bytes.fromhex(ENTRY["id"])
ALICE, BOB = bytes.fromhex(ENVELOPE[0]["sender"]), bytes.fromhex(ENVELOPE[1]["sender"])
ROOTS_BYTES = sha256(b"log root").digest() + sha256(b"state root").digest() + struct.pack(">HQ", 1, 12_345)


def text(value: str) -> bytes:
    return struct.pack(">I", len(value.encode())) + value.encode()


ADDRESS_BYTES = (
    struct.pack(">I", 2) + text("/ip4/192.0.2.1/tcp/9000") + text("/ip6/2001:db8::1/tcp/9000")
    + struct.pack(">I", 1) + text("https://node.example:8100/lattice")
)  # fmt: skip
PAYLOADS = {
    "hello": (
        1,
        struct.pack(">HH", 1, 1) + text("nodeA") + bytes(8) + ADDRESS_BYTES
        + sha256(b"challenge").digest() + bytes(32),
    ),
    "beat": (
        2,
        ROOTS_BYTES + struct.pack(">BBII", 1, 2, 5000, 1) + BOB + struct.pack(">BQQ", 1, 7, 9) + ENTRY_ID
        + text("é") + ADDRESS_BYTES,
    ),
    "beat before the first write": (2, ROOTS_BYTES + struct.pack(">BBII", 0, 0, 5000, 0) + bytes(13)),
    "heads": (3, struct.pack(">QB", 3, 0) + ROOTS_BYTES + struct.pack(">I", 20_000) + bytes(12)),
    "heads with digests": (
        3,
        struct.pack(">QB", 3, 1) + ROOTS_BYTES + struct.pack(">II", 0, 1) + ALICE
        + sha256(b"digest").digest() + bytes(8),
    ),
    "heads with lists": (
        3,
        struct.pack(">QB", 3, 2 | 8) + ROOTS_BYTES + struct.pack(">III", 0, 0, 2)
        + ALICE + struct.pack(">IQQ", 2, 7, 9) + ENTRY_ID + struct.pack(">Q", 2**64 - 1)
        + struct.pack(">QQ", 8, 2**64 - 1) + bytes(32) + struct.pack(">Q", 4)
        + BOB + bytes(4) + struct.pack(">I", 5) + bytes(5),
    ),
    "want": (
        4,
        struct.pack(">I", 2) + ALICE + struct.pack(">QQQ", 7, 0, 9)
        + BOB + struct.pack(">QQQ", 2**64 - 1, 5, 5),
    ),
    "entries": (
        5,
        struct.pack(">I", 1) + bytes.fromhex(ENTRY["header"])
        + struct.pack(">I", len(ENTRY["ops_bytes"]) // 2) + bytes.fromhex(ENTRY["ops_bytes"])
        + struct.pack(">I", 1) + bytes.fromhex(ENTRY["seal"]),
    ),
    "proof": (6, struct.pack(">BI", 200, 15) + b"of a later kind"),
}  # fmt: skip


@pytest.mark.parametrize("name", PAYLOADS)
def test_message_vectors(name: str) -> None:
    number, payload = PAYLOADS[name]
    data = struct.pack(">BI", number, len(payload)) + payload
    assert VECTORS[name] == data
    (message,) = decode_messages(data)
    assert not isinstance(message, Unknown)
    assert encode_messages([message]) == data


def test_every_vector_is_checked() -> None:
    assert VECTORS.keys() == PAYLOADS.keys()
    assert {number for number, _ in PAYLOADS.values()} == set(range(1, 7))


# Limits.


def heads(logs: int, authors: int = 1) -> Heads:
    listed = tuple((n, LogHead(0, bytes(32))) for n in range(logs))
    lists = tuple((struct.pack(">32s", b"%d" % n), listed) for n in range(authors))
    return Heads(1, HeadsFlag.LISTS, Roots(bytes(32), bytes(32), 1, 0), logs=lists)


def test_one_budget_for_all_log_heads() -> None:
    half = HEADS_LOGS_MAX // 2
    assert decode_messages(encode_messages([heads(half, 2)])) == [heads(half, 2)]
    with pytest.raises(MalformedError):
        decode_messages(encode_messages([heads(half + 1, 2)]))


@pytest.mark.parametrize(
    ("within", "beyond"),
    [
        (
            Hello(1, 1, "n" * 64, 0, Addresses(("a" * 256,) * ADDRESSES_MAX, ())),
            Hello(1, 1, "n" * 65, 0, Addresses()),
        ),
        (
            Hello(1, 1, "", 0, Addresses((), ("a",) * ADDRESSES_MAX)),
            Hello(1, 1, "", 0, Addresses((), ("a",) * (ADDRESSES_MAX + 1))),
        ),
        (Hello(1, 1, "", 0, Addresses()), Hello(1, 1, "", 0, Addresses(("a" * 257,), ()))),
        (
            Heads(1, HeadsFlag(0), Roots(bytes(32), bytes(32), 1, 0), padding=PADDING_BYTES),
            Heads(1, HeadsFlag(0), Roots(bytes(32), bytes(32), 1, 0), padding=PADDING_BYTES + 1),
        ),
        (heads(1, 2), replace(heads(1), logs=heads(1).logs * 2)),
        (
            WantEntries((Want(bytes(32), 0, 5, 5),) * WANT_RANGES_MAX),
            WantEntries((Want(bytes(32), 0, 5, 5),) * (WANT_RANGES_MAX + 1)),
        ),
        (WantEntries((Want(bytes(32), 0, 5, 5),)), WantEntries((Want(bytes(32), 0, 5, 4),))),
    ],
)
def test_limits(within: Message, beyond: Message) -> None:
    assert decode_messages(encode_messages([within])) == [within]
    with pytest.raises(MalformedError):
        decode_messages(encode_messages([beyond]))


def test_the_limits_of_a_beat() -> None:
    def beat(heard: int) -> Beat:
        roots = Roots(bytes(32), bytes(32), 1, 0)
        return Beat(roots, "P2P", BeatFlag(0), 0, (bytes(32),) * heard, None, "", Addresses())

    assert decode_messages(encode_messages([beat(HEARD_MAX)])) == [beat(HEARD_MAX)]
    with pytest.raises(MalformedError):
        decode_messages(encode_messages([beat(HEARD_MAX + 1)]))
    mode_at = 5 + 32 + 32 + 2 + 8
    wrong = bytearray(encode_messages([beat(0)]))
    wrong[mode_at] = 3
    with pytest.raises(MalformedError, match="no mode 3"):
        decode_messages(bytes(wrong))


def test_a_flood_of_empty_messages_is_malformed() -> None:
    empty = struct.pack(">BI", 99, 0)
    assert len(decode_messages(empty * MESSAGES_MAX)) == MESSAGES_MAX
    with pytest.raises(MalformedError):
        decode_messages(empty * (MESSAGES_MAX + 1))


def test_a_malformed_message_spoils_the_whole_body() -> None:
    good = encode_messages([Proof(1, b"x")])
    assert decode_messages(good + struct.pack(">BI", 200, 0)) == [Proof(1, b"x"), Unknown(200, b"")]
    with pytest.raises(MalformedError):
        decode_messages(good + struct.pack(">BI", 6, 0))


def test_entries_know_their_size() -> None:
    seal = Seal(bytes(32), 0, 0, bytes(32), bytes(64))
    assert Entries(((bytes(127), b"1234"),), (seal, seal)).size == 127 + 4 + 2 * 144
