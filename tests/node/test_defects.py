"""A state that a defect has changed: told with the keys by name, never repaired, over when it is over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256

import pytest
import trio
import trio.testing

from lattice.core.descent import Descent, KeyDifference, Outcome, Side
from lattice.core.engine import Answer
from lattice.core.errors import LatticeError
from lattice.core.messages import Heads, Message, Proof, Roots
from lattice.core.rows import KeyState
from lattice.core.tree_proofs import TREE_NODES, TreeNodes, pack_nodes
from lattice.node.defects import Defects
from lattice.node.node import Node
from lattice.schemas import AlarmEvent
from lattice.storage.memory import MemoryStore
from lattice.testing import Host, World, play
from tests.core.core_kit import damage
from tests.node.kit import HTTP, put, settled, told


def key_hash(key: bytes) -> bytes:
    return sha256(key).digest()


async def two_with_a_defect(world: World, *states: KeyState, http_only: bool = False) -> tuple[Host, Host]:
    """Two hosts with equal entries, of which the second one's state is damaged, both up."""
    n1, n2 = world.add_hosts(2)
    n1.p2p = n2.p2p = not http_only
    await world.start(n1, n2)
    for key in ("a", "b", "c"):
        await put(n1, key)
    await world.wait_converged(30)
    assert not n1.running.alarms
    await world.crash(n2)
    damage(n2.store, *states)
    await world.start(n2)
    return n1, n2


def alarm(host: Host, other: Host) -> str:
    return host.running.alarms.get(f"state_defect {other.key.peer_id}", "")


def alarm_events(host: Host) -> list[AlarmEvent]:
    bodies = [event.body for event in told(host)]
    return [body for body in bodies if isinstance(body, AlarmEvent) and body.code.startswith("state_defect")]


def alert_lines(world: World, host: Host) -> list[str]:
    return [line for line in world.events.tail if f" {host.name} ERROR [ALERT]" in line]


@pytest.mark.slow
@pytest.mark.parametrize("http_only", [False, True])
def test_both_name_the_keys_and_change_nothing(http_only: bool) -> None:
    async def scenario(world: World) -> None:
        states = [KeyState(b"a"), KeyState(b"b", (), 1, 7), KeyState(b"phantom", (), 1, 1)]
        n1, n2 = await two_with_a_defect(world, *states, http_only=http_only)
        roots = n1.running.engine.roots, n2.running.engine.roots
        assert roots[0].log_root == roots[1].log_root
        await world.wait_until(lambda: "(" in alarm(n1, n2) and "(" in alarm(n2, n1), 30, "both name keys")
        phantom = key_hash(b"phantom").hex()
        assert f"3 keys differ (here only: 'a'; there only: {phantom}; different: 'b')" in alarm(n1, n2)
        text = alarm(n2, n1)
        assert f"(here only: 'phantom'; there only: {key_hash(b'a').hex()}; different: 'b')" in text
        await trio.sleep(120)
        for host, other in ((n1, n2), (n2, n1)):
            status, measures = host.running.status(), host.running.measures()
            assert status.alarms == [alarm(host, other)]
            assert (measures.defect_peers, measures.defect_keys) == (1, 3)
            assert status.counters["descents_found"] <= 6
            events = alarm_events(host)
            assert [event.raised for event in events] == [True] * len(events)
            assert len(events) <= 2, "without names, and with them"
            assert events[-1].text == alarm(host, other)
            assert len([line for line in alert_lines(world, host) if "differ (" in line]) == 1
        assert (n1.running.engine.roots, n2.running.engine.roots) == roots
        assert n2.store.key_state(b"a") == states[0]

    play(scenario)


