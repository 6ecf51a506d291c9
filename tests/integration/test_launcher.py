"""The launchers: what they run, what they say when Python is not as needed, and that both are alike.

The Python that they find is a stand-in which writes down its arguments, so nothing is installed.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from lattice.config import load

ROOT = Path(__file__).resolve().parents[2]
SHELL = ROOT / "launch_lattice.sh"
BATCH = ROOT / "launch_lattice_v2.bat"

# Answers the version probe, makes a venv that holds itself, hands --env-file-of on to the real
# bootstrap, and writes down how the node would have been started.
STAND_IN = """\
#!{python}
import json, os, pathlib, shutil, sys
arguments = sys.argv[1:]
root = pathlib.Path({root!r})
if arguments[0] == "-c":
    sys.exit(0)
if arguments[0].endswith("bootstrap.py") and "--for" in arguments:
    target = root / ".venv" / "bin"
    target.mkdir(parents=True, exist_ok=True)
    shutil.copy(__file__, target / "python")
    sys.exit(0)
if arguments[0].endswith("bootstrap.py"):
    os.execv({python!r}, [{python!r}, *arguments])
seen = {{"arguments": arguments, "cwd": os.getcwd(), "join": os.environ.get("LATTICE_JOIN")}}
(root / "started.json").write_text(json.dumps(seen))
sys.exit(7)
"""


@dataclass(frozen=True)
class Project:
    """A copy of what the launcher needs."""

    root: Path
    python: Path

    def launch(
        self, *arguments: str, cwd: Path | None = None, text_in: str = "", **environ: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.root / "launch_lattice.sh", *arguments],
            cwd=cwd or self.root,
            env={"PATH": os.environ["PATH"], "PYTHON": str(self.python), **environ},
            input=text_in,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def started(self) -> dict[str, object]:
        found: dict[str, object] = json.loads((self.root / "started.json").read_text())
        return found


@pytest.fixture
def project(tmp_path: Path) -> Project:
    root = tmp_path / "a project"
    (root / "scripts").mkdir(parents=True)
    for name in ("launch_lattice.sh", "scripts/env.sh", "scripts/bootstrap.py", ".env.example"):
        shutil.copy(ROOT / name, root / name)
    python = tmp_path / "stand-in"
    python.write_text(STAND_IN.format(python=sys.executable, root=str(root)))
    python.chmod(0o755)
    return Project(root, python)


pytestmark = pytest.mark.slow


def test_without_a_name_the_node_reads_the_env_file_that_the_first_run_makes(project: Project) -> None:
    done = project.launch()
    assert done.returncode == 7, done.stderr  # exec: the code of the node is the code of the launcher
    assert project.started()["arguments"] == [
        "-m",
        "lattice",
        "start",
        "--env-file",
        str(project.root / ".env"),
    ]
    assert (project.root / ".env").read_text() == (ROOT / ".env.example").read_text()
    assert (project.root / ".env").stat().st_mode & 0o777 == 0o600
    assert "made .env from .env.example" in done.stderr


def test_a_name_chooses_the_file_and_names_the_node(project: Project, tmp_path: Path) -> None:
    project.launch("branch-7", cwd=tmp_path)
    path = project.root / ".env.branch-7"
    assert project.started()["arguments"] == ["-m", "lattice", "start", "--env-file", str(path)]
    assert project.started()["cwd"] == str(project.root)
    assert "\nLATTICE_NODE_NAME=branch-7\n" in path.read_text()


def test_an_env_file_that_is_there_is_left_as_it_is(project: Project) -> None:
    (project.root / ".env.b").write_text("LATTICE_NODE_NAME=mine\n")
    project.launch("b")
    assert (project.root / ".env.b").read_text() == "LATTICE_NODE_NAME=mine\n"


@pytest.mark.parametrize(
    ("arguments", "text_in", "ticket"),
    [
        (("b", "--join", "ticket1"), "", "ticket1"),
        (("--join=ticket1", "b"), "", "ticket1"),
        (("b", "--join", "-"), "ticket1\n", "ticket1"),
        (("b", "--join", "-"), "ticket1", "ticket1"),
        (("b",), "", None),
    ],
)
def test_a_ticket_reaches_the_node_by_its_environment(
    project: Project, arguments: tuple[str, ...], text_in: str, ticket: str | None
) -> None:
    project.launch(*arguments, text_in=text_in)
    started = project.started()
    assert started["join"] == ticket
    assert "ticket1" not in str(started["arguments"])


def test_a_ticket_file_is_found_from_where_the_caller_stands(project: Project, tmp_path: Path) -> None:
    project.launch("b", "--join", "@t.txt", cwd=tmp_path)
    assert project.started()["join"] == f"@{tmp_path / 't.txt'}"
    project.launch("b", "--join", f"@{tmp_path}/u.txt")
    assert project.started()["join"] == f"@{tmp_path}/u.txt"


def test_twin_runs_the_script_of_the_two_nodes(project: Project) -> None:
    assert project.launch("twin").returncode == 7
    assert project.started()["arguments"] == [str(project.root / "scripts" / "twin.py")]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("--help",), 0, "Usage: ./launch_lattice.sh [NAME] [--join TICKET]"),
        (("--jion", "x"), 2, "no option --jion"),
        (("a", "b"), 2, "one name"),
        (("a", "--join"), 2, "needs a ticket"),
        (("a", "--join", "-"), 2, "no ticket"),
        (("twin", "--join", "x"), 2, "takes no ticket"),
        (("../a",), 78, "no name for a node"),
        (("example",), 78, "choose another"),
    ],
)
def test_what_it_says_to_mistakes(project: Project, arguments: tuple[str, ...], code: int, says: str) -> None:
    done = project.launch(*arguments)
    assert done.returncode == code
    assert says in done.stdout + done.stderr
    assert not (project.root / "started.json").exists()


def bare_path(tmp_path: Path, **programs: str) -> str:
    """A PATH with the few tools of the launcher, and these programs by name and text."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("bash", "dirname", "cat", "env"):
        found = shutil.which(name)
        assert found
        (folder / name).symlink_to(found)
    for name, text in programs.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return str(folder)


