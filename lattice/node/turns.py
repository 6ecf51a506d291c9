"""Turns: what one peer brings goes through the engine one request after the other, with a rest in between.

Separate because it is the whole of fairness between peers: the engine takes what waits in the order in
which it came, so that a peer with one request in line gets its turn after at most one of every other, and
a peer with sixty in line would get sixty turns for one.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

import trio

from ..core.entry import parse_header
from ..core.errors import LatticeError
from ..core.limits import TURNS_WAITING_MAX
from ..core.messages import Entries, Message, Proof

# A peer rests for three times what its page took: it has at most a quarter of the engine here, since what
# it brought costs as much again where others fetch it from us. It does not rest longer than this, since a
# page may have waited for the disk; and who is alone does not rest.
REST_SHARE: Final = 3.0
REST_S_MAX: Final = 1.0
REFUSAL_S: Final = 0.5  # how long a refusal for a full line is held back
_OTHERS_S: Final = 1.0  # whoever did something so lately is there
# An entry is parsed, hashed, compared and stored; each of its ops is applied; all its bytes are written.
_ENTRY_S: Final = 100e-6
_OP_S: Final = 15e-6
_BYTE_S: Final = 5e-9
_PROOF_S: Final = 2e-3  # up to 128 headers hashed and two seals verified


@dataclass(slots=True)
class _Line:
    """The requests of one peer: one in the engine, the others in line; and until when it rests."""

    held: int = 0
    rests_until: float = 0.0
    lock: trio.Lock = field(default_factory=trio.Lock)


class Turns:
    """One line a peer; a line that is empty and has rested is forgotten."""

    def __init__(self) -> None:
        self._lines: dict[bytes, _Line] = {}
        self._seen: dict[bytes, float] = {}  # the last two who did something, and when

    def __len__(self) -> int:
        return len(self._lines)

    def note(self, who: bytes) -> None:
        """Somebody uses the node: a peer by its public key, this machine's own programs by none."""
        self._seen.pop(who, None)
        self._seen[who] = trio.current_time()
        if len(self._seen) > 2:
            del self._seen[next(iter(self._seen))]

    def is_full(self, peer: bytes) -> bool:
        """Whether one more request of this peer would be refused."""
        line = self._lines.get(peer)
        return line is not None and line.held > TURNS_WAITING_MAX

    @asynccontextmanager
    async def take(self, peer: bytes) -> AsyncIterator[None]:
        """Wait for this peer's turn. Raises `too_many` when its line is full: an honest peer sends the
        next page of a round when the one before has been answered."""
        if self.is_full(peer):
            raise too_many()
        self._forget_rested()
        line = self._lines.setdefault(peer, _Line())
        line.held += 1
        try:
            async with line.lock:
                await trio.sleep_until(line.rests_until)
                began = trio.current_time()
                yield
                self._rest(line, peer, began)
        finally:
            line.held -= 1

    def affords(self, peer: bytes, cost_s: float) -> bool:
        """Whether a hint of this peer is taken, at once: gossip comes in many small pieces, which share a
        commit, and none of them must wait for the one before. Its work is booked as rest; who has more
        than REST_S_MAX of that before it lets its hints fall, and the next round brings what was in them."""
        now = trio.current_time()
        self._forget_rested()
        if not self._has_others(peer, now):
            return True
        line = self._lines.setdefault(peer, _Line())
        if line.rests_until > now + REST_S_MAX:
            return False
        line.rests_until = max(line.rests_until, now) + (1 + REST_SHARE) * cost_s
        return True

    def _rest(self, line: _Line, peer: bytes, began: float) -> None:
        now = trio.current_time()
        if self._has_others(peer, now):
            rest_s = min(REST_SHARE * (now - began), REST_S_MAX)
            line.rests_until = max(line.rests_until, now + rest_s)

    def _has_others(self, peer: bytes, now: float) -> bool:
        return any(who != peer and now - when < _OTHERS_S for who, when in self._seen.items())

    def _forget_rested(self) -> None:
        now = trio.current_time()
        for peer in [peer for peer, line in self._lines.items() if not line.held and line.rests_until <= now]:
            del self._lines[peer]


def cost_s(messages: Iterable[Message]) -> float:
    """What entries cost the engine and the store, about: the loop of one core is the measure. Raises
    MalformedError."""
    total = 0.0
    for message in messages:
        if isinstance(message, Entries):
            ops = sum(parse_header(header).op_count for header, _ in message.frames)
            total += _ENTRY_S * len(message.frames) + _OP_S * ops + _BYTE_S * message.size
        elif isinstance(message, Proof):
            total += _PROOF_S
    return total


def too_many() -> LatticeError:
    return LatticeError("too_many", "Too many pages of one peer at once; send one after the other.")
