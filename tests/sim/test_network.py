"""The memory network and its weather: order, loss, stalls, duplicates, and every rule."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import pytest
import trio

from lattice.testing.network import (
    ALL_KINDS,
    HTTP_KINDS,
    P2P_KINDS,
    Block,
    BlockPairs,
    Climate,
    Held,
    LargeDropped,
    Rule,
    Weather,
)
from lattice.testing.scheduler import run_seeded
from lattice.transport.memory_network import Line, MemoryNetwork, Packet, PacketKind


class Script:
    """A road that gives each packet the next fate in turn."""

    def __init__(self, fates: Sequence[Sequence[float]]) -> None:
        self.fates = list(fates)

    def fate(self, packet: Packet) -> Sequence[float]:
        return self.fates.pop(0) if self.fates else (0.0,)


def arrivals(fates: Sequence[Sequence[float]], frames: int, *, line: bool) -> list[tuple[float, int]]:
    """When each of some frames arrives, sent one after the other at time 0."""

    async def main() -> list[tuple[float, int]]:
        network = MemoryNetwork(Script(fates))
        seen: list[tuple[float, int]] = []
        async with trio.open_nursery() as nursery:
            await nursery.start(network.run)
            road = Line(network, "a", "b")
            for number in range(frames):

                def arrive(number: int = number) -> None:
                    seen.append((trio.current_time(), number))

                if line:
                    road.send(10, arrive)
                else:
                    network.send(Packet("gossip", "a", "b", 10), arrive)
            await trio.sleep(60)
            nursery.cancel_scope.cancel()
        return seen

    return run_seeded(0, main)


def test_a_line_keeps_the_order() -> None:
    assert arrivals([(3.0,), (1.0,), (2.0,)], 3, line=True) == [(3.0, 0), (3.0, 1), (3.0, 2)]


def test_a_line_sends_again_and_all_wait_behind() -> None:
    assert arrivals([(), (), (1.0,), (0.5,)], 2, line=True) == [
        (pytest.approx(1.6), 0),
        (pytest.approx(1.6), 1),
    ]


def test_what_vanishes_is_not_sent_again() -> None:
    assert arrivals([(math.inf,), (1.0,)], 2, line=True) == [(1.0, 1)]


def test_single_packets_overtake_repeat_and_vanish() -> None:
    fates = [(3.0,), (1.0, 2.0), (), (math.inf,)]
    assert arrivals(fates, 4, line=False) == [(1.0, 1), (2.0, 1), (3.0, 0)]


def test_an_insistent_packet_stops_when_it_is_not_wanted() -> None:
    async def main() -> None:
        network = MemoryNetwork(Script([()] * 100))
        async with trio.open_nursery() as nursery:
            await nursery.start(network.run)
            wanted = True
            network.insist(Packet("http", "a", "b", 1), lambda: None, lambda: wanted)
            await trio.sleep(20)
            lost = network.lost["http"]
            assert 5 < lost < 20
            wanted = False
            await trio.sleep(20)
            assert network.lost["http"] == lost
            nursery.cancel_scope.cancel()

    run_seeded(0, main)


ONE, OTHER = frozenset({"a"}), frozenset({"b"})


@pytest.mark.parametrize(
    ("rule", "kind", "source", "target", "size", "delay_s"),
    [
        (Block(P2P_KINDS, ONE, OTHER), "p2p", "a", "b", 1, None),
        (Block(P2P_KINDS, ONE, OTHER), "gossip", "a", "b", 1, None),
        (Block(P2P_KINDS, ONE, OTHER), "http", "a", "b", 1, 0),
        (Block(P2P_KINDS, ONE, OTHER), "p2p", "b", "a", 1, 0),
        (BlockPairs(HTTP_KINDS, frozenset({("a", "b")})), "http", "a", "b", 1, None),
        (BlockPairs(HTTP_KINDS, frozenset({("a", "b")})), "http", "a", "c", 1, 0),
        (LargeDropped(ALL_KINDS, ONE, 100), "p2p", "b", "a", 101, math.inf),
        (LargeDropped(ALL_KINDS, ONE, 100), "p2p", "b", "a", 100, 0),
        (LargeDropped(ALL_KINDS, ONE, 100, stalls=True), "p2p", "a", "b", 101, None),
        (LargeDropped(ALL_KINDS, ONE, 100), "p2p", "b", "c", 101, 0),
        (Held(OTHER, 7.0), "http", "a", "b", 1, 7.0),
        (Held(OTHER, 7.0, ONE), "http", "c", "b", 1, 0),
        (Held(OTHER, 7.0), "http", "b", "a", 1, 0),
    ],
)
def test_each_rule(
    rule: Rule, kind: PacketKind, source: str, target: str, size: int, delay_s: float | None
) -> None:
    async def main() -> None:
        weather = Weather(random.Random(0), Climate(delay_s=0.0))
        number = weather.add(rule)
        expected = () if delay_s is None else (delay_s,)
        packet = Packet(kind, source, target, size)
        assert weather.fate(packet) == expected
        weather.remove([number])
        assert weather.fate(packet) == (0.0,)

    run_seeded(0, main)


def test_a_host_reaches_itself_in_every_weather() -> None:
    async def main() -> None:
        weather = Weather(random.Random(0), Climate(loss=1.0))
        weather.add(Block(ALL_KINDS, ONE, ONE))
        assert weather.fate(Packet("p2p", "a", "a", 1)) == (0.0,)
        assert weather.fate(Packet("p2p", "a", "b", 1)) == ()

    run_seeded(0, main)


def test_the_climate_is_what_it_says() -> None:
    weather = Weather(random.Random(5), Climate(delay_s=0.1, loss=0.2, duplication=0.3))
    fates = [weather.fate(Packet("gossip", "a", "b", 1)) for _ in range(4000)]
    lost = sum(not fate for fate in fates) / len(fates)
    twice = sum(len(fate) == 2 for fate in fates) / len(fates)
    delays = [delay for fate in fates for delay in fate]
    assert 0.17 < lost < 0.23
    assert 0.2 < twice < 0.28
    assert 0.095 < sum(delays) / len(delays) < 0.105
    assert 0.05 <= min(delays) < max(delays) <= 0.15
