"""The hybrid logical clock: rising, carrying, and deaf to clocks that are too far ahead."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lattice.core.clock import HybridClock
from lattice.core.limits import CLOCK_AHEAD_MS_MAX

NOW = 1_700_000_000_000


def test_a_new_clock_is_the_wall_clock() -> None:
    assert HybridClock().next(NOW) == NOW << 16


def test_within_a_millisecond_the_count_rises_and_carries() -> None:
    clock = HybridClock((NOW << 16) + 0xFFFE)
    assert clock.next(NOW) == (NOW << 16) + 0xFFFF
    assert clock.next(NOW) == (NOW + 1) << 16
    assert clock.next(NOW) == ((NOW + 1) << 16) + 1


def test_a_wall_clock_that_steps_back_does_not_take_it_along() -> None:
    clock = HybridClock()
    first = clock.next(NOW)
    assert clock.next(NOW - 86_400_000) == first + 1
    assert clock.next(-5) == first + 2


def test_what_was_seen_is_passed() -> None:
    clock = HybridClock()
    seen = (NOW + 1000 << 16) + 7
    clock.seen(seen, NOW)
    assert clock.next(NOW) == seen + 1
    assert clock.skewed == 0


def test_a_clock_too_far_ahead_is_counted_and_does_not_advance_ours() -> None:
    clock = HybridClock()
    edge = NOW + CLOCK_AHEAD_MS_MAX
    clock.seen((edge + 1) << 16, NOW)
    assert (clock.last, clock.skewed) == (0, 1)
    clock.seen(2**64 - 1, NOW)
    assert (clock.last, clock.skewed) == (0, 2)
    clock.seen((edge << 16) + 0xFFFF, NOW)
    assert (clock.last, clock.skewed) == ((edge << 16) + 0xFFFF, 2)


def test_an_older_clock_changes_nothing() -> None:
    clock = HybridClock(NOW << 16)
    clock.seen(0, NOW)
    assert clock.last == NOW << 16


@given(st.lists(st.tuples(st.booleans(), st.integers(-10, 2**50), st.integers(0, 2**64 - 1)), max_size=30))
def test_it_always_fits_and_rises_until_its_end(steps: list[tuple[bool, int, int]]) -> None:
    clock = HybridClock()
    for writes, now_ms, remote in steps:
        before = clock.last
        if writes:
            assert clock.next(now_ms) == clock.last
            assert clock.last > before or clock.last == 2**64 - 1
        else:
            clock.seen(remote, now_ms)
        assert before <= clock.last < 2**64
