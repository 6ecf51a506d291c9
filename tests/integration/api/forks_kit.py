"""What the tests of forks share: an author that writes two branches, and gives them to a node.

Separate because the routes and the command line are tested apart.
"""

from __future__ import annotations

from collections.abc import Iterable

from lattice.core.engine import Gossiped
from lattice.core.entry import Entry, OpKind, encode_op, make_entry, make_seal
from lattice.core.identity import NodeKey
from lattice.core.messages import Entries
from lattice.node.node import Node

AUTHOR = NodeKey(b"\x07" * 32)


def write(node: Node, seq: int, prev: bytes, key: bytes, *, epoch: int = 9) -> Entry:
    return make_entry(
        node.network_id, author=AUTHOR.public_key, epoch=epoch, seq=seq, prev=prev, clock=1,
        ops=[encode_op(OpKind.PUT, key, value=b"1")],
    )  # fmt: skip


async def give(node: Node, *entries: Entry) -> None:
    seal = make_seal(AUTHOR, node.network_id, entries[-1].header, entries[-1].id)
    message = Entries(tuple((entry.header_bytes, entry.ops) for entry in entries), (seal,))
    await node.driver.ask(lambda token: Gossiped(token, b"q" * 32, "gossip", message))


async def fork(node: Node, epochs: Iterable[int]) -> None:
    """Freeze the author's logs of these epochs at their first entries, which write a key each."""
    for epoch in epochs:
        for branch in ("one", "other"):
            await give(node, write(node, 0, bytes(32), f"{branch}/{epoch}".encode(), epoch=epoch))
