"""Logs: what of a message is accepted, what waits, which seals are kept, and pages to serve.

Separate because it is the one way by which entries enter the ledger, our own and those of others,
on either lung: never judged by values, clocks, or who sent them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from .acceptance import Accepted, Cut, Verified, chain_from, is_simple, is_whole, sealed_prefix, stretches
from .entry import Entry, Seal, entry_id, must_be_sealed, parse_entry, parse_header, parse_stored
from .errors import MalformedError
from .forks import (
    FORK_PROOF,
    Authentic,
    ForkProof,
    HeaderNode,
    HeaderPath,
    pack_fork_proof,
    paths_in,
    proof_of,
    proof_verifies,
    read_kept_proof,
)
from .heads import HeadsIndex
from .identity import is_valid_public_key
from .limits import FROZEN_NEVER, PAGE_BYTES, SEAL_INTERVAL
from .messages import Entries, Proof
from .pending import Pending, Waiting
from .rows import Batch, EntryRow, ForkRow, LogHead, LogKey, Reader
from .tree_proofs import check_tree_proof


@dataclass(frozen=True, slots=True)
class Origin:
    """Where entries came from: the sender's public key (empty: ourselves), the lung, wall time."""

    peer: bytes
    lung: str
    arrived_ms: int


class _Newest(NamedTuple):
    """The newest seal of a log, and whether it must be kept once it is no longer the newest."""

    seal: Seal
    mandatory: bool


