"""A peer that was written from the wire format's page alone, against real nodes.

Separate from the suites of the product, which share its code with what they test: here two programs
that share nothing have to agree on every byte.
"""

from __future__ import annotations

import json
import random
import secrets
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
from nacl.signing import SigningKey

from lattice.testing.cluster import LocalNode, make_nodes, roots_equal, running, wait_for
from tests.independent.ledger import Author, Ledger, LogName
from tests.independent.peer import (
    ANSWER,
    EVERY_AUTHOR,
    HOLDS_ALL,
    LAST,
    LISTS,
    ONE_WAY,
    REQUEST,
    Peer,
    Refused,
    statement_is_signed,
)
from tests.independent.real_nodes import (
    agrees,
    call,
    flipped,
    keys_of,
    pulled,
    put,
    same_values,
    state_of,
    stranger,
)
from tests.independent.wire_format import (
    DELETE,
    PUT,
    ZERO32,
    Entries,
    Heads,
    Hello,
    LogHead,
    Message,
    Range,
    Roots,
    Ticket,
    Want,
    blob,
    make_add,
    make_body,
    make_op,
    make_seal,
    peer_id,
    public_key_of,
    read_body,
    read_header,
    read_ticket,
    u8,
    u32,
)

pytestmark = pytest.mark.slow
FUZZ_CASES = 2_000
BIG_VALUE = "x" * 130_000


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sequence[LocalNode]]:
    """Two nodes of one network whose ledger has several logs of both, siblings among them."""
    pair = make_nodes(tmp_path_factory.mktemp("independent"), ["nodeA", "nodeB"])
    first, second = pair
    for number, node in enumerate(pair):  # one at a time, so neither sees what the other writes
        node.start()
        try:
            for place in range(5):
                put(node, f"both/{place}", {"by": node.name, "place": place})
            put(node, f"only/{number}", number)
            call(node, "DELETE", f"/api/lattice/keys/only/{number}")
            adds = [{"op": "add", "key": "count", "amount": 2**53 - 1 - number} for _ in range(3)]
            status, answer = call(node, "POST", "/api/lattice/entries", {"ops": adds})
            assert status == 201, answer
        finally:
            node.stop()
    with running(pair):
        for place in range(140):  # an entry each: two that must be sealed for their seq
            put(first, f"many/{place}", place)
        for place in range(30):  # several pages, and all of them sealed for their size
            put(second, f"big/{place}", BIG_VALUE + str(place))
        put(second, "text/Łódź/\N{SNOWMAN}", "key with letters")
        call(first, "DELETE", "/api/lattice/keys/many/7")
        mixed = [
            {"op": "put", "key": "both/4", "value": "settled"},
            {"op": "put", "key": "twice", "value": 1},
            {"op": "put", "key": "twice", "value": 2},
            {"op": "delete", "key": "many/8"},
            {"op": "add", "key": "twice", "amount": -5},
        ]
        wait_for("both hold everything", lambda: roots_equal(pair), within_s=60)
        status, answer = call(first, "POST", "/api/lattice/entries", {"ops": mixed})
        assert status == 201, answer
        wait_for("both hold everything", lambda: roots_equal(pair), within_s=60)
        yield pair


@pytest.fixture(scope="module")
def ticket(nodes: Sequence[LocalNode]) -> Ticket:
    return read_ticket(nodes[0].command("invite").split()[-1])


