"""Heads: what a node holds, as two levels of digests and one root.

Separate because both the sync engine and the store's verification compute the log root, and must
do it the same way.
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from hashlib import sha256
from typing import Final

from .limits import FROZEN_NEVER
from .merkle import LeafTree, leaf_hash, tree_root
from .rows import LogHead, LogKey

NO_HEAD: Final = LogHead(-1, bytes(32), FROZEN_NEVER)

_AUTHOR_TAG: Final = b"lattice/author/v1\0"
# epoch, seq (2^64-1 where nothing is held), id, frozen
_LOG: Final = struct.Struct(">QQ32sQ")
LOG_HEAD_BYTES: Final = _LOG.size


def pack_log_head(epoch: int, head: LogHead) -> bytes:
    """The fixed 56-byte form in which a log stands in digests and in Heads messages."""
    return _LOG.pack(epoch, head.seq & 0xFFFFFFFFFFFFFFFF, head.id, head.frozen)


def unpack_log_head(data: bytes) -> tuple[int, LogHead]:
    epoch, seq, entry_id, frozen = _LOG.unpack(data)
    return epoch, LogHead(-1 if seq == 0xFFFFFFFFFFFFFFFF else seq, entry_id, frozen)


def author_digest(logs: Mapping[int, LogHead]) -> bytes:
    """SHA-256(tag ‖ the author's logs by rising epoch)."""
    digest = sha256(_AUTHOR_TAG)
    for epoch in sorted(logs):
        digest.update(pack_log_head(epoch, logs[epoch]))
    return digest.digest()


def root_of_digests(digests: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The RFC 6962 root over author ‖ digest, sorted by author."""
    return tree_root([_leaf(author, digest) for author, digest in sorted(digests)])


def log_root(heads: Mapping[LogKey, LogHead]) -> bytes:
    """The log root over all logs held or frozen."""
    index = HeadsIndex(heads)
    return index.root()


class HeadsIndex:
    """All heads by author, with digests and the root recomputed only where something changed."""

    __slots__ = ("_authors", "_digests", "_dirty", "_order", "_tree")

    def __init__(self, heads: Mapping[LogKey, LogHead]) -> None:
        self._authors: dict[bytes, dict[int, LogHead]] = {}
        self._digests: dict[bytes, bytes] = {}
        self._dirty: set[bytes] = set()
        self._order: list[bytes] = []  # the authors of the tree, sorted
        self._tree = LeafTree([])
        for key, head in heads.items():
            self.set(key, head)

    def get(self, key: LogKey) -> LogHead:
        """The head of a log; NO_HEAD for one that is not held."""
        logs = self._authors.get(key.author)
        return NO_HEAD if logs is None else logs.get(key.epoch, NO_HEAD)

    def set(self, key: LogKey, head: LogHead) -> None:
        """A log that holds nothing and is not frozen is not listed."""
        logs = self._authors.setdefault(key.author, {})
        if head.seq < 0 and head.frozen == FROZEN_NEVER:
            logs.pop(key.epoch, None)
            if not logs:
                del self._authors[key.author]
        else:
            logs[key.epoch] = head
        self._dirty.add(key.author)

    def has_author(self, author: bytes) -> bool:
        return author in self._authors

    def logs_of(self, author: bytes) -> dict[int, LogHead]:
        return dict(self._authors.get(author, {}))

    def digests(self) -> list[tuple[bytes, bytes]]:
        """(author, digest) sorted by author."""
        self._refresh()
        return sorted(self._digests.items())

    def digest(self, author: bytes) -> bytes | None:
        self._refresh()
        return self._digests.get(author)

    def root(self) -> bytes:
        self._refresh()
        return self._tree.root()

    def all(self) -> dict[LogKey, LogHead]:
        return {
            LogKey(author, epoch): head
            for author, logs in self._authors.items()
            for epoch, head in logs.items()
        }

    def _refresh(self) -> None:
        if not self._dirty:
            return
        changed = []
        for author in self._dirty:
            logs = self._authors.get(author)
            if logs:
                self._digests[author] = author_digest(logs)
                changed.append(author)
            else:
                self._digests.pop(author, None)
        self._dirty.clear()
        if len(self._order) != len(self._digests) or any(not self._is_in_order(a) for a in changed):
            self._order = sorted(self._digests)
            self._tree = LeafTree([_leaf(author, self._digests[author]) for author in self._order])
            return
        for author in changed:
            self._tree.set(bisect_left(self._order, author), _leaf(author, self._digests[author]))

    def _is_in_order(self, author: bytes) -> bool:
        at = bisect_left(self._order, author)
        return at < len(self._order) and self._order[at] == author


def _leaf(author: bytes, digest: bytes) -> bytes:
    return leaf_hash(author + digest)
