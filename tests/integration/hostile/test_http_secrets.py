"""Canaries: the network key, the node's private key, the API token and the ticket turn up nowhere and in no
form, whatever strangers send and whatever an operator mistypes."""

from __future__ import annotations

import base64
import os
import socket
import subprocess
import sys
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from lattice.client import calls
from lattice.core.identity import base58_encode, public_key_of
from lattice.core.ticket import decode_ticket
from lattice.testing.cluster import LocalNode, make_nodes, running, wait_for

from .http_kit import SYNC_PATH, Liar, Member, Stranger, counted, plain

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

API = "/api/lattice"


@dataclass(frozen=True)
class Secrets:
    """The four of a node: as bytes where they are bytes, and as the texts in which files carry them."""

    raw: dict[str, bytes]
    texts: dict[str, str]

    def found_in(self, data: bytes) -> list[str]:
        """Which secret, in which form."""
        lowered = data.lower()
        forms = {
            (name, form): text
            for name, secret in self.raw.items()
            for form, text in _forms(secret).items()
        } | {(name, "text"): text.encode() for name, text in self.texts.items()}  # fmt: skip
        return [
            f"{name} as {form}"
            for (name, form), text in forms.items()
            if text in data or (form in ("hex", "base32", "text") and text.lower() in lowered)
        ]


def _forms(secret: bytes) -> dict[str, bytes]:
    """How 32 bytes may be written. In a longer base64 text they stand at one of three offsets: what they
    alone decide of it is looked for."""
    found = {
        "raw": secret,
        "repr": repr(secret)[2:-1].encode(),
        "hex": secret.hex().encode(),
        "base58": base58_encode(secret).encode(),
        "base32": base64.b32encode(secret).rstrip(b"=")[:-1],
        "list": ", ".join(map(str, secret)).encode(),
    }
    for offset in range(3):
        for name, encode in (("base64", base64.b64encode), ("urlsafe base64", base64.urlsafe_b64encode)):
            inner = encode(bytes(offset) + secret)[4 if offset else 0 : -4]
            found[f"{name} at {offset}"] = inner
    return found