def test_everything_is_pulled_and_both_roots_come_out_of_the_entries(
    nodes: Sequence[LocalNode], ticket: Ticket
) -> None:
    peer = stranger(ticket, nodes[0])
    outcome = peer.sync()
    assert (outcome.good, outcome.refusals, peer.challenges_answered) == (True, [], 1)
    agrees(peer.ledger, nodes[0])
    same_values(peer.ledger, nodes[0])
    logs = dict(peer.ledger.held())
    assert outcome.pages >= 3
    assert len({author for author, _ in logs}) == 2
    assert len(logs) >= 3  # a log a process and writer
    entries = [entry for log in logs.values() for entry in log.entries]
    assert sum(entry.must_be_sealed and entry.header.seq % 64 == 63 for entry in entries) >= 2
    assert sum(entry.must_be_sealed and entry.header.seq % 64 != 63 for entry in entries) >= 30
    cells = peer.ledger.state()
    assert [len(cells[f"both/{place}".encode()].live) for place in range(5)] == [2, 2, 2, 2, 1]
    assert cells[b"count"].total == 6 * (2**53 - 1) - 3
    assert cells[b"twice"].total == -5
    assert not {b"only/0", b"only/1", b"many/7", b"many/8"} & set(cells)


def test_a_round_with_nothing_to_do(nodes: Sequence[LocalNode], ticket: Ticket) -> None:
    peer = pulled(ticket, nodes[1])
    plain, padded = peer.sync(), peer.sync(padded=True)
    assert (plain.good, plain.exchanges) == (True, 1)
    assert (padded.good, padded.exchanges) == (True, 2)


def test_the_statement_of_roots_is_signed_by_the_node(nodes: Sequence[LocalNode], ticket: Ticket) -> None:
    status, identity = call(nodes[0], "GET", "/api/lattice/p2p/identity")
    assert status == 200
    signer = public_key_of(identity["peer_id"])
    assert signer == ticket.peers[0].public_key
    shown = state_of(nodes[0])
    assert shown["signed"] is True
    assert statement_is_signed(ticket, signer, shown)
    for name in ("merkle_root", "log_root"):
        assert not statement_is_signed(ticket, signer, {**shown, name: "00" * 32})
    assert not statement_is_signed(ticket, signer, {**shown, "timestamp_ms": shown["timestamp_ms"] + 1})
    assert not statement_is_signed(ticket, ticket.peers[0].public_key[:31] + b"\x00", shown)


def write_of_every_kind(author: Author, siblings: Sequence[tuple[bytes, int]]) -> None:
    """What the rules of state and acceptance tell apart, as entries of an author of its own."""
    first = author.write(make_op(PUT, "mine/a", b'"one"'), make_op(PUT, "both/3", b'"a sibling more"'))
    author.write(make_op(PUT, "mine/a", b'"two"'))
    author.write(make_op(PUT, "both/0", b'"all replaced"', siblings))
    author.write(
        make_op(PUT, "mine/b", b"1"),
        make_op(DELETE, "mine/b", names=[(b"", 0)]),
        make_op(PUT, "mine/c", b"1", [(first.id, 0)]),  # another key: the name does not count
        make_op(PUT, "mine/c", b"2", [(b"", 2), (b"", 2)]),
    )
    author.write(make_op(DELETE, "mine/never", names=[(secrets.token_bytes(32), 3)]))
    author.write(*(make_add("count", -(2**53 - 1)) for _ in range(256)))
    for _ in range(9):  # a sum beyond 64 bits
        author.write(*(make_add("mine/great", 2**53 - 1) for _ in range(256)))
    author.write(
        make_op(9, "mine/unknown kind", b"stored"),
        make_op(PUT, "", b"no key"),
        make_op(PUT, "mine/late", b"1", [(b"", 2)]),  # an index that is not smaller
        u8(PUT) + b"\x00\x02\xc0\xaf" + b"\x00\x00" + blob(b"overlong"),
        make_add("mine/too much", 2**53),
        make_op(DELETE, "mine/a", b"with a body"),
        b"",
    )
    author.write(make_op(PUT, "mine/next format", b"1"), version=2)
    author.write(make_op(PUT, "mine/not json", b"{"), clock=0)
    for place in range(150):  # unsealed stretches
        author.write(make_op(PUT, f"mine/many/{place}", str(place).encode()), seal=place == 149)
    for place in range(16):  # more than a page
        author.write(make_op(PUT, f"mine/big/{place}", b'"' + b"y" * 131_000 + b'"'), seal=False)
    author.write(make_op(PUT, "mine/last", b"true"))


