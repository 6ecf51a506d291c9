"""A peer that speaks the HTTP lung with another: envelopes, freshness, and sync rounds.

Separate from the ledger, which knows no network: sections 10 to 13 of docs/reference/wire.md, over
nothing but the standard library's HTTP client and PyNaCl.
"""

from __future__ import annotations

import http.client
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from nacl.exceptions import CryptoError
from nacl.secret import SecretBox
from nacl.signing import SigningKey

from tests.independent.forks import read_path
from tests.independent.ledger import FROZEN, Ledger, LogName, Refusal
from tests.independent.wire_format import (
    AUTHORS_AT_ONCE_MAX,
    ENVELOPE_BYTES_MAX,
    NOTHING,
    OPEN,
    PATH,
    SEALED_EVERY,
    ZERO32,
    Entries,
    Heads,
    Hello,
    LogHead,
    Malformed,
    Message,
    Proof,
    Range,
    Ticket,
    Want,
    is_good_key,
    is_signed,
    make_body,
    read_body,
    sha,
    tag,
    u8,
    u32,
    u64,
)

MAGIC: Final = b"LTC1"
REQUEST, ANSWER, ONE_WAY = 1, 2, 3
EVERY_AUTHOR, LISTS, LAST, HOLDS_ALL = 1, 2, 4, 8
PADDING: Final = 16_384
SYNC_PATH: Final = "/api/lattice/sync/messages"
EXCHANGES_MAX: Final = 400
PROOFS_MAX: Final = 32

Named = dict[LogName, LogHead]


class Refused(Exception):
    """What came back is not an answer that this peer may use; the text says why."""


class Opened(NamedTuple):
    """The plain text of an envelope, its signature checked."""

    sender: bytes
    kind: int
    to: bytes
    boot: int
    counter: int
    reply_to: bytes
    body: bytes


@dataclass(slots=True)
class Outcome:
    """How one sync round went."""

    good: bool
    exchanges: int
    refusals: list[Refusal] = field(default_factory=list)
    proofs: int = 0
    pages: int = 0
    frozen: int = 0


