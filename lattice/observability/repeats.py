"""Which log lines are written and which are only counted.

Separate from the writing of logs because it is a small pure machine: a line and a time go in, the
lines to write come out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

WINDOW_S: Final = 60.0
WINDOW_LINES_MAX: Final = 20  # one sentence, whatever its fields: a flood of refusals stays readable
SENTENCES_MAX: Final = 256  # tracked at once; beyond it the oldest is settled first


@dataclass(frozen=True, slots=True)
class Line:
    """One thing to say. `fields` are text already; `repeats` is how often it was held back before."""

    level: int
    tag: str
    sentence: str
    fields: tuple[tuple[str, str], ...] = ()
    repeats: int = 0

    @property
    def topic(self) -> tuple[str, int, str]:
        return (self.tag, self.level, self.sentence)


@dataclass(slots=True)
class _Topic:
    """One sentence within its window: what was said last, what was written, what was held back."""

    since_s: float
    last: Line
    written: int = 1
    held: int = 0


@dataclass(slots=True)
class Repeats:
    """Holds repetitions back and counts them.

    A line that only repeats the last one of its tag is held back; so is a sentence that was written
    WINDOW_LINES_MAX times in its window. A change is never hidden: A, B, A are three lines. What was
    held back is summed up when something else is said under the tag, and at the end of the window.
    """

    _topics: dict[tuple[str, int, str], _Topic] = field(default_factory=dict)
    _latest: dict[str, Line] = field(default_factory=dict)

    def say(self, line: Line, now_s: float) -> list[Line]:
        """The lines to write now. `now_s` is seconds on a clock that never steps back."""
        due = self.settle(now_s)
        topic = self._topics.get(line.topic)
        before = self._latest.get(line.tag)
        self._latest[line.tag] = line
        if topic is None:
            if len(self._topics) >= SENTENCES_MAX:
                due += self._end(next(iter(self._topics)))
            self._topics[line.topic] = _Topic(now_s, line)
            return [*due, *self._changed(before, line), line]
        topic.last = line
        if before == line or topic.written >= WINDOW_LINES_MAX:
            topic.held += 1
            return due
        topic.written += 1
        return [*due, *self._changed(before, line), line]

    def settle(self, now_s: float) -> list[Line]:
        """The sums of the windows that have ended; call it now and then when nothing is said."""
        due: list[Line] = []
        for key, topic in list(self._topics.items()):
            if now_s - topic.since_s < WINDOW_S:
                continue
            due += self._end(key)
            if topic.held:  # it goes on: one sum a window, not a sum and the line again
                self._topics[key] = _Topic(now_s, topic.last, written=0)
        return due

    def finish(self) -> list[Line]:
        """The sums of everything that is still held back."""
        return [line for key in list(self._topics) for line in self._end(key)]

    def _changed(self, before: Line | None, line: Line) -> list[Line]:
        """Sum up the line that was being repeated, now that its tag says something else."""
        topic = self._topics.get(before.topic) if before and before != line else None
        if topic is None or not topic.held or topic.written >= WINDOW_LINES_MAX:
            return []
        held, topic.held = topic.held, 0
        return [_sum(topic.last, held)]

    def _end(self, key: tuple[str, int, str]) -> list[Line]:
        topic = self._topics.pop(key)
        return [_sum(topic.last, topic.held)] if topic.held else []


def _sum(line: Line, held: int) -> Line:
    return Line(line.level, line.tag, line.sentence, line.fields, held)
