"""Links: the persistent streams of the P2P lung, from the first Hello through beats to their end.

Separate because a link carries three things with different rules (the greeting that admits a peer,
the challenged beats that prove it lives, the rounds that the monitor orders) and a second process
under one key must be seen and served, not fought.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import trio

from ..core.failover_events import BeatHeard, DirectSet, Policy, ProbeEnded
from ..core.identity import public_key_of
from ..core.limits import HEARD_MAX, HELLO_TIMEOUT_S
from ..core.membership import Acceptance, Verdict, choose_direct
from ..core.messages import Beat, BeatFlag, Hello
from ..transport.port import P2PLung, PeerLink, TransportError
from .anti_entropy import AntiEntropy, RoundFailed
from .courier import Answered, Carry, Courier
from .heartbeat import Heartbeat
from .ports import Log
from .restraint import Restraint

_CHOOSE_EVERY_S: Final = 60.0
# The first beats come quickly: a peer counts as heard once it has listed us in return.
_FIRST_BEAT_S: Final = 1.0
_PROBE_TIMEOUT_S: Final = 8.0


@dataclass(slots=True)
class Session:
    """A greeted link: which process of which peer it leads to, and when it last answered a beat."""

    link: PeerLink
    peer_id: str
    public_key: bytes
    boot: int
    answered_at: float | None = None
    listed: bool = False
    busy_until: float = 0.0
    round_running: bool = False
    padded_waits: bool = False  # a padded round was ordered while another ran
    wake: trio.Event = field(default_factory=trio.Event)


class Links:
    """All greeted links, by (peer id, boot)."""

    def __init__(
        self,
        lung: P2PLung,
        courier: Courier,
        anti_entropy: AntiEntropy,
        *,
        own_id: str,
        interval_s: float,
        log: Log,
        hello: Callable[[], Hello],
        beat: Callable[[bytes, BeatFlag], Beat],
        greeted: Callable[[Answered], None],
        beaten: Callable[[str, Beat], bool],
        restraint: Restraint,
    ) -> None:
        """`beat(to, flags)` makes a beat for a peer; `greeted` takes its Hello; `beaten(peer_id,
        beat)` takes its beat and says whether its heads differ from ours."""
        self._lung = lung
        self._courier = courier
        self._anti_entropy = anti_entropy
        self._own_id = own_id
        self._own_key = public_key_of(own_id)
        self._interval_s = interval_s
        self._log = log
        self._hello = hello
        self._beat = beat
        self._greeted = greeted
        self._beaten = beaten
        self._restraint = restraint
        self._sessions: dict[tuple[str, int], Session] = {}
        self._chosen: tuple[str, ...] = ()
        self._acceptance = Acceptance()
        self._choose_at = 0.0
        self.heartbeat: Heartbeat
        self.nursery: trio.Nursery

    def heard(self) -> tuple[bytes, ...]:
        """The public keys of peers whose answer to a beat came within two beats."""
        since = trio.current_time() - 2 * self._interval_s - 1
        keys = {
            session.public_key
            for session in self._sessions.values()
            if session.answered_at is not None and session.answered_at >= since
        }
        return tuple(sorted(keys))[:HEARD_MAX]

    @property
    def direct(self) -> tuple[str, ...]:
        """Peers with which beats are exchanged, whoever opened."""
        live = {peer_id for peer_id, _ in self._sessions}
        return tuple(sorted(live & {*self._chosen, *self._acceptance.accepted}))

    async def on_link(self, link: PeerLink) -> None:
        """A new stream: greet, admit, then beat while it lives."""
        if self._restraint.refuses(link.peer_id, "p2p", "links"):
            return
        public_key = public_key_of(link.peer_id)
        try:
            with trio.fail_after(HELLO_TIMEOUT_S):
                answer = await self._courier.ask(link.exchange, [self._hello()], to=public_key)
        except (TransportError, trio.TooSlowError) as error:
            self._log.debug("SYNC", "a peer was not greeted", peer=link.peer_id, error=str(error))
            if isinstance(error, TransportError):
                self._restraint.failed(link.peer_id, "p2p", error.reason)
            return
        self._greeted(answer)
        self._lung.admit(link.peer_id)
        session = Session(link, link.peer_id, public_key, answer.boot)
        key = (link.peer_id, answer.boot)
        older = self._sessions.get(key)
        self._sessions[key] = session
        if older is not None:
            await older.link.aclose()
        self._log.debug("SYNC", "link open", peer=link.peer_id, address=link.remote_address)
        try:
            self._choose(force=True)
            await self._beats(session)
        finally:
            if self._sessions.get(key) is session:
                del self._sessions[key]
                self._acceptance.release(link.peer_id, _boot_bytes(answer.boot))
                self._choose(force=True)

    def _choose(self, *, force: bool = False) -> None:
        """Choose our direct peers again, every minute and whenever a link comes or goes."""
        now = trio.current_time()
        if not force and now < self._choose_at:
            return
        self._choose_at = now + _CHOOSE_EVERY_S
        candidates = {s.peer_id for s in self._sessions.values() if s.busy_until <= now}
        self._chosen = choose_direct(self._own_id, candidates)
        self._acceptance.choose(self._chosen)
        self.heartbeat.feed(DirectSet(self.direct, now))
        for session in self._sessions.values():
            session.wake.set()

    async def _beats(self, session: Session) -> None:
        planned = trio.current_time()
        while not session.link.closed:
            self._choose()
            if session.peer_id in self.direct:
                await self._beat_once(session)
            step = self._interval_s if session.listed else min(_FIRST_BEAT_S, self._interval_s)
            planned = max(planned + step, trio.current_time())
            session.wake = trio.Event()
            with trio.move_on_at(planned):
                if session.peer_id in self.direct:
                    await trio.sleep_forever()
                await session.wake.wait()

    async def _beat_once(self, session: Session) -> None:
        """One challenged round trip. Without an answer nothing happens: silence is the monitor's
        to judge, and the connection's own health check ends a dead one."""
        try:
            with trio.fail_after(self._interval_s):
                beat = self._beat(session.public_key, BeatFlag(0))
                answer = await self._courier.ask(session.link.exchange, [beat], to=session.public_key)
        except trio.TooSlowError:
            return
        except TransportError as error:
            self._restraint.failed(session.peer_id, "p2p", error.reason)
            await session.link.aclose()
            return
        theirs = next((m for m in answer.messages if isinstance(m, Beat)), None)
        if theirs is None or answer.boot != session.boot:
            return
        now = trio.current_time()
        if BeatFlag.BUSY in theirs.flags:
            session.busy_until = now + _CHOOSE_EVERY_S
            self._choose(force=True)
            return
        session.answered_at = now
        session.listed = self._own_key in theirs.heard
        if session.listed:
            self.heartbeat.feed(BeatHeard(session.peer_id, now))
        if self._beaten(session.peer_id, theirs):
            self.start_round(session.peer_id, padded=False)

    def take_beat(self, link: PeerLink | None, peer_id: str, boot: int, beat: Beat) -> BeatFlag:
        """A peer's beat came as a request; the flags of our answer."""
        session = self._sessions.get((peer_id, boot))
        if link is None or session is None:
            # Before our own greeting is through there is no session that could give the place back.
            return BeatFlag(0)
        verdict = self._acceptance.offer(peer_id, _boot_bytes(boot))
        if verdict is Verdict.BUSY and peer_id not in self._chosen:
            return BeatFlag.BUSY
        if verdict is Verdict.ACCEPTED:
            self.heartbeat.feed(DirectSet(self.direct, trio.current_time()))
        session.wake.set()
        if self._beaten(peer_id, beat):
            self.start_round(peer_id, padded=False)
        return BeatFlag(0)

    # Rounds over links.

    def start_round(self, peer_id: str, *, padded: bool) -> None:
        """Open a round with this peer over its link, unless one runs."""
        if self.heartbeat.view().policy is Policy.HTTP or not self._restraint.may_open(peer_id):
            return
        for session in self._sessions.values():
            if session.peer_id != peer_id or session.link.closed:
                continue
            if session.round_running:
                # A return to P2P waits for a padded round, and the next order of one is half a minute off.
                session.padded_waits |= padded
            else:
                session.round_running = True
                self.nursery.start_soon(self._rounds, session, padded)

    async def _rounds(self, session: Session, padded: bool) -> None:
        """One round, and a padded one after it if that was ordered meanwhile."""
        carry = session.link.exchange
        try:
            await self._round(session.peer_id, carry, padded)
            if session.padded_waits and not session.link.closed:
                session.padded_waits = False
                await self._round(session.peer_id, carry, True)
        finally:
            session.round_running = False

    async def _round(self, peer_id: str, carry: Carry, padded: bool) -> None:
        try:
            result = await self._anti_entropy.run_round(peer_id, "p2p", carry, padded=padded)
            if self._anti_entropy.takes_entries():  # else it is we who can gain nothing
                self._restraint.round_ended(peer_id, fruitless=result.fruitless)
        except RoundFailed as error:
            self._restraint.round_failed(peer_id, error.reason)
            self._log.debug("SYNC", "P2P round failed", peer=peer_id, reason=error.reason)

    async def probe(self, peer_id: str) -> None:
        """A probe of the P2P lung: a Hello over the link, if there is one."""
        error: str | None = "no_link"
        session = next((s for s in self._sessions.values() if s.peer_id == peer_id), None)
        if session is not None:
            try:
                with trio.fail_after(_PROBE_TIMEOUT_S):
                    await self._courier.ask(session.link.exchange, [self._hello()], to=session.public_key)
                error = None
            except trio.TooSlowError:
                error = "timeout"
            except TransportError as failed:
                error = failed.reason
        self.heartbeat.feed(ProbeEnded(peer_id, "p2p", trio.current_time(), error is None, error))


def _boot_bytes(boot: int) -> bytes:
    return boot.to_bytes(8, "big")
