"""The transition table, row by row: each is reached by inputs, and does what it says.

Separate because these tests are derived from the table: a row that is added without a way to reach it, or
whose outputs differ from what it says, fails here.
"""

from __future__ import annotations

from itertools import product

import pytest

from lattice.core import failover_events as ev
from lattice.core.failover import Monitor
from lattice.core.failover_table import (
    HEADLINE,
    LEVELS,
    MODES,
    PEER_MOVES,
    Footing,
    Sentence,
    Sign,
    Stance,
    sentence_text,
)
from lattice.core.failover_table import Situation as Sit

Outputs = list[ev.MonitorOutput]


class Bench:
    """A monitor whose inputs are given one by one."""

    def __init__(self, *, p2p_enabled: bool = True, policy: ev.Policy = ev.Policy.AUTO) -> None:
        self.monitor = Monitor(
            ev.MonitorConfig(),
            self_id="A",
            policy=policy,
            p2p_enabled=p2p_enabled,
            http_enabled=True,
            started_at=0.0,
        )

    def feed(self, *events: ev.MonitorInput) -> Outputs:
        """Give every input; return what the last one brought."""
        outputs: Outputs = []
        for event in events:
            outputs = self.monitor.handle(event)
        return outputs


def known(peer: str = "B", t: float = 0.0) -> tuple[ev.MonitorInput, ...]:
    return (ev.PeerKnown(peer, t), ev.DirectSet((peer,), t))


BEAT = ev.BeatHeard("B", 0.0)
FORGET = ev.PeerForgotten("B", 60.0)


def heard() -> tuple[ev.MonitorInput, ...]:
    return (*known(), BEAT, ev.Tick(0.0))


def policy(name: str, t: float) -> ev.PolicySet:
    return ev.PolicySet(ev.Policy(name), t)


def unanswered(t: float) -> tuple[ev.MonitorInput, ...]:
    """Two HTTP rounds without an answer, the first of which began at `t`."""
    silence = ev.PollEnded("B", t, answered=False)
    return (silence, ev.Tick(t + 10), silence)


def beats(first: float, last: float) -> tuple[ev.MonitorInput, ...]:
    """Beats every 5 s with the padded round that a return asks for, then the tick of the last second."""
    times = [first + 5.0 * step for step in range(int((last - first) / 5) + 1)]
    padded = ev.RoundGood("B", "p2p", first, padded=True)
    return (*(ev.BeatHeard("B", t) for t in times), padded, ev.Tick(last))


SETUPS: dict[Stance, tuple[ev.MonitorInput, ...]] = {
    Stance.NEW: (),
    Stance.ALONE: (ev.Tick(0.0),),
    Stance.STARTING: (*known(), ev.Tick(0.0)),
    Stance.STABLE: heard(),
    Stance.COUNTING: (*heard(), ev.Tick(7.0)),
    Stance.FALLBACK: (*heard(), ev.Tick(60.0)),
    Stance.CUT: (*heard(), ev.Tick(60.0), *unanswered(60.0)),
}

