"""The six messages that nodes exchange, and their bytes.

Separate because both lungs, gossip and files carry exactly these; a transport never looks inside
an envelope and nothing else than these is ever inside. The layout is in docs/reference/wire.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntFlag
from typing import Final, NamedTuple, assert_never

from .codec import Reader, Writer
from .entry import HEADER_BYTES, ID_BYTES, SEAL_BYTES, Seal, parse_seal
from .errors import MalformedError
from .heads import LOG_HEAD_BYTES, pack_log_head, unpack_log_head
from .limits import (
    ADDRESS_BYTES_MAX,
    ADDRESSES_MAX,
    ENTRIES_MAX,
    ENTRY_BYTES_MAX,
    ENVELOPE_BYTES_MAX,
    HEADS_AUTHORS_MAX,
    HEADS_LOGS_MAX,
    HEARD_MAX,
    MESSAGES_MAX,
    NAME_BYTES_MAX,
    PADDING_BYTES,
    WANT_RANGES_MAX,
)
from .rows import LogHead

WIRE_VERSION: Final = 1
RULES_VERSION: Final = 1  # the state-rules number: roots are compared only between equal numbers
RULES_FIRST: Final = 1  # what a store that notes no number was computed by
ZERO_NONCE: Final = bytes(32)
HEADERS_ONLY: Final = 2**64 - 1  # no entry has this seq


class Addresses(NamedTuple):
    """Where a node says that it can be reached: multiaddrs and base URLs, best first."""

    p2p: tuple[str, ...] = ()
    http: tuple[str, ...] = ()


class Roots(NamedTuple):
    """What a node holds after its last commit."""

    log_root: bytes
    state_root: bytes
    rules: int
    entry_count: int


class Want(NamedTuple):
    """Entries first..last of one log; with `last` HEADERS_ONLY the headers from `first` to the highest
    seal in its stretch of 64, as a Proof."""

    author: bytes
    epoch: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Hello:
    """Who speaks, what it can do and where it is found. `challenge` asks the other to sign it in a
    Hello of its own; `answering` is the challenge that this one answers (zeros for none)."""

    wire: int
    rules: int
    name: str
    features: int
    addresses: Addresses
    challenge: bytes = ZERO_NONCE
    answering: bytes = ZERO_NONCE


class BeatFlag(IntFlag):
    TWIN_ALARM = 1  # the addressee's key was seen answering under two live boots
    BUSY = 2  # no beat stream is free for the addressee


@dataclass(frozen=True, slots=True)
class Beat:
    """A sign of life: challenged on a stream, one-way as presence in gossip.

    `heard` are the public keys of direct peers whose answers came within two beats. `newest` is
    (epoch, seq, id) of the sender's newest own log, None before its first write.
    """

    roots: Roots
    mode: str
    flags: BeatFlag
    interval_ms: int
    heard: tuple[bytes, ...]
    newest: tuple[int, int, bytes] | None
    name: str
    addresses: Addresses


class HeadsFlag(IntFlag):
    AUTHORS = 1  # `authors` lists every author
    LISTS = 2  # `logs` lists the logs of the authors named there
    FINAL = 4  # the round's last exchange
    HOLDS_ALL = 8  # the sender holds everything that the other's Heads named in this round


@dataclass(frozen=True, slots=True)
class Heads:
    """What the sender holds. `authors` are (author, digest); `logs` are (author, its logs by
    epoch), an empty list for an author of whom nothing is held. `wait_ms` lets the answer be held
    back until the answering node's log root differs from this one."""

    round: int
    flags: HeadsFlag
    roots: Roots
    wait_ms: int = 0
    authors: tuple[tuple[bytes, bytes], ...] = ()
    logs: tuple[tuple[bytes, tuple[tuple[int, LogHead], ...]], ...] = ()
    padding: int = 0


@dataclass(frozen=True, slots=True)
class WantEntries:
    """A request for ranges of logs."""

    ranges: tuple[Want, ...]


@dataclass(frozen=True, slots=True)
class Entries:
    """Entries as (header bytes, ops bytes), and seals over them, in any order."""

    frames: tuple[tuple[bytes, bytes], ...]
    seals: tuple[Seal, ...]

    @property
    def size(self) -> int:
        return sum(len(header) + len(ops) for header, ops in self.frames) + SEAL_BYTES * len(self.seals)


