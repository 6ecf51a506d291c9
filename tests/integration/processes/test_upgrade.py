"""Two programs in one network: today's, and a build whose numbers are raised. They replicate, nothing
is lost, what the older one does not know is kept, counted and named, and the upgrade applies it.

The newer build is a copy of the package in which a few lines are changed, as a release would change
them; it runs as real processes beside today's.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from lattice.client import calls
from lattice.core.messages import RULES_VERSION
from lattice.testing.cluster import LocalNode, make_nodes, running, wait_for
from tests.integration.processes.process_kit import HTTP_ONLY, network_id_in, read_stopped

pytestmark = pytest.mark.slow
PACKAGE = Path(__file__).resolve().parents[3] / "lattice"
SETTINGS = {**HTTP_ONLY, "LATTICE_PEERLESS_TIMEOUT_S": "3", "LATTICE_HEARTBEAT_INTERVAL_S": "0.5",
            "LATTICE_HTTP_POLL_INTERVAL_S": "0.5"}  # fmt: skip

# What a later release might change: its numbers, a kind of op, a format of entries, a message type.
# The new kind is a put whose key begins with "kind/", the new format that of entries on "format/".
RAISED = {
    "core/messages.py": [
        ("WIRE_VERSION: Final = 1", "WIRE_VERSION: Final = 2"),
        ("RULES_VERSION: Final = 1", "RULES_VERSION: Final = 2"),
        (
            "        writer.u8(number).blob(payload)\n    return",
            (
                "        writer.u8(number).blob(payload)\n"
                "    if any(isinstance(message, Heads) for message in messages):\n"
                '        writer.u8(77).blob(b"of a later release")\n    return'
            ),
        ),
        ("    _PROOF: _decode_proof,\n", "    _PROOF: _decode_proof,\n    77: _decode_later,\n"),
        (
            "_DECODERS: Final",
            (
                "def _decode_later(reader: Reader) -> Message:\n"
                "    return Unknown(77, reader.take(reader.left))\n\n\n_DECODERS: Final"
            ),
        ),
    ],
    "core/entry.py": [
        ("_OP_HEAD.pack(kind, len(key))", '_OP_HEAD.pack(9 if key.startswith(b"kind/") else kind, len(key))'),
        ("{int(kind): kind for kind in OpKind}", "{9: OpKind.PUT} | {int(kind): kind for kind in OpKind}"),
        ("header = Header(FORMAT_VERSION,", 'header = Header(2 if b"format/" in framed else 1,'),
        ("if self.header.version != FORMAT_VERSION:", "if self.header.version not in (1, 2):"),
    ],
}


@pytest.fixture(scope="module")
def later(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory that holds the newer build's package."""
    directory = tmp_path_factory.mktemp("later")
    shutil.copytree(PACKAGE, directory / "lattice", ignore=shutil.ignore_patterns("__pycache__"))
    for name, changes in RAISED.items():
        path = directory / "lattice" / name
        text = path.read_text(encoding="utf-8")
        for old, new in changes:
            assert text.count(old) == 1, f"{name}: {old!r} stands there {text.count(old)} times"
            text = text.replace(old, new)
        path.write_text(text, encoding="utf-8")
    return directory


def of_build(node: LocalNode, directory: Path) -> LocalNode:
    """The node, run by the package in `directory` in place of today's."""
    return replace(node, prefix=("env", "PYTHONSAFEPATH=1", f"PYTHONPATH={directory}"), process=None)


def same_logs(nodes: list[LocalNode]) -> bool:
    return len({(node.state().log_root, node.state().entry_count) for node in nodes}) == 1


def metric(node: LocalNode, line: str) -> str:
    text = httpx.get(f"{node.url}/metrics", trust_env=False).text
    return next((each.split()[-1] for each in text.splitlines() if each.startswith(line + " ")), "absent")


def values(node: LocalNode) -> dict[str, object]:
    return {key.key: key.value for key in node.send(calls.keys(limit=1000)).keys}


