"""The commands on this machine's own node: init, invite, id at rest, logs, start, stop."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lattice.api.listener import open_listener
from lattice.cli.local import is_loopback
from lattice.cli.tail import follow, last_lines
from lattice.core.addresses import Bind
from tests.integration.cli.cli_kit import Shell, in_subprocess, write_env


def shell_in(directory: Path, capsys: pytest.CaptureFixture[str], **settings: object) -> Shell:
    directory.mkdir(exist_ok=True)
    return Shell(write_env(directory, **settings), capsys)


def test_init_makes_an_identity_once(lonely_shell: Shell, tmp_path: Path) -> None:
    assert "Made node nodeA" in lonely_shell.ok("init")
    peer_id = lonely_shell.out.split("peer id")[1].split()[0]
    seed = (tmp_path / "data" / "identity.key").read_bytes()
    assert (tmp_path / "data" / "identity.key").stat().st_mode & 0o077 == 0
    assert (tmp_path / "data" / "api.token").stat().st_mode & 0o077 == 0
    assert "Kept node nodeA" in lonely_shell.ok("init")
    assert peer_id in lonely_shell.out
    assert (tmp_path / "data" / "identity.key").read_bytes() == seed
    assert lonely_shell.ok("id").strip() == peer_id
    assert "not running" in lonely_shell.err
    assert json.loads(lonely_shell.ok("id", "--json"))["peer_id"] == peer_id
    assert seed.decode().strip() not in lonely_shell.out


def test_name_and_data_dir_by_flag(tmp_path: Path, lonely_shell: Shell) -> None:
    assert "Made node nodeZ" in lonely_shell.ok("init", "--name", "nodeZ", "--data-dir", str(tmp_path / "z"))
    assert (tmp_path / "z" / "identity.key").exists()


@pytest.mark.parametrize("way", ["argument", "file", "stdin", "whole output"])
def test_invite_and_join(
    way: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = shell_in(tmp_path / "a", capsys, SYNC_PUBLIC_URL="https://ledger.example/nodeA")
    first.ok("init")
    network = first.out.split("network")[1].split()[0]
    output = first.ok("invite")
    assert "https://ledger.example/nodeA" in output
    assert first.err == ""
    ticket = output.split()[-1]
    second = shell_in(tmp_path / "b", capsys)
    if way == "argument":
        join = ticket
    elif way == "stdin":
        join = "-"
        monkeypatch.setattr(sys, "stdin", iter_lines(f"{ticket}\n"))
    else:
        join = "@ticket.txt"
        (tmp_path / "ticket.txt").write_text(output if way == "whole output" else ticket)
        monkeypatch.chdir(tmp_path)
    assert network in second.ok("init", "--join", join)
    assert "new network" not in second.out


class iter_lines:  # noqa: N801 - stands where a function would
    def __init__(self, text: str) -> None:
        self._text = text

    def readline(self) -> str:
        return self._text


def test_a_ticket_with_loopback_only_is_warned_about(lonely_shell: Shell) -> None:
    lonely_shell.ok("init")
    lonely_shell.ok("invite")
    assert lonely_shell.out.rstrip().split()[-1].startswith("lattice1-")
    assert "loopback" in lonely_shell.err


@pytest.mark.parametrize("ticket", ["nonsense", "lattice1-AAAA", "@no-such-file", ""])
def test_bad_tickets_exit_with_78(ticket: str, lonely_shell: Shell, tmp_path: Path) -> None:
    if ticket:
        lonely_shell.fails(78, "init", "--join", ticket)
        assert not (tmp_path / "data" / "identity.key").exists()
    else:
        lonely_shell.ok("init", "--join", ticket)  # set to nothing means not set


def test_the_ticket_of_another_network_exits_with_78(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = shell_in(tmp_path / "a", capsys), shell_in(tmp_path / "b", capsys)
    first.ok("init")
    second.ok("init")
    ticket = first.ok("invite").split()[-1]
    assert "another network" in second.fails(78, "init", "--join", ticket)


def test_commands_before_init_say_what_to_do(lonely_shell: Shell) -> None:
    for command in ("invite", "id"):
        assert "lattice init" in lonely_shell.fails(78, command)
    lonely_shell.fails(3, "stop")
    lonely_shell.fails(1, "logs")


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("http://127.0.0.1:8100", True),
        ("http://[::1]:8100/x", True),
        ("http://localhost", True),
        ("/ip4/127.0.0.1/tcp/9000/p2p/x", True),
        ("/ip6/::1/tcp/9000", True),
        ("/dns4/localhost/tcp/1", True),
        ("/ip4/192.0.2.7/tcp/9000", False),
        ("https://ledger.example/127.0.0.1", False),
    ],
)
def test_loopback_addresses(address: str, expected: bool) -> None:
    assert is_loopback(address) is expected


def test_logs(lonely_shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    path = tmp_path / "logs" / "nodeA.log"
    path.write_text("".join(f"line {n}\n" for n in range(100)) + "\x1b[31mred\n")
    assert lonely_shell.ok("logs", "--no-follow", "-n", "2") == "line 99\n\\x1b[31mred\n"
    assert len(lonely_shell.ok("logs", "--no-follow").splitlines()) == 40


@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 65_537, 200_000])
def test_the_last_lines_of_any_file(size: int, tmp_path: Path) -> None:
    path = tmp_path / "log"
    lines = [b"%07d" % number for number in range(size // 8)]
    path.write_bytes(b"".join(line + b"\n" for line in lines) + b"half")
    with path.open("rb") as file:
        for count in (1, 2, 9000, 100_000):
            assert last_lines(file, count) == [*lines, b"half"][-count:]
            assert file.read() == b""


def test_following_a_log_that_is_rotated(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"old\n")
    with path.open("rb") as file:
        last_lines(file, 1)
        lines = follow(path, file)
        with path.open("ab") as out:
            out.write(b"one\ntwo\nthr")
        assert [next(lines), next(lines)] == [b"one", b"two"]
        with path.open("ab") as out:
            out.write(b"ee\n")
        assert next(lines) == b"three"
        with path.open("ab") as out:
            out.write(b"last of the old\n")
        path.rename(tmp_path / "log.1")
        path.write_bytes(b"first of the new\n")
        assert [next(lines), next(lines)] == [b"last of the old", b"first of the new"]
        path.write_bytes(b"cut\n")
        assert next(lines) == b"cut"
        lines.close()


@contextmanager
def started(env_file: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`lattice start` as a process, once it answers `lattice status`."""
    log = env_file.parent / "start.out"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "lattice", "start", "--env-file", str(env_file)],
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    try:
        deadline = time.monotonic() + 30
        while in_subprocess("status", "--env-file", str(env_file)).returncode != 0:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.wait(10)


