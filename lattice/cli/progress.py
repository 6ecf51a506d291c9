"""One line of progress on a terminal, drawn over itself.

Separate because every long command shows the same, and none of it where standard error is a file.
"""

from __future__ import annotations

import os
import sys
import time
from types import TracebackType
from typing import Final, Self

_REDRAW_S: Final = 0.2
_BAR_CELLS: Final = 20
_COLUMNS: Final = 80  # of a terminal that does not say


class Progress:
    """`what` is counted; `last` is said once everything is done. The line is gone after the `with` block,
    so that what is said next, a complaint as well, has a line of its own."""

    def __init__(self, what: str, *, last: str = "") -> None:
        self._what = what
        self._last = last
        self._shown_at = 0.0
        self._drawn = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.clear()

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
        line = f"[{bar}] {share} %  {done} of {of} {self._what}{rest}"
        # A line that wraps cannot be drawn over.
        sys.stderr.write(f"\r\x1b[K{line[: _columns() - 1]}")
        sys.stderr.flush()

    def clear(self) -> None:
        if self._drawn:
            self._drawn = False
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def _columns() -> int:
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or _COLUMNS
    except OSError:
        return _COLUMNS
