"""Rows as the bytes of table columns, each with a checksum.

Separate because SQLite keeps no checksum of its own pages: whatever comes back from the disk is
judged here, so that a flipped bit is an error and never an answer.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Final, NamedTuple
from zlib import crc32

from ..core.codec import Reader, Writer
from ..core.entry import OpKind, Seal, Version
from ..core.errors import LatticeError
from ..core.limits import FORK_KEYS_MAX
from ..core.rows import Batch, EntryRow, ForkRow, IdempotentRow, KeyState, LiveVersion, LogKey

# A slot names an entry in 63 bits: the number of its log, then its seq. 68 billion entries of one
# process run and 134 million logs are more than a disk holds.
_SEQ_BITS: Final = 36
SEQ_MAX: Final = (1 << _SEQ_BITS) - 1
LOG_NUMBER_MAX: Final = (1 << 27) - 1

# The rows of a key stand side by side under (key, tail), so that a write touches one page of the
# tree: first its state, then its puts, its other ops and its edges.
STATE_TAIL: Final = b""
PUT_TAG: Final = 1
OP_TAG: Final = 2
EDGE_TAG: Final = 3
ALL_EDGES: Final = (bytes((EDGE_TAG,)), bytes((EDGE_TAG + 1,)))  # the range [from, below) of their tails
ABSENT: Final = b"\0"
PRESENT: Final = b"\1"

_CHECK_BYTES: Final = 4
# present, adds, number of live versions
_STATE: Final = struct.Struct(">cQH")
# id, op index, op hash, clock, log number, seq, value at, value size
_LIVE: Final = struct.Struct(">32sH32sQIQII")
_ONE_LIVE: Final = struct.Struct(">cQH32sH32sQIQII")
EDGE_SLOT_AT: Final = 36  # where, counted from 1, the slot of the naming op stands in the tail of an edge
_OP_TAIL: Final = struct.Struct(">BQH")
_EDGE_TAIL: Final = struct.Struct(">B32sHQH")
_EDGE_PREFIX: Final = struct.Struct(">B32sH")
# slot, arrived, length of the lung's name; the name and the peer follow
_ORIGIN: Final = struct.Struct(">QqB")
_U64: Final = struct.Struct(">Q")
_OP_ID_BYTES: Final = 32
_KIND: Final = tuple(bytes((kind,)) for kind in range(256))


class StoredOp(NamedTuple):
    """An op row as it stands under its key, its log still a number."""

    slot: int
    op_index: int
    kind: int
    id: bytes


def slot_of(log_number: int, seq: int) -> int:
    """The slot of an entry. A seq or log number beyond the bounds is a defect of the caller."""
    if not 0 <= seq <= SEQ_MAX or not 0 <= log_number <= LOG_NUMBER_MAX:
        raise LatticeError("internal", f"the store has no place for seq {seq} of log number {log_number}")
    return log_number << _SEQ_BITS | seq


def log_number_of(slot: int) -> int:
    return slot >> _SEQ_BITS


def seq_of(slot: int) -> int:
    return slot & SEQ_MAX


def checked(key: bytes, tail: bytes, data: bytes) -> bytes:
    """`data` followed by the checksum over the whole row (0.3 µs)."""
    return data + crc32(key + tail + data).to_bytes(_CHECK_BYTES, "big")


def unchecked(key: bytes, tail: bytes, stored: bytes) -> bytes:
    """The inverse of `checked`. Raises LatticeError `store_corrupt`."""
    if not type(key) is type(tail) is type(stored) is bytes:
        raise corrupt(f"a row of key {key!r} is not made of bytes")
    data = stored[:-_CHECK_BYTES]
    if crc32(key + tail + data).to_bytes(_CHECK_BYTES, "big") != stored[-_CHECK_BYTES:]:
        raise corrupt(f"a row of key {key!r} does not match its checksum")
    return data


def corrupt(what: str) -> LatticeError:
    """The error for bytes that are not what was written, with the way out."""
    return LatticeError(
        "store_corrupt",
        f"The store is damaged: {what}. Nothing was changed. Stop the node, move its store file (not "
        "identity.key) aside and start it again: its peers bring the ledger back.",
    )


def pack_state(state: KeyState, numbers: Mapping[tuple[bytes, int], int]) -> bytes:
    """A KeyState without its key; the total is decimal text, since it has no bound."""
    _, versions, adds, total = state
    if len(versions) == 1 and not adds and not total:
        entry_id, index, op_hash, clock, author, epoch, seq, at, size = versions[0]
        number = numbers[author, epoch]
        return _ONE_LIVE.pack(PRESENT, 0, 1, entry_id, index, op_hash, clock, number, seq, at, size)
    parts = [_STATE.pack(PRESENT if versions or adds else ABSENT, adds, len(versions))]
    parts += [_LIVE.pack(*live[:4], numbers[live.author, live.epoch], *live[6:]) for live in versions]
    if total:
        parts.append(b"%d" % total)
    return b"".join(parts)


def unpack_state(key: bytes, stored: bytes, logs: Sequence[LogKey]) -> KeyState:
    """The inverse of `checked` and `pack_state`; `logs` by number."""
    data = unchecked(key, STATE_TAIL, stored)
    if len(data) == _ONE_LIVE.size and data[10] == 1:
        _, adds, _, entry_id, index, op_hash, clock, number, seq, at, size = _ONE_LIVE.unpack(data)
        author, epoch = logs[number]
        live = LiveVersion(entry_id, index, op_hash, clock, author, epoch, seq, at, size)
        return KeyState(key, (live,), adds, 0)
    _, adds, count = _STATE.unpack_from(data)
    end = _STATE.size + count * _LIVE.size
    versions = tuple(
        LiveVersion(entry_id, index, op_hash, clock, logs[number][0], logs[number][1], seq, at, size)
        for entry_id, index, op_hash, clock, number, seq, at, size in _LIVE.iter_unpack(
            data[_STATE.size : end]
        )
    )
    return KeyState(key, versions, adds, int(data[end:] or b"0"))


def key_rows(batch: Batch, numbers: Mapping[tuple[bytes, int], int]) -> list[tuple[bytes, bytes, bytes]]:
    """The rows (key, tail, data) of all states, ops and edges of a batch, sorted.

    Written out, without a call per field: this is most of the work of a large commit.
    """
    rows = []
    for key, state in batch.keys.items():
        data = pack_state(state, numbers)
        rows.append((key, STATE_TAIL, data + crc32(key + data).to_bytes(_CHECK_BYTES, "big")))
    for key, author, epoch, seq, index, kind, entry_id in batch.ops:
        slot = slot_of(numbers[author, epoch], seq)
        tail = _OP_TAIL.pack(PUT_TAG if kind is OpKind.PUT else OP_TAG, slot, index)
        data = entry_id + _KIND[kind]
        rows.append((key, tail, data + crc32(key + tail + data).to_bytes(_CHECK_BYTES, "big")))
    for key, target, author, epoch, seq, index in batch.edges:
        slot = slot_of(numbers[author, epoch], seq)
        tail = _EDGE_TAIL.pack(EDGE_TAG, target.id, target.op_index, slot, index)
        rows.append((key, tail, checked(key, tail, b"")))
    rows.sort()  # neighbours go into one page of the tree while it is at hand
    return rows


def op_tails(
    tag: int, log_number: int, first: int = 0, below: tuple[int, int] | None = None
) -> tuple[bytes, bytes]:
    """The range [from, below) of the tails of one log's ops, from seq `first` on; with `below` those
    that stand before this (seq, op index)."""
    seq, index = (SEQ_MAX + 1, 0) if below is None else below
    return (
        _OP_TAIL.pack(tag, log_number << _SEQ_BITS | first, 0),
        _OP_TAIL.pack(tag, (log_number << _SEQ_BITS) + seq, index),
    )


def unpack_op(key: bytes, tail: bytes, stored: bytes) -> StoredOp:
    data = unchecked(key, tail, stored)
    if len(tail) != _OP_TAIL.size or len(data) != _OP_ID_BYTES + 1:
        raise corrupt(f"an op of key {key!r} is cut short")
    _, slot, index = _OP_TAIL.unpack(tail)
    return StoredOp(slot, index, data[_OP_ID_BYTES], data[:_OP_ID_BYTES])


def edge_tails(target: Version) -> tuple[bytes, bytes]:
    """The range [from, to] of the tails of all edges to one version."""
    prefix = _EDGE_PREFIX.pack(EDGE_TAG, target.id, target.op_index)
    return prefix, prefix + b"\xff" * 10


def pack_entry(slot: int, row: EntryRow) -> tuple[int, bytes, bytes, bytes, bytes]:
    """The columns of an entry: slot, id, header, ops, and its origin with the checksum over all."""
    _, _, _, entry_id, header, ops, lung, peer, arrived_ms = row
    name = lung.encode()
    origin = _ORIGIN.pack(slot, arrived_ms, len(name)) + name + peer
    check = crc32(b"".join((origin, entry_id, header, ops)))
    return slot, entry_id, header, ops, check.to_bytes(_CHECK_BYTES, "big") + origin[_U64.size :]


def unpack_entry(
    log: LogKey, slot: int, entry_id: bytes, header: bytes, ops: bytes, origin: bytes
) -> EntryRow:
    """The inverse of `pack_entry`. Raises LatticeError `store_corrupt`."""
    # A flipped type in the file brings anything out of a column, hence the check before the use.
    if any(type(column) is not bytes for column in (entry_id, header, ops, origin)):
        raise corrupt(f"the entry in slot {slot} is not made of bytes")
    rest = _U64.pack(slot) + origin[_CHECK_BYTES:]
    if crc32(b"".join((rest, entry_id, header, ops))).to_bytes(_CHECK_BYTES, "big") != origin[:_CHECK_BYTES]:
        raise corrupt(f"entry {entry_id.hex()} does not match its checksum")
    _, arrived_ms, name_size = _ORIGIN.unpack_from(rest)
    name_end = _ORIGIN.size + name_size
    lung, peer = rest[_ORIGIN.size : name_end].decode(), rest[name_end:]
    return EntryRow(log[0], log[1], seq_of(slot), entry_id, header, ops, lung, peer, arrived_ms)


def pack_seal(slot: int, seal: Seal) -> bytes:
    return checked(_U64.pack(slot), b"", seal.id + seal.signature)


def unpack_seal(log: LogKey, slot: int, stored: bytes) -> Seal:
    data = unchecked(_U64.pack(slot), b"", stored)
    return Seal(*log, seq_of(slot), data[:32], data[32:])


def pack_idempotent(row: IdempotentRow) -> bytes:
    """The digest, its length as the first byte, then the result."""
    data = bytes((len(row.request_digest),)) + row.request_digest + row.result
    return checked(row.key, _U64.pack(row.expires_ms), data)


def unpack_idempotent(key: bytes, stored: bytes, expires_ms: int) -> IdempotentRow:
    if type(expires_ms) is not int or expires_ms < 0:
        raise corrupt(f"the result of idempotency key {key!r} has no time of expiry")
    data = unchecked(key, _U64.pack(expires_ms), stored)
    end = 1 + data[0]
    return IdempotentRow(key, data[1:end], data[end:], expires_ms)


def pack_fork(row: ForkRow) -> bytes:
    """A fork's record without its log; the checksum covers the log too."""
    writer = Writer().u64(row.frozen).blob(row.proof).u64(row.removed).u32(len(row.keys))
    for key in row.keys:
        writer.blob(key)
    data = writer.blob(row.peer).text(row.lung).u64(row.at_ms).done()
    return checked(row.author, _U64.pack(row.epoch), data)