def test_own_entries_are_pushed_and_roots_agree_everywhere(
    nodes: Sequence[LocalNode], ticket: Ticket
) -> None:
    peer = pulled(ticket, nodes[0])
    siblings = sorted(peer.ledger.state()[b"both/0"].live)
    assert len(siblings) == 2
    author = Author(peer.ledger, peer.key)
    write_of_every_kind(author, siblings)
    outcome = peer.sync()
    assert (outcome.good, outcome.refusals) == (True, [])
    agrees(peer.ledger, nodes[0])
    same_values(peer.ledger, nodes[0])
    wait_for("the other node holds it too", lambda: roots_equal(nodes), within_s=60)
    agrees(peer.ledger, nodes[1])
    cells = peer.ledger.state()
    assert cells[b"mine/great"].total > 2**64
    assert len(cells[b"both/0"].live) == 1
    assert len(cells[b"both/3"].live) == 3
    assert {key for key in cells if key.startswith(b"mine/") and key.count(b"/") == 1} == {
        b"mine/a", b"mine/c", b"mine/great", b"mine/not json", b"mine/last",
    }  # fmt: skip
    again = pulled(ticket, nodes[1])  # what the product relays is what was pushed
    assert again.ledger.roots() == peer.ledger.roots()


def test_both_sides_have_something_for_the_other(nodes: Sequence[LocalNode], ticket: Ticket) -> None:
    peer = pulled(ticket, nodes[0])
    put(nodes[0], "for the stranger", 1)
    Author(peer.ledger, peer.key).write(make_op(PUT, "for the node", b"1"))
    outcome = peer.sync(padded=True)
    assert (outcome.good, outcome.refusals, outcome.pages) == (True, [], 1)
    agrees(peer.ledger, nodes[0])
    wait_for("the other node holds it too", lambda: roots_equal(nodes), within_s=60)


def one_log(ledger: Ledger) -> tuple[LogName, Entries]:
    """A short log of a node with several kept seals or one, as one Entries."""
    name, log = min(ledger.held(), key=lambda pair: (len(pair[1].entries), pair[0]))
    return name, ledger.page([Range(*name, 0, log.height)])


def test_one_flipped_bit_is_refused_by_the_verifier(nodes: Sequence[LocalNode], ticket: Ticket) -> None:
    source = pulled(ticket, nodes[0]).ledger
    name, honest = one_log(source)
    whole = Ledger(ticket.network_id)
    assert whole.take(honest) == []
    top = whole.logs[name].height
    assert whole.entry_count == top + 1 == len(honest.frames)

    last_seal = honest.seals[-1]
    assert last_seal.seq == top
    for at in range(144):
        broken = flipped(last_seal.encode(), at, 1 << at % 8)
        seal = read_body(u8(5) + blob(u32(0) + u32(1) + broken))[0]
        assert isinstance(seal, Entries)
        ledger = Ledger(ticket.network_id)
        refusals = ledger.take(honest._replace(seals=(*honest.seals[:-1], *seal.seals)))
        assert refusals, f"byte {at} of the seal"
        assert ledger.entry_count <= top
    header, ops = honest.frames[-1]
    altered = [(flipped(header, at, 1 << at % 8), ops) for at in range(127)]
    altered += [(header, flipped(ops, at, 1 << at % 8)) for at in range(len(ops))]
    for frame in altered:
        ledger = Ledger(ticket.network_id)
        refusals = ledger.take(honest._replace(frames=(*honest.frames[:-1], frame)))
        assert refusals
        assert ledger.entry_count <= top
        held = {entry.id for log in ledger.logs.values() for entry in log.entries}
        assert held <= {entry.id for entry in source.logs[name].entries}


