"""The rule of acceptance: which entries of a message its seals authenticate.

Separate from the logs' bookkeeping because it must be the same on every node, to the letter; it
looks at headers, sizes, the chain and seals, and at nothing that a node knows besides.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from .entry import Entry, Seal, entry_id, must_be_sealed, parse_header, seal_verifies
from .errors import MalformedError
from .limits import BAD_SEALS_MAX, SEAL_INTERVAL
from .messages import Entries
from .pending import Waiting
from .rows import EntryRow, LogHead, LogKey


@dataclass(slots=True)
class Accepted:
    """What became of the entries of one message.

    `entries` are accepted, in log order, and `rows` are their rows in the batch; `refused` counts
    by reason what was not data; `conflicts` are logs in which an authenticated entry stands
    against a held one, `conflicts_new` those of which that was not known; `duplicates` counts
    entries that were held already.
    """

    entries: list[Entry] = field(default_factory=list)
    rows: list[EntryRow] = field(default_factory=list)
    refused: dict[str, int] = field(default_factory=dict)
    conflicts: set[LogKey] = field(default_factory=set)
    conflicts_new: set[LogKey] = field(default_factory=set)
    duplicates: int = 0
    pending: int = 0
    valid_seals: set[Seal] = field(default_factory=set)

    def refuse(self, reason: str, count: int = 1) -> None:
        self.refused[reason] = self.refused.get(reason, 0) + count


class Verified:
    """The seals of one log in one message, each verified at most once and only when asked for.

    Those of entries that wait are known to be valid. After too many failures in one message the
    rest of its seals counts as missing: an honest sender's never fail, and they come again.
    """

    __slots__ = ("_known", "_network_id", "_result", "_seals", "_waiting")

    def __init__(
        self,
        network_id: bytes,
        seals: Mapping[int, Sequence[Seal]],
        waiting: Mapping[int, Waiting],
        result: Accepted,
    ) -> None:
        self._network_id = network_id
        self._seals = seals
        self._waiting = waiting
        self._result = result
        self._known: dict[Seal, bool] = {}

    def get(self, entry: Entry) -> Seal | None:
        """The valid seal of this very entry, if the message or the pending entries have one."""
        seq = entry.header.seq
        seals = self._seals.get(seq, ())
        waiting = self._waiting.get(seq)
        if waiting is not None and waiting.seal is not None and waiting.seal.id == entry.id:
            if waiting.seal in seals:
                self._result.valid_seals.add(waiting.seal)
            return waiting.seal
        # Of several for one entry any valid one will do: a bad one beside it must not hide it.
        return next((seal for seal in seals if seal.id == entry.id and self._is_valid(seal)), None)

    def _is_valid(self, seal: Seal) -> bool:
        known = self._known.get(seal)
        if known is None:
            known = self._known[seal] = self._verify(seal)
        return known

    def _verify(self, seal: Seal) -> bool:
        result = self._result
        if result.refused.get("bad_seal", 0) >= BAD_SEALS_MAX:
            return False
        if seal_verifies(self._network_id, seal):
            result.valid_seals.add(seal)
            return True
        result.refuse("bad_seal")
        return False


def chain_from(
    head: LogHead, fresh: Mapping[int, Entry], waiting: Mapping[int, Waiting], verified: Verified
) -> list[Entry]:
    """The entries that continue the held log without a gap, from the message and from what waits."""
    run: list[Entry] = []
    seq, prev = head.seq + 1, head.id
    while True:
        entry = fresh.get(seq)
        held = waiting.get(seq) if waiting else None
        if held is not None and held.entry.header.prev == prev:
            # What waits is authentic: a message replaces it only by what is sealed as well.
            rival = entry is not None and entry.header.prev == prev and entry.id != held.entry.id
            if not (rival and seq in authenticated(fresh, verified)):
                entry = held.entry
        if entry is None or entry.header.prev != prev:
            return run
        run.append(entry)
        seq, prev = seq + 1, entry.id


def sealed_prefix(run: Sequence[Entry], verified: Verified) -> int:
    """How many entries of a chained run are authenticated: up to the highest valid seal below the
    first entry that must be sealed and is not."""
    limit = len(run)
    for index, entry in enumerate(run):
        if entry.must_be_sealed and verified.get(entry) is None:
            limit = index
            break
    return _top_seal(run[:limit], verified)


def _top_seal(run: Sequence[Entry], verified: Verified) -> int:
    """How many entries of a chained run stand at or below its highest valid seal."""
    for index in range(len(run) - 1, -1, -1):
        if verified.get(run[index]) is not None:
            return index + 1
    return 0


def stretches(entries: Mapping[int, Entry]) -> Iterable[list[Entry]]:
    """Split entries into maximal chained stretches."""
    stretch: list[Entry] = []
    for seq in sorted(entries):
        entry = entries[seq]
        if stretch and (stretch[-1].header.seq + 1 != seq or stretch[-1].id != entry.header.prev):
            yield stretch
            stretch = []
        stretch.append(entry)
    if stretch:
        yield stretch


def authenticated(entries: Mapping[int, Entry], verified: Verified) -> set[int]:
    """The seqs at which, or above which in their chain within the message, a valid seal stands,
    with no unsealed seq ≡ 63 (mod 64) in between (sizes are not judged here)."""
    authentic: set[int] = set()
    for seq in sorted(entries, reverse=True):
        entry = entries[seq]
        above = entries.get(seq + 1)
        chained = seq + 1 in authentic and above is not None and above.header.prev == entry.id
        below_a_seal = chained and seq % SEAL_INTERVAL != SEAL_INTERVAL - 1
        if below_a_seal or verified.get(entry) is not None:
            authentic.add(seq)
    return authentic


def is_whole(network_id: bytes, message: Entries, result: Accepted) -> bool:
    """Whether a node that holds nothing but what comes before would refuse no part of an accepted
    message: chained runs that end at a seal, every mandatory seal there, every seal valid.

    Asked before a message is relayed: what was held already, and a seal that nothing needed, was
    not verified when the message was accepted, and whoever relays a bad one is blamed for it.
    """
    seals = {(seal.author, seal.epoch, seal.seq, seal.id): seal for seal in message.seals}
    runs: dict[LogKey, list[tuple[int, bytes, bytes, bool]]] = {}
    unmatched = len(message.seals)
    for header_bytes, _ in message.frames:
        try:
            header = parse_header(header_bytes)
        except MalformedError:
            return False
        name = entry_id(network_id, header_bytes)
        is_sealed = (header.author, header.epoch, header.seq, name) in seals
        unmatched -= is_sealed
        if must_be_sealed(header) and not is_sealed:
            return False
        run = runs.setdefault(LogKey(header.author, header.epoch), [])
        run.append((header.seq, header.prev, name, is_sealed))
    if unmatched:
        return False
    for run in runs.values():
        run.sort()
        breaks = any(b[0] != a[0] + 1 or b[1] != a[2] for a, b in pairwise(run))
        if breaks or not run[-1][3]:
            return False
    return all(seal in result.valid_seals or seal_verifies(network_id, seal) for seal in seals.values())
