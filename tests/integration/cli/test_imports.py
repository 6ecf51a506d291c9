"""What commands load: those that only talk to a node start fast because they load little."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.cli.cli_kit import ServedNode, write_env

# Imported names are printed after the command has run, by the same process.
_PROBE = """
import sys
from lattice.cli.main import main
code = main(sys.argv[1:])
loaded = {name if name.startswith("lattice.") else name.partition(".")[0] for name in sys.modules}
print("LOADED", code, *sorted(loaded))
"""

HEAVY = {"fastapi", "starlette", "pydantic", "hypercorn", "libp2p", "multiaddr", "sqlite3"}
# A name that every command loads: without it the probe would pass because it looked at nothing.
PRESENT = {"httpx", "lattice.cli.reach"}


def loaded_by(*arguments: str) -> tuple[int, set[str]]:
    done = subprocess.run(
        [sys.executable, "-c", _PROBE, *arguments], capture_output=True, text=True, timeout=60, check=True
    )
    code, *names = done.stdout.rpartition("LOADED ")[2].split()
    return int(code), set(names)


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        ("status",),
        ("peers", "--json"),
        ("id",),
        ("switch", "auto"),
        ("put", "k", "1"),
        ("get", "k"),
        ("delete", "k"),
        ("keys",),
    ],
    ids=lambda command: command[0],
)
def test_a_command_that_talks_to_a_node_loads_no_node(
    command: tuple[str, ...], served: ServedNode, tmp_path: Path
) -> None:
    async def prepare() -> None:
        from tests.integration.api.api_kit import put_raw

        await put_raw(served.node, b"k", b"1")

    served.call(prepare)
    env_file = write_env(tmp_path, API_BIND=served.bind)
    code, names = loaded_by(*command, "--env-file", str(env_file))
    assert code == 0
    assert names >= PRESENT
    assert not names & HEAVY
    assert not {
        name for name in names if name.startswith(("lattice.api", "lattice.node", "lattice.transport"))
    }


@pytest.mark.slow
def test_following_events_loads_no_node(served: ServedNode, tmp_path: Path) -> None:
    """It would go on for ever, so it is refused: by then everything is loaded."""
    env_file = write_env(tmp_path, API_BIND=served.bind)
    code, names = loaded_by("events", "--after", "nonsense", "--env-file", str(env_file))
    assert code == 1
    assert names >= PRESENT | {"lattice.client.events"}
    assert not names & HEAVY
