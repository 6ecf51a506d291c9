"""The event bus: one bounded ring of what happened, and readers that each hold a place in it.

Separate from whoever publishes and whoever reads: a reader holds a number and never a queue, so one
that is slow or gone costs nothing, and what it has missed is counted and said.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import trio

from ..core.errors import LatticeError
from ..core.limits import EVENT_CHUNK_BYTES, EVENT_RING, EVENT_RING_BYTES, EVENT_STREAMS_MAX
from ..schemas import EVENT_SHAPES, EVENT_TYPES, EntryEvent, EventBody, LostEvent

_ID: Final = re.compile(r"([0-9a-f]{16})-([0-9]{1,18})", re.ASCII)
_EVENT_BYTES: Final = 1024  # what an event costs beyond the text in it
_LOOKED_AT_MAX: Final = 1024  # events passed over in one go: a narrow filter must not hold the loop


@dataclass(frozen=True, slots=True)
class Event:
    """One event as a reader gets it; `id` is what to resume behind."""

    id: str
    body: EventBody | LostEvent

    @property
    def type(self) -> str:
        return EVENT_TYPES[type(self.body)]


@dataclass(frozen=True, slots=True)
class Filter:
    """Which events a reader wants. `types` empty: all. `prefix` is about keys, so it narrows the
    entries and nothing else."""

    types: frozenset[str] = frozenset()
    prefix: str = ""

    def takes(self, body: EventBody) -> bool:
        if self.types and EVENT_TYPES[type(body)] not in self.types:
            return False
        if not self.prefix or not isinstance(body, EntryEvent):
            return True
        return any(key.startswith(self.prefix) for key in body.keys)


def parse_types(text: str) -> frozenset[str]:
    """The types of a comma list; `lost` is always told and need not be named. Raises `bad_request`."""
    names = frozenset(name.strip() for name in text.split(",") if name.strip())
    unknown = sorted(names - EVENT_SHAPES.keys())
    if unknown:
        listed = ", ".join(EVENT_SHAPES)
        raise LatticeError("bad_request", f"There is no event type {unknown[0][:50]!r}; there are {listed}.")
    return names


class Bus:
    """The events of this process, numbered from 1. Publishing never waits."""

    def __init__(
        self,
        boot: int,
        *,
        events_max: int = EVENT_RING,
        bytes_max: int = EVENT_RING_BYTES,
        readers_max: int = EVENT_STREAMS_MAX,
    ) -> None:
        self._boot = f"{boot:016x}"
        self._events_max = events_max
        self._bytes_max = bytes_max
        self._readers_max = readers_max
        self._ring: dict[int, tuple[EventBody, int]] = {}
        self._bytes = 0
        self._oldest = 1
        self._next = 1
        self._published = trio.Event()
        self._readers = 0
        self._lost = 0
        self._refused = 0

    def publish_nowait(self, body: EventBody) -> None:
        """Add an event, dropping the oldest ones where the ring is full."""
        size = _size(body)
        self._ring[self._next] = (body, size)
        self._next += 1
        self._bytes += size
        while len(self._ring) > self._events_max or (self._bytes > self._bytes_max and len(self._ring) > 1):
            self._bytes -= self._ring.pop(self._oldest)[1]
            self._oldest += 1
        if self._published.statistics().tasks_waiting:
            self._published.set()
            self._published = trio.Event()

    def id_of(self, number: int) -> str:
        """The id of an event; it names the process too, so that a number of another is not taken."""
        return f"{self._boot}-{number}"

    @contextmanager
    def reader(self, after: str | None = None, wanted: Filter = Filter()) -> Iterator[Reader]:
        """A place in the ring: behind the event `after`, or at the end.

        Raises `bad_request` for an id that no node gave, and `too_many` when all places are taken.
        """
        number, foreign = self._place(after)
        if self._readers >= self._readers_max:
            self._refused += 1
            raise LatticeError(
                "too_many", f"{self._readers_max} streams of events are open; end one, or try again later."
            )
        self._readers += 1
        try:
            yield Reader(self, number, wanted, foreign=foreign)
        finally:
            self._readers -= 1

    def _place(self, after: str | None) -> tuple[int, bool]:
        """The number of the event to resume behind, and whether the id is another process's."""
        if after is None:
            return self._next - 1, False
        match = _ID.fullmatch(after)
        if match is None or (match[1] == self._boot and int(match[2]) >= self._next):
            raise LatticeError(
                "bad_request", f"{after[:50]!r} is no event id of this node; leave it out to start afresh."
            )
        return (int(match[2]), False) if match[1] == self._boot else (0, True)

    def statistics(self) -> dict[str, int]:
        return {
            "events_published": self._next - 1,
            "events_held": len(self._ring),
            "events_held_bytes": self._bytes,
            "events_lost": self._lost,
            "event_streams": self._readers,
            "event_streams_refused": self._refused,
        }

    # For readers.

    @property
    def newest(self) -> int:
        return self._next - 1

    @property
    def oldest(self) -> int:
        return self._oldest

    def held(self, number: int) -> tuple[EventBody, int]:
        return self._ring[number]

    def note_lost(self, count: int) -> None:
        self._lost += count

    async def wait_published(self) -> None:
        await self._published.wait()


class Reader:
    """A place in the ring of a bus, with a filter. Made by `Bus.reader`."""

    def __init__(self, bus: Bus, number: int, wanted: Filter, *, foreign: bool) -> None:
        self._bus = bus
        self._number = number
        self._wanted = wanted
        self._foreign = foreign

    @property
    def position(self) -> str:
        """The id behind which everything is still to come: also past events that the filter left out.
        Not for a reader that has yet to be told of a loss."""
        return self._bus.id_of(self._number)

    @property
    def behind(self) -> bool:
        """Whether `take_nowait` has something to look at."""
        return self._foreign or self._number < self._bus.newest

    def take_nowait(self, bytes_max: int = EVENT_CHUNK_BYTES) -> list[Event]:
        """The next events in order, or none. A loss is told first, in the place of what was lost."""
        bus = self._bus
        found: list[Event] = []
        loss = self._loss()
        if loss is not None:
            found.append(Event(loss.last, loss))
        size = 0
        last = min(bus.newest, self._number + _LOOKED_AT_MAX)
        while self._number < last and size < bytes_max:
            self._number += 1
            body, weight = bus.held(self._number)
            if self._wanted.takes(body):
                found.append(Event(bus.id_of(self._number), body))
                size += weight
        return found

    def _loss(self) -> LostEvent | None:
        bus = self._bus
        gone = bus.oldest - 1
        count = gone - self._number
        if not self._foreign and count <= 0:
            return None
        bus.note_lost(max(count, 0))
        first = bus.id_of(self._number + 1)
        self._number = max(gone, self._number)
        if self._foreign:
            self._foreign = False
            return LostEvent("restart", None, None, bus.id_of(self._number))
        return LostEvent("overrun", count, first, bus.id_of(self._number))

    async def wait(self) -> None:
        """Wait until there is something to look at; the filter may leave it out."""
        while not self.behind:
            await self._bus.wait_published()


def _size(body: EventBody) -> int:
    if isinstance(body, EntryEvent):
        return _EVENT_BYTES + sum(len(key) for key in body.keys) * 4
    return _EVENT_BYTES
