"""Anti-entropy: runs sync rounds with peers over either lung, and keeps HTTP polls going.

Separate from the engine, which decides what a round says, and from the transports, which carry it:
here is only when a round runs, how long it may take, and what the monitor is told of it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

import trio

from ..core.engine import CloseRound, OpenRound, RoundAnswered, RoundEnded, RoundStep
from ..core.errors import LatticeError
from ..core.failover_events import Lung, PollEnded, ProbeEnded, RoundGood
from ..core.identity import public_key_of
from ..core.limits import EXCHANGE_TIMEOUT_S
from ..core.messages import Beat, Entries, Hello, Message
from ..core.reconcile import RoundResult
from ..core.tree_proofs import asks_for_tree
from ..transport.port import HttpLung, TransportError
from .courier import Answered, Carry, Courier
from .driver import Driver
from .heartbeat import Heartbeat
from .registry import Peer, Registry

# An HTTP poll is repeated by the monitor every 10 s; a session outlives one missed order.
_SESSION_S: Final = 25.0
_PARK_S: Final = 9.0
# Own commits interrupt a parked long-poll at most so often.
_PUSH_GAP_S: Final = 0.15
# A node that answers at once and holds nothing back is not asked at once again: after a bad round, and
# after some good ones in a row that moved nothing (now and then the rounds of two nodes cross).
_BAD_ROUND_GAP_S: Final = 1.0
_IDLE_ROUNDS_MAX: Final = 3
_HELLO_TIMEOUT_S: Final = 8.0
# Nodes that start together come up one after the other: who finds nobody listening in his first seconds
# asks again soon, and not a whole poll interval later.
_STARTING_S: Final = 8.0
_STARTING_GAP_S: Final = 0.5


class RoundFailed(Exception):
    """A round did not complete; `reason` is a short word for status and logs."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(slots=True)
class _Session:
    """A running poll of one peer: `due` is set by each order of the monitor."""

    until: float
    scope: trio.CancelScope
    due: bool = True
    idle: int = 0  # rounds in a row that were answered at once and moved nothing
    wake: trio.Event = field(default_factory=trio.Event)


