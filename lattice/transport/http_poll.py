"""The client half of the HTTP lung: one POST of sealed bytes to a node's base URL, over httpx.

Separate because it is the only place where the node dials out over HTTP, so that every answer of a
stranger (redirects, compression, endless bodies, HTML) is refused in one spot.
"""

from __future__ import annotations

import socket
import ssl
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import httpx
import trio

from ..core.addresses import parse_node_url
from ..core.errors import ConfigError, MalformedError
from ..core.limits import CONNECTIONS_MAX, HTTP_BODY_BYTES_MAX, drips
from .http_dial import GuardedTransport
from .port import TransportError

SYNC_PATH: Final = "/api/lattice/sync/messages"
OCTET_STREAM: Final = "application/octet-stream"

# Shorter than the server's keep-alive time, so that a request never meets a connection that the
# other side is just closing; longer than a poll interval, so that polls share one connection.
KEEP_ALIVE_S: Final = 15.0
_IDLE_CONNECTIONS_MAX: Final = 16

_HEADERS: Final = {
    "content-type": OCTET_STREAM,
    "accept": OCTET_STREAM,
    "accept-encoding": "identity",
    "user-agent": "lattice",
}


class HttpPoll:
    """The HTTP lung (`HttpLung`): use as an async context manager, or call `aclose` at the end.

    It speaks through httpx's transport and not through its client: no cookies, no redirects, no
    proxies or credentials from the environment, nothing remembered between requests but connections.
    """

    def __init__(self, *, ca_file: Path | None = None, body_bytes_max: int = HTTP_BODY_BYTES_MAX) -> None:
        """`ca_file`: certificate authorities in PEM, in place of the system's. Raises ConfigError when
        it holds none."""
        self._body_bytes_max = body_bytes_max
        try:
            context = ssl.create_default_context(cafile=str(ca_file) if ca_file else None)
        except (OSError, ssl.SSLError) as error:
            why = error.strerror or error
            text = (
                f"LATTICE_TLS_CA_FILE={ca_file} cannot be used ({why}): name a readable file of certificates"
            )
            raise ConfigError(f"{text} in PEM") from error
        self._transport = GuardedTransport(
            verify=context,
            limits=httpx.Limits(
                max_connections=CONNECTIONS_MAX,
                max_keepalive_connections=_IDLE_CONNECTIONS_MAX,
                keepalive_expiry=KEEP_ALIVE_S,
            ),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close all connections."""
        await self._transport.aclose()

    async def exchange(self, url: str, request: bytes, *, timeout_s: float) -> bytes:
        """POST `request` to the node at base `url` (a path prefix stays), return the answer's body.

        `timeout_s` spans all of it: resolving, connecting, sending and the last byte. Raises
        TransportError, among others with the reasons `refused`, `timeout`, `reset`, `unresolved`,
        `bad_address`, `tls`, `status_NNN`, `interim`, `not_octets`, `encoded`, `too_large` and `drips`.
        """
        try:
            with trio.fail_after(timeout_s):
                return await self._post(url, request)
        except trio.TooSlowError as error:
            raise TransportError("timeout", f"no whole answer within {timeout_s:g} s") from error
        except (MalformedError, httpx.InvalidURL) as error:
            raise TransportError("bad_url", str(error)) from error
        except (httpx.TransportError, ssl.SSLError, OSError) as error:
            raise TransportError(_reason(error), str(error)) from error

    async def _post(self, url: str, request: bytes) -> bytes:
        target = httpx.URL(parse_node_url(url) + SYNC_PATH)
        response = await self._transport.handle_async_request(
            httpx.Request("POST", target, headers=_HEADERS, content=request)
        )
        try:
            self._check_head(response)
            return await self._read_body(response)
        finally:
            await response.aclose()

    async def _read_body(self, response: httpx.Response) -> bytes:
        body = bytearray()
        cut: TransportError | None = None
        pieces = 0
        try:
            async for chunk in response.aiter_raw():
                if cut is not None:
                    continue
                body += chunk
                pieces += 1
                if len(body) > self._body_bytes_max:
                    cut = TransportError("too_large", f"an answer of over {self._body_bytes_max} bytes")
                elif drips(pieces, len(body)):
                    cut = TransportError("drips", f"{pieces} pieces for {len(body)} bytes")
                if cut is not None:
                    # The body comes through generators within generators. Leaving this loop would
                    # abandon the inner ones; a read from the closed connection ends them all.
                    body.clear()
                    await response.stream.aclose()  # type: ignore[union-attr]
        except httpx.TransportError:
            if cut is None:
                raise
        if cut is not None:
            raise cut
        return bytes(body)

    def _check_head(self, response: httpx.Response) -> None:
        if response.status_code != 200:
            raise TransportError(f"status_{response.status_code}")
        if response.headers.get("content-encoding", "identity").lower() != "identity":
            raise TransportError("encoded", "the answer is compressed, which was not asked for")
        media_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type != OCTET_STREAM:
            raise TransportError("not_octets", f"an answer of type {media_type[:64]!r}: is this a node?")
        announced = response.headers.get("content-length", "0")
        # h11 has checked that it is a number.
        if int(announced) > self._body_bytes_max:
            raise TransportError("too_large", f"an answer of {announced} bytes")


def _reason(error: BaseException) -> str:
    """The stable word for a failure: the most telling cause under httpx's error."""
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLError):
            return "tls"
        if isinstance(cause, socket.gaierror):
            return "unresolved"
        if isinstance(cause, ConnectionRefusedError):
            return "refused"
    if isinstance(error, httpx.ConnectError):
        return "unreachable"
    if isinstance(error, (httpx.RemoteProtocolError, httpx.LocalProtocolError)):
        return "reset" if "disconnected" in str(error) else "not_http"
    return "reset"


def _causes(error: BaseException) -> list[BaseException]:
    """The error with everything that led to it, groups unfolded; a cycle ends the walk."""
    found: list[BaseException] = []
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop()
        if one is None or any(one is seen for seen in found):
            continue
        found.append(one)
        if isinstance(one, BaseExceptionGroup):
            waiting.extend(one.exceptions)
        waiting += [one.__cause__, one.__context__]
    return found
