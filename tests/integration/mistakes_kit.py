"""What the tests of mistakes share: copies of one good data directory, each with settings of its own,
and the judgement that what was stored is still there."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from lattice.storage.datadir import STORE_FILE, open_reader
from lattice.testing.cluster import LocalNode
from tests.integration.processes.process_kit import read_stopped

REFERENCE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "exit-codes.md"

# Root passes over the rights of files; without these two capabilities it is a user like any other.
LIKE_A_USER = (
    ("setpriv", "--bounding-set", "-dac_override,-dac_read_search")
    if hasattr(os, "geteuid") and os.geteuid() == 0 and shutil.which("setpriv")
    else ()
)


@cache
def exit_codes() -> dict[int, str]:
    """The exit codes and their meaning, read from the reference."""
    rows = re.findall(r"(?m)^\| (\d+) \| ([^|]+) \| [^|]+ \|$", REFERENCE.read_text(encoding="utf-8"))
    return {int(code): meaning for code, meaning in rows}


@cache
def error_codes() -> dict[str, tuple[int, int]]:
    """The error codes with HTTP status and exit code, read from the reference."""
    rows = re.findall(r"(?m)^\| `(\w+)` \| (\d+) \| (\d+) \|", REFERENCE.read_text(encoding="utf-8"))
    return {code: (int(status), int(exit_code)) for code, status, exit_code in rows}


@dataclass(frozen=True)
class Truth:
    """What a data directory holds, verified: the bytes of every entry, and both roots."""

    entries: frozenset[tuple[bytes, bytes]]
    roots: tuple[bytes, bytes]

    @classmethod
    def of(cls, data_dir: Path) -> Truth:
        ledger, faults = read_stopped(data_dir)
        assert not faults, faults
        reader = open_reader(data_dir)
        try:
            roots = reader.meta("state_root") or b"", reader.meta("log_root") or b""
        finally:
            reader.close()
        return cls(frozenset(entry for log in ledger.logs.values() for entry in log), roots)


def fingerprints(data_dir: Path) -> dict[str, str]:
    """The digest of every file that matters; what is not there is not in it."""
    names = ("identity.key", "network.json", "api.token", STORE_FILE)
    return {
        name: hashlib.sha256((data_dir / name).read_bytes()).hexdigest()
        for name in names
        if (data_dir / name).is_file()
    }


@dataclass
class Bench:
    """A copy of a good node in a directory of its own, on which one mistake is made."""

    directory: Path
    node: LocalNode
    ticket: str
    foreign_ticket: str
    foreign_store: Path
    busy_port: int
    secrets: tuple[str, ...]
    said: str = field(default="", init=False)

    @property
    def data(self) -> Path:
        return self.directory / "data"

    @property
    def store(self) -> Path:
        return self.data / STORE_FILE

    def fill(self, text: str) -> str:
        """The words in braces replaced by what this bench has."""
        return (
            text.replace("{dir}", str(self.directory))
            .replace("{busy}", str(self.busy_port))
            .replace("{foreign ticket}", self.foreign_ticket)
            .replace("{cut ticket}", self.ticket[:-9])
            .replace("{ticket}", self.ticket)
        )

    def environ(self, settings: Mapping[str, str]) -> dict[str, str]:
        given = {f"LATTICE_{name}": self.fill(value) for name, value in settings.items()}
        return {**self.node.environment(), **given}

    def run(
        self, arguments: tuple[str, ...], settings: Mapping[str, str], prefix: tuple[str, ...] = ()
    ) -> int:
        """`lattice ARGUMENTS` as a process, to its end; the exit code. Keeps what it said."""
        done = subprocess.run(
            [*map(self.fill, prefix), sys.executable, "-m", "lattice", *map(self.fill, arguments)],
            env=self.environ(settings),
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=240,  # for what hangs; a busy disk may take its time with a sync
            check=False,
        )
        self.said = done.stdout
        return done.returncode

    def complaints(self) -> list[str]:
        """The lines of what was said that are errors."""
        lines = self.said.splitlines()
        return [line for line in lines if line.startswith("lattice: ") or " ERROR [" in line]


@dataclass(frozen=True, eq=False)
class Mistake:
    """One row: what is wrong, and what the program has to say about it.

    `says` are words of the one line: what happened and the remedy. `before` makes the mistake in the
    files, and `undo` takes it back; without `undo` the files must be the very same bytes afterwards.
    """

    name: str
    code: int
    says: tuple[str, ...]
    settings: Mapping[str, str] = field(default_factory=dict)
    arguments: tuple[str, ...] = ("start",)
    before: Callable[[Bench], None] | None = None
    undo: Callable[[Bench], None] | None = None
    damaged: bool = False
    prefix: tuple[str, ...] = ()
    needs_root: bool = False
