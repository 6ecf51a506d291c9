"""The stream of events over real sockets: resuming, filters, slow readers, end, cap; both clients."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import httpx
import pytest
import trio
import trio.lowlevel
import trio.testing
from fastapi import FastAPI

from lattice.api.app import create_app
from lattice.api.event_stream import EventStream
from lattice.api.listener import open_listener, serve_listener
from lattice.client import calls
from lattice.client.client import AsyncClient, Client, chunks_of
from lattice.client.events import Event, Follower
from lattice.core.addresses import Bind
from lattice.core.errors import LatticeError
from lattice.node.bus import Bus
from lattice.node.node import Node
from lattice.schemas import EntryEvent, LostEvent, PolicyEvent
from tests.integration.api.api_kit import (
    TOKEN,
    in_process,
    listening,
    operator_access,
    problem,
    put_raw,
    read_answer,
    running_node,
)

PATH = "/api/lattice/events"


class With:
    """A node whose bus is another; everything else is the node's own."""

    def __init__(self, node: Node, bus: Bus) -> None:
        self._node = node
        self.bus = bus

    def __getattr__(self, name: str) -> object:
        return getattr(self._node, name)


class Stream:
    """An open answer, read event by event with the client's own parser."""

    def __init__(self, response: httpx.Response, chunks: AsyncIterator[bytes]) -> None:
        self.response = response
        self._chunks = chunks
        self.follower = Follower(calls.events())
        self._ready: list[Event] = []

    async def next(self) -> Event:
        with trio.fail_after(10):
            while not self._ready:
                self._ready = list(self.follower.feed(await anext(self._chunks)))
        return self._ready.pop(0)

    async def ends(self) -> list[Event]:
        """What is left until the answer ends as it should."""
        with trio.fail_after(10):
            async for chunk in self._chunks:
                self._ready += self.follower.feed(chunk)
        return self._ready


@asynccontextmanager
async def streaming(
    bind: Bind, query: str = "", headers: dict[str, str] | None = None
) -> AsyncIterator[Stream]:
    async with (
        httpx.AsyncClient(base_url=f"http://{bind}", timeout=20) as client,
        client.stream("GET", f"{PATH}{query}", headers=headers) as response,
    ):
        assert response.status_code == 200, await response.aread()
        async with chunks_of(response) as chunks:
            yield Stream(response, chunks)


@pytest.fixture
async def bind(app: FastAPI) -> AsyncIterator[Bind]:
    async with listening(app) as where:
        yield where


async def until_streams(node: Node, count: int) -> None:
    with trio.fail_after(10):
        while node.bus.statistics()["event_streams"] != count:
            await trio.sleep(0.01)


def keys_of(events: list[Event]) -> list[str]:
    return [key for event in events if isinstance(event.data, EntryEvent) for key in event.data.keys]


async def test_an_entry_is_told_with_all_that_is_known_of_it(node: Node, bind: Bind) -> None:
    async with (
        streaming(bind, "?type=entry") as stream,
        httpx.AsyncClient(base_url=f"http://{bind}") as client,
    ):
        head = stream.response.headers
        assert head["content-type"] == "text/event-stream; charset=utf-8"
        assert (head["cache-control"], head["x-content-type-options"]) == ("no-store", "nosniff")
        assert "content-length" not in head
        await until_streams(node, 1)
        written = (await client.put("/api/lattice/keys/a%E2%80%A8b", content=b"1")).json()
        event = await stream.next()
        assert event.type == "entry"
        assert isinstance(event.data, EntryEvent)
        shown = {name: getattr(event.data, name) for name in ("id", "author", "epoch", "seq", "clock")}
        assert shown == {name: written[name] for name in shown}
        assert (event.data.keys, event.data.lung, event.data.peer) == (["a\u2028b"], "local", None)


async def test_resuming_by_header_and_by_query_gives_each_later_event_once(node: Node, bind: Bind) -> None:
    start = node.bus.id_of(node.bus.newest)
    for index in range(300):
        await put_raw(node, b"k%d" % index, b"1")
    async with streaming(bind, f"?type=entry&after={start}") as stream:
        seen = [await stream.next() for _ in range(100)]
    async with streaming(bind, f"?type=entry&after={start}", {"Last-Event-ID": seen[-1].id}) as stream:
        await put_raw(node, b"live", b"1")
        seen += [await stream.next() for _ in range(201)]
    assert keys_of(seen) == [*(f"k{index}" for index in range(300)), "live"]


