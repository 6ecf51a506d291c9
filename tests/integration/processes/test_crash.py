"""kill -9 of real nodes: under concurrent writes, and in the middle of a sync round.

Separate from the kills of a bare store: here the whole process dies, with requests, lungs and
commits under way, and what counts is what a writer was told over HTTP.
"""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from lattice.core.draft import OpDraft
from lattice.core.engine import Append, Engine
from lattice.core.entry import OpKind
from lattice.core.identity import NodeKey
from lattice.storage.datadir import open_reader, open_store
from lattice.storage.verify import verify_all
from lattice.testing.cluster import LocalNode, make_nodes, running, wait_for

from .process_kit import (
    HTTP_ONLY,
    Journal,
    history_faults,
    missing,
    network_id_in,
    put_back,
    read_stopped,
    values_of,
    wait_equal,
    writing,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

KILLS = 20
WRITERS = 4
PEERS_ENTRIES = 3000


def test_no_acknowledged_write_is_lost_in_twenty_kills(tmp_path: Path) -> None:
    drawn = random.Random(20)
    (node,) = make_nodes(tmp_path, ["node"], environ=HTTP_ONLY)
    journal = Journal()
    for kill in range(KILLS):
        node.start()
        assert missing(journal, values_of(node)) == []
        goal = len(journal) + drawn.randrange(20, 220)
        with writing(node, journal, f"kill{kill}", writers=WRITERS) as writers:
            wait_for("enough writes", lambda: len(journal) >= goal, within_s=20, step_s=0.002)  # noqa: B023
            node.kill()
        # One that was told to stop before it wrote again has seen nothing of the kill.
        assert {writer.error.code for writer in writers if writer.error} == {"unreachable"}
        # A copy, so that the node itself has to cope with what the kill left.
        copied = tmp_path / f"after{kill}"
        shutil.copytree(node.data_dir, copied)
        reader = open_reader(copied)
        assert verify_all(reader, network_id_in(copied)).problems == []
        reader.close()
        shutil.rmtree(copied)
    node.start()
    assert missing(journal, values_of(node)) == []
    shown = node.state()
    node.stop()
    assert len(journal) >= 20 * KILLS
    assert len({line.log.epoch for line in journal.lines}) == KILLS
    assert read_stopped(node.data_dir)[0].size == shown.entry_count
    assert history_faults([node.data_dir], journal) == []


def test_a_lost_write_would_be_noticed(tmp_path: Path) -> None:
    """The control: a store that went back by some writes fails the same questions."""
    (node,) = make_nodes(tmp_path, ["node"], environ=HTTP_ONLY)
    journal = Journal()
    with running([node]):
        journal.put_many(node, "kept", 3)
    backup = tmp_path / "backup"
    shutil.copytree(node.data_dir, backup)
    with running([node]):
        journal.put(node, "lost", 1)
    put_back(backup, node)
    with running([node]):
        assert missing(journal, values_of(node)) == ["lost"]
    (fault,) = history_faults([node.data_dir], journal)
    assert fault.endswith("is missing")


def fill(node: LocalNode, entries: int) -> None:
    """Give a node that has not started yet many entries of its own, one a commit."""
    key = NodeKey(bytes.fromhex((node.data_dir / "identity.key").read_text()))
    network_id = network_id_in(node.data_dir)
    store = open_store(node.data_dir, network_id)
    engine = Engine(key, network_id, store)
    value = b'"' + b"v" * 4000 + b'"'
    for number in range(entries):
        draft = OpDraft(OpKind.PUT, b"filled/%05d" % number, value)
        engine.handle(Append(number, (draft,)), now_ms=1_700_000_000_000 + number, entropy=b"an epoch")
        batch = engine.settle()
        assert batch is not None
        store.commit(batch)
        engine.committed()
    store.close()


def test_a_node_killed_in_the_middle_of_a_sync_round_takes_the_rest_later(tmp_path: Path) -> None:
    nodes = make_nodes(tmp_path, ["rich", "poor"])
    rich, poor = nodes
    fill(rich, PEERS_ENTRIES)
    journal = Journal()
    with running(nodes):
        wait_for("the round is moving", lambda: poor.state().entry_count > 0, within_s=30, step_s=0.002)
        poor.kill()
        reader = open_reader(poor.data_dir)
        held = reader.entry_count()
        assert verify_all(reader, network_id_in(poor.data_dir)).problems == []
        reader.close()
        assert 0 < held < PEERS_ENTRIES
        poor.start()
        journal.put(poor, "written after", 1)
        wait_equal(nodes, within_s=30)
        assert poor.state().entry_count == PEERS_ENTRIES + 1
    assert history_faults([node.data_dir for node in nodes], journal) == []
