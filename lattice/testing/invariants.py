"""The oracle: eight invariants that hold for every network of honest nodes, whatever happens to it.

Separate from whoever makes things happen, so that the simulator, tests of real processes and long
runs all ask the same questions. Nothing here looks inside a node: it is given journals, stored
bytes (`reference.Ledger`), and what a node says of itself.

I1 no acknowledged entry is lost. I2 convergence. I3 nothing foreign, no gap, one entry at a place.
I4 stored roots are the recomputed ones. I5 logs never shrink and no place is used twice. I6 the mode
tells the truth (`mode_watch`). I7 bounds. I8 a node that cannot keep its promises says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from ..core.limits import FROZEN_NEVER, PENDING_BYTES_MAX
from ..core.rows import LogHead, LogKey
from .reference import (
    Ledger,
    compute_log_root,
    compute_state,
    compute_state_root,
    find_forgeries,
    id_of,
)


@dataclass(frozen=True, slots=True)
class Violation:
    """A broken invariant: which (`I1` to `I8`), at which node, and how."""

    invariant: str
    node: str
    detail: str

    def __str__(self) -> str:
        return f"{self.invariant} {self.node}: {self.detail}"


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """A line of the journal that a writer keeps outside the node: what it was told is stored."""

    node: str
    log: LogKey
    seq: int
    id: bytes
    at: float


def check_kept(
    network_id: bytes, journal: Iterable[Acknowledged], ledgers: Mapping[str, Ledger]
) -> list[Violation]:
    """I1: every acknowledged entry is in every ledger."""
    found = []
    for line in journal:
        for node, ledger in ledgers.items():
            if not ledger.holds(line.log, line.seq):
                text = f"entry {line.seq} of {_name(line.log)}, acknowledged by {line.node}, is missing"
            elif id_of(network_id, ledger.logs[line.log][line.seq][0]) != line.id:
                text = f"entry {line.seq} of {_name(line.log)} is another than {line.node} acknowledged"
            else:
                continue
            found.append(Violation("I1", node, text))
    return found


def check_converged(network_id: bytes, ledgers: Mapping[str, Ledger]) -> list[Violation]:
    """I2: heads, both recomputed roots and the state itself are equal everywhere."""
    found = []
    first: tuple[str, object, object] | None = None
    for node, ledger in ledgers.items():
        state = compute_state(network_id, ledger)
        if first is None:
            first = (node, ledger.heads, state)
            continue
        if ledger.heads != first[1]:
            found.append(Violation("I2", node, f"its heads differ from those of {first[0]}"))
        if state != first[2]:
            found.append(Violation("I2", node, f"its state differs from that of {first[0]}"))
    return found


def check_authentic(network_id: bytes, node: str, ledger: Ledger) -> list[Violation]:
    """I3 within one node: chains, ops and seals hold."""
    return [Violation("I3", node, text) for text in find_forgeries(network_id, ledger)]


def check_one_entry_a_place(network_id: bytes, ledgers: Mapping[str, Ledger]) -> list[Violation]:
    """I3 across nodes: two entries at one place only where every node shows the fork."""
    found = []
    seen: dict[tuple[LogKey, int], tuple[bytes, str]] = {}
    for node, ledger in ledgers.items():
        for log, entries in ledger.logs.items():
            frozen = ledger.heads[log].frozen
            for seq, (header, _) in enumerate(entries):
                place, entry = (log, seq), id_of(network_id, header)
                held, where = seen.setdefault(place, (entry, node))
                if held != entry and seq < frozen:
                    text = f"entry {seq} of {_name(log)} is another than at {where}"
                    found.append(Violation("I3", node, text))
    return found


def check_roots(
    network_id: bytes, node: str, ledger: Ledger, *, state_root: bytes, log_root: bytes
) -> list[Violation]:
    """I4: the roots that a node shows are those of what it stores."""
    found = []
    if compute_state_root(compute_state(network_id, ledger)) != state_root:
        found.append(Violation("I4", node, "its state root is not that of its entries"))
    if compute_log_root(ledger.heads.items()) != log_root:
        found.append(Violation("I4", node, "its log root is not that of its heads"))
    return found


@dataclass(slots=True)
class Monotone:
    """I5, watched from outside: `heads` at every look, `acknowledged` at every answer."""

    _heads: dict[str, dict[LogKey, LogHead]] = field(default_factory=dict)
    _places: dict[tuple[LogKey, int], bytes] = field(default_factory=dict)

    def look(self, node: str, heads: Mapping[LogKey, LogHead]) -> list[Violation]:
        """What is gone since the last look."""
        found = []
        for log, before in self._heads.get(node, {}).items():
            now = heads.get(log)
            if now is None or (now.seq < before.seq and now.frozen == FROZEN_NEVER):
                text = f"{_name(log)} fell from {before.seq} to {'nothing' if now is None else now.seq}"
                found.append(Violation("I5", node, text))
        self._heads[node] = dict(heads)
        return found

    def forget(self, node: str) -> None:
        """The disk of this node lost something on purpose: what it holds now is the new start."""
        self._heads.pop(node, None)

    def acknowledged(self, line: Acknowledged) -> list[Violation]:
        """An answer: its place may have been given before to the same entry only."""
        held = self._places.setdefault((line.log, line.seq), line.id)
        if held != line.id:
            return [Violation("I5", line.node, f"place {line.seq} of {_name(line.log)} was given twice")]
        return []


def check_bounds(node: str, numbers: Mapping[str, int], caps: Mapping[str, int]) -> list[Violation]:
    """I7: each number that a node reports of itself stays at or under its cap."""
    return [
        Violation("I7", node, f"{name} is {numbers[name]}, the cap is {cap}")
        for name, cap in caps.items()
        if numbers.get(name, 0) > cap
    ]


def check_halted(node: str, *, ready: bool, wrote: bool) -> list[Violation]:
    """I8: a node whose store failed takes no write and is not ready."""
    found = []
    if wrote:
        found.append(Violation("I8", node, "it acknowledged a write although its store had failed"))
    if ready:
        found.append(Violation("I8", node, "it says that it is ready although its store has failed"))
    return found


NODE_CAPS: Final[Mapping[str, int]] = {
    "pending_bytes": PENDING_BYTES_MAX,
    "rounds_open": 64,
}


def _name(log: LogKey) -> str:
    return f"log {log.author.hex()[:8]}/{log.epoch:016x}"
