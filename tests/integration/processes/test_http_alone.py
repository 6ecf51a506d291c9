"""Nodes with HTTP alone: the P2P lung off, with a sync listener and with one port for everything.

Separate because here nothing else could have carried an entry.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from lattice.testing.cluster import LocalNode, make_nodes, roots_equal, running, wait_for

from .process_kit import HTTP_ONLY, Journal, history_faults, missing, values_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

FROM_START_S = 8.0  # less than a poll interval: a node that nobody answered at first asks again soon
FROM_WRITE_S = 2.0


def url_of(node: LocalNode, *, one_port: bool) -> str:
    return f"http://127.0.0.1:{node.api_port if one_port else node.sync_port}"


@pytest.mark.parametrize("one_port", [False, True])
def test_http_alone_replicates_from_the_first_second_without_alarm(tmp_path: Path, one_port: bool) -> None:
    environ = {**HTTP_ONLY, "LATTICE_SYNC_BIND": "off"} if one_port else HTTP_ONLY
    nodes = make_nodes(tmp_path, ["one", "two", "three"], environ=environ)
    journal = Journal()
    with running(nodes):
        for node in nodes:
            journal.put(node, f"first of {node.name}", node.name)
        wait_for("equal roots", lambda: roots_equal(nodes), within_s=FROM_START_S)
        statuses = [node.status() for node in nodes]
        assert max(status.uptime_s for status in statuses) < FROM_START_S + 1
        for status in statuses:
            assert (status.sync_mode, status.policy, status.enabled) == ("HTTP", "auto", False)
            assert status.http_sync_enabled
            assert status.alarms == []
            assert status.entry_count == len(nodes)
        # Once they run, a write at any node is with all others at once, whoever polls whom.
        for node in nodes:
            journal.put_many(node, f"more of {node.name}", 5)
            wait_for("equal roots", lambda: roots_equal(nodes), within_s=FROM_WRITE_S)
            assert [missing(journal, values_of(other)) for other in nodes] == [[], [], []]
        known = {node.name: set(node.status().peers[0].addresses) for node in nodes}
        urls = {node.name: url_of(node, one_port=one_port) for node in nodes}
        # Those who joined by a ticket know its maker, and their maker got to know them.
        assert known["two"] == known["three"] == {urls["one"]}
        assert {address for peer in nodes[0].status().peers for address in peer.addresses} == {
            urls["two"],
            urls["three"],
        }
        assert not any("ALERT" in node.log_text() for node in nodes)
    assert history_faults([node.data_dir for node in nodes], journal) == []
