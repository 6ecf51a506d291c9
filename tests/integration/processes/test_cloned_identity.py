"""One identity more than once: a copied data directory beside the original, a directory rolled back,
a backup restored twice.

Separate because each of them would fork a log in a design that continues its log after a restart:
here it must be two epochs, never a fork, and nobody's acknowledged write may be lost by it.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from lattice.testing.cluster import LocalNode, make_nodes, running, wait_for

from .process_kit import HTTP_ONLY, Journal, copy_of, history_faults, missing, put_back, values_of, wait_equal

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

EQUAL_WITHIN_S = 30.0
ALARM_WITHIN_S = 30.0
TWIN = "two live processes use "

both_lungs = pytest.mark.parametrize("environ", [{}, HTTP_ONLY], ids=["p2p and http", "http only"])


def twin_alarms(node: LocalNode) -> list[str]:
    return [text for text in node.status().alarms if text.startswith(TWIN)]


def epochs(journal: Journal) -> dict[str, int]:
    """Of how many epochs each node's acknowledged writes are."""
    names = {line.node for line in journal.lines}
    return {name: len({line.log for line in journal.lines if line.node == name}) for name in names}


@both_lungs
def test_a_copy_beside_the_original_raises_the_alarm_and_loses_nothing(
    tmp_path: Path, environ: Mapping[str, str]
) -> None:
    neighbour, original = make_nodes(tmp_path, ["neighbour", "original"], environ=environ)
    journal = Journal()
    with running([neighbour, original]):
        journal.put_many(original, "before", 5)
        wait_equal([neighbour, original], within_s=EQUAL_WITHIN_S)
    copy = copy_of(original, "copy")
    nodes = [neighbour, original, copy]
    with running(nodes):
        # Both at once, before either has heard of the other's writes.
        for number in range(20):
            for node in nodes:
                journal.put(node, f"{node.name}/{number}", number)
        wait_for("the neighbour's alarm", lambda: bool(twin_alarms(neighbour)), within_s=ALARM_WITHIN_S)
        peer_id = original.status().peer_id
        assert copy.status().peer_id == peer_id
        assert twin_alarms(neighbour)[0].startswith(f"{TWIN}the key of {peer_id}:")
        assert f"[ALERT] {TWIN}the key of {peer_id}" in neighbour.log_text()
        for twin in (original, copy):
            wait_for("its own alarm", lambda: bool(twin_alarms(twin)), within_s=ALARM_WITHIN_S)  # noqa: B023
            assert twin_alarms(twin)[0].startswith(f"{TWIN}this node's own key")
        wait_equal(nodes, within_s=EQUAL_WITHIN_S)
        for node in nodes:
            journal.put(node, f"{node.name}/after the alarm", 1)
        wait_equal(nodes, within_s=EQUAL_WITHIN_S)
        assert [missing(journal, values_of(node)) for node in nodes] == [[], [], []]
    assert history_faults([node.data_dir for node in nodes], journal) == []
    # The original wrote in two runs and its copy in one: three logs, none continued by another.
    assert epochs(journal) == {"original": 2, "copy": 1, "neighbour": 1}
    assert len({line.log for line in journal.lines}) == 4


@both_lungs
def test_a_directory_rolled_back_comes_home_and_reuses_no_place(
    tmp_path: Path, environ: Mapping[str, str]
) -> None:
    neighbour, node = nodes = make_nodes(tmp_path, ["neighbour", "node"], environ=environ)
    journal = Journal()
    with running(nodes):
        journal.put_many(node, "in the backup", 5)
        wait_equal(nodes, within_s=EQUAL_WITHIN_S)
    backup = tmp_path / "backup"
    shutil.copytree(node.data_dir, backup)
    with running(nodes):
        journal.put_many(node, "after the backup", 20)
        journal.put_many(neighbour, "meanwhile", 5)
        wait_equal(nodes, within_s=EQUAL_WITHIN_S)
        node.kill()
    put_back(backup, node)
    # Alone, so that it writes before anybody can tell it what it has lost.
    with running([node]):
        assert len(missing(journal, values_of(node))) == 25
        journal.put_many(node, "after the rollback", 20)
    with running(nodes):
        journal.put(node, "after one more start", 1)
        wait_equal(nodes, within_s=EQUAL_WITHIN_S)
        assert [missing(journal, values_of(each)) for each in nodes] == [[], []]
        assert [each.status().alarms for each in nodes] == [[], []]
    assert history_faults([each.data_dir for each in nodes], journal) == []
    assert epochs(journal) == {"node": 4, "neighbour": 1}


@both_lungs
def test_one_backup_restored_twice_in_turn_makes_two_epochs(
    tmp_path: Path, environ: Mapping[str, str]
) -> None:
    neighbour, node = nodes = make_nodes(tmp_path, ["neighbour", "node"], environ=environ)
    journal = Journal()
    with running(nodes):
        journal.put_many(node, "in the backup", 5)
        wait_equal(nodes, within_s=EQUAL_WITHIN_S)
    backup = tmp_path / "backup"
    shutil.copytree(node.data_dir, backup)
    neighbour.start()
    for number in (1, 2):
        put_back(backup, node)
        restored = copy_of(node, f"restored{number}")
        with running([restored]):
            journal.put_many(restored, f"restore {number}", 20)
            wait_equal([neighbour, restored], within_s=EQUAL_WITHIN_S)
            assert missing(journal, values_of(restored)) == []
            restored.kill()
    # The boots followed each other: no two of them lived at once, and nobody says so.
    assert neighbour.status().alarms == []
    neighbour.stop()
    assert history_faults([neighbour.data_dir, restored.data_dir], journal) == []
    assert epochs(journal) == {"node": 1, "restored1": 1, "restored2": 1}
    assert len({line.log for line in journal.lines}) == 3
