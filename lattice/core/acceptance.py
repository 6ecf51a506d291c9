"""The rule of acceptance: which entries of a message its seals authenticate.

Separate from the logs' bookkeeping because it must be the same on every node, to the letter; it
looks at headers, sizes, the chain and seals, and at nothing that a node knows besides.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

from .entry import Entry, Seal, entry_id, must_be_sealed, parse_header, seal_verifies
from .errors import MalformedError
from .limits import BAD_SEALS_MAX
from .messages import Entries
from .pending import Waiting
from .rows import EntryRow, LogHead, LogKey

BLAMED: Final = frozenset({"bad_author_key", "bad_seal", "malformed_entry", "malformed_proof", "unsealed"})


@dataclass(frozen=True, slots=True)
class Cut:
    """A log frozen at `first` by a message: entries first..last left it (none if last < first).

    `fresh` are those of them that the commit under way had just added; the others are in the store.
    """

    log: LogKey
    first: int
    last: int
    fresh: tuple[EntryRow, ...]


@dataclass(slots=True)
class Accepted:
    """What became of the entries of one message.

    `entries` are accepted, in log order, and `rows` are their rows in the batch; `refused` counts
    by reason what was not data; `cuts` are the logs that were frozen, or frozen lower than before;
    `offered` those of which frozen entries came; `duplicates` counts entries that were held already.
    """

    entries: list[Entry] = field(default_factory=list)
    rows: list[EntryRow] = field(default_factory=list)
    refused: dict[str, int] = field(default_factory=dict)
    cuts: list[Cut] = field(default_factory=list)
    offered: set[LogKey] = field(default_factory=set)
    duplicates: int = 0
    pending: int = 0
    valid_seals: set[Seal] = field(default_factory=set)

    def refuse(self, reason: str, count: int = 1) -> None:
        self.refused[reason] = self.refused.get(reason, 0) + count

    def wasted_bytes(self, message: Entries) -> int:
        """The bytes of the message that were looked at for nothing; none unless a part of it is what no
        honest node sends. Entries of a log that we know to be frozen are not: the sender may not know."""
        if not BLAMED.intersection(self.refused):
            return 0
        return max(1, message.size - sum(entry.size for entry in self.entries))


class Verified:
    """The seals of one log in one message, each verified at most once and only when asked for.

    Those of entries that wait, and of the fork proof that is held, are known to be valid. After too
    many failures in one message the rest of its seals counts as missing: an honest sender's never
    fail, and they come again. `continued` is the id that the fork proof of the log authenticates,
    that of the entry just below where it is frozen.
    """

    __slots__ = ("_known", "_network_id", "_result", "_seals", "_waiting", "continued")

    def __init__(
        self,
        network_id: bytes,
        seals: Mapping[int, Sequence[Seal]],
        waiting: Mapping[int, Waiting],
        result: Accepted,
        trusted: Iterable[Seal] = (),
        continued: bytes | None = None,
    ) -> None:
        self._network_id = network_id
        self._seals = seals
        self._waiting = waiting
        self._result = result
        self._known: dict[Seal, bool] = dict.fromkeys(trusted, True)
        self.continued = continued

    def get(self, entry: Entry) -> Seal | None:
        """The valid seal of this very entry, if the message or the pending entries have one."""
        return self.seal_of(entry.header.seq, entry.id)

    def seal_of(self, seq: int, name: bytes) -> Seal | None:
        seals = self._seals.get(seq, ())
        waiting = self._waiting.get(seq)
        if waiting is not None and waiting.seal is not None and waiting.seal.id == name:
            if waiting.seal in seals:
                self._result.valid_seals.add(waiting.seal)
            return waiting.seal
        # Of several for one entry any valid one will do: a bad one beside it must not hide it.
        return next((seal for seal in seals if seal.id == name and self._is_valid(seal)), None)

    def ends(self, entry: Entry) -> bool:
        """Whether a run may end here: at a seal, or below a fork proof's path."""
        return self.get(entry) is not None or entry.id == self.continued

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


def is_simple(head: LogHead, entries: Mapping[bytes, Entry], waiting: Mapping[int, Waiting]) -> bool:
    """Whether entries form one chain that stands above the held log and, where it touches what is held
    or what waits, agrees with it: then none of them can contradict anything."""
    chain = sorted(entries.values(), key=lambda entry: entry.header.seq)
    if not chain:
        return True
    first = chain[0].header
    if first.seq <= head.seq or (first.seq == head.seq + 1 and first.prev != head.id):
        return False
    if any(
        above.header.seq != below.header.seq + 1 or above.header.prev != below.id
        for below, above in pairwise(chain)
    ):
        return False
    return not waiting or all(_agrees(entry, waiting) for entry in chain)


def _agrees(entry: Entry, waiting: Mapping[int, Waiting]) -> bool:
    seq = entry.header.seq
    below, here, above = waiting.get(seq - 1), waiting.get(seq), waiting.get(seq + 1)
    return (
        (below is None or below.entry.id == entry.header.prev)
        and (here is None or here.entry.id == entry.id)
        and (above is None or above.entry.header.prev == entry.id)
    )


def chain_from(head: LogHead, fresh: Mapping[int, Entry], waiting: Mapping[int, Waiting]) -> list[Entry]:
    """The entries that continue the held log without a gap, from the message and from what waits.

    Two authentic ones at one seq are a fork, and have been judged before."""
    run: list[Entry] = []
    seq, prev = head.seq + 1, head.id
    while True:
        entry = fresh.get(seq)
        held = waiting.get(seq) if waiting else None
        if held is not None and held.entry.header.prev == prev:
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
    for index in range(limit - 1, -1, -1):
        if verified.ends(run[index]):
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
