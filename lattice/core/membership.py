"""Who is a direct peer: the ring of peer ids, the choice of four, the acceptance of eight.

Separate because the choice is a pure function of the ids, which every node can compute for every
other, while the monitor only judges whether the chosen ones are heard.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from hashlib import sha256
from typing import Final

from .limits import DIRECT_ACCEPTED_MAX, DIRECT_OPENED_MAX, LINKS_PER_PEER_MAX

RING_SIZE: Final = 1 << 256
RING_NEIGHBOURS: Final = 2  # chosen as successors; the other two shortcuts keep the diameter small

_RENDEZVOUS_TAG: Final = b"lattice/rendezvous/v1\0"


def ring_point(peer: str) -> int:
    """The place of a peer on the ring: SHA-256 of its id, as a number below `RING_SIZE`."""
    return int.from_bytes(sha256(peer.encode("utf-8", "surrogatepass")).digest(), "big")


def ring_distance(start: int, point: int) -> int:
    """Steps clockwise from `start` to `point`; a full turn, not zero, when they are the same place.

    So whoever was served last comes last, and oneself is nobody's own successor.
    """
    return (point - start - 1) % RING_SIZE


def rendezvous_score(chooser: str, peer: str) -> bytes:
    """The weight of `peer` in the eyes of `chooser`; the highest wins (Thaler and Ravishankar, 1998).

    The point of the chooser has a fixed length, so no two pairs of ids hash the same bytes.
    """
    own = ring_point(chooser).to_bytes(32, "big")
    return sha256(_RENDEZVOUS_TAG + own + peer.encode("utf-8", "surrogatepass")).digest()


def choose_direct(self_id: str, candidates: Iterable[str]) -> tuple[str, ...]:
    """Up to four peers to open beat streams to: the next two on the ring, then two by rendezvous.

    `candidates` are the peers that answer; order and duplicates do not matter, and `self_id` among them
    is left out. The successors close the ring, so that whoever answers is connected to whoever answers;
    the other two are stable while they answer, because a newcomer replaces only whom it outweighs.
    """
    own = ring_point(self_id)
    others = {peer for peer in candidates if peer != self_id}
    by_ring = sorted(others, key=lambda peer: (ring_distance(own, ring_point(peer)), peer))
    successors, rest = by_ring[:RING_NEIGHBOURS], by_ring[RING_NEIGHBOURS:]
    by_weight = sorted(rest, key=lambda peer: (rendezvous_score(self_id, peer), peer), reverse=True)
    return (*successors, *by_weight[: DIRECT_OPENED_MAX - RING_NEIGHBOURS])


class Verdict(StrEnum):
    """What is answered to a peer that asks for a beat stream."""

    ACCEPTED = "accepted"
    REPLACES = "replaces"  # the same boot opened again: the older stream ends
    BUSY = "busy"


@dataclass(slots=True)
class Acceptance:
    """The beat streams that others asked for: eight peers at most, besides those chosen by ourselves.

    A stream belongs to (peer, boot). A second live boot of one peer is served beside the first, so that a
    copied identity is seen and not fought over; a third is turned away.
    """

    peers_max: int = DIRECT_ACCEPTED_MAX
    boots_max: int = LINKS_PER_PEER_MAX
    _chosen: frozenset[str] = frozenset()
    _boots: dict[str, list[bytes]] = field(default_factory=dict)

    def choose(self, peers: Iterable[str]) -> None:
        """Name our own direct peers: their streams are accepted and take none of the eight places.

        A stream that was accepted while its peer was chosen stays when the choice moves on, even above
        the eight: it ends when the other side, or `release`, ends it.
        """
        self._chosen = frozenset(peers)

    def offer(self, peer: str, boot: bytes = b"") -> Verdict:
        """Judge a stream that `peer` opens under `boot`; anything but BUSY also takes the place."""
        boots = self._boots.get(peer, [])
        if boot in boots:
            return Verdict.REPLACES
        if len(boots) >= self.boots_max:
            return Verdict.BUSY
        if not boots and peer not in self._chosen and self.places_taken >= self.peers_max:
            return Verdict.BUSY
        self._boots[peer] = [*boots, boot]
        return Verdict.ACCEPTED

    def release(self, peer: str, boot: bytes = b"") -> None:
        """Give the place of an ended stream back; unknown ones are of no consequence."""
        left = [held for held in self._boots.get(peer, []) if held != boot]
        if left:
            self._boots[peer] = left
        else:
            self._boots.pop(peer, None)

    @property
    def places_taken(self) -> int:
        """How many of the eight places are in use."""
        return sum(1 for peer in self._boots if peer not in self._chosen)

    @property
    def accepted(self) -> tuple[str, ...]:
        """The peers that hold a stream with us, sorted."""
        return tuple(sorted(self._boots))
