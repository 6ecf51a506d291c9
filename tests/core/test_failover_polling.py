"""Slots, rotation, back-off and probes: how a small budget is spent among many peers.

Separate from the rules of the monitor because here the peers are many and only fairness is in question.
"""

from __future__ import annotations

from collections import Counter
from hashlib import sha256
from itertools import pairwise

import pytest

from lattice.core import failover_events as ev
from lattice.core.failover import Monitor

SELF = "A"


def ring_order(peers: list[str]) -> list[str]:
    """Clockwise from our own place, by other code than the node's."""
    own = sha256(SELF.encode()).hexdigest()
    points = {peer: sha256(peer.encode()).hexdigest() for peer in peers}
    after = sorted((peer for peer in peers if points[peer] > own), key=lambda peer: points[peer])
    before = sorted((peer for peer in peers if points[peer] < own), key=lambda peer: points[peer])
    return after + before


class Network:
    """Peers known from the start and never heard over P2P; some of them answer over HTTP."""

    def __init__(self, count: int, *, p2p: bool = False, policy: str = "auto") -> None:
        self.peers = ring_order([f"peer{number}" for number in range(count)])
        self.answering: set[str] = set()
        self.polled_at: list[tuple[float, str]] = []
        self.probed_at: list[tuple[float, str, str]] = []
        self.monitor = Monitor(
            ev.MonitorConfig(),
            self_id=SELF,
            policy=ev.Policy(policy),
            p2p_enabled=p2p,
            http_enabled=True,
            started_at=0.0,
        )
        for peer in sorted(self.peers):
            self.monitor.handle(ev.PeerKnown(peer, 0.0))

    def run(self, first: int, last: int, *, report: bool = True) -> None:
        """A tick every second; a poll that is reported is answered or not before the next."""
        for t in range(first, last + 1):
            for out in self.monitor.handle(ev.Tick(float(t))):
                if isinstance(out, ev.PollDue):
                    self.polled_at.append((t, out.peer))
                    if report:
                        ok = out.peer in self.answering
                        self.monitor.handle(ev.PollEnded(out.peer, t + 0.5, answered=ok, good=ok))
                elif isinstance(out, ev.ProbeDue):
                    self.probed_at.append((t, out.peer, out.lung))
                    ok = out.lung == "http" and out.peer in self.answering
                    self.monitor.handle(ev.ProbeEnded(out.peer, out.lung, t + 0.5, ok))

    def rounds(self) -> list[tuple[float, list[str]]]:
        times = sorted({t for t, _ in self.polled_at})
        return [(t, [peer for at, peer in self.polled_at if at == t]) for t in times]


def test_rounds_come_every_ten_seconds_with_three_polls() -> None:
    network = Network(7)
    network.answering = set(network.peers)
    network.run(0, 100)
    assert [t for t, _ in network.rounds()] == list(range(0, 101, 10))
    assert all(len(polled) == 3 for _, polled in network.rounds())


def test_a_poll_that_was_stopped_is_not_waited_for() -> None:
    """Its report never comes: for 40 s the peer would count as polled, and nobody would poll it."""
    network = Network(1, p2p=True, policy="http")
    network.run(0, 0, report=False)
    stopped = network.monitor.handle(ev.PolicySet(ev.Policy.P2P, 0.5))
    assert ev.PollsStopped(("peer0",)) in [*stopped, *network.monitor.handle(ev.Tick(0.6))]
    assert ev.PollDue("peer0") in network.monitor.handle(ev.PolicySet(ev.Policy.HTTP, 1.0))
    network.monitor.handle(ev.PollEnded("peer0", 1.5, answered=True, good=True))
    network.answering = set(network.peers)
    network.run(2, 60)
    assert [t for t, _ in network.polled_at] == [0, 11, 21, 31, 41, 51]
    (peer,) = network.monitor.view(60.0).peers
    assert peer.lungs["http"].last_error is None


def test_up_to_three_peers_are_all_polled_in_every_round() -> None:
    network = Network(3)
    network.answering = set(network.peers)
    network.run(0, 50)
    assert all(sorted(polled) == sorted(network.peers) for _, polled in network.rounds())


def test_the_rotation_starts_at_our_own_place_on_the_ring() -> None:
    network = Network(9)
    network.run(0, 20)
    assert [peer for _, polled in network.rounds() for peer in polled] == network.peers


