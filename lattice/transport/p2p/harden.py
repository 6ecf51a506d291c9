"""Patches that keep one peer, or one exception, from ending or deafening the libp2p host.

Separate from the construction of the host so that each patch is one function with its reason, and
one test that fails when the library changes underneath. All are set on instances; the two names
that libp2p reads from its module are in `host`.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections import OrderedDict, defaultdict
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import trio
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.network.connection import swarm_connection
from libp2p.pubsub.utils import safe_bytes_from_hex

from lattice.core.addresses import source_of
from lattice.core.errors import LatticeError
from lattice.core.identity import public_key_of
from lattice.core.limits import CONNECTIONS_MAX, GOSSIP_BYTES_MAX, HALF_OPEN_PER_ADDRESS_MAX, KIB
from lattice.transport.p2p.bucket import Bucket
from lattice.transport.p2p.counters import Counters
from lattice.transport.p2p.tuning import Tuning

if TYPE_CHECKING:
    from libp2p.host.basic_host import BasicHost
    from libp2p.peer.id import ID
    from libp2p.pubsub.pb import rpc_pb2
    from libp2p.pubsub.pubsub import Pubsub

    from lattice.transport.p2p.gate import Gate

# A libp2p object whose private names are used here: its own types know nothing of them.
Internals: TypeAlias = Any

Allows: TypeAlias = Callable[["ID", "rpc_pb2.Message"], bool]


class _ConnectionEndedError(Exception):
    """Tells the caller inside libp2p that an inbound connection is over, so that it frees the slot."""


class _ToDebug(logging.Handler):
    """Passes libp2p's records to the node's log as DEBUG: the library reports normal disconnects as
    warnings and errors with tracebacks."""

    def __init__(self, log: logging.Logger) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        if self._log.isEnabledFor(logging.DEBUG):
            self._log.debug("libp2p %s: %s", record.name, record.getMessage())


def quiet_logs(log: logging.Logger) -> None:
    """Keep libp2p out of the console: its warnings go to `log` as DEBUG, or nowhere."""
    library = logging.getLogger("libp2p")
    ancestor: logging.Logger | None = log
    while ancestor is not None:
        if ancestor is library:
            raise ValueError("the node's log is one of libp2p's own loggers: it would feed itself")
        ancestor = ancestor.parent
    library.propagate = False
    library.handlers[:] = [_ToDebug(log)]
    library.setLevel(logging.WARNING if log.isEnabledFor(logging.DEBUG) else logging.CRITICAL)
    # It narrates every conversion of an address at DEBUG.
    logging.getLogger("multiaddr").setLevel(logging.WARNING)
    # This module logs through the functions of `logging` itself: they write to the root logger and,
    # when it has no handler yet, install one for the whole process.
    setattr(swarm_connection, "logging", logging.getLogger("libp2p.network.connection"))


def harden(
    host: BasicHost,
    pubsub: Pubsub,
    gate: Gate,
    counters: Counters,
    tuning: Tuning,
    log: logging.Logger,
) -> None:
    """Apply every patch that has to be in place before `host.run()`."""
    network: Internals = host.get_network()
    trap_stream_errors(network, pubsub, counters, tuning, log)
    trap_message_errors(pubsub, counters, log)
    ignore_foreign_topics(pubsub, counters)
    answer_few_wants(pubsub.router, counters, tuning)
    count_unreadable(pubsub, counters)
    free_inbound_slots(network, gate, counters)
    bound_connections(network, gate.admitted, counters, tuning)
    stop_auto_connect(network)
    host.get_addrs = _remembered(host.get_addrs)  # type: ignore[method-assign]


def trap_stream_errors(
    network: Internals, pubsub: Pubsub, counters: Counters, tuning: Tuning, log: logging.Logger
) -> None:
    """An exception in any inbound stream ends that stream, not the host; and few streams are let in.

    libp2p lets the exception rise into the nursery of the whole network: one malformed protobuf frame
    is enough. It counts streams for the whole host only: one peer could take them all.
    """
    inner = network.common_stream_handler

    async def safe(stream: Internals) -> None:
        if len(stream.swarm_conn.streams) > tuning.streams_max:
            counters.add("streams_refused")
            await _quietly(stream.reset)
            return
        try:
            await inner(stream)
        except Exception as error:  # noqa: BLE001 - whatever a remote frame can provoke inside libp2p
            counters.add("trapped_stream")
            peer = stream.muxed_conn.peer_id
            log.debug("trapped in a stream of %s: %r", peer, error)
            await _quietly(stream.reset)
            # Also forgets the peer's subscriptions, and opens gossip anew if it is still connected.
            if str(stream.get_protocol() or "").startswith("/meshsub/"):
                with contextlib.suppress(Exception):
                    pubsub._handle_dead_peer(peer)

    network.common_stream_handler = safe


def trap_message_errors(pubsub: Pubsub, counters: Counters, log: logging.Logger) -> None:
    """An exception over one gossip message drops that message, not the host.

    A message whose author cannot be read and whose key is garbage raises before the validator runs.
    """
    inner = pubsub.push_msg

    async def safe(forwarder: ID, message: rpc_pb2.Message) -> None:
        if forwarder == pubsub.my_id:
            await inner(forwarder, message)
            return
        try:
            await inner(forwarder, message)
        except Exception as error:  # noqa: BLE001 - as above
            counters.add("trapped_message")
            log.debug("trapped a gossip message of %s: %r", forwarder, error)

    pubsub.push_msg = safe  # type: ignore[method-assign, assignment]


def ignore_foreign_topics(pubsub: Pubsub, counters: Counters) -> None:
    """Whatever a peer says of a topic that is none of ours is counted and forgotten.

    libp2p answers each graft of an unknown topic, and keeps back-off and flood tables by topic: the names
    that a peer invents would fill memory.
    """
    router: Internals = pubsub.router
    allowed = pubsub.allowed_topics or frozenset()
    subscription = pubsub.handle_subscription
    is_subscribed = pubsub._is_subscribed_to_msg

    def handle_subscription(origin: ID, message: rpc_pb2.RPC.SubOpts) -> None:
        if message.topicid in allowed:
            subscription(origin, message)
        else:
            counters.add("topics_foreign")

    def is_subscribed_to(message: rpc_pb2.Message) -> bool:
        ours = is_subscribed(message)
        if not ours:
            counters.add("topics_foreign")
        return ours

    def only_ours(handle: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
        async def handle_ours(control: Internals, sender: ID) -> None:
            if control.topicID in allowed:
                await handle(control, sender)
            else:
                counters.add("topics_foreign")

        return handle_ours

    setattr(pubsub, "handle_subscription", handle_subscription)
    setattr(pubsub, "_is_subscribed_to_msg", is_subscribed_to)
    # The library skips, uncounted, a whole message with more; what is not ours costs a look-up here.
    pubsub.max_subscriptions_per_rpc = pubsub.max_inbound_rpc_size
    for name in ("handle_graft", "handle_prune", "handle_ihave"):
        setattr(router, name, only_ours(getattr(router, name)))


def answer_few_wants(router: Internals, counters: Counters, tuning: Tuning) -> None:
    """What a peer wants again is sent once a message, and so many bytes a second.

    libp2p puts as many copies into its answer as the peer names: 72 KB that name one message 1,500
    times were half a gigabyte here. An answer larger than one message may be would not arrive either.
    """
    inner = router.handle_iwant
    buckets: OrderedDict[ID, Bucket] = OrderedDict()

    async def handle_few(wanted: Internals, sender: ID) -> None:
        now = trio.current_time()
        bucket = buckets.pop(sender, None)
        if bucket is None:
            bucket = Bucket(tuning.wanted_bytes_per_s, tuning.wanted_bytes_burst, now)
        buckets[sender] = bucket
        while len(buckets) > CONNECTIONS_MAX:
            buckets.popitem(last=False)
        left = GOSSIP_BYTES_MAX + KIB  # one of the largest with its frame, or many small ones
        given: dict[bytes, bytes] = {}  # by the bytes that a name stands for: hex has two cases
        for name in wanted.messageIDs:
            found = safe_bytes_from_hex(name) or b""
            message = router.mcache.get(found)
            if message is None:
                continue
            size = message.ByteSize()
            if found in given or size > left or not bucket.take(now, size):
                counters.add("gossip_wants_refused")
                continue
            left -= size
            given[found] = name
        if given:
            del wanted.messageIDs[:]
            wanted.messageIDs.extend(given.values())
            await inner(wanted, sender)

    router.handle_iwant = handle_few


def count_unreadable(pubsub: Pubsub, counters: Counters) -> None:
    """Count the gossip streams that libp2p gives up: a length too large, or one that is none."""
    read = pubsub.continuously_read_stream

    async def read_counted(stream: Internals) -> None:
        reset = stream.reset

        async def counted() -> None:
            counters.add("gossip_unreadable")
            await reset()

        stream.reset = counted
        await read(stream)

    pubsub.continuously_read_stream = read_counted  # type: ignore[method-assign]


def free_inbound_slots(network: Internals, gate: Gate, counters: Counters) -> None:
    """Hold an inbound slot while the connection lives, and at most 16 half-open ones an address.

    libp2p holds the slot until the host stops, so a node goes deaf after a fixed number of inbound
    connections in its life; and idle connects from one address could take all slots. Half-open is a
    connection until its peer is admitted: a handshake under a new name costs a stranger nothing.
    """
    upgrade = network.upgrade_inbound_raw_conn
    handle = network._do_handle_inbound_connection
    outer = network._handle_inbound_connection
    half_open: defaultdict[str, int] = defaultdict(int)
    strangers: defaultdict[ID, list[Internals]] = defaultdict(list)

    def leave(stream: Internals) -> None:
        origin = getattr(stream, "_lattice_origin", None)
        if origin is None:
            return
        stream._lattice_origin = None
        half_open[origin] -= 1
        if half_open[origin] <= 0:
            del half_open[origin]

    def greeted(peer: ID) -> None:
        for stream in strangers.pop(peer, ()):
            leave(stream)

    async def upgrade_and_wait(raw: Internals, maddr: Internals) -> None:
        muxed = None
        try:
            muxed = await upgrade(raw, maddr)
        finally:
            if muxed is None:  # garbage, or silence until the library's time is over
                counters.add("upgrade_failed")
        peer = muxed.peer_id
        strangers[peer].append(raw.stream)
        if gate.admitted(peer):
            greeted(peer)
        try:
            await muxed.event_closed.wait()
        finally:
            waiting = strangers.get(peer, [])
            if raw.stream in waiting:
                waiting.remove(raw.stream)
            if not waiting:
                strangers.pop(peer, None)
        raise _ConnectionEndedError

    async def handle_if_few(stream: Internals, maddr: Internals, failure: Internals) -> None:
        origin = _origin(stream)
        if half_open[origin] >= HALF_OPEN_PER_ADDRESS_MAX:
            counters.add("half_open_refused")
            await _quietly(stream.close)
            return
        half_open[origin] += 1
        stream._lattice_origin = origin
        try:
            await handle(stream, maddr, failure)
        finally:
            leave(stream)

    async def handle_counted(stream: Internals, maddr: Internals) -> None:
        if not network._inbound_limiter.available_tokens:
            counters.add("connections_refused")  # by the library, without a word
        await outer(stream, maddr)

    gate.when_admitted = greeted
    network.upgrade_inbound_raw_conn = upgrade_and_wait
    network._do_handle_inbound_connection = handle_if_few
    network._handle_inbound_connection = handle_counted


def stop_auto_connect(network: Internals) -> None:
    """Leave dialling to the dialer.

    Watermarks of zero do not stop libp2p's own: it aims half-way to the upper one, and every half
    minute dials whatever addresses peers have told it.
    """

    async def nothing() -> None: ...

    network.auto_connector.maybe_connect = nothing


def drop_early(pubsub: Pubsub, allows: Allows) -> None:
    """Ask `allows(forwarder, message)` before a gossip message costs a task and a signature check.

    Call it once the service runs. In a full mesh most messages are copies of known ones.
    """
    manager: Internals = pubsub.manager
    inner = manager.run_task
    push = pubsub.push_msg

    def run_task(async_fn: Callable[..., Awaitable[Any]], *args: Internals, **kwargs: Internals) -> None:
        if async_fn is not push or allows(*args):
            inner(async_fn, *args, **kwargs)

    manager.run_task = run_task


def trap_task_errors(manager: Internals, counters: Counters, log: logging.Logger) -> None:
    """An exception in one background task of a libp2p service ends that task, not the service.

    Call it once the service runs. A task that carries a connection closes that connection.
    """
    inner = manager.run_task

    def run_task(async_fn: Callable[..., Awaitable[Any]], *args: Internals, **kwargs: Internals) -> None:
        @functools.wraps(async_fn)
        async def safe(*args: Internals) -> None:
            try:
                await async_fn(*args)
            except Exception as error:  # noqa: BLE001 - as above
                counters.add("trapped_task")
                log.debug("trapped in %s: %r", getattr(async_fn, "__qualname__", async_fn), error)
                carrier = getattr(async_fn, "__self__", None)
                if hasattr(carrier, "muxed_conn") or hasattr(carrier, "secured_conn"):
                    await _quietly(carrier.close)  # type: ignore[union-attr]

        inner(safe, *args, **kwargs)

    manager.run_task = run_task


def bound_connections(
    network: Internals, admitted: Callable[[ID], bool], counters: Counters, tuning: Tuning
) -> None:
    """Bound what one connection can hold of our memory, and of our time.

    - yamux counts a window that the sender overran and goes on buffering; here it ends.
    - a write to a peer that stopped reading never returns, and holds the locks that closing needs:
      one such peer would stop the health monitor for all. Here its socket is closed.
    - a write that is cancelled half-way leaves half a Noise message on the wire, and the connection
      is lost with the next one. Here a write that has begun is finished.
    - libp2p takes identities of other kinds of keys. No node has one, and nothing behind this door knows
      what to call such a peer.

    All that before its reader starts: the first frame may have come with the handshake, and who is told
    of a connection by the library is told after that.
    """
    inner = network.add_conn

    async def add_bound(muxed: Internals, *args: Internals, **kwargs: Internals) -> Internals:
        try:
            public_key_of(str(muxed.peer_id))
        except LatticeError as error:
            counters.add("identity_refused")
            await _quietly(muxed.close)
            raise ConnectionClosedError("not the peer id of a node") from error
        if "_write_frame" not in vars(muxed):  # the library may add the same one twice
            _bound(muxed, lambda: admitted(muxed.peer_id), counters, tuning)
        return await inner(muxed, *args, **kwargs)

    network.add_conn = add_bound


def _bound(muxed: Internals, admitted: Callable[[], bool], counters: Counters, tuning: Tuning) -> None:
    read_body = muxed._read_data_body

    async def read_bounded(length: int) -> bytes:
        unread = sum(map(len, muxed.stream_buffers.values()))
        room = tuning.unread_bytes_max if admitted() else tuning.unread_stranger_bytes_max
        if length > tuning.frame_bytes_max or unread + length > room:
            counters.add("unread_overflow")
            raise trio.TooSlowError  # the one exception after which yamux closes the connection
        body: bytes = await read_body(length)
        return body

    async def write_bounded(frame: bytes) -> None:
        async with muxed._write_lock:
            with trio.CancelScope(shield=True), trio.move_on_after(tuning.stalled_write_s) as scope:
                await muxed.secured_conn.write(frame)
            if scope.cancelled_caught:
                if not muxed.event_shutting_down.is_set():
                    counters.add("stalled_write")
                # Closing the socket wakes the reader, which tears the connection down.
                await _quietly(muxed.secured_conn.close)
                raise ConnectionClosedError("the peer does not read")
        await trio.lowlevel.checkpoint()

    muxed._read_data_body = read_bounded
    muxed._write_frame = write_bounded


def _remembered(get_addrs: Callable[[], list[Any]], life_s: float = 5.0) -> Callable[[], list[Any]]:
    """libp2p rebuilds its address list for every gossip message, at a sixth of the publisher's time."""
    kept: list[Any] = []
    until = -1.0

    def remembered() -> list[Any]:
        nonlocal kept, until
        now = trio.current_time()
        if now >= until:
            kept = get_addrs()
            # An empty list is what it says before listening: not worth remembering.
            until = now + life_s if kept else -1.0
        return list(kept)

    return remembered


def _origin(stream: Internals) -> str:
    """The address that a half-open connection counts for."""
    try:
        # Not libp2p's get_remote_address: that gives None for every IPv6 peer.
        return source_of(str(stream.stream.socket.getpeername()[0]))
    except (OSError, AttributeError):
        return "unknown"


async def _quietly(close: Callable[[], Awaitable[Any]]) -> None:
    """Close something that may already be broken; how it fails is of no interest."""
    with contextlib.suppress(Exception):
        await close()
