"""The simulator: one seed, one world, a time of faults, a time of healing, and the oracle throughout.

Separate from worlds and faults, because this is where an outcome is judged: what is checked while
it goes on, and what must hold in the end.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from traceback import format_exception
from typing import Final

import trio

from ..core.failover_events import Mode, Policy
from ..core.heads import log_root
from ..node.node import Node
from ..transport.memory import MemoryP2PLung
from .faults import Faults
from .invariants import (
    NODE_CAPS,
    Monotone,
    Violation,
    check_authentic,
    check_bounds,
    check_converged,
    check_kept,
    check_one_entry_a_place,
    check_roots,
)
from .network import HTTP_KINDS, P2P_KINDS, Block, Climate
from .profiles import Profile
from .reference import read_ledger
from .scheduler import run_seeded
from .workload import Workload
from .world import Host, World

HEAL_LIMIT_S: Final = 90.0
_LOOK_S: Final = 2.0
_SETTLE_S: Final = 20.0


@dataclass(slots=True)
class Outcome:
    """What a seed came to. `digest` is the SHA-256 over everything that happened."""

    profile: Profile
    digest: str = ""
    violations: list[str] = field(default_factory=list)
    converged_after_s: float | None = None
    virtual_s: float = 0.0
    writes: dict[str, int] = field(default_factory=dict)
    faults: dict[str, int] = field(default_factory=dict)
    packets: dict[str, int] = field(default_factory=dict)
    lost_packets: dict[str, int] = field(default_factory=dict)
    rounds: dict[str, int] = field(default_factory=dict)
    modes: dict[str, int] = field(default_factory=dict)
    acknowledged: int = 0
    entries: int = 0
    tail: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.violations

    @property
    def replay(self) -> str:
        """The command that does exactly this again."""
        profile = self.profile
        return (
            f"python -m lattice.testing --seed {profile.seed} --minutes {profile.minutes:g} "
            f"--nodes {profile.nodes} --verbose"
        )


def simulate(
    profile: Profile, *, make_node: type[Node] = Node, echo: Callable[[str], None] | None = None
) -> Outcome:
    """Run one profile to its end. `make_node` may be a build that lacks something on purpose."""
    simulation = Simulation(profile, make_node=make_node, echo=echo)
    return run_seeded(profile.seed, simulation.run)


def _leaves(error: BaseException) -> list[str]:
    """The exceptions inside a group, each with its own trace."""
    if isinstance(error, BaseExceptionGroup):
        return [text for inner in error.exceptions for text in _leaves(inner)]
    return ["".join(format_exception(error)[-6:])]


class Simulation:
    """One run of one profile, inside a seeded trio run."""

    def __init__(
        self, profile: Profile, *, make_node: type[Node], echo: Callable[[str], None] | None
    ) -> None:
        self.profile = profile
        self._rng = random.Random(f"{profile.seed} faults")
        self._monotone = Monotone()
        self._violations: list[Violation] = []
        self._outcome = Outcome(profile)
        self.world = World(profile.seed, climate=profile.climate, make_node=make_node)
        self.world.events.echo = echo
        self._faults = Faults(self.world, self._rng, self._monotone)
        self._workload = Workload(
            self.world,
            profile.write_every_s,
            self._monotone,
            clocks_steady="clock_step" not in profile.faults,
        )
        self._faults.write_on = self._workload.write_on

    async def run(self) -> Outcome:
        """The safety phase with every fault, then healing and the liveness phase."""
        try:
            async with self.world:
                self._make_hosts()
                await self.world.start(*self.world.hosts)
                await self._safety_phase()
                await self._liveness_phase()
                self._gather()
        except* Exception as group:  # noqa: BLE001 - whatever kills a node is a finding, with its seed
            self._gather()
            self._outcome.violations += [f"I8 : an exception ended it: {text}" for text in _leaves(group)]
        return self._outcome

    def _make_hosts(self) -> None:
        hosts = self.world.add_hosts(self.profile.nodes, acquainted=False, reserve_bytes=64 << 20)
        for index, host in enumerate(hosts):
            host.wall_offset_s = self._rng.uniform(-100, 100)
            others = [other for other in hosts if other is not host]
            match self.profile.acquaintance:
                case "all":
                    host.knows_peers = others
                case "first":
                    host.knows_peers = hosts[:1] if index else []
                case "ring":
                    host.knows_peers = [hosts[(index + 1) % len(hosts)]]
                case _:
                    host.knows_urls = [hosts[(index + 1) % len(hosts)].url]

    async def _safety_phase(self) -> None:
        duration_s = self.profile.minutes * 60
        async with trio.open_nursery() as nursery, trio.open_nursery() as sources:
            sources.start_soon(self._workload.run, self.world.hosts)
            sources.start_soon(self._look_for_ever)
            await self._misfortune(duration_s, nursery)
            sources.cancel_scope.cancel()
            # What faults have begun runs to its end: machines come back, disks are mended.

    async def _misfortune(self, duration_s: float, nursery: trio.Nursery) -> None:
        ends_at = trio.current_time() + duration_s
        while True:
            # At least three faults in every run.
            pause_s = min(self._rng.expovariate(1 / self.profile.fault_every_s), duration_s / 4)
            lasts_s = min(self._rng.expovariate(1 / self.profile.fault_lasts_s) + 1, 300)
            if trio.current_time() + pause_s >= ends_at:
                await trio.sleep_until(ends_at)
                return
            await trio.sleep(pause_s)
            lasts_s = min(lasts_s, ends_at - trio.current_time())
            nursery.start_soon(self._faults.befall, self._rng.choice(self.profile.faults), lasts_s)

    async def _liveness_phase(self) -> None:
        world = self.world
        world.weather.clear(Climate(delay_s=min(self.profile.climate.delay_s, 0.1)))
        everybody = frozenset(host.address for host in world.hosts)
        lung = self.profile.heal
        if lung != "all":
            kinds = HTTP_KINDS if lung == "p2p" else P2P_KINDS
            world.weather.add(Block(kinds, everybody, everybody))
        world.events.note(f"healed: {lung}")
        for host in world.hosts:
            host.store.disk.error = None
        began = trio.current_time()
        for host in world.up:
            await self._faults.choose_auto(host)
        while not world.converged() and trio.current_time() - began < HEAL_LIMIT_S:
            await trio.sleep(1.0)
            self._look()
        self._outcome.virtual_s = trio.current_time()
        if world.converged():
            self._outcome.converged_after_s = trio.current_time() - began
        else:
            self._add("I2", "", f"no equal roots {HEAL_LIMIT_S:g} s after healing by {lung}: {self._roots()}")
        await trio.sleep(_SETTLE_S)
        self._judge_end()

    def _roots(self) -> str:
        return " ".join(f"{h.name}={h.running.engine.roots.log_root.hex()[:6]}" for h in self.world.up)

    # The oracle.

    async def _look_for_ever(self) -> None:
        while True:
            await trio.sleep(_LOOK_S)
            self._look()

    def _look(self) -> None:
        """What must hold at any time."""
        for host in self.world.up:
            node = host.running
            self._violations += self._monotone.look(host.name, host.store.log_heads())
            self._violations += check_bounds(host.name, node.engine.statistics(), NODE_CAPS)
            lung = node.p2p
            if isinstance(lung, MemoryP2PLung):
                for text in lung.raised:
                    self._add("I8", host.name, f"an exception reached the lung: {text}")
                lung.raised.clear()
            self._take_watch(host)
            self._check_polled(host)

    def _check_polled(self, host: Host) -> None:
        """I6: whoever is unheard over P2P for 60 s is being polled, whatever the headline says."""
        view = host.running.heartbeat.view()
        if view.policy is not Policy.AUTO or not host.http or trio.current_time() < host.stalled_until + 90:
            return
        for peer in view.peers:
            silent_s = peer.known_s if peer.last_heard_p2p_s is None else peer.last_heard_p2p_s
            limit_s = 61.0 if peer.direct else max(61.0, 3 * 0.3 * (len(view.peers) + 1) + 1)
            if not peer.polled and min(silent_s, peer.known_s) > limit_s:
                text = f"{peer.peer[-8:]} is not polled, unheard for {silent_s:.1f} s"
                self._add("I6", host.name, text)

    def _take_watch(self, host: Host) -> None:
        if host.watch is not None:
            for text in host.watch.found:
                self._add("I6", host.name, text)
            host.watch.found.clear()

    def _judge_end(self) -> None:
        """What must hold once everything is healed and quiet."""
        network_id = self.world.network_id
        self._look()
        ledgers = {host.name: read_ledger(host.store) for host in self.world.hosts}
        kept = [line for line in self._workload.journal if line.node not in self._faults.lost]
        survived = [
            line
            for line in self._workload.journal
            if line.node in self._faults.lost and any(x.holds(line.log, line.seq) for x in ledgers.values())
        ]
        self._violations += check_kept(network_id, kept + survived, ledgers)
        self._violations += check_converged(network_id, ledgers)
        self._violations += check_one_entry_a_place(network_id, ledgers)
        for host in self.world.up:
            ledger, roots = ledgers[host.name], host.running.engine.roots
            self._violations += check_authentic(network_id, host.name, ledger)
            self._violations += check_roots(
                network_id, host.name, ledger, state_root=roots.state_root, log_root=roots.log_root
            )
            if log_root(host.running.engine.heads) != roots.log_root:
                self._add("I4", host.name, "its heads in memory are not those of its root")
            for code, text in host.running.alarms.items():
                if code.startswith("twin") and self._faults.counts.get("clone"):
                    continue
                if code.startswith(("fork", "state_defect", "stolen_epoch", "twin")):
                    self._add("I3", host.name, f"alarm {code}: {text}")
        for host in self.world.hosts:
            if host.node is None:
                self._add("I2", host.name, "it is down at the end")
        for text in self.world.events.defects:
            self._add("I8", "", f"a defect was logged: {text}")
        self._outcome.entries = max(ledger.size for ledger in ledgers.values())

    def _add(self, invariant: str, node: str, detail: str) -> None:
        self._violations.append(Violation(invariant, node, detail))

    def _gather(self) -> None:
        outcome, world = self._outcome, self.world
        found = self._violations + self._workload.found + self._faults.found
        outcome.violations = list(dict.fromkeys(str(violation) for violation in found))
        outcome.digest = world.events.hexdigest()
        outcome.writes, outcome.faults = self._workload.counts, self._faults.counts
        outcome.packets, outcome.lost_packets = world.network.delivered, world.network.lost
        outcome.acknowledged = len(self._workload.journal)
        outcome.tail = list(world.events.tail)
        for host in world.up:
            for name, count in host.running.anti_entropy_counters.items():
                outcome.rounds[name] = outcome.rounds.get(name, 0) + count
            if host.watch is not None:
                for _, mode in host.watch.changes:
                    outcome.modes[Mode(mode).value] = outcome.modes.get(Mode(mode).value, 0) + 1