def free_port() -> int:
    with open_listener(Bind("127.0.0.1", 0), "LATTICE_API_BIND") as taken:
        return int(taken.getsockname()[1])


@pytest.mark.slow
def test_start_write_stop_and_start_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shell = shell_in(tmp_path / "a", capsys, API_BIND=f"127.0.0.1:{free_port()}")
    shell.ok("init")
    with started(shell.env_file) as process:
        version = shell.ok("put", "k", '"kept"').strip()
        assert "node ready" in shell.ok("logs", "--no-follow")
        assert shell.ok("invite").split()[-1].startswith("lattice1-")
        second = in_subprocess("start", "--env-file", str(shell.env_file))
        assert second.returncode == 78
        assert str(process.pid) in shell.ok("stop")
        assert process.wait(10) == 0
    shell.fails(3, "stop")
    shell.fails(3, "get", "k")
    with started(shell.env_file) as process:
        assert json.loads(shell.ok("get", "k", "--json"))["version"] == version
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0


@pytest.mark.slow
def test_a_busy_port_ends_the_start_with_78(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open_listener(Bind("127.0.0.1", 0), "LATTICE_API_BIND") as taken:
        port = taken.getsockname()[1]
        shell = shell_in(tmp_path / "a", capsys, API_BIND=f"127.0.0.1:{port}")
        shell.ok("init")
        done = in_subprocess("start", "--env-file", str(shell.env_file))
    assert done.returncode == 78
    assert f"port {port} is in use" in done.stderr + done.stdout
    assert "Traceback" not in done.stderr + done.stdout