async def test_writes_during_many_reconnections_come_exactly_once(node: Node, bind: Bind) -> None:
    seen: list[Event] = []
    last = node.bus.id_of(node.bus.newest)

    async def write() -> None:
        for index in range(120):
            await put_raw(node, b"w%d" % index, b"1")
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write)
        while len(seen) < 120:
            async with streaming(bind, "?prefix=w&type=entry", {"Last-Event-ID": last}) as stream:
                seen += [await stream.next() for _ in range(min(7, 120 - len(seen)))]
                last = seen[-1].id
    assert keys_of(seen) == [f"w{index}" for index in range(120)]


async def test_filters(node: Node, bind: Bind, operator: httpx.AsyncClient) -> None:
    start = node.bus.id_of(node.bus.newest)
    await put_raw(node, b"a/1", b"1")
    await put_raw(node, b"b/1", b"1")
    await node.switch("http")

    async def read(query: str) -> list[Event]:
        async with streaming(bind, f"?follow=false&after={start}&{query}") as stream:
            return await stream.ends()

    assert keys_of(await read("prefix=a/")) == ["a/1"]
    assert [event.type for event in await read("type=entry&prefix=a/")] == ["entry"]
    assert [
        event.data.policy for event in await read("type=policy") if isinstance(event.data, PolicyEvent)
    ] == ["http"]
    problem(await operator.get(f"{PATH}?type=entry,nonsense"), 400, "bad_request")
    problem(await operator.get(f"{PATH}?after=nonsense"), 400, "bad_request")
    problem(await operator.get(PATH, headers={"Last-Event-ID": node.bus.id_of(10**6)}), 400, "bad_request")
    await until_streams(node, 0)


async def test_the_id_of_another_process_is_told_as_lost(node: Node, bind: Bind) -> None:
    async with running_node() as other:
        await put_raw(other, b"k", b"1")
        foreign = other.bus.id_of(other.bus.newest)
    await put_raw(node, b"here", b"1")
    async with streaming(bind, "?follow=false", {"Last-Event-ID": foreign}) as stream:
        first, *rest = await stream.ends()
    assert (first.type, first.data) == ("lost", LostEvent("restart", None, None, node.bus.id_of(0)))
    assert keys_of(rest) == ["here"]


async def test_beyond_the_ring_is_told_as_lost(node: Node) -> None:
    bus = Bus(7, events_max=5)
    for index in range(20):
        bus.publish_nowait(PolicyEvent("now", f"p{index}"))
    app = create_app(With(node, bus), operator_access())
    async with listening(app) as bind, streaming(bind, f"?follow=false&after={bus.id_of(3)}") as stream:
        lost, *rest = await stream.ends()
    assert lost.data == LostEvent("overrun", 12, bus.id_of(4), bus.id_of(15))
    assert [event.id for event in rest] == [bus.id_of(number) for number in range(16, 21)]


@pytest.mark.slow
async def test_a_client_that_reads_slowly_is_told_what_it_missed(node: Node) -> None:
    """It stops reading until the sockets are full and the ring has moved on; no memory grows for it."""
    bus = Bus(7, events_max=50)
    app = create_app(With(node, bus), operator_access())
    text = "x" * 20_000
    async with listening(app) as bind, streaming(bind) as stream:
        with trio.fail_after(10):
            while bus.statistics()["event_streams"] != 1:
                await trio.sleep(0.01)
        for _ in range(2000):  # 40 MB, far above what the sockets hold
            bus.publish_nowait(PolicyEvent("now", text))
            await trio.lowlevel.checkpoint()
        assert bus.statistics()["events_held"] == 50
        covered = 0
        lost = 0
        while covered < 2000:
            event = await stream.next()
            if isinstance(event.data, LostEvent):
                assert event.data.count is not None
                covered += event.data.count
                lost += event.data.count
            else:
                covered += 1
            assert event.id == bus.id_of(covered), "each is shown or told as lost, in order"
    assert lost > 0
    assert bus.statistics()["events_lost"] == lost


async def test_a_client_that_leaves_frees_its_place(
    node: Node, bind: Bind, caplog: pytest.LogCaptureFixture
) -> None:
    before = trio.lowlevel.current_statistics().tasks_living
    for _ in range(3):
        async with streaming(bind):
            await until_streams(node, 1)
        await until_streams(node, 0)
    with trio.fail_after(10):
        while trio.lowlevel.current_statistics().tasks_living > before:
            await trio.sleep(0.01)
    assert [record for record in caplog.records if record.name.startswith("hypercorn")] == []


