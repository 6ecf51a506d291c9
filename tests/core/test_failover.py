"""The rules of the heartbeat monitor, one by one, at exact times.

Separate from the transcripts because each of these pins one edge: what holds at 60.0 s and not at 59.9.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lattice.core import failover_events as ev
from lattice.core.failover import Monitor

Outputs = list[ev.MonitorOutput]
CONFIG = ev.MonitorConfig()


class Bench:
    """A monitor that is fed input by input; ticks come when the test says so."""

    def __init__(
        self,
        *peers: str,
        config: ev.MonitorConfig = CONFIG,
        policy: str = "auto",
        p2p: bool = True,
        http: bool = True,
        direct: bool = True,
    ) -> None:
        self.monitor = Monitor(
            config,
            self_id="A",
            policy=ev.Policy(policy),
            p2p_enabled=p2p,
            http_enabled=http,
            started_at=0.0,
        )
        for peer in peers:
            self.feed(ev.PeerKnown(peer, 0.0))
        if direct:
            self.feed(ev.DirectSet(peers, 0.0))

    def feed(self, event: ev.MonitorInput) -> Outputs:
        return self.monitor.handle(event)

    def tick(self, t: float, late: float = 0.0) -> Outputs:
        return self.feed(ev.Tick(t, late))

    def beat(self, t: float, peer: str = "B") -> Outputs:
        return self.feed(ev.BeatHeard(peer, t))

    def round(self, t: float, peer: str = "B", *, padded: bool = False) -> Outputs:
        return self.feed(ev.RoundGood(peer, "p2p", t, padded))

    def poll_ended(self, t: float, peer: str = "B", *, answered: bool = True, good: bool = True) -> Outputs:
        return self.feed(ev.PollEnded(peer, t, answered, good))

    def policy(self, name: str, t: float) -> Outputs:
        return self.feed(ev.PolicySet(ev.Policy(name), t))

    def run(self, first: float, last: float, *alive: str, rounds: bool = True) -> None:
        """Every 5 s from `first` to `last`: a beat and a good padded round of who is alive, and a tick."""
        for step in range(int((last - first) / 5) + 1):
            t = first + 5.0 * step
            for peer in alive:
                self.beat(t, peer)
                if rounds:
                    self.round(t, peer, padded=True)
            self.tick(t)

    def view(self, t: float) -> ev.MonitorView:
        return self.monitor.view(t)

    def peer(self, t: float, name: str = "B") -> ev.PeerView:
        return next(peer for peer in self.view(t).peers if peer.peer == name)

    def mode(self) -> str:
        return self.monitor.view(0.0).mode.value

    def polled(self) -> tuple[str, ...]:
        return tuple(peer.peer for peer in self.monitor.view(0.0).peers if peer.polled)


def polls(outputs: Outputs) -> list[str]:
    return [out.peer for out in outputs if isinstance(out, ev.PollDue)]


def probes(outputs: Outputs) -> list[tuple[str, str]]:
    return [(out.peer, out.lung) for out in outputs if isinstance(out, ev.ProbeDue)]


def rounds(outputs: Outputs) -> list[tuple[str, bool]]:
    return [(out.peer, out.padded) for out in outputs if isinstance(out, ev.RoundDue)]


def said(outputs: Outputs) -> list[str]:
    return [out.sentence for out in outputs if isinstance(out, ev.LogLine) and out.tag != "ALERT"]


# Fallback.


def test_falls_at_sixty_seconds_after_the_last_beat_and_not_before() -> None:
    bench = Bench("B")
    bench.run(0, 10, "B")
    bench.tick(69.99)
    assert bench.mode() == "P2P"
    assert bench.polled() == ()
    assert "60 seconds without peers - Activating HTTP Fallback" in said(bench.tick(70.0))
    assert bench.mode() == "HTTP"
    assert bench.polled() == ("B",)


def test_the_first_sixty_seconds_count_from_the_start() -> None:
    bench = Bench("B")
    bench.tick(59.99)
    assert bench.mode() == "P2P"
    bench.tick(60.0)
    assert bench.mode() == "HTTP"


def test_a_peer_known_later_is_polled_sixty_seconds_after_it_became_known() -> None:
    bench = Bench("B")
    bench.run(0, 30, "B")
    bench.feed(ev.PeerKnown("C", 33.0))
    bench.run(35, 90, "B")
    bench.tick(92.99)
    assert bench.polled() == ()
    bench.tick(93.0)
    assert bench.polled() == ("C",)
    assert bench.mode() == "P2P"
    assert bench.view(93.0).bridged_over_http == ("C",)
    assert bench.view(93.0).http_sync_enabled


def test_beats_without_good_rounds_are_not_enough() -> None:
    bench = Bench("B")
    bench.run(0, 10, "B")
    bench.run(15, 65, "B", rounds=False)
    bench.tick(69.9)
    assert bench.mode() == "P2P"
    bench.tick(70.0)
    assert bench.mode() == "HTTP"
    assert bench.view(70.0).reason is ev.Reason.NO_ROUND
    assert bench.view(70.0).peer_count == 0
    bench.tick(80.0)
    assert bench.view(80.0).reason is ev.Reason.NO_ROUND  # the cause of the fall, though beats stopped too


def test_in_a_gap_of_beats_the_round_does_not_count() -> None:
    bench = Bench("B")
    bench.run(0, 10, "B")
    bench.run(15, 45, "B", rounds=False)  # the last good round at 10, the last beat at 45
    for t in (51.1, 70.0, 80.0, 104.9):
        bench.tick(t)
        assert bench.mode() == "P2P", t
    bench.tick(105.0)
    assert bench.mode() == "HTTP"


def test_a_beat_after_the_gap_lets_the_round_count_again() -> None:
    bench = Bench("B")
    bench.run(0, 10, "B")
    bench.run(15, 45, "B", rounds=False)
    bench.tick(75.0)
    bench.beat(80.0)
    bench.tick(80.0)
    assert bench.mode() == "HTTP"


def test_a_good_round_of_either_side_feeds_both() -> None:
    bench = Bench("B")
    bench.run(0, 50, "B", rounds=False)
    bench.round(51.0)
    bench.run(55, 110, "B", rounds=False)
    assert bench.mode() == "P2P"
    bench.tick(111.0)
    assert bench.mode() == "HTTP"


def test_presence_is_no_evidence_that_a_direct_peer_lives() -> None:
    bench = Bench("B")
    bench.run(0, 10, "B")
    for t in range(15, 70, 5):
        bench.feed(ev.PresenceHeard("B", float(t), 5.0, head_held=True))
        bench.round(float(t))
        bench.tick(float(t))
    assert bench.peer(65.0).last_heard_p2p_s == 55.0
    bench.tick(70.0)
    assert bench.mode() == "HTTP"


def test_one_who_becomes_direct_gets_a_minute_for_its_first_round() -> None:
    bench = Bench("B", direct=False)
    for t in range(0, 205, 5):
        bench.feed(ev.PresenceHeard("B", float(t), 5.0, head_held=True))
        bench.tick(float(t))
    bench.feed(ev.DirectSet(("B",), 200.0))
    bench.run(205, 255, "B", rounds=False)
    assert bench.polled() == ()
    bench.run(260, 260, "B", rounds=False)
    assert bench.polled() == ("B",)


def test_one_who_is_no_longer_direct_is_judged_by_presence() -> None:
    bench = Bench("B")
    bench.run(0, 10, "B")
    bench.feed(ev.DirectSet((), 10.0))
    for t in range(15, 205, 5):
        bench.feed(ev.PresenceHeard("B", float(t), 5.0, head_held=True))
        bench.tick(float(t))
    assert bench.polled() == ()
    assert bench.view(200.0).peer_count == 1


@pytest.mark.parametrize(("interval_s", "polled_at"), [(5.0, 60.0), (20.0, 60.0), (30.0, 90.0)])
def test_beyond_the_direct_peers_presence_counts_for_three_of_its_intervals(
    interval_s: float, polled_at: float
) -> None:
    bench = Bench("B", direct=False)
    bench.feed(ev.PresenceHeard("B", 0.0, interval_s, head_held=True))
    bench.tick(0.0)
    bench.tick(polled_at - 0.1)
    assert bench.polled() == ()
    assert bench.view(polled_at - 0.1).peer_count == 1
    bench.tick(polled_at)
    assert bench.polled() == ("B",)
    assert bench.view(polled_at).peer_count == 0


def test_presence_whose_head_is_missing_does_not_count() -> None:
    bench = Bench("B", direct=False)
    bench.feed(ev.PresenceHeard("B", 0.0, 5.0, head_held=True))
    bench.tick(0.0)
    for t in range(5, 60, 5):
        bench.feed(ev.PresenceHeard("B", float(t), 5.0, head_held=False))
        bench.tick(float(t))
        assert bench.view(float(t)).peer_count == 0
    bench.tick(60.0)
    assert bench.polled() == ("B",)


@pytest.mark.parametrize("interval_s", [math.nan, math.inf, -1.0, 1e12, 0.0])
def test_an_absurd_presence_interval_buys_no_patience(interval_s: float) -> None:
    bench = Bench("B", direct=False)
    bench.feed(ev.PresenceHeard("B", 0.0, interval_s, head_held=True))
    bench.tick(0.0)
    bench.tick(60.0)
    assert bench.polled() == ("B",)


def test_lateness_is_subtracted_and_the_timer_goes_on() -> None:
    bench = Bench("B")
    bench.run(0, 10, "B")
    bench.tick(11.0)
    bench.tick(101.0, late=89.0)  # 91 s since the beat, 2 of them listened to
    assert bench.mode() == "P2P"
    bench.tick(158.9)
    assert bench.mode() == "P2P"
    bench.tick(159.0)
    assert bench.mode() == "HTTP"


def test_lateness_larger_than_the_time_since_the_last_tick_is_cut() -> None:
    bench = Bench("B")
    bench.run(0, 10, "B")
    bench.tick(30.0)
    bench.tick(31.0, late=500.0)
    bench.tick(70.9)
    assert bench.mode() == "P2P"
    bench.tick(71.0)
    assert bench.mode() == "HTTP"


def test_a_beat_heard_during_a_stall_gains_nothing_from_it() -> None:
    bench = Bench("B")
    bench.run(0, 10, "B")
    bench.beat(40.0)  # read after a stall, before the tick that tells of it
    bench.tick(41.0, late=30.0)
    bench.tick(100.9)
    assert bench.mode() == "P2P"
    bench.tick(101.0)  # 60 s after 41, where listening began again
    assert bench.mode() == "HTTP"


def test_a_peer_learned_during_a_stall_gains_nothing_from_it() -> None:
    bench = Bench()
    bench.tick(10.0)
    bench.feed(ev.PeerKnown("B", 40.0))
    bench.tick(41.0, late=30.0)
    bench.tick(100.9)
    assert (bench.mode(), bench.polled()) == ("P2P", ())
    bench.tick(101.0)
    assert (bench.mode(), bench.polled()) == ("HTTP", ("B",))


def test_a_round_during_a_stall_gains_nothing_from_it() -> None:
    bench = Bench("B")
    bench.run(0, 10, "B")
    bench.round(40.0)
    bench.tick(41.0, late=30.0)
    bench.run(45, 100, "B", rounds=False)
    assert bench.mode() == "P2P"
    bench.tick(101.0)
    assert bench.mode() == "HTTP"


def test_a_tick_from_the_past_changes_nothing() -> None:
    bench = Bench("B")
    bench.tick(50.0)
    bench.tick(10.0)
    assert bench.view(10.0).fallback_in_s == 10.0
    assert bench.view(10.0).seconds_since_peer == 50.0


def test_silence_is_judged_at_ticks_alone() -> None:
    bench = Bench("B", "C")
    bench.run(0, 10, "B", "C")
    bench.feed(ev.RequestServed("C", "http", 99.0))
    assert bench.mode() == "P2P"
    assert said(bench.feed(ev.PeerKnown("D", 99.0))) == []


def test_a_fallen_peer_that_is_heard_keeps_the_headline_and_does_not_bring_it_back() -> None:
    bench = Bench("B", "C")
    bench.run(0, 70, "B")  # C is never heard: polled from 60
    assert bench.polled() == ("C",)
    bench.run(75, 80, "C")
    bench.tick(130.0)  # B's last beat at 70, C's at 80; C has not proven itself
    assert bench.polled() == ("B", "C")
    assert bench.mode() == "P2P"
    bench.tick(139.9)
    assert bench.mode() == "P2P"
    bench.tick(140.0)
    assert bench.mode() == "HTTP"
    bench.beat(141.0, "C")
    bench.round(141.0, "C", padded=True)
    bench.tick(142.0)
    assert bench.mode() == "HTTP"


def test_a_newcomer_brings_the_headline_back_only_when_proven() -> None:
    bench = Bench("B")
    bench.tick(60.0)
    bench.feed(ev.PeerKnown("C", 61.0))
    bench.feed(ev.DirectSet(("B", "C"), 61.0))
    bench.run(65, 75, "C")
    bench.feed(ev.ProbeEnded("C", "http", 76.0, ok=True))  # answered, but C is not polled yet
    assert bench.mode() == "HTTP"
    bench.run(80, 80, "C")
    assert bench.mode() == "P2P"


# The way back.


def fallen() -> Bench:
    """B fell at 70 and answers over HTTP."""
    bench = Bench("B")
    bench.run(0, 10, "B")
    bench.tick(70.0)
    bench.poll_ended(70.5)
    return bench


def test_returns_after_fifteen_seconds_of_beats_and_not_before() -> None:
    bench = fallen()
    bench.run(100, 110, "B")
    bench.poll_ended(110.5)
    bench.tick(114.99)
    assert bench.mode() == "HTTP"
    bench.tick(115.0)
    assert bench.mode() == "P2P"
    assert bench.polled() == ()


def test_a_gap_starts_the_fifteen_seconds_anew() -> None:
    bench = fallen()
    bench.run(100, 110, "B")
    bench.run(116.1, 126.1, "B")
    bench.tick(131.0)
    assert bench.mode() == "HTTP"
    bench.tick(131.1)
    assert bench.mode() == "P2P"


def test_a_streak_that_begins_in_a_stall_counts_from_its_end() -> None:
    bench = fallen()
    bench.tick(100.0)
    bench.beat(140.0)
    bench.round(140.0, padded=True)
    bench.tick(141.0, late=40.0)
    bench.run(145, 155, "B", rounds=False)
    bench.tick(155.9)
    assert bench.mode() == "HTTP"
    bench.tick(156.0)
    assert bench.mode() == "P2P"


def test_a_padded_round_in_a_stall_is_no_younger_than_its_end() -> None:
    bench = Bench("B", config=replace(CONFIG, return_after_s=80.0))
    bench.run(0, 10, "B")
    bench.tick(70.0)
    bench.tick(100.0)
    bench.beat(140.0)
    bench.round(140.0, padded=True)
    bench.tick(141.0, late=40.0)
    bench.run(145, 225, "B", rounds=False)
    assert bench.polled() == ("B",)


def test_an_http_round_in_a_stall_is_no_younger_than_its_end() -> None:
    bench = fallen()
    bench.tick(100.0)
    bench.poll_ended(140.0)
    bench.tick(141.0, late=40.0)
    bench.run(145, 160, "B")
    assert bench.mode() == "HTTP"


def test_without_a_padded_round_nobody_returns() -> None:
    bench = fallen()
    bench.run(100, 150, "B", rounds=False)
    for t in (110.0, 130.0, 150.0):
        bench.round(t, padded=False)
    bench.tick(150.0)
    assert bench.mode() == "HTTP"
    bench.round(150.5, padded=True)
    bench.tick(151.0)
    assert bench.mode() == "P2P"


def test_a_padded_round_from_before_the_streak_does_not_count() -> None:
    bench = fallen()
    bench.run(100, 100, "B")
    bench.run(110, 130, "B", rounds=False)
    bench.tick(130.0)
    assert bench.mode() == "HTTP"


def test_a_padded_round_of_over_a_minute_ago_does_not_count() -> None:
    bench = Bench("B", config=replace(CONFIG, return_after_s=100.0))
    bench.run(0, 10, "B")
    bench.tick(70.0)
    bench.run(100, 120, "B")
    for t in range(125, 205, 5):
        bench.beat(float(t))
        bench.round(float(t), padded=False)
        bench.tick(float(t))
    assert bench.mode() == "HTTP"
    bench.round(205.0, padded=True)
    bench.tick(205.0)
    assert bench.mode() == "P2P"


def test_http_that_answers_must_also_complete_a_round() -> None:
    bench = fallen()
    bench.run(100, 110, "B")
    bench.poll_ended(112.0, good=False)
    bench.run(115, 130, "B")
    assert bench.mode() == "HTTP"
    bench.poll_ended(131.0, good=True)
    bench.tick(131.0)
    assert bench.mode() == "P2P"


def test_http_that_was_silent_for_thirty_seconds_is_not_waited_for() -> None:
    bench = fallen()
    bench.run(95, 95, "B")
    bench.poll_ended(96.0, good=False)
    bench.run(100, 125, "B")
    bench.tick(126.0)
    assert bench.mode() == "HTTP"
    bench.tick(126.1)
    assert bench.mode() == "P2P"


def test_the_padded_round_must_follow_the_fall_where_beats_never_stopped() -> None:
    bench = Bench("B")
    bench.run(0, 10, "B")
    bench.run(15, 70, "B", rounds=False)
    assert bench.mode() == "HTTP"
    bench.run(75, 80, "B")
    assert bench.mode() == "HTTP"
    bench.run(85, 85, "B")
    assert bench.mode() == "P2P"


def test_beyond_the_direct_peers_a_return_takes_presence_with_its_head_held() -> None:
    bench = Bench("B", direct=False)
    bench.tick(60.0)
    for t in (100.0, 105.0):
        bench.feed(ev.PresenceHeard("B", t, 5.0, head_held=True))
    bench.feed(ev.PresenceHeard("B", 110.0, 5.0, head_held=False))
    bench.feed(ev.PresenceHeard("B", 115.0, 5.0, head_held=True))
    bench.feed(ev.PresenceHeard("B", 120.0, 5.0, head_held=True))
    bench.tick(129.9)
    assert bench.polled() == ("B",)
    bench.tick(130.0)
    assert bench.polled() == ()
    assert bench.mode() == "P2P"


def test_one_presence_with_a_long_interval_is_not_enough() -> None:
    bench = Bench("B", direct=False)
    bench.tick(60.0)
    bench.feed(ev.PresenceHeard("B", 100.0, 60.0, head_held=True))
    bench.tick(140.0)
    assert bench.polled() == ("B",)
    bench.feed(ev.PresenceHeard("B", 160.0, 60.0, head_held=True))
    bench.tick(160.0)
    assert bench.polled() == ()


def cycle(bench: Bench, start: float, wait_s: float) -> float:
    """Silent for 60 s, then beats until the return, which must come after exactly `wait_s`."""
    bench.tick(start + 60)
    assert bench.mode() == "HTTP"
    bench.run(start + 60, start + 60 + wait_s - 5, "B")
    bench.tick(start + 60 + wait_s - 0.1)
    assert bench.mode() == "HTTP", wait_s
    bench.run(start + 60 + wait_s, start + 60 + wait_s, "B")
    assert bench.mode() == "P2P", wait_s
    return start + 60 + wait_s


def test_each_return_within_ten_minutes_doubles_the_wait() -> None:
    bench = Bench("B")
    bench.run(0, 0, "B")
    t = 0.0
    for wait_s in (15, 30, 60, 120, 240, 240):
        t = cycle(bench, t, wait_s)
    bench.run(t, t + 545, "B")
    cycle(bench, t + 545, 15)  # it fell 605 s after the last return


def test_manual_switches_do_not_count_for_the_doubling() -> None:
    bench = Bench("B")
    bench.run(0, 0, "B")
    t = cycle(bench, 0.0, 15)
    for _ in range(3):
        bench.policy("http", t)
        bench.policy("auto", t)
    assert bench.mode() == "P2P"
    cycle(bench, t, 30)


def test_the_wait_is_kept_through_a_fall_by_hand() -> None:
    bench = Bench("B")
    bench.run(0, 0, "B")
    t = cycle(bench, 0.0, 15)
    bench.policy("http", t)
    bench.tick(t + 60)
    bench.policy("auto", t + 60)  # the last beat is 60 s old: HTTP at once
    assert bench.mode() == "HTTP"
    assert bench.peer(t + 60).return_after_s == 30


# What is said while the timer runs.


def test_the_marks_count_from_the_last_beat() -> None:
    bench = Bench("B")
    bench.run(0, 100, "B")
    lines = {t: said(bench.tick(t)) for t in (106.0, 106.1, 114.9, 115.0, 116.0, 130.0, 145.0, 159.9)}
    assert lines == {
        106.0: [],
        106.1: ["No peers detected, starting 60s timer"],
        114.9: [],
        115.0: ["45s remaining before HTTP fallback"],
        116.0: [],
        130.0: ["30s remaining before HTTP fallback"],
        145.0: ["15s remaining before HTTP fallback"],
        159.9: [],
    }


def test_of_several_marks_passed_at_once_the_last_is_said() -> None:
    bench = Bench("B")
    bench.run(0, 100, "B")
    bench.tick(107.0)
    assert said(bench.tick(131.0)) == ["30s remaining before HTTP fallback"]
    assert said(bench.tick(132.0)) == []


def test_a_beat_resets_the_timer_and_its_marks() -> None:
    bench = Bench("B")
    bench.run(0, 100, "B")
    bench.tick(107.0)
    bench.tick(115.0)
    assert said(bench.beat(120.0)) == ["Peers found, resetting peerless timer"]
    assert bench.view(120.0).fallback_in_s is None
    assert said(bench.tick(126.1)) == ["No peers detected, starting 60s timer"]
    assert said(bench.tick(135.0)) == ["45s remaining before HTTP fallback"]


def test_policy_p2p_announces_no_fallback() -> None:
    bench = Bench("B", policy="p2p")
    bench.run(0, 100, "B")
    bench.tick(107.0)
    assert said(bench.tick(115.0)) == []
    assert bench.view(115.0).fallback_in_s is None


def test_a_repeated_sentence_is_counted_and_not_repeated() -> None:
    bench = fallen()
    for start in (80.0, 110.0):
        bench.tick(start)
        bench.poll_ended(start, answered=False)
        bench.tick(start + 10)
        bench.poll_ended(start + 10, answered=False)
        assert bench.mode() == "ISOLATED"
        bench.tick(start + 20)
        assert said(bench.poll_ended(start + 20)) == []
        assert bench.mode() == "HTTP"
    bench.beat(200.0)
    bench.round(200.0, padded=True)
    bench.run(205, 210, "B")
    bench.poll_ended(210.0)
    bench.beat(215.0)
    lines = [out for out in bench.tick(215.0) if isinstance(out, ev.LogLine)]
    assert lines[0].sentence == "Peers found, resetting peerless timer"
    assert lines[0].fields["repeats_before"] == 2


# Status.


def test_numbers_of_the_timer() -> None:
    bench = Bench("B")
    assert bench.view(0.0).fallback_in_s is None
    bench.run(0, 10, "B")
    assert bench.view(12.0).seconds_since_peer == 2.0
    assert bench.view(12.0).fallback_in_s is None
    bench.tick(30.0)
    view = bench.view(30.0)
    assert (view.seconds_since_peer, view.fallback_in_s) == (20.0, 40.0)
    assert (view.peer_count, view.has_peers) == (0, False)
    bench.tick(70.0)
    assert bench.view(70.0).fallback_in_s is None


def test_liveness_follows_the_lung_that_carries() -> None:
    bench = Bench("B")
    bench.run(0, 10, "B")
    seen = {}
    for t in (16.0, 16.1, 69.9, 70.0):
        bench.tick(t)
        seen[t] = bench.peer(t).liveness.value
    assert seen == {16.0: "alive", 16.1: "suspect", 69.9: "suspect", 70.0: "dead"}
    bench.poll_ended(70.5)
    assert bench.peer(70.5).liveness is ev.Liveness.ALIVE
    bench.poll_ended(80.5, answered=False)
    assert bench.peer(190.5).liveness is ev.Liveness.SUSPECT
    assert bench.peer(190.6).liveness is ev.Liveness.DEAD


def test_reachable_means_answered_within_two_minutes() -> None:
    bench = Bench("B")
    bench.tick(0.0)
    assert not bench.peer(0.0).lungs["http"].reachable
    bench.feed(ev.ProbeEnded("B", "http", 1.0, ok=True))
    assert bench.peer(121.0).lungs["http"].reachable
    assert not bench.peer(121.1).lungs["http"].reachable
    assert bench.peer(21.0).lungs["http"].last_ok_s == 20.0


def test_eight_failures_in_a_row_make_a_lung_unreachable() -> None:
    bench = Bench("B")
    bench.tick(0.0)
    bench.feed(ev.ProbeEnded("B", "http", 1.0, ok=True))
    for number in range(7):
        bench.feed(ev.ProbeEnded("B", "http", 2.0 + number, ok=False, error="refused"))
        assert bench.peer(10.0).lungs["http"].reachable
    bench.feed(ev.ProbeEnded("B", "http", 9.0, ok=False, error="refused"))
    assert not bench.peer(10.0).lungs["http"].reachable
    assert bench.peer(10.0).lungs["http"].last_error == "refused"
    bench.feed(ev.ProbeEnded("B", "http", 10.0, ok=True))
    assert bench.peer(10.0).lungs["http"].reachable


def test_resilient_takes_both_lungs() -> None:
    bench = Bench("B", "C")
    bench.run(0, 5, "B")
    assert not bench.view(5.0).resilient
    bench.feed(ev.ProbeEnded("C", "http", 6.0, ok=True))
    assert bench.view(6.0).resilient
    assert not bench.view(125.1).resilient
    other = Bench("B", "C")
    other.run(0, 5, "C")
    other.feed(ev.ProbeEnded("B", "http", 6.0, ok=True))
    assert other.view(6.0).resilient


def test_one_leg_is_a_warning_once_both_had_their_time() -> None:
    bench = Bench("B")
    bench.run(0, 115, "B")
    assert ev.Alarm.ONE_LEG not in bench.view(115.0).alarms
    raised = [out for out in (*bench.beat(120.0), *bench.tick(120.0)) if isinstance(out, ev.AlarmRaised)]
    assert [(out.code, out.level) for out in raised] == [(ev.Alarm.ONE_LEG, "WARNING")]
    assert "only P2P reaches a peer" in raised[0].text
    bench.feed(ev.ProbeEnded("B", "http", 121.0, ok=True))
    assert ev.AlarmCleared(ev.Alarm.ONE_LEG) in bench.tick(121.0)


@pytest.mark.parametrize(("p2p", "http"), [(False, True), (True, False)])
def test_a_lung_that_is_switched_off_is_no_missing_leg(p2p: bool, http: bool) -> None:
    bench = Bench("B", p2p=p2p, http=http)
    for t in range(0, 200, 5):
        if p2p:
            bench.run(float(t), float(t), "B")
        else:
            bench.poll_ended(float(t))
            bench.tick(float(t))
    assert bench.view(200.0).alarms == ()
    assert not bench.view(200.0).resilient


# Policies and missing lungs.


def test_policy_http_polls_everybody_at_once_and_stops_rounds() -> None:
    bench = Bench("B", "C")
    bench.run(0, 10, "B", "C")
    assert set(polls(bench.policy("http", 12.0))) == {"B", "C"}
    assert bench.mode() == "HTTP"
    bench.beat(25.0, "B")
    bench.beat(25.0, "C")
    assert rounds(bench.tick(25.0)) == []
    assert bench.view(25.0).peer_count == 2


def test_policy_http_is_isolated_when_nobody_answers() -> None:
    bench = Bench("B")
    bench.run(0, 10, "B")
    bench.policy("http", 12.0)
    bench.poll_ended(13.0, answered=False)
    bench.tick(22.0)
    assert bench.mode() == "HTTP"
    bench.poll_ended(23.0, answered=False)
    assert bench.mode() == "ISOLATED"


def test_back_to_auto_judges_by_the_last_beat() -> None:
    for silent_s, mode in ((59.9, "P2P"), (60.0, "HTTP")):
        bench = Bench("B")
        bench.run(0, 10, "B")
        bench.policy("http", 10.0)
        bench.tick(10 + silent_s)
        bench.policy("auto", 10 + silent_s)
        assert bench.mode() == mode, silent_s


def test_back_to_auto_gives_rounds_a_fresh_minute() -> None:
    bench = Bench("B")
    bench.run(0, 10, "B")
    bench.policy("http", 10.0)
    bench.run(15, 300, "B", rounds=False)
    bench.policy("auto", 300.0)
    assert bench.mode() == "P2P"
    bench.run(305, 355, "B", rounds=False)
    assert bench.mode() == "P2P"
    bench.run(360, 360, "B", rounds=False)
    assert bench.mode() == "HTTP"


def test_setting_the_same_policy_changes_nothing() -> None:
    bench = fallen()
    bench.beat(71.0)
    assert said(bench.policy("auto", 72.0)) == []
    assert bench.mode() == "HTTP"
    assert bench.polled() == ("B",)


def test_policy_p2p_stops_polling_and_alarms_instead() -> None:
    bench = fallen()
    outputs = bench.policy("p2p", 75.0)
    assert ev.PollsStopped(("B",)) in outputs
    assert bench.mode() == "ISOLATED"
    assert bench.view(75.0).reason is ev.Reason.POLICY_P2P
    assert polls(bench.tick(90.0)) == []
    assert not bench.view(90.0).http_sync_enabled


def test_policy_p2p_is_isolated_only_while_nobody_is_heard() -> None:
    bench = Bench("B", policy="p2p")
    bench.run(0, 0, "B")
    bench.tick(60.0)
    assert bench.mode() == "ISOLATED"
    bench.beat(61.0)
    bench.tick(61.0)
    assert bench.mode() == "ISOLATED"  # no round yet
    bench.round(62.0)
    bench.tick(62.0)
    assert bench.mode() == "P2P"
    assert bench.peer(62.0).return_after_s == 15


def test_a_peer_that_is_heard_again_ends_isolation_before_it_has_proven_itself() -> None:
    bench = Bench("B", config=replace(CONFIG, return_after_s=100.0))
    bench.run(0, 0, "B")
    for t in (60.0, 70.0):
        bench.tick(t)
        bench.poll_ended(t + 1, answered=False)
    assert bench.mode() == "ISOLATED"
    bench.beat(75.0)
    assert bench.mode() == "ISOLATED"
    bench.round(75.5)
    assert bench.mode() == "HTTP"
    bench.tick(134.9)
    assert bench.mode() == "HTTP"
    bench.tick(135.0)
    assert bench.mode() == "ISOLATED"


def test_a_manual_policy_is_a_warning_after_an_hour() -> None:
    bench = Bench("B", policy="http")
    bench.tick(3599.9)
    assert ev.Alarm.MANUAL_POLICY not in bench.view(3599.9).alarms
    bench.tick(3600.0)
    assert ev.Alarm.MANUAL_POLICY in bench.view(3600.0).alarms
    assert ev.AlarmCleared(ev.Alarm.MANUAL_POLICY) in bench.policy("auto", 3601.0)
    bench.policy("p2p", 3602.0)
    bench.tick(7201.9)
    assert ev.Alarm.MANUAL_POLICY not in bench.view(7201.9).alarms


def test_p2p_disabled_is_http_at_once_without_alarm() -> None:
    bench = Bench("B", p2p=False)
    outputs = bench.tick(0.0)
    assert polls(outputs) == ["B"]
    assert bench.mode() == "HTTP"
    assert bench.view(0.0).reason is ev.Reason.P2P_DISABLED
    assert not [out for out in outputs if isinstance(out, ev.AlarmRaised)]
    assert bench.feed(ev.P2PFailed(1.0, "never asked for")) == []


def test_p2p_that_failed_to_start_is_http_at_once_with_an_alarm() -> None:
    bench = Bench("B")
    bench.tick(0.0)
    outputs = bench.feed(ev.P2PFailed(0.5, "address in use"))
    assert polls(outputs) == ["B"]
    assert [out.code for out in outputs if isinstance(out, ev.AlarmRaised)] == [ev.Alarm.P2P_FAILED]
    bench.feed(ev.PeerKnown("C", 1.0))
    assert bench.polled() == ("B", "C")
    assert ev.AlarmCleared(ev.Alarm.P2P_FAILED) in bench.feed(ev.P2PStarted(2.0))


def test_http_disabled_is_isolation_and_not_fallback() -> None:
    bench = Bench("B", http=False)
    bench.run(0, 10, "B")
    outputs = bench.tick(70.0)
    assert bench.mode() == "ISOLATED"
    assert bench.view(70.0).reason is ev.Reason.HTTP_DISABLED
    assert polls(outputs) == []
    bench.run(75, 90, "B")
    assert bench.mode() == "P2P"


# Isolation.


def test_two_unanswered_rounds_isolate_and_one_does_not() -> None:
    bench = fallen()
    bench.tick(80.0)
    bench.poll_ended(80.5, answered=False)
    assert bench.mode() == "HTTP"
    bench.tick(90.0)
    outputs = bench.poll_ended(90.5, answered=False)
    assert bench.mode() == "ISOLATED"
    assert [out.code for out in outputs if isinstance(out, ev.AlarmRaised)] == [ev.Alarm.ISOLATED]


def test_isolation_is_never_called_resilient() -> None:
    """Reachable is said for two minutes after an answer, and both lungs may fall silent sooner."""
    bench = fallen()
    bench.feed(ev.ProbeEnded("B", "http", 76.0, ok=True))
    assert bench.view(76.0).resilient
    for t in (80.0, 90.0):
        bench.tick(t)
        bench.poll_ended(t + 0.5, answered=False)
    assert bench.mode() == "ISOLATED"
    assert all(lung.reachable for lung in bench.peer(91.0).lungs.values())
    assert not bench.view(91.0).resilient


@pytest.mark.parametrize(
    "sign",
    [
        ev.PollEnded("B", 85.0, answered=True),
        ev.RequestServed("B", "http", 85.0),
        ev.RoundGood("B", "http", 85.0),
        ev.ProbeEnded("B", "http", 85.0, ok=True),
    ],
)
def test_any_sign_over_http_starts_the_count_anew(sign: ev.MonitorInput) -> None:
    bench = fallen()
    bench.tick(80.0)
    bench.poll_ended(80.5, answered=False)
    bench.feed(sign)
    bench.tick(90.0)
    bench.poll_ended(90.5, answered=False)
    assert bench.mode() == "HTTP"
    bench.tick(100.0)
    bench.poll_ended(100.5, answered=False)
    assert bench.mode() == "ISOLATED"
    bench.feed(replace(sign, t=101.0))
    assert bench.mode() == "HTTP"


def test_a_round_is_unanswered_only_if_all_its_polls_are() -> None:
    bench = Bench("B", "C")
    bench.tick(60.0)
    for t, first, second in ((60.5, "B", "C"), (80.5, "C", "B")):
        bench.poll_ended(t, first, answered=first == "C")
        bench.poll_ended(t, second, answered=second == "C")
        bench.tick(t + 9.5)
        bench.poll_ended(t + 10, "B", answered=False)
        bench.poll_ended(t + 10, "C", answered=False)
        assert bench.mode() == "HTTP"
        bench.tick(t + 19.5)
    bench.poll_ended(101.0, "B", answered=False)
    assert bench.mode() == "HTTP"
    bench.poll_ended(101.0, "C", answered=False)
    assert bench.mode() == "ISOLATED"


def test_bridging_polls_do_not_isolate_who_falls_later() -> None:
    bench = Bench("B", "C")
    bench.run(0, 60, "B")
    for t in (65.0, 75.0, 85.0):
        bench.poll_ended(t, "C", answered=False)
        bench.run(t + 5, t + 5, "B")
    bench.tick(150.0)  # B's last beat at 90
    bench.tick(151.0)
    assert bench.mode() == "HTTP"


def test_a_sign_during_a_round_answers_it() -> None:
    bench = fallen()
    bench.tick(80.0)
    bench.feed(ev.RequestServed("B", "http", 81.0))
    bench.poll_ended(82.0, answered=False)
    bench.tick(90.0)
    bench.poll_ended(90.5, answered=False)
    assert bench.mode() == "HTTP"
    bench.tick(100.0)
    bench.poll_ended(100.5, answered=False)
    assert bench.mode() == "ISOLATED"


def test_a_bridging_poll_that_ends_after_the_fall_does_not_count() -> None:
    bench = Bench("B", "C", config=replace(CONFIG, poll_timeout_s=100.0))
    bench.run(0, 60, "B")  # C is polled at 60
    bench.tick(120.0)
    bench.poll_ended(121.0, "C", answered=False)
    bench.poll_ended(121.0, "B", answered=False)
    assert bench.mode() == "HTTP"
    bench.tick(130.0)
    bench.poll_ended(131.0, "B", answered=False)
    bench.poll_ended(131.0, "C", answered=False)
    assert bench.mode() == "ISOLATED"


def test_a_poll_that_is_never_reported_counts_as_unanswered() -> None:
    bench = Bench("B", config=replace(CONFIG, poll_timeout_s=15.0))
    bench.tick(60.0)
    bench.tick(70.0)
    assert polls(bench.tick(74.9)) == []
    assert polls(bench.tick(80.0)) == ["B"]
    bench.tick(95.0)
    assert bench.mode() == "ISOLATED"
    assert bench.peer(95.0).lungs["http"].last_error == "no report of the poll"


# Alone, identified, forgotten.


def test_alone_is_one_line_and_no_alarm() -> None:
    bench = Bench()
    outputs = bench.tick(0.0)
    assert [type(out) for out in outputs] == [ev.ModeChanged, ev.LogLine]
    assert "run lattice invite" in said(outputs)[0]
    assert [bench.tick(float(t)) for t in (1, 60, 61, 4000)] == [[], [], [], []]
    assert bench.view(4000.0).reason is ev.Reason.ALONE


def test_identifying_an_address_keeps_since_when_it_is_known() -> None:
    bench = Bench("url:http://b", direct=False)
    bench.tick(0.0)
    bench.feed(ev.PeerKnown("B", 40.0))
    bench.feed(ev.PeerIdentified("url:http://b", "B", 41.0))
    assert [(peer.peer, peer.known_s) for peer in bench.view(41.0).peers] == [("B", 41.0)]
    bench.tick(59.9)
    assert bench.polled() == ()
    bench.tick(60.0)
    assert bench.polled() == ("B",)


def test_what_is_reported_under_the_address_counts_for_the_peer_behind_it() -> None:
    bench = Bench("url:http://b", direct=False)
    assert polls(bench.tick(60.0)) == ["url:http://b"]
    bench.feed(ev.PeerIdentified("url:http://b", "B", 60.2))
    bench.poll_ended(60.5, "url:http://b")
    assert bench.peer(61.0).lungs["http"].last_ok_s == 0.5
    assert polls(bench.tick(70.0)) == ["B"]
    assert bench.feed(ev.PeerKnown("url:http://b", 71.0)) == []
    assert len(bench.view(71.0).peers) == 1


def test_a_poll_under_way_goes_on_under_the_identity() -> None:
    bench = Bench("url:http://b", direct=False)
    bench.tick(60.0)
    bench.feed(ev.PeerIdentified("url:http://b", "B", 61.0))
    assert polls(bench.tick(70.0)) == []
    bench.poll_ended(75.0, "url:http://b", answered=False)
    assert polls(bench.tick(80.0)) == ["B"]
    bench.poll_ended(85.0, answered=False)
    assert bench.mode() == "ISOLATED"


def test_a_polled_address_stays_polled_when_it_is_a_peer_known_later() -> None:
    bench = Bench("url:http://b", direct=False)
    bench.tick(60.0)
    bench.feed(ev.PeerKnown("B", 60.0))
    bench.poll_ended(60.5, "url:http://b")
    bench.feed(ev.PeerIdentified("url:http://b", "B", 60.6))
    assert bench.polled() == ("B",)
    assert bench.peer(60.6).liveness is ev.Liveness.ALIVE


def test_an_address_outlives_the_peer_that_was_behind_it() -> None:
    bench = Bench("url:http://b", direct=False)
    bench.feed(ev.PeerIdentified("url:http://b", "B", 1.0))
    bench.feed(ev.PeerForgotten("B", 2.0))
    bench.feed(ev.PeerKnown("url:http://b", 3.0))
    assert [peer.peer for peer in bench.view(3.0).peers] == ["url:http://b"]


def test_an_address_of_a_heard_peer_is_not_polled_beside_it() -> None:
    bench = Bench("B", "url:http://b")
    bench.run(0, 60, "B")
    assert bench.polled() == ("url:http://b",)
    outputs = bench.feed(ev.PeerIdentified("url:http://b", "B", 61.0))
    assert ev.PollsStopped(("url:http://b",)) in outputs
    assert bench.polled() == ()


def test_our_own_address_is_no_peer() -> None:
    bench = Bench("url:http://me", direct=False)
    bench.tick(0.0)
    bench.feed(ev.PeerIdentified("url:http://me", "A", 1.0))
    bench.feed(ev.PeerKnown("A", 1.0))
    assert bench.view(1.0).peers == ()
    assert bench.view(1.0).reason is ev.Reason.ALONE


def test_a_forgotten_peer_leaves_nothing_behind() -> None:
    bench = fallen()
    bench.tick(80.0)
    outputs = bench.feed(ev.PeerForgotten("B", 81.0))
    assert ev.PollsStopped(("B",)) in outputs
    assert bench.beat(82.0) == []
    assert bench.poll_ended(82.0) == []
    assert bench.view(82.0).peers == ()


def test_no_more_peers_than_the_limit_are_taken() -> None:
    bench = Bench(config=replace(CONFIG, peers_max=3))
    for number in range(5):
        bench.feed(ev.PeerKnown(f"P{number}", 0.0))
    assert len(bench.view(0.0).peers) == 3


# P2P rounds.


def test_rounds_run_every_ten_seconds_and_one_in_thirty_is_padded() -> None:
    bench = Bench("B")
    seen = []
    for t in range(71):
        if t % 5 == 0:
            bench.beat(float(t))
        due = rounds(bench.tick(float(t)))
        for _, padded in due:
            seen.append((t, padded))
            bench.round(t + 0.5, padded=padded)
    assert seen == [
        (0, True),
        (10, False),
        (20, False),
        (30, True),
        (40, False),
        (50, False),
        (60, True),
        (70, False),
    ]


def test_a_round_of_the_other_side_puts_ours_off() -> None:
    bench = Bench("B")
    bench.beat(0.0)
    assert rounds(bench.tick(0.0)) == [("B", True)]
    bench.round(0.5, padded=True)
    bench.beat(5.0)
    bench.beat(9.0)
    bench.round(9.0)
    assert rounds(bench.tick(10.0)) == []
    bench.beat(14.0)
    assert rounds(bench.tick(18.9)) == []
    assert rounds(bench.tick(19.0)) == [("B", False)]


def test_rounds_that_a_writer_causes_do_not_put_off_the_padded_one() -> None:
    bench = Bench("B")
    seen = []
    for t in range(91):
        if t % 5 == 0:
            bench.beat(float(t))
            bench.round(t + 0.1)  # heads differ at every beat
        for peer, padded in rounds(bench.tick(t + 0.5)):
            seen.append((t, padded))
            bench.round(t + 0.6, peer, padded=padded)
    assert seen == [(0, True), (30, True), (60, True), (90, True)]


def test_a_peer_returns_beside_a_steady_writer() -> None:
    bench = Bench("B")
    bench.run(0.0, 10.0, "B")
    for t in range(11, 75):
        bench.tick(float(t))
    assert bench.mode() == "HTTP"
    for t in range(100, 130):
        if t % 5 == 0:
            bench.beat(float(t))
            bench.round(t + 0.1)
        for peer, padded in rounds(bench.tick(t + 0.5)):
            bench.round(t + 0.6, peer, padded=padded)
        if bench.mode() == "P2P":
            break
    assert 115 <= t <= 117


def test_without_beats_no_round_is_opened() -> None:
    bench = Bench("B")
    bench.beat(0.0)
    bench.tick(0.0)
    assert rounds(bench.tick(6.1)) == []
    assert rounds(bench.tick(30.0)) == []
    bench.beat(31.0)
    assert rounds(bench.tick(31.0)) == [("B", True)]


def test_after_a_gap_a_padded_round_comes_at_once() -> None:
    bench = Bench("B")
    bench.beat(0.0)
    bench.tick(0.0)
    bench.beat(7.0)
    assert rounds(bench.tick(7.0)) == [("B", True)]


# Settings.


@pytest.mark.parametrize(
    "change",
    [
        {"beat_interval_s": 0.0},
        {"beat_interval_s": 15.1},
        {"peerless_timeout_s": 11.9},
        {"poll_interval_s": 0.0},
        {"poll_slots_answered": 3},
        {"return_after_s": 241.0},
    ],
)
def test_settings_that_contradict_each_other_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        replace(CONFIG, **change)  # type: ignore[arg-type]


# Anything may come.

names = st.sampled_from(["A", "B", "C", "url:http://b", "url:http://c"])
lungs = st.sampled_from(["p2p", "http"])
policies = st.sampled_from(list(ev.Policy))
TIME_STEPS = st.sampled_from([0.0, 0.5, 1.0, 4.0, 10.0, 61.0])


def anything(t: float) -> st.SearchStrategy[ev.MonitorInput]:
    now = st.just(t)
    return st.one_of(
        st.builds(ev.PeerKnown, names, now),
        st.builds(ev.PeerIdentified, names, names, now),
        st.builds(ev.PeerForgotten, names, now),
        st.builds(ev.DirectSet, st.lists(names, max_size=3).map(tuple), now),
        st.builds(ev.BeatHeard, names, now),
        st.builds(ev.PresenceHeard, names, now, st.floats(), st.booleans()),
        st.builds(ev.RoundGood, names, lungs, now, st.booleans()),
        st.builds(ev.PollEnded, names, now, st.booleans(), st.booleans()),
        st.builds(ev.ProbeEnded, names, lungs, now, st.booleans()),
        st.builds(ev.RequestServed, names, lungs, now),
        st.builds(ev.PolicySet, policies, now),
        st.builds(ev.P2PStarted, now),
        st.builds(ev.P2PFailed, now, st.just("no")),
        st.builds(ev.Tick, now, st.sampled_from([0.0, 0.1, 30.0])),
    )


steps = st.lists(st.tuples(TIME_STEPS, anything(0.0)), min_size=20, max_size=60)


@pytest.mark.slow
@given(steps, st.booleans(), st.booleans())
@settings(max_examples=200, deadline=None, derandomize=True)
def test_whatever_comes_is_taken_and_gives_the_same_again(
    events: list[tuple[float, ev.MonitorInput]], p2p: bool, http: bool
) -> None:
    bench, twin = Bench(p2p=p2p, http=http), Bench(p2p=p2p, http=http)
    now, mode = 0.0, None
    for step, event in events:
        now += step
        outputs = bench.feed(replace(event, t=now))
        assert outputs == twin.feed(replace(event, t=now))
        changes = [out.mode for out in outputs if isinstance(out, ev.ModeChanged)]
        assert len(changes) <= 1
        mode = changes[0] if changes else mode
        check_view(bench.view(now), mode, outputs)


def check_view(view: ev.MonitorView, mode: ev.Mode | None, outputs: Outputs) -> None:
    polled = {peer.peer for peer in view.peers if peer.polled}
    assert "A" not in {peer.peer for peer in view.peers}
    assert set(polls(outputs)) <= polled
    assert len(polls(outputs)) <= 3
    assert len(probes(outputs)) <= 1
    if mode is None:
        return
    assert view.mode is mode
    if view.policy is ev.Policy.HTTP:
        assert mode is not ev.Mode.P2P
    if view.policy is ev.Policy.P2P:
        assert mode is not ev.Mode.HTTP
        assert not polled
    if not view.peers:
        assert view.reason is ev.Reason.ALONE
    isolated = mode is ev.Mode.ISOLATED and view.reason is not ev.Reason.ALONE
    assert (ev.Alarm.ISOLATED in view.alarms) == isolated
