"""The faults: what each of them does to a world, and how it ends.

Separate from the profiles that choose them and the simulator that times them. A fault takes hold,
lasts, and is undone; a machine that it stopped is started again.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import trio

from ..core.draft import OpDraft
from ..core.entry import OpKind
from ..core.errors import LatticeError
from ..storage.memory import MemoryStore
from ..transport.memory import MemoryP2PLung
from .invariants import Monotone, Violation, check_authentic, check_halted, check_roots
from .network import ALL_KINDS, HTTP_KINDS, P2P_KINDS, Block, BlockPairs, Held, LargeDropped
from .reference import read_ledger
from .world import Host, World

_DAY_S: Final = 86_400.0
_RETRIED_S: Final = 15.0  # a full disk is tried again after ten; a failed one never
_NOTICED_S: Final = 5.0  # a node looks at its free space every two seconds


async def _write_nothing(host: Host) -> None:
    await trio.sleep_forever()


@dataclass(slots=True)
class Faults:
    """Carries faults out on one world. `lost` names hosts whose disk lost what it had acknowledged."""

    world: World
    rng: random.Random
    monotone: Monotone
    counts: dict[str, int] = field(default_factory=dict)
    found: list[Violation] = field(default_factory=list)
    rules: set[int] = field(default_factory=set)
    lost: set[str] = field(default_factory=set)
    # Writes on a host that a fault has added, for as long as it is there.
    write_on: Callable[[Host], Awaitable[None]] = field(default=_write_nothing)
    _busy: set[str] = field(default_factory=set)

    async def befall(self, kind: str, lasts_s: float) -> None:
        """Let one fault happen, from its beginning to its end."""
        act = self._actions()[kind]
        self.counts[kind] = self.counts.get(kind, 0) + 1
        self.world.events.note(f"fault {kind} for {lasts_s:.1f} s")
        await act(lasts_s)
        self.world.events.note(f"fault {kind} is over")

    def _actions(self) -> dict[str, Callable[[float], Awaitable[None]]]:
        on = partial
        return {
            "partition": self._partition,
            "one_way": self._one_way,
            "ring": self._ring,
            "p2p_blocked": on(self._blocked_at_one, P2P_KINDS),
            "p2p_blocked_at_all": on(self._blocked_at_all, P2P_KINDS),
            "http_blocked": on(self._blocked_at_one, HTTP_KINDS),
            "both_blocked": on(self._blocked_at_one, ALL_KINDS),
            "islands": self._islands,
            "large_vanish": on(self._large, stalls=False),
            "large_stall": on(self._large, stalls=True),
            "clogged": self._clogged,
            "crash": self._crash,
            "rollback": self._rollback,
            "wipe": self._wipe,
            "clone": self._clone,
            "p2p_lost": self._p2p_lost,
            "pause": self._pause,
            "clock_step": self._clock_step,
            "disk_full": on(self._disk, "no_space"),
            "disk_reserve": self._disk_reserve,
            "disk_failed": on(self._disk, "store_failed"),
            "switch_policy": self._switch_policy,
        }

    # The network.

    @property
    def _addresses(self) -> list[str]:
        return [host.address for host in self.world.hosts]

    def _one(self) -> str:
        return self.rng.choice(self._addresses)

    async def _under(self, rules: Sequence[Block | BlockPairs | LargeDropped | Held], lasts_s: float) -> None:
        numbers = [self.world.weather.add(rule) for rule in rules]
        self.rules.update(numbers)
        await trio.sleep(lasts_s)
        self.world.weather.remove(numbers)
        self.rules.difference_update(numbers)

    def _halves(self) -> tuple[frozenset[str], frozenset[str]]:
        shuffled = self.rng.sample(self._addresses, len(self._addresses))
        cut = self.rng.randint(1, len(shuffled) - 1)
        return frozenset(shuffled[:cut]), frozenset(shuffled[cut:])

    async def _partition(self, lasts_s: float) -> None:
        one, other = self._halves()
        await self._under([Block(ALL_KINDS, one, other), Block(ALL_KINDS, other, one)], lasts_s)

    async def _one_way(self, lasts_s: float) -> None:
        one, other = self._halves()
        kinds = self.rng.choice((P2P_KINDS, HTTP_KINDS, ALL_KINDS))
        await self._under([Block(kinds, one, other)], lasts_s)

    async def _ring(self, lasts_s: float) -> None:
        """Everybody reaches only its two neighbours."""
        ring = self.rng.sample(self._addresses, len(self._addresses))
        near = {(a, ring[(i + 1) % len(ring)]) for i, a in enumerate(ring)}
        near |= {(b, a) for a, b in near}
        pairs = frozenset((a, b) for a in ring for b in ring if a != b and (a, b) not in near)
        await self._under([BlockPairs(ALL_KINDS, pairs)], lasts_s)

    async def _blocked_at_one(self, kinds: frozenset[str], lasts_s: float) -> None:
        one, everybody = frozenset({self._one()}), frozenset(self._addresses)
        await self._under([Block(kinds, one, everybody), Block(kinds, everybody, one)], lasts_s)

    async def _blocked_at_all(self, kinds: frozenset[str], lasts_s: float) -> None:
        everybody = frozenset(self._addresses)
        await self._under([Block(kinds, everybody, everybody)], lasts_s)

    async def _islands(self, lasts_s: float) -> None:
        """P2P dropped between two halves, HTTP open: everybody may still hear someone."""
        one, other = self._halves()
        await self._under([Block(P2P_KINDS, one, other), Block(P2P_KINDS, other, one)], lasts_s)

    async def _large(self, lasts_s: float, *, stalls: bool) -> None:
        hosts = frozenset(self._addresses) if self.rng.random() < 0.5 else frozenset({self._one()})
        kinds = self.rng.choice((P2P_KINDS, P2P_KINDS, ALL_KINDS))
        await self._under([LargeDropped(kinds, hosts, stalls=stalls)], lasts_s)

    async def _clogged(self, lasts_s: float) -> None:
        """Nothing arrives on one road for a while, then all of it at once."""
        lasts_s = min(lasts_s, 60.0)
        source, target = self.rng.sample(self._addresses, 2)
        until = trio.current_time() + lasts_s
        await self._under([Held(frozenset({target}), until, frozenset({source}))], lasts_s)

    # Machines. One fault at a time has a machine.

    def _take(self) -> Host | None:
        free = [host for host in self.world.up if host.name not in self._busy]
        if not free:
            return None
        host = self.rng.choice(free)
        self._busy.add(host.name)
        return host

    def _give_back(self, host: Host) -> None:
        self._busy.discard(host.name)

    async def _crash(self, lasts_s: float) -> None:
        if (host := self._take()) is not None:
            await self._down(host, lasts_s, lambda: None)

    async def _rollback(self, lasts_s: float) -> None:
        """A power cut on a disk that lied about its syncs."""
        if (host := self._take()) is not None:
            self._loses(host)
            await self._down(host, lasts_s, lambda: None, lose_commits=self.rng.randint(1, 8))

    async def _wipe(self, lasts_s: float) -> None:
        """A new disk, the same identity."""
        if (host := self._take()) is not None:
            self._loses(host)

            def renew() -> None:
                host.store = MemoryStore(host.store.disk)

            await self._down(host, lasts_s, renew)

    def _loses(self, host: Host) -> None:
        self.lost.add(host.name)

    async def _down(
        self, host: Host, lasts_s: float, meanwhile: Callable[[], None], *, lose_commits: int = 0
    ) -> None:
        await self.world.crash(host, lose_commits=lose_commits)
        meanwhile()
        if host.name in self.lost:
            self.monotone.forget(host.name)
        await trio.sleep(lasts_s)
        await self._back(host)
        self._give_back(host)

    async def _back(self, host: Host) -> None:
        """Start the machine again; what it then shows must be what it stores (I4)."""
        await self.world.start(host)
        network_id, roots = self.world.network_id, host.running.engine.roots
        ledger = read_ledger(host.store)
        self.found += check_authentic(network_id, host.name, ledger)
        self.found += check_roots(
            network_id, host.name, ledger, state_root=roots.state_root, log_root=roots.log_root
        )

    async def _clone(self, lasts_s: float) -> None:
        """A copied data directory runs elsewhere for a while, and is written to."""
        if (host := self._take()) is None:
            return
        twin = self.world.clone(host)
        self.lost.add(twin.name)  # what it wrote and nobody fetched goes with it
        self._busy.add(twin.name)
        await self.world.start(twin)
        with trio.move_on_after(lasts_s):
            await self.write_on(twin)
        await self.world.crash(twin)
        self.world.hosts.remove(twin)
        self._give_back(host)

    async def _p2p_lost(self, lasts_s: float) -> None:
        """The P2P host breaks down and is rebuilt; the process lives."""
        if (host := self._take()) is None:
            return
        lung = host.running.p2p
        if isinstance(lung, MemoryP2PLung):
            lung.break_down("lost")
            await trio.sleep(lasts_s)
            lung.failing = None
        self._give_back(host)

    async def _pause(self, lasts_s: float) -> None:
        if (host := self._take()) is not None:
            await self.world.pause(host, self.rng.uniform(1, 2 * lasts_s))
            self._give_back(host)

    async def _clock_step(self, lasts_s: float) -> None:
        """The wall clock jumps, and half of the times jumps back."""
        host = self.rng.choice(self.world.hosts)
        far = self.rng.random() < 0.3
        step_s = self.rng.uniform(-30 * _DAY_S, 30 * _DAY_S) if far else self.rng.uniform(-600, 600)
        host.wall_offset_s += step_s
        if self.rng.random() < 0.5:
            await trio.sleep(lasts_s)
            host.wall_offset_s -= step_s

    async def _disk(self, error: str, lasts_s: float) -> None:
        """The disk refuses every commit: full, or broken until the process is started again."""
        if (host := self._take()) is None:
            return
        disk = host.store.disk
        disk.error, disk.lands = error, self.rng.random() < 0.5
        await trio.sleep(lasts_s)
        if error == "store_failed":
            await self._check_halted(host)
            await self.world.crash(host)
            disk.error = None
            await self._back(host)
        disk.error = None
        self._give_back(host)

    async def _check_halted(self, host: Host) -> None:
        """The disk fails every commit: a write must be refused, and the node no longer be ready."""
        node, wrote = host.running, False
        with trio.move_on_after(5):
            try:
                await node.append([OpDraft(OpKind.PUT, b"halted", b"1")])
                wrote = True
            except LatticeError:
                pass
        await trio.sleep(_RETRIED_S)
        self.found += check_halted(host.name, ready=not node.ready(), wrote=wrote)

    async def _disk_reserve(self, lasts_s: float) -> None:
        if (host := self._take()) is None:
            return
        store, before = host.store, host.store.disk.free_bytes
        store.disk.free_bytes = 1 << 20
        await trio.sleep(min(lasts_s, _NOTICED_S))
        held = store.entry_count()
        await trio.sleep(max(0.0, lasts_s - _NOTICED_S))
        if store.entry_count() != held:
            text = f"it took {store.entry_count() - held} entries below its disk reserve"
            self.found.append(Violation("I8", host.name, text))
        store.disk.free_bytes = before
        self._give_back(host)

    async def _switch_policy(self, lasts_s: float) -> None:
        """An operator chooses a mode by hand, and later auto again."""
        if (host := self._take()) is None:
            return
        if await self._choose(host, self.rng.choice(("p2p", "http"))):
            await trio.sleep(lasts_s)
            await self._choose(host, "auto")
        self._give_back(host)

    async def choose_auto(self, host: Host) -> None:
        """Healing: the operator lets the lungs switch again."""
        await self._choose(host, "auto")

    async def _choose(self, host: Host, policy: str) -> bool:
        node = host.node
        if node is None or node.ready():
            return False
        with trio.move_on_after(5):
            await node.switch(policy)
            return True
        return False
