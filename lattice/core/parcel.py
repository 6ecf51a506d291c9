"""Parcels: the messages of a sync round in a file, for members that no wire joins.

Separate because a file has no answers: it holds what one node held, in one-way envelopes, each of which
can be judged by itself and ends at a seal.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from .errors import MalformedError
from .forks import FORK_PROOF
from .limits import ENVELOPE_BYTES_MAX, PAGE_BYTES
from .log import Logs
from .messages import Entries, Message, Proof, encode_messages
from .rows import LogKey, Reader

MAGIC: Final = b"lattice/parcel/v1\n"
_LENGTH: Final = struct.Struct(">I")
LENGTH_BYTES: Final = _LENGTH.size


def frame(envelope: bytes) -> bytes:
    """An envelope as it stands in the file, behind MAGIC: u32 length, then its bytes."""
    return _LENGTH.pack(len(envelope)) + envelope


def length_of(head: bytes) -> int:
    """The length of the envelope that follows. Raises MalformedError."""
    if len(head) != LENGTH_BYTES:
        raise MalformedError("the file ends within an envelope")
    (length,) = _LENGTH.unpack(head)
    if not 0 < length <= ENVELOPE_BYTES_MAX:
        raise MalformedError(f"an envelope of {length} bytes cannot be")
    return int(length)


def bodies(network_id: bytes, reader: Reader, since_ms: int = 0) -> Iterator[tuple[bytes, int]]:
    """Message bodies that bring everything of this store, with the number of entries in each.

    With `since_ms`, of each log only what follows the first entry that arrived then or later. Fork
    proofs go in all cases: with each page of their log, or alone where it has none. A fork may have been
    found long after the last entry of its log came.
    """
    logs = Logs(network_id, reader)
    for key in sorted(reader.log_heads()):
        yield from _log(logs, reader, key, since_ms)


def _log(logs: Logs, reader: Reader, key: LogKey, since_ms: int) -> Iterator[tuple[bytes, int]]:
    head = logs.heads.get(key)
    fork = reader.fork_row(key)
    proofs = [Proof(FORK_PROOF, fork.proof)] if fork is not None else []
    at = _first_since(reader, key, head.seq, since_ms) if since_ms else 0
    paged = False
    while at <= head.seq:
        rows, seals = logs.page(key, at, head.seq, PAGE_BYTES)
        if not rows:
            break
        at = rows[-1].seq + 1
        page: list[Message] = [Entries(tuple((row.header, row.ops) for row in rows), tuple(seals))]
        # The proof authenticates the end of a frozen log, so it goes with each of its pages.
        yield encode_messages([*page, *proofs]), len(rows)
        paged = True
    if proofs and not paged:
        yield encode_messages(proofs), 0


def _first_since(reader: Reader, key: LogKey, last: int, since_ms: int) -> int:
    """The lowest seq that arrived at `since_ms` or later; last + 1 if none did."""
    at = 0
    while at <= last:
        rows = reader.entries(key.author, key.epoch, at, last, PAGE_BYTES)
        found = next((row.seq for row in rows if row.arrived_ms >= since_ms), None)
        if found is not None:
            return found
        at = rows[-1].seq + 1
    return last + 1
