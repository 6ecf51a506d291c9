"""Re-verifying a whole store: every id, chain, ops root, seal and leaf.

Separate because it trusts nothing that the engine concluded when it took the entries in: it reads
the bytes again and asks only the rules. It works on any Reader.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Final

from ..core.entry import ZERO_ID, Entry, OpKind, Seal, must_be_sealed, parse_entry, seal_verifies
from ..core.errors import LatticeError, MalformedError
from ..core.limits import FROZEN_NEVER, MIB
from ..core.merkle import MerkleMap
from ..core.rows import EntryRow, KeyState, LiveVersion, LogHead, LogKey, Reader
from ..core.state import leaf_of

PROBLEMS_MAX: Final = 100
_READ_BYTES: Final = 4 * MIB
_PAGE_KEYS: Final = 500
# Keys that were written together are mostly neighbours: a few entries serve many of them.
_ENTRIES_KEPT: Final = 64


@dataclass(slots=True)
class Verification:
    """What was looked at, and what does not verify (each a sentence; at most PROBLEMS_MAX)."""

    logs: int = 0
    entries: int = 0
    seals: int = 0
    keys: int = 0
    problems: list[str] = field(default_factory=list)

    def add(self, problem: str) -> None:
        if len(self.problems) < PROBLEMS_MAX:
            self.problems.append(problem)


def verify_all(reader: Reader, network_id: bytes) -> Verification:
    """Verify everything that can be reached from the heads and the state tree (50 µs an entry and
    25 µs a key, plus 53 µs a seal). A row that cannot be read is a problem like any other."""
    found = Verification()
    for log, head in sorted(reader.log_heads().items()):
        found.logs += 1
        try:
            _verify_log(reader, network_id, log, head, found)
        except LatticeError as error:
            found.add(f"{_name(log)}: {error.message}")
    try:
        _verify_keys(reader, network_id, found)
    except LatticeError as error:
        found.add(error.message)
    return found


def _verify_log(reader: Reader, network_id: bytes, log: LogKey, head: LogHead, found: Verification) -> None:
    previous = ZERO_ID
    seq = 0
    while seq <= head.seq:
        rows = reader.entries(*log, seq, head.seq, _READ_BYTES)
        if not rows:
            found.add(f"{_name(log)}: entry {seq} is missing")
            return
        seals = {seal.seq: seal for seal in reader.seals(*log, seq, rows[-1].seq)}
        for row in rows:
            entry = _verified(network_id, row, previous)
            if entry is None or row.seq != seq:
                found.add(f"{_name(log)}: entry {seq} does not verify")
                return
            # The newest entry of an open log is sealed; that of a frozen one by its fork proof.
            newest = seq == head.seq and head.frozen == FROZEN_NEVER
            _verify_seal(network_id, entry, seals.get(seq), newest, found)
            if reader.entry_by_id(row.id) != row:
                found.add(f"{_name(log)}: entry {seq} is not found by its id")
            previous = row.id
            seq += 1
            found.entries += 1
    if previous != head.id:
        found.add(f"{_name(log)}: its head is not the id of entry {head.seq}")


def _verified(network_id: bytes, row: EntryRow, previous: bytes) -> Entry | None:
    try:
        entry = parse_entry(network_id, row.header, row.ops)
    except MalformedError:
        return None
    header = entry.header
    own_place = (header.author, header.epoch, header.seq) == row[:3]
    return entry if own_place and entry.id == row.id and header.prev == previous else None


def _verify_seal(
    network_id: bytes, entry: Entry, seal: Seal | None, newest: bool, found: Verification
) -> None:
    header = entry.header
    name = f"{_name(LogKey(header.author, header.epoch))}: the seal of entry {header.seq}"
    if seal is None:
        if newest or must_be_sealed(header):
            found.add(f"{name} is missing")
        return
    found.seals += 1
    if seal.id != entry.id or not seal_verifies(network_id, seal):
        found.add(f"{name} does not verify")


def _verify_keys(reader: Reader, network_id: bytes, found: Verification) -> None:
    """Each present key has its leaf, nothing else has one, and what it names is in the entries."""
    tree = MerkleMap(reader.buckets())
    entries = _Entries(reader, network_id)
    for state in _present_keys(reader):
        found.keys += 1
        if tree.get(sha256(state.key).digest()) != leaf_of(state):
            found.add(f"key {state.key!r} does not have the leaf that the state tree holds")
        for live in state.live:
            if not entries.hold(state, live):
                found.add(f"version {live.version} of key {state.key!r} is not in its entry")
    if found.keys != len(tree):
        found.add(f"the state tree has {len(tree)} leaves for {found.keys} keys")
    if reader.meta("state_root") not in {None, tree.root()}:
        found.add("the stored state root is not that of the state tree")


def _present_keys(reader: Reader) -> Iterator[KeyState]:
    after: bytes | None = None
    while page := reader.page_keys(b"", after, _PAGE_KEYS):
        yield from page
        after = page[-1].key


class _Entries:
    """The entries looked at last, parsed."""

    def __init__(self, reader: Reader, network_id: bytes) -> None:
        self._reader = reader
        self._network_id = network_id
        self._kept: OrderedDict[tuple[bytes, int, int], Entry | None] = OrderedDict()

    def hold(self, state: KeyState, live: LiveVersion) -> bool:
        """Whether the entry of a live version has that put of that key, with that clock."""
        entry = self._entry(live)
        if entry is None or entry.id != live.id or entry.header.clock != live.clock:
            return False
        if live.op_index >= entry.header.op_count:
            return False
        op = entry.parsed_ops()[live.op_index]
        return op is not None and (op.kind, op.key, op.op_hash, op.value_at, op.value_size) == (
            OpKind.PUT,
            state.key,
            live.op_hash,
            live.value_at,
            live.value_size,
        )

    def _entry(self, live: LiveVersion) -> Entry | None:
        place = live.author, live.epoch, live.seq
        if place not in self._kept:
            row = self._reader.entry(*place)
            entry = None
            if row is not None:
                try:
                    entry = parse_entry(self._network_id, row.header, row.ops)
                except MalformedError:
                    entry = None
            self._kept[place] = entry
            if len(self._kept) > _ENTRIES_KEPT:
                self._kept.popitem(last=False)
        return self._kept[place]


def _name(log: LogKey) -> str:
    return f"log {log.author.hex()[:16]}/{log.epoch:016x}"