class Logs:
    """All logs of this node: heads, acceptance, forks, pending entries, pages to serve."""

    def __init__(self, network_id: bytes, reader: Reader) -> None:
        self._network_id = network_id
        self._reader = reader
        self._batch = Batch()
        self.heads = HeadsIndex(reader.log_heads())
        self._overlay: dict[tuple[LogKey, int], EntryRow] = {}
        self._newest: dict[LogKey, _Newest] = {}
        self._pending = Pending()
        # The fork proof taken apart last: one message asks for the same several times. F names it.
        self._read_last: tuple[LogKey, int, ForkProof] | None = None

    def begin(self, batch: Batch) -> None:
        """Collect changes in `batch` from now on; what came before is committed."""
        self._batch = batch
        self._overlay = {}

    @property
    def pending_bytes(self) -> int:
        return self._pending.bytes

    @property
    def pending_dropped(self) -> int:
        return self._pending.dropped

    def accept(self, message: Entries, origin: Origin, proofs: Sequence[Proof] = ()) -> Accepted:
        """Take what a message brings: all of it is judged by the same rule, whoever sent it.

        Everything is compared with everything that is kept before anything is cut or dropped.
        """
        result = Accepted()
        logs = self._parse(message, result)
        paths = self._parse_proofs(proofs, result)
        if not logs and not paths:
            return result
        seals: dict[LogKey, dict[int, list[Seal]]] = {}
        for seal in (*message.seals, *(path.seal for found in paths.values() for path in found)):
            of_log = seals.setdefault(LogKey(seal.author, seal.epoch), {})
            of_log.setdefault(seal.seq, []).append(seal)
        for key in [*logs, *(key for key in paths if key not in logs)]:
            entries = logs.get(key, {})
            if not self.heads.has_author(key.author) and not is_valid_public_key(key.author):
                result.refuse("bad_author_key", max(len(entries), 1))
                continue
            verified = self._verified(key, seals.get(key, {}), result)
            self._accept_log(key, entries, paths.get(key, ()), verified, origin, result)
        return result

    def _parse(self, message: Entries, result: Accepted) -> dict[LogKey, dict[bytes, Entry]]:
        """The entries that are not held, by log and id. What is held is known by its id: its ops are
        not even split."""
        logs: dict[LogKey, dict[bytes, Entry]] = {}
        for header_bytes, ops in message.frames:
            try:
                header = parse_header(header_bytes)
                key = LogKey(header.author, header.epoch)
                held = self.entry_id_at(key, header.seq)
                if held is not None and held == entry_id(self._network_id, header_bytes):
                    result.duplicates += 1
                    continue
                entry = parse_entry(self._network_id, header_bytes, ops)
            except MalformedError:
                result.refuse("malformed_entry")
                continue
            logs.setdefault(key, {}).setdefault(entry.id, entry)
        return logs

    def _parse_proofs(
        self, proofs: Sequence[Proof], result: Accepted
    ) -> dict[LogKey, tuple[HeaderPath, ...]]:
        found: dict[LogKey, tuple[HeaderPath, ...]] = {}
        for proof in proofs:
            try:
                check_tree_proof(proof)
                for path in paths_in(self._network_id, proof):
                    found[path.log] = (*found.get(path.log, ()), path)
            except MalformedError:
                result.refuse("malformed_proof")
        return found

    def _verified(self, key: LogKey, seals: Mapping[int, Sequence[Seal]], result: Accepted) -> Verified:
        """The seals of one log, with what the fork proof that is held adds to them."""
        proof = self._kept_proof(key)
        waiting = self._pending.of(key)
        if proof is None:
            return Verified(self._network_id, seals, waiting, result)
        known = {seq: list(found) for seq, found in seals.items()}
        for path in proof:
            known.setdefault(path.seal.seq, []).append(path.seal)
        trusted = [path.seal for path in proof]
        return Verified(self._network_id, known, waiting, result, trusted, proof.continues)

    def may_relay(self, message: Entries, result: Accepted) -> bool:
        """Whether no part of an accepted message would be refused elsewhere (see is_whole)."""
        return not result.refused and is_whole(self._network_id, message, result)

    def shows_fork(self, proof: Proof) -> bool:
        """Whether a proof is one of a fork, and verifies: then it may be relayed."""
        try:
            paths = paths_in(self._network_id, proof)
            return len(paths) == 2 and proof_verifies(self._network_id, proof_of(*paths))
        except MalformedError:
            return False

    def _accept_log(
        self,
        key: LogKey,
        entries: Mapping[bytes, Entry],
        paths: Sequence[HeaderPath],
        verified: Verified,
        origin: Origin,
        result: Accepted,
    ) -> None:
        waiting = self._pending.of(key)
        head = self.heads.get(key)
        if paths or head.frozen != FROZEN_NEVER or not is_simple(head, entries, waiting):
            entries = self._judge(key, entries, paths, verified, origin, result)
            waiting, head = self._pending.of(key), self.heads.get(key)
        fresh = {entry.header.seq: entry for entry in entries.values()}
        if not fresh and not waiting:
            return
        run = chain_from(head, fresh, waiting)
        count = sealed_prefix(run, verified)
        for entry in run[:count]:
            self._store(key, entry, origin, result)
        if count:
            self._keep_seals(key, run[:count], verified)
            for entry in run[:count]:
                self._pending.discard(key, entry.header.seq)
        self._keep_pending(key, fresh, run, count, verified, result)

    # Forks.

    def _judge(
        self,
        key: LogKey,
        entries: Mapping[bytes, Entry],
        paths: Sequence[HeaderPath],
        verified: Verified,
        origin: Origin,
        result: Accepted,
    ) -> dict[bytes, Entry]:
        """Compare what came with everything kept; freeze the log at the lowest evidence. Returns the
        authentic entries that stand above what is held and below where the log is frozen."""
        came = [HeaderNode(entry.id, entry.header, entry.header_bytes) for entry in entries.values()]
        came += [node for path in paths for node in path.headers]
        authentic = Authentic.among(
            [*came, *self._kept_headers(key)], lambda node: verified.seal_of(node.header.seq, node.id)
        )
        frozen = self.heads.get(key).frozen
        evidence = authentic.lowest_evidence(lambda seq: self.entry_id_at(key, seq), frozen)
        if evidence is not None:
            verified.continued = self._freeze(key, evidence, authentic, origin, result).continues
        head = self.heads.get(key)
        left: dict[bytes, Entry] = {}
        for entry in entries.values():
            seq = entry.header.seq
            if seq >= head.frozen:
                result.refuse("frozen")
                result.offered.add(key)
            elif not authentic.holds(seq, entry.id):
                result.refuse("unsealed")
            elif seq > head.seq:
                left[entry.id] = entry
        return left

    def _kept_headers(self, key: LogKey) -> Iterator[HeaderNode]:
        for waiting in self._pending.of(key).values():
            yield HeaderNode(waiting.entry.id, waiting.entry.header, waiting.entry.header_bytes)
        for path in self._kept_proof(key) or ():
            yield from path.headers

    def _fork_row(self, key: LogKey) -> ForkRow | None:
        """What is kept of a frozen log, that of the commit under way first: its proof is that with the
        lowest F."""
        if self.heads.get(key).frozen == FROZEN_NEVER:
            return None
        return self._batch.forks.get(key) or self._reader.fork_row(key)

    def fork_proof(self, key: LogKey) -> Proof:
        """The fork proof of a frozen log, as it goes to others."""
        row = self._fork_row(key)
        if row is None:
            raise AssertionError("a log is frozen and has no fork proof")
        return Proof(FORK_PROOF, row.proof)

    def _kept_proof(self, key: LogKey) -> ForkProof | None:
        """The fork proof of a log that is frozen, taken apart."""
        frozen = self.heads.get(key).frozen
        if self._read_last is not None and self._read_last[:2] == (key, frozen):
            return self._read_last[2]
        row = self._fork_row(key)
        if row is None:
            return None
        proof = read_kept_proof(row.proof)
        self._read_last = (key, frozen, proof)
        return proof

    def _freeze(
        self, key: LogKey, seq: int, authentic: Authentic, origin: Origin, result: Accepted
    ) -> ForkProof:
        """Freeze a log at `seq`, with what is held there as one side of the proof if anything is. Returns
        the proof."""
        before = self._fork_row(key)
        if self.entry_id_at(key, seq) is not None:
            one = self._held_path(key, seq)
        else:
            _, node = min(authentic.nodes[seq].items())
            one = authentic.path(node)
        other = authentic.path(next(authentic.rivals(seq, one.headers[0].id)))
        proof = proof_of(one, other)
        cut = self._cut(key, seq)
        result.cuts.append(cut)
        removed = cut.last - cut.first + 1 + (before.removed if before is not None else 0)
        self._batch.forks[key] = ForkRow(
            key.author,
            key.epoch,
            seq,
            pack_fork_proof(proof),
            removed,
            before.keys if before is not None else (),
            origin.peer,
            origin.lung,
            origin.arrived_ms,
        )
        return proof

    def _cut(self, key: LogKey, seq: int) -> Cut:
        """Take the entries of a log from `seq` on out of the heads, the batch and what waits."""
        head = self.heads.get(key)
        last = max(head.seq, seq - 1)
        name = head.id if head.seq < seq else (self.entry_id_at(key, seq - 1) or bytes(32))
        batch = self._batch
        fresh = tuple(row for row in batch.entries if row[:2] == key and row.seq >= seq)
        if fresh:
            batch.entries = [row for row in batch.entries if row[:2] != key or row.seq < seq]
        batch.seals = [seal for seal in batch.seals if seal[:2] != key or seal.seq < seq]
        if head.seq >= seq:
            batch.cuts[key] = seq
            for held in range(seq, head.seq + 1):
                self._overlay.pop((key, held), None)
        # All of it: what waits below has been compared, and is fetched again from whoever holds it. Two
        # nodes that kept it would each lower the other's F by one, exchange after exchange.
        for waiting in list(self._pending.of(key)):
            self._pending.discard(key, waiting)
        self._newest.pop(key, None)
        after = LogHead(min(head.seq, seq - 1), name, seq)
        self.heads.set(key, after)
        batch.logs[key] = after
        return Cut(key, seq, last, fresh)

    def removed_entries(self, cut: Cut) -> Iterator[Entry]:
        """The entries that a cut took out, in log order; to be read before the commit is made."""
        at = cut.first
        below = cut.fresh[0].seq if cut.fresh else cut.last + 1
        while at < below:
            rows = self._reader.entries(*cut.log, at, below - 1, PAGE_BYTES)
            for row in rows:
                yield parse_stored(row.id, row.header, row.ops)
            at += len(rows)
        for row in cut.fresh:
            yield parse_stored(row.id, row.header, row.ops)

    def _held_path(self, key: LogKey, first: int) -> HeaderPath:
        """The path of a held entry: to the lowest kept seal above it, or on through the fork proof."""
        head = self.heads.get(key)
        end = min(head.seq, first | (SEAL_INTERVAL - 1))
        seals = self._kept_seals(key, first, end)
        last = seals[0].seq if seals else end
        headers = tuple(self._held_header(key, seq) for seq in range(first, last + 1))
        if seals:
            return HeaderPath(headers, seals[0])
        return self._onward(key, headers)

    def _onward(self, key: LogKey, headers: tuple[HeaderNode, ...]) -> HeaderPath:
        """Headers up to where a log is frozen, and on through its fork proof."""
        proof = self._kept_proof(key)
        if proof is None:
            raise AssertionError("a log has neither a seal above its last entry nor a fork proof")
        return HeaderPath((*headers, *proof.one.headers), proof.one.seal)

    def _held_header(self, key: LogKey, seq: int) -> HeaderNode:
        row = self._overlay.get((key, seq)) or self._reader.entry(key.author, key.epoch, seq)
        if row is None:
            raise AssertionError(f"entry {seq} is below the head and not held")
        return HeaderNode(row.id, parse_header(row.header), row.header)

    def _kept_seals(self, key: LogKey, first: int, last: int) -> list[Seal]:
        """The kept seals with first <= seq <= last, those of the commit under way included."""
        dropped = {seq for author, epoch, seq in self._batch.seals_dropped if (author, epoch) == key}
        seals = {seal.seq: seal for seal in self._reader.seals(key.author, key.epoch, first, last)}
        kept = {seq: seal for seq, seal in seals.items() if seq not in dropped}
        kept.update((s.seq, s) for s in self._batch.seals if s[:2] == key and first <= s.seq <= last)
        return [kept[seq] for seq in sorted(kept)]

    def path(self, key: LogKey, first: int) -> HeaderPath | None:
        """The headers from `first` to the highest seal within its stretch of 64, to be compared with
        those of another; None if `first` is not held or nothing seals it."""
        head = self.heads.get(key)
        if not 0 <= first <= head.seq:
            return None
        end = min(head.seq, first | (SEAL_INTERVAL - 1))
        seals = self._kept_seals(key, first, end)
        if end == head.frozen - 1 and (end + 1) % SEAL_INTERVAL:
            return self._onward(key, tuple(self._held_header(key, seq) for seq in range(first, end + 1)))
        if not seals:
            return None
        headers = tuple(self._held_header(key, seq) for seq in range(first, seals[-1].seq + 1))
        return HeaderPath(headers, seals[-1])

    def _store(self, key: LogKey, entry: Entry, origin: Origin, result: Accepted) -> None:
        header = entry.header
        row = EntryRow(
            header.author,
            header.epoch,
            header.seq,
            entry.id,
            entry.header_bytes,
            entry.ops,
            origin.lung,
            origin.peer,
            origin.arrived_ms,
        )
        self._batch.entries.append(row)
        self._overlay[key, header.seq] = row
        head = LogHead(header.seq, entry.id, self.heads.get(key).frozen)
        self.heads.set(key, head)
        self._batch.logs[key] = head
        result.entries.append(entry)
        result.rows.append(row)

    def _keep_seals(self, key: LogKey, run: Sequence[Entry], verified: Verified) -> None:
        """Keep the mandatory seals and the newest; the newest of before goes unless mandatory."""
        before = self._newest_below(key, run[0].header.seq)
        if before is not None and not before.mandatory:
            self._drop_seal(before.seal)
        for entry in run[:-1]:
            seal = verified.get(entry) if entry.must_be_sealed else None
            if seal is not None:
                self._batch.seals.append(seal)
        newest = verified.get(run[-1])
        if newest is None:
            if run[-1].id != verified.continued:
                raise AssertionError("an accepted run ends neither at a seal nor at a fork")
            self._newest.pop(key, None)
            return
        self._batch.seals.append(newest)
        self._newest[key] = _Newest(newest, run[-1].must_be_sealed)

    def _newest_below(self, key: LogKey, seq: int) -> _Newest | None:
        """The newest seal of a log whose next entry is `seq`."""
        held = self._newest.get(key)
        if held is not None or seq == 0:
            return held
        rows = self._reader.seals(key.author, key.epoch, seq - 1, seq - 1)
        row = self._reader.entry(key.author, key.epoch, seq - 1)
        if not rows or row is None:
            return None
        return _Newest(rows[0], must_be_sealed(parse_header(row.header)))

    def _drop_seal(self, seal: Seal) -> None:
        try:
            self._batch.seals.remove(seal)
        except ValueError:
            self._batch.seals_dropped.append((seal.author, seal.epoch, seal.seq))

    def append_own_entry(self, key: LogKey, entry: Entry, origin: Origin) -> EntryRow:
        """Store an entry of our own that extends its log; `seal_own` follows in the same commit."""
        result = Accepted()
        self._store(key, entry, origin, result)
        return result.rows[0]

    def seal_own(self, entries: Iterable[Entry], sealed: Mapping[bytes, Seal]) -> None:
        """Keep the seals (by entry id) of the entries stored with append_own_entry in this commit,
        in order; the last one and all mandatory ones are there."""
        runs: dict[LogKey, list[Entry]] = {}
        for entry in entries:
            runs.setdefault(LogKey(entry.header.author, entry.header.epoch), []).append(entry)
        for key, run in runs.items():
            waiting = {entry.header.seq: Waiting(entry, sealed.get(entry.id)) for entry in run}
            self._keep_seals(key, run, Verified(self._network_id, {}, waiting, Accepted()))

    def _keep_pending(
        self,
        key: LogKey,
        fresh: Mapping[int, Entry],
        run: Sequence[Entry],
        accepted: int,
        verified: Verified,
        result: Accepted,
    ) -> None:
        """Keep what chains to a valid seal but not yet to what is held; the rest is no data."""
        top = self.heads.get(key).seq
        left = {seq: entry for seq, entry in fresh.items() if seq > top}
        loose = {entry.header.seq for entry in run[accepted:]}
        for stretch in stretches(left):
            # What chains to the held and was not accepted lacks a seal that it must have.
            sealed = 0 if stretch[0].header.seq in loose else sealed_prefix(stretch, verified)
            for entry in stretch[:sealed]:
                must = entry.must_be_sealed or entry is stretch[sealed - 1]
                self._pending.add(key, entry, verified.get(entry) if must else None)
            result.pending += sealed
            if sealed < len(stretch):
                result.refuse("unsealed", len(stretch) - sealed)

    def entry_id_at(self, key: LogKey, seq: int) -> bytes | None:
        """The id of a held entry."""
        head = self.heads.get(key)
        if seq > head.seq:
            return None
        if seq == head.seq:
            return head.id
        held = self._overlay.get((key, seq))
        return held.id if held is not None else self._reader.entry_id_at(key.author, key.epoch, seq)

    def page(
        self, key: LogKey, first: int, last: int, budget: int = PAGE_BYTES
    ) -> tuple[list[EntryRow], list[Seal]]:
        """Committed entries first..last of about `budget` bytes, ending at a kept seal: the first
        at or above `last`, or the highest that fits. A frozen log may also end at its last entry, which
        its fork proof authenticates: that goes along (`fork_proof`).

        An unsealed stretch is at most 1 MiB, so a page of PAGE_BYTES always reaches a seal; one
        that cannot (a smaller budget) comes back empty.
        """
        head = self.heads.get(key)
        last = min(last, head.seq)
        rows = self._reader.entries(key.author, key.epoch, first, last + SEAL_INTERVAL, budget)
        if not rows:
            return [], []
        seals = self._reader.seals(key.author, key.epoch, first, rows[-1].seq)
        ends = [seal.seq for seal in seals]
        if rows[-1].seq == head.frozen - 1:
            ends.append(rows[-1].seq)
        if not ends:
            return [], []
        end = next((seq for seq in ends if seq >= last), ends[-1])
        return rows[: end - first + 1], [seal for seal in seals if seal.seq <= end]