def unpack_fork(log: LogKey, stored: bytes) -> ForkRow:
    data = unchecked(log.author, _U64.pack(log.epoch), stored)
    reader = Reader(data)
    frozen, proof, removed = reader.u64(), reader.blob(len(data)), reader.u64()
    keys = tuple(reader.blob(len(data)) for _ in range(reader.count(FORK_KEYS_MAX)))
    peer, lung, at_ms = reader.blob(len(data)), reader.text(len(data)), reader.u64()
    reader.end()
    return ForkRow(*log, frozen, proof, removed, keys, peer, lung, at_ms)


def unpack_edge(key: bytes, tail: bytes, stored: bytes) -> tuple[Version, int, int]:
    """The target of an edge, and the slot and op index of the op that names it."""
    unchecked(key, tail, stored)
    if len(tail) != _EDGE_TAIL.size:
        raise corrupt(f"an edge of key {key!r} is cut short")
    _, target, index, slot, op_index = _EDGE_TAIL.unpack(tail)
    return Version(target, index), slot, op_index


def pack_u64(value: int) -> bytes:
    """For epochs and frozen, which go up to 2^64-1 where SQLite's integers end at 2^63-1."""
    return _U64.pack(value)


def unpack_u64(data: bytes) -> int:
    value: int = _U64.unpack(data)[0]
    return value


def value_of(ops: bytes, version: LiveVersion) -> bytes | None:
    """The value of a version out of the ops of its entry (at least up to the value's end).

    None when these are not the bytes that the version names: the hash of the op is recomputed.
    """
    at = 0
    for _ in range(version.op_index):
        at += 4 + int.from_bytes(ops[at : at + 4], "big")
    start, end = at + 4, version.value_at + version.value_size
    if start + int.from_bytes(ops[at:start], "big") != end or end > len(ops):
        return None
    if sha256(b"\0" + ops[start:end]).digest() != version.op_hash:
        return None
    return ops[version.value_at : end]
