"""Forks between a peer that was written from the wire format's page alone and real nodes.

Separate from the peer's other rounds: here logs have branches, and what counts is that two programs that
share nothing find the same F by whatever way the branches come to them.
"""

from __future__ import annotations

import random
import secrets
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path as FilePath
from typing import Any

import pytest
from nacl.signing import SigningKey

from lattice.testing.cluster import LocalNode, make_nodes, roots_equal, running, wait_for
from tests.independent.forks import ForkProof, Link, Path, read_fork_proof
from tests.independent.ledger import Author, Ledger, LogName, Refusal
from tests.independent.peer import Peer
from tests.independent.real_nodes import (
    agrees,
    entries_refused,
    flipped,
    forks_of,
    pulled,
    put,
    same_values,
    stranger,
)
from tests.independent.wire_format import (
    FORK_PROOF,
    NOTHING,
    OPEN,
    PUT,
    ZERO32,
    Entries,
    Header,
    Hello,
    LogHead,
    Malformed,
    Message,
    Proof,
    Range,
    Seal,
    Ticket,
    Want,
    make_op,
    make_seal,
    read_header,
    read_ticket,
    sha,
    tag,
    u32,
)

pytestmark = pytest.mark.slow
HISTORIES = 24
SEALS_FAIL = {"another's seal", "a bit of the signature"}


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sequence[LocalNode]]:
    pair = make_nodes(tmp_path_factory.mktemp("forks"), ["nodeA", "nodeB"])
    with running(pair):
        put(pair[0], "of the first", 1)
        put(pair[1], "of the second", 2)
        wait_for("both hold everything", lambda: roots_equal(pair), within_s=60)
        yield pair


@pytest.fixture(scope="module")
def ticket(nodes: Sequence[LocalNode]) -> Ticket:
    return ticket_of(nodes[0])


def ticket_of(node: LocalNode) -> Ticket:
    return read_ticket(node.command("invite").split()[-1])


def name_of(author: Author) -> LogName:
    return author.public_key, author.epoch


def write(author: Author, number: int, branch: str, *, sealed: bool = True) -> None:
    """`number` entries whose bytes depend on nothing but the branch and the place."""
    for _ in range(number):
        place = author.ledger.logs[name_of(author)].height + 1
        op = make_op(PUT, f"fork/{author.public_key.hex()[:8]}/{place % 7}", f'"{branch}"'.encode())
        author.write(op, seal=sealed, clock=place)


def branch_of(author: Author, length: int) -> Author:
    """The same log in a ledger of its own, cut to the first entries, to go on with others."""
    branch = Author(Ledger(author.ledger.network_id), author.key)
    branch.epoch = author.epoch
    copy, log = branch.ledger.logs[name_of(author)], author.ledger.logs[name_of(author)]
    copy.entries = log.entries[:length]
    copy.seals = {seq: seal for seq, seal in log.seals.items() if seq < length}
    return branch


def fork_at(
    network_id: bytes, at: int, above: int = 3, key: SigningKey | None = None
) -> tuple[Author, Author]:
    """Two branches of one log that part at a seq."""
    left = Author(Ledger(network_id), SigningKey.generate() if key is None else key)
    write(left, at, "trunk")
    right = branch_of(left, at)
    write(left, above, "left")
    write(right, above, "right")
    return left, right


def whole(author: Author) -> Entries:
    log = author.ledger.logs[name_of(author)]
    frames = tuple((entry.header_bytes, entry.ops_bytes) for entry in log.entries)
    return Entries(frames, tuple(log.seals[seq] for seq in sorted(log.seals)))


def path(author: Author, first: int, last: int) -> Path:
    log = author.ledger.logs[name_of(author)]
    links = tuple(Link(entry.header, entry.header_bytes, entry.id) for entry in log.entries[first : last + 1])
    return Path(links, make_seal(author.ledger.network_id, author.key, log.entries[last]))


def proof_of(left: Author, right: Author, at: int) -> Proof:
    return Proof(FORK_PROOF, ForkProof(path(left, at, at), path(right, at, at)).encode())


def settle(peer: Peer) -> int:
    """Rounds until one is good and finds nothing to do; how many there were before it."""
    for number in range(12):
        outcome = peer.sync()
        assert outcome.refusals == []
        if outcome.good and outcome.exchanges == 1:
            return number
    raise AssertionError("the rounds do not end")