async def test_streams_are_capped_and_a_place_becomes_free(node: Node) -> None:
    bus = Bus(7, readers_max=2)
    app = create_app(With(node, bus), operator_access())
    async with listening(app) as bind, httpx.AsyncClient(base_url=f"http://{bind}") as client:
        async with streaming(bind), streaming(bind):
            refused = await client.get(PATH)
            problem(refused, 429, "too_many")
            assert refused.headers["retry-after"] == "1"
            assert (await client.get("/health")).status_code == 200
        with trio.fail_after(10):
            while bus.statistics()["event_streams"]:
                await trio.sleep(0.01)
        assert (await client.get(f"{PATH}?follow=false")).status_code == 200


async def test_streams_end_properly_and_at_once_when_the_listener_does(app: FastAPI, node: Node) -> None:
    shutdown = trio.Event()
    listener = open_listener(Bind("127.0.0.1", 0), "LATTICE_API_BIND")
    ended = trio.Event()

    async def serve(*, task_status: trio.TaskStatus[Bind]) -> None:
        await serve_listener(app, listener, shutdown, task_status=task_status)
        ended.set()

    async with trio.open_nursery() as nursery:
        bind: Bind = await nursery.start(serve)
        async with streaming(bind) as stream:
            await until_streams(node, 1)
            await put_raw(node, b"last", b"1")
            assert keys_of([await stream.next()]) == ["last"]
            shutdown.set()
            assert await stream.ends() == []
            with trio.fail_after(2):  # below the grace of the listener, and the client still holds on
                await ended.wait()
    assert node.bus.statistics()["event_streams"] == 0


async def test_the_connection_of_a_stream_that_ended_is_used_again(bind: Bind) -> None:
    async with await trio.open_tcp_stream(bind.host, bind.port) as stream:
        with trio.fail_after(5):
            head = b" HTTP/1.1\r\nHost: localhost\r\n\r\n"
            await stream.send_all(b"GET " + PATH.encode() + b"?follow=false" + head)
            data = b""
            while not data.endswith(b"0\r\n\r\n"):
                data += await stream.receive_some()
            await stream.send_all(b"GET /health" + head)
            assert (await read_answer(stream)).startswith(b"HTTP/1.1 200")


async def test_head_ends(operator: httpx.AsyncClient) -> None:
    with trio.fail_after(5):
        response = await operator.head(PATH)
    assert (response.status_code, response.content) == (200, b"")
    assert response.headers["content-type"].startswith("text/event-stream")


async def test_silence_is_broken_by_the_place_alone(autojump_clock: trio.testing.MockClock) -> None:
    """Nothing passes the filter for a minute: comments come, with an id that moves."""
    from lattice.node.bus import Filter

    bus = Bus(7)
    answer = EventStream(bus.reader(wanted=Filter(prefix="none", types=frozenset({"entry"}))), follow=True)
    sent: list[bytes] = []

    async def receive() -> dict[str, object]:
        await trio.sleep(50)
        return {"type": "http.disconnect"}

    async def send(message: object) -> None:
        assert isinstance(message, dict)
        sent.append(message.get("body", b""))
        if len(sent) == 2:
            bus.publish_nowait(PolicyEvent("now", "auto"))

    await answer({"type": "http"}, receive, send)
    comments = [part for part in sent if part.startswith(b": keep-alive\n")]
    assert comments == [b": keep-alive\nid: %s\n\n" % bus.id_of(1).encode()] * 3
    assert not any(b"event:" in part for part in sent)


async def test_operators_only(node: Node) -> None:
    app = create_app(node, operator_access(token=TOKEN))
    async with in_process(app, client="192.0.2.7") as stranger:
        problem(await stranger.get(PATH), 401, "unauthorized")


# The clients.


@asynccontextmanager
async def restartable(node: Node, port: int = 0) -> AsyncIterator[Bind]:
    """The node's API on a given port, so that it can come back where it was."""
    shutdown = trio.Event()
    listener = open_listener(Bind("127.0.0.1", port), "LATTICE_API_BIND")
    async with trio.open_nursery() as nursery:
        bind: Bind = await nursery.start(
            serve_listener, create_app(node, operator_access()), listener, shutdown
        )
        try:
            yield bind
        finally:
            shutdown.set()


