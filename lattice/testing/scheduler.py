"""A trio run in which everything is decided by one seed: virtual time, order of tasks, pauses.

Separate because it is the only place that reaches into trio: its public interface has no seed for
the order in which tasks of one moment run, and no way to stop some tasks while others go on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import trio
from trio._core import _run
from trio.testing import MockClock

Result = TypeVar("Result")


def run_seeded(seed: int, main: Callable[[], Awaitable[Result]]) -> Result:
    """Run `main` under a virtual clock that jumps whenever nothing is left to do.

    The same seed gives the same order of tasks in every process, whatever PYTHONHASHSEED is. No
    task may use a thread: the clock would jump while it works.
    """
    with _deterministic(seed):
        return trio.run(main, clock=MockClock(autojump_threshold=0), strict_exception_groups=True)


@contextmanager
def _deterministic(seed: int) -> Iterator[None]:
    # The switch that pytest-trio throws for Hypothesis; trio sorts each batch, then shuffles it.
    module: Any = _run
    before, state = module._ALLOW_DETERMINISTIC_SCHEDULING, module._r.getstate()
    module._ALLOW_DETERMINISTIC_SCHEDULING = True
    module._r.seed(seed)
    try:
        yield
    finally:
        module._ALLOW_DETERMINISTIC_SCHEDULING = before
        module._r.setstate(state)


class _RunQueue(deque[trio.lowlevel.Task]):
    """trio's queue of runnable tasks, which keeps back those of frozen nurseries."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen: set[trio.Nursery] = set()
        self.held: list[trio.lowlevel.Task] = []

    def append(self, task: trio.lowlevel.Task) -> None:
        if self.frozen and _is_below(task, self.frozen):
            self.held.append(task)
        else:
            super().append(task)


def _is_below(task: trio.lowlevel.Task | None, nurseries: set[trio.Nursery]) -> bool:
    while task is not None:
        nursery = task.parent_nursery
        if nursery is None:
            return False
        if nursery in nurseries:
            return True
        task = nursery.parent_task
    return False


class Freezer:
    """Stops all tasks below a nursery, as SIGSTOP stops a process: time goes on without them.

    Made inside the run. What a frozen task waits for may happen meanwhile, deadlines included; it
    learns of it all when it is thawed.
    """

    def __init__(self) -> None:
        runner: Any = _run.GLOBAL_RUN_CONTEXT.runner
        self._queue = _RunQueue()
        self._queue.extend(runner.runq)
        runner.runq = self._queue

    def freeze(self, nursery: trio.Nursery) -> None:
        """Stop every task below `nursery`; the caller must not be one of them."""
        queue = self._queue
        queue.frozen.add(nursery)
        runnable = list(queue)
        queue.clear()
        for task in runnable:
            queue.append(task)

    def thaw(self, nursery: trio.Nursery) -> None:
        """Let them go on; thawing what is not frozen does nothing."""
        queue = self._queue
        queue.frozen.discard(nursery)
        held, queue.held = queue.held, []
        for task in held:
            queue.append(task)
