"""The table of settings: every LATTICE_* name with its default, kind, limit and meaning.

Separate so that `.env.example` and the reference are checked against one place, and so that a new
setting is one row here and one field in Settings.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Final

from ..core.addresses import parse_host, parse_node_url, parse_origin
from ..core.limits import KNOWN_NODES_MAX, NAME_BYTES_MAX
from . import values
from .values import Parse

PREFIX: Final = "LATTICE_"

# Names of earlier versions: they fail loudly, since a directory that is silently ignored would
# start a new network beside the old one.
OBSOLETE: Final = {"LATTICE_STATE_DIR": "LATTICE_DATA_DIR"}


@dataclass(frozen=True, slots=True)
class Setting:
    """One row of the table. `default` and all values are text, as in a file; `field` is the name in
    Settings; a default may hold <name> and <data>, the node's name and its data directory."""

    field: str
    default: str
    parse: Parse
    kind: str
    doc: str
    example: str = ""
    secret: bool = False

    @property
    def name(self) -> str:
        return PREFIX + self.field.removesuffix("_bytes").upper()

    @property
    def flag(self) -> str:
        return "--" + self.name.removeprefix(PREFIX).lower().replace("_", "-")


_MULTIADDRS: Final = "multiaddrs, separated by commas"
_HOSTS: Final = "host names, separated by commas"
_SECONDS: Final = "seconds, {} to {}"