class AntiEntropy:
    """Rounds over links and over HTTP. `hello()` makes our Hello; `learned` takes a peer's."""

    def __init__(
        self,
        driver: Driver,
        courier: Courier,
        http: HttpLung | None,
        registry: Registry,
        *,
        hello: Callable[[], Hello],
        learned: Callable[[Answered, Peer | None, str | None], str | None],
        answered: Callable[[Answered], None],
        ended: Callable[[str, Lung, RoundResult, int], None],
    ) -> None:
        """`learned(answer, asked, url)` notes who answered a Hello and returns the peer id, None
        for ourselves. `answered` is shown every answer in a round. `ended(peer_id, lung, result,
        commit)` is told of every completed round."""
        self._driver = driver
        self._courier = courier
        self._http = http
        self._registry = registry
        self._hello = hello
        self._learned = learned
        self._answered = answered
        self._ended = ended
        self._sessions: dict[str, _Session] = {}
        self._started_at: float | None = None  # when the first poll was ordered
        self.heartbeat: Heartbeat
        # False while the disk reserve is touched: rounds then give, and take nothing.
        self.takes_entries: Callable[[], bool] = lambda: True
        self.may_descend: Callable[[str], bool] = lambda peer_id: True
        self.failed: Callable[[str, Lung, str], None] = lambda *given: None
        self.sift: Callable[[str, Lung, tuple[Message, ...]], tuple[Message, ...]] = lambda *given: given[2]
        self.counters: dict[str, int] = {}

    # Rounds.

    async def run_round(
        self, peer_id: str, lung: Lung, carry: Carry, *, padded: bool, wait_s: float = 0.0
    ) -> RoundResult:
        """One sync round. Raises RoundFailed. Each exchange has EXCHANGE_TIMEOUT_S, and the first
        `wait_s` more, during which the peer may hold its answer back."""
        public_key = public_key_of(peer_id)
        token = 0
        commit = self._driver.commits

        def opening(number: int) -> OpenRound:
            nonlocal token
            token = number
            descends = self.may_descend(peer_id)
            return OpenRound(number, public_key, lung, padded, int(wait_s * 1000), descends)

        try:
            step = await self._driver.ask(opening)
            patience = EXCHANGE_TIMEOUT_S + wait_s
            while isinstance(step, RoundStep):
                try:
                    messages = await self._exchange(carry, step.messages, public_key, patience)
                except RoundFailed as error:
                    if not asks_for_tree(step.messages):
                        raise
                    # The round itself was over: what it has shown is not lost with this answer.
                    self.failed(peer_id, lung, error.reason)
                    messages = ()
                patience = EXCHANGE_TIMEOUT_S
                if not self.takes_entries():
                    messages = tuple(message for message in messages if not isinstance(message, Entries))
                messages = self.sift(peer_id, lung, messages)
                answered = RoundAnswered(token, public_key, lung, messages)
                step = await self._driver.ask_again(answered, token)
        except LatticeError as error:
            raise RoundFailed(error.code) from error
        except BaseException:
            self._driver.post_nowait(CloseRound(token))
            raise
        if not isinstance(step, RoundEnded):
            raise AssertionError(f"a round was answered by {step!r}")
        self._count(f"rounds_{lung}_{step.result.reason}")
        if step.result.descent is not None:
            self._count(f"descents_{step.result.descent.outcome}")
        self._ended(peer_id, lung, step.result, commit)
        if step.result.good:
            now = trio.current_time()
            self.heartbeat.feed(RoundGood(peer_id, lung, now, step.result.padded))
        return step.result

    async def _exchange(
        self, carry: Carry, messages: tuple[Message, ...], public_key: bytes, patience: float
    ) -> tuple[Message, ...]:
        try:
            with trio.fail_after(patience):
                answer = await self._courier.ask(carry, messages, to=public_key)
        except trio.TooSlowError as error:
            raise RoundFailed("timeout") from error
        except TransportError as error:
            raise RoundFailed(error.reason) from error
        self._answered(answer)
        return tuple(message for message in answer.messages if not isinstance(message, Beat))

    # The HTTP lung.

    def carry(self, url: str, timeout_s: float) -> Carry:
        """An exchange with the node at `url`, for the courier."""
        http = self._http
        if http is None:
            raise AssertionError("there is no HTTP lung")

        async def carry(request: bytes) -> bytes:
            return await http.exchange(url, request, timeout_s=timeout_s)

        return carry

    async def greet(self, peer: Peer) -> str:
        """Hello over HTTP: learn who is at the peer's URL. Raises RoundFailed; `ourselves` if the
        URL leads back here."""
        url = peer.url()
        if url is None or self._http is None:
            raise RoundFailed("no_url")
        to = b"" if peer.is_placeholder else public_key_of(peer.key)
        try:
            with trio.fail_after(_HELLO_TIMEOUT_S):
                carry = self.carry(url, _HELLO_TIMEOUT_S)
                hello = [self._hello()]
                answer = await (
                    self._courier.ask(carry, hello, to=to) if to else self._courier.ask(carry, hello)
                )
        except trio.TooSlowError as error:
            peer.url_failed()
            raise RoundFailed("timeout") from error
        except TransportError as error:
            peer.url_failed()
            raise RoundFailed(error.reason) from error
        if peer.is_placeholder and self._registry.find_url(url) is None:
            raise RoundFailed("forgotten")  # while the answer was on its way
        found = self._learned(answer, peer, url)
        if found is None:
            raise RoundFailed("ourselves")
        return found

    def poll(self, key: str, nursery: trio.Nursery) -> None:
        """The monitor's order to poll this peer now: starts its session, or makes it run a round."""
        if self._started_at is None:
            self._started_at = trio.current_time()
        session = self._sessions.get(key)
        if session is None:
            session = _Session(0.0, trio.CancelScope())
            self._sessions[key] = session
            nursery.start_soon(self._poll_session, key, session)
        session.until = trio.current_time() + _SESSION_S
        session.due = True
        session.wake.set()

    def stop_polls(self, keys: tuple[str, ...]) -> None:
        for key in keys:
            # Out of the table at once: an order that comes before the task has ended begins anew.
            session = self._sessions.pop(key, None)
            if session is not None:
                session.scope.cancel()

    async def _poll_session(self, key: str, session: _Session) -> None:
        """Round after round with one peer: the first at once, the others parked at its node until
        something changes there, here, or the monitor asks again."""
        first = True
        try:
            with session.scope:
                while trio.current_time() < session.until:
                    due, session.due = session.due, False
                    session.wake = trio.Event()
                    began = trio.current_time()
                    error, result = await self._poll_once(key, session, parked=not (due or first))
                    while error == "refused" and self._is_starting():
                        await trio.sleep(_STARTING_GAP_S)
                        error, result = await self._poll_once(key, session, parked=False)
                    key = self._renamed(key, session)
                    first = False
                    good, fruitless = (
                        result is not None and result.good,
                        result is not None and result.fruitless,
                    )
                    if due or error is not None or fruitless:
                        now = trio.current_time()
                        self.heartbeat.feed(PollEnded(key, now, error is None, good, error, fruitless))
                    if error is not None or fruitless:
                        return  # the monitor says when it is this peer's turn again
                    await trio.sleep(self._gap_s(session, result, trio.current_time() - began))
        finally:
            if self._sessions.get(key) is session:
                del self._sessions[key]

    def _is_starting(self) -> bool:
        return self._started_at is not None and trio.current_time() < self._started_at + _STARTING_S

    @staticmethod
    def _gap_s(session: _Session, result: RoundResult | None, took_s: float) -> float:
        """How long to leave the peer alone before the next round of its session."""
        if result is None:
            return _PUSH_GAP_S
        held_back = took_s >= _BAD_ROUND_GAP_S
        session.idle = 0 if held_back or result.gained or result.given else session.idle + 1
        return _PUSH_GAP_S if result.good and session.idle < _IDLE_ROUNDS_MAX else _BAD_ROUND_GAP_S

    def _renamed(self, key: str, session: _Session) -> str:
        """The session's key once the identity behind a URL has become known."""
        if self._sessions.get(key) is session:
            return key
        return next((name for name, held in self._sessions.items() if held is session), key)

    def rename(self, placeholder: str, peer_id: str) -> None:
        """The node behind a placeholder is this peer: its session goes on under the new key."""
        session = self._sessions.pop(placeholder, None)
        if session is not None:
            if peer_id in self._sessions:
                session.scope.cancel()
            else:
                self._sessions[peer_id] = session

    async def _poll_once(
        self, key: str, session: _Session, *, parked: bool
    ) -> tuple[str | None, RoundResult | None]:
        """One round over HTTP: the error word (None: answered) and the result, None where there was none
        or where it was cut short by something to push."""
        peer = self._registry.get(key)
        if peer is None:
            return "forgotten", None
        try:
            if peer.is_placeholder:
                peer_id = await self.greet(peer)
                peer = self._registry.get(peer_id) or peer
            url = peer.url()
            if url is None:
                return "no_url", None
            if parked:
                result = await self._parked_round(peer, url, session)
            else:
                result = await self._http_round(peer, url, 0.0)
            if result is not None and result.fruitless:
                self._count("polls_failed_fruitless")
            return None, result
        except RoundFailed as error:
            peer.url_failed()
            self.failed(key, "http", error.reason)
            self._count(f"polls_failed_{error.reason}")
            return error.reason, None

    async def _http_round(self, peer: Peer, url: str, wait_s: float) -> RoundResult:
        carry = self.carry(url, EXCHANGE_TIMEOUT_S + wait_s)
        return await self.run_round(peer.key, "http", carry, padded=False, wait_s=wait_s)

    async def _parked_round(self, peer: Peer, url: str, session: _Session) -> RoundResult | None:
        """A round that the peer holds until something changes there. A commit here, or an order of
        the monitor, ends the wait: then None, and the next round goes out at once."""
        result: RoundResult | None = None
        moving = trio.Event()
        failed: RoundFailed | None = None

        async with trio.open_nursery() as nursery:

            async def watch(wait: Callable[[], Awaitable[None]]) -> None:
                await wait()
                # Only the wait is cut short, never a round that has begun to move.
                if not moving.is_set():
                    nursery.cancel_scope.cancel()

            nursery.start_soon(watch, self._driver.wait_changed)
            nursery.start_soon(watch, session.wake.wait)
            carry = self.carry(url, EXCHANGE_TIMEOUT_S + _PARK_S)

            async def carry_and_note(request: bytes) -> bytes:
                answer = await carry(request)
                moving.set()
                return answer

            try:
                result = await self.run_round(peer.key, "http", carry_and_note, padded=False, wait_s=_PARK_S)
            except RoundFailed as error:
                failed = error
            nursery.cancel_scope.cancel()
        if failed is not None:
            raise failed
        return result

    async def probe_http(self, key: str) -> None:
        """A probe of the HTTP lung: a Hello, nothing else."""
        peer = self._registry.get(key)
        error: str | None = "no_url"
        if peer is not None and self._http is not None:
            try:
                key = await self.greet(peer)
                error = None
            except RoundFailed as failed:
                error = failed.reason
                self.failed(key, "http", error)
                self._count(f"probes_failed_{error}")
        self.heartbeat.feed(ProbeEnded(key, "http", trio.current_time(), error is None, error))

    def _count(self, name: str) -> None:
        self.counters[name] = self.counters.get(name, 0) + 1
