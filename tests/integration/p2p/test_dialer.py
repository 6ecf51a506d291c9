"""The dialer: who dials when, which address, and never itself."""

from __future__ import annotations

import dataclasses
import os
import socket

import pytest
import trio

from lattice.transport.p2p import addresses
from lattice.transport.p2p.dialer import Targets, parse_peer
from lattice.transport.p2p.host import peer_id_of
from tests.integration.p2p.p2p_kit import FAST, Node, Wire, hardened, several, tcp_port, until


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listed(node: Node) -> list[str]:
    return [str(address) for address in node.info.addrs]


def present(node: Node, other: Node) -> bool:
    return node.life.roster.presence(other.id) is not None


@pytest.mark.slow
async def test_the_smaller_dials_at_once_and_the_larger_waits() -> None:
    async with several(2) as nodes:
        smaller, larger = sorted(nodes, key=lambda node: node.id.to_bytes())
        began = trio.current_time()
        larger.targets.replace({str(smaller.id): listed(smaller)})
        await until(lambda: present(larger, smaller))
        assert trio.current_time() - began > FAST.dial_grace_s
    async with several(2) as nodes:
        smaller, larger = sorted(nodes, key=lambda node: node.id.to_bytes())
        began = trio.current_time()
        smaller.targets.replace({str(larger.id): listed(larger)})
        larger.targets.replace({str(smaller.id): listed(smaller)})
        await until(lambda: present(larger, smaller))
        assert trio.current_time() - began < FAST.dial_grace_s
        await trio.sleep(2 * FAST.dial_grace_s)
        assert len(smaller.network.get_connections(larger.id)) == 1


@pytest.mark.slow
async def test_a_stale_address_does_not_hide_the_fresh_one() -> None:
    async with several(2) as (a, b):
        stale = f"/ip4/127.0.0.1/tcp/{closed_port()}"
        a.targets.replace({str(b.id): [stale, "nonsense", *listed(b)]})
        await until(lambda: present(a, b))
        assert a.counters["dial_failed"] == 1


@pytest.mark.slow
async def test_an_address_that_never_answers_does_not_use_up_the_time_of_the_next() -> None:
    hasty = dataclasses.replace(FAST, dial_s=0.5)
    async with (
        hardened(tuning=hasty, admit_all=True) as a,
        hardened(admit_all=True) as b,
        trio.open_nursery() as nursery,
    ):
        wire = Wire(tcp_port(b))
        await nursery.start(wire.run)
        wire.stall()
        a.targets.replace({str(b.id): [f"/ip4/127.0.0.1/tcp/{wire.port}", *listed(b)]})
        await until(lambda: present(a, b))
        assert a.counters["dial_failed"] == 1
        nursery.cancel_scope.cancel()


@pytest.mark.slow
async def test_a_peer_that_comes_late_is_reached_soon_and_again_after_a_loss() -> None:
    seed = os.urandom(32)
    port = closed_port()
    async with hardened(admit_all=True) as a:
        a.targets.replace({str(peer_id_of(seed)): [f"/ip4/127.0.0.1/tcp/{port}"]})
        await until(lambda: a.counters["dial_failed"] >= 2, 10)
        for _ in range(2):
            async with hardened(seed=seed, admit_all=True, port=port) as b:
                # libp2p alone would refuse for a minute after a failure.
                await until(lambda: present(a, b), 10)
            await until(lambda: not present(a, b))


