"""Turns: what one peer brings goes through the engine one request after the other.

Separate because it is the whole of fairness between peers: the engine takes what waits in the order in
which it came, so that a peer with one request in line gets its turn after at most one of every other,
and a peer with sixty in line would get sixty turns for one.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from ..core.errors import LatticeError
from ..core.limits import TURNS_WAITING_MAX


@dataclass(slots=True)
class _Line:
    """The requests of one peer: one in the engine, the others in line."""

    held: int = 0
    lock: trio.Lock = field(default_factory=trio.Lock)


class Turns:
    """One line a peer; a line that is empty is forgotten."""

    def __init__(self) -> None:
        self._lines: dict[bytes, _Line] = {}

    def __len__(self) -> int:
        return len(self._lines)

    @asynccontextmanager
    async def take(self, peer: bytes) -> AsyncIterator[None]:
        """Wait for this peer's turn. Raises `too_many` when its line is full: an honest peer sends the
        next page of a round when the one before has been answered."""
        line = self._lines.setdefault(peer, _Line())
        if line.held > TURNS_WAITING_MAX:
            raise LatticeError("too_many", "Too many pages of one peer at once; send one after the other.")
        line.held += 1
        try:
            async with line.lock:
                yield
        finally:
            line.held -= 1
            if not line.held:
                del self._lines[peer]
