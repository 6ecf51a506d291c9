"""Fixtures of the tests in namespaces: skipped where none can be made; long ones run side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

import pytest

from tests.chaos import netns
from tests.chaos.scene import Measured

Scenario = Callable[[Path], Measured]
Outcomes = Callable[[Scenario], Measured]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    wanted = [item for item in items if item.get_closest_marker("netns")]
    reason = netns.missing() if wanted else None
    if reason is not None:
        for item in wanted:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def measured(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outcomes]:
    """Hands out what a scenario measured, or raises what it raised.

    Scenarios mostly wait for real minutes to pass. So those that are selected (a module names its own as
    SCENARIOS) run side by side, each in a thread: all of the first test's WAVE begin when it asks, and the
    next wave when that is over, since more nodes at a time than that are late and not only busy.
    """
    modules = dict.fromkeys(getattr(item, "module", None) for item in request.session.items)
    waves: dict[int, list[Scenario]] = {}
    for module in modules:
        waves.setdefault(getattr(module, "WAVE", 1), []).extend(getattr(module, "SCENARIOS", ()))
    running: dict[Scenario, Future[Measured]] = {}
    with ThreadPoolExecutor(max_workers=max(1, *map(len, waves.values()))) as pool:

        def outcome(scenario: Scenario) -> Measured:
            if scenario not in running:
                wait(running.values())
                wave = next(wave for wave in waves.values() if scenario in wave)
                for each in wave:
                    running[each] = pool.submit(each, tmp_path_factory.mktemp(each.__name__))
            return running[scenario].result()

        yield outcome
