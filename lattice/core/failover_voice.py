"""What the heartbeat monitor says: the outputs of one input in order, log sentences, alarms.

Separate so that the machine states a fact once, and here alone it is decided whether that is news.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from .failover_events import (
    Alarm,
    AlarmCleared,
    AlarmRaised,
    FieldValue,
    Level,
    LogLine,
    MonitorOutput,
    Tag,
)
from .failover_table import LEVELS, Sentence, sentence_text


@dataclass(slots=True)
class Voice:
    """Collects outputs; a sentence or an alarm that stands already is counted, not repeated."""

    timeout_s: float
    alarms: dict[Alarm, str] = field(default_factory=dict)
    _outputs: list[MonitorOutput] = field(default_factory=list)
    _last: dict[Tag, str] = field(default_factory=dict)
    _repeats: dict[Tag, int] = field(default_factory=dict)

    def emit(self, output: MonitorOutput) -> None:
        """Add an output as it is."""
        self._outputs.append(output)

    def take(self) -> list[MonitorOutput]:
        """The outputs since the last call, in order."""
        outputs, self._outputs = self._outputs, []
        return outputs

    def say(
        self,
        tag: Tag,
        sentence: Sentence,
        level: Level | None = None,
        *,
        left_s: float = 0,
        count: int = 0,
        fields: dict[str, FieldValue] | None = None,
    ) -> None:
        """Log one of the sentences that operators grep for."""
        text = sentence_text(sentence, timeout_s=self.timeout_s, left_s=left_s, count=count)
        self.log(level or LEVELS[sentence], tag, text, fields or {})

    def log(self, level: Level, tag: Tag, text: str, fields: dict[str, FieldValue]) -> None:
        """Log a line, unless its tag said the same last; how often it did stands in the next line."""
        if self._last.get(tag) == text:
            self._repeats[tag] = self._repeats.get(tag, 0) + 1
            return
        repeats = self._repeats.pop(tag, 0)
        self._last[tag] = text
        self.emit(LogLine(level, tag, text, {**fields, "repeats_before": repeats} if repeats else fields))

    def raise_alarm(self, code: Alarm, text: str, level: Level = "ERROR") -> None:
        """Raise an alarm, or say its new reason; one that stands with the same text is left alone."""
        if self.alarms.get(code) == text:
            return
        self.alarms[code] = text
        self.emit(AlarmRaised(code, text, level))
        self.log(level, "ALERT", text, {"alarm": code.value})

    def clear_alarm(self, code: Alarm) -> None:
        """Clear an alarm that stands; otherwise nothing."""
        if code in self.alarms:
            del self.alarms[code]
            self.emit(AlarmCleared(code))
            self.log("INFO", "ALERT", f"Cleared: {code}", {"alarm": code.value})