def test_a_newcomer_pulls_the_proof_and_what_it_authenticates(
    nodes: Sequence[LocalNode], ticket: Ticket
) -> None:
    """No seal is left above the fork: what is below is accepted by the proof alone."""
    at = 5
    left, right = fork_at(ticket.network_id, at)
    name = name_of(left)
    teller = stranger(ticket, nodes[0])
    for branch in (left, right):
        teller.ask([whole(branch)])
    put(nodes[0], "after the fork", 1)
    newcomer = stranger(ticket, nodes[0])
    outcome = newcomer.sync()
    assert (outcome.good, outcome.refusals) == (True, [])
    assert outcome.proofs >= 1
    log = newcomer.ledger.logs[name]
    assert (log.frozen, log.entries) == (at, left.ledger.logs[name].entries[:at])
    assert not log.seals
    shown = forks_of(nodes[0])[name]
    assert shown["frozen"] == at
    theirs = read_fork_proof(ticket.network_id, bytes.fromhex(shown["proof"]))
    assert log.proof is not None
    assert (theirs.fork, theirs.continues) == (at, log.proof.continues)
    assert {theirs.first, theirs.second} == {log.proof.first, log.proof.second}  # which is first is free
    agrees(newcomer.ledger, nodes[0])
    same_values(newcomer.ledger, nodes[0])
    wait_for("the other node has frozen it too", lambda: roots_equal(nodes), within_s=60)
    assert forks_of(nodes[1])[name]["frozen"] == at
    agrees(newcomer.ledger, nodes[1])


def test_a_peer_carries_a_fork_to_a_node_that_never_met_the_other(tmp_path: FilePath) -> None:
    first, second = make_nodes(tmp_path, ["nodeA", "nodeB"])
    with running([first]):
        ticket = ticket_of(first)
        left, right = fork_at(ticket.network_id, 70)
        teller = stranger(ticket, first)
        for branch in (left, right):
            teller.ask([whole(branch)])
        carrier = pulled(ticket, first)
    with running([second]):
        assert name_of(left) not in forks_of(second)
        there = Peer(ticket, f"http://127.0.0.1:{second.sync_port}", SigningKey.generate(), carrier.ledger)
        settle(there)
        shown = forks_of(second)[name_of(left)]
        assert shown["frozen"] == 70
        assert read_fork_proof(ticket.network_id, bytes.fromhex(shown["proof"])).fork == 70
        agrees(carrier.ledger, second)
        same_values(carrier.ledger, second)
        agrees(pulled(ticket, second).ledger, second)  # and it serves what it was given


def test_the_peer_finds_a_fork_itself_and_the_node_takes_its_proof(
    nodes: Sequence[LocalNode], ticket: Ticket
) -> None:
    at = 3
    left, right = fork_at(ticket.network_id, at)
    name = name_of(left)
    own, rival = (path(branch, at, at).links[0] for branch in (right, left))
    stranger(ticket, nodes[0]).ask([whole(left)])
    finder = Peer(ticket, f"http://127.0.0.1:{nodes[0].sync_port}", SigningKey.generate(), right.ledger)
    answer = finder.ask([Want((Range(*name, 0, NOTHING),))])
    assert [type(message) for message in answer if not isinstance(message, Hello)] == [Proof]
    assert finder.ledger.take(*answer) == []
    proof = finder.ledger.fork_proof(name)
    assert proof is not None
    made = read_fork_proof(ticket.network_id, proof.payload)
    assert made.fork == finder.ledger.logs[name].frozen == at
    assert (made.first.links[0], made.second.links[0]) == (own, rival)
    assert name not in forks_of(nodes[0])
    finder.ask([proof])
    shown = forks_of(nodes[0])[name]
    assert (shown["frozen"], shown["removed"]) == (at, 3)
    settle(finder)
    agrees(finder.ledger, nodes[0])
    same_values(finder.ledger, nodes[0])


