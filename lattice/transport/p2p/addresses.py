"""Multiaddrs in and out: what to announce, what a dial resolves to, and whether a port is free.

Separate because all of it is about the machine and none about peers, so it can be tested without a
host.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import sys
from collections.abc import Iterable, Sequence
from typing import Final

import ifaddr
import trio
from multiaddr import Multiaddr
from multiaddr.exceptions import Error as MultiaddrError

_DNS: Final = {"dns": socket.AF_UNSPEC, "dns4": socket.AF_INET, "dns6": socket.AF_INET6}


class AddressError(ValueError):
    """A multiaddr that this host cannot listen on, announce or dial, or a port that is taken."""


def parse(text: str) -> Multiaddr:
    """A TCP multiaddr from text, its `/p2p/…` end cut off. Raises AddressError."""
    try:
        address = Multiaddr(text)
        names = [protocol.name for protocol in address.protocols()]
    except (MultiaddrError, ValueError, TypeError) as error:
        raise AddressError(f"{text!r} is not a multiaddr: {error}") from error
    if "p2p" in names:
        address = address.decapsulate_code(421)  # multicodec of p2p
        names = names[: names.index("p2p")]
    if len(names) != 2 or names[1] != "tcp" or names[0] not in {"ip4", "ip6", *_DNS}:
        raise AddressError(f"{text!r} is not of the form /ip4|ip6|dns|dns4|dns6/HOST/tcp/PORT")
    return address


def host_and_port(address: Multiaddr) -> tuple[str, str, int]:
    """The first protocol's name, its value and the TCP port of an address that `parse` accepted."""
    (first, host), (_tcp, port) = list(address.items())[:2]
    return first.name, str(host), int(str(port))


def check_listen(text: str) -> Multiaddr:
    """The address to listen on. Raises AddressError for a name instead of an address."""
    address = parse(text)
    kind, _host, _port = host_and_port(address)
    if kind in _DNS:
        raise AddressError(f"{text!r}: listen on an address, not on a name")
    return address


def probe_port(address: Multiaddr) -> None:
    """Raise AddressError when another process listens there.

    libp2p listens with SO_REUSEPORT: two nodes on one port both start without an error, and each
    gets some of the other's connections.
    """
    kind, host, port = host_and_port(address)
    if port == 0:
        return
    family = socket.AF_INET6 if kind == "ip6" else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        if sys.platform == "win32":  # there SO_REUSEADDR would take the port away from its owner
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        else:  # our own last connections may still be in TIME_WAIT; they are no listener
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if kind == "ip6":
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise AddressError(
                    f"port busy: something already listens on {address}; stop it, or choose another port in "
                    "LATTICE_P2P_LISTEN"
                ) from error
            raise AddressError(
                f"cannot listen on {address} ({error.strerror}); choose an address of this machine and a "
                "port above 1023 in LATTICE_P2P_LISTEN"
            ) from error


def concrete(addresses: Iterable[Multiaddr]) -> list[Multiaddr]:
    """Replace 0.0.0.0 and :: by the addresses of this machine's interfaces.

    Loopback is left out as soon as there is anything else, link-local always: neither means anything
    to another machine.
    """
    found: dict[str, Multiaddr] = {}
    for address in addresses:
        kind, host, port = host_and_port(address)
        if kind in _DNS or not ipaddress.ip_address(host).is_unspecified:
            found.setdefault(str(address), address)
            continue
        for local in _interface_addresses(6 if kind == "ip6" else 4):
            text = f"/{kind}/{local}/tcp/{port}"
            found.setdefault(text, Multiaddr(text))
    return list(found.values())


def _interface_addresses(version: int) -> list[str]:
    loopback: list[str] = []
    others: list[str] = []
    for adapter in ifaddr.get_adapters():
        for entry in adapter.ips:
            # An IPv6 entry is (address, flow, scope).
            address = ipaddress.ip_address(entry.ip if isinstance(entry.ip, str) else entry.ip[0])
            if address.version != version or address.is_link_local or address.is_unspecified:
                continue
            (loopback if address.is_loopback else others).append(str(address))
    return others or loopback


async def resolve(texts: Sequence[str], limit: int) -> list[Multiaddr]:
    """Addresses to dial, best first, names looked up anew; what cannot be used is left out."""
    found: dict[str, Multiaddr] = {}
    for text in texts:
        if len(found) >= limit:
            break
        try:
            address = parse(text)
            kind, host, port = host_and_port(address)
            if kind not in _DNS:
                found.setdefault(str(address), address)
                continue
            rows = await trio.socket.getaddrinfo(host, port, family=_DNS[kind], type=socket.SOCK_STREAM)
        except (AddressError, OSError):
            continue
        for family, _type, _proto, _name, target in rows:
            version = "ip6" if family == socket.AF_INET6 else "ip4"
            resolved = f"/{version}/{target[0]}/tcp/{port}"
            found.setdefault(resolved, Multiaddr(resolved))
    return list(found.values())[:limit]