@pytest.mark.slow
async def test_the_async_client_resumes_over_a_cut_and_over_a_restart(node: Node) -> None:
    seen: list[Event] = []
    send, receive = trio.open_memory_channel[Event](100)

    async def follow(bind: Bind) -> None:
        async with AsyncClient(f"http://{bind}") as client:
            async for event in client.events(types=["entry"]):
                await send.send(event)

    async def take(count: int) -> None:
        with trio.fail_after(20):
            seen.extend([await receive.receive() for _ in range(count)])

    async with trio.open_nursery() as nursery:
        async with restartable(node) as bind:
            nursery.start_soon(follow, bind)
            await until_streams(node, 1)
            await put_raw(node, b"one", b"1")
            await take(1)
        await put_raw(node, b"between", b"1")  # nobody listens now
        async with restartable(node, bind.port):
            await put_raw(node, b"two", b"1")
            await take(2)
        async with running_node() as fresh, restartable(fresh, bind.port):
            await put_raw(fresh, b"three", b"1")
            await take(2)
            nursery.cancel_scope.cancel()
    assert keys_of(seen) == ["one", "between", "two", "three"]
    assert [event.type for event in seen] == ["entry", "entry", "entry", "lost", "entry"]


@pytest.mark.slow
async def test_the_blocking_client(node: Node, bind: Bind) -> None:
    seen: list[Event] = []
    done = threading.Event()

    def follow() -> None:
        with Client(f"http://{bind}") as client:
            stream = client.events(prefix="k", types=["entry"])
            for event in stream:
                seen.append(event)
                if len(seen) == 3:
                    break
            stream.close()
        done.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, follow)
        await until_streams(node, 1)
        for key in (b"k1", b"x", b"k2", b"k3"):
            await put_raw(node, key, b"1")
    assert done.is_set()
    assert keys_of(seen) == ["k1", "k2", "k3"]
    await until_streams(node, 0)


async def test_the_first_connection_must_succeed(bind: Bind) -> None:
    async with AsyncClient(f"http://{bind}", token="wrong") as client:
        with pytest.raises(LatticeError) as refused:
            await anext(client.events())
        assert refused.value.code == "unauthorized"
    async with AsyncClient("http://127.0.0.1:1") as client:
        with pytest.raises(LatticeError) as unreachable:
            await anext(client.events())
        assert unreachable.value.code == "unreachable"


def fed(follower: Follower, *parts: bytes) -> Iterator[Event]:
    for part in parts:
        yield from follower.feed(part)


def test_the_parser_takes_any_cut_and_forgets_a_half_event() -> None:
    wire = (
        b'retry: 1000\nid: b-1\n\n: comment\nid: b-2\nevent: policy\ndata: {"at":"t",\n'
        b'data: "policy":"p2p"}\n\n'
        b'id: b-3\r\nevent: newer\r\ndata: [1]\r\n\r\nid: b-4\nevent: policy\ndata: {"at"'
    )
    wanted = [Event("b-2", "policy", PolicyEvent("t", "p2p")), Event("b-3", "newer", [1])]
    for size in range(1, len(wire) + 1):
        follower = Follower(calls.events())
        parts = [wire[start : start + size] for start in range(0, len(wire), size)]
        assert list(fed(follower, *parts)) == wanted
        assert follower.headers()["last-event-id"] == "b-3", "what was not complete is asked for again"
        follower.begin()
        assert list(follower.feed(b"\n")) == []


def test_a_line_without_end_is_no_node() -> None:
    follower = Follower(calls.events())
    with pytest.raises(LatticeError, match="no end"):
        for _ in range(100):
            list(follower.feed(bytes(100_000)))


def test_waits_grow_and_start_again() -> None:
    follower = Follower(calls.events())
    with pytest.raises(LatticeError):
        follower.failed(LatticeError("unreachable", "never was there"))
    follower.opened(200, "text/event-stream", b"")
    waits = [follower.failed(LatticeError("unreachable", "gone")) for _ in range(7)]
    assert waits == [0.5, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0]
    assert list(follower.feed(b"id: b-1\n\n")) == []
    assert follower.ended() == 0.5
    with pytest.raises(LatticeError):
        follower.failed(LatticeError("unauthorized", "no"))
    with pytest.raises(LatticeError, match="no stream"):
        follower.opened(200, "text/html", b"")
