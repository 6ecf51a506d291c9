"""Members who misuse their connection: a thousand streams, answers that are never taken, bytes that trickle;
what waits for them stays small, they are cut, and an honest pair goes on syncing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress

import pytest
import trio

from lattice.core.identity import NodeKey, public_key_of
from lattice.core.messages import Want, WantEntries
from lattice.transport.p2p.streams import encode_frame

from .http_kit import Rise, Scene, memory_kib, peak_memory_kib
from .p2p_kit import (
    CUT,
    EVENTS,
    MESHSUB,
    REQUEST,
    Closed,
    gossiper,
    off,
    p2p_scene,
    raw_peer,
    rises,
    syncing,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(150)]

MIB_IN_KIB = 1024


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with p2p_scene(tmp_path_factory.mktemp("streams")) as found:
        yield found


async def victim_of(made: Scene) -> bytes:
    return public_key_of((await off(made.victim.status)).peer_id)


async def takes_no_answer(made: Scene, rise: Rise) -> None:
    """Pongs and reads, and gives its link no window: asked and answered, nothing of it is taken."""
    seed, victim = os.urandom(32), await victim_of(made)
    async with raw_peer(made.victim, seed=seed) as peer:
        member = made.member.another(key=NodeKey(seed))
        link = await peer.link(member)
        link.stream.gives_credit = False
        with suppress(Closed, *CUT), trio.move_on_after(40):
            for number in range(20_000):
                await link.send(REQUEST, number, member.request([member.hello()], victim))
        await rises(rise, EVENTS, "link_stalled", within_s=40)
        with trio.fail_after(10):
            await link.ended.wait()


async def trickles(made: Scene, rise: Rise) -> None:
    """Announces a request of a thousand bytes, and sends one a second."""
    async with gossiper(made.victim, made) as liar:
        link = liar.link
        frame = encode_frame(REQUEST, 1, bytes(1000))  # type: ignore[arg-type]
        with suppress(Closed, *CUT), trio.fail_after(35):
            async with link._lock:  # nothing of what it answers comes in between
                await link.stream.write(frame[:9])
                for byte in frame[9:]:
                    await link.stream.write(bytes([byte]))
                    if link.stream.ended:
                        break
                    await trio.sleep(1)
        await rises(rise, EVENTS, "link_slow")


async def test_answers_that_are_not_taken_and_bytes_that_trickle(made: Scene) -> None:
    async with syncing(made, lap_s_max=12) as rise:
        before = await off(memory_kib, made.victim)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(takes_no_answer, made, rise)
            nursery.start_soon(trickles, made, rise)
        grown = await off(peak_memory_kib, made.victim) - before
        assert grown < 64 * MIB_IN_KIB, f"{grown} KiB"


async def test_pages_that_are_asked_for_and_never_read(made: Scene) -> None:
    """Ten members ask for megabytes, again and again, and read nothing, not even pings: they are cut."""
    written = [await off(made.journal.put, made.victim, f"big/{n}", "x" * 100_000) for n in range(30)]
    victim = await victim_of(made)
    first = written[0]
    want = WantEntries((Want(victim, int(first.epoch, 16), first.seq, written[-1].seq),))
    async with syncing(made, lap_s_max=15):
        before = await off(memory_kib, made.victim)

        async def member() -> None:
            seed = os.urandom(32)
            async with raw_peer(made.victim, seed=seed) as peer:
                who = made.member.another(key=NodeKey(seed))
                link = await peer.link(who)
                peer.reads = False
                with suppress(Closed, *CUT), trio.move_on_after(10):
                    link.stream.heeds = False
                    for number in range(300):
                        await link.send(REQUEST, number, who.request([want], victim))
                with trio.fail_after(40):
                    while not await cut(peer.secured):
                        await trio.sleep(0.5)

        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(member)
        grown = await off(peak_memory_kib, made.victim) - before
        print(f"ten members that never read: {grown} KiB more at most")
        assert grown < 64 * MIB_IN_KIB, f"{grown} KiB"


async def cut(secured: object) -> bool:
    """Whether the node has closed the connection, found out by writing a ping."""
    try:
        await secured.write(b"\0\2\0\1" + bytes(8))  # type: ignore[attr-defined]
    except CUT:
        return True
    return False


async def test_a_thousand_streams_on_one_connection(made: Scene) -> None:
    seed, victim = os.urandom(32), await victim_of(made)
    async with syncing(made) as rise, raw_peer(made.victim, seed=seed) as peer:
        link = await peer.link(made.member.another(key=NodeKey(seed)))
        for number in range(1000):
            stream = await peer.open()
            if number % 2:
                with suppress(Closed):
                    await stream.write_delimited(b"/multistream/1.0.0\n")
                    await stream.write_delimited(MESHSUB.encode() + b"\n")
        await rises(rise, EVENTS, "streams_refused", by=900)
        # The control: the same connection is still served.
        assert await link.ask([link.member.hello()], victim)


async def test_a_third_link_of_one_peer_is_refused(made: Scene) -> None:
    seed = os.urandom(32)
    async with syncing(made) as rise, raw_peer(made.victim, seed=seed) as peer:
        member = made.member.another(key=NodeKey(seed))
        await peer.link(member)
        await peer.opened("/lattice/sync/1")
        third = await peer.opened("/lattice/sync/1")
        with trio.fail_after(10):
            await third.wait_ended()
        await rises(rise, EVENTS, "link_refused")


async def test_links_that_are_opened_and_closed_without_end(made: Scene) -> None:
    seed = os.urandom(32)
    async with syncing(made, lap_s_max=15), raw_peer(made.victim, seed=seed) as peer:
        await peer.link(made.member.another(key=NodeKey(seed)))
        with suppress(Closed, *CUT), trio.move_on_after(10):
            for _ in range(500):
                stream = await peer.opened("/lattice/sync/1")
                await stream.reset()