def test_a_newer_build_and_todays_replicate_and_the_upgrade_applies_what_waited(
    later: Path, tmp_path: Path
) -> None:
    today, newer = make_nodes(tmp_path, ["today", "newer"], environ=SETTINGS)
    newer = of_build(newer, later)
    with running([today, newer]):
        for number in range(3):
            today.send(calls.put(f"old/{number}", b'"from today"'))
            newer.send(calls.put(f"old/n{number}", b'"from the newer"'))
            newer.send(calls.put(f"kind/{number}", b'"a kind of op"'))
        newer.send(calls.put("format/0", b'"a format"'))
        wait_for(
            "equal logs", lambda: same_logs([today, newer]) and today.state().entry_count == 10, within_s=30
        )
        # Both know what both know; the newer one knows more, so its state root is another.
        known = {f"old/{n}" for n in range(3)} | {f"old/n{n}" for n in range(3)}
        assert set(values(today)) == known
        assert set(values(newer)) == known | {f"kind/{n}" for n in range(3)} | {"format/0"}
        assert today.state().merkle_root != newer.state().merkle_root

        # Named, on both sides, and no quarrel about roots.
        wait_for("the warning", lambda: len(today.status().warnings) == 2, within_s=15)
        ops, rules = today.status().warnings
        assert "4 ops of a newer program are stored, passed on and not applied" in ops
        assert "op kind 9: 3" in ops
        assert "entry format 2: 1" in ops
        assert f"computes its state by rules {RULES_VERSION + 1}, this node by rules {RULES_VERSION}" in rules
        assert rules.endswith("upgrade this node")
        assert "newer" in rules
        assert any(text.endswith("upgrade that one") for text in newer.status().warnings)
        for node in (today, newer):
            status = node.status()
            assert status.alarms == []
            assert status.synced == []
            assert [peer.heads_equal for peer in status.peers] == [True]
        assert [peer.state_rules for peer in today.status().peers] == [RULES_VERSION + 1]
        assert metric(today, 'lattice_ops_unknown{what="op kind 9"}') == "3.0"
        assert metric(today, 'lattice_ops_unknown{what="entry format 2"}') == "1.0"
        assert metric(today, "lattice_peers_of_other_rules") == "1.0"
        assert today.status().counters["unknown_type_77"] > 0
        assert today.log_text().count("of a newer program") <= 3

    # What waits is counted across a restart.
    with running([today]):
        assert "op kind 9: 3" in today.status().warnings[0]
    ledger, faults = read_stopped(today.data_dir)
    assert (ledger.size, faults) == (10, [])

    # The upgrade of the older node: it applies what it had kept, by itself.
    upgraded = of_build(today, later)
    with running([upgraded]):
        assert set(values(upgraded)) == known | {f"kind/{n}" for n in range(3)} | {"format/0"}
        assert not any("newer program" in text for text in upgraded.status().warnings)
        root = upgraded.state().merkle_root
    with running([upgraded, newer]):
        wait_for("sync", lambda: bool(upgraded.status().synced), within_s=30)
        assert {node.state().merkle_root for node in (upgraded, newer)} == {root}

    # The way back is refused before anything is touched, and says how it goes.
    before = (today.data_dir / "ledger.sqlite").read_bytes()
    done = subprocess.run(
        [sys.executable, "-m", "lattice", "start"], env=today.environment(), capture_output=True, text=True
    )
    assert done.returncode == 78
    (line,) = [line for line in (done.stdout + done.stderr).splitlines() if " ERROR " in line]
    assert f"computed by rules {RULES_VERSION + 1} and this program knows rules up to {RULES_VERSION}" in line
    assert "Start the newer program again, or move the store file (not identity.key) aside" in line
    assert (today.data_dir / "ledger.sqlite").read_bytes() == before

    # As it says: aside, and the peers bring the ledger back, here from a newer one.
    (today.data_dir / "ledger.sqlite").rename(tmp_path / "aside.sqlite")
    with running([today, newer]):
        wait_for("the ledger", lambda: same_logs([today, newer]), within_s=30)
        assert set(values(today)) == known
        assert json.loads(today.command("fsck", "--json"))["clean"]
    assert network_id_in(today.data_dir) == network_id_in(newer.data_dir)


def test_over_p2p_what_is_not_known_travels_through_a_node_of_today(later: Path, tmp_path: Path) -> None:
    """Newer, today, newer in a row: the two newer ones hear of each other's new ops through today's."""
    settings = {"LATTICE_SYNC_MODE": "p2p"}
    first, today, last = make_nodes(tmp_path, ["first", "today", "last"], environ=settings)
    first, last = of_build(first, later), of_build(last, later)
    with running([today]):
        with running([first]):
            first.send(calls.put("kind/0", b'"a kind of op"'))
            first.send(calls.put("format/0", b'"a format"'))
            root = first.state().merkle_root
            wait_for("the entries", lambda: today.state().entry_count == 2, within_s=40)
            assert today.status().sync_mode == "P2P"
        with running([last]):
            # The join's ticket names the first node alone; today's is made known by its address.
            last.send(calls.add_peer(today.url.replace(str(today.api_port), str(today.sync_port))))
            wait_for("the entries", lambda: last.state().entry_count == 2, within_s=60)
            assert values(last) == {"kind/0": "a kind of op", "format/0": "a format"}
            assert last.state().merkle_root == root
            assert values(today) == {}
            wait_for("the warnings", lambda: len(today.status().warnings) >= 2, within_s=15)
            assert "op kind 9: 1" in " ".join(today.status().warnings)
