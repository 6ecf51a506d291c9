"""`lattice dev N`: a cluster of real nodes on this machine, with a table of how they stand.

Separate because it starts processes and watches them until Ctrl-C, where every other command asks
once; and because it borrows the test kit's cluster, which nothing else of the product may load.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Final

from ..config import absolute
from ..core.errors import ConfigError, LatticeError
from ..schemas import Status
from .text import printable, say, table, warn

if TYPE_CHECKING:
    from ..testing.cluster import LocalNode

_REDRAW_S: Final = 1.0
_PLAIN_S: Final = 5.0
# The roots come last: on a narrow terminal a shorter prefix of them says the same.
_HEAD: Final = ("NAME", "ADDRESS", "MODE", "ENTRIES", "HEARD", "IN SYNC", "STATE ROOT", "LOG ROOT")


class _EndedError(Exception):
    """Ctrl-C or SIGTERM: time to end, in order."""


def dev(args: argparse.Namespace) -> int:
    """0 after Ctrl-C or SIGTERM, 1 when a node does not start or ends by itself."""
    from ..testing.cluster import ClusterError, make_nodes, running

    directory = _directory(args.dir)
    # What somebody named is theirs; and after a failure the logs are wanted.
    removable = args.dir is None and not args.keep
    code = 0
    try:
        with _ended_by_signals():
            names = [f"node{letter}" for letter in "ABCDEFGHI"[: args.count]]
            say(f"Starting {args.count} nodes in {printable(str(directory))} ...")
            nodes = make_nodes(directory, names)
            for node in nodes:
                _write_env(node)
            with running(nodes):
                _introduce(nodes)
                _watch(nodes)
    except _EndedError:
        say("\nAll nodes have ended.")
    except ClusterError as error:
        warn(str(error))
        code, removable = 1, False
    finally:
        if removable:
            shutil.rmtree(directory, ignore_errors=True)
        else:
            say(f"Kept {printable(str(directory))}; each node starts again with its env file.")
    return code


def _directory(given: str | None) -> Path:
    """Where the nodes live, made. Raises LatticeError for one that holds something."""
    here = absolute(Path())  # each node starts here as well
    if given is None:
        return Path(tempfile.mkdtemp(prefix="lattice-dev-"))
    path = here / given
    try:
        path.mkdir(parents=True, exist_ok=True)
        if any(path.iterdir()):
            raise ConfigError(
                f"{path} is not empty; name another --dir, or start its nodes with their env files"
            )
    except OSError as error:
        raise ConfigError(f"--dir {path} cannot be used: {error.strerror or error}") from error
    return path


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """The first Ctrl-C or SIGTERM ends the block by _EndedError. A further one changes nothing: the
    nodes are being stopped, and an impatient key must not leave one behind."""

    def end(number: int, frame: FrameType | None) -> None:
        for each in handlers:
            signal.signal(each, signal.SIG_IGN)
        raise _EndedError

    handlers = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, before in handlers.items():
            signal.signal(number, before)


def _write_env(node: LocalNode) -> None:
    """The node's settings as a file, so that every other command can be pointed at it."""
    lines = [f"{name}={value}\n" for name, value in node.settings().items()]
    node.env_file.write_text("".join(lines), encoding="utf-8")


def _introduce(nodes: Sequence[LocalNode]) -> None:
    rows = [(node.name, node.url, str(node.env_file)) for node in nodes]
    say(table([("NAME", "URL", "ENV FILE"), *rows]))
    say(f"For example: lattice put --url {nodes[0].url} greeting '\"hello\"'")
    say(f"             lattice get --url {nodes[-1].url} greeting")
    say(f"             lattice status --env-file {nodes[0].env_file}")
    say("Ctrl-C ends all nodes.\n")
    sys.stdout.flush()


def _watch(nodes: Sequence[LocalNode]) -> None:
    """Show the cluster until it is ended. Raises ClusterError when a node ends by itself."""
    from ..testing.cluster import ClusterError

    is_terminal = sys.stdout.isatty()
    drawn = 0
    shown = ""
    shown_at = 0.0
    while True:
        for node in nodes:
            if node.process is not None and node.process.poll() is not None:
                raise ClusterError(
                    f"{node.name} ended by itself with {node.process.returncode}:\n{node.last_words()}"
                )
        text = table([_HEAD, *(_row(node, len(nodes)) for node in nodes)])
        if is_terminal:
            lines = _fitted(text)
            # Drawn over and not wiped first, which would flicker.
            up = f"\x1b[{drawn}F" if drawn else ""
            sys.stdout.write(up + "".join(f"{line}\x1b[K\n" for line in lines) + "\x1b[J")
            drawn = len(lines)
        elif text != shown and time.monotonic() - shown_at >= _PLAIN_S:
            say(text)
            shown, shown_at = text, time.monotonic()
        sys.stdout.flush()
        time.sleep(_REDRAW_S)


def _fitted(text: str) -> list[str]:
    """The lines, cut to the terminal: one that wraps or scrolls would break the drawing over."""
    size = shutil.get_terminal_size()
    return [line[: size.columns] for line in text.split("\n")][: max(1, size.lines - 1)]


def _row(node: LocalNode, count: int) -> tuple[str, ...]:
    address = node.url.removeprefix("http://")
    try:
        status = node.status()
    except LatticeError as error:
        return (node.name, address, f"no answer ({error.code})", *["-"] * (len(_HEAD) - 3))
    return (
        node.name,
        address,
        status.sync_mode,
        str(status.entry_count),
        f"{status.peer_count} of {count - 1}",
        _in_sync(status, count),
        status.merkle_root[:12],
        status.log_root[:12],
    )


def _in_sync(status: Status, count: int) -> str:
    """With how many others heads and both roots were equal, and their last word still is."""
    synced = {one.peer for one in status.synced}
    equal = sum(peer.heads_equal and peer.id in synced for peer in status.peers)
    return "yes" if equal == count - 1 else f"with {equal} of {count - 1}"