def test_no_python_at_all(project: Project, tmp_path: Path) -> None:
    done = project.launch(PATH=bare_path(tmp_path), PYTHON="")
    assert done.returncode == 78
    assert "Python 3.11 or newer is needed" in done.stderr
    assert "apt-get install python3 python3-venv" in done.stderr


def test_only_an_old_python(project: Project, tmp_path: Path) -> None:
    old = "#!/usr/bin/env bash\nexit 1\n"
    done = project.launch(PATH=bare_path(tmp_path, python3=old, python=old), PYTHON="")
    assert done.returncode == 78
    assert "Python 3.11 or newer is needed" in done.stderr


def test_the_second_python_is_taken_if_the_first_is_old(project: Project, tmp_path: Path) -> None:
    old = "#!/usr/bin/env bash\nexit 1\n"
    newer = f"#!/usr/bin/env bash\nexec '{project.python}' \"$@\"\n"
    path = bare_path(tmp_path, **{"python3": old, "python3.12": newer})
    assert project.launch(PATH=path, PYTHON="").returncode == 7


def test_a_named_python_that_does_not_run_is_not_replaced(project: Project) -> None:
    done = project.launch(PYTHON="no-such-python")
    assert done.returncode == 78
    assert "PYTHON=no-such-python" in done.stderr


@pytest.mark.parametrize("module", ["venv", "ensurepip"])
def test_a_python_without_venv_names_the_package_to_install(
    project: Project, tmp_path: Path, module: str
) -> None:
    shadow = tmp_path / "shadow"
    shadow.mkdir()
    (shadow / f"{module}.py").write_text(f"raise ImportError('no {module}')\n")
    for name in ("requirements-build.lock", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, project.root / name)
    python = f"#!/usr/bin/env bash\nPYTHONPATH='{shadow}' exec '{sys.executable}' \"$@\"\n"
    done = project.launch(PATH=bare_path(tmp_path, python3=python), PYTHON="")
    assert done.returncode == 78
    assert f"has no '{module}' module" in done.stderr
    assert "sudo apt-get install python3-venv" in done.stderr
    assert not (project.root / ".venv").exists()


