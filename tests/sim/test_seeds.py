"""Seeds: real nodes under faults drawn by chance, judged by all invariants, and by a build that must fail."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from lattice.testing import Climate, Profile, draw_profile, simulate
from lattice.testing.crippled import NodeWithoutAntiEntropy
from lattice.testing.profiles import FAULTS

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]

# What once failed, spelled out: a seed alone means something else as soon as a fault is added.
REGRESSIONS = (
    # A peer that is heard again while it waits for its first poll.
    Profile(
        seed=18,
        nodes=3,
        minutes=3.0,
        climate=Climate(delay_s=0.250698),
        faults=(
            "both_blocked",
            "clock_step",
            "clogged",
            "crash",
            "disk_full",
            "one_way",
            "pause",
            "rollback",
        ),
        fault_every_s=31.93,
        fault_lasts_s=128.9,
        write_every_s=2.534,
        acquaintance="first",
        heal="p2p",
    ),
    # A store that failed: its node died of it at first, and then dropped every link once a second.
    Profile(
        seed=1,
        nodes=4,
        minutes=3.0,
        climate=Climate(delay_s=0.186592),
        faults=("disk_failed", "large_vanish", "one_way", "rollback"),
        fault_every_s=20.0,
        fault_lasts_s=95.02,
        write_every_s=7.232,
        acquaintance="first",
        heal="p2p",
    ),
)


@pytest.mark.parametrize("seed", range(100, 106))
def test_a_seed_holds_every_invariant(seed: int) -> None:
    profile = replace(draw_profile(seed, minutes=2.0, nodes=3 + seed % 2), write_every_s=2.0)
    outcome = simulate(profile)
    assert outcome.ok, f"{outcome.violations[:5]}\n{outcome.profile}\n{outcome.replay}"
    assert outcome.acknowledged >= 20
    assert sum(outcome.faults.values()) >= 3


@pytest.mark.parametrize("profile", REGRESSIONS, ids=lambda profile: f"seed{profile.seed}")
def test_what_once_failed(profile: Profile) -> None:
    outcome = simulate(profile)
    assert outcome.ok, f"{outcome.violations[:5]}"


@pytest.mark.parametrize("kind", FAULTS)
def test_each_fault_alone(kind: str) -> None:
    """Every kind happens, in a climate that is otherwise fair, and is survived."""
    drawn = draw_profile(7, minutes=1.5, nodes=3)
    profile = replace(
        drawn,
        climate=Climate(delay_s=0.02),
        faults=(kind,),
        fault_every_s=20.0,
        fault_lasts_s=40.0,
        write_every_s=2.0,
        heal="all",
    )
    outcome = simulate(profile)
    assert outcome.ok, f"{outcome.violations[:5]}"
    assert outcome.faults[kind] >= 3
    assert outcome.acknowledged >= 20


@pytest.mark.parametrize("seed", range(4))
def test_a_build_without_anti_entropy_is_caught(seed: int) -> None:
    outcome = simulate(draw_profile(seed, minutes=1.0, nodes=3), make_node=NodeWithoutAntiEntropy)
    assert any(violation.startswith(("I1", "I2")) for violation in outcome.violations)


def test_a_seed_is_the_same_in_every_process() -> None:
    """The same digest over everything that happened, whatever the hash seed; another seed, another."""
    digests = [_digest(3, hash_seed) for hash_seed in ("0", "1", "4242")]
    assert len(set(digests)) == 1
    assert _digest(4, "0") != digests[0]


def _digest(seed: int, hash_seed: str) -> str:
    command = [sys.executable, "-m", "lattice.testing", "--seed", str(seed), "--minutes", "1", "--nodes", "3"]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    found = re.search(r"digest ([0-9a-f]{64})", done.stdout)
    assert found, done.stdout + done.stderr
    return found[1]
