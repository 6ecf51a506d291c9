"""Members who lie in gossip: garbage, recordings, floods of topics, numbers that jump; each is refused by its
own reason and an honest pair goes on syncing."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from hashlib import sha256
from typing import Any

import pytest
import trio
import trio.lowlevel
from libp2p.pubsub.pb import rpc_pb2

from lattice.core.envelope import NONCE_BYTES, Kind
from lattice.core.identity import public_key_of
from lattice.core.limits import BUDGET_BYTES, GOSSIP_BYTES_MAX, REFUSAL_BYTES_MIN
from lattice.core.messages import Entries, Roots

from .http_kit import Member, Rise, Scene, forged
from .p2p_kit import (
    CHARGED,
    EVENTS,
    MESHSUB,
    MESSAGES,
    REFUSED,
    Gossiper,
    beat,
    gossiper,
    off,
    one_way,
    p2p_scene,
    rises,
    syncing,
    varint,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with p2p_scene(tmp_path_factory.mktemp("gossip")) as found:
        yield found


def false_payloads(made: Scene, member: Member, victim: bytes) -> dict[str, tuple[bytes, str, str]]:
    """What is published, and the counter that must rise for it."""
    whole = member.write(3, epoch=7)
    foreign = Member(sha256(b"another").digest(), member.network_keys, member.key)
    roots = Roots(bytes(32), bytes(32), 1, 0)
    number = next(iter(member.network_keys))
    another = Member(member.network_id, {number: os.urandom(32)}, member.key)
    request = member.sealer.seal(Kind.REQUEST, b"", os.urandom(NONCE_BYTES), to=victim)
    bad_body = member.sealer.seal(Kind.ONE_WAY, b"\x05\x40\x00\x00\x00", os.urandom(NONCE_BYTES))
    return {
        "garbage": (os.urandom(500), MESSAGES, "gossip_not_an_envelope"),
        "nothing": (b"", MESSAGES, "gossip_too_short"),
        "another key": (one_way(another, [whole]), MESSAGES, "gossip_foreign"),
        "another network": (one_way(foreign, [whole]), MESSAGES, "gossip_bad_signature"),
        "a request": (request, MESSAGES, "gossip_not_one_way"),
        "to one node alone": (one_way(member, [whole], to=victim), MESSAGES, "gossip_addressed"),
        "a malformed body": (bad_body, MESSAGES, "request_malformed"),
        "forged seals": (
            one_way(member, [Entries(whole.frames, (forged(whole.seals[-1]),))]),
            REFUSED,
            "bad_seal",
        ),
        "no seals": (one_way(member, [Entries(whole.frames, ())]), REFUSED, "unsealed"),
        "no presence": (one_way(member, [beat(victim, roots)]), EVENTS, "gossip_refused"),
    }


async def victim_of(made: Scene) -> bytes:
    return public_key_of((await off(made.victim.status)).peer_id)


async def test_false_payloads_are_refused_by_reason_and_not_relayed(made: Scene) -> None:
    victim = await victim_of(made)
    async with syncing(made) as rise:
        for name in false_payloads(made, made.member, victim):
            async with gossiper(made.victim, made) as liar:
                member = made.member.another(key=liar.peer.key)
                payload, metric, reason = false_payloads(made, member, victim)[name]
                before = await off(rise.of, metric, reason)
                refused = await off(rise.of, EVENTS, "gossip_refused")
                await liar.publish(liar.message(payload))
                await rises(rise, metric, reason, by=before + 1)
                await rises(rise, EVENTS, "gossip_refused", by=refused + 1)
        assert await off(rise.of, CHARGED, "gossip") >= 8 * REFUSAL_BYTES_MIN


async def test_oversize_messages_are_refused_before_they_are_opened(made: Scene) -> None:
    async with syncing(made) as rise, gossiper(made.victim, made) as liar:
        await liar.publish(liar.message(bytes(GOSSIP_BYTES_MAX + 1)))
        await rises(rise, EVENTS, "gossip_oversize")


async def test_recordings_cost_no_opening(made: Scene) -> None:
    """One valid presence, then a thousand times its bytes under new numbers, and the same message again."""
    victim = await victim_of(made)
    async with syncing(made) as rise, gossiper(made.victim, made) as liar:
        member = made.member.another(key=liar.peer.key)
        payload = one_way(member, [beat(victim, Roots(bytes(32), bytes(32), 1, 0))])
        first = liar.message(payload, "presence")
        await liar.publish(first)
        for _ in range(10):
            await liar.publish(*(liar.message(payload, "presence") for _ in range(100)))
        await rises(rise, EVENTS, "gossip_replayed", by=900)
        for _ in range(100):
            await liar.publish(*([first] * 100))
        await rises(rise, EVENTS, "gossip_copies", by=9_000)
        assert await off(rise.of, MESSAGES, "presence_stale") == 0


async def test_an_old_presence_sealed_anew_is_stale(made: Scene) -> None:
    victim = await victim_of(made)
    async with syncing(made) as rise, gossiper(made.victim, made) as liar:
        member = made.member.another(key=liar.peer.key)
        payloads = [one_way(member, [beat(victim, Roots(bytes(32), bytes(32), 1, n))]) for n in range(3)]
        await liar.publish(liar.message(payloads[2], "presence"))
        await rises(rise, EVENTS, "gossip_judged")
        await liar.publish(*(liar.message(payload, "presence") for payload in payloads[:2]))
        await rises(rise, MESSAGES, "presence_stale", by=2)


async def test_a_flood_is_throttled(made: Scene) -> None:
    async with syncing(made, lap_s_max=15) as rise, gossiper(made.victim, made) as liar:
        for _ in range(40):
            await liar.publish(*(liar.message(os.urandom(500)) for _ in range(100)))
        await rises(rise, EVENTS, "gossip_throttled", by=500, within_s=30)


async def test_who_sends_garbage_without_end_is_no_longer_opened(made: Scene) -> None:
    async with syncing(made, lap_s_max=15) as rise, gossiper(made.victim, made) as liar:
        for _ in range(BUDGET_BYTES // GOSSIP_BYTES_MAX + 4):
            await liar.publish(liar.message(b"\0" * 40 + os.urandom(GOSSIP_BYTES_MAX - 40)))
        await rises(rise, MESSAGES, "budget_spent_gossip")
        await liar.publish(liar.message(os.urandom(64)))
        await rises(rise, MESSAGES, "messages_over_budget_gossip")


async def test_numbers_and_authors_that_lie(made: Scene) -> None:
    """Another's name, no signature, numbers that jump to the end: dropped before they are judged."""
    victim = await victim_of(made)
    async with syncing(made) as rise, gossiper(made.victim, made) as liar:
        member = made.member.another(key=liar.peer.key)
        whole = one_way(member, [member.write(1, epoch=9)])
        before = await off(rise.of, EVENTS, "gossip_judged")
        other = made.member.another().key.public_key
        lies: list[dict[str, Any]] = [
            {"from_id": b"\x00\x24\x08\x01\x12\x20" + other},
            {"from_id": b"\xff" * 40},
            {"signature": b""},
            {"signature": bytes(64)},
            {"seqno": b"\xff" * 8},
            {"seqno": b"\xff" * 1000},
            {"data": b"other"},
        ]
        await liar.publish(*(liar.message(whole, **lie) for lie in lies))
        await liar.publish(liar.message(whole, from_id=b"\x12\x20" + bytes(32), key=b"garbage"))
        await rises(rise, EVENTS, "trapped_message")
        await liar.publish(liar.message(os.urandom(500)))  # the control: this one is judged
        await rises(rise, MESSAGES, "gossip_not_an_envelope")
        seen = await off(rise.of, EVENTS, "gossip_judged") - before
        honest = await off(rise.of, EVENTS, "gossip_published")
        assert seen <= 1 + honest + 4, victim.hex()  # the pair's own messages come both ways


