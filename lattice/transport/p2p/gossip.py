"""Gossip over two topics: a bounded way out, one judgement for each message on its way in.

Separate from the host because this is policy: what is worth a signature check, what is relayed,
what is dropped when there is too much. Gossip is a hint; whatever is dropped here, sync repairs.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Mapping
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final

import trio

from lattice.core.limits import GOSSIP_BYTES_MAX, PUBLISH_QUEUE
from lattice.transport.p2p.bucket import Bucket
from lattice.transport.p2p.counters import Counters
from lattice.transport.p2p.tuning import Tuning
from lattice.transport.port import GossipKind, P2PHandler

if TYPE_CHECKING:
    from libp2p.abc import ISubscriptionAPI
    from libp2p.peer.id import ID
    from libp2p.pubsub.pb import rpc_pb2

    from lattice.transport.p2p.host import Host

_PAUSE_STEP_S: Final = 0.05


class Gossip:
    """The gossip of one life of the host."""

    def __init__(
        self,
        handler: P2PHandler,
        topics: Mapping[GossipKind, str],
        counters: Counters,
        tuning: Tuning,
        log: logging.Logger,
    ) -> None:
        self._handler = handler
        self._topics = dict(topics)
        self._kinds: dict[str, GossipKind] = {topic: kind for kind, topic in topics.items()}
        self._counters = counters
        self._tuning = tuning
        self._log = log
        self._queue, self._queued = trio.open_memory_channel[tuple[str, bytes]](PUBLISH_QUEUE)
        self._buckets: dict[ID, Bucket] = {}
        self._judged: OrderedDict[bytes, None] = OrderedDict()
        self._host: Host | None = None

    def attach(self, host: Host) -> None:
        """Set the validators. The host is built with `allows`, so it can only be named afterwards."""
        self._host = host
        for topic in self._kinds:
            host.pubsub.set_topic_validator(topic, self._judge, True)

    def publish_nowait(self, kind: GossipKind, data: bytes) -> bool:
        """Queue a payload; False when it is too large or the queue is full."""
        if len(data) > GOSSIP_BYTES_MAX:
            # libp2p would lose it without an error, here and at every relay.
            self._counters.add("gossip_oversize")
            return False
        try:
            self._queue.send_nowait((self._topics[kind], data))
        except (trio.WouldBlock, trio.BrokenResourceError, trio.ClosedResourceError):
            self._counters.add("gossip_queue_full")
            return False
        return True

    def allows(self, forwarder: ID, message: rpc_pb2.Message) -> bool:
        """Is the message worth a signature check? Copies of known ones cost the forwarder nothing."""
        pubsub = self._attached().pubsub
        if pubsub._is_msg_seen(message):
            self._counters.add("gossip_copies")
            return False
        now = trio.current_time()
        bucket = self._buckets.get(forwarder)
        if bucket is None:
            bucket = Bucket(self._tuning.gossip_rate, self._tuning.gossip_burst, now)
            self._buckets[forwarder] = bucket
        if not bucket.take(now):
            self._counters.add("gossip_throttled")
            return False
        return True

    def forget(self, peer: ID) -> None:
        """The peer is gone; its bucket must not outlive it for ever."""
        self._buckets.pop(peer, None)

    def reached(self) -> frozenset[ID]:
        """Admitted peers that subscribe to both topics and can be written to."""
        host = self._attached()
        pubsub = host.pubsub
        found = set()
        for peer in host.gate.admitted_peers:
            stream: Any = pubsub.peers.get(peer)
            if stream is None or stream.muxed_conn.is_closed:
                continue
            if all(peer in pubsub.peer_topics.get(topic, ()) for topic in self._kinds):
                found.add(peer)
        return frozenset(found)

    def ready(self) -> frozenset[ID]:
        """Those of `reached` that get a message now: they are in the mesh, or it is full."""
        router = self._attached().router
        return frozenset(
            peer
            for peer in self.reached()
            if all(
                peer in (mesh := router.mesh.get(topic, ())) or len(mesh) >= router.degree_low
                for topic in self._kinds
            )
        )

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Subscribe, then publish what is queued; ends only by cancellation."""
        host = self._attached()
        async with trio.open_nursery() as nursery:
            for topic in self._kinds:
                subscription = await host.pubsub.subscribe(topic)
                nursery.start_soon(self._drain, subscription)
            task_status.started()
            async for topic, data in self._queued:
                await self._wait_for_room()
                await self._publish(topic, data)

    async def _publish(self, topic: str, data: bytes) -> None:
        try:
            await self._attached().pubsub.publish(topic, data)
        except Exception as error:  # noqa: BLE001 - one lost hint must not cost the host
            self._counters.add("gossip_publish_failed")
            self._log.debug("cannot publish %d bytes: %r", len(data), error)
        else:
            self._counters.add("gossip_published")

    async def _wait_for_room(self) -> None:
        """Slow down while a peer's outbound queue is long: its overflow would be silent."""
        queues = self._attached().pubsub.peer_queues
        deadline = trio.current_time() + self._tuning.outbound_pause_s
        paused = False
        while any(len(queue) > self._tuning.outbound_pause_at for queue in queues.values()):
            if not paused:
                paused = True
                self._counters.add("gossip_paused")
            if trio.current_time() >= deadline:
                return  # one peer that does not read must not silence us to all the others
            await trio.sleep(_PAUSE_STEP_S)

    async def _drain(self, subscription: ISubscriptionAPI) -> None:
        # The validator has handed the payload over already; here it only must not pile up.
        while True:
            await subscription.get()

    async def _judge(self, forwarder: ID, message: rpc_pb2.Message) -> bool:
        """The validator of both topics. Never raises: libp2p asks for True (relay) or False."""
        own = self._attached().peer_id
        if forwarder == own:
            return True
        if message.from_id == own.to_bytes() or len(message.topicIDs) != 1:
            # Ours from an earlier life, still in someone's cache; or one message on both topics.
            self._counters.add("gossip_foreign")
            return False
        if len(message.data) > GOSSIP_BYTES_MAX:
            self._counters.add("gossip_oversize")
            return False
        if not self._first(message.from_id + message.seqno):
            # libp2p marks a message as seen only after this verdict: a copy from another peer gets
            # here meanwhile, and one that was refused gets here each time.
            self._counters.add("gossip_copies")
            return False
        if not self._first(sha256(message.data).digest()):
            # A recording in a new wrapper: whoever publishes seals anew, so nobody needs it twice.
            self._counters.add("gossip_replayed")
            return False
        kind = self._kinds[message.topicIDs[0]]
        self._counters.add("gossip_judged")
        try:
            relay = await self._handler.on_gossip(str(forwarder), kind, bytes(message.data))
        except Exception as error:  # noqa: BLE001 - the node's code; the lung outlives it
            self._counters.add("handler_raised")
            self._log.error("on_gossip raised, the message is not relayed: %r", error)
            return False
        if not relay:
            self._counters.add("gossip_refused")
        return relay

    def _first(self, message_id: bytes) -> bool:
        if message_id in self._judged:
            return False
        self._judged[message_id] = None
        if len(self._judged) > self._tuning.gossip_remembered:
            self._judged.popitem(last=False)
        return True

    def _attached(self) -> Host:
        if self._host is None:
            raise AssertionError("Gossip.attach was not called")
        return self._host
