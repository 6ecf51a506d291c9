"""Both applications behind hypercorn on real sockets: what only a server can show."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator

import httpx
import pytest
import trio
import trio.testing
from fastapi import FastAPI

from lattice.api.app import create_app, create_sync_app
from lattice.api.guards import Fence, Intake
from lattice.api.listener import bound_to, hypercorn_config, open_listener, serve_listener
from lattice.core.addresses import Bind
from lattice.core.errors import ConfigError
from lattice.core.limits import HTTP_BODY_BYTES_MAX
from lattice.node.node import Node
from tests.integration.api.api_kit import listening, operator_access, problem, read_answer


@pytest.fixture
async def bind(app: FastAPI) -> AsyncIterator[Bind]:
    async with listening(app) as where:
        yield where


@pytest.mark.slow
async def test_one_connection_takes_more_than_a_thousand_requests(bind: Bind) -> None:
    stream = await trio.open_tcp_stream(bind.host, bind.port)
    request = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with trio.fail_after(60):
        async with stream:
            for _ in range(1100):
                await stream.send_all(request)
                answer = await read_answer(stream)
                assert answer.startswith(b"HTTP/1.1 200")
                assert b"connection: close" not in answer


async def test_the_peer_sees_no_server_name_and_no_banner(
    bind: Bind, capfd: pytest.CaptureFixture[str]
) -> None:
    async with httpx.AsyncClient() as client:
        response = await client.get(f"http://{bind}/health")
    assert "server" not in response.headers
    assert capfd.readouterr() == ("", "")


async def test_a_real_client_on_loopback_is_an_operator(bind: Bind) -> None:
    async with httpx.AsyncClient(base_url=f"http://localhost:{bind.port}") as client:
        assert (await client.put("/api/lattice/keys/a%2Fb%0A", content=b"[1]")).status_code == 201
        assert (await client.get("/api/lattice/keys/a/b%0A")).json()["value"] == [1]
        proxied = await client.get("/api/lattice/keys/a/b%0A", headers={"X-Forwarded-For": "127.0.0.1"})
        problem(proxied, 401, "unauthorized")
        problem(await client.get("/health", headers={"Host": "evil.example"}), 400, "bad_host")
        assert (await client.head("/health")).content == b""


async def test_a_large_body_is_cut_and_answered(bind: Bind) -> None:
    """An endless chunked body: no length tells in advance that it is too much."""
    chunk = b"10000\r\n" + bytes(65_536) + b"\r\n"
    sent = 0
    with trio.fail_after(20):
        async with await trio.open_tcp_stream(bind.host, bind.port) as stream:
            await stream.send_all(
                b"PUT /api/lattice/keys/k HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
            )
            async with trio.open_nursery() as nursery:

                async def send() -> None:
                    nonlocal sent
                    while sent < 10 * HTTP_BODY_BYTES_MAX:
                        await stream.send_all(chunk)
                        sent += 65_536

                nursery.start_soon(send)
                answer = await read_answer(stream)
                nursery.cancel_scope.cancel()
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"connection: close" in answer
    assert b'"code":"too_large"' in answer
    assert HTTP_BODY_BYTES_MAX < sent < 4 * HTTP_BODY_BYTES_MAX
    async with httpx.AsyncClient(base_url=f"http://{bind}") as client:
        assert (await client.get("/health")).status_code == 200


async def test_an_announced_large_body_is_refused_before_it_is_sent(bind: Bind) -> None:
    with trio.fail_after(20):
        async with await trio.open_tcp_stream(bind.host, bind.port) as stream:
            await stream.send_all(
                b"PUT /api/lattice/keys/k HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999\r\n\r\n"
            )
            assert (await read_answer(stream)).startswith(b"HTTP/1.1 413")


@pytest.mark.slow
async def test_a_stranger_who_sends_much_gets_the_answer_and_leaves_nothing_behind(bind: Bind) -> None:
    """A refused body is not read by the application; the connection must end all the same."""
    before = trio.lowlevel.current_statistics().tasks_living
    with trio.fail_after(20):
        for _ in range(5):
            async with await trio.open_tcp_stream(bind.host, bind.port) as stream:
                await stream.send_all(
                    b"PUT /api/lattice/keys/k HTTP/1.1\r\nHost: evil.example\r\n"
                    b"Content-Length: 4000000\r\n\r\n" + bytes(1_000_000)
                )
                assert (await read_answer(stream)).startswith(b"HTTP/1.1 400")
        while trio.lowlevel.current_statistics().tasks_living > before:
            await trio.sleep(0.05)


@pytest.mark.slow
async def test_a_slow_body_is_408_and_the_connection_ends(node: Node) -> None:
    slow = Fence(Intake(create_app(node, operator_access()), timeout_s=0.2))
    with trio.fail_after(20):
        async with listening(slow) as where, await trio.open_tcp_stream(where.host, where.port) as stream:
            await stream.send_all(
                b"PUT /api/lattice/keys/k HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n123"
            )
            answer = await read_answer(stream)
            assert answer.startswith(b"HTTP/1.1 408")
            assert b'"code":"too_slow"' in answer
            while await stream.receive_some():
                pass
    assert node.engine.roots.entry_count == 0


async def test_a_client_that_leaves_in_its_body_writes_nothing(bind: Bind, node: Node) -> None:
    stream = await trio.open_tcp_stream(bind.host, bind.port)
    await stream.send_all(
        b"PUT /api/lattice/keys/k HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\n12"
    )
    await stream.aclose()
    async with httpx.AsyncClient(base_url=f"http://{bind}") as client:
        assert (await client.put("/api/lattice/keys/other", content=b"1")).status_code == 201
    assert node.key(b"k") is None
    assert node.engine.roots.entry_count == 1


@pytest.mark.parametrize(
    "head",
    [
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n",
        b"GET /health HTTP/1.1\r\n\r\n",
        b"GET /health HTTP/1.0\r\n\r\n",
        b"GET /hea\x00lth HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 70_000 + b"\r\n\r\n",
        b"PUT /api/lattice/keys/k HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"PUT /k HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"\x16\x03\x01 this is TLS",
    ],
)
async def test_heads_that_are_no_request_are_4xx(head: bytes, bind: Bind) -> None:
    with trio.fail_after(10):
        async with await trio.open_tcp_stream(bind.host, bind.port) as stream:
            try:
                await stream.send_all(head)
            except trio.BrokenResourceError:
                pass  # refused before all of it was sent
            answer = await stream.receive_some()
    assert answer.startswith((b"HTTP/1.1 400", b"HTTP/1.1 431"))


async def test_the_sync_listener_serves_two_routes_under_any_name(node: Node) -> None:
    async with (
        listening(create_sync_app(node)) as where,
        httpx.AsyncClient(base_url=f"http://{where}", headers={"Host": "any.example"}) as client,
    ):
        assert (await client.get("/health")).json() == {"status": "healthy"}
        refused = await client.post("/api/lattice/sync/messages", content=bytes(300))
        assert problem(refused, 400, "envelope") == "The envelope was refused."
        problem(await client.get("/api/lattice/sync/messages"), 405, "method_not_allowed")
        problem(await client.post("/health"), 405, "method_not_allowed")
        huge = await client.post("/api/lattice/sync/messages", content=bytes(HTTP_BODY_BYTES_MAX + 1))
        problem(huge, 413, "too_large")
        for path in ("/api/lattice/p2p/status", "/api/lattice/keys/k", "/docs", "/", "/readyz", "/metrics"):
            problem(await client.get(path), 404, "not_found")


def test_a_busy_port_names_the_setting() -> None:
    with open_listener(Bind("127.0.0.1", 0), "LATTICE_API_BIND") as first:
        port = first.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"LATTICE_SYNC_BIND=127.0.0.1:{port}: port {port} is in use"):
            open_listener(Bind("127.0.0.1", port), "LATTICE_SYNC_BIND")


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-name.invalid"])
def test_an_address_of_another_machine_names_the_setting(host: str) -> None:
    with pytest.raises(ConfigError, match=rf"LATTICE_API_BIND={host}:0: "):
        open_listener(Bind(host, 0), "LATTICE_API_BIND")


@pytest.mark.skipif(not socket.has_ipv6, reason="this machine has no IPv6")
def test_ipv6() -> None:
    try:
        listener = open_listener(Bind("::1", 0), "LATTICE_API_BIND")
    except ConfigError:
        pytest.skip("this machine has no IPv6 loopback")
    with listener:
        assert bound_to(listener).host == "::1"


def test_connections_are_kept() -> None:
    config = hypercorn_config()
    assert config.keep_alive_max_requests > 10**9
    assert config.accesslog is None
    assert not config.include_server_header


async def test_shutdown_lets_a_request_end_and_frees_the_port(node: Node) -> None:
    entered, gate = trio.Event(), trio.Event()

    class Slow:
        def __getattr__(self, name: str) -> object:
            return getattr(node, name)

        async def serve_sync(self, body: bytes, remote: str) -> bytes:
            entered.set()
            await gate.wait()
            return b"done"

    shutdown = trio.Event()
    listener = open_listener(Bind("127.0.0.1", 0), "LATTICE_SYNC_BIND")
    answers: list[bytes] = []

    async def ask(where: Bind) -> None:
        async with httpx.AsyncClient() as client:
            answers.append(
                (await client.post(f"http://{where}/api/lattice/sync/messages", content=b"x")).content
            )

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            app = create_sync_app(Slow())  # type: ignore[arg-type]
            where: Bind = await nursery.start(serve_listener, app, listener, shutdown)
            nursery.start_soon(ask, where)
            await entered.wait()
            shutdown.set()
            await trio.testing.wait_all_tasks_blocked()
            gate.set()
    assert answers == [b"done"]
    open_listener(where, "LATTICE_SYNC_BIND").close()
