"""Forks: what proves that a log has two branches, and where the lowest evidence lies.

Separate from acceptance because it judges headers alone, of whatever came from whomever, and because
its rule decides what every node freezes: evidence at a seq is an authenticated header there, and
against it another id at the same seq, that of another authenticated header or the `prev` of one above.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, NamedTuple

from .codec import Reader, Writer
from .entry import (
    HEADER_BYTES,
    SEAL_BYTES,
    Header,
    Seal,
    entry_id,
    parse_header,
    parse_seal,
    seal_verifies,
)
from .errors import MalformedError
from .identity import is_valid_public_key
from .limits import SEAL_INTERVAL
from .messages import Proof
from .rows import LogKey

FORK_PROOF: Final = 1  # kinds of Proof
HEADER_PATH: Final = 2
FORK_PROOF_BYTES_MAX: Final = 2 * (4 + SEAL_INTERVAL * HEADER_BYTES + SEAL_BYTES)


class HeaderNode(NamedTuple):
    """A header with its id and its bytes."""

    id: bytes
    header: Header
    header_bytes: bytes


class HeaderPath(NamedTuple):
    """Headers of one log, each the `prev` of the next, and the author's seal over the last.

    At most 64: none but the last may be one that must be sealed by its seq.
    """

    headers: tuple[HeaderNode, ...]
    seal: Seal

    @property
    def log(self) -> LogKey:
        header = self.headers[0].header
        return LogKey(header.author, header.epoch)

    @property
    def first(self) -> Header:
        return self.headers[0].header


class ForkProof(NamedTuple):
    """Two paths of one log that part at `seq`: `one` begins there, `other` there with another id, or
    one above with another `prev`. `one` continues the id at seq − 1 that its first header names."""

    one: HeaderPath
    other: HeaderPath

    @property
    def log(self) -> LogKey:
        return self.one.log

    @property
    def seq(self) -> int:
        """F: from here on the log is frozen."""
        return self.one.first.seq

    @property
    def continues(self) -> bytes:
        """The id at seq − 1, zeros where the log parts at its first entry."""
        return self.one.first.prev


def path_of(network_id: bytes, headers: Sequence[bytes], seal: Seal) -> HeaderPath:
    """Check everything but the signature. Raises MalformedError."""
    if not 1 <= len(headers) <= SEAL_INTERVAL:
        raise MalformedError(f"a path has 1 to {SEAL_INTERVAL} headers, not {len(headers)}")
    nodes = tuple(HeaderNode(entry_id(network_id, data), parse_header(data), data) for data in headers)
    for below, above in pairwise(nodes):
        expected = (below.header.author, below.header.epoch, below.header.seq + 1, below.id)
        if (above.header.author, above.header.epoch, above.header.seq, above.header.prev) != expected:
            raise MalformedError("the headers of a path do not follow each other")
        if below.header.seq % SEAL_INTERVAL == SEAL_INTERVAL - 1:
            raise MalformedError("a path passes an entry that must be sealed itself")
    last = nodes[-1]
    if (seal.author, seal.epoch, seal.seq, seal.id) != (*last.header[1:4], last.id):
        raise MalformedError("the seal of a path is not that of its last header")
    return HeaderPath(nodes, seal)


def proof_of(one: HeaderPath, other: HeaderPath) -> ForkProof:
    """Check that two paths show a fork. Raises MalformedError."""
    proof = ForkProof(one, other)
    first, second = one.headers[0], other.headers[0]
    if one.log != other.log:
        raise MalformedError("the two paths of a fork proof are of different logs")
    level = second.header.seq == first.header.seq and second.id != first.id
    above = second.header.seq == first.header.seq + 1 and second.header.prev != first.id
    if not level and not above:
        raise MalformedError("the two paths of a fork proof do not contradict each other")
    return proof


def path_verifies(network_id: bytes, path: HeaderPath) -> bool:
    """Whether the seal is the author's, whose key must be acceptable."""
    return is_valid_public_key(path.log.author) and seal_verifies(network_id, path.seal)


def proof_verifies(network_id: bytes, proof: ForkProof) -> bool:
    return path_verifies(network_id, proof.one) and seal_verifies(network_id, proof.other.seal)


def pack_fork_proof(proof: ForkProof) -> bytes:
    writer = Writer()
    _write_path(writer, proof.one)
    _write_path(writer, proof.other)
    return writer.done()


def pack_path(path: HeaderPath) -> bytes:
    writer = Writer()
    _write_path(writer, path)
    return writer.done()


def unpack_fork_proof(network_id: bytes, data: bytes) -> ForkProof:
    """The inverse of pack_fork_proof; signatures are not verified. Raises MalformedError."""
    reader = Reader(data)
    one, other = _read_path(network_id, reader), _read_path(network_id, reader)
    reader.end()
    return proof_of(one, other)