@pytest.mark.parametrize("at", [0, 1, 62, 63, 64, 65, 127, 300])
@pytest.mark.parametrize(("here", "there"), [(1, 1), (1, 140), (140, 1), (140, 140)])
def test_one_round_finds_the_lowest_difference(
    nodes: Sequence[LocalNode], ticket: Ticket, at: int, here: int, there: int
) -> None:
    """Whichever side is longer, wherever the branches part, and however far below the heads."""
    trunk = Author(Ledger(ticket.network_id), SigningKey.generate())
    write(trunk, at, "trunk", sealed=False)
    left, right = branch_of(trunk, at), branch_of(trunk, at)
    for branch, number, what in ((left, here, "left"), (right, there, "right")):
        write(branch, number - 1, what, sealed=False)
        write(branch, 1, what)
    stranger(ticket, nodes[0]).ask([whole(right)])
    peer = Peer(ticket, f"http://127.0.0.1:{nodes[0].sync_port}", SigningKey.generate(), left.ledger)
    outcome = peer.sync()
    assert (outcome.good, outcome.refusals) == (True, [])
    assert peer.ledger.logs[name_of(left)].frozen == at
    assert forks_of(nodes[0])[name_of(left)]["frozen"] == at
    agrees(peer.ledger, nodes[0])


def test_a_lower_fork_that_comes_late_lowers_both(nodes: Sequence[LocalNode], ticket: Ticket) -> None:
    left, right = fork_at(ticket.network_id, 9)
    late = branch_of(left, 4)
    write(late, 2, "late")
    name = name_of(left)
    peer = stranger(ticket, nodes[0])
    peer.ask([whole(left), proof_of(left, right, 9)])
    settle(peer)
    assert forks_of(nodes[0])[name]["frozen"] == peer.ledger.logs[name].frozen == 9
    agrees(peer.ledger, nodes[0])
    lower = proof_of(left, late, 4)
    peer.ask([lower])
    assert forks_of(nodes[0])[name]["frozen"] == 4
    assert peer.ledger.take(lower) == []
    assert (peer.ledger.logs[name].frozen, peer.ledger.logs[name].height) == (4, 3)
    agrees(peer.ledger, nodes[0])
    same_values(peer.ledger, nodes[0])
    higher = proof_of(left, right, 9)  # F only ever falls
    peer.ask([higher])
    assert peer.ledger.take(higher) == []
    assert forks_of(nodes[0])[name]["frozen"] == peer.ledger.logs[name].frozen == 4
    agrees(peer.ledger, nodes[0])


def sealed_header(author: Author, header: Header) -> bytes:
    """A path of one header, which may be of any kind, with a seal that is valid."""
    raw, network_id = header.encode(), author.ledger.network_id
    seal = Seal(author.public_key, author.epoch, header.seq, sha(tag("entry"), network_id, raw), bytes(64))
    signature = author.key.sign(tag("seal") + network_id + seal.body()).signature
    return u32(1) + raw + seal._replace(signature=signature).encode()


def hostile_proofs(left: Author, right: Author, at: int) -> dict[str, bytes]:
    """Payloads that are each wrong in one thing; `at` is where the branches part."""
    honest = ForkProof(path(left, at, at + 1), path(right, at, at + 1))
    first, second = honest.first.encode(), honest.second.encode()
    longer = path(right, at, at + 2)
    holed = longer._replace(links=longer.links[::2])
    other = SigningKey.generate()
    by_other = make_seal(left.ledger.network_id, other, right.ledger.logs[name_of(right)].entries[at + 1])
    abroad = fork_at(secrets.token_bytes(32), at, key=left.key)
    abroad[0].epoch = abroad[1].epoch
    elsewhere = fork_at(left.ledger.network_id, at, key=left.key)[1]
    found = {
        "the same branch twice": first + first,
        "the same branch from F and from F + 1": first + path(left, at + 1, at + 2).encode(),
        "the two the wrong way round": path(right, at + 1, at + 2).encode() + first,
        "from below the fork": path(left, at - 1, at).encode() + path(right, at - 1, at).encode(),
        "from F and F + 2": first + path(right, at + 2, at + 2).encode(),
        "another log": first + path(elsewhere, at, at + 1).encode(),
        "another network": path(abroad[0], at, at).encode() + path(abroad[1], at, at).encode(),
        "a path alone": first,
        "three paths": first + second + second,
        "no header": first + bytes(4) + honest.second.seal.encode(),
        "a header left out": first + holed.encode(),
        "the seal of a lower header": first + honest.second._replace(seal=path(right, at, at).seal).encode(),
        "the seal of the other branch": first + honest.second._replace(seal=honest.first.seal).encode(),
        "another's seal": first + honest.second._replace(seal=by_other).encode(),
        "a seq that must be sealed within": first + path(right, at, at + 70).encode(),
        "bytes left over": first + second + b"\0",
        "nothing": b"",
    }
    for place in (0, 1, 40, 45, 60, 85, 90, 94, 126, 127 + 50, 2 * 127 + 3, 2 * 127 + 50):
        found[f"a bit at {place} of the second path"] = first + flipped(second, 4 + place)
    found["a bit of the signature"] = first + flipped(second, len(second) - 40)
    header = read_header(right.ledger.logs[name_of(right)].entries[at].header_bytes)
    for what, wrong in {
        "no ops": header._replace(op_count=0),
        "257 ops": header._replace(op_count=257),
        "too many bytes of ops": header._replace(ops_bytes=262_144 - 126),
    }.items():
        found[what] = first + sealed_header(left, wrong)
    return found


