"""The rules of access, without a server: hosts, origins, operators, tokens."""

from __future__ import annotations

from pathlib import Path

import pytest

from lattice.api.access import RULES, Access, RouteClass, host_name, is_forwarding, read_token, rules_for
from lattice.core.addresses import Bind
from lattice.core.errors import ConfigError, LatticeError
from tests.integration.api.api_kit import LOOPBACK, TOKEN


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ("localhost", "localhost"),
        ("LocalHost:8000", "localhost"),
        ("ledger.example.", "ledger.example"),
        ("127.0.0.1:8000", "127.0.0.1"),
        ("[::1]:8000", "::1"),
        ("[::1]", "::1"),
        ("", None),
        (":8000", None),
        ("localhost:", None),
        ("localhost:80x", None),
        ("localhost:8000:1", None),
        ("[::1", None),
        ("[localhost]:80", None),
        ("[::1]80", None),
        ("localhost:٣", None),
    ],
)
def test_the_name_in_a_host_header(header: str, name: str | None) -> None:
    assert host_name(header) == name


@pytest.mark.parametrize(
    ("bind", "host", "allowed"),
    [
        ("127.0.0.1", "localhost:8000", True),
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.1", "127.9.9.9:1", True),
        ("127.0.0.1", "[::1]:8000", True),
        ("127.0.0.1", "ledger.example:8000", True),
        ("127.0.0.1", "evil.example", False),
        ("127.0.0.1", "localhost.evil.example", False),
        ("127.0.0.1", "192.0.2.7", False),
        ("192.0.2.7", "192.0.2.7:8000", True),
        ("192.0.2.7", "192.0.2.8:8000", False),
        ("0.0.0.0", "192.0.2.8:8000", True),
        ("0.0.0.0", "[2001:db8::1]:8000", True),
        ("0.0.0.0", "evil.example", False),
        ("127.0.0.1", "", False),
    ],
)
def test_hosts(bind: str, host: str, allowed: bool) -> None:
    access = Access(Bind(bind, 8000), TOKEN, allowed_hosts=("ledger.example",))
    assert access.host_is_allowed(host) is allowed


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        ("http://127.0.0.1:8000", True),
        ("https://127.0.0.1:8000", True),
        ("https://app.example", True),
        ("http://app.example", False),
        ("https://app.example.evil.example", False),
        ("http://127.0.0.1:8001", False),
        ("http://127.0.0.1", False),
        ("null", False),
        ("", False),
        ("ftp://127.0.0.1:8000", False),
        ("127.0.0.1:8000", False),
    ],
)
def test_origins(origin: str, allowed: bool) -> None:
    access = Access(LOOPBACK, cors_origins=("https://app.example",))
    assert access.origin_is_allowed(origin, "127.0.0.1:8000") is allowed


@pytest.mark.parametrize(
    ("client", "host", "header", "is_operator"),
    [
        ("127.0.0.1", "127.0.0.1:8000", None, True),
        ("127.8.8.8", "localhost", None, True),
        ("::1", "[::1]:8000", None, True),
        ("::ffff:127.0.0.1", "localhost", None, True),
        ("192.0.2.7", "127.0.0.1:8000", None, False),
        ("::ffff:192.0.2.7", "localhost", None, False),
        ("fe80::1%eth0", "localhost", None, False),
        (None, "localhost", None, False),
        ("", "localhost", None, False),
        ("unix:", "localhost", None, False),
        ("127.0.0.1", "ledger.example", None, False),
        ("127.0.0.1", "localhost", (b"forwarded", b"for=192.0.2.7"), False),
        ("127.0.0.1", "localhost", (b"x-forwarded-for", b"127.0.0.1"), False),
        ("127.0.0.1", "localhost", (b"x-forwarded-proto", b"https"), False),
        ("127.0.0.1", "localhost", (b"x-real-ip", b"127.0.0.1"), False),
        ("127.0.0.1", "localhost", (b"via", b"1.1 proxy"), False),
        ("127.0.0.1", "localhost", (b"x-other", b"1"), True),
        ("192.0.2.7", "ledger.example", (b"authorization", f"Bearer {TOKEN}".encode()), True),
        ("192.0.2.7", "ledger.example", (b"authorization", f"bearer {TOKEN}".encode()), True),
    ],
)
def test_operators(
    client: str | None, host: str, header: tuple[bytes, bytes] | None, is_operator: bool
) -> None:
    access = Access(LOOPBACK, TOKEN)
    assert access.is_operator([header] if header else [], client, host) is is_operator


@pytest.mark.parametrize(
    "values",
    [
        [b"Bearer wrong"],
        [b"Bearer "],
        [b"Bearer"],
        [TOKEN.encode()],
        [f"Basic {TOKEN}".encode()],
        [f"Bearer {TOKEN}x".encode()],
        [f"Bearer {TOKEN}".encode()] * 2,
        ["Bearer é".encode()],
    ],
)
def test_a_wrong_token_is_refused_even_from_loopback(values: list[bytes]) -> None:
    access = Access(LOOPBACK, TOKEN)
    with pytest.raises(LatticeError, match="token") as caught:
        access.is_operator([(b"authorization", value) for value in values], "127.0.0.1", "localhost")
    assert caught.value.code == "unauthorized"


def test_without_a_token_no_token_is_right() -> None:
    with pytest.raises(LatticeError, match="token"):
        Access(LOOPBACK).is_operator([(b"authorization", b"Bearer ")], "127.0.0.1", "localhost")


def test_beyond_loopback_loopback_clients_need_the_token_too() -> None:
    access = Access(Bind("0.0.0.0", 8000), TOKEN)
    assert not access.is_operator([], "127.0.0.1", "127.0.0.1:8000")
    assert access.is_operator([(b"authorization", f"Bearer {TOKEN}".encode())], "127.0.0.1", "127.0.0.1")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "ledger.example"])
def test_beyond_loopback_there_must_be_a_token(host: str) -> None:
    with pytest.raises(ConfigError, match="LATTICE_API_TOKEN_FILE"):
        Access(Bind(host, 8000))


def test_the_token_does_not_show() -> None:
    assert TOKEN not in repr(Access(LOOPBACK, TOKEN))


def test_the_token_file(tmp_path: Path) -> None:
    path = tmp_path / "api.token"
    assert read_token(path) is None
    path.write_text(f"{TOKEN}\n")
    assert read_token(path) == TOKEN
    path.write_text("\n")
    with pytest.raises(ConfigError, match="empty"):
        read_token(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_token(path)


@pytest.mark.parametrize("name", [b"forwarded", b"via", b"x-forwarded-host", b"x-forwarded-anything"])
def test_forwarding_headers(name: bytes) -> None:
    assert is_forwarding(name)
    assert not is_forwarding(b"x-" + name)


def test_paths_that_are_not_in_the_table_are_not_served() -> None:
    for path in (
        "/page/",
        "/page/index.html",
        "/api",
        "/api/lattice/keysx",
        "/api/lattice/keys/../state/x/..",
        "//health",
        "/health/",
    ):
        found = rules_for(path)
        assert not found or path.startswith("/api/lattice/keys/")


def test_only_the_sealed_route_is_open_to_peers_and_no_write_is_public() -> None:
    assert [rule.path for rule in RULES if rule.kind is RouteClass.PEER] == ["/api/lattice/sync/messages"]
    assert {rule.method for rule in RULES if rule.kind is RouteClass.PUBLIC} == {"GET"}
    assert [rule.path for rule in RULES if rule.status] == [
        "/api/lattice/p2p/status",
        "/api/lattice/state",
        "/metrics",
    ]
