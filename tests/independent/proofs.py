"""Proof files and receipts of keys, read and checked offline (sections 17 and 18).

Separate from the peer, which talks to nodes: this is for somebody who has a file, docs/reference/wire.md,
SHA-256 and Ed25519, and nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from tests.independent.ledger import leaf
from tests.independent.wire_format import (
    AMOUNT_MAX,
    ENTRY_BYTES_MAX,
    HEADER_BYTES,
    KEY_BYTES_MAX,
    OPS_MAX,
    PUT,
    SEAL_BYTES,
    SEALED_EVERY,
    Header,
    Malformed,
    is_good_key,
    is_signed,
    public_key_of,
    read_header,
    read_op,
    read_seal,
    sha,
    tag,
    u64,
)

_HEX: Final = re.compile("[0-9a-f]*")
_VERSION: Final = re.compile(r"([0-9a-f]{64})\.(0|[1-9][0-9]{0,2})")
_TOTAL: Final = re.compile("0|-?[1-9][0-9]{0,40}")


class Refused(Malformed):
    """The file does not show what it says."""


class Version(NamedTuple):
    id: bytes
    index: int
    op_hash: bytes
    header: bytes


class Held(NamedTuple):
    """What the leaf of a key is made of."""

    network: bytes
    key: bytes
    live: tuple[Version, ...]
    adds: int
    total: int

    def leaf(self) -> bytes:
        return leaf(self.key, [one[:3] for one in self.live], self.adds, self.total)

    def check_headers(self) -> None:
        for one in self.live:
            named = sha(tag("entry"), self.network, one.header)
            demand(named == one.id, "a header is not that of its version")


class Shown(NamedTuple):
    """What a valid proof shows: a key that is there or not, and who wrote which value in which version."""

    present: bool
    version: tuple[bytes, int] | None = None
    author: bytes | None = None
    value: bytes | None = None


def demand(holds: bool, otherwise: str) -> None:
    if not holds:
        raise Refused(otherwise)


# The JSON form


def field(data: Any, name: str) -> Any:
    demand(isinstance(data, dict) and name in data, f"there is no field {name}")
    return data[name]


def octets(value: Any, least: int, most: int | None = None) -> bytes:
    most = least if most is None else most
    demand(isinstance(value, str) and bool(_HEX.fullmatch(value)), "a text is not lower-case hex")
    demand(len(value) % 2 == 0 and least <= len(value) // 2 <= most, "a text has another number of bytes")
    return bytes.fromhex(value)


def number(value: Any) -> int:
    demand(type(value) is int and 0 <= value < 2**64, "a field is no number of 64 bits")
    return int(value)


def array(value: Any, most: int) -> list[Any]:
    demand(isinstance(value, list) and len(value) <= most, "a field is no array, or too long")
    return list(value)


def read_held(data: Any) -> Held:
    key = field(data, "key")
    demand(isinstance(key, str), "the key is no text")
    raw = key.encode()
    demand(1 <= len(raw) <= KEY_BYTES_MAX, "the key has a wrong size")
    live = tuple(read_version(one) for one in array(field(data, "live"), 65_536))
    places = [(one.id, one.index) for one in live]
    demand(places == sorted(set(places)), "the live versions do not ascend")
    adds, total = number(field(data, "adds")), field(data, "total")
    demand(isinstance(total, str) and bool(_TOTAL.fullmatch(total)), "the total is no sum")
    demand(abs(int(total)) <= adds * AMOUNT_MAX, "the total is larger than the adds can be")
    demand(field(data, "present") is bool(live or adds), "what is listed is not what `present` says")
    return Held(octets(field(data, "network"), 32), raw, live, adds, int(total))


def read_version(data: Any) -> Version:
    text = field(data, "version")
    found = _VERSION.fullmatch(text) if isinstance(text, str) else None
    demand(found is not None and int(found[2]) < OPS_MAX, "a version has another form")
    assert found is not None
    op_hash, header = octets(field(data, "op_hash"), 32), octets(field(data, "header"), HEADER_BYTES)
    return Version(bytes.fromhex(found[1]), int(found[2]), op_hash, header)


def check_statement(said: Any, what: str, network: bytes, roots: Sequence[bytes]) -> None:
    """The signature of the statement over the network, the roots and its time."""
    signer = field(said, "signer")
    try:
        public_key = public_key_of(signer if isinstance(signer, str) else "")
    except (ValueError, OverflowError) as error:
        raise Refused("the signer is no peer id") from error
    body = b"".join(roots) + u64(number(field(said, "timestamp_ms")))
    signature = octets(field(said, "signature"), 64)
    good = is_good_key(public_key) and is_signed(public_key, tag(what) + network + body, signature)
    demand(good, "the signature of the statement does not hold")


# 17. The proof of a key


def check_proof(data: Any) -> Shown:
    """Everything that the page demands of a proof file. Raises Malformed."""
    demand(field(data, "format") == "lattice/proof/v1", "this is no proof")
    held, said = read_held(data), field(data, "statement")
    roots = [octets(field(said, name), 32) for name in ("state_root", "log_root")]
    check_statement(said, "state", held.network, roots)
    pairs = check_bucket(data, sha(held.key), roots[0])
    winner = field(data, "winner")
    if not field(data, "present"):
        demand(held.total == 0 and winner is None, "an absent key has a sum or a value")
        demand(sha(held.key) not in pairs, "the key is there")
        return Shown(False)
    demand(pairs.get(sha(held.key)) == held.leaf(), "the leaf of the key is another one")
    if not held.live:
        demand(winner is None, "a counter has no value")
        return Shown(True)
    held.check_headers()
    return check_value(held, winner)


def check_bucket(data: Any, place: bytes, state_root: bytes) -> dict[bytes, bytes]:
    """The pairs of the bucket, after they were shown to lie under the state root (8)."""
    bucket = octets(field(data, "bucket"), 0, 4_194_304)
    path = [octets(step, 32) for step in array(field(data, "path"), 16)]
    demand(len(path) == 16 and len(bucket) % 64 == 0, "the bucket or its path has another length")
    side, root = int.from_bytes(place[:2], "big"), sha(tag("bucket"), bucket)
    for sibling in path:
        pair = (sibling, root) if side % 2 else (root, sibling)
        side, root = side // 2, sha(tag("node"), *pair)
    demand(root == state_root, "the bucket does not lead to the state root")
    places = [bucket[at : at + 32] for at in range(0, len(bucket), 64)]
    demand(places == sorted(set(places)), "the pairs of the bucket do not ascend")
    return {bucket[at : at + 32]: bucket[at + 32 : at + 64] for at in range(0, len(bucket), 64)}


def check_value(held: Held, winner: Any) -> Shown:
    headers = {one: read_header(one.header) for one in held.live}
    best = max(held.live, key=lambda one: (headers[one].clock, headers[one].author, one.id, one.index))
    header = headers[best]
    data = octets(field(winner, "op"), 0, ENTRY_BYTES_MAX)
    demand(header.version == 1, "no op of the winner's entry is applied")
    demand(sha(b"\x00", data) == best.op_hash, "the op is another one")
    check_place(best, header, [octets(step, 32) for step in array(field(winner, "audit_path"), 8)])
    op = read_op(data, best.index)
    demand(op is not None and (op.kind, op.key) == (PUT, held.key), "the op puts nothing under this key")
    assert op is not None
    check_seal(held.network, best, header, winner)
    return Shown(True, (best.id, best.index), header.author, op.body)


def check_place(best: Version, header: Header, hashes: list[bytes]) -> None:
    """That the op stands at its index under the ops root of the header."""
    index, last, root = best.index, header.op_count - 1, best.op_hash
    demand(index <= last, "the entry has fewer ops")
    rest = iter(hashes)
    while last:
        if index % 2 or index < last:
            sibling = next(rest, None)
            demand(sibling is not None, "the audit path is too short")
            assert sibling is not None
            root = sha(b"\x01", *((sibling, root) if index % 2 else (root, sibling)))
        index, last = index // 2, last // 2
    demand(next(rest, None) is None, "the audit path goes on")
    demand(root == header.ops_root, "the op is not one of its entry")


def check_seal(network: bytes, best: Version, header: Header, winner: Any) -> None:
    """That the headers go on from the winner's entry to one with a valid seal."""
    top, top_id = header, best.id
    for text in array(field(winner, "headers"), SEALED_EVERY - 1):
        raw = octets(text, HEADER_BYTES)
        above = read_header(raw)
        follows = (above.author, above.epoch, above.seq) == (top.author, top.epoch, top.seq + 1)
        demand(follows and above.prev == top_id, "the headers do not go on from each other")
        top, top_id = above, sha(tag("entry"), network, raw)
    seal = read_seal(octets(field(winner, "seal"), SEAL_BYTES))
    demand(seal[:4] == (top.author, top.epoch, top.seq, top_id), "the seal is over another entry")
    demand(is_good_key(seal.author) and seal.is_valid(network), "the signature of the seal does not hold")


# 18. The receipt of a key


def check_receipt(data: Any) -> None:
    """Everything that the page demands of a receipt. Raises Malformed."""
    demand(field(data, "format") == "lattice/receipt/v1", "this is no receipt")
    held, said = read_held(data), field(data, "statement")
    target, root = octets(field(data, "target_hash"), 32), octets(field(data, "merkle_root"), 32)
    check_statement(said, "receipt", held.network, [octets(field(said, "state_root"), 32), root])
    demand(field(data, "present") and held.leaf() == target, "the target is not the leaf of the key")
    held.check_headers()
    reached = target
    for step in array(field(data, "proof"), 64):
        demand(isinstance(step, dict) and list(step) in (["left"], ["right"]), "a step has not one side")
        ((side, sibling),) = step.items()
        other = octets(sibling, 32)
        reached = sha(other, reached) if side == "left" else sha(reached, other)
    demand(reached == root, "the steps do not lead to the root")
