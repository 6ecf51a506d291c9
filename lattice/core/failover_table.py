"""Every transition of the heartbeat monitor, as data.

Separate from the machine so that the rules can be read, drawn and tested row by row: the machine finds
out which situation holds, and this table alone says where that leads and what is said about it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from .failover_events import Level, Mode


class Footing(StrEnum):
    """Which lung carries one peer."""

    WAITING = "waiting"  # known, never heard over P2P, its first 60 s not over
    HELD = "held"  # P2P carries it
    FALLEN = "fallen"  # HTTP carries it: in policy `auto` it is polled


class Sign(StrEnum):
    """What the evidence says about one peer."""

    HEARD = "heard"  # its first evidence of life, while the headline stands on P2P
    SILENT = "silent"  # the 60 s are over
    PROVEN = "proven"  # everything that a return to P2P asks for


PEER_MOVES: Final[Mapping[tuple[Footing, Sign], Footing]] = MappingProxyType(
    {
        (Footing.WAITING, Sign.HEARD): Footing.HELD,
        (Footing.WAITING, Sign.SILENT): Footing.FALLEN,
        (Footing.WAITING, Sign.PROVEN): Footing.HELD,
        (Footing.HELD, Sign.HEARD): Footing.HELD,
        (Footing.HELD, Sign.SILENT): Footing.FALLEN,
        (Footing.HELD, Sign.PROVEN): Footing.HELD,
        (Footing.FALLEN, Sign.HEARD): Footing.FALLEN,
        (Footing.FALLEN, Sign.SILENT): Footing.FALLEN,
        (Footing.FALLEN, Sign.PROVEN): Footing.HELD,
    }
)


class Stance(StrEnum):
    """The states of the headline, finer than the mode that it shows."""

    NEW = "new"  # nothing said yet
    ALONE = "alone"
    STARTING = "starting"
    STABLE = "stable"
    COUNTING = "counting"  # nobody heard, the timer announced
    FALLBACK = "fallback"
    CUT = "cut"


MODES: Final[Mapping[Stance, Mode]] = MappingProxyType(
    {
        Stance.NEW: Mode.ISOLATED,
        Stance.ALONE: Mode.ISOLATED,
        Stance.STARTING: Mode.P2P,
        Stance.STABLE: Mode.P2P,
        Stance.COUNTING: Mode.P2P,
        Stance.FALLBACK: Mode.HTTP,
        Stance.CUT: Mode.ISOLATED,
    }
)


class Situation(StrEnum):
    """What holds for the node as a whole; exactly one at any time."""

    NOBODY = "nobody"  # no other node is known
    EARLY = "early"  # known, and too early to miss a beat
    HEARD = "heard"
    QUIET = "quiet"  # a beat missed, the 60 s not over
    PEERLESS = "peerless"  # the 60 s are over, HTTP carries
    CHOSEN = "chosen"  # HTTP at once: by policy, or for want of a P2P lung
    SEVERED = "severed"  # neither lung carries


class Sentence(StrEnum):
    """What operators grep for; `{timeout}` and `{left}` are numbers of seconds."""

    STABLE = "Peers found, system stable"
    NO_PEERS = "No peers detected, starting {timeout}s timer"
    REMAINING = "{left}s remaining before HTTP fallback"
    ACTIVATING = "{timeout} seconds without peers - Activating HTTP Fallback"
    ACTIVATED = "HTTP Sync Fallback activated"
    RESET = "Peers found, resetting peerless timer"
    ALONE = "No other node is known: run lattice invite, and join with its ticket from another machine"
    LISTENING = "Peers known, listening for a first beat"
    MONITORING = "Monitoring {count} peer node(s)"


LEVELS: Final[Mapping[Sentence, Level]] = MappingProxyType(
    {
        Sentence.STABLE: "INFO",
        Sentence.NO_PEERS: "WARNING",
        Sentence.REMAINING: "WARNING",
        Sentence.ACTIVATING: "WARNING",
        Sentence.ACTIVATED: "WARNING",
        Sentence.RESET: "INFO",
        Sentence.ALONE: "INFO",
        Sentence.LISTENING: "INFO",
        Sentence.MONITORING: "INFO",
    }
)


@dataclass(frozen=True, slots=True)
class Row:
    """Where a situation leads; entering CUT says its sentence by the alarm."""

    to: Stance
    says: tuple[Sentence, ...] = ()


_ALONE = Row(Stance.ALONE, (Sentence.ALONE,))
_LISTEN = Row(Stance.STARTING, (Sentence.LISTENING,))
_FOUND = Row(Stance.STABLE, (Sentence.STABLE,))
_FOUND_AGAIN = Row(Stance.STABLE, (Sentence.RESET,))
_COUNT = Row(Stance.COUNTING, (Sentence.NO_PEERS,))
_FALL = Row(Stance.FALLBACK, (Sentence.ACTIVATING, Sentence.ACTIVATED))
_ON_HTTP = Row(Stance.FALLBACK, (Sentence.ACTIVATED,))
_CUT = Row(Stance.CUT)

HEADLINE: Final[Mapping[tuple[Stance, Situation], Row]] = MappingProxyType(
    {
        (Stance.NEW, Situation.NOBODY): _ALONE,
        (Stance.NEW, Situation.EARLY): _LISTEN,
        (Stance.NEW, Situation.HEARD): _FOUND,
        (Stance.NEW, Situation.QUIET): _COUNT,
        (Stance.NEW, Situation.PEERLESS): _FALL,
        (Stance.NEW, Situation.CHOSEN): _ON_HTTP,
        (Stance.NEW, Situation.SEVERED): _CUT,
        (Stance.ALONE, Situation.NOBODY): Row(Stance.ALONE),
        (Stance.ALONE, Situation.EARLY): _LISTEN,
        (Stance.ALONE, Situation.HEARD): _FOUND,
        (Stance.ALONE, Situation.QUIET): _COUNT,
        (Stance.ALONE, Situation.PEERLESS): _FALL,
        (Stance.ALONE, Situation.CHOSEN): _ON_HTTP,
        (Stance.ALONE, Situation.SEVERED): _CUT,
        (Stance.STARTING, Situation.NOBODY): _ALONE,
        (Stance.STARTING, Situation.EARLY): Row(Stance.STARTING),
        (Stance.STARTING, Situation.HEARD): _FOUND,
        (Stance.STARTING, Situation.QUIET): _COUNT,
        (Stance.STARTING, Situation.PEERLESS): _FALL,
        (Stance.STARTING, Situation.CHOSEN): _ON_HTTP,
        (Stance.STARTING, Situation.SEVERED): _CUT,
        (Stance.STABLE, Situation.NOBODY): _ALONE,
        (Stance.STABLE, Situation.EARLY): _LISTEN,
        (Stance.STABLE, Situation.HEARD): Row(Stance.STABLE),
        (Stance.STABLE, Situation.QUIET): _COUNT,
        (Stance.STABLE, Situation.PEERLESS): _FALL,
        (Stance.STABLE, Situation.CHOSEN): _ON_HTTP,
        (Stance.STABLE, Situation.SEVERED): _CUT,
        (Stance.COUNTING, Situation.NOBODY): _ALONE,
        (Stance.COUNTING, Situation.EARLY): _LISTEN,
        (Stance.COUNTING, Situation.HEARD): _FOUND_AGAIN,
        (Stance.COUNTING, Situation.QUIET): Row(Stance.COUNTING),
        (Stance.COUNTING, Situation.PEERLESS): _FALL,
        (Stance.COUNTING, Situation.CHOSEN): _ON_HTTP,
        (Stance.COUNTING, Situation.SEVERED): _CUT,
        (Stance.FALLBACK, Situation.NOBODY): _ALONE,
        (Stance.FALLBACK, Situation.EARLY): _LISTEN,
        (Stance.FALLBACK, Situation.HEARD): _FOUND_AGAIN,
        (Stance.FALLBACK, Situation.QUIET): _COUNT,
        (Stance.FALLBACK, Situation.PEERLESS): Row(Stance.FALLBACK),
        (Stance.FALLBACK, Situation.CHOSEN): Row(Stance.FALLBACK),
        (Stance.FALLBACK, Situation.SEVERED): _CUT,
        (Stance.CUT, Situation.NOBODY): _ALONE,
        (Stance.CUT, Situation.EARLY): _LISTEN,
        (Stance.CUT, Situation.HEARD): _FOUND_AGAIN,
        (Stance.CUT, Situation.QUIET): _COUNT,
        (Stance.CUT, Situation.PEERLESS): _ON_HTTP,
        (Stance.CUT, Situation.CHOSEN): _ON_HTTP,
        (Stance.CUT, Situation.SEVERED): Row(Stance.CUT),
    }
)


def sentence_text(sentence: Sentence, *, timeout_s: float = 0, left_s: float = 0, count: int = 0) -> str:
    """A sentence with its numbers as operators read them: 60 and not 60.0, 7.5 where it is so."""
    return sentence.format(timeout=f"{timeout_s:g}", left=f"{left_s:g}", count=count)
