"""One member that brings pages over P2P as fast as it can. Forged ones are charged to it until it is no
longer listened to, valid ones wait for its turn, and an honest pair goes on. The ratio of the honest pair's
speed with and without it is printed (`pytest -s`)."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
import trio

from lattice.core.identity import NodeKey, public_key_of
from lattice.core.limits import BUDGET_BYTES
from lattice.core.messages import Entries
from lattice.testing.cluster import LocalNode, roots_equal, wait_for

from .http_kit import Member, Rise, Scene, forged
from .p2p_kit import CHARGED, CUT, MESSAGES, REFUSED, REQUEST, Closed, p2p_scene, raw_peer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

MEASURED_S = 4.0
PAGES, ENTRIES_A_PAGE = 50, 300


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with p2p_scene(tmp_path_factory.mktemp("budget")) as found:
        yield found


def held_of(node: LocalNode, author: str) -> int:
    return sum(head.seq + 1 for head in node.state().heads if head.author == author)


def honest_speed(made: Scene, prefix: str) -> float:
    """Entries a second that were written at the honest node and are held by the one under attack."""
    author = made.honest.status().peer_id
    before, began = held_of(made.victim, author), time.monotonic()
    number = 0
    while time.monotonic() - began < MEASURED_S:
        made.journal.put(made.honest, f"{prefix}/{number}", number)
        number += 1
    return (held_of(made.victim, author) - before) / (time.monotonic() - began)


async def storm(
    node: LocalNode, seed: bytes, member: Member, victim: bytes, pages: Sequence[Entries]
) -> None:
    """Come back whenever one is cut, and bring as much as the line takes, page after page, without end."""
    supply = enumerate(itertools.cycle(pages))
    while True:
        try:
            async with raw_peer(node, seed=seed) as peer:
                link = await peer.link(member)
                for number, page in supply:
                    await link.send(REQUEST, number, member.request([page], victim))
        except* (Closed, trio.TooSlowError, AssertionError, *CUT):
            pass  # cut, or not let in
        await trio.sleep(0.05)


def in_a_process(
    node: LocalNode, seed: bytes, member: Member, victim: bytes, pages: Sequence[Entries]
) -> None:
    os.nice(10)  # it would sit on a machine of its own
    trio.run(storm, node, seed, member, victim, pages)


@contextmanager
def attacked(made: Scene, seed: bytes, member: Member, pages: Sequence[Entries]) -> Iterator[None]:
    """By a process of its own, so that it does not share the interpreter's lock with whoever measures."""
    victim = public_key_of(made.victim.status().peer_id)
    attacker = multiprocessing.get_context("fork").Process(
        target=in_a_process, args=(made.victim, seed, member, victim, pages), daemon=True
    )
    attacker.start()
    try:
        yield
    finally:
        attacker.terminate()
        attacker.join()


def test_a_member_that_brings_waste_is_charged_cut_and_slows_nobody_for_long(made: Scene) -> None:
    quiet = honest_speed(made, "quiet")
    seed = os.urandom(32)
    member = made.member.another(key=NodeKey(seed))
    page = member.write(10, epoch=3, value=b'"' + b"x" * 100_000 + b'"')
    rise = Rise(made.victim)
    with attacked(made, seed, member, [Entries(page.frames, tuple(map(forged, page.seals)))]):
        rise.wait(REFUSED, "bad_seal")
        beside = honest_speed(made, "beside")
        rise.wait(MESSAGES, "budget_spent_p2p")
        rise.wait(MESSAGES, "links_over_budget_p2p")
    # All that was looked at is in the charge, and there is no more of it than the budget and what was
    # under way when it was used up.
    charged = rise.of(CHARGED, "p2p")
    assert BUDGET_BYTES <= charged < 2 * BUDGET_BYTES
    assert beside > 0
    print(
        f"\nhonest entries a second: {quiet:.0f} alone, {beside:.0f} beside forged pages, "
        f"ratio {beside / quiet:.2f}; {charged / 2**20:.1f} MiB charged"
    )


def test_a_member_that_brings_all_it_can_and_all_of_it_valid_waits_for_its_turn(made: Scene) -> None:
    quiet = honest_speed(made, "quiet again")
    seed = os.urandom(32)
    member = made.member.another(key=NodeKey(seed))
    pages = [member.write(ENTRIES_A_PAGE, epoch=1000 + number) for number in range(PAGES)]
    before = held_of(made.victim, member.peer_id)
    with attacked(made, seed, member, pages):
        wait_for("a first page", lambda: held_of(made.victim, member.peer_id) > before, within_s=30)
        beside = honest_speed(made, "beside valid ones")
        taken = held_of(made.victim, member.peer_id) - before
    assert beside > 0
    print(
        f"\nhonest entries a second: {quiet:.0f} alone, {beside:.0f} beside valid pages, "
        f"ratio {beside / quiet:.2f}; {taken} useless entries taken meanwhile"
    )
    nodes = [made.honest, made.victim]
    wait_for("equal roots, the useless entries among them", lambda: roots_equal(nodes), within_s=60)
