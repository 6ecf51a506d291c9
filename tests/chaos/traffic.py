"""What goes on around nodes in a scenario: writers with a journal, and watchers that ask for status.

Separate from the scenarios because each needs both all the time, in threads of their own, and what
they noted is judged only afterwards.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Final

from lattice.client import calls
from lattice.core.errors import LatticeError
from lattice.core.identity import public_key_of
from lattice.core.rows import LogKey
from lattice.schemas import PeerStatus, Status, Written
from lattice.testing.cluster import ClusterError, LocalNode
from lattice.testing.invariants import Acknowledged

_SHARED_KEYS: Final = 40
_LOOK_STEP_S: Final = 0.25
# A beat of the same moment is shown with slightly other ages by two looks at it.
_SAME_BEAT_S: Final = 0.5


@dataclass(slots=True)
class Writer:
    """Writes to one node from outside, so many entries a second, and keeps what was acknowledged."""

    node: LocalNode
    rate: float
    journal: list[Acknowledged] = field(default_factory=list)
    trouble: list[str] = field(default_factory=list)
    _ended: threading.Event = field(default_factory=threading.Event)
    _open: threading.Event = field(default_factory=threading.Event)
    _idle: threading.Event = field(default_factory=threading.Event)

    def pause(self) -> None:
        """Returns once nothing is on its way."""
        self._idle.clear()
        self._open.clear()
        if not self._idle.wait(30):
            raise ClusterError(f"the writer of {self.node.name} does not pause")

    def resume(self) -> None:
        self._open.set()

    def rate_since(self, began_at: float) -> float:
        """Acknowledged entries a second from then, a monotonic time, until now."""
        return sum(line.at >= began_at for line in self.journal) / (time.monotonic() - began_at)

    def end(self) -> None:
        self._ended.set()
        self._open.set()

    def run(self) -> None:
        number, due = 0, time.monotonic()
        with self.node.client() as client:
            while not self._ended.is_set():
                if not self._open.is_set():
                    self._idle.set()
                    self._open.wait()
                    due = time.monotonic()
                    continue
                # Every other key is one that the other writers put as well.
                key = f"shared/{number % _SHARED_KEYS}" if number % 2 else f"{self.node.name}/{number}"
                try:
                    written = client.send(calls.put(key, f'{{"n": {number}}}'.encode()))
                    self.journal.append(acknowledged(self.node, written))
                except LatticeError as error:
                    self.trouble.append(f"{self.node.name}: write {number}: {error}")
                number += 1
                due += 1 / self.rate
                self._ended.wait(max(0.0, due - time.monotonic()))


def acknowledged(node: LocalNode, written: Written) -> Acknowledged:
    log = LogKey(public_key_of(written.author), int(written.epoch, 16))
    return Acknowledged(node.name, log, written.seq, bytes.fromhex(written.id), time.monotonic())


@dataclass(frozen=True, slots=True)
class Look:
    """A status and the monotonic moment at which it was asked for."""

    at: float
    status: Status

    @property
    def mode(self) -> str:
        return self.status.sync_mode

    @property
    def silent_s(self) -> float:
        return self.status.seconds_since_peer or 0.0

    def peer(self, name: str) -> PeerStatus:
        return next(peer for peer in self.status.peers if peer.name == name)


@dataclass(slots=True)
class Watcher:
    """Asks one node for its status all the time and keeps every answer."""

    node: LocalNode
    looks: list[Look] = field(default_factory=list)
    trouble: list[str] = field(default_factory=list)
    _ended: threading.Event = field(default_factory=threading.Event)

    def end(self) -> None:
        self._ended.set()

    def run(self) -> None:
        with self.node.client() as client:
            while not self._ended.wait(_LOOK_STEP_S):
                at = time.monotonic()
                try:
                    self.looks.append(Look(at, client.send(calls.status())))
                except LatticeError as error:
                    self.trouble.append(f"{self.node.name}: {error}")

    def since(self, began_at: float) -> list[Look]:
        return [look for look in self.looks if look.at >= began_at]

    def wait(self, what: str, is_true: Callable[[Look], bool], *, within_s: float) -> Look:
        """The first answer, from now on, of which it is true. Raises ClusterError."""
        began, seen = time.monotonic(), len(self.looks)
        while time.monotonic() - began < within_s + 1:
            for look in self.looks[seen:]:
                if look.at - began <= within_s and is_true(look):
                    return look
            seen = max(seen, len(self.looks) - 1)
            self._ended.wait(_LOOK_STEP_S / 2)
        last = self.looks[-1].status if self.looks else None
        raise ClusterError(f"{self.node.name}: after {within_s:g} s still not so: {what}; {last}")

    def modes(self, began_at: float) -> list[str]:
        """The headlines since then, one for each change."""
        found: list[str] = []
        for look in self.since(began_at):
            if not found or found[-1] != look.mode:
                found.append(look.mode)
        return found

    def beats(self, peer: str, began_at: float) -> list[float]:
        """The moments, since then, at which beats of that peer were heard, by its ages in status."""
        found: list[float] = []
        for look in self.since(began_at):
            heard_s = look.peer(peer).last_heard_s
            at = None if heard_s is None else look.at - heard_s
            if at is not None and at >= began_at and (not found or at - found[-1] > _SAME_BEAT_S):
                found.append(at)
        return found


def streak_s(beats: Sequence[float], gap_s: float, until: float) -> float:
    """For how long, up to `until`, beats came without a gap."""
    first = until
    for beat in sorted((beat for beat in beats if beat <= until), reverse=True):
        if first - beat > gap_s:
            break
        first = beat
    return until - first


@contextmanager
def going_on(parts: Sequence[Writer | Watcher]) -> Iterator[None]:
    """All of them in threads of their own, ended together whatever happens inside."""
    with ExitStack() as stack:
        for part in parts:
            thread = threading.Thread(target=part.run)
            thread.start()
            stack.callback(thread.join)
            stack.callback(part.end)
        yield


def put_mark(node: LocalNode, key: str) -> Acknowledged:
    """One entry of its own, to be looked for elsewhere."""
    return acknowledged(node, node.send(calls.put(key, b"1")))
