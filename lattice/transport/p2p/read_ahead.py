"""Buffered reading of a libp2p stream.

Separate because it is about cost alone: libp2p reads a message's length byte by byte, and yamux
answers every read, however small, with an encrypted window update.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from libp2p.abc import INetStream

_CHUNK: Final = 64 * 1024


class ReadAhead:
    """A stream whose small reads are served from a larger one; all else is the stream's own."""

    def __init__(self, stream: INetStream) -> None:
        self._stream = stream
        self._ahead = bytearray()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    async def read(self, n: int | None = None) -> bytes:
        """At most `n` bytes; raises what the stream raises once the buffer is empty."""
        if not self._ahead:
            wanted = _CHUNK if n is None or n < 0 else max(n, _CHUNK)
            self._ahead += await self._stream.read(wanted)
        size = len(self._ahead) if n is None or n < 0 else n
        taken = bytes(self._ahead[:size])
        del self._ahead[:size]
        return taken
