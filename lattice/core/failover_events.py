"""The words of the heartbeat monitor: its settings, inputs, outputs and what it shows.

Separate from the machine so that a driver, the status and the tests can name them without its rules.
All times are monotonic seconds; all ages are seconds; peers are opaque strings (a peer id, or
`url:<base url>` while the identity behind an address is unknown).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, Literal

from .limits import BEAT_GRACE_S, KNOWN_NODES_MAX

Lung = Literal["p2p", "http"]
P2P: Final = "p2p"
HTTP: Final = "http"

Level = Literal["INFO", "WARNING", "ERROR"]
Tag = Literal["P2P_HEARTBEAT", "HTTP_SYNC", "ALERT"]
FieldValue = str | int | float | bool | None

PLACEHOLDER_PREFIX: Final = "url:"


class Mode(StrEnum):
    """The headline: which lung carries this node now."""

    P2P = "P2P"
    HTTP = "HTTP"
    ISOLATED = "ISOLATED"


class Policy(StrEnum):
    """What the operator chose; only `auto` changes lungs by itself."""

    AUTO = "auto"
    P2P = "p2p"
    HTTP = "http"


class Reason(StrEnum):
    """Why the headline is what it is, as status shows it."""

    STARTING = "starting"
    HEARD = "peers heard"
    QUIET = "no beat, timer running"
    ALONE = "alone"
    PEERLESS = "no peer heard"
    NO_ROUND = "beats without good rounds"
    UNANSWERED = "no answer on either lung"
    POLICY_P2P = "policy p2p"
    POLICY_HTTP = "policy http"
    P2P_DISABLED = "p2p disabled"
    P2P_FAILED = "p2p failed to start"
    HTTP_DISABLED = "http disabled"


class Alarm(StrEnum):
    """The stable codes of what the monitor raises and clears."""

    ISOLATED = "isolated"
    P2P_FAILED = "p2p_failed"
    ONE_LEG = "one_leg"
    MANUAL_POLICY = "manual_policy"


class Liveness(StrEnum):
    """A peer as status shows it."""

    ALIVE = "alive"  # heard over the lung that carries it
    SUSPECT = "suspect"  # a beat missed
    DEAD = "dead"  # unheard on both lungs


@dataclass(frozen=True, slots=True)
class MonitorConfig:
    """Every number of the monitor. More of a time is calmer and slower, less is quicker and jumpier."""

    beat_interval_s: float = 5.0
    beat_grace_s: float = BEAT_GRACE_S  # a beat counts as missed one interval and this after the last one
    peerless_timeout_s: float = 60.0  # unheard for so long, a peer is polled over HTTP
    poll_interval_s: float = 10.0  # one HTTP round starts so long after the one before
    poll_slots: int = 3  # polls in one HTTP round, at most
    poll_slots_answered: int = 2  # of them, those kept for peers that answered last time
    poll_timeout_s: float = 40.0  # a poll without a report for so long counts as unanswered
    backoff_after_polls: int = 3  # silent, or of no use, so many times in a row: polled less often
    backoff_max_s: float = 300.0
    backoff_isolated_max_s: float = 20.0
    unanswered_rounds_max: int = 2  # so many HTTP rounds without any answer are isolation
    round_interval_s: float = 10.0  # P2P sync rounds with each direct peer
    padded_interval_s: float = 30.0  # of these, one so often is padded
    return_after_s: float = 15.0  # beats without a gap before a peer returns to P2P
    return_after_max_s: float = 240.0
    return_window_s: float = 600.0  # a return within this of the one before doubles the wait
    overlap_answer_s: float = 30.0  # HTTP that answered so lately must also complete a round
    probe_interval_s: float = 7.5  # one probe of an idle lung so often: eight a minute
    probe_peer_interval_s: float = 10.0  # the same peer no sooner
    probe_timeout_s: float = 30.0  # a probe without a report for so long is forgotten
    reachable_s: float = 120.0  # an answer so recent makes a lung reachable
    reachable_failures_max: int = 8  # unless so many attempts in a row have failed since
    manual_policy_warn_s: float = 3600.0
    presence_interval_max_s: float = KNOWN_NODES_MAX * 0.3  # no honest presence claims more
    peers_max: int = KNOWN_NODES_MAX

    def __post_init__(self) -> None:
        """Refuse combinations under which the rules contradict each other; raises ValueError."""
        if not 0 < self.beat_interval_s <= 15:
            raise ValueError("the beat interval must be above 0 and at most 15 s")
        if self.peerless_timeout_s < 2 * self.beat_gap_s:
            raise ValueError("the peerless timeout must allow two missed beats: raise it or beat faster")
        if self.poll_interval_s <= 0 or self.round_interval_s <= 0 or self.probe_interval_s <= 0:
            raise ValueError("intervals must be above 0")
        if not 0 <= self.poll_slots_answered < self.poll_slots:
            raise ValueError("at least one poll slot must be left for peers that have not answered")
        if not 0 < self.return_after_s <= self.return_after_max_s:
            raise ValueError("the wait before a return must be above 0 and at most its maximum")

    @property
    def beat_gap_s(self) -> float:
        """An older last beat is a gap."""
        return self.beat_interval_s + self.beat_grace_s


# Inputs. An input about a peer that is not known changes nothing: PeerKnown or PeerIdentified comes first.


@dataclass(frozen=True, slots=True)
class PeerKnown:
    """An address or an identity of another node became known; repeating it changes nothing."""

    peer: str
    t: float


@dataclass(frozen=True, slots=True)
class PeerIdentified:
    """The node behind `placeholder` turned out to be `peer`; the two records become one.

    Our own id as `peer` means that the address is our own: the placeholder is no peer and is dropped.
    """

    placeholder: str
    peer: str
    t: float


@dataclass(frozen=True, slots=True)
class PeerForgotten:
    peer: str
    t: float


@dataclass(frozen=True, slots=True)
class DirectSet:
    """All peers that now hold a beat stream with us, whoever opened it."""

    peers: tuple[str, ...]
    t: float


@dataclass(frozen=True, slots=True)
class BeatHeard:
    """A challenged round trip completed on the beat stream, and the peer lists us as heard."""

    peer: str
    t: float


@dataclass(frozen=True, slots=True)
class PresenceHeard:
    """One-way presence came by gossip; `head_held` says whether we hold the head that it names."""

    peer: str
    t: float
    interval_s: float
    head_held: bool


@dataclass(frozen=True, slots=True)
class RoundGood:
    """A sync round was good at its end, whoever opened it."""

    peer: str
    lung: Lung
    t: float
    padded: bool = False


@dataclass(frozen=True, slots=True)
class PollEnded:
    """A poll is over. `answered`: an authenticated answer came; `good`: the round was good as well;
    `fruitless`: it was neither that nor of any use."""

    peer: str
    t: float
    answered: bool
    good: bool = False
    error: str | None = None
    fruitless: bool = False


@dataclass(frozen=True, slots=True)
class ProbeEnded:
    """A `Hello` over the lung not in use was answered, or was not."""

    peer: str
    lung: Lung
    t: float
    ok: bool
    error: str | None = None


@dataclass(frozen=True, slots=True)
class RequestServed:
    """An authenticated request from that peer came in and was answered."""

    peer: str
    lung: Lung
    t: float


@dataclass(frozen=True, slots=True)
class PolicySet:
    policy: Policy
    t: float


@dataclass(frozen=True, slots=True)
class P2PStarted:
    t: float


@dataclass(frozen=True, slots=True)
class P2PFailed:
    """The P2P lung could not be started. One that is lost and being rebuilt is not reported so: the
    peerless timer covers it."""

    t: float
    error: str


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passes only here: `lateness_s` is how much later than planned the loop came to it."""

    t: float
    lateness_s: float = 0.0


