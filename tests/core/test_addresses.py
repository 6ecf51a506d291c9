"""The rules of written addresses: what is taken, in which form it comes out, and what is refused."""

from __future__ import annotations

import pytest

from lattice.core.addresses import (
    ip_of,
    is_loopback_host,
    is_unroutable,
    parse_bind,
    parse_host,
    parse_multiaddr,
    parse_node_url,
    parse_origin,
    source_of,
)
from lattice.core.errors import MalformedError
from lattice.core.identity import NodeKey

PEER = NodeKey(bytes(32)).peer_id


@pytest.mark.parametrize(
    ("text", "host", "port", "loopback", "wildcard"),
    [
        ("127.0.0.1:8000", "127.0.0.1", 8000, True, False),
        ("0.0.0.0:0", "0.0.0.0", 0, False, True),
        ("[::1]:65535", "::1", 65535, True, False),
        ("[::]:80", "::", 80, False, True),
        ("localhost:1", "localhost", 1, True, False),
        ("Node-7.Example.org:8100", "node-7.example.org", 8100, False, False),
    ],
)
def test_a_bind(text: str, host: str, port: int, loopback: bool, wildcard: bool) -> None:
    bind = parse_bind(text)
    assert (bind.host, bind.port) == (host, port)
    assert (bind.is_loopback, bind.is_wildcard) == (loopback, wildcard)
    assert str(bind) == text.lower()


@pytest.mark.parametrize(
    "text",
    ["", "8000", ":8000", "127.0.0.1", "127.0.0.1:", "127.0.0.1:65536", "127.0.0.1:-1", "127.0.0.1:8 0",
     "::1:8000", "[127.0.0.1]:80", "[::1]", "10.0.0.256:80", "bad_host!:80", "a..b:80", "-a:80",
     "127.0.0.1:٨٠", "http://127.0.0.1:80"],
)  # fmt: skip
def test_what_is_no_bind(text: str) -> None:
    with pytest.raises(MalformedError):
        parse_bind(text)


@pytest.mark.parametrize(
    "text",
    ["/ip4/192.0.2.7/tcp/9000", "/ip6/2001:db8::7/tcp/9000", "/dns/a.example/tcp/1", "/dns4/a.example/tcp/1",
     "/dns6/a.example/tcp/1", f"/ip4/192.0.2.7/tcp/9000/p2p/{PEER}"],
)  # fmt: skip
def test_a_multiaddr_comes_out_as_it_went_in(text: str) -> None:
    assert str(parse_multiaddr(text)) == text


@pytest.mark.parametrize(
    "text",
    ["", "/", "192.0.2.7:9000", "/ip4/192.0.2.7", "/ip4/192.0.2.7/udp/9000/quic-v1",
     "/ip4/192.0.2.7/udp/9000",
     "/ip4/::1/tcp/9000", "/ip6/192.0.2.7/tcp/9000", "/ip4/192.0.2.7/tcp/99999", "/ip4/192.0.2.7/tcp/",
     "/ip4/192.0.2.7/tcp/9000/", "/ip4/192.0.2.7/tcp/9000/p2p", "/ip4/192.0.2.7/tcp/9000/p2p/QmNo",
     f"/ip4/192.0.2.7/tcp/9000/p2p/{PEER}x", f"/ip4/192.0.2.7/tcp/9000/ipfs/{PEER}", "/dns/a b/tcp/1",
     "ip4/192.0.2.7/tcp/9000", "/dns/" + "a" * 300 + "/tcp/1"],
)  # fmt: skip
def test_what_is_no_multiaddr(text: str) -> None:
    with pytest.raises(MalformedError):
        parse_multiaddr(text)


