"""What is made of an announcement on the local network, and what is not."""

from __future__ import annotations

import os

import ifaddr
import pytest

from lattice.core.identity import NodeKey
from lattice.core.messages import Addresses
from lattice.transport.mdns import network_tag, on_link, read_hint

PEER = NodeKey(bytes(32)).peer_id


def everywhere(host: str) -> bool:
    return True


def test_both_lungs_are_read_in_both_families() -> None:
    fields: dict[str, str | None] = {"id": PEER, "p2p": "9000", "sync": "8100"}
    assert read_hint(fields, ["192.0.2.7", "2001:db8::7"], everywhere) == (
        PEER,
        Addresses(
            (f"/ip4/192.0.2.7/tcp/9000/p2p/{PEER}", f"/ip6/2001:db8::7/tcp/9000/p2p/{PEER}"),
            ("http://192.0.2.7:8100", "http://[2001:db8::7]:8100"),
        ),
    )


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"id": None, "p2p": "9000"},
        {"id": "nobody", "p2p": "9000"},
        {"id": PEER},
        {"id": PEER, "p2p": "0", "sync": "0"},
        {"id": PEER, "p2p": "65536", "sync": "-1"},
        {"id": PEER, "p2p": "²", "sync": "8100/x"},
    ],
)
def test_what_is_of_no_use_is_left_out(fields: dict[str, str | None]) -> None:
    assert read_hint(fields, ["192.0.2.7"], everywhere) is None


def test_nobody_is_sent_to_another_network() -> None:
    fields: dict[str, str | None] = {"id": PEER, "p2p": "9000", "sync": "8100"}
    hosts = ["127.0.0.1", "169.254.169.254", "224.0.0.251", "0.0.0.0", "203.0.113.77", "nonsense"]
    assert read_hint(fields, hosts, on_link) is None


def test_a_neighbour_is_on_the_link() -> None:
    own = [
        held.ip
        for adapter in ifaddr.get_adapters()
        for held in adapter.ips
        if isinstance(held.ip, str) and not held.ip.startswith(("127.", "169.254."))
    ]
    if not own:
        pytest.skip("this machine has no address beyond loopback")
    assert all(on_link(host) for host in own)


def test_the_tag_needs_the_key() -> None:
    network_id, key = os.urandom(32), os.urandom(32)
    tag = network_tag(network_id, key)
    assert len(bytes.fromhex(tag)) == 8
    assert tag == network_tag(network_id, key)
    assert len({tag, network_tag(network_id, os.urandom(32)), network_tag(os.urandom(32), key)}) == 3
    assert tag not in network_id.hex()
