"""Make the virtual environment of this project, install the locked packages, write a first .env file.

Separate from the shell scripts because Unix and Windows then share every step but finding a Python.
It uses the standard library only, since it runs before anything is installed.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHON_MIN = (3, 11)
BUILD = "requirements-build.lock"
RUNTIME = "requirements.lock"
DEVELOPMENT = "requirements-dev.lock"
WHEELS = ROOT / "wheels"
BUNDLE_MARK = "MADE_FOR"  # in wheels/: the kind of machine and the Python that a bundle is made for
EXIT_CONFIG = 78
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class SetupError(Exception):
    """Something that the person at the keyboard has to do; its text says what."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--for", dest="purpose", choices=("run", "dev"), help="prepare the environment")
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv", help="default: .venv")
    parser.add_argument(
        "--env-file-of", metavar="NAME", help="print the path of .env.NAME (empty NAME: .env)"
    )
    arguments = parser.parse_args()
    try:
        if arguments.purpose:
            prepare(arguments.venv, development=arguments.purpose == "dev")
        if arguments.env_file_of is not None:
            print(env_file(arguments.env_file_of))
    except SetupError as error:
        say(str(error))
        return EXIT_CONFIG
    except subprocess.CalledProcessError as error:
        say(f"the installation failed (exit code {error.returncode}); the lines above say why")
        return 1
    return 0


def say(text: str) -> None:
    print(f"lattice: {text}", file=sys.stderr, flush=True)


def prepare(venv: Path, *, development: bool) -> None:
    """Leave a virtual environment that holds exactly what the locks name, and the project.

    Does nothing when its stamp shows that this was done with these locks and this interpreter.
    """
    if sys.version_info < PYTHON_MIN:
        raise SetupError(f"Python 3.11 or newer is needed; this is {sys.version.split()[0]}")
    locks = [BUILD, RUNTIME, *([DEVELOPMENT] if development else [])]
    stamp = venv / f".lattice-{'dev' if development else 'run'}"
    wanted = fingerprint([*locks, "pyproject.toml"])
    venv.parent.mkdir(parents=True, exist_ok=True)
    with one_at_a_time(venv.parent / f"{venv.name}.lock"):
        python = interpreter(venv)
        if (is_stamped(stamp, wanted) or is_made_for_tests(venv)) and works(python):
            return
        if not works(python):
            create(venv)
        install(python, locks)
        if development:
            drop_old_trio_stubs(python)
        stamp.write_text(wanted)


def is_stamped(stamp: Path, wanted: str) -> bool:
    return stamp.is_file() and stamp.read_text() == wanted


def is_made_for_tests(venv: Path) -> bool:
    """An environment that holds what tests need holds all that running takes."""
    stamp = venv / ".lattice-dev"
    return stamp.is_file() and is_stamped(stamp, fingerprint([BUILD, RUNTIME, DEVELOPMENT, "pyproject.toml"]))


def fingerprint(names: list[str]) -> str:
    """Changes whenever a lock, the project's metadata, the interpreter or the place changes."""
    digest = hashlib.sha256(f"{sys.version}\n{ROOT}\n".encode())
    for name in names:
        digest.update(hashlib.sha256((ROOT / name).read_bytes()).digest())
    return digest.hexdigest()


def interpreter(venv: Path) -> Path:
    return venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def works(python: Path) -> bool:
    """Whether the environment is whole: an upgraded or moved interpreter leaves a broken link."""
    if not python.exists():
        return False
    check = f"import pip, sys; sys.exit(sys.version_info[:2] != {tuple(sys.version_info[:2])!r})"
    return subprocess.run([python, "-c", check], capture_output=True, check=False).returncode == 0


def create(venv: Path) -> None:
    for module in ("venv", "ensurepip"):
        # Debian and Ubuntu ship Python without these two.
        probe = [sys.executable, "-c", f"import {module}"]
        if subprocess.run(probe, capture_output=True, check=False).returncode:
            raise SetupError(
                f"this Python ({sys.executable}) has no {module!r} module. On Debian or Ubuntu: "
                f"sudo apt-get install python3-venv"
            )
    if venv.exists():
        shutil.rmtree(venv)
    say(f"making the virtual environment {venv.name}")
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)


