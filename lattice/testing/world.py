"""A simulated network: real nodes over memory lungs, with machines that crash, stall and lose clocks.

Separate from the faults that befall it and the checks that follow: a scenario test drives the same
world by hand that the simulator drives by chance.
"""

from __future__ import annotations

import copy
import random
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Final

import trio

from ..core.failover_events import Policy
from ..core.identity import NodeKey
from ..core.messages import Addresses
from ..node.node import Node
from ..node.ports import NodeOptions, Ports
from ..observability.logs import Tag
from ..storage.memory import Disk, MemoryStore
from ..transport.memory import MemoryP2PLung
from ..transport.memory_http import MemoryHttpLung, serve_http
from ..transport.memory_network import MemoryNetwork, Packet
from .mode_watch import ModeWatch
from .network import Climate, Held, Weather
from .scheduler import Freezer, run_seeded

_EPOCH_MS: Final = 1_790_000_000_000
_TAIL: Final = 400


class EventLog:
    """Everything that happened, as a running SHA-256 and the last few lines."""

    def __init__(self) -> None:
        self._digest = sha256()
        self.tail: deque[str] = deque(maxlen=_TAIL)
        self.lines = 0
        self.defects: list[str] = []
        self.echo: Callable[[str], None] | None = None

    def note(self, text: str, *, show: bool = True) -> None:
        line = f"{trio.current_time():.6f} {text}"
        self._digest.update(line.encode("utf-8", "backslashreplace") + b"\n")
        self.lines += 1
        if show:
            self.tail.append(line)
            if self.echo is not None:
                self.echo(line)

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


class _HostLog:
    """The tagged log of one simulated node."""

    def __init__(self, events: EventLog, name: str) -> None:
        self._events = events
        self._name = name

    def debug(self, tag: Tag, sentence: str, **fields: object) -> None:
        self._write("DEBUG", tag, sentence, fields, show=False)

    def info(self, tag: Tag, sentence: str, **fields: object) -> None:
        self._write("INFO", tag, sentence, fields)

    def warning(self, tag: Tag, sentence: str, **fields: object) -> None:
        self._write("WARNING", tag, sentence, fields)

    def error(self, tag: Tag, sentence: str, **fields: object) -> None:
        self._write("ERROR", tag, sentence, fields)

    def defect(self, tag: Tag, sentence: str, error: BaseException, **fields: object) -> None:
        self._events.defects.append(f"{self._name}: {sentence}: {error!r}")
        self._write("DEFECT", tag, sentence, {**fields, "error": repr(error)})

    def _write(
        self, level: str, tag: str, sentence: str, fields: dict[str, object], *, show: bool = True
    ) -> None:
        text = " ".join(f"{name}={value}" for name, value in fields.items())
        self._events.note(f"{self._name} {level} [{tag}] {sentence} {text}".rstrip(), show=show)


@dataclass(slots=True)
class Host:
    """One machine: its address, disk, clock and identity, and the node that runs on it, if any."""

    name: str
    address: str
    key: NodeKey
    store: MemoryStore
    p2p: bool = True
    http: bool = True
    announces: bool = True
    p2p_failing: str | None = None
    policy: str = "auto"
    reserve_bytes: int = 0
    urls: tuple[str, ...] = ()
    knows_urls: list[str] = field(default_factory=list)
    knows_peers: list[Host] = field(default_factory=list)
    wall_offset_s: float = 0.0
    wall_drift: float = 0.0
    starts: int = 0
    node: Node | None = None
    watch: ModeWatch | None = None
    nursery: trio.Nursery | None = None
    stalled_until: float = 0.0
    down: trio.Event = field(default_factory=trio.Event)

    @property
    def multiaddr(self) -> str:
        return f"/ip4/{self.address}/tcp/9000"

    @property
    def url(self) -> str:
        return f"http://{self.address}:8100"

    @property
    def addresses(self) -> Addresses:
        """What the node announces: nothing over a lung that it does not have."""
        if not self.announces:
            return Addresses()
        return Addresses((self.multiaddr,) if self.p2p else (), (self.url,) if self.http else ())

    @property
    def running(self) -> Node:
        """The node, which must be up."""
        if self.node is None:
            raise AssertionError(f"{self.name} is down")
        return self.node

    def wall_ms(self) -> int:
        now = trio.current_time()
        return _EPOCH_MS + round((now * (1 + self.wall_drift) + self.wall_offset_s) * 1000)


