"""A token bucket: how much of something one peer may have in a time.

Separate because messages on their way in and bytes on their way out are held to the same rule.
"""

from __future__ import annotations


class Bucket:
    """`burst` at first, `rate` more a second, never over `burst`. Times in seconds of one clock."""

    __slots__ = ("_at", "_burst", "_level", "_rate")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate = rate
        self._burst = burst
        self._level = burst
        self._at = now

    def take(self, now: float, amount: float = 1.0) -> bool:
        """Take so much, or nothing where there is less."""
        self._level = min(self._burst, self._level + (now - self._at) * self._rate)
        self._at = now
        if self._level < amount:
            return False
        self._level -= amount
        return True
