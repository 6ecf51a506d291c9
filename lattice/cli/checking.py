"""`lattice fsck`: check this machine's store and say exactly what does not verify.

Separate because it reads the files themselves and asks no node, so it works beside a running one and
where none can start any more.
"""

from __future__ import annotations

import argparse

from ..fsck import CheckReport, check_store
from .progress import Progress
from .reach import load_settings
from .text import counted, printable, say, say_json


def fsck(args: argparse.Namespace) -> int:
    """0 when everything verifies, 1 with findings."""
    from ..node.home import load_home

    settings = load_settings(args)
    home = load_home(settings)
    with Progress("entries verified", last="; now the state") as progress:
        report = check_store(settings.data_dir, home.network_id, progress.show)
    if args.json:
        say_json(report)
    else:
        say(_text(report))
    return 0 if report.clean else 1


def _text(report: CheckReport) -> str:
    state = (
        "recomputed from the entries" if report.state_recomputed else "not recomputed: entries are damaged"
    )
    lines = [
        f"Checked {printable(report.data_dir)} in {report.duration_s:.1f} s",
        (
            f"  {counted(report.logs, 'log', 'logs')}, {counted(report.entries, 'entry', 'entries')}, "
            f"{counted(report.ops, 'op', 'ops')}, {counted(report.seals, 'seal', 'seals')}"
        ),
        f"  {counted(report.keys, 'key', 'keys')}; the state was {state}",
        f"  state root {report.merkle_root or '-'}",
        f"  log root   {report.log_root or '-'}",
        *(f"Problem: {printable(problem.text)}" for problem in report.problems),
    ]
    if report.problem_count > len(report.problems):
        lines.append(f"and {report.problem_count - len(report.problems)} problems more")
    if report.clean:
        lines.append("Clean: everything verifies.")
    else:
        lines.append(
            "The store is damaged. Stop the node, move its store file (not identity.key) aside and start "
            "it again: its peers bring the ledger back."
        )
    return "\n".join(lines)
