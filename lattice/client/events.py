"""Events for programs: the wire format of server-sent events, and the rules of resuming.

Separate from the clients so that the blocking and the async one resume by the same rules, which are
tested without a network.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import orjson

from ..core.errors import LatticeError
from ..core.limits import EVENT_LINE_BYTES_MAX
from ..schemas import EVENT_SHAPES, EventBody, LostEvent
from .calls import Call, header_value
from .decode import decode

SILENCE_S: Final = 45.0  # three keep-alives: a connection that says nothing for so long is dead
_BACKOFF_S: Final = 0.5
_BACKOFF_MAX_S: Final = 10.0
_PASSING: Final = frozenset({"unreachable", "too_many", "not_ready", "store_failed", "internal"})


@dataclass(frozen=True, slots=True)
class Event:
    """One event. `data` is the shape of its `type`, or what came, for a type of a newer node."""

    id: str
    type: str
    data: EventBody | LostEvent | object


class Follower:
    """Where a reader of events stands. Feed it bytes; ask it for the next request and how long to wait.

    The first connection must succeed; later ones are tried until the node answers again.
    """

    def __init__(self, call: Call[object], after: str | None = None) -> None:
        self._call = call
        self.last_id = None if after is None else header_value(after, "id of an event")
        self._connected = False
        self._failures = 0
        self.begin()

    def begin(self) -> None:
        """A new connection begins: what was cut off in the middle is forgotten."""
        self._rest = b""
        self._clear()

    def _clear(self) -> None:
        self._id: str | None = None
        self._type = ""
        self._data: list[str] = []

    @property
    def target(self) -> str:
        return self._call.target

    def headers(self) -> dict[str, str]:
        resume = {"last-event-id": self.last_id} if self.last_id is not None else {}
        return {"accept": "text/event-stream", **self._call.headers, **resume}

    def opened(self, status: int, kind: str, body: bytes) -> None:
        """Judge the head of an answer (`body` is that of a refusal). Raises what the node answered."""
        if status != 200:
            self._call.read(status, body)
        if not kind.startswith("text/event-stream"):
            raise LatticeError(
                "unreachable",
                f"the answer is {kind[:50] or 'nothing'}, no stream of events of a Lattice node",
            )
        self._connected = True

    def feed(self, data: bytes) -> Iterator[Event]:
        """The events that these bytes complete. `last_id` moves with each one that is taken."""
        # Split by hand: a key may hold U+2028 and the like, which text splitting takes for line ends.
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > EVENT_LINE_BYTES_MAX:
            raise LatticeError("unreachable", "a line of the stream has no end, so no Lattice node sent it")
        for line in lines:
            event = self._line(line.removesuffix(b"\r").decode("utf-8", "replace"))
            if event is not None:
                yield event

    def _line(self, line: str) -> Event | None:
        if line:
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if name == "id" and "\0" not in value:
                self._id = value
            elif name == "event":
                self._type = value
            elif name == "data":
                self._data.append(value)
            return None
        if self._id:
            self.last_id = self._id
            self._failures = 0
        kind, data = self._type or "message", "\n".join(self._data)
        self._clear()
        if not data:
            return None
        return Event(self.last_id or "", kind, _body(kind, data))

    def failed(self, error: LatticeError) -> float:
        """How long to wait before the next try. Raises the error where trying again cannot help."""
        if not self._connected or error.code not in _PASSING:
            raise error
        return self.ended()

    def ended(self) -> float:
        """The stream was cut or ended: how long to wait before it is taken up again."""
        self._failures += 1
        return min(_BACKOFF_S * 2.0 ** min(self._failures - 1, 8), _BACKOFF_MAX_S)


def _body(kind: str, data: str) -> EventBody | LostEvent | object:
    try:
        parsed = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise LatticeError("unreachable", "an event is not JSON, so it is not from a Lattice node") from error
    shape = EVENT_SHAPES.get(kind)
    return parsed if shape is None else decode(shape, parsed)
