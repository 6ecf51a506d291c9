"""The gate: no gossip and no identify byte passes either way before a peer's Hello is complete.

Separate because it is the one rule about *who*; the patches in `harden` are about *what*. Streams
that come early are held unread, never reset: a reset would lose the one packet in which the other
side says what it subscribes to, and leave the pair deaf for good.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import trio
from libp2p.abc import INetStream
from libp2p.host.ping import ID as PING
from libp2p.identity.identify.identify import ID as IDENTIFY
from libp2p.identity.identify_push.identify_push import ID_PUSH as IDENTIFY_PUSH

from lattice.transport.p2p.counters import Counters
from lattice.transport.p2p.read_ahead import ReadAhead
from lattice.transport.p2p.tuning import Tuning

if TYPE_CHECKING:
    from libp2p.host.basic_host import BasicHost
    from libp2p.peer.id import ID
    from libp2p.pubsub.pubsub import Pubsub


class Gate:
    """Who may gossip with this host. One for each life of the host."""

    def __init__(
        self, host: BasicHost, pubsub: Pubsub, counters: Counters, tuning: Tuning, log: logging.Logger
    ) -> None:
        self._host: Any = host
        self._pubsub = pubsub
        self._counters = counters
        self._tuning = tuning
        self._log = log
        self._admitted: set[ID] = set()
        self.when_admitted: Callable[[ID], None] = lambda _: None
        self._waiting: dict[ID, trio.Event] = {}  # made by the first held stream, gone with the last
        self._new_peer = pubsub._handle_new_peer
        self._identify: Callable[..., None] = self._host._schedule_identify

    def install(self, open_protocols: frozenset[str]) -> None:
        """Close the gate. Call it after Pubsub was made and before `host.run()`.

        `open_protocols` need no admission (the link's own); every other handler is removed.
        """
        pubsub: Any = self._pubsub
        pubsub._handle_new_peer = self._open_gossip
        self._host._schedule_identify = self._identify_later
        self._host._push_identify_to_all_peers = self._push_nothing
        handlers = self._host.multiselect.handlers
        held = {*pubsub.protocols, IDENTIFY, IDENTIFY_PUSH}
        for protocol in list(handlers):
            if protocol in held:
                handlers[protocol] = self._hold(handlers[protocol])
            elif protocol != PING and protocol not in open_protocols:
                del handlers[protocol]  # nothing that a later version adds is reachable unseen

    def admitted(self, peer: ID) -> bool:
        return peer in self._admitted

    @property
    def admitted_peers(self) -> frozenset[ID]:
        return frozenset(self._admitted)

    async def admit(self, peer: ID) -> None:
        """Let gossip and identify through, and open our side of both."""
        if not self._host.get_network().get_connections(peer):
            return
        self._admitted.add(peer)
        self.when_admitted(peer)
        waiting = self._waiting.pop(peer, None)
        if waiting is not None:
            waiting.set()
        self._identify(peer, reason="admitted")
        await self._pubsub.ensure_peer_stream(peer, 5)
        # A held stream's subscriptions were read before there was a stream back, and libp2p grafts
        # only a peer that it can write to: until the next heartbeat, publishing would miss it.
        router: Any = self._pubsub.router
        for topic in tuple(self._pubsub.topic_ids):
            if peer in self._pubsub.peer_topics.get(topic, ()):
                await router.on_peer_subscribed(peer, topic)

    def forget(self, peer: ID) -> None:
        """The last connection is gone: the peer has to greet again."""
        self._admitted.discard(peer)

    async def expire(self, peer: ID) -> None:
        """Disconnect a peer that is not admitted in time; cancel this when it disconnects."""
        await trio.sleep(self._tuning.admission_s)
        if peer not in self._admitted:
            self._counters.add("gate_expired")
            self._log.debug("%s did not greet in time: disconnecting", peer)
            await self._host.disconnect(peer)

    async def _open_gossip(self, peer: ID) -> None:
        # All ways out lead here (notifee, retry, rescue of a dead peer). It returns and does not
        # raise: an exception would start libp2p's endless retry.
        if peer in self._admitted:
            await self._new_peer(peer)

    def _identify_later(self, peer: ID, *, reason: str) -> None:
        if peer in self._admitted:
            self._identify(peer, reason=reason)

    async def _push_nothing(self) -> None:
        """Identify-push would go to every connected peer, admitted or not; peers learn addresses
        from the sealed Hello."""

    def _hold(self, inner: Callable[[INetStream], Any]) -> Callable[[INetStream], Any]:
        held: set[ID] = set()

        async def handler(stream: INetStream) -> None:
            peer = stream.muxed_conn.peer_id
            if peer not in self._admitted:
                if peer in held:  # one early stream a protocol; more is not a race but a flood
                    self._counters.add("gate_reset")
                    await stream.reset()
                    return
                held.add(peer)
                try:
                    self._counters.add("gate_held")
                    await self._wait(peer)
                finally:
                    held.discard(peer)
            if peer not in self._admitted:
                self._counters.add("gate_reset")
                await stream.reset()
                return
            # Only gossip reads much, but all held protocols read in small pieces.
            await inner(cast("INetStream", ReadAhead(stream)))

        return handler

    async def _wait(self, peer: ID) -> None:
        waiting = self._waiting.setdefault(peer, trio.Event())
        with trio.move_on_after(self._tuning.admission_s):
            await waiting.wait()
        # Another protocol's stream may wait on it still, so the last one takes the entry away.
        if self._waiting.get(peer) is waiting and not waiting.statistics().tasks_waiting:
            del self._waiting[peer]
