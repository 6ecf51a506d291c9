"""The HTTP lung against servers that are hostile, broken or something else entirely."""

from __future__ import annotations

import gzip
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import httpcore
import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from lattice.core.errors import ConfigError
from lattice.core.limits import HTTP_PIECES_FREE
from lattice.transport.http_dial import INTERIM_ANSWERS_MAX
from lattice.transport.http_poll import SYNC_PATH, HttpPoll
from lattice.transport.port import TransportError

OCTETS = b"Content-Type: application/octet-stream\r\n"
Serve = Callable[[trio.abc.Stream, bytes], object]


async def read_request(stream: trio.abc.Stream) -> bytes:
    """One request with a body of the announced length."""
    data = b""
    while b"\r\n\r\n" not in data:
        chunk = await stream.receive_some(65_536)
        if not chunk:
            return data
        data += bytes(chunk)
    head, _, body = data.partition(b"\r\n\r\n")
    length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
    while len(body) < length:
        body += bytes(await stream.receive_some(65_536))
    return head + b"\r\n\r\n" + body


@asynccontextmanager
async def server(
    answer: bytes | Callable[[trio.abc.Stream], object], context: ssl.SSLContext | None = None
) -> AsyncIterator[tuple[str, list[bytes]]]:
    """A server that answers every request with `answer`; its URL, and the requests that came."""
    seen: list[bytes] = []

    async def serve(stream: trio.SocketStream) -> None:
        where: trio.abc.Stream = stream
        if context is not None:
            where = trio.SSLStream(stream, context, server_side=True, https_compatible=True)
        try:
            async with where:
                while True:
                    request = await read_request(where)
                    if not request:
                        return
                    seen.append(request)
                    if isinstance(answer, bytes):
                        await where.send_all(answer)
                    else:
                        await answer(where)  # type: ignore[misc]
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, serve, 0)
        port = listeners[0].socket.getsockname()[1]
        yield f"http{'s' if context else ''}://127.0.0.1:{port}", seen
        nursery.cancel_scope.cancel()


@pytest.fixture
async def lung() -> AsyncIterator[HttpPoll]:
    async with HttpPoll() as made:
        yield made


async def reason(lung: HttpPoll, url: str, timeout_s: float = 10) -> str:
    with pytest.raises(TransportError) as caught:
        await lung.exchange(url, b"request", timeout_s=timeout_s)
    return caught.value.reason


def plain(body: bytes, status: bytes = b"200 OK", headers: bytes = OCTETS) -> bytes:
    return b"HTTP/1.1 %s\r\n%sContent-Length: %d\r\n\r\n%s" % (status, headers, len(body), body)


async def test_what_is_sent(lung: HttpPoll, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    async with server(plain(b"answer", headers=OCTETS + b"Set-Cookie: a=b\r\n")) as (url, seen):
        for _ in range(3):
            assert await lung.exchange(f"{url}/prefix/", b"request", timeout_s=10) == b"answer"
    head, _, body = seen[0].partition(b"\r\n\r\n")
    lines = head.lower().split(b"\r\n")
    assert lines[0] == b"post /prefix" + SYNC_PATH.encode() + b" http/1.1"
    assert b"content-type: application/octet-stream" in lines
    assert b"accept-encoding: identity" in lines
    assert body == b"request"
    assert seen == [seen[0]] * 3, "nothing is remembered between requests, cookies included"


async def test_connections_are_used_again(lung: HttpPoll) -> None:
    connections = 0

    async def serve(stream: trio.SocketStream) -> None:
        nonlocal connections
        connections += 1
        while await read_request(stream):
            await stream.send_all(plain(b"ok"))

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, serve, 0)
        url = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        for _ in range(5):
            await lung.exchange(url, b"x", timeout_s=10)
        assert connections == 1
        await lung.aclose()
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (plain(b"", b"301 Moved", b"Location: http://169.254.169.254/\r\n"), "status_301"),
        (plain(b"", b"307 Temporary", b"Location: /api/lattice/sync/messages\r\n"), "status_307"),
        (plain(b"x", b"404 Not Found"), "status_404"),
        (plain(b"x", b"502 Bad Gateway", b"Content-Type: text/html\r\n"), "status_502"),
        (plain(b"x", b"201 Created"), "status_201"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", "status_204"),
        (plain(b"<html>", headers=b"Content-Type: text/html\r\n"), "not_octets"),
        (plain(b"x", headers=b""), "not_octets"),
        (plain(b"x", headers=b"Content-Type: application/octet-streams\r\n"), "not_octets"),
        (plain(gzip.compress(bytes(10**6)), headers=OCTETS + b"Content-Encoding: gzip\r\n"), "encoded"),
        (plain(b"x", headers=OCTETS + b"Content-Encoding: br, gzip\r\n"), "encoded"),
        (b"HTTP/1.1 200 OK\r\n" + OCTETS + b"Content-Length: 99999999999\r\n\r\n", "too_large"),
        (b"HTTP/1.1 200 OK\r\n" + OCTETS + b"Content-Length: -1\r\n\r\n", "not_http"),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "not_http"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200_000 + b"\r\n\r\n", "not_http"),
    ],
)
async def test_answers_that_are_refused(answer: bytes, expected: str, lung: HttpPoll) -> None:
    async with server(answer) as (url, seen):
        assert await reason(lung, url) == expected
        assert len(seen) == 1, "no redirect is followed and nothing is tried again"


