"""Nothing of gossip or identify passes either way before admission; all of it afterwards."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from libp2p.exceptions import BaseLibp2pError
from libp2p.host.ping import ID as PING
from libp2p.identity.identify.identify import ID as IDENTIFY
from libp2p.identity.identify_push.identify_push import ID_PUSH as IDENTIFY_PUSH
from libp2p.pubsub.gossipsub import PROTOCOL_ID_V11

from lattice.transport.p2p.tuning import Tuning
from tests.integration.p2p.p2p_kit import (
    ENTRIES,
    PRESENCE,
    Node,
    Plain,
    gossiping,
    hardened,
    plain,
    several,
    until,
)

GATED = (PROTOCOL_ID_V11, IDENTIFY, IDENTIFY_PUSH)


def watch_inbound(outsider: Plain) -> list[str]:
    """Note every stream that the other side opens to the outsider on a gated protocol."""
    opened: list[str] = []

    def watcher(protocol: str) -> Any:
        async def handler(_stream: Any) -> None:
            opened.append(protocol)

        return handler

    for protocol in GATED:
        outsider.host.set_stream_handler(protocol, watcher(protocol))
    return opened


async def bytes_read(stream: Any, seconds: float) -> bytes:
    """What the other side sends before it resets or the time is over."""
    with trio.move_on_after(seconds):
        try:
            return bytes(await stream.read(1))
        except BaseLibp2pError:
            pass
    return b""


def test_the_time_to_greet_is_ten_seconds() -> None:
    assert Tuning().admission_s == 10.0


@pytest.mark.slow
async def test_an_outsider_gets_no_byte_and_is_disconnected() -> None:
    async with hardened() as node, plain(gossip=False) as outsider:
        opened = watch_inbound(outsider)
        await outsider.connect(node)
        began = trio.current_time()
        streams = [await outsider.host.new_stream(node.id, [protocol]) for protocol in GATED]
        got: list[bytes] = []
        async with trio.open_nursery() as nursery:

            async def read(stream: Any) -> None:
                got.append(await bytes_read(stream, 3))

            for stream in streams:
                nursery.start_soon(read, stream)
            await until(lambda: node.life.roster.presence(outsider.id) is None)
        assert 0.9 < trio.current_time() - began < 8.0  # the tests' admission_s is 1
        assert got == [b"", b"", b""]
        assert opened == []
        assert node.counters["gate_expired"] == 1
        assert node.counters["gate_held"] == 3
        assert outsider.id not in node.life.host.pubsub.peers
        assert not node.life.host.pubsub.peer_topics


@pytest.mark.slow
async def test_an_outsiders_gossip_is_held_and_not_judged() -> None:
    async with hardened() as node, plain() as outsider:
        await outsider.connect(node)
        await until(lambda: node.counters["gate_held"] > 0)
        await outsider.pubsub.publish(ENTRIES, b"from outside")
        await until(lambda: node.counters["gate_expired"] == 1)
        assert node.handler.gossip == []
        assert not outsider.pubsub.peer_topics  # it has not learned what we subscribe to


@pytest.mark.slow
async def test_ping_is_answered_before_admission() -> None:
    async with hardened() as node, plain(gossip=False) as outsider:
        await outsider.connect(node)
        stream = await outsider.host.new_stream(node.id, [PING])
        await stream.write(b"p" * 32)
        with trio.fail_after(5):
            assert await stream.read(32) == b"p" * 32


@pytest.mark.slow
async def test_a_second_early_stream_on_a_protocol_is_reset() -> None:
    async with hardened() as node, plain(gossip=False) as outsider:
        await outsider.connect(node)
        first = await outsider.host.new_stream(node.id, [PROTOCOL_ID_V11])
        await until(lambda: node.counters["gate_held"] == 1)
        with pytest.raises(BaseLibp2pError):
            second = await outsider.host.new_stream(node.id, [PROTOCOL_ID_V11])
            await second.read(1)
        assert node.counters["gate_reset"] == 1
        await first.write(b"\0")  # the held one still stands


async def test_only_known_protocols_are_served() -> None:
    async with hardened() as node:
        handlers = node.life.host.basic.multiselect.handlers
        assert set(handlers) == {
            PING,
            IDENTIFY,
            IDENTIFY_PUSH,
            "/lattice/sync/1",
            PROTOCOL_ID_V11,
            "/meshsub/1.0.0",
        }


async def exchange_hundred(a: Node, b: Node, mark: bytes) -> None:
    for i in range(100):
        a.publish(b"%s a %d" % (mark, i))
        b.publish(b"%s b %d" % (mark, i), "presence")
    await until(lambda: sum(data.startswith(mark) for data in a.handler.payloads()) == 100)
    await until(lambda: sum(data.startswith(mark) for data in b.handler.payloads()) == 100)


@pytest.mark.slow
async def test_an_admitted_peer_gets_everything_also_after_it_returned() -> None:
    async with several(2) as (a, b):
        for mark in (b"first", b"second", b"third"):
            await a.connect(b)
            await gossiping(a, b)
            await exchange_hundred(a, b, mark)
            await a.life.host.basic.disconnect(b.id)
            await until(lambda: a.life.roster.presence(b.id) is None)
            await until(lambda: b.life.roster.presence(a.id) is None)
            assert not a.life.host.gate.admitted(b.id)  # it has to greet again
            assert not b.life.host.gate.admitted(a.id)
        assert {kind for _peer, kind, _data in a.handler.gossip} == {"presence"}
        assert {kind for _peer, kind, _data in b.handler.gossip} == {"entries"}


@pytest.mark.slow
async def test_one_side_admits_late() -> None:
    # The early side's only subscription packet is held, not lost.
    async with hardened(admit_all=True) as early, hardened() as late:
        await early.connect(late)
        await until(lambda: late.counters["gate_held"] > 0 and bool(late.handler.links))
        await trio.sleep(0.5)
        late.life.admit(early.id)
        await gossiping(early, late)
        await exchange_hundred(early, late, b"x")


@pytest.mark.slow
async def test_expelled_peers_are_disconnected_and_forgotten() -> None:
    async with several(2) as (a, b):
        await a.connect(b)
        await gossiping(a, b)
        a.life.expel(b.id)
        assert not a.life.host.gate.admitted(b.id)
        await until(lambda: a.life.roster.presence(b.id) is None)
        await until(lambda: b.life.roster.presence(a.id) is None)
        await until(lambda: PRESENCE not in a.life.host.pubsub.peer_topics)
