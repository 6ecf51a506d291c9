"""`lattice fsck` as a person runs it: exit codes, plain words, JSON."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest

from lattice.config import load
from lattice.node.home import load_home
from lattice.storage.datadir import STORE_FILE, open_store
from tests.integration.cli.cli_kit import Shell, write_env


@pytest.fixture
def shell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Shell:
    """The settings of a node that has been made and has a store without an entry."""
    made = Shell(write_env(tmp_path), capsys)
    made.ok("init")
    settings = load(env_file=made.env_file, environ={})
    open_store(settings.data_dir, load_home(settings).network_id).close()
    return made


def test_a_clean_store_is_0_and_says_so(shell: Shell) -> None:
    assert "Clean: everything verifies." in shell.ok("fsck")
    shown = json.loads(shell.ok("fsck", "--json"))
    assert (shown["clean"], shown["problems"]) == (True, [])


def test_a_finding_is_1_and_is_named(shell: Shell, tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "data" / STORE_FILE) as database:
        database.execute(
            "INSERT INTO logs VALUES (1, ?, ?, 3, ?, ?)", (b"\1" * 32, bytes(8), bytes(32), b"\xff" * 8)
        )
    database.close()
    assert shell.run("fsck") == 1
    assert "entry 0 of a log whose head is 3 is gone" in shell.out
    assert "the stored log root is not that of the heads" in shell.out
    assert shell.run("fsck", "--json") == 1
    assert json.loads(shell.out)["problems"][0]["seq"] == 0


def test_without_a_store_it_is_an_error_and_not_a_finding(shell: Shell, tmp_path: Path) -> None:
    for name in (tmp_path / "data").glob(f"{STORE_FILE}*"):
        name.unlink()
    assert "There is no store" in shell.fails(1, "fsck")
