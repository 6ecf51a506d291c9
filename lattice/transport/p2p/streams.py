"""One link: length-prefixed frames over one libp2p stream, exchanges in both directions at once.

Separate from who opens links and when: this file knows a stream and nothing about peers. A frame is
a u32 length (big-endian, of what follows), a u8 kind, a u32 exchange number, and the payload. Each
side numbers its own exchanges.
"""

from __future__ import annotations

import contextlib
import enum
import logging
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import trio
from libp2p.io.exceptions import IOException
from libp2p.stream_muxer.exceptions import MuxedConnError, MuxedStreamError

from lattice.transport.p2p.counters import Counters
from lattice.transport.p2p.tuning import Tuning
from lattice.transport.port import P2PHandler, TransportError

if TYPE_CHECKING:
    from libp2p.abc import INetStream

SYNC_PROTOCOL: Final = "/lattice/sync/1"

_HEAD: Final = struct.Struct("!IBI")
_REST: Final = 5  # kind and number, counted in the length
_READ: Final = 64 * 1024

# What a broken stream can raise, at whichever layer it is noticed.
STREAM_ERRORS: Final = (
    IOException,
    MuxedStreamError,
    MuxedConnError,
    trio.BrokenResourceError,
    trio.ClosedResourceError,
    EOFError,
    OSError,
)


class FrameKind(enum.IntEnum):
    REQUEST = 1
    ANSWER = 2
    CLOSE = 3


def frame_head(kind: FrameKind, number: int, size: int) -> bytes:
    return _HEAD.pack(_REST + size, kind, number)


def encode_frame(kind: FrameKind, number: int, payload: bytes = b"") -> bytes:
    return frame_head(kind, number, len(payload)) + payload


class _Pending:
    """An exchange of ours that waits for its answer."""

    __slots__ = ("answer", "done")

    def __init__(self) -> None:
        self.done = trio.Event()
        self.answer: bytes | None = None


class _Outgoing(NamedTuple):
    """A frame that waits to be written; `written` is set when it is."""

    kind: FrameKind
    number: int
    payload: bytes
    written: trio.Event


