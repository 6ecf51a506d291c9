"""Large packets vanish at one node, small ones pass: what no count of connections can see.

Separate because the damage is of another kind: connections stand, a beat gets through as long as no
entry is in its way, and entries stick for ever. Only rounds that complete tell the truth.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from lattice.testing.cluster import roots_equal, running, wait_for
from tests.chaos import netns, traffic
from tests.chaos.conftest import Measured, Outcomes, Scenario
from tests.chaos.log_lines import lines_with
from tests.chaos.oracle import judge_ended
from tests.chaos.traffic import Watcher, Writer

WRITES_A_SECOND = 10.0
SMALL_BYTES = 500

pytestmark = [pytest.mark.netns, pytest.mark.slow, pytest.mark.timeout(420)]


def large_frames(directory: Path) -> Measured:
    """The whole course; what it measured in seconds. Raises AssertionError."""
    measured: Measured = {}
    with netns.lan("large", 3) as lan, running(lan.joined_nodes(directory)) as nodes:
        holed, others = nodes[0], nodes[1:]
        writers = [Writer(holed, WRITES_A_SECOND), Writer(others[0], WRITES_A_SECOND)]
        watchers = [Watcher(node) for node in nodes]
        with traffic.going_on([*writers, *watchers]):
            for watcher in watchers:
                watcher.wait(
                    "two peers heard over P2P", lambda look: look.status.peer_count == 2, within_s=60
                )
            for writer in writers:
                writer.resume()
            large = netns.larger_than(SMALL_BYTES, netns.port(netns.P2P_PORT))
            with (
                netns.PacketWatch(lan.namespace(1), netns.P2P_PORT) as watch,
                netns.impose(lan.namespace(1), large) as fault,
            ):
                holed_at = time.monotonic()
                time.sleep(2)
                traffic.put_mark(holed, "mark/large")
                fallen = watchers[0].wait("HTTP", lambda look: look.mode == "HTTP", within_s=75)
                measured["http_after_hole_s"] = fallen.at - holed_at
                before = [look for look in watchers[0].since(holed_at) if look.at < fallen.at]
                assert not any(look.status.http_sync_enabled for look in before if look.at < holed_at + 55)
                for node in others:
                    wait_for(
                        "the entry at the others",
                        lambda node=node: node.has_key("mark/large"),
                        within_s=15,
                    )
                measured["entries_crossed_s"] = time.monotonic() - holed_at
                traffic.put_mark(others[0], "mark/back")
                wait_for("an entry back", lambda: holed.has_key("mark/back"), within_s=15)
                # Small packets pass all the time, and may look like a healed lung.
                time.sleep(max(0.0, holed_at + 120 - time.monotonic()))
                assert watchers[0].modes(holed_at) == ["P2P", "HTTP"]
                assert fault.packets() > 0
                assert time.monotonic() - watch.last_passed_at < 20
            healed_at = time.monotonic()
            for writer in writers:
                writer.pause()
            wait_for("equal heads and roots", lambda: roots_equal(nodes), within_s=30)
            measured["equal_after_healing_s"] = time.monotonic() - healed_at
            for writer in writers:
                writer.resume()
            for watcher in watchers:
                watcher.wait(
                    "P2P with both, nobody polled",
                    lambda look: (
                        look.mode == "P2P"
                        and look.status.peer_count == 2
                        and not look.status.http_sync_enabled
                    ),
                    within_s=90,
                )
            measured["p2p_after_healing_s"] = time.monotonic() - healed_at
            beats = [watchers[0].beats(peer.name, healed_at) for peer in watchers[0].looks[-1].status.peers]
            assert all(len(heard) >= 3 for heard in beats), "beats are heard again"
            assert watchers[0].modes(holed_at) == ["P2P", "HTTP", "P2P"]
            assert len(lines_with(holed, "Activating HTTP Fallback")) == 1
            for writer in writers:
                writer.pause()
            wait_for("equal heads and roots at the end", lambda: roots_equal(nodes), within_s=30)
        assert not [text for part in [*writers, *watchers] for text in part.trouble]
        network = bytes.fromhex(holed.status().network)
        last = [node.state() for node in nodes]
    judge_ended(nodes, network, [line for writer in writers for line in writer.journal], last)
    return measured


SCENARIOS: tuple[Scenario, ...] = (large_frames,)


def test_a_hole_for_large_frames_is_bridged_and_does_not_flap(measured: Outcomes) -> None:
    print(measured(SCENARIOS[0]))
