"""From what the node says to the JSON of the answers.

Separate so that the shapes of schemas.py are filled in one place, and without parsing and writing
again the values, which leave as the bytes that are stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import orjson
from starlette.responses import Response

from ..core.clock import clock_text
from ..core.draft import Appended
from ..core.errors import LatticeError
from ..core.identity import peer_id_of
from ..core.limits import AMOUNT_MAX, FROZEN_NEVER, SIBLING_BYTES, SIBLINGS_VALUES_BYTES
from ..core.rows import ForkRow, LiveVersion
from ..node.facade import KeyView, LedgerView, NodeFacade
from ..schemas import Fork, Head, Key, LedgerState, LungStatus, Sibling, Status, Written
from ..writable import is_readable

UNREADABLE = "unreadable_value"
LEFT_OUT = "value_left_out"
_HIDDEN = "details are shown to operators"


def answer(content: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A JSON response; dataclasses become objects."""
    return Response(orjson.dumps(content), status, headers, "application/json")


def tag_of(view: KeyView) -> str:
    """The entity tag of a key: the winner's version; with a counter, the number of additions too."""
    version = str(view.winner.version) if view.winner else ""
    return f'"{version}+{view.adds}"' if view.adds else f'"{version}"'


def _sum_shown(total: int) -> int | str:
    """A sum has no bound, a JSON number has one: beyond what every parser holds exactly it is text."""
    return total if abs(total) <= AMOUNT_MAX else str(total)


def siblings_shown(view: KeyView) -> int:
    """How many siblings are shown with their values: the first that together stay within the limit."""
    left = SIBLINGS_VALUES_BYTES
    for number, live in enumerate(view.live[1:]):
        left -= live.value_size + SIBLING_BYTES
        if left < 0:
            return number
    return max(0, len(view.live) - 1)


def size_of(view: KeyView) -> int:
    """About how many bytes the object of a key has in an answer."""
    siblings = view.live[1 : 1 + siblings_shown(view)]
    values = len(view.value or b"") + sum(live.value_size for live in siblings)
    return len(view.key) + values + SIBLING_BYTES * len(view.live)


class KeyWriter:
    """Turns key views into answers; keeps the text of authors, of which a page has few."""

    def __init__(self, node: NodeFacade) -> None:
        self._node = node
        self._authors: dict[bytes, str] = {}

    def key(self, view: KeyView) -> Key:
        """The object of one key. `error` is set and `value` null when the value is not JSON."""
        winner, shown = view.winner, siblings_shown(view)
        value, error = self._shown(view.value) if winner is not None else (None, None)
        return Key(
            key=view.key.decode("utf-8", "replace"),
            value=value,
            version=str(winner.version) if winner else None,
            author=self._author(winner.author) if winner else None,
            clock=clock_text(winner.clock) if winner else None,
            siblings=[self._sibling(live, at < shown) for at, live in enumerate(view.live[1:])],
            adds=view.adds,
            total=_sum_shown(view.total) if view.adds else None,
            error=error,
        )

    def _sibling(self, live: LiveVersion, is_shown: bool) -> Sibling:
        value, error = self._shown(self._node.value(live)) if is_shown else (None, LEFT_OUT)
        return Sibling(str(live.version), self._author(live.author), clock_text(live.clock), value, error)

    def _author(self, author: bytes) -> str:
        text = self._authors.get(author)
        if text is None:
            text = self._authors[author] = peer_id_of(author)
        return text

    def _shown(self, stored: bytes | None) -> tuple[Any, str | None]:
        if stored is None or not is_readable(stored):
            return None, UNREADABLE
        return orjson.Fragment(stored), None


def written(done: Appended) -> Written:
    versions = [str(version) for version in done.versions]
    return Written(
        success=True,
        id=done.id.hex(),
        author=peer_id_of(done.author),
        epoch=f"{done.epoch:016x}",
        seq=done.seq,
        clock=clock_text(done.clock),
        version=versions[0],
        versions=versions,
        merkle_root=done.state_root.hex(),
        log_root=done.log_root.hex(),
        repeated=done.repeated,
    )


def ledger_state(view: LedgerView, page: Sequence[Key] | None, after: str | None) -> LedgerState:
    heads = [
        Head(
            peer_id_of(log.author),
            f"{log.epoch:016x}",
            head.seq,
            head.id.hex(),
            None if head.frozen == FROZEN_NEVER else head.frozen,
        )
        for log, head in sorted(view.heads.items())
    ]
    return LedgerState(
        success=True,
        merkle_root=view.state_root.hex(),
        log_root=view.log_root.hex(),
        state_size=view.state_size,
        entry_count=view.entry_count,
        heads=heads,
        timestamp=_timestamp(view.timestamp_ms),
        timestamp_ms=view.timestamp_ms,
        signature=view.signature.hex(),
        signed=True,
        state=list(page) if page is not None else None,
        next=after,
    )


def _timestamp(ms: int) -> str:
    """RFC 3339 with milliseconds."""
    return f"{datetime.fromtimestamp(ms // 1000, UTC):%Y-%m-%dT%H:%M:%S}.{ms % 1000:03d}Z"


def fork_shown(row: ForkRow) -> Fork:
    """A frozen log as the API shows it."""
    return Fork(
        author=peer_id_of(row.author),
        epoch=f"{row.epoch:016x}",
        frozen=row.frozen,
        removed=row.removed,
        keys=[key.decode("utf-8", "replace") for key in row.keys],
        peer=peer_id_of(row.peer) if row.peer else None,
        lung=row.lung,
        at=_timestamp(row.at_ms),
        proof=row.proof.hex(),
    )


def reduced(status: Status) -> Status:
    """The status for everybody (LATTICE_PUBLIC_STATUS): roots and states, no addresses.

    Free text may quote an address, so it is replaced and not searched.
    """
    peers = [
        replace(
            peer,
            id=_reduced_id(peer.id),
            addresses=[],
            p2p=_reduced_lung(peer.p2p),
            http=_reduced_lung(peer.http),
        )
        for peer in status.peers
    ]
    return replace(
        status,
        listen_multiaddrs=[],
        bootstrap_peers=[],
        bridged_over_http=[_reduced_id(peer) for peer in status.bridged_over_http],
        synced=[replace(one, peer=_reduced_id(one.peer)) for one in status.synced],
        error=None if status.error is None else _HIDDEN,
        alarms=[_HIDDEN for _ in status.alarms],
        warnings=[_HIDDEN for _ in status.warnings],
        peers=peers,
    )


def _reduced_id(peer: str) -> str:
    """A peer that has never answered is known by its URL only."""
    return peer if peer.isalnum() else "not yet identified"


def _reduced_lung(lung: LungStatus) -> LungStatus:
    return replace(lung, last_error=None if lung.last_error is None else _HIDDEN)


def unreadable(key: str) -> LatticeError:
    return LatticeError(
        UNREADABLE,
        f"The value of {key[:100]!r} is not JSON: another program wrote it. Its entry holds the bytes.",
    )
