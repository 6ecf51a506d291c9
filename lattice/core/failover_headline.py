"""The headline of the heartbeat monitor: from the facts of the node to its situation and the reason.

Separate because it is the one place where policies, lungs and peers meet, and is a function of a few facts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from .failover_events import MonitorConfig, Policy, Reason
from .failover_table import Situation, Stance

ON_P2P: Final = frozenset({Stance.STARTING, Stance.STABLE, Stance.COUNTING})
ON_HTTP: Final = frozenset({Stance.FALLBACK, Stance.CUT})

ISOLATED_TEXTS: Final[Mapping[Reason, str]] = MappingProxyType(
    {
        Reason.POLICY_P2P: "ISOLATED: nobody is heard over P2P, and policy p2p does not fall back; "
        "set policy auto to let HTTP take over",
        Reason.HTTP_DISABLED: "ISOLATED: nobody is heard over P2P, and HTTP sync is off",
        Reason.UNANSWERED: "ISOLATED: no other node answers on either lung; check this machine's network "
        "and the addresses of its peers",
    }
)

_PLAIN_REASONS: Final[Mapping[Situation, Reason]] = MappingProxyType(
    {
        Situation.NOBODY: Reason.ALONE,
        Situation.EARLY: Reason.STARTING,
        Situation.HEARD: Reason.HEARD,
        Situation.QUIET: Reason.QUIET,
    }
)


@dataclass(frozen=True, slots=True)
class Facts:
    """All that the headline depends on, at one moment."""

    policy: Policy
    p2p_enabled: bool
    p2p_failed: bool
    http_enabled: bool
    known: bool  # another node is known
    held: bool  # P2P carries a peer, be it within its 60 s of silence
    fresh: bool  # and of one such peer no beat is missing
    lingering: bool  # a peer, be it fallen, was heard in full within its 60 s
    starved: bool  # beats come of a peer with which no round is good
    since_first_s: float  # since another node has been known, or the start
    unanswered_rounds: int  # HTTP rounds in a row without an answer

    @property
    def p2p_usable(self) -> bool:
        return self.p2p_enabled and not self.p2p_failed


def find_situation(facts: Facts, stance: Stance, config: MonitorConfig) -> Situation:
    """Which situation holds. HTTP rounds count only from a stance that stands on HTTP: those that went
    to some peers while others were heard say nothing about the rest."""
    if not facts.known:
        return Situation.NOBODY
    unanswered = stance in ON_HTTP and facts.unanswered_rounds >= config.unanswered_rounds_max
    http_carries = facts.http_enabled and not unanswered
    if facts.policy is Policy.HTTP or not facts.p2p_usable:
        by_choice = facts.policy is not Policy.P2P and http_carries
        return Situation.CHOSEN if by_choice else Situation.SEVERED
    if facts.fresh:
        return Situation.HEARD
    if facts.since_first_s <= config.beat_gap_s:
        return Situation.EARLY
    if facts.held or facts.since_first_s < config.peerless_timeout_s:
        return Situation.QUIET
    if facts.policy is Policy.P2P or not facts.http_enabled:
        return Situation.SEVERED
    # Who is heard again and has not proven itself is no reason to return, but nobody is isolated with it.
    return Situation.PEERLESS if http_carries or facts.lingering else Situation.SEVERED


def find_reason(facts: Facts, situation: Situation, before: Reason) -> Reason:
    """Why; `before` is the reason shown so far, since the cause of a fall outlasts what follows it."""
    if situation in _PLAIN_REASONS:
        return _PLAIN_REASONS[situation]
    if situation is Situation.PEERLESS:
        if before in (Reason.PEERLESS, Reason.NO_ROUND):
            return before
        return Reason.NO_ROUND if facts.starved else Reason.PEERLESS
    if situation is Situation.CHOSEN:
        if facts.policy is Policy.HTTP:
            return Reason.POLICY_HTTP
        return Reason.P2P_FAILED if facts.p2p_enabled else Reason.P2P_DISABLED
    if facts.policy is Policy.P2P:
        return Reason.POLICY_P2P
    return Reason.UNANSWERED if facts.http_enabled else Reason.HTTP_DISABLED
