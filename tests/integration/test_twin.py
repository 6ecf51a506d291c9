"""Two nodes on one machine by the script behind `launch_lattice.sh twin`: up, joined, and ended by a
signal. Separate from the launcher's tests because these nodes are real."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
UP_WITHIN_S = 60.0
SYNCED_WITHIN_S = 30.0

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


@dataclass(frozen=True)
class Project:
    """A copy of the scripts with settings of free ports; the program itself is the one under test."""

    root: Path
    ports: dict[str, tuple[int, int, int]]

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.ports[name][0]}"

    @contextlib.contextmanager
    def twin(self) -> Iterator[subprocess.Popen[str]]:
        process = subprocess.Popen(
            [sys.executable, self.root / "scripts" / "twin.py"],
            cwd=self.root,
            # A setting in the environment would meet both nodes: the script keeps it from them.
            env={**os.environ, "PYTHONPATH": str(ROOT), "LATTICE_NODE_NAME": "neither"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
            process.communicate(timeout=60)


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        found = []
        for _ in range(count):
            each = stack.enter_context(socket.socket())
            each.bind(("127.0.0.1", 0))
            found.append(each.getsockname()[1])
        return found


@pytest.fixture
def project(tmp_path: Path) -> Project:
    root = tmp_path / "project"
    (root / "scripts").mkdir(parents=True)
    for name in ("launch_lattice.sh", "scripts/bootstrap.py", "scripts/twin.py", ".env.example"):
        shutil.copy(ROOT / name, root / name)
    numbers = free_ports(6)
    ports = {"nodeA": (numbers[0], numbers[1], numbers[2]), "nodeB": (numbers[3], numbers[4], numbers[5])}
    for name, (api, sync, p2p) in ports.items():
        (root / f".env.{name}").write_text(
            f"LATTICE_NODE_NAME={name}\nLATTICE_API_BIND=127.0.0.1:{api}\n"
            f"LATTICE_SYNC_BIND=127.0.0.1:{sync}\nLATTICE_P2P_LISTEN=/ip4/127.0.0.1/tcp/{p2p}\n"
        )
    return Project(root, ports)


def lines_until(process: subprocess.Popen[str], text: str) -> list[str]:
    """What the process prints, up to the line with `text`; ends the test if it never comes."""
    assert process.stdout is not None
    seen: list[str] = []
    for line in process.stdout:
        seen.append(line.rstrip("\n"))
        if text in line:
            return seen
    pytest.fail(f"{text!r} never came; it said:\n" + "\n".join(seen))


def call(method: str, url: str, body: object = None) -> object:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10) as answer:
        return json.loads(answer.read())


def value_at(url: str, key: str) -> object:
    """The value once the node has it."""
    deadline = time.monotonic() + SYNCED_WITHIN_S
    while time.monotonic() < deadline:
        try:
            found = call("GET", f"{url}/api/lattice/keys/{key}")
        except urllib.error.HTTPError as error:
            if error.code != 404:
                raise
            time.sleep(0.05)
        else:
            assert isinstance(found, dict)
            return found["value"]
    pytest.fail(f"{url} never had {key}")


def listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_two_nodes_come_up_joined_and_go_on_where_they_were(project: Project) -> None:
    with project.twin() as process:
        said = lines_until(process, "Both nodes are up")
        shown = [re.split(r" {2,}", line)[:2] for line in said if line.startswith("node")]
        assert shown == [["nodeA", project.url("nodeA")], ["nodeB", project.url("nodeB")]]
        call("PUT", f"{project.url('nodeA')}/api/lattice/keys/branch/7", {"percent": 3.5})
        assert value_at(project.url("nodeB"), "branch/7") == {"percent": 3.5}
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 0
    assert not [port for ports in project.ports.values() for port in ports if listening(port)]
    first = (project.root / "data" / "nodeA" / "identity.key").read_bytes()

    with project.twin() as process:
        lines_until(process, "Both nodes are up")
        call("PUT", f"{project.url('nodeB')}/api/lattice/keys/back", 1)
        assert value_at(project.url("nodeA"), "back") == 1
        assert value_at(project.url("nodeB"), "branch/7") == {"percent": 3.5}
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0
    assert (project.root / "data" / "nodeA" / "identity.key").read_bytes() == first
    assert (project.root / "logs" / "nodeB.log").stat().st_size > 0


def test_a_node_that_cannot_start_ends_the_other_and_says_why(project: Project) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", project.ports["nodeB"][0]))  # taken, and nothing that answers
        with project.twin() as process:
            output, _ = process.communicate(timeout=90)
    assert process.returncode == 1
    assert "nodeB ended with exit code" in output
    assert "LATTICE_API_BIND" in output
    assert not listening(project.ports["nodeA"][0])


def test_what_answers_at_an_address_already_is_not_taken_for_a_node(project: Project) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", project.ports["nodeB"][0]))
        taken.listen()
        with project.twin() as process:
            output, _ = process.communicate(timeout=90)
    assert process.returncode == 1
    assert "something answers at" in output
    assert "LATTICE_API_BIND" in output
    assert not (project.root / "data" / "nodeA").exists()
