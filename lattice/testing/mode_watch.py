"""I6, watched: whether the mode of one node tells the truth, by what it heard and when.

Separate from the other invariants because it is kept over time, and from the monitor because it
counts in its own way: it knows the promises (60 s, 15 s, who is polled), not the machine.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from ..core.failover_events import (
    PLACEHOLDER_PREFIX,
    BeatHeard,
    DirectSet,
    Mode,
    ModeChanged,
    MonitorInput,
    MonitorOutput,
    P2PFailed,
    P2PStarted,
    PeerForgotten,
    PeerIdentified,
    PeerKnown,
    Policy,
    PolicySet,
    PollDue,
    PollsStopped,
    PresenceHeard,
    RoundGood,
    Tick,
)

# The monitor ticks every half second; a promise is checked to within one tick and rounding.
_SLACK_S: Final = 0.01


@dataclass(slots=True)
class _Heard:
    """What a peer was heard to do over P2P. Times are seconds of the run's clock."""

    known_at: float
    beat_at: float | None = None
    round_at: float | None = None
    streak_at: float | None = None
    direct: bool = False
    interval_s: float = 0.0
    polled: bool = False
    fell_at: float | None = None  # unheard for 60 s, and not back since

    def silent_since(self, timeout_s: float, now: float) -> float:
        """For how long at least one of the two evidences has been missing."""
        beat_age = now - max(self.known_at, self.beat_at or self.known_at)
        if not self.direct:
            return beat_age
        round_age = now - max(self.known_at, self.round_at or self.known_at)
        return max(beat_age, round_age) if beat_age < timeout_s else beat_age


