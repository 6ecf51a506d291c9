"""One suite over both P2P lungs: the one in memory, and py-libp2p on loopback."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

import pytest
import trio

from lattice.core.identity import NodeKey
from lattice.core.limits import ENVELOPE_BYTES_MAX, GOSSIP_BYTES_MAX
from lattice.transport.memory import MemoryP2PLung
from lattice.transport.memory_network import MemoryNetwork
from lattice.transport.p2p.lung import Libp2pLung
from lattice.transport.p2p.tuning import Tuning
from lattice.transport.port import GossipKind, P2PLung, PeerLink, TransportError

WAIT_S = 20.0
LOG = logging.getLogger("lattice.test.contract")
FAST = Tuning(
    link_grace_s=0.3,
    link_backoff_first_s=0.1,
    dial_grace_s=0.5,
    dial_backoff_first_s=0.1,
    dial_backoff_max_s=0.5,
)

pytestmark = pytest.mark.slow


@dataclass
class Recorder:
    """A handler that admits whoever links, answers `echo:` + request, and keeps what it saw."""

    lung: P2PLung
    admits: bool = True
    relay: bool = True
    links: list[PeerLink] = field(default_factory=list)
    ended: list[PeerLink] = field(default_factory=list)
    gossip: list[tuple[str, GossipKind, bytes]] = field(default_factory=list)
    answer: Callable[[bytes], Awaitable[bytes | None]] | None = None
    live: Callable[[PeerLink], Awaitable[None]] | None = None

    async def on_link(self, link: PeerLink) -> None:
        self.links.append(link)
        try:
            if self.admits:
                self.lung.admit(link.peer_id)
            if self.live is not None:
                await self.live(link)
            else:
                await trio.sleep_forever()
        finally:
            self.ended.append(link)

    async def on_request(self, link: PeerLink, request: bytes) -> bytes | None:
        if self.answer is not None:
            return await self.answer(request)
        return b"echo:" + request

    async def on_gossip(self, forwarder: str, kind: GossipKind, data: bytes) -> bool:
        self.gossip.append((forwarder, kind, data))
        return self.relay

    def open_links(self) -> list[PeerLink]:
        return [link for link in self.links if not link.closed]


@dataclass
class Member:
    """A lung with its handler, and how to stop it."""

    lung: P2PLung
    handler: Recorder
    scope: trio.CancelScope
    stopped: trio.Event

    @property
    def peer_id(self) -> str:
        return self.lung.report().peer_id

    @property
    def addresses(self) -> dict[str, tuple[str, ...]]:
        return {self.peer_id: self.lung.report().announced_multiaddrs}

    @property
    def link(self) -> PeerLink:
        (link,) = self.handler.open_links()
        return link

    async def stop(self) -> None:
        self.scope.cancel()
        await self.stopped.wait()


@dataclass
class World:
    """Makes lungs of one kind."""

    make: Callable[[], P2PLung]
    nursery: trio.Nursery

    async def start(self, *, admits: bool = True, lung: P2PLung | None = None) -> Member:
        lung = lung if lung is not None else self.make()
        member = Member(lung, Recorder(lung, admits=admits), trio.CancelScope(), trio.Event())
        await self.nursery.start(self._run, member)
        return member

    async def _run(self, member: Member, *, task_status: trio.TaskStatus[None]) -> None:
        with member.scope:
            await member.lung.run(member.handler, task_status=task_status)
        member.stopped.set()

    async def pair(self, *, admits: bool = True) -> tuple[Member, Member]:
        """Two linked members; only the first knew the other's address."""
        one, other = await self.start(admits=admits), await self.start(admits=admits)
        one.lung.set_known(other.addresses)
        await until(lambda: bool(one.handler.open_links() and other.handler.open_links()))
        return one, other


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(WAIT_S):
        while not condition():
            await trio.sleep(0.01)


@asynccontextmanager
async def memory_world(nursery: trio.Nursery) -> AsyncIterator[World]:
    network = MemoryNetwork()
    await nursery.start(network.run)
    count = 0

    def make() -> P2PLung:
        nonlocal count
        count += 1
        peer_id = NodeKey(os.urandom(32)).peer_id
        return MemoryP2PLung(network, peer_id, f"/ip4/192.0.2.{count}/tcp/9000", dial_grace_s=0.5)

    yield World(make, nursery)


@asynccontextmanager
async def libp2p_world(nursery: trio.Nursery) -> AsyncIterator[World]:
    def make() -> P2PLung:
        listen = ["/ip4/127.0.0.1/tcp/0"]
        return Libp2pLung(
            os.urandom(32), listen, [], "contract-entries", "contract-presence", LOG, tuning=FAST
        )

    yield World(make, nursery)


@pytest.fixture(params=[memory_world, libp2p_world], ids=["memory", "libp2p"])
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        nursery = await stack.enter_async_context(trio.open_nursery())
        yield await stack.enter_async_context(request.param(nursery))
        nursery.cancel_scope.cancel()


