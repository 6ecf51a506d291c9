"""Links by peer: who opens one, how many are kept, when a lost one is opened again.

Separate from the link itself, which knows one stream, and from the dialer, which knows connections:
a link can be lost while the connection, or another connection to the same peer, lives.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

import trio
from libp2p.custom_types import TProtocol
from libp2p.exceptions import BaseLibp2pError

from lattice.core.limits import LINKS_PER_PEER_MAX
from lattice.transport.p2p.counters import Counters
from lattice.transport.p2p.streams import STREAM_ERRORS, SYNC_PROTOCOL, Link
from lattice.transport.p2p.tuning import Tuning
from lattice.transport.port import P2PHandler

if TYPE_CHECKING:
    from libp2p.abc import INetStream
    from libp2p.peer.id import ID

    from lattice.transport.p2p.host import Host

_PROTOCOLS: Final = (TProtocol(SYNC_PROTOCOL),)


class Links:
    """The links of one life of the host."""

    def __init__(
        self,
        handler: P2PHandler,
        *,
        payload_bytes_max: int,
        counters: Counters,
        tuning: Tuning,
        log: logging.Logger,
    ) -> None:
        self._handler = handler
        self._payload_max = payload_bytes_max
        self._counters = counters
        self._tuning = tuning
        self._log = log
        self._host: Host | None = None
        self._open: dict[ID, list[Link]] = {}
        self._changed: dict[ID, trio.Event] = {}

    def attach(self, host: Host) -> None:
        """The host is built with `accept` as a handler, so it can only be named afterwards."""
        self._host = host

    def of(self, peer: ID) -> tuple[Link, ...]:
        return tuple(self._open.get(peer, ()))

    def forget(self, peer: ID) -> None:
        """The peer is gone; nobody waits for its links any more."""
        self._changed.pop(peer, None)

    async def accept(self, stream: INetStream) -> None:
        """Serve a link that the peer opened, to its end."""
        await self._serve(stream, opened_by_us=False)

    async def keep(self, peer: ID) -> None:
        """Have a link with a connected peer; cancel this when the peer is disconnected."""
        host = self._attached()
        # Both ends compare the raw bytes of the peer ids, not their base58 text: the smaller opens
        # at once, the larger only when it sees no link for a while.
        we_are_smaller = host.peer_id.to_bytes() < peer.to_bytes()
        failures = 0
        while True:
            if not we_are_smaller:
                with trio.move_on_after(self._tuning.link_grace_s):
                    await self._wait(peer, linked=True)
            if self._open.get(peer):
                await self._wait(peer, linked=False)
                continue
            began = trio.current_time()
            await self._open_one(host, peer)
            if trio.current_time() - began > self._tuning.link_settled_s:
                failures = 0
                continue
            failures += 1
            if failures > 1:
                delay = self._tuning.link_backoff_first_s * 2.0 ** min(failures - 2, 16)
                await trio.sleep(min(delay, self._tuning.link_backoff_max_s))

    async def _open_one(self, host: Host, peer: ID) -> None:
        """Open a link and serve it to its end, or fail to open it."""
        stream: INetStream | None = None
        try:
            with trio.move_on_after(self._tuning.link_open_s):
                stream = await host.basic.new_stream(peer, list(_PROTOCOLS))
        except (BaseLibp2pError, *STREAM_ERRORS) as error:
            self._log.debug("no link to %s: %r", peer, error)
        if stream is None:
            self._counters.add("link_open_failed")
            return
        await self._serve(stream, opened_by_us=True)

    async def _serve(self, stream: INetStream, *, opened_by_us: bool) -> None:
        peer = stream.muxed_conn.peer_id
        links = self._open.setdefault(peer, [])
        if len(links) >= LINKS_PER_PEER_MAX:
            # Two, not one: a copied identity is served beside the original, and the node tells them
            # apart by their boot.
            self._counters.add("link_refused")
            await stream.reset()
            return
        self._counters.add("link_opened" if opened_by_us else "link_accepted")
        gate = self._attached().gate
        link = Link(
            stream,
            opened_by_us=opened_by_us,
            admitted=lambda: gate.admitted(peer),
            payload_bytes_max=self._payload_max,
            counters=self._counters,
            tuning=self._tuning,
            log=self._log,
        )
        links.append(link)
        self._tell(peer)
        try:
            await link.run(self._handler)
        finally:
            links.remove(link)
            if not links:
                self._open.pop(peer, None)
            self._tell(peer)

    def _tell(self, peer: ID) -> None:
        changed = self._changed.pop(peer, None)
        if changed is not None:
            changed.set()

    async def _wait(self, peer: ID, *, linked: bool) -> None:
        while bool(self._open.get(peer)) is not linked:
            await self._changed.setdefault(peer, trio.Event()).wait()

    def _attached(self) -> Host:
        host: Any = self._host
        if host is None:
            raise AssertionError("Links.attach was not called")
        return host  # type: ignore[no-any-return]
