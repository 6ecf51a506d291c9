"""How addresses are written: listeners, multiaddrs, node URLs, origins and host names.

Separate because settings, tickets, the peers route and a remote `Hello` all carry addresses, and
each of them must be judged by the same rules without loading libp2p or asking a resolver.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Final, Literal
from urllib.parse import SplitResult, urlsplit

from .errors import LatticeError, MalformedError
from .identity import public_key_of
from .limits import ADDRESS_BYTES_MAX

PeerIdRule = Literal["required", "optional", "forbidden"]
IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

PORT_MAX: Final = 65535
_BROADCAST: Final = ipaddress.IPv4Address("255.255.255.255")
HOST_CHARS_MAX: Final = 253  # RFC 1035, section 2.3.4, as text
_LABEL: Final = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)")
_DIGITS: Final = re.compile(r"[0-9]{1,5}")
_IP_PROTOCOLS: Final = ("ip4", "ip6")
_NAME_PROTOCOLS: Final = ("dns", "dns4", "dns6")


@dataclass(frozen=True, slots=True)
class Bind:
    """Where a listener listens. `host` is an IP address or a name, IPv6 without its brackets."""

    host: str
    port: int

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the listener."""
        address = ip_of(self.host)
        return address.is_loopback if address else self.host == "localhost"

    @property
    def is_wildcard(self) -> bool:
        """Whether the listener takes every address of the machine."""
        address = ip_of(self.host)
        return bool(address and address.is_unspecified)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class TcpMultiaddr:
    """A multiaddr of the one form that the P2P lung uses: host, TCP port, perhaps a peer id."""

    protocol: str
    host: str
    port: int
    peer_id: str | None = None

    @property
    def is_wildcard(self) -> bool:
        address = ip_of(self.host)
        return bool(address and address.is_unspecified)

    def __str__(self) -> str:
        tail = f"/p2p/{self.peer_id}" if self.peer_id else ""
        return f"/{self.protocol}/{self.host}/tcp/{self.port}{tail}"


def ip_of(host: str) -> IpAddress | None:
    """The IP address that `host` spells, or None for a name."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def source_of(host: str) -> str:
    """For whom the sender at this address counts where senders are bounded: an IPv6 sender owns its whole
    /64, and an IPv4 address may come in the clothes of IPv6."""
    address = ip_of(host.partition("%")[0])
    if not isinstance(address, ipaddress.IPv6Address):
        return host if address is None else str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, 64), strict=False))


def is_unroutable(address: IpAddress) -> bool:
    """Whether no node is ever reached there: link-local (it means something only together with an
    interface, and the metadata of clouds lives there), multicast, broadcast, unspecified."""
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    judged = mapped or address
    return judged.is_link_local or judged.is_multicast or judged.is_unspecified or judged == _BROADCAST


def is_loopback_host(host: str) -> bool:
    """Whether a host, as a name or an address, is this very machine."""
    address = ip_of(host)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    judged = mapped or address
    if judged is None:
        name = host.removesuffix(".")
        return name == "localhost" or name.endswith(".localhost")  # RFC 6761, section 6.3
    return judged.is_loopback


def host_of_url(url: str) -> str:
    """The host in a base URL that `parse_node_url` has made."""
    return urlsplit(url).hostname or ""


def parse_bind(text: str) -> Bind:
    """`HOST:PORT` or `[IPV6]:PORT`; port 0 lets the system choose. Raises MalformedError."""
    host, colon, port = text.rpartition(":")
    if not colon or not host:
        raise MalformedError("write HOST:PORT, for example 127.0.0.1:8000")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        if not isinstance(ip_of(host), ipaddress.IPv6Address):
            raise MalformedError(f"{host!r} is not an IPv6 address")
    elif ":" in host:
        raise MalformedError("write an IPv6 address in brackets, for example [::1]:8000")
    return Bind(parse_host(host), _port(port, minimum=0))


def parse_host(text: str) -> str:
    """A host name or IP address (IPv6 without brackets), in lower case. Raises MalformedError."""
    address = ip_of(text)
    if address is not None:
        return str(address)
    labels = text.removesuffix(".").split(".")
    if len(text) > HOST_CHARS_MAX or not all(_LABEL.fullmatch(label) for label in labels):
        raise MalformedError(f"{text!r} is not a host name or an IP address")
    if labels[-1].isdigit():  # 10.0.0.256 is a mistyped address and never a name
        raise MalformedError(f"{text!r} is not an IP address")
    return text.lower()


def parse_multiaddr(text: str, *, peer_id: PeerIdRule = "optional", concrete: bool = False) -> TcpMultiaddr:
    """`/ip4/ADDRESS/tcp/PORT`, also `ip6`, `dns`, `dns4`, `dns6`, with or without `/p2p/PEER_ID`.

    `concrete` refuses what nobody can dial: 0.0.0.0, :: and port 0. Raises MalformedError.
    """
    parts = text.split("/")
    if len(text) > ADDRESS_BYTES_MAX or parts[0] or len(parts) not in (5, 7):
        raise MalformedError("write /ip4/ADDRESS/tcp/PORT, for example /ip4/192.0.2.7/tcp/9000")
    protocol, host, transport, port_text = parts[1:5]
    if transport != "tcp":
        raise MalformedError(f"the P2P lung speaks tcp, not {transport!r}")
    address = TcpMultiaddr(
        protocol, _multiaddr_host(protocol, host), _port(port_text, minimum=0), _multiaddr_peer(parts[5:])
    )
    if peer_id == "required" and address.peer_id is None:
        raise MalformedError("the peer id is missing: end the address with /p2p/PEER_ID")
    if peer_id == "forbidden" and address.peer_id is not None:
        raise MalformedError("leave out /p2p/PEER_ID here")
    if concrete and (address.is_wildcard or address.port == 0):
        raise MalformedError("nobody can dial this address: name a concrete one")
    return address


def parse_node_url(text: str) -> str:
    """The base URL of a node: http or https, perhaps with a path prefix; without a closing slash.

    Raises MalformedError.
    """
    parts, host = _split_url(text)
    address = ip_of(host)
    if address is not None and address.is_unspecified:
        raise MalformedError(f"{host} is no address that can be called: name the machine")
    if parts.query or parts.fragment:
        raise MalformedError("write the base address of the node, without ? and #")
    return f"{_origin(parts, host)}{parts.path.rstrip('/')}"


def parse_origin(text: str) -> str:
    """A browser's origin (RFC 6454): scheme, host and port, nothing else. Raises MalformedError."""
    if text == "*":
        raise MalformedError("name each origin: * would let every page in a browser drive this node")
    parts, host = _split_url(text)
    if parts.path.rstrip("/") or parts.query or parts.fragment:
        raise MalformedError("an origin ends after the port")
    return _origin(parts, host)


