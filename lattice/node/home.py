"""A node's home: the files of its data directory that make it this node of this network.

Separate because these few small files (identity, network, token) are what must never be lost,
overwritten or shown, and three commands and the daemon all need them.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import orjson

from ..config import Settings
from ..core.errors import ConfigError, LatticeError, MalformedError
from ..core.identity import SEED_BYTES, NodeKey, peer_id_of
from ..core.messages import Addresses
from ..core.ticket import (
    NETWORK_KEY_BYTES,
    Genesis,
    Ticket,
    TicketPeer,
    decode_ticket,
    encode_ticket,
    network_id_of,
    parse_genesis,
)
from ..storage.datadir import STORE_FILE, open_reader, refuse_foreign
from .interfaces import reachable_hosts

IDENTITY_FILE: Final = "identity.key"
NETWORK_FILE: Final = "network.json"
_TOKEN_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class Home:
    """Who this node is and which network it is of. Its repr shows no secret."""

    path: Path
    seed: bytes = field(repr=False)
    genesis: bytes
    network_keys: dict[int, bytes] = field(repr=False)
    peers: tuple[TicketPeer, ...]

    @property
    def key(self) -> NodeKey:
        return NodeKey(self.seed)

    @property
    def network_id(self) -> bytes:
        return network_id_of(self.genesis)

    @property
    def network_name(self) -> str:
        return parse_genesis(self.genesis).name


def has_home(settings: Settings) -> bool:
    """Whether `init` has run for this data directory, or anything is left of a node that had one."""
    return _any_of(settings.data_dir, IDENTITY_FILE, NETWORK_FILE, STORE_FILE)


def init_home(settings: Settings, join: str | None) -> Home:
    """Make identity, network (a new one, or that of the ticket `join`) and API token.

    What exists is kept: joining the network that this node is of already changes nothing but adds
    the ticket's peers. Raises ConfigError for a ticket of another network, LatticeError `ticket`
    for one that cannot be read.
    """
    ticket = decode_ticket(join) if join else None
    data_dir = settings.data_dir
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        data_dir.chmod(0o700)
        seed = _read_seed(data_dir)
        if seed is None:
            _refuse_missing(data_dir, IDENTITY_FILE, NETWORK_FILE, STORE_FILE)
            seed = secrets.token_bytes(SEED_BYTES)
            _write_secret(data_dir / IDENTITY_FILE, seed.hex().encode() + b"\n")
        home = _read_network(data_dir, seed)
        if home is None:
            if ticket is None:
                _refuse_missing(data_dir, NETWORK_FILE, STORE_FILE)
            home = _new_network(settings, seed, ticket)
            _refuse_foreign_store(home)
            _write_network(home)
        elif ticket is not None:
            home = _with_ticket(home, ticket)
            _write_network(home)
        if not settings.api_token_file.exists():
            settings.api_token_file.parent.mkdir(parents=True, exist_ok=True)
            _write_secret(settings.api_token_file, secrets.token_hex(_TOKEN_BYTES).encode() + b"\n")
    except OSError as error:
        raise _unusable(data_dir, error) from error
    return home


def load_home(settings: Settings) -> Home:
    """Read what `init_home` made. Raises ConfigError with the way out."""
    try:
        seed = _read_seed(settings.data_dir)
        if seed is None:
            _refuse_missing(settings.data_dir, IDENTITY_FILE, NETWORK_FILE, STORE_FILE)
        home = _read_network(settings.data_dir, seed) if seed is not None else None
        if home is None:
            _refuse_missing(settings.data_dir, NETWORK_FILE, STORE_FILE)
    except OSError as error:
        raise _unusable(settings.data_dir, error) from error
    if home is None:
        raise ConfigError(
            f"there is no node in {settings.data_dir}: run `lattice init`, or `lattice init --join TICKET`"
        )
    return home


def make_ticket(home: Home, settings: Settings) -> tuple[str, list[str]]:
    """A ticket for another machine, and the addresses that it names, for the operator to see."""
    addresses = announced(home, settings)
    own = TicketPeer(home.key.public_key, settings.node_name, addresses)
    others = [peer for peer in home.peers if peer.public_key != own.public_key]
    number = max(home.network_keys)
    ticket = Ticket(home.genesis, number, home.network_keys[number], (own, *others)[:16])
    return encode_ticket(ticket), [*addresses.p2p, *addresses.http]


def announced(home: Home, settings: Settings, listening: Iterable[str] = ()) -> Addresses:
    """Where other nodes reach this one: as configured, else the machine's concrete addresses.

    `listening`: the multiaddrs on which the running P2P lung really listens, if it runs.
    """
    peer_id = home.key.peer_id
    p2p: list[str] = []
    if settings.p2p_enabled:
        if settings.p2p_announce:
            p2p = [str(address) for address in settings.p2p_announce]
        elif listening:
            p2p = list(listening)
        else:
            for address in settings.p2p_listen:
                hosts = reachable_hosts(address.protocol == "ip6") if address.is_wildcard else [address.host]
                p2p += [f"/{address.protocol}/{host}/tcp/{address.port}" for host in hosts]
    p2p = [text if "/p2p/" in text else f"{text}/p2p/{peer_id}" for text in p2p]
    return Addresses(tuple(p2p[:16]), tuple(_http_urls(settings)[:16]))


def _http_urls(settings: Settings) -> list[str]:
    if settings.sync_public_url:
        return [settings.sync_public_url]
    bind = settings.sync_bind or settings.api_bind
    if bind.is_wildcard:
        hosts = reachable_hosts(":" in bind.host)
    else:
        hosts = [bind.host]
    return [f"http://[{host}]:{bind.port}" if ":" in host else f"http://{host}:{bind.port}" for host in hosts]


def _new_network(settings: Settings, seed: bytes, ticket: Ticket | None) -> Home:
    if ticket is not None:
        keys = {ticket.key_number: ticket.network_key}
        return Home(settings.data_dir, seed, ticket.genesis, keys, ticket.peers)
    key = NodeKey(seed)
    genesis = Genesis(f"network of {settings.node_name}"[:60], (key.public_key,), secrets.token_bytes(32))
    keys = {1: secrets.token_bytes(NETWORK_KEY_BYTES)}
    return Home(settings.data_dir, seed, genesis.pack(), keys, ())


def _with_ticket(home: Home, ticket: Ticket) -> Home:
    if network_id_of(ticket.genesis) != home.network_id:
        raise ConfigError(
            f"the ticket is of another network ({network_id_of(ticket.genesis).hex()[:16]}…) than the data "
            f"in {home.path} ({home.network_id.hex()[:16]}…): choose another LATTICE_DATA_DIR to join it"
        )
    own = home.key.public_key
    known = {peer.public_key: peer for peer in home.peers}
    known.update({peer.public_key: peer for peer in ticket.peers if peer.public_key != own})
    keys = {**home.network_keys, ticket.key_number: ticket.network_key}
    return Home(home.path, home.seed, home.genesis, keys, tuple(known.values()))


def _read_seed(data_dir: Path) -> bytes | None:
    path = data_dir / IDENTITY_FILE
    raw = _read_secret(path)
    if raw is None:
        return None
    try:
        seed = bytes.fromhex(raw.decode("ascii").strip())
    except ValueError:  # a UnicodeDecodeError is one as well
        seed = b""
    if len(seed) != SEED_BYTES:
        raise ConfigError(f"{path} is damaged (64 hex digits expected): restore it from a backup")
    return seed


def _read_secret(path: Path) -> bytes | None:
    """A file that only its owner may read; None when it is not there."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return None
    except PermissionError as error:
        raise ConfigError(f"{path} is not readable by this user: run as its owner, or chown it") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}): restore it from a backup") from error
    _refuse_open_to_others(path)
    return raw


