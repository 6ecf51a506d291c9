"""Envelopes: who can open what, what any alteration does, replays, challenges and twins."""

from __future__ import annotations

import struct
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nacl.secret import SecretBox
from nacl.signing import VerifyKey

from lattice.core.envelope import NOBODY, Freshness, Kind, Sealer
from lattice.core.errors import LatticeError
from lattice.core.identity import ENVELOPE_TAG
from lattice.core.limits import (
    BOOTS_MAX,
    CHALLENGE_LIFE_S,
    CHALLENGES_MAX,
    CHALLENGES_PER_KEY_MAX,
    COUNTER_OVERLAP,
    COUNTER_WINDOW,
    ENVELOPE_BYTES_MAX,
)
from tests.core.core_kit import NETWORK, altered, node_key, vectors

CASES = vectors("envelope")
KEY = sha256(b"network key").digest()
NONCE = bytes(range(24))
ALICE, BOB, CAROL = node_key(1), node_key(2), node_key(3)


def sealer(key: Any = ALICE, keys: dict[int, bytes] | None = None, network: bytes = NETWORK) -> Sealer:
    return Sealer(key, network, keys if keys is not None else {1: KEY}, boot=77)


def reason(opener: Sealer, data: bytes) -> str:
    with pytest.raises(LatticeError) as caught:
        opener.open(data)
    assert caught.value.code == "envelope"
    return caught.value.message


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_vectors(case: dict[str, Any]) -> None:
    """Made by hand: the inner fields, the signature over them, the box."""
    sealed, nonce = bytes.fromhex(case["bytes"]), bytes.fromhex(case["nonce"])
    network_key, body = bytes.fromhex(case["network_key"]), bytes.fromhex(case["body"])
    assert sealed[:32] == b"LTC1" + struct.pack(">I", case["key_number"]) + nonce
    plain = SecretBox(network_key).decrypt(sealed[32:], nonce)
    inner = (
        bytes.fromhex(case["sender"]) + bytes([case["kind"]]) + bytes.fromhex(case["to"])
        + struct.pack(">QQ", case["boot"], case["counter"]) + bytes.fromhex(case["reply_to"])
    )  # fmt: skip
    assert (plain[:113], plain[177:]) == (inner, body)
    signed = struct.pack(">I", case["key_number"]) + inner + sha256(body).digest()
    tagged = b"lattice/envelope/v1\0" + bytes.fromhex(case["network_id"]) + signed
    VerifyKey(inner[:32]).verify(tagged, plain[113:177])

    reader = CAROL
    for number in (7, 8):
        key = type(ALICE)(bytes([number]) * 32)
        if key.public_key.hex() == case["to"]:
            reader = key
    network = bytes.fromhex(case["network_id"])
    opened = sealer(reader, {case["key_number"]: network_key}, network).open(sealed)
    assert (opened.sender.hex(), opened.kind, opened.to.hex()) == (case["sender"], case["kind"], case["to"])
    assert (opened.boot, opened.counter) == (case["boot"], case["counter"])
    assert (opened.reply_to.hex(), opened.body) == (case["reply_to"], body)
    assert opened.digest == sha256(sealed).digest()


def test_the_answer_vector_answers_the_request_vector() -> None:
    request, answer = CASES[0], CASES[1]
    assert answer["reply_to"] == sha256(bytes.fromhex(request["bytes"])).hexdigest()


@settings(max_examples=50)
@given(st.sampled_from(list(Kind)), st.binary(max_size=300), st.booleans())
def test_envelopes_come_back(kind: Kind, body: bytes, addressed: bool) -> None:
    to = BOB.public_key if addressed else NOBODY
    sealed = sealer().seal(kind, body, NONCE, to=to, reply_to=sha256(body).digest())
    opened = sealer(BOB).open(sealed)
    assert (opened.sender, opened.kind, opened.to, opened.boot) == (ALICE.public_key, kind, to, 77)
    assert (opened.counter, opened.reply_to, opened.body) == (1, sha256(body).digest(), body)


