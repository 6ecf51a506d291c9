"""`lattice events` against a real node, as a process that is interrupted; and its lines."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lattice.cli.watch import event_json, event_text
from lattice.client.events import Event
from lattice.schemas import AlarmEvent, EntryEvent, LostEvent, ModeEvent, PeerEvent, PolicyEvent
from tests.integration.api.api_kit import put_raw
from tests.integration.cli.cli_kit import ServedNode, Shell, write_env


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    readable, _, _ = select.select([process.stdout], [], [], 20)
    assert readable, "no line came"
    return process.stdout.readline()


@pytest.mark.slow
@pytest.mark.parametrize("as_json", [True, False])
def test_it_follows_until_it_is_interrupted(as_json: bool, served: ServedNode, tmp_path: Path) -> None:
    env_file = write_env(tmp_path, API_BIND=served.bind)
    arguments = ["events", "--prefix", "a/", "--type", "entry,policy", "--env-file", str(env_file)]
    if as_json:
        arguments.append("--json")
    environ = {name: value for name, value in os.environ.items() if not name.startswith("LATTICE_")}
    with subprocess.Popen(
        [sys.executable, "-m", "lattice", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environ,
    ) as process:
        try:
            deadline = time.monotonic() + 20
            while not served.node.bus.statistics()["event_streams"]:
                assert time.monotonic() < deadline, "no stream was opened"
                time.sleep(0.02)
            for key in (b"b/1", b"a/1"):
                served.call(put_raw, served.node, key, b"1")
            line = _line(process)
            if as_json:
                event = json.loads(line)
                assert (event["type"], event["data"]["keys"]) == ("entry", ["a/1"])
                assert event["id"].startswith(served.node.bus.id_of(0)[:17])
            else:
                assert f"entry   a/1  by {served.node.peer_id} (local)" in line
            served.call(served.node.switch, "http")
            assert "http" in _line(process)
            process.send_signal(signal.SIGINT)
            assert process.wait(10) == 0
            assert process.stderr is not None
            assert process.stderr.read() == ""
        finally:
            process.kill()


def test_what_is_refused_is_one_line(shell: Shell) -> None:
    assert "no event type 'x'" in shell.fails(1, "events", "--type", "x")
    assert "no event id" in shell.fails(1, "events", "--after", "x")


def test_a_node_that_does_not_run(lonely_shell: Shell) -> None:
    assert "lattice start" in lonely_shell.fails(3, "events")


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (
            Event("b-1", "entry", EntryEvent("t", "i", "A", "e", 0, "1-0", list("abcdef"), "http", "P")),
            "t  entry   a, b, c, d and 2 more  by A (http from P)",
        ),
        (
            Event("b-1", "mode", ModeEvent("t", "HTTP", None, "no peer heard")),
            "t  mode    none -> HTTP: no peer heard",
        ),
        (Event("b-1", "peer", PeerEvent("t", "P", "", "heard", "alive")), "t  peer    P heard (alive)"),
        (
            Event("b-1", "alarm", AlarmEvent("t", "c", False, "ERROR", "text")),
            "t  alarm   c cleared: text",
        ),
        (Event("b-1", "policy", PolicyEvent("t", "auto")), "t  policy  auto"),
        (
            Event("b-9", "lost", LostEvent("restart", None, None, "b-9")),
            "-  lost    an unknown number of events (restart): read the keys again",
        ),
        (Event("b-1", "newer", {"x": 1}), '-  newer   {"x":1}'),
    ],
)
def test_lines(event: Event, line: str) -> None:
    assert event_text(event) == line
    assert json.loads(event_json(event))["id"] == event.id


def test_a_key_does_not_command_the_terminal() -> None:
    event = Event("b-1", "entry", EntryEvent("t", "i", "A", "e", 0, "1-0", ["\x1b[2J\n"], "local", None))
    assert event_text(event).isprintable()
