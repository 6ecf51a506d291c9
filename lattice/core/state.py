"""The state: a pure function of the set of entries, kept up to date op by op.

Separate because the rules of versions, naming edges, counters and leaves are the part of Lattice
on which every replica must agree to the last byte. Edges are stored, flags are not: whether a
version is live follows from the edges, so taking an entry out is the inverse of putting it in.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from hashlib import sha256
from heapq import merge
from itertools import groupby
from operator import attrgetter
from typing import Final

from .entry import Entry, Novelty, Op, OpKind, Version, novelty_of, parse_header, parse_stored_ops
from .errors import MalformedError
from .limits import KEYS_READ_MAX, NAMES_MAX
from .merkle import MerkleMap
from .rows import Batch, EdgeRow, KeyState, LiveVersion, LogKey, OpRow, Reader

META_RULES: Final = "rules"  # the state-rules number by which a store's state was computed
META_NOVELTIES: Final = "novelties"

_LEAF_TAG: Final = b"lattice/leaf/v1\0"
_LENGTH: Final = struct.Struct(">I")
_VERSION: Final = struct.Struct(">32sH32s")
# the number of adds, the length of the total's text
_COUNTER: Final = struct.Struct(">QI")
_NOVELTY: Final = struct.Struct(">?HQ")


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
    return tuple(sorted(live, key=_by_rank, reverse=True))


class State:
    """The state as of the last commit, overlaid with the ops applied since.

    All changes go into the `batch` of the commit under way; `begin` starts the next one once the
    store has made the last durable.
    """

    __slots__ = (
        "_batch", "_cuts", "_edges", "_latest", "_novelties_changed", "_reader", "_touched", "novelties",
        "skipped_ops", "tree",
    )  # fmt: skip

    def __init__(self, reader: Reader, tree: MerkleMap) -> None:
        self._reader = reader
        self.tree = tree
        self.skipped_ops = 0
        self.novelties = unpack_novelties(reader.meta(META_NOVELTIES) or b"")
        self._novelties_changed = False
        self.begin(Batch())

    def begin(self, batch: Batch) -> None:
        """Collect changes in `batch` from now on; what came before is committed."""
        self._batch = batch
        self._latest: dict[tuple[bytes, LogKey], Version] = {}
        self._edges: set[tuple[bytes, Version]] = set()
        self._touched: set[bytes] = set()
        self._cuts: dict[LogKey, int] = {}

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
                self._skip(entry, index, 1)
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

    def _skip(self, entry: Entry, index: int, by: int) -> None:
        """Count an op that is stored and not applied; one of a newer program also by what is new in it."""
        self.skipped_ops += by
        novelty = novelty_of(entry, index)
        if novelty is None:
            return
        self._novelties_changed = True
        self.novelties[novelty] = self.novelties.get(novelty, 0) + by
        if not self.novelties[novelty]:
            del self.novelties[novelty]

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
        if (key, version) in self._edges:
            return True
        if not self._cuts:
            return self._reader.is_named(key, version)
        return any(edge.target == version for edge in self._stored_edges([key]))

    # Taking entries out.

    def remove(self, log: LogKey, first: int, entries: Iterable[Entry]) -> list[bytes]:
        """Take the entries of a log from `first` on out again, the exact inverse of applying them:
        what they alone had replaced is live again. Returns the keys that have another winner or another
        counter, sorted.

        They are a suffix of their log, so no put that stays has one of them as its latest earlier.
        """
        adds: dict[bytes, tuple[int, int]] = {}
        replacing: set[bytes] = set()
        gone: set[bytes] = set()
        for entry in entries:
            gone.add(entry.id)
            for index, op in enumerate(entry.parsed_ops()):
                if op is None:
                    self._skip(entry, index, -1)
                    continue
                count, total = adds.get(op.key, (0, 0))
                adds[op.key] = (count + (op.kind is OpKind.ADD), total + op.amount)
                if op.kind is not OpKind.ADD:
                    replacing.add(op.key)
        # Whoever forks may have written a hundred thousand keys, and nothing else is done meanwhile: so
        # keys are read by the hundred and entries once, and nothing is searched for once a key.
        released = self._released(replacing, log, first, gone)
        self._drop_rows(log, first)
        self._batch.cut_keys.setdefault(log, set()).update(adds)
        live_again = self._puts(released)
        changed = []
        for key, before in self._states(sorted(adds)):
            if before is None:
                raise AssertionError("a key that had ops has no row")
            after = self._without(before, log, first, adds[key], live_again.get(key, ()))
            self._batch.keys[key] = after
            if (before.adds, before.total) != (after.adds, after.total) or _winner(before) != _winner(after):
                changed.append(key)
        self._touched.update(adds)
        return changed

    def _drop_rows(self, log: LogKey, first: int) -> None:
        """Forget what the commit under way holds of the entries, and hide what the store holds."""
        batch = self._batch
        self._cuts[log] = min(first, self._cuts.get(log, first))
        batch.ops = [row for row in batch.ops if row[1:3] != log or row.seq < first]
        batch.edges = [row for row in batch.edges if row[2:4] != log or row.seq < first]
        self._edges = {(row.key, row.target) for row in batch.edges}
        self._latest = {place: held for place, held in self._latest.items() if place[1] != log}

    def _states(self, keys: Sequence[bytes]) -> Iterator[tuple[bytes, KeyState | None]]:
        """Each key with its state (see `key`)."""
        held = self._batch.keys
        for at in range(0, len(keys), KEYS_READ_MAX):
            chunk = keys[at : at + KEYS_READ_MAX]
            unread = [key for key in chunk if key not in held]
            stored = dict(zip(unread, self._reader.key_states(unread), strict=True))
            for key in chunk:
                yield key, stored[key] if key in stored else held[key]

    def _stored_edges(self, keys: Sequence[bytes]) -> Iterator[EdgeRow]:
        """Those of these keys, in order of the keys if they are."""
        for at in range(0, len(keys), KEYS_READ_MAX):
            for edge in self._reader.edges(keys[at : at + KEYS_READ_MAX]):
                if edge.seq < self._cuts.get(LogKey(edge.author, edge.epoch), edge.seq + 1):
                    yield edge

    def _released(
        self, keys: Set[bytes], log: LogKey, first: int, gone: Set[bytes]
    ) -> dict[Version, list[bytes]]:
        """The versions that nothing but the entries to remove names, each with the keys under which they
        name it; without those of the entries themselves, whose ids are `gone`."""
        by_key = attrgetter("key")
        fresh = sorted(edge for edge in self._batch.edges if edge.key in keys)
        released: dict[Version, list[bytes]] = {}
        # One key after the other: a busy one may have very many edges.
        for key, edges in groupby(merge(self._stored_edges(sorted(keys)), fresh, key=by_key), by_key):
            going: set[Version] = set()
            staying: set[Version] = set()
            for edge in edges:
                if (edge.author, edge.epoch) != log or edge.seq < first:
                    staying.add(edge.target)
                elif edge.target.id not in gone:
                    going.add(edge.target)
            for target in going - staying:
                released.setdefault(target, []).append(key)
        return released

    def _without(
        self,
        before: KeyState,
        log: LogKey,
        first: int,
        adds: tuple[int, int],
        released: Sequence[LiveVersion],
    ) -> KeyState:
        live = tuple([held for held in before.live if not _is_from(held, log, first)])
        if released:
            versions = {held.version: held for held in live}
            for held in released:
                versions[held.version] = held
            live = tuple(sorted(versions.values(), key=_by_version))
        count, total = adds
        return KeyState(
            before.key,
            live,
            before.adds - count,
            before.total - total,
        )

    def _puts(self, named: Mapping[Version, Iterable[bytes]]) -> dict[bytes, list[LiveVersion]]:
        """By key, the puts that are named under it and are among the entries: what is named may never
        have come, be no put, or be one of another key."""
        fresh = {row.id: row for row in self._batch.entries}
        found: dict[bytes, list[LiveVersion]] = {}
        for entry_id, versions in groupby(sorted(named), key=attrgetter("id")):
            row = fresh.get(entry_id) or self._reader.entry_by_id(entry_id)
            if row is None or row.seq >= self._cuts.get(LogKey(row.author, row.epoch), row.seq + 1):
                continue
            header = parse_header(row.header)
            wanted = list(versions)
            ops = parse_stored_ops(header, row.ops, [version.op_index for version in wanted])
            for version, op in zip(wanted, ops, strict=True):
                if op is not None and op.kind is OpKind.PUT and op.key in named[version]:
                    place = (row.author, row.epoch, row.seq, op.value_at, op.value_size)
                    held = LiveVersion(row.id, version.op_index, op.op_hash, header.clock, *place)
                    found.setdefault(op.key, []).append(held)
        return found

    def settle(self) -> bytes:
        """Bring the tree up to date with everything applied; returns the state root."""
        for key in self._touched:
            self.tree.set(sha256(key).digest(), leaf_of(self._batch.keys[key]))
        self._touched.clear()
        if self._novelties_changed:
            self._batch.meta[META_NOVELTIES] = pack_novelties(self.novelties)
            self._novelties_changed = False
        self._batch.buckets.update(self.tree.changed_buckets())
        return self.tree.root()


def pack_novelties(counts: Mapping[Novelty, int]) -> bytes:
    return b"".join(_NOVELTY.pack(*novelty, count) for novelty, count in sorted(counts.items()))


def unpack_novelties(data: bytes) -> dict[Novelty, int]:
    """Raises MalformedError."""
    if len(data) % _NOVELTY.size:
        raise MalformedError("the counts of what is not known end too early")
    rows = _NOVELTY.iter_unpack(data)
    return {Novelty(is_format, number): count for is_format, number, count in rows}


def _winner(state: KeyState) -> LiveVersion | None:
    live = state.live
    return max(live, key=_by_rank) if len(live) > 1 else live[0] if live else None


def _by_rank(live: LiveVersion) -> tuple[int, bytes, bytes, int]:
    return live.clock, live.author, live.id, live.op_index


def _is_from(live: LiveVersion, log: LogKey, first: int) -> bool:
    return (live.author, live.epoch) == log and live.seq >= first


def _by_version(live: LiveVersion) -> tuple[bytes, int]:
    return live.id, live.op_index


def names_for(state: KeyState | None) -> tuple[Version, ...]:
    """What a write without a precondition replaces: every live version, the smallest 256."""
    if state is None:
        return ()
    return tuple(live.version for live in state.live[:NAMES_MAX])
