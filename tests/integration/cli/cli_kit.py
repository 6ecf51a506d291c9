"""What the command line's tests share: a node that serves from a thread, and commands run in process."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio

from lattice.api.access import Access
from lattice.api.app import create_app
from lattice.api.listener import open_listener, serve_listener
from lattice.cli.main import main
from lattice.core.addresses import Bind
from lattice.node.node import Node
from tests.integration.api.api_kit import running_node


@dataclass
class ServedNode:
    """A real node with its API on a free port; `call` runs something in its loop."""

    bind: Bind
    node: Node
    token: trio.lowlevel.TrioToken

    @property
    def url(self) -> str:
        return f"http://{self.bind}"

    def call(self, function: object, *args: object) -> object:
        return trio.from_thread.run(function, *args, trio_token=self.token)  # type: ignore[arg-type]


@contextmanager
def served_node(*, bearer: str | None = None) -> Iterator[ServedNode]:
    """A node in a loop of its own, so that commands that block can be called beside it.

    With `bearer` the API asks everybody for that token.
    """
    ready = threading.Event()
    held: list[ServedNode] = []
    stop: list[trio.Event] = []

    async def serve() -> None:
        shutdown = trio.Event()
        listener = open_listener(Bind("127.0.0.1", 0), "LATTICE_API_BIND")
        # Served on loopback under the rules of an API that listens on every address.
        bind = Bind("0.0.0.0" if bearer else "127.0.0.1", 8000)
        async with running_node() as node, trio.open_nursery() as nursery:
            app = create_app(node, Access(bind, bearer))
            where = await nursery.start(serve_listener, app, listener, shutdown)
            held.append(ServedNode(where, node, trio.lowlevel.current_trio_token()))
            stop.append(shutdown)
            ready.set()

    thread = threading.Thread(target=trio.run, args=(serve,))
    thread.start()
    try:
        assert ready.wait(10), "the node did not start"
        yield held[0]
    finally:
        held[0].token.run_sync_soon(stop[0].set)
        thread.join(10)
        assert not thread.is_alive()


@dataclass
class Shell:
    """Runs commands in process with a settings file; keeps what they printed."""

    env_file: Path
    capsys: pytest.CaptureFixture[str]
    out: str = field(default="", init=False)
    err: str = field(default="", init=False)

    def run(self, *arguments: str) -> int:
        """`lattice ARGUMENTS --env-file …`; the exit code."""
        return self.bare(*arguments, "--env-file", str(self.env_file))

    def bare(self, *arguments: str) -> int:
        self.capsys.readouterr()
        try:
            code = main(arguments)
        except SystemExit as exit_:
            code = exit_.code if isinstance(exit_.code, int) else 1
        self.out, self.err = self.capsys.readouterr()
        return code

    def ok(self, *arguments: str) -> str:
        """Run a command that must succeed; its output."""
        code = self.run(*arguments)
        assert code == 0, self.err
        return self.out

    def fails(self, code: int, *arguments: str) -> str:
        """Run a command that must fail with this code and one line; that line."""
        assert self.run(*arguments) == code, (self.out, self.err)
        assert self.err.startswith("lattice: ")
        assert self.err.count("\n") == 1
        assert "Traceback" not in self.err
        return self.err


def write_env(directory: Path, **settings: object) -> Path:
    """A settings file for a node named nodeA that keeps everything in `directory`."""
    chosen = {
        "NODE_NAME": "nodeA",
        "DATA_DIR": directory / "data",
        "LOG_DIR": directory / "logs",
        "SYNC_BIND": "off",
        "P2P_ENABLED": "false",
        **settings,
    }
    path = directory / ".env.nodeA"
    path.write_text("".join(f"LATTICE_{name}={value}\n" for name, value in chosen.items()))
    return path


def in_subprocess(*arguments: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
    """`python -m lattice ARGUMENTS` as a process of its own."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("LATTICE_")}
    return subprocess.run(
        [sys.executable, "-m", "lattice", *arguments],
        capture_output=True,
        text=True,
        input=text,
        env=environ,
        timeout=60,
        check=False,
    )