def test_counters_rise_over_all_kinds() -> None:
    alice, bob = sealer(), sealer(BOB)
    kinds = [Kind.REQUEST, Kind.ONE_WAY, Kind.ANSWER, Kind.REQUEST]
    assert [bob.open(alice.seal(kind, b"", NONCE)).counter for kind in kinds] == [1, 2, 3, 4]


def test_an_altered_byte_anywhere_is_refused() -> None:
    sealed = sealer().seal(Kind.REQUEST, b"body", NONCE, to=BOB.public_key)
    bob = sealer(BOB)
    reasons = {at: reason(bob, altered(sealed, at)) for at in range(len(sealed))}
    assert {reasons[at] for at in range(4)} == {"not_an_envelope"}
    assert {reasons[at] for at in range(4, 8)} == {"unknown_key_number"}
    assert {reasons[at] for at in range(8, len(sealed))} == {"foreign"}
    assert bob.open(sealed).body == b"body"


def test_a_member_cannot_alter_what_another_signed() -> None:
    """Whoever holds the network key can open the box and close it again; the signature remains."""
    sealed = sealer().seal(Kind.REQUEST, b"body", NONCE, to=BOB.public_key)
    plain = SecretBox(KEY).decrypt(sealed[32:], NONCE)
    bob = sealer(BOB)

    def reboxed(changed: bytes) -> bytes:
        return sealed[:32] + SecretBox(KEY).encrypt(changed, NONCE).ciphertext

    assert bob.open(reboxed(plain)).body == b"body"
    reasons = [reason(bob, reboxed(altered(plain, at))) for at in range(len(plain))]
    # An altered sender is mostly no acceptable key; an altered anything else is a bad signature.
    assert set(reasons[:32]) <= {"bad_sender_key", "bad_signature"}
    # What is not for us, or of no kind, is refused before its signature is looked at.
    assert set(reasons[32:33]) <= {"unknown_kind", "bad_signature"}
    assert set(reasons[33:65]) == {"for_another_node"}
    assert set(reasons[65:]) == {"bad_signature"}
    assert reason(bob, reboxed(plain + b"x")) == "bad_signature"
    assert reason(bob, reboxed(plain[:-1])) == "bad_signature"


def test_a_member_cannot_move_an_envelope_to_another_key_number() -> None:
    sealed = sealer().seal(Kind.REQUEST, b"body", NONCE)
    moved = sealed[:4] + struct.pack(">I", 2) + sealed[8:]
    bob = sealer(BOB, {1: KEY, 2: KEY})
    assert bob.open(sealed).body == b"body"
    assert reason(bob, moved) == "bad_signature"


def test_a_replay_is_refused_before_its_signature_is_verified() -> None:
    """The signature is broken here, so whoever looked at it would say so."""
    bob, freshness = sealer(BOB), Freshness()
    sealed = sealer().seal(Kind.REQUEST, b"body", NONCE, to=BOB.public_key)
    plain = SecretBox(KEY).decrypt(sealed[32:], NONCE)
    forged = sealed[:32] + SecretBox(KEY).encrypt(altered(plain, 120), NONCE).ciphertext
    for taken, expected in ((False, "bad_signature"), (True, "replayed")):
        if taken:
            freshness.proven(ALICE.public_key, 77)
            assert freshness.take(ALICE.public_key, 77, 1)
        with pytest.raises(LatticeError) as caught:
            bob.open(forged, lambda *claim: "replayed" if freshness.is_used(*claim) else None)
        assert caught.value.message == expected
    assert not freshness.is_used(ALICE.public_key, 77, 2), "a refusal uses up no counter"
    assert not freshness.is_used(BOB.public_key, 77, 1)