@pytest.mark.slow
def test_it_ends_when_the_roots_are_equal_again() -> None:
    """A write that replaces what was lost makes the states equal; entries are exchanged all the while."""

    async def scenario(world: World) -> None:
        n1, n2 = await two_with_a_defect(world, KeyState(b"a"))
        await world.wait_until(lambda: "'a'" in alarm(n1, n2), 30, "the key by name")
        await put(n2, "other")
        await put(n1, "a", b"2")
        await world.wait_converged(30)
        await world.wait_until(lambda: not (alarm(n1, n2) or alarm(n2, n1)), 30, "the alarms are over")
        assert alarm_events(n1)[-1].raised is False
        measures = n1.running.measures()
        assert (measures.defect_peers, measures.defect_keys) == (0, 0)
        assert any("n1 INFO [LEDGER] the state roots differ no longer" in line for line in world.events.tail)

    play(scenario)


@pytest.mark.slow
def test_a_peer_that_is_forgotten_leaves_no_alarm() -> None:
    async def scenario(world: World) -> None:
        n1, n2 = await two_with_a_defect(world, KeyState(b"a"))
        await world.wait_until(lambda: bool(alarm(n1, n2)), 30, "the alarm")
        await world.crash(n2)
        await n1.running.forget_peer(n2.key.peer_id)
        assert not alarm(n1, n2)

    play(scenario)


class OlderNode(Node):
    """A build that skips kinds of Proof that it does not know, as those before the descent do."""

    async def _ask_in_turn(
        self, messages: tuple[Message, ...], sender: bytes, boot: int, lung: str
    ) -> object:
        known = tuple(each for each in messages if not isinstance(each, Proof) or each.kind <= 2)
        return await super()._ask_in_turn(known, sender, boot, "http" if lung == "http" else "p2p")


class SilentNode(Node):
    """A build that never answers a question about its tree."""

    async def _ask_in_turn(
        self, messages: tuple[Message, ...], sender: bytes, boot: int, lung: str
    ) -> object:
        if any(isinstance(each, Proof) and each.kind > 2 for each in messages):
            await trio.sleep_forever()
        return await super()._ask_in_turn(messages, sender, boot, "http" if lung == "http" else "p2p")


@pytest.mark.slow
@pytest.mark.parametrize("build", [OlderNode, SilentNode])
def test_a_peer_that_does_not_answer_is_told_without_keys_and_asked_less_often(build: type[Node]) -> None:
    async def scenario(world: World) -> None:
        n1, n2 = await two_with_a_defect(world, KeyState(b"a"))
        await settled(world, [n1, n2])
        await trio.sleep(300)
        assert "which keys differ is not known" in alarm(n1, n2)
        counters = n1.running.status().counters
        assert 4 <= counters["descents_no_answer"] <= 10
        others = n2.running.status().counters
        rounds = counters["rounds_p2p_equal"] + others["rounds_p2p_equal"]
        assert rounds > counters["descents_no_answer"] + others["descents_no_answer"]
        assert n1.running.status().sync_mode == "P2P", "its rounds are good all the same"
        assert len(alert_lines(world, n1)) == 1

    play(scenario, make_node=build)


class LyingNode(Node):
    """A member that claims another state in each round, and vouches for it with its own tree."""

    _claims = 0

    async def _ask_in_turn(
        self, messages: tuple[Message, ...], sender: bytes, boot: int, lung: str
    ) -> object:
        reply = await super()._ask_in_turn(messages, sender, boot, "http" if lung == "http" else "p2p")
        assert isinstance(reply, Answer)
        return Answer(reply.token, tuple(map(self._lie, reply.messages)))

    def _lie(self, message: Message) -> Message:
        if isinstance(message, Heads):
            self._claims += 1
            root = sha256(b"%d" % self._claims).digest()
            return replace(message, roots=message.roots._replace(state_root=root))
        if isinstance(message, Proof) and message.kind == TREE_NODES:
            root = sha256(b"%d" % self._claims).digest()
            nodes = TreeNodes(root, 0, ((0, b"".join(self.engine._state.tree.below(0, 0))),))
            return Proof(TREE_NODES, pack_nodes(nodes))
        return message