def reason_for(what: str) -> str:
    """Under which word the node counts it: a seal that fails has one of its own."""
    return "bad_seal" if what in SEALS_FAIL else "malformed_proof"


def refusals_of(ledger: Ledger, payload: bytes) -> list[Refusal]:
    with pytest.raises(Malformed):
        read_fork_proof(ledger.network_id, payload)
    return ledger.take(Proof(FORK_PROOF, payload))


def test_hostile_proofs_are_refused_here_and_by_the_node(nodes: Sequence[LocalNode], ticket: Ticket) -> None:
    at = 2
    left, right = fork_at(ticket.network_id, at, above=80)
    name = name_of(left)
    peer = pulled(ticket, nodes[0])
    peer.ask([whole(left)])
    settle(peer)
    before, roots = forks_of(nodes[0]), peer.ledger.roots()
    for what, payload in hostile_proofs(left, right, at).items():
        counted = entries_refused(nodes[0])
        assert len(refusals_of(peer.ledger, payload)) == 1, what
        peer.ask([Proof(FORK_PROOF, payload)])
        assert entries_refused(nodes[0]) == counted + Counter([reason_for(what)]), what
        assert forks_of(nodes[0]) == before, what
        assert peer.ledger.logs[name].frozen == OPEN, what
    assert peer.ledger.roots() == roots
    agrees(peer.ledger, nodes[0])
    unknown = Proof(9, proof_of(left, right, at).payload)
    peer.ask([unknown])
    assert peer.ledger.take(unknown) == []
    assert forks_of(nodes[0]) == before
    honest = proof_of(left, right, at)
    counted = entries_refused(nodes[0])
    peer.ask([honest])
    assert peer.ledger.take(honest) == []
    assert entries_refused(nodes[0]) == counted
    assert forks_of(nodes[0])[name]["frozen"] == peer.ledger.logs[name].frozen == at
    agrees(peer.ledger, nodes[0])


def test_a_first_header_that_continues_something_is_refused(
    nodes: Sequence[LocalNode], ticket: Ticket
) -> None:
    author = Author(Ledger(ticket.network_id), SigningKey.generate())
    write(author, 2, "trunk")
    first = author.ledger.logs[name_of(author)].entries[0]
    rival = sealed_header(author, first.header._replace(prev=secrets.token_bytes(32)))
    payload = path(author, 0, 1).encode() + rival
    peer = stranger(ticket, nodes[0])
    counted = entries_refused(nodes[0])
    peer.ask([Proof(FORK_PROOF, payload)])
    assert entries_refused(nodes[0]) == counted + Counter(["malformed_proof"])
    assert len(refusals_of(author.ledger, payload)) == 1
    assert name_of(author) not in forks_of(nodes[0])


ODD: dict[str, dict[str, Any]] = {
    "another clock": {"clock": 77},
    "another format version": {"version": 200},
    "ops that nobody could have": {"op_count": 256, "ops_bytes": 0},
    "the largest ops": {"ops_bytes": 262_144 - 127},
}