def test_foreigners() -> None:
    bob = sealer(BOB)
    assert reason(bob, sealer(keys={1: bytes(32)}).seal(Kind.REQUEST, b"", NONCE)) == "foreign"
    assert reason(bob, sealer(keys={2: KEY}).seal(Kind.REQUEST, b"", NONCE)) == "unknown_key_number"
    assert reason(bob, sealer(network=bytes(32)).seal(Kind.REQUEST, b"", NONCE)) == "bad_signature"
    for_carol = sealer().seal(Kind.REQUEST, b"", NONCE, to=CAROL.public_key)
    assert reason(bob, for_carol) == "for_another_node"
    assert sealer(CAROL).open(for_carol).sender == ALICE.public_key


def test_keys_rotate_with_an_overlap() -> None:
    new = sha256(b"new key").digest()
    old, both, late = sealer(BOB), sealer(ALICE, {1: KEY, 2: new}), sealer(CAROL, {2: new})
    assert both.open(old.seal(Kind.REQUEST, b"a", NONCE)).body == b"a"
    sealed = both.seal(Kind.REQUEST, b"b", NONCE)
    assert sealed[4:8] == b"\0\0\0\2"
    assert late.open(sealed).body == b"b"
    assert reason(old, sealed) == "unknown_key_number"


def hand_made(key: Any, *, kind: int = 1, sender: bytes | None = None) -> bytes:
    """A well-signed envelope with fields that no Sealer would put in."""
    inner = (sender or key.public_key) + bytes([kind]) + bytes(32) + struct.pack(">QQ", 1, 1) + bytes(32)
    signature = key.sign(ENVELOPE_TAG, NETWORK, struct.pack(">I", 1) + inner + sha256(b"").digest())
    box = SecretBox(KEY).encrypt(inner + signature, NONCE).ciphertext
    return b"LTC1" + struct.pack(">I", 1) + NONCE + box


def test_an_unknown_kind_is_refused() -> None:
    assert sealer(BOB).open(hand_made(ALICE)).kind is Kind.REQUEST
    for kind in (0, 4, 255):
        assert reason(sealer(BOB), hand_made(ALICE, kind=kind)) == "unknown_kind"


def test_a_sender_with_a_bad_key_is_refused() -> None:
    bob = sealer(BOB)
    for case in vectors("bad_signatures"):
        author = bytes.fromhex(case["seal"])[:32]
        if not case["key_valid"]:
            assert reason(bob, hand_made(ALICE, sender=author)) == "bad_sender_key"


@given(st.binary(max_size=400))
def test_random_bytes_are_refused(data: bytes) -> None:
    for attempt in (data, b"LTC1\0\0\0\1" + data):
        assert reason(sealer(BOB), attempt) in ("too_short", "not_an_envelope", "foreign")


def test_sizes() -> None:
    bob = sealer(BOB)
    overhead = len(sealer().seal(Kind.ONE_WAY, b"", NONCE))
    assert overhead == 32 + 16 + 113 + 64
    largest = sealer().seal(Kind.ONE_WAY, bytes(ENVELOPE_BYTES_MAX - overhead), NONCE)
    assert len(largest) == ENVELOPE_BYTES_MAX
    assert len(bob.open(largest).body) == ENVELOPE_BYTES_MAX - overhead
    assert reason(bob, largest + b"x") == "too_large"
    with pytest.raises(AssertionError):
        sealer().seal(Kind.ONE_WAY, bytes(ENVELOPE_BYTES_MAX - overhead + 1), NONCE)
    for size in range(overhead):
        assert reason(bob, largest[:size]) in ("too_short", "foreign")


def test_many_senders_are_remembered_within_bounds() -> None:
    bob = sealer(BOB)
    for number in range(20):
        bob.open(sealer(node_key(100 + number)).seal(Kind.ONE_WAY, b"", NONCE))
    assert len(bob._senders) == 20 < BOOTS_MAX


# Freshness.


def known(counter: int = 0) -> Freshness:
    freshness = Freshness()
    freshness.proven(b"a", 1, counter)
    return freshness


def test_a_counter_is_used_once() -> None:
    freshness = known()
    assert [freshness.take(b"a", 1, counter) for counter in (1, 1, 3, 2, 2, 3, 1)] == [
        True, False, True, True, False, False, False,
    ]  # fmt: skip


