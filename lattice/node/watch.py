"""What the node tells about itself: turns commits, modes, peers and alarms into events of the bus.

Separate from the node so that the wiring stays wiring, and because only changes are told: this is
where the last state of every peer and alarm is kept to compare with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime

from ..core.clock import clock_text
from ..core.engine import Applied
from ..core.entry import parse_header
from ..core.failover_events import AlarmCleared, AlarmRaised, ModeChanged, PeerView, Policy
from ..core.identity import peer_id_of
from ..schemas import AlarmEvent, EntryEvent, ModeEvent, PeerEvent, PolicyEvent
from .bus import Bus


class Watch:
    """Publishes what changed. `name_of` gives the name of a peer."""

    def __init__(self, bus: Bus, *, wall_ms: Callable[[], int], name_of: Callable[[str], str]) -> None:
        self._bus = bus
        self._wall_ms = wall_ms
        self._name_of = name_of
        self._alarms: dict[str, tuple[str, str]] = {}
        self._peers: dict[str, tuple[str, bool]] = {}

    def applied(self, output: Applied) -> None:
        """Entries of a commit that is durable."""
        at = self._now()
        ids: dict[bytes, str] = {b"": ""}
        for row, keys in output.entries:
            for public_key in (row.author, row.peer):
                if public_key not in ids:
                    ids[public_key] = peer_id_of(public_key)
            self._bus.publish_nowait(
                EntryEvent(
                    at=at,
                    id=row.id.hex(),
                    author=ids[row.author],
                    epoch=f"{row.epoch:016x}",
                    seq=row.seq,
                    clock=clock_text(parse_header(row.header).clock),
                    keys=[key.decode("utf-8", "replace") for key in dict.fromkeys(keys)],
                    lung=row.lung,
                    peer=ids[row.peer] or None,
                )
            )

    def mode(self, change: ModeChanged) -> None:
        previous = change.previous.value if change.previous is not None else None
        self._bus.publish_nowait(ModeEvent(self._now(), change.mode.value, previous, change.reason.value))

    def policy(self, policy: Policy) -> None:
        self._bus.publish_nowait(PolicyEvent(self._now(), policy.value))

    def monitor_alarm(self, output: AlarmRaised | AlarmCleared) -> None:
        match output:
            case AlarmRaised():
                self.raised(output.code.value, output.text, output.level)
            case AlarmCleared():
                self.cleared(output.code.value)

    def raised(self, code: str, text: str, level: str = "ERROR") -> None:
        """An alarm stands; told once for each new text."""
        if self._alarms.get(code) != (level, text):
            self._alarms[code] = (level, text)
            self._bus.publish_nowait(AlarmEvent(self._now(), code, True, level, text))

    def cleared(self, code: str) -> None:
        """An alarm is over, if it stood."""
        held = self._alarms.pop(code, None)
        if held is not None:
            self._bus.publish_nowait(AlarmEvent(self._now(), code, False, *held))

    def peers(self, views: Iterable[PeerView]) -> None:
        """What differs from the views given last: peers that are new, heard, lost, changed or gone."""
        seen = {view.peer: (view.liveness.value, view.heard_over_p2p) for view in views}
        for peer in sorted(self._peers.keys() - seen.keys()):
            self._tell(peer, "forgotten", self._peers[peer][0])
        for peer, (state, heard) in seen.items():
            known = self._peers.get(peer)
            was_state, was_heard = known if known is not None else (state, False)
            if known is None:
                self._tell(peer, "known", state)
            if heard != was_heard:
                self._tell(peer, "heard" if heard else "lost", state)
            if state != was_state:
                self._tell(peer, "state", state)
        self._peers = seen

    def _tell(self, peer: str, change: str, state: str) -> None:
        self._bus.publish_nowait(PeerEvent(self._now(), peer, self._name_of(peer), change, state))

    def _now(self) -> str:
        moment = datetime.fromtimestamp(self._wall_ms() / 1000, UTC)
        return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
