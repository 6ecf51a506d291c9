"""Receipts of keys that the merkletools package validates, over a tree of its own kind.

Separate from the proofs because merkletools hashes leaves and inner nodes alike: its root is not the
state root (docs/adr/0001-merkletools.md), so a node signs the one beside the other. The rules are in
docs/reference/wire.md, section 18.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final, NamedTuple

from .entry import entry_id
from .errors import MalformedError
from .identity import RECEIPT_TAG, is_valid_public_key, peer_id_of, verify
from .proofs import Fields, ProofVersion, key_fields, parse_held, parse_signer, state_of
from .state import leaf_of

FORMAT: Final = "lattice/receipt/v1"

_STEPS_MAX: Final = 64
_SIDES: Final = ("left", "right")


class Step(NamedTuple):
    """One sibling on the way up, and on which side of the path it stands."""

    side: str
    sibling: bytes


class ReceiptStatement(NamedTuple):
    """The signature is over RECEIPT_TAG, the network id, the state root, the root of the receipt's tree
    and the time (u64, ms)."""

    signer: bytes
    state_root: bytes
    timestamp_ms: int
    signature: bytes


@dataclass(frozen=True, slots=True)
class Receipt:
    """A present key in a merkletools tree over the leaves of all keys in the order of the key hashes."""

    network_id: bytes
    key: bytes
    live: tuple[ProofVersion, ...]
    adds: int
    total: int
    target: bytes
    root: bytes
    steps: tuple[Step, ...]
    statement: ReceiptStatement


def plain_path(leaves: Sequence[bytes], index: int) -> tuple[bytes, tuple[Step, ...]]:
    """The root of the merkletools tree over at least one leaf, and the path of the leaf at `index`."""
    level, steps = list(leaves), []
    while len(level) > 1:
        if index ^ 1 < len(level):
            steps.append(Step(_SIDES[1 - index % 2], level[index ^ 1]))
        above = [sha256(level[at] + level[at + 1]).digest() for at in range(0, len(level) - 1, 2)]
        if len(level) % 2:
            above.append(level[-1])
        level = above
        index //= 2
    return level[0], tuple(steps)


def statement_body(state_root: bytes, root: bytes, timestamp_ms: int) -> bytes:
    """What the signature of a receipt covers after tag and network id."""
    return state_root + root + timestamp_ms.to_bytes(8, "big")


def verify_receipt(receipt: Receipt) -> None:
    """Check everything, offline. Raises MalformedError that says what does not hold."""
    said = receipt.statement
    body = statement_body(said.state_root, receipt.root, said.timestamp_ms)
    if not is_valid_public_key(said.signer) or not verify(
        RECEIPT_TAG, receipt.network_id, said.signer, body, said.signature
    ):
        raise MalformedError("the receipt is not valid: the signature under its roots does not verify")
    if leaf_of(state_of(receipt.key, receipt.live, receipt.adds, receipt.total)) != receipt.target:
        raise MalformedError("the receipt is not valid: the target is not the leaf of this key")
    # The leaf covers the ids, and nothing else here covers the headers, which name clock and author.
    if any(entry_id(receipt.network_id, version.header) != version.id for version in receipt.live):
        raise MalformedError(
            "the receipt is not valid: the header of a live version is not that of its entry"
        )
    digest = receipt.target
    for step in receipt.steps:
        pair = step.sibling + digest if step.side == "left" else digest + step.sibling
        digest = sha256(pair).digest()
    if digest != receipt.root:
        raise MalformedError("the receipt is not valid: the path does not lead to the signed root")


def receipt_fields(receipt: Receipt) -> dict[str, Any]:
    """The receipt as JSON-ready fields. `proof`, `target_hash` and `merkle_root` are the arguments of
    merkletools' `validate_proof`, in this order."""
    said = receipt.statement
    return {
        "format": FORMAT,
        "network": receipt.network_id.hex(),
        **key_fields(receipt.key, receipt.live, receipt.adds, receipt.total),
        "target_hash": receipt.target.hex(),
        "merkle_root": receipt.root.hex(),
        "proof": [{step.side: step.sibling.hex()} for step in receipt.steps],
        "statement": {
            "signer": peer_id_of(said.signer),
            "state_root": said.state_root.hex(),
            "timestamp_ms": said.timestamp_ms,
            "signature": said.signature.hex(),
        },
    }


def parse_receipt(data: object) -> Receipt:
    """From the JSON form; unknown fields are ignored. Raises MalformedError."""
    top = Fields(data, "the receipt")
    if top.get("format") != FORMAT:
        raise MalformedError(f"this is no receipt of the format {FORMAT}")
    said = Fields(top.get("statement"), "its statement")
    return Receipt(
        top.hex("network", 32, 32),
        *parse_held(top),
        top.hex("target_hash", 32, 32),
        top.hex("merkle_root", 32, 32),
        tuple(_parse_step(one) for one in top.items("proof", _STEPS_MAX)),
        ReceiptStatement(
            parse_signer(said),
            said.hex("state_root", 32, 32),
            said.number("timestamp_ms"),
            said.hex("signature", 64, 64),
        ),
    )


def _parse_step(data: object) -> Step:
    for side in _SIDES:
        if isinstance(data, dict) and list(data) == [side]:
            return Step(side, Fields(data, "a step of the receipt").hex(side, 32, 32))
    raise MalformedError("a step of the receipt has not one side, left or right")
