"""The engine: everything that decides about the ledger, with no I/O, clock or randomness.

Separate because both lungs, the disk and the API feed this one machine, so they cannot disagree.
Whoever drives it repeats three steps, in the manner of etcd's raft package:

1. `handle(event)` for everything that waits; nothing leaves the engine yet.
2. `settle(...)` closes the commit: waiting writes become entries, one seal, new roots. Its Batch
   must be made durable before anything else happens.
3. `committed()` returns the outputs, which may now leave the process; all answers are computed
   here, from committed rows only.

After a failed commit the engine is poisoned (`abandon`): it must be built anew from the store.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from .acceptance import Accepted, Cut
from .clock import HybridClock
from .descent import Outcome
from .draft import Appended, Condition, OpDraft
from .entry import HEADER_BYTES, Entry, OpKind, Seal, Version, encode_op, make_entry, make_seal
from .errors import LatticeError, MalformedError
from .forks import FORK_PROOF
from .identity import NodeKey
from .limits import (
    AMOUNT_MAX,
    ENTRY_BYTES_MAX,
    FORK_KEYS_MAX,
    GOSSIP_BYTES,
    GROUP_BYTES_MAX,
    IDEMPOTENCY_LIFE_S,
    KEY_BYTES_MAX,
    NAMES_MAX,
    OPS_MAX,
    VALUE_BYTES_MAX,
)
from .log import Logs, Origin
from .merkle import MerkleMap
from .messages import RULES_VERSION, Entries, Message, Proof, Roots, joined
from .reconcile import Reconciler, Round, RoundResult, RoundServed
from .rows import Batch, EntryRow, ForkRow, IdempotentRow, LogHead, LogKey, Reader
from .state import META_RULES, State, names_for, winner_first

META_STATE_ROOT: Final = "state_root"
META_LOG_ROOT: Final = "log_root"
META_CLOCK: Final = "clock"


@dataclass(frozen=True, slots=True)
class Append:
    """A local write: an atomic batch of ops under conditions. Answered by Acknowledged or Refused."""

    token: int
    drafts: tuple[OpDraft, ...]
    conditions: tuple[Condition, ...] = ()
    idempotency_key: bytes = b""
    request_digest: bytes = b""


@dataclass(frozen=True, slots=True)
class Served:
    """A request of an authenticated peer (public key, boot). Answered by Answer."""

    token: int
    peer: bytes
    boot: int
    lung: str
    messages: tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class OpenRound:
    """Open a sync round with a peer. Answered by RoundStep, at last by RoundEnded."""

    token: int
    peer: bytes
    lung: str
    padded: bool
    wait_ms: int = 0
    descends: bool = True  # into the peer's state tree, should the round end in a defect


@dataclass(frozen=True, slots=True)
class RoundAnswered:
    """What the peer answered to the last RoundStep of this round."""

    token: int
    peer: bytes
    lung: str
    messages: tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class CloseRound:
    """The round's exchange failed; its state is forgotten without an output."""

    token: int


@dataclass(frozen=True, slots=True)
class Gossiped:
    """Entries that came one-way, by gossip or in a file. Answered by Judged."""

    token: int
    peer: bytes
    lung: str
    entries: Entries
    proofs: tuple[Proof, ...] = ()


@dataclass(frozen=True, slots=True)
class Remember:
    """Store a small named value with the next commit. Answered by Remembered."""

    token: int
    name: str
    value: bytes


EngineInput = Append | Served | OpenRound | RoundAnswered | CloseRound | Gossiped | Remember


@dataclass(frozen=True, slots=True)
class Acknowledged:
    token: int
    result: Appended


@dataclass(frozen=True, slots=True)
class Refused:
    """The write was refused before anything was stored."""

    token: int
    error: LatticeError


@dataclass(frozen=True, slots=True)
class Remembered:
    token: int


@dataclass(frozen=True, slots=True)
class Judged:
    """Whether everything in a gossip payload was authentic, so that it may be relayed; and how many
    of its entries were taken in, were held already, wait for others, or were refused."""

    token: int
    authentic: bool
    taken: int = 0
    held: int = 0
    waiting: int = 0
    refused: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    token: int
    messages: tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class RoundStep:
    token: int
    messages: tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class RoundEnded:
    token: int
    result: RoundResult