async def test_a_lung_reports_whether_it_runs(world: World) -> None:
    lung = world.make()
    before = lung.report()
    assert (before.enabled, before.started) == (True, False)
    assert before.error is not None
    assert before.peer_id.startswith("12D3Koo")
    assert not lung.publish_nowait("entries", b"x")
    lung.admit(before.peer_id)  # nothing runs: nothing happens
    lung.expel(before.peer_id)
    await world.start(lung=lung)
    after = lung.report()
    assert (after.started, after.error, after.peer_id) == (True, None, before.peer_id)
    assert after.listen_multiaddrs
    assert all(address.endswith(f"/p2p/{after.peer_id}") for address in after.announced_multiaddrs)


async def test_one_that_knows_the_other_is_enough(world: World) -> None:
    one, other = await world.pair()
    assert (one.link.peer_id, other.link.peer_id) == (other.peer_id, one.peer_id)
    assert one.link.opened_by_us is not other.link.opened_by_us
    assert one.link.remote_address
    await until(lambda: one.lung.report().connected == (other.peer_id,))
    await until(lambda: other.lung.report().connected == (one.peer_id,))
    await trio.sleep(0.5)  # long enough for a second link to be opened, if one side wanted it
    assert (len(one.handler.links), len(other.handler.links)) == (1, 1)


async def test_a_wrong_identity_is_not_linked(world: World) -> None:
    one, other, stranger = await world.start(), await world.start(), world.make()
    one.lung.set_known({stranger.report().peer_id: other.addresses[other.peer_id]})
    await trio.sleep(0.7)
    assert (one.handler.links, other.handler.links) == ([], [])
    one.lung.set_known(other.addresses)
    await until(lambda: bool(one.handler.open_links()))


async def test_both_sides_may_ask(world: World) -> None:
    one, other = await world.pair()
    with trio.fail_after(WAIT_S):
        assert await one.link.exchange(b"") == b"echo:"
        assert await other.link.exchange(b"b") == b"echo:b"


async def test_exchanges_overlap_and_answers_find_their_questions(world: World) -> None:
    one, other = await world.pair()
    arrived, everybody = 0, trio.Event()

    async def meet(request: bytes) -> bytes:
        nonlocal arrived
        arrived += 1
        if arrived == 4:
            everybody.set()
        await everybody.wait()
        return b"to " + request

    one.handler.answer = other.handler.answer = meet
    answers: dict[bytes, bytes] = {}

    async def ask(link: PeerLink, request: bytes) -> None:
        answers[request] = await link.exchange(request)

    with trio.fail_after(WAIT_S):
        async with trio.open_nursery() as nursery:
            for number in range(2):
                nursery.start_soon(ask, one.link, b"a%d" % number)
                nursery.start_soon(ask, other.link, b"b%d" % number)
    assert answers == {request: b"to " + request for request in answers}
    assert len(answers) == 4


async def test_a_whole_page_passes(world: World) -> None:
    one, other = await world.pair()
    page = os.urandom(1 << 20)
    with trio.fail_after(WAIT_S):
        assert await one.link.exchange(page) == b"echo:" + page
        assert await other.link.exchange(page) == b"echo:" + page


async def test_a_request_over_the_cap_is_refused_at_home(world: World) -> None:
    one, _ = await world.pair()
    with pytest.raises(TransportError) as caught:
        await one.link.exchange(bytes(ENVELOPE_BYTES_MAX + 1))
    assert caught.value.reason == "too_large"
    with trio.fail_after(WAIT_S):
        assert await one.link.exchange(b"a") == b"echo:a"


async def test_a_cancelled_exchange_leaves_the_link_whole(world: World) -> None:
    one, other = await world.pair()
    release = trio.Event()

    async def slowly(request: bytes) -> bytes:
        if request == b"slow":
            await release.wait()
        return b"done " + request

    other.handler.answer = slowly
    with trio.move_on_after(0.1) as scope:
        await one.link.exchange(b"slow")
    assert scope.cancelled_caught
    with trio.fail_after(WAIT_S):
        assert await one.link.exchange(b"a") == b"done a"
        release.set()
        assert await one.link.exchange(b"b") == b"done b"


async def refuse(request: bytes) -> bytes | None:
    return None


async def fail(request: bytes) -> bytes | None:
    raise ValueError("a defect of the handler")


@pytest.mark.parametrize("answer", [refuse, fail])
async def test_who_has_no_answer_closes_the_link(
    world: World, answer: Callable[[bytes], Awaitable[bytes | None]]
) -> None:
    one, other = await world.pair()
    ours, theirs = one.link, other.link
    other.handler.answer = answer
    with pytest.raises(TransportError), trio.fail_after(WAIT_S):
        await ours.exchange(b"a")
    await until(lambda: ours.closed and theirs.closed)
    await until(lambda: one.handler.ended == [ours] and other.handler.ended == [theirs])
    other.handler.answer = None
    await until(lambda: bool(one.handler.open_links() and other.handler.open_links()))
    with trio.fail_after(WAIT_S):
        assert await one.link.exchange(b"again") == b"echo:again"