def forged(author: Author, network_id: bytes) -> list[tuple[str, Entries]]:
    """Entries of a fresh log, each wrong in one thing; the log would be right without it."""
    entry = author.write(make_op(PUT, "forged", b"1"))
    frame = (entry.header_bytes, entry.ops_bytes)
    seal = make_seal(network_id, author.key, entry)
    other = SigningKey.generate()
    foreign = Author(Ledger(secrets.token_bytes(32)), author.key)
    abroad = foreign.write(make_op(PUT, "forged", b"1"))
    abroad_seal = make_seal(foreign.ledger.network_id, author.key, abroad)
    late = entry.header._replace(seq=1, prev=ZERO32).encode()
    return [
        ("no seal", Entries((frame,), ())),
        ("a flipped seal", Entries((frame,), (seal._replace(signature=flipped(seal.signature, 5)),))),
        ("another's seal", Entries((frame,), (make_seal(network_id, other, entry),))),
        ("a seal of another id", Entries((frame,), (seal._replace(id=secrets.token_bytes(32)),))),
        ("flipped ops", Entries(((frame[0], flipped(frame[1], 12)),), (seal,))),
        ("a flipped header", Entries(((flipped(frame[0], 85), frame[1]),), (seal,))),
        ("another network", Entries(((abroad.header_bytes, abroad.ops_bytes),), (abroad_seal,))),
        ("a gap below", Entries(((late, frame[1]),), (seal,))),
    ]


def test_a_node_refuses_what_the_page_refuses(nodes: Sequence[LocalNode], ticket: Ticket) -> None:
    peer = pulled(ticket, nodes[0])
    before = state_of(nodes[0])
    for what, entries in forged(Author(Ledger(ticket.network_id), peer.key), ticket.network_id):
        assert Ledger(ticket.network_id).take(entries), what  # the verifier here agrees
        peer.ask([entries])
        after = state_of(nodes[0])
        assert [after[root] for root in ("merkle_root", "log_root")] == [
            before[root] for root in ("merkle_root", "log_root")
        ], what
    Author(peer.ledger, peer.key).write(make_op(PUT, "not forged", b"1"))  # the honest control
    assert peer.sync().good
    agrees(peer.ledger, nodes[0])


def test_a_seal_that_must_be_there_stops_the_walk(nodes: Sequence[LocalNode], ticket: Ticket) -> None:
    peer = pulled(ticket, nodes[0])
    ledger = Ledger(ticket.network_id)
    author = Author(ledger, peer.key)
    for place in range(70):
        author.write(make_op(PUT, f"walk/{place}", b"1"), seal=place in (40, 69))
    log = ledger.logs[author.public_key, author.epoch]
    frames = tuple((entry.header_bytes, entry.ops_bytes) for entry in log.entries)
    seals = (log.seals[40], log.seals[69])  # that of seq 63 is left out
    peer.ask([Entries(frames, seals)])
    heads = {(head["author"], head["epoch"]): head["seq"] for head in state_of(nodes[0])["heads"]}
    assert heads[peer_id(author.public_key), f"{author.epoch:016x}"] == 40
    ours = Ledger(ticket.network_id)
    assert ours.take(Entries(frames, seals))
    assert ours.logs[author.public_key, author.epoch].height == 40
    peer.ask([Entries(frames, (*seals, log.seals[63]))])
    assert peer.sync().good
    agrees(peer.ledger, nodes[0])
    assert peer.ledger.logs[author.public_key, author.epoch].height == 69


def refused(peer: Peer, request: bytes) -> bool:
    """Whether the node refuses a request, with the one word that it has for all of them."""
    status, answer = peer.post(request)
    if status == 200:
        peer.open(answer)
        return False
    assert (status, json.loads(answer)["code"]) == (400, "envelope")
    return True