def install(python: Path, locks: list[str]) -> None:
    """Build tools first, then all packages without build isolation: nothing unpinned is fetched."""
    if WHEELS.is_dir():
        refuse_foreign_bundle()
    say("installing the locked packages; the first time takes a minute or two")
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "--no-input", "install", "--quiet"]
    if WHEELS.is_dir():  # a bundle for machines without a network, made by scripts/bundle
        pip += ["--no-index", "--find-links", str(WHEELS)]
    hashed = [*pip, "--no-deps", "--require-hashes"]
    # By the environment, since newer pips know only this way of building and drop the option.
    environ = {**os.environ, "PIP_USE_PEP517": "1"}
    subprocess.run([*hashed, "-r", str(ROOT / BUILD)], check=True, env=environ)
    rest = [option for name in locks if name != BUILD for option in ("-r", str(ROOT / name))]
    subprocess.run([*hashed, "--no-build-isolation", *rest], check=True, env=environ)
    project = ["--no-deps", "--no-build-isolation", "--editable", str(ROOT)]
    subprocess.run([*pip, *project], check=True, env=environ)


def refuse_foreign_bundle() -> None:
    """pip would only say that it finds no matching version of some package."""
    mark = WHEELS / BUNDLE_MARK
    ours = f"{bundle_name()} {sys.version_info[0]}.{sys.version_info[1]}"
    made_for = mark.read_text(encoding="utf-8").strip() if mark.is_file() else ours
    if made_for != ours:
        name, _, python = ours.partition(" ")
        raise SetupError(
            f"the bundle in wheels/ is for {made_for}, and this is {ours}: make one with `./scripts/bundle "
            f"--platform {name} --python {python}`, or name another Python with PYTHON=/path/to/python3"
        )


def bundle_name() -> str:
    """What `scripts/bundle --platform` calls this kind of machine."""
    system = {"Darwin": "macos"}.get(platform.system(), platform.system().lower())
    return f"{system}-{platform.machine() if system == 'macos' else platform.machine().lower()}"


def drop_old_trio_stubs(python: Path) -> None:
    """trio-typing, which libp2p needs at run time, also installs stubs of an old trio, and a type
    checker prefers stubs to the types that trio itself now carries."""
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    found = subprocess.run([str(python), "-c", where], check=True, capture_output=True, text=True)
    shutil.rmtree(Path(found.stdout.strip()) / "trio-stubs", ignore_errors=True)


def env_file(name: str, values: Mapping[str, str] | None = None) -> Path:
    """The path of .env.NAME, or of .env for an empty name; made from .env.example if missing.

    A new file names the node, and holds `values` (by LATTICE_* name) in place of the defaults.
    """
    if name and not NAME.fullmatch(name):
        raise SetupError(f"{name!r} is no name for a node: letters, digits, dots, dashes, underscores")
    if name == "example":
        raise SetupError("the name 'example' would overwrite .env.example: choose another")
    path = ROOT / (f".env.{name}" if name else ".env")
    if path.exists():
        return path
    text = (ROOT / ".env.example").read_text(encoding="utf-8")
    for setting, value in {**({"LATTICE_NODE_NAME": name} if name else {}), **(values or {})}.items():
        text, found = re.subn(rf"(?m)^#?{setting}=.*$", f"{setting}={value}", text, count=1)
        assert found, f"{setting} does not stand in .env.example"
    path.touch(mode=0o600)  # a ticket may come to stand in it
    path.write_text(text, encoding="utf-8")
    say(f"made {path.name} from .env.example")
    return path


@contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Two launchers started together must not both fill one environment."""
    with path.open("a") as lock:
        if os.name == "nt":
            import msvcrt

            msvcrt.locking(lock.fileno(), msvcrt.LK_LOCK, 1)  # type: ignore[attr-defined,unused-ignore]
        else:
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    sys.exit(main())
