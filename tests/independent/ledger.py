"""A ledger in memory: what is accepted, what it adds up to, and both roots, from entries alone.

Separate from the session that fetches the entries: the rules of acceptance and of the state (sections 7
to 9 of docs/reference/wire.md) hold whatever road an entry came by. The state is computed afresh from
all entries each time, by the words of the page; speed is no aim.
"""

from __future__ import annotations

import secrets
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from nacl.signing import SigningKey

from tests.independent.wire_format import (
    ADD,
    NOTHING,
    OPEN,
    PUT,
    ZERO32,
    Entries,
    Entry,
    LogHead,
    Malformed,
    Op,
    Range,
    Roots,
    Seal,
    is_good_key,
    make_entry,
    make_seal,
    read_entry,
    read_op,
    sha,
    tag,
    tree,
    u16,
    u32,
    u64,
)

Version = tuple[bytes, int]
LogName = tuple[bytes, int]
PAGE_BYTES: Final = 1_500_000


@dataclass(slots=True)
class Log:
    """One log: its entries from seq 0, and the valid seals that go with them."""

    entries: list[Entry] = field(default_factory=list)
    seals: dict[int, Seal] = field(default_factory=dict)
    frozen: int = OPEN

    @property
    def height(self) -> int:
        return len(self.entries) - 1

    def head(self, epoch: int) -> LogHead:
        if not self.entries:
            return LogHead(epoch, NOTHING, ZERO32, self.frozen)
        return LogHead(epoch, self.height, self.entries[-1].id, self.frozen)


@dataclass(slots=True)
class Cell:
    """One key: its live versions with their winner, and its counter."""

    live: dict[Version, tuple[Entry, Op]] = field(default_factory=dict)
    adds: int = 0
    total: int = 0

    @property
    def winner(self) -> Version:
        return max(
            self.live,
            key=lambda version: (
                self.live[version][0].header.clock,
                self.live[version][0].header.author,
                *version,
            ),
        )


class Refusal(NamedTuple):
    """Something that came and was not taken, and which rule it broke."""

    log: LogName
    seq: int
    why: str


