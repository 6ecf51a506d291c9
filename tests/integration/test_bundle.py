"""The bundle for machines without a network: what is packed, for whom, and that it installs and runs
in a network namespace that has no road to anywhere.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lattice.testing.cluster import wait_for

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
from bootstrap import bundle_name  # noqa: E402
from bundle import TARGETS, marker_environment, project_files, select  # noqa: E402

LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")
# A namespace of its own with loopback alone.
ALONE = ("unshare", "-n", "sh", "-c", 'ip link set lo up && exec "$@"', "sh")


def names(lock: str) -> set[str]:
    return set(re.findall(r"(?m)^([a-z0-9][a-z0-9._-]*)==", lock))


@pytest.mark.parametrize("platform", sorted(TARGETS))
def test_markers_are_judged_for_the_target(platform: str) -> None:
    lock = (
        LOCK + 'for-windows==1 ; sys_platform == "win32" \\\n    --hash=sha256:00\n'
        'for-old==1 ; python_version < "3.12" \\\n    --hash=sha256:00\n'
    )
    chosen = select(lock, marker_environment(platform, "3.12"))
    assert ("for-windows" in names(chosen)) == platform.startswith("windows")
    assert "for-old" not in names(chosen)
    assert "for-old" in names(select(lock, marker_environment(platform, "3.11")))
    assert names(LOCK) - names(chosen) <= {"lazy-importer"}
    assert ";" not in chosen.replace("#", "")
    assert chosen.count("--hash=") >= len(names(chosen))


def test_nothing_private_is_packed() -> None:
    packed = {str(path.relative_to(ROOT)) for path in project_files()}
    assert {
        "launch_lattice.sh",
        "lattice/daemon.py",
        "scripts/bootstrap.py",
        "lattice/api/page/index.html",
    } <= packed
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode == 0:
        new = subprocess.run(
            ["git", "ls-files", "-z", "--others", "--exclude-standard"],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert packed <= set((tracked.stdout + new.stdout).split("\0"))


def unpacked(archive: Path, directory: Path) -> Path:
    with tarfile.open(archive) as packed:
        packed.extractall(directory, filter="data")
    (top,) = directory.iterdir()
    return top


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("bundle")
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "bundle.py", "--output", directory],
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    (made,) = directory.iterdir()
    assert done.stdout.strip() == str(made)
    return made


@contextmanager
def launched(root: Path, environ: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    with (root / "console").open("wb") as console:
        process = subprocess.Popen(
            [*ALONE, str(root / "launch_lattice.sh"), "far"],
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.netns
@pytest.mark.timeout(900)
def test_a_machine_without_a_road_installs_from_the_bundle_and_runs(archive: Path, tmp_path: Path) -> None:
    if not shutil.which("unshare") or subprocess.run([*ALONE, "true"], capture_output=True).returncode:
        pytest.skip("no network namespace can be made here")
    root = unpacked(archive, tmp_path / "far")
    assert not (root / ".git").exists()
    assert [
        path.name for path in (root / "wheels").iterdir() if path.suffix == ".gz"
    ] != []  # source-only ones
    environ = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHON": sys.executable}
    road = "import socket; socket.create_connection(('192.0.2.1', 80), 5)"
    control = subprocess.run([*ALONE, sys.executable, "-c", road], capture_output=True, text=True)
    assert "Network is unreachable" in control.stderr

    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        inside = ["nsenter", "-t", str(process.pid), "-n", root / ".venv/bin/lattice", *arguments]
        return subprocess.run([*inside, "--env-file", root / ".env.far"], capture_output=True, text=True)

    with launched(root, environ) as process:

        def is_up() -> bool:
            assert process.poll() is None, (root / "console").read_text()
            log = root / "logs" / "far.log"
            return log.exists() and "node ready" in log.read_text()

        wait_for("the node from the bundle", is_up, within_s=400)
        assert command("put", "k", '"here"').returncode == 0
        assert '"here"' in command("get", "k").stdout
        os.killpg(process.pid, signal.SIGTERM)
        assert process.wait(30) == 0
    assert "P2P started successfully" in (root / "logs" / "far.log").read_text()


@pytest.mark.slow
def test_a_bundle_for_another_kind_of_machine_is_told_apart(tmp_path: Path) -> None:
    root = tmp_path / "far"
    for path in project_files():
        (root / path.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, root / path.relative_to(ROOT))
    (root / "wheels").mkdir()
    (root / "wheels" / "MADE_FOR").write_text("plan9-mips 3.11\n")
    done = subprocess.run(
        [sys.executable, root / "scripts" / "bootstrap.py", "--for", "run"], capture_output=True, text=True
    )
    assert done.returncode == 78
    (line,) = [line for line in done.stderr.splitlines() if "wheels/" in line]
    assert "is for plan9-mips 3.11" in line
    assert f"./scripts/bundle --platform {bundle_name()}" in line
