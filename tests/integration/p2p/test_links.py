"""The persistent stream: exchanges, limits, who opens it, and what happens when it breaks."""

from __future__ import annotations

import dataclasses
import itertools
import os
import struct
from typing import Any

import pytest
import trio
from libp2p.exceptions import BaseLibp2pError

from lattice.transport.p2p.streams import SYNC_PROTOCOL, FrameKind, encode_frame
from lattice.transport.port import PeerLink, TransportError
from tests.integration.p2p.p2p_kit import (
    FAST,
    Node,
    hardened,
    linked,
    plain,
    several,
    until,
)


def by_size(nodes: list[Node]) -> tuple[Node, Node]:
    smaller, larger = sorted(nodes, key=lambda node: node.id.to_bytes())
    return smaller, larger


@pytest.mark.slow
async def test_exchanges_overlap_in_both_directions() -> None:
    async with several(2) as (a, b):
        from_a, from_b = await linked(a, b)
        assert from_a.peer_id == str(b.id)
        assert from_b.peer_id == str(a.id)
        assert from_a.remote_address.startswith("127.0.0.1:")
        answers: dict[tuple[str, int], bytes] = {}

        async def ask(name: str, link: PeerLink, i: int) -> None:
            answers[name, i] = await link.exchange(b"%d" % i + b"x" * (i * 997))

        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                for i in range(60):
                    nursery.start_soon(ask, "a", from_a, i)
                    nursery.start_soon(ask, "b", from_b, i)
        assert answers == {
            (name, i): b"echo:" + b"%d" % i + b"x" * (i * 997) for name in "ab" for i in range(60)
        }


@pytest.mark.slow
async def test_a_slow_answer_holds_up_no_other() -> None:
    async with several(2) as (a, b):
        release = trio.Event()

        async def answer(request: bytes) -> bytes:
            if request == b"slow":
                await release.wait()
            return request

        b.handler.answer = answer
        link, _ = await linked(a, b)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.exchange, b"slow")
            with trio.fail_after(8):
                for i in range(20):
                    assert await link.exchange(b"%d" % i) == b"%d" % i
            release.set()


@pytest.mark.slow
async def test_at_most_two_of_a_peers_requests_run_at_once() -> None:
    async with several(2) as (a, b):
        release, running, most = trio.Event(), 0, 0

        async def answer(request: bytes) -> bytes:
            nonlocal running, most
            running += 1
            most = max(most, running)
            await release.wait()
            running -= 1
            return request

        b.handler.answer = answer
        link, _ = await linked(a, b)
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                for i in range(40):
                    nursery.start_soon(link.exchange, b"%d" % i)
                await until(lambda: running == 2)
                # Their answers come through while ours wait for the peer.
                assert await b.handler.open_links()[0].exchange(b"back") == b"echo:back"
                release.set()
        assert most == 2


@pytest.mark.slow
async def test_a_frame_that_trickles_ends_the_link() -> None:
    quick = dataclasses.replace(FAST, admission_s=10.0, frame_first_s=0.5)
    async with hardened(tuning=quick) as victim, plain(gossip=False) as slow:
        await slow.connect(victim)
        stream = await slow.host.new_stream(victim.id, [SYNC_PROTOCOL])
        await stream.write(encode_frame(FrameKind.REQUEST, 1, bytes(1000))[:-1])
        await until(lambda: victim.counters["link_slow"] == 1)
        assert victim.handler.requests == []


@pytest.mark.slow
async def test_a_cancelled_exchange_leaves_the_link_usable() -> None:
    async with several(2) as (a, b):
        release = trio.Event()

        async def answer(request: bytes) -> bytes:
            if request == b"slow":
                await release.wait()
            return request

        b.handler.answer = answer
        link, _ = await linked(a, b)
        with trio.move_on_after(0.1) as scope:
            await link.exchange(b"slow")
        assert scope.cancelled_caught
        release.set()
        assert await link.exchange(b"next") == b"next"
        await until(lambda: a.counters["link_late_answer"] == 1)


@pytest.mark.slow
async def test_large_frames_pass_and_larger_ones_end_the_link() -> None:
    async with hardened(admit_all=True, payload_max=4 << 20) as a, hardened(admit_all=True) as b:
        link, _ = await linked(a, b)
        body = os.urandom((1 << 20) - 5)  # b takes 1 MiB, with the echo's prefix
        with trio.fail_after(5):
            assert await link.exchange(body) == b"echo:" + body
        with pytest.raises(TransportError) as caught:
            await link.exchange(b"x" * ((4 << 20) + 1))
        assert caught.value.reason == "too_large"  # refused here: the link lives
        assert not link.closed
        with pytest.raises(TransportError), trio.fail_after(5):
            await link.exchange(b"x" * ((1 << 20) + 1))
        await until(lambda: link.closed)
        assert b.counters["link_oversize"] == 1
        # The connection outlives the link, and a new one is opened on it.
        await until(lambda: bool(a.handler.open_links()) and bool(b.handler.open_links()))
        assert await a.handler.open_links()[0].exchange(b"again") == b"echo:again"


