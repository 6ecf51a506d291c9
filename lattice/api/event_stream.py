"""An answer without end: server-sent events from a reader of the bus.

Separate from its route because it is a small machine: it writes, waits, shows life, and ends when
the client leaves or the listener does. (HTML Living Standard, section 9.2: the wire format.)
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Final

import orjson
import trio
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from ..core.limits import EVENT_KEEP_ALIVE_S
from ..node.bus import Event, Reader
from .guards import is_head
from .listener import SHUTDOWN

EVENT_STREAM: Final = "text/event-stream"
_RETRY_MS: Final = 1000  # how long a browser waits before it connects again


def frame(event: Event) -> bytes:
    """One event on the wire. JSON holds no line break, so it is one `data` line."""
    return b"id: %s\nevent: %s\ndata: %s\n\n" % (
        event.id.encode(),
        event.type.encode(),
        orjson.dumps(event.body),
    )


def place(position: str) -> bytes:
    """An id without an event: the client resumes behind it and is shown nothing."""
    return b"id: %s\n\n" % position.encode()


class EventStream(Response):
    """Sends what `place` reads. Not `follow`: what there is, and an end."""

    media_type = EVENT_STREAM

    def __init__(
        self,
        place: AbstractContextManager[Reader],
        *,
        follow: bool,
        keep_alive_s: float = EVENT_KEEP_ALIVE_S,
    ) -> None:
        super().__init__()
        del self.headers["content-length"]
        self.headers["content-type"] = f"{EVENT_STREAM}; charset=utf-8"
        self.headers["cache-control"] = "no-store"
        self.headers["x-accel-buffering"] = "no"  # a proxy in front must not collect it
        self._place = place
        self._follow = follow
        self._keep_alive_s = keep_alive_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        shutdown: trio.Event | None = scope.get(SHUTDOWN)
        if shutdown is None:  # no listener of ours: its server ends us by a disconnect
            shutdown = trio.Event()
        with self._place as reader:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_cancel_when_gone, receive, nursery.cancel_scope)
                if not is_head(scope):
                    await self._write(reader, send, shutdown)
                nursery.cancel_scope.cancel()
            # Outside: the server says `gone` in the middle of this too, and must not be cancelled there.
            await send(_body(b"", more=False))

    async def _write(self, reader: Reader, send: Send, shutdown: trio.Event) -> None:
        """Until the shutdown; only waiting is ever cut short, since half a chunk would spoil the end."""
        head = b"retry: %d\n" % _RETRY_MS
        # A reader that was lost is told so first, and is not to take this place for its own before.
        head += b"\n" if reader.behind else place(reader.position)
        await send(_body(head))
        while not shutdown.is_set():
            if reader.behind:
                events = reader.take_nowait()
                if events:
                    await send(_body(b"".join(map(frame, events))))
                else:
                    await trio.lowlevel.checkpoint()
                continue
            if not self._follow:
                await send(_body(place(reader.position)))
                return
            await self._wait(reader, send, shutdown)

    async def _wait(self, reader: Reader, send: Send, shutdown: trio.Event) -> None:
        with trio.move_on_after(self._keep_alive_s) as silence:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_cancel_when_set, shutdown, nursery.cancel_scope)
                await reader.wait()
                nursery.cancel_scope.cancel()
        if silence.cancelled_caught and not reader.behind:
            # With the id, so that what the filter left out is not looked through, or lost, again.
            await send(_body(b": keep-alive\n" + place(reader.position)))


def _body(data: bytes, *, more: bool = True) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": more}


async def _cancel_when_gone(receive: Receive, scope: trio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


async def _cancel_when_set(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()
