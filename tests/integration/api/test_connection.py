"""Connections of clients who speak something else, too much, or not at all: nobody else may notice."""

from __future__ import annotations

import random
import struct
from collections.abc import AsyncIterator

import hpack
import httpx
import orjson
import pytest
import trio

from lattice.api import connection, listener
from lattice.api.app import create_sync_app
from lattice.core.addresses import Bind
from lattice.node.node import Node
from tests.integration.api.api_kit import Lines, listening, put_raw, read_answer

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
UPGRADE = b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: %s\r\n%s\r\n"
WEBSOCKET = b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
HEALTH = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """One HTTP/2 frame (RFC 9113, section 4.1)."""
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def block(*headers: tuple[str, str]) -> bytes:
    return bytes(hpack.Encoder().encode(headers))


SETTINGS = frame(4, 0, 0, b"")
GET = block((":method", "GET"), (":path", "/health"), (":scheme", "http"), (":authority", "x"))
NO_PATH = block((":method", "GET"), (":scheme", "http"), (":authority", "x"))
CONNECT = block((":method", "CONNECT"), (":authority", "x"))


@pytest.fixture
async def bind(node: Node, lines: Lines) -> AsyncIterator[Bind]:
    """What strangers reach: the sync listener."""
    async with listening(create_sync_app(node, logs=lines)) as where:
        yield where


async def say(bind: Bind, *parts: bytes) -> bytes:
    """Send the parts, then listen for a moment; what came back."""
    answer = b""
    try:
        async with await trio.open_tcp_stream(bind.host, bind.port) as stream:
            for part in parts:
                await stream.send_all(part)
            await stream.send_eof()
            with trio.move_on_after(2):
                while chunk := await stream.receive_some():
                    answer += chunk
    except trio.BrokenResourceError:
        pass
    return answer


async def assert_well(bind: Bind) -> None:
    assert (await say(bind, HEALTH)).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "parts",
    [
        (PREFACE,),
        (PREFACE + bytes(100),),
        (PREFACE + SETTINGS + frame(1, 5, 1, GET),),
        (PREFACE + SETTINGS + frame(1, 5, 1, NO_PATH),),
        (PREFACE + SETTINGS + frame(1, 5, 1, CONNECT),),
        (PREFACE + SETTINGS, frame(1, 4, 1, GET), frame(3, 0, 1, b"\0\0\0\1"), frame(0, 1, 1, b"late")),
        (PREFACE + SETTINGS + frame(2, 0, 1, b"\0\0\0\1\1"),),
        (UPGRADE % (b"h2c", b"HTTP2-Settings: AAMAAABkAAQAAP__\r\n"),),
        (UPGRADE % (b"h2c", b"HTTP2-Settings: !!!!\r\n"),),
        (UPGRADE % (b"h2c", b""),),
        (UPGRADE % (b"websocket", b""),),
        (UPGRADE % (b"websocket", WEBSOCKET), b"\xff" * 20),
        (b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n", b"\0" * 100),
        (b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",),
        (b"GET http://x/health HTTP/1.1\r\nHost: x\r\n\r\n",),
        (b"G\xc3\xa9T / HTTP/1.1\r\nHost: x\r\n\r\n",),
        (b"GET /\xc3\xa9 HTTP/1.1\r\nHost: x\r\n\r\n",),
        (b"POST /health HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nZZZ\r\n",),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100),),
    ],
)
async def test_other_protocols_end_alone(parts: tuple[bytes, ...], bind: Bind, lines: Lines) -> None:
    async with await trio.open_tcp_stream(bind.host, bind.port) as bystander:
        await bystander.send_all(HEALTH)
        assert (await read_answer(bystander)).startswith(b"HTTP/1.1 200")
        answer = await say(bind, *parts)
        assert not answer.startswith(b"HTTP/1.1 101")
        assert b"\x00\x00\x00\x04" not in answer[:9], "nobody answers in HTTP/2"
        await bystander.send_all(HEALTH)
        assert (await read_answer(bystander)).startswith(b"HTTP/1.1 200")
    await assert_well(bind)
    assert [said for said in lines.said if said[0] == "DEFECT"] == []


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
async def test_random_frames_and_bytes_end_alone(seed: int, bind: Bind, lines: Lines) -> None:
    chance = random.Random(seed)
    heads = [
        PREFACE + SETTINGS,
        HEALTH,
        UPGRADE % (b"h2c", b""),
        b"POST /api/lattice/sync/messages HTTP/1.1\r\n",
    ]
    for _ in range(60):
        data = chance.choice(heads)
        for _ in range(chance.randint(1, 6)):
            payload = chance.choice([GET, NO_PATH, b"", chance.randbytes(chance.choice([4, 5, 8, 60]))])
            data += chance.choice(
                [
                    frame(
                        chance.randrange(11), chance.choice([0, 1, 4, 5, 255]), chance.randrange(6), payload
                    ),
                    chance.randbytes(chance.randrange(40)),
                    b"\r\n",
                    b"Content-Length: 5\r\n\r\n12345",
                ]
            )
        await say(bind, data)
    await assert_well(bind)
    assert [said for said in lines.said if said[0] == "DEFECT"] == []