# (stance, situation): the inputs that lead from the one into the other; the last one must do it.
WAYS: dict[tuple[Stance, Sit], tuple[ev.MonitorInput, ...]] = {
    (Stance.NEW, Sit.NOBODY): (ev.Tick(0.0),),
    (Stance.NEW, Sit.EARLY): (*known(), ev.Tick(6.0)),
    (Stance.NEW, Sit.HEARD): (*known(), BEAT, ev.Tick(6.0)),
    (Stance.NEW, Sit.QUIET): (*known(), ev.Tick(6.1)),
    (Stance.NEW, Sit.PEERLESS): (*known(), ev.Tick(60.0)),
    (Stance.NEW, Sit.CHOSEN): (*known(), policy("http", 0.0), ev.Tick(0.0)),
    (Stance.NEW, Sit.SEVERED): (*known(), policy("p2p", 0.0), ev.Tick(60.0)),
    (Stance.ALONE, Sit.NOBODY): (ev.Tick(70.0),),
    (Stance.ALONE, Sit.EARLY): (ev.PeerKnown("B", 1.0),),
    (Stance.ALONE, Sit.CHOSEN): (policy("http", 1.0), ev.PeerKnown("B", 1.0)),
    (Stance.ALONE, Sit.SEVERED): (policy("p2p", 1.0), ev.P2PFailed(1.0, "no"), ev.PeerKnown("B", 1.0)),
    (Stance.STARTING, Sit.NOBODY): (FORGET,),
    (Stance.STARTING, Sit.EARLY): (ev.Tick(6.0),),
    (Stance.STARTING, Sit.HEARD): (ev.BeatHeard("B", 5.0),),
    (Stance.STARTING, Sit.QUIET): (ev.Tick(6.1),),
    (Stance.STARTING, Sit.PEERLESS): (ev.Tick(60.0),),
    (Stance.STARTING, Sit.CHOSEN): (ev.P2PFailed(1.0, "no"),),
    (Stance.STARTING, Sit.SEVERED): (policy("p2p", 0.0), ev.Tick(60.0)),
    (Stance.STABLE, Sit.NOBODY): (FORGET,),
    (Stance.STABLE, Sit.EARLY): (ev.PeerKnown("C", 1.0), ev.PeerForgotten("B", 1.0)),
    (Stance.STABLE, Sit.HEARD): (ev.Tick(6.0),),
    (Stance.STABLE, Sit.QUIET): (ev.Tick(6.1),),
    (Stance.STABLE, Sit.PEERLESS): (ev.Tick(60.0),),
    (Stance.STABLE, Sit.CHOSEN): (policy("http", 1.0),),
    (Stance.STABLE, Sit.SEVERED): (policy("p2p", 0.0), ev.Tick(60.0)),
    (Stance.COUNTING, Sit.NOBODY): (FORGET,),
    (Stance.COUNTING, Sit.HEARD): (ev.BeatHeard("B", 10.0),),
    (Stance.COUNTING, Sit.QUIET): (ev.Tick(14.9),),
    (Stance.COUNTING, Sit.PEERLESS): (ev.Tick(60.0),),
    (Stance.COUNTING, Sit.CHOSEN): (policy("http", 8.0),),
    (Stance.COUNTING, Sit.SEVERED): (policy("p2p", 8.0), ev.Tick(60.0)),
    (Stance.FALLBACK, Sit.NOBODY): (FORGET,),
    (Stance.FALLBACK, Sit.EARLY): (),
    (Stance.FALLBACK, Sit.HEARD): beats(61.0, 76.0),
    (Stance.FALLBACK, Sit.QUIET): (),
    (Stance.FALLBACK, Sit.PEERLESS): (ev.Tick(61.0),),
    (Stance.FALLBACK, Sit.CHOSEN): (policy("http", 61.0),),
    (Stance.FALLBACK, Sit.SEVERED): unanswered(60.0),
    (Stance.CUT, Sit.NOBODY): (FORGET,),
    (Stance.CUT, Sit.EARLY): (),
    (Stance.CUT, Sit.HEARD): (),
    (Stance.CUT, Sit.QUIET): (),
    (Stance.CUT, Sit.PEERLESS): (ev.RequestServed("B", "http", 75.0),),
    (Stance.CUT, Sit.CHOSEN): (policy("http", 75.0),),
    (Stance.CUT, Sit.SEVERED): (ev.Tick(71.0),),
}

# Rows whose stance must be reached in another way than by SETUPS: within the first 60 s, by hand.
OTHER_WAYS: dict[tuple[Stance, Sit], tuple[ev.MonitorInput, ...]] = {
    (Stance.FALLBACK, Sit.EARLY): (*SETUPS[Stance.STARTING], policy("http", 1.0), policy("auto", 2.0)),
    (Stance.FALLBACK, Sit.QUIET): (*heard(), policy("http", 1.0), ev.Tick(20.0), policy("auto", 20.0)),
    (Stance.CUT, Sit.EARLY): (
        *SETUPS[Stance.STARTING],
        policy("p2p", 1.0),
        ev.P2PFailed(1.0, "no"),
        ev.P2PStarted(2.0),
    ),
    (Stance.CUT, Sit.HEARD): (*heard(), policy("p2p", 0.0), ev.Tick(60.0), *beats(61.0, 61.0)),
    (Stance.CUT, Sit.QUIET): (
        *SETUPS[Stance.STARTING],
        policy("p2p", 1.0),
        ev.P2PFailed(1.0, "no"),
        ev.Tick(20.0),
        ev.P2PStarted(20.0),
    ),
}

