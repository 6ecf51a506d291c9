"""Ops, entries and seals: the frozen bytes, the checks on them, and what is stored but not applied."""

from __future__ import annotations

import struct
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nacl.signing import VerifyKey

from lattice.core.entry import (
    HEADER_BYTES,
    SEAL_BYTES,
    Entry,
    Header,
    Op,
    OpKind,
    Version,
    encode_op,
    entry_id,
    make_entry,
    must_be_sealed,
    parse_entry,
    parse_op,
    parse_seal,
    seal_verifies,
)
from lattice.core.errors import MalformedError
from lattice.core.limits import ENTRY_BYTES_MAX, OPS_MAX, VALUE_BYTES_MAX
from tests.core.core_kit import NETWORK, Author, add, altered, delete, put, vectors

OPS = vectors("op")
ENTRIES = vectors("entry")
ELSEWHERE = Version(sha256(b"elsewhere").digest(), 7)


def pack_op(case: dict[str, Any]) -> bytes:
    """The bytes of an op vector, from its fields and nothing of the product."""
    key, body = bytes.fromhex(case["key"]), bytes.fromhex(case["body"])
    packed = struct.pack(">BH", case["kind"], len(key)) + key + struct.pack(">H", len(case["names"]))
    for name, index in case["names"]:
        packed += struct.pack(">BH", 1, index) if name is None else b"\0" + bytes.fromhex(name)
        packed += b"" if name is None else struct.pack(">H", index)
    return packed + struct.pack(">I", len(body)) + body


def parse_alone(op: bytes, index: int = 0) -> Op | None:
    """Parse an op that stands between other bytes, as it does in an entry."""
    return parse_op(b"\xaa" * 9 + op + b"\xbb" * 200, 9, 9 + len(op), index, bytes(32))


@pytest.mark.parametrize("case", OPS, ids=[case["name"] for case in OPS])
def test_op_vectors(case: dict[str, Any]) -> None:
    data = bytes.fromhex(case["bytes"])
    if "kind" in case:
        assert pack_op(case) == data
    op = parse_alone(data, case["index"])
    assert (op is not None) is case["applied"]
    if op is None:
        return
    assert (op.kind, op.key.hex()) == (case["kind"], case["key"])
    own = [index for name, index in case["names"] if name is None]
    foreign = [Version(bytes.fromhex(name), index) for name, index in case["names"] if name is not None]
    assert (list(op.over), list(op.over_own)) == (foreign, own)
    body = bytes.fromhex(case["body"])
    assert (op.value_at, op.value_size) == (9 + len(data) - len(body), len(body))
    if op.kind is OpKind.ADD:
        assert op.amount == int.from_bytes(body, "big", signed=True)


@pytest.mark.parametrize("case", ENTRIES, ids=["first", "second"])
def test_entry_and_seal_vectors(case: dict[str, Any]) -> None:
    ops = [bytes.fromhex(op) for op in case["ops"]]
    framed = b"".join(struct.pack(">I", len(op)) + op for op in ops)
    a, b, c = (sha256(b"\0" + op).digest() for op in ops)
    root = sha256(b"\1" + sha256(b"\1" + a + b).digest() + c).digest()
    network_id, author = bytes.fromhex(case["network_id"]), bytes.fromhex(case["author"])
    header = (
        bytes([case["version"]]) + author + struct.pack(">QQ", case["epoch"], case["seq"])
        + bytes.fromhex(case["prev"]) + struct.pack(">QHI", case["clock"], 3, len(framed)) + root
    )  # fmt: skip
    name = sha256(b"lattice/entry/v1\0" + network_id + header).digest()
    assert (framed.hex(), root.hex(), header.hex(), name.hex()) == (
        case["ops_bytes"], case["ops_root"], case["header"], case["id"],
    )  # fmt: skip
    signed = author + struct.pack(">QQ", case["epoch"], case["seq"]) + name
    seal = bytes.fromhex(case["seal"])
    VerifyKey(author).verify(b"lattice/seal/v1\0" + network_id + signed, seal[80:])
    assert seal[:80] == signed

    entry = parse_entry(network_id, header, framed)
    assert (entry.id, entry.ops, entry.header_bytes) == (name, framed, header)
    assert [op_hash.hex() for op_hash in entry.op_hashes] == case["op_hashes"]
    assert entry.header.pack() == header
    assert seal_verifies(network_id, parse_seal(seal))
    assert (HEADER_BYTES, SEAL_BYTES) == (127, 144) == (len(header), len(seal))


def test_the_second_vector_continues_the_first() -> None:
    assert (ENTRIES[0]["seq"], ENTRIES[0]["prev"]) == (0, "00" * 32)
    assert (ENTRIES[1]["seq"], ENTRIES[1]["prev"]) == (1, ENTRIES[0]["id"])


# Making and parsing.

KEYS = st.text(min_size=1, max_size=12).map(lambda text: text.encode())
NAMES = st.lists(
    st.builds(Version, st.binary(min_size=32, max_size=32), st.integers(0, 2**16 - 1)), max_size=4
)


