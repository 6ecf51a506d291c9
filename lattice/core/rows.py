"""The rows that the engine reads and writes: what a commit changes, and what a store answers.

Separate because it is the seam between the pure engine and every store: the engine fills a Batch,
a store applies it in one transaction, and neither knows more of the other than these shapes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from .entry import OpKind, Seal, Version
from .limits import FROZEN_NEVER


class LogKey(NamedTuple):
    """A log: one author (32-byte public key) and one epoch (u64)."""

    author: bytes
    epoch: int


class LogHead(NamedTuple):
    """The state of one log: the highest entry held, and where it is frozen (FROZEN_NEVER if not).

    `seq` is -1 and `id` 32 zero bytes while nothing is held.
    """

    seq: int
    id: bytes
    frozen: int = FROZEN_NEVER


class LiveVersion(NamedTuple):
    """One live put of a key, with all that choosing a winner and reading its value takes.

    `value_at` and `value_size` locate the value in the ops bytes of entry (author, epoch, seq).
    """

    id: bytes
    op_index: int
    op_hash: bytes
    clock: int
    author: bytes
    epoch: int
    seq: int
    value_at: int
    value_size: int

    @property
    def version(self) -> Version:
        return Version(self.id, self.op_index)


class KeyState(NamedTuple):
    """All that the state holds of one key: live versions sorted by (id, index), and the counter.

    A key once touched keeps its row even when nothing of it is live: its absence tells the engine
    that no op and no edge of that key is stored at all.
    """

    key: bytes
    live: tuple[LiveVersion, ...] = ()
    adds: int = 0
    total: int = 0

    @property
    def present(self) -> bool:
        """Whether the key has a leaf in the state tree."""
        return bool(self.live) or self.adds > 0


class EntryRow(NamedTuple):
    """A stored entry. `peer` is the public key that sent it (empty for our own), `lung` how it
    came (`local`, `p2p`, `http`, `gossip`, `file`), `arrived_ms` the wall clock of its arrival."""

    author: bytes
    epoch: int
    seq: int
    id: bytes
    header: bytes
    ops: bytes
    lung: str
    peer: bytes
    arrived_ms: int


class OpRow(NamedTuple):
    """One applied op of a key; the rows of a key are its history."""

    key: bytes
    author: bytes
    epoch: int
    seq: int
    op_index: int
    kind: OpKind
    id: bytes


class EdgeRow(NamedTuple):
    """A naming edge: the op (author, epoch, seq, op_index) of this key replaces version `target`.

    The key is that of the naming op: an edge counts only for a version of the same key, and is
    stored whether or not that version has arrived.
    """

    key: bytes
    target: Version
    author: bytes
    epoch: int
    seq: int
    op_index: int


class ForkRow(NamedTuple):
    """A log with two branches: its proof as bytes (see forks.pack_fork_proof), and what freezing it
    took out here: how many entries, and the keys whose winner or counter changed (at most
    FORK_KEYS_MAX).

    `peer` is the public key that brought the evidence (empty: ourselves), `lung` and `at_ms` how and
    when it came.
    """

    author: bytes
    epoch: int
    frozen: int
    proof: bytes
    removed: int
    keys: tuple[bytes, ...]
    peer: bytes
    lung: str
    at_ms: int


class IdempotentRow(NamedTuple):
    """The result of a write that carried an idempotency key, kept until `expires_ms`."""

    key: bytes
    request_digest: bytes
    result: bytes
    expires_ms: int


@dataclass(slots=True)
class Batch:
    """Everything that one commit changes. A store applies all of it or nothing.

    `seals_dropped` names (author, epoch, seq) of seals no longer kept. `buckets` holds whole
    packed buckets of the state tree by number. `meta` holds small named values (roots, clock).
    `cuts` names the seq from which a log's entries and their seals go, and in `cut_keys` stand the keys
    that have ops or edges of those entries; rows to remove go before rows to add.
    """

    entries: list[EntryRow] = field(default_factory=list)
    seals: list[Seal] = field(default_factory=list)
    seals_dropped: list[tuple[bytes, int, int]] = field(default_factory=list)
    logs: dict[LogKey, LogHead] = field(default_factory=dict)
    keys: dict[bytes, KeyState] = field(default_factory=dict)
    ops: list[OpRow] = field(default_factory=list)
    edges: list[EdgeRow] = field(default_factory=list)
    buckets: dict[int, bytes] = field(default_factory=dict)
    idempotent: list[IdempotentRow] = field(default_factory=list)
    meta: dict[str, bytes] = field(default_factory=dict)
    forks: dict[LogKey, ForkRow] = field(default_factory=dict)
    cuts: dict[LogKey, int] = field(default_factory=dict)
    cut_keys: dict[LogKey, set[bytes]] = field(default_factory=dict)

    @property
    def is_empty(self) -> bool:
        return not (
            self.entries
            or self.seals
            or self.seals_dropped
            or self.logs
            or self.keys
            or self.buckets
            or self.idempotent
            or self.meta
            or self.forks
            or self.cuts
        )


class Reader(Protocol):
    """Committed rows, read synchronously; what both the engine and the API ask.

    Every method reads the last commit that has returned, never part of one.
    """

    def log_heads(self) -> dict[LogKey, LogHead]: ...

    def buckets(self) -> dict[int, bytes]:
        """All non-empty buckets of the state tree, packed, by number."""
        ...

    def meta(self, name: str) -> bytes | None: ...

    def key_state(self, key: bytes) -> KeyState | None: ...

    def key_states(self, keys: Sequence[bytes]) -> list[KeyState | None]:
        """The state of each of these keys, at most KEYS_READ_MAX: to ask for each alone takes longer."""
        ...

    def page_keys(self, prefix: bytes, after: bytes | None, limit: int) -> list[KeyState]:
        """Present keys (see KeyState.present) with `prefix`, greater than `after`, in byte order."""
        ...

    def latest_put(
        self, key: bytes, author: bytes, epoch: int, below: tuple[int, int] | None = None
    ) -> Version | None:
        """The latest put of `key` in that log by (seq, index), live or not; with `below` the latest that
        stands before that (seq, index)."""
        ...

    def is_named(self, key: bytes, target: Version) -> bool:
        """Whether any stored edge of `key` names `target`."""
        ...

    def edges(self, keys: Sequence[bytes]) -> Iterator[EdgeRow]:
        """All stored edges of these keys, which are at most KEYS_READ_MAX and in order, in order of (key,
        target, author, epoch, seq, op index); read as they are asked for, some thousand at a time."""
        ...

    def frozen_logs(self) -> list[LogKey]:
        """The logs that a fork has frozen, in order."""
        ...

    def fork_row(self, log: LogKey) -> ForkRow | None:
        """What is kept of a frozen log. Its proof has up to 16 KiB, so it is read when it is needed:
        one author can fork any number of logs."""
        ...

    def history(self, key: bytes, limit: int) -> list[OpRow]:
        """The first `limit` ops of the key by (author, epoch, seq, op index)."""
        ...

    def op_logs(self, key: bytes) -> list[LogKey]:
        """The logs that hold ops of the key, in order."""
        ...

    def newest_ops(self, key: bytes, log: LogKey, below: tuple[int, int], limit: int) -> list[OpRow]:
        """The last `limit` ops of the key in one log that stand before (seq, op index) `below`, the last
        first."""
        ...

    def entry(self, author: bytes, epoch: int, seq: int) -> EntryRow | None: ...

    def entry_by_id(self, entry_id: bytes) -> EntryRow | None: ...

    def entry_id_at(self, author: bytes, epoch: int, seq: int) -> bytes | None: ...

    def entries(self, author: bytes, epoch: int, first: int, last: int, bytes_max: int) -> list[EntryRow]:
        """Entries first..last in order, cut after the one that passes `bytes_max` (header + ops)."""
        ...

    def seals(self, author: bytes, epoch: int, first: int, last: int) -> list[Seal]:
        """The kept seals with first <= seq <= last, in order."""
        ...

    def value(self, version: LiveVersion) -> bytes:
        """The value bytes of a live version. Raises LatticeError `store_corrupt` when missing."""
        ...

    def idempotent(self, key: bytes, now_ms: int) -> IdempotentRow | None:
        """The unexpired row of an idempotency key."""
        ...

    def entry_count(self) -> int: ...
