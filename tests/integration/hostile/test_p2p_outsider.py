"""An outsider with a valid libp2p identity and no network key: it learns the node's peer id, open ports and
names of protocols, changes nothing, and is gone after ten seconds."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from hashlib import sha256

import pytest
import trio
from libp2p.peer.id import ID
from multiaddr import Multiaddr

from lattice.core.identity import NodeKey, public_key_of
from lattice.core.limits import HELLO_TIMEOUT_S
from lattice.testing.cluster import LocalNode
from lattice.transport.p2p.streams import SYNC_PROTOCOL, encode_frame

from .http_kit import Member, Scene
from .p2p_kit import (
    CUT,
    EVENTS,
    MESHSUB,
    MESSAGES,
    REQUEST,
    Closed,
    RawPeer,
    Stream,
    off,
    one_way,
    p2p_scene,
    raw_peer,
    rises,
    syncing,
    topics_of,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

IDENTIFY = "/ipfs/id/1.0.0"
GATED = (MESHSUB, "/meshsub/1.0.0", IDENTIFY, "/ipfs/id/push/1.0.0")
PROTOCOLS = (*GATED, "/ipfs/ping/1.0.0", "/ipfs/kad/1.0.0")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with p2p_scene(tmp_path_factory.mktemp("outsider")) as found:
        yield found


def secrets_of(made: Scene) -> dict[str, bytes]:
    """What must not be learned, as it would stand on the wire."""
    found = {
        "the agent": b"libp2p/",
        "the product": b"py-libp2p",
        "a network id": made.member.network_id,
        "a network id as text": made.member.network_id.hex()[:32].encode(),
        "an address as text": b"127.0.0.1",
        "a key": b"honest/",
    }
    for node in (made.honest, made.victim):
        status = node.status()
        listen = Multiaddr(f"/ip4/127.0.0.1/tcp/{node.p2p_port}").to_bytes()
        found |= {
            f"the name of {node.name}": node.name.encode(),
            f"an address of {node.name}": listen,
            f"a port of {node.name}": str(node.sync_port).encode(),
            f"the log root of {node.name}": bytes.fromhex(status.log_root),
            f"the state root of {node.name}": bytes.fromhex(status.merkle_root),
        }
    other = made.honest.status().peer_id
    found |= {
        "another peer's key": public_key_of(other),
        "another peer's id": other.encode(),
        "another peer's id as bytes": ID.from_base58(other).to_bytes(),
    }
    for kind, topic in topics_of(made.victim).items():
        found[f"the topic of {kind}"] = topic.encode()
    return found


def learned(plain: bytes, secrets: dict[str, bytes]) -> list[str]:
    return [name for name, secret in secrets.items() if secret in plain]


def known_to(node: LocalNode) -> tuple[object, ...]:
    """What an outsider could have changed, the honest pair's own writes left out."""
    state = node.state()
    peers = sorted(peer.id for peer in node.status().peers)
    return {head.author for head in state.heads}, peers


async def everything_that_is_spoken(peer: RawPeer) -> None:
    """Open every protocol, read whatever comes, accept whatever the node opens."""

    async def swallow(stream: Stream) -> None:
        await stream.wait_ended()

    peer.serves |= dict.fromkeys((*GATED, SYNC_PROTOCOL), swallow)
    for protocol in PROTOCOLS:
        with suppress(Closed, *CUT):
            await (await peer.open()).negotiate(protocol)
    link = await peer.opened(SYNC_PROTOCOL)
    with suppress(Closed, *CUT):
        await link.write(encode_frame(REQUEST, 1, os.urandom(600)))  # type: ignore[arg-type]


async def test_an_outsider_learns_and_changes_nothing_and_is_gone_after_ten_seconds(made: Scene) -> None:
    before = await off(known_to, made.victim)
    async with syncing(made) as rise:
        secrets = await off(secrets_of, made)
        async with raw_peer(made.victim) as peer:
            began = trio.current_time()
            await everything_that_is_spoken(peer)
            with trio.fail_after(HELLO_TIMEOUT_S + 8):
                await peer.gone.wait()
            assert trio.current_time() - began > HELLO_TIMEOUT_S - 1
        await rises(rise, EVENTS, "gate_expired")
        await rises(rise, MESSAGES, "request_not_an_envelope")
        assert len(peer.plain) > 500  # names of protocols, windows, and a sealed Hello
        assert learned(bytes(peer.plain), secrets | await off(secrets_of, made)) == []
        # Nobody was asked for more than a ping and the link: no gossip, no identify.
        assert set(peer.asked_for) <= {"/ipfs/ping/1.0.0", SYNC_PROTOCOL}
    assert await off(known_to, made.victim) == before
    assert peer.key.peer_id not in await off(made.victim.log_text)


async def test_the_same_search_finds_all_that_a_member_is_told(made: Scene) -> None:
    """The control of the test above: once admitted, the same peer is told the agent, addresses, topics."""
    seed = os.urandom(32)
    async with syncing(made), raw_peer(made.victim, seed=seed) as peer:
        await peer.link(made.member.another(key=NodeKey(seed)))
        stream = await peer.opened(IDENTIFY)
        with trio.fail_after(10):
            await stream.wait_ended()
        told = learned(bytes(peer.plain), await off(secrets_of, made))
        assert "the agent" in told
        assert "an address of victim" in told


async def test_an_outsiders_gossip_and_forged_hello_are_never_read(made: Scene) -> None:
    """It speaks Lattice with a key of its own: the envelope does not open, its gossip is held unread."""
    before = await off(known_to, made.victim)
    seed = os.urandom(32)
    outsider = Member(sha256(b"elsewhere").digest(), {1: os.urandom(32)}, NodeKey(seed))
    async with syncing(made) as rise, raw_peer(made.victim, seed=seed) as peer:
        victim = public_key_of((await off(made.victim.status)).peer_id)
        gossip = await peer.opened(MESHSUB)
        await gossip.write_delimited(one_way(outsider, [outsider.write(2)]))
        await rises(rise, EVENTS, "gate_held")
        stream = await peer.opened(SYNC_PROTOCOL)
        await stream.write(encode_frame(REQUEST, 1, outsider.request([outsider.hello()], victim)))  # type: ignore[arg-type]
        await rises(rise, MESSAGES, "request_foreign")
        with trio.fail_after(HELLO_TIMEOUT_S + 8):
            await peer.gone.wait()
        assert not gossip.buffer
        assert await off(rise.of, MESSAGES, "gossip_foreign") == 0
    assert await off(known_to, made.victim) == before
