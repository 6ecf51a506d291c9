"""The judgement at the end of a scenario, from the bytes on the disks and by code of its own.

Separate because no scenario may end without it: a node that says it is in sync proves nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from lattice.schemas import LedgerState
from lattice.storage.datadir import STORE_FILE
from lattice.storage.reader import SqliteReader
from lattice.testing import invariants
from lattice.testing.cluster import LocalNode
from lattice.testing.invariants import Acknowledged
from lattice.testing.reference import Ledger, read_ledger


def judge_ended(
    nodes: Sequence[LocalNode],
    network_id: bytes,
    journal: Sequence[Acknowledged],
    last: Sequence[LedgerState],
) -> None:
    """Every invariant over the stores of ended nodes; `last` is what each said of itself at the end."""
    ledgers = {node.name: _read(node) for node in nodes}
    found = [
        *invariants.check_kept(network_id, journal, ledgers),
        *invariants.check_converged(network_id, ledgers),
        *invariants.check_one_entry_a_place(network_id, ledgers),
    ]
    for node, said in zip(nodes, last, strict=True):
        ledger = ledgers[node.name]
        roots = bytes.fromhex(said.merkle_root), bytes.fromhex(said.log_root)
        found += invariants.check_authentic(network_id, node.name, ledger)
        found += invariants.check_roots(network_id, node.name, ledger, state_root=roots[0], log_root=roots[1])
        assert ledger.size == said.entry_count
    assert not found, "\n".join(map(str, found[:20]))
    # An oracle that was given nothing to look at would be content as well.
    assert journal
    assert all(ledger.size >= len(journal) for ledger in ledgers.values())


def _read(node: LocalNode) -> Ledger:
    reader = SqliteReader(node.data_dir / STORE_FILE)
    try:
        return read_ledger(reader)
    finally:
        reader.close()