def test_the_window_is_1024_wide() -> None:
    freshness = known()
    top = 5000
    assert freshness.take(b"a", 1, top)
    assert not freshness.take(b"a", 1, top - COUNTER_WINDOW)
    assert freshness.take(b"a", 1, top - COUNTER_WINDOW + 1)
    assert not freshness.take(b"a", 1, top - COUNTER_WINDOW + 1)
    assert freshness.take(b"a", 1, top + 1)
    assert not freshness.take(b"a", 1, top - COUNTER_WINDOW + 2 - 1)


@pytest.mark.parametrize("counter", [2**64 - 1, 2**63, 2**40, 10**6])
def test_a_huge_counter_costs_nothing(counter: int) -> None:
    freshness = known()
    assert freshness.take(b"a", 1, 1)
    assert freshness.take(b"a", 1, counter)
    assert not freshness.take(b"a", 1, counter)
    assert not freshness.take(b"a", 1, 1)
    assert freshness.take(b"a", 1, counter - 1)
    (window,) = freshness._windows.values()
    assert window.seen.bit_length() <= COUNTER_WINDOW


@given(
    st.lists(
        st.one_of(st.integers(0, 40), st.integers(1000, 1100), st.integers(2**64 - 5, 2**64 - 1)),
        max_size=60,
    )
)
def test_the_window_is_what_its_definition_says(counters: list[int]) -> None:
    freshness, used, highest = known(), set[int](), 0
    for counter in counters:
        fresh = counter not in used and counter > highest - COUNTER_WINDOW
        assert freshness.take(b"a", 1, counter) is fresh
        used.add(counter)
        highest = max(highest, counter)


def test_boots_have_windows_of_their_own() -> None:
    freshness = known()
    freshness.proven(b"a", 2)
    freshness.proven(b"b", 1)
    for sender, boot in ((b"a", 1), (b"a", 2), (b"b", 1)):
        assert freshness.take(sender, boot, 9)
        assert not freshness.take(sender, boot, 9)


def test_an_unknown_boot_has_to_answer_a_challenge() -> None:
    freshness = Freshness()
    assert not freshness.is_known(b"a", 1)
    assert not freshness.take(b"a", 1, 1)
    nonce = freshness.challenge(b"a", 1, b"n" * 32, 100.0)
    assert nonce == b"n" * 32
    assert not freshness.answer(b"a", 1, b"x" * 32, 101.0)
    assert not freshness.answer(b"a", 2, nonce, 101.0)
    assert not freshness.answer(b"b", 1, nonce, 101.0)
    assert freshness.answer(b"a", 1, nonce, 101.0)
    assert freshness.is_known(b"a", 1)
    assert not freshness.answer(b"a", 1, nonce, 101.0), "a challenge is used up"


def test_a_challenge_outstanding_is_given_again_until_it_expires() -> None:
    freshness = Freshness()
    first = freshness.challenge(b"a", 1, b"1" * 32, 0.0)
    assert freshness.challenge(b"a", 1, b"2" * 32, CHALLENGE_LIFE_S - 1) == first
    assert not freshness.answer(b"a", 1, first, CHALLENGE_LIFE_S)
    assert freshness.challenge(b"a", 1, b"3" * 32, CHALLENGE_LIFE_S) == b"3" * 32
    assert not freshness.answer(b"a", 1, first, CHALLENGE_LIFE_S + 1)
    assert freshness.answer(b"a", 1, b"3" * 32, CHALLENGE_LIFE_S + 1)


def test_what_was_sent_long_before_the_proof_counts_as_used() -> None:
    """A recording of requests from before the receiver knew the boot must not be usable after."""
    freshness = Freshness()
    nonce = freshness.challenge(b"a", 1, b"n" * 32, 0.0)
    assert freshness.answer(b"a", 1, nonce, 1.0, counter=500)
    first = 500 - COUNTER_OVERLAP
    assert not any(freshness.take(b"a", 1, counter) for counter in range(first + 1))
    assert all(freshness.take(b"a", 1, counter) for counter in range(first + 1, 502))
    assert not any(freshness.take(b"a", 1, counter) for counter in range(502))


