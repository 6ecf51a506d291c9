"""The history of a key: all its ops in the order in which they count, and what replaced what.

Separate from the state, which keeps only what is live: a history is read seldom, and follows from the
stored ops by the same rules (docs/reference/wire.md, section 8).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

from .entry import Header, Op, OpKind, Version
from .rows import EntryRow, KeyState, LogKey
from .state import winner_first

OPS_READ_MAX: Final = 10_000  # ops of one key read for one answer: some 0.3 s


class Written(NamedTuple):
    """One applied op of the key with the entry that holds it."""

    row: EntryRow
    header: Header
    op_index: int
    op: Op

    @property
    def version(self) -> Version:
        return Version(self.row.id, self.op_index)


@dataclass(frozen=True, slots=True)
class HistoryItem:
    """One op as a history shows it. `replaces` are the versions that it replaces, held here or not;
    `replaced_by` the ops that replace it. `value` is a put's bytes."""

    written: Written
    live: bool
    winner: bool
    replaces: tuple[Version, ...]
    replaced_by: tuple[Version, ...]
    value: bytes | None


@dataclass(frozen=True, slots=True)
class KeyHistory:
    """Newest first by (clock, author, version). `complete` is False when older ops were left out."""

    items: tuple[HistoryItem, ...]
    complete: bool


def history_of(written: Iterable[Written], state: KeyState, *, complete: bool = True) -> KeyHistory:
    """`written`: every applied op of one key, in log order within each log."""
    ops = list(written)
    targets = _targets(ops)
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
                _value(one),
            )
            for one in sorted(ops, key=rank, reverse=True)
        ),
        complete,
    )


def rank(one: Written) -> tuple[int, bytes, Version]:
    """What a history is ordered by, and a winner chosen by."""
    return one.header.clock, one.header.author, one.version


def _targets(ops: Iterable[Written]) -> dict[Version, tuple[Version, ...]]:
    """By op, what it replaces: what it names, and the latest earlier put of its log."""
    latest: dict[LogKey, Version] = {}
    found = {}
    for one in sorted(ops, key=lambda one: (one.row.author, one.row.epoch, one.row.seq, one.op_index)):
        log = LogKey(one.row.author, one.row.epoch)
        named = {*one.op.over, *(Version(one.row.id, index) for index in one.op.over_own)}
        if one.op.kind is not OpKind.ADD and log in latest:
            named.add(latest[log])
        if one.op.kind is OpKind.PUT:
            latest[log] = one.version
        found[one.version] = tuple(sorted(named))
    return found


def _value(one: Written) -> bytes | None:
    if one.op.kind is not OpKind.PUT:
        return None
    return one.row.ops[one.op.value_at : one.op.value_at + one.op.value_size]
