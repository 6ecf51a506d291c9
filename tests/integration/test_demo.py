"""The demo as a person runs it, on the data set of the repository; its verdict is recomputed from its lines.

Separate from the nodes' own tests because here a script is under test: that it feeds, waits, compares
and says so when a node differs.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LINES = len((ROOT / "scripts" / "demo-tzdata.zi").read_text(encoding="utf-8").splitlines())


@pytest.mark.slow
def test_the_demo_shows_three_equal_nodes_that_hold_the_input(tmp_path: Path) -> None:
    environ = {**os.environ, "PATH": str(tmp_path), "TMPDIR": str(tmp_path)}  # no apt-cache is found there
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "demo.py"],
        env=environ,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith(f"{LINES} records from the time zone database")
    counts = re.findall(r"keys (\d+)", done.stdout)
    assert counts == [str(LINES)] * 4  # three nodes, and the input
    for word in ("state root", "log root", "digest"):
        assert len(set(re.findall(rf"{word} +([0-9a-f]{{64}})", done.stdout))) == 1, word
    assert "every node holds the input" in done.stdout
    assert not list(tmp_path.iterdir()), "the demo left something behind"


def test_a_file_that_is_no_record_is_an_error_and_not_a_demo(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "demo.py", "--records", tmp_path / "missing"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert "missing" in done.stderr
    assert "Traceback" not in done.stderr
