"""Re-verifying a whole store: every id, chain, ops root, seal and leaf.

Separate because it trusts nothing that the engine concluded when it took the entries in: it reads
the bytes again and asks only the rules. It works on any Reader, and holds a page at a time.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Final

from ..core.entry import ZERO_ID, Entry, OpKind, Seal, must_be_sealed, parse_entry, seal_verifies
from ..core.errors import LatticeError, MalformedError
from ..core.forks import proof_verifies, unpack_fork_proof
from ..core.heads import log_root
from ..core.limits import FROZEN_NEVER, MIB
from ..core.merkle import MerkleMap
from ..core.rows import EntryRow, KeyState, LiveVersion, LogHead, LogKey, Reader
from ..core.state import leaf_of
from .packing import corrupt
from .recompute import OpSorter

PROBLEMS_MAX: Final = 100
_READ_BYTES: Final = 4 * MIB
_PAGE_KEYS: Final = 500
_SEQ_MAX: Final = 2**62
# Keys that were written together are mostly neighbours: a few entries serve many of them.
_ENTRIES_KEPT: Final = 64


# Told after each page: entries looked at, and how many there are.
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that does not verify: a sentence, and the place that it speaks of where there is one."""

    text: str
    log: LogKey | None = None
    seq: int | None = None
    key: bytes | None = None


@dataclass(slots=True)
class Verification:
    """What was looked at, and what does not verify (at most PROBLEMS_MAX are kept, all are counted)."""

    logs: int = 0
    entries: int = 0
    ops: int = 0
    seals: int = 0
    keys: int = 0
    recomputed: bool = False
    count: int = 0
    findings: list[Finding] = field(default_factory=list)

    @property
    def problems(self) -> list[str]:
        return [finding.text for finding in self.findings]

    def add(
        self, text: str, *, log: LogKey | None = None, seq: int | None = None, key: bytes | None = None
    ) -> None:
        self.count += 1
        if len(self.findings) < PROBLEMS_MAX:
            self.findings.append(Finding(text, log, seq, key))


def _no_progress(done: int, of: int) -> None:
    return None


def verify_all(reader: Reader, network_id: bytes, progress: Progress = _no_progress) -> Verification:
    """Verify everything that can be reached from the heads and the state tree, and recompute the
    state from the entries alone. A row that cannot be read is a problem like any other.

    The state is recomputed only if all entries verify: `recomputed` says whether it was.
    """
    found = Verification()
    heads = reader.log_heads()
    total = sum(head.seq + 1 for head in heads.values())
    with OpSorter() as ops:
        for log, head in sorted(heads.items()):
            found.logs += 1
            _verify_log(reader, network_id, log, head, found, ops, lambda: progress(found.entries, total))
        if found.entries == total != reader.entry_count():
            found.add(f"the store counts {reader.entry_count()} entries, its logs hold {total}")
        if (reader.meta("log_root") or log_root({})) != log_root(heads):
            found.add("the stored log root is not that of the heads")
        try:
            _verify_keys(reader, network_id, found)
        except LatticeError as error:
            found.add(_cause(error))
        if found.entries == total:
            _verify_state(reader, ops, found)
    return found


def _verify_log(
    reader: Reader,
    network_id: bytes,
    log: LogKey,
    head: LogHead,
    found: Verification,
    ops: OpSorter,
    page_done: Callable[[], None],
) -> None:
    previous = ZERO_ID
    seq = 0
    continued = _verify_fork(reader, network_id, log, head, found)
    while seq <= head.seq:
        try:
            rows = reader.entries(*log, seq, head.seq, _READ_BYTES)
            seals = {seal.seq: seal for seal in reader.seals(*log, seq, rows[-1].seq if rows else seq)}
        except LatticeError as error:
            _pinpoint(reader, log, seq, head.seq, error, found)
            return
        if not rows:
            found.add(f"{_name(log)}: entry {seq} is missing", log=log, seq=seq)
            return
        for row in rows:
            entry = _verified(network_id, row, previous)
            if entry is None or row.seq != seq:
                found.add(f"{_name(log)}: entry {seq} does not verify", log=log, seq=seq)
                return
            # The newest entry is sealed, or just below a fork and authenticated by its proof.
            newest = seq == head.seq and entry.id != continued
            _verify_seal(network_id, entry, seals.get(seq), newest, found)
            if not _is_indexed(reader, row):
                found.add(f"{_name(log)}: entry {seq} is not found by its id", log=log, seq=seq)
            if seq < head.frozen:
                found.ops += ops.add(entry)
            previous = row.id
            seq += 1
            found.entries += 1
        page_done()
    if previous != head.id:
        found.add(f"{_name(log)}: its head is not the id of entry {head.seq}", log=log, seq=head.seq)
    elif head.frozen == FROZEN_NEVER:
        _verify_end(reader, log, head, found)


