"""Node identities: the Ed25519 key, the peer id as its text form, and tagged signatures.

Separate because the signature rules (what is valid, what is covered) must be the same for entries,
seals and envelopes, and must not be reachable in any laxer way.
"""

from __future__ import annotations

from typing import Final

from nacl.bindings import (
    crypto_core_ed25519_is_valid_point,
    crypto_sign,
    crypto_sign_open,
    crypto_sign_seed_keypair,
)
from nacl.exceptions import BadSignatureError

from .errors import LatticeError

SEED_BYTES: Final = 32
PUBLIC_KEY_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64
NETWORK_ID_BYTES: Final = 32

# An identity multihash of the protobuf that libp2p wraps around an Ed25519 public key
# (peer-ids specification): multihash code 0, length 36, KeyType=Ed25519, Data of 32 bytes.
_PEER_ID_PREFIX: Final = bytes.fromhex("002408011220")
_PEER_ID_CHARS_MAX: Final = 64  # 52 in fact; base58 takes quadratic time to decode
_ALPHABET: Final = b"123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_INDEX: Final = {char: number for number, char in enumerate(_ALPHABET)}

# Every signature starts with one of these, so that none can be shown as one of another kind.
SEAL_TAG: Final = b"lattice/seal/v1\0"
ENVELOPE_TAG: Final = b"lattice/envelope/v1\0"
STATE_TAG: Final = b"lattice/state/v1\0"
RECEIPT_TAG: Final = b"lattice/receipt/v1\0"


def base58_encode(data: bytes) -> str:
    """Base58 with the Bitcoin alphabet; a leading zero byte becomes a leading `1`."""
    zeros = len(data) - len(data.lstrip(b"\0"))
    number = int.from_bytes(data, "big")
    digits = bytearray()
    while number:
        number, rest = divmod(number, 58)
        digits.append(_ALPHABET[rest])
    return "1" * zeros + digits[::-1].decode("ascii")


def base58_decode(text: str) -> bytes:
    """The inverse of base58_encode. Raises ValueError on a character outside the alphabet."""
    number = 0
    for char in text.encode("utf-8"):
        if char not in _INDEX:
            raise ValueError(f"{chr(char)!r} is not a base58 character")
        number = number * 58 + _INDEX[char]
    zeros = len(text) - len(text.lstrip("1"))
    return b"\0" * zeros + number.to_bytes((number.bit_length() + 7) // 8, "big")


def peer_id_of(public_key: bytes) -> str:
    """The peer id (`12D3Koo…`) of a 32-byte Ed25519 public key."""
    return base58_encode(_PEER_ID_PREFIX + public_key)


def public_key_of(peer_id: str) -> bytes:
    """The 32-byte public key inside a peer id. Raises LatticeError `malformed`."""
    if len(peer_id) > _PEER_ID_CHARS_MAX:
        raise LatticeError("malformed", f"a peer id has no {len(peer_id)} characters")
    try:
        raw = base58_decode(peer_id)
    except ValueError as error:
        raise LatticeError("malformed", f"{peer_id!r} is not a peer id: {error}") from error
    if len(raw) != len(_PEER_ID_PREFIX) + PUBLIC_KEY_BYTES or not raw.startswith(_PEER_ID_PREFIX):
        raise LatticeError("malformed", f"{peer_id!r} is not the peer id of an Ed25519 key")
    return raw[len(_PEER_ID_PREFIX) :]


def is_valid_public_key(public_key: bytes) -> bool:
    """Canonical encoding, on the curve, in the prime-order group, not of small order.

    Checked once, when an author is first seen: with a key of small or mixed order one signature
    can fit several messages, and verifiers of different make disagree (RFC 8032 leaves both open).
    """
    return len(public_key) == PUBLIC_KEY_BYTES and bool(crypto_core_ed25519_is_valid_point(public_key))


def verify(tag: bytes, network_id: bytes, public_key: bytes, body: bytes, signature: bytes) -> bool:
    """Whether `signature` is the author's over tag, network id and body.

    RFC 8032 without cofactor and with S < L, which is what libsodium checks.
    """
    if len(signature) != SIGNATURE_BYTES or len(public_key) != PUBLIC_KEY_BYTES:
        return False
    try:
        crypto_sign_open(signature + tag + network_id + body, public_key)
    except BadSignatureError:
        return False
    return True


class NodeKey:
    """The Ed25519 key of this node, made from its 32-byte seed. Its repr shows no secret."""

    __slots__ = ("_secret", "peer_id", "public_key")

    def __init__(self, seed: bytes) -> None:
        if len(seed) != SEED_BYTES:
            raise LatticeError("malformed", f"an identity seed has {SEED_BYTES} bytes, not {len(seed)}")
        self.public_key, self._secret = crypto_sign_seed_keypair(seed)
        self.peer_id = peer_id_of(self.public_key)

    def sign(self, tag: bytes, network_id: bytes, body: bytes) -> bytes:
        """The 64-byte signature over tag, network id and body (20 µs)."""
        return crypto_sign(tag + network_id + body, self._secret)[:SIGNATURE_BYTES]

    def __repr__(self) -> str:
        return f"NodeKey({self.peer_id})"