def _split_url(text: str) -> tuple[SplitResult, str]:
    if not text.isascii() or len(text) > ADDRESS_BYTES_MAX or not text.isprintable() or " " in text:
        raise MalformedError(f"a URL has at most {ADDRESS_BYTES_MAX} printable ASCII characters")
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise MalformedError(f"not a URL: {error}") from error
    if parts.scheme not in ("http", "https"):
        raise MalformedError("a URL starts with http:// or https://, for example http://192.0.2.7:8100")
    if parts.username is not None or parts.password is not None:
        raise MalformedError("a URL here carries no user and no password")
    if not parts.hostname or port == 0:
        raise MalformedError("the URL names no host, or port 0")
    return parts, parse_host(parts.hostname)


def _origin(parts: SplitResult, host: str) -> str:
    shown = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{shown}" + (f":{parts.port}" if parts.port is not None else "")


def _multiaddr_host(protocol: str, host: str) -> str:
    if protocol in _NAME_PROTOCOLS:
        return parse_host(host)
    if protocol not in _IP_PROTOCOLS:
        known = ", ".join((*_IP_PROTOCOLS, *_NAME_PROTOCOLS))
        raise MalformedError(f"an address starts with one of {known}, not {protocol!r}")
    address = ip_of(host)
    if address is None or address.version != (4 if protocol == "ip4" else 6):
        raise MalformedError(f"{host!r} is not an {protocol} address")
    return str(address)


def _multiaddr_peer(parts: list[str]) -> str | None:
    if not parts:
        return None
    if parts[0] != "p2p":
        raise MalformedError(f"after the port comes /p2p/PEER_ID, not /{parts[0]}")
    try:
        public_key_of(parts[1])
    except LatticeError as error:
        raise MalformedError(error.message) from error
    return parts[1]


def _port(text: str, *, minimum: int) -> int:
    if not _DIGITS.fullmatch(text) or not minimum <= int(text) <= PORT_MAX:
        raise MalformedError(f"{text!r} is not a port ({minimum} to {PORT_MAX})")
    return int(text)
