"""The offline check of a store: open it read-only, verify and recompute everything, report.

Separate from the verification in `storage`, which a start after a failed write runs as well, because
here a damaged store is an answer and not an error, and a node may be running beside it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from .core.errors import LatticeError
from .core.identity import peer_id_of
from .core.rows import Reader
from .storage.datadir import open_reader
from .storage.verify import Finding, Progress, verify_all


@dataclass(frozen=True, slots=True)
class FoundProblem:
    """One finding as it is shown: the log as peer id and epoch, seq and key where it speaks of them."""

    text: str
    author: str | None = None
    epoch: str | None = None
    seq: int | None = None
    key: str | None = None


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What was checked and what was found. `problem_count` counts all, `problems` shows the first.

    `state_recomputed` is false when entries are damaged: a state made without them proves nothing.
    """

    clean: bool
    data_dir: str
    logs: int
    entries: int
    ops: int
    seals: int
    keys: int
    state_recomputed: bool
    merkle_root: str | None
    log_root: str | None
    duration_s: float
    problem_count: int
    problems: list[FoundProblem]


def check_store(data_dir: Path, network_id: bytes, progress: Progress) -> CheckReport:
    """Check the store of a data directory as it is now, beside a running node or without one.

    Raises LatticeError `not_found`, `store_too_new`, `store_failed` or `store_locked`; damage is no
    error.
    """
    began = time.monotonic()
    try:
        reader = open_reader(data_dir)
    except LatticeError as error:
        if error.code != "store_corrupt":
            raise
        return _unreadable(data_dir, error, time.monotonic() - began)
    try:
        found = verify_all(reader, network_id, progress)
        return CheckReport(
            clean=not found.count,
            data_dir=str(data_dir),
            logs=found.logs,
            entries=found.entries,
            ops=found.ops,
            seals=found.seals,
            keys=found.keys,
            state_recomputed=found.recomputed,
            merkle_root=_root(reader, "state_root"),
            log_root=_root(reader, "log_root"),
            duration_s=round(time.monotonic() - began, 3),
            problem_count=found.count,
            problems=[_shown(finding) for finding in found.findings],
        )
    finally:
        reader.close()


def _unreadable(data_dir: Path, error: LatticeError, duration_s: float) -> CheckReport:
    """The store cannot even be opened: its heads, buckets or index make no sense."""
    problems = [FoundProblem(error.message)]
    return CheckReport(
        False, str(data_dir), 0, 0, 0, 0, 0, False, None, None, round(duration_s, 3), 1, problems
    )


def _root(reader: Reader, name: str) -> str | None:
    try:
        root = reader.meta(name)
    except LatticeError:
        return None  # a finding of its own already
    return None if root is None else root.hex()


def _shown(finding: Finding) -> FoundProblem:
    log = finding.log
    return FoundProblem(
        finding.text,
        None if log is None else peer_id_of(log.author),
        None if log is None else f"{log.epoch:016x}",
        finding.seq,
        None if finding.key is None else finding.key.decode("utf-8", "backslashreplace"),
    )
