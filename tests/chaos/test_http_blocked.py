"""The HTTP port of one node falls silent: P2P carries on, and the node says that it stands on one leg.

Separate because nothing may happen here: a lung that is not in use is missed by nobody but the operator.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.chaos import netns
from tests.chaos.conftest import Outcomes, Scenario
from tests.chaos.log_lines import lines_with, the_line
from tests.chaos.scene import Measured, scene

WAVE = 2
# A lung is unreachable once nobody has answered on it for two minutes, or eight attempts in a row failed.
WARNED_WITHIN_S = 135
REACHABLE_S = 120

pytestmark = [pytest.mark.netns, pytest.mark.slow, pytest.mark.timeout(600)]


def http_blocked(directory: Path) -> Measured:
    """The whole course; what it measured in seconds. Raises AssertionError."""
    with scene("http", 2, directory) as it:
        blocked, other = it.nodes
        it.everybody("both lungs reach", lambda look: look.status.resilient, within_s=60)
        with netns.drop_port(it.namespace, netns.SYNC_PORT) as fault:
            blocked_at = time.monotonic()
            it.crosses("p2p_carries_on", within_s=10)
            warned = it.victim.wait(
                "a warning", lambda look: _one_leg(look.status.warnings), within_s=WARNED_WITHIN_S
            )
            it.measured["warned_after_s"] = warned.at - blocked_at
            assert not warned.status.resilient
            assert not warned.status.alarms
            assert warned.status.headline.startswith("Network status: on one leg (P2P mode")
            it.crosses("p2p_still_carries", within_s=10)
            assert fault.packets() > 0
        healed_at = time.monotonic()
        it.everybody(
            "both lungs reach again, and no warning is left",
            lambda look: look.status.resilient and not _one_leg(look.status.warnings),
            within_s=45,
        )
        it.measured["resilient_after_healing_s"] = time.monotonic() - healed_at
        assert it.modes() == [["P2P"], ["P2P"]]
        for watcher in it.watchers:
            assert not any(look.status.http_sync_enabled for look in watcher.since(it.began_at))
        for node in (blocked, other):
            assert not lines_with(node, "Activating HTTP Fallback")
        the_line(blocked, "[ALERT]", "Standing on one leg: only P2P reaches a peer, HTTP reaches none")
        # Between two nodes each lacks the other: the second stands on one leg as well, and as long.
        assert lines_with(other, "Standing on one leg")
        assert it.measured["warned_after_s"] <= REACHABLE_S + 5
    return it.measured


def _one_leg(warnings: list[str]) -> bool:
    return any("one leg" in text for text in warnings)


SCENARIOS: tuple[Scenario, ...] = (http_blocked,)


def test_without_http_nothing_switches_and_one_leg_is_warned(measured: Outcomes) -> None:
    print(measured(http_blocked))
