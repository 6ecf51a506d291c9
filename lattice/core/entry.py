"""Ops, entries and seals: their bytes, and the checks that need nothing but those bytes.

Separate because these bytes are made once, by the author, and are stored, relayed and hashed as
they are: no code past this module encodes an entry again. The layout is in docs/reference/wire.md.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from hashlib import sha256
from typing import Final, NamedTuple

from .errors import MalformedError
from .identity import SEAL_TAG, NodeKey, verify
from .limits import (
    AMOUNT_MAX,
    ENTRY_BYTES_MAX,
    KEY_BYTES_MAX,
    NAMES_MAX,
    NOVELTY_NUMBER_MAX,
    OPS_MAX,
    SEAL_INTERVAL,
    UNSEALED_ENTRY_BYTES_MAX,
    VALUE_BYTES_MAX,
)
from .merkle import leaf_hash, tree_root

FORMAT_VERSION: Final = 1
ZERO_ID: Final = bytes(32)
ID_BYTES: Final = 32

_ENTRY_TAG: Final = b"lattice/entry/v1\0"
# version, author, epoch, seq, prev, clock, op count, ops bytes, ops root
_HEADER: Final = struct.Struct(">B32sQQ32sQHI32s")
HEADER_BYTES: Final = _HEADER.size
# author, epoch, seq, id, signature
_SEAL: Final = struct.Struct(">32sQQ32s64s")
SEAL_BYTES: Final = _SEAL.size
_OP_HEAD: Final = struct.Struct(">BH")
_LENGTH: Final = struct.Struct(">I")
_COUNT: Final = struct.Struct(">H")
_AMOUNT: Final = struct.Struct(">q")
_FOREIGN: Final = struct.Struct(">B32sH")
_OWN: Final = struct.Struct(">BH")
_VERSION_TEXT: Final = re.compile(r"[0-9a-f]{64}\.(?:0|[1-9][0-9]{0,2})", re.ASCII)


class OpKind(IntEnum):
    PUT = 1
    DELETE = 2
    ADD = 3


_KINDS: Final = {int(kind): kind for kind in OpKind}


class Novelty(NamedTuple):
    """What of a newer program this one does not know: a kind of op, or a format of entries."""

    is_format: bool
    number: int

    def __str__(self) -> str:
        if self.number > NOVELTY_NUMBER_MAX:
            return f"entry formats above {NOVELTY_NUMBER_MAX}"
        return f"{'entry format' if self.is_format else 'op kind'} {self.number}"


class Version(NamedTuple):
    """The name of one op in the ledger: (entry id, op index). Ordered as (id, index)."""

    id: bytes
    op_index: int

    def __str__(self) -> str:
        return f"{self.id.hex()}.{self.op_index}"

    @classmethod
    def parse(cls, text: str) -> Version:
        """The inverse of str(), and strictly so. Raises MalformedError."""
        if _VERSION_TEXT.fullmatch(text) is None or int(text[65:]) >= OPS_MAX:
            raise MalformedError(f"{text[:80]!r} is not a version (64 hex digits, a dot, an op index)")
        return cls(bytes.fromhex(text[:64]), int(text[65:]))


class Op(NamedTuple):
    """One op as it was parsed from the bytes of an entry.

    `over_own` are indices into the same entry, `over` foreign versions. `value_at` and
    `value_size` locate the value within the ops bytes of the entry; `amount` is set for ADD only.
    """

    kind: OpKind
    key: bytes
    over: tuple[Version, ...]
    over_own: tuple[int, ...]
    value_at: int
    value_size: int
    amount: int
    op_hash: bytes


def encode_op(
    kind: OpKind,
    key: bytes,
    *,
    value: bytes = b"",
    over: Sequence[Version] = (),
    over_own: Sequence[int] = (),
    amount: int = 0,
) -> bytes:
    """The bytes of one op, without the length that frames it. Limits are the caller's to check."""
    names = [_FOREIGN.pack(0, name.id, name.op_index) for name in over]
    names += [_OWN.pack(1, index) for index in over_own]
    body = _AMOUNT.pack(amount) if kind is OpKind.ADD else value
    return b"".join(
        (_OP_HEAD.pack(kind, len(key)), key, _COUNT.pack(len(names)), *names, _LENGTH.pack(len(body)), body)
    )


