"""What the P2P tests share: hardened hosts, an unpatched one to compare with, attackers, a bad wire.

Separate from conftest so that test modules can import the classes by name.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import trio

# After lattice.transport.p2p, which makes libp2p importable.
from libp2p import new_host
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key_pair
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from libp2p.pubsub.gossipsub import PROTOCOL_ID_V11, GossipSub
from libp2p.pubsub.pubsub import Pubsub
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.tools.anyio_service import background_trio_service
from multiaddr import Multiaddr

from lattice.transport.p2p.counters import Counters
from lattice.transport.p2p.dialer import Targets
from lattice.transport.p2p.host import HostSettings
from lattice.transport.p2p.life import Life
from lattice.transport.p2p.tuning import Tuning
from lattice.transport.port import GossipKind, PeerLink

ENTRIES = "lattice-test-entries"
PRESENCE = "lattice-test-presence"
LOOPBACK = "/ip4/127.0.0.1/tcp/0"
LOG = logging.getLogger("lattice.test.p2p")

FAST = Tuning(
    admission_s=1.0,
    link_grace_s=0.3,
    dial_grace_s=0.5,
    dial_backoff_first_s=0.1,
    dial_backoff_max_s=0.5,
    rebuild_first_s=0.1,
    watch_interval_s=0.1,
    deaf_s=1.0,
    deaf_first_s=4.0,
    stalled_write_s=1.0,
)


class Recorder:
    """A P2PHandler that answers `echo:` + request and keeps what it saw.

    `on_new_link(link)` runs inside on_link, before it waits for the link's end.
    """

    def __init__(self) -> None:
        self.links: list[PeerLink] = []
        self.requests: list[bytes] = []
        self.gossip: list[tuple[str, GossipKind, bytes]] = []
        self.relay = True
        self.on_new_link: Callable[[PeerLink], Awaitable[None]] | None = None
        self.answer: Callable[[bytes], Awaitable[bytes | None]] | None = None

    async def on_link(self, link: PeerLink) -> None:
        self.links.append(link)
        if self.on_new_link is not None:
            await self.on_new_link(link)
        await trio.sleep_forever()

    async def on_request(self, link: PeerLink, request: bytes) -> bytes | None:
        self.requests.append(request)
        if self.answer is not None:
            return await self.answer(request)
        return b"echo:" + request

    async def on_gossip(self, forwarder: str, kind: GossipKind, data: bytes) -> bool:
        self.gossip.append((forwarder, kind, data))
        return self.relay

    def payloads(self) -> list[bytes]:
        return [data for _forwarder, _kind, data in self.gossip]

    def open_links(self) -> list[PeerLink]:
        return [link for link in self.links if not link.closed]


class Node:
    """One life of a hardened host with everything a test wants to reach."""

    def __init__(self, life: Life, handler: Recorder, counters: Counters, targets: Targets) -> None:
        self.life = life
        self.handler = handler
        self.counters = counters
        self.targets = targets

    @property
    def id(self) -> ID:
        return self.life.host.peer_id

    @property
    def info(self) -> PeerInfo:
        return PeerInfo(self.id, self.life.host.basic.get_transport_addrs())

    @property
    def network(self) -> Any:
        return self.life.host.network

    async def connect(self, other: Node) -> None:
        await self.life.host.basic.connect(other.info)

    def publish(self, data: bytes, kind: GossipKind = "entries") -> None:
        assert self.life.gossip.publish_nowait(kind, data)


@contextlib.asynccontextmanager
async def hardened(
    *,
    seed: bytes | None = None,
    tuning: Tuning = FAST,
    admit_all: bool = False,
    payload_max: int = 1 << 20,
    port: int = 0,
) -> AsyncIterator[Node]:
    """A hardened host on loopback. Its loss raises in the test."""
    handler, counters, targets = Recorder(), Counters(), Targets()
    life = Life(
        HostSettings(
            seed or os.urandom(32), (f"/ip4/127.0.0.1/tcp/{port}",), (), frozenset({ENTRIES, PRESENCE})
        ),
        {"entries": ENTRIES, "presence": PRESENCE},
        targets,
        handler,
        payload_bytes_max=payload_max,
        counters=counters,
        tuning=tuning,
        log=LOG,
    )
    node = Node(life, handler, counters, targets)
    if admit_all:

        async def admit(link: PeerLink) -> None:
            life.admit(ID.from_base58(link.peer_id))

        handler.on_new_link = admit
    started = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(life.run, started.set, lambda: None)
        await started.wait()
        yield node
        nursery.cancel_scope.cancel()


@contextlib.asynccontextmanager
async def several(count: int, *, tuning: Tuning = FAST, admit_all: bool = True) -> AsyncIterator[list[Node]]:
    async with contextlib.AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(hardened(tuning=tuning, admit_all=admit_all))
            for _ in range(count)
        ]


class Plain:
    """An unpatched host: what the library does by itself, or an attacker."""

    def __init__(self, host: Any, pubsub: Any) -> None:
        self.host = host
        self.pubsub = pubsub
        self.died = trio.Event()

    @property
    def id(self) -> ID:
        peer: ID = self.host.get_id()
        return peer

    @property
    def info(self) -> PeerInfo:
        return PeerInfo(self.id, self.host.get_transport_addrs())

    async def connect(self, other: Node | Plain) -> None:
        with trio.fail_after(5):
            await self.host.connect(other.info)


@contextlib.asynccontextmanager
async def plain(
    *, gossip: bool = True, validator: Any = None, config: Any = None, sec_opt: Any = None, seed: Any = None
) -> AsyncIterator[Plain]:
    """The library without any patch. Its death sets `died` and raises nothing."""
    keys = create_new_key_pair(seed or os.urandom(32))
    noise = NoiseTransport(keys, noise_privkey=create_noise_key_pair().private_key)
    if sec_opt == "noise":
        sec_opt = {NOISE: noise}
    host = new_host(
        key_pair=keys, listen_addrs=[Multiaddr(LOOPBACK)], connection_config=config, sec_opt=sec_opt
    )
    pubsub = None
    if not gossip:  # an attacker decides itself which streams it opens
        host._schedule_identify = lambda *_args, **_kwargs: None
    if gossip:
        router = GossipSub([PROTOCOL_ID_V11], 6, 4, 12, heartbeat_interval=1)
        pubsub = Pubsub(host, router, strict_signing=True)
        if validator is not None:
            pubsub.set_topic_validator(ENTRIES, validator, False)
    it = Plain(host, pubsub)
    ready, stop = trio.Event(), trio.Event()

    async def serve() -> None:
        try:
            async with host.run(listen_addrs=[]), contextlib.AsyncExitStack() as stack:
                if pubsub is not None:
                    await stack.enter_async_context(background_trio_service(pubsub))
                    await stack.enter_async_context(background_trio_service(router))
                    await pubsub.wait_until_ready()
                    await pubsub.subscribe(ENTRIES)
                await host.get_network().listen(Multiaddr(LOOPBACK))
                ready.set()
                try:
                    await stop.wait()
                finally:
                    with trio.CancelScope(shield=True), trio.move_on_after(2):
                        await host.close()
        except* Exception:  # noqa: BLE001 - however it died
            it.died.set()
        finally:
            if pubsub is not None:
                pubsub.seen_messages.stop()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        await ready.wait()
        try:
            yield it
        finally:
            stop.set()
    # The library drops sockets unclosed: no fault of the code under test.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


class Wire:
    """A TCP relay in front of a host that can stop passing bytes without closing anything."""

    def __init__(self, target_port: int) -> None:
        self._target = target_port
        self._open = trio.Event()
        self._open.set()
        self.port = 0

    def stall(self) -> None:
        self._open = trio.Event()

    def resume(self) -> None:
        self._open.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.port = listeners[0].socket.getsockname()[1]
        task_status.started()
        await trio.serve_listeners(self._relay, listeners)

    def info(self, peer: ID) -> PeerInfo:
        return PeerInfo(peer, [Multiaddr(f"/ip4/127.0.0.1/tcp/{self.port}")])

    async def _relay(self, near: trio.SocketStream) -> None:
        with contextlib.suppress(OSError):
            async with await trio.open_tcp_stream("127.0.0.1", self._target) as far, near:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._pump, near, far, nursery)
                    nursery.start_soon(self._pump, far, near, nursery)

    async def _pump(self, source: Any, sink: Any, nursery: trio.Nursery) -> None:
        try:
            while True:
                await self._open.wait()
                data = await source.receive_some(65536)
                await self._open.wait()
                if not data:
                    break
                await sink.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        nursery.cancel_scope.cancel()


def tcp_port(node: Node | Plain) -> int:
    return int(node.info.addrs[0].value_for_protocol("tcp"))


async def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait for something that another task brings about; fails the test when it does not come."""
    with trio.fail_after(seconds):
        while not condition():
            await trio.sleep(0.005)


async def linked(a: Node, b: Node) -> tuple[PeerLink, PeerLink]:
    """Connect a to b and return both ends of their link."""
    await a.connect(b)
    await until(lambda: bool(a.handler.open_links()) and bool(b.handler.open_links()))
    return a.handler.open_links()[0], b.handler.open_links()[0]


async def gossiping(*nodes: Node) -> None:
    """Wait until every node gossips with every other."""
    await until(lambda: all(len(node.life.gossip.ready()) >= len(nodes) - 1 for node in nodes), 10)
