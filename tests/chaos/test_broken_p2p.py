"""The P2P port is broken in other ways than silence: deaf one way, mute the other, refusing every packet.

Separate from the silent drop because each looks different to libp2p: half of a beat arrives, or its
connections end at once and every dial is refused. What follows has to be the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.chaos import netns
from tests.chaos.conftest import Outcomes, Scenario
from tests.chaos.log_lines import the_line
from tests.chaos.netns import Fault
from tests.chaos.scene import Measured, scene

WAVE = 2

pytestmark = [pytest.mark.netns, pytest.mark.slow, pytest.mark.timeout(600)]


def deaf(directory: Path) -> Measured:
    """Packets get out and none comes in."""
    return _broken("deaf", directory, lambda name: netns.drop_port(name, netns.P2P_PORT, hooks=netns.INBOUND))


def mute(directory: Path) -> Measured:
    """Packets come in and none gets out."""
    return _broken(
        "mute", directory, lambda name: netns.drop_port(name, netns.P2P_PORT, hooks=netns.OUTBOUND)
    )


def refusing(directory: Path) -> Measured:
    """Every packet is answered with a reset."""
    return _broken("rst", directory, lambda name: netns.refuse_port(name, netns.P2P_PORT))


def _broken(label: str, directory: Path, breaks: Callable[[str], Fault]) -> Measured:
    """The whole course; what it measured in seconds. Raises AssertionError."""
    with scene(label, 2, directory) as it:
        with breaks(it.namespace) as fault:
            broken_at = time.monotonic()
            # Either side judges for itself, whichever direction is broken.
            for number, watcher in enumerate(it.watchers):
                watcher.wait("HTTP", lambda look: look.mode == "HTTP", within_s=75)
                fallen = next(look for look in watcher.since(broken_at) if look.mode == "HTTP")
                assert 60 <= fallen.silent_s <= 65
                it.measured[f"http_after_last_beat_{number}_s"] = fallen.silent_s
                before = [look for look in watcher.since(broken_at) if look.at < fallen.at]
                assert {look.mode for look in before} == {"P2P"}
            it.crosses("over_http", within_s=20)
            assert fault.packets() > 0
        healed_at = time.monotonic()
        it.equal("equal_after_healing")
        for watcher in it.watchers:
            back = watcher.wait("P2P", lambda look: look.mode == "P2P", within_s=75)
            it.measured["p2p_after_healing_s"] = back.at - healed_at
        it.joined(within_s=60)
        assert it.modes() == [["P2P", "HTTP", "P2P"]] * 2
        for node in it.nodes:
            the_line(node, "[P2P_HEARTBEAT] 60 seconds without peers - Activating HTTP Fallback")
            the_line(node, "[P2P_HEARTBEAT] Peers found, resetting peerless timer")
    return it.measured


SCENARIOS: tuple[Scenario, ...] = (deaf, mute, refusing)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_broken_p2p_port_is_bridged_over_http(measured: Outcomes, scenario: Scenario) -> None:
    print(measured(scenario))
