"""Lungs that fail and heal, on whole nodes, with the times that are promised."""

from __future__ import annotations

import itertools

import pytest
import trio

from lattice.testing import (
    P2P_KINDS,
    Climate,
    Host,
    LargeDropped,
    World,
    play,
)
from tests.node.kit import (
    HTTP,
    ISOLATED,
    P2P,
    cut,
    get,
    last_beat,
    mode,
    modes,
    polled,
    put,
    settled,
    truthful,
    until_known,
)

pytestmark = pytest.mark.slow


def test_a_silent_block_at_one_node() -> None:
    """P2P is dropped at n1: HTTP 60 to 65 s after the last beat, and back by itself, nothing lost."""

    async def scenario(world: World) -> None:
        n1, n2, n3 = world.add_hosts(3)
        await world.start(n1, n2, n3)
        await settled(world, [n1, n2, n3])
        await put(n1, "before")
        await world.wait_converged(2)
        await trio.sleep(30)

        rules = cut(world, [n1], [n2, n3], P2P_KINDS)
        blocked_at = trio.current_time()
        await put(n1, "from the blocked")
        await put(n2, "to the blocked")
        assert await until_known(world, n3, "to the blocked", 2) < 2
        await world.wait_until(lambda: mode(n1) == HTTP, 70, "HTTP at n1")
        heard_at, fell_at = last_beat(n1), trio.current_time()
        assert blocked_at - 5 <= heard_at <= blocked_at + 1
        assert 60 <= fell_at - heard_at <= 65
        # The first HTTP sync follows within a poll interval, from whichever side is first.
        assert await until_known(world, n1, "to the blocked", 10) <= 10
        assert await until_known(world, n2, "from the blocked", 10) <= 10
        # The others hear each other: their headline stays, and n1 is bridged over HTTP.
        await world.wait_until(lambda: polled(n2) == {"n1"} == polled(n3), 15, "n1 polled by all")
        assert [mode(n2), mode(n3)] == [P2P, P2P]
        assert n2.running.status().bridged_over_http == [n1.key.peer_id]
        for number in range(5):
            await put(n1, f"blocked/{number}")
            assert await until_known(world, n3, f"blocked/{number}", 15) <= 15
            await trio.sleep(7)

        world.weather.remove(rules)
        healed_at = trio.current_time()
        await world.wait_until(lambda: mode(n1) == P2P, 80, "P2P at n1")
        assert trio.current_time() - healed_at >= 15
        await world.wait_until(lambda: not any(polled(n) for n in world.up), 30, "the end of all polls")
        await put(n1, "after")
        await world.wait_converged(2)
        assert [m for _, m in modes(n1)] == [P2P, HTTP, P2P]
        assert [m for _, m in modes(n2)] == [P2P]
        assert truthful(world)

    play(scenario)


def test_a_steady_writer_keeps_nobody_from_returning() -> None:
    """Every beat finds other heads, so that no plain round falls due: the padded one comes all the same."""

    async def scenario(world: World) -> None:
        n1, n2 = world.add_hosts(2)
        await world.start(n1, n2)
        await settled(world, [n1, n2])

        async def write(host: Host) -> None:
            for number in itertools.count():
                await put(host, f"{host.name}/{number}")
                await trio.sleep(0.03)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write, n1)
            nursery.start_soon(write, n2)
            for streak_s in (15, 30):
                rules = cut(world, [n1], [n2], P2P_KINDS)
                await world.wait_until(lambda: mode(n1) == HTTP == mode(n2), 75, "HTTP")
                world.weather.remove(rules)
                back_s = await world.wait_until(
                    lambda: mode(n1) == P2P == mode(n2), streak_s + 20, "P2P beside the writers"
                )
                assert back_s >= streak_s
            nursery.cancel_scope.cancel()
        await world.wait_converged(2)
        assert truthful(world)

    play(scenario, climate=Climate(delay_s=0.04))


def test_two_islands_stay_one_ledger() -> None:
    """P2P is dropped between two pairs, HTTP is open: everybody hears someone, nobody changes its
    headline, and the roots are equal within 75 s."""

    async def scenario(world: World) -> None:
        hosts = world.add_hosts(4)
        await world.start(*hosts)
        await settled(world, hosts)
        await trio.sleep(10)
        cut(world, hosts[:2], hosts[2:], P2P_KINDS)
        await put(hosts[0], "west")
        await put(hosts[2], "east")
        assert await world.wait_converged(75) <= 75
        assert get(hosts[3], "west") == get(hosts[1], "east") == b"1"
        await trio.sleep(60)
        for number, host in enumerate(hosts):
            await put(host, f"later/{number}")
            assert await world.wait_converged(15) <= 15
        assert [[m for _, m in modes(host)] for host in hosts] == [[P2P]] * 4
        assert truthful(world)

    play(scenario)