@pytest.mark.slow
def test_a_member_that_claims_another_state_in_each_round_costs_next_to_nothing() -> None:
    async def scenario(world: World) -> None:
        n1, n2 = world.add_hosts(2)
        n1.p2p = n2.p2p = False  # over HTTP each opens rounds of its own
        await world.start(n1, n2)
        await put(n1, "a")
        await trio.sleep(600)
        for host in (n1, n2):
            status = host.running.status()
            assert status.counters["rounds_http_equal"] > 50
            assert 3 <= status.counters["descents_false"] == status.counters["refused_false_proof"] <= 20
            assert status.sync_mode == HTTP
            assert "which keys differ is not known" in status.alarms[0]
            assert host.running.measures().charged["http"] >= 3 * 8192
        assert not any("differ (" in line for line in world.events.tail)

    play(scenario, make_node=LyingNode)


# The alarms alone.


class Bell:
    def __init__(self) -> None:
        self.alarms: dict[str, str] = {}
        self.rung: list[str] = []

    def raise_alarm(self, code: str, text: str) -> None:
        if self.alarms.get(code) != text:
            self.alarms[code] = text
            self.rung.append(text)

    def clear_alarm(self, code: str) -> None:
        self.alarms.pop(code, None)


class QuietLog:
    def debug(self, tag: str, sentence: str, **fields: object) -> None: ...
    def info(self, tag: str, sentence: str, **fields: object) -> None: ...
    def warning(self, tag: str, sentence: str, **fields: object) -> None: ...
    def error(self, tag: str, sentence: str, **fields: object) -> None: ...
    def defect(self, tag: str, sentence: str, error: BaseException, **fields: object) -> None: ...


class CountedStore(MemoryStore):
    """Counts the pages read, and fails on demand. As one on a disk, it is read in a thread."""

    def __init__(self) -> None:
        super().__init__()
        self.pages = 0
        self.fails = False

    @property
    def in_line(self) -> bool:
        return False

    def page_keys(self, prefix: bytes, after: bytes | None, limit: int) -> list[KeyState]:
        self.pages += 1
        if self.fails:
            raise LatticeError("store_corrupt", "a row makes no sense")
        return super().page_keys(prefix, after, limit)


OURS = Roots(b"l" * 32, b"s" * 32, 1, 5)
THEIRS = OURS._replace(state_root=b"x" * 32)


def found(*keys: bytes, side: Side = Side.BOTH, count: int | None = None) -> Descent:
    names = tuple(KeyDifference(key_hash(key), side) for key in sorted(keys, key=key_hash))
    return Descent(Outcome.FOUND, names, len(keys) if count is None else count, count is None)


def defects(keys: Sequence[bytes] = ()) -> tuple[Defects, Bell, CountedStore]:
    store, bell = CountedStore(), Bell()
    damage(store, *(KeyState(key, (), 1, 1) for key in keys))
    made = Defects(store, QuietLog(), raise_alarm=bell.raise_alarm, clear_alarm=bell.clear_alarm)
    return made, bell, store


async def test_what_is_a_defect_and_what_ends_it(autojump_clock: trio.testing.MockClock) -> None:
    made, bell, _ = defects()
    assert not made.compare("p", OURS, OURS)
    assert not made.compare("p", THEIRS._replace(log_root=b"m" * 32), OURS)
    assert not made.compare("p", THEIRS._replace(rules=2), OURS)
    assert not bell.rung
    assert made.compare("p", THEIRS, OURS)
    assert made.compare("p", THEIRS, OURS)
    assert made.compare("q", THEIRS, OURS), "each peer has an alarm of its own"
    assert made.peers == len(bell.rung) == 2
    for _ in range(3):
        await made.descended("p", Descent(Outcome.NO_ANSWER))
    assert not made.compare("p", THEIRS, OURS), "known, and looked for in vain just now"
    made.compare("p", OURS._replace(log_root=b"m" * 32), OURS)
    assert set(bell.alarms) == {"state_defect p", "state_defect q"}, "other entries say nothing"
    made.compare("p", OURS, OURS)
    made.compare("q", THEIRS._replace(rules=2), OURS)
    assert not bell.alarms
    assert made.peers == 0


