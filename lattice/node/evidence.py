"""From committed rows to what is shown of a key: its proof and its history.

Separate from the node because it only reads, and from the core because it reads a store that another
thread may be committing to: pieces of two commits do not fit together, which the check of a proof tells.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from hashlib import sha256
from heapq import merge
from typing import Final, NamedTuple, Protocol

import trio

from ..core.engine import Engine
from ..core.entry import OpKind, Version, ops_of_key, parse_entry, parse_header
from ..core.errors import LatticeError, MalformedError
from ..core.forks import unpack_fork_proof
from ..core.history import HistoryItem, HistoryPage, KeyHistory, Written, history_of, rank
from ..core.identity import public_key_of
from ..core.limits import (
    HISTORY_CHUNK,
    HISTORY_NAMES_MAX,
    HISTORY_OPS_MAX,
    HISTORY_PAGE_BYTES,
    PAGE_BYTES,
    SEAL_INTERVAL,
)
from ..core.merkle import MerkleMap, bucket_of
from ..core.proofs import KeyProof, ProofValue, ProofVersion, Statement, audit_path, verify_proof, winner_of
from ..core.receipts import Receipt, ReceiptStatement, Step, plain_path, statement_body
from ..core.rows import EntryRow, KeyState, LiveVersion, LogHead, LogKey, Reader
from ..core.state import leaf_of
from ..storage.port import Store
from .facade import LedgerView

_TRIES: Final = 20


class Ledger(Protocol):
    """What a proof takes from a node."""

    @property
    def peer_id(self) -> str: ...
    @property
    def network_id(self) -> bytes: ...
    @property
    def store(self) -> Store: ...
    @property
    def engine(self) -> Engine: ...
    def ledger(self) -> LedgerView: ...


async def prove(node: Ledger, key: bytes) -> KeyProof:
    """The proof of a key as of the last commit; it has passed the check before it is given out.

    The engine's tree is ahead of the last commit while one is under way. Then the tree is built anew
    from the committed buckets, in a thread: about 0.2 s for a million keys.
    """
    number = bucket_of(sha256(key).digest())
    cause = "no try was made"
    for attempt in range(_TRIES):
        view = node.ledger()
        bucket, path = node.engine.tree_path(number)
        if attempt % 2 and not node.store.in_line:
            bucket, path = await trio.to_thread.run_sync(_committed_path, node.store, number)
        proof = _assemble(node, key, view, bucket, path)
        try:
            verify_proof(proof)
        except MalformedError as error:
            cause = error.message
            await trio.lowlevel.checkpoint()
            continue
        return proof
    raise LatticeError("not_ready", f"No proof of the last commit could be made ({cause}); try again.")


def _committed_path(store: Reader, number: int) -> tuple[bytes, list[bytes]]:
    tree = MerkleMap(store.buckets())
    return tree.bucket(number), tree.path(number)


def _assemble(node: Ledger, key: bytes, view: LedgerView, bucket: bytes, path: list[bytes]) -> KeyProof:
    state = node.store.key_state(key) or KeyState(key)
    live = tuple(_version(node.store, held) for held in state.live)
    value = _value(node.store, node.network_id, winner_of(live)) if live else None
    statement = Statement(
        public_key_of(node.peer_id), view.state_root, view.log_root, view.timestamp_ms, view.signature
    )
    return KeyProof(
        node.network_id, key, live, state.adds, state.total, bucket, tuple(path), value, statement
    )


def _version(store: Reader, live: LiveVersion) -> ProofVersion:
    row = store.entry(live.author, live.epoch, live.seq)
    if row is None:
        raise LatticeError("store_corrupt", f"The entry of version {live.version} is gone.")
    return ProofVersion(live.id, live.op_index, live.op_hash, row.header)


def _value(store: Reader, network_id: bytes, winner: ProofVersion) -> ProofValue:
    header = parse_header(winner.header)
    seq = header.seq
    seals = store.seals(header.author, header.epoch, seq, seq + SEAL_INTERVAL - 1)
    fork = store.fork_row(LogKey(header.author, header.epoch))
    above: tuple[bytes, ...] = ()
    if seals:
        last, seal = seals[0].seq, seals[0]
    elif fork is not None:
        # The seal lay above the fork, with one of its branches: the fork proof holds the way to it.
        branch = unpack_fork_proof(network_id, fork.proof).one
        last, seal = fork.frozen - 1, branch.seal
        above = tuple(node.header_bytes for node in branch.headers)
    else:
        raise LatticeError("store_corrupt", f"No seal is kept over entry {winner.id.hex()}.")
    rows = store.entries(header.author, header.epoch, seq, last, PAGE_BYTES)
    entry = parse_entry(network_id, rows[0].header, rows[0].ops)
    start, end = entry.op_spans[winner.op_index]
    return ProofValue(
        entry.ops[start:end],
        audit_path(entry.op_hashes, winner.op_index),
        (*(row.header for row in rows[1:]), *above),
        seal.pack(),
    )


async def make_receipt(node: Ledger, key: bytes, now_ms: int, sign: Callable[[bytes], bytes]) -> Receipt:
    """A merkletools receipt of a present key. The whole tree is hashed for it, in a thread."""
    for _ in range(_TRIES):
        state = node.store.key_state(key)
        if state is None or not state.present:
            raise LatticeError("not_found", "Only a key that is there has a receipt; a proof shows absence.")
        if node.store.in_line:
            made = _receipt_path(node.store, key)
        else:
            made = await trio.to_thread.run_sync(_receipt_path, node.store, key)
        leaf = leaf_of(state)
        if made is None or leaf != made.leaf:  # a commit came between the two reads
            await trio.lowlevel.checkpoint()
            continue
        live = tuple(_version(node.store, held) for held in state.live)
        signature = sign(statement_body(made.state_root, made.root, now_ms))
        said = ReceiptStatement(public_key_of(node.peer_id), made.state_root, now_ms, signature)
        return Receipt(
            node.network_id, key, live, state.adds, state.total, made.leaf, made.root, made.steps, said
        )
    raise LatticeError("not_ready", "The key changes faster than a receipt of it is made; try again.")


class _ReceiptPath(NamedTuple):
    leaf: bytes
    state_root: bytes
    root: bytes
    steps: tuple[Step, ...]


def _receipt_path(store: Reader, key: bytes) -> _ReceiptPath | None:
    """From one snapshot of the buckets: the key's leaf and its path; None where it has no leaf there."""
    tree = MerkleMap(store.buckets())
    hashes, leaves = [], []
    for key_hash, leaf in tree.items():
        hashes.append(key_hash)
        leaves.append(leaf)
    wanted = sha256(key).digest()
    at = bisect_left(hashes, wanted)
    if at == len(hashes) or hashes[at] != wanted:
        return None
    root, steps = plain_path(leaves, at)
    return _ReceiptPath(leaves[at], tree.root(), root, steps)