def read_kept_proof(data: bytes) -> ForkProof:
    """A proof as this node has packed it, and hence judged it before: only taken apart, with each id read
    from the `prev` above it and not hashed again. So it need not be kept in this form, which takes six
    times as much memory."""
    reader = Reader(data)
    proof = ForkProof(_read_kept_path(reader), _read_kept_path(reader))
    reader.end()
    return proof


def unpack_path(network_id: bytes, data: bytes) -> HeaderPath:
    """The inverse of pack_path; the signature is not verified. Raises MalformedError."""
    reader = Reader(data)
    path = _read_path(network_id, reader)
    reader.end()
    return path


def paths_in(network_id: bytes, proof: Proof) -> tuple[HeaderPath, ...]:
    """The paths that a Proof message shows: two of a fork, one of headers, none of another kind."""
    match proof.kind:
        case 1:
            return tuple(unpack_fork_proof(network_id, proof.payload))
        case 2:
            return (unpack_path(network_id, proof.payload),)
        case _:
            return ()


def _write_path(writer: Writer, path: HeaderPath) -> None:
    writer.u32(len(path.headers))
    for node in path.headers:
        writer.raw(node.header_bytes)
    writer.raw(path.seal.pack())


def _read_path(network_id: bytes, reader: Reader) -> HeaderPath:
    headers = [reader.take(HEADER_BYTES) for _ in range(reader.count(SEAL_INTERVAL))]
    return path_of(network_id, headers, parse_seal(reader.take(SEAL_BYTES)))


def _read_kept_path(reader: Reader) -> HeaderPath:
    data = [reader.take(HEADER_BYTES) for _ in range(reader.count(SEAL_INTERVAL))]
    seal = parse_seal(reader.take(SEAL_BYTES))
    headers = [parse_header(one) for one in data]
    ids = [*(header.prev for header in headers[1:]), seal.id]
    return HeaderPath(tuple(map(HeaderNode, ids, headers, data)), seal)


SealOf = Callable[[HeaderNode], Seal | None]


@dataclass(slots=True)
class Authentic:
    """The authenticated headers of one log that are not held, by seq and id, each with its path up.

    A header counts only within its run: with no unsealed seq ≡ 63 (mod 64) between it and its seal.
    Sizes are not judged here.
    """

    nodes: dict[int, dict[bytes, HeaderNode]]
    above: dict[bytes, HeaderNode]  # by id, the next header on the way to the seal
    seals: dict[bytes, Seal]

    @classmethod
    def among(cls, candidates: Iterable[HeaderNode], seal_of: SealOf) -> Authentic:
        """`seal_of(header)` is its valid seal, if one is at hand."""
        by_seq: dict[int, dict[bytes, HeaderNode]] = {}
        for node in candidates:
            by_seq.setdefault(node.header.seq, {})[node.id] = node
        found = cls({}, {}, {})
        for seq in sorted(by_seq, reverse=True):
            # Sorted, so that the path of a header with several successors does not depend on the order.
            up = {node.header.prev: node for _, node in sorted(found.nodes.get(seq + 1, {}).items())}
            for name, node in by_seq[seq].items():
                # A seal is verified only where nothing above it speaks for the header.
                if name in up and seq % SEAL_INTERVAL != SEAL_INTERVAL - 1:
                    found.above[name] = up[name]
                elif (seal := seal_of(node)) is not None:
                    found.seals[name] = seal
                else:
                    continue
                found.nodes.setdefault(seq, {})[name] = node
        return found

    def holds(self, seq: int, name: bytes) -> bool:
        return name in self.nodes.get(seq, {})

    def path(self, node: HeaderNode) -> HeaderPath:
        """From an authenticated header up to its seal."""
        headers = [node]
        while headers[-1].id not in self.seals:
            headers.append(self.above[headers[-1].id])
        return HeaderPath(tuple(headers), self.seals[headers[-1].id])

    def lowest_evidence(self, held: Callable[[int], bytes | None], below: int) -> int | None:
        """The lowest seq under `below` at which two ids stand against each other, one of them that of
        an authenticated header; `held(seq)` is the id of a held entry, which is authenticated."""
        seqs = set(self.nodes) | {seq - 1 for seq in self.nodes if seq}
        for seq in sorted(seqs):
            if seq >= below:
                return None
            here = self.nodes.get(seq, {})
            ours = held(seq)
            if not here and ours is None:
                continue
            ids = {*here, *(node.header.prev for node in self.nodes.get(seq + 1, {}).values())}
            if ours is not None:
                ids.add(ours)
            if len(ids) > 1:
                return seq
        return None

    def rivals(self, seq: int, name: bytes) -> Iterator[HeaderNode]:
        """What stands against `name` at `seq`: other headers there, then those above with another
        `prev`; each group by id, so that every node picks alike from the same headers."""
        yield from (node for _, node in sorted(self.nodes.get(seq, {}).items()) if node.id != name)
        higher = sorted(self.nodes.get(seq + 1, {}).items())
        yield from (node for _, node in higher if node.header.prev != name)
