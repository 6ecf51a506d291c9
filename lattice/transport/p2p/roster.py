"""Which peers are connected, as tasks can wait for it.

Separate because libp2p reports connections, several for one peer and some after the fact, while
everything here thinks in peers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import trio
from libp2p.abc import INetConn, INetStream, INetwork, INotifee

if TYPE_CHECKING:
    from libp2p.peer.id import ID
    from multiaddr import Multiaddr


@dataclass(frozen=True, slots=True)
class Presence:
    """One stretch of time in which a peer has at least one connection."""

    peer: ID
    since: float
    ended: trio.Event = field(default_factory=trio.Event)


class Roster(INotifee):
    """The connected peers of one life of the host.

    `on_connection(connection)` is called for each new connection, `on_peer(presence)` for each newly
    connected peer and `on_gone(peer)` when its last connection is lost; all inside libp2p's
    notification, so they must return at once.
    """

    def __init__(
        self,
        own: ID,
        on_connection: Callable[[INetConn], None],
        on_peer: Callable[[Presence], None],
        on_gone: Callable[[ID], None],
    ) -> None:
        self._own = own
        self._on_connection = on_connection
        self._on_peer = on_peer
        self._on_gone = on_gone
        self._present: dict[ID, Presence] = {}
        self._arrivals: dict[ID, trio.Event] = {}

    def __len__(self) -> int:
        return len(self._present)

    def peers(self) -> tuple[ID, ...]:
        return tuple(self._present)

    def presence(self, peer: ID) -> Presence | None:
        return self._present.get(peer)

    async def wait_present(self, peer: ID) -> Presence:
        while (present := self._present.get(peer)) is None:
            await self._arrivals.setdefault(peer, trio.Event()).wait()
        return present

    async def connected(self, network: INetwork, conn: INetConn) -> None:
        peer = conn.muxed_conn.peer_id
        # libp2p lets a host dial itself; such a "peer" must never look like company.
        if peer == self._own or not _connections(network, peer):
            return
        self._on_connection(conn)
        if peer in self._present:
            return
        presence = self._present[peer] = Presence(peer, trio.current_time())
        arrival = self._arrivals.pop(peer, None)
        if arrival is not None:
            arrival.set()
        self._on_peer(presence)

    async def disconnected(self, network: INetwork, conn: INetConn) -> None:
        peer = conn.muxed_conn.peer_id
        if _connections(network, peer):
            return
        presence = self._present.pop(peer, None)
        if presence is not None:
            self._on_gone(peer)
            presence.ended.set()

    async def opened_stream(self, network: INetwork, stream: INetStream) -> None: ...

    async def closed_stream(self, network: INetwork, stream: INetStream) -> None: ...

    async def listen(self, network: INetwork, multiaddr: Multiaddr) -> None: ...

    async def listen_close(self, network: INetwork, multiaddr: Multiaddr) -> None: ...


def _connections(network: INetwork, peer: ID) -> list[INetConn]:
    swarm: Any = network  # INetwork does not name get_connections
    found: list[INetConn] = swarm.get_connections(peer)
    return found
