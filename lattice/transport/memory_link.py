"""One end of a stream in the memory network: exchanges in both directions at once, and a ping.

Separate from the lung, as in the real one: this file knows a stream and nothing about who dials.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import trio

from ..core.limits import ENVELOPE_BYTES_MAX
from .memory_network import SMALL_BYTES, Line, Packet
from .port import TransportError

if TYPE_CHECKING:
    from .memory import MemoryP2PLung

_EXCHANGES_MAX: Final = 16  # started by us and unanswered, per link; more wait
# A ping unanswered until the next one ends the connection, as libp2p's health monitor does.
_PING_S: Final = 5.0


@dataclass(slots=True)
class Pending:
    """An exchange of ours that waits for its answer."""

    done: trio.Event = field(default_factory=trio.Event)
    answer: bytes | None = None
    reason: str = "closed"

    def fail(self, reason: str) -> None:
        if not self.done.is_set():
            self.reason = reason
            self.done.set()

    def succeed(self, answer: bytes) -> None:
        if not self.done.is_set():
            self.answer = answer
            self.done.set()


class MemoryLink:
    """One end of a stream (`PeerLink`); `line` leads to the other end, `far`."""

    def __init__(self, lung: MemoryP2PLung, remote: MemoryP2PLung, line: Line, *, opened_by_us: bool) -> None:
        self._lung = lung
        self.remote = remote
        self._line = line
        self._opened_by_us = opened_by_us
        self.far: MemoryLink | None = None
        self.scope = trio.CancelScope()
        self._slots = trio.Semaphore(_EXCHANGES_MAX)
        self._pending: dict[int, Pending] = {}
        self._number = 0
        self._closed = False
        self._pinged = False

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open"
        return f"<MemoryLink {self._lung.host} to {self.remote.host} {state} pending={len(self._pending)}>"

    @property
    def peer_id(self) -> str:
        return self.remote.peer_id

    @property
    def remote_address(self) -> str:
        return self.remote.address

    @property
    def opened_by_us(self) -> bool:
        return self._opened_by_us

    @property
    def closed(self) -> bool:
        return self._closed

    async def exchange(self, request: bytes) -> bytes:
        """See PeerLink. A cancelled one leaves no trace but its late answer, which is dropped."""
        if len(request) > ENVELOPE_BYTES_MAX:
            raise TransportError("too_large", f"{len(request)} bytes, at most {ENVELOPE_BYTES_MAX}")
        async with self._slots:
            if self._closed:
                raise TransportError("closed")
            self._number += 1
            number = self._number
            pending = self._pending[number] = Pending()
            try:
                self.send(len(request), lambda far: far.take_request(number, request))
                await pending.done.wait()
            finally:
                del self._pending[number]
        if pending.answer is None:
            raise TransportError(pending.reason)
        return pending.answer

    async def aclose(self) -> None:
        """See PeerLink."""
        self.end("closed")

    def send(self, size: int, arrive: Callable[[MemoryLink], None]) -> None:
        """A frame to the far end; a far end that is gone resets this one."""

        def deliver() -> None:
            far = self.far
            if far is not None and not far.closed:
                arrive(far)
            else:
                back = Packet("p2p", self.remote.host, self._lung.host, SMALL_BYTES)
                self._lung.network.send(back, lambda: self.end("reset", tell=False))

        self._line.send(size, deliver)

    def take_request(self, number: int, request: bytes) -> None:
        """A request of the far end has arrived."""
        self._lung.start(self._serve, number, request)

    async def _serve(self, number: int, request: bytes) -> None:
        answer = await self._lung.answer(self, request)
        if answer is None:
            self.end("closed")
        elif not self._closed:
            self.send(len(answer), lambda far: far.take_answer(number, answer))

    def take_answer(self, number: int, answer: bytes) -> None:
        """The far end's answer has arrived."""
        pending = self._pending.get(number)
        if pending is not None:
            pending.succeed(answer)

    def ping(self) -> None:
        """Ping, unless the last one is unanswered: then the connection is dead."""
        if self._closed:
            return
        if self._pinged:
            self.end("silent")
            return
        self._pinged = True
        self.send(SMALL_BYTES, lambda far: far.send(SMALL_BYTES, lambda near: near.take_pong()))
        self._lung.network.at(trio.current_time() + _PING_S, self.ping)

    def take_pong(self) -> None:
        self._pinged = False

    def end(self, reason: str, *, tell: bool = True) -> None:
        """Close this end; `tell` the other one, if the road lets the packet through."""
        if self._closed:
            return
        self._closed = True
        self._line.cut = True
        far = self.far
        if tell and far is not None:
            packet = Packet("p2p", self._lung.host, self.remote.host, SMALL_BYTES)
            self._lung.network.send(packet, lambda: far.end("closed_by_peer", tell=False))
        for pending in self._pending.values():
            pending.fail(reason)
        self.scope.cancel()
        self._lung.lost(self)
