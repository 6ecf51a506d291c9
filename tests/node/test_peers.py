"""Known peers at run time: added, forgotten, and remembered by the next process."""

from __future__ import annotations

import pytest
import trio

from lattice.core.errors import LatticeError
from lattice.core.identity import NodeKey
from lattice.core.limits import BOOTS_PER_PEER_MAX, HINTS_MAX, KNOWN_NODES_MAX
from lattice.core.messages import Addresses
from lattice.node.registry import Peer, Registry
from lattice.testing import Host, World, play
from tests.node.kit import put, settled, until_known

pytestmark = pytest.mark.slow


def multiaddr(host: Host) -> str:
    return f"{host.multiaddr}/p2p/{host.key.peer_id}"


def ids(host: Host) -> set[str]:
    return {peer.id for peer in host.running.known_peers()}


@pytest.mark.parametrize("by_url", [True, False])
def test_an_added_peer_is_dialled_and_survives_a_restart(by_url: bool) -> None:
    async def scenario(world: World) -> None:
        n1, n2 = world.add_hosts(2, acquainted=False)
        await world.start(n1, n2)
        shown = await n1.running.add_peer(n2.url if by_url else multiaddr(n2))
        assert (shown.sources, shown.addresses) == (["added"], [n2.url if by_url else multiaddr(n2)])
        await put(n2, "k")
        await until_known(world, n1, "k", 90)

        await world.crash(n1)
        await world.start(n1)  # neither settings nor ticket name n2
        assert ids(n1) == {n2.key.peer_id}
        (again,) = n1.running.known_peers()
        assert again.sources == ["added", "learned"]
        await put(n2, "later")
        await until_known(world, n1, "later", 90)

    play(scenario)


def test_a_url_that_was_never_reached_is_remembered_too() -> None:
    async def scenario(world: World) -> None:
        (n1,) = world.add_hosts(1)
        await world.start(n1)
        await n1.running.add_peer("http://10.0.0.99:8100")
        await world.crash(n1)
        await world.start(n1)
        assert ids(n1) == {"url:http://10.0.0.99:8100"}

    play(scenario)


def test_a_learned_peer_is_found_again_without_ticket_or_settings() -> None:
    async def scenario(world: World) -> None:
        n1, n2 = world.add_hosts(2)
        n2.knows_peers = []
        await world.start(n1, n2)
        await settled(world, [n1, n2])
        await world.crash(n1)
        await world.crash(n2)
        n1.knows_peers = []
        await world.start(n1, n2)
        await settled(world, [n1, n2])

    play(scenario)


@pytest.mark.parametrize("by_address", [True, False])
def test_a_forgotten_peer_is_left_alone_until_it_announces_itself(by_address: bool) -> None:
    async def scenario(world: World) -> None:
        n1, n2 = world.add_hosts(2)
        n2.knows_peers = []
        await world.start(n1, n2)
        await settled(world, [n1, n2])
        await world.crash(n2)
        gone = await n1.running.forget_peer(n2.url if by_address else n2.key.peer_id)
        assert gone.id == n2.key.peer_id
        assert ids(n1) == set()
        assert n1.running.status().peers == []
        await trio.sleep(120)
        assert ids(n1) == set()
        n1.knows_peers = []
        await world.crash(n1)
        await world.start(n1)
        assert ids(n1) == set()
        await world.start(n2)  # it remembers n1 and says so
        await settled(world, [n1, n2])

    play(scenario)


def test_a_forgotten_url_is_polled_no_more() -> None:
    async def scenario(world: World) -> None:
        n1, n2 = world.add_hosts(2, acquainted=False)
        n1.knows_urls = [n2.url]
        await world.start(n1)
        await trio.sleep(30)
        await n1.running.forget_peer(n2.url)
        await world.start(n2)
        await trio.sleep(120)
        assert ids(n1) == ids(n2) == set()

    play(scenario)