def test_the_shell_scripts_are_well_formed() -> None:
    for name in ("launch_lattice.sh", "scripts/env.sh", "scripts/check", "scripts/test", "scripts/lock",
                 "scripts/bundle", ".ci/run"):  # fmt: skip
        done = subprocess.run(["bash", "-n", ROOT / name], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


class Batch:
    """The Windows launcher, read as far as is needed to compare it: cmd is not to be had here."""

    def __init__(self, data: bytes) -> None:
        assert data.count(b"\r\n") == data.count(b"\n"), "cmd needs CRLF at every line"
        self.text = data.decode("ascii")
        self.lines = [line.strip() for line in self.text.splitlines()]
        self.code = [line for line in self.lines if line and not line.lower().startswith("rem ")]

    def labels(self) -> set[str]:
        return {line[1:] for line in self.code if line.startswith(":")}

    def jumps(self) -> set[str]:
        return {found for line in self.code for found in re.findall(r"\bgoto :?(\w+)", line)}


def test_twin_does_not_take_another_program_for_its_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT / "scripts")
    twin = importlib.import_module("twin")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        settings = load(environ={"LATTICE_API_BIND": f"127.0.0.1:{port}"}, project_dir=tmp_path)
        with pytest.raises(twin.TwinError, match=f"nodeB cannot be started: .*127.0.0.1:{port} already"):
            twin.require_free("nodeB", settings)
    twin.require_free("nodeB", settings)  # and where nothing answers it may start


@pytest.fixture(scope="module")
def batch() -> Batch:
    data = BATCH.read_bytes()
    # A checkout with other line endings holds LF here; .gitattributes makes the CRLF of a release.
    return Batch(data if b"\r\n" in data else data.replace(b"\n", b"\r\n"))


def test_every_jump_of_the_windows_launcher_has_its_label(batch: Batch) -> None:
    assert batch.jumps() == batch.labels() != set()


def test_no_label_of_the_windows_launcher_is_fallen_into_by_accident(batch: Batch) -> None:
    """Everything after the start of the node is reached by a jump only."""
    end = next(number for number, line in enumerate(batch.code) if "-m lattice start" in line)
    for number in range(end, len(batch.code)):
        if batch.code[number].startswith(":"):
            before = batch.code[number - 1]
            assert before.startswith(("exit /b", "goto ")), batch.code[number]


def test_both_launchers_take_the_same_options(batch: Batch) -> None:
    shell = SHELL.read_text() + (ROOT / "scripts" / "env.sh").read_text()
    options = r"(?<![\w-])(--[a-z][a-z-]*)"
    assert set(re.findall(options, shell)) == set(re.findall(options, batch.text))


def test_both_launchers_use_the_same_variables_files_and_codes(batch: Batch) -> None:
    shell = SHELL.read_text() + (ROOT / "scripts" / "env.sh").read_text()
    for pattern in (
        r"LATTICE_[A-Z_]+",
        r"(?:bootstrap|twin)\.py",
        r"-m lattice start",
        r"\.env\.NAME",
        r"\(3, 11\)",
    ):
        assert set(re.findall(pattern, shell)) == set(re.findall(pattern, batch.text)) != set(), pattern
    codes = set(re.findall(r"exit /b (\d+)", batch.text))
    assert codes == {"0", "2", "78"}


def test_both_launchers_explain_themselves_in_the_same_words(batch: Batch) -> None:
    usage = subprocess.run([SHELL, "--help"], capture_output=True, text=True).stdout
    shown = [line[4:].lstrip(".") for line in batch.text.splitlines() if line.startswith("echo")]
    shown = [line for line in shown if "1>&2" not in line]
    assert "\n".join(line.strip() for line in shown).replace(
        "launch_lattice_v2.bat", "./launch_lattice.sh"
    ) == ("\n".join(line.strip() for line in usage.rstrip("\n").splitlines()))


def test_git_keeps_the_line_endings_that_each_system_needs() -> None:
    attributes = (ROOT / ".gitattributes").read_text()
    assert "*.bat text eol=crlf" in attributes
    assert "* text=auto eol=lf" in attributes