async def test_a_peer_that_claims_now_this_and_now_that_is_one_alarm(
    autojump_clock: trio.testing.MockClock,
) -> None:
    made, bell, _ = defects()
    for _ in range(2):
        made.compare("p", THEIRS, OURS)
        assert bell.alarms
        made.compare("p", OURS, OURS)
    assert bell.alarms, "it ended once, and then came back too soon"
    for _ in range(100):
        await trio.sleep(5)
        made.compare("p", THEIRS, OURS)
        made.compare("p", OURS, OURS)
    assert len(bell.rung) == 2
    await trio.sleep(599)
    made.compare("p", OURS, OURS)
    assert bell.alarms
    await trio.sleep(1)
    made.compare("p", OURS, OURS)
    assert not bell.alarms
    await trio.sleep(600)
    made.compare("p", THEIRS, OURS)
    made.compare("p", OURS, OURS)
    assert not bell.alarms, "long after, the first end is the end"


async def test_names_are_looked_up_once_in_a_while(autojump_clock: trio.testing.MockClock) -> None:
    """Hashing all keys is what a hostile peer would like to have done again and again."""
    made, bell, store = defects([b"%04d" % number for number in range(1200)])
    made.compare("p", THEIRS, OURS)
    await made.descended("p", found(b"0700", b"1100"))
    both = ", ".join(repr(key) for key in sorted(("0700", "1100"), key=lambda key: key_hash(key.encode())))
    assert f"2 keys differ (different: {both})" in bell.alarms["state_defect p"]
    assert store.pages <= 4
    for number in range(50):
        await made.descended("p", found(b"%04d" % number))
    assert store.pages <= 4
    assert f"different: {key_hash(b'0049').hex()})" in bell.alarms["state_defect p"]
    await trio.sleep(600)
    await made.descended("p", found(b"0049"))
    assert "different: '0049')" in bell.alarms["state_defect p"]
    assert store.pages <= 8


async def test_what_is_not_held_here_is_not_looked_up(autojump_clock: trio.testing.MockClock) -> None:
    made, bell, store = defects([b"a"])
    made.compare("p", THEIRS, OURS)
    await made.descended("p", found(b"b", side=Side.THERE))
    assert store.pages == 0
    assert f"1 key differs (there only: {key_hash(b'b').hex()})" in bell.alarms["state_defect p"]


async def test_a_count_without_end(autojump_clock: trio.testing.MockClock) -> None:
    made, bell, _ = defects([b"a"])
    made.compare("p", THEIRS, OURS)
    await made.descended("p", found(b"a", count=40))
    assert "at least 40 keys differ (different: 'a'; and 39 more)" in bell.alarms["state_defect p"]
    await made.descended("p", found(count=2))
    assert "defect; at least 2 keys differ; nothing" in bell.alarms["state_defect p"]
    assert made.keys == 2


async def test_a_store_that_cannot_be_read_leaves_the_hashes(autojump_clock: trio.testing.MockClock) -> None:
    made, bell, store = defects([b"a"])
    store.fails = True
    made.compare("p", THEIRS, OURS)
    await made.descended("p", found(b"a"))
    assert key_hash(b"a").hex() in bell.alarms["state_defect p"]


async def test_what_comes_when_it_is_over_is_not_told(autojump_clock: trio.testing.MockClock) -> None:
    made, bell, _ = defects([b"a"])
    await made.descended("p", found(b"a"))
    assert not bell.rung
    made.compare("p", THEIRS, OURS)
    await made.descended("p", Descent(Outcome.FALSE))
    assert [text for text in bell.rung if "is not known" in text] == bell.rung != []
    await made.descended("p", found(b"a"))
    await made.descended("p", Descent(Outcome.MOVED))
    assert "'a'" in bell.alarms["state_defect p"], "what was found stays"


async def test_descents_become_rare(autojump_clock: trio.testing.MockClock) -> None:
    made, _, _ = defects([b"a"])
    made.compare("p", THEIRS, OURS)
    began = trio.current_time()
    at = []
    while len(at) < 9:
        if made.may_descend("p"):
            at.append(round(trio.current_time() - began))
            await made.descended("p", found(b"a"))
        await trio.sleep(1)
    assert at == [0, 1, 2, 12, 32, 72, 132, 192, 252]
    assert made.may_descend("another")
