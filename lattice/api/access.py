"""Who may call what: the table of routes with their classes, and the pure rules that judge a request.

Separate from the middleware that applies them, so that the whole policy is read on one page and
tested without a server. A path that is in no row is not served at all.
"""

from __future__ import annotations

import hmac
import ipaddress
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote_to_bytes

from ..core.addresses import Bind, ip_of
from ..core.errors import ConfigError, LatticeError

if TYPE_CHECKING:
    from ..config import Settings


class RouteClass(Enum):
    """PUBLIC: anybody. PEER: the sealed envelope is the proof. OPERATOR: a program on this machine,
    or whoever holds the token."""

    PUBLIC = "public"
    PEER = "peer"
    OPERATOR = "operator"


@dataclass(frozen=True, slots=True)
class Rule:
    """One row: `path` may end in `{key}`, which takes the rest of the path, slashes and all.

    `status` marks an operator's route that LATTICE_PUBLIC_STATUS opens in a reduced form.
    """

    method: str
    path: str
    kind: RouteClass
    status: bool = False


API: Final = "/api/lattice"
_KEY: Final = "{key}"

RULES: Final[tuple[Rule, ...]] = (
    Rule("GET", f"{API}/p2p/status", RouteClass.OPERATOR, status=True),
    Rule("GET", f"{API}/p2p/identity", RouteClass.OPERATOR),
    Rule("GET", f"{API}/nodes", RouteClass.OPERATOR),
    Rule("GET", f"{API}/forks", RouteClass.OPERATOR),
    Rule("GET", f"{API}/peers", RouteClass.OPERATOR),
    Rule("POST", f"{API}/peers", RouteClass.OPERATOR),
    Rule("DELETE", f"{API}/peers/{_KEY}", RouteClass.OPERATOR),
    Rule("GET", f"{API}/state", RouteClass.OPERATOR, status=True),
    Rule("POST", f"{API}/sync/switch", RouteClass.OPERATOR),
    Rule("POST", f"{API}/sync/messages", RouteClass.PEER),
    Rule("POST", f"{API}/import", RouteClass.OPERATOR),
    Rule("GET", f"{API}/keys", RouteClass.OPERATOR),
    Rule("GET", f"{API}/keys/{_KEY}", RouteClass.OPERATOR),
    Rule("PUT", f"{API}/keys/{_KEY}", RouteClass.OPERATOR),
    Rule("DELETE", f"{API}/keys/{_KEY}", RouteClass.OPERATOR),
    Rule("POST", f"{API}/entries", RouteClass.OPERATOR),
    Rule("GET", f"{API}/entries", RouteClass.OPERATOR),
    Rule("GET", f"{API}/entries/{_KEY}", RouteClass.OPERATOR),
    Rule("GET", f"{API}/history/{_KEY}", RouteClass.OPERATOR),
    Rule("GET", f"{API}/proof/{_KEY}", RouteClass.OPERATOR),
    Rule("GET", f"{API}/events", RouteClass.OPERATOR),
    Rule("GET", "/health", RouteClass.PUBLIC),
    Rule("GET", "/livez", RouteClass.PUBLIC),
    Rule("GET", "/readyz", RouteClass.PUBLIC),
    Rule("GET", "/metrics", RouteClass.OPERATOR, status=True),
    Rule("GET", "/", RouteClass.PUBLIC),
    Rule("GET", "/page/page.css", RouteClass.PUBLIC),
    Rule("GET", "/page/page.js", RouteClass.PUBLIC),
    Rule("GET", "/docs", RouteClass.PUBLIC),
    Rule("GET", "/openapi.json", RouteClass.PUBLIC),
)

_BY_PATH: Final[dict[str, dict[str, Rule]]] = {
    path: {rule.method: rule for rule in RULES if rule.path == path} for path in {rule.path for rule in RULES}
}
_PREFIXES: Final = tuple(path.removesuffix(_KEY) for path in _BY_PATH if path.endswith(_KEY))

_FORWARDING: Final = (b"forwarded", b"via", b"x-real-ip")


def rules_for(path: str) -> dict[str, Rule]:
    """The rules of a raw (still percent-encoded) path by method; empty when it is not served."""
    found = _BY_PATH.get(path)
    if found is not None:
        return found
    for prefix in _PREFIXES:
        if path.startswith(prefix):
            return _BY_PATH[prefix + _KEY]
    return {}