@given(KEYS, st.binary(max_size=50), NAMES, st.lists(st.integers(0, 8), max_size=3))
def test_ops_come_back(key: bytes, value: bytes, over: list[Version], own: list[int]) -> None:
    op = parse_alone(put(key, value, over=over, own=own), index=9)
    assert op is not None
    assert (op.kind, op.key, list(op.over), list(op.over_own)) == (OpKind.PUT, key, over, own)
    assert op.value_size == len(value)
    gone = parse_alone(delete(key, over=over, own=own), index=9)
    assert gone is not None
    assert (gone.kind, list(gone.over)) == (OpKind.DELETE, over)


@pytest.mark.slow
@given(st.binary(max_size=80), st.integers(0, 255))
def test_no_bytes_make_an_op_raise(data: bytes, index: int) -> None:
    op = parse_alone(data, index)
    if op is not None:
        names = [[name.id.hex(), name.op_index] for name in op.over]
        # Foreign and own names may be mixed in any order: only one order is checked here.
        if not (op.over and op.over_own):
            names += [[None, named] for named in op.over_own]
            fields = {"kind": op.kind, "key": op.key.hex(), "names": names}
            assert pack_op({**fields, "body": data[len(data) - op.value_size :].hex()}) == data


@given(
    st.sampled_from([put(b"k", b"value", over=[ELSEWHERE], own=[0]), add(b"k", 3), delete(b"k")]), st.data()
)
def test_a_cut_or_lengthened_op_is_not_applied(op: bytes, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(op) - 1))
    assert parse_alone(op[:cut], 1) is None
    assert parse_alone(op + b"\0", 1) is None
    assert parse_alone(op, 1) is not None


@pytest.mark.parametrize(
    ("op", "applied"),
    [
        (put(b"k" * 1024), True),
        (put(b"k" * 1025), False),
        (put(b"k", bytes(VALUE_BYTES_MAX)), True),
        (put(b"k", bytes(VALUE_BYTES_MAX + 1)), False),
        (put(b"k", over=[ELSEWHERE] * 256), True),
        (put(b"k", over=[ELSEWHERE] * 257), False),
        (put(b"k", over=[ELSEWHERE] * 256, own=[0]), False),
        (put(b"k", own=[0, 0]), True),
        (put(b"k", own=[4]), True),
        (put(b"k", own=[5]), False),
        (put(b"k", own=[2**16 - 1]), False),
        (put(b"\xed\xa0\x80"), False),
        (put(b"a\0b"), True),
        (encode_op(OpKind.DELETE, b"k", value=b"x"), False),
        (add(b"k", 0), True),
        (add(b"k", -(2**53)), False),
        (b"\3\0\1k\0\0\0\0\0\7" + bytes(7), False),
        (b"\3\0\1k\0\1\0" + bytes(34) + b"\0\0\0\10" + bytes(8), False),
        (b"\1\0\1k\0\1\2" + bytes(36), False),
        (b"\0\0\1k\0\0\0\0\0\0", False),
    ],
)
def test_the_rules_of_ops(op: bytes, applied: bool) -> None:
    assert (parse_alone(op, index=5) is not None) is applied


def broken(entry: Entry, **changes: Any) -> tuple[bytes, bytes]:
    ops = changes.pop("ops", entry.ops)
    return entry.header._replace(**changes).pack(), ops


def test_what_makes_an_entry_malformed() -> None:
    author = Author()
    first, entry = author.write(put(b"a")), author.write(put(b"a"), put(b"b", b"22"))
    parse_entry(NETWORK, entry.header_bytes, entry.ops)
    size = len(entry.ops)
    cases = [
        broken(entry, op_count=0),
        broken(entry, op_count=1),
        broken(entry, op_count=3),
        broken(entry, op_count=257),
        broken(entry, ops_bytes=size - 1),
        broken(entry, ops_bytes=size + 1),
        broken(entry, ops_bytes=2**32 - 1),
        broken(entry, ops=entry.ops[:-1]),
        broken(entry, ops=entry.ops + b"\0"),
        broken(entry, ops=entry.ops + b"\0", ops_bytes=size + 1),
        broken(entry, ops=entry.ops[:-1], ops_bytes=size - 1),
        broken(entry, ops=struct.pack(">I", 2**31) + entry.ops[4:]),
        broken(entry, ops=altered(entry.ops)),
        broken(entry, ops_root=bytes(32)),
        broken(first, prev=b"\1" * 32),
        (entry.header_bytes[:-1], entry.ops),
        (entry.header_bytes + b"\0", entry.ops),
        (b"", entry.ops),
    ]
    for header, ops in cases:
        with pytest.raises(MalformedError):
            parse_entry(NETWORK, header, ops)