class _LinkEndedError(Exception):
    """Ends the reading task; `reason` is for the log and for whoever still waits for an answer."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Link:
    """A PeerLink over one stream. `run` owns it; everything else may be called from any task."""

    def __init__(
        self,
        stream: INetStream,
        *,
        opened_by_us: bool,
        admitted: Callable[[], bool],
        payload_bytes_max: int,
        counters: Counters,
        tuning: Tuning,
        log: logging.Logger,
    ) -> None:
        self._stream = stream
        self._opened_by_us = opened_by_us
        self._admitted = admitted
        self._payload_max = payload_bytes_max
        self._counters = counters
        self._tuning = tuning
        self._log = log
        self._peer_id = str(stream.muxed_conn.peer_id)
        self._remote = _remote_address(stream)
        self._ended: str | None = None
        self._scope = trio.CancelScope()
        self._outbound, self._to_write = trio.open_memory_channel[_Outgoing](tuning.exchanges_max)
        self._slots = trio.Semaphore(tuning.exchanges_max)
        self._pending: dict[int, _Pending] = {}
        self._next_number = 0
        self._buffer = bytearray()
        self._running = trio.Semaphore(tuning.requests_running)
        self._requests = 0
        self._request_bytes = 0
        self._room = trio.Event()

    def __repr__(self) -> str:
        state = self._ended or "open"
        return f"<Link {self._peer_id[-8:]} {self._remote} {state} pending={len(self._pending)}>"

    @property
    def peer_id(self) -> str:
        return self._peer_id

    @property
    def remote_address(self) -> str:
        return self._remote

    @property
    def opened_by_us(self) -> bool:
        return self._opened_by_us

    @property
    def closed(self) -> bool:
        return self._ended is not None

    async def exchange(self, request: bytes) -> bytes:
        """See PeerLink. More than a few at once wait for their turn; a cancelled one leaves no trace
        but its late answer, which is dropped."""
        if len(request) > self._payload_max:
            raise TransportError("too_large", f"{len(request)} bytes, at most {self._payload_max}")
        async with self._slots:
            if self._ended is not None:
                raise TransportError(self._ended)
            number = self._take_number()
            pending = self._pending[number] = _Pending()
            try:
                await self._outbound.send(_Outgoing(FrameKind.REQUEST, number, request, trio.Event()))
                await pending.done.wait()
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                raise TransportError(self._why()) from error
            finally:
                del self._pending[number]
        if pending.answer is None:
            raise TransportError(self._why())
        return pending.answer

    async def aclose(self) -> None:
        """See PeerLink. Whoever runs inside `on_link` is cancelled once the peer has been told."""
        self._end("closed")
        await trio.lowlevel.checkpoint_if_cancelled()

    async def run(self, handler: P2PHandler) -> None:
        """Serve the link to its end; returns, and never raises, however it ends."""
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._write)
                    nursery.start_soon(self._read, handler, nursery)
                    await self._own(handler)
                    self._end("closed")
                    await trio.sleep_forever()  # until the writer has said so
        finally:
            self._end("cancelled")
            with trio.CancelScope(shield=True), trio.move_on_after(self._tuning.link_close_s):
                await self._discard()

    async def _own(self, handler: P2PHandler) -> None:
        try:
            await handler.on_link(self)
        except Exception as error:  # noqa: BLE001 - the node's code; the lung outlives it
            self._raised("on_link", error)

    def _end(self, reason: str) -> None:
        """Say how the link ended, once; wake everyone who waits; let the writer say goodbye."""
        if self._ended is not None:
            return
        self._ended = reason
        for pending in self._pending.values():
            pending.done.set()
        if reason == "closed":
            # The writer sends what is queued, then the goodbye, then ends the link.
            self._scope.deadline = trio.current_time() + self._tuning.link_close_s
        else:
            self._scope.cancel()
        self._outbound.close()

    def _why(self) -> str:
        return self._ended or "reset"

    def _take_number(self) -> int:
        while self._next_number in self._pending:
            self._next_number = (self._next_number + 1) % 2**32
        number = self._next_number
        self._next_number = (number + 1) % 2**32
        return number

    async def _write(self) -> None:
        try:
            async with self._to_write:
                async for frame in self._to_write:
                    await self._write_one(frame)
                    frame.written.set()
            await self._stream.write(encode_frame(FrameKind.CLOSE, 0))
        except trio.TooSlowError:
            self._counters.add("link_stalled")
            self._end("stalled")
        except STREAM_ERRORS as error:
            self._log.debug("link to %s: cannot write: %r", self._peer_id, error)
            # The library gives up after five seconds in which the peer took nothing at all.
            stalled = "window update" in str(error.__cause__)
            if stalled:
                self._counters.add("link_stalled")
            self._end("stalled" if stalled else "reset")
        self._scope.cancel()

    async def _write_one(self, frame: _Outgoing) -> None:
        """Raises TooSlowError: a peer that takes nothing more must not hold what waits for it for ever."""
        kind, number, payload, _ = frame
        with trio.fail_after(self._tuning.frame_s(len(payload))):
            if len(payload) < _READ:
                await self._stream.write(encode_frame(kind, number, payload))
            else:  # a page is not copied once more
                await self._stream.write(frame_head(kind, number, len(payload)))
                await self._stream.write(payload)

    async def _read(self, handler: P2PHandler, nursery: trio.Nursery) -> None:
        try:
            while True:
                length, kind, number = _HEAD.unpack(await self._take(_HEAD.size))
                if not _REST <= length <= _REST + self._payload_max:
                    self._counters.add("link_oversize")
                    raise _LinkEndedError("too_large")
                size = length - _REST
                if kind == FrameKind.REQUEST:
                    await self._make_room(size)
                with trio.fail_after(self._tuning.frame_s(size)):
                    payload = await self._take(size)
                self._dispatch(kind, number, payload, handler, nursery)
        except _LinkEndedError as error:
            self._log.debug("link to %s ends: %s", self._peer_id, error.reason)
            self._end(error.reason)
        except trio.TooSlowError:
            self._counters.add("link_slow")
            self._end("slow")
        except STREAM_ERRORS as error:
            self._log.debug("link to %s: cannot read: %r", self._peer_id, error)
            self._end("reset")

    def _dispatch(
        self, kind: int, number: int, payload: bytes, handler: P2PHandler, nursery: trio.Nursery
    ) -> None:
        if kind == FrameKind.REQUEST:
            nursery.start_soon(self._serve, number, payload, handler)
        elif kind == FrameKind.ANSWER:
            pending = self._pending.get(number)
            if pending is None:
                self._counters.add("link_late_answer")
            else:
                pending.answer = payload
                pending.done.set()
        elif kind == FrameKind.CLOSE:
            raise _LinkEndedError("closed_by_peer")
        else:
            self._counters.add("link_malformed")
            raise _LinkEndedError("malformed")

    async def _serve(self, number: int, request: bytes, handler: P2PHandler) -> None:
        """Answer a request. It counts as one until its answer is on its way: whoever asks and never
        reads fills its own places, and not our memory."""
        try:
            async with self._running:
                await self._answer(number, request, handler)
        finally:
            self._requests -= 1
            self._request_bytes -= len(request)
            self._room.set()

    async def _answer(self, number: int, request: bytes, handler: P2PHandler) -> None:
        try:
            answer = await handler.on_request(self, request)
        except Exception as error:  # noqa: BLE001 - the node's code; the lung outlives it
            self._raised("on_request", error)
            answer = None
        if answer is not None and len(answer) > self._payload_max:
            self._raised("on_request", TransportError("too_large", f"an answer of {len(answer)} bytes"))
            answer = None
        if answer is None:
            self._end("closed")
        elif self._ended is None:
            # the link ended meanwhile; nobody waits
            with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                frame = _Outgoing(FrameKind.ANSWER, number, answer, trio.Event())
                await self._outbound.send(frame)
                await frame.written.wait()

    async def _make_room(self, size: int) -> None:
        """Wait before reading a request that would not fit. The peer feels it as back-pressure."""
        tuning = self._tuning
        while self._requests:
            bytes_max = tuning.request_bytes_max if self._admitted() else tuning.request_stranger_bytes_max
            count_max = tuning.requests_running + tuning.requests_waiting
            if self._requests < count_max and self._request_bytes + size <= bytes_max:
                break
            self._room = trio.Event()
            await self._room.wait()
        self._requests += 1
        self._request_bytes += size

    async def _take(self, size: int) -> bytes:
        while len(self._buffer) < size:
            self._buffer += await self._stream.read(_READ)
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken

    async def _discard(self) -> None:
        for close in (self._stream.close, self._stream.reset):
            with contextlib.suppress(*STREAM_ERRORS):  # it may be broken already
                await close()

    def _raised(self, where: str, error: BaseException) -> None:
        self._counters.add("handler_raised")
        self._log.error("%s raised, the link to %s is closed: %r", where, self._peer_id, error)


def _remote_address(stream: INetStream) -> str:
    muxed: Any = stream.muxed_conn
    try:  # libp2p's own get_remote_address gives None for every IPv6 peer
        name = muxed.secured_conn.conn.conn.stream.stream.socket.getpeername()
    except (AttributeError, OSError):
        return "unknown"
    return f"[{name[0]}]:{name[1]}" if ":" in name[0] else f"{name[0]}:{name[1]}"
