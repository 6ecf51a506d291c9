"""Fixtures: a served node, and a shell whose settings lead to it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.cli.cli_kit import ServedNode, Shell, served_node, write_env


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("LATTICE_"):
            monkeypatch.delenv(name)


@pytest.fixture
def served() -> Iterator[ServedNode]:
    with served_node() as node:
        yield node


@pytest.fixture
def shell(served: ServedNode, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(write_env(tmp_path, API_BIND=served.bind), capsys)


@pytest.fixture
def lonely_shell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Shell:
    """A shell whose settings lead to a port where nobody listens."""
    from lattice.api.listener import open_listener
    from lattice.core.addresses import Bind

    with open_listener(Bind("127.0.0.1", 0), "LATTICE_API_BIND") as taken:
        port = taken.getsockname()[1]
    return Shell(write_env(tmp_path, API_BIND=f"127.0.0.1:{port}"), capsys)
