"""What comes one-way, by gossip or in a file: all that stands in one body is judged as one."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
import trio

from lattice.core.envelope import NONCE_BYTES, Kind, Sealer
from lattice.core.messages import Entries, Message, encode_messages
from lattice.node.node import Node
from lattice.node.ports import NodeOptions, Ports
from lattice.storage.memory import MemoryStore
from tests.core.core_kit import NETWORK, NOW_MS, Author, forged, node_key, page
from tests.integration.api.api_kit import Lines

NETWORK_KEYS = {1: bytes(range(32))}


@dataclass
class Receiver:
    """A node without lungs, and a member that seals what is brought to it."""

    node: Node
    sealer: Sealer

    async def take(self, way: str, messages: Sequence[Message]) -> bool:
        """Whether all of it was found to be authentic."""
        envelope = self.sealer.seal(Kind.ONE_WAY, encode_messages(messages), os.urandom(NONCE_BYTES))
        if way == "gossip":
            return await self.node.on_gossip(node_key(9).peer_id, "entries", envelope)
        return (await self.node.take_parcel(envelope)).refused == 0


@asynccontextmanager
async def receiver() -> AsyncIterator[Receiver]:
    ports = Ports(wall_ms=lambda: NOW_MS, entropy=os.urandom, log=Lines())
    store, options = MemoryStore(), NodeOptions("nodeA")
    node = Node(node_key(1), NETWORK, NETWORK_KEYS, store, ports, options, p2p=None, http=None)
    async with trio.open_nursery() as nursery:
        await nursery.start(node.run)
        yield Receiver(node, Sealer(node_key(9), NETWORK, NETWORK_KEYS, boot=7))
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("way", ["gossip", "file"])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
async def test_entries_and_their_seal_may_stand_in_different_messages(
    way: str, order: Sequence[int], autojump_clock: object
) -> None:
    author = Author(3)
    entries = author.write_many(4)
    parts = [page(entries[:2]), page(entries[2:]), Entries((), (author.seal(entries[3]),))]
    async with receiver() as it:
        assert await it.take(way, [parts[place] for place in order])
        assert it.node.ledger().entry_count == 4


@pytest.mark.parametrize("way", ["gossip", "file"])
async def test_a_bad_seal_in_one_message_spoils_the_body_and_not_the_entries_of_another(
    way: str, autojump_clock: object
) -> None:
    good, bad = Author(3), Author(4)
    kept, lost = good.write(), bad.write()
    parts = [page([lost], [forged(bad.seal(lost))]), page([kept], [good.seal(kept)])]
    async with receiver() as it:
        assert not await it.take(way, parts)
        assert [log.author for log in it.node.ledger().heads] == [good.key.public_key]


async def test_an_empty_body_brings_nothing(autojump_clock: object) -> None:
    async with receiver() as it:
        assert not await it.take("gossip", [])
        assert await it.take("file", [])
        assert it.node.ledger().entry_count == 0