def _refuse_missing(data_dir: Path, name: str, *beside: str) -> None:
    """Say that a file is gone where others show that there was a node: a new one would leave its
    ledger, or its name, behind."""
    if _any_of(data_dir, *beside):
        again = ", or join its network again with a ticket" if name == NETWORK_FILE else ""
        raise ConfigError(
            f"{data_dir / name} is missing beside existing data: restore it from a backup{again}, or choose "
            "another LATTICE_DATA_DIR for a new node"
        )


def _any_of(data_dir: Path, *names: str) -> bool:
    """Whether any of these is in the directory. Raises ConfigError where nobody may look: not to see a
    node is not to have none."""
    for name in names:
        try:
            (data_dir / name).lstat()
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise _unusable(data_dir, error) from error
        return True
    return False


def _refuse_foreign_store(home: Home) -> None:
    """A ticket brought the network back, or another one: the store says which."""
    if not (home.path / STORE_FILE).exists():
        return
    reader = open_reader(home.path)
    try:
        refuse_foreign(reader, home.network_id)
    finally:
        reader.close()


def _unusable(data_dir: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"the data directory {data_dir} cannot be used ({error.strerror or error}): make it a directory that "
        "this user may read and write, or choose another LATTICE_DATA_DIR"
    )


def _refuse_open_to_others(path: Path) -> None:
    if os.name == "posix" and stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise ConfigError(f"{path} is readable by others: run `chmod 600 {path}`")


def _read_network(data_dir: Path, seed: bytes) -> Home | None:
    path = data_dir / NETWORK_FILE
    raw = _read_secret(path)
    if raw is None:
        return None
    damaged = f"{path} is damaged: restore it from a backup, or move it aside and join again with a ticket"
    try:
        row = orjson.loads(raw)
        genesis = bytes.fromhex(row["genesis"])
        parse_genesis(genesis)
        keys = {int(number): bytes.fromhex(text) for number, text in row["keys"].items()}
        peers = tuple(
            TicketPeer(
                bytes.fromhex(peer["key"]), peer["name"], Addresses(tuple(peer["p2p"]), tuple(peer["http"]))
            )
            for peer in row["peers"]
        )
    except (ValueError, KeyError, TypeError, AttributeError, MalformedError) as error:
        raise ConfigError(damaged) from error
    if not keys or any(len(key) != NETWORK_KEY_BYTES for key in keys.values()):
        raise ConfigError(damaged)
    return Home(data_dir, seed, genesis, keys, peers)


def _write_network(home: Home) -> None:
    row = {
        "network_id": home.network_id.hex(),
        "genesis": home.genesis.hex(),
        "keys": {str(number): key.hex() for number, key in home.network_keys.items()},
        "peers": [
            {
                "id": peer_id_of(peer.public_key),
                "key": peer.public_key.hex(),
                "name": peer.name,
                "p2p": peer.addresses.p2p,
                "http": peer.addresses.http,
            }
            for peer in home.peers
        ],
    }
    _write_secret(home.path / NETWORK_FILE, orjson.dumps(row, option=orjson.OPT_INDENT_2) + b"\n")


def _write_secret(path: Path, data: bytes) -> None:
    """Write under a temporary name, sync, rename: a crash leaves the old file or the new one."""
    temporary = path.with_name(path.name + ".new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    if os.name == "posix":
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def ticket_error(error: LatticeError) -> ConfigError:
    """A ticket that cannot be used, as the configuration mistake it is at start."""
    return ConfigError(f"LATTICE_JOIN: {error.message}")