def secrets_of(node: LocalNode) -> tuple[Secrets, str]:
    """Those of a node, and a ticket of its network."""
    ticket = node.command("invite").split()[-1]
    seed = bytes.fromhex((node.data_dir / "identity.key").read_text().strip())
    token = (node.data_dir / "api.token").read_text().strip()
    body = ticket.removeprefix("lattice1-")
    return Secrets(
        {
            "network key": decode_ticket(ticket).network_key,
            "private key": seed,
            "token": bytes.fromhex(token),
        },
        # A part of the ticket from its middle: one that is cut is still most of the secret.
        {"token": token, "ticket": ticket, "half a ticket": body[len(body) // 2 :]},
    ), ticket


def test_the_search_finds_each_secret_in_each_form(tmp_path: Path) -> None:
    """All other tests here would pass with a search that finds nothing."""
    (node,) = make_nodes(tmp_path, ["one"])
    secrets, ticket = secrets_of(node)
    for name, secret in secrets.raw.items():
        for form, text in _forms(secret).items():
            assert f"{name} as {form}" in secrets.found_in(b"before " + text + b" after"), (name, form)
        for offset in range(40):
            shown = base64.b64encode(os.urandom(offset) + secret + os.urandom(7))
            assert any(name in found for found in secrets.found_in(shown))
    assert "network key as urlsafe base64 at" in " ".join(secrets.found_in(ticket.encode()))
    assert "ticket as text" in secrets.found_in(ticket.upper().encode())
    assert secrets.found_in(base64.b64encode(os.urandom(3000)) + os.urandom(3000).hex().encode()) == []


def outputs_of(node: LocalNode) -> bytes:
    """Everything that a node has written down besides its data directory."""
    parts = [path.read_bytes() for path in sorted((node.directory / "logs").iterdir())]
    return b"\n".join([*parts, (node.directory / "console").read_bytes()])


@pytest.mark.parametrize("form", ["text", "json"])
def test_no_output_of_a_node_under_attack_shows_a_secret(tmp_path: Path, form: str) -> None:
    """With P2P, everything that the libraries say, and attackers who know the secrets and send them."""
    environ = {
        "LATTICE_LOG_LEVEL": "DEBUG",
        "LATTICE_LOG_FORMAT": form,
        "LATTICE_HTTP_POLL_INTERVAL_S": "0.5",
        "LATTICE_PEERLESS_TIMEOUT_S": "4",
        "LATTICE_HEARTBEAT_INTERVAL_S": "1",
    }
    nodes = make_nodes(tmp_path, ["one", "two"], environ=environ)
    secrets, ticket = secrets_of(nodes[0])
    token = secrets.texts["token"]
    seen: list[bytes] = []
    with running(nodes):
        node = nodes[0]
        wait_for("a peer", lambda: node.status().peers != [], within_s=20)
        member = Member.of(node)
        member_raw = secrets.raw["network key"]
        with (
            httpx.Client(base_url=node.url, trust_env=False, timeout=20) as caller,
            Stranger(plain(member_raw + secrets.raw["private key"], b"200 " + token.encode())) as stranger,
            Liar(member.another(), lambda opened, messages: member_raw + ticket.encode()) as liar,
        ):
            for url in (stranger.url, liar.url):
                node.send(calls.add_peer(url))

            def call(method: str, path: str, content: bytes = b"", **headers: str) -> int:
                response = caller.request(method, path, content=content, headers=headers)
                # What a caller sent may come back to that caller, and to nobody else.
                if not any(token in value or ticket in value for value in headers.values()):
                    seen.append(response.content + repr(response.headers.raw).encode())
                return response.status_code

            assert call("PUT", f"{API}/keys/k", b"1", Host=token) == 400
            assert call("PUT", f"{API}/keys/k", b"1", Origin=f"https://{token}") == 403
            assert call("PUT", f"{API}/keys/k", b"1", Authorization=f"Basic {token}") == 401
            assert call("PUT", f"{API}/keys/k", b"1", Authorization=f"Bearer {token}x") == 401
            assert call("PUT", f"{API}/keys/k", b"1", Authorization=f"Bearer {token}") == 201
            assert call("GET", f"{API}/keys/k?ack={token}") == 200
            assert call("POST", f"{API}/sync/switch?mode=nonsense") == 400
            assert call("POST", f"{API}/import", member_raw * 10) == 400
            for path in ("state", "p2p/status", "p2p/identity", "nodes", "peers", "keys", "entries", "forks"):
                assert call("GET", f"{API}/{path}") == 200
            for path in ("/metrics", "/docs", "/openapi.json", "/", "/readyz", f"{API}/events?follow=false"):
                assert call("GET", path) == 200
            sync = f"http://127.0.0.1:{node.sync_port}{SYNC_PATH}"
            victim = public_key_of(node.status().peer_id)
            bodies = (member_raw * 20, ticket.encode() * 5, member.request([member.hello()], victim))
            seen += [caller.post(sync, content=body).content for body in bodies]
            for port in (node.sync_port, node.p2p_port, node.api_port):
                with closing(socket.create_connection(("127.0.0.1", port))) as connection, suppress(OSError):
                    connection.settimeout(1)
                    connection.sendall(member_raw + token.encode() + ticket.encode() + b"\r\n\r\n")
                    seen.append(connection.recv(65_536))
            for url in (stranger.url, liar.url):
                wait_for("its answer refused", lambda url=url: _is_refused(node, url), within_s=20)  # type: ignore[misc]
            seen.append(caller.get(f"{API}/p2p/status").content)
            seen.append(repr(counted(node)).encode())
    seen += [outputs_of(each) for each in nodes]
    assert len(seen[-2]) > 10_000, "it was talkative"
    assert secrets.found_in(b"\n".join(seen)) == []


def _is_refused(node: LocalNode, url: str) -> bool:
    return any(url in peer.addresses and peer.http.last_error is not None for peer in node.status().peers)


def lattice(node: LocalNode, *arguments: str, text_in: str = "", **environ: str) -> tuple[int, bytes]:
    """Run a command that should fail at once; its exit code, and everything that it said."""
    done = subprocess.run(
        [sys.executable, "-m", "lattice", *arguments],
        env={**node.environment(), **environ},
        input=text_in.encode(),
        capture_output=True,
        timeout=30,
        cwd=node.directory,
    )
    return done.returncode, done.stdout + done.stderr


def test_mistakes_at_the_start_show_no_secret(tmp_path: Path) -> None:
    one, other, fresh = make_nodes(tmp_path, ["one", "other", "fresh"], introduce=False)
    for node in (one, other):
        node.command("init")
    secrets, ticket = secrets_of(one)
    fresh.directory.mkdir()
    cut, mistyped = ticket[:-10], ticket[:-5] + ("a" if ticket[-5] != "a" else "b") + ticket[-4:]
    file = tmp_path / ".env.wrong"
    file.write_text(f"LATTICE_JION={ticket}\nLATTICE_NODES={ticket}\nLATTICE_JOIN {ticket}\n")
    said: list[tuple[str, int, bytes]] = []

    def mistake(name: str, node: LocalNode, *arguments: str, text_in: str = "", **environ: str) -> None:
        code, output = lattice(node, *arguments, text_in=text_in, **environ)
        said.append((name, code, output))

    mistake("a ticket of another network", other, "start", "--join", ticket)
    mistake("the same, in the environment", other, "start", LATTICE_JOIN=ticket)
    mistake("a cut ticket", fresh, "init", "--join", cut)
    mistake("a mistyped ticket", fresh, "init", "--join", "-", text_in=mistyped)
    mistake("a ticket for a file", fresh, "init", "--join", f"@{ticket}")
    mistake("a ticket without its flag", fresh, "init", ticket)
    mistake("a ticket with a mistyped flag", fresh, "init", "--jion", ticket)
    mistake("a ticket as an address", fresh, "start", LATTICE_NODES=ticket)
    mistake("a ticket as a multiaddr", fresh, "start", LATTICE_P2P_BOOTSTRAP=ticket)
    mistake("a ticket as a listener", fresh, "start", LATTICE_API_BIND=ticket)
    mistake("a ticket as a public URL", fresh, "start", LATTICE_SYNC_PUBLIC_URL=f"http://{ticket}/")
    mistake("a ticket as a peer", one, "peers", "add", ticket)
    quick = {"LATTICE_HEARTBEAT_INTERVAL_S": "5", "LATTICE_PEERLESS_TIMEOUT_S": "10"}
    mistake("times that contradict each other", one, "start", **quick)
    mistake("a file full of mistakes", fresh, "start", "--env-file", str(file))
    token_file = tmp_path / "token"
    token_file.write_bytes(secrets.texts["token"].encode() + b"\xff")
    mistake("a token that is no text", one, "start", LATTICE_API_TOKEN_FILE=str(token_file))
    network = one.data_dir / "network.json"
    whole = network.read_bytes()
    network.write_bytes(whole[:-20])
    mistake("a cut network", one, "start")
    network.write_bytes(whole.replace(b'"keys"', b'"kays"'))
    mistake("a network without keys", one, "start")
    network.write_bytes(whole)
    seed = one.data_dir / "identity.key"
    whole = seed.read_bytes()
    seed.write_bytes(whole[:-9])
    mistake("a cut identity", one, "start")
    seed.write_bytes(b"x" + whole)
    mistake("a damaged identity", one, "start")
    seed.write_bytes(whole)
    for name, code, output in said:
        assert code in (1, 2, 3, 78), (name, code, output)
        assert len(output) > 20, name
        assert (name, secrets.found_in(output)) == (name, [])
        assert b"Traceback" not in output, (name, output)
    logs = b"".join(path.read_bytes() for path in tmp_path.rglob("*.log"))
    assert secrets.found_in(logs) == []
