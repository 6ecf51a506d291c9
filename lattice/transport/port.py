"""The ports through which a node reaches other nodes: one per lung.

Separate from the lungs so that the node, the memory fake and the real transports agree on one
contract and none of them imports another. A transport moves sealed bytes; it never looks inside.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import trio

from ..core.messages import Addresses

GossipKind = Literal["entries", "presence"]


class TransportError(Exception):
    """An exchange that did not complete: link lost, refused, malformed or too large an answer.

    `reason` is a short stable word for logs and counters (for example `refused`, `timeout`,
    `reset`, `too_large`, `status_502`).
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail


class PeerLink(Protocol):
    """One persistent, bidirectional stream with one peer over the P2P lung.

    Either side may start an exchange at any time; several may overlap in both directions.
    """

    @property
    def peer_id(self) -> str:
        """The peer id (`12D3Koo…`) that the secure channel proved."""
        ...

    @property
    def remote_address(self) -> str:
        """Where the connection leads, as text for status and logs."""
        ...

    @property
    def opened_by_us(self) -> bool: ...

    @property
    def closed(self) -> bool: ...

    async def exchange(self, request: bytes) -> bytes:
        """Send `request`, wait for its answer. Time-outs are the caller's cancel scope.

        Raises TransportError when the stream ends or breaks before the answer.
        """
        ...

    async def aclose(self) -> None:
        """Close the stream. Never raises; pending exchanges get TransportError."""
        ...


class P2PHandler(Protocol):
    """What the node gives to the P2P lung. None of these may raise; the lung survives if one does."""

    async def on_link(self, link: PeerLink) -> None:
        """Own the link for its life: greet, beat, sync. The lung closes the link on return and
        cancels this call when the link breaks."""
        ...

    async def on_request(self, link: PeerLink, request: bytes) -> bytes | None:
        """Answer one inbound exchange; None closes the link."""
        ...

    async def on_gossip(self, forwarder: str, kind: GossipKind, data: bytes) -> bool:
        """Judge one gossip payload, once, before it is relayed: True relays it."""
        ...


@dataclass(frozen=True, slots=True)
class P2PReport:
    """A snapshot of the P2P lung for status. `error` is None while the host runs."""

    enabled: bool
    started: bool
    error: str | None = None
    peer_id: str = ""
    listen_multiaddrs: tuple[str, ...] = ()
    announced_multiaddrs: tuple[str, ...] = ()
    connected: tuple[str, ...] = ()
    gossip_ready: tuple[str, ...] = ()
    restarts: int = 0
    counters: Mapping[str, int] = field(default_factory=dict)


class P2PLung(Protocol):
    """The P2P lung: dials, keeps one stream per connected peer, gossips."""

    async def run(
        self,
        handler: P2PHandler,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Run until cancelled. Reports started as soon as the first attempt to start the host has
        succeeded or failed (see `report().error`); a lost host is rebuilt."""
        ...

    def set_known(self, addresses: Mapping[str, Sequence[str]]) -> None:
        """Replace the set of peers to stay connected with: peer id -> multiaddrs, best first."""
        ...

    def admit(self, peer_id: str) -> None:
        """The peer completed a challenged Hello: open gossip and identify to it."""
        ...

    def expel(self, peer_id: str) -> None:
        """Close all connections with the peer and forget its admission."""
        ...

    def publish_nowait(self, kind: GossipKind, data: bytes) -> bool:
        """Queue a gossip payload; False when it was dropped (queue full, host down, too large)."""
        ...

    def report(self) -> P2PReport: ...


class HttpLung(Protocol):
    """The client half of the HTTP lung; its server half is the API's `sync/messages` route."""

    async def exchange(self, url: str, request: bytes, *, timeout_s: float) -> bytes:
        """POST `request` to the node at base `url`, return the body of the answer.

        Raises TransportError on anything but a 200 with an octet-stream within the size limit;
        redirects are never followed.
        """
        ...


class Discovery(Protocol):
    """Finds places where nodes of this network may be. They are hints: nothing of them is proved."""

    async def run(
        self,
        found: Callable[[str, Addresses], None],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Run until cancelled; `found(peer_id, addresses)` for each, with no addresses for one gone."""
        ...
