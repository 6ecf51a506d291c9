"""Proofs that a key is, or is not, in the state under a signed root: made here, and checked here offline.

Separate because a proof is checked by people who have no node: nothing here reads a store, and what the
check needs is in the proof itself. The rules are in docs/reference/wire.md, section 17.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final, NamedTuple

from .entry import (
    FORMAT_VERSION,
    SEAL_BYTES,
    Header,
    OpKind,
    Version,
    entry_id,
    parse_header,
    parse_op,
    parse_seal,
    seal_verifies,
)
from .errors import MalformedError
from .identity import STATE_TAG, is_valid_public_key, peer_id_of, public_key_of, verify
from .limits import AMOUNT_MAX, ENTRY_BYTES_MAX, KEY_BYTES_MAX, SEAL_INTERVAL
from .merkle import bucket_of, leaf_hash, map_root_from_path
from .rows import KeyState, LiveVersion
from .state import leaf_of

FORMAT: Final = "lattice/proof/v1"

_PATH_LENGTH: Final = 16
_LIVE_MAX: Final = 65_536  # more siblings than any network has logs
_BUCKET_BYTES_MAX: Final = 1 << 22
_AUDIT_LENGTH_MAX: Final = 8  # an entry has at most 256 ops
_U64_MAX: Final = 2**64 - 1
_HEX: Final = re.compile(r"(?:[0-9a-f]{2})*", re.ASCII)
_SUM: Final = re.compile(r"0|-?[1-9][0-9]{0,40}", re.ASCII)  # 2^64 adds of 2^53 have 36 digits


class Statement(NamedTuple):
    """What a node says of its ledger at one time; the signature is over STATE_TAG, the network id,
    both roots and the time (u64, ms)."""

    signer: bytes
    state_root: bytes
    log_root: bytes
    timestamp_ms: int
    signature: bytes

    def verifies(self, network_id: bytes) -> bool:
        body = self.state_root + self.log_root + self.timestamp_ms.to_bytes(8, "big")
        return is_valid_public_key(self.signer) and verify(
            STATE_TAG, network_id, self.signer, body, self.signature
        )


class ProofVersion(NamedTuple):
    """A live version as its leaf holds it, with the header of its entry, which names clock and author."""

    id: bytes
    op_index: int
    op_hash: bytes
    header: bytes


class ProofValue(NamedTuple):
    """The winner's op, its way to the ops root of its entry, and the entry's to a seal: the headers
    after it, lowest seq first, up to that of the entry that is sealed."""

    op: bytes
    audit_path: tuple[bytes, ...]
    headers: tuple[bytes, ...]
    seal: bytes


@dataclass(frozen=True, slots=True)
class KeyProof:
    """All that shows a key, or its absence, under a signed state root.

    `live` stands in the order of the leaf. A key with neither live versions nor adds is absent.
    `bucket` and `path` are those of wire.md, section 8; `value` is there exactly when something is live.
    """

    network_id: bytes
    key: bytes
    live: tuple[ProofVersion, ...]
    adds: int
    total: int
    bucket: bytes
    path: tuple[bytes, ...]
    value: ProofValue | None
    statement: Statement


@dataclass(frozen=True, slots=True)
class Proven:
    """What a valid proof shows. `value` is the winner's bytes; both are None where nothing is live."""

    present: bool
    winner: Version | None
    author: bytes | None
    value: bytes | None


def audit_path(leaves: Sequence[bytes], index: int) -> tuple[bytes, ...]:
    """RFC 6962, section 2.1.1: the siblings from the leaf (already hashed) to the root."""
    path = []
    level = list(leaves)
    while len(level) > 1:
        if index ^ 1 < len(level):
            path.append(level[index ^ 1])
        above = [sha256(b"\1" + level[at] + level[at + 1]).digest() for at in range(0, len(level) - 1, 2)]
        if len(level) % 2:
            above.append(level[-1])
        level = above
        index >>= 1
    return tuple(path)