@dataclass(frozen=True, slots=True)
class RoundByPeer:
    """A round that a peer opened over `lung` came to its end here."""

    peer: bytes
    lung: str
    served: RoundServed


@dataclass(frozen=True, slots=True)
class Wasted:
    """A peer brought `size` bytes over `lung` that no honest node sends."""

    peer: bytes
    lung: str
    size: int


@dataclass(frozen=True, slots=True)
class Publish:
    """Fresh entries for gossip; each message ends at a seal."""

    entries: Entries


@dataclass(frozen=True, slots=True)
class PublishProof:
    """The proof of a fork for gossip, once for each F."""

    proof: Proof


@dataclass(frozen=True, slots=True)
class Applied:
    """Entries that this commit added, with the keys that each touched."""

    entries: tuple[tuple[EntryRow, tuple[bytes, ...]], ...]


@dataclass(frozen=True, slots=True)
class Frozen:
    """A log was frozen, or frozen lower: what this took out of the state here."""

    fork: ForkRow


@dataclass(frozen=True, slots=True)
class Alarm:
    """Something that an operator must know: a stable code, and the peer or log it is about."""

    code: str
    subject: bytes
    detail: str


Output = (
    Acknowledged
    | Refused
    | Remembered
    | Judged
    | Answer
    | RoundStep
    | RoundEnded
    | RoundByPeer
    | Wasted
    | Publish
    | PublishProof
    | Applied
    | Frozen
    | Alarm
)


@dataclass(slots=True)
class _Group:
    """Waiting writes that will share one entry."""

    ops: list[bytes] = field(default_factory=list)
    size: int = HEADER_BYTES
    keys: set[bytes] = field(default_factory=set)
    members: list[tuple[Append, int, int]] = field(default_factory=list)


@dataclass(slots=True)
class _Commit:
    """What is collected between two commits. `writes` are request digests by idempotency key."""

    batch: Batch = field(default_factory=Batch)
    own: list[Entry] = field(default_factory=list)
    unsealed: list[Entry] = field(default_factory=list)  # those of them that the logs hold without a seal
    applied: list[tuple[EntryRow, tuple[bytes, ...]]] = field(default_factory=list)
    relay: list[Entries] = field(default_factory=list)
    forks: set[LogKey] = field(default_factory=set)
    offered: dict[bytes, set[LogKey]] = field(default_factory=dict)  # frozen logs, by who sent more of one
    acks: list[tuple[Append, Entry, int]] = field(default_factory=list)
    writes: dict[bytes, bytes] = field(default_factory=dict)
    repeats: list[tuple[int, bytes, bytes]] = field(default_factory=list)
    outputs: list[Output] = field(default_factory=list)
    served: list[Served] = field(default_factory=list)
    opened: list[OpenRound] = field(default_factory=list)
    answered: list[RoundAnswered] = field(default_factory=list)


