"""Gossip: judged once, bounded both ways, and repaired when libp2p goes silent on one side."""

from __future__ import annotations

import dataclasses
import os

import pytest
import trio
from libp2p.pubsub.pb import rpc_pb2

from lattice.core.limits import GOSSIP_BYTES_MAX, PUBLISH_QUEUE
from tests.integration.p2p.p2p_kit import (
    ENTRIES,
    FAST,
    PRESENCE,
    Node,
    gossiping,
    hardened,
    plain,
    several,
    until,
)


@pytest.mark.slow
async def test_each_message_is_judged_once_however_many_peers_bring_it() -> None:
    async with several(3) as (a, b, c):
        entered = 0

        async def slow(_forwarder: str, _kind: str, data: bytes) -> bool:
            nonlocal entered
            entered += 1
            await trio.sleep(0.2)  # the other copy arrives meanwhile
            c.handler.gossip.append(("", "entries", data))
            return True

        c.handler.on_gossip = slow  # type: ignore[method-assign, assignment]
        for one, other in ((a, b), (b, c), (a, c)):
            await one.connect(other)
        await gossiping(a, b, c)
        for i in range(10):
            a.publish(b"%d" % i)
        await until(lambda: len(c.handler.gossip) == 10)
        await until(lambda: c.counters["gossip_copies"] == 10)
        assert entered == 10
        assert sorted(b.handler.payloads()) == sorted(c.handler.payloads())


@pytest.mark.slow
async def test_a_refused_message_is_not_relayed_nor_judged_again() -> None:
    async with several(3) as (a, b, c):
        b.handler.relay = False
        await a.connect(b)
        await b.connect(c)
        await until(lambda: len(b.life.gossip.ready()) == 2)
        a.publish(b"refused")
        await until(lambda: b.counters["gossip_refused"] == 1)
        message = rpc_pb2.Message(
            data=b"refused",
            topicIDs=[ENTRIES],
            from_id=a.id.to_bytes(),
            seqno=a.life.host.pubsub.counter.to_bytes(8, "big"),
        )
        assert await b.life.gossip._judge(c.id, message) is False
        assert len(b.handler.gossip) == 1
        b.handler.relay = True
        a.publish(b"relayed")
        await until(lambda: c.handler.payloads() == [b"relayed"])


@pytest.mark.slow
async def test_our_own_messages_are_never_judged() -> None:
    seed = os.urandom(32)
    async with hardened(admit_all=True) as b:
        async with hardened(seed=seed, admit_all=True) as a:
            await a.connect(b)
            await gossiping(a, b)
            a.publish(b"before the restart")
            await until(lambda: b.handler.payloads() == [b"before the restart"])
            assert a.handler.gossip == []
        await until(lambda: b.life.roster.presence(a.id) is None)
        async with hardened(seed=seed, admit_all=True) as a:
            # b replays what it remembers to the newcomer, which is a's own.
            await a.connect(b)
            await gossiping(a, b)
            await until(lambda: a.counters["gossip_foreign"] == 1)
            assert a.handler.gossip == []


@pytest.mark.slow
async def test_one_message_on_both_topics_is_refused() -> None:
    async with hardened() as node, plain() as other:
        await other.connect(node)
        await until(lambda: node.life.roster.presence(other.id) is not None)
        node.life.admit(other.id)
        await other.pubsub.wait_for_mesh(node.id, ENTRIES)
        await other.pubsub.publish([ENTRIES, PRESENCE], b"both")
        await until(lambda: node.counters["gossip_foreign"] == 2)  # once for each topic
        await other.pubsub.publish(ENTRIES, b"one")
        await until(lambda: node.handler.payloads() == [b"one"])


@pytest.mark.slow
async def test_a_burst_arrives_whole() -> None:
    # With the library's queues of 32 and its ten messages a second most of it would be lost.
    async with several(2) as (a, b):
        await a.connect(b)
        await gossiping(a, b)
        for i in range(200):
            a.publish(b"%d" % i)
        await until(lambda: len(b.handler.gossip) == 200, 10)


@pytest.mark.slow
async def test_a_forwarder_over_its_rate_is_throttled_before_any_signature_check() -> None:
    slow = dataclasses.replace(FAST, gossip_rate=0.001, gossip_burst=10.0)
    async with hardened(admit_all=True) as a, hardened(tuning=slow, admit_all=True) as b:
        async with hardened(admit_all=True) as honest:
            await a.connect(b)
            await honest.connect(b)
            await until(lambda: len(b.life.gossip.ready()) == 2 and bool(a.life.gossip.ready()))
            for i in range(30):
                a.publish(b"%d" % i)
            await until(lambda: b.counters["gossip_throttled"] == 20)
            assert len(b.handler.gossip) == 10
            await until(lambda: bool(honest.life.gossip.ready()))
            honest.publish(b"honest")
            await until(lambda: b"honest" in b.handler.payloads())


@pytest.mark.slow
async def test_the_largest_payload_passes_and_a_larger_one_is_refused_here() -> None:
    async with several(2) as (a, b):
        await a.connect(b)
        await gossiping(a, b)
        largest = os.urandom(GOSSIP_BYTES_MAX)
        assert not a.life.gossip.publish_nowait("entries", largest + b"x")
        assert a.counters["gossip_oversize"] == 1
        a.publish(largest)
        await until(lambda: b.handler.payloads() == [largest])


