"""Packets are lost at random, of both lungs: 5 percent are nothing to notice, 30 cost time and no entry.

Separate because no lung is blocked here, and both are bad.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.chaos import netns
from tests.chaos.conftest import Outcomes, Scenario
from tests.chaos.scene import Measured, scene

WAVE = 2
LIGHT_S = 40
HEAVY_S = 75

pytestmark = [pytest.mark.netns, pytest.mark.slow, pytest.mark.timeout(600)]


def loss(directory: Path) -> Measured:
    """The whole course; what it measured in seconds. Raises AssertionError."""
    with scene("loss", 3, directory) as it:
        with netns.lose(it.namespace, 5) as fault:
            light_at = time.monotonic()
            it.crosses("crossed_5_percent", within_s=20)
            time.sleep(max(0.0, light_at + LIGHT_S - time.monotonic()))
            assert it.modes() == [["P2P"]] * 3
            assert fault.packets() > 0
            it.equal("equal_5_percent")
        with netns.lose(it.namespace, 30) as fault:
            heavy_at = time.monotonic()
            it.crosses("crossed_30_percent", within_s=85)
            time.sleep(max(0.0, heavy_at + HEAVY_S - time.monotonic()))
            # The lossy one may come to stand on HTTP; it does not go to and fro.
            assert all(len(modes) <= 2 for modes in it.modes())
            assert fault.packets() > 0
        it.equal("equal_after_healing")
        it.joined(within_s=90)
    return it.measured


SCENARIOS: tuple[Scenario, ...] = (loss,)


def test_lost_packets_cost_time_and_no_entry(measured: Outcomes) -> None:
    print(measured(loss))