def parse_op(ops: bytes, at: int, end: int, index: int, op_hash: bytes) -> Op | None:
    """Parse the op at ops[at:end]; None for one that is stored but not applied.

    That is a kind this version does not know, or a broken rule of its kind. Both are judged by
    the op's bytes alone, so that all nodes of one state-rules number agree.
    """
    try:
        kind_number, key_size = _OP_HEAD.unpack_from(ops, at)
        at += 3
        key = ops[at : at + key_size]
        at += key_size
        (names,) = _COUNT.unpack_from(ops, at)
        at += 2
        over: tuple[Version, ...] = ()
        own: tuple[int, ...] = ()
        if names:
            if names > NAMES_MAX:
                return None
            parsed = _parse_names(ops, at, names, index)
            if parsed is None:
                return None
            over, own, at = parsed
        (value_size,) = _LENGTH.unpack_from(ops, at)
        at += 4
    except struct.error:
        return None
    if at + value_size != end or not 0 < key_size <= KEY_BYTES_MAX:
        return None  # also where a field ran on into the next op, which the loose reads allow
    kind = _KINDS.get(kind_number)
    if kind is None or not (key.isascii() or _is_utf8(key)):
        return None
    amount = 0
    match kind:
        case OpKind.PUT:
            if value_size > VALUE_BYTES_MAX:
                return None
        case OpKind.DELETE:
            if value_size:
                return None
        case OpKind.ADD:
            if names or value_size != _AMOUNT.size:
                return None
            (amount,) = _AMOUNT.unpack_from(ops, at)
            if abs(amount) > AMOUNT_MAX:
                return None
    return Op(kind, key, over, own, at, value_size, amount, op_hash)


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _parse_names(
    ops: bytes, at: int, count: int, index: int
) -> tuple[tuple[Version, ...], tuple[int, ...], int] | None:
    over: list[Version] = []
    own: list[int] = []
    for _ in range(count):
        if ops[at : at + 1] == b"\0":
            _, entry_id, named = _FOREIGN.unpack_from(ops, at)
            over.append(Version(entry_id, named))
            at += _FOREIGN.size
        elif ops[at : at + 1] == b"\1":
            _, named = _OWN.unpack_from(ops, at)
            if named >= index:
                return None
            own.append(named)
            at += _OWN.size
        else:
            return None
    return tuple(over), tuple(own), at


class Header(NamedTuple):
    """The fields of an entry's header; `clock` is a hybrid logical clock (48 bits ms, 16 bits count)."""

    version: int
    author: bytes
    epoch: int
    seq: int
    prev: bytes
    clock: int
    op_count: int
    ops_bytes: int
    ops_root: bytes

    def pack(self) -> bytes:
        return _HEADER.pack(*self)


def parse_header(data: bytes) -> Header:
    """Raises MalformedError when the bytes cannot be a header of any version."""
    if len(data) != HEADER_BYTES:
        raise MalformedError(f"a header has {HEADER_BYTES} bytes, not {len(data)}")
    header = Header(*_HEADER.unpack(data))
    if not 1 <= header.op_count <= OPS_MAX:
        raise MalformedError(f"an entry has 1 to {OPS_MAX} ops, not {header.op_count}")
    if HEADER_BYTES + header.ops_bytes > ENTRY_BYTES_MAX:
        raise MalformedError(f"an entry has at most {ENTRY_BYTES_MAX} bytes")
    if header.seq == 0 and header.prev != ZERO_ID:
        raise MalformedError("the first entry of a log has a zero prev")
    return header


