"""A node is told to end, more than once: the closing of its store is not cut short.

Separate from the crashes, after which a store is opened with care: an ordinary end leaves nothing to mend.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from lattice.storage.datadir import STORE_FILE
from lattice.testing.cluster import make_nodes, running, wait_for

from .process_kit import HTTP_ONLY, Journal, history_faults

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_does_not_cut_the_end_short(tmp_path: Path, number: signal.Signals) -> None:
    (node,) = make_nodes(tmp_path, ["node"], environ=HTTP_ONLY)
    journal = Journal()
    with running([node]):
        journal.put_many(node, "k", 20)
        process = node.process
        assert process is not None
        os.kill(process.pid, number)
        wait_for("it ends", lambda: "stopping signal=" in node.log_text(), within_s=10, step_s=0.001)
        # Every moment of the end is tried: as long as the process is there it is told again.
        while process.poll() is None:
            os.kill(process.pid, number)
        assert process.returncode == 0
    log = node.data_dir / f"{STORE_FILE}-wal"
    assert not log.exists() or log.stat().st_size == 0
    assert node.log_text().count("[STARTUP] stopped") == 1
    assert history_faults([node.data_dir], journal) == []