class Ledger:
    """All logs that this peer holds."""

    def __init__(self, network_id: bytes) -> None:
        self.network_id = network_id
        self.logs: dict[LogName, Log] = defaultdict(Log)

    def held(self) -> Iterator[tuple[LogName, Log]]:
        return (
            (name, self.logs[name])
            for name in sorted(self.logs)
            if self.logs[name].entries or self.logs[name].frozen != OPEN
        )

    @property
    def entry_count(self) -> int:
        return sum(len(log.entries) for _, log in self.held())

    # 7. Acceptance

    def take(self, message: Entries) -> list[Refusal]:
        """Accept what the rules allow; what they do not allow is no data, and comes back with a reason."""
        arrived: dict[LogName, dict[int, list[Entry]]] = defaultdict(lambda: defaultdict(list))
        refusals = []
        for header_bytes, ops_bytes in message.frames:
            try:
                entry = read_entry(self.network_id, header_bytes, ops_bytes)
            except Malformed as error:
                log = (header_bytes[1:33], int.from_bytes(header_bytes[33:41], "big"))
                refusals.append(Refusal(log, int.from_bytes(header_bytes[41:49], "big"), str(error)))
                continue
            arrived[entry.log][entry.header.seq].append(entry)
        seals: dict[LogName, list[Seal]] = defaultdict(list)
        for seal in message.seals:
            seals[seal.author, seal.epoch].append(seal)
        for log in sorted(arrived):
            refusals += self._take_log(log, arrived[log], seals[log])
        return refusals

    def _take_log(
        self, name: LogName, arrived: Mapping[int, Sequence[Entry]], seals: Iterable[Seal]
    ) -> list[Refusal]:
        log = self.logs.get(name, Log())
        fresh = {seq: entries for seq, entries in arrived.items() if log.height < seq < log.frozen}
        refusals = [
            Refusal(name, seq, "another entry is held at this seq")
            for seq, entries in arrived.items()
            for entry in entries
            if seq <= log.height and log.entries[seq].id != entry.id
        ]
        if not fresh:
            return refusals
        if not is_good_key(name[0]):
            return [*refusals, Refusal(name, min(fresh), "the author's key is not a good key")]
        run = _longest_run(log, fresh)
        valid = self._valid_seals(run, seals)
        walked = 0
        for entry in run:
            if entry.must_be_sealed and entry.header.seq not in valid:
                refusals.append(Refusal(name, entry.header.seq, "a seal that must be there is not"))
                break
            walked += 1
        sealed = [at for at in range(walked) if run[at].header.seq in valid]
        accepted = run[: sealed[-1] + 1] if sealed else []
        if len(accepted) < walked:
            refusals.append(Refusal(name, run[len(accepted)].header.seq, "no valid seal above"))
        beyond = [seq for seq in fresh if seq > log.height + len(run)]
        if beyond:
            refusals.append(Refusal(name, min(beyond), "does not chain to what is held"))
        if accepted:
            self._append(name, accepted, valid)
        return refusals

    def _valid_seals(self, run: Sequence[Entry], seals: Iterable[Seal]) -> dict[int, Seal]:
        ids = {entry.header.seq: entry.id for entry in run}
        return {
            seal.seq: seal
            for seal in seals
            if ids.get(seal.seq) == seal.id and seal.is_valid(self.network_id)
        }

    def _append(self, name: LogName, accepted: Sequence[Entry], valid: Mapping[int, Seal]) -> None:
        log = self.logs[name]
        log.entries.extend(accepted)
        log.seals.update((seq, seal) for seq, seal in valid.items() if seq <= log.height)
        for seq in [seq for seq in log.seals if seq != log.height and not log.entries[seq].must_be_sealed]:
            del log.seals[seq]

    def freeze(self, name: LogName, at: int) -> None:
        """Take a log's entries from the fork on out of everything; the caller has seen both branches."""
        log = self.logs[name]
        log.frozen = min(log.frozen, at)
        del log.entries[log.frozen :]
        log.seals = {seq: seal for seq, seal in log.seals.items() if seq < log.frozen}

    # 8. State

    def state(self) -> dict[bytes, Cell]:
        """Every key with a leaf."""
        puts: dict[bytes, dict[Version, tuple[Entry, Op]]] = defaultdict(dict)
        replaced: dict[bytes, set[Version]] = defaultdict(set)
        cells: dict[bytes, Cell] = defaultdict(Cell)
        for _, log in self.held():
            latest: dict[bytes, Version] = {}
            for entry, index, op in _applied(log.entries):
                if op.kind == ADD:
                    cells[op.key].adds += 1
                    cells[op.key].total += op.amount
                    continue
                replaced[op.key].update((named or entry.id, at) for named, at in op.names)
                if op.key in latest:
                    replaced[op.key].add(latest[op.key])
                if op.kind == PUT:
                    latest[op.key] = (entry.id, index)
                    puts[op.key][entry.id, index] = (entry, op)
        for key, versions in puts.items():
            live = {version: put for version, put in versions.items() if version not in replaced[key]}
            if live:
                cells[key].live = live
        return dict(cells)

    def state_root(self) -> bytes:
        return map_root({key: _cell_leaf(key, cell) for key, cell in self.state().items()})

    # 9. Heads

    def heads(self, author: bytes) -> tuple[LogHead, ...]:
        return tuple(log.head(name[1]) for name, log in self.held() if name[0] == author)

    def digests(self) -> dict[bytes, bytes]:
        return {
            author: author_digest(self.heads(author))
            for author in sorted({name[0] for name, _ in self.held()})
        }

    def log_root(self) -> bytes:
        return heads_root(self.digests())

    def roots(self) -> Roots:
        return Roots(self.log_root(), self.state_root(), self.entry_count)

    # 13. What to ask for, and what to send

    def lacks(self, author: bytes, heads: Iterable[LogHead]) -> list[Range]:
        """Of the logs that another named, what is not held here; of a frozen one, below the fork."""
        ranges = []
        for head in heads:
            first, last = self.logs.get((author, head.epoch), Log()).height + 1, head.height
            fork = min(head.frozen, self.logs.get((author, head.epoch), Log()).frozen)
            last = min(last, fork - 1)
            if first <= last:
                ranges.append(Range(author, head.epoch, first, last))
        return ranges

    def page(self, ranges: Iterable[Range]) -> Entries:
        """About one page of what was wanted; each log's part ends at a seal that is kept."""
        frames: list[tuple[bytes, bytes]] = []
        seals: list[Seal] = []
        room, served = PAGE_BYTES, set()
        for each in ranges:
            log = self.logs.get((each.author, each.epoch), Log())
            if room <= 0 or (each.author, each.epoch) in served or each.first > log.height:
                continue
            served.add((each.author, each.epoch))
            for entry in log.entries[each.first :]:
                seq = entry.header.seq
                frames.append((entry.header_bytes, entry.ops_bytes))
                room -= len(entry.frame())
                if seq in log.seals:
                    seals.append(log.seals[seq])
                    if room <= 0 or seq >= each.last:
                        break
        return Entries(tuple(frames), tuple(seals))


