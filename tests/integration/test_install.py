"""A fresh machine: the locked packages install without a compiler, and two nodes then gossip.

Separate from the launcher's tests because this one downloads, and takes a minute.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMPILERS = ("cc", "gcc", "g++", "c++", "clang", "cl", "make", "cmake", "rustc", "cargo", "pkg-config")

# Two lungs in one loop, each known to the other; each admits every peer and hears what the other says.
PROBE = """
import importlib.metadata, json, logging, sys
import trio
from lattice.transport.p2p.lung import Libp2pLung

class Handler:
    def __init__(self, lung):
        self.lung, self.heard = lung, set()
    async def on_link(self, link):
        self.lung.admit(link.peer_id)
        await trio.sleep_forever()
    async def on_request(self, link, request):
        return request
    async def on_gossip(self, forwarder, kind, data):
        self.heard.add((kind, data))
        return True

def lung(seed):
    log = logging.getLogger("probe")
    return Libp2pLung(bytes([seed]) * 32, ["/ip4/127.0.0.1/tcp/0"], [], "entries", "presence", log)

async def main():
    a, b = lung(1), lung(2)
    handlers = Handler(a), Handler(b)
    async with trio.open_nursery() as nursery:
        await nursery.start(a.run, handlers[0])
        await nursery.start(b.run, handlers[1])
        for one, other in ((a, b), (b, a)):
            one.set_known({other.peer_id: list(other.report().listen_multiaddrs)})
        with trio.move_on_after(60):
            while not (a.report().gossip_ready and b.report().gossip_ready):
                await trio.sleep(0.05)
            while not (("entries", b"b") in handlers[0].heard and ("entries", b"a") in handlers[1].heard):
                a.publish_nowait("entries", b"a")
                b.publish_nowait("entries", b"b")
                await trio.sleep(0.2)
        errors = [a.report().error, b.report().error]
        nursery.cancel_scope.cancel()
    installed = sorted(found.metadata["Name"].lower() for found in importlib.metadata.distributions())
    print(json.dumps({
        "heard": [sorted(text.decode() for kind, text in handler.heard) for handler in handlers],
        "errors": errors, "installed": installed,
        "lattice": sys.modules["lattice"].__file__,
    }))

trio.run(main)
"""


@dataclass(frozen=True)
class Clone:
    """A copy of what is committed, or would be, and an environment without any build tool."""

    root: Path
    environ: dict[str, str]

    def bootstrap(self, **environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, self.root / "scripts" / "bootstrap.py", "--for", "run"],
            cwd=self.root,
            env={**self.environ, **environ},
            capture_output=True,
            text=True,
            timeout=500,
        )

    @property
    def python(self) -> Path:
        return self.root / ".venv" / "bin" / "python"


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    base = tmp_path_factory.mktemp("install")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT, capture_output=True, check=True,
    ).stdout.decode()  # fmt: skip
    root = base / "clone"
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, root / name)
    empty = base / "bin"
    empty.mkdir()
    environ = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "CC", "CXX")}
    return Clone(root, {**environ, "PATH": str(empty)})


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.timeout(600)
def test_a_fresh_machine_without_a_compiler_gets_a_node_that_gossips(clone: Clone) -> None:
    assert not [tool for tool in COMPILERS if shutil.which(tool, path=clone.environ["PATH"])]
    first = clone.bootstrap()
    assert first.returncode == 0, first.stderr
    assert "installing" in first.stderr

    done = subprocess.run(
        [clone.python, "-c", PROBE],
        cwd=clone.root.parent,
        env=clone.environ,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["errors"] == [None, None]
    assert "b" in found["heard"][0]
    assert "a" in found["heard"][1]
    assert found["lattice"] == str(clone.root / "lattice" / "__init__.py")
    assert "libp2p" in found["installed"]
    assert not {"fastecdsa", "pysha3", "pytest"} & set(found["installed"])

    # The stamp: with nothing changed nothing is installed, not even looked for; a changed lock is.
    again = clone.bootstrap(PIP_NO_INDEX="1", PIP_FIND_LINKS="")
    assert (again.returncode, again.stderr) == (0, "")
    with (clone.root / "requirements.lock").open("a") as lock:
        lock.write("# changed\n")
    changed = clone.bootstrap()
    assert changed.returncode == 0, changed.stderr
    assert "installing" in changed.stderr
