"""The numbers of a node that its status does not show, gathered for the metrics.

Separate because each comes from another part of the node, and the faces know only the facade.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..transport.port import P2PReport

if TYPE_CHECKING:
    from .node import Node


@dataclass(frozen=True, slots=True)
class Measures:
    """Numbers as of now. `roots_age_s`: since the last commit of entries, or since the start.

    `engine`, `rounds`, `events` and `p2p` are counts by name; those of `engine` begin anew when the
    engine is rebuilt after a full disk.
    """

    commits: int
    roots_age_s: float
    inputs_dropped: int
    logs: int
    free_bytes: int
    loop_late_s: float
    synced_ms: int | None
    engine: Mapping[str, int]
    rounds: Mapping[str, int]
    events: Mapping[str, int]
    p2p: Mapping[str, int]
    charged: Mapping[str, int]
    restrained: int
    p2p_restarts: int
    novelties: Mapping[str, int]
    defect_peers: int
    defect_keys: int


def measure(node: Node) -> Measures:
    report = node.p2p.report() if node.p2p is not None else P2PReport(enabled=False, started=False)
    synced = [peer.synced_ms for peer in node.registry.all() if peer.synced_ms is not None]
    return Measures(
        commits=node.driver.commits,
        roots_age_s=node.uptime_s if node.driver.committed_at is None else node.driver.commit_age_s,
        inputs_dropped=node.driver.dropped,
        logs=len(node.engine.heads),
        free_bytes=node.store.free_bytes(),
        loop_late_s=node.heartbeat.late_s,
        synced_ms=max(synced, default=None),
        engine=node.engine.statistics(),
        rounds=dict(node.anti_entropy_counters),
        events=dict(node.counters),
        p2p=dict(report.counters),
        charged=node.restraint.charged,
        restrained=node.restraint.restrained,
        p2p_restarts=report.restarts,
        novelties=node.engine.novelties(),
        defect_peers=node.defects.peers,
        defect_keys=node.defects.keys,
    )
