"""`lattice logs`: the end of the node's log file, and what is added to it.

Separate because following a file that is rotated is a small machine of its own.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

from ..core.errors import LatticeError
from .reach import load_settings
from .text import printable, say

_STEP_S: Final = 0.25
_BLOCK_BYTES: Final = 65_536


def logs(args: argparse.Namespace) -> int:
    settings = load_settings(args)
    path = settings.log_dir / f"{settings.node_name}.log"
    try:
        file = path.open("rb")
    except FileNotFoundError as error:
        raise LatticeError(
            "not_found", f"there is no log {path}; has `lattice start` run with these settings?"
        ) from error
    except OSError as error:
        raise LatticeError("forbidden", f"cannot read {path}: {error.strerror}") from error
    with file:
        for line in last_lines(file, args.lines):
            _show(line)
        if not args.follow:
            return 0
        try:
            for line in follow(path, file):
                _show(line)
        except KeyboardInterrupt:  # how one leaves it
            return 0
    return 0


def last_lines(file: BinaryIO, count: int) -> list[bytes]:
    """The last `count` lines; the file stands at its end afterwards."""
    end = file.seek(0, os.SEEK_END)
    found = b""
    start = end
    while start > 0 and found.count(b"\n") <= count:
        size = min(_BLOCK_BYTES, start)
        start -= size
        file.seek(start)
        found = file.read(size) + found
    file.seek(end)
    return list(deque(found.splitlines(), count))


def follow(path: Path, file: BinaryIO) -> Iterator[bytes]:
    """Lines as they are added, for ever; when the file is set aside, on with the new one."""
    current = file
    rest = b""
    try:
        while True:
            block = current.read(_BLOCK_BYTES)
            if block:
                *lines, rest = (rest + block).split(b"\n")
                yield from lines
                continue
            fresh = _replaced(path, current)
            if fresh is None:
                time.sleep(_STEP_S)
                continue
            if current is not file:
                current.close()
            current = fresh
    finally:
        if current is not file:
            current.close()


def _replaced(path: Path, current: BinaryIO) -> BinaryIO | None:
    """The new file under the name, if the one that is read was set aside; else None."""
    try:
        named, held = path.stat(), os.fstat(current.fileno())
        if (named.st_ino, named.st_dev) == (held.st_ino, held.st_dev):
            if named.st_size < current.tell():  # cut in place
                current.seek(0)
            return None
        return path.open("rb")
    except FileNotFoundError:  # between two names
        return None


def _show(line: bytes) -> None:
    say(printable(line.decode("utf-8", "replace")))
    sys.stdout.flush()  # whoever pipes a log wants each line when it is written