def joined(parts: Sequence[Entries]) -> Entries:
    """The entries and seals of all messages of one body, which are judged as one (wire.md, section 7)."""
    if len(parts) == 1:
        return parts[0]
    frames = tuple(frame for part in parts for frame in part.frames)
    return Entries(frames, tuple(seal for part in parts for seal in part.seals))


@dataclass(frozen=True, slots=True)
class Proof:
    """A proof of some kind (fork, tree nodes, checkpoint), opaque to who does not know the kind."""

    kind: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class Unknown:
    """A message of a type that this version does not know: counted, skipped, never an error."""

    type: int
    payload: bytes


Message = Hello | Beat | Heads | WantEntries | Entries | Proof | Unknown

_HELLO, _BEAT, _HEADS, _WANT, _ENTRIES, _PROOF = 1, 2, 3, 4, 5, 6
_MODES: Final = ("P2P", "HTTP", "ISOLATED")


def encode_messages(messages: Sequence[Message]) -> bytes:
    """type u8, length u32, payload; one after the other."""
    writer = Writer()
    for message in messages:
        number, payload = _encode(message)
        writer.u8(number).blob(payload)
    return writer.done()


def decode_messages(data: bytes) -> list[Message]:
    """Raises MalformedError if any known message is malformed: no part of such data is used."""
    reader = Reader(data)
    messages: list[Message] = []
    while reader.left:
        if len(messages) == MESSAGES_MAX:
            raise MalformedError(f"more than {MESSAGES_MAX} messages in one envelope")
        number = reader.u8()
        payload = reader.blob(ENVELOPE_BYTES_MAX)
        decode = _DECODERS.get(number)
        if decode is None:
            messages.append(Unknown(number, payload))
            continue
        body = Reader(payload)
        messages.append(decode(body))
        body.end()
    return messages


def _encode(message: Message) -> tuple[int, bytes]:
    match message:
        case Hello():
            return _HELLO, _encode_hello(message)
        case Beat():
            return _BEAT, _encode_beat(message)
        case Heads():
            return _HEADS, _encode_heads(message)
        case WantEntries():
            writer = Writer().u32(len(message.ranges))
            for author, epoch, first, last in message.ranges:
                writer.raw(author).u64(epoch).u64(first).u64(last)
            return _WANT, writer.done()
        case Entries():
            return _ENTRIES, _encode_entries(message)
        case Proof():
            return _PROOF, Writer().u8(message.kind).blob(message.payload).done()
        case Unknown():
            return message.type, message.payload
    assert_never(message)


def _write_addresses(writer: Writer, addresses: Addresses) -> None:
    for group in addresses:
        writer.u32(len(group))
        for address in group:
            writer.text(address)


def _read_addresses(reader: Reader) -> Addresses:
    p2p = tuple(reader.text(ADDRESS_BYTES_MAX) for _ in range(reader.count(ADDRESSES_MAX)))
    http = tuple(reader.text(ADDRESS_BYTES_MAX) for _ in range(reader.count(ADDRESSES_MAX)))
    return Addresses(p2p, http)


def _write_roots(writer: Writer, roots: Roots) -> None:
    writer.raw(roots.log_root).raw(roots.state_root).u16(roots.rules).u64(roots.entry_count)


def _read_roots(reader: Reader) -> Roots:
    return Roots(reader.take(32), reader.take(32), reader.u16(), reader.u64())


def _encode_hello(message: Hello) -> bytes:
    writer = Writer().u16(message.wire).u16(message.rules).text(message.name).u64(message.features)
    _write_addresses(writer, message.addresses)
    return writer.raw(message.challenge).raw(message.answering).done()


def _decode_hello(reader: Reader) -> Hello:
    wire, rules = reader.u16(), reader.u16()
    name, features = reader.text(NAME_BYTES_MAX), reader.u64()
    addresses = _read_addresses(reader)
    return Hello(wire, rules, name, features, addresses, reader.take(32), reader.take(32))