@pytest.mark.parametrize("what", ODD)
def test_what_is_not_judged_of_a_header_alone(nodes: Sequence[LocalNode], ticket: Ticket, what: str) -> None:
    author = Author(Ledger(ticket.network_id), SigningKey.generate())
    write(author, 5, "trunk")
    header = author.ledger.logs[name_of(author)].entries[3].header
    rival = sealed_header(author, header._replace(**ODD[what]))
    proof = Proof(FORK_PROOF, path(author, 3, 4).encode() + rival)
    peer = stranger(ticket, nodes[0])
    peer.ask([whole(author), proof])
    assert author.ledger.take(proof) == []
    assert author.ledger.logs[name_of(author)].frozen == 3
    assert forks_of(nodes[0])[name_of(author)]["frozen"] == 3


def test_a_header_that_names_an_entry_of_another_seq(nodes: Sequence[LocalNode], ticket: Ticket) -> None:
    """The evidence is at the seq below the header, whatever entry the id belongs to."""
    author = Author(Ledger(ticket.network_id), SigningKey.generate())
    write(author, 6, "trunk")
    entries = author.ledger.logs[name_of(author)].entries
    strange = sealed_header(author, entries[4].header._replace(prev=entries[1].id))
    proof = Proof(FORK_PROOF, path(author, 3, 5).encode() + strange)
    peer = stranger(ticket, nodes[0])
    peer.ask([whole(author)])
    peer.ask([proof])
    assert author.ledger.take(proof) == []
    assert author.ledger.logs[name_of(author)].frozen == 3
    assert forks_of(nodes[0])[name_of(author)]["frozen"] == 3
    settle(peer)
    agrees(peer.ledger, nodes[0])


def test_a_seal_without_its_entry_and_a_malformed_entry_prove_nothing(
    nodes: Sequence[LocalNode], ticket: Ticket
) -> None:
    left, right = fork_at(ticket.network_id, 2)
    rivals = whole(right)
    (header, ops) = rivals.frames[-1]
    nothing = [
        Entries((), rivals.seals[-1:]),
        Entries((*rivals.frames[2:-1], (header, flipped(ops, len(ops) - 1))), rivals.seals[-1:]),
    ]
    peer = stranger(ticket, nodes[0])
    peer.ask([whole(left)])
    for message in nothing:
        peer.ask([message])
        left.ledger.take(message)
    assert left.ledger.logs[name_of(left)].frozen == OPEN
    assert name_of(left) not in forks_of(nodes[0])
    peer.ask([rivals])  # the honest control
    left.ledger.take(rivals)
    assert left.ledger.logs[name_of(left)].frozen == forks_of(nodes[0])[name_of(left)]["frozen"] == 2


def test_entries_above_the_fork_are_answered_with_the_proof_once(
    nodes: Sequence[LocalNode], ticket: Ticket
) -> None:
    left, right = fork_at(ticket.network_id, 2)
    stranger(ticket, nodes[0]).ask([whole(left), proof_of(left, right, 2)])
    peer = stranger(ticket, nodes[0])
    (proof,) = [each for each in peer.ask([whole(right)]) if isinstance(each, Proof)]
    assert read_fork_proof(ticket.network_id, proof.payload).fork == 2
    assert peer.ask([whole(right)]) == []


def test_a_proof_authenticates_what_is_below_in_either_order(
    nodes: Sequence[LocalNode], ticket: Ticket
) -> None:
    for proof_first in (False, True):
        left, right = fork_at(ticket.network_id, 2)
        below = Entries(whole(left).frames[:2], ())
        proof = proof_of(left, right, 2)
        body: list[Message] = [proof, below] if proof_first else [below, proof]
        ours = Ledger(ticket.network_id)
        assert ours.take(below) != []  # without the proof it is no data
        assert ours.take(*body) == []
        assert ours.logs[name_of(left)].height == 1
        peer = stranger(ticket, nodes[0])
        peer.ask([below])
        assert name_of(left) not in {name for name, _ in pulled(ticket, nodes[0]).ledger.held()}
        peer.ask(body)
        settle(peer)
        assert peer.ledger.logs[name_of(left)].height == 1
        agrees(peer.ledger, nodes[0])