async def test_an_endless_body_is_cut(lung: HttpPoll) -> None:
    sent = 0

    async def endless(stream: trio.abc.Stream) -> None:
        nonlocal sent
        await stream.send_all(b"HTTP/1.1 200 OK\r\n" + OCTETS + b"Transfer-Encoding: chunked\r\n\r\n")
        while True:
            await stream.send_all(b"10000\r\n" + bytes(65_536) + b"\r\n")
            sent += 65_536

    async with server(endless) as (url, _):
        assert await reason(lung, url) == "too_large"
    assert sent < 32 * 2**20


@pytest.mark.parametrize("drip", [b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 100 Continue\r\n\r\n", plain(b"")[:-2]])
async def test_a_slow_answer_ends_at_the_deadline(drip: bytes, lung: HttpPoll) -> None:
    async def slow(stream: trio.abc.Stream) -> None:
        await stream.send_all(drip)
        while True:
            await trio.sleep(0.02)
            await stream.send_all(b"HTTP/1.1 100 Continue\r\n\r\n" if b"100" in drip else b"X: y\r\n")

    async with server(slow) as (url, _):
        started = trio.current_time()
        assert await reason(lung, url, timeout_s=0.15) == "timeout"
        assert trio.current_time() - started < 5


@pytest.mark.parametrize(
    "part",
    [
        b"",
        b"HTTP/1.1 200",
        plain(b"12345")[:-1],
        plain(b"", headers=OCTETS + b"Transfer-Encoding: chunked\r\n"),
    ],
)
async def test_a_connection_that_ends_early(part: bytes, lung: HttpPoll) -> None:
    async def cut(stream: trio.abc.Stream) -> None:
        if part:
            await stream.send_all(part)
        await stream.aclose()

    async with server(cut) as (url, _):
        assert await reason(lung, url) in ("reset", "not_http")


async def test_a_name_that_does_not_exist(lung: HttpPoll) -> None:
    assert await reason(lung, "http://no-such-name.invalid:8100") == "unresolved"


async def test_a_ca_file_that_holds_none(tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    path.write_text("not a certificate")
    for wrong in (path, tmp_path / "missing.pem"):
        with pytest.raises(ConfigError, match="LATTICE_TLS_CA_FILE"):
            HttpPoll(ca_file=wrong)


def certificate(tmp_path: Path) -> tuple[Path, ssl.SSLContext]:
    """A self-signed certificate for 127.0.0.1: its file, and a server's context."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "lattice test")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    path, key_path = tmp_path / "ca.pem", tmp_path / "key.pem"
    path.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    key_path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path, key_path)
    return path, context


async def test_https_by_the_given_authority_only(tmp_path: Path, lung: HttpPoll) -> None:
    ca_file, context = certificate(tmp_path)
    async with server(plain(b"answer"), context) as (url, _), HttpPoll(ca_file=ca_file) as trusting:
        assert await trusting.exchange(url, b"x", timeout_s=10) == b"answer"
        assert await reason(trusting, url.replace("127.0.0.1", "localhost")) == "tls"
        assert await reason(lung, url) == "tls"
        assert await reason(trusting, url.replace("https", "http")) in ("reset", "not_http")


class MovingName(trio.abc.HostnameResolver):
    """A resolver in which the one name leads to wherever `address` says now."""

    def __init__(self, address: str) -> None:
        self.address = address

    async def getaddrinfo(
        self, host: bytes | None, port: bytes | str | int | None, *rest: int
    ) -> list[tuple[socket.AddressFamily, socket.SocketKind, int, str, tuple[str, int]]]:
        assert host == b"node.example"
        assert port is not None
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (self.address, int(port)))]

    async def getnameinfo(self, sockaddr: tuple[str, int], flags: int) -> tuple[str, str]:
        raise OSError("no reverse lookups here")


async def test_a_name_that_moves_is_followed(lung: HttpPoll) -> None:
    # trio's server listens on every address of loopback but its broadcast address.
    names = MovingName("127.255.255.255")
    before = trio.socket.set_custom_hostname_resolver(names)
    answer = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n" + OCTETS + b"\r\nok"
    try:
        async with server(answer) as (url, _):
            named = url.replace("127.0.0.1", "node.example")
            with pytest.raises(TransportError):
                await lung.exchange(named, b"x", timeout_s=2)
            names.address = "127.0.0.1"
            assert await lung.exchange(named, b"x", timeout_s=2) == b"ok"
    finally:
        trio.socket.set_custom_hostname_resolver(before)


@pytest.mark.parametrize("address", ["169.254.169.254", "224.0.0.1", "255.255.255.255", "0.0.0.0"])
async def test_a_name_that_leads_to_no_node_is_left_before_a_byte_is_said(
    lung: HttpPoll, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing here may be sent to those addresses, so the connection goes to a server of ours, which
    says of itself that it is there."""
    names = MovingName("127.0.0.1")
    before = trio.socket.set_custom_hostname_resolver(names)
    monkeypatch.setattr(
        httpcore.TrioBackend, "connect_tcp", _claiming(address, httpcore.TrioBackend.connect_tcp)
    )
    try:
        async with server(plain(b"answer")) as (url, seen):
            assert await reason(lung, url.replace("127.0.0.1", "node.example")) == "bad_address"
            assert seen == []
            assert await lung.exchange(url, b"x", timeout_s=2) == b"answer", "an address was judged before"
    finally:
        trio.socket.set_custom_hostname_resolver(before)


def _claiming(address: str, connect: Callable[..., Any]) -> Callable[..., Any]:
    async def connect_tcp(*args: Any, **named: Any) -> httpcore.AsyncNetworkStream:
        stream: httpcore.AsyncNetworkStream = await connect(*args, **named)
        told = stream.get_extra_info

        def tell(info: str) -> object:
            return (address, 80) if info == "server_addr" else told(info)

        setattr(stream, "get_extra_info", tell)
        return stream

    return connect_tcp


@pytest.mark.parametrize("pieces", [1, 3, 50])
async def test_interim_answers_are_passed_over_up_to_a_bound(lung: HttpPoll, pieces: int) -> None:
    interim = b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"

    async def answering(stream: trio.abc.Stream, count: int) -> None:
        data = interim * count + plain(b"answer")
        step = len(data) // pieces + 1
        for start in range(0, len(data), step):
            await stream.send_all(data[start : start + step])
            await trio.lowlevel.checkpoint()

    for count in (0, 1, INTERIM_ANSWERS_MAX):

        async def few(stream: trio.abc.Stream, count: int = count) -> None:
            await answering(stream, count)

        async with server(few) as (url, _):
            for _ in range(2):
                assert await lung.exchange(url, b"x", timeout_s=10) == b"answer"

    async def many(stream: trio.abc.Stream) -> None:
        await answering(stream, INTERIM_ANSWERS_MAX + 1)

    async with server(many) as (url, _):
        assert await reason(lung, url) == "interim"


async def test_a_flood_of_interim_answers_is_cut_at_once(lung: HttpPoll) -> None:
    sent = 0

    async def flood(stream: trio.abc.Stream) -> None:
        nonlocal sent
        while True:
            await stream.send_all(b"HTTP/1.1 100 Continue\r\n\r\n" * 1000)
            sent += 1000

    async with server(flood) as (url, _):
        began = trio.current_time()
        assert await reason(lung, url, timeout_s=10) == "interim"
        assert trio.current_time() - began < 8
    assert sent < 1_000_000


async def test_a_body_in_crumbs_is_cut(lung: HttpPoll) -> None:
    head = b"HTTP/1.1 200 OK\r\n" + OCTETS + b"Transfer-Encoding: chunked\r\n\r\n"

    async def crumbs(stream: trio.abc.Stream) -> None:
        await stream.send_all(head)
        while True:
            await stream.send_all(b"1\r\nx\r\n" * 1000)

    async def pieces(stream: trio.abc.Stream) -> None:
        await stream.send_all(head)
        for _ in range(4 * HTTP_PIECES_FREE):
            await stream.send_all(b"40\r\n" + bytes(64) + b"\r\n")
        await stream.send_all(b"0\r\n\r\n")

    async with server(crumbs) as (url, _):
        began = trio.current_time()
        assert await reason(lung, url, timeout_s=10) == "drips"
        assert trio.current_time() - began < 8
    async with server(pieces) as (url, _):
        assert await lung.exchange(url, b"x", timeout_s=10) == bytes(64 * 4 * HTTP_PIECES_FREE)
