"""`lattice dev` as a process: nodes that answer, an orderly end, nothing left behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from lattice.client import calls
from lattice.client.client import Client
from lattice.testing.cluster import wait_for
from tests.integration.cli.cli_kit import in_subprocess


class Running:
    """`lattice dev …` with its output as it comes."""

    def __init__(self, *arguments: str, temporary: Path, where: Path) -> None:
        environ = {name: value for name, value in os.environ.items() if not name.startswith("LATTICE_")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "lattice", "dev", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=where,
            env={**environ, "TMPDIR": str(temporary)},
        )
        self.text = ""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.text += line

    def shows(self, pattern: str) -> bool:
        assert self.process.poll() is None, self.text
        return re.search(pattern, self.text) is not None

    def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        self.process.send_signal(number)  # an impatient second one
        code = self.process.wait(60)
        self._reader.join(10)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code


@pytest.mark.slow
def test_a_cluster_of_two_shows_itself_and_ends_in_order(tmp_path: Path) -> None:
    temporary, project = tmp_path / "temporary", tmp_path / "project"
    temporary.mkdir()
    project.mkdir()
    # The settings of the node that this machine really runs: none of them is the cluster's.
    (project / ".env").write_text("LATTICE_JOIN=of another network\nLATTICE_P2P_ENABLED=false\n")
    cluster = Running("2", temporary=temporary, where=project)
    try:
        wait_for("both are in sync", lambda: cluster.shows(r"nodeB .* 1 of 1  yes"), within_s=90)
        urls = re.findall(r"^node[AB]  (http://\S+)  \S+\.env$", cluster.text, re.MULTILINE)
        assert len(urls) == 2
        with Client(urls[0]) as client:
            client.send(calls.put("greeting", b'"hello"'))
        wait_for("the table shows the entry", lambda: cluster.shows(r"nodeB  \S+  P2P +1 "), within_s=60)
    finally:
        code = cluster.end(signal.SIGINT)
    assert code == 0, cluster.text
    assert "All nodes have ended." in cluster.text
    for url in urls:
        assert in_subprocess("status", "--url", url).returncode == 3
    assert not list(temporary.iterdir()), "the temporary directory is still there"


@pytest.mark.parametrize("count", ["1", "10", "x", ""])
def test_any_other_number_is_a_mistake(count: str) -> None:
    done = in_subprocess("dev", count)
    assert done.returncode == 2
    assert "number of nodes from 2 to 9" in done.stderr


def test_a_directory_in_use_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("kept")
    done = in_subprocess("dev", "2", "--dir", str(tmp_path))
    assert done.returncode == 78
    assert "not empty" in done.stderr
    assert (tmp_path / "mine").read_text() == "kept"