@pytest.mark.slow
@settings(max_examples=200)
@given(st.data())
def test_any_flipped_bit_of_an_entry_is_another_entry_or_none(data: st.DataObject) -> None:
    entry = Author().write(put(b"a"), add(b"b", 2))
    whole = entry.header_bytes + entry.ops
    bit = data.draw(st.integers(0, 8 * len(whole) - 1))
    changed = bytearray(whole)
    changed[bit // 8] ^= 1 << bit % 8
    try:
        other = parse_entry(NETWORK, bytes(changed[:HEADER_BYTES]), bytes(changed[HEADER_BYTES:]))
    except MalformedError:
        return
    assert bit < 8 * HEADER_BYTES
    assert other.id != entry.id


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_random_bytes_never_raise_anything_else(header: bytes, ops: bytes) -> None:
    for parse in (
        lambda: parse_entry(NETWORK, header, ops),
        lambda: parse_entry(NETWORK, (header * 127)[:127], ops),
        lambda: parse_seal(header),
    ):
        try:
            parse()
        except MalformedError:
            continue


def test_the_limits_of_an_entry() -> None:
    author = Author()
    op_overhead = 4 + len(put(b"k", b""))
    room = ENTRY_BYTES_MAX - HEADER_BYTES - 2 * op_overhead
    full = author.write(put(b"k", bytes(VALUE_BYTES_MAX)), put(b"k", bytes(room - VALUE_BYTES_MAX)))
    assert full.size == ENTRY_BYTES_MAX
    parse_entry(NETWORK, full.header_bytes, full.ops)
    over = author.write(put(b"k", bytes(VALUE_BYTES_MAX)), put(b"k", bytes(room - VALUE_BYTES_MAX + 1)))
    with pytest.raises(MalformedError):
        parse_entry(NETWORK, over.header_bytes, over.ops)
    most = author.write(*[put(b"%d" % number) for number in range(OPS_MAX)])
    assert len(parse_entry(NETWORK, most.header_bytes, most.ops).parsed_ops()) == OPS_MAX


def test_an_unknown_format_version_is_an_entry_without_applied_ops() -> None:
    entry = Author().write(put(b"a"), put(b"b"))
    header = entry.header._replace(version=2).pack()
    other = parse_entry(NETWORK, header, entry.ops)
    assert other.parsed_ops() == [None, None]
    assert other.id == entry_id(NETWORK, header) != entry.id
    assert None not in entry.parsed_ops()


def test_a_value_is_where_the_op_says() -> None:
    entry = Author().write(put(b"a", b"first"), add(b"n", 1), put(b"b", b"second", own=[0]))
    values = [entry.ops[op.value_at : op.value_at + op.value_size] for op in entry.parsed_ops() if op]
    assert (values[0], values[2]) == (b"first", b"second")
    hashes = [sha256(b"\0" + entry.ops[start:end]).digest() for start, end in entry.op_spans]
    assert [op.op_hash for op in entry.parsed_ops() if op] == hashes


def test_which_entries_must_be_sealed() -> None:
    header = Header(1, bytes(32), 0, 62, bytes(32), 0, 1, 100, bytes(32))
    assert not must_be_sealed(header)
    assert [seq for seq in range(200) if must_be_sealed(header._replace(seq=seq))] == [63, 127, 191]
    edge = 16 * 1024 - HEADER_BYTES
    assert not must_be_sealed(header._replace(ops_bytes=edge))
    assert must_be_sealed(header._replace(ops_bytes=edge + 1))


def test_the_network_is_in_the_id_and_in_the_seal() -> None:
    author = Author()
    entry = author.write()
    other = bytes(32)
    assert parse_entry(other, entry.header_bytes, entry.ops).id != entry.id
    seal = author.seal(entry)
    assert seal_verifies(NETWORK, seal)
    assert not seal_verifies(other, seal)


@pytest.mark.parametrize("at", [0, 31, 32, 39, 40, 47, 48, 79, 80, 111, 112, 143])
def test_every_field_of_a_seal_is_signed(at: int) -> None:
    author = Author()
    seal = author.seal(author.write())
    assert not seal_verifies(NETWORK, parse_seal(altered(seal.pack(), at)))


# Versions as text.


def test_versions_as_text() -> None:
    text = f"{ELSEWHERE.id.hex()}.7"
    assert str(ELSEWHERE) == text
    assert Version.parse(text) == ELSEWHERE
    assert Version.parse("00" * 32 + ".255") == Version(bytes(32), 255)


@pytest.mark.parametrize(
    "text",
    ["", ".", "1.0", "00" * 32, "00" * 32 + ".", "00" * 32 + ".256", "00" * 32 + ".-1", "00" * 31 + ".0",
     "00" * 32 + ".00", "00" * 32 + ".1.", "FF" * 32 + ".0", "00 " + "00" * 31 + ".0", "00" * 32 + ".٣",
     "00" * 32 + "." + "9" * 5000, "00" * 32 + ".0\n"],
)  # fmt: skip
def test_what_is_no_version(text: str) -> None:
    with pytest.raises(MalformedError):
        Version.parse(text)


def test_make_entry_and_parse_entry_are_inverse() -> None:
    author = Author()
    entry = author.write(put(b"a", b"x" * 300), delete(b"b"), add(b"c", -1))
    assert parse_entry(NETWORK, entry.header_bytes, entry.ops) == entry
    again = make_entry(
        NETWORK, author=entry.header.author, epoch=1, seq=0, prev=bytes(32), clock=1,
        ops=[entry.ops[start:end] for start, end in entry.op_spans],
    )  # fmt: skip
    assert again == entry
