"""The heartbeat monitor against an oracle that knows only what happened on the wire.

Separate because it shares nothing with the monitor but its inputs and outputs: the oracle keeps raw times
and judges by the promise that operators are given, not by the monitor's rules.
"""

from __future__ import annotations

import os
from collections import defaultdict

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from lattice.core import failover_events as ev
from lattice.core.failover import Monitor

DIRECT = ("B", "C", "D")
BEYOND = "E"
PEERS = (*DIRECT, BEYOND)
TIMEOUT_S = 60.0
GAP_S = 6.0


class Wire:
    """What happened, in real time."""

    def __init__(self) -> None:
        self.beats: dict[str, list[float]] = defaultdict(list)
        self.rounds: dict[str, list[float]] = defaultdict(list)
        self.padded: dict[str, list[float]] = defaultdict(list)
        self.known: dict[str, float] = {}
        self.stalls: list[tuple[float, float]] = []  # from, to: the loop was not listening

    def listened(self, since: float, until: float) -> float:
        """Seconds between the two in which the loop was not late."""
        lost = sum(max(0.0, min(until, to) - max(since, start)) for start, to in self.stalls)
        return max(0.0, until - since) - lost

    def last_round(self, peer: str, until: float) -> float:
        return max([self.known[peer], *(t for t in self.rounds[peer] if t <= until)])

    def beats_come(self, peer: str, now: float) -> bool:
        return bool(self.beats[peer]) and self.listened(self.beats[peer][-1], now) <= GAP_S

    def starved(self, peer: str, now: float) -> bool:
        """Beats come, and the last good round is over 60 s old."""
        no_round = self.listened(self.last_round(peer, now), now) >= TIMEOUT_S
        return peer in DIRECT and self.beats_come(peer, now) and no_round

    def unheard(self, peer: str, now: float) -> bool:
        """Unheard for 60 s, by the beat or, while beats come, by the good round."""
        last = self.beats[peer][-1] if self.beats[peer] else self.known[peer]
        return self.listened(last, now) >= TIMEOUT_S or self.starved(peer, now)

    def counted(self, peer: str, now: float) -> bool:
        """Heard in full at some moment of the last 60 s that was listened to, and not starved now."""
        if self.starved(peer, now):
            return False
        lately = [beat for beat in self.beats[peer] if self.listened(beat, now) < TIMEOUT_S]
        if peer not in DIRECT:
            return bool(lately)
        return any(
            self.listened(self.last_round(peer, t), t) < TIMEOUT_S
            for beat in lately
            for t in (beat, *self.rounds[peer])
            if beat <= t and self.listened(beat, t) <= GAP_S
        )

    def gapless_since(self, peer: str, gap_s: float) -> float | None:
        """Where the present streak of beats began; gaps are in real time."""
        start: float | None = None
        before: float | None = None
        for beat in self.beats[peer]:
            if before is None or beat - before > gap_s:
                start = beat
            before = beat
        return start