@dataclass(slots=True)
class ModeWatch:
    """Fed with every input and output of one monitor (`Heartbeat.observe`); collects what is false."""

    p2p_enabled: bool = True
    policy: Policy = Policy.AUTO
    peerless_timeout_s: float = 60.0
    return_after_s: float = 15.0
    beat_gap_s: float = 6.0
    mode: Mode | None = None
    found: list[str] = field(default_factory=list)
    changes: list[tuple[float, Mode]] = field(default_factory=list)
    _peers: dict[str, _Heard] = field(default_factory=dict)
    _now: float = 0.0
    _late_s: float = 0.0
    _by_hand_at: float = -1e9
    _p2p_failed: bool = False

    def observe(self, event: MonitorInput, outputs: list[MonitorOutput]) -> None:
        """Take note, then judge what followed."""
        self._now = max(self._now, event.t)
        self._note(event)
        if isinstance(event, Tick):
            self._note_fallen()
        for output in outputs:
            match output:
                case ModeChanged():
                    self._judge_mode(output)
                case PollDue():
                    self._judge_poll(output.peer)
                case PollsStopped():
                    for peer in output.peers:
                        self._judge_stop(peer)
                case _:
                    pass
        if isinstance(event, Tick):
            self._judge_unpolled()

    # What was heard.

    def _note(self, event: MonitorInput) -> None:
        match event:
            case Tick():
                self._late_s += event.lateness_s
            case PeerKnown():
                self._peers.setdefault(event.peer, _Heard(event.t))
            case PeerIdentified():
                old = self._peers.pop(event.placeholder, None)
                if old is not None:
                    held = self._peers.setdefault(event.peer, old)
                    held.known_at = min(held.known_at, old.known_at)
                    held.polled = held.polled or old.polled
            case PeerForgotten():
                self._peers.pop(event.peer, None)
            case DirectSet():
                for peer, heard in self._peers.items():
                    if heard.direct != (peer in event.peers):
                        heard.direct = not heard.direct
                        heard.streak_at = None
                        if heard.direct and heard.fell_at is None:
                            # Rounds begin with the beat stream: their 60 s count from here.
                            heard.round_at = event.t
            case BeatHeard():
                self._beat(event.peer, event.t, 0.0)
            case PresenceHeard() if event.head_held:
                self._beat(event.peer, event.t, event.interval_s)
            case RoundGood() if event.lung == "p2p" and event.peer in self._peers:
                self._peers[event.peer].round_at = event.t
            case PolicySet():
                self.policy, self._by_hand_at = event.policy, event.t
            case P2PFailed():
                self._p2p_failed = True
            case P2PStarted():
                self._p2p_failed = False
            case _:
                pass

    def _beat(self, peer: str, t: float, interval_s: float) -> None:
        heard = self._peers.get(peer)
        if heard is None or (interval_s and heard.direct):
            return
        heard.interval_s = interval_s
        gap_s = max(self.beat_gap_s, 2 * interval_s)
        if heard.beat_at is None or t - heard.beat_at > gap_s or heard.streak_at is None:
            heard.streak_at = t
        heard.beat_at = t

    def _note_fallen(self) -> None:
        """A poll may wait for its turn: what counts is that the 60 s were once over."""
        for heard in self._peers.values():
            if self._silent_s(heard) >= self.peerless_timeout_s - _SLACK_S:
                heard.fell_at = self._now if heard.fell_at is None else heard.fell_at

    # What may follow.

    @property
    def _excused(self) -> bool:
        """A policy set by hand, no P2P, or one that did not start: not judged by the 60 s."""
        return (
            self.policy is not Policy.AUTO
            or self._now - self._by_hand_at < self.peerless_timeout_s
            or not self.p2p_enabled
            or self._p2p_failed
        )

    def _silent_s(self, heard: _Heard) -> float:
        return heard.silent_since(self.peerless_timeout_s, self._now)

    def _judge_mode(self, change: ModeChanged) -> None:
        self.changes.append((self._now, change.mode))
        before, self.mode = self.mode, change.mode
        if self._excused:
            return
        if change.mode is Mode.HTTP and before is Mode.P2P:
            # Whoever was never heard keeps no headline; only its own polls wait for its 60 s.
            first_s = self._now - min((heard.known_at for heard in self._peers.values()), default=self._now)
            if first_s < self.peerless_timeout_s - _SLACK_S:
                self._say(f"HTTP {first_s:.2f} s after the first peer became known")
            for peer, heard in self._peers.items():
                silent_s = self._silent_s(heard)
                stands = heard.beat_at is not None and heard.fell_at is None
                if stands and silent_s < self.peerless_timeout_s - _SLACK_S:
                    self._say(f"HTTP although {_short(peer)} was heard {silent_s:.2f} s ago")
        if change.mode is Mode.P2P and before is Mode.HTTP:
            best = max((self._streak_s(heard) for heard in self._peers.values()), default=0.0)
            if best < self.return_after_s - _SLACK_S:
                self._say(f"back to P2P after {best:.2f} s of beats")

    def _judge_poll(self, peer: str) -> None:
        heard = self._peers.get(peer)
        if heard is None:
            self._say(f"a poll of {_short(peer)}, which is not known")
            return
        if not heard.polled and heard.fell_at is None and not self._excused:
            self._say(f"{_short(peer)} is polled, {self._silent_s(heard):.2f} s after it was heard")
        heard.polled = True

    def _judge_stop(self, peer: str) -> None:
        heard = self._peers.get(peer)
        if heard is None:
            return
        was_polled, heard.polled, heard.fell_at = heard.polled, False, None
        if not was_polled or self._excused or peer.startswith(PLACEHOLDER_PREFIX):
            return
        if self._streak_s(heard) < self.return_after_s - _SLACK_S:
            self._say(f"polls of {_short(peer)} ended after {self._streak_s(heard):.2f} s of beats")

    def _streak_s(self, heard: _Heard) -> float:
        """For how long beats have come without a gap, up to now."""
        if heard.streak_at is None or heard.beat_at is None:
            return 0.0
        return self._now - heard.streak_at

    def _judge_unpolled(self) -> None:
        """Whoever is unheard for 60 s gets its first poll as soon as its turn comes: three polls
        start every ten seconds, and one of them goes to peers that have not answered yet."""
        if self._excused:
            return
        turns_s = 10.0 * (1 + len(self._peers))
        for peer, heard in self._peers.items():
            timeout_s = max(self.peerless_timeout_s, 0.0 if heard.direct else 3 * heard.interval_s)
            silent_s = self._now - max(heard.known_at, heard.beat_at or heard.known_at)
            if not heard.polled and silent_s > timeout_s + turns_s + self._late_s:
                self._say(f"{_short(peer)} is not polled {silent_s:.1f} s after its last beat")
                heard.known_at = self._now

    def _say(self, text: str) -> None:
        self.found.append(f"{text} (at {self._now:.3f} s)")


def _short(peer: str) -> str:
    return peer if peer.startswith(PLACEHOLDER_PREFIX) else peer[-8:]