@pytest.mark.slow
async def test_an_answer_over_the_limit_closes_the_link() -> None:
    async with several(2) as (a, b):

        async def answer(_request: bytes) -> bytes:
            return b"x" * ((1 << 20) + 1)

        b.handler.answer = answer
        link, _ = await linked(a, b)
        with pytest.raises(TransportError), trio.fail_after(5):
            await link.exchange(b"more than you can take")
        assert b.counters["handler_raised"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("raises", [False, True])
async def test_no_answer_closes_the_link(raises: bool) -> None:
    async with several(2) as (a, b):

        async def answer(_request: bytes) -> None:
            if raises:
                raise RuntimeError("raised on purpose")

        b.handler.answer = answer
        link, other = await linked(a, b)
        with pytest.raises(TransportError) as caught, trio.fail_after(5):
            await link.exchange(b"x")
        assert caught.value.reason == "closed_by_peer"
        assert link.closed
        assert other.closed
        with pytest.raises(TransportError):
            await link.exchange(b"y")
        assert b.counters["handler_raised"] == raises


@pytest.mark.slow
async def test_on_link_ends_the_link_by_returning_or_raising() -> None:
    async with several(2) as (a, b):
        link, _ = await linked(a, b)
        first = len(a.handler.links)
        await link.aclose()
        assert link.closed
        with pytest.raises(TransportError) as caught:
            await link.exchange(b"x")
        assert caught.value.reason == "closed"
        await until(lambda: len(a.handler.links) > first and not a.handler.links[-1].closed)

        async def leave(_link: PeerLink) -> None:
            raise RuntimeError("raised on purpose")

        a.handler.on_new_link = leave
        await a.handler.links[-1].aclose()
        await until(lambda: a.counters["handler_raised"] >= 1)
        assert not a.life.host.pubsub.manager.is_cancelled


@pytest.mark.slow
async def test_on_link_is_cancelled_when_the_link_breaks() -> None:
    async with several(2) as (a, b):
        cancelled = trio.Event()

        async def own(_link: PeerLink) -> None:
            try:
                await trio.sleep_forever()
            finally:
                cancelled.set()

        a.handler.on_new_link = own
        await a.connect(b)
        await until(lambda: bool(b.handler.open_links()))
        pending: list[str] = []
        release = trio.Event()

        async def answer(_request: bytes) -> bytes:
            await release.wait()
            return b""

        b.handler.answer = answer
        link = a.handler.links[0]

        async def ask() -> None:
            try:
                await link.exchange(b"x")
            except TransportError as error:
                pending.append(error.reason)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await until(lambda: bool(b.handler.requests))
            await b.life.host.basic.disconnect(a.id)
            with trio.fail_after(8):
                await cancelled.wait()
        assert pending == ["reset"]


@pytest.mark.slow
async def test_the_smaller_id_opens_the_link() -> None:
    for dialled_by_smaller in (True, False):
        async with several(2) as nodes:
            smaller, larger = by_size(nodes)
            if dialled_by_smaller:
                await smaller.connect(larger)
            else:
                await larger.connect(smaller)
            await until(lambda: bool(smaller.handler.links) and bool(larger.handler.links))  # noqa: B023
            assert smaller.handler.links[0].opened_by_us
            assert not larger.handler.links[0].opened_by_us
            await trio.sleep(2 * FAST.link_grace_s)
            assert len(larger.handler.links) == 1  # the larger saw one and opened none


def smaller_outsider_seed(node: Node) -> bytes:
    """A seed whose peer id is smaller than the node's, which then waits for the outsider to open."""
    from lattice.transport.p2p.host import peer_id_of

    while True:
        seed = os.urandom(32)
        if peer_id_of(seed).to_bytes() < node.id.to_bytes():
            return seed


@pytest.mark.slow
async def test_the_larger_id_opens_after_a_while_without_a_link() -> None:
    async with hardened() as node, plain(gossip=False, seed=smaller_outsider_seed(node)) as silent:
        opened: list[float] = []

        async def accept(_stream: Any) -> None:
            opened.append(trio.current_time())
            await trio.sleep_forever()

        silent.host.set_stream_handler(SYNC_PROTOCOL, accept)
        began = trio.current_time()
        await silent.connect(node)
        await until(lambda: bool(opened))
        assert opened[0] - began > FAST.link_grace_s


@pytest.mark.slow
async def test_two_links_a_peer_are_kept_and_no_third() -> None:
    async with hardened() as node, plain(gossip=False, seed=smaller_outsider_seed(node)) as other:
        await other.connect(node)
        streams = []
        for count in (1, 2):
            stream = await other.host.new_stream(node.id, [SYNC_PROTOCOL])
            await stream.write(encode_frame(FrameKind.REQUEST, 0, b"%d" % count))
            streams.append(stream)
            await until(lambda: len(node.handler.open_links()) == count)  # noqa: B023
        with pytest.raises(BaseLibp2pError):
            third = await other.host.new_stream(node.id, [SYNC_PROTOCOL])
            await third.read(1)
        await until(lambda: node.counters["link_refused"] == 1)
        assert len(node.handler.open_links()) == 2
        for stream in streams:
            with trio.fail_after(5):
                assert b"echo:" in await stream.read(100)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bytes_sent", "counter"),
    [
        (struct.pack("!IBI", 4, 1, 0), "link_oversize"),
        (struct.pack("!IBI", 0xFFFFFFFF, 1, 0), "link_oversize"),
        (struct.pack("!IBI", 5, 9, 0), "link_malformed"),
    ],
    ids=["too short", "4 GiB", "unknown kind"],
)
async def test_a_malformed_frame_ends_the_link(bytes_sent: bytes, counter: str) -> None:
    async with hardened() as node, plain(gossip=False, seed=smaller_outsider_seed(node)) as other:
        await other.connect(node)
        stream = await other.host.new_stream(node.id, [SYNC_PROTOCOL])
        await stream.write(encode_frame(FrameKind.ANSWER, 77, b"nobody asked"))
        await until(lambda: node.counters["link_late_answer"] == 1)
        await stream.write(bytes_sent)
        await until(lambda: bool(node.handler.links) and not node.handler.open_links())
        assert node.counters[counter] == 1


