"""Equal entries and unequal states: a round names the keys, claims nothing that it has not seen, and
changes nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import cache
from hashlib import sha256

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lattice.core.descent import Descent, KeyDifference, Outcome, Side
from lattice.core.draft import OpDraft
from lattice.core.engine import Answer, OpenRound, RoundAnswered, RoundEnded, RoundStep, Served, Wasted
from lattice.core.entry import OpKind
from lattice.core.limits import KEYS_NAMED_MAX, KIB, TREE_SUBTREES_MAX
from lattice.core.merkle import MerkleMap, bucket_of
from lattice.core.messages import (
    Heads,
    HeadsFlag,
    Message,
    Proof,
    WantEntries,
    decode_messages,
    encode_messages,
)
from lattice.core.rows import KeyState
from lattice.core.state import leaf_of
from lattice.core.tree_proofs import (
    TREE_ASK,
    TREE_NODES,
    TreeAsk,
    TreeNodes,
    pack_ask,
    pack_nodes,
    unpack_ask,
    unpack_nodes,
)
from tests.core.core_kit import Replica, Synced, damage, only, sync


def key_hash(key: bytes) -> bytes:
    return sha256(key).digest()


def counter(key: bytes, total: int = 5) -> KeyState:
    """A state of a key that no entry of these tests leads to."""
    return KeyState(key, (), 1, total)


def two_alike(keys: Sequence[bytes] = (b"a", b"b", b"c")) -> tuple[Replica, Replica]:
    one, two = Replica(1), Replica(2)
    for key in keys:
        one.put(key)
    assert sync(two, one).result.equal
    return one, two


def damaged(replica: Replica, *states: KeyState) -> Replica:
    damage(replica.store, *states)
    return replica.restarted()


def descended(one: Replica, two: Replica, *, padded: bool = False) -> Descent:
    """What a round that `one` opens finds; it is good all the same, and changes no store."""
    before = [(each.store.buckets(), each.engine.roots) for each in (one, two)]
    synced = sync(one, two, padded=padded)
    assert synced.result.good
    assert synced.result.defect
    assert [(each.store.buckets(), each.engine.roots) for each in (one, two)] == before
    assert synced.result.descent is not None
    return synced.result.descent


def sizes(synced: Synced) -> list[tuple[int, int]]:
    return [(len(asked), len(said)) for asked, said in zip(synced.requests, synced.answers, strict=True)]


@pytest.mark.parametrize("padded", [False, True])
def test_one_key_that_differs(padded: bool) -> None:
    one, two = two_alike()
    two = damaged(two, counter(b"b"))
    expected = Descent(Outcome.FOUND, (KeyDifference(key_hash(b"b"), Side.BOTH),), 1, True)
    assert descended(one, two, padded=padded) == expected
    assert descended(two, one, padded=padded) == expected


def test_keys_that_one_side_lacks() -> None:
    one, two = two_alike()
    two = damaged(two, KeyState(b"a"), counter(b"phantom"))
    here, there = key_hash(b"a"), key_hash(b"phantom")
    assert set(descended(one, two).differences) == {
        KeyDifference(here, Side.HERE),
        KeyDifference(there, Side.THERE),
    }
    assert set(descended(two, one).differences) == {
        KeyDifference(here, Side.THERE),
        KeyDifference(there, Side.HERE),
    }


def test_a_state_that_is_lost_altogether() -> None:
    one, two = two_alike()
    two = damaged(two, KeyState(b"a"), KeyState(b"b"), KeyState(b"c"))
    found = descended(one, two)
    assert [side for _, side in found.differences] == [Side.HERE] * 3
    assert (found.count, found.complete) == (3, True)


def test_after_an_exchange_of_entries() -> None:
    """The defect shows once both hold the same entries, and in the same round."""
    one, two = two_alike()
    two = damaged(two, counter(b"b"))
    one.put(b"one")
    two.put(b"two")
    result = sync(one, two).result
    assert (result.good, result.reason, result.defect) == (True, "complete", True)
    assert result.descent is not None
    assert result.descent.differences == (KeyDifference(key_hash(b"b"), Side.BOTH),)


def test_it_costs_three_exchanges_and_18_kib() -> None:
    one, two = two_alike()
    two = damaged(two, counter(b"b"))
    plain = sync(one, two, padded=False)
    assert len(plain.requests) == 1 + 3
    asked, said = (sum(each) for each in zip(*sizes(plain)[1:], strict=True))
    assert asked < 200
    assert said < 18 * KIB


def test_equal_states_are_not_asked_for() -> None:
    one, two = two_alike()
    synced = sync(one, two)
    assert len(synced.requests) == 1
    assert synced.result.descent is None


def test_a_round_may_be_told_not_to_descend() -> None:
    one, two = two_alike()
    two = damaged(two, counter(b"b"))
    peer = two.key.public_key
    step = only(one.run(OpenRound(900, peer, "p2p", False, descends=False)), RoundStep)
    answer = only(two.run(Served(901, one.key.public_key, 1, "p2p", step.messages)), Answer)
    ended = only(one.run(RoundAnswered(900, peer, "p2p", answer.messages)), RoundEnded)
    assert ended.result.defect
    assert ended.result.descent is None


# Many keys.


def in_subtrees(count: int, each: int = 1) -> list[bytes]:
    """`each` keys in every one of `count` of the 256 subtrees, no two in one bucket."""
    found: dict[int, dict[int, bytes]] = {}
    number = 0
    while len(found) < count or any(len(keys) < each for keys in list(found.values())[:count]):
        key = b"many/%d" % number
        bucket = bucket_of(key_hash(key))
        found.setdefault(bucket >> 8, {})[bucket] = key
        number += 1
    return [key for keys in list(found.values())[:count] for key in list(keys.values())[:each]]


@pytest.mark.parametrize("count", [1, 16, 17, 40])
def test_the_first_sixteen_are_named_and_all_are_counted(count: int) -> None:
    one, two = two_alike()
    keys = in_subtrees(4, -(-count // 4))[:count]
    two = damaged(two, *map(counter, keys))
    found = descended(one, two)
    hashes = sorted(map(key_hash, keys))
    assert [difference.key_hash for difference in found.differences] == hashes[:KEYS_NAMED_MAX]
    assert (found.count, found.complete) == (count, True)


@pytest.mark.parametrize(("subtrees", "each"), [(17, 1), (60, 2), (13, 5)])
def test_beyond_what_is_opened_the_count_is_a_lower_bound(subtrees: int, each: int) -> None:
    one, two = two_alike()
    keys = in_subtrees(subtrees, each)
    two = damaged(two, *map(counter, keys))
    found = descended(one, two)
    hashes = sorted(map(key_hash, keys))
    assert [difference.key_hash for difference in found.differences] == hashes[:KEYS_NAMED_MAX]
    assert not found.complete
    assert len(keys) > TREE_SUBTREES_MAX
    opened = min(TREE_SUBTREES_MAX, subtrees)
    assert found.count == opened * each + (subtrees - opened) <= len(keys)


@pytest.mark.slow
def test_a_whole_state_against_a_small_one_is_bounded() -> None:
    one, two = two_alike()
    two = damaged(two, *(counter(b"%d" % number) for number in range(20_000)))
    synced = sync(one, two)
    assert synced.result.descent is not None
    assert len(synced.result.descent.differences) == KEYS_NAMED_MAX
    assert len(synced.requests) == 1 + 3
    assert sum(said for _, said in sizes(synced)) < 256 * KIB


# A peer that does not keep to it.


Reply = Callable[[TreeAsk, Replica], Sequence[Message]]


def told(one: Replica, two: Replica, reply: Reply, outputs: list[object] | None = None) -> Descent:
    """A round that `one` opens, in which `two` answers questions about its tree with `reply`."""
    peer = two.key.public_key
    step: RoundStep | RoundEnded = only(one.run(OpenRound(900, peer, "p2p", False)), RoundStep)
    for _ in range(20):
        if isinstance(step, RoundEnded):
            assert step.result.good
            assert one.engine.statistics()["rounds_open"] == 0
            assert step.result.descent is not None
            return step.result.descent
        first = step.messages[0]
        if isinstance(first, Proof):
            assert len(step.messages) == 1
            answer = tuple(reply(unpack_ask(first.payload), two))
        else:
            answer = only(two.run(Served(901, one.key.public_key, 1, "p2p", step.messages)), Answer).messages
        answer = tuple(decode_messages(encode_messages(answer)))
        following = one.run(RoundAnswered(900, peer, "p2p", answer))
        step = next(output for output in following if isinstance(output, RoundStep | RoundEnded))
        if outputs is not None:
            outputs += following
    raise AssertionError("the round does not end")


def honest(ask: TreeAsk, two: Replica) -> TreeNodes:
    request = (Proof(TREE_ASK, pack_ask(ask)),)
    (message,) = only(two.run(Served(902, b"o" * 32, 1, "p2p", request)), Answer).messages
    assert isinstance(message, Proof)
    assert message.kind == TREE_NODES
    return unpack_nodes(message.payload)


def proof(nodes: TreeNodes) -> list[Message]:
    return [Proof(TREE_NODES, pack_nodes(nodes))]


def two_unlike() -> tuple[Replica, Replica]:
    one, two = two_alike()
    return one, damaged(two, counter(b"b"))


@pytest.mark.parametrize("depth", [0, 8, 16])
def test_a_peer_that_gives_no_answer(depth: int) -> None:
    """As an older one does, which skips a kind of Proof that it does not know."""
    one, two = two_unlike()
    found = told(one, two, lambda ask, node: [] if ask.depth == depth else proof(honest(ask, node)))
    assert found == Descent(Outcome.NO_ANSWER)


@pytest.mark.parametrize("depth", [0, 8, 16])
def test_a_malformed_answer_is_refused_and_charged(depth: int) -> None:
    one, two = two_unlike()
    outputs: list[object] = []
    bad = [Proof(TREE_NODES, b"no tree")]
    found = told(one, two, lambda ask, node: bad if ask.depth == depth else proof(honest(ask, node)), outputs)
    assert found == Descent(Outcome.MALFORMED)
    assert one.engine.refused == {"malformed_proof": 1}
    assert [output for output in outputs if isinstance(output, Wasted)] == [
        Wasted(two.key.public_key, "p2p", 1)
    ]


def flipped(nodes: TreeNodes) -> TreeNodes:
    (number, below), *rest = nodes.parts
    return nodes._replace(parts=((number, below[:-1] + bytes([below[-1] ^ 1])), *rest))


def other_node(nodes: TreeNodes) -> TreeNodes:
    """What was asked for, under another number; at the top there is but one."""
    (_, below), *_ = nodes.parts
    if nodes.depth == 0:
        return nodes._replace(depth=8)
    if nodes.depth == 16:
        return nodes._replace(parts=((0, b""),))
    return nodes._replace(parts=((0, below),))


@pytest.mark.parametrize("lie", [flipped, other_node])
@pytest.mark.parametrize("depth", [0, 8, 16])
def test_an_answer_that_does_not_lead_to_the_root_is_false_and_charged(
    depth: int, lie: Callable[[TreeNodes], TreeNodes]
) -> None:
    one, two = two_unlike()
    outputs: list[object] = []
    sent: list[int] = []

    def reply(ask: TreeAsk, node: Replica) -> list[Message]:
        nodes = honest(ask, node)
        answer = proof(lie(nodes) if ask.depth == depth else nodes)
        sent.append(len(pack_nodes(lie(nodes))) if ask.depth == depth else 0)
        return answer

    found = told(one, two, reply, outputs)
    assert found == Descent(Outcome.FALSE)
    assert one.engine.refused == {"false_proof": 1}
    assert [output for output in outputs if isinstance(output, Wasted)] == [
        Wasted(two.key.public_key, "p2p", sent[-1])
    ]


def test_an_invented_state_names_what_it_invents_and_no_more() -> None:
    """A peer may make up a whole tree: what it then says of its own state cannot be refuted, and is
    shown as a difference, never taken."""
    one, two = two_alike()
    tree = MerkleMap({bucket_of(key_hash(b"x")): key_hash(b"x") + bytes(32)})
    claimed = two.engine.roots._replace(state_root=tree.root())
    first = (Heads(900, HeadsFlag(0), claimed),)
    step: RoundStep | RoundEnded = only(one.run(OpenRound(900, b"", "p2p", False)), RoundStep)
    answer: tuple[Message, ...] = first
    while True:
        following = one.run(RoundAnswered(900, b"", "p2p", answer))
        step = next(output for output in following if isinstance(output, RoundStep | RoundEnded))
        if isinstance(step, RoundEnded):
            break
        assert isinstance(step.messages[0], Proof)
        ask = unpack_ask(step.messages[0].payload)
        parts = tuple(
            (number, tree.bucket(number) if ask.depth == 16 else b"".join(tree.below(ask.depth, number)))
            for number in ask.numbers
        )
        answer = (Proof(TREE_NODES, pack_nodes(TreeNodes(tree.root(), ask.depth, parts))),)
    assert step.result.descent is not None
    sides = {difference.key_hash: difference.side for difference in step.result.descent.differences}
    assert sides == {**{key_hash(key): Side.HERE for key in (b"a", b"b", b"c")}, key_hash(b"x"): Side.THERE}


def test_a_bucket_that_does_not_come_is_counted_as_one_key() -> None:
    one, two = two_alike()
    two = damaged(two, counter(b"b"), counter(b"a"))

    def reply(ask: TreeAsk, node: Replica) -> list[Message]:
        nodes = honest(ask, node)
        return proof(nodes._replace(parts=nodes.parts[1:]) if ask.depth == 16 else nodes)

    found = told(one, two, reply)
    assert (len(found.differences), found.count, found.complete) == (1, 2, False)
    found = told(one, two, lambda ask, node: proof(honest(ask, node)._replace(parts=())))
    assert found == Descent(Outcome.NO_ANSWER)


@pytest.mark.parametrize("depth", [0, 8, 16])
@pytest.mark.parametrize("here", [True, False])
def test_a_state_that_moves_meanwhile_ends_it_without_a_claim(depth: int, here: bool) -> None:
    one, two = two_unlike()

    def reply(ask: TreeAsk, node: Replica) -> list[Message]:
        if ask.depth == depth:
            (one if here else node).put(b"meanwhile")
        return proof(honest(ask, node))

    assert told(one, two, reply) == Descent(Outcome.MOVED)
    assert not one.engine.refused


@pytest.mark.slow
@settings(max_examples=60)
@given(st.sampled_from([0, 8, 16]), st.data())
def test_no_answer_raises_or_leads_on_for_long(depth: int, data: st.DataObject) -> None:
    one, two = two_unlike()

    def reply(ask: TreeAsk, node: Replica) -> list[Message]:
        payload = pack_nodes(honest(ask, node))
        if ask.depth == depth:
            at = data.draw(st.integers(0, len(payload) - 1))
            payload = payload[:at] + data.draw(st.binary(min_size=1, max_size=40)) + payload[at + 1 :]
        return [Proof(data.draw(st.sampled_from([TREE_NODES, TREE_NODES, TREE_ASK, 200])), payload)]

    found = told(one, two, reply)
    assert (found.outcome is Outcome.FOUND) == bool(found.differences)
    assert found.outcome is not Outcome.FOUND or found == Descent(
        Outcome.FOUND, (KeyDifference(key_hash(b"b"), Side.BOTH),), 1, True
    )


# What is answered, and what is not.


def asked(node: Replica, *messages: Message) -> list[Message]:
    return list(only(node.run(Served(902, b"o" * 32, 1, "p2p", messages)), Answer).messages)


def test_questions_are_answered_alone_and_one_a_body() -> None:
    one, _ = two_alike()
    root = one.engine.roots.state_root
    question = Proof(TREE_ASK, pack_ask(TreeAsk(root, 0, (0,))))
    assert len(asked(one, question)) == 1
    assert len(asked(one, *[question] * 64)) == 1
    assert asked(one, question, WantEntries(())) == []
    beside = asked(one, Heads(5, HeadsFlag(0), one.engine.roots), question)
    assert [type(message) for message in beside] == [Heads]
    assert asked(one, Proof(TREE_ASK, b"")) == []
    assert one.engine.refused == {"malformed_proof": 1}
    assert asked(one, Proof(TREE_NODES, pack_nodes(TreeNodes(root, 0, ())))) == []


def test_the_answer_is_that_of_the_committed_state() -> None:
    """A write of the same commit is durable when the answer goes out, and is in it."""
    one, _ = two_alike()
    before = one.engine.roots.state_root
    question = Proof(TREE_ASK, pack_ask(TreeAsk(before, 0, (0,))))
    assert honest(TreeAsk(before, 0, (0,)), one) == TreeNodes(before, 0, _top(one))
    write = one.append(OpDraft(OpKind.PUT, b"d", b"1"))
    outputs = one.run(Served(902, b"o" * 32, 1, "p2p", (question,)), write)
    after = one.engine.roots.state_root
    assert after != before
    assert only(outputs, Answer).messages == tuple(proof(TreeNodes(after, 0, ())))
    assert honest(TreeAsk(after, 0, (0,)), one) == TreeNodes(after, 0, _top(one))


def _top(replica: Replica) -> tuple[tuple[int, bytes], ...]:
    return ((0, b"".join(MerkleMap(replica.store.buckets()).below(0, 0))),)


# The law.

_POOL = [b"pool/%d" % number for number in range(40)]
_CHANGES = st.dictionaries(
    st.sampled_from([*_POOL, *(b"phantom/%d" % number for number in range(20))]),
    st.sampled_from(["none", "one", "other"]),
    max_size=30,
)


@cache
def pool() -> tuple[Replica, Replica]:
    return two_alike(_POOL)


def changed(replica: Replica, changes: dict[bytes, str]) -> Replica:
    store = copy.deepcopy(replica.store)
    damage(
        store, *(KeyState(key) if how == "none" else counter(key, len(how)) for key, how in changes.items())
    )
    return Replica(0, store)


def leaves(replica: Replica) -> dict[bytes, bytes]:
    """The leaves of all present keys, by the keys' hashes: from the rows, not from the tree."""
    states = replica.store.page_keys(b"", None, 1000)
    return {key_hash(state.key): leaf for state in states if (leaf := leaf_of(state)) is not None}


@pytest.mark.slow
@settings(max_examples=60)
@given(_CHANGES, _CHANGES)
def test_the_named_keys_are_exactly_the_differing_ones(
    here: dict[bytes, str], there: dict[bytes, str]
) -> None:
    one, two = (changed(each, changes) for each, changes in zip(pool(), (here, there), strict=True))
    ours, theirs = leaves(one), leaves(two)
    expected = [
        KeyDifference(
            name, Side.HERE if name not in theirs else Side.THERE if name not in ours else Side.BOTH
        )
        for name in sorted(ours.keys() | theirs.keys())
        if ours.get(name) != theirs.get(name)
    ]
    result = sync(one, two).result
    if not expected:
        assert (result.equal, result.descent) == (True, None)
        return
    found = result.descent
    assert found is not None
    assert found.outcome is Outcome.FOUND
    assert list(found.differences) == expected[:KEYS_NAMED_MAX]
    subtrees = {difference.key_hash[0] for difference in expected}
    assert found.complete == (len(subtrees) <= TREE_SUBTREES_MAX)
    assert found.count == len(expected) if found.complete else KEYS_NAMED_MAX <= found.count <= len(expected)
