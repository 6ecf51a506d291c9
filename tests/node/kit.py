"""What the scenarios on whole nodes share: writing, reading, blocking, and looking at modes.

Separate from the tests so that each of them reads as its own story.
"""

from __future__ import annotations

import trio

from lattice.core.draft import Appended, OpDraft
from lattice.core.entry import OpKind
from lattice.core.failover_events import Mode
from lattice.node.bus import Event
from lattice.testing import ALL_KINDS, Block, Host, World


async def put(host: Host, key: str, value: bytes = b"1") -> Appended:
    return await host.running.append([OpDraft(OpKind.PUT, key.encode(), value)])


def get(host: Host, key: str) -> bytes | None:
    view = host.running.key(key.encode())
    return None if view is None else view.value


async def until_known(world: World, host: Host, key: str, limit_s: float) -> float:
    """How long it takes until the host has the key."""
    return await world.wait_until(lambda: get(host, key) is not None, limit_s, f"{key} at {host.name}")


def cut(world: World, one: list[Host], other: list[Host], kinds: frozenset[str] = ALL_KINDS) -> list[int]:
    """Drop silently what goes between the two groups; the rules, for `weather.remove`."""
    left = frozenset(host.address for host in one)
    right = frozenset(host.address for host in other)
    return [world.weather.add(Block(kinds, left, right)), world.weather.add(Block(kinds, right, left))]


def modes(host: Host) -> list[tuple[float, str]]:
    """Every change of the headline since the node started: (time, mode)."""
    assert host.watch is not None
    return [(t, mode.value) for t, mode in host.watch.changes]


def mode(host: Host) -> str:
    return host.running.status().sync_mode


def polled(host: Host) -> set[str]:
    """The names of the peers that the host polls over HTTP."""
    return {peer.name for peer in host.running.status().peers if peer.polled}


async def settled(world: World, hosts: list[Host], limit_s: float = 40.0) -> None:
    """Wait until everybody's headline is P2P and everybody hears all the others."""
    await world.wait_until(
        lambda: all(host.running.status().peer_count == len(hosts) - 1 for host in hosts),
        limit_s,
        "everybody hears everybody over P2P",
    )


def last_beat(host: Host) -> float:
    """When the host last heard any peer over P2P."""
    return trio.current_time() - host.running.heartbeat.view().seconds_since_peer


def told(host: Host, after: str | None = None) -> list[Event]:
    """All that the host tells behind `after`, from its start if None."""
    bus = host.running.bus
    found: list[Event] = []
    with bus.reader(after or bus.id_of(0)) as reader:
        while reader.behind:
            found += reader.take_nowait()
    return found


def truthful(world: World) -> bool:
    """Whether no watch over any mode found anything (I6)."""
    return all(not host.watch.found for host in world.up if host.watch is not None)


HTTP, P2P, ISOLATED = Mode.HTTP.value, Mode.P2P.value, Mode.ISOLATED.value
