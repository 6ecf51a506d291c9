"""Keys, peer ids and signatures: the published vectors, the bad cases, and one tag for each use."""

from __future__ import annotations

import struct
from collections.abc import Callable
from hashlib import sha256, sha512
from importlib import import_module
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nacl.secret import SecretBox
from nacl.signing import SigningKey

from lattice.core.entry import parse_seal, seal_verifies
from lattice.core.envelope import Kind, Sealer
from lattice.core.errors import LatticeError
from lattice.core.identity import (
    ENVELOPE_TAG,
    RECEIPT_TAG,
    SEAL_TAG,
    STATE_TAG,
    NodeKey,
    base58_decode,
    base58_encode,
    is_valid_public_key,
    peer_id_of,
    public_key_of,
    verify,
)
from tests.core.core_kit import NETWORK, Author, altered, node_key, raw_vectors, vectors

RFC8032 = raw_vectors("rfc8032")["cases"]
BAD = vectors("bad_signatures")


@pytest.mark.parametrize("case", RFC8032, ids=[case["name"] for case in RFC8032])
def test_rfc_8032(case: dict[str, str]) -> None:
    seed, public_key, message, signature = (
        bytes.fromhex(case[name]) for name in ("seed", "public_key", "message", "signature")
    )
    key = NodeKey(seed)
    assert key.public_key == public_key
    # Tag and network id are the first bytes of what is signed: any split of the message will do.
    for cut in (0, len(message) // 2, len(message)):
        assert key.sign(message[:cut], b"", message[cut:]) == signature
        assert verify(message[:cut], b"", public_key, message[cut:], signature)
    assert is_valid_public_key(public_key)
    for at in range(64):
        assert not verify(b"", b"", public_key, message, altered(signature, at))
    assert not verify(b"", b"", public_key, message + b"\0", signature)


def test_the_sha_abc_message_is_what_its_name_says() -> None:
    assert RFC8032[-1]["message"] == sha512(b"abc").hexdigest()


@pytest.mark.parametrize("case", BAD, ids=[case["name"] for case in BAD])
def test_bad_keys_and_signatures(case: dict[str, Any]) -> None:
    seal = parse_seal(bytes.fromhex(case["seal"]))
    network_id = bytes.fromhex(case["network_id"])
    assert is_valid_public_key(seal.author) is case["key_valid"]
    accepted = is_valid_public_key(seal.author) and seal_verifies(network_id, seal)
    assert accepted is case["valid"]


def test_the_bad_cases_hold_a_good_one_made_the_same_way() -> None:
    assert [case["name"] for case in BAD if case["valid"]] == ["an honest one, made by the same formulas"]
    assert sum(not case["key_valid"] for case in BAD) >= 10
    # Some keys must be refused although libsodium's verification alone lets their signatures pass.
    assert any(case["key_valid"] and not case["valid"] for case in BAD)


@pytest.mark.parametrize("length", [0, 31, 33, 64])
def test_a_key_of_another_length_is_not_valid(length: int) -> None:
    assert not is_valid_public_key(bytes(length))
    assert not verify(SEAL_TAG, NETWORK, bytes(length), b"", bytes(64))


@pytest.mark.parametrize("length", [0, 63, 65])
def test_a_signature_of_another_length_is_not_valid(length: int) -> None:
    key = node_key(1)
    signature = (key.sign(SEAL_TAG, NETWORK, b"x") + b"\0")[:length]
    assert not verify(SEAL_TAG, NETWORK, key.public_key, b"x", signature)


def _signed_seal() -> tuple[bytes, bytes, bytes]:
    author = Author(1)
    seal = author.seal(author.write())
    return author.key.public_key, seal.pack()[:-64], seal.signature


def _signed_envelope() -> tuple[bytes, bytes, bytes]:
    key = node_key(1)
    body, inner_size = b"payload", 113
    sealer = Sealer(key, NETWORK, {1: bytes(32)}, boot=7)
    sealed = sealer.seal(Kind.ONE_WAY, body, bytes(24))
    plain = SecretBox(bytes(32)).decrypt(sealed[32:], bytes(24))
    signed = struct.pack(">I", 1) + plain[:inner_size] + sha256(body).digest()
    return key.public_key, signed, plain[inner_size : inner_size + 64]


def _signed_state() -> tuple[bytes, bytes, bytes]:
    key, body = node_key(1), bytes(72)
    return key.public_key, body, key.sign(STATE_TAG, NETWORK, body)


def _signed_receipt() -> tuple[bytes, bytes, bytes]:
    key, body = node_key(1), bytes(72)
    return key.public_key, body, key.sign(RECEIPT_TAG, NETWORK, body)


@pytest.mark.parametrize(
    ("make", "own"),
    [
        (_signed_seal, SEAL_TAG),
        (_signed_envelope, ENVELOPE_TAG),
        (_signed_state, STATE_TAG),
        (_signed_receipt, RECEIPT_TAG),
    ],
)
def test_no_verifier_takes_the_signature_of_another_kind(
    make: Callable[[], tuple[bytes, bytes, bytes]], own: bytes
) -> None:
    public_key, body, signature = make()
    tags = {SEAL_TAG, ENVELOPE_TAG, STATE_TAG, RECEIPT_TAG, b""}
    taken = {tag for tag in tags if verify(tag, NETWORK, public_key, body, signature)}
    assert taken == {own}
    assert not verify(own, altered(NETWORK), public_key, body, signature)
    assert not verify(own, NETWORK, node_key(2).public_key, body, signature)
    assert not verify(own, NETWORK, public_key, altered(body), signature)


def test_no_tag_is_the_beginning_of_another() -> None:
    tags = [SEAL_TAG, ENVELOPE_TAG, STATE_TAG, RECEIPT_TAG]
    assert all(tag.startswith(b"lattice/") and tag.endswith(b"\0") and tag.count(0) == 1 for tag in tags)
    assert len(set(tags)) == len(tags)


def test_signing_agrees_with_another_library_call() -> None:
    seed = sha256(b"seed").digest()
    signature = SigningKey(seed).sign(SEAL_TAG + NETWORK + b"body").signature
    assert NodeKey(seed).sign(SEAL_TAG, NETWORK, b"body") == signature


# Peer ids.


def test_known_peer_ids() -> None:
    for case in vectors("network"):
        for peer in case["peers"]:
            assert peer_id_of(bytes.fromhex(peer["public_key"])) == peer["peer_id"]
            assert peer["peer_id"].startswith("12D3Koo")
            assert len(peer["peer_id"]) == 52


@pytest.mark.slow  # it imports libp2p
def test_libp2p_makes_the_same_peer_id() -> None:
    import_module("lattice.transport.p2p")  # libp2p cannot be imported before this
    from libp2p.crypto.ed25519 import Ed25519PublicKey
    from libp2p.peer.id import ID

    for number in range(5):
        key = node_key(number)
        assert str(ID.from_pubkey(Ed25519PublicKey.from_bytes(key.public_key))) == key.peer_id


@given(st.binary(max_size=40))
def test_base58_comes_back(data: bytes) -> None:
    assert base58_decode(base58_encode(data)) == data


@given(st.binary(min_size=32, max_size=32))
def test_peer_ids_come_back(public_key: bytes) -> None:
    assert public_key_of(peer_id_of(public_key)) == public_key


@pytest.mark.parametrize(
    "text",
    ["", "1", "12D3Koo", "0OIl", "é", node_key(1).peer_id + "1", node_key(1).peer_id[:-1], "1" * 64,
     "z" * 1_000_000, "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N"],
)  # fmt: skip
def test_what_is_no_peer_id(text: str) -> None:
    with pytest.raises(LatticeError) as caught:
        public_key_of(text)
    assert caught.value.code == "malformed"


def test_the_key_keeps_its_secret() -> None:
    seed = sha256(b"secret").digest()
    key = NodeKey(seed)
    assert seed.hex() not in repr(key)
    assert repr(key) == f"NodeKey({key.peer_id})"
    with pytest.raises(LatticeError):
        NodeKey(bytes(31))
