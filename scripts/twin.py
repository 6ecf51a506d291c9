"""Start two nodes on this machine, nodeA and nodeB, joined to each other; end both on Ctrl-C.

Separate from the launchers so that Unix and Windows do the same. It uses the command line as a
person would: init, invite, init --join, start.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from bootstrap import ROOT, SetupError, env_file, say

from lattice.config import PREFIX, Settings, load
from lattice.core.errors import ConfigError

NODES = {
    "nodeA": {
        "LATTICE_API_BIND": "127.0.0.1:8000",
        "LATTICE_SYNC_BIND": "0.0.0.0:8100",
        "LATTICE_P2P_LISTEN": "/ip4/0.0.0.0/tcp/9000",
    },
    "nodeB": {
        "LATTICE_API_BIND": "127.0.0.1:8001",
        "LATTICE_SYNC_BIND": "0.0.0.0:8101",
        "LATTICE_P2P_LISTEN": "/ip4/0.0.0.0/tcp/9001",
    },
}
HEALTHY_WITHIN_S = 60.0
ENDED_WITHIN_S = 15.0


class TwinError(Exception):
    """One of the two nodes could not be set up, started or kept; the text says which and why."""


def main() -> int:
    # A name in the environment would win over both files, and give both nodes the same port.
    environ = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    signal.signal(signal.SIGTERM, _interrupt)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, _interrupt)
    try:
        files = {name: env_file(name, values) for name, values in NODES.items()}
        settings = {name: load(env_file=path, environ={}) for name, path in files.items()}
        for name, each in settings.items():
            require_free(name, each)
        introduce(files, settings, environ)
        with running(files, settings, environ) as processes:
            for name, process in processes.items():
                wait_healthy(name, settings[name], process)
            show(settings)
            return keep(processes)
    except KeyboardInterrupt:
        return 0
    except (ConfigError, SetupError) as error:
        say(str(error))
        return 78
    except TwinError as error:
        say(str(error))
        return 1


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def lattice(*arguments: str | Path, environ: dict[str, str], text_in: str = "") -> str:
    """Run one command to its end and return what it printed."""
    command = [sys.executable, "-m", "lattice", *map(str, arguments)]
    done = subprocess.run(
        command, cwd=ROOT, env=environ, input=text_in, stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        raise TwinError(f"'lattice {arguments[0]}' ended with exit code {done.returncode}")
    return done.stdout


def introduce(files: dict[str, Path], settings: dict[str, Settings], environ: dict[str, str]) -> None:
    """Make the network at nodeA and join nodeB to it, each unless it has an identity already."""
    first, second = NODES
    if not has_identity(settings[first]):
        lattice("init", "--env-file", files[first], environ=environ)
    if not has_identity(settings[second]):
        ticket = lattice("invite", "--env-file", files[first], environ=environ).split()[-1]
        lattice("init", "--env-file", files[second], "--join", "-", environ=environ, text_in=ticket + "\n")


def require_free(name: str, settings: Settings) -> None:
    """What answers there already would be taken for the node that is started. Raises TwinError."""
    bind = settings.api_bind
    try:
        socket.create_connection((bind.host, bind.port), timeout=2).close()
    except OSError:
        return
    raise TwinError(
        f"{name} cannot be started: something answers at {settings.api_url} already. End it first (Ctrl-C "
        f"where it runs), or give {name} another LATTICE_API_BIND in .env.{name}."
    )


def has_identity(settings: Settings) -> bool:
    return (settings.data_dir / "identity.key").exists()


@contextmanager
def running(
    files: dict[str, Path], settings: dict[str, Settings], environ: dict[str, str]
) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """Both nodes as processes of their own, ended one by one by process id."""
    processes: dict[str, subprocess.Popen[bytes]] = {}
    consoles: list[IO[bytes]] = []
    try:
        for name, path in files.items():
            console = console_of(settings[name])
            console.parent.mkdir(parents=True, exist_ok=True)
            consoles.append(console.open("wb"))
            command = [sys.executable, "-m", "lattice", "start", "--env-file", str(path)]
            processes[name] = subprocess.Popen(
                command,
                cwd=ROOT,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=consoles[-1],
                stderr=subprocess.STDOUT,
                # Ctrl-C reaches this program alone, which then ends both in order.
                start_new_session=os.name != "nt",
                creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
            )
        yield processes
    finally:
        end(processes)
        for stream in consoles:
            stream.close()


def end(processes: dict[str, subprocess.Popen[bytes]]) -> None:
    for process in processes.values():
        if process.poll() is None:
            process.send_signal(getattr(signal, "CTRL_BREAK_EVENT", signal.SIGTERM))
    deadline = time.monotonic() + ENDED_WITHIN_S
    for name, process in processes.items():
        try:
            process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            say(f"{name} does not end by itself: killing process {process.pid}")
            process.kill()
            process.wait()


def wait_healthy(name: str, settings: Settings, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + HEALTHY_WITHIN_S
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise TwinError(f"{name} ended with exit code {process.returncode}:\n{last_words(settings)}")
        try:
            with opener.open(f"{settings.api_url}/health", timeout=2) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            pass  # not up yet
        time.sleep(0.1)
    raise TwinError(f"{name} is not healthy after {HEALTHY_WITHIN_S:.0f} s; see {console_of(settings)}")


def console_of(settings: Settings) -> Path:
    return settings.log_dir / f"{settings.node_name}.console"


def last_words(settings: Settings) -> str:
    lines = console_of(settings).read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join(lines[-10:])


def show(settings: dict[str, Settings]) -> None:
    for name, each in settings.items():
        log = each.log_dir / f"{each.node_name}.log"
        print(f"{name}  {each.api_url}  log: {os.path.relpath(log, Path.cwd())}")
    print("Both nodes are up. Ctrl-C ends both.", flush=True)


def keep(processes: dict[str, subprocess.Popen[bytes]]) -> int:
    """Wait until one of the two ends by itself, which ends the other as well."""
    while True:
        for name, process in processes.items():
            if process.poll() is not None:
                raise TwinError(f"{name} ended with exit code {process.returncode}; see logs/{name}.log")
        time.sleep(0.2)


if __name__ == "__main__":
    sys.exit(main())