def test_counters_are_used_once_and_within_their_window(nodes: Sequence[LocalNode], ticket: Ticket) -> None:
    peer = stranger(ticket, nodes[0])
    peer.counter = 5_000
    peer.sync()  # one request to nobody, one that is challenged, and the third proves the boot
    assert peer.challenges_answered == 1
    proof = 5_003

    def used(counter: int) -> bool:
        return refused(peer, peer.seal(REQUEST, peer.other, b"", counter=counter))

    assert [used(proof), used(proof - 32), used(proof - 33), used(1)] == [True] * 4
    assert [used(proof - 31), used(proof - 31), used(proof - 1)] == [False, True, False]
    assert not used(9_000)
    assert [used(9_000 - 1_024), used(9_000 - 1_023), used(9_000 - 1_023)] == [True, False, True]
    peer.counter = 9_000
    assert peer.sync().good


def test_what_a_request_may_not_be(nodes: Sequence[LocalNode], ticket: Ticket) -> None:
    peer = pulled(ticket, nodes[0])
    heads = make_body([Heads(1, 0, peer.ledger.roots())])
    hello = make_body([Hello("s")])
    for what, request in {
        "for another": peer.seal(REQUEST, peer.public_key, heads),
        "for nobody, and not a Hello": peer.seal(REQUEST, ZERO32, heads),
        "an answer": peer.seal(ANSWER, peer.other, heads),
        "one-way": peer.seal(ONE_WAY, ZERO32, heads),
        "65 messages": peer.seal(REQUEST, peer.other, (u8(99) + blob(b"")) * 65),
        "a known one malformed": peer.seal(REQUEST, peer.other, heads + hello[:-1]),
        "bytes left over in a message": peer.seal(REQUEST, peer.other, u8(4) + blob(u32(0) + b"x")),
        "another key number": b"LTC1" + u32(9) + peer.seal(REQUEST, peer.other, heads)[8:],
    }.items():
        assert refused(peer, request), what
    assert not refused(peer, peer.seal(REQUEST, ZERO32, hello))
    assert not refused(peer, peer.seal(REQUEST, peer.other, (u8(99) + blob(b"?")) * 64))
    greeted = peer.exchange([Heads(1, 0, peer.ledger.roots()), Hello("s")])
    assert [type(each) for each in greeted] == [Hello, Heads]
    assert isinstance(greeted[0], Hello)
    assert greeted[0].challenge == ZERO32


def test_an_answer_for_another_is_not_opened(nodes: Sequence[LocalNode], ticket: Ticket) -> None:
    peer = pulled(ticket, nodes[0])
    status, answer = peer.post(peer.seal(REQUEST, peer.other, b""))
    assert (status, peer.open(answer).body) == (200, b"")
    with pytest.raises(Refused):
        stranger(ticket, nodes[0]).open(answer)
    for at in (0, 7, 20, 40, len(answer) - 1):
        with pytest.raises(Refused):
            peer.open(flipped(answer, at))


def test_the_answer_waits_for_news(nodes: Sequence[LocalNode], ticket: Ticket) -> None:
    peer = pulled(ticket, nodes[0])
    began = time.monotonic()
    peer.ask([Heads(1, 0, peer.ledger.roots(), wait_ms=700)])
    assert time.monotonic() - began >= 0.7
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(peer.ask, [Heads(2, 0, peer.ledger.roots(), wait_ms=20_000)])
        put(nodes[0], "news", 1)
        (heads,) = waiting.result(timeout=15)
    assert isinstance(heads, Heads)
    assert heads.roots.log_root != peer.ledger.log_root()
    assert heads.flags == EVERY_AUTHOR


