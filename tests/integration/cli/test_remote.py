"""The commands that talk to a running node, against a real one."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from lattice.core.draft import OpDraft
from lattice.core.entry import OpKind
from tests.integration.api.api_kit import TOKEN, put_raw
from tests.integration.api.forks_kit import fork
from tests.integration.cli.cli_kit import ServedNode, Shell, served_node


class _Stdin:
    def __init__(self, data: bytes) -> None:
        self.buffer = io.BytesIO(data)


def test_put_get_delete(shell: Shell, served: ServedNode) -> None:
    version = shell.ok("put", "branch/7", '{"city": "Genève"}').strip()
    assert shell.ok("get", "branch/7") == '{"city":"Genève"}\n'
    shown = json.loads(shell.ok("get", "branch/7", "--json"))
    assert (shown["version"], shown["author"]) == (version, served.node.peer_id)
    assert shell.ok("delete", "branch/7").strip() != version
    assert "not_found" not in shell.fails(1, "get", "branch/7")
    assert "branch/7" in shell.err


def test_where_a_value_comes_from(shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shell.ok("put", "k", "hello", "--text")
    assert shell.ok("get", "k") == '"hello"\n'
    assert shell.ok("get", "k", "--raw") == "hello\n"
    (tmp_path / "value.json").write_text("[1, 2]\n")
    shell.ok("put", "k", f"@{tmp_path / 'value.json'}")
    assert shell.ok("get", "k", "--raw") == "[1,2]\n"
    monkeypatch.setattr(sys, "stdin", _Stdin(b'{"from": "stdin"}'))
    shell.ok("put", "k", "-")
    assert shell.ok("get", "k") == '{"from":"stdin"}\n'
    assert "--text" in shell.fails(1, "put", "k", "hello")
    assert "cannot read" in shell.fails(1, "put", "k", "@no-such-file")
    assert "2^53" in shell.fails(1, "put", "k", "9007199254740993")
    assert shell.ok("get", "k") == '{"from":"stdin"}\n'


@pytest.mark.parametrize("key", ["a/b", "..", "100%", "?x#y", "line\nbreak", "ключ", "-"])
def test_any_key(key: str, shell: Shell) -> None:
    shell.ok("put", key, "1")
    assert json.loads(shell.ok("get", key, "--json"))["key"] == key


def test_conditions(shell: Shell) -> None:
    first = shell.ok("put", "k", "1", "--if-absent").strip()
    shell.fails(1, "put", "k", "2", "--if-absent")
    second = shell.ok("put", "k", "2", "--if-match", first).strip()
    shell.fails(1, "delete", "k", "--if-match", first)
    shell.ok("delete", "k", "--if-match", second)


def test_an_ack_that_cannot_be_had_is_refused_by_the_node(shell: Shell) -> None:
    assert "ack" in shell.fails(1, "put", "k", "1", "--ack", "5000")


def test_forks_are_listed_however_many_pages_they_are(shell: Shell, served: ServedNode) -> None:
    assert shell.ok("forks") == "No log is forked.\n"
    served.call(fork, served.node, range(105))
    listed = [line for line in shell.ok("forks").splitlines() if "is frozen at seq 0" in line]
    assert [line.split()[2] for line in listed] == [f"{epoch:016x}" for epoch in range(105)]
    found = json.loads(shell.ok("forks", "--json"))
    assert (found["success"], found["count"], found["next"]) == (True, 105, None)
    assert [each["epoch"] for each in found["forks"]] == [f"{epoch:016x}" for epoch in range(105)]


def test_keys(shell: Shell, served: ServedNode) -> None:
    for number in range(5):
        shell.ok("put", f"k/{number}", str(number))
    shell.ok("put", "other", '"\\u001b[31mred"')
    assert shell.ok("keys", "k/") == "".join(f"k/{n}\t{n}\n" for n in range(5))
    assert shell.ok("keys", "--limit", "2") == "k/0\t0\nk/1\t1\n"
    assert "--after 'k/1'" in shell.err
    assert shell.ok("keys", "--after", "k/3") == 'k/4\t4\nother\t"\\u001b[31mred"\n'
    page = json.loads(shell.ok("keys", "--json", "--limit", "5"))
    assert (page["count"], page["next"]) == (5, "k/4")
    assert json.loads(shell.ok("keys", "--json", "--all"))["count"] == 6
    served.call(put_raw, served.node, b"bad\x1b[2J", b"\xff")
    assert shell.ok("keys", "bad") == "bad\\x1b[2J\t(unreadable_value)\n"


def test_all_pages_are_fetched(shell: Shell, served: ServedNode) -> None:
    async def fill() -> None:
        for start in range(0, 1280, 256):
            ops = [OpDraft(OpKind.PUT, b"k/%04d" % n, b"1") for n in range(start, start + 256)]
            await served.node.append(ops)

    served.call(fill)
    assert shell.ok("keys", "--all") == "".join(f"k/{n:04d}\t1\n" for n in range(1280))
    assert json.loads(shell.ok("keys", "--all", "--json"))["count"] == 1280
    assert len(shell.ok("keys", "--limit", "1100").splitlines()) == 1100


def test_counters_and_siblings(shell: Shell, served: ServedNode) -> None:
    async def fork() -> None:
        await served.node.append([OpDraft(OpKind.ADD, b"n", amount=7), OpDraft(OpKind.PUT, b"k", b"1")])
        served.node.engine.end_epoch()
        await served.node.append([OpDraft(OpKind.PUT, b"k", b"2", over=())])

    served.call(fork)
    assert shell.ok("get", "n") == "7\n"
    assert shell.ok("get", "k") == "2\n"
    assert "1 concurrent value" in shell.err


def test_status(shell: Shell, served: ServedNode) -> None:
    text = shell.ok("status")
    assert text.splitlines()[0] == (
        "Network status: alone (no other node is known; `lattice invite` prints a ticket)"
    )
    assert served.node.peer_id in text
    assert served.node.ledger().state_root.hex() in text
    assert json.loads(shell.ok("status", "--json"))["peer_id"] == served.node.peer_id
    shell.fails(4, "status", "--require-sync")


def test_peers_and_switch(shell: Shell, served: ServedNode) -> None:
    assert "lattice invite" in shell.ok("peers")
    served.call(_known, served)
    assert "dead" in shell.ok("peers") or "suspect" in shell.out or "alive" in shell.out
    assert len(json.loads(shell.ok("peers", "--json"))) == 1
    assert "policy is http" in shell.ok("switch", "http")
    assert json.loads(shell.ok("switch", "auto", "--json"))["policy"] == "auto"
    line = shell.fails(1, "switch", "both")
    assert all(mode in line for mode in ("auto", "p2p", "http"))


async def _known(served: ServedNode) -> None:
    served.node.know_url("http://192.0.2.7:8100")


def test_id(shell: Shell, served: ServedNode) -> None:
    assert shell.ok("id").splitlines()[0] == served.node.peer_id
    assert json.loads(shell.ok("id", "--json"))["peer_id"] == served.node.peer_id


def test_url_and_token(tmp_path: Path, shell: Shell, capsys: pytest.CaptureFixture[str]) -> None:
    token_file = tmp_path / "other.token"
    token_file.write_text(f"{TOKEN}\n")
    with served_node(bearer=TOKEN) as other:
        assert shell.bare("status", "--url", other.url) == 5
        assert shell.bare("status", "--url", f"{other.url}/", "--token-file", str(token_file)) == 0
        assert other.node.peer_id in shell.out
        token_file.write_text("wrong\n")
        assert shell.bare("status", "--url", other.url, "--token-file", str(token_file)) == 5
        assert shell.bare("status", "--url", other.url, "--token-file", str(tmp_path / "none")) == 5
        assert shell.bare("status", "--url", "ftp://x") == 78
        assert shell.err.startswith("lattice: --url ftp://x: ")


def test_the_own_token_goes_to_the_own_node_only(
    tmp_path: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With --url the token of the settings stays at home, even if that node would take it."""
    own = tmp_path / "data" / "api.token"
    own.parent.mkdir()
    own.write_text(f"{TOKEN}\n")
    with served_node(bearer=TOKEN) as other:
        monkeypatch.setenv("LATTICE_API_BIND", str(other.bind))
        assert shell.ok("status")
        assert shell.run("status", "--url", other.url) == 5
        own.unlink()
        assert shell.run("status") == 5


