"""The oracle judged: the reference agrees with the node on honest ledgers, and every invariant that
is broken on purpose is reported, and no other."""

from __future__ import annotations

import copy
import struct
from dataclasses import replace

import pytest
import trio

from lattice.core.draft import OpDraft
from lattice.core.entry import OpKind
from lattice.core.failover_events import (
    BeatHeard,
    DirectSet,
    Mode,
    ModeChanged,
    PeerKnown,
    PollDue,
    PollsStopped,
    Reason,
    RoundGood,
    Tick,
)
from lattice.core.rows import LogHead, LogKey
from lattice.testing import World, play
from lattice.testing.invariants import (
    Acknowledged,
    Monotone,
    check_authentic,
    check_bounds,
    check_converged,
    check_halted,
    check_kept,
    check_one_entry_a_place,
    check_roots,
)
from lattice.testing.mode_watch import ModeWatch
from lattice.testing.reference import Ledger, read_ledger

_WRITES = 80


class Ledgers:
    """Two honest nodes' ledgers with everything in them, and the roots that the nodes show."""

    def __init__(self) -> None:
        self.journal: list[Acknowledged] = []
        self.held: dict[str, Ledger] = {}
        world = play(self._write)
        self.network_id = world.network_id

    async def _write(self, world: World) -> None:
        n1, n2 = world.add_hosts(2)
        await world.start(n1, n2)
        for number in range(_WRITES):
            host = (n1, n2)[number % 3 == 0]
            result = await host.running.append(self._ops(number))
            log = LogKey(result.author, result.epoch)
            self.journal.append(Acknowledged(host.name, log, result.seq, result.id, trio.current_time()))
        await world.wait_converged(20)
        self.roots = n1.running.engine.roots
        self.held = {host.name: read_ledger(host.store) for host in (n1, n2)}

    def _ops(self, number: int) -> list[OpDraft]:
        shared = b"shared/%d" % (number % 5)
        ops = [OpDraft(OpKind.PUT, shared, b"%d" % number), OpDraft(OpKind.PUT, b"own/%d" % number, b"1")]
        if number % 7 == 0:
            ops.append(OpDraft(OpKind.DELETE, b"own/%d" % (number - 7)))
        if number % 4 == 0:
            ops.append(OpDraft(OpKind.ADD, b"sum", amount=number - 40))
        if number % 20 == 0:
            ops.append(OpDraft(OpKind.PUT, shared, b"x" * 17_000))
        return ops

    def judge(self) -> set[str]:
        """The invariants that these ledgers break."""
        found = check_kept(self.network_id, self.journal, self.held)
        found += check_converged(self.network_id, self.held)
        found += check_one_entry_a_place(self.network_id, self.held)
        for node, ledger in self.held.items():
            found += check_authentic(self.network_id, node, ledger)
            found += check_roots(
                self.network_id,
                node,
                ledger,
                state_root=self.roots.state_root,
                log_root=self.roots.log_root,
            )
        return {violation.invariant for violation in found}


@pytest.fixture(scope="module")
def honest() -> Ledgers:
    return Ledgers()


@pytest.fixture
def ledgers(honest: Ledgers) -> Ledgers:
    return copy.deepcopy(honest)


def test_honest_ledgers_break_nothing(ledgers: Ledgers) -> None:
    assert ledgers.judge() == set()
    assert ledgers.held["n1"].size >= _WRITES
    assert sum(len(seals) for seals in ledgers.held["n1"].seals.values()) >= 4


def _log(ledgers: Ledgers) -> LogKey:
    """The longest log."""
    return max(ledgers.held["n2"].logs, key=lambda log: len(ledgers.held["n2"].logs[log]))


def test_a_lost_tail(ledgers: Ledgers) -> None:
    """A node that forgot its newest entry, head and all."""
    ledger, log = ledgers.held["n2"], _log(ledgers)
    ledger.logs[log].pop()
    head = ledger.heads[log]
    before = _header_prev(ledgers.held["n1"].logs[log][-1][0])
    ledger.heads[log] = LogHead(head.seq - 1, before, head.frozen)
    assert ledgers.judge() >= {"I1", "I2", "I4"}


def _header_prev(header: bytes) -> bytes:
    return struct.unpack_from(">B32sQQ32s", header)[4]


def test_a_gap(ledgers: Ledgers) -> None:
    ledger, log = ledgers.held["n2"], _log(ledgers)
    del ledger.logs[log][1]
    assert ledgers.judge() >= {"I1", "I3"}


@pytest.mark.parametrize("part", ["header", "ops"])
def test_an_altered_entry(ledgers: Ledgers, part: str) -> None:
    ledger, log = ledgers.held["n2"], _log(ledgers)
    header, ops = ledger.logs[log][3]
    if part == "header":
        header = header[:-1] + bytes([header[-1] ^ 1])
    else:
        ops = ops[:-1] + bytes([ops[-1] ^ 1])
    ledger.logs[log][3] = (header, ops)
    assert "I3" in ledgers.judge()