MonitorInput = (
    PeerKnown
    | PeerIdentified
    | PeerForgotten
    | DirectSet
    | BeatHeard
    | PresenceHeard
    | RoundGood
    | PollEnded
    | ProbeEnded
    | RequestServed
    | PolicySet
    | P2PStarted
    | P2PFailed
    | Tick
)


# Outputs, in the order in which the driver carries them out.


@dataclass(frozen=True, slots=True)
class ModeChanged:
    """`previous` is None for the first mode after the start."""

    mode: Mode
    previous: Mode | None
    reason: Reason


@dataclass(frozen=True, slots=True)
class LogLine:
    level: Level
    tag: Tag
    sentence: str
    fields: Mapping[str, FieldValue] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PollDue:
    """Poll this peer over HTTP now; `PollEnded` answers it."""

    peer: str


@dataclass(frozen=True, slots=True)
class PollsStopped:
    """These peers are no longer polled; a poll that is under way may end by itself."""

    peers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ProbeDue:
    """Say `Hello` to this peer over that lung now; `ProbeEnded` answers it."""

    peer: str
    lung: Lung


@dataclass(frozen=True, slots=True)
class RoundDue:
    """Open a P2P sync round with this direct peer now; `RoundGood` answers it if it was good."""

    peer: str
    padded: bool


@dataclass(frozen=True, slots=True)
class AlarmRaised:
    code: Alarm
    text: str
    level: Level = "ERROR"


@dataclass(frozen=True, slots=True)
class AlarmCleared:
    code: Alarm


MonitorOutput = (
    ModeChanged | LogLine | PollDue | PollsStopped | ProbeDue | RoundDue | AlarmRaised | AlarmCleared
)


# What status shows.


@dataclass(frozen=True, slots=True)
class LungView:
    """One lung of one peer; ages are None where it never happened."""

    reachable: bool
    last_ok_s: float | None
    last_good_round_s: float | None
    last_error: str | None


@dataclass(frozen=True, slots=True)
class PeerView:
    peer: str
    liveness: Liveness
    direct: bool
    heard_over_p2p: bool
    polled: bool
    known_s: float
    last_heard_p2p_s: float | None
    last_heard_http_s: float | None
    return_after_s: float
    lungs: Mapping[Lung, LungView]


@dataclass(frozen=True, slots=True)
class MonitorView:
    """A snapshot; `seconds_since_peer` counts from the start where no peer was ever heard."""

    mode: Mode
    policy: Policy
    reason: Reason
    peer_count: int
    has_peers: bool
    http_sync_enabled: bool
    seconds_since_peer: float
    fallback_in_s: float | None
    bridged_over_http: tuple[str, ...]
    resilient: bool
    alarms: tuple[Alarm, ...]
    peers: tuple[PeerView, ...]
