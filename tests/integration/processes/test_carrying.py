"""A ledger carried by hand: parcels between members that no wire joins, JSON lines into another network.

Real nodes as processes that never hear each other: whatever one knows of the other came in a file.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lattice.client import calls
from lattice.testing.cluster import ClusterError, LocalNode, make_nodes, running

ALONE = {"LATTICE_P2P_ENABLED": "false", "LATTICE_SYNC_BIND": "off"}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> list[LocalNode]:
    """Two members of one network, the first with a ledger, neither running."""
    nodes = make_nodes(tmp_path_factory.mktemp("carried"), ["first", "second"], environ=ALONE)
    with running(nodes[:1]):
        for number in range(130):
            nodes[0].send(calls.put(f"k/{number:03}", b'{"n": %d, "text": "\xc3\xa9"}' % number))
        nodes[0].send(calls.batch([{"op": "add", "key": "sum", "amount": 2**53 - 1}] * 3))
        nodes[0].send(calls.delete("k/007"))
    return nodes


def run(node: LocalNode, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lattice", *arguments]
    return subprocess.run(
        command, env=node.environment(), capture_output=True, text=True, check=False, timeout=60
    )


def test_a_parcel_brings_everything_and_can_be_taken_again(written: list[LocalNode], tmp_path: Path) -> None:
    first, second = written
    file = tmp_path / "ledger.parcel"
    said = run(first, "export", "--sealed", "--out", str(file))
    assert said.returncode == 0, said.stderr
    assert "132 entries exported" in said.stderr
    assert file.stat().st_mode & 0o077 == 0
    assert b"k/001" not in file.read_bytes(), "only members read it"
    with running([second]):
        before = second.state()
        assert before.entry_count == 0
        # Cut in the middle, as by a stick pulled too early: what is whole is taken, the rest said.
        broken = tmp_path / "broken.parcel"
        broken.write_bytes(file.read_bytes()[:-100])
        cut = run(second, "import", str(broken))
        assert cut.returncode == 1
        assert "ends within an envelope" in cut.stderr
        done = run(second, "import", "--json", str(file))
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert (found["taken"] + found["held"], found["refused"]) == (132, 0)
        after = second.state()
        assert after.entry_count == 132
        again = json.loads(run(second, "import", "--json", str(file)).stdout)
        assert again == {"taken": 0, "held": 132, "waiting": 0, "refused": 0}
        shown = second.send(calls.entries(lung="file"))
        assert shown.entries
        assert all(entry.lung == "file" for entry in shown.entries)
        with running([first]):  # neither hears the other
            states = [node.state() for node in written]
        assert states[0].merkle_root == states[1].merkle_root == after.merkle_root
        assert states[0].log_root == states[1].log_root


def test_since_takes_what_came_later(written: list[LocalNode], tmp_path: Path) -> None:
    first, _ = written
    for since, counts in (
        ("2001-01-01T00:00:00Z", "132 entries"),
        ("2100-01-01", "0 entries"),
        ("7d", "132"),
    ):
        said = run(first, "export", "--sealed", "--since", since, "--out", str(tmp_path / "p"))
        assert said.returncode == 0, said.stderr
        assert counts in said.stderr, since
    bad = run(first, "export", "--since", "yesterday")
    assert bad.returncode == 78
    assert "7d" in bad.stderr


def test_a_parcel_of_another_network_is_refused_and_changes_nothing(
    written: list[LocalNode], tmp_path: Path
) -> None:
    first, _ = written
    file = tmp_path / "ledger.parcel"
    assert run(first, "export", "--sealed", "--out", str(file)).returncode == 0
    (stranger,) = make_nodes(tmp_path, ["stranger"], environ=ALONE)
    with running([stranger]):
        done = run(stranger, "import", str(file))
        assert done.returncode == 1
        assert "another network" in done.stderr
        assert "Traceback" not in done.stderr
        assert stranger.state().entry_count == 0


def test_json_lines_carry_the_facts_into_another_network(written: list[LocalNode], tmp_path: Path) -> None:
    first, _ = written
    file = tmp_path / "facts.jsonl"
    said = run(first, "export", "--out", str(file))
    assert "130 keys exported" in said.stderr
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert {line["op"] for line in lines} == {"put", "add"}
    assert sum(line.get("amount", 0) for line in lines) == 3 * (2**53 - 1)
    (other,) = make_nodes(tmp_path, ["other"], environ=ALONE)
    with running([other]):
        done = run(other, "import", "--json", str(file))
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout) == {"written": len(lines), "repeated": 0}
        # A second time, as after an interruption: nothing is counted twice.
        again = json.loads(run(other, "import", "--json", str(file)).stdout)
        assert again == {"written": 0, "repeated": len(lines)}
        page = other.send(calls.keys(limit=1000))
        held = {key.key: key.value for key in page.keys if key.key != "sum"}
        assert held == {line["key"]: line["value"] for line in lines if line["op"] == "put"}
        assert other.send(calls.get("sum")).total == str(3 * (2**53 - 1))


def test_import_needs_the_node_and_the_file(written: list[LocalNode], tmp_path: Path) -> None:
    _, second = written
    assert "cannot read" in run(second, "import", str(tmp_path / "missing")).stderr
    facts = tmp_path / "facts.jsonl"
    facts.write_text('{"op":"put","key":"a","value":1}\n')
    assert run(second, "import", str(facts)).returncode == 3
    with pytest.raises(ClusterError, match="ended with 1"):
        second.command("import", str(tmp_path / "missing"))
