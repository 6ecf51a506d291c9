"""`python wounded_node.py COMMAND...`: the lattice command that follows, in this process, with a libp2p host
that crashes when the process gets a signal.

Separate because a host can only be crashed from inside the process that it lives in, and the rest of
the node, its listeners and its disk have to be the real ones around it.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import trio

from lattice.cli.main import main
from lattice.transport.p2p.lung import Libp2pLung


async def _raises() -> None:
    raise RuntimeError("raised on purpose")


def in_the_swarm(life: Any) -> None:
    """A task of libp2p's network raises."""
    life.host.network.manager._task_nursery.start_soon(_raises)


def in_pubsub(life: Any) -> None:
    """A task of libp2p's gossip raises."""
    life.host.pubsub.manager._task_nursery.start_soon(_raises)


def cancelled(life: Any) -> None:
    """The host is cancelled from inside, without an error."""
    life._nursery.cancel_scope.cancel()


CRASHES: dict[signal.Signals, Callable[[Any], None]] = {
    signal.SIGUSR1: in_the_swarm,
    signal.SIGUSR2: in_pubsub,
    signal.SIGHUP: cancelled,
}


class _Wounds:
    """Remembers the lung of this process, and does to it what a signal asks for."""

    def __init__(self) -> None:
        self._lung: Libp2pLung | None = None
        self._loop: trio.lowlevel.TrioToken | None = None

    def install(self) -> None:
        run = Libp2pLung.run

        async def remembered(lung: Libp2pLung, *arguments: Any, **named: Any) -> None:
            self._lung, self._loop = lung, trio.lowlevel.current_trio_token()
            await run(lung, *arguments, **named)

        Libp2pLung.run = remembered  # type: ignore[method-assign]
        for each in CRASHES:
            signal.signal(each, self._hit)

    def _hit(self, number: int, frame: FrameType | None) -> None:
        if self._lung is not None and self._lung._life is not None and self._loop is not None:
            self._loop.run_sync_soon(CRASHES[signal.Signals(number)], self._lung._life)


if __name__ == "__main__":
    # What follows is how a node is started: an interpreter, `-m lattice`, and the command.
    sys.argv = ["lattice", *sys.argv[4:]]
    _Wounds().install()
    sys.exit(main())
