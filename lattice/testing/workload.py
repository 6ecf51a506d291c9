"""A workload: writers that put, delete, add, batch and race, and keep a journal of what was acknowledged.

Separate from the faults, and kept outside the nodes, because the journal is what an invariant
compares the nodes with.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import trio

from ..core.draft import Appended, Condition, OpDraft
from ..core.entry import OpKind
from ..core.errors import LatticeError
from ..core.limits import CLOCK_AHEAD_MS_MAX
from ..core.rows import LogKey
from .invariants import Acknowledged, Monotone, Violation
from .world import Host, World

_SHARED_KEYS: Final = 24
_SIZES: Final = (8, 8, 40, 40, 40, 200, 1_000, 20_000, 70_000)


@dataclass(slots=True)
class Workload:
    """Writers on all hosts of a world. `every_s` is the mean pause of one writer."""

    world: World
    every_s: float
    monotone: Monotone
    # Whether no wall clock is ever set: else a clock may have been too far ahead when it was seen.
    clocks_steady: bool = True
    journal: list[Acknowledged] = field(default_factory=list)
    found: list[Violation] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)

    async def run(self, hosts: Sequence[Host]) -> None:
        """Write until cancelled."""
        async with trio.open_nursery() as nursery:
            for host in hosts:
                nursery.start_soon(self.write_on, host)

    async def write_on(self, host: Host) -> None:
        """Write on one host until cancelled."""
        rng = random.Random(f"{self.world.seed} writer {host.name}")
        number = 0
        while True:
            await trio.sleep(rng.expovariate(1 / self.every_s))
            number += 1
            burst = rng.choice((1, 1, 1, 1, 2, 8))
            async with trio.open_nursery() as nursery:
                for index in range(burst):
                    nursery.start_soon(self._write, host, rng, f"{host.name}/{number}/{index}")

    async def _write(self, host: Host, rng: random.Random, name: str) -> None:
        """One write, whatever becomes of it. A node that dies under it leaves it unanswered."""
        node = host.node
        if node is None:
            return
        kind, ops, conditions = self._draw(host, rng, name)
        seen = [view.winner.clock for op in ops if (view := node.key(op.key)) is not None and view.winner]
        now_ms = host.wall_ms()
        down = host.down
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_cancel_when, down, scope)
                try:
                    result = await node.append(
                        ops, conditions=conditions, idempotency_key=f"{name}/{host.starts}"
                    )
                except LatticeError as error:
                    self._count(f"{kind}_{error.code}")
                else:
                    self._count(kind)
                    limit = now_ms + CLOCK_AHEAD_MS_MAX if self.clocks_steady else 0
                    self._acknowledged(host, result, [clock for clock in seen if clock >> 16 <= limit])
                nursery.cancel_scope.cancel()

    def _acknowledged(self, host: Host, result: Appended, seen: list[int]) -> None:
        log = LogKey(result.author, result.epoch)
        line = Acknowledged(host.name, log, result.seq, result.id, trio.current_time())
        self.journal.append(line)
        self.world.events.note(f"{host.name} acknowledges {result.seq} {result.id.hex()[:16]}", show=False)
        self.found += self.monotone.acknowledged(line)
        if host.store.entry_id_at(result.author, result.epoch, result.seq) != result.id:
            self.found.append(
                Violation("I1", host.name, f"entry {result.seq} was acknowledged before its commit")
            )
        if any(clock >= result.clock for clock in seen):
            self.found.append(
                Violation("I2", host.name, "a write has no later clock than one its writer had seen")
            )

    def _draw(self, host: Host, rng: random.Random, name: str) -> tuple[str, list[OpDraft], list[Condition]]:
        node = host.running
        shared = f"shared/{rng.randrange(_SHARED_KEYS)}".encode()
        own = f"own/{name}".encode()
        value = b'"%s"' % (name.encode() * (rng.choice(_SIZES) // len(name) + 1))
        match rng.randrange(10):
            case 0:
                return "delete", [OpDraft(OpKind.DELETE, shared)], []
            case 1:
                return "add", [OpDraft(OpKind.ADD, b"counter/" + shared, amount=rng.randrange(-50, 100))], []
            case 2 | 3:
                size = rng.choice((2, 5, 40))
                batch = [OpDraft(OpKind.PUT, own + b"/%d" % i, b"%d" % i) for i in range(size)]
                return "batch", [*batch, OpDraft(OpKind.PUT, shared, b'"%s"' % name.encode())], []
            case 4:
                view = node.key(shared)
                match_version = view.winner.version if view is not None and view.winner else None
                match = () if match_version is None else (match_version,)
                condition = Condition(shared, match, absent=match_version is None)
                return "conditional", [OpDraft(OpKind.PUT, shared, b'"c"')], [condition]
            case 5 | 6 | 7:
                return "put", [OpDraft(OpKind.PUT, own, value)], []
            case _:
                return "put_shared", [OpDraft(OpKind.PUT, shared, value)], []

    def _count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1


async def _cancel_when(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()
