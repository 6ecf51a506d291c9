"""Who is polled over HTTP and whose idle lung is probed, and when: slots, rotation and back-off.

Separate because it spends a small budget among many peers and knows nothing of why a peer is polled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from .failover_events import Lung, MonitorConfig
from .failover_peer import PeerRecord, age, next_due
from .membership import ring_distance, ring_point


@dataclass(slots=True)
class _Round:
    """One HTTP round: how many of its polls are under way, and whether one was answered."""

    pending: int
    answered: bool = False


@dataclass(slots=True)
class Polls:
    """The one poll loop: rounds of a few slots, and what became of them."""

    config: MonitorConfig
    self_id: str
    unanswered_rounds: int = 0  # in a row, without any sign of life over HTTP
    next_round_at: float | None = None  # None while nobody is polled
    _cursor: int = field(init=False)
    _rounds: dict[int, _Round] = field(default_factory=dict)
    _under_way: dict[str, tuple[int, float]] = field(default_factory=dict)  # peer: (round, since)
    _round_no: int = 0
    _poll_no: int = 0

    def __post_init__(self) -> None:
        self._cursor = ring_point(self.self_id)

    def due(self, now: float, polled: list[PeerRecord], *, isolated: bool) -> list[str]:
        """The peers to poll now: none between rounds; `polled` are all those that HTTP carries."""
        if not polled:
            self.next_round_at = None
            return []
        if self.next_round_at is not None and now < self.next_round_at:
            return []
        planned = now if self.next_round_at is None else self.next_round_at
        self.next_round_at = next_due(planned, now, self.config.poll_interval_s)
        picked = self._pick(now, polled, isolated=isolated)
        if picked:
            self._round_no += 1
            self._rounds[self._round_no] = _Round(len(picked))
        for record in picked:
            self._poll_no += 1
            record.polled_at, record.poll_no = now, self._poll_no
            self._under_way[record.peer] = (self._round_no, now)
        return [record.peer for record in picked]

    def wait_s(self, record: PeerRecord, *, isolated: bool) -> float:
        """How long to leave a peer alone after its last poll: doubling from one interval to the maximum."""
        over = max(record.silent_polls, record.fruitless_polls) - self.config.backoff_after_polls
        if over < 0:
            return 0.0
        cap = self.config.backoff_isolated_max_s if isolated else self.config.backoff_max_s
        # The exponent is bounded because a peer may be silent for months.
        wait_s: float = self.config.poll_interval_s * 2.0 ** min(over + 1, 16)
        return min(wait_s, cap)

    def _pick(self, now: float, polled: list[PeerRecord], *, isolated: bool) -> list[PeerRecord]:
        ready = [
            record
            for record in polled
            if record.peer not in self._under_way
            and (record.polled_at is None or now - record.polled_at >= self.wait_s(record, isolated=isolated))
        ]
        own = ring_point(self.self_id)
        answered = sorted(
            (record for record in ready if record.poll_answered),
            key=lambda record: (record.poll_no, ring_distance(own, record.point)),
        )
        silent = sorted(
            (record for record in ready if not record.poll_answered),
            key=lambda record: ring_distance(self._cursor, record.point),
        )
        slots, kept = self.config.poll_slots, self.config.poll_slots_answered
        # A slot that its own kind leaves empty is lent to the other.
        from_answered = max(kept, slots - len(silent))
        picked = answered[:from_answered]
        rotated = silent[: slots - len(picked)]
        if rotated:
            self._cursor = rotated[-1].point
        return picked + rotated

    def ended(self, peer: str, *, answered: bool) -> None:
        """A poll is over; the round that it was in may be decided by it."""
        round_no, _ = self._under_way.pop(peer, (0, 0.0))
        current = self._rounds.get(round_no)
        if answered:
            self.alive()
        if current is None:
            return
        current.pending -= 1
        current.answered = current.answered or answered
        if current.pending == 0:
            del self._rounds[round_no]
            if not current.answered:
                self.unanswered_rounds += 1

    def alive(self) -> None:
        """HTTP carried something, from whichever side: no round before this counts as unanswered."""
        self.unanswered_rounds = 0
        for current in self._rounds.values():
            current.answered = True

    def begin(self) -> None:
        """The headline leaves P2P: rounds that went to others before say nothing about the new ones."""
        self.unanswered_rounds = 0
        self._rounds.clear()

    def lost(self, now: float) -> list[str]:
        """Polls that nobody reported on in time: to be counted as unanswered."""
        return [
            peer for peer, (_, since) in self._under_way.items() if now - since >= self.config.poll_timeout_s
        ]

    def forget(self, peer: str) -> None:
        """The peer is gone or polled no more: its poll decides nothing, and a round that had no other
        ends undecided."""
        if peer in self._under_way:
            round_no, _ = self._under_way.pop(peer)
            current = self._rounds.get(round_no)
            if current is not None:
                current.pending -= 1
                if current.pending == 0:
                    del self._rounds[round_no]

    def rename(self, old: str, new: str) -> None:
        """A poll that went to an address goes on under the identity behind it."""
        moved = self._under_way.pop(old, None)
        if moved is None:
            return
        if new in self._under_way:
            self._under_way[old] = moved
            self.forget(old)
        else:
            self._under_way[new] = moved


@dataclass(slots=True)
class Probes:
    """The probes of idle lungs: one every few seconds, rotating over all known peers."""

    config: MonitorConfig
    self_id: str
    _next_at: float | None = None
    _cursor: int = field(init=False)

    def __post_init__(self) -> None:
        self._cursor = ring_point(self.self_id)

    def due(
        self, now: float, records: Iterable[PeerRecord], idle_lung: Callable[[PeerRecord], Lung | None]
    ) -> tuple[str, Lung] | None:
        """The next probe, or None while it is too early or no peer has a lung to probe."""
        if self._next_at is not None and now < self._next_at:
            return None
        best: tuple[int, PeerRecord, Lung] | None = None
        for record in records:
            lung = idle_lung(record)
            if lung is None or not self._is_ready(now, record, lung):
                continue
            distance = ring_distance(self._cursor, record.point)
            if best is None or distance < best[0]:
                best = (distance, record, lung)
        if best is None:
            return None
        _, record, lung = best
        self._next_at = now + self.config.probe_interval_s
        self._cursor = record.point
        probed = record.p2p if lung == "p2p" else record.http
        probed.probed_at, probed.probing = now, True
        return record.peer, lung

    def _is_ready(self, now: float, record: PeerRecord, lung: Lung) -> bool:
        probed = record.p2p if lung == "p2p" else record.http
        since = age(now, probed.probed_at)
        if since is None:
            return True
        if probed.probing:
            return since >= self.config.probe_timeout_s
        return since >= self.config.probe_peer_interval_s