class Engine:
    """One node's ledger. See the module's text for how it is driven."""

    def __init__(self, key: NodeKey, network_id: bytes, reader: Reader) -> None:
        self._key = key
        self._network_id = network_id
        self._reader = reader
        self._logs = Logs(network_id, reader)
        self._state = State(reader, MerkleMap(reader.buckets()))
        self._clock = HybridClock(int.from_bytes(reader.meta(META_CLOCK) or b"", "big"))
        self._reconciler = Reconciler(self._logs, lambda: self._roots, self._state.tree)
        self._rounds: dict[int, Round] = {}
        self._epoch: int | None = None
        self._now_ms = 0
        self._entropy = b""
        self._group = _Group()
        self._commit = _Commit()
        self._heads = self._logs.heads.all()
        self._entry_count = reader.entry_count()
        self._roots = Roots(
            self._logs.heads.root(), self._state.tree.root(), RULES_VERSION, self._entry_count
        )
        self._state_size = len(self._state.tree)
        self._rules_stored = reader.meta(META_RULES) is not None
        self._poisoned = False
        self.refused: dict[str, int] = {}
        self._begin()

    # Views of the last commit.

    @property
    def roots(self) -> Roots:
        return self._roots

    @property
    def heads(self) -> dict[LogKey, LogHead]:
        """The committed heads; treat as read-only."""
        return self._heads

    def tree_path(self, bucket: int) -> tuple[bytes, list[bytes]]:
        """A bucket of the state tree and its path, as of the last `settle`: during a commit they lead
        to a root that is not durable yet, so whoever shows them compares."""
        return self._state.tree.bucket(bucket), self._state.tree.path(bucket)

    @property
    def state_size(self) -> int:
        """The number of keys with a leaf in the state tree."""
        return self._state_size

    @property
    def epoch(self) -> int | None:
        """The epoch of this process, None before its first write."""
        return self._epoch

    @property
    def clock_ms(self) -> int:
        """The milliseconds of the highest clock of an entry that this node followed or gave."""
        return self._clock.last >> 16

    def novelties(self) -> dict[str, int]:
        """The ops that are held and not applied because a newer program made them, by what is new."""
        return {str(novelty): count for novelty, count in sorted(self._state.novelties.items())}

    def newest_own(self) -> tuple[int, int, bytes] | None:
        """(epoch, seq, id) of the head of this process's own log."""
        if self._epoch is None:
            return None
        head = self._heads.get(LogKey(self._key.public_key, self._epoch))
        return None if head is None else (self._epoch, head.seq, head.id)

    def statistics(self) -> dict[str, int]:
        return {
            "pending_bytes": self._logs.pending_bytes,
            "pending_dropped": self._logs.pending_dropped,
            "ops_skipped": self._state.skipped_ops,
            "ops_unknown": sum(self._state.novelties.values()),
            "clocks_skewed": self._clock.skewed,
            "rounds_open": len(self._rounds),
            **{f"refused_{reason}": count for reason, count in sorted(self.refused.items())},
        }

    # Step 1.

    def handle(self, event: EngineInput, *, now_ms: int, entropy: bytes) -> None:
        """Take one input. `now_ms`: wall clock. `entropy`: 8 fresh random bytes, used if an epoch
        has to be drawn. Never raises for what a remote sent."""
        self._refuse_poisoned()
        if self._settled:
            raise AssertionError("the commit under way was not finished by committed()")
        self._now_ms = now_ms
        self._entropy = entropy
        match event:
            case Append():
                self._append(event)
            case Served():
                self._take_all(event.peer, event.lung, event.messages)
                self._commit.served.append(event)
            case RoundAnswered():
                self._take_all(event.peer, event.lung, event.messages)
                self._commit.answered.append(event)
            case OpenRound():
                self._commit.opened.append(event)
            case CloseRound():
                self._rounds.pop(event.token, None)
            case Gossiped():
                result = self._take(event.peer, event.lung, event.entries, event.proofs)
                authentic = self._logs.may_relay(event.entries, result) and all(
                    self._logs.shows_fork(proof) for proof in event.proofs
                )
                counts = len(result.entries), result.duplicates, result.pending, sum(result.refused.values())
                self._commit.outputs.append(Judged(event.token, authentic, *counts))
            case Remember():
                self._commit.batch.meta[event.name] = event.value
                self._commit.outputs.append(Remembered(event.token))

    def _refuse_poisoned(self) -> None:
        if self._poisoned:
            raise LatticeError("store_failed", "the engine is poisoned by a failed commit")

    def end_epoch(self) -> None:
        """Draw a new epoch for whatever is not yet in an entry: time jumped, so this process may
        be a copy, or another process writes to our log."""
        self._epoch = None

    def _take_all(self, peer: bytes, lung: str, messages: Sequence[Message]) -> None:
        """Take the entries, seals and proofs of one envelope as one."""
        parts = [message for message in messages if isinstance(message, Entries)]
        proofs = [message for message in messages if isinstance(message, Proof)]
        if not parts and not proofs:
            return
        whole = joined(parts)
        result = self._take(peer, lung, whole, proofs)
        relayable = lung == "http" and result.entries and whole.size <= GOSSIP_BYTES
        if relayable and self._logs.may_relay(whole, result):
            # Whoever hears us over P2P may not hear the node that wrote this.
            self._commit.relay.append(whole)

    def _take(self, peer: bytes, lung: str, message: Entries, proofs: Sequence[Proof]) -> Accepted:
        self._seal_own()  # our own branch must be able to prove itself
        result = self._logs.accept(message, Origin(peer, lung, self._now_ms), proofs)
        # What came goes in before anything is taken out: a version among it that only the entries to go
        # had named is live again by their going, and must not be put in a second time after that.
        for entry, row in zip(result.entries, result.rows, strict=True):
            self._apply(entry, row)
        for cut in result.cuts:
            self._take_out(cut)
        self._note(result, peer)
        wasted = result.wasted_bytes(message)
        if wasted:
            self._commit.outputs.append(Wasted(peer, lung, wasted))
        return result

    def _take_out(self, cut: Cut) -> None:
        """Carry a cut into the state, and into what this commit was about to tell."""
        commit = self._commit
        changed: list[bytes] = []
        if cut.last >= cut.first:
            changed = self._state.remove(cut.log, cut.first, self._logs.removed_entries(cut))
            self._entry_count -= cut.last - cut.first + 1 - len(cut.fresh)
        fork = commit.batch.forks[cut.log]
        keys = tuple(sorted({*fork.keys, *changed}))[:FORK_KEYS_MAX]
        commit.batch.forks[cut.log] = fork._replace(keys=keys)
        commit.forks.add(cut.log)
        gone = {row.id for row in cut.fresh}
        if not gone:
            return
        commit.applied = [(row, keys) for row, keys in commit.applied if row.id not in gone]
        commit.own = [entry for entry in commit.own if entry.id not in gone]
        commit.relay = [message for message in commit.relay if not _holds(message, cut.log)]
        for event, entry, _ in commit.acks:
            if entry.id in gone:
                text = "another process wrote to the same log under this node's key: write again"
                commit.outputs.append(Refused(event.token, LatticeError("not_ready", text)))
        commit.acks = [ack for ack in commit.acks if ack[1].id not in gone]

    def _note(self, result: Accepted, peer: bytes) -> None:
        for reason, count in result.refused.items():
            self.refused[reason] = self.refused.get(reason, 0) + count
        if result.offered:
            self._commit.offered.setdefault(peer, set()).update(result.offered)
        if self._epoch is None:
            return
        own = LogKey(self._key.public_key, self._epoch)
        taken = any(row.author == own.author and row.epoch == own.epoch for row in result.rows)
        if taken or any(cut.log == own for cut in result.cuts):
            self._commit.outputs.append(Alarm("stolen_epoch", peer, "entries under this key and epoch"))
            self.end_epoch()

    def _apply(self, entry: Entry, row: EntryRow) -> None:
        keys = self._state.apply(entry)
        self._clock.seen(entry.header.clock, self._now_ms)
        self._commit.applied.append((row, tuple(keys)))

    # Local writes.

    def _append(self, event: Append) -> None:
        try:
            if event.idempotency_key and self._is_repeat(event):
                return
            if any(draft.key in self._group.keys for draft in event.drafts) or any(
                condition.key in self._group.keys for condition in event.conditions
            ):
                # Names and conditions refer to what stands: earlier writes of the group to this
                # key must be in the state first.
                self._close_group()
            self._check_conditions(event.conditions)
            ops = [self._encode(draft) for draft in event.drafts]
        except LatticeError as error:
            self._commit.outputs.append(Refused(event.token, error))
            return
        size = sum(4 + len(op) for op in ops)
        if not 1 <= len(ops) <= OPS_MAX or HEADER_BYTES + size > ENTRY_BYTES_MAX:
            text = f"a batch has 1 to {OPS_MAX} ops and at most {ENTRY_BYTES_MAX} bytes; split it yourself"
            self._commit.outputs.append(Refused(event.token, LatticeError("too_large", text)))
            return
        self._make_room(len(ops), size)
        if event.idempotency_key:
            self._commit.writes[event.idempotency_key] = event.request_digest
        first = len(self._group.ops)
        self._group.ops += ops
        self._group.size += size
        self._group.keys.update(draft.key for draft in event.drafts)
        self._group.members.append((event, first, len(ops)))

    def _make_room(self, ops: int, size: int) -> None:
        group = self._group
        if group.ops and (len(group.ops) + ops > OPS_MAX or group.size + size > GROUP_BYTES_MAX):
            self._close_group()

    def _draw_epoch(self) -> int:
        epoch = int.from_bytes(self._entropy[:8], "big")
        while self._logs.heads.get(LogKey(self._key.public_key, epoch)).seq >= 0:
            epoch = (epoch + 1) % 2**64
        return epoch

    def _is_repeat(self, event: Append) -> bool:
        """Answer a repeated idempotency key with its first result; True when that was done."""
        digest = self._commit.writes.get(event.idempotency_key)
        if digest is None:
            row = self._reader.idempotent(event.idempotency_key, self._now_ms)
            if row is None:
                return False
            digest = row.request_digest
        if digest != event.request_digest:
            raise LatticeError(
                "idempotency_mismatch",
                "this Idempotency-Key was used for a different request; use a new key for a new request",
            )
        self._commit.repeats.append((event.token, event.idempotency_key, digest))
        return True

    def _check_conditions(self, conditions: Sequence[Condition]) -> None:
        for condition in conditions:
            state = self._state.key(condition.key)
            live = winner_first(state.live) if state is not None else ()
            held = live[0].version if live else None
            is_there = held is not None or (state is not None and state.adds > 0)
            if (
                (condition.absent and held is not None)
                or (condition.present and held is None)
                or (condition.match and not (is_there and held in condition.match))
            ):
                now = f"its version is {held}" if held is not None else "it has no live version"
                name = condition.key.decode("utf-8", "replace")
                text = f"the key {name!r} has changed: {now}; read it again and decide anew"
                raise LatticeError("precondition_failed", text)

    def _encode(self, draft: OpDraft) -> bytes:
        if not 0 < len(draft.key) <= KEY_BYTES_MAX or not _is_utf8(draft.key):
            raise LatticeError("bad_key", f"a key has 1 to {KEY_BYTES_MAX} bytes of UTF-8")
        if len(draft.value) > VALUE_BYTES_MAX:
            raise LatticeError("too_large", f"a value has at most {VALUE_BYTES_MAX} bytes")
        if draft.kind is OpKind.ADD:
            if abs(draft.amount) > AMOUNT_MAX:
                raise LatticeError("bad_value", f"an amount lies within ±{AMOUNT_MAX}")
            return encode_op(OpKind.ADD, draft.key, amount=draft.amount)
        over = draft.over
        if over is None:
            over = names_for(self._state.key(draft.key))
        elif len(over) > NAMES_MAX:
            raise LatticeError("bad_request", f"an op replaces at most {NAMES_MAX} versions")
        value = draft.value if draft.kind is OpKind.PUT else b""
        return encode_op(draft.kind, draft.key, value=value, over=over)

    def _close_group(self) -> None:
        """Turn the waiting writes into one entry and apply it."""
        group, self._group = self._group, _Group()
        if not group.ops:
            return
        if self._epoch is None:
            self._epoch = self._draw_epoch()
        log = LogKey(self._key.public_key, self._epoch)
        head = self._logs.heads.get(log)
        entry = make_entry(
            self._network_id,
            author=log.author,
            epoch=log.epoch,
            seq=head.seq + 1,
            prev=head.id,
            clock=self._clock.next(self._now_ms),
            ops=group.ops,
        )
        self._seal_if_due(entry)
        self._commit.own.append(entry)
        self._commit.unsealed.append(entry)
        row = self._logs.append_own_entry(log, entry, Origin(b"", "local", self._now_ms))
        self._apply(entry, row)
        self._commit.acks += [(event, entry, first) for event, first, _ in group.members]

    def _seal_if_due(self, entry: Entry) -> None:
        """Seal what must be sealed, and the end of each gossip payload that is full."""
        previous = self._commit.own[-1] if self._commit.own else None
        if previous is not None and previous.header.epoch != entry.header.epoch:
            self._seal(previous)
        if previous is not None:
            unsealed = entry.size + HEADER_BYTES
            for held in reversed(self._commit.own):
                if held.id in self._sealed:
                    break
                unsealed += held.size + 4
            if unsealed > GOSSIP_BYTES:
                self._seal(previous)
        if entry.must_be_sealed:
            self._seal(entry)

    def _seal_own(self) -> None:
        """Seal the newest of our own entries, and let the logs keep the seals of this commit so far."""
        unsealed, self._commit.unsealed = self._commit.unsealed, []
        if unsealed:
            self._seal(unsealed[-1])
            self._logs.seal_own(unsealed, self._sealed)

    def _seal(self, entry: Entry) -> None:
        if entry.id not in self._sealed:
            self._sealed[entry.id] = make_seal(self._key, self._network_id, entry.header, entry.id)

    # Step 2.

    def settle(self) -> Batch | None:
        """Close the commit. None: nothing has to be stored, `committed()` may follow at once."""
        self._refuse_poisoned()
        self._close_group()
        self._settled = True
        commit = self._commit
        self._seal_own()
        batch = commit.batch
        if batch.entries or batch.logs:
            state_root = self._state.settle()
            log_root = self._logs.heads.root()
            self._entry_count += len(batch.entries)
            self._next_roots = Roots(log_root, state_root, RULES_VERSION, self._entry_count)
            batch.meta[META_STATE_ROOT] = state_root
            if not self._rules_stored:
                batch.meta[META_RULES] = RULES_VERSION.to_bytes(2, "big")
                self._rules_stored = True  # with this commit, or this engine is poisoned
            batch.meta[META_LOG_ROOT] = log_root
            batch.meta[META_CLOCK] = self._clock.last.to_bytes(8, "big")
        for event, entry, first in commit.acks:
            if event.idempotency_key:
                result = _pack_appended(self._appended(event, entry, first, self._next_roots))
                expires = self._now_ms + IDEMPOTENCY_LIFE_S * 1000
                batch.idempotent.append(
                    IdempotentRow(event.idempotency_key, event.request_digest, result, expires)
                )
        return None if batch.is_empty else batch

    def _appended(self, event: Append, entry: Entry, first: int, roots: Roots) -> Appended:
        header = entry.header
        versions = tuple(Version(entry.id, first + i) for i in range(len(event.drafts)))
        return Appended(
            entry.id,
            header.author,
            header.epoch,
            header.seq,
            header.clock,
            versions,
            roots.state_root,
            roots.log_root,
        )

    # Step 3.

    def committed(self) -> list[Output]:
        """The outputs of what was settled, now that it is durable."""
        self._refuse_poisoned()
        if not self._settled:
            raise AssertionError("committed() without settle() before it")
        commit = self._commit
        self._roots = self._next_roots
        self._state_size = len(self._state.tree)
        self._heads.update(commit.batch.logs)
        sealed = self._sealed
        self._begin()
        out: list[Output] = list(commit.outputs)
        out += [
            Acknowledged(event.token, self._appended(event, entry, first, self._roots))
            for event, entry, first in commit.acks
        ]
        out += [self._repeated(*repeat) for repeat in commit.repeats]
        if commit.applied:
            out.append(Applied(tuple(commit.applied)))
        for log in sorted(commit.forks):
            out.append(Frozen(commit.batch.forks[log]))
            out.append(PublishProof(Proof(FORK_PROOF, commit.batch.forks[log].proof)))
        out += [Publish(entries) for entries in _payloads(commit.own, sealed)]
        out += [Publish(entries) for entries in commit.relay]
        for peer, logs in sorted(commit.offered.items()):
            self._reconciler.note_offered(peer, logs)
        for served in commit.served:
            messages, by_peer = self._reconciler.answer((served.peer, served.boot), served.messages)
            out.append(Answer(served.token, tuple(messages)))
            if by_peer is not None:
                out.append(RoundByPeer(served.peer, served.lung, by_peer))
        for opened in commit.opened:
            sync_round = self._reconciler.round(
                opened.peer,
                opened.token,
                padded=opened.padded,
                wait_ms=opened.wait_ms,
                descends=opened.descends,
            )
            self._rounds[opened.token] = sync_round
            out.append(RoundStep(opened.token, tuple(next(sync_round))))
        for answered in commit.answered:
            if answered.token in self._rounds:
                out += self._advance(answered)
        return out

    def _advance(self, answered: RoundAnswered) -> list[Output]:
        try:
            return [RoundStep(answered.token, tuple(self._rounds[answered.token].send(answered.messages)))]
        except StopIteration as stop:
            del self._rounds[answered.token]
            result: RoundResult = stop.value
        ended: list[Output] = [RoundEnded(answered.token, result)]
        if result.descent is not None and result.descent.outcome is Outcome.FALSE:
            # Only here is it known where the peer's own root should have led.
            self.refused["false_proof"] = self.refused.get("false_proof", 0) + 1
            size = sum(len(each.payload) for each in answered.messages if isinstance(each, Proof))
            ended.append(Wasted(answered.peer, answered.lung, size))
        return ended

    def _repeated(self, token: int, key: bytes, digest: bytes) -> Output:
        row = self._reader.idempotent(key, self._now_ms)
        if row is None or row.request_digest != digest:
            return Refused(token, LatticeError("internal", "the first result of this write is gone"))
        return Acknowledged(token, _unpack_appended(row.result)._replace(repeated=True))

    def abandon(self) -> list[int]:
        """The commit failed: nothing of it may leave. Returns the tokens that wait for an answer;
        the engine refuses everything from now on."""
        self._poisoned = True
        commit = self._commit
        tokens = [event.token for event, _, _ in commit.acks]
        tokens += [event.token for event, _, _ in self._group.members]
        tokens += [token for token, _, _ in commit.repeats]
        tokens += [served.token for served in commit.served]
        tokens += [opened.token for opened in commit.opened]
        tokens += list(self._rounds)
        tokens += [out.token for out in commit.outputs if isinstance(out, Refused | Remembered | Judged)]
        return tokens

    def _begin(self) -> None:
        self._commit = _Commit()
        self._settled = False
        self._sealed: dict[bytes, Seal] = {}
        self._next_roots = self._roots
        self._logs.begin(self._commit.batch)
        self._state.begin(self._commit.batch)


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _holds(message: Entries, log: LogKey) -> bool:
    """Whether a message brings entries of this log, by its seals: every run ends at one."""
    return any((seal.author, seal.epoch) == log for seal in message.seals)


