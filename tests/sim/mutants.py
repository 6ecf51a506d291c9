"""Planted bugs, each of which the simulator or a scenario must catch: `python tests/sim/mutants.py`.

Separate from the suite, which it would slow down by many minutes: it is run when the oracle or the
simulator changes, to see that they still look. Each mutant is one small change of one place.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SEEDS = (3, 5, 8, 0, 12, 18, 22, 31)


@dataclass(frozen=True)
class Mutant:
    """In `file`, `old` (which stands there exactly once) becomes `new`."""

    name: str
    file: str
    old: str
    new: str


MUTANTS = (
    Mutant(
        "a remote clock is never merged",
        "core/engine.py",
        "        self._clock.seen(entry.header.clock, self._now_ms)\n",
        "",
    ),
    Mutant(
        "a gap is silently ignored: what is missing is not asked for",
        "core/reconcile.py",
        "            if ours.seq < last and key not in searches:\n",
        "            if ours.seq + 1 == last and key not in searches:\n",
    ),
    Mutant(
        "sync is skipped when the state roots are equal",
        "core/reconcile.py",
        "        if theirs.roots.log_root == self._roots().log_root:\n            if not padded:",
        "        if theirs.roots.state_root == self._roots().state_root:\n            if not padded:",
    ),
    Mutant(
        "every fifth commit is answered and not made",
        "node/driver.py",
        "                self._store.commit(batch)\n",
        "                if self.commits % 5 != 4:\n                    self._store.commit(batch)\n",
    ),
    Mutant(
        "the epoch is always the same",
        "core/engine.py",
        "        while self._logs.heads.get(LogKey(self._key.public_key, epoch)).seq >= 0:\n",
        "        epoch = 1\n        while False:\n",
    ),
    Mutant(
        "rounds pull and never push",
        "core/reconcile.py",
        "            pages = self._serve(asked, proofs)\n",
        "            pages = self._serve((), proofs)\n",
    ),
    Mutant(
        "a delete ends whatever is live here",
        "core/state.py",
        "            live = tuple(held for held in live if held.version not in named)\n",
        "            live = tuple(held for held in live if held.version not in named and op.kind != 2)\n",
    ),
    Mutant(
        "a version that was named before it came is live",
        "core/state.py",
        "            if before is None or not self._is_named(op.key, version):\n",
        "            if True:\n",
    ),
    Mutant(
        "seals below the newest are not kept",
        "core/log.py",
        "        for entry in run[:-1]:\n            seal = verified.get(entry)",
        "        for entry in run[:0]:\n            seal = verified.get(entry)",
    ),
    Mutant(
        "fallback after 30 s",
        "core/failover_peer.py",
        "        if now_e - self.timer_from_e() >= self.timeout_s(config):\n",
        "        if now_e - self.timer_from_e() >= self.timeout_s(config) / 2:\n",
    ),
    Mutant(
        "back to P2P at the first beat",
        "core/failover_peer.py",
        "        if now_e - since_e < self.return_after_s:\n",
        "        if now_e - since_e < 0:\n",
    ),
    Mutant(
        "fallback is for all or nobody, not per peer",
        "core/failover.py",
        "        return self._policy is Policy.HTTP or record.footing is Footing.FALLEN\n",
        "        return self._policy is Policy.HTTP or MODES[self._stance] is Mode.HTTP\n",
    ),
    Mutant(
        "a full disk is never tried again",
        "node/driver.py",
        '        if error.code == "no_space":\n',
        '        if error.code == "no-space":\n',
    ),
    Mutant(
        "a failed store goes on serving",
        "node/driver.py",
        '        if error.code == "no_space":\n',
        "        if error.code:\n",
    ),
    Mutant(
        "the disk reserve does not hold for rounds of our own",
        "node/anti_entropy.py",
        "                if not self.takes_entries():\n",
        "                if not self.takes_entries:\n",
    ),
    Mutant(
        "a round's session is shared by all rounds of a peer",
        "core/reconcile.py",
        "        key = (*peer, message.round)\n",
        "        key = (*peer, 0)\n",
    ),
    Mutant(
        "a place is given for a beat before the greeting",
        "node/links.py",
        "        if link is None or session is None:\n",
        "        if link is None:\n",
    ),
    Mutant(
        "a poll dies with the name of its placeholder",
        "node/node.py",
        "            self._anti_entropy.rename(asked.key, peer_id)\n"
        "            self.heartbeat.feed(PeerIdentified(asked.key, peer_id, now))\n",
        "            self.heartbeat.feed(PeerIdentified(asked.key, peer_id, now))\n"
        "            self._anti_entropy.rename(asked.key, peer_id)\n",
    ),
    Mutant(
        "one author a round",
        "core/reconcile.py",
        "        )[:HEADS_AUTHORS_MAX]\n",
        "        )[:1]\n",
    ),
    Mutant(
        "the lateness of the loop counts as silence",
        "core/failover.py",
        "        self._lost_s += late\n",
        "",
    ),
    Mutant(
        "peers are not remembered",
        "node/registry.py",
        "        for row in orjson.loads(data):\n",
        "        for row in orjson.loads(data)[:0]:\n",
    ),
    Mutant(
        "the clock of before the restart is forgotten",
        "core/engine.py",
        'int.from_bytes(reader.meta(META_CLOCK) or b"", "big")',
        "0",
    ),
    Mutant(
        "the twin's alarm is not raised",
        "core/envelope.py",
        "            key.twin = True\n",
        "            key.twin = False\n",
    ),
    Mutant(
        "a boot that another has followed need not prove that it lives",
        "node/courier.py",
        "not self._freshness.is_known(sender, boot) or self._freshness.is_superseded(sender, boot)",
        "not self._freshness.is_known(sender, boot)",
    ),
    Mutant(
        "a poll that was stopped is waited for",
        "core/failover.py",
        "                self._polls.forget(peer)\n            self._voice",
        "                pass\n            self._voice",
    ),
)


def catch(mutant: Mutant, minutes: float) -> str | None:
    """What catches the mutant: a seed or the scenarios; None if nothing does."""
    with tempfile.TemporaryDirectory() as place:
        tree = Path(place)
        shutil.copytree(ROOT / "lattice", tree / "lattice", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(ROOT / "tests", tree / "tests", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", tree)
        file = tree / "lattice" / mutant.file
        text = file.read_text()
        if text.count(mutant.old) != 1:
            return f"NOT APPLIED: its place stands {text.count(mutant.old)} times in {mutant.file}"
        file.write_text(text.replace(mutant.old, mutant.new))
        scenarios = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "tests/node"]
        if _fails(scenarios, tree):
            return "scenarios"
        for seed in SEEDS:
            command = [sys.executable, "-m", "lattice.testing", "--quiet", "--seed", str(seed)]
            if _fails([*command, "--minutes", str(minutes)], tree):
                return f"seed {seed}"
    return None


def _fails(command: list[str], tree: Path) -> bool:
    done = subprocess.run(
        command,
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree)},
        capture_output=True,
        check=False,
        timeout=900,
    )
    return done.returncode != 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("words", nargs="*", help="only mutants whose name contains one of these")
    parser.add_argument("--minutes", type=float, default=4.0)
    options = parser.parse_args()
    chosen = [m for m in MUTANTS if not options.words or any(word in m.name for word in options.words)]
    # The control: what catches mutants passes without one.
    control = Mutant("nothing is changed", "core/limits.py", "KIB: Final = 1024\n", "KIB: Final = 1024\n")
    if (caught := catch(control, options.minutes)) is not None:
        print(f"{caught}: although nothing is changed")
        return 1
    missed = 0
    for mutant in chosen:
        caught = catch(mutant, options.minutes)
        missed += caught is None or caught.startswith("NOT")
        print(f"{caught or 'MISSED'}: {mutant.name}", flush=True)
    print(f"{len(chosen) - missed} of {len(chosen)} caught")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