@dataclass(slots=True)
class Search:
    """The lowest stretch of 64 seqs in which two sides' headers may differ, found by halving."""

    low: int
    high: int

    @property
    def first(self) -> int:
        return (self.low + self.high) // 2 * SEALED_EVERY

    def goes_on(self, fork: int, *, came: bool) -> bool:
        """Look at F, after the stretch that was asked for came or did not; whether to ask for another."""
        if came and fork >= self.first:
            self.low = self.first // SEALED_EVERY + 1  # alike up to F, or to the end of the stretch
        self.high = min(self.high, fork // SEALED_EVERY)
        return self.low <= self.high


class Peer:
    """One run of this peer's process, with its key, towards one node."""

    def __init__(
        self, ticket: Ticket, url: str, key: SigningKey, ledger: Ledger | None = None, name: str = "stranger"
    ) -> None:
        self.ticket = ticket
        self.url = urlsplit(url)
        self.key = key
        self.public_key = bytes(key.verify_key)
        self.ledger = Ledger(ticket.network_id) if ledger is None else ledger
        self.name = name
        self.boot = secrets.randbits(64)
        self.counter = 0
        self.other: bytes = ZERO32
        self.challenges_answered = 0
        self.sent: set[tuple[LogName, int]] = set()
        self.offered: set[LogName] = set()
        self.searched: set[tuple[LogName, int]] = set()

    # 10. Envelope

    def seal(
        self, kind: int, to: bytes, body: bytes, *, counter: int | None = None, reply_to: bytes = ZERO32
    ) -> bytes:
        if counter is None:
            self.counter += 1
            counter = self.counter
        front = self.public_key + u8(kind) + to + u64(self.boot) + u64(counter) + reply_to
        signed = tag("envelope") + self.ticket.network_id + u32(self.ticket.key_number) + front + sha(body)
        plain = front + self.key.sign(signed).signature + body
        nonce = secrets.token_bytes(SecretBox.NONCE_SIZE)
        box = SecretBox(self.ticket.network_key).encrypt(plain, nonce).ciphertext
        return MAGIC + u32(self.ticket.key_number) + nonce + box

    def open(self, envelope: bytes) -> Opened:
        if len(envelope) > ENVELOPE_BYTES_MAX or envelope[:4] != MAGIC:
            raise Refused("not an envelope")
        if envelope[4:8] != u32(self.ticket.key_number):
            raise Refused("a key number that is not held")
        try:
            plain = SecretBox(self.ticket.network_key).decrypt(envelope[32:], envelope[8:32])
        except (CryptoError, ValueError) as error:
            raise Refused("the box does not open") from error
        if len(plain) < 177:
            raise Refused("the plain text is too short")
        sender, front, signature, body = plain[:32], plain[:113], plain[113:177], plain[177:]
        signed = tag("envelope") + self.ticket.network_id + envelope[4:8] + front + sha(body)
        if not is_good_key(sender) or not is_signed(sender, signed, signature):
            raise Refused("the envelope's signature is not valid")
        numbers = [int.from_bytes(plain[at : at + 8], "big") for at in (65, 73)]
        opened = Opened(sender, plain[32], plain[33:65], numbers[0], numbers[1], plain[81:113], body)
        if opened.to not in (self.public_key, ZERO32):
            raise Refused("the envelope is for somebody else")
        return opened

    # The HTTP lung

    def post(self, data: bytes) -> tuple[int, bytes]:
        """The body of one request to the node's endpoint; status and body of the response."""
        connection = http.client.HTTPConnection(self.url.hostname or "", self.url.port, timeout=60)
        try:
            path = self.url.path.rstrip("/") + SYNC_PATH
            connection.request("POST", path, data, {"Content-Type": "application/octet-stream"})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def exchange(self, messages: Sequence[Message], *, to: bytes | None = None) -> list[Message]:
        """One request and the messages of its answer, from the addressee and to this request."""
        addressee = self.other if to is None else to
        request = self.seal(REQUEST, addressee, make_body(messages))
        status, data = self.post(request)
        if status != 200:
            raise Refused(f"the node says {status}: {data[:200]!r}")
        answer = self.open(data)
        if answer.kind != ANSWER or answer.reply_to != sha(request) or answer.to != self.public_key:
            raise Refused("this is not an answer to the request")
        if addressee == ZERO32:
            self.other = answer.sender
        elif answer.sender != addressee:
            raise Refused("somebody else answered")
        return read_body(answer.body)

    # 11. Freshness

    def meet(self) -> Hello:
        """Learn who answers at the address, by a Hello to nobody in particular."""
        for message in self.exchange([Hello(self.name)], to=ZERO32):
            if isinstance(message, Hello):
                return message
        raise Refused("the node did not say hello")

    def ask(self, messages: Sequence[Message]) -> list[Message]:
        """An exchange; when the node does not know this boot yet, its challenge is answered first."""
        if self.other == ZERO32:
            self.meet()
        answer = self.exchange(messages)
        challenge = _challenge(answer)
        if challenge is None:
            return answer
        self.challenges_answered += 1
        return self.exchange([Hello(self.name, answering=challenge), *messages])

    # 13. A sync round

    def sync(self, *, padded: bool = False) -> Outcome:
        number = secrets.randbits(64)
        padding = PADDING if padded else 0
        answer = self.ask([Heads(number, 0, self.ledger.roots(), padding=padding)])
        theirs = _heads_of(answer, number)
        if padded and theirs.padding != PADDING:
            raise Refused("the answer to padded Heads is not padded")
        outcome = Outcome(False, 1)
        named: Named = {}
        self.sent, self.offered, self.searched = set(), set(), set()
        if theirs.roots.log_root == self.ledger.log_root():
            if not padded:
                outcome.good = True
                return outcome
        else:
            named = self._trade(number, theirs, outcome)
        self._close(number, named, outcome)
        return outcome

    def _trade(self, number: int, theirs: Heads, outcome: Outcome) -> Named:
        """Steps 2 and 3: lists, then pages both ways until nothing changes. What the other's lists named."""
        ours, others = self.ledger.digests(), dict(theirs.authors)
        if theirs.flags & EVERY_AUTHOR:
            differing = [
                author for author in sorted({*ours, *others}) if ours.get(author) != others.get(author)
            ]
        else:
            differing = [author for author in sorted(others) if ours.get(author) != others[author]]
        if len(theirs.authors) == AUTHORS_AT_ONCE_MAX:
            ends = theirs.authors[0][0], theirs.authors[-1][0]
            differing = [author for author in differing if _lies_between(*ends, author)]
        lists = tuple((author, self.ledger.heads(author)) for author in differing)
        answer = self.ask([Heads(number, LISTS, self.ledger.roots(), lists=lists)])
        outcome.exchanges += 1
        named: Named = {
            (author, head.epoch): head for author, heads in _heads_of(answer, number).lists for head in heads
        }
        outcome.frozen = sum(head.frozen != OPEN for head in named.values())
        searches: dict[LogName, Search] = {}
        wanted_before: tuple[Range, ...] = ()
        while outcome.exchanges < EXCHANGES_MAX:
            taken = self._take(answer, named, searches, outcome)
            wanted = [each for message in answer if isinstance(message, Want) for each in message.ranges]
            served = [*self._owed(set(differing), named), *self._served(wanted)]
            lacking = self._wanted(named, searches)
            if not served and (not lacking or (lacking == wanted_before and not taken)):
                break
            wanted_before = lacking
            answer = self.ask([*served, *([Want(lacking)] if lacking else [])])
            outcome.exchanges += 1
        return named

    def _take(
        self, answer: Sequence[Message], named: Named, searches: dict[LogName, Search], outcome: Outcome
    ) -> bool:
        """Take what came, and see where it leaves the searches for differences; whether anything changed."""
        before = self.ledger.log_root()
        refusals = self.ledger.take(*answer)
        outcome.proofs += sum(isinstance(message, Proof) for message in answer)
        outcome.pages += sum(isinstance(message, Entries) and bool(message.frames) for message in answer)
        outcome.refusals += [refusal for refusal in refusals if refusal.why != FROZEN]
        self.offered |= {refusal.log for refusal in refusals if refusal.why == FROZEN}
        came = self._stretches(answer)
        searched = bool(came & {(*name, search.first) for name, search in searches.items()})
        for name, search in list(searches.items()):
            fork = self.ledger.logs[name].frozen
            if not search.goes_on(fork, came=(*name, search.first) in came):
                del searches[name]
                self.searched.add((name, fork))
        for name, head in named.items():
            fork = self._forks().get(name, OPEN)
            if (
                name not in searches
                and (name, fork) not in self.searched
                and self.ledger.may_part(name, head)
            ):
                searches[name] = Search(0, min(fork, head.height) // SEALED_EVERY)
        return searched or self.ledger.log_root() != before

    def _forks(self) -> dict[LogName, int]:
        return {name: log.frozen for name, log in self.ledger.held() if log.frozen != OPEN}

    def _fork(self, name: LogName) -> int:
        return self.ledger.logs[name].frozen if name in self.ledger.logs else OPEN

    def _stretches(self, answer: Sequence[Message]) -> set[tuple[bytes, int, int]]:
        """Author, epoch and first seq of the single paths that came."""
        found = set()
        for message in answer:
            if isinstance(message, Proof) and message.kind == PATH:
                with suppress(Malformed):
                    first = read_path(self.ticket.network_id, message.payload).links[0]
                    found.add((*first.log, first.seq))
        return found

    def _owed(self, listed: set[bytes], named: Named) -> list[Message]:
        """Proofs of forks that the other's lists do not show, or that it offered entries above."""
        owed: list[Message] = []
        for name, fork in self._forks().items():
            head = named.get(name)
            unknown = name[0] in listed and (head is None or fork < head.frozen)
            proof = self.ledger.fork_proof(name)
            if (unknown or name in self.offered) and (name, fork) not in self.sent and len(owed) < PROOFS_MAX:
                self.sent.add((name, fork))
                owed += [proof] if proof is not None else []
        self.offered.clear()
        return owed

    def _served(self, wanted: Sequence[Range]) -> list[Message]:
        """What was wanted: a page with the proofs of its frozen logs, and headers alone."""
        page = self.ledger.page(each for each in wanted if not each.is_headers_alone)
        logs = sorted({(header[1:33], int.from_bytes(header[33:41], "big")) for header, _ in page.frames})
        proofs: list[Proof | None] = [self.ledger.fork_proof(name) for name in logs]
        proofs += [self.ledger.path(each) for each in wanted if each.is_headers_alone][:PROOFS_MAX]
        return [*(proof for proof in proofs if proof is not None), *([page] if page.frames else [])]

    def _wanted(self, named: Named, searches: Mapping[LogName, Search]) -> tuple[Range, ...]:
        """Headers of the logs that are being compared, entries of all others."""
        ranges = [Range(*name, search.first, NOTHING) for name, search in sorted(searches.items())]
        for name, head in sorted(named.items()):
            if name not in searches:
                ranges += self.ledger.lacks(name[0], [head])
        return tuple(ranges[:4096])

    def _close(self, number: int, named: Named, outcome: Outcome) -> None:
        """Step 4: the round is good when both sides hold all that the other's Heads named."""
        holds_all = all(self.ledger.holds(name[0], head) for name, head in named.items())
        flags = LAST | (HOLDS_ALL if holds_all else 0)
        answer = _heads_of(self.ask([Heads(number, flags, self.ledger.roots())]), number)
        outcome.exchanges += 1
        outcome.good = holds_all and bool(answer.flags & HOLDS_ALL)


def _challenge(messages: Sequence[Message]) -> bytes | None:
    """The challenge, when the answer is a Hello that asks for one and nothing else."""
    if len(messages) == 1 and isinstance(messages[0], Hello) and messages[0].challenge != ZERO32:
        return messages[0].challenge
    return None


def _lies_between(first: bytes, last: bytes, author: bytes) -> bool:
    """On the ring of authors, where the lowest follows the highest."""
    return first <= author <= last if first <= last else not last < author < first


def _heads_of(messages: Sequence[Message], number: int) -> Heads:
    for message in messages:
        if isinstance(message, Heads) and message.round == number:
            return message
    raise Refused("no Heads of this round in the answer")


def statement_is_signed(ticket: Ticket, signer: bytes, state: Mapping[str, Any]) -> bool:
    """Whether the node with this key has signed the roots and the time in its answer to `GET state` (2)."""
    body = bytes.fromhex(state["merkle_root"]) + bytes.fromhex(state["log_root"]) + u64(state["timestamp_ms"])
    return is_signed(signer, tag("state") + ticket.network_id + body, bytes.fromhex(state["signature"]))
