"""One member that gossips valid entries as fast as the line takes, and one that asks for pages without end:
what is more than its turn is let fall or waits, and an honest pair goes on (`pytest -s` prints ratios)."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import pytest
import trio

from lattice.core.identity import NodeKey, public_key_of
from lattice.core.messages import Heads, HeadsFlag, Message, Roots, Want, WantEntries
from lattice.testing.cluster import roots_equal, wait_for

from .http_kit import Member, Rise, Scene
from .p2p_kit import CUT, MESSAGES, REQUEST, Closed, gossiper, one_way, p2p_scene, raw_peer
from .test_p2p_budget import ENTRIES_A_PAGE, held_of, honest_speed

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

STORM = 60


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with p2p_scene(tmp_path_factory.mktemp("gossip-budget")) as found:
        yield found


@contextmanager
def beside(attack: Callable[[], Awaitable[None]]) -> Iterator[None]:
    """The attack in a process of its own: it must not share the interpreter's lock with whoever measures."""

    def run() -> None:
        os.nice(10)  # it would sit on a machine of its own
        trio.run(attack)

    process = multiprocessing.get_context("fork").Process(target=run, daemon=True)
    process.start()
    try:
        yield
    finally:
        process.terminate()
        process.join()


def test_a_storm_of_valid_gossip(made: Scene) -> None:
    seed = os.urandom(32)
    member = made.member.another(key=NodeKey(seed))
    payloads = [one_way(member, [member.write(ENTRIES_A_PAGE, epoch=5000 + n)]) for n in range(STORM)]

    async def storm() -> None:
        async with gossiper(made.victim, made, seed) as liar:
            for payload in payloads:
                await liar.publish(liar.message(payload))
            await trio.sleep_forever()

    quiet = honest_speed(made, "quiet")
    before = held_of(made.victim, member.peer_id)
    rise = Rise(made.victim)
    with beside(storm):
        wait_for("a first payload", lambda: held_of(made.victim, member.peer_id) > before, within_s=30)
        stormy = honest_speed(made, "stormy")
        rise.wait(MESSAGES, "gossip_out_of_turn")
    taken = held_of(made.victim, member.peer_id) - before
    print(
        f"\nhonest entries a second: {quiet:.0f} alone, {stormy:.0f} beside a storm of gossip, ratio "
        f"{stormy / quiet:.2f}; {taken} of {STORM * ENTRIES_A_PAGE} useless entries taken"
    )
    assert stormy > 0
    assert taken < STORM * ENTRIES_A_PAGE
    made.control()
    wait_for("equal roots", lambda: roots_equal([made.honest, made.victim]), within_s=60)


ROOTS = Roots(bytes(32), bytes(32), 1, 0)


def full_page(member: Member, author: bytes) -> list[Message]:
    return [WantEntries((Want(author, 9, 0, 10_000),))]


def full_lists(member: Member, author: bytes) -> list[Message]:
    return [Heads(1, HeadsFlag.LISTS, ROOTS, logs=tuple((os.urandom(32), ()) for _ in range(4096)))]


@pytest.mark.parametrize("ask", [full_page, full_lists])
def test_a_storm_of_questions(ask: Callable[[Member, bytes], list[Message]], made: Scene) -> None:
    seed = os.urandom(32)
    member = made.member.another(key=NodeKey(seed))
    victim = public_key_of(made.victim.status().peer_id)

    async def storm() -> None:
        written = False
        while True:
            try:
                async with raw_peer(made.victim, seed=seed) as peer:
                    link = await peer.link(member)
                    if not written:
                        page = member.write(12, epoch=9, value=b'"' + b"x" * 120_000 + b'"')
                        await link.ask([page], victim)
                        written = True
                    for number in range(1000, 1_000_000):
                        request = member.request(ask(member, member.key.public_key), victim)
                        await link.send(REQUEST, number, request)
            except* (Closed, trio.TooSlowError, AssertionError, *CUT):
                pass
            await trio.sleep(0.05)

    quiet = honest_speed(made, "calm")
    rise = Rise(made.victim)
    with beside(storm):
        wait_for("its page", lambda: held_of(made.victim, member.peer_id) > 0, within_s=30)
        stormy = honest_speed(made, "beside questions")
    print(
        f"\nhonest entries a second: {quiet:.0f} alone, {stormy:.0f} beside questions, "
        f"ratio {stormy / quiet:.2f}"
    )
    assert rise.of(MESSAGES, "request_malformed") == 0
    assert stormy > 0
    made.control()
