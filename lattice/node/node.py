"""The node: one ledger, two lungs, one monitor, wired together behind the facade.

Separate from the daemon so that a simulated node, with a virtual clock, a memory store and memory
transports, is this very class.
"""

from __future__ import annotations

import contextlib
import re
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack
from typing import Final

import trio

from ..core.addresses import host_of_url, is_loopback_host, parse_multiaddr
from ..core.draft import Appended, Condition, OpDraft
from ..core.engine import (
    META_LOG_ROOT,
    META_STATE_ROOT,
    Acknowledged,
    Alarm,
    Answer,
    Append,
    Applied,
    Engine,
    Frozen,
    Gossiped,
    Judged,
    Publish,
    PublishProof,
    Remember,
    RoundByPeer,
    Served,
    Wasted,
)
from ..core.entry import Seal, Version
from ..core.envelope import Freshness, Sealer
from ..core.errors import LatticeError, MalformedError
from ..core.failover import Monitor
from ..core.failover_events import (
    Liveness,
    Lung,
    ModeChanged,
    MonitorConfig,
    P2PFailed,
    P2PStarted,
    PeerForgotten,
    PeerIdentified,
    PeerKnown,
    Policy,
    PolicySet,
    PollDue,
    PollsStopped,
    PresenceHeard,
    ProbeDue,
    RequestServed,
    RoundDue,
    RoundGood,
)
from ..core.history import HistoryPage
from ..core.identity import RECEIPT_TAG, STATE_TAG, NodeKey, peer_id_of, public_key_of
from ..core.limits import (
    CLOCK_AHEAD_MS_MAX,
    CLOCK_BEFORE_ALL_MS,
    FORK_ALARMS_MAX,
    HINTS_MAX,
    LONG_POLL_S_MAX,
    PAGE_BYTES,
    SEAL_INTERVAL,
)
from ..core.messages import (
    RULES_VERSION,
    WIRE_VERSION,
    ZERO_NONCE,
    Addresses,
    Beat,
    BeatFlag,
    Entries,
    Heads,
    HeadsFlag,
    Hello,
    Message,
    Proof,
    Roots,
    WantEntries,
    joined,
)
from ..core.proofs import KeyProof
from ..core.receipts import Receipt
from ..core.reconcile import RoundResult
from ..core.rows import EntryRow, ForkRow, KeyState, LiveVersion, LogHead, LogKey
from ..core.state import winner_first
from ..schemas import Imported, KnownPeer, Status, SwitchAnswer
from ..storage.port import Store
from ..transport.port import GossipKind, HttpLung, P2PLung, PeerLink
from .anti_entropy import AntiEntropy, RoundFailed
from .bus import Bus
from .courier import Answered, Courier, Received
from .defects import Defects
from .driver import Announcement, Driver
from .evidence import make_receipt, prove, show_history
from .facade import KeyView, LedgerView
from .fork_alarms import ForkAlarms
from .heartbeat import Heartbeat, Order
from .links import Links
from .measures import Measures, measure
from .peers import find_peer, judge_address, known_peers
from .ports import NodeOptions, Ports
from .registry import Peer, Registry, Source
from .restraint import Restraint
from .status import build_status, rfc3339
from .turns import REFUSAL_S, Turns, cost_s
from .versions import version_warnings
from .watch import Watch

_META_POLICY: Final = "policy"
_META_PEERS: Final = "peers"
_PRESENCE_PER_NODE_S: Final = 0.3
_DISK_CHECK_S: Final = 2.0
_ACK_TIMEOUT_S: Final = 10.0
_ACK_STEP_S: Final = 0.25
_WATCH_PEERS_S: Final = 1.0
_ROOM_EVERY_S: Final = 1.0
_PEERS_SAVE_EACH_S: Final = 0.01  # for each known peer: the whole list is written, however little changed


