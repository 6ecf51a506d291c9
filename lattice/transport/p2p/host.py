"""One hardened libp2p host: TCP, Noise and Yamux only, GossipSub with every default that must change.

Separate so that everything libp2p-shaped about starting and ending a host is in one place; what the
host is used for (links, dialling, gossip) is built on it elsewhere.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, cast

import trio
from libp2p import new_host
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key_pair
from libp2p.custom_types import TProtocol
from libp2p.network.config import ConnectionConfig
from libp2p.peer.id import ID
from libp2p.pubsub import pubsub as pubsub_module
from libp2p.pubsub.gossipsub import PROTOCOL_ID, PROTOCOL_ID_V11, GossipSub
from libp2p.pubsub.pubsub import Pubsub
from libp2p.pubsub.rpc_queue import RpcQueue
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX
from libp2p.stream_muxer.yamux.yamux import Yamux
from libp2p.tools.anyio_service import background_trio_service
from libp2p.transport.tcp.tcp import TCP

from lattice.core.limits import CONNECTIONS_MAX
from lattice.transport.p2p import addresses
from lattice.transport.p2p.counters import Counters
from lattice.transport.p2p.gate import Gate
from lattice.transport.p2p.harden import Allows, Internals, drop_early, harden, quiet_logs, trap_task_errors
from lattice.transport.p2p.tuning import Tuning

if TYPE_CHECKING:
    from libp2p.abc import INetConn
    from libp2p.host.basic_host import BasicHost
    from libp2p.network.swarm import Swarm
    from multiaddr import Multiaddr

LIBP2P_VERSION: Final = "0.8.1"  # the patches touch private names of exactly this version


class LibraryVersionError(RuntimeError):
    """The installed libp2p is not the one that the patches were made and tested for."""


class HostLostError(Exception):
    """A service of the host ended by itself; the host has to be rebuilt."""


@dataclass(frozen=True, slots=True)
class HostSettings:
    """What one host is made from. `topics` are the only ones it accepts subscriptions to."""

    seed: bytes  # 32 bytes of Ed25519
    listen: tuple[str, ...]
    announce: tuple[str, ...]  # empty: the concrete addresses of the interfaces
    topics: frozenset[str]


@dataclass(frozen=True, slots=True)
class Host:
    """A host that is built, and while inside `running` runs."""

    basic: BasicHost
    network: Swarm
    pubsub: Pubsub
    router: GossipSub
    gate: Gate
    peer_id: ID
    connections: set[INetConn] = field(default_factory=set)

    def remember(self, connection: INetConn) -> None:
        """Keep the connection, so that its socket is closed with the host whatever happens."""
        closed = {known for known in self.connections if known.muxed_conn.is_closed}
        self.connections.difference_update(closed)
        self.connections.add(connection)

    def listen_addresses(self) -> tuple[str, ...]:
        return tuple(str(address) for address in self.basic.get_transport_addrs())

    def announced_addresses(self) -> tuple[str, ...]:
        return tuple(str(address) for address in self.basic.get_addrs())


def check_version() -> None:
    """Raise LibraryVersionError unless the one supported libp2p is installed."""
    found = importlib.metadata.version("libp2p")
    if found != LIBP2P_VERSION:
        raise LibraryVersionError(
            f"libp2p {found} is installed, but this node is hardened for {LIBP2P_VERSION} only: "
            f"install libp2p=={LIBP2P_VERSION}"
        )


def peer_id_of(seed: bytes) -> ID:
    """The peer id of a 32-byte Ed25519 seed."""
    return ID.from_pubkey(create_new_key_pair(seed).public_key)


def build(
    settings: HostSettings,
    open_protocols: dict[str, Callable[[Any], Any]],
    counters: Counters,
    tuning: Tuning,
    log: logging.Logger,
) -> Host:
    """Make a host with gossip, hardened and with its gate shut. Raises AddressError.

    `open_protocols` maps a protocol id to a stream handler that needs no admission.
    """
    check_version()
    quiet_logs(log)
    listen = [addresses.check_listen(text) for text in settings.listen]
    announce = [addresses.parse(text) for text in settings.announce]
    keys = create_new_key_pair(settings.seed)
    noise = NoiseTransport(keys, noise_privkey=create_noise_key_pair().private_key)
    basic = cast(
        "BasicHost",
        new_host(
            key_pair=keys,
            # The default list also accepts plaintext, where a peer merely claims a public key.
            sec_opt={NOISE: noise},
            muxer_opt={TProtocol(YAMUX): Yamux},
            transports=[TCP()],
            listen_addrs=listen,
            connection_config=_connection_config(),
            addrs_factory=functools.partial(_announced, announce),
            # Else any peer could make us announce an address of its choice.
            disable_identify_address_discovery=True,
        ),
    )
    router = _router(tuning)
    pubsub = _pubsub(basic, router, settings.topics, tuning)
    for protocol, handler in open_protocols.items():
        basic.set_stream_handler(TProtocol(protocol), handler)
    gate = Gate(basic, pubsub, counters, tuning, log)
    gate.install(frozenset(open_protocols))
    harden(basic, pubsub, gate, counters, tuning, log)
    return Host(basic, cast("Swarm", basic.get_network()), pubsub, router, gate, basic.get_id())


@contextlib.asynccontextmanager
async def running(
    host: Host, allows: Allows, counters: Counters, tuning: Tuning, log: logging.Logger
) -> AsyncIterator[None]:
    """Run the host's services, yield, close everything. Does not listen yet: see `start_listening`.

    `allows(forwarder, message)` says whether a gossip message is worth a signature check.

    Raises HostLostError (in a group) when one of the services ends while the body runs.
    """
    try:
        async with (
            host.basic.run(listen_addrs=[]),
            background_trio_service(host.pubsub),
            background_trio_service(host.router),
            trio.open_nursery() as nursery,
        ):
            try:
                for service in (host.network, host.pubsub, host.router):
                    trap_task_errors(service.manager, counters, log)
                    nursery.start_soon(_watch, service)
                drop_early(host.pubsub, allows)
                await host.pubsub.wait_until_ready()
                yield
            finally:
                nursery.cancel_scope.cancel()
                # Listeners are system tasks outside every nursery here: leaving by an exception or a
                # cancellation ends none of them. Unshielded, this would not run either.
                with trio.CancelScope(shield=True):
                    await _close(host, tuning)
    finally:
        # libp2p closes connections under its own cancellation, which marks them closed and leaves
        # the sockets open.
        with trio.CancelScope(shield=True):
            for connection in tuple(host.connections):
                muxed: Internals = connection.muxed_conn
                await muxed.secured_conn.close()
        seen: Any = host.pubsub.seen_messages
        seen.stop()  # else every life of the host leaves a thread behind


async def start_listening(host: Host, listen: Sequence[str]) -> None:
    """Open the listeners, last of all: a connection made before Pubsub runs can end the host.

    Raises AddressError when a port is taken or an address is not this machine's.
    """
    for text in listen:
        address: Multiaddr = addresses.check_listen(text)
        addresses.probe_port(address)
        if not await host.network.listen(address):
            raise addresses.AddressError(f"cannot listen on {text}")


def _connection_config() -> ConnectionConfig:
    return ConnectionConfig(
        max_connections=CONNECTIONS_MAX,
        high_watermark=CONNECTIONS_MAX,
        min_connections=0,  # all 64 are free for inbound connections
        low_watermark=0,
        enable_health_monitoring=True,
        health_initial_delay=2,
        health_warmup_window=1,
        health_check_interval=5,
        ping_timeout=8,  # one failure aborts, so a busy loop needs this much room
        abort_connection_on_ping_failure=True,
    )


def _router(tuning: Tuning) -> GossipSub:
    return GossipSub(
        # 1.2 would add one message per message and mesh peer.
        protocols=[PROTOCOL_ID_V11, PROTOCOL_ID],
        # A handful of peers are all in the mesh. In a larger network every link more brings a copy of
        # every message, at half a millisecond each.
        degree=8,
        degree_low=6,
        degree_high=12,
        heartbeat_interval=cast(int, tuning.heartbeat_s),
        adaptive_gossip_enabled=False,  # would stretch the heartbeat to a minute
        spam_protection_enabled=False,  # counts our own publishes too; we have our own limit
        eclipse_protection_enabled=False,  # peers of one LAN share addresses
        prune_back_off=10,  # a pruned peer gets nothing at all in this time
        unsubscribe_back_off=2,
        gossip_window=5,
        gossip_history=10,
    )


def _pubsub(basic: BasicHost, router: GossipSub, topics: frozenset[str], tuning: Tuning) -> Pubsub:
    # Both are read from the module when a topic is subscribed to and when a peer is added; the
    # library's 32 lose most of any burst without a word.
    pubsub_module.SUBSCRIPTION_CHANNEL_SIZE = tuning.outbound_messages_max
    queue = functools.partial(RpcQueue, max_size=tuning.outbound_messages_max)
    setattr(pubsub_module, "RpcQueue", queue)
    # The addresses in a peer's gossip envelope would be verified, at the cost of a message, and
    # believed; ours come from the sealed Hello.
    setattr(pubsub_module, "maybe_consume_signed_record", _ignore_record)
    pubsub = Pubsub(
        basic,
        router,
        strict_signing=True,  # else a forged author and number suppress another's message
        seen_ttl=600,
        validation_cache_size=16,  # a list, searched for every message
        validation_timeout=tuning.gossip_judging_s,
        max_concurrent_validator_count=tuning.gossip_judging,
        allowed_topics=topics,
    )
    # Message ids are author and number: counting from the clock's seconds, a node that published
    # more than one a second repeats ids after a restart, and its peers drop them as seen.
    pubsub.counter = time.time_ns()
    return pubsub


def _ignore_record(*_args: object) -> bool:
    return True


def _announced(configured: Sequence[Multiaddr], listening: Sequence[Multiaddr]) -> list[Multiaddr]:
    return list(configured) if configured else addresses.concrete(listening)


async def _watch(service: Internals) -> None:
    await service.manager.wait_finished()
    raise HostLostError(f"{type(service).__name__} ended")


async def _close(host: Host, tuning: Tuning) -> None:
    """Close listeners first, then connections at once instead of one after the other, then the rest."""
    network: Any = host.network
    for listener in list(network.listeners.values()):
        with trio.move_on_after(tuning.close_s):
            await listener.close()
    with trio.move_on_after(tuning.close_s):
        async with trio.open_nursery() as nursery:
            for connection in network.get_connections():
                nursery.start_soon(_close_one, connection)
    with trio.move_on_after(tuning.close_s):
        await host.basic.close()


async def _close_one(connection: INetConn) -> None:
    with contextlib.suppress(Exception):  # it is being thrown away
        await connection.close()
