"""Rules of the house that no linter knows, each with its reason in its own test.

Separate from the suites because they read the source and run nothing of it.
"""

from __future__ import annotations

import ast
import re
import runpy
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT_SUFFIXES = {
    "", ".py", ".sh", ".bat", ".toml", ".md", ".txt", ".lock", ".example", ".cfg", ".ini", ".yml", ".yaml",
    ".json", ".js", ".css", ".html", ".svg", ".sql",
}  # fmt: skip
SCRIPTS = [
    "launch_lattice.sh",
    "scripts/bundle",
    "scripts/check",
    "scripts/demo",
    "scripts/lock",
    "scripts/test",
    ".ci/run",
]

# Put together here, so that this file does not hold what it forbids.
MACHINE_PATH = re.compile(r"(?<![\w.$}/-])/(?:work|root|tmp|home/\w+|Users/\w+|opt/pypi)(?=[/\s\"'`]|$)")
INDEX_HOST = re.compile(
    "|".join([r"pypi\." + "org", r"python" + "hosted", r"npm" + r"js\.", r"deb\.debian" + r"\.org"])
)
VAGUE_NAMES = {"utils", "util", "helpers", "helper", "common", "manager", "misc"}


def files() -> list[Path]:
    """What would be committed: tracked files and new ones that are not ignored."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT, capture_output=True, check=True,
    ).stdout.decode()  # fmt: skip
    found = [ROOT / name for name in listed.split("\0") if name]
    return sorted(path for path in found if path.is_file() and path.suffix in TEXT_SUFFIXES)


def python_files(*folders: str) -> list[Path]:
    return [
        path for path in files()
        if path.suffix == ".py" and path.relative_to(ROOT).parts[0] in folders
    ]  # fmt: skip


def hits(pattern: re.Pattern[str]) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:120]}"
        for path in files()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if pattern.search(line)
    ]


def modules() -> Iterator[tuple[str, ast.Module]]:
    for path in python_files("lattice"):
        yield str(path.relative_to(ROOT)), ast.parse(path.read_text(encoding="utf-8"))


def test_the_listing_sees_the_project() -> None:
    """Every other test here would pass on an empty list."""
    names = {str(path.relative_to(ROOT)) for path in files()}
    assert {"pyproject.toml", "lattice/core/errors.py", "scripts/test", "requirements.lock"} <= names


def test_no_path_of_a_machine() -> None:
    """A path that exists on one machine only breaks on every other."""
    assert not hits(MACHINE_PATH)


def test_no_host_of_a_package_index() -> None:
    """Where packages come from is the machine's business: a mirror must do."""
    assert not hits(INDEX_HOST)


@pytest.mark.parametrize(
    ("pattern", "line"),
    [
        (MACHINE_PATH, "cd /" + "work/main"),
        (MACHINE_PATH, "path='/" + "home/ann/x'"),
        (INDEX_HOST, "https://pypi." + "org/simple"),
    ],
)
def test_the_patterns_find_what_they_are_for(pattern: re.Pattern[str], line: str) -> None:
    assert pattern.search(line)


@pytest.mark.parametrize("line", ["GET /api/work/1", "lattice/roots", "$HOME/work/x", "a/root/b"])
def test_the_patterns_leave_other_paths_alone(line: str) -> None:
    assert not MACHINE_PATH.search(line)


def test_every_module_says_what_it_is_and_why_it_is_separate() -> None:
    """A reader decides by the head of a module whether to read on. An empty __init__ is no module."""
    poor = []
    for path in python_files("lattice", "scripts", "examples"):
        text = path.read_text(encoding="utf-8")
        head = ast.get_docstring(ast.parse(text)) or ""
        if text.strip() and len(re.findall(r"[.!?:](?:\s|$)", head)) < 2:
            poor.append(str(path.relative_to(ROOT)))
    assert not poor


def test_every_script_has_a_shebang_and_a_word_on_what_it_does() -> None:
    for name in SCRIPTS:
        lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
        assert lines[0] == "#!/usr/bin/env bash", name
        assert lines[1].startswith("# "), name
        assert (ROOT / name).stat().st_mode & 0o111, f"{name} is not executable"


