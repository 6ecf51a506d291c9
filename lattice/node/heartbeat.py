"""Drives the heartbeat monitor: feeds it what happened, ticks it, carries out what it decides.

Separate because the monitor is pure and decides everything; here are only its clock, its log lines
and its alarms.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, assert_never

import trio

from ..core.failover import Monitor
from ..core.failover_events import (
    AlarmCleared,
    AlarmRaised,
    LogLine,
    ModeChanged,
    MonitorInput,
    MonitorOutput,
    MonitorView,
    PollDue,
    PollsStopped,
    ProbeDue,
    RoundDue,
    Tick,
)
from .ports import Log

TICK_S: Final = 0.5

Order = PollDue | PollsStopped | ProbeDue | RoundDue


class Heartbeat:
    """The monitor with its clock. `act` is called for every poll, probe or round that is due."""

    def __init__(self, monitor: Monitor, log: Log, act: Callable[[Order], None]) -> None:
        self._monitor = monitor
        self._log = log
        self._act = act
        self.active = False
        self.late_s = 0.0  # all lateness of the ticks
        self.alarms: dict[str, str] = {}
        self.warnings: dict[str, str] = {}
        self.mode = monitor.view(trio.current_time()).mode
        self.on_mode: Callable[[ModeChanged], None] = lambda change: None
        self.on_alarm: Callable[[AlarmRaised | AlarmCleared], None] = lambda output: None
        # For whoever watches the monitor: every input with what followed from it.
        self.observe: Callable[[MonitorInput, list[MonitorOutput]], None] = lambda event, outputs: None

    def view(self) -> MonitorView:
        return self._monitor.view(trio.current_time())

    def feed(self, event: MonitorInput) -> None:
        """Hand one input to the monitor and carry out its outputs, in order."""
        outputs = self._monitor.handle(event)
        self.observe(event, outputs)
        for output in outputs:
            match output:
                case LogLine():
                    speak = {"INFO": self._log.info, "WARNING": self._log.warning, "ERROR": self._log.error}
                    speak[output.level](output.tag, output.sentence, **dict(output.fields))
                case ModeChanged():
                    self.mode = output.mode
                    self.on_mode(output)
                case AlarmRaised():
                    shown = self.alarms if output.level == "ERROR" else self.warnings
                    shown[output.code.value] = output.text
                    self.on_alarm(output)
                case AlarmCleared():
                    self.alarms.pop(output.code.value, None)
                    self.warnings.pop(output.code.value, None)
                    self.on_alarm(output)
                case PollDue() | PollsStopped() | ProbeDue() | RoundDue():
                    self._act(output)
                case _:
                    assert_never(output)

    def tick(self) -> None:
        """Judge now: after a switch the new mode is in force at once."""
        self.feed(Tick(trio.current_time()))

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Tick for ever. How late a tick comes is told, so that a stalled loop accuses nobody."""
        planned = trio.current_time()
        self.feed(Tick(planned))
        self.active = True
        self._log.info("STARTUP", "P2P Heartbeat Monitor activated")
        task_status.started()
        try:
            while True:
                planned += TICK_S
                await trio.sleep_until(planned)
                now = trio.current_time()
                self.late_s += max(0.0, now - planned)
                self.feed(Tick(now, max(0.0, now - planned)))
                planned = max(planned, now - TICK_S)
        finally:
            self.active = False
