"""Strangers at the P2P port: idle and half-open connections, garbage at every layer, floods of what needs no
admission; honest nodes, at other addresses, get in and go on syncing all the while."""

from __future__ import annotations

import os
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import pytest
import trio
from libp2p.crypto.keys import KeyPair
from libp2p.crypto.rsa import create_new_key_pair as create_rsa_key_pair
from libp2p.crypto.secp256k1 import create_new_key_pair as create_secp256k1_key_pair

from lattice.core.identity import NodeKey
from lattice.core.limits import HALF_OPEN_PER_ADDRESS_MAX
from lattice.testing.cluster import LocalNode

from .http_kit import Rise, Scene, descriptors
from .p2p_kit import (
    CUT,
    DATA,
    EVENTS,
    FIN,
    HONEST,
    HOSTILE,
    MULTISTREAM,
    PING,
    RST,
    SYN,
    WINDOW,
    Closed,
    RawPeer,
    dial_tcp,
    off,
    p2p_scene,
    raw_peer,
    rises,
    syncing,
    varint,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with p2p_scene(tmp_path_factory.mktemp("strangers")) as found:
        yield found


@asynccontextmanager
async def many(node: LocalNode, count: int, source: str = HOSTILE) -> AsyncIterator[list[trio.SocketStream]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(await dial_tcp(node, source)) for _ in range(count)]


async def a_member_gets_in(made: Scene, source: str = HONEST) -> None:
    """The honest control: another member dials from another address, and is greeted and admitted."""
    seed = os.urandom(32)
    with trio.fail_after(8):
        async with raw_peer(made.victim, seed=seed, source=source) as peer:
            await peer.link(made.member.another(key=NodeKey(seed)))


async def closed_by_the_node(stream: trio.SocketStream) -> None:
    with suppress(trio.BrokenResourceError):
        while await stream.receive_some(65_536):
            pass


async def test_three_hundred_idle_connections_of_one_address(made: Scene) -> None:
    async with syncing(made) as rise, many(made.victim, 300) as idle:
        await rises(rise, EVENTS, "half_open_refused", by=300 - HALF_OPEN_PER_ADDRESS_MAX)
        await a_member_gets_in(made)
        before = made.descriptors_before
        assert await off(descriptors, made.victim) < before + HALF_OPEN_PER_ADDRESS_MAX + 20
        with trio.fail_after(15):  # those that were let in are given up as well
            for stream in idle:
                await closed_by_the_node(stream)
    await gives_its_sockets_back(made)


async def gives_its_sockets_back(made: Scene, room: int = 8) -> None:
    with trio.fail_after(20):
        while await off(descriptors, made.victim) > made.descriptors_before + room:
            await trio.sleep(0.2)


async def test_three_hundred_half_open_handshakes(made: Scene) -> None:
    """Each has agreed on Noise and sent a first message, and then says no more."""
    begun = varint(len(MULTISTREAM) + 1) + MULTISTREAM + b"\n" + varint(7) + b"/noise\n"
    begun += struct.pack(">H", 32) + os.urandom(32)
    async with syncing(made) as rise, many(made.victim, 300) as streams:
        for stream in streams:
            with suppress(trio.BrokenResourceError):
                await stream.send_all(begun)
        await rises(rise, EVENTS, "half_open_refused", by=300 - HALF_OPEN_PER_ADDRESS_MAX)
        await a_member_gets_in(made)
        with trio.fail_after(15):
            for stream in streams:
                await closed_by_the_node(stream)
    await gives_its_sockets_back(made)


async def test_a_connection_counts_as_half_open_until_it_has_greeted(made: Scene) -> None:
    """Sixty complete handshakes, each under a new name, and not one Hello."""
    async with syncing(made) as rise, AsyncExitStack() as stack:
        before = await off(rise.of, EVENTS, "half_open_refused")
        inside: list[RawPeer] = []
        for _ in range(60):
            with suppress(*CUT, Closed, trio.TooSlowError):
                inside.append(await stack.enter_async_context(raw_peer(made.victim, seed=os.urandom(32))))
        assert len(inside) <= HALF_OPEN_PER_ADDRESS_MAX
        await rises(rise, EVENTS, "half_open_refused", by=before + 60 - HALF_OPEN_PER_ADDRESS_MAX)
        await a_member_gets_in(made)
        with trio.fail_after(15):
            for peer in inside:
                await peer.gone.wait()
        # Who has greeted counts no longer: the same address has room for as many again.
        for _ in range(HALF_OPEN_PER_ADDRESS_MAX + 4):
            seed = os.urandom(32)
            peer = await stack.enter_async_context(raw_peer(made.victim, seed=seed))
            await peer.link(made.member.another(key=NodeKey(seed)))
    await gives_its_sockets_back(made)


@pytest.mark.parametrize("kind", [create_secp256k1_key_pair, create_rsa_key_pair], ids=["secp256k1", "rsa"])
async def test_an_identity_that_no_node_has(kind: Callable[[], KeyPair], made: Scene) -> None:
    async with syncing(made) as rise:
        before = await off(rise.of, EVENTS, "identity_refused")
        raised = await off(rise.of, EVENTS, "handler_raised")
        with suppress(*CUT, Closed, trio.TooSlowError):
            async with raw_peer(made.victim, keys=kind()) as peer:
                with trio.fail_after(8):
                    await peer.gone.wait()
        await rises(rise, EVENTS, "identity_refused", by=before + 1)
        assert await off(rise.of, EVENTS, "handler_raised") == raised
        await a_member_gets_in(made)


GARBAGE = {
    "nothing but noise": os.urandom(4096),
    "another protocol": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "a length without end": b"\xff" * 4096,
    "a length of 1 GB": varint(1 << 30) + b"/multistream",
    "no newline": varint(5) + b"hello",
    "a handshake of noise": varint(len(MULTISTREAM) + 1)
    + MULTISTREAM
    + b"\n"
    + varint(7)
    + b"/noise\n"
    + struct.pack(">H", 65_535)
    + os.urandom(65_535),
    "plaintext": varint(len(MULTISTREAM) + 1) + MULTISTREAM + b"\n" + varint(18) + b"/plaintext/2.0.0\n\n",
}


async def test_garbage_before_the_handshake(made: Scene) -> None:
    async with syncing(made) as rise:
        async with trio.open_nursery() as nursery:

            async def send(data: bytes) -> None:
                async with await dial_tcp(made.victim) as stream:
                    with suppress(trio.BrokenResourceError):
                        await stream.send_all(data)
                    with trio.fail_after(14):
                        await closed_by_the_node(stream)

            for data in GARBAGE.values():
                nursery.start_soon(send, data)
        await rises(rise, EVENTS, "upgrade_failed", by=len(GARBAGE))


async def overrun(peer: RawPeer) -> None:
    stream = await peer.open()
    for _ in range(64):
        await peer.frame(DATA, 0, stream.number, bytes(60_000))


async def huge(peer: RawPeer) -> None:
    stream = await peer.open()
    await peer.frame(DATA, 0, stream.number, size=0xFFFF_FFFF)


async def large(peer: RawPeer) -> None:
    """Below what the library refuses, above what any honest peer sends in one frame."""
    stream = await peer.open()
    await peer.frame(DATA, 0, stream.number, size=8 << 20)


async def large_with_syn(peer: RawPeer) -> None:
    await peer.frame(DATA, SYN, 1, size=8 << 20)


YAMUX = {
    "a window overrun": (overrun, "unread_overflow"),
    "a frame of 8 MiB": (large, "unread_overflow"),
    "a stream that begins with 8 MiB": (large_with_syn, "unread_overflow"),
    "a frame of 4 GB": (huge, ""),  # the library ends it by itself, and tells nobody why
}


@pytest.mark.parametrize("name", YAMUX)
async def test_yamux_abuse_ends_the_connection(made: Scene, name: str) -> None:
    abuse, counter = YAMUX[name]
    async with syncing(made) as rise, raw_peer(made.victim) as peer:
        with suppress(Closed, *CUT):
            await abuse(peer)
        with trio.fail_after(15):
            await peer.gone.wait()
        if counter:
            await rises(rise, EVENTS, counter)
        await a_member_gets_in(made)


async def test_streams_that_are_used_again_and_again(made: Scene) -> None:
    """The same number opened, reset and opened; numbers of the other side; windows of 4 GB; all at once."""
    async with syncing(made), raw_peer(made.victim) as peer:
        with suppress(Closed, *CUT):
            for _ in range(500):
                await peer.frame(WINDOW, SYN, 1, size=0)
                await peer.frame(WINDOW, RST, 1, size=0)
                await peer.frame(WINDOW, SYN | FIN, 1, size=0)
                await peer.frame(WINDOW, SYN, 2, size=0)
                await peer.frame(WINDOW, 0, 1, size=0xFFFF_FFFF)
                await peer.frame(WINDOW, 0, 999, size=5)
                await peer.frame(DATA, FIN, 2, b"x")
                await peer.frame(9, 0xFFFF, 1, size=0)
        await a_member_gets_in(made)


async def test_a_flood_of_pings_is_answered_no_faster_than_others_are_served(made: Scene) -> None:
    async with syncing(made, lap_s_max=15), raw_peer(made.victim) as peer:
        with suppress(Closed, *CUT):
            for number in range(20_000):
                await peer.frame(PING, SYN, 0, size=number)
        await a_member_gets_in(made)


async def test_protocols_that_are_not_spoken_and_a_thousand_streams(made: Scene) -> None:
    """Identify and gossip are held unread; what else the library offers is not there at all."""
    async with syncing(made) as rise, raw_peer(made.victim) as peer:
        for protocol in ("/ipfs/kad/1.0.0", "/libp2p/circuit/relay/0.2.0/hop", "/libp2p/autonat/1.0.0"):
            assert not await (await peer.open()).negotiate(protocol), protocol
        for protocol in ("/ipfs/id/1.0.0", "/ipfs/id/push/1.0.0", "/meshsub/1.1.0"):
            first, second = await peer.opened(protocol), await peer.opened(protocol)
            with trio.fail_after(5):
                await second.wait_ended()
            assert not first.ended
            assert not first.buffer
        await rises(rise, EVENTS, "gate_held", by=3)
        await rises(rise, EVENTS, "gate_reset", by=3)
        with suppress(Closed, *CUT):
            for _ in range(1000):
                await peer.open()
        await rises(rise, EVENTS, "streams_refused", by=900)
        await a_member_gets_in(made)


async def test_the_honest_control_itself_works_and_so_does_its_counter(made: Scene) -> None:
    """Without an attack nothing is refused: what rose above rose because of the attack."""
    rise = await off(Rise, made.victim)
    async with syncing(made):
        await a_member_gets_in(made)
    for event in ("half_open_refused", "upgrade_failed", "unread_overflow", "gate_expired", "gate_reset"):
        assert await off(rise.of, EVENTS, event) == 0, event
