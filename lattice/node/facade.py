"""What the node offers to its faces: the API, the command line's own process, the tests.

Separate so that the faces depend on this contract and not on how the node is wired inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ..core.draft import Appended, Condition, OpDraft
from ..core.entry import Seal, Version
from ..core.history import HistoryPage
from ..core.proofs import KeyProof
from ..core.receipts import Receipt
from ..core.rows import EntryRow, ForkRow, LiveVersion, LogHead, LogKey
from ..schemas import Imported, KnownPeer, Status, SwitchAnswer
from .bus import Bus
from .measures import Measures


@dataclass(frozen=True, slots=True)
class KeyView:
    """A key as readers see it: the winner first among `live`; `value` is the winner's bytes."""

    key: bytes
    live: tuple[LiveVersion, ...]
    value: bytes | None
    adds: int
    total: int

    @property
    def winner(self) -> LiveVersion | None:
        return self.live[0] if self.live else None


@dataclass(frozen=True, slots=True)
class LedgerView:
    """The last commit: both roots, sizes, heads, and a signature over the roots by this node.

    `signature` is over STATE_TAG ‖ network id ‖ state_root ‖ log_root ‖ timestamp_ms (u64).
    """

    state_root: bytes
    log_root: bytes
    state_size: int
    entry_count: int
    heads: dict[LogKey, LogHead]
    timestamp_ms: int
    signature: bytes


class NodeFacade(Protocol):
    """The node, as its faces see it. Errors are LatticeError with the codes of core/errors.py."""

    @property
    def name(self) -> str: ...

    @property
    def peer_id(self) -> str: ...

    @property
    def network_id(self) -> bytes: ...

    @property
    def bus(self) -> Bus:
        """What happened, as events; entries only after their commit."""
        ...

    async def append(
        self,
        ops: Sequence[OpDraft],
        *,
        conditions: Sequence[Condition] = (),
        idempotency_key: str | None = None,
        request_digest: bytes = b"",
        ack: int = 1,
    ) -> Appended:
        """Write an atomic batch (1 to 256 ops); returns after the durable commit.

        `ack` > 1 waits until so many nodes (this one included) hold the entry, at most 10 s.
        Raises `too_large`, `precondition_failed`, `idempotency_mismatch`, `no_space`, `not_ready`,
        `not_replicated` (the entry is stored here all the same).
        """
        ...

    def key(self, key: bytes) -> KeyView | None:
        """Committed rows only; None when the key has neither a live version nor a counter."""
        ...

    def value(self, version: LiveVersion) -> bytes: ...

    def page(self, prefix: bytes, after: bytes | None, limit: int) -> list[KeyView]: ...

    def ledger(self) -> LedgerView: ...

    async def prove(self, key: bytes) -> KeyProof:
        """The proof of a key, present or absent, under the state root of the last commit."""
        ...

    async def receipt(self, key: bytes) -> Receipt:
        """A merkletools receipt of a present key. Raises `not_found`."""
        ...

    async def history(self, key: bytes, after: Version | None, limit: int) -> HistoryPage:
        """Up to `limit` ops of a key behind `after`, newest first, from committed rows.

        Raises `not_found` when nothing was ever written under it, `bad_request` when `after` is not listed.
        """
        ...

    def heads(self) -> dict[LogKey, LogHead]: ...

    def entry(self, entry_id: bytes) -> tuple[EntryRow, Seal | None] | None:
        """A stored entry and the lowest kept seal that authenticates it."""
        ...

    def entries(self, log: LogKey, first: int, last: int) -> list[EntryRow]:
        """Entries first..last of a log, in order, a page of bytes at most."""
        ...

    def status(self) -> Status: ...

    def measures(self) -> Measures: ...

    def ready(self) -> dict[str, str]:
        """Failing readiness checks by name with the reason; empty means ready."""
        ...

    async def switch(self, policy: str) -> SwitchAnswer:
        """Set the policy (auto, p2p, http), durable. Raises `bad_mode` with the allowed ones."""
        ...

    def node_urls(self) -> list[str]:
        """The base URLs of the known peers."""
        ...

    def forks(self, after: LogKey | None, limit: int) -> list[ForkRow]:
        """Up to `limit` frozen logs behind `after` with their proofs, in order; committed rows only."""
        ...

    async def take_parcel(self, envelope: bytes) -> Imported:
        """Take one envelope of a parcel, as from a member by hand; returns after the durable commit.

        Raises `envelope` for one that no member of this network sealed, `malformed`, `no_space`.
        """
        ...

    def known_peers(self) -> list[KnownPeer]: ...

    async def add_peer(self, address: str) -> KnownPeer:
        """Know a peer by a multiaddr with its peer id, or by a base URL; remembered, durable.

        Raises `bad_request`: malformed, our own address, or the cap is reached.
        """
        ...

    async def forget_peer(self, name: str) -> KnownPeer:
        """Forget the peer of this id or address, durable; it comes back when it announces itself.

        Raises `not_found`.
        """
        ...

    async def serve_sync(self, body: bytes, remote: str) -> bytes:
        """Answer one sealed envelope that came over HTTP. Raises `envelope` or `malformed`."""
        ...