def test_a_multiaddr_where_a_peer_id_is_needed_or_not_wanted() -> None:
    bare, full = "/ip4/192.0.2.7/tcp/9000", f"/ip4/192.0.2.7/tcp/9000/p2p/{PEER}"
    assert parse_multiaddr(full, peer_id="required").peer_id == PEER
    assert parse_multiaddr(bare, peer_id="forbidden").peer_id is None
    with pytest.raises(MalformedError, match="missing"):
        parse_multiaddr(bare, peer_id="required")
    with pytest.raises(MalformedError, match="leave out"):
        parse_multiaddr(full, peer_id="forbidden")


@pytest.mark.parametrize("text", ["/ip4/0.0.0.0/tcp/9000", "/ip6/::/tcp/9000", "/ip4/192.0.2.7/tcp/0"])
def test_nobody_can_dial_a_wildcard(text: str) -> None:
    parse_multiaddr(text)
    with pytest.raises(MalformedError, match="nobody can dial"):
        parse_multiaddr(text, concrete=True)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://192.0.2.7:8100", "http://192.0.2.7:8100"),
        ("http://192.0.2.7:8100/", "http://192.0.2.7:8100"),
        ("https://Ledger.Example.org/nodes/a/", "https://ledger.example.org/nodes/a"),
        ("http://[2001:DB8::7]:8100", "http://[2001:db8::7]:8100"),
    ],
)
def test_a_node_url(text: str, shown: str) -> None:
    assert parse_node_url(text) == shown


@pytest.mark.parametrize(
    "text",
    ["", "192.0.2.7:8100", "ftp://a", "http://", "http:///x", "http://a:0", "http://a:99999", "http://a:x",
     "http://u:p@a", "http://a?x=1", "http://a#x", "http://0.0.0.0:8100", "http://[::]:8100", "http://a b",
     "http://a\n", "http://[::1", "http://ä.example", "javascript:alert(1)", "http://" + "a." * 200,
     "http://h\udcff"],
)  # fmt: skip
def test_what_is_no_node_url(text: str) -> None:
    with pytest.raises(MalformedError):
        parse_node_url(text)


def test_an_origin() -> None:
    assert parse_origin("https://ledger.example.org/") == "https://ledger.example.org"
    assert parse_origin("http://localhost:3000") == "http://localhost:3000"
    for text in ("*", "null", "https://a/b", "https://a?b", "a.example"):
        with pytest.raises(MalformedError):
            parse_origin(text)


def test_a_host() -> None:
    assert parse_host("Example.org") == "example.org"
    assert parse_host("::1") == "::1"
    for text in ("", "*", "a/b", "example.org:80", "1.2.3", "a" * 64):
        with pytest.raises(MalformedError):
            parse_host(text)


@pytest.mark.parametrize(
    ("host", "unroutable", "loopback"),
    [
        ("192.0.2.7", False, False),
        ("10.0.0.1", False, False),
        ("2001:db8::7", False, False),
        ("node.example", False, False),
        ("127.0.0.1", False, True),
        ("127.8.9.1", False, True),
        ("::1", False, True),
        ("::ffff:127.0.0.1", False, True),
        ("localhost", False, True),
        ("localhost.", False, True),
        ("a.localhost", False, True),
        ("localhost.example", False, False),
        ("169.254.169.254", True, False),
        ("::ffff:169.254.169.254", True, False),
        ("fe80::1", True, False),
        ("224.0.0.251", True, False),
        ("ff02::fb", True, False),
        ("255.255.255.255", True, False),
        ("0.0.0.0", True, False),
        ("::", True, False),
    ],
)
def test_places_where_no_other_node_is(host: str, unroutable: bool, loopback: bool) -> None:
    address = ip_of(host)
    assert (address is not None and is_unroutable(address)) is unroutable
    assert is_loopback_host(host) is loopback


@pytest.mark.parametrize(
    ("host", "source"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:0:1::7", "2001:db8:0:1::/64"),
        ("2001:db8:0:1:ffff::1", "2001:db8:0:1::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::1", "::/64"),
        ("", ""),
        ("testclient", "testclient"),
    ],
)
def test_for_whom_a_sender_counts(host: str, source: str) -> None:
    assert source_of(host) == source