def test_a_peer_may_be_gone_again_before_it_was_remembered() -> None:
    async def scenario(world: World) -> None:
        (n1,) = world.add_hosts(1)
        await world.start(n1)
        added = []

        async def add() -> None:
            added.append(await n1.running.add_peer("http://10.0.0.99:8100"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(add)
            while not ids(n1):
                await trio.lowlevel.checkpoint()
            assert added == []  # the store has not answered yet
            await n1.running.forget_peer("http://10.0.0.99:8100")
        assert [shown.addresses for shown in added] == [["http://10.0.0.99:8100"]]
        assert ids(n1) == set()

    play(scenario)


def test_what_cannot_be_added_or_forgotten() -> None:
    async def scenario(world: World) -> None:
        n1, n2 = world.add_hosts(2, acquainted=False)
        await world.start(n1)
        for text in ("", "n2", "ftp://10.0.0.2", n2.multiaddr, "/ip4/0.0.0.0/tcp/1/p2p/" + n2.key.peer_id):
            with pytest.raises(LatticeError, match="no address of a node"):
                await n1.running.add_peer(text)
        for text in (multiaddr(n1), n1.url, n1.url + "/"):
            with pytest.raises(LatticeError, match="own address"):
                await n1.running.add_peer(text)
        for text in (n2.key.peer_id, n2.url, "nonsense"):
            with pytest.raises(LatticeError) as caught:
                await n1.running.forget_peer(text)
            assert caught.value.code == "not_found"
        assert ids(n1) == set()

    play(scenario)


def test_the_cap_on_known_peers() -> None:
    async def scenario(world: World) -> None:
        (n1,) = world.add_hosts(1)
        await world.start(n1)
        for number in range(KNOWN_NODES_MAX):
            n1.running.registry.add_url(f"http://10.1.{number >> 8}.{number & 255}:8100")
        with pytest.raises(LatticeError, match="forget one first"):
            await n1.running.add_peer("http://10.2.0.1:8100")

    play(scenario)


def test_a_full_list_makes_room_for_a_true_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names that somebody made up, and that nobody hears of, keep nobody out."""
    monkeypatch.setattr("lattice.node.registry.KNOWN_NODES_MAX", 4)

    async def scenario(world: World) -> None:
        n1, n2 = world.add_hosts(2, acquainted=False)
        await world.start(n1, n2)
        made_up = [NodeKey(bytes([number]) * 32).peer_id for number in range(1, 4)]
        await n1.running.add_peer("http://10.0.0.99:8100")  # the operator's own word stays
        for peer_id in made_up:
            n1.running._learn(peer_id, "", Addresses())
        await n2.running.add_peer(n1.url)
        await put(n2, "k")
        await until_known(world, n1, "k", 200)
        with trio.fail_after(300):
            while n2.key.peer_id not in ids(n1):
                await trio.sleep(1)
        assert ids(n1) == {"url:http://10.0.0.99:8100", n2.key.peer_id, *made_up[1:]}
        assert n1.running.counters["peers_replaced"] == 1
        # A node that is in sync does not make room for a name.
        for number in range(10, 20):
            n1.running._learn(NodeKey(bytes([number]) * 32).peer_id, "", Addresses())
            await trio.sleep(80)
        assert n2.key.peer_id in ids(n1)

    play(scenario)


def test_presence_of_ever_new_boots_is_bounded_and_shows_none_again() -> None:
    peer = Peer("someone")
    taken = [boot for boot in range(1, 1000) if peer.take_presence(boot, 1)]
    assert taken == list(range(1, BOOTS_PER_PEER_MAX + 2))
    assert len(peer.past_boots) == BOOTS_PER_PEER_MAX
    assert not any(peer.take_presence(boot, 2) for boot in taken[:-1])
    assert peer.take_presence(taken[-1], 2)


def test_what_an_earlier_version_remembered_is_read() -> None:
    other = "12D3KooWSCufgHzV4fCwRijfH2k3abrpAJxTKxEvN1FDuRXA2U9x"
    registry = Registry("someone else")
    registry.restore(b'[{"id":"%s","name":"n","p2p":[],"http":["http://192.0.2.7:8100"]}]' % other.encode())
    registry.add(Addresses(http=("http://192.0.2.8:8100",)), None)
    copy = Registry("someone else")
    copy.restore(registry.dump())
    assert [(p.key, p.urls) for p in copy.all()] == [(p.key, p.urls) for p in registry.all()]
    assert len(copy) == 2


def places(host: Host) -> Addresses:
    return Addresses((multiaddr(host),), (host.url,))


@pytest.mark.parametrize("lungs", [{}, {"p2p": False}, {"http": False}])
def test_a_hint_leads_to_a_peer(lungs: dict[str, bool]) -> None:
    async def scenario(world: World) -> None:
        n1, n2 = world.add_hosts(2, acquainted=False, **lungs)
        await world.start(n1, n2)
        n1.running.hint_peer(n2.key.peer_id, places(n2))
        await put(n2, "k")
        await until_known(world, n1, "k", 30)
        (found,) = n1.running.known_peers()
        assert found.sources == ["learned", "mdns"]

    play(scenario)


def test_a_hint_alone_makes_no_peer() -> None:
    async def scenario(world: World) -> None:
        n1, n2, n3 = world.add_hosts(3, acquainted=False)
        await world.start(n1, n3)
        n1.running.hint_peer(n2.key.peer_id, places(n2))  # nobody there
        n1.running.hint_peer(n2.key.peer_id, Addresses(http=(n3.url,)))  # somebody else there
        n1.running.hint_peer(n1.key.peer_id, places(n1))
        await trio.sleep(120)
        assert n2.key.peer_id not in ids(n1)
        assert n1.key.peer_id not in ids(n1)
        assert n2.key.peer_id.encode() not in n1.running.registry.dump()

    play(scenario)


def test_hints_are_bounded_and_withdrawn() -> None:
    registry = Registry("someone else")
    keys = [NodeKey(number.to_bytes(32, "big")).peer_id for number in range(HINTS_MAX + 5)]
    for key in keys:
        assert registry.hint(key, Addresses((f"/ip4/192.0.2.7/tcp/9000/p2p/{key}",)))
    assert set(registry.dial_targets()) == set(keys[5:])
    assert not registry.hint(keys[9], Addresses())
    assert set(registry.dial_targets()) == set(keys[5:]) - {keys[9]}
    assert registry.all() == []


@pytest.mark.parametrize("on_loopback", [False, True])
def test_what_others_announce_leads_to_no_service_of_this_machine(on_loopback: bool) -> None:
    refused: list[str] = []
    registry = Registry("us", takes_loopback=lambda: on_loopback, refused=refused.append)
    peer_id = NodeKey(bytes(32)).peer_id
    good = Addresses(("/ip4/192.0.2.7/tcp/9000", "/dns/n.example/tcp/1"), ("http://192.0.2.7:8100",))
    local = Addresses(("/ip4/127.0.0.1/tcp/22", "/dns/localhost/tcp/1"), ("http://[::1]:80/admin",))
    nowhere = Addresses(("/ip4/169.254.169.254/tcp/80", "/ip6/ff02::1/tcp/1"), ("http://169.254.169.254",))
    broken = Addresses(("nonsense",), ("http://u:p@192.0.2.7", "ftp://192.0.2.7"))
    every = zip(good, local, nowhere, broken, strict=True)
    registry.learn(
        peer_id, "n", Addresses(*(tuple(text for part in parts for text in part) for parts in every))
    )
    peer = registry.get(peer_id)
    assert peer is not None
    assert set(peer.multiaddrs) == {*good.p2p, *(local.p2p if on_loopback else ())}
    assert set(peer.urls) == {*good.http, *(local.http if on_loopback else ())}
    counts = {reason: refused.count(reason) for reason in refused}
    assert counts == {"unroutable": 3, "malformed": 3, **({} if on_loopback else {"loopback": 3})}
    # What an operator says is taken as it is: it is this machine's own business.
    assert registry.add(Addresses(http=("http://127.0.0.1:8101",)), None) is not None