def test_a_missing_seal(ledgers: Ledgers) -> None:
    ledger = ledgers.held["n2"]
    log = _log(ledgers)
    ledger.seals[log] = [seal for seal in ledger.seals[log] if seal.seq != len(ledger.logs[log]) - 1]
    assert ledgers.judge() == {"I3"}


def test_a_forged_seal(ledgers: Ledgers) -> None:
    ledger, log = ledgers.held["n2"], _log(ledgers)
    seal = ledger.seals[log][-1]
    ledger.seals[log][-1] = seal._replace(signature=seal.signature[:-1] + bytes([seal.signature[-1] ^ 1]))
    assert ledgers.judge() == {"I3"}


def test_a_wrong_root(ledgers: Ledgers) -> None:
    ledgers.roots = ledgers.roots._replace(state_root=bytes(32))
    assert ledgers.judge() == {"I4"}


def test_another_entry_at_the_same_place(ledgers: Ledgers) -> None:
    line = ledgers.journal[5]
    ledgers.journal[5] = replace(line, id=bytes(32))
    assert ledgers.judge() == {"I1"}
    watch = Monotone()
    assert watch.acknowledged(line) == []
    assert watch.acknowledged(line) == []
    assert [found.invariant for found in watch.acknowledged(ledgers.journal[5])] == ["I5"]


def test_a_log_that_shrinks() -> None:
    watch, log = Monotone(), LogKey(bytes(32), 1)
    assert watch.look("n1", {log: LogHead(4, b"a" * 32)}) == []
    assert watch.look("n1", {log: LogHead(5, b"b" * 32)}) == []
    assert [found.invariant for found in watch.look("n1", {log: LogHead(4, b"a" * 32)})] == ["I5"]
    assert [found.invariant for found in watch.look("n1", {})] == ["I5"]
    watch.look("n1", {log: LogHead(9, b"c" * 32)})
    assert watch.look("n1", {log: LogHead(3, b"d" * 32, frozen=4)}) == []  # a fork proof takes it out
    watch.forget("n1")
    assert watch.look("n1", {}) == []


def test_bounds_and_halting() -> None:
    assert check_bounds("n1", {"pending": 3}, {"pending": 3, "unknown": 1}) == []
    assert [found.invariant for found in check_bounds("n1", {"pending": 4}, {"pending": 3})] == ["I7"]
    assert check_halted("n1", ready=False, wrote=False) == []
    assert len(check_halted("n1", ready=True, wrote=True)) == 2


PEER = "12D3KooWPeer"
FALLBACK = ModeChanged(Mode.HTTP, Mode.P2P, Reason.PEERLESS)
RETURN = ModeChanged(Mode.P2P, Mode.HTTP, Reason.HEARD)


def watched() -> ModeWatch:
    """A peer known from 0 s, beaten until 100 s with good rounds, silent since."""
    watch = ModeWatch()
    watch.observe(PeerKnown(PEER, 0.0), [ModeChanged(Mode.P2P, None, Reason.STARTING)])
    watch.observe(DirectSet((PEER,), 1.0), [])
    for t in range(5, 101, 5):
        watch.observe(BeatHeard(PEER, float(t)), [])
        watch.observe(RoundGood(PEER, "p2p", float(t)), [])
    return watch


@pytest.mark.parametrize(("at", "faults"), [(155.0, 2), (159.5, 2), (160.0, 0), (161.0, 0)])
def test_a_fallback_waits_for_its_60_seconds(at: float, faults: int) -> None:
    watch = watched()
    watch.observe(Tick(at), [FALLBACK, PollDue(PEER)])
    assert len(watch.found) == faults


def test_a_fallback_for_want_of_rounds() -> None:
    """Beats go on, rounds do not: the 60 s count from the last good round."""
    for at, faults in ((159.0, 2), (161.0, 0)):
        watch = watched()
        for t in range(105, 160, 5):
            watch.observe(BeatHeard(PEER, float(t)), [])
        watch.observe(Tick(at), [FALLBACK, PollDue(PEER)])
        assert len(watch.found) == faults


@pytest.mark.parametrize(("at", "faults"), [(214.0, 2), (215.0, 0)])
def test_a_return_waits_for_its_15_seconds(at: float, faults: int) -> None:
    watch = watched()
    watch.observe(Tick(161.0), [FALLBACK, PollDue(PEER)])
    for t in range(200, 215, 5):
        watch.observe(BeatHeard(PEER, float(t)), [])
    watch.observe(Tick(at), [RETURN, PollsStopped((PEER,))])
    assert len(watch.found) == faults


def test_a_gap_begins_the_15_seconds_anew() -> None:
    watch = watched()
    watch.observe(Tick(161.0), [FALLBACK, PollDue(PEER)])
    for t in (200.0, 205.0, 212.0, 217.0):
        watch.observe(BeatHeard(PEER, t), [])
    watch.observe(Tick(218.0), [RETURN, PollsStopped((PEER,))])
    assert len(watch.found) == 2


def test_a_silent_peer_that_is_never_polled() -> None:
    watch = watched()
    watch.observe(Tick(175.0), [FALLBACK])
    assert watch.found == []
    watch.observe(Tick(185.0), [])
    assert len(watch.found) == 1
