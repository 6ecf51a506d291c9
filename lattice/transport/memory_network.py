"""An in-memory network: hosts, roads between them, and packets that arrive later, twice or never.

Separate from the lungs that use it, because what happens to a packet is decided by a road that a
test or a simulator supplies, and the lungs must not be able to tell.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, Protocol

import trio

if TYPE_CHECKING:
    from .memory import MemoryP2PLung

PacketKind = Literal["p2p", "gossip", "http"]
HttpHandler = Callable[[bytes, str], Awaitable[bytes]]

SMALL_BYTES: Final = 64  # a packet that carries nothing: dial, ping, close
# A lost packet is sent again, as TCP does, though less patiently than TCP's two minutes.
_RESEND_FIRST_S: Final = 0.2
_RESEND_MAX_S: Final = 3.0


@dataclass(frozen=True, slots=True)
class Packet:
    """What a road sees of a packet: which lung sends it, from which host to which, and how large."""

    kind: PacketKind
    source: str
    target: str
    size: int


class Road(Protocol):
    """Decides the fate of each packet."""

    def fate(self, packet: Packet) -> Sequence[float]:
        """The delays in seconds after which copies of the packet arrive. None: it is lost, and a
        sender that insists will send it again. Infinity: it is lost, and nobody notices."""
        ...


@dataclass(frozen=True, slots=True)
class OpenRoad:
    """Everything arrives once, `delay_s` later."""

    delay_s: float = 0.001

    def fate(self, packet: Packet) -> Sequence[float]:
        return (self.delay_s,)


@dataclass(frozen=True, slots=True)
class HttpSite:
    """A listener for HTTP: its host, and where its requests are started."""

    host: str
    handler: HttpHandler
    nursery: trio.Nursery


class MemoryNetwork:
    """All hosts, listeners and packets under way. `run` must be running while lungs use it."""

    def __init__(self, road: Road | None = None) -> None:
        self.road: Road = road if road is not None else OpenRoad()
        self.p2p: dict[str, MemoryP2PLung] = {}
        self.sites: dict[str, HttpSite] = {}
        self.delivered: dict[str, int] = {}
        self.lost: dict[str, int] = {}
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._wake = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Deliver what is due, for ever."""
        task_status.started()
        while True:
            now = trio.current_time()
            while self._due and self._due[0][0] <= now:
                heapq.heappop(self._due)[2]()
            self._wake = trio.Event()
            with trio.move_on_at(self._due[0][0] if self._due else math.inf):
                await self._wake.wait()

    def at(self, when: float, action: Callable[[], None]) -> None:
        """Run `action` at `when` (trio's clock); actions of one moment run in the order given."""
        if when == math.inf:
            return
        heapq.heappush(self._due, (when, next(self._order), action))
        if self._due[0][0] == when:
            self._wake.set()

    def judge(self, packet: Packet) -> Sequence[float]:
        """The road's fate for the packet, counted."""
        fate = self.road.fate(packet)
        counts = self.delivered if fate else self.lost
        counts[packet.kind] = counts.get(packet.kind, 0) + 1
        return fate

    def send(self, packet: Packet, deliver: Callable[[], None]) -> None:
        """One packet on its own: it arrives as often and as late as the road says."""
        now = trio.current_time()
        for delay in self.judge(packet):
            self.at(now + delay, deliver)

    def insist(self, packet: Packet, deliver: Callable[[], None], wanted: Callable[[], bool]) -> None:
        """Send a packet again and again until the road lets it through or it is not `wanted`."""
        self._insist(packet, deliver, wanted, _RESEND_FIRST_S)

    def _insist(
        self, packet: Packet, deliver: Callable[[], None], wanted: Callable[[], bool], pause_s: float
    ) -> None:
        if not wanted():
            return
        now = trio.current_time()
        fate = self.judge(packet)
        for delay in fate:
            self.at(now + delay, deliver)
        if not fate:
            longer = min(2 * pause_s, _RESEND_MAX_S)
            self.at(now + pause_s, lambda: self._insist(packet, deliver, wanted, longer))


class Line:
    """One direction of a connection, as TCP keeps it: in order, without loss, stalled where the
    road loses packets, and moving again once it lets them through."""

    def __init__(self, network: MemoryNetwork, source: str, target: str) -> None:
        self._network = network
        self._source = source
        self._target = target
        self._waiting: list[tuple[int, Callable[[], None]]] = []
        self._arrival = 0.0
        self._pause_s = 0.0
        self.cut = False

    def send(self, size: int, deliver: Callable[[], None]) -> None:
        """Queue a frame; `deliver` is called when it arrives, unless the line is cut while it waits."""
        self._waiting.append((size, deliver))
        if len(self._waiting) == 1:
            self._move()

    def _move(self) -> None:
        now = trio.current_time()
        while self._waiting and not self.cut:
            size, deliver = self._waiting[0]
            fate = self._network.judge(Packet("p2p", self._source, self._target, size))
            if not fate:
                self._pause_s = min(max(2 * self._pause_s, _RESEND_FIRST_S), _RESEND_MAX_S)
                self._network.at(now + self._pause_s, self._move)
                return
            del self._waiting[0]
            self._pause_s = 0.0
            if fate[0] == math.inf:
                continue
            self._arrival = max(self._arrival, now + fate[0])
            self._network.at(self._arrival, deliver)