async def raw_rpc(liar: Gossiper, data: bytes) -> None:
    await liar.stream.write(data)


def refused_streams(rise: Rise) -> float:
    return rise.of(EVENTS, "gossip_unreadable") + rise.of(EVENTS, "trapped_stream")


async def test_frames_that_no_length_can_describe_end_the_stream_alone(made: Scene) -> None:
    lengths = {
        "1 GB": varint(1 << 30),
        "2^63": varint(1 << 63),
        "endless": b"\xff" * 64,
        "no protobuf": varint(20) + os.urandom(20),
    }
    async with syncing(made) as rise:
        for name, data in lengths.items():
            async with gossiper(made.victim, made) as liar:
                before = await off(refused_streams, rise)
                await raw_rpc(liar, data)
                with trio.fail_after(15):
                    await liar.stream.wait_ended()
                assert liar.stream.ended, name
                assert not liar.peer.gone.is_set()
                assert await off(refused_streams, rise) == before + 1, name


async def test_thousands_of_topics_are_not_remembered(made: Scene) -> None:
    async with syncing(made) as rise, gossiper(made.victim, made) as liar:
        await liar.subscribe(*(f"topic {n}" for n in range(5000)))
        for n in range(200):
            await liar.subscribe(*(f"topic {n}/{m}" for m in range(20)))
        await liar.publish(*(liar.message(b"x", f"topic {n}") for n in range(1000)))
        control = rpc_pb2.RPC()
        for n in range(500):
            control.control.graft.add(topicID=f"topic {n}")
            control.control.prune.add(topicID=f"topic {n}")
            control.control.ihave.add(topicID=f"topic {n}", messageIDs=[os.urandom(40).hex().encode()] * 20)
        control.control.iwant.add(messageIDs=[os.urandom(40).hex().encode() for _ in range(2000)])
        await liar.send(control)
        # The control: the same stream is still read, and in order.
        await liar.publish(liar.message(os.urandom(500)))
        await rises(rise, MESSAGES, "gossip_not_an_envelope")
        await rises(rise, EVENTS, "topics_foreign", by=5000 + 4000 + 1000 + 1500)


async def test_more_gossip_streams_than_one(made: Scene) -> None:
    async with syncing(made), gossiper(made.victim, made) as liar:
        for _ in range(100):
            stream = await liar.peer.open()
            await stream.write_delimited(b"/multistream/1.0.0\n")
            await stream.write_delimited(MESHSUB.encode() + b"\n")
            await stream.write(struct.pack(">B", 127))  # a message that never comes
        await trio.lowlevel.checkpoint()