def test_nobody_answers(lonely_shell: Shell) -> None:
    for command in (("status",), ("put", "k", "1"), ("get", "k"), ("keys",), ("switch", "auto")):
        line = lonely_shell.fails(3, *command)
        assert "lattice start" in line
    assert lonely_shell.bare("status", "--url", "http://no-such-name.invalid") == 3


def test_something_else_answers(lonely_shell: Shell) -> None:
    from http.server import BaseHTTPRequestHandler, HTTPServer
    from threading import Thread

    class Other(BaseHTTPRequestHandler):
        body = b"<html>"

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-length", str(len(self.body)))
            self.end_headers()
            self.wfile.write(self.body)

        def log_message(self, *_: object) -> None:
            return

    with HTTPServer(("127.0.0.1", 0), Other) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            for body in (b"<html>", b"{}", b"[]", b'{"success":true}'):
                Other.body = body
                assert lonely_shell.bare("status", "--url", f"http://127.0.0.1:{server.server_port}") == 3
                assert "Lattice node" in lonely_shell.err
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("nosuch",),
        ("get",),
        ("get", "a", "b"),
        ("status", "--jsn"),
        ("keys", "--limit", "0"),
        ("put", "k"),
    ],
)
def test_usage_errors_exit_with_2(arguments: tuple[str, ...], shell: Shell) -> None:
    assert shell.bare(*arguments) == 2
    assert shell.err.startswith("lattice: ")
    assert shell.err.count("\n") == 1
    assert "--help`" in shell.err


def test_a_mistyped_option_gets_a_suggestion(shell: Shell) -> None:
    assert shell.bare("status", "--jsno") == 2
    assert "did you mean --json?" in shell.err
    assert shell.bare("start", "--api-bnd", "x") == 2
    assert "did you mean --api-bind?" in shell.err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("status", "--api-bind", "nonsense"), "LATTICE_API_BIND"),
        (("keys", "--heartbeat-interval-s", "99"), "LATTICE_HEARTBEAT_INTERVAL_S"),
    ],
)
def test_wrong_settings_exit_with_78(arguments: tuple[str, ...], says: str, shell: Shell) -> None:
    assert says in shell.fails(78, *arguments)


def test_a_missing_settings_file_exits_with_78(shell: Shell) -> None:
    assert shell.bare("status", "--env-file", "/no/such/file") == 78
    assert "/no/such/file" in shell.err


def test_peers_are_added_and_forgotten(shell: Shell, served: ServedNode) -> None:
    url = "http://192.0.2.7:8100"
    assert url in shell.ok("peers", "add", url)
    assert [peer.urls for peer in served.node.registry.all()] == [(url,)]
    assert url in shell.ok("peers", "forget", url)
    assert served.node.registry.all() == []
    assert "No known peer" in shell.fails(1, "peers", "forget", url)
    assert "PEER_ID" in shell.fails(1, "peers", "add", "/ip4/192.0.2.7/tcp/9000")
    assert "needs an address" in shell.fails(1, "peers", "add")
