"""`/metrics`: what a scraper parses is what is documented, and the numbers follow what happens."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
from fastapi import FastAPI
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from lattice.api.app import create_app
from lattice.api.metrics import AnswerCounts, NodeCollector
from lattice.node.measures import Measures
from lattice.node.node import Node
from lattice.observability.counters import LABEL_SETS_MAX
from tests.integration.api.api_kit import in_process, operator_access

REFERENCE = Path(__file__).resolve().parents[3] / "docs" / "reference" / "metrics.md"
# Absent until this node has been in sync with another: the one that a lone node cannot show.
LATER = {"lattice_synced_timestamp_seconds"}


async def scrape(client: httpx.AsyncClient) -> dict[str, Metric]:
    response = await client.get("/metrics")
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    return {family.name: family for family in text_string_to_metric_families(response.text)}


def value(families: dict[str, Metric], name: str, **labels: str) -> float:
    found = [
        sample.value
        for family in families.values()
        for sample in family.samples
        if sample.name == name and sample.labels == labels
    ]
    assert len(found) == 1, (name, labels, found)
    return float(found[0])


def documented() -> dict[str, tuple[str, set[str]]]:
    """Sample name to type and labels, from the table of the reference."""
    rows = re.findall(
        r"^\| `(\w+)` \| (\w+) \| (.*?) ?\| ", REFERENCE.read_text(encoding="utf-8"), re.MULTILINE
    )
    return {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}


async def test_each_metric_is_documented_with_its_type_and_labels(operator: httpx.AsyncClient) -> None:
    families = await scrape(operator)
    reference = documented()
    shown = {
        name if family.type != "counter" else f"{name}_total": family for name, family in families.items()
    }
    assert shown.keys() == reference.keys() - LATER
    for name, family in shown.items():
        kind, labels = reference[name]
        assert family.type == kind, name
        assert re.fullmatch(r"lattice_[a-z0-9_]+", name)
        assert family.documentation.endswith("."), name
        for sample in family.samples:
            assert set(sample.labels) == labels, name


async def test_numbers_follow_a_write(operator: httpx.AsyncClient, node: Node) -> None:
    before = await scrape(operator)
    assert (await operator.put("/api/lattice/keys/k", content=b"1")).status_code == 201
    assert (await operator.get("/api/lattice/keys/none")).status_code == 404
    after = await scrape(operator)

    def rise(name: str, **labels: str) -> float:
        return value(after, name, **labels) - value(before, name, **labels)

    for name in ("lattice_commits_total", "lattice_entries_applied_total", "lattice_entries", "lattice_keys"):
        assert rise(name) == 1, name
    assert rise("lattice_api_requests_total", **{"class": "2xx"}) == 2  # the write, and the scrape before it
    assert rise("lattice_api_requests_total", **{"class": "4xx"}) == 1
    assert value(after, "lattice_store_free_bytes") == node.store.free_bytes()
    assert value(after, "lattice_ready") == 1
    assert value(after, "lattice_mode", mode="ISOLATED") == 1
    assert value(after, "lattice_mode", mode="P2P") == 0
    assert value(after, "lattice_roots_age_seconds") <= value(after, "lattice_uptime_seconds")


async def test_two_nodes_in_one_process_count_apart(node: Node, operator: httpx.AsyncClient) -> None:
    async with in_process(create_app(node, operator_access())) as other:
        await scrape(other)
        await scrape(other)
        assert value(await scrape(operator), "lattice_api_requests_total", **{"class": "2xx"}) == 0
        assert value(await scrape(other), "lattice_api_requests_total", **{"class": "2xx"}) == 2


async def test_open_to_everybody_only_with_public_status(node: Node, app: FastAPI) -> None:
    async with in_process(app, client="192.0.2.7") as stranger:
        assert (await stranger.get("/metrics")).status_code == 401
    async with in_process(
        create_app(node, operator_access(public_status=True)), client="192.0.2.7"
    ) as stranger:
        response = await stranger.get("/metrics")
    assert response.status_code == 200
    assert node.peer_id not in response.text
    assert node.name not in response.text


async def test_types_that_a_peer_invents_use_up_no_labels(operator: httpx.AsyncClient, node: Node) -> None:
    node.counters.update({f"unknown_type_{number}": 2 for number in range(7, 256)})
    node.counters["request_replayed"] = 5
    families = await scrape(operator)
    assert value(families, "lattice_messages_total", event="request_replayed") == 5
    assert value(families, "lattice_messages_total", event="unknown_type") == 2 * 249


async def test_labels_are_capped_and_nothing_is_lost(node: Node) -> None:
    """Reasons come from what others do: a scraper must not be given one series for each."""
    node.counters.update({f"odd_{number}": 1 for number in range(3 * LABEL_SETS_MAX)})
    measures: Measures = node.measures()
    families = {family.name: family for family in NodeCollector(node, AnswerCounts()).collect()}
    samples = families["lattice_messages"].samples
    assert len(samples) == LABEL_SETS_MAX + 1
    assert sum(sample.value for sample in samples) == sum(measures.events.values())
