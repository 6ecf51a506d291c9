"""One life of the host: the host and everything that is built on it, from start to loss.

Separate from the lung, which outlives it: whatever is in here is thrown away and made anew when the
host is lost.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

import trio

from lattice.transport.p2p import watchdog
from lattice.transport.p2p.counters import Counters
from lattice.transport.p2p.dialer import Dialer, Targets
from lattice.transport.p2p.gossip import Gossip
from lattice.transport.p2p.host import Host, HostSettings, build, running, start_listening
from lattice.transport.p2p.links import Links
from lattice.transport.p2p.roster import Presence, Roster
from lattice.transport.p2p.streams import SYNC_PROTOCOL
from lattice.transport.p2p.tuning import Tuning
from lattice.transport.port import GossipKind, P2PHandler

if TYPE_CHECKING:
    from libp2p.peer.id import ID


class Life:
    """Built, run once, discarded."""

    def __init__(
        self,
        settings: HostSettings,
        topics: dict[GossipKind, str],
        targets: Targets,
        handler: P2PHandler,
        *,
        payload_bytes_max: int,
        counters: Counters,
        tuning: Tuning,
        log: logging.Logger,
    ) -> None:
        self._settings = settings
        self._counters = counters
        self._tuning = tuning
        self._log = log
        self.gossip = Gossip(handler, topics, counters, tuning, log)
        self.links = Links(
            handler, payload_bytes_max=payload_bytes_max, counters=counters, tuning=tuning, log=log
        )
        self.host: Host = build(settings, {SYNC_PROTOCOL: self.links.accept}, counters, tuning, log)
        self.gossip.attach(self.host)
        self.links.attach(self.host)
        self.roster = Roster(self.host.peer_id, self.host.remember, self._on_peer, self._on_gone)
        self.host.network.register_notifee(self.roster)
        self._dialer = Dialer(self.host, self.roster, targets, counters, tuning, log)
        self._nursery: trio.Nursery | None = None

    async def run(self, started: Callable[[], None], ended: Callable[[], None]) -> None:
        """Run until the host is lost (HostLostError or worse, in a group) or this is cancelled.

        Calls `started` once the host listens, and `ended` when it is no longer of use, before the
        orderly close. Raises AddressError before `started`, in a group.
        """
        async with (
            running(self.host, self.gossip.allows, self._counters, self._tuning, self._log),
            trio.open_nursery() as nursery,
        ):
            self._nursery = nursery
            await nursery.start(self.gossip.run)
            await start_listening(self.host, self._settings.listen)
            nursery.start_soon(self._dialer.run)
            nursery.start_soon(
                watchdog.watch, self.host, self.gossip, self._counters, self._tuning, self._log
            )
            started()
            try:
                await trio.sleep_forever()
            finally:
                ended()

    def admit(self, peer: ID) -> None:
        self._start(self.host.gate.admit, peer)

    def expel(self, peer: ID) -> None:
        self.host.gate.forget(peer)
        self._start(self._disconnect, peer)

    def _start(self, act: Callable[[ID], object], peer: ID) -> None:
        if self._nursery is not None and not self._nursery.cancel_scope.cancel_called:
            self._nursery.start_soon(self._trapped, act, peer)

    async def _trapped(self, act: Callable[[ID], object], peer: ID) -> None:
        try:
            await act(peer)  # type: ignore[misc]
        except Exception as error:  # noqa: BLE001 - libp2p's, about one peer; the host goes on
            self._counters.add("trapped_task")
            self._log.debug("with %s: %r", peer, error)

    async def _disconnect(self, peer: ID) -> None:
        with trio.move_on_after(self._tuning.close_s):
            await self.host.basic.disconnect(peer)

    def _on_peer(self, presence: Presence) -> None:
        if self._nursery is not None:
            self._nursery.start_soon(self._accompany, presence)

    async def _accompany(self, presence: Presence) -> None:
        """Everything that lasts as long as a peer is connected."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._trapped, self.host.gate.expire, presence.peer)
            nursery.start_soon(self.links.keep, presence.peer)
            await presence.ended.wait()
            nursery.cancel_scope.cancel()

    def _on_gone(self, peer: ID) -> None:
        # At once, not when `_accompany` gets its turn: the peer may be back by then.
        self.host.gate.forget(peer)
        self.gossip.forget(peer)
        self.links.forget(peer)
