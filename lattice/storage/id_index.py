"""The index from entry id to slot, brought up to date in slices.

Separate because ids are random: in an ordinary index a thousand entries touch nearly a thousand
pages, each written whole. Here a commit appends its ids to one row, memory answers for them, and
now and then one slice of the id space takes all of its fresh ids at once, in order.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final
from zlib import crc32

SLICES: Final = 64
_SLICE_SHIFT: Final = 2  # the slice is the upper six bits of an id
# So many fresh ids are kept back (about 6 MB): at a million entries a slice has 100 pages, and a
# flush of twice 512 ids writes each of them once.
_FRESH_MAX: Final = 32_768
HEAD_BYTES: Final = 6  # finds an id in half the pages that 32 would take
_FRESH: Final = struct.Struct(f">{HEAD_BYTES}sQ")


@dataclass(frozen=True, slots=True)
class IdChange:
    """What one commit writes: the row of its own ids, the index rows (head, slot) of the slices
    flushed, sorted, and up to which number the rows of fresh ids are dropped (0: none is)."""

    number: int
    packed: bytes
    added: Sequence[tuple[bytes, int]]
    flushed: tuple[int, ...]
    rows: Sequence[tuple[bytes, int]]
    drop_to: int


class IdIndex:
    """The ids not in the index yet, by slice, as of the last commit.

    `plan` changes nothing; `apply` takes a plan over once it is durable.
    """

    __slots__ = ("_count", "_flushed_at", "_fresh", "_next")

    def __init__(self, rows: Iterable[tuple[int, bytes]]) -> None:
        """Rows of fresh ids in order. Raises ValueError on a damaged one."""
        self._fresh: list[list[tuple[bytes, int]]] = [[] for _ in range(SLICES)]
        self._flushed_at = [0] * SLICES
        self._next = 1
        self._count = 0
        for number, row in rows:
            packed = row[4:]
            if len(packed) % _FRESH.size or crc32(packed).to_bytes(4, "big") != row[:4]:
                raise ValueError(f"row {number} of the fresh ids does not match its checksum")
            # Some may be in the index already: putting them there twice changes nothing.
            self._add(list(_FRESH.iter_unpack(packed)))
            self._next = number + 1

    def fresh_slots(self, entry_id: bytes) -> list[int]:
        """Slots of fresh ids that begin like this one; mostly none. Looks through one slice."""
        head = entry_id[:HEAD_BYTES]
        return [slot for held, slot in self._fresh[head[0] >> _SLICE_SHIFT] if held == head]

    def plan(self, added: Sequence[tuple[bytes, int]]) -> IdChange | None:
        """The rows for new entries (id, slot); None if there are none."""
        if not added:
            return None
        heads = [(entry_id[:HEAD_BYTES], slot) for entry_id, slot in added]
        packed = b"".join([head + slot.to_bytes(8, "big") for head, slot in heads])
        count = self._count + len(heads)
        flushed: list[int] = []
        rows: list[tuple[bytes, int]] = []
        while count > _FRESH_MAX and len(flushed) < SLICES:
            # In turn, so that a row of fresh ids is done with after one round.
            number = (self._turn() + len(flushed)) % SLICES
            rows += sorted(self._fresh[number])
            count -= len(self._fresh[number])
            flushed.append(number)
        # What this commit adds stays fresh: the slices take what the rows before it hold.
        done = self._next - 1
        flushed_at = [done if number in flushed else at for number, at in enumerate(self._flushed_at)]
        packed = crc32(packed).to_bytes(4, "big") + packed
        return IdChange(self._next, packed, heads, tuple(flushed), rows, min(flushed_at))

    def apply(self, change: IdChange) -> None:
        for number in change.flushed:
            self._count -= len(self._fresh[number])
            self._fresh[number] = []
            self._flushed_at[number] = change.number - 1
        self._add(change.added)
        self._next = change.number + 1

    def _turn(self) -> int:
        return min(range(SLICES), key=self._flushed_at.__getitem__)

    def _add(self, heads: Sequence[tuple[bytes, int]]) -> None:
        fresh = self._fresh
        for row in heads:
            fresh[row[0][0] >> _SLICE_SHIFT].append(row)
        self._count += len(heads)
