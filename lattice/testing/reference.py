"""The ledger's meaning, computed a second time: ids, chains, seals, state and roots from stored bytes.

Separate from the core and sharing no code with it but the shapes of rows, so that a defect there
is not repeated here. It is written to be read beside the format, not to be fast: no increments,
no caches, the whole state from the whole set of entries.
"""

from __future__ import annotations

import hashlib
import struct
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final, NamedTuple

from nacl.exceptions import BadSignatureError
from nacl.signing import VerifyKey

from ..core.entry import Seal
from ..core.rows import LogHead, LogKey, Reader

_HEADER: Final = struct.Struct(">B32sQQ32sQHI32s")
_OPEN: Final = 2**64 - 1
_PUT, _DELETE, _ADD = 1, 2, 3


class Header(NamedTuple):
    """An entry's header, read anew."""

    version: int
    author: bytes
    epoch: int
    seq: int
    prev: bytes
    clock: int
    op_count: int
    ops_bytes: int
    ops_root: bytes


class Name(NamedTuple):
    """The name of an op: (entry id, index)."""

    id: bytes
    op_index: int


@dataclass(frozen=True, slots=True)
class StoredOp:
    """One applicable op; `names` are those that it replaces, its own entry's included."""

    kind: int
    key: bytes
    names: tuple[Name, ...]
    body: bytes
    digest: bytes


@dataclass(slots=True)
class Ledger:
    """Everything that a node stores of its logs, as bytes: (header, ops) by log, in order of seq."""

    logs: dict[LogKey, list[tuple[bytes, bytes]]] = field(default_factory=dict)
    heads: dict[LogKey, LogHead] = field(default_factory=dict)
    seals: dict[LogKey, list[Seal]] = field(default_factory=dict)
    proofs: dict[LogKey, bytes] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return sum(len(entries) for entries in self.logs.values())

    def holds(self, log: LogKey, seq: int) -> bool:
        return seq < len(self.logs.get(log, ()))


def read_ledger(reader: Reader) -> Ledger:
    """All logs of a store. Entries that do not follow each other are simply not there."""
    ledger = Ledger(heads=reader.log_heads())
    for log in reader.frozen_logs():
        row = reader.fork_row(log)
        if row is not None:
            ledger.proofs[log] = row.proof
    for log, head in ledger.heads.items():
        rows = reader.entries(log.author, log.epoch, 0, max(head.seq, 0), 2**62) if head.seq >= 0 else []
        ledger.logs[log] = [(row.header, row.ops) for row in rows]
        ledger.seals[log] = reader.seals(log.author, log.epoch, 0, 2**62)
    return ledger


def header_of(data: bytes) -> Header:
    return Header(*_HEADER.unpack(data))


def id_of(network_id: bytes, header: bytes) -> bytes:
    """SHA-256(tag, network id, header)."""
    return hashlib.sha256(b"lattice/entry/v1\0" + network_id + header).digest()