@pytest.mark.slow
async def test_a_strangers_large_requests_are_taken_one_at_a_time() -> None:
    async with hardened() as node, plain(gossip=False, seed=smaller_outsider_seed(node)) as other:
        release = trio.Event()

        async def answer(_request: bytes) -> bytes:
            await release.wait()
            return b""

        node.handler.answer = answer
        await other.connect(node)
        stream = await other.host.new_stream(node.id, [SYNC_PROTOCOL])
        body = b"x" * (FAST.request_stranger_bytes_max // 2 + 1)
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                for number in range(2):
                    await stream.write(encode_frame(FrameKind.REQUEST, number, body))

            nursery.start_soon(send)
            await until(lambda: len(node.handler.requests) == 1)
            await trio.sleep(0.2)
            assert len(node.handler.requests) == 1
            release.set()
            await until(lambda: len(node.handler.requests) == 2)


@pytest.mark.slow
async def test_a_link_is_reopened_on_the_other_connection() -> None:
    async with several(2) as (a, b):
        async with trio.open_nursery() as nursery:  # both at once: libp2p keeps two connections
            nursery.start_soon(a.connect, b)
            nursery.start_soon(b.connect, a)
        await until(lambda: len(a.network.get_connections(b.id)) == 2)
        await until(lambda: bool(a.handler.open_links()) and bool(b.handler.open_links()))
        link = a.handler.open_links()[0]
        carrying = link._stream.swarm_conn  # type: ignore[attr-defined]
        assert carrying in a.network.get_connections(b.id)
        nodes = (a, b)
        counts = [len(node.handler.links) for node in nodes]
        await carrying.close()
        await until(
            lambda: all(
                len(node.handler.links) > count and node.handler.open_links()
                for node, count in zip(nodes, counts, strict=True)
            ),
            2,
        )
        assert a.network.get_connections(b.id)
        assert await a.handler.open_links()[0].exchange(b"on the other") == b"echo:on the other"


@pytest.mark.slow
async def test_a_link_that_keeps_breaking_is_reopened_ever_more_slowly() -> None:
    async with several(2) as nodes:
        smaller, larger = by_size(nodes)
        at: list[float] = []

        async def leave(link: PeerLink) -> None:
            if link.opened_by_us:
                at.append(trio.current_time())
            await link.aclose()

        smaller.handler.on_new_link = leave
        await smaller.connect(larger)
        smaller.life.admit(larger.id)
        await until(lambda: len(at) == 4, 8)
        gaps = [later - earlier for earlier, later in itertools.pairwise(at)]
        assert gaps[0] < 0.2  # at once
        assert gaps[1] > FAST.link_backoff_first_s
        assert gaps[2] > 2 * FAST.link_backoff_first_s
