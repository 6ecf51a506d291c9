"""Random forked histories, a few hundred of them on every run; `fork_histories.py` plays any number."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from lattice.storage.datadir import open_store
from lattice.storage.port import Store
from tests.core.core_kit import NETWORK
from tests.sim.fork_histories import play

pytestmark = pytest.mark.slow

# Enough of everything, or the histories look at nothing.
LEAST = {"branches": 600, "frozen": 150, "forged seals": 100, "hostile proofs": 100, "newcomers": 150}


# What once failed: two nodes whose waiting entries lowered each other's F by one in every round.
KEPT = (6272,)


def test_forked_histories_end_equal_everywhere() -> None:
    total: Counter[str] = Counter()
    for seed in (*range(250), *KEPT):
        try:
            total += play(seed)
        except AssertionError as error:
            raise AssertionError(f"python tests/sim/fork_histories.py --first {seed} --count 1") from error
    assert {name: total[name] for name, least in LEAST.items() if total[name] < least} == {}


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.mark.parametrize("seed", range(6))
def test_the_same_over_sqlite(seed: int, tmp_path: Path) -> None:
    made: list[Store] = []

    def make() -> Store:
        store = open_store(tmp_path / f"{len(made)}", NETWORK)
        made.append(store)
        return store

    try:
        assert play(seed, make)["histories"] == 1
        by_memory = play(seed)
        assert by_memory["histories"] == 1
    finally:
        for store in made:
            store.close()
