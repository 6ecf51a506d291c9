"""Forks on three and on five real nodes: every branch comes to another node, and all end with the same F.

Separate from the histories in the simulator because here the proofs travel over both real lungs, next to
honest writers, past a node that was not there. The forger is the peer of `tests/independent`, which shares
no code with the nodes, and so is the verifier of their proofs.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import pytest
from nacl.signing import SigningKey

from lattice.testing.cluster import LocalNode, make_nodes, roots_equal, running, wait_for
from tests.independent.forks import read_fork_proof
from tests.independent.ledger import Author, Ledger, LogName
from tests.independent.peer import Peer
from tests.independent.real_nodes import agrees, call, forks_of, pulled, put, same_values
from tests.independent.wire_format import PUT, Entries, Ticket, make_op, peer_id, read_ticket
from tests.integration.processes.process_kit import Journal, history_faults, missing, values_of, writing

WITHIN_S = 60
CONTESTED = "rate/{}"  # a key of an honest writer, over which every forger puts a value of its own

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


@dataclass(frozen=True, slots=True)
class Forgery:
    """One log, forked: where each further branch leaves the first, and whether the last comes late."""

    label: str
    length: int
    leaves_at: tuple[int, ...]
    late: bool = False


FORGERIES = (
    Forgery("two branches", 12, (9,)),
    Forgery("from the first entry on", 3, (0,)),
    Forgery("three branches", 20, (15, 6)),
    Forgery("four branches", 24, (20, 14, 3)),
    Forgery("four branches at one place", 10, (7, 7, 7)),
    Forgery("far apart", 200, (190, 5)),
    Forgery("a late one below", 30, (25, 4), late=True),
    Forgery("a late one above", 30, (4, 25), late=True),
)


class Forged:
    """The branches of one forgery."""

    def __init__(self, forgery: Forgery, network_id: bytes) -> None:
        first = Author(Ledger(network_id), SigningKey.generate())
        self.forgery = forgery
        self.name: LogName = (first.public_key, first.epoch)
        self.contested = CONTESTED.format(first.public_key.hex()[:12])
        self._network_id = network_id
        self.branches = [first]
        self._write(first, forgery.length, "branch 0")
        for number, at in enumerate(forgery.leaves_at, start=1):
            branch = Author(Ledger(network_id), first.key)
            branch.epoch = first.epoch
            mine, its = branch.ledger.logs[self.name], first.ledger.logs[self.name]
            mine.entries = its.entries[:at]
            mine.seals = {seq: seal for seq, seal in its.seals.items() if seq < at}
            self._write(branch, at + 2 + number, f"branch {number}")
            self.branches.append(branch)

    @property
    def fork(self) -> int:
        """The lowest seq at which two of the branches differ, by looking at all pairs."""
        ids = [[entry.id for entry in branch.ledger.logs[self.name].entries] for branch in self.branches]
        return min(
            next(seq for seq, (one, other) in enumerate(zip(left, right, strict=False)) if one != other)
            for left, right in combinations(ids, 2)
        )

    def body(self, branch: Author) -> Entries:
        log = branch.ledger.logs[self.name]
        frames = tuple((entry.header_bytes, entry.ops_bytes) for entry in log.entries)
        return Entries(frames, tuple(log.seals[seq] for seq in sorted(log.seals)))

    def _write(self, branch: Author, length: int, text: str) -> None:
        log = branch.ledger.logs[self.name]
        for place in range(log.height + 1 if log.entries else 0, length):
            value = json.dumps(f"{text} {place}").encode()
            # Above every fork of it, hence taken out in the end: with a clock that wins until then.
            key = self.contested if place >= max(self.forgery.leaves_at) else f"{self.contested}/{place}"
            branch.write(make_op(PUT, key, value), clock=(1 << 50) + place)


def hand_over(ticket: Ticket, node: LocalNode, forged: Forged, branch: Author) -> None:
    Peer(ticket, f"http://127.0.0.1:{node.sync_port}", SigningKey.generate()).ask([forged.body(branch)])


def judge(nodes: Sequence[LocalNode], ticket: Ticket, all_forged: Sequence[Forged]) -> None:
    """The same F with a valid proof everywhere, the same values, and what an operator is told."""
    for node in nodes:
        found = forks_of(node)
        assert set(found) == {forged.name for forged in all_forged}
        for forged in all_forged:
            fork = found[forged.name]
            assert fork["frozen"] == forged.fork, f"{node.name}, {forged.forgery.label}"
            proof = read_fork_proof(ticket.network_id, bytes.fromhex(fork["proof"]))
            assert proof.fork == forged.fork
            assert {forged.name} == {(link.header.author, link.header.epoch) for link in proof.first.links}
            status, shown = call(node, "GET", f"/api/lattice/keys/{forged.contested}")
            assert status == 200
            # What the forger had put over the honest value is gone as if it had never come.
            assert (shown["value"], shown["siblings"]) == ("honest", []), forged.forgery.label
        status = node.status()
        assert status.forks == len(all_forged)
        told = "\n".join(status.alarms)
        listed = node.command("forks")
        for forged in all_forged:
            author = peer_id(forged.name[0])
            assert f"is frozen at seq {forged.fork}" in told
            assert f"{author} epoch {forged.name[1]:016x} is frozen at seq {forged.fork}" in listed
        newcomer = pulled(ticket, node)  # it reaches this node alone
        agrees(newcomer.ledger, node)
        same_values(newcomer.ledger, node)


@pytest.mark.parametrize("size", [3, 5])
def test_every_node_ends_with_the_lowest_fork_whatever_came_where(tmp_path: Path, size: int) -> None:
    seed = 20_261_126 + size
    dice = random.Random(seed)
    nodes = make_nodes(tmp_path, [f"node{number}" for number in range(size)])
    away = nodes[-1]
    journal = Journal()
    with running(nodes):
        ticket = read_ticket(nodes[0].command("invite").split()[-1])
        wait_for(
            "peers", lambda: all(node.status().peer_count == size - 1 for node in nodes), within_s=WITHIN_S
        )
        all_forged = [Forged(forgery, ticket.network_id) for forgery in FORGERIES]
        for forged in all_forged:
            put(nodes[0], forged.contested, "honest")
        wait_for("equal roots", lambda: roots_equal(nodes), within_s=WITHIN_S)
        away.stop()
        there = nodes[:-1]
        turns = [
            (forged, number)
            for forged in all_forged
            for number in range(len(forged.branches) - forged.forgery.late)
        ]
        dice.shuffle(turns)
        with writing(there[0], journal, "first", writers=1), writing(there[1], journal, "second", writers=1):
            for forged, number in turns:
                hand_over(ticket, there[number % len(there)], forged, forged.branches[number])
            # Every fork that can be known is known, before the last node and the last branches come.
            wait_for(
                "the forks",
                lambda: all(set(forks_of(node)) == {each.name for each in all_forged} for node in there),
                within_s=WITHIN_S,
            )
            away.start()
            for forged in all_forged:
                if forged.forgery.late:
                    hand_over(ticket, away, forged, forged.branches[-1])
        wait_for("equal roots", lambda: roots_equal(nodes), within_s=WITHIN_S)
        judge(nodes, ticket, all_forged)
        for node in nodes:
            assert missing(journal, values_of(node)) == []
            assert "Traceback" not in node.log_text()
    print(f"seed {seed}: {len(journal)} honest writes meanwhile")
    assert len(journal) > 50
    forks = len(FORGERIES)
    assert history_faults([node.data_dir for node in nodes], journal, forks=forks) == []
