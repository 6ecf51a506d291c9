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

from tests.independent.forks import Evidence, ForkProof, Link, Path, make_link, read_fork_proof, read_path
from tests.independent.wire_format import (
    ADD,
    FORK_PROOF,
    NOTHING,
    OPEN,
    PATH,
    PUT,
    SEALED_EVERY,
    ZERO32,
    Entries,
    Entry,
    LogHead,
    Malformed,
    Message,
    Op,
    Proof,
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
    """One log: its entries from seq 0, the valid seals that go with them, and the proof of its fork."""

    entries: list[Entry] = field(default_factory=list)
    seals: dict[int, Seal] = field(default_factory=dict)
    proof: ForkProof | None = None

    @property
    def height(self) -> int:
        return len(self.entries) - 1

    @property
    def frozen(self) -> int:
        return OPEN if self.proof is None else self.proof.fork

    def is_continued(self, entry: Entry) -> bool:
        """Whether the proof of the fork authenticates this entry, which no seal then has to."""
        return (
            self.proof is not None
            and entry.header.seq + 1 == self.proof.fork
            and entry.id == self.proof.continues
        )

    def known(self) -> tuple[list[Link], list[Seal]]:
        """All headers that are kept, and the seals over them, which were valid when they came."""
        links = [Link(entry.header, entry.header_bytes, entry.id) for entry in self.entries]
        paths = [] if self.proof is None else [self.proof.first, self.proof.second]
        links += [link for path in paths for link in path.links]
        return links, [*self.seals.values(), *(path.seal for path in paths)]

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


FROZEN: Final = "at or above the fork"
UNREADABLE: Final[LogName] = (ZERO32, 0)


@dataclass(slots=True)
class Arrived:
    """What one message body brings of one log: entries that are well formed, headers of paths, seals."""

    entries: list[Entry] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)
    seals: list[Seal] = field(default_factory=list)


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

    def take(self, *messages: Message) -> list[Refusal]:
        """Accept of one body what the rules allow; the rest is no data, and comes back with a reason."""
        arrived: dict[LogName, Arrived] = defaultdict(Arrived)
        refusals = []
        for message in messages:
            if isinstance(message, Entries):
                refusals += self._sort_entries(message, arrived)
            if isinstance(message, Proof):
                refusals += self._sort_proof(message, arrived)
        for name in sorted(arrived):
            if arrived[name].entries or arrived[name].links:  # a seal alone says nothing
                refusals += self._take_log(name, arrived[name])
        return refusals

    def _sort_entries(self, message: Entries, arrived: dict[LogName, Arrived]) -> list[Refusal]:
        refusals = []
        for header_bytes, ops_bytes in message.frames:
            try:
                entry = read_entry(self.network_id, header_bytes, ops_bytes)
            except Malformed as error:
                log = (header_bytes[1:33], int.from_bytes(header_bytes[33:41], "big"))
                refusals.append(Refusal(log, int.from_bytes(header_bytes[41:49], "big"), str(error)))
                continue
            held = self.logs.get(entry.log, Log()).entries
            if entry.header.seq < len(held) and held[entry.header.seq].id == entry.id:
                continue  # a duplicate
            arrived[entry.log].entries.append(entry)
        for seal in message.seals:
            arrived[seal.author, seal.epoch].seals.append(seal)
        return refusals

    def _sort_proof(self, message: Proof, arrived: dict[LogName, Arrived]) -> list[Refusal]:
        try:
            if message.kind == FORK_PROOF:
                proof = read_fork_proof(self.network_id, message.payload)
                paths = [proof.first, proof.second]
            elif message.kind == PATH:
                paths = [read_path(self.network_id, message.payload)]
            else:
                return []
        except Malformed as error:
            return [Refusal(UNREADABLE, 0, str(error))]
        for path in paths:
            log = arrived[path.links[0].log]
            log.links += path.links
            log.seals.append(path.seal)
        return []

    def _take_log(self, name: LogName, arrived: Arrived) -> list[Refusal]:
        if not is_good_key(name[0]):
            seqs = [entry.header.seq for entry in arrived.entries]
            return [Refusal(name, min(seqs, default=0), "the author's key is not a good key")]
        log = self.logs.get(name, Log())
        links, kept = log.known()
        links += [
            *arrived.links,
            *(make_link(self.network_id, each.header_bytes) for each in arrived.entries),
        ]
        seqs_by_id = {link.id: link.seq for link in links}
        valid = [
            seal
            for seal in arrived.seals
            if seqs_by_id.get(seal.id) == seal.seq and seal.is_valid(self.network_id)
        ]
        evidence = Evidence(links, [*kept, *valid])
        fork = evidence.lowest()
        if fork is not None and fork < log.frozen:
            log = self.logs[name]
            own = log.entries[fork].id if fork <= log.height else None
            self._freeze(log, evidence.proof(fork, own))
        return self._accept(name, arrived.entries, evidence, {seal.id: seal for seal in valid})

    def _freeze(self, log: Log, proof: ForkProof) -> None:
        """Take a log's entries from the fork on out of everything."""
        log.proof = proof
        del log.entries[proof.fork :]
        log.seals = {seq: seal for seq, seal in log.seals.items() if seq < proof.fork}

    def _accept(
        self, name: LogName, arrived: Sequence[Entry], evidence: Evidence, valid: Mapping[bytes, Seal]
    ) -> list[Refusal]:
        log = self.logs.get(name, Log())
        refusals = [
            Refusal(name, entry.header.seq, "another entry is held at this seq")
            for entry in arrived
            if entry.header.seq <= log.height
        ]
        refusals += [
            Refusal(name, entry.header.seq, FROZEN) for entry in arrived if entry.header.seq >= log.frozen
        ]
        fresh = [entry for entry in arrived if log.height < entry.header.seq < log.frozen]
        run = _run(log, fresh, evidence)
        walked = 0
        for entry in run:
            if entry.must_be_sealed and entry.id not in valid:
                refusals.append(Refusal(name, entry.header.seq, "a seal that must be there is not"))
                break
            walked += 1
        ends = [at for at in range(walked) if run[at].id in valid or log.is_continued(run[at])]
        accepted = run[: ends[-1] + 1] if ends else []
        if len(accepted) < walked:
            refusals.append(Refusal(name, run[len(accepted)].header.seq, "no valid seal above"))
        beyond = [entry.header.seq for entry in fresh if entry.header.seq > log.height + len(run)]
        if beyond:
            refusals.append(Refusal(name, min(beyond), "does not chain to what is held"))
        if accepted:
            self._append(name, accepted, valid)
        return refusals

    def _append(self, name: LogName, accepted: Sequence[Entry], valid: Mapping[bytes, Seal]) -> None:
        log = self.logs[name]
        log.entries.extend(accepted)
        log.seals.update((entry.header.seq, valid[entry.id]) for entry in accepted if entry.id in valid)
        for seq in [seq for seq in log.seals if seq != log.height and not log.entries[seq].must_be_sealed]:
            del log.seals[seq]

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

    def holds(self, author: bytes, head: LogHead) -> bool:
        """Whether a head that another named is held: nothing of it lacks, and it is the same branch."""
        if self.lacks(author, [head]):
            return False
        log = self.logs.get((author, head.epoch), Log())
        return not 0 <= head.height < log.frozen or log.entries[head.height].id == head.id

    def may_part(self, name: LogName, head: LogHead) -> bool:
        """Whether the headers of a log have to be compared with those of the other, who named this head."""
        log = self.logs.get(name, Log())
        if log.height < 0 or head.height < 0:
            return False
        if head.height <= log.height and log.entries[head.height].id != head.id:
            return True
        return log.frozen < head.frozen != OPEN

    def fork_proof(self, name: LogName) -> Proof | None:
        proof = self.logs.get(name, Log()).proof
        return None if proof is None else Proof(FORK_PROOF, proof.encode())

    def page(self, ranges: Iterable[Range]) -> Entries:
        """About one page of what was wanted; each log's part ends at a seal that is kept, or at the fork."""
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

    def path(self, wanted: Range) -> Proof | None:
        """The headers that a range without a last one asks for, up to the highest seal of the stretch."""
        log = self.logs.get((wanted.author, wanted.epoch), Log())
        links = [Link(entry.header, entry.header_bytes, entry.id) for entry in log.entries]
        seals = dict(log.seals)
        if log.proof is not None and log.height + 1 == log.frozen:
            links += log.proof.first.links
            seals[log.proof.first.seal.seq] = log.proof.first.seal
        ends = [seq for seq in seals if wanted.first <= seq <= wanted.first | SEALED_EVERY - 1]
        if not ends or wanted.first > log.height:
            return None
        part = tuple(links[wanted.first : max(ends) + 1])
        return Proof(PATH, Path(part, seals[max(ends)]).encode())


def _run(log: Log, fresh: Iterable[Entry], evidence: Evidence) -> list[Entry]:
    """The run above what is held; of two entries at one seq the authenticated one, if there is one."""
    above: dict[tuple[int, bytes], Entry] = {}
    for entry in fresh:
        place = (entry.header.seq, entry.header.prev)
        if place not in above or evidence.is_authenticated(entry.id):
            above[place] = entry
    run: list[Entry] = []
    top = log.entries[-1].id if log.entries else ZERO32
    while (found := above.get((log.height + 1 + len(run), top))) is not None:
        run.append(found)
        top = found.id
    return run


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