def test_the_rest_of_a_message_is_judged_without_what_is_malformed(
    nodes: Sequence[LocalNode], ticket: Ticket
) -> None:
    """A malformed entry, a bad seal beside a good one, a second entry of one seq: none spoils the log."""
    peer = pulled(ticket, nodes[0])
    author = Author(Ledger(ticket.network_id), peer.key)
    for place in range(3):
        author.write(make_op(PUT, f"rest/{place}", b"1"), seal=place == 2)
    name = (author.public_key, author.epoch)
    honest = author.ledger.page([Range(*name, 0, 2)])
    (header, ops), (seal,) = honest.frames[1], honest.seals
    rival = read_header(header)._replace(clock=7).encode()
    message = Entries(
        ((flipped(header, 100), ops), *honest.frames, (rival, ops)),
        (seal, seal._replace(signature=flipped(seal.signature, 9)), seal._replace(seq=77)),
    )
    peer.ask([message])
    peer.ledger.take(message)
    assert peer.ledger.logs[name].height == 2
    agrees(peer.ledger, nodes[0])


def test_a_new_boot_is_challenged_again_and_nothing_is_done_before(
    nodes: Sequence[LocalNode], ticket: Ticket
) -> None:
    peer = pulled(ticket, nodes[0])
    peer.boot, peer.counter = secrets.randbits(64), 0
    author = Author(Ledger(ticket.network_id), peer.key)
    entry = author.write(make_op(PUT, "before the challenge", b"1"))
    name = (author.public_key, author.epoch)
    message = author.ledger.page([Range(*name, 0, entry.header.seq)])
    first = peer.exchange([message])
    second = peer.exchange([message])
    assert [type(each) for each in (*first, *second)] == [Hello, Hello]
    assert first == second  # the same challenge while it is outstanding
    assert "before the challenge" not in keys_of(nodes[0])
    assert isinstance(first[0], Hello)
    wrong = peer.exchange([Hello("s", answering=secrets.token_bytes(32)), message])
    assert [type(each) for each in wrong] == [Hello]
    assert "before the challenge" not in keys_of(nodes[0])
    peer.exchange([Hello("s", answering=first[0].challenge), message])
    assert "before the challenge" in keys_of(nodes[0])
    assert peer.sync().good


def fresh_bodies(ledger: Ledger, peer: Peer, dice: random.Random) -> list[bytes]:
    """Bodies that an honest peer could send, to be spoiled."""
    author = Author(ledger, peer.key)
    for place in range(4):
        author.write(make_op(PUT, f"fuzz/{place}", b"1"), make_add("fuzz/n", place))
    name = (author.public_key, author.epoch)
    page = ledger.page([Range(*name, 0, 3)])
    zeros = Roots(dice.randbytes(32), dice.randbytes(32), 4)
    head = LogHead(author.epoch, 3, dice.randbytes(32), dice.choice([2**64 - 1, 0, 2, 2**63]))
    number = dice.getrandbits(64)
    heads = Heads(number, LISTS, zeros, lists=((author.public_key, (head,)), (dice.randbytes(32), ())))
    bodies: list[list[Message]] = [
        [Heads(number, dice.randrange(256), zeros, ((dice.randbytes(32), dice.randbytes(32)),), padding=9)],
        [heads, Want((Range(*name, 0, 2**64 - 1), Range(dice.randbytes(32), 0, 5, 5)))],
        [page],
        [page, Want((Range(peer.other, 0, 0, 2**64 - 1),))],
        [Heads(number, LAST | HOLDS_ALL, zeros)],
        [Hello("f", answering=dice.randbytes(32)), heads],
        [Heads(number, 0, zeros), page, heads, Want(())],
    ]
    return [make_body(messages) for messages in bodies]


def spoil(data: bytes, dice: random.Random) -> bytes:
    """Bits flipped, a piece cut out, doubled, or overwritten by a length of the largest kind."""
    for _ in range(dice.randint(1, 4)):
        if not data:
            return dice.randbytes(9)
        at = dice.randrange(len(data))
        end = min(len(data), at + dice.randint(1, 64))
        data = dice.choice([
            flipped(data, at, 1 << dice.randrange(8)),
            data[:at] + data[end:],
            data[:end] + data[at:],
            data[:at] + b"\xff\xff\xff\xff" + data[at + 4 :],
            data[:at] + dice.randbytes(end - at) + data[end:],
        ])  # fmt: skip
    return data