# A first peer is always early, so nothing else follows ALONE while P2P is the lung; and whoever counts
# has left the early seconds behind for good. The rows stand so that the table is total.
UNREACHABLE = {
    (Stance.ALONE, Sit.HEARD),
    (Stance.ALONE, Sit.QUIET),
    (Stance.ALONE, Sit.PEERLESS),
    (Stance.COUNTING, Sit.EARLY),
}


def mode_changes(outputs: Outputs) -> list[tuple[ev.Mode, ev.Mode | None]]:
    return [(out.mode, out.previous) for out in outputs if isinstance(out, ev.ModeChanged)]


def sentences(outputs: Outputs) -> list[str]:
    lines = [out for out in outputs if isinstance(out, ev.LogLine) and out.tag == "P2P_HEARTBEAT"]
    return [line.sentence for line in lines if not line.sentence.startswith("Policy is now")]


def test_the_table_is_total() -> None:
    assert set(HEADLINE) == set(product(Stance, Sit))
    assert set(PEER_MOVES) == set(product(Footing, Sign))
    assert set(MODES) == set(Stance)
    assert set(LEVELS) == set(Sentence)
    assert set(WAYS) | UNREACHABLE == set(HEADLINE)


def test_a_situation_leads_to_one_stance() -> None:
    for situation in Sit:
        assert len({HEADLINE[stance, situation].to for stance in Stance}) == 1


def test_what_changes_is_said_and_what_stays_is_not() -> None:
    for (stance, _), row in HEADLINE.items():
        if row.to is stance:
            assert row.says == ()
        elif row.to is not Stance.CUT:  # said by its alarm
            assert row.says


@pytest.mark.parametrize("cell", WAYS, ids=lambda cell: f"{cell[0]}-{cell[1]}")
def test_row(cell: tuple[Stance, Sit]) -> None:
    stance, _ = cell
    inputs = OTHER_WAYS.get(cell) or (*SETUPS[stance], *WAYS[cell])
    bench = Bench()
    bench.feed(*inputs[:-1])
    before = bench.monitor.view(0.0).mode if stance is not Stance.NEW else None
    outputs = bench.feed(inputs[-1])
    row = HEADLINE[cell]
    changes = [] if MODES[row.to] is before else [(MODES[row.to], before)]
    assert before is (None if stance is Stance.NEW else MODES[stance])
    assert mode_changes(outputs) == changes
    assert sentences(outputs) == expected_sentences(cell)
    assert bench.monitor.view(0.0).mode is MODES[row.to]
    cut = row.to is Stance.CUT
    assert (ev.Alarm.ISOLATED in bench.monitor.view(0.0).alarms) is cut


def expected_sentences(cell: tuple[Stance, Sit]) -> list[str]:
    said = [sentence_text(sentence, timeout_s=60) for sentence in HEADLINE[cell].says]
    # From CUT, the fallback is activated a second time with nothing said in between: counted, not repeated.
    return [] if cell == (Stance.CUT, Sit.PEERLESS) else said


@pytest.mark.parametrize(
    ("sentence", "text"),
    [
        (Sentence.STABLE, "Peers found, system stable"),
        (Sentence.NO_PEERS, "No peers detected, starting 60s timer"),
        (Sentence.REMAINING, "45s remaining before HTTP fallback"),
        (Sentence.ACTIVATING, "60 seconds without peers - Activating HTTP Fallback"),
        (Sentence.ACTIVATED, "HTTP Sync Fallback activated"),
        (Sentence.RESET, "Peers found, resetting peerless timer"),
        (Sentence.MONITORING, "Monitoring 3 peer node(s)"),
    ],
)
def test_sentences_stay_word_for_word(sentence: Sentence, text: str) -> None:
    assert sentence_text(sentence, timeout_s=60, left_s=45, count=3) == text


def test_numbers_follow_the_configured_timeout() -> None:
    assert sentence_text(Sentence.NO_PEERS, timeout_s=90.0) == "No peers detected, starting 90s timer"
    assert sentence_text(Sentence.REMAINING, left_s=7.5) == "7.5s remaining before HTTP fallback"


def test_p2p_disabled_needs_no_policy() -> None:
    bench = Bench(p2p_enabled=False)
    assert mode_changes(bench.feed(*known(), ev.Tick(0.0))) == [(ev.Mode.HTTP, None)]
    assert bench.monitor.view(0.0).alarms == ()