def decode_text(raw: bytes, what: str) -> str:
    """Percent-decode strictly: what is not UTF-8 is refused, never replaced. Raises `bad_request`."""
    try:
        return unquote_to_bytes(raw).decode("utf-8")
    except UnicodeDecodeError as error:
        raise LatticeError("bad_request", f"The {what} is not UTF-8 after percent-decoding.") from error


@dataclass(frozen=True, slots=True)
class Access:
    """Who is let in at one listener. `token` None: operators are those on this machine."""

    bind: Bind
    token: str | None = field(default=None, repr=False)
    allowed_hosts: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    public_status: bool = False

    def __post_init__(self) -> None:
        if self.token is None and not self.bind.is_loopback:
            raise ConfigError(
                f"LATTICE_API_BIND={self.bind} is reachable from other machines and there is no token: "
                "run `lattice init` to make one (LATTICE_API_TOKEN_FILE), or bind to 127.0.0.1"
            )

    @classmethod
    def from_settings(cls, settings: Settings) -> Access:
        """Reads the token file. Raises ConfigError when it is empty, unreadable or needed and missing."""
        return cls(
            settings.api_bind,
            read_token(settings.api_token_file),
            settings.allowed_hosts,
            settings.cors_origins,
            settings.public_status,
        )

    def host_is_allowed(self, host: str) -> bool:
        """Whether a Host header names this node: loopback, the bound address, or a listed name.

        With a wildcard address every IP address does: a web page can make a name of its own point
        here (DNS rebinding), never an address.
        """
        name = host_name(host)
        if name is None:
            return False
        if _is_loopback_name(name) or name == self.bind.host or name in self.allowed_hosts:
            return True
        return self.bind.is_wildcard and ip_of(name) is not None

    def origin_is_allowed(self, origin: str, host: str) -> bool:
        """Whether a page of `origin` may call: it came from this node itself, or it is listed."""
        if origin in self.cors_origins:
            return True
        scheme, separator, place = origin.partition("://")
        return scheme in ("http", "https") and bool(separator) and place.lower() == host.lower()

    def is_operator(self, headers: list[tuple[bytes, bytes]], client: str | None, host: str) -> bool:
        """The rule of operators; Host and Origin have passed already.

        Raises `unauthorized` for a token that is wrong: it is never passed over in silence.
        """
        given = [value for name, value in headers if name == b"authorization"]
        if given:
            if len(given) == 1 and self._token_is(given[0]):
                return True
            raise LatticeError(
                "unauthorized",
                "The token is not this node's: send the content of its LATTICE_API_TOKEN_FILE.",
            )
        name = host_name(host)
        return (
            self.bind.is_loopback
            and client is not None
            and _is_loopback_client(client)
            and name is not None
            and _is_loopback_name(name)
            and not any(is_forwarding(header) for header, _ in headers)
        )

    def _token_is(self, header: bytes) -> bool:
        scheme, _, token = header.strip().partition(b" ")
        return (
            self.token is not None
            and scheme.lower() == b"bearer"
            and hmac.compare_digest(token.strip(), self.token.encode())
        )


def read_token(path: Path) -> str | None:
    """The token in the file, None when there is no file. Raises ConfigError."""
    try:
        token = path.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is no text"
        raise ConfigError(
            f"LATTICE_API_TOKEN_FILE={path} cannot be read ({why}): run as its owner, or delete it and run "
            "`lattice init` to make a new one"
        ) from error
    if not token:
        raise ConfigError(f"LATTICE_API_TOKEN_FILE={path} is empty: delete it and run `lattice init` again")
    return token


def host_name(host: str) -> str | None:
    """The name in a Host header, lower case, without port, brackets and closing dot; None if malformed."""
    text = host.strip().lower()
    if text.startswith("["):
        name, bracket, port = text[1:].partition("]")
        if not bracket or not isinstance(ip_of(name), ipaddress.IPv6Address):
            return None
    else:
        name, colon, digits = text.partition(":")
        port = colon + digits
    if port and not (port.startswith(":") and port[1:].isascii() and port[1:].isdigit()):
        return None
    return name.removesuffix(".") or None


def is_forwarding(header: bytes) -> bool:
    """Whether a header (lower case) shows that a proxy stood in between: then the client's address
    is the proxy's and proves nothing."""
    return header in _FORWARDING or header.startswith(b"x-forwarded-")


def _is_loopback_name(name: str) -> bool:
    address = ip_of(name)
    return address.is_loopback if address is not None else name == "localhost"


def _is_loopback_client(client: str) -> bool:
    address = ip_of(client)
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return address is not None and address.is_loopback
