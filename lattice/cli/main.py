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
    except BrokenPipeError:
        # Whoever read our output (head, less) has left. The interpreter flushes once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return code


def _one_line(message: str) -> str:
    from ..core.ticket import hide_tickets
    from .text import printable

    return printable(hide_tickets(" ".join(message.split()))).removesuffix(".")
