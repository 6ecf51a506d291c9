"""The wording of the human output, without a node."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from lattice.cli.text import headline, peers_text, printable, say_json, span, status_text, table
from lattice.schemas import LungStatus, PeerStatus, Status, SyncedWith

PEER_ID = "12D3KooWEyoppNCUx8Yx66oV9fJnriXwCcXwDDUA2kj6vnc6iDEp"
GOOD = LungStatus(True, 2.0)
BAD = LungStatus(False, 90.0, "refused")
PEER = PeerStatus(PEER_ID, "nodeB", "alive", GOOD, BAD, 2.4, True, False)
STATUS = Status(
    success=True,
    enabled=True,
    started=True,
    libp2p_available=True,
    error=None,
    topic="t",
    listen_multiaddrs=[],
    bootstrap_peers=[],
    peer_count=1,
    has_peers=True,
    http_sync_enabled=False,
    sync_mode="P2P",
    heartbeat_active=True,
    policy="auto",
    reason="peers heard",
    seconds_since_peer=2.0,
    fallback_in_s=None,
    bridged_over_http=[],
    resilient=True,
    merkle_root="aa" * 32,
    log_root="bb" * 32,
    synced=[SyncedWith(PEER_ID, "2026-11-20T09:45:17.123Z")],
    peers=[PEER],
    name="nodeA",
    peer_id=PEER_ID,
    network="cc" * 32,
    version="0.1.0",
    entry_count=7,
    state_size=5,
    forks=0,
    uptime_s=3700.0,
    alarms=[],
    warnings=[],
)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({}, "Network status: resilient (hybrid mode)"),
        ({"policy": "http"}, "Network status: resilient (hybrid mode, policy http)"),
        (
            {"resilient": False},
            "Network status: on one leg (P2P mode: only one lung has a reachable peer)",
        ),
        (
            {"resilient": False, "sync_mode": "HTTP"},
            "Network status: on one leg (HTTP mode: only one lung has a reachable peer)",
        ),
        ({"resilient": False, "peers": []}, "Network status: waiting for peers (P2P mode)"),
        (
            {"sync_mode": "ISOLATED", "resilient": False, "reason": "nobody answers"},
            "Network status: isolated (no peer answers on either lung: nobody answers)",
        ),
        (
            {"sync_mode": "ISOLATED", "resilient": False, "reason": "no answer on either lung"},
            "Network status: isolated (no peer answers on either lung)",
        ),
        (
            {"sync_mode": "ISOLATED", "resilient": False, "reason": "alone"},
            "Network status: alone (no other node is known; `lattice invite` prints a ticket)",
        ),
    ],
)
def test_the_one_sentence(changes: dict[str, object], sentence: str) -> None:
    assert headline(replace(STATUS, **changes)) == sentence  # type: ignore[arg-type]


def test_the_whole_status() -> None:
    text = status_text(replace(STATUS, alarms=["the clock jumped"], warnings=["one leg"]))
    assert text.splitlines() == [
        "Network status: resilient (hybrid mode)",
        f"Node          nodeA  {PEER_ID}",
        "Mode          P2P (policy auto: peers heard)",
        "P2P lung      up, 1 peer heard",
        "HTTP lung     idle",
        "Ledger        7 entries, 5 keys",
        f"State root    {'aa' * 32}",
        f"Log root      {'bb' * 32}",
        "In sync with  nodeB (2026-11-20T09:45:17.123Z)",
        "Up for        1 h 1 min",
        f"PEER{' ' * 50}NAME   STATE  P2P  HTTP     HEARD    HEADS  POLLED",
        f"{PEER_ID}  nodeB  alive  ok   refused  2 s ago  equal  no",
        "Alarm: the clock jumped",
        "Warning: one leg",
    ]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"enabled": False}, "P2P lung      off (LATTICE_P2P_ENABLED=false)"),
        ({"started": False}, "P2P lung      down: not started yet"),
        ({"started": False, "error": "port 9000 is busy"}, "P2P lung      down: port 9000 is busy"),
        ({"peer_count": 0, "fallback_in_s": 44.6}, "P2P lung      up, 0 peers heard, fallback in 45 s"),
        ({"http_sync_enabled": True, "bridged_over_http": ["x"]}, "HTTP lung     polling, 1 bridged"),
        ({"synced": []}, "In sync with  nobody yet"),
    ],
)
def test_lines_of_the_status(changes: dict[str, object], line: str) -> None:
    assert line in status_text(replace(STATUS, **changes)).splitlines()  # type: ignore[arg-type]


def test_what_is_remote_cannot_command_the_terminal() -> None:
    evil = replace(PEER, name="\x1b]0;owned\x07", p2p=LungStatus(False, None, "a\nb"), last_heard_s=None)
    text = peers_text([evil])
    assert text.isascii()
    assert "\x1b" not in text
    assert len(text.splitlines()) == 2
    assert printable("a\x9b\u202eb\ud800") == "a\\x9b\\u202eb\\ud800"
    assert printable("plain é 鍵") == "plain é 鍵"


def test_on_a_narrow_terminal_no_line_about_peers_wraps() -> None:
    other = replace(PEER, name="branch-office-north")
    wide = peers_text([PEER, other])
    assert peers_text([PEER, other], 200) == wide
    narrow = peers_text([PEER, other], 80).splitlines()
    assert max(map(len, wide.splitlines())) > 80 >= max(map(len, narrow))
    assert [line.split()[0] for line in narrow] == ["NAME", "nodeB", PEER_ID, "branch-office-north", PEER_ID]
    two = replace(STATUS, synced=[*STATUS.synced, SyncedWith("12D3Koo2", "2026-11-20T09:45:18.000Z")])
    lines = status_text(two, 80).splitlines()
    assert "              12D3Koo2 (2026-11-20T09:45:18.000Z)" in lines
    assert max(map(len, lines)) <= 80


def test_tables_and_spans() -> None:
    assert table([("a", "bb"), ("ccc", "d")]) == "a    bb\nccc  d"
    assert table([]) == ""
    assert [span(s) for s in (0, 59.9, 60, 3599, 3600, 86_399, 90_000)] == [
        "0 s",
        "59 s",
        "1 min 0 s",
        "59 min 59 s",
        "1 h 0 min",
        "23 h 59 min",
        "1 d 1 h",
    ]


def test_a_path_whose_bytes_are_no_text_is_shown_as_json_too(capsys: pytest.CaptureFixture[str]) -> None:
    for answer, shown in (({"file": "o\udcff"}, {"file": "o\udcff"}), (BAD, {"reachable": False})):
        changed = replace(answer, last_error="o\udcff") if isinstance(answer, LungStatus) else answer
        say_json(changed)
        assert json.loads(capsys.readouterr().out).items() >= shown.items()
