"""The structures of docs/reference/wire.md as bytes and back, written from that page alone.

Separate from the product, of which nothing is imported here: that the page suffices is what the tests
beside this module show. Numbers in comments are sections of the page.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from nacl.bindings import crypto_core_ed25519_is_valid_point, crypto_sign_open
from nacl.exceptions import CryptoError
from nacl.signing import SigningKey

ZERO32: Final = bytes(32)
NOTHING: Final = 2**64 - 1
OPEN: Final = 2**64 - 1
HEADER_BYTES: Final = 127
SEAL_BYTES: Final = 144
ENTRY_BYTES_MAX: Final = 262_144
OPS_MAX: Final = 256
KEY_BYTES_MAX: Final = 1024
VALUE_BYTES_MAX: Final = 131_072
NAMES_MAX: Final = 256
AMOUNT_MAX: Final = 2**53 - 1
SEALED_EVERY: Final = 64
SEALED_ABOVE_BYTES: Final = 16_384
ENVELOPE_BYTES_MAX: Final = 4_194_304
HEADS_AT_ONCE_MAX: Final = 16_384
AUTHORS_AT_ONCE_MAX: Final = 4096
PUT, DELETE, ADD = 1, 2, 3
HELLO, BEAT, HEADS, WANT, ENTRIES, PROOF = 1, 2, 3, 4, 5, 6
FORK_PROOF, PATH = 1, 2
_BASE58: Final = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"


class Malformed(Exception):
    """The bytes are not what the page says; nothing of them may be used."""


def sha(*parts: bytes) -> bytes:
    return hashlib.sha256(b"".join(parts)).digest()


def tag(what: str) -> bytes:
    return f"lattice/{what}/v1".encode() + b"\0"


def u8(value: int) -> bytes:
    return value.to_bytes(1, "big")


def u16(value: int) -> bytes:
    return value.to_bytes(2, "big")


def u32(value: int) -> bytes:
    return value.to_bytes(4, "big")


def u64(value: int) -> bytes:
    return value.to_bytes(8, "big")


def blob(value: bytes) -> bytes:
    return u32(len(value)) + value


def text(value: str) -> bytes:
    return blob(value.encode())


class Reader:
    """Takes fields off the front of some bytes (1)."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def take(self, size: int) -> bytes:
        if self.at + size > len(self.data):
            raise Malformed("bytes are missing")
        self.at += size
        return self.data[self.at - size : self.at]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def count(self, most: int) -> int:
        found = self.number(4)
        if found > most:
            raise Malformed(f"{found} items where {most} are allowed")
        return found

    def blob(self, most: int) -> bytes:
        return self.take(self.count(most))

    def text(self, most: int) -> str:
        try:
            return self.blob(most).decode()
        except UnicodeDecodeError as error:
            raise Malformed("a text is not UTF-8") from error

    def texts(self) -> tuple[str, ...]:
        return tuple(self.text(256) for _ in range(self.count(16)))

    def end(self) -> None:
        if self.at != len(self.data):
            raise Malformed("bytes are left over")


# 2. Identities and signatures


def peer_id(public_key: bytes) -> str:
    number, text_so_far = int.from_bytes(b"\x00\x24\x08\x01\x12\x20" + public_key, "big"), ""
    while number:
        number, digit = divmod(number, 58)
        text_so_far = _BASE58[digit] + text_so_far
    return "1" + text_so_far  # the one leading zero byte


def public_key_of(peer: str) -> bytes:
    number = 0
    for letter in peer:
        number = number * 58 + _BASE58.index(letter)
    raw = number.to_bytes(38, "big")
    if raw[:6] != b"\x00\x24\x08\x01\x12\x20" or peer_id(raw[6:]) != peer:
        raise Malformed(f"not a peer id: {peer}")
    return raw[6:]


def is_good_key(public_key: bytes) -> bool:
    return bool(crypto_core_ed25519_is_valid_point(public_key))


def is_signed(public_key: bytes, message: bytes, signature: bytes) -> bool:
    try:
        crypto_sign_open(signature + message, public_key)
    except CryptoError:
        return False
    return True


# 3. Network and ticket


class TicketPeer(NamedTuple):
    public_key: bytes
    name: str
    p2p: tuple[str, ...]
    http: tuple[str, ...]


class Ticket(NamedTuple):
    genesis: bytes
    key_number: int
    network_key: bytes
    peers: tuple[TicketPeer, ...]

    @property
    def network_id(self) -> bytes:
        return sha(self.genesis)


def read_genesis(data: bytes) -> tuple[str, tuple[bytes, ...], bytes]:
    reader = Reader(data)
    if reader.take(len(tag("genesis"))) != tag("genesis"):
        raise Malformed("not a genesis")
    name = reader.text(64)
    admins = tuple(reader.take(32) for _ in range(reader.count(64)))
    nonce = reader.take(32)
    reader.end()
    if list(admins) != sorted(set(admins)):
        raise Malformed("admins are not ascending")
    return name, admins, nonce


