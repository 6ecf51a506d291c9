"""The command line: parse, run one command, turn errors into one line and an exit code.

Separate from the commands so that each is loaded only when it is asked for: `lattice status` imports
neither FastAPI nor libp2p.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

from ..core.errors import LatticeError
from .options import build_parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command of `argv` (the process's arguments, if None); the exit code.

    0 ok, 1 failed, 2 usage, 3 node not reachable, 4 not in sync, 5 not allowed, 78 bad configuration.
    """
    _open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:  # a key may hold what the terminal's encoding lacks
            reconfigure(errors="backslashreplace")
    try:
        args = build_parser().parse_args(argv)
        code: int = args.run(args)
        sys.stdout.flush()
    except LatticeError as error:
        sys.stderr.write(f"lattice: {_one_line(error.message)}\n")
        return error.kind.exit_code
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:  # whoever read our output (head, less) has left
        _drop_output()
        return 1
    except OSError as error:  # a disk that is full under our output, or a file that failed while it was read
        _drop_output()
        place = f" ({error.filename})" if error.filename else ""
        sys.stderr.write(f"lattice: {_one_line(f'{error.strerror or error}{place}')}\n")
        return 1
    return code


def _open_closed_streams() -> None:
    """A shell may have closed any of the three (`>&-`). To read from one is then to find nothing, and no
    file that is opened later gets the number of a stream that others write to."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115  (for good)


def _drop_output() -> None:
    """The interpreter flushes once more at its end, and must not fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _one_line(message: str) -> str:
    from ..core.ticket import hide_tickets
    from .text import printable

    return printable(hide_tickets(" ".join(message.split()))).removesuffix(".")
