"""Sync rounds: how two nodes find out what the other lacks, and exchange it.

Separate because it is the one place that knows the order of messages in a round. It is pure and
the same for both lungs: a round is a generator that yields what to send and is resumed with what
was answered, after that answer's entries have been committed.

A round is good when, at its end, each side holds everything that the other's Heads named at its
start. Under constant writes heads are never equal for long, so equality is not what is asked.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from .heads import NO_HEAD
from .limits import HEADS_AUTHORS_MAX, HEADS_LOGS_MAX, PADDING_BYTES, PAGE_BYTES, WANT_RANGES_MAX
from .log import Logs
from .messages import Entries, Heads, HeadsFlag, Message, Roots, Want, WantEntries
from .rows import LogHead, LogKey

_SESSIONS_MAX: Final = 512
# A page's smallest useful rest: below it another log is left for the next page.
_PAGE_REST_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class RoundResult:
    """How a round ended. `equal`: both log roots and both state roots were equal at its end;
    `defect`: the log roots were, the state roots (under one rules number) were not."""

    good: bool
    padded: bool
    equal: bool
    defect: bool
    reason: str
    peer_roots: Roots | None = None


@dataclass(frozen=True, slots=True)
class RoundServed:
    """A round that a peer opened with us came to its end."""

    good: bool
    padded: bool
    peer_roots: Roots


@dataclass(slots=True)
class _Session:
    padded: bool
    targets: dict[LogKey, LogHead] = field(default_factory=dict)


Round = Generator[list[Message], Sequence[Message], RoundResult]


class Reconciler:
    """Opens rounds and answers those of others, over committed logs only."""

    def __init__(self, logs: Logs, roots: Callable[[], Roots]) -> None:
        self._logs = logs
        self._roots = roots
        # Rounds of one peer overlap: one a lung, and a long-poll that it has given up.
        self._sessions: OrderedDict[tuple[bytes, int, int], _Session] = OrderedDict()

    # What the opener does.

    def round(self, number: int, *, padded: bool, wait_ms: int = 0) -> Round:
        """A round with one peer. Yields messages to send; send() it the answer's messages."""
        padding = PADDING_BYTES if padded else 0
        answer = yield [Heads(number, HeadsFlag(0), self._roots(), wait_ms, padding=padding)]
        theirs = _heads(answer)
        if theirs is None or theirs.padding < padding:
            return self._ended(False, padded, theirs, "no_heads")
        targets: dict[LogKey, LogHead] = {}
        if theirs.roots.log_root == self._roots().log_root:
            if not padded:
                return self._ended(True, padded, theirs, "equal")
        else:
            lists = self._lists(self._differing(theirs.authors))
            answer = yield [Heads(number, HeadsFlag.LISTS, self._roots(), logs=lists)]
            named = _heads(answer)
            if named is None or HeadsFlag.LISTS not in named.flags:
                return self._ended(False, padded, named, "no_lists")
            targets = _targets(named)
            yield from self._exchange(targets, answer)
        held = HeadsFlag.HOLDS_ALL if self.holds(targets) else HeadsFlag(0)
        answer = yield [Heads(number, HeadsFlag.FINAL | held, self._roots())]
        last = _heads(answer)
        good = bool(held) and last is not None and HeadsFlag.HOLDS_ALL in last.flags
        return self._ended(good, padded, last, "complete" if good else "incomplete")

    def _exchange(
        self, targets: Mapping[LogKey, LogHead], answer: Sequence[Message]
    ) -> Generator[list[Message], Sequence[Message], None]:
        """Pull and push pages until neither side lacks anything or a step brings nothing."""
        before: object = None
        while True:
            missing = self.missing(targets)
            asked = [
                want for message in answer if isinstance(message, WantEntries) for want in message.ranges
            ]
            if not missing and not asked:
                return
            if (missing, asked) == before:
                return
            before = (missing, asked)
            out: list[Message] = []
            page = self.page(asked)
            if page is not None:
                out.append(page)
            if missing:
                out.append(WantEntries(tuple(missing[:WANT_RANGES_MAX])))
            if not out:
                return
            answer = yield out

    def _ended(self, good: bool, padded: bool, theirs: Heads | None, reason: str) -> RoundResult:
        if theirs is None:
            return RoundResult(good, padded, False, False, reason)
        ours = self._roots()
        same_log = theirs.roots.log_root == ours.log_root
        comparable = theirs.roots.rules == ours.rules
        same_state = theirs.roots.state_root == ours.state_root
        return RoundResult(
            good,
            padded,
            same_log and comparable and same_state,
            same_log and comparable and not same_state,
            reason,
            theirs.roots,
        )

    # What the other side does.

    def answer(
        self, peer: tuple[bytes, int], messages: Sequence[Message]
    ) -> tuple[list[Message], RoundServed | None]:
        """Answer a request of `peer` (public key, boot); its entries are committed already."""
        out: list[Message] = []
        served: RoundServed | None = None
        asked: list[Want] = []
        session = self._latest(peer)
        for message in messages:
            match message:
                case Heads() if HeadsFlag.FINAL in message.flags:
                    heads, served = self._finish(self._sessions.pop((*peer, message.round), None), message)
                    out.append(heads)
                    session = None
                case Heads() if HeadsFlag.LISTS in message.flags:
                    session = self._session(peer, message)
                    session.targets = _targets(message)
                    out.append(self._name(message))
                    asked += self._lacked_by(message)
                case Heads():
                    session = self._session(peer, message)
                    heads, served = self._start(message)
                    out.append(heads)
                case WantEntries():
                    asked += message.ranges
                case _:
                    pass
        page = self.page(asked)
        if page is not None:
            out.append(page)
        missing = self.missing(session.targets) if session is not None else []
        if missing:
            out.append(WantEntries(tuple(missing[:WANT_RANGES_MAX])))
        return out, served

    def _latest(self, peer: tuple[bytes, int]) -> _Session | None:
        """The peer's round that spoke last: pages and wants name none."""
        return next((self._sessions[key] for key in reversed(self._sessions) if key[:2] == peer), None)

    def _session(self, peer: tuple[bytes, int], message: Heads) -> _Session:
        key = (*peer, message.round)
        held = self._sessions.get(key)
        if held is None:
            held = self._sessions[key] = _Session(message.padding > 0)
            if len(self._sessions) > _SESSIONS_MAX:
                self._sessions.popitem(last=False)
        self._sessions.move_to_end(key)
        return held

    def _start(self, message: Heads) -> tuple[Heads, RoundServed | None]:
        ours = self._roots()
        padding = PADDING_BYTES if message.padding else 0
        if message.roots.log_root == ours.log_root:
            # A padded round is good only once the opener has confirmed that our padding arrived.
            served = None if padding else RoundServed(True, False, message.roots)
            return Heads(message.round, HeadsFlag(0), ours, padding=padding), served
        authors = tuple(self._logs.heads.digests()[:HEADS_AUTHORS_MAX])
        return Heads(message.round, HeadsFlag.AUTHORS, ours, authors=authors, padding=padding), None

    def _name(self, message: Heads) -> Heads:
        lists = self._lists([author for author, _ in message.logs])
        return Heads(message.round, HeadsFlag.LISTS, self._roots(), logs=lists)

    def _finish(self, session: _Session | None, message: Heads) -> tuple[Heads, RoundServed]:
        holds = session is not None and self.holds(session.targets)
        flags = HeadsFlag.FINAL | (HeadsFlag.HOLDS_ALL if holds else HeadsFlag(0))
        good = holds and HeadsFlag.HOLDS_ALL in message.flags
        padded = session is not None and session.padded
        return Heads(message.round, flags, self._roots()), RoundServed(good, padded, message.roots)

    # What both compare with.

    def holds(self, targets: Mapping[LogKey, LogHead]) -> bool:
        """Whether everything named is held (of a frozen log everything below the lower F)."""
        return not self.missing(targets)

    def missing(self, targets: Mapping[LogKey, LogHead]) -> list[Want]:
        """The ranges that are named there and not held here. A log with two branches is left out:
        another's may not continue ours, and asking for ever would make every round a bad one."""
        wants = []
        for key, theirs in sorted(targets.items()):
            if key in self._logs.forked:
                continue
            ours = self._logs.heads.get(key)
            last = min(theirs.seq, min(ours.frozen, theirs.frozen) - 1)
            if ours.seq < last:
                wants.append(Want(key.author, key.epoch, ours.seq + 1, last))
        return wants

    def page(self, wants: Iterable[Want]) -> Entries | None:
        """Entries for what is wanted, in the order asked, up to a page; None if there are none.
        Of several ranges of one log the first is served."""
        frames: list[tuple[bytes, bytes]] = []
        seals = []
        left = PAGE_BYTES
        looked_at: set[LogKey] = set()
        for want in wants:
            if frames and left < _PAGE_REST_BYTES:
                break
            key = LogKey(want.author, want.epoch)
            if key in looked_at or self._logs.heads.get(key).seq < want.first:
                continue
            looked_at.add(key)
            rows, row_seals = self._logs.page(key, want.first, want.last, left)
            frames += [(row.header, row.ops) for row in rows]
            seals += row_seals
            left -= sum(len(row.header) + len(row.ops) for row in rows)
        return Entries(tuple(frames), tuple(seals)) if frames else None

    def _differing(self, authors: Iterable[tuple[bytes, bytes]]) -> list[bytes]:
        theirs = dict(authors)
        ours = dict(self._logs.heads.digests())
        return sorted(
            author for author in theirs.keys() | ours.keys() if theirs.get(author) != ours.get(author)
        )[:HEADS_AUTHORS_MAX]

    def _lists(self, authors: Sequence[bytes]) -> tuple[tuple[bytes, tuple[tuple[int, LogHead], ...]], ...]:
        """The log heads of these authors, as many as one message holds. Those with the fewest logs go
        first, so that nobody can keep the others out by writing under thousands of epochs."""
        logs = {author: self._logs.heads.logs_of(author) for author in authors}
        lists = []
        budget = HEADS_LOGS_MAX
        for author in sorted(logs, key=lambda author: (len(logs[author]), author)):
            budget -= len(logs[author])
            if budget < 0:
                break
            lists.append((author, tuple(sorted(logs[author].items()))))
        return tuple(sorted(lists))

    def _lacked_by(self, message: Heads) -> list[Want]:
        """What the sender of these lists lacks of ours, for the authors it listed."""
        wants = []
        for author, logs in message.logs:
            theirs = dict(logs)
            for epoch, ours in sorted(self._logs.heads.logs_of(author).items()):
                held = theirs.get(epoch, NO_HEAD)
                last = min(ours.seq, min(ours.frozen, held.frozen) - 1)
                if held.seq < last:
                    wants.append(Want(author, epoch, held.seq + 1, last))
        return wants


def _heads(messages: Sequence[Message]) -> Heads | None:
    return next((message for message in messages if isinstance(message, Heads)), None)


def _targets(heads: Heads) -> dict[LogKey, LogHead]:
    return {LogKey(author, epoch): head for author, logs in heads.logs for epoch, head in logs}