def rfc6962_root(leaves: list[bytes]) -> bytes:
    """RFC 6962, section 2.1, by its recursive definition, over hashed leaves."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    half = 1
    while half * 2 < len(leaves):
        half *= 2
    left, right = rfc6962_root(leaves[:half]), rfc6962_root(leaves[half:])
    return hashlib.sha256(b"\x01" + left + right).digest()


# Chains and seals.


def find_forgeries(network_id: bytes, ledger: Ledger) -> Iterator[str]:
    """What is stored and not authenticated: broken chains, wrong ops, missing or bad seals."""
    for log, entries in ledger.logs.items():
        name = f"log {log.author.hex()[:8]}/{log.epoch:016x}"
        head = ledger.heads[log]
        if len(entries) != head.seq + 1:
            yield f"{name}: {len(entries)} entries stored, the head says {head.seq + 1}"
        seals = {seal.seq: seal for seal in ledger.seals[log]}
        yield from (f"{name}: {text}" for text in _find_chain_breaks(network_id, log, entries))
        continued = None
        if head.frozen != _OPEN:
            proof = ledger.proofs.get(log)
            faults = (
                ["it is frozen without a proof"]
                if proof is None
                else list(find_proof_faults(network_id, log, head.frozen, proof))
            )
            yield from (f"{name}: {text}" for text in faults)
            if head.seq >= head.frozen:
                yield f"{name}: it holds entries from where it is frozen"
            if proof is not None and not faults:
                continued = header_of(proof[4 : 4 + _HEADER.size]).prev
                if head.seq == head.frozen - 1 and continued != head.id:
                    yield f"{name}: its fork proof does not continue what is held"
        yield from (f"{name}: {text}" for text in _find_seal_faults(network_id, entries, seals, continued))
        if entries and id_of(network_id, entries[-1][0]) != head.id:
            yield f"{name}: the head does not name the last entry"


def _find_chain_breaks(network_id: bytes, log: LogKey, entries: list[tuple[bytes, bytes]]) -> Iterator[str]:
    before = bytes(32)
    for seq, (data, ops) in enumerate(entries):
        header = header_of(data)
        if (header.author, header.epoch, header.seq, header.prev) != (log.author, log.epoch, seq, before):
            yield f"entry {seq} does not continue its log"
        spans = list(_spans(ops))
        leaves = [hashlib.sha256(b"\0" + op).digest() for op in spans]
        if len(leaves) != header.op_count or rfc6962_root(leaves) != header.ops_root:
            yield f"entry {seq} has other ops than its header names"
        before = id_of(network_id, data)


def _find_seal_faults(
    network_id: bytes,
    entries: list[tuple[bytes, bytes]],
    seals: dict[int, Seal],
    continued: bytes | None = None,
) -> Iterator[str]:
    """`continued` is the id that a fork proof authenticates besides the seals."""
    for seq, (data, ops) in enumerate(entries):
        newest = seq == len(entries) - 1 and id_of(network_id, data) != continued
        must = seq % 64 == 63 or len(data) + len(ops) > 16 * 1024 or newest
        seal = seals.get(seq)
        if seal is None:
            if must:
                yield f"entry {seq} lacks the seal that it must have"
            continue
        if not _is_signed(network_id, seal):
            yield f"the seal of entry {seq} does not verify"
        if seal.id != id_of(network_id, data):
            yield f"the seal of entry {seq} names another entry"


def _is_signed(network_id: bytes, seal: Seal) -> bool:
    body = struct.pack(">32sQQ32s", seal.author, seal.epoch, seal.seq, seal.id)
    try:
        VerifyKey(seal.author).verify(b"lattice/seal/v1\0" + network_id + body, seal.signature)
    except BadSignatureError:
        return False
    return True


def find_proof_faults(network_id: bytes, log: LogKey, frozen: int, proof: bytes) -> Iterator[str]:
    """What is wrong with a fork proof: two sealed runs of headers of one log that contradict each
    other at `frozen`."""
    runs: list[list[tuple[Header, bytes]]] = []
    at = 0
    for _ in range(2):
        (count,) = struct.unpack_from(">I", proof, at)
        at += 4
        run = []
        for _ in range(count):
            data = proof[at : at + _HEADER.size]
            run.append((header_of(data), id_of(network_id, data)))
            at += _HEADER.size
        author, epoch, seq, name, signature = struct.unpack_from(">32sQQ32s64s", proof, at)
        at += 144
        seal = Seal(author, epoch, seq, name, signature)
        if (author, epoch) != log or not run or (seq, name) != (run[-1][0].seq, run[-1][1]):
            yield "a side of its fork proof is sealed by another entry's seal"
            return
        if not _is_signed(network_id, seal):
            yield "a seal of its fork proof does not verify"
        for (below, name), (above, _) in pairwise(run):
            if above.prev != name or above.seq != below.seq + 1 or below.seq % 64 == 63:
                yield "a side of its fork proof is no run"
        runs.append(run)
    (one, one_id), (other, other_id) = runs[0][0], runs[1][0]
    level = other.seq == one.seq and other_id != one_id
    above_it = other.seq == one.seq + 1 and other.prev != one_id
    if at != len(proof) or one.seq != frozen or not (level or above_it):
        yield "its fork proof shows no fork where it is frozen"


# Ops and state.


def _spans(ops: bytes) -> Iterator[bytes]:
    at = 0
    while at + 4 <= len(ops):
        (size,) = struct.unpack_from(">I", ops, at)
        yield ops[at + 4 : at + 4 + size]
        at += 4 + size


def read_op(op: bytes, entry: bytes, index: int) -> StoredOp | None:
    """An op that can be applied; None for one that breaks a rule of its kind or has another kind."""
    try:
        kind, key_size = struct.unpack_from(">BH", op, 0)
        at = 3 + key_size
        key = op[3:at]
        key.decode("utf-8")
        (count,) = struct.unpack_from(">H", op, at)
        at += 2
        names = []
        for _ in range(count):
            if op[at] == 0:
                names.append(Name(*struct.unpack_from(">32sH", op, at + 1)))
                at += 35
            else:
                (own,) = struct.unpack_from(">H", op, at + 1)
                if op[at] != 1 or own >= index:
                    return None
                names.append(Name(entry, own))
                at += 3
        (size,) = struct.unpack_from(">I", op, at)
    except (struct.error, IndexError, UnicodeDecodeError):
        return None
    body = op[at + 4 :]
    sound = {
        _PUT: size <= 128 * 1024,
        _DELETE: size == 0,
        _ADD: size == 8 and not count and abs(int.from_bytes(body, "big", signed=True)) < 2**53,
    }.get(kind, False)
    if not sound or len(body) != size or count > 256 or not 1 <= key_size <= 1024:
        return None
    return StoredOp(kind, key, tuple(names), body, hashlib.sha256(b"\0" + op).digest())


@dataclass(slots=True)
class KeyContent:
    """What the state holds of a key: live versions with op hash and value, and the counter."""

    live: dict[Name, tuple[bytes, bytes]] = field(default_factory=dict)
    adds: int = 0
    total: int = 0


def compute_state(network_id: bytes, ledger: Ledger) -> dict[bytes, KeyContent]:
    """The state of the whole set of entries, key by key; keys without a leaf are left out."""
    keys: dict[bytes, KeyContent] = defaultdict(KeyContent)
    named: dict[bytes, set[Name]] = defaultdict(set)
    for entries in ledger.logs.values():
        latest: dict[bytes, Name] = {}
        for data, ops in entries:
            entry = id_of(network_id, data)
            for index, raw in enumerate(_spans(ops)):
                op = read_op(raw, entry, index) if data[0] == 1 else None
                if op is None:
                    continue
                content = keys[op.key]
                if op.kind == _ADD:
                    content.adds += 1
                    content.total += int.from_bytes(op.body, "big", signed=True)
                    continue
                named[op.key].update(op.names)
                if op.key in latest:
                    named[op.key].add(latest[op.key])
                if op.kind == _PUT:
                    latest[op.key] = Name(entry, index)
                    content.live[Name(entry, index)] = (op.digest, op.body)
    for key, content in keys.items():
        content.live = {name: held for name, held in content.live.items() if name not in named[key]}
    return {key: content for key, content in keys.items() if content.live or content.adds}


def compute_state_root(state: dict[bytes, KeyContent]) -> bytes:
    """The root of the Merkle map over SHA-256(key): 65,536 buckets under a binary tree."""
    buckets: dict[int, list[tuple[bytes, bytes]]] = defaultdict(list)
    for key, content in state.items():
        place = hashlib.sha256(key).digest()
        buckets[int.from_bytes(place[:2], "big")].append((place, _leaf(key, content)))
    level = {
        number: hashlib.sha256(b"lattice/bucket/v1\0" + b"".join(a + b for a, b in sorted(pairs))).digest()
        for number, pairs in buckets.items()
    }
    empty = hashlib.sha256(b"lattice/bucket/v1\0").digest()
    for _ in range(16):
        parents = {number // 2 for number in level}
        level = {p: _node(level.get(2 * p, empty), level.get(2 * p + 1, empty)) for p in parents}
        empty = _node(empty, empty)
    return level.get(0, empty)


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"lattice/node/v1\0" + left + right).digest()


def _leaf(key: bytes, content: KeyContent) -> bytes:
    parts = [b"lattice/leaf/v1\0", struct.pack(">I", len(key)), key, struct.pack(">I", len(content.live))]
    for name, (digest, _) in sorted(content.live.items()):
        parts.extend((name.id, struct.pack(">H", name.op_index), digest))
    total = str(content.total).encode()
    parts.append(struct.pack(">QI", content.adds, len(total)) + total)
    return hashlib.sha256(b"".join(parts)).digest()


def compute_log_root(heads: Iterable[tuple[LogKey, LogHead]]) -> bytes:
    """The root over (author, digest of its logs), by author."""
    authors: dict[bytes, list[bytes]] = defaultdict(list)
    for log, head in sorted(heads):
        seq = head.seq if head.seq >= 0 else _OPEN
        authors[log.author].append(struct.pack(">QQ32sQ", log.epoch, seq, head.id, head.frozen))
    leaves = []
    for author in sorted(authors):
        digest = hashlib.sha256(b"lattice/author/v1\0" + b"".join(authors[author])).digest()
        leaves.append(hashlib.sha256(b"\0" + author + digest).digest())
    return rfc6962_root(leaves)
