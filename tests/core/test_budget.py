"""Budgets: how much of a peer is verified for nothing, how often it is asked in vain, and what ends that."""

from __future__ import annotations

from lattice.core.budget import Budgets
from lattice.core.limits import (
    BACKOFF_ROUNDS_FIRST_S,
    BACKOFF_ROUNDS_MAX_S,
    BUDGET_BYTES,
    BUDGET_BYTES_PER_S,
    BUDGETS_MAX,
    FRUITLESS_ROUNDS_MAX,
    MIB,
    REFUSAL_BYTES_MIN,
)


def fruitless(budgets: Budgets, times: int, now: float = 0.0) -> list[bool]:
    return [budgets.round_ended("a", "p2p", fruitless=True, now=now) for _ in range(times)]


def test_a_budget_is_used_up_once_and_paid_off_with_time() -> None:
    budgets = Budgets()
    told = [budgets.charge("a", "p2p", MIB, 100.0) for _ in range(12)]
    assert told.count(True) == 1
    assert told.index(True) == BUDGET_BYTES // MIB - 1
    assert budgets.is_spent("a", "p2p", 100.0)
    free_at = 100.0 + 4 * MIB / BUDGET_BYTES_PER_S  # it owes 12 MiB, and is heard again below 8
    assert budgets.is_spent("a", "p2p", free_at - 1)
    assert not budgets.is_spent("a", "p2p", free_at + 1)
    assert budgets.charge("a", "p2p", MIB, free_at + 1)
    assert budgets.charged == {"p2p": 13 * MIB}


def test_a_debt_is_no_deeper_than_twice_the_budget() -> None:
    budgets = Budgets()
    for _ in range(1000):
        budgets.charge("a", "p2p", MIB, 0.0)
    assert not budgets.is_spent("a", "p2p", BUDGET_BYTES / BUDGET_BYTES_PER_S + 1)


def test_other_peers_and_other_lungs_keep_theirs() -> None:
    budgets = Budgets()
    budgets.charge("a", "p2p", BUDGET_BYTES, 0.0)
    assert budgets.waiting(0.0) == [("a", "p2p")]
    assert not budgets.is_spent("a", "http", 0.0)
    assert not budgets.is_spent("b", "p2p", 0.0)


def test_small_refusals_count_as_the_check_that_they_cost() -> None:
    budgets = Budgets()
    needed = BUDGET_BYTES // REFUSAL_BYTES_MIN
    told = [budgets.charge("a", "p2p", 1, 0.0) for _ in range(needed)]
    assert told == [False] * (needed - 1) + [True]


def test_a_clock_that_stands_or_goes_back_forgives_nothing() -> None:
    budgets = Budgets()
    budgets.charge("a", "p2p", BUDGET_BYTES, 50.0)
    assert budgets.is_spent("a", "p2p", 50.0)
    assert budgets.is_spent("a", "p2p", 10.0)
    assert budgets.is_spent("a", "p2p", 50.0)


def test_three_fruitless_rounds_lead_to_back_off_that_doubles() -> None:
    budgets = Budgets()
    assert fruitless(budgets, FRUITLESS_ROUNDS_MAX) == [False] * (FRUITLESS_ROUNDS_MAX - 1) + [True]
    waits = [BACKOFF_ROUNDS_FIRST_S]
    while waits[-1] < BACKOFF_ROUNDS_MAX_S:
        waits.append(min(waits[-1] * 2, BACKOFF_ROUNDS_MAX_S))
    for wait_s in [*waits, BACKOFF_ROUNDS_MAX_S]:
        assert not budgets.may_open("a", "p2p", wait_s - 0.1)
        assert budgets.may_open("a", "p2p", wait_s)
        fruitless(budgets, 1)
    assert budgets.may_open("b", "p2p", 0.0)


def test_a_round_of_use_ends_the_back_off_and_the_row() -> None:
    budgets = Budgets()
    fruitless(budgets, FRUITLESS_ROUNDS_MAX)
    assert not budgets.round_ended("a", "p2p", fruitless=False, now=1.0)
    assert budgets.may_open("a", "p2p", 1.0)
    assert not any(fruitless(budgets, FRUITLESS_ROUNDS_MAX - 1))


def test_a_good_round_that_the_peer_opened_ends_the_wait_and_forgives_nothing() -> None:
    budgets = Budgets()
    fruitless(budgets, FRUITLESS_ROUNDS_MAX)
    budgets.round_served("a", "p2p")
    assert budgets.may_open("a", "p2p", 0.0)
    assert fruitless(budgets, 1) == [True]
    assert not budgets.may_open("a", "p2p", 2 * BACKOFF_ROUNDS_FIRST_S - 0.1)


def test_the_number_of_budgets_is_bounded_and_asking_makes_none() -> None:
    budgets = Budgets()
    for number in range(BUDGETS_MAX + 10):
        assert not budgets.is_spent(f"asked {number}", "p2p", 0.0)
        assert budgets.may_open(f"asked {number}", "p2p", 0.0)
    assert len(budgets) == 0
    for number in range(BUDGETS_MAX + 10):
        budgets.charge(str(number), "p2p", 1, 0.0)
    assert len(budgets) == BUDGETS_MAX
