"""Both lungs of one node fall silent: it says that it is isolated, keeps taking writes, and comes back whole.

Separate because here alone nothing can carry: what counts is the alarm, and that nothing is lost.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.chaos import netns, traffic
from tests.chaos.conftest import Outcomes, Scenario
from tests.chaos.log_lines import lines_with, the_line
from tests.chaos.scene import Measured, scene

WAVE = 2
# After the 60 s two rounds over HTTP must stay unanswered, each until its time-out.
ISOLATED_WITHIN_S = 110

pytestmark = [pytest.mark.netns, pytest.mark.slow, pytest.mark.timeout(600)]


def both_blocked(directory: Path) -> Measured:
    """The whole course; what it measured in seconds. Raises AssertionError."""
    with scene("both", 3, directory) as it:
        blocked, *others = it.nodes
        with (
            netns.drop_port(it.namespace, netns.P2P_PORT) as fault,
            netns.drop_port(it.namespace, netns.SYNC_PORT),
        ):
            blocked_at = time.monotonic()
            traffic.put_mark(blocked, "mark/inside")
            traffic.put_mark(others[0], "mark/outside")
            http = it.victim.wait("HTTP", lambda look: look.mode == "HTTP", within_s=75)
            assert 60 <= http.silent_s <= 65
            cut = it.victim.wait(
                "isolated", lambda look: look.mode == "ISOLATED", within_s=ISOLATED_WITHIN_S - 60
            )
            it.measured["isolated_after_s"] = cut.at - blocked_at
            assert cut.status.alarms
            assert cut.status.headline.startswith("Network status: isolated")
            assert not cut.status.resilient
            # Nothing came through, and the node went on taking writes (a writer's trouble fails the course).
            assert not any(node.has_key("mark/inside") for node in others)
            assert not blocked.has_key("mark/outside")
            assert it.writers[0].rate_since(blocked_at) >= 5
            assert [watcher.modes(it.began_at) for watcher in it.watchers[1:]] == [["P2P"], ["P2P"]]
            assert fault.packets() > 0
        healed_at = time.monotonic()
        it.arrives("mark/inside", others, within_s=30)
        it.arrives("mark/outside", [blocked], within_s=30)
        it.measured["crossed_after_healing_s"] = time.monotonic() - healed_at
        it.equal("equal_after_healing", within_s=30)
        back = it.victim.wait("P2P", lambda look: look.mode == "P2P", within_s=75)
        it.measured["p2p_after_healing_s"] = back.at - healed_at
        it.joined(within_s=150)
        assert not it.victim.looks[-1].status.alarms
        modes = it.victim.modes(it.began_at)
        assert modes[:3] == ["P2P", "HTTP", "ISOLATED"]
        # Beats may come before an answer over HTTP; and what was asked before the healing may still end
        # unanswered after the first sign of life, once for each of the two others.
        assert modes[-1] == "P2P"
        assert len(modes) <= 8
        the_line(blocked, "[P2P_HEARTBEAT] 60 seconds without peers - Activating HTTP Fallback")
        assert lines_with(blocked, "[SYNC] mode is ISOLATED", "previous=HTTP")
    return it.measured


SCENARIOS: tuple[Scenario, ...] = (both_blocked,)


def test_with_both_lungs_blocked_a_node_says_so_and_recovers(measured: Outcomes) -> None:
    print(measured(both_blocked))
