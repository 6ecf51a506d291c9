"""What is made of an announcement on the local network, and what is not."""

from __future__ import annotations

import os
import queue
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Protocol

import ifaddr
import pytest
import zeroconf

from lattice.core.identity import NodeKey
from lattice.core.messages import Addresses
from lattice.transport.mdns import SERVICE_TYPE, Ear, network_tag, on_link, read_hint

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


# What is made of names that come and go: the same over real multicast on loopback and without any network.

OWN, OTHER = NodeKey(b"o" * 32).peer_id, NodeKey(b"p" * 32).peer_id
TAG = os.urandom(8).hex()  # nobody else on this machine has it


class Air(Protocol):
    """Where names are announced and withdrawn, and an ear hears of it."""

    def announce(self, info: zeroconf.ServiceInfo) -> None: ...

    def withdraw(self, info: zeroconf.ServiceInfo) -> None: ...


class StillAir:
    """Calls the ear as zeroconf does."""

    def __init__(self, ear: Ear) -> None:
        self._ear = ear
        self._known: dict[str, zeroconf.ServiceInfo] = {}

    def get_service_info(self, type_: str, name: str, timeout: int) -> zeroconf.ServiceInfo | None:
        return self._known.get(name)

    def announce(self, info: zeroconf.ServiceInfo) -> None:
        self._known[info.name] = info
        self._ear.add_service(self, SERVICE_TYPE, info.name)  # type: ignore[arg-type]

    def withdraw(self, info: zeroconf.ServiceInfo) -> None:
        del self._known[info.name]
        self._ear.remove_service(self, SERVICE_TYPE, info.name)  # type: ignore[arg-type]


class LoopbackAir:
    """Two sessions of zeroconf that hear each other on loopback."""

    def __init__(self, ear: Ear) -> None:
        self._hearing = zeroconf.Zeroconf(interfaces=["127.0.0.1"])
        self._speaking = zeroconf.Zeroconf(interfaces=["127.0.0.1"])
        zeroconf.ServiceBrowser(self._hearing, SERVICE_TYPE, ear)

    def announce(self, info: zeroconf.ServiceInfo) -> None:
        # Without asking first whether the name is free, which takes a second.
        self._speaking.register_service(info, cooperating_responders=True)

    def withdraw(self, info: zeroconf.ServiceInfo) -> None:
        self._speaking.unregister_service(info)

    def close(self) -> None:
        self._hearing.close()
        self._speaking.close()


Heard = Callable[[], tuple[str, Addresses]]


@pytest.fixture(params=["still", pytest.param("loopback", marks=pytest.mark.slow)])
def air(request: pytest.FixtureRequest) -> Iterator[tuple[Air, Heard]]:
    """The air, and a function that gives the next hint."""
    hints: queue.Queue[tuple[str, Addresses]] = queue.Queue()
    ear = Ear((TAG,), OWN, lambda peer_id, addresses: hints.put((peer_id, addresses)), everywhere)
    if request.param == "still":
        yield StillAir(ear), hints.get_nowait
        return
    try:
        loopback = LoopbackAir(ear)
    except OSError as error:
        pytest.skip(f"no multicast here: {error}")
    with closing(loopback):
        probe = announcement("probe", PEER, 9)
        loopback.announce(probe)
        try:
            hints.get(timeout=10)
        except queue.Empty:
            pytest.skip("multicast on loopback is not delivered here")
        loopback.withdraw(probe)
        assert hints.get(timeout=30) == (PEER, Addresses())
        yield loopback, lambda: hints.get(timeout=30)


def announcement(instance: str, peer_id: str, port: int, tag: str = TAG) -> zeroconf.ServiceInfo:
    return zeroconf.ServiceInfo(
        SERVICE_TYPE,
        f"{tag}-{instance}.{SERVICE_TYPE}",
        port=port,
        properties={"v": "1", "id": peer_id, "p2p": "0", "sync": str(port)},
        server=f"lattice-{tag}-{instance}.local.",
        parsed_addresses=["127.0.0.1"],
    )


def at(port: int) -> Addresses:
    return Addresses((), (f"http://127.0.0.1:{port}",))


def test_the_name_of_a_killed_process_runs_out_and_the_next_one_keeps_its_place(
    air: tuple[Air, Heard],
) -> None:
    heard = air[1]
    killed, next_one = announcement("killed", PEER, 8100), announcement("next", PEER, 8101)
    air[0].announce(killed)
    assert heard() == (PEER, at(8100))
    air[0].announce(next_one)
    assert heard() == (PEER, at(8101))
    air[0].withdraw(killed)
    assert heard() == (PEER, at(8101))
    air[0].withdraw(next_one)
    assert heard() == (PEER, Addresses())


def test_the_place_that_is_left_is_told_again(air: tuple[Air, Heard]) -> None:
    """Two processes live under one key: the one that was heard last ends first."""
    heard = air[1]
    first, second = announcement("first", PEER, 8100), announcement("second", PEER, 8101)
    for info, place in ((first, at(8100)), (second, at(8101))):
        air[0].announce(info)
        assert heard() == (PEER, place)
    air[0].withdraw(second)
    assert heard() == (PEER, at(8100))


def test_another_peer_that_leaves_takes_nothing_along(air: tuple[Air, Heard]) -> None:
    heard = air[1]
    own, foreign = announcement("own", OWN, 8100), announcement("foreign", PEER, 8100, tag="0" * 16)
    one, other = announcement("one", PEER, 8101), announcement("other", OTHER, 8102)
    air[0].announce(own)
    air[0].announce(foreign)
    for info, peer_id, place in ((one, PEER, at(8101)), (other, OTHER, at(8102))):
        air[0].announce(info)
        assert heard() == (peer_id, place)
    air[0].withdraw(own)
    air[0].withdraw(foreign)
    air[0].withdraw(other)
    assert heard() == (OTHER, Addresses())
    air[0].withdraw(one)
    assert heard() == (PEER, Addresses())
