"""The rule of forks with one sentence left out at a time: `python tests/sim/fork_mutants.py`.

Separate from the other mutants because random histories catch these, and not whole nodes: each sentence
is there because without it some history ends unequal, and this shows that the histories still see it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
HISTORIES = 1500
KEPT_SEEDS = ("3726", "6272")  # what too few of the first histories see


class Mutant(NamedTuple):
    """In `file`, `old` (which stands there exactly once) becomes `new`."""

    sentence: str
    file: str
    old: str
    new: str


MUTANTS = (
    Mutant(
        "against a header stands also the `prev` of one at s+1",
        "core/forks.py",
        "            ids = {*here, *(node.header.prev for node in self.nodes.get(seq + 1, {}).values())}\n",
        "            ids = {*here}\n",
    ),
    Mutant(
        "no unsealed seq 63 lies between a header and its seal",
        "core/forks.py",
        "                if name in up and seq % SEAL_INTERVAL != SEAL_INTERVAL - 1:\n",
        "                if name in up:\n",
    ),
    Mutant(
        "F is the lowest seq with evidence",
        "core/forks.py",
        "        for seq in sorted(seqs):\n            if seq >= below:\n                return None\n",
        "        for seq in sorted(seqs)[::-1]:\n            if seq >= below:\n                continue\n",
    ),
    Mutant(
        "F only ever falls",
        "core/log.py",
        "lambda seq: self.entry_id_at(key, seq), frozen)",
        "lambda seq: self.entry_id_at(key, seq), 2**64 - 1)",
    ),
    Mutant(
        "what waits is compared",
        "core/log.py",
        "        for waiting in self._pending.of(key).values():\n            yield HeaderNode(",
        "        for waiting in ():\n            yield HeaderNode(",
    ),
    Mutant(
        "the proof so far is compared",
        "core/log.py",
        "        for path in self._kept_proof(key) or ():\n            yield from path.headers\n",
        "",
    ),
    Mutant(
        "the node's own branch is one side of its proof",
        "core/log.py",
        "            one = self._held_path(key, seq)\n",
        "            one = authentic.path(next(authentic.rivals(seq, self.entry_id_at(key, seq) or b'')))\n",
    ),
    Mutant(
        "the proof authenticates the prefix below F",
        "core/acceptance.py",
        "        return self.get(entry) is not None or entry.id == self.continued\n",
        "        return self.get(entry) is not None\n",
    ),
    Mutant(
        "mandatory seals stay necessary there",
        "core/acceptance.py",
        "        if entry.must_be_sealed and verified.get(entry) is None:\n",
        "        if entry.must_be_sealed and verified.continued is None and verified.get(entry) is None:\n",
    ),
    Mutant(
        "entries from F on are not accepted",
        "core/log.py",
        "            if seq >= head.frozen:\n                result.refuse",
        "            if seq > head.frozen:\n                result.refuse",
    ),
    Mutant(
        "the prefix below F still is asked for",
        "core/reconcile.py",
        "            if ours.seq < last and key not in searches:\n",
        "            if ours.seq < last and key not in searches and ours.frozen == FROZEN_NEVER:\n",
    ),
    Mutant(
        "of unequal F the lower sends its proof",
        "core/reconcile.py",
        "            if frozen < theirs.frozen and len(proofs) < FORK_PROOFS_MAX:\n",
        "            if frozen < theirs.frozen and len(proofs) < 0:\n",
    ),
    Mutant(
        "the longer side looks for the lowest difference",
        "core/reconcile.py",
        "            if theirs.seq >= 0 and self._differs(key, theirs):\n",
        "            if theirs.seq >= 0 and not key and self._differs(key, theirs):\n",
    ),
    Mutant(
        "and it does so whatever the two F",
        "core/reconcile.py",
        "                if theirs.frozen != FROZEN_NEVER and last >= 0 and key not in searches:\n",
        "                if theirs.frozen != FROZEN_NEVER and last < -1 and key not in searches:\n",
    ),
    Mutant(
        "at once, to the lowest",
        "core/reconcile.py",
        "                    search.high = search.asked - 1\n",
        "                    search.high = -1\n",
    ),
    Mutant(
        "whoever offers entries from F on is told",
        "core/reconcile.py",
        "            if self._told.get((peer, key)) != frozen:\n",
        "            if self._told.get((peer, key)) == frozen:\n",
    ),
    Mutant(
        "once for each F",
        "core/reconcile.py",
        "                self._told[peer, key] = frozen\n",
        "",
    ),
    Mutant(
        "what waits is dropped with the cut",
        "core/log.py",
        "        for waiting in list(self._pending.of(key)):\n",
        "        for waiting in [held for held in self._pending.of(key) if held >= seq]:\n",
    ),
    Mutant(
        "what only they had replaced is live again",
        "core/state.py",
        "            for held in released:\n",
        "            for held in ():\n",
    ),
    Mutant(
        "what came with the evidence goes in before anything is taken out",
        "core/engine.py",
        "        for entry, row in zip(result.entries, result.rows, strict=True):\n"
        "            self._apply(entry, row)\n"
        "        for cut in result.cuts:\n"
        "            self._take_out(cut)\n",
        "        for cut in result.cuts:\n"
        "            self._take_out(cut)\n"
        "        for entry, row in zip(result.entries, result.rows, strict=True):\n"
        "            self._apply(entry, row)\n",
    ),
    Mutant(
        "the additions go too",
        "core/state.py",
        "            before.total - total,\n",
        "            before.total,\n",
    ),
)


def catch(mutant: Mutant) -> str | None:
    """What catches the mutant; None if nothing does."""
    with tempfile.TemporaryDirectory() as place:
        tree = Path(place)
        for name in ("lattice", "tests"):
            shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", tree)
        file = tree / "lattice" / mutant.file
        text = file.read_text()
        if text.count(mutant.old) != 1:
            return f"NOT APPLIED: its place stands {text.count(mutant.old)} times in {mutant.file}"
        file.write_text(text.replace(mutant.old, mutant.new))
        histories = [sys.executable, "tests/sim/fork_histories.py", "--stop"]
        if _fails([*histories, "--count", str(HISTORIES)], tree):
            return "histories"
        for seed in KEPT_SEEDS:
            if _fails([*histories, "--first", seed, "--count", "1"], tree):
                return "a kept seed"
        suite = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-x",
            "-p",
            "no:cacheprovider",
            "tests/core/test_forks.py",
        ]
        return "test_forks" if _fails(suite, tree) else None


def _fails(command: list[str], tree: Path) -> bool:
    environ = {**os.environ, "PYTHONPATH": str(tree)}
    done = subprocess.run(command, cwd=tree, env=environ, capture_output=True, check=False, timeout=900)
    return done.returncode != 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("words", nargs="*", help="only those whose sentence contains one of these")
    options = parser.parse_args()
    chosen = [m for m in MUTANTS if not options.words or any(word in m.sentence for word in options.words)]
    control = Mutant("nothing is changed", "core/limits.py", "KIB: Final = 1024\n", "KIB: Final = 1024\n")
    if (caught := catch(control)) is not None:
        print(f"{caught}: although nothing is changed")
        return 1
    missed = 0
    for mutant in chosen:
        caught = catch(mutant)
        missed += caught is None or caught.startswith("NOT")
        print(f"{caught or 'MISSED'}: {mutant.sentence}", flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
