"""A store whose state a defect has changed, between two real nodes: what is told, and the way back.

Separate because the remedy that the operator's page gives is tried here as it stands there.
"""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import pytest

from lattice.core.rows import KeyState
from lattice.storage.datadir import STORE_FILE, open_store
from lattice.testing.cluster import ClusterError, LocalNode, make_nodes, roots_equal, running, wait_for
from tests.core.core_kit import damage
from tests.independent.real_nodes import put
from tests.independent.wire_format import read_ticket

WITHIN_S = 60

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


def told(node: LocalNode) -> str:
    return "\n".join(text for text in node.status().alarms if "another state root" in text)


def test_the_key_is_named_at_both_and_the_way_back_leads_back(tmp_path: Path) -> None:
    sound, hurt = nodes = make_nodes(tmp_path, ["sound", "hurt"])
    network_id = read_ticket(sound.command("invite").split()[-1]).network_id
    with running(nodes):
        for number in range(20):
            put(sound, f"branch/{number}", number)
        wait_for("equal roots", lambda: roots_equal(nodes), within_s=WITHIN_S)
        assert [told(node) for node in nodes] == ["", ""]
    store = open_store(hurt.data_dir, network_id)
    damage(store, KeyState(b"branch/7"))
    store.close()

    with running(nodes):
        wait_for("both name it", lambda: all("differs (" in told(node) for node in nodes), within_s=WITHIN_S)
        assert f"{hurt.status().peer_id} holds the same entries" in told(sound)
        assert "1 key differs (here only: 'branch/7')" in told(sound)
        assert f"1 key differs (there only: {sha256(b'branch/7').hexdigest()})" in told(hurt)
        assert sound.log_text().count("here only: 'branch/7'") == 1
        assert not roots_equal(nodes), "nothing was overwritten"
        assert "Clean: everything verifies." in sound.command("fsck")
        with pytest.raises(ClusterError, match="`lattice fsck` ended with 1"):
            hurt.command("fsck")

    hurt.directory.joinpath("aside").mkdir()
    (hurt.data_dir / STORE_FILE).rename(hurt.directory / "aside" / STORE_FILE)
    with running(nodes):
        wait_for("equal roots", lambda: roots_equal(nodes), within_s=WITHIN_S)
        wait_for("no alarm", lambda: not any(told(node) for node in nodes), within_s=WITHIN_S)
