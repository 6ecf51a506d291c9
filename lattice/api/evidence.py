"""From stored entries and histories to the JSON of their answers, page by page.

Separate from the answers about keys because these show entries as they came: bytes, ways and times.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any, Final

import orjson
import trio

from ..core.clock import clock_text
from ..core.entry import HEADER_BYTES, Op, OpKind, Seal, Version, parse_entry, parse_header
from ..core.errors import LatticeError, MalformedError
from ..core.history import HistoryItem, HistoryPage
from ..core.identity import peer_id_of, public_key_of
from ..core.rows import EntryRow, LogKey
from ..node.facade import NodeFacade
from ..schemas import EntryInfo, EntryOp, EntryPage, History, HistoryVersion
from ..writable import is_readable
from .answers import UNREADABLE

_SCANNED_MAX: Final = 16  # store reads (1.5 MiB each at most) for one page: a filter may match nothing
_ID: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)
_EPOCH: Final = re.compile(r"[0-9a-f]{16}", re.ASCII)


def parse_id(text: str) -> bytes:
    """An entry id. Raises `bad_request`."""
    if not _ID.fullmatch(text):
        raise LatticeError("bad_request", f"{text[:80]!r} is no entry id: 64 hex digits in lower case.")
    return bytes.fromhex(text)


def parse_epoch(text: str) -> int:
    """Raises `bad_request`."""
    if not _EPOCH.fullmatch(text):
        raise LatticeError("bad_request", f"{text[:80]!r} is no epoch: 16 hex digits in lower case.")
    return int(text, 16)


def history_page(page: HistoryPage, key: str) -> History:
    """The answer of one page."""
    shown = [_history_version(item, value) for item, value in zip(page.items, page.values, strict=True)]
    following = None if page.is_last else shown[-1].version
    return History(True, key, shown, len(shown), page.complete, following)


def _history_version(item: HistoryItem, stored: bytes | None) -> HistoryVersion:
    one, op = item.written, item.written.op
    value, error = _shown(stored)
    return HistoryVersion(
        version=str(one.version),
        op=op.kind.name.lower(),
        value=value,
        error=error,
        amount=op.amount if op.kind is OpKind.ADD else None,
        live=item.live,
        winner=item.winner,
        replaces=[str(version) for version in item.replaces],
        replaced_by=[str(version) for version in item.replaced_by],
        id=one.version.id.hex(),
        op_index=one.version.op_index,
        author=peer_id_of(one.author),
        epoch=f"{one.epoch:016x}",
        seq=one.seq,
        clock=clock_text(one.clock),
        lung=one.lung,
        peer=_peer(one.peer),
        arrived=_moment(one.arrived_ms),
        arrived_ms=one.arrived_ms,
    )


async def entry_page(
    node: NodeFacade, author: str | None, epoch: int | None, after: str | None, limit: int, lung: str | None
) -> EntryPage:
    """Up to `limit` entries behind the entry `after`; fewer, with `next` set, where a filter takes long."""
    wanted = None if author is None else _public_key(author)
    place = _place(node, after)
    shown: list[EntryInfo] = []
    scanned = 0
    last: EntryRow | None = None
    for log, head in sorted(node.heads().items()):
        if wanted not in (None, log.author) or epoch not in (None, log.epoch):
            continue
        if place is not None and log < place[0]:
            continue
        first = place[1] + 1 if place is not None and log == place[0] else 0
        while first <= head.seq:
            if scanned == _SCANNED_MAX and last is not None:
                return EntryPage(True, shown, len(shown), last.id.hex())
            # One entry more than is shown tells whether there is a next page.
            rows = node.entries(log, first, min(head.seq, first + limit))
            scanned += 1
            if not rows:
                break
            for row in rows:
                if lung in (None, row.lung):
                    if len(shown) == limit:
                        return EntryPage(True, shown, limit, shown[-1].id)
                    shown.append(_info(row))
                last = row
            first = rows[-1].seq + 1
            await trio.lowlevel.checkpoint()
    return EntryPage(True, shown, len(shown), None)


def _place(node: NodeFacade, after: str | None) -> tuple[LogKey, int] | None:
    if after is None:
        return None
    found = node.entry(parse_id(after))
    if found is None:
        raise LatticeError("bad_request", f"after: there is no entry {after}.")
    row, _ = found
    return LogKey(row.author, row.epoch), row.seq


def _public_key(author: str) -> bytes:
    try:
        return public_key_of(author)
    except LatticeError as error:
        raise LatticeError("bad_request", f"author: {error.message}.") from error


def _info(row: EntryRow, **more: Any) -> EntryInfo:  # noqa: ANN401 - the fields of EntryInfo
    header = parse_header(row.header)
    return EntryInfo(
        id=row.id.hex(),
        author=peer_id_of(row.author),
        epoch=f"{row.epoch:016x}",
        seq=row.seq,
        prev=header.prev.hex(),
        clock=clock_text(header.clock),
        op_count=header.op_count,
        size=HEADER_BYTES + len(row.ops),
        lung=row.lung,
        peer=_peer(row.peer),
        arrived=_moment(row.arrived_ms),
        arrived_ms=row.arrived_ms,
        **more,
    )


def entry_detail(network_id: bytes, row: EntryRow, seal: Seal | None) -> EntryInfo:
    """One entry with its ops."""
    try:
        entry = parse_entry(network_id, row.header, row.ops)
    except MalformedError as error:
        raise LatticeError("store_corrupt", f"Entry {row.id.hex()} does not verify: {error}") from error
    ops = [
        _op(index, end - start, op, row)
        for index, ((start, end), op) in enumerate(zip(entry.op_spans, entry.parsed_ops(), strict=True))
    ]
    return _info(row, ops=ops, header=row.header.hex(), seal=None if seal is None else seal.pack().hex())


def _op(index: int, size: int, op: Op | None, row: EntryRow) -> EntryOp:
    if op is None:
        return EntryOp(index, size, None, None, None, None, None, [])
    is_put = op.kind is OpKind.PUT
    value, error = _shown(row.ops[op.value_at : op.value_at + op.value_size] if is_put else None)
    named = [*op.over, *(Version(row.id, own) for own in op.over_own)]
    return EntryOp(
        index,
        size,
        op.kind.name.lower(),
        op.key.decode("utf-8"),
        value,
        error,
        op.amount if op.kind is OpKind.ADD else None,
        [str(version) for version in named],
    )


def _shown(stored: bytes | None) -> tuple[Any, str | None]:
    if stored is None:
        return None, None
    if not is_readable(stored):
        return None, UNREADABLE
    return orjson.Fragment(stored), None


def _peer(peer: bytes) -> str | None:
    return peer_id_of(peer) if peer else None


def _moment(time_ms: int) -> str:
    moment = datetime.fromtimestamp(time_ms // 1000, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{time_ms % 1000:03d}Z"
