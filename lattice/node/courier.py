"""The courier: sealed, fresh, challenged exchanges with one peer at a time, over either lung.

Separate because it is the only place that turns messages into envelopes and back, so that no
exchange can skip a check: what the node gets from here is from a member, for us, and not a replay.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

import trio

from ..core.envelope import NOBODY, NONCE_BYTES, Freshness, Kind, Opened, Sealer
from ..core.errors import LatticeError, MalformedError
from ..core.messages import ZERO_NONCE, Hello, Message, Unknown, decode_messages, encode_messages
from ..transport.port import TransportError
from .turns import too_many

Carry = Callable[[bytes], Awaitable[bytes]]
_TRIES: Final = 3
_WAITING: Final = "too_many_waiting"


@dataclass(frozen=True, slots=True)
class Answered:
    """A peer's answer: who gave it (public key, boot) and what it says."""

    sender: bytes
    boot: int
    messages: tuple[Message, ...]
    twin: bool


@dataclass(frozen=True, slots=True)
class Received:
    """A peer's request that has passed every check; `reply` must answer it."""

    opened: Opened
    messages: tuple[Message, ...]


class Courier:
    """Seals requests, checks answers, and does the same for requests of others."""

    def __init__(
        self,
        sealer: Sealer,
        freshness: Freshness,
        *,
        hello: Callable[[bytes, bytes], Hello],
        entropy: Callable[[int], bytes],
        count: Callable[[str], None],
        is_full: Callable[[bytes], bool] = lambda sender: False,
    ) -> None:
        """`hello(challenge, answering)` makes our Hello; `count(reason)` counts each refusal;
        `is_full(sender)` says that so many of a sender's requests wait that no more is looked at."""
        self._sealer = sealer
        self._freshness = freshness
        self._hello = hello
        self._entropy = entropy
        self._count = count
        self._is_full = is_full

    async def ask(self, carry: Carry, messages: Sequence[Message], *, to: bytes = NOBODY) -> Answered:
        """Send a request with `carry` and return its verified answer.

        `to` is the peer's public key; NOBODY is allowed for a Hello alone, when only an address is
        known. A peer that does not know our boot yet asks us to sign its challenge first; that is
        done here, and the request repeated. Raises TransportError.
        """
        request: Sequence[Message] = messages
        for _ in range(_TRIES):
            sealed = self._sealer.seal(
                Kind.REQUEST, encode_messages(request), self._entropy(NONCE_BYTES), to=to
            )
            answered = self._check_answer(await carry(sealed), sealed, to)
            challenge = _challenge_in(answered.messages)
            if challenge is None or _answers(request, challenge):
                return answered
            # Ask for nothing else by URL alone: the second try names its addressee.
            to = answered.sender
            own = [message for message in messages if not isinstance(message, Hello)]
            request = [self._hello(ZERO_NONCE, challenge), *own]
        raise TransportError("challenge_loop", "the peer keeps asking for another challenge")

    def _check_answer(self, raw: bytes, sealed: bytes, to: bytes) -> Answered:
        try:
            opened = self._sealer.open(raw)
            messages = tuple(self._noted(decode_messages(opened.body)))
        except MalformedError as error:
            self._count("answer_malformed")
            raise TransportError("malformed", error.message) from error
        except LatticeError as error:
            self._count(f"answer_{error.message}")
            raise TransportError("envelope", error.message) from error
        if (
            opened.kind is not Kind.ANSWER
            or opened.reply_to != sha256(sealed).digest()
            or opened.to != self._sealer.key.public_key
            or (to != NOBODY and opened.sender != to)
        ):
            self._count("answer_not_to_this_request")
            raise TransportError("not_an_answer", "the answer is not one to this request")
        # The request held a fresh nonce, so this boot has just shown that it lives.
        twin = self._freshness.proven(opened.sender, opened.boot, opened.counter)
        return Answered(opened.sender, opened.boot, messages, twin)

    def receive(self, data: bytes, *, expected: bytes | None = None) -> Received | bytes:
        """Check a request. Returns it, or the sealed answer (a challenge) that must go back instead.

        `expected` is the public key that the secure channel proved, where there is one. Raises
        LatticeError `envelope` or `malformed`; the sender is told nothing more than that.
        """
        opened = self._open_request(data, expected)
        messages = tuple(self._decode(opened))
        if opened.to == NOBODY and not all(isinstance(message, Hello) for message in messages):
            self._refuse("no_addressee")
        now = trio.current_time()
        sender, boot = opened.sender, opened.boot
        if not self._freshness.is_known(sender, boot) or self._freshness.is_superseded(sender, boot):
            answering = next(
                (message.answering for message in messages if isinstance(message, Hello)), ZERO_NONCE
            )
            if answering == ZERO_NONCE or not self._freshness.answer(
                sender, boot, answering, now, opened.counter
            ):
                challenge = self._freshness.challenge(sender, boot, self._entropy(32), now)
                return self._reply(opened, [self._hello(challenge, ZERO_NONCE)])
        if not self._freshness.take(sender, boot, opened.counter):
            self._refuse("replayed")
        return Received(opened, messages)

    def _open_request(self, data: bytes, expected: bytes | None) -> Opened:
        try:
            opened = self._sealer.open(data, self._is_refused)
        except LatticeError as error:
            self._count(f"request_{error.message}")
            if error.message == _WAITING:
                raise too_many() from error
            raise
        if opened.kind is not Kind.REQUEST:
            self._refuse("not_a_request")
        if expected is not None and opened.sender != expected:
            self._refuse("not_the_channels_peer")
        return opened

    def _is_refused(self, sender: bytes, boot: int, counter: int) -> str | None:
        """Why an envelope need not be verified; the claim of its sender is not proven, and nothing but
        this envelope is judged by it."""
        if self._freshness.is_used(sender, boot, counter):
            return "replayed"
        return _WAITING if self._is_full(sender) else None

    def _decode(self, opened: Opened) -> list[Message]:
        try:
            return self._noted(decode_messages(opened.body))
        except MalformedError:
            self._count("request_malformed")
            raise

    def _noted(self, messages: list[Message]) -> list[Message]:
        """The messages; those of a type that only a newer program knows are counted by their number."""
        for message in messages:
            if isinstance(message, Unknown):
                self._count(f"unknown_type_{message.type}")
        return messages

    def _refuse(self, reason: str) -> None:
        self._count(f"request_{reason}")
        raise LatticeError("envelope", reason)

    def reply(self, received: Received, messages: Sequence[Message]) -> bytes:
        """The sealed answer to a request."""
        return self._reply(received.opened, messages)

    def _reply(self, opened: Opened, messages: Sequence[Message]) -> bytes:
        return self._sealer.seal(
            Kind.ANSWER,
            encode_messages(messages),
            self._entropy(NONCE_BYTES),
            to=opened.sender,
            reply_to=opened.digest,
        )

    def seal_gossip(self, messages: Sequence[Message]) -> bytes:
        """A one-way envelope."""
        return self._sealer.seal(Kind.ONE_WAY, encode_messages(messages), self._entropy(NONCE_BYTES))

    def open_gossip(self, data: bytes) -> Received:
        """Check a one-way envelope. Raises LatticeError, counted."""
        try:
            opened = self._sealer.open(data)
        except LatticeError as error:
            self._count(f"gossip_{error.message}")
            raise
        if opened.kind is not Kind.ONE_WAY:
            self._count("gossip_not_one_way")
            raise LatticeError("envelope", "not_one_way")
        if opened.to != NOBODY:
            # It would pass here and be refused by whoever we relay it to, who would blame us.
            self._count("gossip_addressed")
            raise LatticeError("envelope", "addressed")
        return Received(opened, tuple(self._decode(opened)))


def _challenge_in(messages: Sequence[Message]) -> bytes | None:
    for message in messages:
        if isinstance(message, Hello) and message.challenge != ZERO_NONCE:
            return message.challenge
    return None


def _answers(messages: Sequence[Message], challenge: bytes) -> bool:
    return any(isinstance(message, Hello) and message.answering == challenge for message in messages)
