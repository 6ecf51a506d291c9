"""Entries that are authentic but do not yet chain to what is held, within caps.

Separate because they are a cache and no part of any rule: dropping one delays it until it is
fetched again, and never changes what is accepted.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from .entry import Entry, Seal
from .limits import PENDING_AUTHOR_BYTES_MAX, PENDING_BYTES_MAX, PENDING_ENTRY_OVERHEAD_BYTES
from .rows import LogKey


class Waiting(NamedTuple):
    """An entry that waits, and its seal where that is known to be valid."""

    entry: Entry
    seal: Seal | None


_NOTHING: Final[Mapping[int, Waiting]] = {}


@dataclass(slots=True)
class _Author:
    """The waiting logs of one author, the one touched longest ago first."""

    logs: OrderedDict[LogKey, OrderedDict[int, Waiting]] = field(default_factory=OrderedDict)
    bytes: int = 0


class Pending:
    """What waits, by author, log and seq; over the caps the oldest is dropped."""

    __slots__ = ("_authors", "bytes", "dropped")

    def __init__(self) -> None:
        self._authors: OrderedDict[bytes, _Author] = OrderedDict()
        self.bytes = 0
        self.dropped = 0

    def of(self, key: LogKey) -> Mapping[int, Waiting]:
        """What waits for a log, by seq; not to be changed."""
        author = self._authors.get(key.author)
        return _NOTHING if author is None else author.logs.get(key, _NOTHING)

    def add(self, key: LogKey, entry: Entry, seal: Seal | None) -> None:
        """`seal` is valid or None. What waits at this seq already stays, save that the same
        entry may gain its seal."""
        author = self._authors.setdefault(key.author, _Author())
        self._authors.move_to_end(key.author)
        log = author.logs.setdefault(key, OrderedDict())
        author.logs.move_to_end(key)
        seq = entry.header.seq
        held = log.get(seq)
        if held is None:
            log[seq] = Waiting(entry, seal)
            self._account(author, _cost(entry))
        elif seal is not None and held.seal is None and held.entry.id == entry.id:
            log[seq] = Waiting(held.entry, seal)
        while author.bytes > PENDING_AUTHOR_BYTES_MAX:
            self._drop_oldest(key.author)
        while self.bytes > PENDING_BYTES_MAX:
            self._drop_oldest(next(iter(self._authors)))

    def discard(self, key: LogKey, seq: int) -> None:
        """Forget what waits at `seq` of a log, if anything does."""
        author = self._authors.get(key.author)
        log = author.logs.get(key) if author is not None else None
        if author is None or log is None or seq not in log:
            return
        self._account(author, -_cost(log.pop(seq).entry))
        self._tidy(key)

    def _drop_oldest(self, author_key: bytes) -> None:
        author = self._authors[author_key]
        key, log = next(iter(author.logs.items()))
        _, waiting = log.popitem(last=False)
        self._account(author, -_cost(waiting.entry))
        self.dropped += 1
        self._tidy(key)

    def _tidy(self, key: LogKey) -> None:
        author = self._authors[key.author]
        if not author.logs[key]:
            del author.logs[key]
        if not author.logs:
            del self._authors[key.author]

    def _account(self, author: _Author, size: int) -> None:
        author.bytes += size
        self.bytes += size


def _cost(entry: Entry) -> int:
    return entry.size + PENDING_ENTRY_OVERHEAD_BYTES
