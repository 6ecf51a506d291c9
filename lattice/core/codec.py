"""A reader and a writer of the binary format: big-endian integers and length-prefixed bytes.

Separate because entries, seals, messages and envelopes all use these few forms and no others, so
that a peer in another language needs to implement them once.
"""

from __future__ import annotations

import struct
from typing import Final

from .errors import MalformedError

_U16: Final = struct.Struct(">H")
_U32: Final = struct.Struct(">I")
_U64: Final = struct.Struct(">Q")


class Reader:
    """Reads fields from `data` in order. Every method raises MalformedError past the end."""

    __slots__ = ("_at", "_data", "_end")

    def __init__(self, data: bytes, start: int = 0, end: int | None = None) -> None:
        self._data = data
        self._at = start
        self._end = len(data) if end is None else end

    def take(self, size: int) -> bytes:
        """The next `size` bytes."""
        at = self._at
        if size > self._end - at:
            raise MalformedError(f"{size} bytes expected at {at}, {self._end - at} left")
        self._at = at + size
        return self._data[at : at + size]

    def u8(self) -> int:
        return self.take(1)[0]

    def u16(self) -> int:
        return int.from_bytes(self.take(2), "big")

    def u32(self) -> int:
        return int.from_bytes(self.take(4), "big")

    def u64(self) -> int:
        return int.from_bytes(self.take(8), "big")

    def blob(self, size_max: int) -> bytes:
        """A u32 length and so many bytes, at most `size_max`."""
        size = self.u32()
        if size > size_max:
            raise MalformedError(f"a field of {size} bytes where {size_max} are allowed")
        return self.take(size)

    def text(self, size_max: int) -> str:
        """A blob that must be strict UTF-8."""
        try:
            return self.blob(size_max).decode("utf-8")
        except UnicodeDecodeError as error:
            raise MalformedError("a text field is not UTF-8") from error

    def count(self, most: int) -> int:
        """A u32 count of items to follow, at most `most`."""
        n = self.u32()
        if n > most:
            raise MalformedError(f"{n} items where {most} are allowed")
        return n

    @property
    def left(self) -> int:
        return self._end - self._at

    def end(self) -> None:
        """Assert that everything was read: trailing bytes are an error, never ignored."""
        if self._at != self._end:
            raise MalformedError(f"{self._end - self._at} bytes too many")


class Writer:
    """Collects fields; `done()` joins them."""

    __slots__ = ("_parts",)

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def raw(self, data: bytes) -> Writer:
        self._parts.append(data)
        return self

    def u8(self, value: int) -> Writer:
        self._parts.append(bytes((value,)))
        return self

    def u16(self, value: int) -> Writer:
        self._parts.append(_U16.pack(value))
        return self

    def u32(self, value: int) -> Writer:
        self._parts.append(_U32.pack(value))
        return self

    def u64(self, value: int) -> Writer:
        self._parts.append(_U64.pack(value))
        return self

    def blob(self, data: bytes) -> Writer:
        self._parts.append(_U32.pack(len(data)))
        self._parts.append(data)
        return self

    def text(self, value: str) -> Writer:
        return self.blob(value.encode("utf-8"))

    def done(self) -> bytes:
        return b"".join(self._parts)
