"""One HTTP/1.1 connection, on hypercorn's protocol classes.

Separate because hypercorn's own trio server cannot be shown to strangers: it lets any client switch
to HTTP/2 in plain text, where one header block without a path raises out of the server and would
take the whole node along; and it waits for ever for a client that does not read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import h11
import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.events import Request
from hypercorn.protocol.h11 import STREAM_ID, H11Protocol
from hypercorn.protocol.http_stream import HTTPStream
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState, LifespanState
from hypercorn.utils import parse_socket_addr

from .refusals import HEAD_TOO_LARGE, NOT_HTTP, SLOW_HEAD, SLOW_READER

SEND_TIMEOUT_S: Final = 30.0  # for what the kernel has no room for: a client that does not read


class PlainHttp(H11Protocol):
    """HTTP/1.1 and nothing else: an Upgrade is not taken up, which every client must expect
    (RFC 9110, section 7.8)."""

    refused: Callable[[str], None]

    @property
    def is_begun(self) -> bool:
        """Whether a part of a request has come, and no more."""
        return self.stream is None and bool(self.connection.trailing_data[0])

    async def _send_error_response(self, status_code: int) -> None:
        self.refused(HEAD_TOO_LARGE if status_code == 431 else NOT_HTTP)
        await super()._send_error_response(status_code)

    async def _check_protocol(self, event: h11.Request) -> None:
        """No HTTP/2, neither by Upgrade nor by prior knowledge."""

    async def _create_stream(self, request: h11.Request) -> None:
        """No WebSocket either: each request becomes an HTTP stream."""
        self.stream = HTTPStream(
            self.app,
            self.config,
            self.context,
            self.task_group,
            self.ssl,
            self.client,
            self.server,
            self.stream_send,
            STREAM_ID,
        )
        await self.stream.handle(
            Request(
                stream_id=STREAM_ID,
                headers=list(request.headers),
                http_version=request.http_version.decode(),
                method=request.method.decode("ascii").upper(),
                raw_path=request.target,
                state=self.connection_state,
            )
        )
        self.keep_alive_requests += 1


class Connection(TCPServer):
    """Serves one connection until either side ends it. Its errors are the caller's to catch."""

    def __init__(
        self,
        app: ASGIWrapper,
        config: Config,
        context: WorkerContext,
        stream: trio.SocketStream,
        refused: Callable[[str], None],
    ) -> None:
        # hypercorn says SSLStream and takes either; TLS is a proxy's business here.
        super().__init__(app, config, context, LifespanState({}), stream)  # type: ignore[arg-type]
        self._reading = True
        self._refused = refused
        self._http: PlainHttp

    async def run(self) -> None:
        socket = self.stream.socket
        try:
            client = parse_socket_addr(socket.family, socket.getpeername())
            server = parse_socket_addr(socket.family, socket.getsockname())
            async with TaskGroup() as group:
                self._task_group = group
                self._http = PlainHttp(
                    self.app,
                    self.config,
                    self.context,
                    group,
                    ConnectionState(self.state),
                    False,
                    client,
                    server,
                    self.protocol_send,
                )
                self._http.refused = self._refused
                self.protocol = self._http  # type: ignore[assignment]
                await self.idle_task.restart(group, self._idle_timeout)
                await self._read_data()
                # Nothing more will come, so nobody is idle: without this a connection that was closed
                # would be held until the time for keeping it alive is over.
                self._reading = False
                await self.idle_task.stop()
        except OSError:
            pass  # the other side is gone
        finally:
            await self._close()

    async def protocol_send(self, event: Event) -> None:
        if isinstance(event, Updated) and not self._reading:
            return
        if not isinstance(event, RawData):
            await super().protocol_send(event)
            return
        async with self.send_lock:
            try:
                with trio.fail_after(SEND_TIMEOUT_S):
                    await self.stream.send_all(event.data)
                return
            except trio.TooSlowError:
                self._refused(SLOW_READER)
                await trio.aclose_forcefully(self.stream)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass
        await self.protocol.handle(Closed())

    async def _initiate_server_close(self) -> None:
        if self._http.is_begun and not self.context.terminated.is_set():
            self._refused(SLOW_HEAD)
        await super()._initiate_server_close()