def random_branches(network_id: bytes, dice: random.Random) -> list[Author]:
    """Up to five branches, each from a place of an earlier one, with seals here and there."""
    first = Author(Ledger(network_id), SigningKey(dice.randbytes(32)))
    first.epoch = dice.getrandbits(64)
    branches = [first]
    write_some(first, dice.randint(1, 200), "0", dice)
    for number in range(1, dice.randint(2, 5)):
        parent = dice.choice(branches)
        height = parent.ledger.logs[name_of(parent)].height
        branches.append(branch_of(parent, dice.randint(0, height)))
        write_some(branches[-1], dice.randint(1, 100), str(number), dice)
    return branches


def write_some(author: Author, number: int, branch: str, dice: random.Random) -> None:
    for place in range(number):
        write(author, 1, branch, sealed=place == number - 1 or dice.random() < 0.1)


def some_of(branches: Sequence[Author], dice: random.Random) -> Entries | Proof:
    """A beginning of a branch, or a proof that two of them make."""
    author, rival = dice.sample(branches, 2)
    ours, theirs = (each.ledger.logs[name_of(each)].entries for each in (author, rival))
    differ = [seq for seq in range(min(len(ours), len(theirs))) if ours[seq].id != theirs[seq].id]
    if differ and dice.random() < 0.4:
        return proof_of(author, rival, differ[0])
    message = whole(author)
    return message._replace(frames=message.frames[: dice.randint(1, len(message.frames))])


@pytest.mark.parametrize("seed", range(HISTORIES))
def test_random_histories_end_with_the_same_fork(
    nodes: Sequence[LocalNode], ticket: Ticket, seed: int
) -> None:
    """Some of several branches come to the node, some to the peer, and then they talk."""
    dice = random.Random(seed)
    branches = random_branches(ticket.network_id, dice)
    name = name_of(branches[0])
    teller, peer = stranger(ticket, nodes[0]), pulled(ticket, nodes[0])
    for _ in range(dice.randint(1, 4)):
        teller.ask([some_of(branches, dice)])
    for _ in range(dice.randint(1, 4)):
        peer.ledger.take(some_of(branches, dice))
    settle(peer)
    agrees(peer.ledger, nodes[0])
    frozen = forks_of(nodes[0]).get(name, {"frozen": OPEN})["frozen"]
    assert peer.ledger.logs[name].frozen == frozen
    newcomer = stranger(ticket, nodes[0])
    settle(newcomer)
    assert newcomer.ledger.roots() == peer.ledger.roots()


def test_a_frozen_head_bounds_what_is_asked_for_and_taken() -> None:
    network_id = secrets.token_bytes(32)
    left, right = fork_at(network_id, 1, above=1)
    name = name_of(left)
    trunk = left.ledger.logs[name].entries[0]
    empty = Ledger(network_id)
    head = LogHead(left.epoch, 7, ZERO32, 5)
    assert empty.lacks(left.public_key, [head]) == [Range(*name, 0, 4)]
    assert empty.lacks(left.public_key, [head._replace(frozen=0)]) == []
    assert empty.lacks(left.public_key, [LogHead(left.epoch, NOTHING, ZERO32, 3)]) == []
    message = whole(left)
    assert left.ledger.take(proof_of(left, right, 1)) == []
    assert left.ledger.heads(left.public_key) == (LogHead(left.epoch, 0, trunk.id, 1),)
    left.ledger.take(message)
    assert left.ledger.entry_count == 1
    assert left.ledger.lacks(left.public_key, [head]) == []
    rival = sealed_header(left, trunk.header._replace(clock=99))
    lowest = u32(1) + trunk.header_bytes + message.seals[0].encode() + rival
    assert left.ledger.take(Proof(FORK_PROOF, lowest)) == []
    assert left.ledger.heads(left.public_key) == (LogHead(left.epoch, NOTHING, ZERO32, 0),)
    assert left.ledger.state() == {}


def test_more_proofs_than_one_body_takes_come_with_the_next_rounds(tmp_path: FilePath) -> None:
    """Of logs of which nothing is held there is nothing to want that would bring the other proofs."""
    (node,) = make_nodes(tmp_path, ["nodeA"])
    with running([node]):
        ticket = ticket_of(node)
        teller = stranger(ticket, node)
        for _ in range(70):
            teller.ask([proof_of(*fork_at(ticket.network_id, 0, above=1), 0)])
        assert len(forks_of(node)) == 70
        newcomer = stranger(ticket, node)
        assert settle(newcomer) == 3
        agrees(newcomer.ledger, node)
