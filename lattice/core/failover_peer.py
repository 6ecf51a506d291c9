"""What the heartbeat monitor knows about one peer, and its rules: heard, silent, proven, reachable.

Separate because every rule about a single peer can be read and tested here without the headline.
Times ending in `_e` are effective: monotonic seconds less all lateness of the loop, so that a node which
did not listen does not blame its peers. The others are monotonic seconds as given.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from .failover_events import (
    PLACEHOLDER_PREFIX,
    BeatHeard,
    MonitorConfig,
    PollEnded,
    PresenceHeard,
    ProbeEnded,
    RequestServed,
    RoundGood,
)
from .failover_table import Footing
from .membership import ring_point

PeerEvidence = BeatHeard | PresenceHeard | RoundGood | PollEnded | ProbeEnded | RequestServed


def is_sign_over_http(event: PeerEvidence) -> bool:
    """Whether HTTP has just carried something, from whichever side."""
    if isinstance(event, PollEnded):
        return event.answered
    if isinstance(event, ProbeEnded):
        return event.lung == "http" and event.ok
    return isinstance(event, RoundGood | RequestServed) and event.lung == "http"


def age(now: float, then: float | None) -> float | None:
    """Seconds since `then`, never negative; None where it never happened."""
    return None if then is None else max(0.0, now - then)


def latest(first: float | None, second: float | None) -> float | None:
    """The later of two times of which either may not have happened."""
    if first is None or second is None:
        return second if first is None else first
    return max(first, second)


def earliest(then: float | None, cap: float) -> float | None:
    """`then`, but no later than `cap`."""
    return None if then is None else min(then, cap)


def is_newer(first: float | None, second: float | None) -> bool:
    """Whether the first happened, and after the second if that did."""
    return first is not None and (second is None or first > second)


def next_due(planned: float, now: float, interval_s: float) -> float:
    """The time after `planned`, which comes at `now`: the cadence is kept over a little lateness, so that a
    tick a moment early does not miss it; what a long stall missed is not made up for."""
    return (planned if now - planned < interval_s / 4 else now) + interval_s


def put_off(due: float, t: float, interval_s: float) -> float:
    """When the next round is due after one that was good at `t`. One that we opened ourselves has already
    put it off by nearly an interval; one that the other side opened spares us ours."""
    return due if due - t > interval_s / 2 else t + interval_s


@dataclass(slots=True)
class LungRecord:
    """What was tried and answered over one lung of one peer."""

    ok_at: float | None = None
    good_at: float | None = None
    failures: int = 0  # attempts that failed since the last that was answered
    last_error: str | None = None
    probed_at: float | None = None
    probing: bool = False

    def answered(self, t: float) -> None:
        self.ok_at = latest(self.ok_at, t)
        self.failures = 0

    def failed(self, error: str | None) -> None:
        self.failures += 1
        self.last_error = error or "no answer"

    def reachable(self, now: float, config: MonitorConfig) -> bool:
        """Answered lately, and not only failures since."""
        since = age(now, self.ok_at)
        return (
            since is not None
            and since <= config.reachable_s
            and self.failures < config.reachable_failures_max
        )

    def merge(self, other: LungRecord) -> None:
        """Take over what another record of the same peer knows."""
        if is_newer(other.ok_at, self.ok_at):
            self.failures = other.failures
        self.last_error = self.last_error or other.last_error
        self.ok_at = latest(self.ok_at, other.ok_at)
        self.good_at = latest(self.good_at, other.good_at)
        self.probed_at = latest(self.probed_at, other.probed_at)
        self.probing = self.probing or other.probing


@dataclass(slots=True)
class PeerRecord:
    """One known peer. `footing` is changed by the monitor alone, by its table."""

    peer: str
    known_at: float
    known_e: float
    return_after_s: float
    footing: Footing = Footing.WAITING
    direct: bool = False
    point: int = field(init=False)
    # P2P
    heard_at: float | None = None
    heard_e: float | None = None  # the last beat, or for a peer beyond the direct ones presence
    round_e: float = field(init=False)  # the last good P2P round, or where its 60 s count from
    counted_e: float | None = None  # the last evidence that came while rounds were good: heard, in full
    padded_e: float | None = None  # the last good padded P2P round
    streak_e: float | None = None  # since when beats come without a gap
    streak_beats: int = 0
    presence_interval_s: float = 0.0
    head_held: bool = False
    fell_e: float | None = None
    returned_e: float | None = None  # the last return that was not by hand
    round_due_at: float = 0.0
    padded_due_at: float = 0.0
    p2p: LungRecord = field(default_factory=LungRecord)
    # HTTP
    http_heard_at: float | None = None
    http_good_e: float | None = None
    poll_answered: bool = False  # whether the last poll or HTTP probe was answered
    polled_at: float | None = None
    poll_no: int = 0  # rises with every poll of any peer, so that the longest unpolled is the lowest
    silent_polls: int = 0
    fruitless_polls: int = 0  # in a row; only a round that is good ends them, not a sign of life
    http: LungRecord = field(default_factory=LungRecord)

    def __post_init__(self) -> None:
        self.point = ring_point(self.peer)
        self.round_e = self.known_e

    @property
    def is_placeholder(self) -> bool:
        """Whether only an address is known, hence nothing that P2P could dial."""
        return self.peer.startswith(PLACEHOLDER_PREFIX)

    def timeout_s(self, config: MonitorConfig) -> float:
        """How long this peer may be unheard over P2P before HTTP takes over."""
        if self.direct:
            return config.peerless_timeout_s
        return max(config.peerless_timeout_s, 3 * self.presence_interval_s)

    def gap_s(self, config: MonitorConfig) -> float:
        """A longer silence ends a streak. Presence goes through others: one of it may be lost or late."""
        if self.direct:
            return config.beat_gap_s
        return max(config.beat_gap_s, 2 * self.presence_interval_s)

    def timer_from_e(self) -> float:
        """Where the beat's timer counts from: the last evidence, or since the peer became known."""
        return self.known_e if self.heard_e is None else max(self.heard_e, self.known_e)

    def fresh(self, now_e: float, config: MonitorConfig) -> bool:
        """Whether beats come: the last one is not a gap old."""
        return self.heard_e is not None and now_e - self.heard_e <= self.gap_s(config)

    def starved(self, now_e: float, config: MonitorConfig) -> bool:
        """Whether beats come and rounds do not: small packets pass where large ones vanish."""
        no_round = now_e - self.round_e >= config.peerless_timeout_s
        return self.direct and no_round and self.fresh(now_e, config)

    def silent(self, now_e: float, config: MonitorConfig) -> bool:
        """Whether the 60 s are over, by the beat or, only while beats come, by the good round."""
        if now_e - self.timer_from_e() >= self.timeout_s(config):
            return True
        return self.starved(now_e, config)

    def lingers(self, now_e: float, config: MonitorConfig) -> bool:
        """Whether the peer was heard in full within its 60 s, be it fallen or not: the headline may stand
        on such a peer, though not return to it."""
        if self.counted_e is None or self.starved(now_e, config):
            return False
        return now_e - self.counted_e < self.timeout_s(config)

    def carries_until_e(self, config: MonitorConfig) -> float:
        """When the headline can no longer stand on this peer, if nothing more comes of it."""
        if self.footing is Footing.FALLEN and self.counted_e is not None:
            return self.counted_e + self.timeout_s(config)
        return self.timer_from_e() + self.timeout_s(config)

    def heard(self, now_e: float, config: MonitorConfig, *, rounds_run: bool) -> bool:
        """The definition that status shows. `rounds_run` is false where a policy stopped P2P rounds."""
        if self.heard_e is None:
            return False
        if not self.direct:
            return self.head_held and now_e - self.heard_e < self.timeout_s(config)
        return self.fresh(now_e, config) and not (rounds_run and self.starved(now_e, config))

    def hear(self, t: float, t_e: float, config: MonitorConfig) -> None:
        """A beat, or presence that counts as one: the timer starts anew and the streak goes on."""
        gap = self.heard_at is None or t - self.heard_at > self.gap_s(config)
        if gap or self.streak_e is None:
            self.streak_e, self.streak_beats = t_e, 0
            # A first round at once, and a padded one: a return waits for it.
            self.round_due_at = self.padded_due_at = t
        self.streak_beats += 1
        self.heard_at = latest(self.heard_at, t)
        self.heard_e = latest(self.heard_e, t_e)
        self._count(t_e, config)

    def _count(self, t_e: float, config: MonitorConfig) -> None:
        if self.heard_e is not None and self.fresh(t_e, config) and not self.starved(t_e, config):
            self.counted_e = latest(self.counted_e, self.heard_e)

    def break_streak(self, now: float, config: MonitorConfig) -> None:
        """Forget the streak once the silence is a gap, in real time: a late loop proves nothing."""
        if self.heard_at is not None and now - self.heard_at > self.gap_s(config):
            self.streak_e, self.streak_beats = None, 0

    def set_direct(self, direct: bool, t: float, t_e: float) -> None:
        """Judge by beats from now on, or by presence; what counted before gives no streak."""
        if direct == self.direct:
            return
        self.direct = direct
        self.streak_e, self.streak_beats = None, 0
        self.round_due_at = self.padded_due_at = t
        if direct and self.footing is not Footing.FALLEN:
            self.round_e = max(self.round_e, t_e)

    def proven(self, now: float, now_e: float, config: MonitorConfig, *, polled: bool) -> bool:
        """Whether everything that a return to P2P asks for has come since the peer fell."""
        if self.streak_e is None:
            return False
        since_e = self.streak_e if self.fell_e is None else max(self.streak_e, self.fell_e)
        if now_e - since_e < self.return_after_s:
            return False
        if not self.direct:
            return self.head_held and self.streak_beats >= 2
        if self.padded_e is None or self.padded_e < since_e:
            return False
        if now_e - self.padded_e >= config.peerless_timeout_s:
            return False  # a hole for large frames may have opened since
        http_age = age(now, self.http.ok_at)
        if not polled or http_age is None or http_age > config.overlap_answer_s:
            return True
        return self.http_good_e is not None and self.http_good_e >= since_e

    def fall(self, now_e: float, config: MonitorConfig) -> None:
        """Leave P2P. Who stood on it for longer than the window returns as quickly as at first."""
        self.footing, self.fell_e = Footing.FALLEN, now_e
        if self.returned_e is not None and now_e - self.returned_e > config.return_window_s:
            self.return_after_s = config.return_after_s

    def hold(self, footing: Footing = Footing.HELD) -> None:
        """Stand on P2P, for the first time or because a policy was set by hand."""
        self.footing, self.fell_e = footing, None

    def return_to_p2p(self, now_e: float, config: MonitorConfig) -> None:
        """Stand on P2P again by itself: a further return within the window waits twice as long."""
        self.hold()
        self.returned_e = now_e
        self.return_after_s = min(2 * self.return_after_s, config.return_after_max_s)

    def clamp(self, now_e: float) -> None:
        """After lateness was subtracted, nothing may lie in the future of the effective clock."""
        self.known_e = min(self.known_e, now_e)
        self.round_e = min(self.round_e, now_e)
        self.heard_e = earliest(self.heard_e, now_e)
        self.counted_e = earliest(self.counted_e, now_e)
        self.padded_e = earliest(self.padded_e, now_e)
        self.streak_e = earliest(self.streak_e, now_e)
        self.fell_e = earliest(self.fell_e, now_e)
        self.returned_e = earliest(self.returned_e, now_e)
        self.http_good_e = earliest(self.http_good_e, now_e)

    def take_presence(self, event: PresenceHeard, t_e: float, config: MonitorConfig) -> bool:
        """Note what presence says; True where it counts as a beat, which it never does of a direct peer."""
        claimed, floor = event.interval_s, config.beat_interval_s
        self.presence_interval_s = claimed if floor <= claimed <= config.presence_interval_max_s else floor
        self.head_held = event.head_held
        if self.direct:
            return False
        if not event.head_held:
            self.streak_e, self.streak_beats = None, 0
            return False
        self.hear(event.t, t_e, config)
        return True

    def take_round(self, event: RoundGood, t_e: float, config: MonitorConfig) -> None:
        """A good round counts for both sides, whoever opened it."""
        self.fruitless_polls = 0
        if event.lung == "http":
            self.http.answered(event.t)
            self.http.good_at = self.http_heard_at = event.t
            self.http_good_e = t_e
            return
        self.p2p.answered(event.t)
        self.p2p.good_at = event.t
        self.round_e = max(self.round_e, t_e)
        self._count(t_e, config)
        self.round_due_at = put_off(self.round_due_at, event.t, config.round_interval_s)
        if event.padded:
            self.padded_e = t_e
            self.padded_due_at = put_off(self.padded_due_at, event.t, config.padded_interval_s)

    def round_due(self, now: float) -> bool:
        """Rounds that differing heads open put off the plain one for as long as somebody writes; the padded
        one comes all the same, or nobody would return to P2P beside a steady writer."""
        return now >= self.round_due_at or now >= self.padded_due_at

    def plan_rounds(self, now: float, config: MonitorConfig, *, padded: bool) -> None:
        """A round is opened at `now`: when are the next ones?"""
        self.round_due_at = next_due(min(self.round_due_at, now), now, config.round_interval_s)
        if padded:
            self.padded_due_at = next_due(self.padded_due_at, now, config.padded_interval_s)

    def take_poll(self, event: PollEnded, t_e: float) -> None:
        """Note how a poll ended: who stays silent is polled less often."""
        self.poll_answered = event.answered
        if not event.answered:
            self.http.failed(event.error)
            self.silent_polls += 1
            return
        self.http.answered(event.t)
        self.http_heard_at = event.t
        self.silent_polls = 0
        if event.fruitless:
            self.fruitless_polls += 1
        if event.good:
            self.fruitless_polls = 0
            self.http.good_at, self.http_good_e = event.t, t_e

    def take_probe(self, event: ProbeEnded) -> None:
        """Note how a probe ended: a good one ends the back-off."""
        lung = self.http if event.lung == "http" else self.p2p
        lung.probing = False
        if event.lung == "http":
            self.poll_answered = event.ok
        if not event.ok:
            lung.failed(event.error)
            return
        lung.answered(event.t)
        self.silent_polls = 0
        if event.lung == "http":
            self.http_heard_at = event.t

    def take_request(self, event: RequestServed) -> None:
        """It asks, so it lives: the back-off ends."""
        self.silent_polls = 0
        if event.lung == "http":
            self.http_heard_at = event.t

    def merge(self, other: PeerRecord) -> None:
        """Take over the record of a placeholder that turned out to be this peer."""
        self.known_at, self.known_e = min(self.known_at, other.known_at), min(self.known_e, other.known_e)
        if self.footing is Footing.WAITING and other.footing is Footing.FALLEN:
            self.footing, self.fell_e = Footing.FALLEN, other.fell_e
        self.http_heard_at = latest(self.http_heard_at, other.http_heard_at)
        self.http_good_e = latest(self.http_good_e, other.http_good_e)
        if is_newer(other.polled_at, self.polled_at):
            self.silent_polls = other.silent_polls
        self.poll_answered = self.poll_answered or other.poll_answered
        self.polled_at = latest(self.polled_at, other.polled_at)
        self.poll_no = max(self.poll_no, other.poll_no)
        self.fruitless_polls = max(self.fruitless_polls, other.fruitless_polls)
        self.http.merge(other.http)
        self.p2p.merge(other.p2p)
