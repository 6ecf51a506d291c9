"""The P2P lung: keeps a libp2p host alive and stands between it and the node.

Separate from the host's life because it outlives it: addresses to stay connected with, counters and
the report are here, and the host is rebuilt underneath after any crash. Importing this module is
what imports libp2p.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

import trio

from lattice.core.limits import ENVELOPE_BYTES_MAX
from lattice.transport.p2p.addresses import AddressError
from lattice.transport.p2p.counters import Counters
from lattice.transport.p2p.dialer import Targets, parse_peer
from lattice.transport.p2p.host import HostLostError, HostSettings, check_version, peer_id_of
from lattice.transport.p2p.life import Life
from lattice.transport.p2p.tuning import Tuning
from lattice.transport.port import GossipKind, P2PHandler, P2PReport


class Libp2pLung:
    """A P2PLung over py-libp2p.

    `seed` is the 32-byte Ed25519 seed of the node, `listen` TCP multiaddrs (port 0 allowed),
    `announce` what peers are told instead of the interfaces' addresses, the topics are GossipSub
    topic names. Raises LibraryVersionError for a libp2p other than the supported one.
    """

    def __init__(
        self,
        seed: bytes,
        listen: Sequence[str],
        announce: Sequence[str],
        entries_topic: str,
        presence_topic: str,
        log: logging.Logger,
        *,
        envelope_bytes_max: int = ENVELOPE_BYTES_MAX,
        tuning: Tuning | None = None,
    ) -> None:
        if len(seed) != 32:
            raise ValueError("the seed of an Ed25519 key is 32 bytes")
        if entries_topic == presence_topic:
            raise ValueError("the two topics must differ")
        check_version()
        self._topics: dict[GossipKind, str] = {"entries": entries_topic, "presence": presence_topic}
        self._settings = HostSettings(seed, tuple(listen), tuple(announce), frozenset(self._topics.values()))
        self._log = log
        self._payload_max = envelope_bytes_max
        self._tuning = tuning or Tuning()
        self._counters = Counters()
        self._targets = Targets()
        self._peer_id = str(peer_id_of(seed))
        self._life: Life | None = None
        self._ever_started = False
        self._error: str | None = "not running"
        self._restarts = 0

    def __repr__(self) -> str:
        return f"<Libp2pLung {self._peer_id[-8:]} {self._error or 'running'}>"

    @property
    def peer_id(self) -> str:
        """Known before the host runs: it is the public key of the seed."""
        return self._peer_id

    async def run(
        self,
        handler: P2PHandler,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """See P2PLung. Nothing but a cancellation (or KeyboardInterrupt) ends it."""
        attempted = False

        def first_attempt_over() -> None:
            nonlocal attempted
            if not attempted:
                attempted = True
                task_status.started()

        pause = self._tuning.rebuild_first_s
        while True:
            began = trio.current_time()
            try:
                await self._live(handler, first_attempt_over)
            except* Exception as group:  # noqa: BLE001 - a lost host, however; the rest goes on rising
                self._lost(group)
            first_attempt_over()
            if trio.current_time() - began > self._tuning.rebuild_reset_s:
                pause = self._tuning.rebuild_first_s
            await trio.sleep(pause)
            pause = min(pause * 2, self._tuning.rebuild_max_s)

    def set_known(self, addresses: Mapping[str, Sequence[str]]) -> None:
        self._targets.replace(addresses)

    def admit(self, peer_id: str) -> None:
        peer = parse_peer(peer_id)
        if self._life is not None and peer is not None:
            self._life.admit(peer)

    def expel(self, peer_id: str) -> None:
        peer = parse_peer(peer_id)
        if self._life is not None and peer is not None:
            self._life.expel(peer)

    def publish_nowait(self, kind: GossipKind, data: bytes) -> bool:
        if self._life is None:
            self._counters.add("gossip_host_down")
            return False
        return self._life.gossip.publish_nowait(kind, data)

    def report(self) -> P2PReport:
        """See P2PReport. `started` stays True while a lost host is rebuilt: `error` says so."""
        life = self._life
        if life is None:
            return P2PReport(
                enabled=True,
                started=self._ever_started,
                error=self._error,
                peer_id=self._peer_id,
                restarts=self._restarts,
                counters=self._counters.snapshot(),
            )
        return P2PReport(
            enabled=True,
            started=True,
            error=None,
            peer_id=self._peer_id,
            listen_multiaddrs=life.host.listen_addresses(),
            announced_multiaddrs=life.host.announced_addresses(),
            connected=tuple(sorted(map(str, life.roster.peers()))),
            gossip_ready=tuple(sorted(map(str, life.gossip.ready()))),
            restarts=self._restarts,
            counters=self._counters.snapshot(),
        )

    async def _live(self, handler: P2PHandler, first_attempt_over: Callable[[], None]) -> None:
        def started() -> None:
            self._life = life
            if self._ever_started:
                self._restarts += 1
            self._ever_started = True
            self._error = None
            first_attempt_over()

        def ended() -> None:
            # Its sockets are being closed: nobody may ask it for addresses any more.
            self._life = None
            self._error = "not running"

        life = Life(
            self._settings,
            self._topics,
            self._targets,
            handler,
            payload_bytes_max=self._payload_max,
            counters=self._counters,
            tuning=self._tuning,
            log=self._log,
        )
        await life.run(started, ended)
        raise HostLostError("the host was cancelled from inside")

    def _lost(self, group: BaseExceptionGroup[Exception]) -> None:
        causes = list(_leaves(group))
        self._error = "; ".join(dict.fromkeys(_told(cause) for cause in causes))
        self._counters.add("host_lost" if self._ever_started else "start_failed")
        # A first start that fails is told by the node, with an alarm that stands.
        level = logging.WARNING if self._ever_started else logging.DEBUG
        self._log.log(level, "the P2P host is down and will be rebuilt: %s", self._error)
        self._log.debug("the P2P host was lost to", exc_info=group)


def _told(cause: Exception) -> str:
    """A wrong setting speaks for itself; of anything else the kind is half of the story."""
    return str(cause) if isinstance(cause, AddressError) else f"{type(cause).__name__}: {cause}"


def _leaves(group: BaseExceptionGroup[Exception]) -> list[Exception]:
    found: list[Exception] = []
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            found.extend(_leaves(error))
        else:
            found.append(error)
    return found
