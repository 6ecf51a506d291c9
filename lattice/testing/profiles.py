"""What one seed brings: how many nodes, what climate, which faults and how often.

Separate from what carries the faults out, so that a failure can be printed, and replayed, as a
few plain numbers.
"""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass
from typing import Final

from .network import Climate

FAULTS: Final = (
    "partition",
    "one_way",
    "ring",
    "p2p_blocked",
    "p2p_blocked_at_all",
    "http_blocked",
    "both_blocked",
    "islands",
    "large_vanish",
    "large_stall",
    "clogged",
    "crash",
    "rollback",
    "wipe",
    "clone",
    "p2p_lost",
    "pause",
    "clock_step",
    "disk_full",
    "disk_reserve",
    "disk_failed",
    "switch_policy",
)
_FAULTS_MIN: Final = 4


@dataclass(frozen=True, slots=True)
class Profile:
    """Drawn from a seed by `draw_profile`. Times in seconds, except `minutes`."""

    seed: int
    nodes: int
    minutes: float
    climate: Climate
    faults: tuple[str, ...]
    fault_every_s: float
    fault_lasts_s: float
    write_every_s: float
    acquaintance: str
    heal: str

    def __str__(self) -> str:
        fields = {**asdict(self), "climate": ",".join(f"{k}={v:g}" for k, v in asdict(self.climate).items())}
        fields["faults"] = "+".join(self.faults)
        return " ".join(f"{name}={_shown(value)}" for name, value in fields.items())


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def draw_profile(seed: int, *, minutes: float = 10.0, nodes: int | None = None) -> Profile:
    """The profile of a seed. `nodes` overrides the drawn number of nodes, and nothing else."""
    rng = random.Random(f"{seed} profile")
    drawn = rng.choice((2, 2, 3, 3, 3, 4, 4, 5, 5, 6, 7, 9))
    rough = rng.random() < 0.5
    climate = Climate(
        delay_s=0.005 * (80 ** rng.random()),
        loss=rng.uniform(0, 0.3) if rough and rng.random() < 0.6 else 0.0,
        duplication=rng.uniform(0, 0.5) if rough and rng.random() < 0.6 else 0.0,
        reordering=rng.uniform(0, 0.5) if rough and rng.random() < 0.6 else 0.0,
    )
    faults = tuple(sorted(rng.sample(FAULTS, rng.randint(_FAULTS_MIN, 9))))
    acquaintance = rng.choice(("all", "first", "ring", "urls"))
    # Who knows a URL alone, and has lost its disk, cannot be found without HTTP.
    healing = ("all", "all", "http") if acquaintance == "urls" else ("all", "all", "p2p", "http")
    return Profile(
        seed=seed,
        nodes=drawn if nodes is None else nodes,
        minutes=minutes,
        climate=climate,
        faults=faults,
        fault_every_s=rng.uniform(8, 60),
        fault_lasts_s=rng.uniform(5, 150),
        write_every_s=rng.uniform(1.5, 8),
        acquaintance=acquaintance,
        heal=rng.choice(healing),
    )
