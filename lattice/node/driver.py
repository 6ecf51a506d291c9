"""The driver: feeds the engine, makes each commit durable, and only then lets outputs out.

Separate because this loop is the promise "persist before everything": whatever leaves the process
passes through `_release`, which runs after the commit of everything handled before it. Group
commit falls out by itself: what arrives during a commit is handled together in the next.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import trio

from ..core.engine import (
    Acknowledged,
    Alarm,
    Answer,
    Append,
    Applied,
    CloseRound,
    Engine,
    EngineInput,
    Frozen,
    Gossiped,
    Judged,
    Output,
    Publish,
    PublishProof,
    Refused,
    Remembered,
    RoundAnswered,
    RoundByPeer,
    RoundEnded,
    RoundStep,
    Served,
    Wasted,
)
from ..core.errors import LatticeError
from ..core.limits import DRIVER_BATCH_BYTES, DRIVER_QUEUE
from ..core.messages import Entries
from ..core.rows import Batch
from ..storage.port import Store

Reply = Acknowledged | Remembered | Judged | Answer | RoundStep | RoundEnded
Announcement = Publish | PublishProof | Applied | Frozen | RoundByPeer | Wasted | Alarm

_RETRY_FULL_S: Final = 10.0
_BATCH_EVENTS_MAX: Final = DRIVER_QUEUE


@dataclass(slots=True)
class _Waiter:
    event: trio.Event
    reply: Reply | LatticeError | None = None


class Driver:
    """Owns the engine and the store. One `run` task; everybody else calls `ask` or `post_nowait`."""

    def __init__(
        self,
        make_engine: Callable[[], Engine],
        store: Store,
        *,
        wall_ms: Callable[[], int],
        entropy: Callable[[int], bytes],
        announce: Callable[[Announcement], None],
    ) -> None:
        self.engine = make_engine()
        self._make_engine = make_engine
        self._store = store
        self._wall_ms = wall_ms
        self._entropy = entropy
        self._announce = announce
        self._send, self._receive = trio.open_memory_channel[EngineInput](DRIVER_QUEUE)
        self._waiters: dict[int, _Waiter] = {}
        self._token = int.from_bytes(entropy(4), "big") << 24
        self._changed = trio.Event()
        self.failure: LatticeError | None = None
        self._retry_at = math.inf
        self.commits = 0
        self.committed_at: float | None = None
        self.dropped = 0

    @property
    def commit_age_s(self) -> float:
        """Since the last commit of entries; infinite before the first."""
        return math.inf if self.committed_at is None else trio.current_time() - self.committed_at

    async def ask(self, make_event: Callable[[int], EngineInput]) -> Reply:
        """Hand over an input (built with the token it is given) and wait for its reply, which is
        released only after the commit. Raises what the engine refused, or why the store failed."""
        self._token += 1
        return await self.ask_again(make_event(self._token), self._token)

    async def ask_again(self, event: EngineInput, token: int) -> Reply:
        """Like `ask`, with a token in use already: the further steps of a round."""
        self._refuse_when_failed()
        waiter = self._waiters[token] = _Waiter(trio.Event())
        try:
            await self._send.send(event)
            await waiter.event.wait()
        finally:
            if self._waiters.get(token) is waiter:
                del self._waiters[token]
        if isinstance(waiter.reply, LatticeError):
            raise waiter.reply
        if waiter.reply is None:
            raise AssertionError("a waiter was woken without a reply")
        return waiter.reply

    def post_nowait(self, event: CloseRound) -> bool:
        """Hand over an input that nobody waits for. False, and counted, when the queue is full or
        the store has failed."""
        if self.failure is not None:
            return False
        try:
            self._send.send_nowait(event)
        except trio.WouldBlock:
            self.dropped += 1
            return False
        return True

    async def wait_changed(self) -> None:
        """Wait for the next commit that changes the heads: entries came, or a fork froze a log."""
        await self._changed.wait()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Handle, commit, release, for ever."""
        task_status.started()
        while True:
            with trio.move_on_at(self._retry_at):
                first = await self._receive.receive()
                if self.failure is not None:
                    self._fail_event(first, self.failure)
                    continue
                await self._cycle(first)
                continue
            self._retry_at = math.inf
            self.engine = self._make_engine()
            self.failure = None

    async def _cycle(self, first: EngineInput) -> None:
        event: EngineInput | None = first
        size = count = 0
        while event is not None:
            self.engine.handle(event, now_ms=self._wall_ms(), entropy=self._entropy(8))
            size += _weight(event)
            count += 1
            event = None
            if size < DRIVER_BATCH_BYTES and count < _BATCH_EVENTS_MAX:
                try:
                    event = self._receive.receive_nowait()
                except trio.WouldBlock:
                    break
        batch = self.engine.settle()
        if batch is not None:
            try:
                await self._commit(batch)
            except LatticeError as error:
                self._fail(error)
                return
        self._release(self.engine.committed())
        if batch is not None and batch.entries:
            self.commits += 1
            self.committed_at = trio.current_time()
        if batch is not None and batch.logs:
            self._changed.set()
            self._changed = trio.Event()

    async def _commit(self, batch: Batch) -> None:
        with trio.CancelScope(shield=True):
            if self._store.in_line:
                self._store.commit(batch)
            else:
                await trio.to_thread.run_sync(self._store.commit, batch)

    def _release(self, outputs: list[Output]) -> None:
        for output in outputs:
            match output:
                case Publish() | PublishProof() | Applied() | Frozen() | RoundByPeer() | Wasted() | Alarm():
                    self._announce(output)
                case Refused():
                    self._wake(output.token, output.error)
                case _:
                    self._wake(output.token, output)

    def _wake(self, token: int, reply: Reply | LatticeError) -> None:
        waiter = self._waiters.pop(token, None)
        if waiter is not None:
            waiter.reply = reply
            waiter.event.set()

    def _fail(self, error: LatticeError) -> None:
        """Nothing of the failed commit leaves. A full disk is tried again from what the store
        holds; after any other failure only a restart, which verifies, can tell what is there."""
        self.failure = error
        for token in self.engine.abandon():
            self._wake(token, error)
        if error.code == "no_space":
            self._retry_at = trio.current_time() + _RETRY_FULL_S
        self._announce(Alarm(error.code, b"", error.message))

    def _fail_event(self, event: EngineInput, error: LatticeError) -> None:
        match event:
            case CloseRound():
                pass
            case _:
                self._wake(event.token, error)

    def _refuse_when_failed(self) -> None:
        if self.failure is not None:
            raise self.failure


def _weight(event: EngineInput) -> int:
    match event:
        case Append():
            return sum(len(draft.key) + len(draft.value) for draft in event.drafts)
        case Served() | RoundAnswered():
            return sum(message.size for message in event.messages if isinstance(message, Entries))
        case Gossiped():
            return event.entries.size
        case _:
            return 0