async def test_a_full_queue_drops_with_a_count() -> None:
    async with hardened() as node:
        # One is with the publisher already, which waits for it.
        taken = [node.life.gossip.publish_nowait("entries", b"x") for _ in range(PUBLISH_QUEUE + 3)]
        assert taken == [True] * (PUBLISH_QUEUE + 1) + [False] * 2
        assert node.counters["gossip_queue_full"] == 2


async def both_ways(a: Node, b: Node, mark: bytes) -> bool:
    a.publish(b"a " + mark)
    b.publish(b"b " + mark)
    with trio.move_on_after(0.5):
        await until(lambda: b"a " + mark in b.handler.payloads() and b"b " + mark in a.handler.payloads())
        return True
    return False


@pytest.mark.slow
@pytest.mark.parametrize("which", [0, 1])
async def test_gossip_survives_a_simultaneous_dial_and_the_loss_of_either_connection(which: int) -> None:
    async with several(2) as (a, b):
        a.targets.replace({str(b.id): [str(address) for address in b.info.addrs]})
        b.targets.replace({str(a.id): [str(address) for address in a.info.addrs]})
        async with trio.open_nursery() as nursery:
            nursery.start_soon(a.connect, b)
            nursery.start_soon(b.connect, a)
        await until(lambda: len(a.network.get_connections(b.id)) == 2)
        await gossiping(a, b)
        await a.network.get_connections(b.id)[which].close()
        with trio.fail_after(10):
            i = 0
            while not await both_ways(a, b, b"%d" % i):
                i += 1


@pytest.mark.slow
async def test_the_watchdog_cuts_a_peer_that_gossip_no_longer_reaches() -> None:
    async with several(2) as (a, b):
        a.targets.replace({str(b.id): [str(address) for address in b.info.addrs]})
        await until(lambda: bool(a.handler.open_links()))
        await gossiping(a, b)
        # What losing one of two connections does at worst: the peer's subscriptions are forgotten
        # and never sent again, while every connection looks healthy.
        a.life.host.pubsub._forget_all_subscriptions(b.id)
        assert not a.life.gossip.reached()
        await until(lambda: a.counters["gossip_watchdog"] == 1, 8)
        await gossiping(a, b)
        assert await both_ways(a, b, b"again")


@pytest.mark.slow
async def test_the_watchdog_gives_a_peer_time_to_admit_us() -> None:
    patient = dataclasses.replace(FAST, admission_s=5.0)
    async with hardened(admit_all=True) as early, hardened(tuning=patient) as late:
        await early.connect(late)
        await until(lambda: bool(late.handler.links))
        await trio.sleep(1.3 * FAST.deaf_s)
        late.life.admit(early.id)
        await gossiping(early, late)
        assert early.counters["gossip_watchdog"] == 0


async def wants(node: Node, of: Node, *names: str) -> None:
    """Ask for messages by their ids in hex, as often as they are named."""
    control = rpc_pb2.ControlMessage(
        iwant=[rpc_pb2.ControlIWant(messageIDs=[name.encode() for name in names])]
    )
    await node.life.host.router.emit_control_message(control, of.id)


def name_of(message: rpc_pb2.Message) -> str:
    return str((message.from_id + message.seqno).hex())


@pytest.mark.slow
async def test_one_message_wanted_a_thousand_times_is_sent_once() -> None:
    async with several(2) as (a, b):
        await a.connect(b)
        await gossiping(a, b)
        a.publish(os.urandom(100_000))
        await until(lambda: len(b.handler.gossip) == 1)
        (message,) = a.life.host.router.mcache.msgs.values()
        name = name_of(message)
        await wants(b, a, *[name] * 500, *[name.upper()] * 500, "no hex", "00" * 40)
        await until(lambda: a.counters["gossip_wants_refused"] == 999)
        await until(lambda: b.counters["gossip_copies"] == 1)
        a.publish(b"later")
        await until(lambda: b"later" in b.handler.payloads())
        assert b.counters["gossip_copies"] == 1


@pytest.mark.slow
async def test_old_messages_are_sent_again_at_a_bounded_rate() -> None:
    few = dataclasses.replace(FAST, wanted_bytes_per_s=1.0, wanted_bytes_burst=350_000.0)
    async with several(2, tuning=few) as (a, b):
        await a.connect(b)
        await gossiping(a, b)
        for _ in range(6):
            a.publish(os.urandom(100_000))
        await until(lambda: len(b.handler.gossip) == 6)
        names = [name_of(message) for message in a.life.host.router.mcache.msgs.values()]
        await wants(b, a, *names)
        await until(lambda: a.counters["gossip_wants_refused"] == 3)
        await until(lambda: b.counters["gossip_copies"] == 3)


@pytest.mark.slow
async def test_the_largest_message_can_be_wanted_again() -> None:
    async with several(2) as (a, b):
        await a.connect(b)
        await gossiping(a, b)
        a.publish(os.urandom(GOSSIP_BYTES_MAX))
        await until(lambda: len(b.handler.gossip) == 1)
        await wants(b, a, *map(name_of, a.life.host.router.mcache.msgs.values()))
        await until(lambda: b.counters["gossip_copies"] == 1)
        assert a.counters["gossip_wants_refused"] == 0