class _CutMeanwhile(Exception):
    """A fork took entries out of the store while they were read."""


async def show_history(node: Ledger, key: bytes, after: Version | None, limit: int) -> HistoryPage:
    """A page of the history of a key. All of it is read for that, in a thread.

    Raises `not_found` when nothing was ever written under it, `bad_request` when `after` is not listed.
    """
    for _ in range(_TRIES):
        try:
            if node.store.in_line:
                return _history_page(node.store, key, after, limit)
            return await trio.to_thread.run_sync(_history_page, node.store, key, after, limit)
        except _CutMeanwhile:
            await trio.lowlevel.checkpoint()
    raise LatticeError(
        "not_ready", "Forks take out what is read of this key faster than it is read; try again."
    )


def _history_page(store: Reader, key: bytes, after: Version | None, limit: int) -> HistoryPage:
    history = read_history(store, key)
    if not history.items:
        raise LatticeError("not_found", f"Nothing was ever written under {key.decode()[:100]!r}.")
    shown = history.page(after, limit, HISTORY_PAGE_BYTES)
    is_last = not shown or shown[-1] is history.items[-1]
    return HistoryPage(tuple(shown), tuple(_put_values(store, shown)), history.complete, is_last)


def read_history(store: Reader, key: bytes, *, ops_max: int = HISTORY_OPS_MAX) -> KeyHistory:
    """The history of a key as of one commit; of one with very many ops the newest `ops_max`.

    The newest are found from the end of each log, where an honest clock is highest, so that no more is
    read than is listed: an author whose clocks fall hides ops of its own log and of no other. Versions
    that are live stand in the history wherever they are found.
    """
    heads, state = _as_of(store, key)
    logs = {log: heads[log].seq for log in store.op_logs(key) if log in heads}
    walks = [_from_the_end(store, key, log, last) for log, last in logs.items()]
    newest = merge(*walks, key=rank, reverse=True)
    found: dict[Version, Written] = {}
    names = 0
    for one in newest:
        names += len(one.op.over) + len(one.op.over_own)
        if len(found) == ops_max or names > HISTORY_NAMES_MAX:
            complete = False
            break
        found[one.version] = one
    else:
        complete = True
    for live in state.live:
        if live.version not in found:
            written = _written(store, key, LogKey(live.author, live.epoch), live.seq)
            found.update((one.version, one) for one in written if one.version == live.version)
    earlier = {} if complete else _earlier_puts(store, key, found.values())
    after = store.log_heads()
    if any(after[log].frozen != heads[log].frozen for log in logs):
        raise _CutMeanwhile
    return history_of(found.values(), state, complete=complete, earlier=earlier)