async def test_a_defect_in_one_connection_ends_it_alone_and_is_logged(
    node: Node, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(self: object, data: object) -> None:
        raise ZeroDivisionError("a defect")

    shutdown = trio.Event()
    opened = listener.open_listener(Bind("127.0.0.1", 0), "LATTICE_SYNC_BIND")
    async with trio.open_nursery() as nursery:
        app = create_sync_app(node)
        where: Bind = await nursery.start(listener.serve_listener, app, opened, shutdown, lines)
        with monkeypatch.context() as patch:
            patch.setattr(connection.PlainHttp, "handle", broken)
            assert await say(where, HEALTH) == b""
        await assert_well(where)
        shutdown.set()
    assert [(said[0], said[1]) for said in lines.said if said[0] == "DEFECT"] == [("DEFECT", "API")]


async def test_a_closed_connection_leaves_at_once(bind: Bind) -> None:
    before = trio.lowlevel.current_statistics().tasks_living
    for _ in range(20):
        await say(bind, HEALTH)
        await say(bind, b"GET /hea")
    with trio.fail_after(5):
        while trio.lowlevel.current_statistics().tasks_living > before:
            await trio.sleep(0.01)


@pytest.mark.slow
async def test_connections_of_one_address_are_bounded(bind: Bind) -> None:
    held: list[trio.SocketStream] = []
    for _ in range(listener.CONNECTIONS_PER_ADDRESS_MAX):
        stream = await trio.open_tcp_stream(bind.host, bind.port)
        await stream.send_all(HEALTH)
        assert (await read_answer(stream)).startswith(b"HTTP/1.1 200")
        held.append(stream)
    assert await say(bind, HEALTH) == b""
    await held.pop().aclose()
    with trio.fail_after(5):
        while not (await say(bind, HEALTH)).startswith(b"HTTP/1.1 200"):
            await trio.sleep(0.01)
    for stream in held:
        await stream.aclose()


async def test_half_a_connection_still_gets_its_answer(bind: Bind) -> None:
    """A client that has said all it wants to say, and says so, is answered."""
    async with await trio.open_tcp_stream(bind.host, bind.port) as stream:
        await stream.send_all(HEALTH)
        await stream.send_eof()
        answer = b""
        while chunk := await stream.receive_some():
            answer += chunk
    assert answer.endswith(b'{"status":"healthy"}')


async def test_pipelined_requests_are_answered_in_order(bind: Bind) -> None:
    answer = await say(bind, HEALTH * 20)
    assert answer.count(b'{"status":"healthy"}') == 20


@pytest.mark.slow
async def test_a_client_that_does_not_read_is_let_go(
    app: object, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "SEND_TIMEOUT_S", 0.2)
    for number in range(30):
        await put_raw(node, b"k/%d" % number, orjson.dumps("x" * 120_000))
    async with listening(app) as where:  # type: ignore[arg-type]
        before = trio.lowlevel.current_statistics().tasks_living
        async with await trio.open_tcp_stream(where.host, where.port) as stream:
            request = b"GET /api/lattice/keys?limit=1000 HTTP/1.1\r\nHost: localhost\r\n\r\n"
            await stream.send_all(request * 4)
            with trio.fail_after(10):
                await trio.sleep(0.1)
                assert trio.lowlevel.current_statistics().tasks_living > before
                while trio.lowlevel.current_statistics().tasks_living > before:
                    await trio.sleep(0.02)
        async with httpx.AsyncClient(base_url=f"http://{where}") as client:
            assert (await client.get("/health")).status_code == 200
