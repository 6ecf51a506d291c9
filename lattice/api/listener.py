"""Serving an application on a socket, in the node's own loop.

Separate because binding must fail early, in words that name the setting, because the number of
connections is bounded here, and because hypercorn's defaults (a connection closed after 1,000
requests, a banner on the console) are not ours.
"""

from __future__ import annotations

import errno
import logging
import socket
from functools import partial
from typing import Any, Final

import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.trio.worker_context import WorkerContext
from starlette.types import ASGIApp, Receive, Scope, Send

from ..core.addresses import Bind, source_of
from ..core.errors import ConfigError
from ..observability.logs import TaggedLogger
from .connection import Connection
from .refusals import CONNECTIONS, CONNECTIONS_OF_ADDRESS, Refusals

# Longer than a poll interval and than what our own client keeps idle connections (see http_poll).
KEEP_ALIVE_S: Final = 30.0
CONNECTIONS_MAX: Final = 384  # two listeners and all else fit in the 1,024 descriptors that are common
CONNECTIONS_PER_ADDRESS_MAX: Final = 256  # many nodes may come from behind one address
_BACKLOG: Final = 128
_REQUESTS_PER_CONNECTION: Final = 2**31
_HEAD_BYTES_MAX: Final = 32 * 1024  # a key of 1 KiB, percent-encoded, and tags of some siblings
_GRACE_S: Final = 3.0
SHUTDOWN: Final = "lattice.shutdown"  # in the scope of every request: set when the listener ends


def hypercorn_config() -> Config:
    """How every connection is served: keep-alive without end, no access log, no banner."""
    config = Config()
    config.keep_alive_timeout = KEEP_ALIVE_S
    config.keep_alive_max_requests = _REQUESTS_PER_CONNECTION
    config.h11_max_incomplete_size = _HEAD_BYTES_MAX
    config.accesslog = None
    config.errorlog = logging.getLogger("hypercorn.error")
    config.include_server_header = False
    return config


def open_listener(bind: Bind, variable: str) -> socket.socket:
    """A listening socket. `variable` is the setting that names the address, for the error.

    Raises ConfigError when the port is taken, not allowed, or the address is not this machine's.
    """
    family = socket.AF_INET6 if ":" in bind.host else socket.AF_INET
    try:
        if family is socket.AF_INET and not bind.is_wildcard:
            family = socket.getaddrinfo(bind.host, bind.port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((bind.host, bind.port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise ConfigError(f"{variable}={bind}: {_bind_trouble(error, bind)}") from error
    listener.setblocking(False)
    return listener


def _bind_trouble(error: OSError, bind: Bind) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {bind.port} is in use by another process; stop it, or choose another port"
    if error.errno == errno.EACCES:
        return f"port {bind.port} is not allowed to this user; choose one above 1023"
    if error.errno == errno.EADDRNOTAVAIL or isinstance(error, socket.gaierror):
        return "this machine does not have that address; use 127.0.0.1, 0.0.0.0 or one of its own"
    return f"cannot listen there: {error}"


def bound_to(listener: socket.socket) -> Bind:
    """Where a listener really listens: the port that the system chose for port 0."""
    name: Any = listener.getsockname()
    return Bind(name[0], name[1])


async def serve_listener(
    app: ASGIApp,
    listener: socket.socket,
    shutdown: trio.Event,
    logs: TaggedLogger | None = None,
    refusals: Refusals | None = None,
    *,
    task_status: trio.TaskStatus[Bind] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until `shutdown` is set or this is cancelled; then at most 3 s for requests under way.

    Reports where it listens once it accepts connections. Closes the listener at the end. A connection
    that meets a defect is logged and ends alone.
    """
    bind = bound_to(listener)
    server = _Server(_with_shutdown(app, shutdown), logs, refusals or Refusals())
    accepting = trio.SocketListener(trio.socket.from_stdlib_socket(listener))
    async with trio.open_nursery() as connections:
        async with accepting, trio.open_nursery() as door:
            await door.start(
                partial(trio.serve_listeners, handler_nursery=connections), server.serve, [accepting]
            )
            task_status.started(bind)
            await shutdown.wait()
            door.cancel_scope.cancel()
        await server.context.terminated.set()
        connections.cancel_scope.deadline = trio.current_time() + _GRACE_S


def _with_shutdown(app: ASGIApp, shutdown: trio.Event) -> ASGIApp:
    """The application, told of the shutdown: an answer without end must end when it comes."""

    async def told(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, SHUTDOWN: shutdown}, receive, send)

    return told


class _Server:
    """What the connections of one listener share, and how many there are."""

    def __init__(self, app: ASGIApp, logs: TaggedLogger | None, refusals: Refusals) -> None:
        framework: Any = app  # hypercorn has types of its own for the same protocol
        self._app = ASGIWrapper(framework)
        self._config = hypercorn_config()
        self._logs = logs
        self._refused = refusals.add
        self._by_address: dict[str, int] = {}
        self.context = WorkerContext(None)

    async def serve(self, stream: trio.SocketStream) -> None:
        """One connection, unless there are too many: then it is closed at once."""
        try:
            address = source_of(stream.socket.getpeername()[0])
        except OSError:  # it is gone already
            await trio.aclose_forcefully(stream)
            return
        held = self._by_address.get(address, 0)
        of_address = held >= CONNECTIONS_PER_ADDRESS_MAX
        if of_address or sum(self._by_address.values()) >= CONNECTIONS_MAX:
            self._refused(CONNECTIONS_OF_ADDRESS if of_address else CONNECTIONS)
            await trio.aclose_forcefully(stream)
            return
        self._by_address[address] = held + 1
        try:
            await Connection(self._app, self._config, self.context, stream, self._refused).run()
        except Exception as error:  # noqa: BLE001 - what one client meets must not end the node for all
            if self._logs is not None:
                self._logs.defect("API", "A connection met a defect", error, client=address)
        finally:
            self._by_address[address] -= 1
            if not self._by_address[address]:
                del self._by_address[address]