def test_no_module_with_a_name_that_says_nothing() -> None:
    """Such modules become the place where everything ends up."""
    assert not [
        str(path)
        for path in python_files("lattice", "tests", "scripts", "examples")
        if path.stem in VAGUE_NAMES
    ]


def test_only_config_reads_the_environment() -> None:
    """A setting read elsewhere has no default, no check and no documentation."""
    readers = {
        name
        for name, tree in modules()
        for node in ast.walk(tree)
        if (isinstance(node, ast.Attribute) and node.attr in ("environ", "environb", "getenv"))
        or (isinstance(node, ast.ImportFrom) and node.module == "os" and {"environ", "getenv"} & _names(node))
    }
    # The test kit's cluster hands the environment on to the processes that it starts.
    assert readers == {"lattice/config/settings.py", "lattice/testing/cluster.py"}


def test_the_test_kit_is_imported_inside_functions_only() -> None:
    """`lattice status` must not load the simulator."""
    early = [
        name
        for name, tree in modules()
        if not name.startswith("lattice/testing/")
        for node in tree.body
        if isinstance(node, (ast.Import, ast.ImportFrom)) and "testing" in _target(node).split(".")
    ]
    assert not early


def test_pages_that_the_source_names_exist() -> None:
    """A reader who is sent to a page that is not there has nobody to ask."""
    named = {
        page
        for path in files()
        if path.suffix in {".py", ".md"}
        for page in re.findall(r"\bdocs/[\w/-]+\.md\b", path.read_text(encoding="utf-8"))
    }
    assert "docs/reference/wire.md" in named
    assert not sorted(page for page in named if not (ROOT / page).is_file())


def test_no_mocks() -> None:
    """A mock agrees with whatever the test believes; a fake passes the contract of the real thing."""
    users = [
        str(path.relative_to(ROOT))
        for path in python_files("lattice", "tests", "scripts")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, (ast.Import, ast.ImportFrom)) and "mock" in _target(node).split(".")
    ]
    assert not users


def test_locks_carry_hashes_and_no_address() -> None:
    for name in ("requirements.lock", "requirements-dev.lock", "requirements-build.lock"):
        text = (ROOT / name).read_text(encoding="utf-8")
        packages = re.findall(
            r"(?m)^[a-z0-9][a-z0-9._-]*==\S+.*\\\n(?: {4}--hash=sha256:[0-9a-f]{64}(?: \\)?\n)+", text
        )
        assert len(packages) == len(re.findall(r"(?m)^[a-z0-9]", text)) > 0, (
            f"{name}: a package without hashes"
        )
        assert "://" not in text, name
        assert not re.search(r"--(extra-)?index-url|--find-links|--trusted-host", text), name


def test_what_the_code_imports_is_what_the_project_asks_for() -> None:
    """A package that comes along only because another needs it goes when the other changes its mind."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = {re.split(r"[<>=]", each)[0] for each in project["dependencies"]}
    imported = {
        name.partition(".")[0] for _, tree in modules() for node in ast.walk(tree) for name in _imported(node)
    } - {*sys.stdlib_module_names, "lattice"}
    owners = packages_distributions()
    used = {name: {owner.lower().replace("_", "-") for owner in owners[name]} for name in imported}
    assert "httpx" in used
    assert not {name: found for name, found in used.items() if not found & asked}


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.ImportFrom):
        return [] if node.level else [node.module or ""]
    return [alias.name for alias in node.names] if isinstance(node, ast.Import) else []


def _names(node: ast.ImportFrom) -> set[str]:
    return {alias.name for alias in node.names}


def _target(node: ast.Import | ast.ImportFrom) -> str:
    if isinstance(node, ast.ImportFrom):
        return ".".join([node.module or "", *(alias.name for alias in node.names)])
    return ".".join(alias.name for alias in node.names)


@pytest.mark.parametrize("name", ["mutants.py", "fork_mutants.py"])
def test_every_planted_bug_still_has_its_place(name: str) -> None:
    """They are planted by hand and seldom, and one without a place is caught by nothing and nobody."""
    planted = runpy.run_path(str(ROOT / "tests" / "sim" / name))["MUTANTS"]
    assert len(planted) >= 20
    lost = [
        mutant.old
        for mutant in planted
        if (ROOT / "lattice" / mutant.file).read_text(encoding="utf-8").count(mutant.old) != 1
    ]
    assert lost == []