def entry_id(network_id: bytes, header: bytes) -> bytes:
    """SHA-256(tag ‖ network id ‖ header)."""
    return sha256(_ENTRY_TAG + network_id + header).digest()


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry whose bytes are consistent in themselves: sizes and ops root are checked.

    Whether its chain and seals hold is for the log to say. `op_spans` are the (start, end) of
    each op within `ops`; `op_hashes` their RFC 6962 leaf hashes.
    """

    id: bytes
    header: Header
    header_bytes: bytes
    ops: bytes
    op_spans: tuple[tuple[int, int], ...]
    op_hashes: tuple[bytes, ...]

    @property
    def size(self) -> int:
        return HEADER_BYTES + len(self.ops)

    @property
    def must_be_sealed(self) -> bool:
        return must_be_sealed(self.header)

    def parsed_ops(self) -> list[Op | None]:
        """The ops in order; None where one is stored but not applied (see parse_op)."""
        if self.header.version != FORMAT_VERSION:
            return [None] * self.header.op_count
        return [
            parse_op(self.ops, start, end, index, self.op_hashes[index])
            for index, (start, end) in enumerate(self.op_spans)
        ]


def novelty_of(entry: Entry, index: int) -> Novelty | None:
    """Why an op that is not applied is not known here; None for one that breaks a rule of its kind."""
    version = entry.header.version
    if version != FORMAT_VERSION:
        return Novelty(True, min(version, NOVELTY_NUMBER_MAX + 1))
    start, end = entry.op_spans[index]
    if start < end and entry.ops[start] not in _KINDS:
        return Novelty(False, entry.ops[start])
    return None


def must_be_sealed(header: Header) -> bool:
    """Every 64th entry, and any larger than 16 KiB: so an unsealed stretch is at most 1 MiB."""
    return (
        header.seq % SEAL_INTERVAL == SEAL_INTERVAL - 1
        or HEADER_BYTES + header.ops_bytes > UNSEALED_ENTRY_BYTES_MAX
    )


def parse_entry(network_id: bytes, header_bytes: bytes, ops: bytes) -> Entry:
    """Check sizes, framing and ops root. Raises MalformedError."""
    header = parse_header(header_bytes)
    if len(ops) != header.ops_bytes:
        raise MalformedError(f"the header announces {header.ops_bytes} bytes of ops, {len(ops)} came")
    spans = _split_ops(ops, header.op_count)
    hashes = tuple(sha256(b"\0" + ops[start:end]).digest() for start, end in spans)
    if tree_root(hashes) != header.ops_root:
        raise MalformedError("the ops do not have the root that the header names")
    return Entry(entry_id(network_id, header_bytes), header, header_bytes, ops, spans, hashes)


def parse_stored(entry_id: bytes, header_bytes: bytes, ops: bytes) -> Entry:
    """An entry that was checked when it was taken in, under the id that it is stored by."""
    header = parse_header(header_bytes)
    spans = _split_ops(ops, header.op_count)
    hashes = tuple(sha256(b"\0" + ops[start:end]).digest() for start, end in spans)
    return Entry(entry_id, header, header_bytes, ops, spans, hashes)


def ops_of_key(header: Header, ops: bytes, key: bytes) -> dict[int, Op]:
    """The applied ops of one key by op index, out of a stored entry. Nothing is hashed: `op_hash` is
    empty. Raises MalformedError."""
    found: dict[int, Op] = {}
    if header.version != FORMAT_VERSION:
        return found
    named = len(key).to_bytes(2, "big") + key
    for index, (start, end) in enumerate(_split_ops(ops, header.op_count)):
        if ops.startswith(named, start + 1):  # an entry has up to 256 ops, mostly of other keys
            op = parse_op(ops, start, end, index, b"")
            if op is not None:
                found[index] = op._replace(key=key)  # the caller's object, not a copy for each op
    return found


def parse_stored_ops(header: Header, ops: bytes, indices: Iterable[int]) -> Iterator[Op | None]:
    """Some ops of an entry that was checked when it was taken in, as `Entry.parsed_ops` has them; None
    also where there is none."""
    spans = _split_ops(ops, header.op_count) if header.version == FORMAT_VERSION else ()
    for index in indices:
        if index >= len(spans):
            yield None
            continue
        start, end = spans[index]
        yield parse_op(ops, start, end, index, sha256(b"\0" + ops[start:end]).digest())


def _split_ops(ops: bytes, count: int) -> tuple[tuple[int, int], ...]:
    spans = []
    at, end = 0, len(ops)
    unpack_length = _LENGTH.unpack_from
    try:
        for _ in range(count):
            (size,) = unpack_length(ops, at)
            at += 4
            spans.append((at, at + size))
            at += size
    except struct.error as error:
        raise MalformedError("the ops end before their count") from error
    if at != end:  # a size that runs past the end leaves `at` there, whatever followed
        raise MalformedError("the ops do not end where the header says")
    return tuple(spans)


def make_entry(
    network_id: bytes, *, author: bytes, epoch: int, seq: int, prev: bytes, clock: int, ops: Sequence[bytes]
) -> Entry:
    """Build an entry of our own from encoded ops (1 to 256, within ENTRY_BYTES_MAX in all)."""
    hashes = tuple(leaf_hash(op) for op in ops)
    framed = b"".join(part for op in ops for part in (_LENGTH.pack(len(op)), op))
    header = Header(FORMAT_VERSION, author, epoch, seq, prev, clock, len(ops), len(framed), tree_root(hashes))
    packed = header.pack()
    spans = []
    at = 0
    for op in ops:
        spans.append((at + 4, at + 4 + len(op)))
        at += 4 + len(op)
    return Entry(entry_id(network_id, packed), header, packed, framed, tuple(spans), hashes)


class Seal(NamedTuple):
    """The author's signature under its log up to `seq`; it authenticates everything below."""

    author: bytes
    epoch: int
    seq: int
    id: bytes
    signature: bytes

    def pack(self) -> bytes:
        return _SEAL.pack(*self)


def parse_seal(data: bytes) -> Seal:
    if len(data) != SEAL_BYTES:
        raise MalformedError(f"a seal has {SEAL_BYTES} bytes, not {len(data)}")
    return Seal(*_SEAL.unpack(data))


def make_seal(key: NodeKey, network_id: bytes, header: Header, entry_id: bytes) -> Seal:
    body = _SEAL.pack(header.author, header.epoch, header.seq, entry_id, bytes(64))[:-64]
    return Seal(header.author, header.epoch, header.seq, entry_id, key.sign(SEAL_TAG, network_id, body))


def seal_verifies(network_id: bytes, seal: Seal) -> bool:
    """Whether the signature is the author's (53 µs). That the author's key itself is acceptable
    is checked once per author, by the log."""
    return verify(SEAL_TAG, network_id, seal.author, seal.pack()[:-64], seal.signature)
