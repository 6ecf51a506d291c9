"""Two islands of two: P2P silent between the pairs, HTTP open; everybody still hears somebody.

Separate from the drop at one node because here no headline changes: only fallback by the peer, and not
for all or nobody, keeps the four one ledger.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from lattice.testing.cluster import LocalNode, roots_equal, running, wait_for
from tests.chaos import netns, traffic
from tests.chaos.conftest import Measured, Outcomes, Scenario
from tests.chaos.oracle import judge_ended
from tests.chaos.traffic import Watcher, Writer

WRITES_A_SECOND = 10.0
EQUAL_WITHIN_S = 75.0

pytestmark = [pytest.mark.netns, pytest.mark.slow, pytest.mark.timeout(420)]


def islands(directory: Path) -> Measured:
    """The whole course; what it measured in seconds. Raises AssertionError."""
    measured: Measured = {}
    with netns.lan("islands", 4) as lan, running(lan.joined_nodes(directory)) as nodes:
        west, east = nodes[:2], nodes[2:]
        writers = [Writer(west[0], WRITES_A_SECOND), Writer(east[0], WRITES_A_SECOND)]
        watchers = [Watcher(node) for node in nodes]
        with traffic.going_on([*writers, *watchers]):
            for watcher in watchers:
                watcher.wait(
                    "three peers heard over P2P", lambda look: look.status.peer_count == 3, within_s=60
                )
            for writer in writers:
                writer.resume()
            _cross(measured, "before_s", west[0], east, 10)
            with ExitStack() as stack:
                across = netns.port_with(netns.P2P_PORT, [lan.host(3), lan.host(4)])
                faults = [stack.enter_context(netns.impose(lan.namespace(n), across)) for n in (1, 2)]
                blocked_at = time.monotonic()
                traffic.put_mark(west[0], "mark/west")
                traffic.put_mark(east[0], "mark/east")
                time.sleep(50)
                # The control: until HTTP takes over the sea is closed.
                assert not any(node.has_key("mark/west") for node in east)
                assert not any(node.has_key("mark/east") for node in west)
                time.sleep(max(0.0, blocked_at + 66 - time.monotonic()))
                for writer in writers:
                    writer.pause()
                left_s = blocked_at + EQUAL_WITHIN_S - time.monotonic()
                wait_for("equal heads and roots over the sea", lambda: roots_equal(nodes), within_s=left_s)
                measured["equal_after_block_s"] = time.monotonic() - blocked_at
                assert all(node.has_key("mark/west") for node in east)
                assert all(node.has_key("mark/east") for node in west)
                for writer in writers:
                    writer.resume()
                _cross(measured, "bridged_s", west[0], east, 15)
                _cross(measured, "bridged_back_s", east[0], west, 15)
                for watcher in watchers:
                    assert watcher.modes(blocked_at) == ["P2P"]
                    assert not watcher.looks[-1].status.alarms
                bridged = [watcher.looks[-1].status.bridged_over_http for watcher in watchers]
                assert any(bridged[:2])
                assert any(bridged[2:])
                assert all(fault.packets() > 0 for fault in faults)
                measured["written_entries_a_s"] = sum(writer.rate_since(blocked_at) for writer in writers)
            healed_at = time.monotonic()
            for watcher in watchers:
                watcher.wait(
                    "P2P with all three",
                    lambda look: look.status.peer_count == 3 and not look.status.http_sync_enabled,
                    within_s=90,
                )
            measured["p2p_after_healing_s"] = time.monotonic() - healed_at
            for writer in writers:
                writer.pause()
            wait_for("equal heads and roots at the end", lambda: roots_equal(nodes), within_s=30)
            for watcher in watchers:
                assert watcher.modes(blocked_at) == ["P2P"]
        assert not [text for part in [*writers, *watchers] for text in part.trouble]
        network = bytes.fromhex(nodes[0].status().network)
        last = [node.state() for node in nodes]
    judge_ended(nodes, network, [line for writer in writers for line in writer.journal], last)
    return measured


def _cross(
    measured: Measured, name: str, source: LocalNode, targets: list[LocalNode], within_s: float
) -> None:
    """An entry of `source` becomes readable at every target; how long that took."""
    key = f"mark/{name}"
    traffic.put_mark(source, key)
    measured[name] = max(
        wait_for(f"{key} at {node.name}", lambda node=node: node.has_key(key), within_s=within_s)
        for node in targets
    )


SCENARIOS: tuple[Scenario, ...] = (islands,)


def test_two_islands_stay_one_ledger(measured: Outcomes) -> None:
    print(measured(SCENARIOS[0]))
