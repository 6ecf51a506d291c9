"""The libp2p host of a running node crashes in three ways: HTTP answers throughout, the host is back at once.

Separate from the lung's own tests because here everything around it is the whole node: what counts is
that nobody outside notices more than a pause of the beats.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lattice.client import calls
from lattice.testing.cluster import LocalNode, make_nodes, roots_equal, running, wait_for
from tests.integration.processes.process_kit import Journal, history_faults, writing

# It takes one to two (printed with `pytest -s`); the rest is for a machine that runs other tests beside it.
BACK_WITHIN_S = 8.0

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


@contextmanager
def asked_all_the_time(node: LocalNode, longest: list[float], failures: list[str]) -> Iterator[None]:
    """Another thread asks the API twenty times a second; the longest wait and every failure are kept."""
    ended = threading.Event()

    def ask() -> None:
        with node.client() as client:
            while not ended.wait(0.05):
                began = time.monotonic()
                try:
                    client.send(calls.status())
                except Exception as error:  # noqa: BLE001 - whatever it is, it is what the test looks for
                    failures.append(repr(error))
                longest[0] = max(longest[0], time.monotonic() - began)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@pytest.mark.parametrize(
    "wound", [signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP], ids=["swarm", "pubsub", "cancelled"]
)
def test_a_crashed_host_is_back_and_http_answers_throughout(tmp_path: Path, wound: signal.Signals) -> None:
    nodes = make_nodes(tmp_path, ["wounded", "other"])
    wounded, other = nodes
    wounded.prefix = (sys.executable, str(Path(__file__).with_name("wounded_node.py")))
    journal = Journal()
    longest, failures = [0.0], []
    with running(nodes):
        for node in nodes:
            wait_for("the other is heard", lambda node=node: node.status().peer_count == 1, within_s=30)
        with (
            writing(wounded, journal, "here", writers=1) as here,
            writing(other, journal, "there", writers=1) as there,
            asked_all_the_time(wounded, longest, failures),
        ):
            journal.put(wounded, "before", 1)
            os.kill(wounded.pid, wound)
            back_s = wait_for(
                "a rebuilt host",
                lambda: wounded.status().counters["p2p_restarts"] == 1,
                within_s=BACK_WITHIN_S,
                step_s=0.02,
            )
            journal.put(wounded, "after", 2)
            wait_for("gossip from it", lambda: other.has_key("after"), within_s=30)
            wait_for("its beats", lambda: other.status().peers[0].last_heard_s < 3, within_s=30)
            journal.put(other, "back", 3)
            wait_for("gossip to it", lambda: wounded.has_key("back"), within_s=30)
        assert [writer.error for writer in (*here, *there)] == [None, None]
        wait_for("equal roots", lambda: roots_equal(nodes), within_s=30)
        status = wounded.status()
        assert status.counters["p2p_host_lost"] == 1
        assert status.started
        assert status.error is None
        assert failures == []
        # Two honest writers at full speed are nowhere near what one peer may have of a node's work.
        assert [node.status().counters.get("gossip_out_of_turn", 0) for node in nodes] == [0, 0]
        # Asked every 50 ms: an API that waited for the host would wait for as long as it was down.
        assert longest[0] < BACK_WITHIN_S / 2, f"{longest[0]:.2f} s for an answer, back in {back_s:.2f} s"
        assert [node.status().sync_mode for node in nodes] == ["P2P", "P2P"]
        assert "the P2P host is down and will be rebuilt" in wounded.log_text()
    assert history_faults([node.data_dir for node in nodes], journal) == []
    print(f"\nthe host was back after {back_s:.2f} s; the longest answer took {longest[0]:.2f} s")
