"""Floods of the API of a real node: too much, too slow, too many, never read. What is held stays bounded,
and an honest caller at another address is served all the while."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing

import httpx
import pytest

from lattice.core.limits import HTTP_BODY_BYTES_MAX
from lattice.testing.cluster import wait_for

from .http_kit import Bystander, Rise, Scene, descriptors, dial, memory_kib, peak_memory_kib, say, scene

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

KEYS = "/api/lattice/keys/"
EVENTS = "/api/lattice/events"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with scene(tmp_path_factory.mktemp("floods")) as found:
        yield found


@pytest.fixture
def caller(made: Scene) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=made.victim.url, trust_env=False, timeout=30) as client:
        yield client


def test_giant_bodies_are_413_and_are_not_held(made: Scene) -> None:
    rise, before = Rise(made.victim), peak_memory_kib(made.victim)
    head = b"PUT %sk HTTP/1.1\r\nHost: localhost\r\n" % KEYS.encode()
    with Bystander(made.victim):
        announced = say(made.victim, head + b"Content-Length: 99999999999\r\n\r\n", ends=False)
        assert announced.startswith(b"HTTP/1.1 413")
        chunk = b"100000\r\n" + bytes(2**20) + b"\r\n"
        count = HTTP_BODY_BYTES_MAX // 2**20 + 2
        streamed = say(made.victim, head + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * count, ends=False)
        assert streamed.startswith(b"HTTP/1.1 413")
    assert rise.of("lattice_http_refused_total", "too_large") == 2
    assert peak_memory_kib(made.victim) - before < 48 * 1024


def test_slow_bodies_and_slow_heads_end_and_a_thousand_idle_connections_hurt_nobody(made: Scene) -> None:
    """All of them at once, for as long as the longest time-out."""
    rise, before = Rise(made.victim), memory_kib(made.victim)
    with ExitStack() as stack, Bystander(made.victim):
        slow_bodies = [
            stack.enter_context(closing(dial(made.victim.api_port, timeout_s=45))) for _ in range(5)
        ]
        for connection in slow_bodies:
            connection.sendall(
                b"PUT %sk HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n1" % KEYS.encode()
            )
        slow_heads = [
            stack.enter_context(closing(dial(made.victim.api_port, timeout_s=45))) for _ in range(5)
        ]
        for connection in slow_heads:
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: loc")
        idle = []
        for _ in range(1000):
            connection = socket.socket()
            stack.enter_context(closing(connection))
            connection.bind(("127.0.0.4", 0))
            connection.settimeout(5)
            connection.connect(("127.0.0.1", made.victim.api_port))
            idle.append(connection)
        rise.wait("lattice_http_refused_total", "connections_of_address", by=1000 - 256)
        assert descriptors(made.victim) < made.descriptors_before + 256 + 40
        made.control()
        for connection in slow_bodies:
            assert connection.recv(65_536).startswith(b"HTTP/1.1 408")
        for connection in slow_heads:
            assert connection.recv(65_536) == b""
        assert rise.of("lattice_http_refused_total", "too_slow") == len(slow_bodies)
        assert rise.of("lattice_http_refused_total", "slow_head") == len(slow_heads)
        assert rise.of("lattice_http_refused_total", "connections_of_address") == 1000 - 256
        # Who idles is let go in the same time.
        wait_for(
            "the idle are gone", lambda: descriptors(made.victim) < made.descriptors_before + 40, within_s=35
        )
    assert memory_kib(made.victim) - before < 48 * 1024
    made.control()


def test_a_flood_of_pipelined_requests_is_answered_in_turn(made: Scene) -> None:
    before = memory_kib(made.victim)
    one = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with Bystander(made.victim), closing(dial(made.victim.api_port)) as connection:
        sent = threading.Thread(target=lambda: connection.sendall(one * 1000))
        sent.start()
        seen, rest = 0, b""
        while seen < 1000:
            data = rest + connection.recv(65_536)
            assert data != rest
            seen += data.count(b'{"status":"healthy"}')
            rest = b"" if data.endswith(b'"healthy"}') else data[-19:]
        sent.join()
    assert memory_kib(made.victim) - before < 16 * 1024


def test_readers_of_events_that_never_read_are_bounded(made: Scene, caller: httpx.Client) -> None:
    rise, before = Rise(made.victim), memory_kib(made.victim)
    request = b"GET /api/lattice/events HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with ExitStack() as stack, Bystander(made.victim):
        readers = [stack.enter_context(closing(dial(made.victim.api_port))) for _ in range(80)]
        for reader in readers:
            reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            reader.sendall(request)
        rise.wait("lattice_http_refused_total", "too_many", by=80 - 64)
        refused = [reader.recv(4096) for reader in readers[64:]]
        assert all(answer.startswith(b"HTTP/1.1 429") for answer in refused)
        assert all(b"retry-after: 1\r\n" in answer.lower() for answer in refused)
        for number in range(100):
            keys = [{"op": "put", "key": f"event/{number}/{n}" + "x" * 500, "value": 1} for n in range(20)]
            assert caller.post("/api/lattice/entries", json={"ops": keys}).status_code == 201
        assert memory_kib(made.victim) - before < 64 * 1024
    answers = f"{EVENTS}?follow=false"
    wait_for("a place is free again", lambda: caller.get(answers).status_code == 200, within_s=10)
    made.control()


def test_floods_of_idempotency_keys(made: Scene, caller: httpx.Client) -> None:
    before = memory_kib(made.victim)
    count = made.victim.state().entry_count
    for number in range(200):
        key = f"{number}-".ljust(255, "x")
        first = caller.put(f"{KEYS}once", content=b"%d" % number, headers={"Idempotency-Key": key})
        again = caller.put(f"{KEYS}once", content=b"%d" % number, headers={"Idempotency-Key": key})
        assert (first.status_code, again.json()["id"]) == (201, first.json()["id"])
    rise = Rise(made.victim)
    other = caller.put(f"{KEYS}once", content=b"0.5", headers={"Idempotency-Key": "0-".ljust(255, "x")})
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_mismatch")
    assert rise.of("lattice_http_refused_total", "idempotency_mismatch") == 1
    assert made.victim.state().entry_count == count + 200
    assert memory_kib(made.victim) - before < 16 * 1024
    assert json.loads(caller.get(f"{KEYS}once").content)["value"] == 199
