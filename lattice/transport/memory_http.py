"""The memory HTTP lung, client and listener, over an in-memory network.

Separate from the P2P lung because a node may have either without the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from urllib.parse import urlsplit

import trio

from ..core.addresses import parse_node_url
from ..core.errors import LatticeError, MalformedError
from ..core.limits import HTTP_BODY_BYTES_MAX
from .memory_link import Pending
from .memory_network import SMALL_BYTES, HttpHandler, HttpSite, MemoryNetwork, Packet
from .port import TransportError


class MemoryHttpLung:
    """An `HttpLung` at one host of a memory network."""

    def __init__(self, network: MemoryNetwork, host: str) -> None:
        self._network = network
        self._host = host

    async def exchange(self, url: str, request: bytes, *, timeout_s: float) -> bytes:
        """See HttpLung. A lost packet is sent again until the time is over."""
        try:
            base = parse_node_url(url)
        except MalformedError as error:
            raise TransportError("bad_url", error.message) from error
        host = urlsplit(base).hostname or ""
        call = Pending()
        packet = Packet("http", self._host, host, len(request))
        try:
            with trio.fail_after(timeout_s):
                self._network.insist(
                    packet, lambda: self._arrive(base, host, request, call), lambda: not call.done.is_set()
                )
                await call.done.wait()
        except trio.TooSlowError as error:
            raise TransportError("timeout", f"no whole answer within {timeout_s:g} s") from error
        finally:
            call.fail("cancelled")
        if call.answer is None:
            raise TransportError(call.reason)
        if len(call.answer) > HTTP_BODY_BYTES_MAX:
            raise TransportError("too_large", f"an answer of over {HTTP_BODY_BYTES_MAX} bytes")
        return call.answer

    def _arrive(self, base: str, host: str, request: bytes, call: Pending) -> None:
        site = self._network.sites.get(base)
        if site is None:
            back = Packet("http", host, self._host, SMALL_BYTES)
            self._network.send(back, partial(call.fail, "refused"))
        else:
            site.nursery.start_soon(self._serve, site, request, call)

    async def _serve(self, site: HttpSite, request: bytes, call: Pending) -> None:
        finish = partial(call.fail, "reset")
        size = SMALL_BYTES
        try:
            answer = await site.handler(request, self._host)
            size = len(answer)
            finish = partial(call.succeed, answer)
        except LatticeError as error:
            finish = partial(call.fail, f"status_{error.kind.status}")
        finally:
            back = Packet("http", site.host, self._host, size)
            self._network.insist(back, finish, lambda: not call.done.is_set())


async def serve_http(
    network: MemoryNetwork,
    urls: Sequence[str],
    handler: HttpHandler,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Listen at base URLs until cancelled; `handler(body, remote)` answers."""
    async with trio.open_nursery() as nursery:
        sites = {parse_node_url(url): url for url in urls}
        for base in sites:
            network.sites[base] = HttpSite(urlsplit(base).hostname or "", handler, nursery)
        try:
            task_status.started()
            await trio.sleep_forever()
        finally:
            for base in sites:
                del network.sites[base]
