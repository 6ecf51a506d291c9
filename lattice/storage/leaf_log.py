"""The buckets of the state tree on disk: a log of changed leaves, folded into groups little by little.

Separate because buckets are hit at random: a thousand new keys change nearly a thousand of them,
and written in place they would cost a page of disk each. Appended as leaves they cost 64 bytes;
each commit pays a few times that to fold a share of the groups, so that the log stays short and
no commit pays for all.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from ..core.merkle import BUCKET_COUNT, bucket_of

GROUP_BUCKETS: Final = 64
GROUP_COUNT: Final = BUCKET_COUNT // GROUP_BUCKETS
_PAIR: Final = 64  # hash of the key, then its leaf
_NO_LEAF: Final = bytes(32)  # stands for a removed leaf; no SHA-256 comes out as zeros
_COUNTS: Final = struct.Struct(f">{GROUP_BUCKETS}I")
# A rotation starts when the log reaches an eighth of what all groups have, and a commit then folds
# four times what it logs: the log ends at three eighths, which opening replays.
_ROTATION_RATIO: Final = 8
_FOLD_RATIO: Final = 4
# Sixteen thousand changes, read back in 20 ms: below this nothing is folded.
_LOG_BYTES_MIN: Final = 1024 * 1024
# A small group costs the commit a page or two all the same.
_GROUP_BYTES_MIN: Final = 8192


@dataclass(frozen=True, slots=True)
class LeafChange:
    """What one commit writes: the row of the log, the groups that it folds, and up to which
    number the log is dropped (None: nothing is)."""

    number: int
    leaves: bytes
    groups: tuple[tuple[int, bytes], ...]
    drop_to: int | None
    buckets: Mapping[int, bytes]
    queue: tuple[int, ...]
    starts: bool


class LeafLog:
    """All buckets as of the last commit, and how far the log is folded.

    `plan` changes nothing; `apply` takes a plan over once it is durable. The packed buckets are
    the very objects of the state tree, so holding them costs a dictionary.
    """

    __slots__ = ("_dirty", "_log_bytes", "_log_bytes_max", "_mark", "_next", "_queue", "buckets")

    def __init__(self, groups: Iterable[tuple[int, bytes]], log: Iterable[tuple[int, bytes]]) -> None:
        """Rows of both tables, those of the log in order. Raises ValueError on damaged ones."""
        self.buckets: dict[int, bytes] = {}
        for number, packed in groups:
            self.buckets.update(_unpack_group(number, packed))
        self._dirty: set[int] = set()
        self._queue: tuple[int, ...] = ()
        self._mark = self._log_bytes = 0
        self._next = 1
        self._replay(log)
        self._log_bytes_max = self._allowed()

    def holds(self, key: bytes) -> bool:
        """Whether the state tree has a leaf for this key."""
        key_hash = sha256(key).digest()
        packed = self.buckets.get(bucket_of(key_hash), b"")
        at = packed.find(key_hash)
        while at > 0 and at % _PAIR:  # a chance match that is no pair's beginning
            at = packed.find(key_hash, at + 1)
        return at >= 0

    def plan(self, changed: Mapping[int, bytes]) -> LeafChange | None:
        """The rows that bring the tables to `changed` (whole packed buckets); None if none."""
        held = self.buckets
        parts = [_changed_pairs(held.get(number, b""), packed) for number, packed in changed.items()]
        leaves = b"".join(parts)
        if not leaves:
            return None
        queue = self._queue
        starts = not queue and self._log_bytes + len(leaves) >= self._log_bytes_max
        if starts:
            queue = tuple(sorted(self._dirty | {number // GROUP_BUCKETS for number in changed}))
        budget = len(leaves) * _FOLD_RATIO if queue else 0
        folded: list[tuple[int, bytes]] = []
        while budget > 0 and len(folded) < len(queue):
            group = queue[len(folded)]
            folded.append((group, self._pack_group(group, changed)))
            budget -= max(_GROUP_BYTES_MIN, len(folded[-1][1]))
        rest = queue[len(folded) :]
        mark = self._next if starts else self._mark
        drop_to = mark if queue and not rest else None
        return LeafChange(self._next, leaves, tuple(folded), drop_to, changed, rest, starts)

    def apply(self, change: LeafChange) -> None:
        held = self.buckets
        held.update(change.buckets)
        for number in [number for number, packed in change.buckets.items() if not packed]:
            del held[number]
        if change.starts:
            self._mark = change.number
            self._dirty = set()
            self._log_bytes = 0
            self._log_bytes_max = self._allowed()
        else:
            self._dirty.update([number // GROUP_BUCKETS for number in change.buckets])
            self._log_bytes += len(change.leaves)
        self._queue = change.queue
        self._next = change.number + 1

    def _allowed(self) -> int:
        """How long the log may grow before it is folded, by the size of all buckets."""
        return max(_LOG_BYTES_MIN, sum(map(len, self.buckets.values())) // _ROTATION_RATIO)

    def _pack_group(self, group: int, changed: Mapping[int, bytes]) -> bytes:
        numbers = range(group * GROUP_BUCKETS, (group + 1) * GROUP_BUCKETS)
        held = self.buckets
        packed = [changed[number] if number in changed else held.get(number, b"") for number in numbers]
        return _COUNTS.pack(*[len(bucket) // _PAIR for bucket in packed]) + b"".join(packed)

    def _replay(self, log: Iterable[tuple[int, bytes]]) -> None:
        """Lay the log over the groups. A group may be newer than a row of the log, but then every
        change since is in a later row: the last word on each leaf is right."""
        latest: dict[int, dict[bytes, bytes]] = {}
        for row_number, leaves in log:
            if len(leaves) % _PAIR:
                raise ValueError(f"row {row_number} of the leaf log has {len(leaves)} bytes")
            for at in range(0, len(leaves), _PAIR):
                bucket = latest.setdefault(leaves[at] << 8 | leaves[at + 1], {})
                bucket[leaves[at : at + 32]] = leaves[at + 32 : at + _PAIR]
            self._log_bytes += len(leaves)
            self._next = row_number + 1
        for number, changes in latest.items():
            held = self.buckets.get(number, b"")
            merged = {held[at : at + 32]: held[at + 32 : at + _PAIR] for at in range(0, len(held), _PAIR)}
            merged.update(changes)
            self.buckets[number] = b"".join(
                key + leaf for key, leaf in sorted(merged.items()) if leaf != _NO_LEAF
            )
            if not self.buckets[number]:
                del self.buckets[number]
            self._dirty.add(number // GROUP_BUCKETS)


def _unpack_group(group: int, packed: bytes) -> dict[int, bytes]:
    if not 0 <= group < GROUP_COUNT or len(packed) < _COUNTS.size:
        raise ValueError(f"group {group} of the state tree is cut short")
    buckets = {}
    at = _COUNTS.size
    for offset, count in enumerate(_COUNTS.unpack_from(packed)):
        if count:
            buckets[group * GROUP_BUCKETS + offset] = packed[at : at + count * _PAIR]
            at += count * _PAIR
    if at != len(packed):
        raise ValueError(f"group {group} of the state tree has {len(packed)} bytes, not {at}")
    return buckets


def _changed_pairs(old: bytes, new: bytes) -> bytes:
    """The pairs to set, and those to remove (with a zero leaf), that make `old` into `new`.

    Both are sorted, and mostly one pair differs. What stands equal before it is skipped by
    halving, which compares whole stretches at C speed.
    """
    if not old:
        return new
    at = _equal_pairs(old, new) * _PAIR
    one = at + _PAIR
    if new[one:] == old[at:] or (new[one:] == old[one:] and new[at : at + 32] == old[at : at + 32]):
        return new[at:one]  # one pair more, or one leaf changed
    after = new[at:]
    kept = {after[i : i + 32] for i in range(0, len(after), _PAIR)}
    gone = [old[i : i + 32] + _NO_LEAF for i in range(at, len(old), _PAIR) if old[i : i + 32] not in kept]
    return b"".join((after, *gone))


def _equal_pairs(old: bytes, new: bytes) -> int:
    """The number of pairs that are equal from the start."""
    low, high = 0, min(len(old), len(new)) // _PAIR
    while low < high:
        middle = (low + high + 1) // 2
        if old[: middle * _PAIR] == new[: middle * _PAIR]:
            low = middle
        else:
            high = middle - 1
    return low
