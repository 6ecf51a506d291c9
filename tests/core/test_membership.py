"""Choosing direct peers, and accepting others.

Separate because the choice is a pure function: its properties hold for every set of ids.
"""

from __future__ import annotations

from collections import Counter
from hashlib import sha256

from hypothesis import given
from hypothesis import strategies as st

from lattice.core.membership import (
    RING_SIZE,
    Acceptance,
    Verdict,
    choose_direct,
    rendezvous_score,
    ring_distance,
    ring_point,
)

ids = st.text(alphabet="abcé", min_size=1, max_size=4)
PEERS = [f"peer{number}" for number in range(30)]


def clockwise(own: str, others: list[str]) -> list[str]:
    """The ring by other code than the node's: rotate the sorted digests."""
    ring = sorted({own, *others}, key=lambda peer: sha256(peer.encode()).hexdigest())
    place = ring.index(own)
    return ring[place + 1 :] + ring[:place]


@given(ids, st.lists(ids, max_size=12))
def test_order_duplicates_and_oneself_do_not_matter(own: str, others: list[str]) -> None:
    chosen = choose_direct(own, others)
    assert chosen == choose_direct(own, [*reversed(others), own, *others])
    assert own not in chosen
    assert len(chosen) == len(set(chosen)) == min(4, len(set(others) - {own}))
    assert set(chosen) <= set(others)


def test_first_the_next_two_on_the_ring() -> None:
    for own in PEERS:
        others = [peer for peer in PEERS if peer != own]
        assert list(choose_direct(own, others)[:2]) == clockwise(own, others)[:2]


def test_then_two_of_the_rest_by_rendezvous() -> None:
    for own in PEERS:
        chosen = choose_direct(own, PEERS)
        rest = [peer for peer in PEERS if peer not in {own, *chosen[:2]}]
        weights = {
            peer: sha256(
                b"lattice/rendezvous/v1\0" + sha256(own.encode()).digest() + peer.encode()
            ).hexdigest()
            for peer in rest
        }
        assert list(chosen[2:]) == sorted(rest, key=lambda peer: weights[peer], reverse=True)[:2]


def test_rendezvous_spreads_over_all() -> None:
    picked = Counter(peer for own in PEERS for peer in choose_direct(own, PEERS)[2:])
    assert len(picked) >= 20
    assert max(picked.values()) <= 8


def test_one_who_leaves_is_replaced_and_nobody_else() -> None:
    for own in PEERS:
        chosen = choose_direct(own, PEERS)
        for gone in chosen[2:]:
            after = choose_direct(own, [peer for peer in PEERS if peer != gone])
            assert len(set(chosen) - set(after)) == 1
            assert after[:2] == chosen[:2]


def test_whoever_answers_is_connected_to_whoever_answers() -> None:
    links = {own: choose_direct(own, PEERS) for own in PEERS}
    reached, waiting = {PEERS[0]}, [PEERS[0]]
    while waiting:
        for peer in links[waiting.pop()]:
            if peer not in reached:
                reached.add(peer)
                waiting.append(peer)
    assert reached == set(PEERS)


def test_distance_goes_clockwise_and_a_full_turn_to_oneself() -> None:
    assert ring_distance(5, 6) == 0
    assert ring_distance(6, 5) == RING_SIZE - 2
    assert ring_distance(5, 5) == RING_SIZE - 1


def test_vectors_stay() -> None:
    """Every node computes every other's choice: these values are the same for ever."""
    assert ring_point("peer0") == int(sha256(b"peer0").hexdigest(), 16)
    assert choose_direct("peer0", PEERS[:10]) == ("peer9", "peer7", "peer6", "peer3")
    assert rendezvous_score("peer0", "peer1") != rendezvous_score("peer1", "peer0")


# Acceptance.


def test_eight_others_are_accepted_and_the_ninth_is_told_busy() -> None:
    acceptance = Acceptance()
    assert [acceptance.offer(peer) for peer in PEERS[:9]] == [Verdict.ACCEPTED] * 8 + [Verdict.BUSY]
    acceptance.release(PEERS[3])
    assert acceptance.offer(PEERS[8]) is Verdict.ACCEPTED
    assert acceptance.offer(PEERS[3]) is Verdict.BUSY
    assert acceptance.accepted == tuple(sorted([*PEERS[:3], *PEERS[4:9]]))


def test_our_own_direct_peers_take_no_place() -> None:
    acceptance = Acceptance()
    acceptance.choose(PEERS[10:14])
    for peer in PEERS[:8]:
        acceptance.offer(peer)
    assert [acceptance.offer(peer) for peer in PEERS[10:14]] == [Verdict.ACCEPTED] * 4
    assert acceptance.places_taken == 8
    acceptance.choose(())
    assert acceptance.places_taken == 12
    acceptance.release(PEERS[0])
    assert acceptance.offer(PEERS[20]) is Verdict.BUSY


def test_a_reopened_stream_of_the_same_boot_replaces_the_older() -> None:
    acceptance = Acceptance()
    assert acceptance.offer("B", b"one") is Verdict.ACCEPTED
    assert acceptance.offer("B", b"one") is Verdict.REPLACES
    assert acceptance.places_taken == 1


def test_a_second_boot_is_served_beside_the_first_and_a_third_is_not() -> None:
    acceptance = Acceptance(peers_max=1)
    assert acceptance.offer("B", b"one") is Verdict.ACCEPTED
    assert acceptance.offer("B", b"two") is Verdict.ACCEPTED
    assert acceptance.offer("B", b"three") is Verdict.BUSY
    acceptance.release("B", b"one")
    assert acceptance.places_taken == 1
    assert acceptance.offer("C", b"one") is Verdict.BUSY
    acceptance.release("B", b"two")
    assert acceptance.offer("C", b"one") is Verdict.ACCEPTED


def test_releasing_what_is_not_held_is_of_no_consequence() -> None:
    acceptance = Acceptance()
    acceptance.offer("B", b"one")
    acceptance.release("B", b"other")
    acceptance.release("C")
    assert acceptance.accepted == ("B",)