def _payloads(own: Sequence[Entry], sealed: dict[bytes, Seal]) -> list[Entries]:
    """Split our fresh entries into gossip payloads of about 64 KiB, each ending at a seal."""
    payloads: list[Entries] = []
    frames: list[tuple[bytes, bytes]] = []
    seals: list[Seal] = []
    size = cut_frames = cut_seals = 0
    for entry in own:
        if size + entry.size > GOSSIP_BYTES and cut_frames:
            payloads.append(Entries(tuple(frames[:cut_frames]), tuple(seals[:cut_seals])))
            frames, seals = frames[cut_frames:], seals[cut_seals:]
            size = sum(len(header) + len(ops) for header, ops in frames)
            cut_frames = cut_seals = 0
        frames.append((entry.header_bytes, entry.ops))
        size += entry.size
        seal = sealed.get(entry.id)
        if seal is not None:
            seals.append(seal)
            cut_frames, cut_seals = len(frames), len(seals)
    if frames:
        payloads.append(Entries(tuple(frames), tuple(seals)))
    return payloads


_APPENDED: Final = struct.Struct(">32s32sQQQH32s32s")


def _pack_appended(result: Appended) -> bytes:
    head = _APPENDED.pack(
        result.id,
        result.author,
        result.epoch,
        result.seq,
        result.clock,
        len(result.versions),
        result.state_root,
        result.log_root,
    )
    return head + b"".join(struct.pack(">H", version.op_index) for version in result.versions)


def _unpack_appended(data: bytes) -> Appended:
    entry_id, author, epoch, seq, clock, count, state_root, log_root = _APPENDED.unpack_from(data)
    indices = struct.unpack_from(f">{count}H", data, _APPENDED.size)
    if len(data) != _APPENDED.size + 2 * count:
        raise MalformedError("a stored result has the wrong length")
    versions = tuple(Version(entry_id, index) for index in indices)
    return Appended(entry_id, author, epoch, seq, clock, versions, state_root, log_root)
