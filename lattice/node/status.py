"""The status: what `GET /api/lattice/p2p/status` shows, gathered from the node's parts.

Separate because the answer is a contract of many fields and none of them may be guessed: each one
here is read from the part that knows it.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from ..core.failover_events import PeerView
from ..schemas import LungStatus, PeerStatus, Status, SyncedWith
from ..transport.port import P2PReport
from .registry import Peer

if TYPE_CHECKING:
    from .node import Node


def build_status(node: Node) -> Status:
    """The status as of now."""
    view = node.heartbeat.view()
    report = node.p2p.report() if node.p2p is not None else P2PReport(enabled=False, started=False)
    roots = node.engine.roots
    peers = node.registry.all()
    shown = {peer.peer: peer for peer in view.peers}
    return Status(
        success=True,
        enabled=report.enabled,
        started=report.started,
        libp2p_available=node.p2p is not None,
        error=report.error,
        topic=node.options.topic,
        listen_multiaddrs=list(report.listen_multiaddrs),
        bootstrap_peers=list(node.options.bootstrap),
        peer_count=view.peer_count,
        has_peers=view.has_peers,
        http_sync_enabled=view.http_sync_enabled,
        sync_mode=view.mode.value,
        heartbeat_active=node.heartbeat.active,
        policy=view.policy.value,
        reason=view.reason.value,
        seconds_since_peer=_rounded(view.seconds_since_peer),
        fallback_in_s=_rounded(view.fallback_in_s),
        bridged_over_http=list(view.bridged_over_http),
        resilient=view.resilient,
        merkle_root=roots.state_root.hex(),
        log_root=roots.log_root.hex(),
        synced=[
            SyncedWith(peer.key, rfc3339(peer.synced_ms)) for peer in peers if peer.synced_ms is not None
        ],
        peers=[_peer_status(peer, shown.get(peer.key), roots.log_root) for peer in peers],
        name=node.name,
        peer_id=node.peer_id,
        network=node.network_id.hex(),
        version=node.options.version,
        entry_count=roots.entry_count,
        state_size=node.engine.state_size,
        forks=len(node.store.frozen_logs()),
        uptime_s=round(node.uptime_s, 3),
        alarms=sorted(node.alarms.values()),
        warnings=sorted([*node.heartbeat.warnings.values(), *node.version_warnings()]),
        counters=_counters(node, report),
    )


def _counters(node: Node, report: P2PReport) -> dict[str, int]:
    return {
        **{f"p2p_{name}": count for name, count in report.counters.items()},
        "p2p_restarts": report.restarts,
        **node.anti_entropy_counters,
        **node.engine.statistics(),
        **node.bus.statistics(),
        **node.counters,
    }


def _peer_status(peer: Peer, view: PeerView | None, log_root: bytes) -> PeerStatus:
    unknown = LungStatus(False)
    lungs = {"p2p": unknown, "http": unknown}
    if view is not None:
        lungs |= {
            lung: LungStatus(held.reachable, _rounded(held.last_ok_s), held.last_error)
            for lung, held in view.lungs.items()
        }
    return PeerStatus(
        id=peer.key,
        name=peer.name,
        state=view.liveness.value if view is not None else "dead",
        p2p=lungs["p2p"],
        http=lungs["http"],
        last_heard_s=_rounded(view.last_heard_p2p_s) if view is not None else None,
        heads_equal=peer.roots is not None and peer.roots.log_root == log_root,
        polled=view.polled if view is not None else False,
        addresses=[*peer.multiaddrs, *peer.urls],
        state_rules=peer.roots.rules if peer.roots is not None else None,
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def rfc3339(ms: int) -> str:
    moment = datetime.fromtimestamp(ms / 1000, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
