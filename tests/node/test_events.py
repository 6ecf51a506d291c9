"""What whole nodes tell: entries after their commit, modes, peers, the policy, across a restart."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from lattice.node.bus import Filter, parse_types
from lattice.schemas import EntryEvent, LostEvent, ModeEvent, PeerEvent, PolicyEvent
from lattice.testing import P2P_KINDS, Host, World, play
from tests.node.kit import HTTP, P2P, cut, get, put, settled, told, until_known

pytestmark = pytest.mark.slow


def test_every_entry_is_told_once_and_only_when_it_can_be_read() -> None:
    async def scenario(world: World) -> None:
        n1, n2 = world.add_hosts(2)
        await world.start(n1, n2)
        await settled(world, [n1, n2])
        seen: list[tuple[EntryEvent, bool]] = []

        async def follow() -> None:
            with n2.running.bus.reader(wanted=Filter(parse_types("entry"), "k")) as reader:
                while len(seen) < 20:
                    await reader.wait()
                    for event in reader.take_nowait():
                        assert isinstance(event.body, EntryEvent)
                        seen.append((event.body, all(get(n2, key) is not None for key in event.body.keys)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(follow)
            await trio.testing.wait_all_tasks_blocked()
            for index in range(10):
                await put(n1, f"k{index}")
                await put(n1, f"other{index}")
                await put(n2, f"k-own{index}")
        assert all(readable for _, readable in seen)
        assert sorted(body.keys[0] for body, _ in seen) == sorted(
            [*(f"k{index}" for index in range(10)), *(f"k-own{index}" for index in range(10))]
        )
        assert len({body.id for body, _ in seen}) == 20
        for body, _ in seen:
            own = body.author == n2.running.peer_id
            assert (body.lung == "local", body.peer) == (own, None if own else n1.running.peer_id)

    play(scenario)


def test_modes_peers_and_the_policy_are_told() -> None:
    async def scenario(world: World) -> None:
        n1, n2 = world.add_hosts(2)
        await world.start(n1, n2)
        await settled(world, [n1, n2])
        await trio.sleep(2)
        other = n2.running.peer_id
        changes = [body.change for body in _bodies(n1) if isinstance(body, PeerEvent) and body.peer == other]
        assert changes[0] == "known"
        assert "heard" in changes
        here = told(n1)[-1].id
        rules = cut(world, [n1], [n2], P2P_KINDS)
        await trio.sleep(80)
        later = [event.body for event in told(n1, here)]
        assert [(body.previous, body.mode) for body in later if isinstance(body, ModeEvent)] == [(P2P, HTTP)]
        assert "lost" in [body.change for body in later if isinstance(body, PeerEvent)]
        world.weather.remove(rules)
        here = told(n1)[-1].id
        await n1.running.switch("p2p")
        assert [body.policy for body in _bodies(n1, here) if isinstance(body, PolicyEvent)] == ["p2p"]

    play(scenario)


def test_after_a_restart_the_old_id_says_that_something_is_unknown() -> None:
    async def scenario(world: World) -> None:
        n1, n2 = world.add_hosts(2)
        await world.start(n1, n2)
        await settled(world, [n1, n2])
        await put(n1, "before")
        last = told(n1)[-1].id
        await world.crash(n1)
        await put(n2, "meanwhile")
        await world.start(n1)
        await until_known(world, n1, "meanwhile", 60)
        first, *rest = told(n1, last)
        assert isinstance(first.body, LostEvent)
        assert (first.body.reason, first.body.count) == ("restart", None)
        assert rest == told(n1)
        keys = [body.keys for body in (event.body for event in rest) if isinstance(body, EntryEvent)]
        assert ["meanwhile"] in keys

    play(scenario)


def _bodies(host: Host, after: str | None = None) -> list[object]:
    return [event.body for event in told(host, after)]