def read_ticket(line: str) -> Ticket:
    prefix, _, encoded = line.partition("-")
    if prefix != "lattice1" or "=" in encoded:
        raise Malformed("not a ticket")
    raw = base64.b64decode(encoded + "=" * (-len(encoded) % 4), altchars=b"-_", validate=True)
    check, body = raw[:6], raw[6:]
    if sha(tag("ticket"), body)[:6] != check:
        raise Malformed("the ticket has a slip of the pen")
    reader = Reader(body)
    genesis, number, key = reader.blob(4096), reader.number(4), reader.take(32)
    peers = tuple(
        TicketPeer(reader.take(32), reader.text(64), reader.texts(), reader.texts())
        for _ in range(reader.count(16))
    )
    reader.end()
    read_genesis(genesis)
    return Ticket(genesis, number, key, peers)


# 4. Op


class Op(NamedTuple):
    kind: int
    key: bytes
    names: tuple[tuple[bytes, int], ...]  # an id of zero bytes stands for the entry itself
    body: bytes

    @property
    def amount(self) -> int:
        return int.from_bytes(self.body, "big", signed=True)


def read_op(data: bytes, index: int) -> Op | None:
    """The op if it is one to apply; None for every other, which is not an error."""
    reader = Reader(data)
    try:
        kind, key = reader.number(1), reader.take(reader.number(2))
        names = tuple(_read_name(reader) for _ in range(reader.number(2)))
        body = reader.blob(len(data))
        reader.end()
        key.decode()
    except (Malformed, UnicodeDecodeError):
        return None
    if not 1 <= len(key) <= KEY_BYTES_MAX or len(names) > NAMES_MAX:
        return None
    if any(not entry_id and at >= index for entry_id, at in names):
        return None
    op = Op(kind, key, names, body)
    fits = {
        PUT: len(body) <= VALUE_BYTES_MAX,
        DELETE: not body,
        ADD: not names and len(body) == 8 and abs(op.amount) <= AMOUNT_MAX,
    }
    return op if fits.get(kind, False) else None


def _read_name(reader: Reader) -> tuple[bytes, int]:
    form = reader.number(1)
    if form == 0:
        return reader.take(32), reader.number(2)
    if form == 1:
        return b"", reader.number(2)
    raise Malformed("a name of an unknown form")


def make_op(kind: int, key: str, body: bytes = b"", names: Sequence[tuple[bytes, int]] = ()) -> bytes:
    raw = key.encode()
    named = b"".join(
        b"\x00" + entry_id + u16(at) if entry_id else b"\x01" + u16(at) for entry_id, at in names
    )
    return u8(kind) + u16(len(raw)) + raw + u16(len(names)) + named + blob(body)


def make_add(key: str, amount: int) -> bytes:
    return make_op(ADD, key, amount.to_bytes(8, "big", signed=True))


# 5. Entry


class Header(NamedTuple):
    version: int
    author: bytes
    epoch: int
    seq: int
    prev: bytes
    clock: int
    op_count: int
    ops_bytes: int
    ops_root: bytes

    def encode(self) -> bytes:
        return b"".join((
            u8(self.version), self.author, u64(self.epoch), u64(self.seq), self.prev, u64(self.clock),
            u16(self.op_count), u32(self.ops_bytes), self.ops_root,
        ))  # fmt: skip


def read_header(data: bytes) -> Header:
    reader = Reader(data)
    header = Header(
        reader.number(1), reader.take(32), reader.number(8), reader.number(8), reader.take(32),
        reader.number(8), reader.number(2), reader.number(4), reader.take(32),
    )  # fmt: skip
    reader.end()
    if not 1 <= header.op_count <= OPS_MAX or HEADER_BYTES + header.ops_bytes > ENTRY_BYTES_MAX:
        raise Malformed("an entry has a wrong size")
    if header.seq == 0 and header.prev != ZERO32:
        raise Malformed("a first entry continues something")
    return header


