"""The state: a pure function of the set of entries, kept up to date op by op.

Separate because the rules of versions, naming edges, counters and leaves are the part of Lattice
on which every replica must agree to the last byte. Edges are stored, flags are not: whether a
version is live follows from the edges, so taking an entry out is the inverse of putting it in.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from hashlib import sha256
from typing import Final

from .entry import Entry, Op, OpKind, Version
from .limits import NAMES_MAX
from .merkle import MerkleMap
from .rows import Batch, EdgeRow, KeyState, LiveVersion, LogKey, OpRow, Reader

_LEAF_TAG: Final = b"lattice/leaf/v1\0"
_LENGTH: Final = struct.Struct(">I")
_VERSION: Final = struct.Struct(">32sH32s")
# the number of adds, the length of the total's text
_COUNTER: Final = struct.Struct(">QI")


def leaf_of(state: KeyState) -> bytes | None:
    """The leaf of a key in the state tree: who is live and what the counter holds, nothing else.

    No values (erasing one keeps the root), no winner, no data of arrival. None: no leaf.
    """
    if not state.live and not state.adds:
        return None
    total = b"%d" % state.total
    parts = [_LEAF_TAG, _LENGTH.pack(len(state.key)), state.key, _LENGTH.pack(len(state.live))]
    parts += [_VERSION.pack(live.id, live.op_index, live.op_hash) for live in state.live]
    parts.append(_COUNTER.pack(state.adds, len(total)))
    parts.append(total)
    return sha256(b"".join(parts)).digest()


def winner_first(live: Iterable[LiveVersion]) -> tuple[LiveVersion, ...]:
    """Live versions by falling (clock, author, version): the winner, then its siblings."""
    return tuple(sorted(live, key=lambda v: (v.clock, v.author, v.id, v.op_index), reverse=True))


class State:
    """The state as of the last commit, overlaid with the ops applied since.

    All changes go into the `batch` of the commit under way; `begin` starts the next one once the
    store has made the last durable.
    """

    __slots__ = ("_batch", "_edges", "_latest", "_reader", "_touched", "skipped_ops", "tree")

    def __init__(self, reader: Reader, tree: MerkleMap) -> None:
        self._reader = reader
        self.tree = tree
        self.skipped_ops = 0
        self.begin(Batch())

    def begin(self, batch: Batch) -> None:
        """Collect changes in `batch` from now on; what came before is committed."""
        self._batch = batch
        self._latest: dict[tuple[bytes, LogKey], Version] = {}
        self._edges: set[tuple[bytes, Version]] = set()
        self._touched: set[bytes] = set()

    def key(self, key: bytes) -> KeyState | None:
        """The state of a key; None when no op of it was ever applied."""
        held = self._batch.keys.get(key)
        return held if held is not None else self._reader.key_state(key)

    def apply(self, entry: Entry) -> list[bytes]:
        """Apply an accepted entry, the next of its log. Returns the keys it touched, in op order."""
        header = entry.header
        log = LogKey(header.author, header.epoch)
        keys, ops = self._batch.keys, self._batch.ops
        touched = []
        for index, op in enumerate(entry.parsed_ops()):
            if op is None:
                self.skipped_ops += 1
                continue
            key = op.key
            touched.append(key)
            ops.append(OpRow(key, header.author, header.epoch, header.seq, index, op.kind, entry.id))
            before = keys.get(key)
            if before is None:
                before = self._reader.key_state(key)
            if op.kind is OpKind.ADD:
                keys[key] = self._add(before, op)
            else:
                keys[key] = self._replace(before, op, Version(entry.id, index), entry, log)
        self._touched.update(touched)
        return touched

    def _add(self, before: KeyState | None, op: Op) -> KeyState:
        if before is None:
            return KeyState(op.key, (), 1, op.amount)
        return KeyState(op.key, before.live, before.adds + 1, before.total + op.amount)

    def _replace(
        self, before: KeyState | None, op: Op, version: Version, entry: Entry, log: LogKey
    ) -> KeyState:
        """A put or a delete: end what it names, and for a put become live unless named already."""
        header = entry.header
        named: set[Version] = set()
        live: tuple[LiveVersion, ...] = ()
        # A key without a row was never touched: there is nothing to look up.
        if before is not None or op.over or op.over_own:
            named.update(op.over)
            named.update(Version(entry.id, index) for index in op.over_own)
            if before is not None:
                implicit = self._latest_put(before, log)
                if implicit is not None:
                    named.add(implicit)
                live = before.live
                if live and named:
                    live = tuple(held for held in live if held.version not in named)
            for target in sorted(named):
                self._edges.add((op.key, target))
                self._batch.edges.append(
                    EdgeRow(op.key, target, header.author, header.epoch, header.seq, version.op_index)
                )
        if op.kind is OpKind.PUT:
            self._latest[op.key, log] = version
            if before is None or not self._is_named(op.key, version):
                new = LiveVersion(
                    entry.id,
                    version.op_index,
                    op.op_hash,
                    header.clock,
                    header.author,
                    header.epoch,
                    header.seq,
                    op.value_at,
                    op.value_size,
                )
                live = tuple(sorted((*live, new), key=_by_version)) if live else (new,)
        if before is None:
            return KeyState(op.key, live)
        return KeyState(op.key, live, before.adds, before.total)

    def _latest_put(self, before: KeyState, log: LogKey) -> Version | None:
        """The latest earlier put of the key in this log, live or not."""
        latest = self._latest.get((before.key, log))
        if latest is not None:
            return latest
        # Each put of a log names the one before it, so at most its latest can still be live.
        for held in before.live:
            if held.author == log.author and held.epoch == log.epoch:
                return held.version
        return self._reader.latest_put(before.key, log.author, log.epoch)

    def _is_named(self, key: bytes, version: Version) -> bool:
        return (key, version) in self._edges or self._reader.is_named(key, version)

    def settle(self) -> bytes:
        """Bring the tree up to date with everything applied; returns the state root."""
        for key in self._touched:
            self.tree.set(sha256(key).digest(), leaf_of(self._batch.keys[key]))
        self._touched.clear()
        self._batch.buckets.update(self.tree.changed_buckets())
        return self.tree.root()


def _by_version(live: LiveVersion) -> tuple[bytes, int]:
    return live.id, live.op_index


def names_for(state: KeyState | None) -> tuple[Version, ...]:
    """What a write without a precondition replaces: every live version, the smallest 256."""
    if state is None:
        return ()
    return tuple(live.version for live in state.live[:NAMES_MAX])