def _as_of(store: Reader, key: bytes) -> tuple[dict[LogKey, LogHead], KeyState]:
    """The heads and the state of a key from one commit: what comes into the logs later is left out."""
    while True:
        heads = store.log_heads()
        state = store.key_state(key) or KeyState(key)
        if store.log_heads() == heads:
            return heads, state


def _from_the_end(store: Reader, key: bytes, log: LogKey, last: int) -> Iterator[Written]:
    """The ops of a key in one log up to the entry `last`, the last first."""
    below, size = (last + 1, 0), 1
    while rows := store.newest_ops(key, log, below, size):
        for seq in dict.fromkeys(row.seq for row in rows):
            yield from _written(store, key, log, seq)
        # The rest of that entry, if its rows were cut in two, has come with it.
        below = rows[-1].seq, 0
        size = min(2 * size, HISTORY_CHUNK)  # little is read of the many logs that have nothing new


def _written(store: Reader, key: bytes, log: LogKey, seq: int) -> list[Written]:
    """The ops of a key in one entry, the last first."""
    row = _held(store, log, seq)
    header = parse_header(row.header)
    return [
        Written(Version(row.id, index), *log, seq, header.clock, row.lung, row.peer, row.arrived_ms, op)
        for index, op in reversed(ops_of_key(header, row.ops, key).items())
    ]


def _held(store: Reader, log: LogKey, seq: int) -> EntryRow:
    row = store.entry(*log, seq)
    if row is None:
        if store.log_heads()[log].frozen <= seq:
            raise _CutMeanwhile
        raise LatticeError("store_corrupt", f"Entry {seq} of a log is gone, its ops are not.")
    return row


def _earlier_puts(store: Reader, key: bytes, listed: Iterable[Written]) -> dict[LogKey, Version]:
    lowest: dict[LogKey, tuple[int, int]] = {}
    for one in listed:
        lowest[one.log] = min(one.place, lowest.get(one.log, one.place))
    puts = {log: store.latest_put(key, *log, place) for log, place in lowest.items()}
    return {log: put for log, put in puts.items() if put is not None}


def _put_values(store: Reader, items: Iterable[HistoryItem]) -> Iterator[bytes | None]:
    row: EntryRow | None = None
    for item in items:
        one, op = item.written, item.written.op
        if op.kind is not OpKind.PUT:
            yield None
            continue
        if row is None or row.id != one.version.id:  # ops of one entry stand side by side
            row = _held(store, one.log, one.seq)
        yield row.ops[op.value_at : op.value_at + op.value_size]
