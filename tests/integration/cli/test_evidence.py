"""lattice history, proof and verify: against a real node, and of a file with no node at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from merkletools import MerkleTools

from tests.integration.cli.cli_kit import ServedNode, Shell, in_subprocess


def test_history(shell: Shell, served: ServedNode) -> None:
    first = shell.ok("put", "a/b", '"one"').strip()
    second = shell.ok("put", "a/b", '"two"').strip()
    lines = shell.ok("history", "a/b").splitlines()
    assert lines[0].split()[:4] == ["VERSION", "OP", "STANDS", "VALUE"]
    assert [line.split()[:4] for line in lines[1:]] == [
        [second, "put", "winner", '"two"'],
        [first, "put", "replaced", '"one"'],
    ]
    assert shell.ok("history", "a/b", "--limit", "1").count("\n") == 2
    assert f"--after {second}" in shell.err
    shown = json.loads(shell.ok("history", "a/b", "--after", second, "--json"))
    assert ([one["version"] for one in shown["versions"]], shown["count"]) == ([first], 1)
    assert "never" in shell.fails(1, "history", "never")


def test_a_proof_is_checked_without_a_node(shell: Shell, served: ServedNode, tmp_path: Path) -> None:
    shell.ok("put", "branch/7", '{"city": "Genève"}')
    file = tmp_path / "proof.json"
    assert "lattice verify" in shell.ok("proof", "branch/7", "--out", str(file))
    data = json.loads(file.read_text())
    node = served.node
    done = in_subprocess("verify", str(file))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\n") == 1
    for part in ("valid", "branch/7", "Genève", node.peer_id, data["statement"]["state_root"]):
        assert part in done.stdout
    same = in_subprocess("verify", "-", "--json", text=file.read_text())
    found = json.loads(same.stdout)
    assert (found["valid"], found["present"], found["signer"]) == (True, True, node.peer_id)
    expected = [
        "--root",
        data["statement"]["state_root"],
        "--network",
        data["network"],
        "--peer",
        node.peer_id,
    ]
    assert shell.bare("verify", str(file), *expected) == 0


@pytest.mark.parametrize(
    ("option", "value"), [("--root", "00" * 32), ("--network", "00" * 32), ("--peer", "12D3KooWother")]
)
def test_a_proof_of_something_else(option: str, value: str, shell: Shell, tmp_path: Path) -> None:
    file = str(tmp_path / "proof.json")
    shell.ok("proof", "absent", "--out", file)
    assert shell.bare("verify", file) == 0
    assert "'absent' is absent" in shell.out
    assert shell.bare("verify", file, option, value) == 1
    assert (shell.err.count("\n"), shell.out) == (1, "")
    assert value in shell.err


def test_a_changed_file_is_not_valid(shell: Shell, tmp_path: Path) -> None:
    shell.ok("put", "k", "1")
    data = json.loads(shell.ok("proof", "k"))
    file = tmp_path / "proof.json"
    winner = data["winner"]["op"]
    changed = [
        {**data, "key": "other"},
        {**data, "present": False},
        {**data, "adds": 1},
        {**data, "winner": {**data["winner"], "op": winner[:-2] + "32"}},
        {},
        [],
    ]
    for number, wrong in enumerate([*(json.dumps(one) for one in changed), "{", ""]):
        file.write_text(wrong)
        assert shell.bare("verify", str(file)) == 1, number
        assert shell.err.startswith("lattice: ")
        assert (shell.err.count("\n"), shell.out) == (1, "")
    assert shell.bare("verify", str(tmp_path / "none")) == 1
    assert "cannot read" in shell.err


def test_a_receipt_for_merkletools(shell: Shell, tmp_path: Path) -> None:
    for key in ("a", "b", "c"):
        shell.ok("put", key, "1")
    file = tmp_path / "receipt.json"
    shell.ok("proof", "b", "--format", "merkletools", "--out", str(file))
    receipt = json.loads(file.read_text())
    assert MerkleTools().validate_proof(receipt["proof"], receipt["target_hash"], receipt["merkle_root"])
    assert shell.bare("verify", str(file)) == 0
    assert "'b' is in the tree of the receipt" in shell.out
    file.write_text(json.dumps({**receipt, "key": "a"}))
    assert shell.bare("verify", str(file)) == 1
    assert "a proof shows absence" in shell.fails(1, "proof", "gone", "--format", "merkletools")
