"""Turns of peers at the engine: one after the other, a bounded line, and a rest while others are there."""

from __future__ import annotations

import itertools

import pytest
import trio
import trio.testing

from lattice.core.errors import LatticeError
from lattice.core.limits import TURNS_WAITING_MAX
from lattice.core.messages import Entries, Heads, HeadsFlag, Message, Proof, Roots, WantEntries
from lattice.node.node import _is_work
from lattice.node.turns import REST_S_MAX, REST_SHARE, Turns, cost_s
from tests.core.core_kit import Author, page, put


async def pages(turns: Turns, peer: bytes, count: int, took_s: float) -> list[float]:
    """When each page of a peer that brings one after the other began."""
    began = []
    for _ in range(count):
        turns.note(peer)
        async with turns.take(peer):
            began.append(trio.current_time())
            await trio.sleep(took_s)
    return began


@pytest.mark.parametrize(("took_s", "rest_s"), [(0.1, 0.1 * REST_SHARE), (2.0, REST_S_MAX)])
@pytest.mark.parametrize("alone", [True, False])
async def test_a_peer_rests_between_its_pages_unless_it_is_alone(
    alone: bool, took_s: float, rest_s: float, autojump_clock: trio.testing.MockClock
) -> None:
    turns = Turns()
    async with trio.open_nursery() as nursery:

        async def somebody_else() -> None:
            while True:
                turns.note(b"")
                await trio.sleep(0.5)

        if not alone:
            nursery.start_soon(somebody_else)
        began = await pages(turns, b"a", 4, took_s)
        nursery.cancel_scope.cancel()
    gaps = [later - earlier for earlier, later in itertools.pairwise(began)]
    assert gaps == pytest.approx([took_s + (0 if alone else rest_s)] * 3)


async def test_hints_are_taken_at_once_and_fall_beyond_a_share(
    autojump_clock: trio.testing.MockClock,
) -> None:
    turns = Turns()
    assert all(turns.affords(b"a", 1.0) for _ in range(10)), "who is alone has no share"
    turns.note(b"")
    small = [turns.affords(b"b", 0.0001) for _ in range(1000)]
    assert all(small), "what costs little is never let fall"

    taken = 0
    for _ in range(100):  # ten seconds
        turns.note(b"")
        taken += sum(turns.affords(b"a", 0.01) for _ in range(20))
        await trio.sleep(0.1)
    share = taken * 0.01 / 10
    assert share == pytest.approx(1 / (1 + REST_SHARE), rel=0.2)

    began = trio.current_time()
    async with turns.take(b"a"):  # a round waits for the rest that its sender's gossip has used up
        assert 0 < trio.current_time() - began <= REST_S_MAX + (1 + REST_SHARE) * 0.01
    async with turns.take(b"b"):
        pass


def test_the_cost_of_entries_rises_with_their_number_their_ops_and_their_bytes() -> None:
    author = Author(3)

    def cost(entries: int, ops: int, value: bytes = b"1") -> float:
        return cost_s([page([author.write(*[put(b"k", value)] * ops) for _ in range(entries)])])

    assert cost_s([]) == cost_s([WantEntries(())]) == 0
    assert 0 < cost(1, 1) < cost(1, 256) < cost(1, 256, bytes(500))
    assert cost(300, 1) == pytest.approx(300 * cost(1, 1))
    assert cost_s([Proof(1, b"")]) > cost(1, 1)


async def test_a_line_is_bounded_and_of_one_peer(autojump_clock: trio.testing.MockClock) -> None:
    turns = Turns()
    inside: list[bytes] = []

    async def bring(peer: bytes) -> None:
        async with turns.take(peer):
            assert peer not in inside, "one after the other"
            inside.append(peer)
            await trio.sleep(1)
            inside.remove(peer)

    async with trio.open_nursery() as nursery:
        for _ in range(TURNS_WAITING_MAX + 1):
            nursery.start_soon(bring, b"a")
        await trio.testing.wait_all_tasks_blocked()
        assert turns.is_full(b"a")
        with pytest.raises(LatticeError, match="one after the other") as caught:
            await bring(b"a")
        assert caught.value.code == "too_many"
        nursery.start_soon(bring, b"b")
        await trio.testing.wait_all_tasks_blocked()
        assert sorted(inside) == [b"a", b"b"], "the other does not wait for it"
    await trio.sleep(REST_S_MAX)
    await bring(b"c")
    assert len(turns) == 1, "who has nothing in line and has rested is forgotten"


ROOTS = Roots(bytes(32), bytes(32), 1, 0)


@pytest.mark.parametrize(
    ("message", "waits"),
    [
        (WantEntries(()), True),
        (Proof(1, b""), True),
        (Entries((), ()), True),
        (Heads(1, HeadsFlag.LISTS, ROOTS), True),
        (Heads(1, HeadsFlag(0), ROOTS), False),
        (Heads(1, HeadsFlag.FINAL, ROOTS), False),
    ],
)
def test_what_costs_more_than_a_look_at_the_roots_waits_for_its_turn(message: Message, waits: bool) -> None:
    assert _is_work(message) is waits
