"""The manual switch at real nodes: at once, harmless however often, refused with what is allowed, kept.

Separate from the monitor's own tests because an operator only has the API and a process.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from lattice.client import calls
from lattice.testing.cluster import LocalNode, make_nodes, running, wait_for

from .process_kit import HTTP_ONLY, Journal, history_faults, wait_equal, writing

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

HEADLINES = {"http": "HTTP", "p2p": "P2P", "auto": "P2P"}
WITHIN_S = 2.0
STORM_S = 4.0
A_SECOND = 10
WRITES = 6


def shown(node: LocalNode) -> tuple[str, str]:
    status = node.status()
    return status.policy, status.sync_mode


def http_rounds(node: LocalNode) -> int:
    """Rounds over HTTP that this node has opened and brought to their end."""
    counters = node.status().counters
    return sum(count for name, count in counters.items() if name.startswith("rounds_http_"))


def hear_each_other(nodes: list[LocalNode]) -> None:
    wait_for("both are heard over P2P", lambda: all(n.status().has_peers for n in nodes), within_s=20)


def test_each_mode_takes_effect_at_once(tmp_path: Path) -> None:
    nodes = make_nodes(tmp_path, ["one", "two"])
    one, two = nodes
    with running(nodes):
        hear_each_other(nodes)
        for mode in ("http", "p2p", "http", "auto", "p2p", "auto"):
            answer = one.send(calls.switch(mode))
            assert (answer.success, answer.policy, answer.mode) == (True, mode, HEADLINES[mode])
            wait_for(mode, lambda: shown(one) == (mode, HEADLINES[mode]), within_s=WITHIN_S)  # noqa: B023
            assert one.status().http_sync_enabled is (mode == "http")
            one.send(calls.put(f"under {mode}", b"1"))
            wait_equal(nodes, within_s=WITHIN_S)
        # The other one's mode is its own affair.
        assert shown(two) == ("auto", "P2P")


def test_a_storm_of_switches_does_no_harm(tmp_path: Path) -> None:
    nodes = make_nodes(tmp_path, ["one", "two"])
    one, two = nodes
    journal = Journal()
    with running(nodes):
        hear_each_other(nodes)
        switches = 0
        with writing(two, journal, "meanwhile", writers=1) as writers, one.client() as client:
            began = time.monotonic()
            for mode in itertools.cycle(["http", "p2p", "auto", "http", "auto", "p2p"]):
                due = began + switches / A_SECOND
                if due - began >= STORM_S:
                    break
                time.sleep(max(0.0, due - time.monotonic()))
                assert client.send(calls.switch(mode)).policy == mode
                switches += 1
        assert [writer.error for writer in writers] == [None]
        assert switches == STORM_S * A_SECOND
        assert time.monotonic() - began < STORM_S + 5
        assert one.send(calls.health()).status == "healthy"
        wait_equal(nodes, within_s=20)
        # Every further poll loop would push each write again; the order of every 10 s may add one, and
        # the other node may have fetched a write over P2P before it was pushed.
        assert 1 <= http_rounds_for_writes(one, two, journal) <= WRITES + 1
        one.send(calls.switch("auto"))
        wait_for("P2P", lambda: shown(one) == ("auto", "P2P"), within_s=WITHIN_S)
        journal.put(one, "afterwards", 1)
        wait_equal(nodes, within_s=20)
        for node in nodes:
            assert node.send(calls.readiness()).ready
            assert node.status().alarms == []
            assert "Traceback" not in node.last_words(10_000)
    assert len(journal) > 100
    assert history_faults([node.data_dir for node in nodes], journal) == []


def http_rounds_for_writes(node: LocalNode, other: LocalNode, journal: Journal) -> int:
    """How many rounds a node under policy http opens to bring WRITES writes to the other."""
    node.send(calls.switch("http"))
    wait_for("polling", lambda: node.status().peers[0].polled, within_s=WITHIN_S)
    before = http_rounds(node)
    for number in range(WRITES):
        journal.put(node, f"pushed/{number}", number)
        wait_equal([node, other], within_s=WITHIN_S)
        time.sleep(0.3)  # a second loop would push now
    return http_rounds(node) - before


@pytest.mark.parametrize("target", ["?mode=HTTP", "?mode=tcp", "?mode=", ""])
def test_a_wrong_mode_is_refused_with_what_is_allowed(served: LocalNode, target: str) -> None:
    answer = httpx.post(f"{served.url}/api/lattice/sync/switch{target}", trust_env=False)
    assert answer.status_code == 400
    body = answer.json()
    assert (body["success"], body["code"]) == (False, "bad_mode")
    assert all(mode in body["detail"] for mode in ("auto", "p2p", "http"))
    assert served.status().policy == "auto"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalNode]:
    nodes = make_nodes(tmp_path_factory.mktemp("served"), ["one"], environ=HTTP_ONLY)
    with running(nodes):
        yield nodes[0]


def test_the_policy_survives_a_restart_and_a_kill_right_after_the_answer(tmp_path: Path) -> None:
    (node,) = make_nodes(tmp_path, ["one"], environ=HTTP_ONLY)
    node.start()
    for mode, end in [("http", node.stop), ("p2p", node.kill), ("http", node.kill), ("auto", node.kill)]:
        assert node.send(calls.switch(mode)).policy == mode
        end()
        node.start()
        assert node.status().policy == mode
    node.stop()
