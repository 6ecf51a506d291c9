"""The memory P2P lung: the same contract as the real one, over an in-memory network.

Separate because every simulation and node test runs on them, and they are shipped, so that whoever
builds on Lattice can test without sockets. One contract suite covers them and the real lungs.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from typing import Final

import trio

from ..core.addresses import parse_multiaddr
from ..core.limits import ENVELOPE_BYTES_MAX, GOSSIP_BYTES_MAX, LINKS_PER_PEER_MAX
from .memory_link import MemoryLink, Pending
from .memory_network import SMALL_BYTES, Line, MemoryNetwork, Packet
from .port import GossipKind, P2PHandler, P2PReport, TransportError

_DIAL_S: Final = 8.0
# The larger peer id dials only after this time without a link, so that two dials seldom cross.
_DIAL_GRACE_S: Final = 5.0
_DIAL_LOOK_S: Final = 0.5
_BACKOFF_FIRST_S: Final = 1.0
_BACKOFF_MAX_S: Final = 30.0
_SEEN_MAX: Final = 8192
_JUDGING_MAX: Final = 64
_MESH_MAX: Final = 12
_RAISED_MAX: Final = 16  # of the handler's exceptions, kept for whoever tests it


@dataclass(slots=True)
class _Target:
    """A peer to stay connected with."""

    addresses: tuple[str, ...]
    turn: int = 0
    dialling: bool = False
    alone_since: float | None = None
    next_at: float = 0.0
    pause_s: float = _BACKOFF_FIRST_S


class MemoryP2PLung:
    """A `P2PLung` at one multiaddr of a memory network.

    `failing` makes the start fail with that error for as long as it is set; `break_down` does so
    to a host that runs.
    """

    def __init__(
        self,
        network: MemoryNetwork,
        peer_id: str,
        listen: str,
        *,
        failing: str | None = None,
        dial_grace_s: float = _DIAL_GRACE_S,
    ) -> None:
        parsed = parse_multiaddr(listen, peer_id="forbidden", concrete=True)
        self.network = network
        self.peer_id = peer_id
        self.address = str(parsed)
        self.host = parsed.host
        self.failing = failing
        self._dial_grace_s = dial_grace_s
        self._handler: P2PHandler | None = None
        self._nursery: trio.Nursery | None = None
        self._started = False
        self._restarts = 0
        self._life = trio.CancelScope()
        self._targets: dict[str, _Target] = {}
        self._links: list[MemoryLink] = []
        self._admitted: set[str] = set()
        self._seen: OrderedDict[bytes, None] = OrderedDict()
        self._judging = 0
        self._counters: dict[str, int] = {}
        self.raised: deque[str] = deque(maxlen=_RAISED_MAX)

    # The contract.

    async def run(
        self,
        handler: P2PHandler,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """See P2PLung."""
        self._handler = handler
        told = False
        while True:
            if self.failing is not None:
                if not told:
                    task_status.started()
                    told = True
                await self._wait_startable()
            with trio.CancelScope() as self._life:
                await self._live_once(trio.TASK_STATUS_IGNORED if told else task_status)
            told = True
            self._restarts += 1

    async def _live_once(self, task_status: trio.TaskStatus[None]) -> None:
        """One life of the host."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                self.network.p2p[self.address] = self
                self._started = True
                task_status.started()
                await self._keep_connected()
        finally:
            if self.network.p2p.get(self.address) is self:
                del self.network.p2p[self.address]
            self._nursery = None
            for link in list(self._links):
                link.end("closed")
            for target in self._targets.values():
                target.dialling = False

    def break_down(self, error: str) -> None:
        """Lose the host, as a defect in a library would; it is rebuilt once `failing` is None again."""
        self.failing = error
        self._life.cancel()

    async def _wait_startable(self) -> None:
        while self.failing is not None:  # noqa: ASYNC110 - a plain attribute, set by whoever tests
            await trio.sleep(_BACKOFF_FIRST_S)

    def set_known(self, addresses: Mapping[str, Sequence[str]]) -> None:
        """See P2PLung."""
        known = {peer_id: tuple(texts) for peer_id, texts in addresses.items() if peer_id != self.peer_id}
        self._targets = {
            peer_id: held
            if (held := self._targets.get(peer_id)) is not None and held.addresses == texts
            else _Target(texts)
            for peer_id, texts in known.items()
        }

    def admit(self, peer_id: str) -> None:
        """See P2PLung."""
        if any(link.peer_id == peer_id for link in self._links):
            self._admitted.add(peer_id)

    def expel(self, peer_id: str) -> None:
        """See P2PLung."""
        self._admitted.discard(peer_id)
        for link in list(self._links):
            if link.peer_id == peer_id:
                link.end("expelled")

    def publish_nowait(self, kind: GossipKind, data: bytes) -> bool:
        """See P2PLung."""
        if self._nursery is None:
            self._count("gossip_host_down")
            return False
        if len(data) > GOSSIP_BYTES_MAX:
            self._count("gossip_oversize")
            return False
        name = sha256(kind.encode() + data).digest()
        self._is_new(name)
        self._spread(kind, name, data, {self.peer_id})
        return True

    def report(self) -> P2PReport:
        """See P2PLung."""
        error = self.failing
        if error is None and self._nursery is None:
            error = "not running"
        return P2PReport(
            enabled=True,
            started=self._started,
            error=error,
            peer_id=self.peer_id,
            listen_multiaddrs=(f"{self.address}/p2p/{self.peer_id}",) if self._started else (),
            announced_multiaddrs=(f"{self.address}/p2p/{self.peer_id}",) if self._started else (),
            connected=tuple(sorted({link.peer_id for link in self._links})),
            gossip_ready=tuple(sorted({link.peer_id for link in self._admitted_links()})),
            restarts=self._restarts,
            counters=dict(self._counters),
        )

    # Connections.

    async def _keep_connected(self) -> None:
        while True:
            now = trio.current_time()
            linked = {link.peer_id for link in self._links}
            for peer_id, target in sorted(self._targets.items()):
                if peer_id in linked:
                    target.alone_since = None
                elif not target.dialling and target.addresses:
                    self._dial_if_due(peer_id, target, now)
            await trio.sleep(_DIAL_LOOK_S)

    def _dial_if_due(self, peer_id: str, target: _Target, now: float) -> None:
        if target.alone_since is None:
            target.alone_since = now
        grace_s = 0.0 if self.peer_id < peer_id else self._dial_grace_s
        if now >= max(target.alone_since + grace_s, target.next_at):
            target.dialling = True
            self.start(self._dial, peer_id, target)

    async def _dial(self, peer_id: str, target: _Target) -> None:
        address = parse_multiaddr(target.addresses[target.turn % len(target.addresses)])
        line = Line(self.network, self.host, address.host)
        outcome = Pending()
        place = f"/{address.protocol}/{address.host}/tcp/{address.port}"
        line.send(SMALL_BYTES, partial(self._knock, place, address.host, peer_id, line, outcome))
        with trio.move_on_after(_DIAL_S):
            await outcome.done.wait()
        target.dialling = False
        if outcome.answer is not None:
            target.pause_s = _BACKOFF_FIRST_S
            target.next_at = trio.current_time() + _BACKOFF_FIRST_S
            return
        outcome.fail("timeout")
        line.cut = True
        self._count(f"dial_{outcome.reason}")
        target.turn += 1
        target.next_at = trio.current_time() + target.pause_s
        target.pause_s = min(2 * target.pause_s, _BACKOFF_MAX_S)

    def _knock(self, place: str, host: str, peer_id: str, line: Line, outcome: Pending) -> None:
        """Our dial has arrived at a host: whoever listens there answers, if it is whom we expect."""
        remote = self.network.p2p.get(place)
        if remote is None or remote.peer_id != peer_id or not remote.accepts(self.peer_id):
            back = Packet("p2p", host, self.host, SMALL_BYTES)
            self.network.send(back, partial(outcome.fail, "refused"))
            return
        theirs_first = remote.peer_id < self.peer_id
        back_line = Line(self.network, remote.host, self.host)
        theirs = MemoryLink(remote, self, back_line, opened_by_us=theirs_first)
        ours = MemoryLink(self, remote, line, opened_by_us=not theirs_first)
        theirs.far, ours.far = ours, theirs

        def established() -> None:
            if outcome.done.is_set() or self._nursery is None:
                ours.end("reset")
                return
            outcome.succeed(b"")
            self._own(ours)

        back_line.send(SMALL_BYTES, established)
        remote._own(theirs)

    def accepts(self, peer_id: str) -> bool:
        """Two links, not one: a copied identity is served beside the original."""
        return sum(link.peer_id == peer_id for link in self._links) < LINKS_PER_PEER_MAX

    def _own(self, link: MemoryLink) -> None:
        self._links.append(link)
        self._count("link_opened" if link.opened_by_us else "link_accepted")
        self.start(self._live, link)
        link.ping()

    async def _live(self, link: MemoryLink) -> None:
        handler = self._handler
        if handler is None:
            raise AssertionError("a link without a handler")
        with link.scope:
            try:
                await handler.on_link(link)
            except Exception as error:  # noqa: BLE001 - the node's code; the lung outlives it
                self._raised("on_link", error)
        link.end("closed")

    def lost(self, link: MemoryLink) -> None:
        """A link has ended; the last one of a peer takes its admission with it."""
        if link in self._links:
            self._links.remove(link)
        if not any(held.peer_id == link.peer_id for held in self._links):
            self._admitted.discard(link.peer_id)

    def start(self, work: Callable[..., object], *args: object) -> None:
        """Start a task of this lung, if it runs."""
        if self._nursery is not None:
            self._nursery.start_soon(work, *args)  # type: ignore[arg-type]

    async def answer(self, link: MemoryLink, request: bytes) -> bytes | None:
        """The handler's answer to a request; None where it has none or raised."""
        if self._handler is None:
            return None
        try:
            answer = await self._handler.on_request(link, request)
        except Exception as error:  # noqa: BLE001 - as in _live
            self._raised("on_request", error)
            return None
        if answer is not None and len(answer) > ENVELOPE_BYTES_MAX:
            self._raised("on_request", TransportError("too_large", f"an answer of {len(answer)} bytes"))
            return None
        return answer

    # Gossip.

    def _admitted_links(self) -> list[MemoryLink]:
        return [link for link in self._links if link.peer_id in self._admitted]

    def _spread(self, kind: GossipKind, name: bytes, data: bytes, but: set[str]) -> None:
        # A mesh of its own for each payload, as wide as libp2p's at most: who is left out gets it
        # from others, or by sync.
        mesh = self._admitted_links()
        if len(mesh) > _MESH_MAX:
            mesh = sorted(mesh, key=lambda link: sha256(name + link.peer_id.encode()).digest())[:_MESH_MAX]
        for link in mesh:
            if link.peer_id not in but:
                packet = Packet("gossip", self.host, link.remote.host, len(data))
                arrive = partial(link.remote.take_gossip, self.peer_id, kind, name, data)
                self.network.send(packet, arrive)

    def take_gossip(self, forwarder: str, kind: GossipKind, name: bytes, data: bytes) -> None:
        """A payload has arrived: judged once, if its forwarder is admitted."""
        if forwarder not in self._admitted or not self._is_new(name):
            return
        if self._judging >= _JUDGING_MAX:
            self._count("gossip_dropped")
            return
        self.start(self._judge, forwarder, kind, name, data)

    async def _judge(self, forwarder: str, kind: GossipKind, name: bytes, data: bytes) -> None:
        if self._handler is None:
            return
        self._judging += 1
        try:
            relay = await self._handler.on_gossip(forwarder, kind, data)
        except Exception as error:  # noqa: BLE001 - as in _live
            self._raised("on_gossip", error)
            relay = False
        finally:
            self._judging -= 1
        if relay:
            self._spread(kind, name, data, {self.peer_id, forwarder})

    def _is_new(self, name: bytes) -> bool:
        if name in self._seen:
            return False
        self._seen[name] = None
        if len(self._seen) > _SEEN_MAX:
            self._seen.popitem(last=False)
        return True

    def _raised(self, where: str, error: Exception) -> None:
        self._count("handler_raised")
        self.raised.append(f"{where}: {error!r}")

    def _count(self, name: str) -> None:
        self._counters[name] = self._counters.get(name, 0) + 1
