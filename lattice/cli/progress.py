"""One line of progress on a terminal, drawn over itself.

Separate because every long command shows the same, and none of it where standard error is a file.
"""

from __future__ import annotations

import sys
import time
from typing import Final

_REDRAW_S: Final = 0.2
_BAR_CELLS: Final = 20


class Progress:
    """`what` is counted; `last` is said once everything is done."""

    def __init__(self, what: str, *, last: str = "") -> None:
        self._what = what
        self._last = last
        self._shown_at = 0.0
        self._drawn = False

    def show(self, done: int, of: int) -> None:
        now = time.monotonic()
        if not sys.stderr.isatty() or (now - self._shown_at < _REDRAW_S and done != of):
            return
        self._shown_at = now
        self._drawn = True
        filled = _BAR_CELLS * done // max(of, 1)
        bar = "#" * filled + "." * (_BAR_CELLS - filled)
        share = 100 * done // max(of, 1)
        rest = self._last if done == of else ""
        sys.stderr.write(f"\r\x1b[K[{bar}] {share} %  {done} of {of} {self._what}{rest}")
        sys.stderr.flush()

    def clear(self) -> None:
        if self._drawn:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
