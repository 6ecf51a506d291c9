"""The vectors are frozen: the product makes the same bytes as on the day they were written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.mark.slow  # a process of its own, and points on a curve in plain Python
def test_the_vectors_come_out_the_same() -> None:
    outcome = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "make_vectors.py"), "--check"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (outcome.returncode, outcome.stdout, outcome.stderr) == (0, "", "")


def test_no_vector_is_left_unread() -> None:
    """A file that no test names would be frozen and never looked at."""
    tests = "".join(path.read_text("utf-8") for path in Path(__file__).parent.glob("test_*.py"))
    names = {path.stem for path in (Path(__file__).parent / "vectors").glob("*.json")}
    assert len(names) >= 10
    assert {name for name in names if f'vectors("{name}")' not in tests} == set()
