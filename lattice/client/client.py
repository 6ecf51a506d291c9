"""The clients of a node's API over httpx: one that blocks, for programs and the command line, and an
async one for trio.

Separate from the calls because only here is a network: time-outs, tokens, and what a failure means.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeVar

import httpx
import trio

from ..core.errors import LatticeError
from . import calls
from .calls import Call
from .events import SILENCE_S, Event, Follower

T = TypeVar("T")

_TOKEN: Final = "name the api.token that `lattice init` made in the data directory of that node"
CONNECT_TIMEOUT_S: Final = 5.0
ANSWER_TIMEOUT_S: Final = 30.0  # a write with ?ack=N may take 10 s, a full queue some more
_STREAM_TIMEOUT: Final = httpx.Timeout(CONNECT_TIMEOUT_S, read=SILENCE_S)


def read_token_file(path: Path) -> str:
    """The token in a file. Raises LatticeError `unauthorized`."""
    try:
        token = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is no text"
        raise LatticeError(
            "unauthorized", f"the token file {path} cannot be read ({why}): {_TOKEN}"
        ) from error
    if not token:
        raise LatticeError("unauthorized", f"the token file {path} is empty: {_TOKEN}")
    return token


class Client:
    """A blocking client of one node. Use as a context manager, or call `close`.

    `send` carries out a Call of `lattice.client.calls`; it raises the LatticeError that the node
    answered, or `unreachable`.
    """

    def __init__(
        self,
        base_url: str,
        *,
        token: str | None = None,
        ca_file: Path | None = None,
        timeout_s: float = ANSWER_TIMEOUT_S,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._base_url = base_url.rstrip("/")
        self._http = httpx.Client(
            verify=_tls(base_url, ca_file),
            trust_env=False,  # a proxy of the environment must not see the token of a node next door
            headers=_headers(token),
            timeout=httpx.Timeout(timeout_s, connect=CONNECT_TIMEOUT_S),
            transport=transport,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def send(self, call: Call[T]) -> T:
        try:
            response = self._http.request(
                call.method, self._base_url + call.target, headers=dict(call.headers), content=call.body
            )
        except (httpx.TransportError, httpx.InvalidURL) as error:
            raise _unreachable(self._base_url, error) from error
        return call.read(response.status_code, response.content)

    def events(
        self, *, prefix: str = "", types: Sequence[str] = (), after: str | None = None
    ) -> Generator[Event]:
        """What happens at the node, for ever: resumed by itself after a cut, each event once, with a
        `lost` event where some are missing.

        `prefix` narrows entries by key, `types` the types; `after` is the id of the last event that
        was seen. Raises LatticeError when the first connection fails or the node refuses. Between two
        tries it waits 0.5 to 10 s.
        """
        follower = Follower(calls.events(prefix=prefix, types=types), after)
        while True:
            try:
                yield from self._stream(follower)
                pause_s = follower.ended()
            except LatticeError as error:
                pause_s = follower.failed(error)
            time.sleep(pause_s)

    def _stream(self, follower: Follower) -> Generator[Event]:
        """The events of one connection."""
        follower.begin()
        try:
            with self._http.stream(
                "GET",
                self._base_url + follower.target,
                headers=follower.headers(),
                timeout=_STREAM_TIMEOUT,
            ) as response:
                refusal = response.read() if response.status_code != 200 else b""
                follower.opened(response.status_code, response.headers.get("content-type", ""), refusal)
                for chunk in response.iter_bytes():
                    yield from follower.feed(chunk)
        except (httpx.TransportError, httpx.InvalidURL) as error:
            raise _unreachable(self._base_url, error) from error


class AsyncClient:
    """The same for trio. Use as an async context manager, or call `aclose`."""

    def __init__(
        self,
        base_url: str,
        *,
        token: str | None = None,
        ca_file: Path | None = None,
        timeout_s: float = ANSWER_TIMEOUT_S,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._base_url = base_url.rstrip("/")
        self._http = httpx.AsyncClient(
            verify=_tls(base_url, ca_file),
            trust_env=False,
            headers=_headers(token),
            timeout=httpx.Timeout(timeout_s, connect=CONNECT_TIMEOUT_S),
            transport=transport,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        await self._http.aclose()

    async def send(self, call: Call[T]) -> T:
        try:
            response = await self._http.request(
                call.method, self._base_url + call.target, headers=dict(call.headers), content=call.body
            )
        except (httpx.TransportError, httpx.InvalidURL) as error:
            raise _unreachable(self._base_url, error) from error
        return call.read(response.status_code, response.content)

    async def events(
        self, *, prefix: str = "", types: Sequence[str] = (), after: str | None = None
    ) -> AsyncGenerator[Event]:
        """As `Client.events`. Close the iterator (`contextlib.aclosing`) to end the stream at once."""
        follower = Follower(calls.events(prefix=prefix, types=types), after)
        while True:
            try:
                async with aclosing(self._stream(follower)) as stream:
                    async for event in stream:
                        yield event
                pause_s = follower.ended()
            except LatticeError as error:
                pause_s = follower.failed(error)
            await trio.sleep(pause_s)

    async def _stream(self, follower: Follower) -> AsyncGenerator[Event]:
        """The events of one connection."""
        follower.begin()
        try:
            async with self._http.stream(
                "GET",
                self._base_url + follower.target,
                headers=follower.headers(),
                timeout=_STREAM_TIMEOUT,
            ) as response:
                refusal = await response.aread() if response.status_code != 200 else b""
                follower.opened(response.status_code, response.headers.get("content-type", ""), refusal)
                async with chunks_of(response) as chunks:
                    async for chunk in chunks:
                        for event in follower.feed(chunk):
                            yield event
        except (httpx.TransportError, httpx.InvalidURL) as error:
            raise _unreachable(self._base_url, error) from error


@asynccontextmanager
async def chunks_of(response: httpx.Response) -> AsyncGenerator[AsyncIterator[bytes]]:
    """The parts of a streamed body, which may be left in the middle.

    httpx reads through generators within generators, and closing the outer one leaves the inner ones
    to the garbage collector, which under trio is an error: so the connection is closed, and reading
    on then fails in the innermost and unwinds them all.
    """
    chunks = response.aiter_bytes()
    try:
        yield chunks
    finally:
        with trio.CancelScope(shield=True):
            await response.aclose()
            with suppress(httpx.TransportError, httpx.StreamError):
                async for _ in chunks:
                    pass


def _headers(token: str | None) -> dict[str, str]:
    headers = {"user-agent": "lattice-client", "accept": "application/json"}
    if token is not None:
        headers["authorization"] = f"Bearer {token}"
    return headers


def _tls(base_url: str, ca_file: Path | None) -> ssl.SSLContext | bool:
    if not base_url.startswith("https:"):
        return False  # nothing to verify; loading the authorities would cost 20 ms
    try:
        return ssl.create_default_context(cafile=str(ca_file) if ca_file else None)
    except (OSError, ssl.SSLError) as error:
        raise LatticeError("config", f"LATTICE_TLS_CA_FILE={ca_file} cannot be used: {error}") from error


def _unreachable(base_url: str, error: Exception) -> LatticeError:
    what = "did not answer in time" if isinstance(error, httpx.TimeoutException) else "does not answer"
    cause = str(error) or type(error).__name__
    return LatticeError(
        "unreachable",
        f"the node at {base_url} {what} ({cause}); start it with `lattice start`, or name another with --url",
    )
