"""From committed rows to what is shown of a key: its proof and its history.

Separate from the node because it only reads, and from the core because it reads a store that another
thread may be committing to: pieces of two commits do not fit together, which the check of a proof tells.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from hashlib import sha256
from typing import Final, NamedTuple, Protocol

import trio

from ..core.engine import Engine
from ..core.entry import parse_entry, parse_header
from ..core.errors import LatticeError, MalformedError
from ..core.forks import unpack_fork_proof
from ..core.history import OPS_READ_MAX, KeyHistory, Written, history_of
from ..core.identity import public_key_of
from ..core.limits import PAGE_BYTES, SEAL_INTERVAL
from ..core.merkle import MerkleMap, bucket_of
from ..core.proofs import KeyProof, ProofValue, ProofVersion, Statement, audit_path, verify_proof, winner_of
from ..core.receipts import Receipt, ReceiptStatement, Step, plain_path, statement_body
from ..core.rows import KeyState, LiveVersion, LogKey, Reader
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
    fork = store.fork_rows().get(LogKey(header.author, header.epoch))
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


def read_history(store: Reader, network_id: bytes, key: bytes) -> KeyHistory:
    """The history of a key; of one with very many ops the first OPS_READ_MAX in log order."""
    ops = store.history(key, OPS_READ_MAX + 1)
    complete = len(ops) <= OPS_READ_MAX
    written = []
    for op in ops[:OPS_READ_MAX]:
        row = store.entry(op.author, op.epoch, op.seq)
        if row is None:
            raise LatticeError("store_corrupt", f"Entry {op.id.hex()} is gone, its op is not.")
        entry = parse_entry(network_id, row.header, row.ops)
        parsed = entry.parsed_ops()[op.op_index]
        if parsed is None:
            raise LatticeError("store_corrupt", f"Op {op.op_index} of entry {op.id.hex()} is not applied.")
        written.append(Written(row, entry.header, op.op_index, parsed))
    return history_of(written, store.key_state(key) or KeyState(key), complete=complete)