class MovingName(trio.abc.HostnameResolver):
    """A resolver in which one name leads to wherever `address` says now."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.asked = 0

    async def getaddrinfo(
        self, host: bytes | None, port: bytes | str | int | None, *rest: int
    ) -> list[tuple[socket.AddressFamily, socket.SocketKind, int, str, tuple[str, int]]]:
        assert host == b"node.example"
        assert port is not None
        self.asked += 1
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (self.address, int(port)))]

    async def getnameinfo(self, sockaddr: tuple[str, int], flags: int) -> tuple[str, str]:
        raise OSError("no reverse lookups here")


@pytest.mark.slow
async def test_a_name_that_moves_is_followed() -> None:
    names = MovingName("127.0.0.9")
    before = trio.socket.set_custom_hostname_resolver(names)
    try:
        async with several(2) as (a, b):
            port = listed(b)[0].rpartition("/")[2]
            a.targets.replace({str(b.id): [f"/dns4/node.example/tcp/{port}"]})
            await until(lambda: a.counters["dial_failed"] >= 1, 10)
            assert not present(a, b)
            names.address = "127.0.0.1"
            await until(lambda: present(a, b), 10)
            assert names.asked >= 2
    finally:
        trio.socket.set_custom_hostname_resolver(before)


@pytest.mark.slow
async def test_names_are_looked_up_at_each_dial() -> None:
    async with several(2) as (a, b):
        port = listed(b)[0].rpartition("/")[2]
        a.targets.replace({str(b.id): [f"/dns4/localhost/tcp/{port}"]})
        await until(lambda: present(a, b))
        assert not any("dns" in str(address) for address in a.life.host.basic.get_peerstore().addrs(b.id))


@pytest.mark.slow
async def test_a_node_never_dials_itself() -> None:
    async with hardened() as a:
        a.targets.replace({str(a.id): listed(a)})
        await trio.sleep(2 * FAST.dial_grace_s)
        assert a.network.get_connections() == []
        # libp2p itself has nothing against it, so the roster has.
        await a.life.host.basic.connect(a.info)
        assert a.life.roster.peers() == ()


@pytest.mark.slow
async def test_another_identity_at_the_address_is_not_the_peer() -> None:
    async with several(2) as (a, b):
        absent = str(peer_id_of(os.urandom(32)))
        a.targets.replace({absent: listed(b)})
        await until(lambda: a.counters["dial_failed"] >= 1, 10)
        assert a.life.roster.peers() == ()


@pytest.mark.slow
async def test_dialling_stops_when_there_is_company_enough() -> None:
    few = dataclasses.replace(FAST, dial_until=1)
    async with hardened(tuning=few, admit_all=True) as a, several(2) as (b, c):
        a.targets.replace({str(b.id): listed(b)})
        await until(lambda: present(a, b))
        a.targets.replace({str(b.id): listed(b), str(c.id): listed(c)})
        await trio.sleep(3 * FAST.dial_backoff_max_s)
        assert len(a.life.roster) == 1


@pytest.mark.slow
async def test_a_target_that_is_taken_back_is_no_longer_dialled() -> None:
    async with several(2) as (a, b):
        a.targets.replace({str(b.id): listed(b)})
        await until(lambda: present(a, b))
        a.targets.replace({})
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert present(a, b)  # staying connected is not harmful; only dialling ends
        await a.life.host.basic.disconnect(b.id)
        await trio.sleep(2 * FAST.dial_grace_s)
        assert not present(a, b)


def test_targets_take_ed25519_peer_ids_only() -> None:
    good = str(peer_id_of(os.urandom(32)))
    targets = Targets()
    targets.replace(
        {good: ["/ip4/1.2.3.4/tcp/5"], "QmWrong": ["/ip4/1.2.3.4/tcp/5"], "": ["x"], "0OIl": ["x"]}
    )
    assert [str(peer) for peer in targets.peers()] == [good]
    assert parse_peer(good) is not None
    assert parse_peer(good + "1") is None
    targets.replace({good: []})
    assert targets.peers() == frozenset()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "/ip4/1.2.3.4/udp/3",
        "/ip4/1.2.3.4/tcp/3/ws",
        "/ip4/999.2.3.4/tcp/3",
        "/dns4/node.example/tcp/99999",
        "/ip4/1.2.3.4",
    ],
)
def test_what_is_no_tcp_multiaddr_is_refused(text: str) -> None:
    with pytest.raises(addresses.AddressError):
        addresses.parse(text)


def test_listening_on_a_name_is_refused() -> None:
    with pytest.raises(addresses.AddressError, match="not on a name"):
        addresses.check_listen("/dns4/node.example/tcp/9000")


def test_unspecified_addresses_become_the_interfaces() -> None:
    got = addresses.concrete(
        [addresses.parse("/ip4/0.0.0.0/tcp/9000"), addresses.parse("/ip4/127.0.0.1/tcp/9001")]
    )
    texts = [str(address) for address in got]
    assert "/ip4/127.0.0.1/tcp/9001" in texts
    assert len(texts) >= 2
    assert not any("0.0.0.0" in text for text in texts)


def test_the_peer_id_at_the_end_is_cut_off() -> None:
    text = f"/ip4/127.0.0.1/tcp/9000/p2p/{peer_id_of(bytes(32))}"
    assert str(addresses.parse(text)) == "/ip4/127.0.0.1/tcp/9000"


async def test_resolving_leaves_out_what_it_cannot_use() -> None:
    got = await addresses.resolve(
        ["nonsense", "/dns4/localhost/tcp/9", "/dns4/name.invalid/tcp/9", "/ip4/127.0.0.1/tcp/9"], 4
    )
    assert [str(address) for address in got] == ["/ip4/127.0.0.1/tcp/9"]