def _longest_run(log: Log, fresh: Mapping[int, Sequence[Entry]]) -> list[Entry]:
    first = log.height + 1
    last = first
    while last in fresh:
        last += 1
    following: dict[bytes, list[Entry]] = {}  # by the id that it continues: the longest run from there
    for seq in range(last - 1, first - 1, -1):
        at_this_seq: dict[bytes, list[Entry]] = {}
        for entry in fresh[seq]:
            run = [entry, *following.get(entry.id, ())]
            if len(run) > len(at_this_seq.get(entry.header.prev, ())):
                at_this_seq[entry.header.prev] = run
        following = at_this_seq
    return following.get(log.entries[-1].id if log.entries else ZERO32, [])


def _applied(entries: Iterable[Entry]) -> Iterator[tuple[Entry, int, Op]]:
    for entry in entries:
        if entry.header.version != 1:
            continue
        for index, data in enumerate(entry.ops):
            op = read_op(data, index)
            if op is not None:
                yield entry, index, op


def leaf(key: bytes, live: Iterable[tuple[bytes, int, bytes]], adds: int, total: int) -> bytes:
    """`live` is (entry id, op index, op hash) of each live version."""
    versions = [entry_id + u16(index) + op_hash for entry_id, index, op_hash in sorted(live)]
    number = str(total).encode()
    return sha(
        tag("leaf"), u32(len(key)), key,
        u32(len(versions)), *versions,
        u64(adds), u32(len(number)), number,
    )  # fmt: skip


def _cell_leaf(key: bytes, cell: Cell) -> bytes:
    live = [(*version, sha(b"\x00", entry.ops[version[1]])) for version, (entry, _) in cell.live.items()]
    return leaf(key, live, cell.adds, cell.total)


def map_root(leaves: Mapping[bytes, bytes]) -> bytes:
    """The state root over key and leaf (8)."""
    buckets: dict[int, list[bytes]] = defaultdict(list)
    for key, its_leaf in leaves.items():
        place = sha(key)
        buckets[int.from_bytes(place[:2], "big")].append(place + its_leaf)
    level = {bucket: sha(tag("bucket"), *sorted(pairs)) for bucket, pairs in buckets.items()}
    empty = sha(tag("bucket"))
    for _ in range(16):
        level = {
            above: sha(tag("node"), level.get(2 * above, empty), level.get(2 * above + 1, empty))
            for above in {bucket // 2 for bucket in level}
        }
        empty = sha(tag("node"), empty, empty)
    return level.get(0, empty)


def author_digest(heads: Iterable[LogHead]) -> bytes:
    """The digest of one author's logs (9)."""
    return sha(tag("author"), *(head.encode() for head in sorted(heads)))


def heads_root(digests: Mapping[bytes, bytes]) -> bytes:
    """The log root over author and digest (9)."""
    return tree([author + digests[author] for author in sorted(digests)])


class Author:
    """A key that writes into a ledger: one log, in an epoch of its own."""

    def __init__(self, ledger: Ledger, key: SigningKey) -> None:
        self.ledger = ledger
        self.key = key
        self.public_key = bytes(key.verify_key)
        self.epoch = secrets.randbits(64)

    def write(self, *ops: bytes, seal: bool = True, clock: int | None = None, version: int = 1) -> Entry:
        """Append one entry; sealed if asked for or if the rules demand it."""
        log = self.ledger.logs[self.public_key, self.epoch]
        clock = time.time_ns() // 1_000_000 << 16 if clock is None else clock
        prev = log.entries[-1].id if log.entries else ZERO32
        entry = make_entry(
            self.ledger.network_id, self.public_key, self.epoch, log.height + 1, prev, clock, ops, version
        )
        log.entries.append(entry)
        if seal or entry.must_be_sealed:
            log.seals[entry.header.seq] = make_seal(self.ledger.network_id, self.key, entry)
        return entry