@pytest.mark.parametrize("stalls", [False, True], ids=["vanish", "stall"])
def test_large_frames_are_dropped(stalls: bool) -> None:
    """Small packets pass and large ones do not: HTTP takes over once, without flapping."""

    async def scenario(world: World) -> None:
        hosts = world.add_hosts(2)
        await world.start(*hosts)
        await settled(world, hosts)
        await trio.sleep(20)
        everybody = frozenset(host.address for host in hosts)
        hole = world.weather.add(LargeDropped(P2P_KINDS, everybody, 2000, stalls=stalls))
        await put(hosts[0], "large", b"%d" % (10**4000))
        since = trio.current_time()
        await until_known(world, hosts[1], "large", 95)
        assert trio.current_time() - since >= 30
        await trio.sleep(400)
        # Once both hold the same, rounds are small and good again: who has not fallen by then stays.
        changes = [[m for _, m in modes(host)] for host in hosts]
        assert all(change in ([P2P], [P2P, HTTP]) for change in changes)
        assert [P2P, HTTP] in changes
        await put(hosts[1], "large too", b"%d" % (10**4000))
        assert await until_known(world, hosts[0], "large too", 12) <= 12

        world.weather.remove([hole])
        healed_at = trio.current_time()
        await world.wait_until(lambda: all(mode(host) == P2P for host in hosts), 120, "P2P again")
        assert trio.current_time() - healed_at <= 90
        await trio.sleep(120)
        back = [[m for _, m in modes(host)] for host in hosts]
        assert back == [change if change == [P2P] else [*change, P2P] for change in changes]
        assert truthful(world)

    play(scenario)


def test_both_lungs_blocked_and_healed() -> None:
    """Alone on both lungs the node says ISOLATED, raises an alarm, goes on writing, and comes back."""

    async def scenario(world: World) -> None:
        n1, n2, n3 = world.add_hosts(3)
        await world.start(n1, n2, n3)
        await settled(world, [n1, n2, n3])
        rules = cut(world, [n1], [n2, n3])
        await put(n1, "alone")
        await world.wait_until(lambda: mode(n1) == ISOLATED, 120, "ISOLATED")
        assert any("isolated" in code for code in n1.running.alarms)
        await trio.sleep(600)
        await put(n1, "still alone")
        await put(n2, "without you")
        world.weather.remove(rules)
        assert await world.wait_converged(40) <= 40
        await world.wait_until(lambda: mode(n1) == P2P, 90, "P2P again")
        await trio.sleep(30)
        assert not n1.running.heartbeat.alarms
        assert truthful(world)

    play(scenario)


def test_a_node_that_only_dials_out() -> None:
    """Nothing reaches n1 that it has not opened itself: what it pulls and pushes keeps it whole."""

    async def scenario(world: World) -> None:
        n1, n2 = world.add_hosts(2, acquainted=False)
        # n2 has no address of n1, and none that n1 announces would work.
        n1.announces = False
        n1.knows_peers = [n2]
        await world.start(n1, n2)
        await settled(world, [n1, n2])
        cut(world, [n1], [n2], P2P_KINDS)
        await put(n1, "out")
        await put(n2, "in")
        await until_known(world, n1, "in", 75)
        assert get(n2, "out") == b"1"
        await trio.sleep(60)
        await put(n2, "in again")
        assert await until_known(world, n1, "in again", 12) <= 12
        await put(n1, "out again")
        assert await until_known(world, n2, "out again", 12) <= 12
        assert not polled(n2) or n2.running.status().peers[0].addresses == []

    play(scenario)


def test_a_stalled_loop_accuses_nobody() -> None:
    """SIGSTOP for 90 s: the stopped node does not fall back for its own lateness; the other does."""

    async def scenario(world: World) -> None:
        n1, n2 = world.add_hosts(2)
        await world.start(n1, n2)
        await settled(world, [n1, n2])
        await trio.sleep(20)
        await world.pause(n1, 90)
        assert mode(n2) != P2P
        await trio.sleep(1)
        assert mode(n1) == P2P
        await put(n1, "awake")
        await until_known(world, n2, "awake", 15)
        await world.wait_until(lambda: mode(n2) == P2P, 60, "P2P at n2")
        assert [m for _, m in modes(n1)] == [P2P]
        assert truthful(world)

    play(scenario)


def test_p2p_that_fails_to_start() -> None:
    """HTTP at once, with an alarm; and P2P as soon as it starts after all."""

    async def scenario(world: World) -> None:
        n1, n2 = world.add_hosts(2)
        n1.p2p_failing = "address in use"
        await world.start(n1, n2)
        assert mode(n1) == HTTP
        assert "p2p_failed" in n1.running.alarms
        await put(n2, "over http")
        assert await until_known(world, n1, "over http", 11) <= 11
        lung = n1.running.p2p
        assert lung is not None
        lung.failing = None  # type: ignore[attr-defined]
        await world.wait_until(lambda: mode(n1) == P2P, 40, "P2P at n1")
        assert "p2p_failed" not in n1.running.alarms

    play(scenario)
