"""Stopping a node from outside: who holds the data directory, a signal, and waiting for its end.

Separate because the lock, and not a process number in a file, says whether a node is running: the
number alone may long belong to another program.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Final

from ..core.errors import LatticeError
from ..storage.datadir import LOCK_FILE

_STEP_S: Final = 0.05


def stop_node(data_dir: Path, *, wait_s: float) -> int:
    """Ask the process that holds the data directory to end, and wait for it; its number.

    Raises `unreachable` when no node runs there, `forbidden` when it is another user's, and
    `not_ready` when it has not ended in time.
    """
    path = data_dir / LOCK_FILE
    pid = _holder(path)
    if pid is None or not _is_held(path):
        raise LatticeError("unreachable", f"no node is running in {data_dir}; nothing to stop")
    try:
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        pass  # it has just ended by itself
    except PermissionError as error:
        raise LatticeError(
            "forbidden", f"process {pid} belongs to another user; stop it as that user"
        ) from error
    deadline = time.monotonic() + wait_s
    while _is_held(path):
        if time.monotonic() > deadline:
            raise LatticeError(
                "not_ready",
                f"process {pid} has not ended within {wait_s:g} s; its log says what it waits for",
            )
        time.sleep(_STEP_S)
    return pid


def _holder(path: Path) -> int | None:
    """The number of the process that last took the lock."""
    try:
        text = path.read_text(encoding="ascii").strip()
    except (FileNotFoundError, UnicodeDecodeError):
        return None
    except OSError as error:
        raise LatticeError("forbidden", f"cannot read {path}: {error.strerror}") from error
    return int(text) if text.isdigit() and int(text) > 1 else None


if sys.platform == "win32":
    from ..storage.datadir import DirectoryLock

    def _is_held(path: Path) -> bool:
        try:
            DirectoryLock(path.parent).release()
        except LatticeError:
            return True
        return False
else:
    import fcntl

    def _is_held(path: Path) -> bool:
        """Whether a process holds the lock. Asked with a shared lock, given back at once."""
        fd = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(fd)
        return False
