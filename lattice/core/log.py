"""Logs: what of a message is accepted, what waits, which seals are kept, and pages to serve.

Separate because it is the one way by which entries enter the ledger, our own and those of others,
on either lung: never judged by values, clocks, or who sent them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from .acceptance import Accepted, Verified, authenticated, chain_from, is_whole, sealed_prefix, stretches
from .entry import Entry, Seal, entry_id, must_be_sealed, parse_entry, parse_header
from .errors import MalformedError
from .heads import HeadsIndex
from .identity import is_valid_public_key
from .limits import FROZEN_NEVER, PAGE_BYTES, SEAL_INTERVAL
from .messages import Entries
from .pending import Pending, Waiting
from .rows import Batch, EntryRow, LogHead, LogKey, Reader


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
    """All logs of this node: heads, acceptance, pending entries, pages to serve."""

    def __init__(self, network_id: bytes, reader: Reader) -> None:
        self._network_id = network_id
        self._reader = reader
        self._batch = Batch()
        self.heads = HeadsIndex(reader.log_heads())
        self._overlay: dict[tuple[LogKey, int], bytes] = {}
        # Logs that were seen to have two branches: what another holds of them may never fit here.
        self.forked: set[LogKey] = set()
        self._newest: dict[LogKey, _Newest] = {}
        self._pending = Pending()

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

    def accept(self, message: Entries, origin: Origin) -> Accepted:
        """Take what a message brings: all of it is judged by the same rule, whoever sent it."""
        result = Accepted()
        logs: dict[LogKey, dict[int, Entry]] = {}
        for header_bytes, ops in message.frames:
            try:
                header = parse_header(header_bytes)
                key = LogKey(header.author, header.epoch)
                # What is held is known by its id: its ops are not even split.
                held = self.entry_id_at(key, header.seq)
                if held is not None and held == entry_id(self._network_id, header_bytes):
                    result.duplicates += 1
                    continue
                entry = parse_entry(self._network_id, header_bytes, ops)
            except MalformedError:
                result.refuse("malformed_entry")
                continue
            logs.setdefault(key, {}).setdefault(header.seq, entry)
        if not logs:
            return result
        seals: dict[LogKey, dict[int, list[Seal]]] = {}
        for seal in message.seals:
            of_log = seals.setdefault(LogKey(seal.author, seal.epoch), {})
            of_log.setdefault(seal.seq, []).append(seal)
        for key, entries in logs.items():
            if not self.heads.has_author(key.author) and not is_valid_public_key(key.author):
                result.refuse("bad_author_key", len(entries))
                continue
            verified = Verified(self._network_id, seals.get(key, {}), self._pending.of(key), result)
            self._accept_log(key, entries, verified, origin, result)
        result.conflicts_new = result.conflicts - self.forked
        self.forked |= result.conflicts_new
        return result

    def may_relay(self, message: Entries, result: Accepted) -> bool:
        """Whether no part of an accepted message would be refused elsewhere (see is_whole)."""
        return not result.refused and is_whole(self._network_id, message, result)

    def _accept_log(
        self,
        key: LogKey,
        entries: dict[int, Entry],
        verified: Verified,
        origin: Origin,
        result: Accepted,
    ) -> None:
        head = self.heads.get(key)
        fresh = self._above_held(key, head, entries, verified, result)
        if not fresh:
            return
        waiting = self._pending.of(key)
        run = chain_from(head, fresh, waiting, verified)
        count = sealed_prefix(run, verified)
        for entry in run[:count]:
            self._store(key, entry, origin, result)
        if count:
            self._keep_seals(key, run[:count], verified)
            for entry in run[:count]:
                held = waiting.get(entry.header.seq)
                if held is not None and held.entry.id != entry.id:
                    result.conflicts.add(key)
                self._pending.discard(key, entry.header.seq)
        self._keep_pending(key, fresh, run, count, verified, result)

    def _above_held(
        self,
        key: LogKey,
        head: LogHead,
        entries: dict[int, Entry],
        verified: Verified,
        result: Accepted,
    ) -> dict[int, Entry]:
        """The entries above what is held. One below, with another id than the held, is a conflict
        if its author really sealed it; so is one whose `prev` is not the held head."""
        fresh: dict[int, Entry] = {}
        below: list[int] = []
        for seq, entry in entries.items():
            if seq <= head.seq:
                below.append(seq)
            elif head.frozen != FROZEN_NEVER and seq >= head.frozen:
                result.refuse("frozen")
            else:
                fresh[seq] = entry
        following = fresh.get(head.seq + 1)
        breaks = following is not None and head.seq >= 0 and following.header.prev != head.id
        if not below and not breaks:
            return fresh
        authentic = authenticated(entries, verified)
        if (breaks and head.seq + 1 in authentic) or not authentic.isdisjoint(below):
            result.conflicts.add(key)
        unsealed = sum(seq not in authentic for seq in below)
        if unsealed:
            result.refuse("unsealed", unsealed)
        return fresh

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
        self._overlay[key, header.seq] = entry.id
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
            raise AssertionError("an accepted run does not end at a seal")
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
        for seq in fresh.keys() - left.keys():
            if self.entry_id_at(key, seq) != fresh[seq].id:
                result.refuse("unsealed")
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
        return held if held is not None else self._reader.entry_id_at(key.author, key.epoch, seq)

    def page(
        self, key: LogKey, first: int, last: int, budget: int = PAGE_BYTES
    ) -> tuple[list[EntryRow], list[Seal]]:
        """Committed entries first..last of about `budget` bytes, ending at a kept seal: the first
        at or above `last`, or the highest that fits.

        An unsealed stretch is at most 1 MiB, so a page of PAGE_BYTES always reaches a seal; one
        that cannot (a smaller budget) comes back empty.
        """
        last = min(last, self.heads.get(key).seq)
        rows = self._reader.entries(key.author, key.epoch, first, last + SEAL_INTERVAL, budget)
        if not rows:
            return [], []
        seals = self._reader.seals(key.author, key.epoch, first, rows[-1].seq)
        if not seals:
            return [], []
        end = next((seal.seq for seal in seals if seal.seq >= last), seals[-1].seq)
        return rows[: end - first + 1], [seal for seal in seals if seal.seq <= end]
