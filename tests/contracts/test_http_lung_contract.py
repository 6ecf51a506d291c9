"""One suite over both HTTP lungs: the one in memory, and httpx against hypercorn on loopback."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trio
from starlette.types import Receive, Scope, Send

from lattice.api.app import create_sync_app
from lattice.api.listener import open_listener, serve_listener
from lattice.core.addresses import Bind
from lattice.core.errors import LatticeError
from lattice.core.limits import ENVELOPE_BYTES_MAX, HTTP_BODY_BYTES_MAX
from lattice.transport.http_poll import HttpPoll
from lattice.transport.memory_http import MemoryHttpLung, serve_http
from lattice.transport.memory_network import MemoryNetwork
from lattice.transport.port import HttpLung, TransportError

Handler = Callable[[bytes, str], Awaitable[bytes]]
TIMEOUT_S = 10.0


async def echo(body: bytes, remote: str) -> bytes:
    return body[::-1]


class World:
    """Listeners that a handler answers, a lung to reach them, and a URL where nobody listens."""

    lung: HttpLung
    nowhere: str

    async def listen(self, handler: Handler, *, prefix: str = "") -> str:
        raise NotImplementedError


class MemoryWorld(World):
    def __init__(self, network: MemoryNetwork, nursery: trio.Nursery) -> None:
        self.lung = MemoryHttpLung(network, "192.0.2.1")
        self.nowhere = "http://192.0.2.9:8100"
        self._network = network
        self._nursery = nursery

    async def listen(self, handler: Handler, *, prefix: str = "") -> str:
        url = f"http://192.0.2.2:8100{prefix}"
        await self._nursery.start(serve_http, self._network, [url], handler)
        return url


class _Answering:
    """As much of a node as the sync listener asks for."""

    def __init__(self, handler: Handler) -> None:
        self.serve_sync = handler


class SocketWorld(World):
    def __init__(self, lung: HttpLung, nursery: trio.Nursery, nowhere: str) -> None:
        self.lung = lung
        self.nowhere = nowhere
        self._nursery = nursery

    async def listen(self, handler: Handler, *, prefix: str = "") -> str:
        app = create_sync_app(_Answering(handler))  # type: ignore[arg-type]

        async def behind_proxy(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http":
                assert scope["raw_path"].startswith(prefix.encode())
                scope = dict(scope, raw_path=scope["raw_path"][len(prefix) :])
            await app(scope, receive, send)

        listener = open_listener(Bind("127.0.0.1", 0), "LATTICE_SYNC_BIND")
        bind = await self._nursery.start(serve_listener, behind_proxy, listener, trio.Event())
        return f"http://{bind}{prefix}"


@asynccontextmanager
async def memory_world(nursery: trio.Nursery) -> AsyncIterator[World]:
    network = MemoryNetwork()
    await nursery.start(network.run)
    yield MemoryWorld(network, nursery)


@asynccontextmanager
async def socket_world(nursery: trio.Nursery) -> AsyncIterator[World]:
    with open_listener(Bind("127.0.0.1", 0), "LATTICE_SYNC_BIND") as taken:
        port = taken.getsockname()[1]
    async with HttpPoll() as lung:
        yield SocketWorld(lung, nursery, f"http://127.0.0.1:{port}")


@pytest.fixture(params=[memory_world, socket_world], ids=["memory", "sockets"])
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    async with trio.open_nursery() as nursery:
        async with request.param(nursery) as made:
            yield made
        nursery.cancel_scope.cancel()


async def failing(world: World, url: str, body: bytes = b"x", timeout_s: float = TIMEOUT_S) -> str:
    """The reason for which an exchange fails."""
    with pytest.raises(TransportError) as caught:
        await world.lung.exchange(url, body, timeout_s=timeout_s)
    return caught.value.reason


@pytest.mark.parametrize("body", [b"", b"\0\xff\r\n\r\n", bytes(range(256)) * 4])
async def test_bytes_go_there_and_back(world: World, body: bytes) -> None:
    url = await world.listen(echo)
    assert await world.lung.exchange(url, body, timeout_s=TIMEOUT_S) == body[::-1]
    assert await world.lung.exchange(f"{url}/", body, timeout_s=TIMEOUT_S) == body[::-1]


async def test_the_largest_envelope_passes(world: World) -> None:
    url = await world.listen(echo)
    body = bytes(ENVELOPE_BYTES_MAX - 1) + b"\1"
    assert await world.lung.exchange(url, body, timeout_s=TIMEOUT_S) == body[::-1]


async def test_a_path_prefix_stays(world: World) -> None:
    url = await world.listen(echo, prefix="/ledger/nodeA")
    assert await world.lung.exchange(url, b"ab", timeout_s=TIMEOUT_S) == b"ba"


async def test_the_handler_learns_an_address(world: World) -> None:
    seen: list[str] = []

    async def note(body: bytes, remote: str) -> bytes:
        seen.append(remote)
        return b""

    await world.lung.exchange(await world.listen(note), b"", timeout_s=TIMEOUT_S)
    assert seen in (["192.0.2.1"], ["127.0.0.1"])


async def test_exchanges_overlap(world: World) -> None:
    """Ten at once are all with the handler before the first is answered."""
    arrived, everybody = 0, trio.Event()

    async def meet(body: bytes, remote: str) -> bytes:
        nonlocal arrived
        arrived += 1
        if arrived == 10:
            everybody.set()
        await everybody.wait()
        return body

    url = await world.listen(meet)
    answers: list[bytes] = []

    async def ask(number: int) -> None:
        answers.append(await world.lung.exchange(url, b"%d" % number, timeout_s=TIMEOUT_S))

    async with trio.open_nursery() as nursery:
        for number in range(10):
            nursery.start_soon(ask, number)
    assert sorted(answers) == [b"%d" % number for number in range(10)]


async def test_nobody_listens(world: World) -> None:
    assert await failing(world, world.nowhere) == "refused"


async def test_no_answer_in_time(world: World) -> None:
    async def never(body: bytes, remote: str) -> bytes:
        await trio.sleep_forever()
        raise AssertionError("unreachable")

    url = await world.listen(never)
    started = trio.current_time()
    assert await failing(world, url, timeout_s=0.1) == "timeout"
    assert 0.1 <= trio.current_time() - started < 5


@pytest.mark.parametrize(("code", "status"), [("envelope", 400), ("too_many", 429), ("not_ready", 503)])
async def test_a_refusal_is_its_status(world: World, code: str, status: int) -> None:
    async def refuse(body: bytes, remote: str) -> bytes:
        raise LatticeError(code, "no")

    assert await failing(world, await world.listen(refuse)) == f"status_{status}"


async def test_an_answer_over_the_cap_is_not_taken(world: World) -> None:
    async def flood(body: bytes, remote: str) -> bytes:
        return bytes(HTTP_BODY_BYTES_MAX + 1)

    assert await failing(world, await world.listen(flood)) == "too_large"


@pytest.mark.parametrize(
    "url",
    ["", "x", "ftp://192.0.2.2", "http://", "http://a b", "http://user:pw@192.0.2.2", "http://0.0.0.0:1"],
)
async def test_what_is_no_url(world: World, url: str) -> None:
    assert await failing(world, url) == "bad_url"


async def test_the_caller_may_give_up(world: World) -> None:
    entered = trio.Event()

    async def never(body: bytes, remote: str) -> bytes:
        entered.set()
        await trio.sleep_forever()
        raise AssertionError("unreachable")

    url = await world.listen(never)
    with trio.fail_after(TIMEOUT_S):
        async with trio.open_nursery() as nursery:

            async def ask() -> None:
                await world.lung.exchange(url, b"x", timeout_s=600)

            nursery.start_soon(ask)
            await entered.wait()
            nursery.cancel_scope.cancel()
    assert nursery.cancel_scope.cancelled_caught
