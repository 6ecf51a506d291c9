"""The hybrid logical clock of entries: 48 bits of milliseconds, 16 bits of count.

Separate because it is the one place where wall time enters the ledger, and it does so as an input
that never decides what is valid. Kulkarni and others, "Logical Physical Clocks", 2014.
"""

from __future__ import annotations

from .limits import CLOCK_AHEAD_MS_MAX


def clock_text(clock: int) -> str:
    """A hybrid clock as `milliseconds-count`: as a number it would not survive most JSON parsers."""
    return f"{clock >> 16}-{clock & 0xFFFF}"


class HybridClock:
    """Hands out rising clock values for our own entries."""

    __slots__ = ("_last", "skewed")

    def __init__(self, last: int = 0) -> None:
        self._last = last
        self.skewed = 0

    @property
    def last(self) -> int:
        return self._last

    def next(self, now_ms: int) -> int:
        """The clock of a new entry: above everything seen. A full count carries into the ms."""
        self._last = min(max(now_ms << 16, self._last + 1), 2**64 - 1)
        return self._last

    def seen(self, clock: int, now_ms: int) -> None:
        """Advance past a remote clock, unless it is further ahead than any honest skew."""
        if clock >> 16 > now_ms + CLOCK_AHEAD_MS_MAX:
            self.skewed += 1
            return
        self._last = max(self._last, clock)
