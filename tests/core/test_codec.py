"""The reader and writer of fields: what is written is read, and nothing else is."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lattice.core.codec import Reader, Writer
from lattice.core.errors import MalformedError

FIELDS = st.lists(
    st.one_of(
        st.tuples(st.just("u8"), st.integers(0, 2**8 - 1)),
        st.tuples(st.just("u16"), st.integers(0, 2**16 - 1)),
        st.tuples(st.just("u32"), st.integers(0, 2**32 - 1)),
        st.tuples(st.just("u64"), st.integers(0, 2**64 - 1)),
        st.tuples(st.just("blob"), st.binary(max_size=40)),
        st.tuples(st.just("text"), st.text(max_size=20)),
    ),
    max_size=8,
)


def read(reader: Reader, kind: str) -> object:
    match kind:
        case "blob":
            return reader.blob(40)
        case "text":
            return reader.text(80)
        case _:
            return getattr(reader, kind)()


def write(fields: list[tuple[str, object]]) -> bytes:
    writer = Writer()
    for kind, value in fields:
        getattr(writer, kind)(value)
    return writer.done()


@pytest.mark.slow
@given(FIELDS)
def test_fields_come_back(fields: list[tuple[str, object]]) -> None:
    reader = Reader(write(fields))
    assert [(kind, read(reader, kind)) for kind, _ in fields] == fields
    reader.end()


@pytest.mark.slow
@given(FIELDS.filter(bool), st.data())
def test_every_truncation_is_malformed(fields: list[tuple[str, object]], data: st.DataObject) -> None:
    whole = write(fields)
    cut = data.draw(st.integers(0, len(whole) - 1))
    reader = Reader(whole[:cut])
    with pytest.raises(MalformedError):
        for kind, _ in fields:
            read(reader, kind)


def test_the_bytes_are_those_of_the_format() -> None:
    data = Writer().u8(1).u16(2).u32(3).u64(4).blob(b"ab").text("é").raw(b"z").done()
    assert data == struct.pack(">BHIQ", 1, 2, 3, 4) + b"\0\0\0\2ab" + b"\0\0\0\2\xc3\xa9" + b"z"


@pytest.mark.parametrize("text", [b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf5\x80\x80\x80", b"\xe2\x82"])
def test_text_is_strict_utf8(text: bytes) -> None:
    with pytest.raises(MalformedError):
        Reader(Writer().blob(text).done()).text(10)


def test_lengths_and_counts_are_bounded_before_anything_is_read() -> None:
    with pytest.raises(MalformedError, match="11 bytes where 10"):
        Reader(Writer().blob(bytes(11)).done()).blob(10)
    assert Reader(Writer().blob(bytes(10)).done()).blob(10) == bytes(10)
    with pytest.raises(MalformedError, match="1073741824 bytes where 10"):
        Reader(struct.pack(">I", 2**30)).blob(10)
    with pytest.raises(MalformedError, match="4 items where 3"):
        Reader(struct.pack(">I", 4)).count(3)
    assert Reader(struct.pack(">I", 3)).count(3) == 3


def test_trailing_bytes_are_an_error() -> None:
    reader = Reader(b"\0\0")
    reader.u8()
    assert reader.left == 1
    with pytest.raises(MalformedError, match="1 bytes too many"):
        reader.end()


def test_a_reader_of_a_part_stays_within_it() -> None:
    reader = Reader(b"abcdef", 1, 3)
    assert (reader.take(2), reader.left) == (b"bc", 0)
    with pytest.raises(MalformedError):
        reader.take(1)
