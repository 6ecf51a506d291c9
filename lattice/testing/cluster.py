"""A cluster of real nodes: processes on this machine with files, ports and logs of their own.

Separate from the simulator, which has a virtual clock and no processes: what only a real socket, a
real disk or a real kill can show is tried with this. Everything is done through the command line and
the API, as a person would.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar

from ..client import calls
from ..client.calls import Call
from ..client.client import Client
from ..core.errors import LatticeError
from ..schemas import LedgerState, Status

T = TypeVar("T")

READY_WITHIN_S: Final = 60.0
ENDED_WITHIN_S: Final = 20.0
_STEP_S: Final = 0.1


class ClusterError(Exception):
    """A node could not be set up, started, reached or ended in time; the text says which and why."""


@dataclass(slots=True)
class LocalNode:
    """One node as a process. `prefix` stands before its command (`ip netns exec NAME`, `strace`);
    `environ` holds LATTICE_* settings besides those that the ports and the directory give."""

    name: str
    directory: Path
    api_port: int
    sync_port: int
    p2p_port: int
    host: str = "127.0.0.1"
    prefix: tuple[str, ...] = ()
    environ: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    new_client: Callable[[LocalNode], Client] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.api_port}"

    @property
    def data_dir(self) -> Path:
        return self.directory / "data"

    @property
    def log_file(self) -> Path:
        return self.directory / "logs" / f"{self.name}.log"

    @property
    def env_file(self) -> Path:
        return self.directory / ".env"

    def invocation(self, command: str, *arguments: str) -> list[str]:
        """The command line of `lattice COMMAND ARGUMENTS` for this node. It names a file of settings, if
        only an empty one: the project's own `.env` is another node's."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self.env_file.touch()
        file = ("--env-file", str(self.env_file))
        return [*self.prefix, sys.executable, "-m", "lattice", command, *file, *arguments]

    @property
    def pid(self) -> int:
        """The process id of the command that was started, its prefix included."""
        if self.process is None:
            raise ClusterError(f"{self.name} is not running")
        return self.process.pid

    def settings(self) -> dict[str, str]:
        return {
            "LATTICE_NODE_NAME": self.name,
            "LATTICE_DATA_DIR": str(self.data_dir),
            "LATTICE_LOG_DIR": str(self.directory / "logs"),
            "LATTICE_API_BIND": f"127.0.0.1:{self.api_port}",
            "LATTICE_SYNC_BIND": f"{self.host}:{self.sync_port}",
            "LATTICE_P2P_LISTEN": f"/ip4/{self.host}/tcp/{self.p2p_port}",
            **self.environ,
        }

    def command(self, *arguments: str, text_in: str = "") -> str:
        """Run `lattice ARGUMENTS` with this node's settings to its end; what it printed."""
        done = subprocess.run(
            self.invocation(*arguments),
            env=self.environment(),
            input=text_in,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise ClusterError(
                f"{self.name}: `lattice {arguments[0]}` ended with {done.returncode}: {done.stderr}"
            )
        return done.stdout

    def start(self, *, wait: bool = True) -> None:
        command = self.invocation("start")
        with (self.directory / "console").open("ab") as console:
            self.process = subprocess.Popen(
                command,
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        if wait:
            self.wait_ready()

    def wait_ready(self) -> None:
        deadline = time.monotonic() + READY_WITHIN_S
        while time.monotonic() < deadline:
            if self.process is not None and self.process.poll() is not None:
                raise ClusterError(f"{self.name} ended with {self.process.returncode}:\n{self.last_words()}")
            try:
                if self.send(calls.readiness()).ready:
                    return
            except LatticeError:
                pass  # not up yet
            time.sleep(_STEP_S)
        raise ClusterError(f"{self.name} is not ready after {READY_WITHIN_S:.0f} s:\n{self.last_words()}")

    def stop(self) -> None:
        """End the node by SIGTERM, as an operator would; kill it if it does not follow."""
        process, self.process = self.process, None
        if process is None:
            return
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(ENDED_WITHIN_S)
            except subprocess.TimeoutExpired as error:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                raise ClusterError(f"{self.name} did not end:\n{self.last_words()}") from error

    def kill(self) -> None:
        """kill -9, the prefix included."""
        process, self.process = self.process, None
        if process is not None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def client(self) -> Client:
        return self.new_client(self) if self.new_client is not None else Client(self.url)

    def send(self, call: Call[T]) -> T:
        """One call over a connection of its own. Raises LatticeError."""
        with self.client() as client:
            return client.send(call)

    def status(self) -> Status:
        return self.send(calls.status())

    def state(self) -> LedgerState:
        return self.send(calls.state())

    def has_key(self, key: str) -> bool:
        """Whether the running node answers with a value or a counter under this key."""
        try:
            self.send(calls.get(key))
        except LatticeError as error:
            if error.code != "not_found":
                raise
            return False
        return True

    def log_text(self) -> str:
        return self.log_file.read_text(encoding="utf-8") if self.log_file.exists() else ""

    def last_words(self, lines: int = 15) -> str:
        console = self.directory / "console"
        text = console.read_text(encoding="utf-8", errors="replace") if console.exists() else ""
        return "\n".join(text.splitlines()[-lines:])

    def environment(self) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("LATTICE_")}
        return {**inherited, **self.settings()}


@contextmanager
def running(nodes: Sequence[LocalNode]) -> Iterator[Sequence[LocalNode]]:
    """The nodes, started together and ended together whatever happens inside."""
    try:
        for node in nodes:
            node.start(wait=False)
        for node in nodes:
            node.wait_ready()
        yield nodes
    finally:
        for node in nodes:
            if node.process is not None and node.process.poll() is None:
                os.killpg(node.process.pid, signal.SIGTERM)
        for node in nodes:
            node.stop()


def make_nodes(
    directory: Path,
    names: Sequence[str],
    *,
    environ: Mapping[str, str] | None = None,
    introduce: bool = True,
) -> list[LocalNode]:
    """Nodes on loopback with free ports; with `introduce` they are joined to the first one's network."""
    ports = iter(free_ports(3 * len(names)))
    nodes = [
        LocalNode(name, directory / name, next(ports), next(ports), next(ports), environ=dict(environ or {}))
        for name in names
    ]
    if introduce:
        join(nodes)
    return nodes


def join(nodes: Sequence[LocalNode]) -> None:
    """Make the network at the first node and join the others to it by a ticket."""
    nodes[0].command("init")
    ticket = nodes[0].command("invite").split()[-1]
    for node in nodes[1:]:
        node.command("init", "--join", "-", text_in=ticket + "\n")


def wait_for(what: str, is_true: Callable[[], bool], *, within_s: float, step_s: float = _STEP_S) -> float:
    """Ask until it is so; how many seconds it took. Raises ClusterError."""
    began = time.monotonic()
    while True:
        if is_true():
            return time.monotonic() - began
        if time.monotonic() - began > within_s:
            raise ClusterError(f"after {within_s:g} s still not so: {what}")
        time.sleep(step_s)


def roots_equal(nodes: Sequence[LocalNode]) -> bool:
    """Whether all nodes show the same entry count and the same two roots now."""
    states = [node.state() for node in nodes]
    return len({(state.entry_count, state.merkle_root, state.log_root) for state in states}) == 1


def free_ports(count: int) -> list[int]:
    """TCP ports of loopback that were free a moment ago."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
