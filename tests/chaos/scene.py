"""What the blockades have in common: nodes in namespaces, a writer outside at two of them, a watcher at
each, and the judgement of every store at the end.

Separate from the courses, so that each of them tells only what is blocked and what follows from it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from lattice.testing.cluster import LocalNode, roots_equal, running, wait_for
from tests.chaos import netns, traffic
from tests.chaos.netns import Lan
from tests.chaos.oracle import judge_ended
from tests.chaos.traffic import Look, Watcher, Writer

Measured = dict[str, float]

WRITES_A_SECOND = 11.0  # at each of the two written nodes: over 20 in all


@dataclass(slots=True)
class Scene:
    """The nodes of one course. The first is the one that faults are done to; it and the second are
    written to all the time."""

    lan: Lan
    nodes: Sequence[LocalNode]
    writers: list[Writer]
    watchers: list[Watcher]
    began_at: float = 0.0
    measured: Measured = field(default_factory=dict)

    @property
    def victim(self) -> Watcher:
        return self.watchers[0]

    @property
    def namespace(self) -> str:
        return self.lan.namespace(1)

    def everybody(self, what: str, is_true: Callable[[Look], bool], *, within_s: float) -> None:
        for watcher in self.watchers:
            watcher.wait(what, is_true, within_s=within_s)

    def joined(self, *, within_s: float = 60) -> None:
        """Every node hears every other over P2P, and nobody is polled."""
        others = len(self.nodes) - 1
        self.everybody(
            "all heard over P2P, nobody polled",
            lambda look: (
                look.mode == "P2P" and look.status.peer_count == others and not look.status.http_sync_enabled
            ),
            within_s=within_s,
        )

    def crosses(self, name: str, *, within_s: float, back_too: bool = True) -> None:
        """An entry of the first node comes to all others, and one of the second to the first."""
        began = time.monotonic()
        ways = [(0, self.nodes[1:]), (1, self.nodes[:1])] if back_too else [(0, self.nodes[1:])]
        for source, _ in ways:
            traffic.put_mark(self.nodes[source], f"mark/{name}/{source}")
        for source, targets in ways:
            self.arrives(f"mark/{name}/{source}", targets, within_s=within_s)
        self.measured[f"{name}_s"] = time.monotonic() - began

    def arrives(self, key: str, targets: Sequence[LocalNode], *, within_s: float) -> None:
        for node in targets:
            wait_for(f"{key} at {node.name}", lambda node=node: node.has_key(key), within_s=within_s)

    def equal(self, name: str, *, within_s: float = 30) -> None:
        """With the writers paused all heads and roots become equal."""
        for writer in self.writers:
            writer.pause()
        self.measured[f"{name}_s"] = wait_for(
            f"equal heads and roots {name}", lambda: roots_equal(self.nodes), within_s=within_s
        )
        for writer in self.writers:
            writer.resume()

    def modes(self) -> list[list[str]]:
        """Of every node the headlines since the control, one for each change."""
        return [watcher.modes(self.began_at) for watcher in self.watchers]


@contextmanager
def scene(label: str, size: int, directory: Path, *, prefix: Sequence[str] = ()) -> Iterator[Scene]:
    """Nodes that hear each other and are written to, for the time of the block; then everything must
    become equal and every store is judged. `prefix` stands before each node's command."""
    with netns.lan(label, size) as lan:
        nodes = lan.joined_nodes(directory)
        for node in nodes:
            node.prefix = (*node.prefix, *prefix)
        with running(nodes):
            writers = [Writer(node, WRITES_A_SECOND) for node in nodes[:2]]
            watchers = [Watcher(node) for node in nodes]
            made = Scene(lan, nodes, writers, watchers)
            with traffic.going_on([*writers, *watchers]):
                made.joined()
                for writer in writers:
                    writer.resume()
                made.crosses("control", within_s=10)
                made.began_at = time.monotonic()
                yield made
                rate = sum(writer.rate_since(made.began_at) for writer in writers)
                made.measured["written_entries_a_s"] = rate
                for writer in writers:
                    writer.pause()
                wait_for("equal heads and roots at the end", lambda: roots_equal(nodes), within_s=30)
            assert not [text for part in [*writers, *watchers] for text in part.trouble]
            network = bytes.fromhex(nodes[0].status().network)
            last = [node.state() for node in nodes]
        judge_ended(nodes, network, [line for writer in writers for line in writer.journal], last)
