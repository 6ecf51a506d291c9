"""Forks: paths of headers, what they prove against each other, and the proof of it (section 9).

Separate from the ledger, which decides what a proven fork takes out: here nothing is held, headers are
only compared, as docs/reference/wire.md says.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Final, NamedTuple

from tests.independent.wire_format import (
    HEADER_BYTES,
    SEAL_BYTES,
    SEALED_EVERY,
    Header,
    Malformed,
    Reader,
    Seal,
    is_good_key,
    read_header,
    read_seal,
    sha,
    tag,
    u32,
)

PATH_HEADERS_MAX: Final = 64


class Link(NamedTuple):
    """One header of a chain, with its bytes and its id."""

    header: Header
    raw: bytes
    id: bytes

    @property
    def log(self) -> tuple[bytes, int]:
        return self.header.author, self.header.epoch

    @property
    def seq(self) -> int:
        return self.header.seq


def make_link(network_id: bytes, raw: bytes) -> Link:
    return Link(read_header(raw), raw, sha(tag("entry"), network_id, raw))


class Path(NamedTuple):
    """Headers one above the other, all authenticated by the seal of the last."""

    links: tuple[Link, ...]
    seal: Seal

    def encode(self) -> bytes:
        return u32(len(self.links)) + b"".join(link.raw for link in self.links) + self.seal.encode()


class ForkProof(NamedTuple):
    """Two paths that show another id each at one seq, F."""

    first: Path
    second: Path

    @property
    def fork(self) -> int:
        return self.first.links[0].seq

    @property
    def continues(self) -> bytes:
        """The id at F − 1, whose entry the first path authenticates."""
        return self.first.links[0].header.prev

    def encode(self) -> bytes:
        return self.first.encode() + self.second.encode()


def breaks_chain(links: Sequence[Link]) -> bool:
    """Whether some header is not what the one above it says, or should have had a seal of its own."""
    return any(
        below.log != above.log
        or below.seq + 1 != above.seq
        or below.id != above.header.prev
        or below.seq % SEALED_EVERY == SEALED_EVERY - 1
        for below, above in pairwise(links)
    )


def _path(network_id: bytes, reader: Reader) -> Path:
    raws = [reader.take(HEADER_BYTES) for _ in range(reader.count(PATH_HEADERS_MAX))]
    links = tuple(make_link(network_id, raw) for raw in raws)
    seal = read_seal(reader.take(SEAL_BYTES))
    if not links or breaks_chain(links):
        raise Malformed("the headers of a path are not one above the other")
    if (seal.author, seal.epoch, seal.seq, seal.id) != (*links[-1].log, links[-1].seq, links[-1].id):
        raise Malformed("the seal of a path is not for its last header")
    if not is_good_key(seal.author) or not seal.is_valid(network_id):
        raise Malformed("the seal of a path is not valid")
    return Path(links, seal)


def read_path(network_id: bytes, payload: bytes) -> Path:
    reader = Reader(payload)
    path = _path(network_id, reader)
    reader.end()
    return path


def read_fork_proof(network_id: bytes, payload: bytes) -> ForkProof:
    """A proof that is well formed and shows a fork; Malformed for every other payload."""
    reader = Reader(payload)
    proof = ForkProof(_path(network_id, reader), _path(network_id, reader))
    reader.end()
    first, second = proof.first.links[0], proof.second.links[0]
    if first.log != second.log:
        raise Malformed("the paths are of two logs")
    rivals = second.seq == first.seq and second.id != first.id
    if not rivals and not (second.seq == first.seq + 1 and second.header.prev != first.id):
        raise Malformed("the paths show no fork")
    return proof


class Evidence:
    """Every header of one log that is known, and which of them are authenticated."""

    def __init__(self, links: Iterable[Link], seals: Iterable[Seal]) -> None:
        self.links = {link.id: link for link in links}
        self._above: dict[bytes, bytes | None] = {}
        self._seals = {seal.id: seal for seal in seals}
        for top in sorted(self._seals.keys() & self.links.keys()):
            self._authenticate(top)
        self.ids: dict[int, set[bytes]] = defaultdict(set)
        for name in self._above:
            self.ids[self.links[name].seq].add(name)

    def _authenticate(self, top: bytes) -> None:
        """What a valid seal says of the headers below it, down to the next that needs one of its own."""
        self._above[top] = None
        link = self.links[top]
        while (below := self.links.get(link.header.prev)) is not None:
            if below.seq + 1 != link.seq or below.seq % SEALED_EVERY == SEALED_EVERY - 1:
                return
            if below.id in self._above:
                return
            self._above[below.id] = link.id
            link = below

    def is_authenticated(self, name: bytes) -> bool:
        return name in self._above

    def lowest(self) -> int | None:
        """The lowest seq at which an authenticated header stands against another id."""
        found = [seq for seq, ids in self.ids.items() if len(ids | self._named(seq)) > 1]
        return min(found, default=None)

    def _named(self, seq: int) -> set[bytes]:
        return {self.links[name].header.prev for name in self.ids.get(seq + 1, ())}

    def proof(self, at: int, own: bytes | None) -> ForkProof:
        """The proof of a fork that there is evidence of at this seq, with one's own branch first."""
        first = own if own in self.ids[at] else min(self.ids[at])
        rivals = self.ids[at] - {first}
        above = {name for name in self.ids.get(at + 1, ()) if self.links[name].header.prev != first}
        return ForkProof(self._path_from(first), self._path_from(min(rivals or above)))

    def _path_from(self, name: bytes | None) -> Path:
        links: list[Link] = []
        while name is not None:
            links.append(self.links[name])
            name = self._above[name]
        return Path(tuple(links), self._seals[links[-1].id])