class FailoverMachine(RuleBasedStateMachine):
    """Random links, holes, flaps and pauses in policy auto: the headline and the polls tell the truth."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.wire = Wire()
        self.p2p = dict.fromkeys(PEERS, "down")
        self.http = dict.fromkeys(PEERS, "down")
        self.phase = dict.fromkeys(PEERS, 0)
        self.due: list[tuple[float, ev.MonitorInput]] = []
        self.under_way: dict[str, float] = {}
        self.last_poll: dict[str, float] = {}
        self.isolated_since: float | None = None
        self.poll_times: list[float] = []
        self.probe_times: list[float] = []
        self.returns: dict[str, list[float]] = defaultdict(list)
        self.polled: set[str] = set()
        self.monitor = Monitor(
            ev.MonitorConfig(),
            self_id="A",
            policy=ev.Policy.AUTO,
            p2p_enabled=True,
            http_enabled=True,
            started_at=self.now,
        )
        self.mode: ev.Mode | None = None

    @initialize(known=st.sets(st.sampled_from(PEERS), min_size=1), up=st.booleans())
    def start(self, known: set[str], up: bool) -> None:
        for peer in sorted(known):
            self.know(peer)
        if up:
            self.p2p = dict.fromkeys(PEERS, "up")
            self.http = dict.fromkeys(PEERS, "up")
        self.tick(late=0.0)

    # What can happen.

    @rule(peer=st.sampled_from(PEERS), state=st.sampled_from(["up", "small", "down"]))
    def set_p2p(self, peer: str, state: str) -> None:
        self.p2p[peer] = state

    @rule(state=st.sampled_from(["up", "small", "down"]))
    def set_p2p_for_all(self, state: str) -> None:
        self.p2p = dict.fromkeys(PEERS, state)

    @rule(peer=st.sampled_from(PEERS), state=st.sampled_from(["up", "bad", "down"]))
    def set_http(self, peer: str, state: str) -> None:
        self.http[peer] = state

    @rule(peer=st.sampled_from(PEERS), phase=st.integers(0, 4))
    def shift_beats(self, peer: str, phase: int) -> None:
        self.phase[peer] = phase

    @rule(peer=st.sampled_from(PEERS))
    def learn(self, peer: str) -> None:
        if peer not in self.wire.known:
            self.know(peer)

    @rule(peer=st.sampled_from(PEERS))
    def one_beat(self, peer: str) -> None:
        """A single beat through an otherwise dead link."""
        if peer in DIRECT:
            self.beat(peer)

    @rule(seconds=st.integers(1, 30))
    def run_a_while(self, seconds: int) -> None:
        self.run(seconds)

    @rule(seconds=st.sampled_from([54, 59, 60, 61, 66, 75, 90]))
    def run_long(self, seconds: int) -> None:
        self.run(seconds)

    @rule(seconds=st.integers(2, 90))
    def stand_still(self, seconds: int) -> None:
        self.now += seconds
        self.wire.stalls.append((self.now - seconds + 1, self.now))
        self.tick(late=seconds - 1.0)

    # How the world answers.

    def know(self, peer: str) -> None:
        self.wire.known[peer] = self.now
        self.feed(ev.PeerKnown(peer, self.now))
        self.feed(ev.DirectSet(DIRECT, self.now))

    def run(self, seconds: int) -> None:
        for _ in range(seconds):
            self.now += 1.0
            for peer in PEERS:
                if self.p2p[peer] != "down" and (int(self.now) + self.phase[peer]) % 5 == 0:
                    self.beat(peer)
            self.tick(late=0.0)

    def beat(self, peer: str) -> None:
        if peer not in self.wire.known:
            return
        if peer in DIRECT:
            self.wire.beats[peer].append(self.now)
            self.feed(ev.BeatHeard(peer, self.now))
            return
        held = self.p2p[peer] == "up"
        if held:
            self.wire.beats[peer].append(self.now)
        else:
            self.wire.beats[peer + " unheld"].append(self.now)
        self.feed(ev.PresenceHeard(peer, self.now, 5.0, held))

    def tick(self, *, late: float) -> None:
        ready = [event for t, event in self.due if t <= self.now]
        self.due = [(t, event) for t, event in self.due if t > self.now]
        for event in ready:
            if isinstance(event, ev.RoundGood):
                self.wire.rounds[event.peer].append(event.t)
                if event.padded:
                    self.wire.padded[event.peer].append(event.t)
            if isinstance(event, ev.PollEnded):
                self.under_way.pop(event.peer, None)
            self.feed(event)
        self.feed(ev.Tick(self.now, late))
        self.check_truth()

    def feed(self, event: ev.MonitorInput) -> None:
        polls: list[str] = []
        for output in self.monitor.handle(event):
            match output:
                case ev.ModeChanged(mode, previous, _):
                    assert previous is self.mode
                    self.mode = mode
                    self.check_mode_change(mode, previous)
                case ev.PollsStopped(peers):
                    for peer in peers:
                        self.check_return(peer)
                case ev.PollDue(peer):
                    polls.append(peer)
                    assert peer not in self.under_way, "one poll of a peer at a time"
                    self.under_way[peer] = self.last_poll[peer] = self.now
                    answered = self.http[peer] != "down"
                    good = self.http[peer] == "up"
                    at = self.now + (1 if answered else 5)
                    self.due.append((at, ev.PollEnded(peer, at, answered, good)))
                case ev.ProbeDue(peer, lung):
                    self.probe_times.append(self.now)
                    up = (self.p2p if lung == "p2p" else self.http)[peer] != "down"
                    self.due.append((self.now + 1, ev.ProbeEnded(peer, lung, self.now + 1, up)))
                case ev.RoundDue(peer, padded):
                    if self.p2p[peer] == "up":
                        self.due.append((self.now + 1, ev.RoundGood(peer, "p2p", self.now + 1, padded)))
        if polls:
            self.poll_times.append(self.now)
            assert len(polls) <= 3
            assert len(self.poll_times) < 2 or self.poll_times[-1] - self.poll_times[-2] >= 7.5, "one loop"

    # What must hold.

    def check_mode_change(self, mode: ev.Mode, previous: ev.Mode | None) -> None:
        wire = self.wire
        if mode is ev.Mode.HTTP and previous is ev.Mode.P2P:
            assert wire.listened(min(wire.known.values()), self.now) >= TIMEOUT_S
            for peer in wire.known:
                assert not wire.counted(peer, self.now), f"{peer} was heard within 60 s"
        if mode is ev.Mode.P2P and previous is not None:
            assert any(self.has_proven_itself(peer, 15.0) for peer in wire.known)
        if mode is ev.Mode.ISOLATED:
            assert previous is ev.Mode.HTTP

    def has_proven_itself(self, peer: str, wait_s: float) -> bool:
        since = self.wire.gapless_since(peer, GAP_S if peer in DIRECT else 10.0)
        if since is None or self.now - since < wait_s:
            return False
        if self.now - self.wire.beats[peer][-1] > (GAP_S if peer in DIRECT else 10.0):
            return False
        if peer not in DIRECT:
            return not any(t >= since for t in self.wire.beats[peer + " unheld"])
        return any(t >= since for t in self.wire.padded[peer])

    def check_return(self, peer: str) -> None:
        lately = [t for t in self.returns[peer] if self.now - t <= 600]
        wait_s = min(15.0 * 2 ** len(lately), 240.0)
        assert self.has_proven_itself(peer, wait_s), f"{peer} is back before {wait_s} s"
        self.returns[peer].append(self.now)

    def check_truth(self) -> None:
        view = self.monitor.view(self.now)
        polled = {peer.peer for peer in view.peers if peer.polled}
        for peer in self.wire.known:
            if self.wire.unheard(peer, self.now):
                assert peer in polled, f"{peer} is unheard for 60 s and not polled"
        for peer in polled - self.polled:
            assert self.wire.unheard(peer, self.now), f"{peer} is polled before its 60 s are over"
            self.last_poll[peer] = self.now
        self.polled = polled
        if not polled:
            self.poll_times.clear()
        self.check_polls_go_on(view)
        quiet = not any(self.wire.counted(peer, self.now) for peer in self.wire.known)
        if quiet and self.wire.listened(min(self.wire.known.values()), self.now) >= TIMEOUT_S:
            assert view.mode is not ev.Mode.P2P, "nobody was heard for 60 s"
        if view.mode is ev.Mode.ISOLATED:
            assert quiet, "isolated, and a peer is heard"

    def check_polls_go_on(self, view: ev.MonitorView) -> None:
        """Four peers at most: back-off, then two rounds for a slot; long-lasting polls take 5 s."""
        if view.mode is not ev.Mode.ISOLATED:
            self.isolated_since = None
        elif self.isolated_since is None:
            self.isolated_since = self.now
        for peer in self.polled:
            since = self.wire.listened(self.last_poll[peer], self.now)
            assert since <= 300 + 20 + 5, f"{peer} is in the polled set and not polled"
            if self.isolated_since is not None:
                isolated_for = self.wire.listened(self.isolated_since, self.now)
                assert since <= 20 + 20 + 5 or isolated_for <= 45, f"{peer} is hardly polled in isolation"

    @invariant()
    def status_agrees_with_itself(self) -> None:
        if self.mode is None:
            return
        view = self.monitor.view(self.now)
        polled = tuple(peer.peer for peer in view.peers if peer.polled)
        assert view.mode is self.mode
        assert view.http_sync_enabled == bool(polled)
        assert view.bridged_over_http == (polled if view.mode is ev.Mode.P2P else ())
        assert view.has_peers == (view.peer_count > 0)
        assert (ev.Alarm.ISOLATED in view.alarms) == (view.mode is ev.Mode.ISOLATED)
        if view.mode is not ev.Mode.P2P:
            assert view.fallback_in_s is None
        if view.fallback_in_s is not None:
            assert 0 <= view.fallback_in_s <= TIMEOUT_S

    @invariant()
    def probes_are_few(self) -> None:
        latest = [t for t in self.probe_times if t > self.now - 60]
        assert len(latest) <= 8


TestFailover = pytest.mark.slow(FailoverMachine.TestCase)
TestFailover.settings = settings(
    max_examples=int(os.environ.get("FAILOVER_EXAMPLES", "60")),
    stateful_step_count=40,
    deadline=None,
    # The usual run is the same every time; who asks for more examples also asks for new ones.
    derandomize="FAILOVER_EXAMPLES" not in os.environ,
)
