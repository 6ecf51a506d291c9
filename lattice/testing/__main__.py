"""The command line of the simulator: many seeds, or one again.

    python -m lattice.testing --seed N --minutes 10 --nodes 5
    python -m lattice.testing --first 0 --count 300

Separate so that a failure found anywhere is replayed by one line that it printed itself.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..node.node import Node
from .crippled import NodeWithoutAntiEntropy
from .profiles import draw_profile
from .simulator import Outcome, simulate

_TAIL_LINES = 40


@dataclass(slots=True)
class _Totals:
    """What all seeds together did, by kind: a run that did too little says so."""

    seeds: int = 0
    failed: list[int] = field(default_factory=list)
    virtual_s: float = 0.0
    writes: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    packets: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)
    rounds: Counter[str] = field(default_factory=Counter)
    slowest_s: float = 0.0

    def add(self, outcome: Outcome) -> None:
        self.seeds += 1
        self.virtual_s += outcome.virtual_s
        if not outcome.ok:
            self.failed.append(outcome.profile.seed)
        for total, counts in (
            (self.writes, outcome.writes),
            (self.faults, outcome.faults),
            (self.packets, outcome.packets),
            (self.lost, outcome.lost_packets),
            (self.rounds, outcome.rounds),
        ):
            total.update(counts)
        self.slowest_s = max(self.slowest_s, outcome.converged_after_s or 0.0)

    def report(self, took_s: float) -> str:
        lines = [
            f"{self.seeds} seeds, {len(self.failed)} failed {self.failed if self.failed else ''}".rstrip(),
            f"{self.virtual_s / 3600:.2f} virtual hours in {took_s:.1f} s",
            f"slowest convergence after healing: {self.slowest_s:.1f} s",
        ]
        for name in ("writes", "faults", "packets", "lost", "rounds"):
            counts: Counter[str] = getattr(self, name)
            lines.append(f"{name}: " + ", ".join(f"{kind} {n}" for kind, n in sorted(counts.items())))
        return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when every seed passed, 1 when one failed."""
    options = _parser().parse_args(arguments)
    seeds = (
        [options.seed] if options.seed is not None else range(options.first, options.first + options.count)
    )
    make_node: type[Node] = NodeWithoutAntiEntropy if options.no_anti_entropy else Node
    totals = _Totals()
    began = time.perf_counter()
    for seed in seeds:
        profile = draw_profile(seed, minutes=options.minutes, nodes=options.nodes)
        seed_began = time.perf_counter()
        outcome = simulate(profile, make_node=make_node, echo=_say if options.verbose else None)
        totals.add(outcome)
        _print_outcome(outcome, time.perf_counter() - seed_began, quiet=options.quiet)
        if options.digest_file is not None:
            with open(options.digest_file, "a", encoding="utf-8") as file:
                file.write(json.dumps({"seed": seed, "digest": outcome.digest}) + "\n")
    _say(totals.report(time.perf_counter() - began))
    return 1 if totals.failed else 0


def _print_outcome(outcome: Outcome, took_s: float, *, quiet: bool) -> None:
    if outcome.ok:
        if not quiet:
            after = outcome.converged_after_s
            _say(
                f"seed {outcome.profile.seed} ok: {outcome.profile.nodes} nodes, {outcome.acknowledged} "
                f"acknowledged, {sum(outcome.faults.values())} faults, equal after {after:.0f} s, "
                f"{took_s:.1f} s, digest {outcome.digest}"
            )
        return
    _say(f"seed {outcome.profile.seed} FAILED ({took_s:.1f} s)")
    _say(f"  profile: {outcome.profile}")
    for text in outcome.violations[:12]:
        _say(f"  {text}")
    if len(outcome.violations) > 12:
        _say(f"  and {len(outcome.violations) - 12} more")
    if not quiet:
        for line in outcome.tail[-_TAIL_LINES:]:
            _say(f"    {line}")
    _say(f"  replay: {outcome.replay}")


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m lattice.testing", description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, help="run this one seed")
    parser.add_argument("--first", type=int, default=0, help="the first of many seeds (0)")
    parser.add_argument("--count", type=int, default=20, help="how many seeds (20)")
    parser.add_argument("--minutes", type=float, default=10.0, help="virtual minutes of faults (10)")
    parser.add_argument("--nodes", type=int, help="so many nodes instead of the drawn number")
    parser.add_argument("--no-anti-entropy", action="store_true", help="a crippled build, which must fail")
    parser.add_argument("--digest-file", help="append the digest of each seed to this file")
    parser.add_argument("--quiet", action="store_true", help="failures and the totals only")
    parser.add_argument("--verbose", action="store_true", help="every log line as it happens")
    return parser


if __name__ == "__main__":
    sys.exit(main())
