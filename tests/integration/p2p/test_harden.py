"""Every patch on libp2p, each with the fault that it is for, shown on the unpatched library."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import struct
import time
from typing import Any

import pytest
import trio
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.exceptions import BaseLibp2pError
from libp2p.network.config import ConnectionConfig
from libp2p.peer.id import ID
from libp2p.pubsub.gossipsub import PROTOCOL_ID_V11
from libp2p.pubsub.pb import rpc_pb2
from libp2p.security.insecure.transport import PLAINTEXT_PROTOCOL_ID, InsecureTransport
from libp2p.utils import encode_varint_prefixed

from lattice.core.limits import HALF_OPEN_PER_ADDRESS_MAX
from lattice.transport.p2p.harden import quiet_logs
from tests.integration.p2p.p2p_kit import (
    ENTRIES,
    FAST,
    LOG,
    Node,
    Plain,
    Wire,
    gossiping,
    hardened,
    linked,
    plain,
    several,
    tcp_port,
    until,
)


async def honest_pair_works(victim: Node) -> None:
    """The control of every attack: another peer still gossips with the victim, both ways."""
    async with hardened(admit_all=True) as honest:
        honest.life.admit(victim.id)
        await honest.connect(victim)
        await until(lambda: victim.life.roster.presence(honest.id) is not None)
        victim.life.admit(honest.id)
        await until(lambda: honest.id in victim.life.gossip.ready() and bool(honest.life.gossip.ready()))
        honest.publish(b"to the victim")
        victim.publish(b"from the victim")
        await until(lambda: b"to the victim" in victim.handler.payloads())
        await until(lambda: b"from the victim" in honest.handler.payloads())


async def meshsub_frame(attacker: Plain, victim: Node | Plain, frame: bytes) -> None:
    stream = await attacker.host.new_stream(victim.id, [PROTOCOL_ID_V11])
    await stream.write(encode_varint_prefixed(frame))


async def admitted_attacker(attacker: Plain, victim: Node) -> None:
    await attacker.connect(victim)
    await until(lambda: victim.life.roster.presence(attacker.id) is not None)
    victim.life.admit(attacker.id)
    await until(lambda: victim.life.host.gate.admitted(attacker.id))


MALFORMED = b"\xff\xff\xff\xff\xff"


def garbage_key_frame() -> bytes:
    message = rpc_pb2.Message(
        data=b"x", topicIDs=[ENTRIES], from_id=b"not a peer id", seqno=b"12345678", key=b"garbage"
    )
    message.signature = b"s" * 64
    return rpc_pb2.RPC(publish=[message]).SerializeToString()


@pytest.mark.slow
@pytest.mark.parametrize("frame", [MALFORMED, garbage_key_frame()], ids=["malformed", "garbage key"])
async def test_one_frame_ends_the_plain_library(frame: bytes) -> None:
    async with plain() as victim, plain(gossip=False) as attacker:
        await attacker.connect(victim)
        await meshsub_frame(attacker, victim, frame)
        with trio.fail_after(5):
            await victim.died.wait()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("frame", "counter"),
    [(MALFORMED, "trapped_stream"), (garbage_key_frame(), "trapped_message")],
    ids=["malformed", "garbage key"],
)
async def test_one_frame_costs_a_hardened_host_nothing(frame: bytes, counter: str) -> None:
    async with hardened() as victim, plain(gossip=False) as attacker:
        await admitted_attacker(attacker, victim)
        await meshsub_frame(attacker, victim, frame)
        await until(lambda: victim.counters[counter] == 1)
        await honest_pair_works(victim)


async def raising(*_args: object) -> bool:
    raise ValueError("raised on purpose")


@pytest.mark.slow
async def test_a_raising_stream_handler() -> None:
    async with plain() as victim, plain(gossip=False) as attacker:
        victim.host.set_stream_handler("/raising", raising)
        await attacker.connect(victim)
        with contextlib.suppress(BaseLibp2pError):
            await attacker.host.new_stream(victim.id, ["/raising"])
        with trio.fail_after(5):
            await victim.died.wait()
    async with hardened() as hard, plain(gossip=False) as attacker:
        hard.life.host.basic.set_stream_handler("/raising", raising)
        await attacker.connect(hard)
        with contextlib.suppress(BaseLibp2pError):
            await attacker.host.new_stream(hard.id, ["/raising"])
        await until(lambda: hard.counters["trapped_stream"] == 1)
        await honest_pair_works(hard)


@pytest.mark.slow
async def test_a_raising_validator() -> None:
    def validator(*_args: object) -> bool:
        raise ValueError("raised on purpose")

    async with plain(validator=validator) as victim, plain() as other:
        await other.connect(victim)
        await other.pubsub.wait_for_subscription(victim.id, ENTRIES)
        await other.pubsub.publish(ENTRIES, b"x")
        with trio.fail_after(5):
            await victim.died.wait()
    async with several(2) as (a, b):
        b.handler.on_gossip = raising  # type: ignore[method-assign, assignment]
        await a.connect(b)
        await gossiping(a, b)
        a.publish(b"x")
        await until(lambda: b.counters["handler_raised"] == 1)
        await honest_pair_works(a)


@pytest.mark.slow
async def test_an_ended_inbound_connection_gives_its_slot_back() -> None:
    async def connect_and_leave(victim: Node | Plain) -> None:
        async with plain(gossip=False) as guest:
            await guest.connect(victim)

    small = ConnectionConfig(max_connections=4, min_connections=1, low_watermark=1, high_watermark=4)
    async with plain(gossip=False, config=small) as victim:
        limiter = victim.host.get_network()._inbound_limiter
        for _ in range(3):
            await connect_and_leave(victim)
        await until(lambda: not victim.host.get_network().get_connections())
        assert limiter.borrowed_tokens == 3  # for the rest of its life: it is deaf
        async with plain(gossip=False) as guest:
            with pytest.raises((BaseLibp2pError, trio.TooSlowError)):
                await guest.connect(victim)
    async with hardened() as hard:
        limiter = hard.network._inbound_limiter
        for _ in range(3):
            await connect_and_leave(hard)
        await until(lambda: limiter.borrowed_tokens == 0)
        async with plain(gossip=False) as guest:
            await guest.connect(hard)
            await until(lambda: limiter.borrowed_tokens == 1)


async def messages_after_restart(counter_of_library: bool) -> int:
    """How many of 20 messages of a second life arrive, after 20 of a first one."""
    seed = os.urandom(32)
    start = int(time.time())
    async with hardened(admit_all=True) as b:
        for life in (b"first", b"second"):
            async with hardened(seed=seed, admit_all=True) as a:
                if counter_of_library:
                    # The library's own start value, a second later in the second life.
                    a.life.host.pubsub.counter = start + (life == b"second")
                await a.connect(b)
                await until(lambda: a.id in b.life.gossip.ready() and bool(a.life.gossip.ready()))
                for i in range(20):
                    a.publish(b"%s %d" % (life, i))
                a.publish(life, "presence")  # comes through the same queues, after the others
                a.life.host.pubsub.counter += 1000
                a.publish(b"end of " + life)
                await until(lambda: b"end of " + life in b.handler.payloads())  # noqa: B023
            await until(lambda: b.life.roster.presence(a.id) is None)
        return sum(data.startswith(b"second ") for data in b.handler.payloads())


@pytest.mark.slow
async def test_message_numbers_are_not_repeated_after_a_restart() -> None:
    assert await messages_after_restart(counter_of_library=True) < 5
    assert await messages_after_restart(counter_of_library=False) == 20


@pytest.mark.slow
async def test_plaintext_is_refused() -> None:
    # It proves nothing: this attacker claims another node's public key and never has its secret.
    victim_of_the_lie = create_new_key_pair(os.urandom(32))
    stolen = ID.from_pubkey(victim_of_the_lie.public_key)
    plaintext = {PLAINTEXT_PROTOCOL_ID: InsecureTransport(victim_of_the_lie)}
    async with plain(gossip=False) as library, hardened() as hard:
        async with plain(gossip=False, sec_opt=plaintext) as attacker:
            attacker.host._network.self_id = stolen
            await attacker.connect(library)
            await until(lambda: bool(library.host.get_network().get_connections()))
            with pytest.raises((BaseLibp2pError, trio.TooSlowError)):
                await attacker.connect(hard)
            assert not hard.network.get_connections()


@pytest.mark.slow
async def test_half_open_connections_of_one_address_are_capped() -> None:
    async with hardened() as victim:
        idle = [await trio.open_tcp_stream("127.0.0.1", tcp_port(victim)) for _ in range(40)]
        await until(lambda: victim.counters["half_open_refused"] == 40 - HALF_OPEN_PER_ADDRESS_MAX)
        limiter = victim.network._inbound_limiter
        # Of 64: the others are free for other addresses.
        await until(lambda: limiter.borrowed_tokens == HALF_OPEN_PER_ADDRESS_MAX)
        for stream in idle:
            await stream.aclose()
        await until(lambda: victim.network._inbound_limiter.borrowed_tokens == 0)
        await honest_pair_works(victim)


@pytest.mark.slow
async def test_an_idle_flood_takes_every_slot_of_the_plain_library() -> None:
    small = ConnectionConfig(max_connections=20, min_connections=0, low_watermark=0, high_watermark=20)
    async with plain(gossip=False, config=small) as victim:
        idle = [await trio.open_tcp_stream("127.0.0.1", tcp_port(victim)) for _ in range(20)]
        limiter = victim.host.get_network()._inbound_limiter
        await until(lambda: limiter.available_tokens == 0)
        for stream in idle:
            await stream.aclose()


@pytest.mark.slow
async def test_libp2p_dials_nobody_by_itself() -> None:
    zero = ConnectionConfig(min_connections=0, low_watermark=0)
    async with plain(gossip=False, config=zero) as library, plain(gossip=False) as heard_of:
        library.host.get_peerstore().add_addrs(heard_of.id, heard_of.info.addrs, 60)
        await library.host.get_network().auto_connector.maybe_connect()
        await until(lambda: bool(library.host.get_network().get_connections(heard_of.id)))
    async with hardened() as hard, plain(gossip=False) as heard_of:
        hard.life.host.basic.get_peerstore().add_addrs(heard_of.id, heard_of.info.addrs, 60)
        await hard.network.auto_connector.maybe_connect()
        hard.network._schedule_auto_connect()
        await trio.sleep(0.5)
        assert hard.network.get_connections() == []


@pytest.mark.slow
async def test_one_peer_cannot_take_all_streams() -> None:
    async with hardened() as victim, plain(gossip=False) as attacker:
        await attacker.connect(victim)
        connection = attacker.host.get_network().get_connections(victim.id)[0]
        for _ in range(FAST.streams_max + 20):  # opened and never negotiated
            await connection.muxed_conn.open_stream()
        await until(lambda: victim.counters["streams_refused"] >= 20)
        connection = victim.network.get_connections()[0]
        await until(lambda: len(connection.streams) <= FAST.streams_max)
        await honest_pair_works(victim)


async def flood_unread_stream(attacker: Plain, victim: Node | Plain, protocol: str) -> None:
    """Write far past the receive window, which the sender is trusted to respect."""
    stream = await attacker.host.new_stream(victim.id, [protocol])
    stream.muxed_stream.send_window = 1 << 40
    with trio.move_on_after(3):
        for _ in range(160):
            await stream.write(b"\0" * 60_000)


def unread(victim: Node | Plain) -> int:
    network = victim.network if isinstance(victim, Node) else victim.host.get_network()
    return sum(
        len(buffer)
        for conn in network.get_connections()
        for buffer in conn.muxed_conn.stream_buffers.values()
    )


@pytest.mark.slow
async def test_an_overrun_window_ends_the_connection() -> None:
    async with plain(gossip=False) as victim, plain(gossip=False) as attacker:
        victim.host.set_stream_handler("/unread", never_reads)
        await attacker.connect(victim)
        await flood_unread_stream(attacker, victim, "/unread")
        assert unread(victim) > 8_000_000  # the window is 256 KiB
    async with hardened() as hard, plain(gossip=False) as attacker:
        await attacker.connect(hard)
        await until(lambda: hard.life.roster.presence(attacker.id) is not None)
        with pytest.raises(BaseLibp2pError):
            await flood_unread_stream(attacker, hard, PROTOCOL_ID_V11)  # held unread by the gate
        assert hard.counters["unread_overflow"] == 1
        assert unread(hard) <= FAST.unread_stranger_bytes_max
        await honest_pair_works(hard)


@pytest.mark.slow
async def test_a_first_frame_is_bounded_before_anybody_is_told_of_the_connection() -> None:
    too_long = struct.pack(">BBHII", 0, 0, 1, 1, 8 << 20)  # data that opens a stream
    async with hardened() as hard, plain(gossip=False) as attacker:
        network: Any = hard.life.host.network
        told = network.notify_connected

        async def later(connection: Any) -> None:
            await trio.sleep(1)
            await told(connection)

        network.notify_connected = later
        await attacker.connect(hard)
        (connection,) = attacker.host.get_network().get_connections(hard.id)
        await connection.muxed_conn.secured_conn.write(too_long)
        await until(lambda: hard.counters["unread_overflow"] == 1)
        await until(lambda: connection.muxed_conn.is_closed)
        network.notify_connected = told
        await honest_pair_works(hard)


@pytest.mark.slow
async def test_a_peer_that_stops_reading_is_cut_and_holds_up_nobody() -> None:
    async with several(3) as (a, b, c), trio.open_nursery() as nursery:
        wire = Wire(tcp_port(b))
        await nursery.start(wire.run)
        await a.life.host.basic.connect(wire.info(b.id))
        await a.connect(c)
        await until(lambda: {b.id, c.id} <= a.life.gossip.ready())
        wire.stall()
        # Enough to fill every socket buffer on the way, and each has come to the other peer before the next.
        for number in range(60):
            a.publish(os.urandom(300_000))
            await until(lambda number=number: len(c.handler.payloads()) > number)
        await until(lambda: a.counters["stalled_write"] == 1, 10)
        await until(lambda: a.life.roster.presence(b.id) is None, 5)
        a.publish(b"and on")
        await until(lambda: b"and on" in c.handler.payloads())
        nursery.cancel_scope.cancel()


async def cancel_a_blocked_write(host: Any, peer: ID, wire: Wire) -> None:
    """Write into a stalled wire until nothing more goes, give up, and let the wire pass again."""
    stream = await host.new_stream(peer, ["/unread"])
    stream.muxed_stream.send_window = 1 << 40
    wire.stall()

    async def resume() -> None:
        await trio.sleep(0.5)
        wire.resume()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(resume)
        with trio.move_on_after(0.3) as scope:
            while True:
                await stream.write(b"\0" * 60_000)
        assert scope.cancelled_caught


async def never_reads(_stream: object) -> None:
    await trio.sleep_forever()


@pytest.mark.slow
async def test_a_cancelled_write_breaks_the_connection_of_the_plain_library() -> None:
    async with plain(gossip=False) as a, plain(gossip=False) as b, trio.open_nursery() as nursery:
        wire = Wire(tcp_port(b))
        await nursery.start(wire.run)
        b.host.set_stream_handler("/unread", never_reads)
        await a.host.connect(wire.info(b.id))
        await cancel_a_blocked_write(a.host, b.id, wire)
        # Half a message is out. What is written next no longer decrypts at the other end.
        with pytest.raises((BaseLibp2pError, trio.TooSlowError)), trio.fail_after(1.5):
            await a.host.new_stream(b.id, ["/ipfs/ping/1.0.0"])
        nursery.cancel_scope.cancel()


@pytest.mark.slow
async def test_a_cancelled_write_leaves_a_hardened_connection_whole() -> None:
    async with several(2) as (a, b), trio.open_nursery() as nursery:
        wire = Wire(tcp_port(b))
        await nursery.start(wire.run)
        b.life.host.basic.set_stream_handler("/unread", never_reads)
        await a.life.host.basic.connect(wire.info(b.id))
        await gossiping(a, b)
        connections = a.network.get_connections(b.id)
        await cancel_a_blocked_write(a.life.host.basic, b.id, wire)
        with trio.fail_after(5):
            assert await a.handler.open_links()[0].exchange(b"still there") == b"echo:still there"
        assert a.network.get_connections(b.id) == connections
        nursery.cancel_scope.cancel()


@pytest.mark.slow
async def test_the_library_writes_nothing_to_the_root_logger(caplog: pytest.LogCaptureFixture) -> None:
    handlers = list(logging.getLogger().handlers)
    caplog.set_level(logging.DEBUG, logger=LOG.name)
    async with several(2) as (a, b):
        await linked(a, b)
    assert logging.getLogger().handlers == handlers
    assert {record.name for record in caplog.records} <= {LOG.name}


def test_a_log_that_would_feed_itself_is_refused() -> None:
    with pytest.raises(ValueError, match="feed itself"):
        quiet_logs(logging.getLogger("libp2p.lattice"))


async def test_an_unanswerable_port_is_plain_tcp() -> None:
    # The control of the half-open test: a hardened host answers on its port at all.
    async with hardened() as victim:
        with socket.create_connection(("127.0.0.1", tcp_port(victim)), timeout=1):
            pass
