"""Networks and tickets: the frozen bytes, and what a person can do wrong with a ticket."""

from __future__ import annotations

import base64
import struct
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lattice.core.errors import LatticeError, MalformedError
from lattice.core.messages import Addresses
from lattice.core.ticket import (
    Genesis,
    Ticket,
    TicketPeer,
    decode_ticket,
    encode_ticket,
    hide_tickets,
    network_id_of,
    parse_genesis,
)
from tests.core.core_kit import vectors

HASHES = st.binary(min_size=32, max_size=32)
TEXTS = st.text(max_size=10)
PEERS = st.builds(
    TicketPeer, HASHES, TEXTS, st.builds(Addresses, st.tuples(TEXTS, TEXTS), st.tuples(TEXTS) | st.just(()))
)
GENESES = st.builds(Genesis, TEXTS, st.lists(HASHES, max_size=3).map(sorted).map(tuple), HASHES)
TICKETS = st.builds(
    Ticket,
    GENESES.map(Genesis.pack),
    st.integers(0, 2**32 - 1),
    HASHES,
    st.lists(PEERS, max_size=3).map(tuple),
)
CASE = vectors("network")[0]


def text(value: str) -> bytes:
    return struct.pack(">I", len(value.encode())) + value.encode()


def test_the_vector() -> None:
    admins = sorted(bytes.fromhex(admin) for admin in CASE["admins"])
    genesis = (
        b"lattice/genesis/v1\0" + text(CASE["name"]) + struct.pack(">I", 2) + b"".join(admins)
        + bytes.fromhex(CASE["nonce"])
    )  # fmt: skip
    assert genesis.hex() == CASE["genesis"]
    assert sha256(genesis).hexdigest() == CASE["network_id"] == network_id_of(genesis).hex()
    body = struct.pack(">I", len(genesis)) + genesis
    body += struct.pack(">I", CASE["key_number"]) + bytes.fromhex(CASE["network_key"])
    body += struct.pack(">I", len(CASE["peers"]))
    for peer in CASE["peers"]:
        body += bytes.fromhex(peer["public_key"]) + text(peer["name"])
        for group in (peer["p2p"], peer["http"]):
            body += struct.pack(">I", len(group)) + b"".join(text(address) for address in group)
    check = sha256(b"lattice/ticket/v1\0" + body).digest()[:6]
    word = base64.urlsafe_b64encode(check + body).decode().rstrip("=")
    assert CASE["ticket"] == f"lattice1-{word}"
    ticket = decode_ticket(CASE["ticket"])
    assert ticket.genesis == genesis
    assert [peer.public_key.hex() for peer in ticket.peers] == [peer["public_key"] for peer in CASE["peers"]]
    assert encode_ticket(ticket) == CASE["ticket"]


@given(TICKETS)
def test_tickets_come_back(ticket: Ticket) -> None:
    word = encode_ticket(ticket)
    assert decode_ticket(f"\n {word} \n") == ticket
    assert word.split() == [word]


@given(GENESES)
def test_geneses_come_back(genesis: Genesis) -> None:
    assert parse_genesis(genesis.pack()) == genesis


def test_the_order_of_admins_does_not_matter() -> None:
    admins = tuple(bytes([number]) * 32 for number in (3, 1, 2))
    assert Genesis("n", admins, bytes(32)).pack() == Genesis("n", admins[::-1], bytes(32)).pack()


@given(st.data())
def test_a_cut_or_mistyped_ticket_says_so(data: st.DataObject) -> None:
    word = CASE["ticket"]
    at = data.draw(st.integers(len("lattice1-"), len(word) - 2))
    other = data.draw(st.sampled_from([char for char in "abcXYZ019-_.é" if char != word[at]]))
    for wrong in (word[:at], word[:at] + other + word[at + 1 :], word[:at] + " " + word[at:]):
        with pytest.raises(LatticeError, match="cut off or mistyped") as caught:
            decode_ticket(wrong)
        assert caught.value.code == "ticket"


@pytest.mark.parametrize("word", ["", "lattice", "https://example.org", "LATTICE1-aaaa", "lattice2-aaaa"])
def test_what_is_no_ticket(word: str) -> None:
    with pytest.raises(LatticeError, match="this is not a ticket") as caught:
        decode_ticket(word)
    assert caught.value.code == "ticket"


@pytest.mark.parametrize("body", [b"", b"\0\0\0\1x", b"\xff" * 40])
def test_a_ticket_of_another_version(body: bytes) -> None:
    check = sha256(b"lattice/ticket/v1\0" + body).digest()[:6]
    word = "lattice1-" + base64.urlsafe_b64encode(check + body).decode().rstrip("=")
    with pytest.raises(LatticeError, match="another version") as caught:
        decode_ticket(word)
    assert caught.value.code == "ticket"


def test_what_is_no_genesis() -> None:
    good = Genesis("n", (bytes(32),), bytes(32)).pack()
    for wrong in (b"", good[:-1], good + b"\0", b"x" + good[1:], b"lattice/genesis/v2\0" + good[19:]):
        with pytest.raises(MalformedError):
            parse_genesis(wrong)


def test_tickets_in_a_text_are_hidden_whole_cut_and_in_any_case() -> None:
    text = encode_ticket(Ticket(Genesis("n", (bytes(32),), bytes(32)).pack(), 1, bytes(range(32)), ()))
    for shown in (text, text[:-7], text.upper(), f"LATTICE_NODES={text}, http://{text}/ '{text}'"):
        hidden = hide_tickets(shown)
        assert "lattice1-[hidden]" in hidden
        assert all(text[at : at + 12].lower() not in hidden.lower() for at in range(9, len(text) - 20))
    assert hide_tickets("a ticket starts with 'lattice1-'") == "a ticket starts with 'lattice1-'"
