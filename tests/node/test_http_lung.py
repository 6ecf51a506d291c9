"""Nodes that have HTTP alone, addresses that lead astray, and how quick HTTP is."""

from __future__ import annotations

import pytest
import trio

from lattice.core.draft import OpDraft
from lattice.core.engine import Gossiped
from lattice.core.entry import OpKind, encode_op, make_entry, make_seal
from lattice.core.identity import NodeKey
from lattice.core.messages import Entries
from lattice.testing import Block, Host, World, play
from tests.node.kit import HTTP, ISOLATED, get, mode, put, until_known

pytestmark = pytest.mark.slow


def test_http_alone_replicates_from_the_first_second() -> None:
    async def scenario(world: World) -> None:
        hosts = world.add_hosts(3, p2p=False)
        await world.start(*hosts)
        await put(hosts[0], "first")
        assert await world.wait_converged(2) <= 2
        assert get(hosts[2], "first") == b"1"
        assert [mode(host) for host in hosts] == [HTTP] * 3
        assert not any(host.running.heartbeat.alarms for host in hosts)

    play(scenario)


def test_a_node_that_starts_before_its_only_neighbour_waits_no_whole_interval() -> None:
    """The neighbour knows nobody, so all depends on the first one asking again."""

    async def scenario(world: World) -> None:
        early, late = world.add_hosts(2, p2p=False, acquainted=False)
        early.knows_urls, early.announces = [late.url], False
        await world.start(early)
        await trio.sleep(3)
        await world.start(late)
        await put(late, "first")
        assert await until_known(world, early, "first", 2) <= 2

    play(scenario)


def test_a_copied_directory_is_noticed_over_http_alone() -> None:
    """No beats, no streams, and nobody whom one could call: requests show the two boots, and answers
    tell them."""

    async def scenario(world: World) -> None:
        n1, n2 = world.add_hosts(2, p2p=False, acquainted=False)
        n1.knows_urls, n1.announces = [n2.url], False
        await world.start(n1, n2)
        await put(n1, "before the copy")
        assert await world.wait_converged(2) <= 2
        # A restart alone is no twin, however often.
        for _ in range(3):
            await world.crash(n1)
            await world.start(n1)
            await put(n1, "again")
            assert await world.wait_converged(20) <= 20
        assert not n2.running.alarms
        await world.crash(n1)
        twin = world.clone(n1)
        twin.knows_urls, twin.announces = [n2.url], False
        await world.start(n1, twin)
        for host in (n2, n1, twin):
            await world.wait_until(
                lambda host=host: f"twin {n1.key.peer_id}" in host.running.alarms, 30, "the alarm"
            )
        for host in (n1, n2, twin):
            await put(host, f"by {host.name}")
        assert await world.wait_converged(20) <= 20
        assert all(get(host, f"by {twin.name}") == b"1" for host in (n1, n2))

    play(scenario)


def test_http_is_a_second_behind() -> None:
    """The long-poll: a write is seen within about a second, whichever side polls."""

    async def scenario(world: World) -> None:
        n1, n2 = world.add_hosts(2, p2p=False, acquainted=False)
        n1.knows_urls = [n2.url]
        n1.announces = False  # n2 cannot poll n1: everything goes through n1's own polls
        await world.start(n1, n2)
        await trio.sleep(30)
        for number in range(12):
            writer, reader = ((n1, n2), (n2, n1))[number % 2]
            await put(writer, f"key/{number}")
            assert await until_known(world, reader, f"key/{number}", 2) <= 1.2
            await trio.sleep(0.9 * number)

    play(scenario)


@pytest.mark.parametrize("sees_it", [0, 1])
def test_a_fork_is_known_a_second_later_over_http_alone(sees_it: int) -> None:
    """It brings no entries, it only takes some out: that too ends the wait, whichever side polls."""

    async def scenario(world: World) -> None:
        n1, n2 = world.add_hosts(2, p2p=False, acquainted=False)
        n1.knows_urls, n1.announces = [n2.url], False
        await world.start(n1, n2)
        forger = NodeKey(b"\x07" * 32)

        async def give(host: Host, key: str) -> None:
            entry = make_entry(
                world.network_id, author=forger.public_key, epoch=1, seq=0, prev=bytes(32), clock=1,
                ops=[encode_op(OpKind.PUT, key.encode(), value=b"1")],
            )  # fmt: skip
            seal = make_seal(forger, world.network_id, entry.header, entry.id)
            message = Entries(((entry.header_bytes, entry.ops),), (seal,))
            await host.running.driver.ask(lambda token: Gossiped(token, b"q" * 32, "gossip", message))

        await give(n1, "one")
        assert await until_known(world, n2, "one", 20) <= 20
        await trio.sleep(33)  # in the middle of a wait
        sees, learns = (n1, n2) if sees_it == 0 else (n2, n1)
        await give(sees, "other")
        assert get(sees, "one") is None
        assert await world.wait_until(lambda: get(learns, "one") is None, 30, "the fork") <= 1.2

    play(scenario)


def test_a_url_that_leads_to_ourselves_is_no_peer() -> None:
    async def scenario(world: World) -> None:
        n1, n2 = world.add_hosts(2, acquainted=False)
        alias = "http://203.0.113.7:8100/behind/a/proxy"
        n1.urls = (alias,)
        n1.knows_urls = [alias, n1.url]
        await world.start(n1)
        await world.wait_until(lambda: len(n1.running.registry) == 0, 30, "no peer is left")
        await world.wait_until(lambda: mode(n1) == ISOLATED, 5, "alone")
        status = n1.running.status()
        assert (status.reason, status.peers, n1.running.node_urls()) == ("alone", [], [])
        assert not n1.running.alarms
        # Another node behind another URL is still found.
        n2.knows_urls = [n1.url]
        await world.start(n2)
        await put(n2, "hello")
        await until_known(world, n1, "hello", 15)

    play(scenario)


def test_a_url_becomes_its_peer() -> None:
    """A configured URL is one peer with the identity behind it, and P2P is found through it."""

    async def scenario(world: World) -> None:
        n1, n2 = world.add_hosts(2, acquainted=False)
        n1.knows_urls = [n2.url]
        await world.start(n1, n2)
        await world.wait_until(lambda: n1.running.status().peer_count == 1, 30, "n2 heard over P2P")
        assert [peer.id for peer in n1.running.status().peers] == [n2.key.peer_id]
        assert [peer.id for peer in n2.running.status().peers] == [n1.key.peer_id]

    play(scenario)


@pytest.mark.parametrize("p2p", [True, False], ids=["p2p", "http"])
def test_an_entry_that_changes_no_key_is_replicated_too(p2p: bool) -> None:
    """Equal state roots are not equal ledgers. Gossip, which would hide it, is lost."""

    async def scenario(world: World) -> None:
        n1, n2 = world.add_hosts(2, p2p=p2p)
        everybody = frozenset({n1.address, n2.address})
        world.weather.add(Block(frozenset({"gossip"}), everybody, everybody))
        await world.start(n1, n2)
        await put(n1, "key")
        await world.wait_converged(12)
        await n1.running.append([OpDraft(OpKind.DELETE, b"never was")])
        roots = [host.running.engine.roots for host in (n1, n2)]
        assert roots[0].state_root == roots[1].state_root
        assert roots[0].log_root != roots[1].log_root
        assert await world.wait_converged(12) <= 12
        assert n2.running.engine.roots == roots[0]

    play(scenario)