def root_from_audit_path(leaf: bytes, index: int, size: int, path: Sequence[bytes]) -> bytes | None:
    """The root to which the path leads; None when it has not the length for this place in a tree of
    `size` leaves."""
    digest, left = leaf, list(path)
    if not 0 <= index < size:
        return None
    last = size - 1
    while last:
        if index != last or index & 1:  # else the odd last node, which moves up as it is
            if not left:
                return None
            sibling = left.pop(0)
            digest = sha256(b"\1" + (sibling + digest if index & 1 else digest + sibling)).digest()
        index >>= 1
        last >>= 1
    return None if left else digest


def winner_of(live: Sequence[ProofVersion]) -> ProofVersion:
    """The live version with the greatest (clock, author, id, op index)."""

    def rank(version: ProofVersion) -> tuple[int, bytes, bytes, int]:
        header = parse_header(version.header)
        return header.clock, header.author, version.id, version.op_index

    return max(live, key=rank)


def verify_proof(proof: KeyProof) -> Proven:
    """Check everything, offline. Raises MalformedError that says what does not hold.

    Whether the network, the signer and the root are those that somebody expects is for the caller.
    """
    statement = proof.statement
    _check(statement.verifies(proof.network_id), "the signature under the roots does not verify")
    key_hash = sha256(proof.key).digest()
    _check(len(proof.path) == _PATH_LENGTH, f"the path to the state root has not {_PATH_LENGTH} hashes")
    root = map_root_from_path(bucket_of(key_hash), proof.bucket, proof.path)
    _check(root == statement.state_root, "the bucket and its path do not lead to the signed state root")
    leaves = _pairs(proof.bucket)
    leaf = leaf_of(state_of(proof.key, proof.live, proof.adds, proof.total))
    if leaf is None:
        _check(proof.total == 0 and proof.value is None, "an absent key has neither a sum nor a value")
        _check(key_hash not in leaves, "the key is present under the state root, not absent")
        return Proven(False, None, None, None)
    _check(key_hash in leaves, "the key is absent under the state root, not present")
    _check(leaves[key_hash] == leaf, "the leaf of the key is another one under the state root")
    if not proof.live:
        _check(proof.value is None, "a key that is only a counter has no value")
        return Proven(True, None, None, None)
    for version in proof.live:
        _check(
            entry_id(proof.network_id, version.header) == version.id,
            "the header of a live version is not that of its entry",
        )
    winner = winner_of(proof.live)
    _check(proof.value is not None, "the op of the winner is missing")
    assert proof.value is not None
    value = _check_value(proof, winner, proof.value)
    author = parse_header(winner.header).author
    return Proven(True, Version(winner.id, winner.op_index), author, value)


def _check_value(proof: KeyProof, winner: ProofVersion, shown: ProofValue) -> bytes:
    header = parse_header(winner.header)
    _check(header.version == FORMAT_VERSION, "no op of an entry of this format is applied")
    op_hash = leaf_hash(shown.op)
    _check(op_hash == winner.op_hash, "the op is not the one that the leaf names")
    root = root_from_audit_path(op_hash, winner.op_index, header.op_count, shown.audit_path)
    _check(root == header.ops_root, "the op and its path do not lead to the ops root of the entry")
    op = parse_op(shown.op, 0, len(shown.op), winner.op_index, op_hash)
    _check(op is not None and op.kind is OpKind.PUT and op.key == proof.key, "the op is no put of this key")
    assert op is not None
    _check_seal(proof.network_id, winner.id, header, shown)
    return shown.op[op.value_at : op.value_at + op.value_size]


