"""A link that comes and goes: the node follows it once, and then waits longer each time before it trusts it.

Separate because several minutes must pass between two nodes. Their clocks run faster, and every time here
is one of theirs; the other courses are measured at real time.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Final

import pytest

from tests.chaos import netns
from tests.chaos.conftest import Outcomes, Scenario
from tests.chaos.log_lines import lines_with
from tests.chaos.scene import Measured, Scene, scene

WAVE = 2
PACE: Final = 2.5  # a beat may be late by a second of theirs before it breaks a streak
LIBRARY: Final = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)

needs_faketime = pytest.mark.skipif(LIBRARY is None, reason="not installed: faketime")
pytestmark = [pytest.mark.netns, pytest.mark.slow, pytest.mark.timeout(600), needs_faketime]


def flaps(directory: Path) -> Measured:
    """The whole course; what it measured in seconds of the nodes. Raises AssertionError."""
    # One beginning for both: each process would count from its own start otherwise.
    base = time.strftime("%Y-%m-%d %H:%M:%S")
    faster = (
        str(shutil.which("env")),
        f"LD_PRELOAD={LIBRARY}",
        f"FAKETIME=@{base} x{PACE:g}",
        "FAKETIME_DONT_RESET=1",
    )
    with scene("flaps", 2, directory, prefix=faster) as it:
        _down(it, 68)
        assert it.victim.looks[-1].mode == "HTTP"
        first_s = _up(it, 120, until_mode="P2P")
        it.measured["first_return_s"] = first_s
        assert first_s >= 14
        _down(it, 68)
        assert it.victim.looks[-1].mode == "HTTP"
        it.crosses("over_http", within_s=30 / PACE)
        # A window that was enough the first time, and no longer is.
        _up(it, 24)
        assert it.victim.looks[-1].mode == "HTTP"
        _down(it, 20)
        assert it.victim.looks[-1].mode == "HTTP"
        # A streak starts anew with each beat that a busy machine delays.
        second_s = _up(it, 240, until_mode="P2P")
        it.measured["second_return_s"] = second_s
        assert second_s >= 29
        it.joined(within_s=90 / PACE)
        assert it.modes() == [["P2P", "HTTP", "P2P", "HTTP", "P2P"]] * 2
        for node in it.nodes:
            assert len(lines_with(node, "[SYNC] mode is ")) <= 6
    return it.measured


def _down(it: Scene, seconds: float) -> None:
    with netns.drop_port(it.namespace, netns.P2P_PORT) as fault:
        time.sleep(seconds / PACE)
        assert fault.packets() > 0


def _up(it: Scene, seconds: float, *, until_mode: str = "") -> float:
    """Let packets pass for so long, or until both nodes show that mode; how long that was."""
    began = time.monotonic()
    if not until_mode:
        time.sleep(seconds / PACE)
    else:
        it.everybody(until_mode, lambda look: look.mode == until_mode, within_s=seconds / PACE)
    return (time.monotonic() - began) * PACE


SCENARIOS: tuple[Scenario, ...] = () if LIBRARY is None else (flaps,)


def test_a_flapping_link_is_trusted_later_each_time(measured: Outcomes) -> None:
    print(measured(flaps))