def test_two_nodes_start_at_different_places() -> None:
    peers = [f"peer{number}" for number in range(50)]
    first = ring_order(peers)[0]
    assert first != min(peers, key=lambda peer: sha256(peer.encode()).hexdigest())


def test_two_slots_are_for_those_that_answered_and_one_for_the_rest() -> None:
    network = Network(9)
    network.answering = set(network.peers[:4])
    network.run(0, 100)
    settled = [polled for t, polled in network.rounds() if t >= 40]
    for polled in settled:
        assert len([peer for peer in polled if peer in network.answering]) == 2
        assert len([peer for peer in polled if peer not in network.answering]) == 1


def test_the_longest_unpolled_of_those_that_answered_comes_first() -> None:
    network = Network(5)
    network.answering = set(network.peers)
    network.run(0, 305)
    counts = Counter(peer for t, peer in network.polled_at if t >= 30)
    assert max(counts.values()) - min(counts.values()) <= 1
    for peer in network.peers:
        times = [t for t, polled in network.polled_at if polled == peer]
        assert max(b - a for a, b in pairwise(times)) <= 20


def test_the_one_slot_for_the_rest_goes_around() -> None:
    network = Network(8)
    network.answering = set(network.peers[:3])
    network.run(0, 30)
    network.polled_at.clear()
    network.run(31, 90)
    rest = [peer for _, peer in network.polled_at if peer not in network.answering]
    silent = network.peers[3:]
    start = silent.index(rest[0])
    assert rest[:5] == silent[start:] + silent[:start]


def test_a_probe_that_was_answered_gives_one_of_the_two_slots() -> None:
    network = Network(9, p2p=True)
    network.answering = {network.peers[5], network.peers[6]}
    network.run(0, 70)
    assert network.rounds()[0][0] == 60
    first = network.rounds()[0][1]
    assert set(first[:2]) == network.answering
    assert len(first) == 3


def test_back_off_doubles_to_five_minutes_while_another_answers() -> None:
    network = Network(2)
    network.answering = {network.peers[0]}
    network.run(0, 1500)
    times = [t for t, peer in network.polled_at if peer == network.peers[1]]
    waits = [b - a for a, b in pairwise(times)]
    assert waits == [10, 10, 20, 40, 80, 160, 300, 300, 300]


def test_back_off_is_at_most_twenty_seconds_in_isolation() -> None:
    network = Network(1)
    network.run(0, 300)
    times = [t for t, _ in network.polled_at]
    waits = [b - a for a, b in pairwise(times)]
    assert waits == [10, 10] + [20] * 14


@pytest.mark.parametrize(
    "sign",
    [
        ev.RequestServed("peer", "http", 400.0),
        ev.RequestServed("peer", "p2p", 400.0),
        ev.ProbeEnded("peer", "p2p", 400.0, ok=True),
        ev.ProbeEnded("peer", "http", 400.0, ok=True),
    ],
)
def test_back_off_ends_with_a_request_or_a_good_probe(sign: ev.MonitorInput) -> None:
    network = Network(2)
    network.answering = {network.peers[0]}
    network.run(0, 400)
    silent = network.peers[1]
    assert (330, silent) not in network.polled_at  # polled at 320, and next at 620
    named = type(sign)(**{**{name: getattr(sign, name) for name in sign.__slots__}, "peer": silent})
    network.monitor.handle(named)
    network.run(401, 410)
    assert (410, silent) in network.polled_at


def test_a_failed_probe_does_not_end_the_back_off() -> None:
    network = Network(2)
    network.answering = {network.peers[0]}
    network.run(0, 400)
    network.monitor.handle(ev.ProbeEnded(network.peers[1], "p2p", 400.0, ok=False))
    network.run(401, 610)
    assert max(t for t, peer in network.polled_at if peer == network.peers[1]) == 320


def test_a_poll_under_way_is_not_repeated() -> None:
    network = Network(1)
    network.run(0, 35, report=False)
    assert network.polled_at == [(0, network.peers[0])]


def test_a_late_loop_keeps_the_cadence_and_makes_nothing_up() -> None:
    network = Network(1)
    network.answering = set(network.peers)
    for t in (0.0, 10.2, 20.0, 29.9, 30.0, 65.0, 66.0, 74.9, 75.0):
        for out in network.monitor.handle(ev.Tick(t)):
            if isinstance(out, ev.PollDue):
                network.polled_at.append((t, out.peer))
                network.monitor.handle(ev.PollEnded(out.peer, t, answered=True))
    assert [t for t, _ in network.polled_at] == [0.0, 10.2, 20.0, 30.0, 65.0, 75.0]


