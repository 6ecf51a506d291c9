"""What the API's tests share: a real node over a memory store, clients in process and over sockets."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import httpx
import trio
from starlette.types import ASGIApp

from lattice.api.access import Access
from lattice.api.listener import open_listener, serve_listener
from lattice.core.addresses import Bind
from lattice.core.draft import OpDraft
from lattice.core.entry import OpKind
from lattice.core.errors import LatticeError
from lattice.core.identity import NodeKey
from lattice.node.node import Node
from lattice.node.ports import NodeOptions, Ports
from lattice.storage.memory import MemoryStore

BASE = "http://127.0.0.1:8000"
LOOPBACK = Bind("127.0.0.1", 8000)
TOKEN = "5f2c" * 16


@dataclass
class Lines:
    """A TaggedLogger that keeps what was said."""

    said: list[tuple[str, str, str, dict[str, object]]] = field(default_factory=list)

    def _say(self, level: str, tag: str, sentence: str, fields: dict[str, object]) -> None:
        self.said.append((level, tag, sentence, fields))

    def debug(self, tag: str, sentence: str, **fields: object) -> None:
        self._say("DEBUG", tag, sentence, fields)

    def info(self, tag: str, sentence: str, **fields: object) -> None:
        self._say("INFO", tag, sentence, fields)

    def warning(self, tag: str, sentence: str, **fields: object) -> None:
        self._say("WARNING", tag, sentence, fields)

    def error(self, tag: str, sentence: str, **fields: object) -> None:
        self._say("ERROR", tag, sentence, fields)

    def defect(self, tag: str, sentence: str, error: BaseException, **fields: object) -> None:
        self._say("DEFECT", tag, sentence, {**fields, "error": error})


@asynccontextmanager
async def running_node(
    *, lines: Lines | None = None, store: MemoryStore | None = None, network_id: bytes | None = None
) -> AsyncIterator[Node]:
    """The product's own node, without lungs and with a store in memory: an empty one of a new network,
    or that of a node that ran before."""
    ports = Ports(wall_ms=lambda: time.time_ns() // 1_000_000, entropy=os.urandom, log=lines or Lines())
    node = Node(
        NodeKey(os.urandom(32)),
        network_id or os.urandom(32),
        {1: os.urandom(32)},
        store or MemoryStore(),
        ports,
        NodeOptions("nodeA"),
        p2p=None,
        http=None,
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(node.run)
        try:
            yield node
        finally:
            nursery.cancel_scope.cancel()


def in_process(
    app: ASGIApp, *, client: str = "127.0.0.1", base_url: str = BASE, headers: dict[str, str] | None = None
) -> httpx.AsyncClient:
    """A client that calls the application directly, as if from the address `client`."""
    transport = httpx.ASGITransport(app, client=(client, 40000))
    return httpx.AsyncClient(transport=transport, base_url=base_url, headers=headers)


@asynccontextmanager
async def listening(app: ASGIApp) -> AsyncIterator[Bind]:
    """The application behind hypercorn on a free port of loopback."""
    shutdown = trio.Event()
    listener = open_listener(Bind("127.0.0.1", 0), "LATTICE_API_BIND")
    async with trio.open_nursery() as nursery:
        bind: Bind = await nursery.start(serve_listener, app, listener, shutdown)
        try:
            yield bind
        finally:
            shutdown.set()
            nursery.cancel_scope.deadline = trio.current_time() + 5


async def read_answer(stream: trio.SocketStream) -> bytes:
    """Everything up to the end of the body of one answer that announces its length."""
    data = b""
    while b"\r\n\r\n" not in data:
        chunk = await stream.receive_some()
        assert chunk, f"closed after {data!r}"
        data += chunk
    head, _, body = data.partition(b"\r\n\r\n")
    length = next(
        int(line.split(b":")[1])
        for line in head.lower().split(b"\r\n")
        if line.startswith(b"content-length:")
    )
    while len(body) < length:
        body += await stream.receive_some()
    return head + b"\r\n\r\n" + body


async def put_raw(node: Node, key: bytes, value: bytes) -> None:
    """Write bytes under a key as another program could, past the API's checks."""
    await node.append([OpDraft(OpKind.PUT, key, value)])


def problem(response: httpx.Response, status: int, code: str) -> str:
    """Assert that the answer is a problem in the full form; its detail."""
    body = response.json()
    assert response.headers["content-type"] == "application/problem+json", response.text
    assert (response.status_code, body["code"], body["success"]) == (status, code, False), response.text
    assert body["status"] == status
    assert body["title"]
    assert body["type"] == "about:blank"
    return str(body["detail"])


class Refusing:
    """A node whose writes end in a given error; everything else is the node's own."""

    def __init__(self, node: Node, error: LatticeError | Exception) -> None:
        self._node = node
        self._error = error

    def __getattr__(self, name: str) -> object:
        return getattr(self._node, name)

    async def append(self, *_: object, **__: object) -> None:
        raise self._error


def operator_access(**changes: object) -> Access:
    """Loopback without a token, as after a plain start."""
    return Access(**{"bind": LOOPBACK, **changes})  # type: ignore[arg-type]
