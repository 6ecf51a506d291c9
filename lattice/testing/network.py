"""The weather of a simulated network: delay, loss, and the faults that come and go.

Separate from the network itself, which only carries packets: every fault is a rule here, drawn
from one random generator, and so the same seed meets the same weather.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import trio

from ..transport.memory_network import Packet

P2P_KINDS: Final = frozenset({"p2p", "gossip"})
HTTP_KINDS: Final = frozenset({"http"})
ALL_KINDS: Final = P2P_KINDS | HTTP_KINDS
LARGE_BYTES: Final = 1400  # what a path with a broken path MTU discovery drops


class Rule(Protocol):
    """One fault: what it does to a packet that it concerns."""

    def concerns(self, packet: Packet) -> bool: ...

    def delay_s(self, now: float) -> float | None:
        """Extra delay; None: the packet is lost; infinity: lost and never sent again."""
        ...


@dataclass(frozen=True, slots=True)
class Block:
    """A silent drop of some kinds of packets from any of `sources` to any of `targets`."""

    kinds: frozenset[str]
    sources: frozenset[str]
    targets: frozenset[str]

    def concerns(self, packet: Packet) -> bool:
        return packet.kind in self.kinds and packet.source in self.sources and packet.target in self.targets

    def delay_s(self, now: float) -> float | None:
        return None


@dataclass(frozen=True, slots=True)
class BlockPairs:
    """A silent drop of some kinds of packets on these (source, target) roads."""

    kinds: frozenset[str]
    pairs: frozenset[tuple[str, str]]

    def concerns(self, packet: Packet) -> bool:
        return packet.kind in self.kinds and (packet.source, packet.target) in self.pairs

    def delay_s(self, now: float) -> float | None:
        return None


@dataclass(frozen=True, slots=True)
class LargeDropped:
    """Packets of these kinds over `bytes_max` vanish at some hosts, smaller ones pass.

    With `stalls` the connection waits behind the lost packet, as TCP does; without, later frames
    pass it.
    """

    kinds: frozenset[str]
    hosts: frozenset[str]
    bytes_max: int = LARGE_BYTES
    stalls: bool = False

    def concerns(self, packet: Packet) -> bool:
        return (
            packet.kind in self.kinds
            and packet.size > self.bytes_max
            and (packet.source in self.hosts or packet.target in self.hosts)
        )

    def delay_s(self, now: float) -> float | None:
        return None if self.stalls else math.inf


@dataclass(frozen=True, slots=True)
class Held:
    """Nothing arrives at a host before `until`: its process stands still, or its road is clogged."""

    targets: frozenset[str]
    until: float
    sources: frozenset[str] | None = None

    def concerns(self, packet: Packet) -> bool:
        return packet.target in self.targets and (self.sources is None or packet.source in self.sources)

    def delay_s(self, now: float) -> float | None:
        return max(0.0, self.until - now)


@dataclass(frozen=True, slots=True)
class Climate:
    """What the weather is like all the time. Shares lie in 0..1; `delay_s` is the mean one way."""

    delay_s: float = 0.005
    loss: float = 0.0
    duplication: float = 0.0
    reordering: float = 0.0


class Weather:
    """A `Road`: the climate and the rules that hold now. `tell` is told of every packet's fate."""

    def __init__(
        self,
        rng: random.Random,
        climate: Climate = Climate(),
        *,
        tell: Callable[[Packet, int], None] | None = None,
    ) -> None:
        self._rng = rng
        self.climate = climate
        self._tell = tell
        self._rules: dict[int, Rule] = {}
        self._number = 0

    def add(self, rule: Rule) -> int:
        """Put a rule in force; the number takes it back."""
        self._number += 1
        self._rules[self._number] = rule
        return self._number

    def remove(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            self._rules.pop(number, None)

    def clear(self, climate: Climate = Climate()) -> None:
        """Fair weather: no rule, and this climate."""
        self._rules.clear()
        self.climate = climate

    def fate(self, packet: Packet) -> Sequence[float]:
        """See Road."""
        # A host reaches itself in every weather.
        fate = self._fate(packet) if packet.source != packet.target else (0.0,)
        if self._tell is not None:
            self._tell(packet, len(fate))
        return fate

    def _fate(self, packet: Packet) -> Sequence[float]:
        extra_s = 0.0
        if self._rules:
            now = trio.current_time()
            for rule in self._rules.values():
                if rule.concerns(packet):
                    delay_s = rule.delay_s(now)
                    if delay_s is None:
                        return ()
                    extra_s = max(extra_s, delay_s)
        climate, rng = self.climate, self._rng
        if climate.loss and rng.random() < climate.loss:
            return ()
        first = extra_s + self._one_way()
        if climate.duplication and rng.random() < climate.duplication:
            return (first, extra_s + self._one_way())
        return (first,)

    def _one_way(self) -> float:
        climate, rng = self.climate, self._rng
        delay_s = climate.delay_s * (0.5 + rng.random())
        if climate.reordering and rng.random() < climate.reordering:
            delay_s *= 1 + 4 * rng.random()
        return delay_s