def test_at_most_eight_probes_a_minute_going_around() -> None:
    network = Network(40, p2p=True)
    network.run(0, 55)
    assert [lung for _, _, lung in network.probed_at] == ["http"] * 7
    assert [peer for _, peer, _ in network.probed_at] == network.peers[:7]
    network.run(56, 600)
    times = [t for t, _, _ in network.probed_at]
    assert max(sum(1 for at in times if t <= at < t + 60) for t in times) == 8


def test_the_same_peer_is_probed_every_ten_seconds_at_most() -> None:
    network = Network(1, p2p=True)
    network.run(0, 59)
    assert [t for t, _, _ in network.probed_at] == [0, 10, 20, 30, 40, 50]


def test_the_lung_not_in_use_is_probed() -> None:
    network = Network(1, p2p=True)
    network.run(0, 100)
    assert {lung for t, _, lung in network.probed_at if t < 60} == {"http"}
    assert {lung for t, _, lung in network.probed_at if t > 60} == {"p2p"}


def test_a_probe_without_a_report_is_not_repeated_for_thirty_seconds() -> None:
    network = Network(1, p2p=True)
    seen = []
    for t in range(50):
        outputs = network.monitor.handle(ev.Tick(float(t)))
        seen += [t for out in outputs if isinstance(out, ev.ProbeDue)]
    assert seen == [0, 30]


def test_nothing_is_probed_over_a_lung_that_is_off() -> None:
    network = Network(2)
    network.answering = set(network.peers)
    network.run(0, 100)
    assert network.probed_at == []


def test_an_address_without_identity_is_never_probed_over_p2p() -> None:
    network = Network(0, p2p=True)
    network.monitor.handle(ev.PeerKnown("url:http://b", 0.0))
    network.run(0, 200)
    assert {lung for _, _, lung in network.probed_at} == {"http"}
    assert max(t for t, _, _ in network.probed_at) < 60


def fruitless(network: Network, peer: str, until: int) -> list[float]:
    """Let one peer answer without ever being of use while another is good; when it was polled."""

    def report(t: int, polled: str) -> None:
        good = polled != peer
        network.monitor.handle(ev.PollEnded(polled, t + 0.5, answered=True, good=good, fruitless=not good))

    for t in range(until + 1):
        for out in network.monitor.handle(ev.Tick(float(t))):
            if isinstance(out, ev.PollDue):
                network.polled_at.append((t, out.peer))
                report(t, out.peer)
        # It asks and answers Hellos all the while: that it lives is not what is in question.
        network.monitor.handle(ev.RequestServed(peer, "http", t + 0.6))
        network.monitor.handle(ev.ProbeEnded(peer, "http", t + 0.7, True))
    return [t for t, polled in network.polled_at if polled == peer]


def test_three_fruitless_rounds_lead_to_back_off_whatever_else_the_peer_says() -> None:
    network = Network(2)
    liar, honest = network.peers
    times = fruitless(network, liar, 1500)
    gaps = [after - before for before, after in pairwise(times)]
    assert gaps[:2] == [10, 10]
    assert gaps[2:7] == [20, 40, 80, 160, 300]
    assert set(gaps[7:]) <= {300}
    good = [t for t, polled in network.polled_at if polled == honest]
    assert all(after - before == 10 for before, after in pairwise(good))


@pytest.mark.parametrize("by_peer", [False, True])
def test_a_good_round_ends_the_back_off_of_the_fruitless(by_peer: bool) -> None:
    network = Network(2)
    liar = network.peers[0]
    last = fruitless(network, liar, 200)[-1]
    if by_peer:
        network.monitor.handle(ev.RoundGood(liar, "http", 201.0, False))
    else:
        network.monitor.handle(ev.PollEnded(liar, 201.0, answered=True, good=True))
    network.polled_at.clear()
    network.answering = set(network.peers)
    network.run(202, 240)
    times = [t for t, polled in network.polled_at if polled == liar]
    assert times[0] - last < 300
    assert [after - before for before, after in pairwise(times)] == [10] * (len(times) - 1)
    assert len(times) >= 3
