"""Dialling for the HTTP lung: connections that judge where a name has led, and what precedes an answer.

Separate from the exchange because httpx shows neither: where a name leads is known only once the
connection stands, and interim answers (1xx) are swallowed before anybody sees them.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterable
from typing import Any, Final

import httpcore
import httpx

from ..core.addresses import ip_of, is_unroutable
from .port import TransportError

# RFC 9110, section 15.2: an answer may have interim ones. Nothing between nodes sends any; a proxy may
# send one or two. Without a bound each costs the loop its parsing, until the deadline of the exchange.
INTERIM_ANSWERS_MAX: Final = 8
_HEAD_END: Final = b"\r\n\r\n"
_HEAD_BYTES_MAX: Final = 128 * 1024  # above what h11 takes of one head, which then refuses it itself


class GuardedTransport(httpx.AsyncHTTPTransport):
    """httpx's transport over connections that are guarded."""

    def __init__(self, *, verify: ssl.SSLContext, limits: httpx.Limits) -> None:
        super().__init__(verify=verify, trust_env=False, limits=limits)
        # httpx has no parameter for httpcore's network backend; the pool in it is httpcore's own.
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=verify,
            max_connections=limits.max_connections,
            max_keepalive_connections=limits.max_keepalive_connections,
            keepalive_expiry=limits.keepalive_expiry,
            network_backend=_Dialler(),
        )


class _Dialler(httpcore.AsyncNetworkBackend):
    """Connects as httpcore does. A name that led to where no node can be is left without a word said:
    the name may be a stranger's. An address as such has been judged where it came from."""

    def __init__(self) -> None:
        self._backend = httpcore.TrioBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        stream = await self._backend.connect_tcp(host, port, timeout, local_address, socket_options)
        if ip_of(host) is None:
            place = ip_of(stream.get_extra_info("server_addr")[0].partition("%")[0])
            if place is None or is_unroutable(place):
                await stream.aclose()
                raise TransportError("bad_address", f"{host} leads to {place}, where no node can be")
        return GuardedStream(stream)


class GuardedStream(httpcore.AsyncNetworkStream):
    """A connection that counts the interim answers before each answer."""

    def __init__(self, stream: httpcore.AsyncNetworkStream) -> None:
        self._stream = stream
        self._head: bytearray | None = None  # what came of the head that is awaited, None within a body
        self._interim = 0

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        data = await self._stream.read(max_bytes, timeout)
        if self._head is not None:
            self._head += data
            self._skip_interim(self._head)
        return data

    def _skip_interim(self, head: bytearray) -> None:
        """Raises TransportError `interim` for more interim answers than anybody needs."""
        start = 0
        while (end := head.find(_HEAD_END, start)) >= 0:
            if not (head.startswith(b"HTTP/1.", start) and head[start + 8 : start + 10] == b" 1"):
                self._head = None
                return
            self._interim += 1
            if self._interim > INTERIM_ANSWERS_MAX:
                raise TransportError("interim", f"more than {INTERIM_ANSWERS_MAX} interim answers")
            start = end + len(_HEAD_END)
        del head[:start]
        if len(head) > _HEAD_BYTES_MAX:
            self._head = None

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._head, self._interim = bytearray(), 0
        await self._stream.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        return GuardedStream(await self._stream.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> object:
        return self._stream.get_extra_info(info)
