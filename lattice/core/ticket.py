"""Networks and tickets: the genesis of a network, and the one string that lets a machine join it.

Separate because both are formats that outlive processes: a network id is the hash of its genesis,
and a ticket is what a person carries to a second machine.
"""

from __future__ import annotations

import base64
import binascii
import re
from hashlib import sha256
from typing import Final, NamedTuple

from .codec import Reader, Writer
from .errors import LatticeError, MalformedError
from .limits import ADDRESS_BYTES_MAX, ADDRESSES_MAX, NAME_BYTES_MAX
from .messages import Addresses

NETWORK_KEY_BYTES: Final = 32
_GENESIS_TAG: Final = b"lattice/genesis/v1\0"
_PREFIX: Final = "lattice1-"
_CHECK_BYTES: Final = 6
_TICKET_LIKE: Final = re.compile(rf"{_PREFIX}[\w-]+", re.IGNORECASE)
_GENESIS_BYTES_MAX: Final = 4096
_ADMINS_MAX: Final = 64
_PEERS_MAX: Final = 16


class Genesis(NamedTuple):
    """What a network is: its name, the public keys of its admins, and a nonce of 32 bytes."""

    name: str
    admins: tuple[bytes, ...]
    nonce: bytes

    def pack(self) -> bytes:
        writer = Writer().raw(_GENESIS_TAG).text(self.name).u32(len(self.admins))
        for admin in sorted(self.admins):
            writer.raw(admin)
        return writer.raw(self.nonce).done()


def parse_genesis(data: bytes) -> Genesis:
    """Raises MalformedError."""
    reader = Reader(data)
    if reader.take(len(_GENESIS_TAG)) != _GENESIS_TAG:
        raise MalformedError("this is not a genesis of version 1")
    name = reader.text(NAME_BYTES_MAX)
    admins = tuple(reader.take(32) for _ in range(reader.count(_ADMINS_MAX)))
    nonce = reader.take(32)
    reader.end()
    return Genesis(name, admins, nonce)


def network_id_of(genesis: bytes) -> bytes:
    """SHA-256 of the genesis bytes."""
    return sha256(genesis).digest()


class TicketPeer(NamedTuple):
    """A node that the ticket's holder can start from."""

    public_key: bytes
    name: str
    addresses: Addresses


class Ticket(NamedTuple):
    """Genesis bytes, the network key with its number, and where to find the first peers."""

    genesis: bytes
    key_number: int
    network_key: bytes
    peers: tuple[TicketPeer, ...]


def hide_tickets(text: str) -> str:
    """The text without the tickets in it, cut or mistyped ones included: people paste them into the wrong
    setting, and a message that quotes what it complains about would show the network key."""
    return _TICKET_LIKE.sub(f"{_PREFIX}[hidden]", text)


def encode_ticket(ticket: Ticket) -> str:
    """One word without spaces; it holds the network key, so it is a secret."""
    writer = Writer().blob(ticket.genesis).u32(ticket.key_number).raw(ticket.network_key)
    writer.u32(len(ticket.peers))
    for peer in ticket.peers:
        writer.raw(peer.public_key).text(peer.name)
        for group in peer.addresses:
            writer.u32(len(group))
            for address in group:
                writer.text(address)
    body = writer.done()
    check = sha256(b"lattice/ticket/v1\0" + body).digest()[:_CHECK_BYTES]
    return _PREFIX + base64.urlsafe_b64encode(check + body).decode("ascii").rstrip("=")


def decode_ticket(text: str) -> Ticket:
    """Raises LatticeError `ticket` with what is wrong: no ticket at all, or one cut or mistyped."""
    text = text.strip()
    if not text.startswith(_PREFIX):
        raise LatticeError("ticket", f"this is not a ticket: a ticket starts with {_PREFIX!r}")
    encoded = text[len(_PREFIX) :]
    try:
        raw = base64.b64decode(encoded + "=" * (-len(encoded) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise LatticeError("ticket", _DAMAGED) from error
    check, body = raw[:_CHECK_BYTES], raw[_CHECK_BYTES:]
    if sha256(b"lattice/ticket/v1\0" + body).digest()[:_CHECK_BYTES] != check:
        raise LatticeError("ticket", _DAMAGED)
    try:
        return _decode_body(Reader(body))
    except MalformedError as error:
        raise LatticeError("ticket", f"the ticket is of another version: {error}") from error


def _decode_body(reader: Reader) -> Ticket:
    genesis = reader.blob(_GENESIS_BYTES_MAX)
    parse_genesis(genesis)
    number, key = reader.u32(), reader.take(NETWORK_KEY_BYTES)
    peers = []
    for _ in range(reader.count(_PEERS_MAX)):
        public_key, name = reader.take(32), reader.text(NAME_BYTES_MAX)
        groups = [
            tuple(reader.text(ADDRESS_BYTES_MAX) for _ in range(reader.count(ADDRESSES_MAX)))
            for _ in range(2)
        ]
        peers.append(TicketPeer(public_key, name, Addresses(*groups)))
    reader.end()
    return Ticket(genesis, number, key, tuple(peers))


_DAMAGED: Final = "the ticket is cut off or mistyped; copy the whole word that `lattice invite` printed"