def tree(leaves: Sequence[bytes]) -> bytes:
    """RFC 6962, section 2.1, over what the leaves hold."""
    if not leaves:
        return sha(b"")
    if len(leaves) == 1:
        return sha(b"\x00", leaves[0])
    split = 1 << ((len(leaves) - 1).bit_length() - 1)
    return sha(b"\x01", tree(leaves[:split]), tree(leaves[split:]))


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry that is well formed, with its bytes as they came."""

    header: Header
    header_bytes: bytes
    ops_bytes: bytes
    ops: tuple[bytes, ...]
    id: bytes

    @property
    def log(self) -> tuple[bytes, int]:
        return self.header.author, self.header.epoch

    @property
    def must_be_sealed(self) -> bool:
        size = HEADER_BYTES + len(self.ops_bytes)
        return self.header.seq % SEALED_EVERY == SEALED_EVERY - 1 or size > SEALED_ABOVE_BYTES

    def frame(self) -> bytes:
        return self.header_bytes + blob(self.ops_bytes)


def read_entry(network_id: bytes, header_bytes: bytes, ops_bytes: bytes) -> Entry:
    header = read_header(header_bytes)
    reader = Reader(ops_bytes)
    if header.ops_bytes != len(ops_bytes):
        raise Malformed("the ops have another length than the header says")
    ops = tuple(reader.blob(len(ops_bytes)) for _ in range(header.op_count))
    reader.end()
    if tree(ops) != header.ops_root:
        raise Malformed("the ops have another root than the header says")
    return Entry(header, header_bytes, ops_bytes, ops, sha(tag("entry"), network_id, header_bytes))


def make_entry(
    network_id: bytes,
    author: bytes,
    epoch: int,
    seq: int,
    prev: bytes,
    clock: int,
    ops: Sequence[bytes],
    version: int = 1,
) -> Entry:
    ops_bytes = b"".join(blob(op) for op in ops)
    header = Header(version, author, epoch, seq, prev, clock, len(ops), len(ops_bytes), tree(ops))
    return read_entry(network_id, header.encode(), ops_bytes)


# 6. Seal


class Seal(NamedTuple):
    author: bytes
    epoch: int
    seq: int
    id: bytes
    signature: bytes

    def body(self) -> bytes:
        return self.author + u64(self.epoch) + u64(self.seq) + self.id

    def encode(self) -> bytes:
        return self.body() + self.signature

    def is_valid(self, network_id: bytes) -> bool:
        return is_signed(self.author, tag("seal") + network_id + self.body(), self.signature)


def read_seal(data: bytes) -> Seal:
    reader = Reader(data)
    seal = Seal(reader.take(32), reader.number(8), reader.number(8), reader.take(32), reader.take(64))
    reader.end()
    return seal


def make_seal(network_id: bytes, key: SigningKey, entry: Entry) -> Seal:
    seal = Seal(entry.header.author, entry.header.epoch, entry.header.seq, entry.id, bytes(64))
    return seal._replace(signature=key.sign(tag("seal") + network_id + seal.body()).signature)


# 9. Heads


class LogHead(NamedTuple):
    epoch: int
    seq: int
    id: bytes
    frozen: int

    def encode(self) -> bytes:
        return u64(self.epoch) + u64(self.seq) + self.id + u64(self.frozen)

    @property
    def height(self) -> int:
        """The seq as a number that can be compared: −1 when nothing is held."""
        return -1 if self.seq == NOTHING else self.seq


class Roots(NamedTuple):
    log_root: bytes
    state_root: bytes
    entries: int
    rules: int = 1

    def encode(self) -> bytes:
        return self.log_root + self.state_root + u16(self.rules) + u64(self.entries)


def read_roots(reader: Reader) -> Roots:
    log_root, state_root, rules = reader.take(32), reader.take(32), reader.number(2)
    return Roots(log_root, state_root, reader.number(8), rules)


# 12. Messages


class Hello(NamedTuple):
    name: str
    challenge: bytes = ZERO32
    answering: bytes = ZERO32
    p2p: tuple[str, ...] = ()
    http: tuple[str, ...] = ()
    version: int = 1
    rules: int = 1
    features: int = 0

    def encode(self) -> bytes:
        lists = b"".join(u32(len(each)) + b"".join(map(text, each)) for each in (self.p2p, self.http))
        return (
            u16(self.version) + u16(self.rules) + text(self.name) + u64(self.features)
            + lists + self.challenge + self.answering
        )  # fmt: skip


class Beat(NamedTuple):
    roots: Roots
    mode: int
    flags: int
    interval_ms: int
    heard: tuple[bytes, ...]
    newest: tuple[int, int, bytes] | None
    name: str


class Heads(NamedTuple):
    round: int
    flags: int
    roots: Roots
    authors: tuple[tuple[bytes, bytes], ...] = ()
    lists: tuple[tuple[bytes, tuple[LogHead, ...]], ...] = ()
    wait_ms: int = 0
    padding: int = 0

    def encode(self) -> bytes:
        lists = b"".join(
            author + u32(len(heads)) + b"".join(head.encode() for head in heads)
            for author, heads in self.lists
        )
        return (
            u64(self.round) + u8(self.flags) + self.roots.encode() + u32(self.wait_ms)
            + u32(len(self.authors)) + b"".join(author + digest for author, digest in self.authors)
            + u32(len(self.lists)) + lists + blob(bytes(self.padding))
        )  # fmt: skip


class Range(NamedTuple):
    author: bytes
    epoch: int
    first: int
    last: int

    @property
    def is_headers_alone(self) -> bool:
        return self.last == NOTHING


class Want(NamedTuple):
    ranges: tuple[Range, ...]

    def encode(self) -> bytes:
        return u32(len(self.ranges)) + b"".join(
            each.author + u64(each.epoch) + u64(each.first) + u64(each.last) for each in self.ranges
        )


class Entries(NamedTuple):
    frames: tuple[tuple[bytes, bytes], ...]
    seals: tuple[Seal, ...]

    def encode(self) -> bytes:
        frames = b"".join(header + blob(ops) for header, ops in self.frames)
        return (
            u32(len(self.frames)) + frames
            + u32(len(self.seals)) + b"".join(seal.encode() for seal in self.seals)
        )  # fmt: skip


class Proof(NamedTuple):
    kind: int
    payload: bytes

    def encode(self) -> bytes:
        return u8(self.kind) + blob(self.payload)


Message = Hello | Beat | Heads | Want | Entries | Proof


def _hello(reader: Reader) -> Hello:
    version, rules, name, features = reader.number(2), reader.number(2), reader.text(64), reader.number(8)
    p2p, http, challenge, answering = reader.texts(), reader.texts(), reader.take(32), reader.take(32)
    return Hello(name, challenge, answering, p2p, http, version, rules, features)


def _beat(reader: Reader) -> Beat:
    roots, mode, flags, interval = read_roots(reader), reader.number(1), reader.number(1), reader.number(4)
    heard = tuple(reader.take(32) for _ in range(reader.count(16)))
    has_newest = reader.number(1)
    if has_newest > 1 or mode > 2:
        raise Malformed("a beat has a value that is not in the table")
    newest = (reader.number(8), reader.number(8), reader.take(32)) if has_newest else None
    name = reader.text(64)
    reader.texts(), reader.texts()
    return Beat(roots, mode, flags, interval, heard, newest, name)


def _heads(reader: Reader) -> Heads:
    round_number, flags, roots, wait = (
        reader.number(8),
        reader.number(1),
        read_roots(reader),
        reader.number(4),
    )
    authors = tuple((reader.take(32), reader.take(32)) for _ in range(reader.count(AUTHORS_AT_ONCE_MAX)))
    lists, rest = [], HEADS_AT_ONCE_MAX
    for _ in range(reader.count(AUTHORS_AT_ONCE_MAX)):
        author, count = reader.take(32), reader.count(rest)
        rest -= count
        lists.append((author, tuple(_log_head(reader) for _ in range(count))))
    if len({author for author, _ in lists}) < len(lists):
        raise Malformed("two lists for one author")
    padding = reader.blob(16_384)  # whose bytes are not looked at
    return Heads(round_number, flags, roots, authors, tuple(lists), wait, len(padding))


def _log_head(reader: Reader) -> LogHead:
    return LogHead(reader.number(8), reader.number(8), reader.take(32), reader.number(8))


def _want(reader: Reader) -> Want:
    ranges = tuple(
        Range(reader.take(32), reader.number(8), reader.number(8), reader.number(8))
        for _ in range(reader.count(4096))
    )
    if any(each.first > each.last for each in ranges):
        raise Malformed("a range ends before it begins")
    return Want(ranges)


def _entries(reader: Reader) -> Entries:
    frames = tuple(
        (reader.take(HEADER_BYTES), reader.blob(ENTRY_BYTES_MAX)) for _ in range(reader.count(16_384))
    )
    return Entries(frames, tuple(read_seal(reader.take(SEAL_BYTES)) for _ in range(reader.count(16_384))))


def _proof(reader: Reader) -> Proof:
    return Proof(reader.number(1), reader.blob(4_194_304))


_READERS: Final[dict[int, Callable[[Reader], Message]]] = {
    HELLO: _hello, BEAT: _beat, HEADS: _heads, WANT: _want, ENTRIES: _entries, PROOF: _proof,
}  # fmt: skip
_TYPES: Final = {Hello: HELLO, Beat: BEAT, Heads: HEADS, Want: WANT, Entries: ENTRIES, Proof: PROOF}


def read_body(body: bytes) -> list[Message]:
    reader = Reader(body)
    found: list[tuple[int, bytes]] = []
    while reader.at < len(body):
        if len(found) == 64:
            raise Malformed("more than 64 messages")
        found.append((reader.number(1), reader.blob(len(body))))
    messages = []
    for kind, data in found:
        if kind in _READERS:
            inner = Reader(data)
            messages.append(_READERS[kind](inner))
            inner.end()
    return messages


def make_body(messages: Sequence[Message]) -> bytes:
    def encode(message: Message) -> bytes:
        if isinstance(message, Beat):
            raise TypeError("this peer does not beat")
        return message.encode()

    return b"".join(u8(_TYPES[type(each)]) + blob(encode(each)) for each in messages)