def test_a_proof_again_does_not_open_the_window_again() -> None:
    freshness = known(3)
    assert freshness.take(b"a", 1, 10)
    freshness.proven(b"a", 1, 2)
    assert not freshness.take(b"a", 1, 10)


def test_a_restart_is_no_twin() -> None:
    freshness = Freshness()
    for boot in (5, 3, 9):
        assert not freshness.proven(b"a", boot)
        assert not freshness.proven(b"a", boot)
        assert freshness.newest_boot(b"a") == boot
    assert not freshness.has_twin(b"a")


def test_an_older_boot_that_answers_after_a_newer_one_is_a_twin() -> None:
    freshness = Freshness()
    freshness.proven(b"a", 1)
    freshness.proven(b"b", 2)
    assert not freshness.proven(b"a", 2)
    assert freshness.proven(b"a", 1)
    assert (freshness.has_twin(b"a"), freshness.has_twin(b"b")) == (True, False)
    assert freshness.newest_boot(b"a") == 2
    assert freshness.newest_boot(b"nobody") is None


def test_a_challenged_hello_can_show_the_twin() -> None:
    freshness = Freshness()
    for boot in (1, 2):
        nonce = freshness.challenge(b"a", boot, bytes([boot]) * 32, 0.0)
        assert freshness.answer(b"a", boot, nonce, 1.0)
    assert not freshness.has_twin(b"a")
    nonce = freshness.challenge(b"a", 1, b"again".ljust(32), 2.0)
    assert freshness.answer(b"a", 1, nonce, 3.0)
    assert freshness.has_twin(b"a")


def test_a_boot_that_another_has_followed_must_prove_itself_until_twins_are_known() -> None:
    freshness = Freshness()
    assert not freshness.is_superseded(b"a", 1)
    freshness.proven(b"a", 1)
    assert not freshness.is_superseded(b"a", 1)
    freshness.proven(b"a", 2)
    assert (freshness.is_superseded(b"a", 1), freshness.is_superseded(b"a", 2)) == (True, False)
    freshness.proven(b"a", 1)
    assert freshness.has_twin(b"a")
    assert not freshness.is_superseded(b"a", 1)
    assert not freshness.is_superseded(b"a", 2)


def test_everything_remembered_is_bounded() -> None:
    freshness = Freshness()
    for number in range(BOOTS_MAX + 10):
        freshness.proven(b"%d" % number, 1)
    assert len(freshness._windows) == len(freshness._keys) == BOOTS_MAX
    assert not freshness.is_known(b"0", 1)
    assert freshness.is_known(b"%d" % (BOOTS_MAX + 9), 1)
    for number in range(CHALLENGES_MAX + 10):
        freshness.challenge(b"%d" % number, 2, bytes(32), 0.0)
    assert len(freshness._challenges) == CHALLENGES_MAX
    assert sum(map(len, freshness._challenged.values())) == CHALLENGES_MAX
    one = Freshness()
    for boot in range(100):
        one.proven(b"a", boot)
    assert len(one._keys[b"a"].order) == 8


def test_a_flood_of_boots_pushes_out_its_own_challenges_only() -> None:
    freshness = Freshness()
    honest = freshness.challenge(b"honest", 1, b"h" * 32, 0.0)
    for boot in range(10 * CHALLENGES_MAX):
        freshness.challenge(b"flood", boot, boot.to_bytes(32, "big"), 1.0)
    assert len(freshness._challenges) == CHALLENGES_PER_KEY_MAX + 1
    newest = 10 * CHALLENGES_MAX - 1
    assert freshness.answer(b"flood", newest, newest.to_bytes(32, "big"), 2.0)
    assert not freshness.answer(b"flood", 0, bytes(32), 2.0)
    assert freshness.answer(b"honest", 1, honest, 2.0)
    assert b"honest" not in freshness._challenged