def _verify_fork(
    reader: Reader, network_id: bytes, log: LogKey, head: LogHead, found: Verification
) -> bytes | None:
    """Verify the fork proof of a frozen log; the id that it continues, None where there is none."""
    row = reader.fork_row(log)
    if row is None or head.frozen == FROZEN_NEVER:
        if row is not None or head.frozen != FROZEN_NEVER:
            what = "a fork proof and is open" if row is not None else "no fork proof and is frozen"
            found.add(f"{_name(log)}: it has {what}", log=log)
        return None
    try:
        proof = unpack_fork_proof(network_id, row.proof)
    except MalformedError as error:
        found.add(f"{_name(log)}: its fork proof is malformed: {error.message}", log=log)
        return None
    if (proof.log, proof.seq) != (log, head.frozen) or not proof_verifies(network_id, proof):
        found.add(f"{_name(log)}: its fork proof does not show a fork at {head.frozen}", log=log)
        return None
    if head.seq >= head.frozen or (head.seq == head.frozen - 1 >= 0 and proof.continues != head.id):
        found.add(f"{_name(log)}: its fork proof does not continue what is held", log=log, seq=head.seq)
        return None
    return proof.continues


def _is_indexed(reader: Reader, row: EntryRow) -> bool:
    try:
        return reader.entry_by_id(row.id) == row
    except LatticeError:
        return False


def _verify_end(reader: Reader, log: LogKey, head: LogHead, found: Verification) -> None:
    """A log ends at its head: what stands above it would be served by nobody and block its place."""
    try:
        beyond = bool(reader.entries(*log, head.seq + 1, _SEQ_MAX, 0))
    except LatticeError:
        beyond = True
    if beyond:
        found.add(f"{_name(log)}: an entry stands above its head {head.seq}", log=log, seq=head.seq)


def _pinpoint(
    reader: Reader, log: LogKey, first: int, last: int, error: LatticeError, found: Verification
) -> None:
    """Name the rows of a page that cannot be read, one by one."""
    before = found.count
    for seq in range(first, last + 1):
        for what, read in (("entry", reader.entry), ("the seal of entry", _seal_reader(reader))):
            try:
                missing = read(*log, seq) is None and what == "entry"
            except LatticeError as cause:
                found.add(f"{_name(log)}: {what} {seq}: {_cause(cause)}", log=log, seq=seq)
            else:
                if missing:
                    found.add(f"{_name(log)}: entry {seq} is missing", log=log, seq=seq)
        if found.count - before >= PROBLEMS_MAX:
            return
    if found.count == before:
        found.add(f"{_name(log)}: {_cause(error)}", log=log)


def _cause(error: LatticeError) -> str:
    """What is damaged, without the advice that an error carries and a list need not repeat."""
    before, after = corrupt("|").message.split("|")
    return error.message.removeprefix(before).removesuffix(after)


def _seal_reader(reader: Reader) -> Callable[[bytes, int, int], object]:
    return lambda author, epoch, seq: reader.seals(author, epoch, seq, seq)


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
    log = LogKey(header.author, header.epoch)
    name = f"{_name(log)}: the seal of entry {header.seq}"
    if seal is None:
        if newest or must_be_sealed(header):
            found.add(f"{name} is missing", log=log, seq=header.seq)
        return
    found.seals += 1
    if seal.id != entry.id or not seal_verifies(network_id, seal):
        found.add(f"{name} does not verify", log=log, seq=header.seq)


def _verify_keys(reader: Reader, network_id: bytes, found: Verification) -> None:
    """Each present key has its leaf, nothing else has one, and what it names is in the entries."""
    tree = MerkleMap(reader.buckets())
    entries = _Entries(reader, network_id)
    for state in _present_keys(reader):
        found.keys += 1
        if tree.get(sha256(state.key).digest()) != leaf_of(state):
            text = f"key {state.key!r} does not have the leaf that the state tree holds"
            found.add(text, key=state.key)
        for live in state.live:
            if not entries.hold(state, live):
                text = f"version {live.version} of key {state.key!r} is not in its entry"
                found.add(text, log=LogKey(live.author, live.epoch), seq=live.seq, key=state.key)
    if found.keys != len(tree):
        found.add(f"the state tree has {len(tree)} leaves for {found.keys} keys")
    if (reader.meta("state_root") or MerkleMap().root()) != tree.root():
        found.add("the stored state root is not that of the state tree")


def _verify_state(reader: Reader, ops: OpSorter, found: Verification) -> None:
    """Each key's live versions, counter, history and edges follow from the entries, and no other key
    has anything."""
    present = 0
    for made in ops.each_key():
        key = made.state.key
        present += made.state.present
        try:
            for text in made.differences(reader):
                found.add(f"key {key!r}: {text}", key=key)
        except LatticeError as error:
            found.add(f"key {key!r}: {_cause(error)}", key=key)
    found.recomputed = True
    if present < found.keys:
        for state in _present_keys(reader):
            if not ops.has(state.key):
                found.add(f"key {state.key!r} is in no entry", key=state.key)


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
