"""The driver: what it tells to whoever waits for a change."""

from __future__ import annotations

import os

import trio
import trio.testing

from lattice.core.draft import OpDraft
from lattice.core.engine import Append, Engine, EngineInput, Gossiped, Remember
from lattice.core.entry import OpKind
from lattice.core.messages import Entries
from lattice.node.driver import Driver
from lattice.storage.memory import MemoryStore
from tests.core.core_kit import NETWORK, NOW_MS, Author, node_key, page, put


async def test_whoever_waits_is_woken_when_the_heads_have_changed_and_only_then(
    autojump_clock: trio.testing.MockClock,
) -> None:
    store = MemoryStore()
    driver = Driver(
        lambda: Engine(node_key(1), NETWORK, store), store,
        wall_ms=lambda: NOW_MS, entropy=os.urandom, announce=lambda output: None,
    )  # fmt: skip
    author = Author(2)
    first, second = author.write(put(b"a")), author.write(put(b"b"))
    rival = author.write(put(b"c"), after=first)

    def given(token: int, message: Entries) -> EngineInput:
        return Gossiped(token, b"p" * 32, "gossip", message)

    steps = [
        ("an own write", lambda token: Append(token, (OpDraft(OpKind.PUT, b"k", b"1"),)), True),
        ("entries of others", lambda token: given(token, page([first, second], [author.seal(second)])), True),
        ("the same again", lambda token: given(token, page([first, second], [author.seal(second)])), False),
        (
            "a fork, which only takes out",
            lambda token: given(token, page([rival], [author.seal(rival)])),
            True,
        ),
        ("something to remember", lambda token: Remember(token, "name", b"value"), False),
    ]
    async with trio.open_nursery() as nursery:
        await nursery.start(driver.run)
        for what, make, changes in steps:
            before = driver.engine.roots.log_root
            woken = False

            async def wait() -> None:
                nonlocal woken
                await driver.wait_changed()
                woken = True

            async with trio.open_nursery() as waiting:
                waiting.start_soon(wait)
                await trio.testing.wait_all_tasks_blocked()
                await driver.ask(make)
                await trio.testing.wait_all_tasks_blocked()
                assert (woken, driver.engine.roots.log_root != before) == (changes, changes), what
                waiting.cancel_scope.cancel()
        nursery.cancel_scope.cancel()