def _encode_beat(message: Beat) -> bytes:
    writer = Writer()
    _write_roots(writer, message.roots)
    writer.u8(_MODES.index(message.mode)).u8(message.flags).u32(message.interval_ms)
    writer.u32(len(message.heard))
    for key in message.heard:
        writer.raw(key)
    if message.newest is None:
        writer.u8(0)
    else:
        epoch, seq, entry_id = message.newest
        writer.u8(1).u64(epoch).u64(seq).raw(entry_id)
    writer.text(message.name)
    _write_addresses(writer, message.addresses)
    return writer.done()


def _decode_beat(reader: Reader) -> Beat:
    roots = _read_roots(reader)
    mode, flags, interval_ms = reader.u8(), reader.u8(), reader.u32()
    if mode >= len(_MODES):
        raise MalformedError(f"there is no mode {mode}")
    heard = tuple(reader.take(32) for _ in range(reader.count(HEARD_MAX)))
    newest = None
    match reader.u8():
        case 0:
            pass
        case 1:
            newest = (reader.u64(), reader.u64(), reader.take(ID_BYTES))
        case other:
            raise MalformedError(f"a presence byte of {other}")
    name = reader.text(NAME_BYTES_MAX)
    addresses = _read_addresses(reader)
    return Beat(roots, _MODES[mode], BeatFlag(flags), interval_ms, heard, newest, name, addresses)


def _encode_heads(message: Heads) -> bytes:
    writer = Writer().u64(message.round).u8(message.flags)
    _write_roots(writer, message.roots)
    writer.u32(message.wait_ms).u32(len(message.authors))
    for author, digest in message.authors:
        writer.raw(author).raw(digest)
    writer.u32(len(message.logs))
    for author, logs in message.logs:
        writer.raw(author).u32(len(logs))
        for epoch, head in logs:
            writer.raw(pack_log_head(epoch, head))
    return writer.blob(bytes(message.padding)).done()


def _decode_heads(reader: Reader) -> Heads:
    number, flags = reader.u64(), HeadsFlag(reader.u8())
    roots, wait_ms = _read_roots(reader), reader.u32()
    authors = tuple((reader.take(32), reader.take(32)) for _ in range(reader.count(HEADS_AUTHORS_MAX)))
    logs: list[tuple[bytes, tuple[tuple[int, LogHead], ...]]] = []
    budget = HEADS_LOGS_MAX
    for _ in range(reader.count(HEADS_AUTHORS_MAX)):
        author = reader.take(32)
        count = reader.count(budget)
        budget -= count
        logs.append((author, tuple(unpack_log_head(reader.take(LOG_HEAD_BYTES)) for _ in range(count))))
    if len({author for author, _ in logs}) != len(logs):
        # Each naming is answered: an author with many logs, named 4,096 times, would be without end.
        raise MalformedError("an author is listed twice")
    padding = len(reader.blob(PADDING_BYTES))
    return Heads(number, flags, roots, wait_ms, authors, tuple(logs), padding)


def _decode_want(reader: Reader) -> WantEntries:
    count = reader.count(WANT_RANGES_MAX)
    ranges = tuple(Want(reader.take(32), reader.u64(), reader.u64(), reader.u64()) for _ in range(count))
    if any(want.first > want.last for want in ranges):
        raise MalformedError("a wanted range ends before it begins")
    return WantEntries(ranges)


def _encode_entries(message: Entries) -> bytes:
    writer = Writer().u32(len(message.frames))
    for header, ops in message.frames:
        writer.raw(header).blob(ops)
    writer.u32(len(message.seals))
    for seal in message.seals:
        writer.raw(seal.pack())
    return writer.done()


def _decode_entries(reader: Reader) -> Entries:
    frames = tuple(
        (reader.take(HEADER_BYTES), reader.blob(ENTRY_BYTES_MAX)) for _ in range(reader.count(ENTRIES_MAX))
    )
    seals = tuple(parse_seal(reader.take(SEAL_BYTES)) for _ in range(reader.count(ENTRIES_MAX)))
    return Entries(frames, seals)


def _decode_proof(reader: Reader) -> Proof:
    return Proof(reader.u8(), reader.blob(ENVELOPE_BYTES_MAX))


_DECODERS: Final[dict[int, Callable[[Reader], Message]]] = {
    _HELLO: _decode_hello,
    _BEAT: _decode_beat,
    _HEADS: _decode_heads,
    _WANT: _decode_want,
    _ENTRIES: _decode_entries,
    _PROOF: _decode_proof,
}
