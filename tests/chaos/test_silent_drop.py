"""The P2P port of one node of three falls silent and comes back, at real time and under constant writes.

Separate from the simulated failover because only real sockets show what a silent drop does: libp2p
believes in its connections for minutes, and the 60 seconds are counted by another clock, the filter's.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from lattice.testing.cluster import LocalNode, roots_equal, running, wait_for
from tests.chaos import netns, traffic
from tests.chaos.conftest import Measured, Outcomes, Scenario
from tests.chaos.log_lines import lines_with, the_line
from tests.chaos.oracle import judge_ended
from tests.chaos.traffic import Look, Watcher, Writer

WRITES_A_SECOND = 13.0  # at each of the two written nodes
BEAT_GAP_S = 6.0
LOOK_S = 0.5  # what asking for a status four times a second can be late

pytestmark = [pytest.mark.netns, pytest.mark.slow, pytest.mark.timeout(420)]


def silent_drop(directory: Path) -> Measured:
    """The whole course; what it measured in seconds. Raises AssertionError."""
    with netns.lan("silent", 3) as lan, running(lan.joined_nodes(directory)) as nodes:
        blocked, written, reader = nodes
        writers = [Writer(blocked, WRITES_A_SECOND), Writer(written, WRITES_A_SECOND)]
        watchers = [Watcher(node) for node in nodes]
        course = _Course(blocked, [written, reader], writers, watchers)
        with traffic.going_on([*writers, *watchers]):
            for watcher in watchers:
                watcher.wait(
                    "two peers heard over P2P", lambda look: look.status.peer_count == 2, within_s=60
                )
            for writer in writers:
                writer.resume()
            namespace = lan.namespace(1)
            with netns.PacketWatch(namespace, netns.P2P_PORT) as watch:
                course.honest_control()
                # Not in the last moment of a beat's interval: 55 s after the last packet is exact then.
                watchers[0].wait("a beat", lambda look: look.silent_s < 3.5, within_s=10)
                with netns.drop_port(namespace, netns.P2P_PORT) as fault:
                    course.blocked_at = time.monotonic()
                    course.falls_back()
                    course.measured["http_after_last_packet_s"] = course.fell_at - watch.last_passed_at
                    course.crosses_over_http()
                    assert fault.packets() > 0
                    assert watch.last_passed_at < course.blocked_at + 1
            course.heals()
            course.returns()
        assert not [text for part in [*writers, *watchers] for text in part.trouble]
        network = bytes.fromhex(blocked.status().network)
        last = [node.state() for node in nodes]
    judge_ended(nodes, network, [line for writer in writers for line in writer.journal], last)
    assert 55 <= course.measured["http_after_last_packet_s"] <= 65
    return course.measured


class _Course:
    """The steps in their order; each fills in what it measured."""

    def __init__(
        self, blocked: LocalNode, others: list[LocalNode], writers: list[Writer], watchers: list[Watcher]
    ) -> None:
        self.blocked = blocked
        self.others = others
        self.writers = writers
        self.watchers = watchers
        self.watcher = watchers[0]
        self.blocked_at = 0.0
        self.fell_at = 0.0
        self.healed_at = 0.0
        self.measured: Measured = {}

    @property
    def nodes(self) -> list[LocalNode]:
        return [self.blocked, *self.others]

    def honest_control(self) -> None:
        """Before the block entries cross both ways over P2P, at once and without HTTP."""
        took_s = [
            self._crosses("before", self.blocked, self.others, 5),
            self._crosses("before", self.others[0], [self.blocked], 5),
        ]
        self.measured["p2p_crossing_s"] = max(took_s)
        assert all(not look.status.http_sync_enabled for look in self.watcher.looks[-4:])

    def falls_back(self) -> None:
        """HTTP 60 to 65 s after the last beat heard, and no sooner."""
        traffic.put_mark(self.blocked, "mark/early")
        self.watcher.wait("nearly a minute", lambda look: look.silent_s > 57, within_s=65)
        # Until then the block is tight, whatever libp2p believes of its connections.
        assert not any(node.has_key("mark/early") for node in self.others)
        fallen = self.watcher.wait("HTTP", lambda look: look.mode == "HTTP", within_s=10)
        self.measured["http_after_last_beat_s"] = fallen.silent_s
        assert 60 <= fallen.silent_s <= 65
        before = [look for look in self.watcher.since(self.blocked_at) if look.at < fallen.at]
        assert {look.mode for look in before} == {"P2P"}
        assert not any(look.status.http_sync_enabled for look in before if look.silent_s < 59)
        self.fell_at = the_line(self.blocked, "[SYNC] mode is HTTP", "previous=P2P").at
        synced = self.watcher.wait("a round over HTTP", lambda look: _http_rounds(look) > 0, within_s=12)
        self.measured["first_http_sync_s"] = max(0.0, synced.at - self.fell_at)
        assert synced.at - self.fell_at <= 10
        for node in self.others:
            wait_for("the entry from before", lambda node=node: node.has_key("mark/early"), within_s=10)

    def crosses_over_http(self) -> None:
        """During the block entries of both sides reach both sides."""
        self.measured["http_crossing_s"] = max(
            self._crosses("during", self.blocked, self.others, 15),
            *(self._crosses("during", node, [self.blocked], 15) for node in self.others),
        )
        for watcher in self.watchers[1:]:
            seen = watcher.since(self.blocked_at)
            assert {look.mode for look in seen} == {"P2P"}  # they hear each other
            assert self.watcher.looks[-1].status.peer_id in seen[-1].status.bridged_over_http
        rates = [writer.rate_since(self.blocked_at) for writer in self.writers]
        self.measured["written_entries_a_s"] = sum(rates)
        assert sum(rates) >= 20

    def heals(self) -> None:
        """With the writers paused everything is equal everywhere within 30 s of healing."""
        self.healed_at = time.monotonic()
        for writer in self.writers:
            writer.pause()
        wait_for("equal heads and roots", lambda: roots_equal(self.nodes), within_s=30)
        self.measured["equal_after_healing_s"] = time.monotonic() - self.healed_at
        assert self.measured["equal_after_healing_s"] <= 30
        states = [node.state() for node in self.nodes]
        assert states[0].heads == states[1].heads == states[2].heads
        for writer in self.writers:
            writer.resume()

    def returns(self) -> None:
        """Back to P2P by itself after 15 s of beats, and HTTP is silent from then on."""
        self.watcher.wait("P2P again", lambda look: look.mode == "P2P", within_s=75)
        back = the_line(self.blocked, "[SYNC] mode is P2P", "previous=HTTP").at
        streaks = [
            traffic.streak_s(self.watcher.beats(peer.name, self.healed_at), BEAT_GAP_S + LOOK_S, back)
            for peer in self.watcher.looks[-1].status.peers
        ]
        self.measured["p2p_after_healing_s"] = back - self.healed_at
        self.measured["p2p_after_first_beat_s"] = max(streaks)
        assert max(streaks) >= 15 - LOOK_S
        assert max(streaks) <= 15 + 12
        for watcher in self.watchers:
            watcher.wait("nobody polled", lambda look: not look.status.http_sync_enabled, within_s=30)
        rounds = _http_rounds(self.watcher.looks[-1])
        quiet_from = time.monotonic()
        self.watcher.wait("a poll interval and more", lambda look: look.at > quiet_from + 12, within_s=15)
        assert _http_rounds(self.watcher.looks[-1]) <= rounds + 1  # one may have been on its way
        assert self.watcher.modes(self.blocked_at) == ["P2P", "HTTP", "P2P"]
        the_line(self.blocked, "[P2P_HEARTBEAT] 60 seconds without peers - Activating HTTP Fallback")
        the_line(self.blocked, "[P2P_HEARTBEAT] HTTP Sync Fallback activated")
        the_line(self.blocked, "[P2P_HEARTBEAT] Peers found, resetting peerless timer")
        for node in self.others:
            assert not lines_with(node, "Activating HTTP Fallback")
        for writer in self.writers:
            writer.pause()
        wait_for("equal heads and roots at the end", lambda: roots_equal(self.nodes), within_s=30)

    def _crosses(self, when: str, source: LocalNode, targets: list[LocalNode], within_s: float) -> float:
        """How long an entry of `source` takes to be readable at every target."""
        key = f"mark/{when}/{source.name}"
        traffic.put_mark(source, key)
        return max(
            wait_for(f"{key} at {node.name}", lambda node=node: node.has_key(key), within_s=within_s)
            for node in targets
        )


def _http_rounds(look: Look) -> int:
    """Rounds over HTTP that this node has opened and that were answered."""
    counters = look.status.counters
    return sum(count for name, count in counters.items() if name.startswith("rounds_http_"))


SCENARIOS: tuple[Scenario, ...] = (silent_drop,)


def test_silent_drop_at_one_node(measured: Outcomes) -> None:
    print(measured(SCENARIOS[0]))