class Node:
    """One node of a network. `run` does the work; the other methods are NodeFacade."""

    def __init__(
        self,
        key: NodeKey,
        network_id: bytes,
        network_keys: dict[int, bytes],
        store: Store,
        ports: Ports,
        options: NodeOptions,
        *,
        p2p: P2PLung | None,
        http: HttpLung | None,
    ) -> None:
        self._key = key
        self._network_id = network_id
        self._store = store
        self._ports = ports
        self._log = ports.log
        self.options = options
        self._p2p = p2p
        self._started_at = trio.current_time()
        self._low_disk: LatticeError | None = None
        self._alarms: dict[str, str] = {}
        self._fork_alarms = ForkAlarms()
        self.counters: dict[str, int] = {}
        self.registry = Registry(
            key.peer_id,
            takes_loopback=self._is_on_loopback_alone,
            refused=lambda reason: self._count(f"addresses_refused_{reason}"),
            let_go=self._let_go,
        )
        self._driver = Driver(
            lambda: Engine(key, network_id, store),
            store,
            wall_ms=ports.wall_ms,
            entropy=ports.entropy,
            announce=self._announced,
        )
        boot = int.from_bytes(ports.entropy(8), "big")
        self._boot = boot
        self.bus = Bus(boot)
        self._watch = Watch(self.bus, wall_ms=ports.wall_ms, name_of=self._name_of)
        self._freshness = Freshness()
        self._turns = Turns()
        self._courier = Courier(
            Sealer(key, network_id, network_keys, boot=boot),
            self._freshness,
            hello=self._hello,
            entropy=ports.entropy,
            count=self._count,
            is_full=self._turns.is_full,
        )
        stored = store.meta(_META_POLICY)
        policy = Policy(stored.decode()) if stored else Policy(options.policy)
        self.heartbeat = Heartbeat(
            Monitor(
                MonitorConfig(
                    beat_interval_s=options.heartbeat_interval_s,
                    peerless_timeout_s=options.peerless_timeout_s,
                    poll_interval_s=options.poll_interval_s,
                ),
                self_id=key.peer_id,
                policy=policy,
                p2p_enabled=p2p is not None,
                http_enabled=http is not None,
                started_at=self._started_at,
            ),
            ports.log,
            self._act,
        )
        self.heartbeat.on_mode = self._mode_changed
        self.heartbeat.on_alarm = self._watch.monitor_alarm
        self._anti_entropy = AntiEntropy(
            self._driver,
            self._courier,
            http,
            self.registry,
            hello=lambda: self._hello(ZERO_NONCE, ZERO_NONCE),
            learned=self._learned,
            answered=self._note_answer,
            ended=self._round_ended,
        )
        self._anti_entropy.heartbeat = self.heartbeat
        self._anti_entropy.takes_entries = lambda: self._low_disk is None
        self._restraint = Restraint(ports.log, self._count, self._expel)
        self._anti_entropy.sift = self._restraint.sifted
        self._anti_entropy.failed = self._restraint.failed
        self._defects = Defects(
            store, ports.log, raise_alarm=self._raise_alarm, clear_alarm=self._clear_alarm
        )
        self._anti_entropy.may_descend = self._defects.may_descend
        self._links: Links | None = None
        if p2p is not None:
            self._links = Links(
                p2p,
                self._courier,
                self._anti_entropy,
                own_id=key.peer_id,
                interval_s=options.heartbeat_interval_s,
                log=ports.log,
                hello=lambda: self._hello(ZERO_NONCE, ZERO_NONCE),
                beat=self._beat,
                greeted=self._greeted,
                beaten=self._beaten,
                restraint=self._restraint,
            )
            self._links.heartbeat = self.heartbeat
        self._nursery: trio.Nursery
        self._versions_told: frozenset[str] = frozenset()
        self._known_shown = -1
        self._p2p_up = False
        self._peers_saved = -1
        self._peers_save_at = 0.0
        self._room_at = 0.0
        self._hints_to_greet, self._hints_found = trio.open_memory_channel[str](HINTS_MAX)

    # Identity and views.

    @property
    def name(self) -> str:
        return self.options.name

    @property
    def peer_id(self) -> str:
        return self._key.peer_id

    @property
    def network_id(self) -> bytes:
        return self._network_id

    @property
    def store(self) -> Store:
        return self._store

    @property
    def p2p(self) -> P2PLung | None:
        return self._p2p

    @property
    def driver(self) -> Driver:
        return self._driver

    @property
    def engine(self) -> Engine:
        return self._driver.engine

    @property
    def anti_entropy_counters(self) -> dict[str, int]:
        return self._anti_entropy.counters

    @property
    def restraint(self) -> Restraint:
        return self._restraint

    @property
    def defects(self) -> Defects:
        return self._defects

    @property
    def uptime_s(self) -> float:
        return trio.current_time() - self._started_at

    @property
    def alarms(self) -> dict[str, str]:
        return {**self.heartbeat.alarms, **self._alarms}

    def key(self, key: bytes) -> KeyView | None:
        state = self._store.key_state(key)
        return None if state is None or not state.present else self._view(state)

    def value(self, version: LiveVersion) -> bytes:
        return self._store.value(version)

    def page(self, prefix: bytes, after: bytes | None, limit: int) -> list[KeyView]:
        return [self._view(state) for state in self._store.page_keys(prefix, after, limit)]

    def _view(self, state: KeyState) -> KeyView:
        live = winner_first(state.live)
        value = self._store.value(live[0]) if live else None
        return KeyView(state.key, live, value, state.adds, state.total)

    def ledger(self) -> LedgerView:
        """The roots as stored by the last commit, signed anew."""
        roots = self.engine.roots
        state_root = self._store.meta(META_STATE_ROOT) or roots.state_root
        log_root = self._store.meta(META_LOG_ROOT) or roots.log_root
        now = self._ports.wall_ms()
        body = state_root + log_root + now.to_bytes(8, "big")
        return LedgerView(
            state_root,
            log_root,
            self.engine.state_size,
            self._store.entry_count(),
            dict(self.engine.heads),
            now,
            self._key.sign(STATE_TAG, self._network_id, body),
        )

    async def prove(self, key: bytes) -> KeyProof:
        return await prove(self, key)

    async def receipt(self, key: bytes) -> Receipt:
        def sign(body: bytes) -> bytes:
            return self._key.sign(RECEIPT_TAG, self._network_id, body)

        return await make_receipt(self, key, self._ports.wall_ms(), sign)

    async def history(self, key: bytes, after: Version | None, limit: int) -> HistoryPage:
        return await show_history(self, key, after, limit)

    def heads(self) -> dict[LogKey, LogHead]:
        return self._store.log_heads()

    def entry(self, entry_id: bytes) -> tuple[EntryRow, Seal | None] | None:
        row = self._store.entry_by_id(entry_id)
        if row is None:
            return None
        seals = self._store.seals(row.author, row.epoch, row.seq, row.seq + SEAL_INTERVAL)
        return row, seals[0] if seals else None

    def entries(self, log: LogKey, first: int, last: int) -> list[EntryRow]:
        return self._store.entries(log.author, log.epoch, first, last, PAGE_BYTES)

    def status(self) -> Status:
        return build_status(self)

    def measures(self) -> Measures:
        return measure(self)

    def ready(self) -> dict[str, str]:
        failing = {}
        if self._driver.failure is not None:
            failing["store"] = self._driver.failure.message
        elif self._low_disk is not None:
            failing["disk"] = self._low_disk.message
        if not self.heartbeat.active:
            failing["heartbeat"] = "the heartbeat monitor is not running yet"
        return failing

    def node_urls(self) -> list[str]:
        return sorted({url for peer in self.registry.all() for url in peer.urls})

    # Writes.

    async def append(
        self,
        ops: Sequence[OpDraft],
        *,
        conditions: Sequence[Condition] = (),
        idempotency_key: str | None = None,
        request_digest: bytes = b"",
        ack: int = 1,
    ) -> Appended:
        if self._low_disk is not None:
            raise self._low_disk
        key = idempotency_key.encode("utf-8") if idempotency_key else b""
        drafts, held = tuple(ops), tuple(conditions)
        self._turns.note(b"")
        reply = await self._driver.ask(lambda token: Append(token, drafts, held, key, request_digest))
        if not isinstance(reply, Acknowledged):
            raise AssertionError(f"a write was answered by {reply!r}")
        if ack > 1:
            await self._wait_held(reply.result, ack, self._driver.commits)
        return reply.result

    async def _wait_held(self, result: Appended, ack: int, commit: int) -> None:
        """Wait until `ack` nodes, this one included, are known to hold the entry."""
        deadline = trio.current_time() + _ACK_TIMEOUT_S
        while True:
            holders = 1 + sum(peer.held_commit >= commit for peer in self.registry.all())
            if holders >= ack:
                return
            if trio.current_time() >= deadline:
                text = (
                    f"the entry {result.id.hex()} is stored here; {holders} of {ack} nodes confirmed it "
                    f"within {_ACK_TIMEOUT_S:.0f} s; it goes on spreading, do not write it again"
                )
                raise LatticeError("not_replicated", text)
            await trio.sleep(_ACK_STEP_S)
            if self._links is not None:
                for peer_id in self._links.direct:
                    self._links.start_round(peer_id, padded=False)

    async def switch(self, policy: str) -> SwitchAnswer:
        try:
            chosen = Policy(policy)
        except ValueError as error:
            raise LatticeError(
                "bad_mode", f"{policy!r} is no mode; allowed are auto, p2p and http"
            ) from error
        await self._driver.ask(lambda token: Remember(token, _META_POLICY, chosen.encode()))
        self._watch.policy(chosen)
        self.heartbeat.feed(PolicySet(chosen, trio.current_time()))
        self.heartbeat.tick()
        view = self.heartbeat.view()
        message = f"policy is {view.policy.value}, mode is {view.mode.value}: {view.reason.value}"
        return SwitchAnswer(True, view.mode.value, view.policy.value, message)

    # Known peers, changed while the node runs.

    def forks(self, after: LogKey | None, limit: int) -> list[ForkRow]:
        logs = self._store.frozen_logs()
        first = 0 if after is None else bisect_right(logs, after)
        rows = map(self._store.fork_row, logs[first : first + limit])
        return [row for row in rows if row is not None]

    def known_peers(self) -> list[KnownPeer]:
        return known_peers(self.registry, self.heartbeat.view())

    async def add_peer(self, address: str) -> KnownPeer:
        addresses, peer_id = judge_address(address, self.registry, self.peer_id, self.options.addresses())
        peer = self.registry.add(addresses, peer_id)
        if peer is None:
            raise LatticeError("bad_request", f"{address[:200]!r} leads to this node itself.")
        self.heartbeat.feed(PeerKnown(peer.key, trio.current_time()))
        # Before the wait: it may turn out to be another peer meanwhile, or this node, and be gone.
        added = next(shown for shown in self.known_peers() if shown.id == peer.key)
        await self._share_peers()
        return added

    async def forget_peer(self, name: str) -> KnownPeer:
        peer = find_peer(self.registry, name)
        if peer is None:
            raise LatticeError("not_found", f"No known peer has the id or the address {name[:200]!r}.")
        gone = next(shown for shown in self.known_peers() if shown.id == peer.key)
        self.registry.forget(peer.key)
        self.heartbeat.feed(PeerForgotten(peer.key, trio.current_time()))
        self._anti_entropy.stop_polls((peer.key,))
        self._defects.end(peer.key)
        await self._share_peers()
        if self._p2p is not None and not peer.is_placeholder:
            self._p2p.expel(peer.key)
        return gone

    def _let_go(self, keys: Iterable[str]) -> str | None:
        """The oldest of these peers that nothing is heard of, forgotten in favour of a new one. Once a
        second: looking through thousands at each name that somebody makes would be the attack."""
        now = trio.current_time()
        if now < self._room_at:
            return None
        self._room_at = now + _ROOM_EVERY_S
        dead = {seen.peer for seen in self.heartbeat.view().peers if seen.liveness is Liveness.DEAD}
        gone = next((key for key in keys if key in dead), None)
        if gone is not None:
            self._count("peers_replaced")
            self.heartbeat.feed(PeerForgotten(gone, now))
            self._anti_entropy.stop_polls((gone,))
        return gone

    def hint_peer(self, peer_id: str, addresses: Addresses) -> None:
        """Discovery found a place where a node may be; it becomes a peer when it answers a Hello."""
        if not self.registry.hint(peer_id, addresses) or not self.registry.hinted(peer_id).http:
            return
        try:
            self._hints_to_greet.send_nowait(peer_id)
        except trio.WouldBlock:
            self._count("hints_dropped")

    async def _greet_hints(self) -> None:
        """Knock over HTTP at the places that discovery found, one after the other; P2P dials them anyway."""
        async for peer_id in self._hints_found:
            stranger = Peer(peer_id, hinted=self.registry.hinted(peer_id))
            for _ in stranger.urls:
                if self.registry.get(peer_id) is not None:
                    break
                with contextlib.suppress(RoundFailed):
                    await self._anti_entropy.greet(stranger)

    # Life.

    def know_url(self, url: str) -> None:
        """A configured base URL of another node."""
        peer = self.registry.add_url(url)
        if peer is not None:
            self.heartbeat.feed(PeerKnown(peer.key, trio.current_time()))

    def know_peer(self, peer_id: str, name: str, addresses: Addresses, source: Source = "configured") -> None:
        """A peer of known identity, from the settings or the ticket."""
        if self.registry.add_peer(peer_id, name, addresses, source) is not None:
            self.heartbeat.feed(PeerKnown(peer_id, trio.current_time()))

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run until cancelled: driver, P2P lung, monitor, presence."""
        remembered = self._store.meta(_META_PEERS)
        if remembered:
            self.registry.restore(remembered)
            for peer in self.registry.all():
                self.heartbeat.feed(PeerKnown(peer.key, trio.current_time()))
        self._recall_forks()
        async with AsyncExitStack() as stack:
            nursery = await stack.enter_async_context(trio.open_nursery())
            self._nursery = nursery
            await nursery.start(self._driver.run)
            if self._p2p is not None and self._links is not None:
                self._links.nursery = nursery
                await nursery.start(self._p2p.run, self)
                self._report_p2p(first=True)
            await nursery.start(self.heartbeat.run)
            nursery.start_soon(self._housekeeping)
            nursery.start_soon(self._greet_hints)
            if self._p2p is not None:
                nursery.start_soon(self._presence)
            task_status.started()

    def _report_p2p(self, *, first: bool = False) -> None:
        """Tell the monitor and the log whether the P2P lung stands."""
        if self._p2p is None:
            return
        report = self._p2p.report()
        now = trio.current_time()
        if report.started and not self._p2p_up:
            self._p2p_up = True
            self._log.info("STARTUP", "P2P started successfully", peer_id=self.peer_id)
            self.heartbeat.feed(P2PStarted(now))
        elif first and not report.started:
            self.heartbeat.feed(P2PFailed(now, report.error or "unknown"))

    async def _housekeeping(self) -> None:
        """Every half second: addresses to dial, remembered peers, free space, jumps of time."""
        last_wall, last_mono = self._ports.wall_ms(), trio.current_time()
        disk_at = peers_at = 0.0
        while True:
            await trio.sleep(0.5)
            now, wall = trio.current_time(), self._ports.wall_ms()
            limit_s = 2 * self.options.heartbeat_interval_s
            if abs(wall - last_wall) > limit_s * 1000 or now - last_mono > limit_s:
                self._log.warning(
                    "LEDGER", "time jumped, a new epoch begins", wall_s=(wall - last_wall) / 1000
                )
                self._driver.engine.end_epoch()
            last_wall, last_mono = wall, now
            self._report_p2p()
            await self._addresses_changed()
            if now >= peers_at:
                peers_at = now + _WATCH_PEERS_S
                self._watch.peers(self.heartbeat.view().peers)
                self._tell_versions()
            if now >= disk_at:
                disk_at = now + _DISK_CHECK_S
                self._check_disk()
                self._check_clock(wall)

    async def _addresses_changed(self) -> None:
        if self.registry.changed == self._peers_saved or trio.current_time() < self._peers_save_at:
            return
        # A member that changes its name without end makes us write the whole list each time.
        self._peers_save_at = trio.current_time() + len(self.registry) * _PEERS_SAVE_EACH_S
        try:
            await self._share_peers()
        except LatticeError:
            # The store has failed: it says so itself, and the peers are remembered once it is back.
            self._peers_saved = -1

    async def _share_peers(self) -> None:
        """Tell the dialer what the registry says now, and remember it. Raises when the store fails."""
        self._peers_saved = self.registry.changed
        if self._p2p is not None:
            self._p2p.set_known(self.registry.dial_targets())
        if len(self.registry) != self._known_shown:
            self._known_shown = len(self.registry)
            if self._known_shown:
                self._log.info("HTTP_SYNC", f"Monitoring {self._known_shown} peer node(s)")
        dump = self.registry.dump()
        await self._driver.ask(lambda token: Remember(token, _META_PEERS, dump))

    def _check_disk(self) -> None:
        reserve = self.options.disk_reserve_bytes
        if not reserve:  # then only a commit that fails raises the alarm
            if self._driver.failure is None:
                self._clear_alarm("no_space")
            return
        free = self._store.free_bytes()
        if free < reserve:
            text = (
                f"{free} bytes are free where the data is, the reserve is {reserve}: writes and sync of "
                "others' entries pause until space is freed"
            )
            self._low_disk = LatticeError("no_space", text)
            self._raise_alarm("no_space", text)
        else:
            self._low_disk = None
            if free < 2 * reserve:
                self._raise_alarm("low_space", f"{free} bytes are free; writes stop below {reserve}")
            else:
                self._clear_alarm("low_space")
            if self._driver.failure is None:
                self._clear_alarm("no_space")

    def _check_clock(self, wall_ms: int) -> None:
        """An alarm while the machine's clock cannot be right. Order is safe all the same: our writes
        go on above what was seen; yet others' entries seem to come from the future."""
        newest_ms = max(self._driver.engine.clock_ms, CLOCK_BEFORE_ALL_MS)
        if wall_ms + CLOCK_AHEAD_MS_MAX >= newest_ms:
            self._clear_alarm("clock_behind")
            return
        self._raise_alarm(
            "clock_behind",
            f"this machine's clock says {rfc3339(wall_ms)}, and the ledger was there at {rfc3339(newest_ms)} "
            "already: set the clock and keep it by NTP, else what this node writes may lose against others' "
            "writes",
        )

    def version_warnings(self) -> list[str]:
        return version_warnings(self.registry.all(), self._driver.engine.novelties())

    def _tell_versions(self) -> None:
        """Log each warning about versions when it is new; a count that grows is no news."""
        told = {re.sub(r"\d+", "#", text): text for text in self.version_warnings()}
        for form, text in told.items():
            if form not in self._versions_told:
                self._log.warning("SYNC", text)
        self._versions_told = frozenset(told)

    async def _presence(self) -> None:
        """Tell everybody by gossip that we are here, what we hold and where we are."""
        while True:
            interval = max(self.options.heartbeat_interval_s, (len(self.registry) + 1) * _PRESENCE_PER_NODE_S)
            if self._p2p is not None and self._gossips:
                beat = self._make_beat(BeatFlag(0), int(interval * 1000))
                self._p2p.publish_nowait("presence", self._courier.seal_gossip([beat]))
            await trio.sleep(interval)

    @property
    def _gossips(self) -> bool:
        return self.heartbeat.view().policy is not Policy.HTTP

    # What the monitor orders.

    def _act(self, order: Order) -> None:
        match order:
            case PollDue():
                self._anti_entropy.poll(order.peer, self._nursery)
            case PollsStopped():
                self._anti_entropy.stop_polls(order.peers)
            case ProbeDue(lung="http"):
                self._nursery.start_soon(self._anti_entropy.probe_http, order.peer)
            case ProbeDue():
                if self._links is not None:
                    self._nursery.start_soon(self._links.probe, order.peer)
            case RoundDue():
                if self._links is not None:
                    self._links.start_round(order.peer, padded=order.padded)

    def _mode_changed(self, change: ModeChanged) -> None:
        self._watch.mode(change)
        previous = change.previous.value if change.previous else "none"
        self._log.info("SYNC", f"mode is {change.mode.value}", previous=previous, reason=change.reason.value)

    # What the engine announces.

    def _announced(self, output: Announcement) -> None:
        match output:
            case Publish():
                if self._p2p is not None and self._gossips:
                    self._p2p.publish_nowait("entries", self._courier.seal_gossip([output.entries]))
            case Applied():
                self._count("entries_applied", len(output.entries))
                self._watch.applied(output)
            case PublishProof():
                if self._p2p is not None and self._gossips:
                    self._p2p.publish_nowait("entries", self._courier.seal_gossip([output.proof]))
            case Frozen():
                self._raise_alarm(*self._fork_alarms.frozen(output.fork))
            case RoundByPeer():
                peer_id = peer_id_of(output.peer)
                if output.served.good and output.lung == "p2p":
                    self._restraint.round_served(peer_id)
                self._note_roots(peer_id, output.served.peer_roots, equal_at=self._driver.commits)
                if output.served.good:
                    lung: Lung = "p2p" if output.lung == "p2p" else "http"
                    now = trio.current_time()
                    self.heartbeat.feed(RoundGood(peer_id, lung, now, output.served.padded))
            case Wasted():
                if output.lung != "file":
                    self._restraint.charge(peer_id_of(output.peer), output.lung, output.size)
            case Alarm():
                subject = peer_id_of(output.subject) if output.subject else self.name
                self._raise_alarm(output.code, f"{output.detail} ({subject})")

    def _recall_forks(self) -> None:
        """Raise the alarms of the logs that were frozen before this start: a fork is for ever. They are
        no news, so one line says how many they are, and no event does."""
        logs = self._store.frozen_logs()
        named = self.forks(None, FORK_ALARMS_MAX)
        self._alarms.update(self._fork_alarms.recall(named, logs[FORK_ALARMS_MAX:]))
        if logs:
            which = "1 log is" if len(logs) == 1 else f"{len(logs)} logs are"
            self._log.error(
                "ALERT", f"{which} frozen by a fork, since before this start; see `lattice forks`"
            )

    def _raise_alarm(self, code: str, text: str) -> None:
        if self._alarms.get(code) != text:
            self._alarms[code] = text
            self._log.error("ALERT", text, code=code)
            self._watch.raised(code, text)

    def _clear_alarm(self, code: str) -> None:
        self._alarms.pop(code, None)
        self._watch.cleared(code)

    def _name_of(self, peer_id: str) -> str:
        peer = self.registry.get(peer_id)
        return peer.name if peer is not None else ""

    def _expel(self, peer_id: str) -> None:
        if self._p2p is not None:
            self._p2p.expel(peer_id)

    def _is_on_loopback_alone(self) -> bool:
        """Whether all that we announce is on loopback, as in a network within one machine."""
        own = self.options.addresses()
        hosts = [parse_multiaddr(text).host for text in own.p2p] + [host_of_url(url) for url in own.http]
        return all(is_loopback_host(host) for host in hosts)

    def _count(self, name: str, amount: int = 1) -> None:
        self.counters[name] = self.counters.get(name, 0) + amount

    # What we say, and what peers say.

    def _hello(self, challenge: bytes, answering: bytes) -> Hello:
        return Hello(
            WIRE_VERSION, RULES_VERSION, self.name, 0, self.options.addresses(), challenge, answering
        )

    def _make_beat(self, flags: BeatFlag, interval_ms: int) -> Beat:
        engine = self.engine
        return Beat(
            engine.roots,
            self.heartbeat.mode.value,
            flags,
            interval_ms,
            self._links.heard() if self._links is not None else (),
            engine.newest_own(),
            self.name,
            self.options.addresses(),
        )

    def _beat(self, to: bytes, flags: BeatFlag) -> Beat:
        if self._freshness.has_twin(to):
            flags |= BeatFlag.TWIN_ALARM
        return self._make_beat(flags, int(self.options.heartbeat_interval_s * 1000))

    def _beaten(self, peer_id: str, beat: Beat) -> bool:
        """Take a direct peer's beat; whether its heads differ from ours."""
        if BeatFlag.TWIN_ALARM in beat.flags:
            self._told_of_twin(peer_id)
        self._learn(peer_id, beat.name, beat.addresses)
        return self._note_roots(peer_id, beat.roots, equal_at=self._driver.commits)

    def _note_roots(self, peer_id: str, roots: Roots, *, equal_at: int) -> bool:
        peer = self.registry.get(peer_id)
        ours = self.engine.roots
        same_log = roots.log_root == ours.log_root
        if peer is not None:
            peer.roots = roots
            if same_log:
                peer.held_commit = max(peer.held_commit, equal_at)
                if roots.rules == ours.rules and roots.state_root == ours.state_root:
                    peer.synced_ms = self._ports.wall_ms()
            if self._defects.compare(peer_id, roots, ours) and self._links is not None:
                self._links.start_round(peer_id, padded=False)
        return not same_log

    def _round_ended(self, peer_id: str, lung: Lung, result: RoundResult, commit: int) -> None:
        if result.peer_roots is not None:
            self._note_roots(peer_id, result.peer_roots, equal_at=commit)
        if result.descent is not None:
            self._nursery.start_soon(self._defects.descended, peer_id, result.descent)
        peer = self.registry.get(peer_id)
        if result.good and peer is not None:
            peer.held_commit = max(peer.held_commit, commit)

    def _learn(self, peer_id: str, name: str, addresses: Addresses) -> None:
        known = self.registry.get(peer_id) is not None
        if self.registry.learn(peer_id, name, addresses) is not None and not known:
            self.heartbeat.feed(PeerKnown(peer_id, trio.current_time()))

    def _greeted(self, answer: Answered) -> None:
        """A peer answered our Hello on a link."""
        self._note_greeting(answer, None, None)

    def _learned(self, answer: Answered, asked: Peer | None, url: str | None) -> str | None:
        """A node at `url` answered our Hello. Its peer id, or None for ourselves."""
        return self._note_greeting(answer, asked, url)

    def _note_answer(self, answer: Answered) -> None:
        """What any answer may show or say: that two live processes use its sender's key, or ours."""
        peer_id = peer_id_of(answer.sender)
        if answer.twin or (peer_id == self.peer_id and answer.boot != self._boot):
            self._twin(peer_id)
        if any(isinstance(m, Beat) and BeatFlag.TWIN_ALARM in m.flags for m in answer.messages):
            self._told_of_twin(peer_id)

    def _note_greeting(self, answer: Answered, asked: Peer | None, url: str | None) -> str | None:
        peer_id = peer_id_of(answer.sender)
        self._note_answer(answer)
        if asked is not None and asked.is_placeholder and url is not None:
            self.registry.identify(url, peer_id)
            now = trio.current_time()
            # The poll under way goes on under the identity; what the monitor then stops is the old name.
            self._anti_entropy.rename(asked.key, peer_id)
            self.heartbeat.feed(PeerIdentified(asked.key, peer_id, now))
        if peer_id == self.peer_id:
            return None
        for message in answer.messages:
            if isinstance(message, Hello):
                self._learn(peer_id, message.name, message.addresses)
                known = self.registry.get(peer_id)
                if known is not None:
                    known.wire = message.wire
        return peer_id

    def _twin(self, peer_id: str) -> None:
        own = "this node's own key" if peer_id == self.peer_id else f"the key of {peer_id}"
        self._raise_alarm(
            f"twin {peer_id}",
            f"two live processes use {own}: a data directory was copied; stop one and give it a new identity",
        )

    def _told_of_twin(self, by: str) -> None:
        """A peer has seen it. That is its word alone, and is said to be."""
        code = f"twin {self.peer_id}"
        if code in self._alarms:
            return
        self._raise_alarm(
            code,
            f"two live processes use this node's own key, says {by}: if a data directory was copied, stop "
            "one and give it a new identity; if not, look at that peer",
        )

    # Requests of others.

    async def serve_sync(self, body: bytes, remote: str) -> bytes:
        try:
            outcome = self._courier.receive(body)
            return outcome if isinstance(outcome, bytes) else await self._serve(outcome, None)
        except LatticeError as error:
            if error.code == "too_many":
                # Whoever repeats at once what was refused would else be served refusals all day.
                await trio.sleep(REFUSAL_S)
            raise

    async def on_link(self, link: PeerLink) -> None:
        if self._links is not None:
            await self._links.on_link(link)

    async def on_request(self, link: PeerLink, request: bytes) -> bytes | None:
        if self._restraint.refuses(link.peer_id, "p2p", "requests"):
            return None
        try:
            outcome = self._courier.receive(request, expected=public_key_of(link.peer_id))
            return outcome if isinstance(outcome, bytes) else await self._serve(outcome, link)
        except LatticeError as error:
            self._log.debug("SYNC", "a request was refused", peer=link.peer_id, reason=error.message)
            if error.code in ("envelope", "malformed"):
                self._restraint.blame(link.peer_id, "p2p", error.message, len(request))
            return None

    async def _serve(self, received: Received, link: PeerLink | None) -> bytes:
        sender, boot = received.opened.sender, received.opened.boot
        peer_id = peer_id_of(sender)
        if self._freshness.has_twin(sender) or (sender == self._key.public_key and boot != self._boot):
            self._twin(peer_id)
        lung: Lung = "http" if link is None else "p2p"
        out: list[Message] = []
        rest: list[Message] = []
        for message in received.messages:
            match message:
                case Hello():
                    self._learn(peer_id, message.name, message.addresses)
                    out.append(self._hello(ZERO_NONCE, ZERO_NONCE))
                case Beat():
                    flags = BeatFlag(0)
                    if self._links is not None:
                        flags = self._links.take_beat(link, peer_id, boot, message)
                    out.append(self._beat(sender, flags))
                case Entries() if self._low_disk is not None:
                    self._count("entries_paused_for_space", len(message.frames))
                case _:
                    rest.append(message)
        if rest:
            await self._hold(rest)
            served = self._restraint.sifted(peer_id, lung, rest)
            try:
                reply = await self._ask_in_turn(served, sender, boot, lung)
            except LatticeError as error:
                self._count(f"rounds_refused_{error.code}")
                if link is None:
                    raise
                # We live, though we cannot sync: the round stays without heads, and is not good. To
                # refuse the exchange would end the link, again and again with every peer.
            else:
                if isinstance(reply, Answer):
                    out += reply.messages
        if sender != self._key.public_key:
            self.heartbeat.feed(RequestServed(peer_id, "p2p" if link else "http", trio.current_time()))
        if self._freshness.has_twin(sender) and not any(isinstance(message, Beat) for message in out):
            # Where HTTP is all there is, no beat would ever tell them.
            out.append(self._beat(sender, BeatFlag(0)))
        return self._courier.reply(received, out)

    async def _ask_in_turn(
        self, messages: tuple[Message, ...], sender: bytes, boot: int, lung: Lung
    ) -> object:
        """The engine's answer. What is to be verified, stored, compared or read waits for the sender's
        turn; a beat's look at the roots does not."""
        if not any(map(_is_work, messages)):
            return await self._driver.ask(lambda token: Served(token, sender, boot, lung, messages))
        self._turns.note(sender)
        async with self._turns.take(sender):
            return await self._driver.ask(lambda token: Served(token, sender, boot, lung, messages))

    async def _hold(self, messages: Sequence[Message]) -> None:
        """The long-poll: hold the answer back while the asker holds exactly what we hold."""
        first = messages[0]
        if not isinstance(first, Heads) or not first.wait_ms:
            return
        with trio.move_on_after(min(first.wait_ms / 1000, LONG_POLL_S_MAX)):
            while first.roots.log_root == self.engine.roots.log_root:
                await self._driver.wait_changed()

    async def on_gossip(self, forwarder: str, kind: GossipKind, data: bytes) -> bool:
        if not self._gossips or self._restraint.refuses(forwarder, "gossip", "messages"):
            return False
        try:
            received = self._courier.open_gossip(data)
        except LatticeError as error:
            # Who relays judges first: what cannot be opened was made by whoever sent it to us.
            self._restraint.blame(forwarder, "gossip", error.message, len(data))
            return False
        if self._restraint.refuses(peer_id_of(received.opened.sender), "gossip", "messages"):
            return False
        if kind == "presence":
            return self._take_presence(received)
        return await self._take_gossip(received)

    def _take_presence(self, received: Received) -> bool:
        opened = received.opened
        beat = received.messages[0] if received.messages else None
        if not isinstance(beat, Beat) or opened.sender == self._key.public_key:
            return isinstance(beat, Beat)
        peer_id = peer_id_of(opened.sender)
        self._learn(peer_id, beat.name, beat.addresses)
        peer = self.registry.get(peer_id)
        if peer is None or not peer.take_presence(opened.boot, opened.counter):
            self._count("presence_stale")
            return False
        held = True
        if beat.newest is not None:
            epoch, seq, _ = beat.newest
            head = self.engine.heads.get(LogKey(opened.sender, epoch))
            held = head is not None and head.seq >= seq
        self._note_roots(peer_id, beat.roots, equal_at=-1)
        now = trio.current_time()
        self.heartbeat.feed(PresenceHeard(peer_id, now, beat.interval_ms / 1000, held))
        return True

    async def take_parcel(self, envelope: bytes) -> Imported:
        if self._low_disk is not None:
            raise self._low_disk
        try:
            received = self._courier.open_gossip(envelope)
        except MalformedError:
            raise
        except LatticeError as error:
            text = (
                f"this is no envelope of this network ({error.message}): another network, or a damaged file"
            )
            raise LatticeError("envelope", text) from error
        judged = await self._judge(received, "file")
        if judged is None:
            return Imported(True, 0, 0, 0, 0)
        return Imported(True, judged.taken, judged.held, judged.waiting, judged.refused)

    async def _take_gossip(self, received: Received) -> bool:
        if self._low_disk is not None:
            return True  # nothing is wrong with it; it comes again by a round
        sender = received.opened.sender
        self._turns.note(sender)
        try:
            if not self._turns.affords(sender, cost_s(received.messages)):
                self._count("gossip_out_of_turn")
                return False
            judged = await self._judge(received, "gossip")
        except LatticeError:
            return False
        return judged is not None and judged.authentic

    async def _judge(self, received: Received, lung: str) -> Judged | None:
        """Hand what came one-way to the engine, as one; its judgement, None if there is nothing in it."""
        sender = received.opened.sender
        parts = [message for message in received.messages if isinstance(message, Entries)]
        proofs = tuple(message for message in received.messages if isinstance(message, Proof))
        if not parts and not proofs:
            return None
        reply = await self._driver.ask(lambda token: Gossiped(token, sender, lung, joined(parts), proofs))
        if not isinstance(reply, Judged):
            raise AssertionError(f"a one-way message was answered by {reply!r}")
        return reply


def _is_work(message: Message) -> bool:
    """Whether an answer costs more than a look at the roots."""
    match message:
        case Entries() | Proof() | WantEntries():
            return True
        case Heads():
            return HeadsFlag.LISTS in message.flags
        case _:
            return False
