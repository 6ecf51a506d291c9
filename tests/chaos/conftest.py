"""Fixtures of the tests in namespaces: skipped where none can be made; long ones run side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.chaos import netns

Measured = dict[str, float]
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

    Scenarios mostly wait for real minutes to pass. So all that are selected (a module names its own
    as SCENARIO) begin together, each in a thread, with the first test that asks.
    """
    modules = dict.fromkeys(getattr(item, "module", None) for item in request.session.items)
    scenarios: list[Scenario] = [module.SCENARIO for module in modules if hasattr(module, "SCENARIO")]
    with ThreadPoolExecutor(max_workers=max(1, len(scenarios))) as pool:
        running: dict[Scenario, Future[Measured]] = {
            scenario: pool.submit(scenario, tmp_path_factory.mktemp(scenario.__name__))
            for scenario in scenarios
        }
        yield lambda scenario: running[scenario].result()
