"""Sync rounds: how two nodes find out what the other lacks, and exchange it.

Separate because it is the one place that knows the order of messages in a round. It is pure and
the same for both lungs: a round is a generator that yields what to send and is resumed with what
was answered, after that answer's entries have been committed.

A round is good when, at its end, each side holds everything that the other's Heads named at its
start. Under constant writes heads are never equal for long, so equality is not what is asked.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Container, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Final

from .descent import Descent, descend
from .entry import parse_header
from .errors import MalformedError
from .forks import HEADER_PATH, pack_path
from .heads import NO_HEAD
from .limits import (
    FORK_PROOFS_MAX,
    FROZEN_NEVER,
    HEADS_AUTHORS_MAX,
    HEADS_LOGS_MAX,
    PADDING_BYTES,
    PAGE_BYTES,
    PATHS_MAX,
    SEAL_INTERVAL,
    WANT_RANGES_MAX,
)
from .log import Logs
from .merkle import MerkleMap
from .messages import HEADERS_ONLY, Entries, Heads, HeadsFlag, Message, Proof, Roots, Want, WantEntries
from .rows import LogHead, LogKey
from .tree_proofs import TREE_ASK, TREE_NODES, answer_to, pack_nodes, unpack_ask

_SESSIONS_MAX: Final = 512
_SESSIONS_PER_PEER_MAX: Final = 8  # a round a lung, for two boots, and as many that were given up
_NAMED_MAX: Final = 8 * HEADS_LOGS_MAX  # heads named in all open rounds: some 50 MiB
_TOLD_MAX: Final = 16_384
# A page's smallest useful rest: below it another log is left for the next page.
_PAGE_REST_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class RoundResult:
    """How a round ended. `equal`: both log roots and both state roots were equal at its end;
    `defect`: the log roots were, the state roots (under one rules number) were not. `gained`: entries
    that the peer had named came; `given`: some that it asked for went. `descent`: which keys that
    defect is about, if the peer was asked."""

    good: bool
    padded: bool
    equal: bool
    defect: bool
    reason: str
    peer_roots: Roots | None = None
    gained: bool = False
    given: bool = False
    descent: Descent | None = None

    @property
    def fruitless(self) -> bool:
        """Neither good nor of any use to us: a peer that can do no better is asked less often."""
        return not self.good and not self.gained


@dataclass(frozen=True, slots=True)
class RoundServed:
    """A round that a peer opened with us came to its end."""

    good: bool
    padded: bool
    peer_roots: Roots


@dataclass(slots=True)
class _Search:
    """Where two branches part, by halving: every stretch of 64 below `low` is equal, and the lowest
    difference is in one of `low` to `high`. `asked` is the stretch whose headers were asked for."""

    low: int
    high: int
    asked: int = -1


@dataclass(slots=True)
class _Given:
    """What the opener of a round has given away in it: no honest peer asks for that again before the
    round is over, and to give it again and again would be a round without end."""

    last: dict[LogKey, int] = field(default_factory=dict)
    paths: set[tuple[LogKey, int]] = field(default_factory=set)

    def fresh(self, wants: Iterable[Want]) -> list[Want]:
        """The wants that are no repetition; those for header paths count as given with this."""
        found = []
        for want in wants:
            key = LogKey(want.author, want.epoch)
            if want.last != HEADERS_ONLY:
                is_fresh = want.first > self.last.get(key, -1)
            else:
                is_fresh = (key, want.first) not in self.paths
                self.paths.add((key, want.first))
            if is_fresh:
                found.append(want)
        return found

    def note(self, page: Entries) -> None:
        for header_bytes, _ in page.frames:
            header = parse_header(header_bytes)
            key = LogKey(header.author, header.epoch)
            self.last[key] = max(self.last.get(key, -1), header.seq)


@dataclass(slots=True)
class _Session:
    padded: bool
    targets: dict[LogKey, LogHead] = field(default_factory=dict)
    searches: dict[LogKey, _Search] = field(default_factory=dict)


Round = Generator[list[Message], Sequence[Message], RoundResult]


class Reconciler:
    """Opens rounds and answers those of others, over committed logs and the committed state only."""

    def __init__(self, logs: Logs, roots: Callable[[], Roots], tree: MerkleMap) -> None:
        """`tree` leads to the state root of `roots()` whenever a method of this is called."""
        self._logs = logs
        self._roots = roots
        self._tree = tree
        # Rounds of one peer overlap: one a lung, and a long-poll that it has given up.
        self._sessions: OrderedDict[tuple[bytes, int, int], _Session] = OrderedDict()
        # Who offered entries of a frozen log is told once where it is frozen: F by (peer, log).
        self._told: OrderedDict[tuple[bytes, LogKey], int] = OrderedDict()
        self._offered: dict[bytes, set[LogKey]] = {}

    # What the opener does.

    def round(
        self, peer: bytes, number: int, *, padded: bool, wait_ms: int = 0, descends: bool = True
    ) -> Round:
        """A round with one peer. Yields messages to send; send() it the answer's messages.

        One that ends in a defect goes on as a descent, if it `descends`: that changes nothing of how
        good the round was.
        """
        result = yield from self._synced(peer, number, padded, wait_ms)
        if not (result.defect and descends) or result.peer_roots is None:
            return result
        ours = self._roots().state_root
        found = yield from descend(
            self._tree, result.peer_roots.state_root, lambda: self._roots().state_root != ours
        )
        return replace(result, descent=found)

    def _synced(self, peer: bytes, number: int, padded: bool, wait_ms: int) -> Round:
        padding = PADDING_BYTES if padded else 0
        answer = yield [Heads(number, HeadsFlag(0), self._roots(), wait_ms, padding=padding)]
        theirs = _heads(answer)
        if theirs is None or theirs.padding < padding:
            return self._ended(False, padded, theirs, "no_heads")
        targets: dict[LogKey, LogHead] = {}
        gained = given = False
        if theirs.roots.log_root == self._roots().log_root:
            if not padded:
                return self._ended(True, padded, theirs, "equal")
        else:
            lists = self._lists(self._differing(theirs.authors))
            answer = yield [Heads(number, HeadsFlag.LISTS, self._roots(), logs=lists)]
            named = _heads(answer)
            if named is None or HeadsFlag.LISTS not in named.flags:
                return self._ended(False, padded, named, "no_lists")
            targets = self._all_named(named)
            lacked = _count(self.missing(targets))
            given = yield from self._exchange(peer, targets, answer)
            gained = _count(self.missing(targets)) < lacked
        held = HeadsFlag.HOLDS_ALL if self.holds(targets) else HeadsFlag(0)
        answer = yield [Heads(number, HeadsFlag.FINAL | held, self._roots())]
        last = _heads(answer)
        good = bool(held) and last is not None and HeadsFlag.HOLDS_ALL in last.flags
        result = self._ended(good, padded, last, "complete" if good else "incomplete")
        return replace(result, gained=gained, given=given)

    def _exchange(
        self, peer: bytes, targets: dict[LogKey, LogHead], answer: Sequence[Message]
    ) -> Generator[list[Message], Sequence[Message], bool]:
        """Pull and push pages until neither side lacks anything or a step brings nothing. Whether any
        entries were given."""
        before: object = None
        given = _Given()
        searches = self._searches(targets)
        while True:
            proofs = [*self._lower_proofs(targets, searches), *self._offered_proofs(peer)]
            missing = self.missing(targets, searches)
            paths = self._next_paths(searches)
            asked = given.fresh(
                want for message in answer if isinstance(message, WantEntries) for want in message.ranges
            )
            now = (missing, paths)
            pages = self._serve(asked, proofs)
            if not pages and (not any(now) or now == before):
                return bool(given.last)
            before = now
            out = pages
            for message in pages:
                if isinstance(message, Entries):
                    given.note(message)
            if missing or paths:
                out.append(WantEntries((*paths, *missing[: WANT_RANGES_MAX - len(paths)])))
            if not out:
                return bool(given.last)
            answer = yield out

    def _serve(self, asked: Sequence[Want], proofs: Sequence[Proof]) -> list[Message]:
        """A page of what was asked for, header paths, and proofs: those of the page's frozen logs
        stand in the same envelope, since they authenticate its end."""
        out: list[Message] = []
        page, of_page = self.page([want for want in asked if want.last != HEADERS_ONLY])
        if page is not None:
            out.append(page)
        out += dict.fromkeys((*of_page, *proofs))
        for want in [want for want in asked if want.last == HEADERS_ONLY][:PATHS_MAX]:
            path = self._logs.path(LogKey(want.author, want.epoch), want.first)
            if path is not None:
                out.append(Proof(HEADER_PATH, pack_path(path)))
        return out

    # Forks: who holds the lower proof sends it; whose branch is longer looks for where they part.

    def note_offered(self, peer: bytes, logs: Iterable[LogKey]) -> None:
        """This peer sent entries from above where these logs are frozen: it is told with the next
        messages to it, once for each F."""
        self._offered.setdefault(peer, set()).update(logs)
        while len(self._offered) > _SESSIONS_MAX:
            self._offered.pop(next(iter(self._offered)))

    def _offered_proofs(self, peer: bytes) -> list[Proof]:
        proofs = []
        for key in sorted(self._offered.pop(peer, ())):
            frozen = self._logs.heads.get(key).frozen
            if self._told.get((peer, key)) != frozen:
                self._told[peer, key] = frozen
                proofs.append(self._logs.fork_proof(key))
        while len(self._told) > _TOLD_MAX:
            self._told.popitem(last=False)
        return proofs

    def _lower_proofs(self, targets: dict[LogKey, LogHead], searches: dict[LogKey, _Search]) -> list[Proof]:
        """The proofs of logs that are frozen lower here than there, which `targets` then takes for
        told; those beyond the cap go with the next messages.

        Where both are frozen, what they hold below may part far lower: without a search each proof
        would lower the other's F by one.
        """
        proofs: list[Proof] = []
        for key, theirs in sorted(targets.items()):
            frozen = self._logs.heads.get(key).frozen
            if frozen < theirs.frozen and len(proofs) < FORK_PROOFS_MAX:
                targets[key] = theirs._replace(frozen=frozen)
                proofs.append(self._logs.fork_proof(key))
                last = min(theirs.seq, frozen - 1)
                if theirs.frozen != FROZEN_NEVER and last >= 0 and key not in searches:
                    searches[key] = _Search(0, last // SEAL_INTERVAL)
        return proofs

    def _searches(self, targets: Mapping[LogKey, LogHead]) -> dict[LogKey, _Search]:
        """The logs whose own id at the other's seq is another: the branch that is as long or longer
        looks for the lowest difference, whatever the two know of a fork already."""
        found = {}
        for key, theirs in targets.items():
            if theirs.seq >= 0 and self._differs(key, theirs):
                found[key] = _Search(0, theirs.seq // SEAL_INTERVAL)
        return found

    def _differs(self, key: LogKey, theirs: LogHead) -> bool:
        ours = self._logs.heads.get(key)
        return 0 <= theirs.seq <= ours.seq and self._logs.entry_id_at(key, theirs.seq) != theirs.id

    def _next_paths(self, searches: dict[LogKey, _Search]) -> list[Want]:
        """The next stretches of headers to compare. The last ones have been, when they came: where
        they differ from ours the log is frozen now."""
        wants: list[Want] = []
        for key, search in sorted(searches.items()):
            if search.asked >= 0:
                start = search.asked * SEAL_INTERVAL
                frozen = self._logs.heads.get(key).frozen
                if frozen < start:
                    search.high = search.asked - 1
                elif frozen < start + SEAL_INTERVAL:
                    search.high = -1  # it begins alike and differs: below it all is equal
                else:
                    search.low = search.asked + 1
            if search.low > search.high:
                del searches[key]
            elif len(wants) < PATHS_MAX:
                search.asked = (search.low + search.high) // 2
                wants.append(Want(*key, search.asked * SEAL_INTERVAL, HEADERS_ONLY))
        return wants

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
        proofs = self._offered_proofs(peer[0])
        session = self._latest(peer)
        for message in messages:
            match message:
                case Heads() if HeadsFlag.FINAL in message.flags:
                    heads, served = self._finish(self._sessions.pop((*peer, message.round), None), message)
                    out.append(heads)
                    session = None
                case Heads() if HeadsFlag.LISTS in message.flags:
                    session = self._session(peer, message)
                    session.targets = self._all_named(message)
                    session.searches = self._searches(session.targets)
                    self._forget_the_largest()
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
        if session is not None:
            proofs += self._lower_proofs(session.targets, session.searches)
        out += self._serve(asked, proofs)
        out += self._tree_nodes(messages)
        if session is not None:
            missing = self.missing(session.targets, session.searches)
            paths = self._next_paths(session.searches)
            if missing or paths:
                out.append(WantEntries((*paths, *missing[: WANT_RANGES_MAX - len(paths)])))
        return out, served

    def _tree_nodes(self, messages: Sequence[Message]) -> list[Proof]:
        """The answer to a question about our state tree, one a body. Beside Heads or Want there is none:
        with a page and lists the answer might not fit into an envelope."""
        asks = [each for each in messages if isinstance(each, Proof) and each.kind == TREE_ASK]
        if not asks or any(isinstance(each, Heads | WantEntries) for each in messages):
            return []
        try:
            ask = unpack_ask(asks[0].payload)
        except MalformedError:  # counted when it came in
            return []
        return [Proof(TREE_NODES, pack_nodes(answer_to(ask, self._tree, self._roots().state_root)))]

    def _all_named(self, message: Heads) -> dict[LogKey, LogHead]:
        """The heads in lists, and for the authors in them also the logs that are listed here only."""
        named = _targets(message)
        for author, _ in message.logs:
            for epoch in self._logs.heads.logs_of(author):
                named.setdefault(LogKey(author, epoch), NO_HEAD)
        return named

    def _latest(self, peer: tuple[bytes, int]) -> _Session | None:
        """The peer's round that spoke last: pages and wants name none."""
        return next((self._sessions[key] for key in reversed(self._sessions) if key[:2] == peer), None)

    def _session(self, peer: tuple[bytes, int], message: Heads) -> _Session:
        key = (*peer, message.round)
        held = self._sessions.get(key)
        if held is None:
            of_peer = [other for other in self._sessions if other[0] == peer[0]]
            if len(of_peer) >= _SESSIONS_PER_PEER_MAX:
                del self._sessions[of_peer[0]]
            held = self._sessions[key] = _Session(message.padding > 0)
            if len(self._sessions) > _SESSIONS_MAX:
                self._sessions.popitem(last=False)
        self._sessions.move_to_end(key)
        return held

    def _forget_the_largest(self) -> None:
        """Rounds that name the most go first when all together name too much: who fills the lists of
        many rounds loses those, and no peer with an ordinary one does."""
        sizes = {key: len(session.targets) for key, session in self._sessions.items()}
        total = sum(sizes.values())
        while total > _NAMED_MAX:
            largest = max(sizes, key=sizes.__getitem__)
            total -= sizes.pop(largest)
            del self._sessions[largest]

    def _start(self, message: Heads) -> tuple[Heads, RoundServed | None]:
        ours = self._roots()
        padding = PADDING_BYTES if message.padding else 0
        if message.roots.log_root == ours.log_root:
            # A padded round is good only once the opener has confirmed that our padding arrived.
            served = None if padding else RoundServed(True, False, message.roots)
            return Heads(message.round, HeadsFlag(0), ours, padding=padding), served
        authors = self._stretch(message.round)
        return Heads(message.round, HeadsFlag.AUTHORS, ours, authors=authors, padding=padding), None

    def _stretch(self, number: int) -> tuple[tuple[bytes, bytes], ...]:
        """The author digests for one message. Of more than it holds a stretch of the ring, another in
        each round: with the lowest alone, whoever writes under thousands of keys keeps all above out.
        It begins at a place in the list, not at a key, which could be chosen to lie behind a crowd."""
        digests = self._logs.heads.digests()
        if len(digests) < HEADS_AUTHORS_MAX:
            return tuple(digests)
        drawn = sha256(number.to_bytes(8, "big")).digest()
        start = int.from_bytes(drawn[:8], "big") % len(digests)
        return tuple((digests[start:] + digests[:start])[:HEADS_AUTHORS_MAX])

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
        """Whether everything named is held, of a frozen log everything below the lower F."""
        for key, theirs in targets.items():
            ours = self._logs.heads.get(key)
            below = min(ours.frozen, theirs.frozen)
            if ours.seq < min(theirs.seq, below - 1):
                return False
            if theirs.seq < ours.frozen and self._differs(key, theirs):
                return False
        return True

    def missing(self, targets: Mapping[LogKey, LogHead], searches: Container[LogKey] = ()) -> list[Want]:
        """The ranges that are named there and not held here; none of a log whose branches part
        somewhere below, which is looked for first."""
        wants = []
        for key, theirs in sorted(targets.items()):
            ours = self._logs.heads.get(key)
            last = min(theirs.seq, min(ours.frozen, theirs.frozen) - 1)
            if ours.seq < last and key not in searches:
                wants.append(Want(key.author, key.epoch, ours.seq + 1, last))
        return wants

    def page(self, wants: Iterable[Want]) -> tuple[Entries | None, list[Proof]]:
        """Entries for what is wanted, in the order asked, up to a page; None if there are none. With
        the proofs of the frozen logs among them. Of several ranges of one log the first is served."""
        frames: list[tuple[bytes, bytes]] = []
        seals = []
        proofs: list[Proof] = []
        left = PAGE_BYTES
        looked_at: set[LogKey] = set()
        for want in wants:
            if (frames and left < _PAGE_REST_BYTES) or len(proofs) == FORK_PROOFS_MAX:
                break
            key = LogKey(want.author, want.epoch)
            if key in looked_at or self._logs.heads.get(key).seq < want.first:
                continue
            looked_at.add(key)
            rows, row_seals = self._logs.page(key, want.first, want.last, left)
            frames += [(row.header, row.ops) for row in rows]
            seals += row_seals
            left -= sum(len(row.header) + len(row.ops) for row in rows)
            if rows and self._logs.heads.get(key).frozen != FROZEN_NEVER:
                proofs.append(self._logs.fork_proof(key))
        return (Entries(tuple(frames), tuple(seals)) if frames else None), proofs

    def _differing(self, authors: Sequence[tuple[bytes, bytes]]) -> list[bytes]:
        """The authors whose digests differ; a full list speaks only of the stretch that it spans."""
        theirs = dict(authors)
        ours = dict(self._logs.heads.digests())
        if len(authors) == HEADS_AUTHORS_MAX:
            first, last = authors[0][0], authors[-1][0]
            ours = {author: digest for author, digest in ours.items() if _spans(first, last, author)}
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


def _spans(first: bytes, last: bytes, author: bytes) -> bool:
    """Whether the stretch of the ring from `first` to `last` holds the author."""
    if first <= last:
        return first <= author <= last
    return author >= first or author <= last


def _count(wants: Iterable[Want]) -> int:
    """How many entries these ranges are."""
    return sum(want.last - want.first + 1 for want in wants)


def _heads(messages: Sequence[Message]) -> Heads | None:
    return next((message for message in messages if isinstance(message, Heads)), None)


def _targets(heads: Heads) -> dict[LogKey, LogHead]:
    return {LogKey(author, epoch): head for author, logs in heads.logs for epoch, head in logs}