def other_boot(peer: Peer, body: bytes, dice: random.Random) -> bytes:
    """From a boot that has proven nothing, with any counter."""
    own, peer.boot = peer.boot, dice.getrandbits(64)
    counter = dice.choice([0, 1, 2**63, 2**64 - 1])
    try:
        return peer.seal(dice.choice([REQUEST, ONE_WAY]), peer.other, body, counter=counter)
    finally:
        peer.boot = own


def hostile(peer: Peer, bodies: Sequence[bytes], dice: random.Random) -> bytes:
    """One request body: from plain noise to a well sealed envelope around a spoiled message."""
    body = dice.choice(bodies)
    match dice.randrange(12):
        case 0:
            return dice.randbytes(dice.choice([0, 1, 4, 31, 32, 200, 5000]))
        case 1:
            return spoil(peer.seal(REQUEST, peer.other, body), dice)
        case 2:
            return peer.seal(
                dice.choice([ANSWER, ONE_WAY, 0, 4, 255]), dice.choice([peer.other, ZERO32]), body
            )
        case 3:
            counter = dice.choice([0, 1, peer.counter])
            return peer.seal(REQUEST, peer.other, body, counter=counter, reply_to=dice.randbytes(32))
        case 4:
            return peer.seal(REQUEST, dice.choice([ZERO32, dice.randbytes(32)]), body)
        case 5:
            return other_boot(peer, body, dice)
        case 6:
            noise = u8(dice.randrange(9)) + blob(dice.randbytes(dice.randrange(300)))
            return peer.seal(REQUEST, peer.other, noise * dice.choice([1, 2, 64, 65]))
        case 7:
            return peer.seal(REQUEST, peer.other, spoil(body, dice))
        case _:  # most bytes are numbers and hashes: this one is well formed as a rule, and wrong
            at = dice.randrange(5, len(body))
            return peer.seal(REQUEST, peer.other, flipped(body, at, 1 << dice.randrange(8)))


@pytest.mark.timeout(600)
def test_two_thousand_hostile_requests_leave_the_node_well(
    nodes: Sequence[LocalNode], ticket: Ticket
) -> None:
    seed = 20_261_125
    dice = random.Random(seed)
    peer = pulled(ticket, nodes[0])
    bodies = fresh_bodies(Ledger(ticket.network_id), peer, dice)
    statuses: dict[int, int] = {}
    spoken = 0
    for number in range(FUZZ_CASES):
        status, answer = peer.post(hostile(peer, bodies, dice))
        statuses[status] = statuses.get(status, 0) + 1
        assert status < 500, f"case {number} of seed {seed}"
        if status == 200:
            spoken += bool(read_body(peer.open(answer).body))
    print(f"answers by status: {statuses}, {spoken} of them say something")
    assert set(statuses) == {200, 400}
    assert spoken > FUZZ_CASES // 5, "too few of them came as far as the engine"
    assert statuses[400] > FUZZ_CASES // 5
    assert call(nodes[0], "GET", "/health") == (200, {"status": "healthy"})
    assert call(nodes[0], "GET", "/readyz")[0] == 200
    assert nodes[0].process is not None
    assert nodes[0].process.poll() is None
    assert "Traceback" not in nodes[0].log_text() + nodes[0].last_words(10_000)
    honest = pulled(ticket, nodes[0])
    Author(honest.ledger, honest.key).write(make_op(PUT, "after the storm", b"1"))
    assert honest.sync().good
    agrees(honest.ledger, nodes[0])
    same_values(honest.ledger, nodes[0])
    wait_for("the other node holds it too", lambda: roots_equal(nodes), within_s=60)