class World:
    """Hosts on one memory network. Open it with `async with`; everything ends when it closes.

    `make_node` may be another class with Node's constructor: a build that lacks something on purpose.
    """

    def __init__(self, seed: int, *, climate: Climate | None = None, make_node: type[Node] = Node) -> None:
        self.seed = seed
        self.network_id = sha256(b"simulated network %d" % seed).digest()
        self.rng = random.Random(f"{seed} world")
        self.events = EventLog()
        self.weather = Weather(
            random.Random(f"{seed} weather"), climate if climate is not None else Climate(), tell=self._tell
        )
        self.network = MemoryNetwork(self.weather)
        self.hosts: list[Host] = []
        self._made = 0
        self._make_node = make_node
        self._network_keys = {1: sha256(b"simulated key %d" % seed).digest()}

    async def __aenter__(self) -> World:
        self._opened = trio.open_nursery()
        self._nursery = await self._opened.__aenter__()
        self.freezer = Freezer()
        await self._nursery.start(self.network.run)
        return self

    async def __aexit__(self, *error: object) -> bool | None:
        self._nursery.cancel_scope.cancel()
        return await self._opened.__aexit__(*error)  # type: ignore[arg-type]

    def _tell(self, packet: Packet, copies: int) -> None:
        self.events.note(f"{packet.kind} {packet.source}>{packet.target} {packet.size} x{copies}", show=False)

    # Hosts.

    def add_host(self, key: NodeKey | None = None, **settings: object) -> Host:
        """A machine, still off. `settings` are fields of Host."""
        self._made += 1
        number = self._made
        host = Host(
            name=f"n{number}",
            address=f"10.0.0.{number}",
            key=key if key is not None else NodeKey(self.rng.randbytes(32)),
            store=MemoryStore(Disk(remembers=True)),
        )
        for name, value in settings.items():
            if not hasattr(host, name):
                raise AssertionError(f"a host has no {name}")
            setattr(host, name, value)
        self.hosts.append(host)
        return host

    def add_hosts(self, count: int, *, acquainted: bool = True, **settings: object) -> list[Host]:
        """Several, each knowing all the others' addresses if `acquainted`."""
        hosts = [self.add_host(None, **settings) for _ in range(count)]
        if acquainted:
            for host in hosts:
                host.knows_peers = [other for other in hosts if other is not host]
        return hosts

    def clone(self, host: Host) -> Host:
        """A copied data directory on another machine: same identity, same disk content."""
        kept = {name: getattr(host, name) for name in ("reserve_bytes", "policy", "p2p", "http")}
        twin = self.add_host(host.key, **kept)
        twin.store = copy.deepcopy(host.store)
        twin.knows_peers = list(host.knows_peers)
        return twin

    async def start(self, *hosts: Host) -> None:
        """Switch machines on; returns when their nodes run."""
        for host in hosts:
            await self._nursery.start(self._run_host, host)

    async def _run_host(
        self, host: Host, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        host.starts += 1
        host.down = trio.Event()
        self.events.note(f"{host.name} starts, the {host.starts}. time")
        try:
            async with trio.open_nursery() as nursery:
                host.nursery = nursery
                node = self._build(host)
                host.node = node
                if host.http:
                    await nursery.start(serve_http, self.network, [host.url, *host.urls], node.serve_sync)
                await nursery.start(node.run)
                task_status.started()
        finally:
            host.node = host.nursery = host.watch = None
            host.down.set()

    def _build(self, host: Host) -> Node:
        rng = random.Random(f"{self.seed} {host.name} {host.starts}")
        node = self._make_node(
            host.key,
            self.network_id,
            self._network_keys,
            host.store,
            Ports(host.wall_ms, rng.randbytes, _HostLog(self.events, host.name)),
            NodeOptions(
                name=host.name,
                policy=host.policy,
                disk_reserve_bytes=host.reserve_bytes,
                addresses=lambda: host.addresses,
            ),
            p2p=MemoryP2PLung(self.network, host.key.peer_id, host.multiaddr, failing=host.p2p_failing)
            if host.p2p
            else None,
            http=MemoryHttpLung(self.network, host.address) if host.http else None,
        )
        watch = ModeWatch(p2p_enabled=host.p2p, policy=Policy(node.heartbeat.view().policy))
        host.watch = watch
        node.heartbeat.observe = watch.observe
        for url in host.knows_urls:
            node.know_url(url)
        for peer in host.knows_peers:
            node.know_peer(peer.key.peer_id, peer.name, peer.addresses)
        return node

    # What befalls a machine.

    async def crash(self, host: Host, *, lose_commits: int = 0) -> None:
        """kill -9, or with `lose_commits` a power cut on a disk that lied about its last syncs."""
        self.events.note(f"{host.name} crashes" + (f", {lose_commits} commits lost" if lose_commits else ""))
        self.thaw(host)
        if host.nursery is not None:
            host.nursery.cancel_scope.cancel()
            await host.down.wait()
        host.store = host.store.reopened(lose_commits)

    def freeze(self, host: Host, duration_s: float) -> int:
        """SIGSTOP: nothing of the node runs and nothing arrives; `thaw` ends it. The weather's rule."""
        until = trio.current_time() + duration_s
        self.events.note(f"{host.name} stands still for {duration_s:.1f} s")
        host.stalled_until = until
        if host.nursery is not None:
            self.freezer.freeze(host.nursery)
        return self.weather.add(Held(frozenset({host.address}), until))

    def thaw(self, host: Host) -> None:
        if host.nursery is not None:
            self.freezer.thaw(host.nursery)

    async def pause(self, host: Host, duration_s: float) -> None:
        """Freeze, wait, thaw."""
        rule = self.freeze(host, duration_s)
        await trio.sleep(duration_s)
        self.weather.remove([rule])
        self.thaw(host)

    # What all of them say.

    @property
    def up(self) -> list[Host]:
        return [host for host in self.hosts if host.node is not None]

    def converged(self, hosts: Sequence[Host] | None = None) -> bool:
        """Whether the running nodes hold the same roots, as of their last commits."""
        nodes = [host.node for host in (self.up if hosts is None else hosts) if host.node is not None]
        return len({(node.engine.roots.log_root, node.engine.roots.state_root) for node in nodes}) <= 1

    async def wait_until(self, condition: Callable[[], bool], limit_s: float, what: str = "") -> float:
        """Wait for a condition, looked at every 50 ms; how long it took. Fails after `limit_s`."""
        began = trio.current_time()
        while not condition():
            if trio.current_time() - began >= limit_s:
                raise AssertionError(f"{what or 'a condition'} did not come true within {limit_s:g} s")
            await trio.sleep(0.05)
        return trio.current_time() - began

    async def wait_converged(self, limit_s: float, hosts: Sequence[Host] | None = None) -> float:
        return await self.wait_until(lambda: self.converged(hosts), limit_s, "equal roots")


def play(
    scenario: Callable[[World], Awaitable[None]],
    *,
    seed: int = 1,
    climate: Climate | None = None,
    make_node: type[Node] = Node,
) -> World:
    """Run a scenario in a world of its own, under virtual time; the world, closed, for a last look."""
    worlds: list[World] = []

    async def main() -> None:
        async with World(seed, climate=climate, make_node=make_node) as world:
            worlds.append(world)
            await scenario(world)

    run_seeded(seed, main)
    return worlds[0]