def _check_seal(network_id: bytes, below: bytes, header: Header, shown: ProofValue) -> None:
    """From the entry upwards, each header names the one before, and a seal stands over the last."""
    _check(len(shown.headers) < SEAL_INTERVAL, "the seal is too far above the entry")
    last = header
    for packed in shown.headers:
        following = parse_header(packed)
        _check(
            following.prev == below
            and following.seq == last.seq + 1
            and (following.author, following.epoch) == (header.author, header.epoch),
            "the headers up to the seal do not chain",
        )
        below, last = entry_id(network_id, packed), following
    seal = parse_seal(shown.seal)
    _check(
        (seal.author, seal.epoch, seal.seq, seal.id) == (last.author, last.epoch, last.seq, below),
        "the seal is not over this chain",
    )
    _check(is_valid_public_key(seal.author), "the author's key is not acceptable")
    _check(seal_verifies(network_id, seal), "the seal's signature does not verify")


def state_of(key: bytes, live: Sequence[ProofVersion], adds: int, total: int) -> KeyState:
    """What a leaf is made of. Clocks, places and sizes are no part of it."""
    held = (LiveVersion(one.id, one.op_index, one.op_hash, 0, b"", 0, 0, 0, 0) for one in live)
    return KeyState(key, tuple(held), adds, total)


def _pairs(bucket: bytes) -> dict[bytes, bytes]:
    """Key hash to leaf. Ascending order is what makes absence mean something."""
    _check(len(bucket) % 64 == 0, "a bucket consists of pairs of 64 bytes")
    found = {bucket[at : at + 32]: bucket[at + 32 : at + 64] for at in range(0, len(bucket), 64)}
    hashes = list(found)
    _check(hashes == sorted(hashes) and len(hashes) * 64 == len(bucket), "the pairs are not ascending")
    return found


def _check(holds: bool, otherwise: str) -> None:
    if not holds:
        raise MalformedError(f"the proof is not valid: {otherwise}")


# The JSON form.


def proof_fields(proof: KeyProof) -> dict[str, Any]:
    """The proof as JSON-ready fields, bytes in hex (`KeyProof` in schemas.py)."""
    value, said = proof.value, proof.statement
    return {
        "format": FORMAT,
        "network": proof.network_id.hex(),
        **key_fields(proof.key, proof.live, proof.adds, proof.total),
        "bucket": proof.bucket.hex(),
        "path": [step.hex() for step in proof.path],
        "winner": None
        if value is None
        else {
            "op": value.op.hex(),
            "audit_path": [step.hex() for step in value.audit_path],
            "headers": [header.hex() for header in value.headers],
            "seal": value.seal.hex(),
        },
        "statement": {
            "signer": peer_id_of(said.signer),
            "state_root": said.state_root.hex(),
            "log_root": said.log_root.hex(),
            "timestamp_ms": said.timestamp_ms,
            "signature": said.signature.hex(),
        },
    }


def key_fields(key: bytes, live: Sequence[ProofVersion], adds: int, total: int) -> dict[str, Any]:
    """What a leaf is made of, as JSON-ready fields."""
    return {
        "key": key.decode("utf-8"),
        "present": bool(live) or adds > 0,
        "live": [
            {
                "version": str(Version(version.id, version.op_index)),
                "op_hash": version.op_hash.hex(),
                "header": version.header.hex(),
            }
            for version in live
        ],
        "adds": adds,
        "total": str(total),
    }


def parse_proof(data: object) -> KeyProof:
    """From the JSON form; fields that it does not know are ignored. Raises MalformedError."""
    top = Fields(data, "the proof")
    if top.get("format") != FORMAT:
        raise MalformedError(f"this is no proof of the format {FORMAT}")
    said = Fields(top.get("statement"), "its statement")
    winner = top.get("winner")
    return KeyProof(
        top.hex("network", 32, 32),
        *parse_held(top),
        top.hex("bucket", 0, _BUCKET_BYTES_MAX),
        top.hashes("path", _PATH_LENGTH),
        None if winner is None else _parse_value(winner),
        Statement(
            parse_signer(said),
            said.hex("state_root", 32, 32),
            said.hex("log_root", 32, 32),
            said.number("timestamp_ms"),
            said.hex("signature", 64, 64),
        ),
    )


