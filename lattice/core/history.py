"""The history of a key: its ops in the order in which they count, and what replaced what.

Separate from the state, which keeps only what is live: a history is read seldom, and follows from the
stored ops by the same rules (docs/reference/wire.md, section 8).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from .entry import Op, OpKind, Version
from .errors import LatticeError
from .rows import KeyState, LogKey
from .state import winner_first

_VERSION_BYTES: Final = (
    72  # of the text of a version in an answer: some ops replace, or are replaced by, very many
)


class Written(NamedTuple):
    """One applied op of the key with what is shown of the entry that holds it.

    Not the entry itself: ten thousand of them may weigh more than the machine has. The value stands in
    the ops of the entry, where `op` says.
    """

    version: Version
    author: bytes
    epoch: int
    seq: int
    clock: int
    lung: str
    peer: bytes
    arrived_ms: int
    op: Op

    @property
    def log(self) -> LogKey:
        return LogKey(self.author, self.epoch)

    @property
    def place(self) -> tuple[int, int]:
        """Where it stands in its log."""
        return self.seq, self.version.op_index


@dataclass(frozen=True, slots=True)
class HistoryItem:
    """One op as a history shows it. `replaces` are the versions that it replaces, held here or not;
    `replaced_by` the listed ops that replace it."""

    written: Written
    live: bool
    winner: bool
    replaces: tuple[Version, ...]
    replaced_by: tuple[Version, ...]


@dataclass(frozen=True, slots=True)
class KeyHistory:
    """Newest first by (clock, author, version). `complete` is False when older ops were left out; what
    is live is listed all the same."""

    items: tuple[HistoryItem, ...]
    complete: bool

    def page(self, after: Version | None, limit: int, bytes_max: int) -> list[HistoryItem]:
        """Up to `limit` items behind `after`, and no more once they show `bytes_max` bytes.

        Raises LatticeError `bad_request` when `after` is not listed.
        """
        start = 0
        if after is not None:
            start = 1 + next((at for at, one in enumerate(self.items) if one.written.version == after), -2)
            if start < 0:
                known = "is no version of this key" if self.complete else "is not among the listed versions"
                raise LatticeError("bad_request", f"after: {after} {known}.")
        shown: list[HistoryItem] = []
        for item in self.items[start : start + limit]:
            if bytes_max < 0:
                break
            shown.append(item)
            names = len(item.replaces) + len(item.replaced_by)
            bytes_max -= item.written.op.value_size + _VERSION_BYTES * names
        return shown


@dataclass(frozen=True, slots=True)
class HistoryPage:
    """A page of a history with the bytes of its puts (None for other ops), item by item."""

    items: tuple[HistoryItem, ...]
    values: tuple[bytes | None, ...]
    complete: bool
    is_last: bool


def history_of(
    written: Iterable[Written],
    state: KeyState,
    *,
    complete: bool = True,
    earlier: Mapping[LogKey, Version] | None = None,
) -> KeyHistory:
    """`written`: the applied ops of one key. Where some were left out, `earlier` has, by log, the latest
    put before the lowest one that is listed."""
    ops = list(written)
    targets = _targets(ops, earlier or {})
    replaced: dict[Version, list[Version]] = {}
    for one in ops:
        for target in targets[one.version]:
            replaced.setdefault(target, []).append(one.version)
    live = winner_first(state.live)
    versions = {held.version for held in live}
    winner = live[0].version if live else None
    return KeyHistory(
        tuple(
            HistoryItem(
                one,
                one.version in versions,
                one.version == winner,
                targets[one.version],
                tuple(sorted(replaced.get(one.version, ()))),
            )
            for one in sorted(ops, key=rank, reverse=True)
        ),
        complete,
    )


def rank(one: Written) -> tuple[int, bytes, Version]:
    """What a history is ordered by, and a winner chosen by."""
    return one.clock, one.author, one.version


def _targets(ops: Iterable[Written], earlier: Mapping[LogKey, Version]) -> dict[Version, tuple[Version, ...]]:
    """By op, what it replaces: what it names, and the latest earlier put of its log."""
    latest = dict(earlier)
    found = {}
    for one in sorted(ops, key=lambda one: (one.log, one.place)):
        named = {*one.op.over, *(Version(one.version.id, index) for index in one.op.over_own)}
        if one.op.kind is not OpKind.ADD and one.log in latest:
            named.add(latest[one.log])
        if one.op.kind is OpKind.PUT:
            latest[one.log] = one.version
        found[one.version] = tuple(sorted(named))
    return found
