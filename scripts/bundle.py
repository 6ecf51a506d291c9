"""Pack the project and its locked packages, for this kind of machine or a named one, into one archive.

Separate from the bootstrap, which installs from what is made here: this needs a network and the
packages of the environment, that one neither.
"""

from __future__ import annotations

import argparse
import platform
import re
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bootstrap import BUILD, BUNDLE_MARK, EXIT_CONFIG, ROOT, RUNTIME, bundle_name, say
from packaging.markers import Marker

# What a machine needs to install and run; named, so that no ticket or key that lies about is packed.
PACKED = (
    "lattice", "scripts", "docs", "logs/README.md", "launch_lattice.sh", "launch_lattice_v2.bat",
    "pyproject.toml", "requirements.lock", "requirements-build.lock", "requirements-dev.lock", ".env.example",
    "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "LICENSE",
)  # fmt: skip
LEFT_OUT = ("__pycache__", ".pyc")


@dataclass(frozen=True)
class Target:
    """A kind of machine: what its Python calls itself, and the wheels it takes, best first."""

    system: str
    machine: str
    sys_platform: str
    os_name: str
    tags: tuple[str, ...]


def _linux(machine: str) -> Target:
    # Nothing newer than RHEL 8 and Debian 10 have: a machine without a network is seldom a young one.
    glibc = [f"manylinux_2_{minor}_{machine}" for minor in range(28, 16, -1)]
    tags = (*glibc, f"manylinux2014_{machine}", f"manylinux_2_12_{machine}", f"manylinux2010_{machine}")
    return Target(
        "Linux", machine, "linux", "posix", (*tags, f"manylinux_2_5_{machine}", f"manylinux1_{machine}")
    )


def _macos(machine: str) -> Target:
    tags = [f"macosx_{major}_0_{arch}" for major in range(14, 10, -1) for arch in (machine, "universal2")]
    if machine == "x86_64":
        tags += [
            f"macosx_10_{minor}_{arch}" for minor in range(15, 8, -1) for arch in (machine, "universal2")
        ]
    return Target("Darwin", machine, "darwin", "posix", tuple(tags))


TARGETS = {
    "linux-x86_64": _linux("x86_64"),
    "linux-aarch64": _linux("aarch64"),
    "macos-arm64": _macos("arm64"),
    "macos-x86_64": _macos("x86_64"),
    "windows-amd64": Target("Windows", "AMD64", "win32", "nt", ("win_amd64",)),
}


class BundleError(Exception):
    """Something that the person at the keyboard has to do; its text says what."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--platform", choices=sorted(TARGETS), help="default: this machine's kind")
    parser.add_argument("--python", default=".".join(platform.python_version_tuple()[:2]), metavar="3.11")
    parser.add_argument("--output", type=Path, default=ROOT / "dist", help="directory; default: dist")
    arguments = parser.parse_args()
    try:
        print(bundle(arguments.platform, arguments.python, arguments.output.absolute()))
    except BundleError as error:
        say(str(error))
        return EXIT_CONFIG
    except subprocess.CalledProcessError as error:
        say(f"the download failed (exit code {error.returncode}); the lines above say why")
        return 1
    return 0


def bundle(platform_name: str | None, python: str, output: Path) -> Path:
    """Make the archive; its path. Raises BundleError or CalledProcessError, and then leaves nothing."""
    if not re.fullmatch(r"3\.\d+", python) or int(python.partition(".")[2]) < 11:
        raise BundleError(f"--python {python}: write the version of the machine's Python, 3.11 or newer")
    name = platform_name or bundle_name()
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".bundle-", dir=output) as scratch:
        wheels = Path(scratch) / "wheels"
        wheels.mkdir()
        download(name if platform_name else None, python, wheels, Path(scratch))
        refuse_what_must_be_compiled(wheels, name, Path(scratch))
        (wheels / BUNDLE_MARK).write_text(f"{name} {python}\n", encoding="utf-8")
        version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
        top = f"lattice-{version}"
        suffix = "zip" if name.startswith("windows") else "tar.gz"
        part = Path(scratch) / f"{top}-{name}-py{python}.{suffix}"
        pack(part, top, wheels)
        return part.replace(output / part.name)


def download(name: str | None, python: str, wheels: Path, scratch: Path) -> None:
    """The locked packages, each checked by its hash: wheels, and sources where there is nothing else."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "download", "--quiet"]
    pip += ["--no-deps", "--require-hashes", "--no-build-isolation", "--prefer-binary", "--dest", str(wheels)]
    pip += ["--python-version", python, "--implementation", "cp"]
    if name is not None:
        pip += [option for tag in (*TARGETS[name].tags, "any") for option in ("--platform", tag)]
    for lock in (BUILD, RUNTIME):
        chosen = scratch / lock
        text = (ROOT / lock).read_text(encoding="utf-8")
        chosen.write_text(select(text, marker_environment(name, python)), encoding="utf-8")
        subprocess.run([*pip, "--requirement", str(chosen)], check=True)


def select(lock: str, environment: dict[str, str]) -> str:
    """The packages of a lock that this environment takes: pip itself would judge by its own machine."""
    kept = []
    for block in re.split(r"(?m)^(?=[a-z0-9])", lock):
        head, continued, rest = block.partition(" \\\n")
        requirement, semicolon, marker = head.partition(";")
        if semicolon and not Marker(marker).evaluate(environment):
            continue
        kept.append(requirement.rstrip() + continued + rest if semicolon else block)
    return "".join(kept)


def marker_environment(name: str | None, python: str) -> dict[str, str]:
    """What the markers of PEP 508 ask about; of this machine for None."""
    found = {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
    }
    if name is not None:
        target = TARGETS[name]
        found |= {
            "sys_platform": target.sys_platform,
            "os_name": target.os_name,
            "platform_system": target.system,
            "platform_machine": target.machine,
        }
    return found


def refuse_what_must_be_compiled(wheels: Path, name: str, scratch: Path) -> None:
    """A source package travels as it is, since its hash is locked. It must build without a compiler."""
    built = scratch / "built"
    sources = sorted(path for path in wheels.iterdir() if path.suffix != ".whl")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet", "--no-deps"]
    pip += ["--no-build-isolation", "--no-index", "--wheel-dir", str(built)]
    if sources:
        subprocess.run([*pip, *map(str, sources)], check=True)
    native = [path.name for path in built.glob("*.whl") if not path.name.endswith("-none-any.whl")]
    if native:
        raise BundleError(
            f"there is no wheel for {name} of {', '.join(sorted(native))}: choose a platform or a Python "
            "that these packages support"
        )


def pack(archive: Path, top: str, wheels: Path) -> None:
    with_wheels = [(path, f"wheels/{path.name}") for path in sorted(wheels.iterdir())]
    files = [*((path, str(path.relative_to(ROOT).as_posix())) for path in project_files()), *with_wheels]
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as zipped:
            for path, name in files:
                zipped.write(path, f"{top}/{name}")
        return
    with tarfile.open(archive, "w:gz") as packed:
        for path, name in files:
            packed.add(path, f"{top}/{name}", filter=_anonymous)


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Who packed it is nobody's business, and not an owner on the other machine."""
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


def project_files() -> Iterator[Path]:
    for name in PACKED:
        found = ROOT / name
        for path in sorted(found.rglob("*")) if found.is_dir() else [found]:
            if path.is_file() and not any(part.endswith(LEFT_OUT) for part in path.relative_to(ROOT).parts):
                yield path


if __name__ == "__main__":
    sys.exit(main())