async def test_a_link_ends_with_its_owner(world: World) -> None:
    """When on_link returns the link is closed, and the other side's call is cancelled."""
    one, other = await world.start(), await world.start()
    leave = trio.Event()

    async def for_a_while(link: PeerLink) -> None:
        await leave.wait()

    one.handler.live = for_a_while
    one.lung.set_known(other.addresses)
    await until(lambda: bool(one.handler.open_links() and other.handler.open_links()))
    ours, theirs = one.link, other.link
    leave.set()
    await until(lambda: ours.closed and theirs.closed and theirs in other.handler.ended)


async def test_closing_fails_what_waits(world: World) -> None:
    one, other = await world.pair()

    async def never(request: bytes) -> bytes:
        await trio.sleep_forever()
        raise AssertionError("unreachable")

    other.handler.answer = never
    link = one.link
    failed = trio.Event()

    async def ask() -> None:
        with pytest.raises(TransportError):
            await link.exchange(b"a")
        failed.set()

    with trio.fail_after(WAIT_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await trio.sleep(0.1)
            await link.aclose()
            await failed.wait()
    assert link.closed
    await link.aclose()
    with pytest.raises(TransportError):
        await link.exchange(b"b")


async def test_gossip_reaches_the_admitted_once(world: World) -> None:
    one, other = await world.pair()
    await until(lambda: one.lung.report().gossip_ready == (other.peer_id,))
    await until(lambda: other.lung.report().gossip_ready == (one.peer_id,))
    assert one.lung.publish_nowait("entries", b"fresh")
    assert one.lung.publish_nowait("presence", b"here")
    await until(lambda: len(other.handler.gossip) == 2)
    await trio.sleep(0.2)
    assert sorted(other.handler.gossip) == [
        (one.peer_id, "entries", b"fresh"),
        (one.peer_id, "presence", b"here"),
    ]
    assert one.handler.gossip == []


async def test_no_gossip_with_strangers(world: World) -> None:
    """Linked is not admitted: without it nothing is sent and nothing is taken."""
    one, other = await world.pair(admits=False)
    one.lung.publish_nowait("entries", b"secret")
    await trio.sleep(0.5)
    assert other.handler.gossip == []
    one.lung.admit(other.peer_id)
    other.lung.admit(one.peer_id)
    await until(lambda: one.lung.report().gossip_ready == (other.peer_id,))
    await until(lambda: other.lung.report().gossip_ready == (one.peer_id,))
    assert one.lung.publish_nowait("entries", b"open")
    await until(lambda: (one.peer_id, "entries", b"open") in other.handler.gossip)


@pytest.mark.parametrize("relay", [True, False])
async def test_gossip_goes_on_only_where_the_handler_says_so(world: World, relay: bool) -> None:
    left, middle, right = [await world.start() for _ in range(3)]
    middle.handler.relay = relay
    middle.lung.set_known({**left.addresses, **right.addresses})
    await until(lambda: len(middle.lung.report().gossip_ready) == 2)
    for outer in (left, right):
        await until(partial(_is_ready, outer, middle))
    assert left.lung.publish_nowait("entries", b"far")
    await until(lambda: (left.peer_id, "entries", b"far") in middle.handler.gossip)
    if relay:
        await until(lambda: right.handler.gossip == [(middle.peer_id, "entries", b"far")])
    else:
        await trio.sleep(0.3)
        assert right.handler.gossip == []


def _is_ready(member: Member, peer: Member) -> bool:
    return member.lung.report().gossip_ready == (peer.peer_id,)


async def test_too_large_a_payload_is_not_published(world: World) -> None:
    one, _ = await world.pair()
    assert not one.lung.publish_nowait("entries", bytes(GOSSIP_BYTES_MAX + 1))
    assert one.lung.report().counters["gossip_oversize"] == 1


async def test_an_expelled_peer_loses_its_link(world: World) -> None:
    one, other = await world.pair()
    ours, theirs = one.link, other.link
    one.lung.set_known({})
    one.lung.expel(other.peer_id)
    await until(lambda: ours.closed and theirs.closed)


async def test_who_stops_is_missed_and_found_again(world: World) -> None:
    one, other = await world.pair()
    ours = one.link
    await other.stop()
    await until(lambda: ours.closed)
    await until(lambda: one.lung.report().connected == ())
    back = await world.start(lung=other.lung)
    one.lung.set_known(back.addresses)
    await until(lambda: bool(one.handler.open_links() and back.handler.open_links()))
    with trio.fail_after(WAIT_S):
        assert await back.link.exchange(b"back") == b"echo:back"
