"""The metrics of a node in the Prometheus text format.

Separate because names, types and labels are an interface that dashboards and alerts are built on:
all of them stand here, read at each scrape from what the node counts anyway. The registry belongs to
one application, so that two nodes in one process count apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from fastapi import APIRouter, Response
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ..core.failover_events import Mode, Policy
from ..core.messages import RULES_VERSION
from ..node.facade import NodeFacade
from ..node.measures import Measures
from ..observability.counters import LABEL_SETS_MAX, OVERFLOW
from ..schemas import Status
from .openapi import PROBLEMS
from .refusals import Refusals

_CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_LIVENESS: Final = ("alive", "suspect", "dead")
_LUNGS: Final = ("p2p", "http")
_ENGINE_GAUGES: Final = {
    "pending_bytes": ("lattice_pending_bytes", "Bytes of entries that wait for those before them."),
    "rounds_open": ("lattice_rounds_open", "Sync rounds under way."),
}
_ENGINE_COUNTERS: Final = {
    "pending_dropped": ("lattice_pending_dropped", "Waiting entries that were dropped, to be fetched again."),
    "ops_skipped": ("lattice_ops_skipped", "Ops that are stored and not applied."),
    "clocks_skewed": ("lattice_clocks_skewed", "Entries whose clock was too far ahead to follow."),
}


@dataclass(slots=True)
class AnswerCounts:
    """The answers of one application by class of status: `2xx`, `4xx` and so on."""

    by_class: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("1xx", "2xx", "3xx", "4xx", "5xx"), 0)
    )

    def add(self, status: int) -> None:
        self.by_class[f"{status // 100}xx"] += 1


class NodeCollector(Collector):
    """Asks the node at each scrape; holds no number of its own."""

    def __init__(self, node: NodeFacade, answers: AnswerCounts, refusals: Refusals | None = None) -> None:
        self._node = node
        self._answers = answers
        self._refusals = refusals or Refusals()

    def collect(self) -> Iterable[Metric]:
        status, measures = self._node.status(), self._node.measures()
        yield _labelled("lattice_node_info", "Always 1; the version.", "version", {status.version: 1})
        yield GaugeMetricFamily(
            "lattice_ready", "1 while the node takes reads and writes.", value=not self._node.ready()
        )
        yield from _standing(status)
        yield from _peers(status, measures)
        yield from _ledger(status, measures)
        yield from _counts(measures)
        yield _counted(
            "lattice_api_requests",
            "Requests answered by the API, by class of status.",
            "class",
            self._answers.by_class,
        )
        yield _counted(
            "lattice_http_refused",
            "Requests and connections that a listener refused, by reason.",
            "reason",
            self._refusals.by_reason,
        )


def metrics_routes(node: NodeFacade, answers: AnswerCounts, refusals: Refusals) -> APIRouter:
    """`/metrics`."""
    router = APIRouter(tags=["probes"], responses=PROBLEMS)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(NodeCollector(node, answers, refusals))

    @router.get(
        "/metrics",
        summary="Prometheus metrics",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    async def get_metrics() -> Response:
        return Response(generate_latest(registry), headers={"content-type": _CONTENT_TYPE})

    return router


def _standing(status: Status) -> Iterator[Metric]:
    modes = {mode.value: int(mode.value == status.sync_mode) for mode in Mode}
    yield _labelled("lattice_mode", "1 for the mode in force.", "mode", modes)
    policies = {policy.value: int(policy.value == status.policy) for policy in Policy}
    yield _labelled("lattice_policy", "1 for the policy chosen.", "policy", policies)
    yield GaugeMetricFamily(
        "lattice_resilient", "1 while both lungs have a reachable peer.", value=status.resilient
    )
    yield GaugeMetricFamily("lattice_alarms", "Alarms that stand.", value=len(status.alarms))
    yield GaugeMetricFamily("lattice_warnings", "Warnings that stand.", value=len(status.warnings))
    yield GaugeMetricFamily("lattice_uptime_seconds", "Time since the start.", value=status.uptime_s)


def _peers(status: Status, measures: Measures) -> Iterator[Metric]:
    states = dict.fromkeys(_LIVENESS, 0)
    for peer in status.peers:
        states[peer.state] += 1
    yield _labelled("lattice_peers", "Known peers by liveness.", "state", states)
    reachable = {
        "p2p": sum(peer.p2p.reachable for peer in status.peers),
        "http": sum(peer.http.reachable for peer in status.peers),
    }
    yield _labelled("lattice_peers_reachable", "Known peers that a lung reaches.", "transport", reachable)
    yield GaugeMetricFamily("lattice_peers_heard", "Peers heard over P2P.", value=status.peer_count)
    yield GaugeMetricFamily(
        "lattice_peers_polled", "Peers bridged over HTTP.", value=len(status.bridged_over_http)
    )
    synced = {one.peer for one in status.synced}
    equal = sum(peer.heads_equal and peer.id in synced for peer in status.peers)
    yield GaugeMetricFamily("lattice_peers_in_sync", "Peers with the same verified roots.", value=equal)
    others = sum(peer.state_rules not in (None, RULES_VERSION) for peer in status.peers)
    yield GaugeMetricFamily(
        "lattice_peers_of_other_rules", "Peers whose state roots are not compared with ours.", value=others
    )
    yield GaugeMetricFamily(
        "lattice_peers_of_other_state",
        "Peers that hold the same entries and compute another state root: a defect.",
        value=measures.defect_peers,
    )
    yield GaugeMetricFamily(
        "lattice_keys_differing",
        "Keys found to differ, at least, from a peer with the same entries.",
        value=measures.defect_keys,
    )
    if measures.synced_ms is not None:
        yield GaugeMetricFamily(
            "lattice_synced_timestamp_seconds",
            "When heads and both roots were last equal with any peer.",
            value=measures.synced_ms / 1000,
        )


def _ledger(status: Status, measures: Measures) -> Iterator[Metric]:
    yield GaugeMetricFamily("lattice_entries", "Entries stored.", value=status.entry_count)
    yield GaugeMetricFamily("lattice_keys", "Keys with a leaf in the state.", value=status.state_size)
    yield GaugeMetricFamily("lattice_logs", "Logs held.", value=measures.logs)
    yield GaugeMetricFamily(
        "lattice_roots_age_seconds", "Time since entries last changed the roots.", value=measures.roots_age_s
    )
    yield GaugeMetricFamily(
        "lattice_store_free_bytes", "Free space where the data is.", value=measures.free_bytes
    )
    yield _labelled(
        "lattice_ops_unknown",
        "Ops of a newer program that are stored and not applied.",
        "what",
        dict(_capped(measures.novelties)),
    )
    for name, (metric, doc) in _ENGINE_GAUGES.items():
        yield GaugeMetricFamily(metric, doc, value=measures.engine[name])


def _counts(measures: Measures) -> Iterator[Metric]:
    yield CounterMetricFamily("lattice_commits", "Commits that stored entries.", value=measures.commits)
    yield CounterMetricFamily(
        "lattice_inputs_dropped", "Inputs dropped because the queue was full.", value=measures.inputs_dropped
    )
    yield CounterMetricFamily(
        "lattice_loop_late_seconds", "By how much the event loop woke too late.", value=measures.loop_late_s
    )
    events = _folded(measures.events, "unknown_type_", "unknown_type")
    applied = events.pop("entries_applied", 0)
    yield CounterMetricFamily("lattice_entries_applied", "Entries applied, own and others'.", value=applied)
    for name, (metric, doc) in _ENGINE_COUNTERS.items():
        yield CounterMetricFamily(metric, doc, value=measures.engine[name])
    refused = _after("refused_", measures.engine)
    yield _counted("lattice_entries_refused", "Entries and proofs refused, by reason.", "reason", refused)
    yield _rounds(measures.rounds)
    descents = _after("descents_", measures.rounds)
    yield _counted(
        "lattice_descents", "Looks into a peer's state tree after a defect, by outcome.", "result", descents
    )
    failed = _after("polls_failed_", measures.rounds)
    probed = _after("probes_failed_", measures.rounds)
    yield _counted("lattice_probes_failed", "HTTP probes that failed, by reason.", "reason", probed)
    yield _counted("lattice_polls_failed", "HTTP polls that failed, by reason.", "reason", failed)
    yield _counted("lattice_messages", "Messages refused or paused, by what happened.", "event", events)
    yield _counted("lattice_p2p_events", "What the P2P lung did and refused.", "event", measures.p2p)
    yield _counted(
        "lattice_charged_bytes",
        "Bytes charged to peers: verified and worth nothing, by lung.",
        "transport",
        {**dict.fromkeys(("p2p", "gossip", "http"), 0), **measures.charged},
    )
    yield GaugeMetricFamily(
        "lattice_peers_restrained",
        "Budgets of peers that are used up, or wait after fruitless rounds.",
        value=measures.restrained,
    )
    yield CounterMetricFamily(
        "lattice_p2p_restarts", "Times the P2P lung was built anew.", value=measures.p2p_restarts
    )


def _rounds(counts: Mapping[str, int]) -> Metric:
    family = CounterMetricFamily(
        "lattice_rounds", "Sync rounds that ended, by lung and how.", labels=["transport", "result"]
    )
    for lung in _LUNGS:
        for result, count in _capped(_after(f"rounds_{lung}_", counts)):
            family.add_metric([lung, result], count)
    return family


def _after(prefix: str, counts: Mapping[str, int]) -> dict[str, int]:
    return {name.removeprefix(prefix): count for name, count in counts.items() if name.startswith(prefix)}


def _folded(counts: Mapping[str, int], prefix: str, name: str) -> dict[str, int]:
    """The counts with those of this prefix as one: whoever sends messages of two hundred types must not
    use up the labels."""
    kept = {key: count for key, count in counts.items() if not key.startswith(prefix)}
    folded = _after(prefix, counts)
    return {**kept, name: sum(folded.values())} if folded else kept


def _labelled(name: str, doc: str, label: str, values: Mapping[str, int]) -> Metric:
    family = GaugeMetricFamily(name, doc, labels=[label])
    for value, number in values.items():
        family.add_metric([value], number)
    return family


def _counted(name: str, doc: str, label: str, counts: Mapping[str, int]) -> Metric:
    family = CounterMetricFamily(name, doc, labels=[label])
    for value, count in _capped(counts):
        family.add_metric([value], count)
    return family


def _capped(counts: Mapping[str, int]) -> Iterator[tuple[str, int]]:
    """At most LABEL_SETS_MAX, the first that were seen; what came later is summed up as one."""
    names = list(counts)
    for name in names[:LABEL_SETS_MAX]:
        yield name, counts[name]
    if len(names) > LABEL_SETS_MAX:
        yield OVERFLOW, sum(counts[name] for name in names[LABEL_SETS_MAX:])