def parse_held(top: Fields) -> tuple[bytes, tuple[ProofVersion, ...], int, int]:
    """The inverse of key_fields: key, live versions, adds and total."""
    total = top.get("total")
    if not isinstance(total, str) or not _SUM.fullmatch(total):
        raise MalformedError("the total is not a whole number as text")
    live = tuple(_parse_version(one) for one in top.items("live", _LIVE_MAX))
    places = [(version.id, version.op_index) for version in live]
    if places != sorted(set(places)):
        raise MalformedError("the live versions are not in ascending order")
    adds = top.number("adds")
    if top.get("present") is not (bool(live) or adds > 0):
        raise MalformedError("what is listed is not what the field `present` says")
    if abs(int(total)) > adds * AMOUNT_MAX:
        raise MalformedError("the total is larger than the adds can be")
    return _key_of(top.get("key")), live, adds, int(total)


def parse_signer(said: Fields) -> bytes:
    """The public key of whoever signed the statement."""
    signer = said.get("signer")
    if not isinstance(signer, str):
        raise MalformedError("the signer is not a peer id")
    return public_key_of(signer)


def _key_of(key: object) -> bytes:
    try:
        raw = key.encode("utf-8") if isinstance(key, str) else b""
    except UnicodeEncodeError as error:
        raise MalformedError("the key of the proof is not Unicode text") from error
    if not 0 < len(raw) <= KEY_BYTES_MAX:
        raise MalformedError(f"the key of the proof has not 1 to {KEY_BYTES_MAX} bytes of text")
    return raw


def _parse_version(data: object) -> ProofVersion:
    fields = Fields(data, "a live version")
    text = fields.get("version")
    version = Version.parse(text if isinstance(text, str) else "")
    return ProofVersion(*version, fields.hex("op_hash", 32, 32), fields.hex("header", 127, 127))


def _parse_value(data: object) -> ProofValue:
    fields = Fields(data, "the winner")
    return ProofValue(
        fields.hex("op", 0, ENTRY_BYTES_MAX),
        fields.hashes("audit_path", _AUDIT_LENGTH_MAX),
        tuple(_unhex(one, 127, 127, "headers") for one in fields.items("headers", SEAL_INTERVAL)),
        fields.hex("seal", SEAL_BYTES, SEAL_BYTES),
    )


class Fields:
    """Reads the fields of one JSON object strictly."""

    __slots__ = ("_data", "_what")

    def __init__(self, data: object, what: str) -> None:
        if not isinstance(data, Mapping):
            raise MalformedError(f"{what} is not a JSON object")
        self._data = data
        self._what = what

    def get(self, name: str) -> object:
        if name not in self._data:
            raise MalformedError(f"{self._what} has no field {name!r}")
        found: object = self._data[name]
        return found

    def hex(self, name: str, least: int, most: int) -> bytes:
        return _unhex(self.get(name), least, most, name)

    def number(self, name: str) -> int:
        found = self.get(name)
        if not isinstance(found, int) or isinstance(found, bool) or not 0 <= found <= _U64_MAX:
            raise MalformedError(f"{self._what}: {name} is not a number of 64 bits")
        return found

    def items(self, name: str, most: int) -> list[object]:
        found = self.get(name)
        if not isinstance(found, list) or len(found) > most:
            raise MalformedError(f"{self._what}: {name} is not a list of at most {most}")
        return found

    def hashes(self, name: str, most: int) -> tuple[bytes, ...]:
        return tuple(_unhex(one, 32, 32, name) for one in self.items(name, most))


def _unhex(data: object, least: int, most: int, name: str) -> bytes:
    if not isinstance(data, str) or not _HEX.fullmatch(data) or not least <= len(data) // 2 <= most:
        raise MalformedError(f"{name} is not {least} to {most} bytes in lower-case hex")
    return bytes.fromhex(data)