SETTINGS: Final[tuple[Setting, ...]] = (
    Setting(
        "node_name",
        "nodeA",
        values.name,
        f"text, up to {NAME_BYTES_MAX} characters",
        "The name that people read: in logs, in status, and in the default directory of the data. "
        "Other nodes know this one by its peer id.",
    ),
    Setting(
        "data_dir",
        "data/<name>",
        values.path,
        "directory, relative to the project",
        "The identity, the network and the ledger. One running node per directory. Back it up.",
    ),
    Setting(
        "log_dir",
        "logs",
        values.path,
        "directory, relative to the project",
        "Where <name>.log and its older parts are written.",
    ),
    Setting(
        "log_level",
        "INFO",
        values.one_of("DEBUG", "INFO", "WARNING", "ERROR"),
        "DEBUG, INFO, WARNING or ERROR",
        "DEBUG also shows what the libraries say.",
    ),
    Setting(
        "log_format",
        "text",
        values.one_of("text", "json"),
        "text or json",
        "json writes one object a line, for a collector.",
    ),
    Setting(
        "api_bind",
        "127.0.0.1:8000",
        values.bind,
        "HOST:PORT",
        "The listener of programs and operators: every route. On an address beyond loopback each "
        "request that changes or reads the ledger needs the token.",
    ),
    Setting(
        "api_token_file",
        "<data>/api.token",
        values.path,
        "file, relative to the project",
        "The bearer token of operators, made by `lattice init`, readable by its owner only.",
    ),
    Setting(
        "allowed_hosts",
        "",
        values.list_of(parse_host),
        _HOSTS,
        "Names under which the API may be called, beside loopback and the bound address. Any other "
        "Host header is refused, so that a web page cannot reach the node by a name of its own.",
        example="ledger.example.org",
    ),
    Setting(
        "cors_origins",
        "",
        values.list_of(parse_origin),
        "origins, separated by commas",
        "Origins whose pages may call the API from a browser.",
        example="https://ledger.example.org",
    ),
    Setting(
        "public_status",
        "false",
        values.boolean,
        "true or false",
        "Opens status and roots (no values, no addresses) to everybody who reaches the API.",
    ),
    Setting(
        "sync_bind",
        "0.0.0.0:8100",
        values.bind_or_off,
        "HOST:PORT or off",
        "The listener of other nodes, the second lung: sync messages and /health, nothing else. "
        "off where one port must do; other nodes then call the API's address.",
    ),
    Setting(
        "sync_public_url",
        "",
        values.node_url,
        "URL",
        "The address that other nodes should call, where a proxy or a port mapping stands in front.",
        example="https://ledger.example.org/nodeA",
    ),
    Setting(
        "tls_ca_file",
        "",
        values.existing_file,
        "file, relative to the project",
        "Certificate authorities to trust for https:// nodes, in place of the system's.",
        example="certs/ca.pem",
    ),
    Setting(
        "p2p_enabled",
        "true",
        values.boolean,
        "true or false",
        "false leaves the P2P lung off: HTTP from the first second, without alarm.",
    ),
    Setting(
        "p2p_listen",
        "/ip4/0.0.0.0/tcp/9000",
        values.list_of(values.listen),
        _MULTIADDRS,
        "Where the P2P lung listens. TCP only.",
    ),
    Setting(
        "p2p_announce",
        "",
        values.list_of(values.announce),
        _MULTIADDRS,
        "Addresses told to others instead of those of the network interfaces: behind NAT, the outer one.",
        example="/ip4/198.51.100.7/tcp/9000",
    ),
    Setting(
        "p2p_bootstrap",
        "",
        values.list_of(values.bootstrap),
        _MULTIADDRS + ", each with /p2p/PEER_ID",
        "Peers to dial besides those that the ticket and other nodes name.",
        example="/ip4/192.0.2.7/tcp/9000/p2p/12D3KooWEyoppNCUx8Yx66oV9fJnriXwCcXwDDUA2kj6vnc6iDEp",
    ),
    Setting(
        "p2p_topic",
        "",
        values.topic,
        "text, up to 128 characters",
        "The gossip topic. Empty: made from the network id, which is what nearly everybody wants.",
        example="lattice-test",
    ),
    Setting(
        "nodes",
        "",
        values.list_of(parse_node_url, maximum=KNOWN_NODES_MAX),
        "URLs, separated by commas",
        "Base URLs of other nodes, by their sync or their API address. They are polled over HTTP when "
        "they are not heard over P2P.",
        example="http://192.0.2.7:8100,http://192.0.2.8:8100",
    ),
    Setting(
        "join",
        "",
        values.ticket,
        "a ticket, or @FILE",
        "The ticket of the network to join at the first start. It holds the network key: keep it secret. "
        "A node that has data keeps its network; the ticket of another one is an error.",
        example="@ticket.txt",
        secret=True,
    ),
    Setting(
        "mdns",
        "false",
        values.boolean,
        "true or false",
        "Finds nodes of the same network on the local network by multicast DNS, and announces this one "
        "there: its peer id, addresses and ports are then seen by everybody on that network.",
    ),
    Setting(
        "sync_mode",
        "auto",
        values.one_of("auto", "p2p", "http"),
        "auto, p2p or http",
        "The policy of the first start; a later switch is remembered with the data. auto falls back to "
        "HTTP, and returns, by itself.",
    ),
    Setting(
        "heartbeat_interval_s",
        "5",
        values.seconds(0.1, 15),
        _SECONDS.format("0.1", "15"),
        "Time between two beats with a peer. Smaller notices a silent peer sooner and costs more.",
    ),
    Setting(
        "peerless_timeout_s",
        "60",
        values.seconds(1, 3600),
        _SECONDS.format("1", "3600"),
        "A peer not heard over P2P for this long is polled over HTTP. "
        "At least twice the heartbeat and a second.",
    ),
    Setting(
        "http_poll_interval_s",
        "10",
        values.seconds(0.1, 3600),
        _SECONDS.format("0.1", "3600"),
        "Time between two HTTP rounds while peers are polled.",
    ),
    Setting(
        "disk_reserve_bytes",
        "256MiB",
        values.size,
        "bytes, or with KiB, MiB, GiB",
        "Free space that the node leaves on the disk of its data: an alarm at twice this, and below it "
        "no writes.",
    ),
)


def closest(name: str) -> str | None:
    """The setting that a mistyped name probably means."""
    found = difflib.get_close_matches(name.upper(), [setting.name for setting in SETTINGS], n=1, cutoff=0.6)
    return found[0] if found else None
