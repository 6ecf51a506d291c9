"""What an operator does and meets: switching, restarting, full disks, copied directories."""

from __future__ import annotations

import pytest
import trio

from lattice.core.draft import OpDraft
from lattice.core.entry import OpKind
from lattice.core.errors import LatticeError
from lattice.core.rows import LogKey
from lattice.testing import P2P_KINDS, World, play
from lattice.testing.invariants import check_authentic, check_converged, check_one_entry_a_place
from lattice.testing.reference import read_ledger
from tests.node.kit import HTTP, ISOLATED, P2P, cut, get, mode, polled, put, settled, until_known

pytestmark = pytest.mark.slow


def test_switching_by_hand_loses_nothing() -> None:
    async def scenario(world: World) -> None:
        n1, n2 = world.add_hosts(2)
        await world.start(n1, n2)
        await settled(world, [n1, n2])
        answer = await n1.running.switch("http")
        assert (answer.mode, answer.policy) == (HTTP, "http")
        rounds = n1.running.anti_entropy_counters.get("rounds_p2p_equal", 0)
        await put(n1, "one")
        await put(n2, "two")
        assert await world.wait_converged(11) <= 11
        await trio.sleep(60)
        assert n1.running.anti_entropy_counters.get("rounds_p2p_equal", 0) == rounds
        assert n1.running.status().peers[0].p2p.reachable  # beats and probes go on
        assert mode(n2) == P2P or polled(n2)

        answer = await n1.running.switch("auto")
        assert (answer.mode, answer.policy) == (P2P, "auto")
        await trio.sleep(2)
        assert not polled(n1)

        answer = await n1.running.switch("p2p")
        assert (answer.mode, answer.policy) == (P2P, "p2p")
        cut(world, [n1], [n2], P2P_KINDS)
        await trio.sleep(75)
        assert (mode(n1), n1.running.status().reason) == (ISOLATED, "policy p2p")
        assert not polled(n1)
        # It answers on both lungs in every policy: n2 fetches what n1 wrote.
        await put(n1, "three")
        await until_known(world, n2, "three", 15)
        answer = await n1.running.switch("auto")
        assert answer.mode == HTTP
        await put(n2, "four")
        await until_known(world, n1, "four", 11)

    play(scenario)


def test_the_policy_survives_a_restart() -> None:
    async def scenario(world: World) -> None:
        n1, n2 = world.add_hosts(2)
        await world.start(n1, n2)
        await settled(world, [n1, n2])
        await n1.running.switch("http")
        await world.crash(n1)
        await world.start(n1)
        status = n1.running.status()
        assert (status.policy, status.sync_mode) == ("http", HTTP)
        with pytest.raises(LatticeError) as refused:
            await n1.running.switch("carrier pigeon")
        assert refused.value.code == "bad_mode"

    play(scenario)


def test_peers_are_remembered() -> None:
    """n1 was told of n2 alone; after a restart without that, and with n2 gone, it still finds n3.
    Nobody could have found n1, which announces no address."""

    async def scenario(world: World) -> None:
        n1, n2, n3 = world.add_hosts(3, acquainted=False)
        n1.announces = False
        n1.knows_peers, n2.knows_peers = [n2], [n3]
        await world.start(n1, n2, n3)
        await settled(world, [n1, n2, n3])
        await trio.sleep(2)
        await world.crash(n1)
        await world.crash(n2)
        n1.knows_peers = []
        await world.start(n1)
        await put(n1, "to n3")
        await until_known(world, n3, "to n3", 15)

    play(scenario)


def test_a_newcomer_catches_up_in_one_round() -> None:
    """Several pages of one log, over either lung, at once and not one page a round."""

    async def scenario(world: World) -> None:
        n1, n2, n3 = world.add_hosts(3)
        n3.p2p = False
        await world.start(n1)
        for number in range(80):
            await put(n1, f"key/{number}", b"x" * 100_000)
        await world.start(n2, n3)
        assert await world.wait_converged(6) <= 6
        assert get(n2, "key/79") == get(n3, "key/79") == b"x" * 100_000

    play(scenario)


def test_a_newcomer_learns_of_all_authors_in_one_round() -> None:
    async def scenario(world: World) -> None:
        hosts = world.add_hosts(6)
        newcomer = hosts.pop()
        newcomer.knows_peers = hosts[:1]
        newcomer.http = False
        await world.start(*hosts)
        for host in hosts:
            await put(host, host.name)
        await settled(world, hosts)
        await world.wait_converged(15)
        for host in hosts[1:]:
            await world.crash(host)
        await world.start(newcomer)
        began = newcomer.running.anti_entropy_counters
        assert await world.wait_converged(8) <= 8
        assert get(newcomer, "n4") == b"1"
        rounds = [name for name in began if name.startswith("rounds_p2p")]
        assert sum(began[name] for name in rounds) <= 3

    play(scenario)


def test_an_acknowledged_write_survives_a_crash() -> None:
    async def scenario(world: World) -> None:
        n1, n2 = world.add_hosts(2)
        await world.start(n1, n2)
        await settled(world, [n1, n2])
        cut(world, [n1], [n2])
        first = await put(n1, "kept")
        await world.crash(n1)
        await world.start(n1)
        assert get(n1, "kept") == b"1"
        second = await put(n1, "next")
        assert first.epoch != second.epoch
        world.weather.clear()
        assert await until_known(world, n2, "kept", 20) <= 20

    play(scenario)


def test_a_lost_tail_comes_home_and_is_no_fork() -> None:
    """A power cut on a disk that lied about its last syncs: what others hold comes back."""

    async def scenario(world: World) -> None:
        n1, n2, n3 = world.add_hosts(3)
        await world.start(n1, n2, n3)
        await settled(world, [n1, n2, n3])
        for number in range(6):
            await put(n1, f"key/{number}")
        await world.wait_converged(2)
        await world.crash(n1, lose_commits=4)
        await world.start(n1)
        assert get(n1, "key/5") is None
        await put(n1, "after the cut")
        await world.wait_converged(20)
        assert get(n1, "key/5") == b"1"
        ledgers = {host.name: read_ledger(host.store) for host in world.hosts}
        assert check_one_entry_a_place(world.network_id, ledgers) == []
        assert check_converged(world.network_id, ledgers) == []
        assert not any(host.running.alarms for host in world.hosts)

    play(scenario)


def test_quick_switches_leave_one_running_poll() -> None:
    async def scenario(world: World) -> None:
        n1, n2 = world.add_hosts(2, p2p=False, acquainted=False)
        # Nobody can poll n1: everything goes through its own polls.
        n1.knows_urls, n1.announces = [n2.url], False
        await world.start(n1, n2)
        await trio.sleep(5)
        for policy in ("http", "p2p", "http", "p2p", "auto", "p2p", "http"):
            await n1.running.switch(policy)
        for number in range(3):
            await put(n1, f"key/{number}")
            assert await until_known(world, n2, f"key/{number}", 2) <= 1.2
            await trio.sleep(3)
        counters = n1.running.anti_entropy_counters
        assert sum(count for name, count in counters.items() if name.startswith("rounds_http")) <= 6

    play(scenario)


def test_a_copied_directory() -> None:
    """Two live processes under one key: no conflict, nothing lost, and a third node raises the alarm."""

    async def scenario(world: World) -> None:
        n1, n2, n3 = world.add_hosts(3)
        await world.start(n1, n2, n3)
        await settled(world, [n1, n2, n3])
        await put(n1, "before the copy")
        await world.wait_converged(2)
        await world.crash(n1)
        twin = world.clone(n1)
        await world.start(n1, twin)
        written = []
        for number in range(8):
            for host in (n1, twin):
                result = await put(host, f"{host.name}/{number}")
                written.append((LogKey(result.author, result.epoch), result.seq, result.id))
            await trio.sleep(6)
        assert await world.wait_converged(100) <= 100
        assert len({(log, seq) for log, seq, _ in written}) == len(written)
        for host in world.hosts:
            for log, seq, entry in written:
                assert host.store.entry_id_at(log.author, log.epoch, seq) == entry
        ledgers = {host.name: read_ledger(host.store) for host in world.hosts}
        assert check_one_entry_a_place(world.network_id, ledgers) == []
        assert [check_authentic(world.network_id, name, held) for name, held in ledgers.items()] == [[]] * 4
        for host in (n2, n3):
            assert f"twin {n1.key.peer_id}" in host.running.alarms
        for host in (n1, twin):
            await world.wait_until(
                lambda host=host: f"twin {n1.key.peer_id}" in host.running.alarms, 60, "its own alarm"
            )

    play(scenario)


def test_a_full_disk_is_tried_again_by_itself() -> None:
    async def scenario(world: World) -> None:
        n1, n2 = world.add_hosts(2)
        await world.start(n1, n2)
        await settled(world, [n1, n2])
        n1.store.disk.error = "no_space"
        with pytest.raises(LatticeError) as refused:
            await put(n1, "refused")
        assert refused.value.code == "no_space"
        assert "store" in n1.running.ready()
        await put(n2, "meanwhile")
        await trio.sleep(30)
        assert get(n1, "meanwhile") is None
        assert mode(n1) == P2P  # its lungs are well: beats go on
        n1.store.disk.error = None
        assert await until_known(world, n1, "meanwhile", 25) <= 25
        assert n1.running.ready() == {}
        await put(n1, "accepted")
        assert get(n1, "refused") is None

    play(scenario)


def test_after_a_failed_sync_the_node_halts() -> None:
    async def scenario(world: World) -> None:
        n1, n2 = world.add_hosts(2)
        await world.start(n1, n2)
        await settled(world, [n1, n2])
        await put(n1, "before")
        n1.store.disk.error, n1.store.disk.lands = "store_failed", True
        with pytest.raises(LatticeError) as failed:
            await put(n1, "unsure")
        assert failed.value.code == "store_failed"
        n1.store.disk.error = None
        await trio.sleep(60)
        assert "store" in n1.running.ready()
        with pytest.raises(LatticeError):
            await put(n1, "never")
        assert get(n1, "before") == b"1"
        assert get(n2, "unsure") is None
        await world.crash(n1)
        await world.start(n1)
        assert n1.running.ready() == {}
        assert get(n1, "unsure") == b"1"  # it had landed after all, and was never denied
        assert await until_known(world, n2, "unsure", 20) <= 20

    play(scenario)


def test_an_acknowledgement_by_two() -> None:
    async def scenario(world: World) -> None:
        n1, n2 = world.add_hosts(2)
        await world.start(n1, n2)
        await settled(world, [n1, n2])
        began = trio.current_time()
        await n1.running.append(_one("quick"), ack=2)
        assert trio.current_time() - began <= 2
        assert get(n2, "quick") == b"1"
        cut(world, [n1], [n2])
        with pytest.raises(LatticeError) as late:
            await n1.running.append(_one("slow"), ack=2)
        assert late.value.code == "not_replicated"
        assert get(n1, "slow") == b"1"

    play(scenario)


def _one(key: str) -> list[OpDraft]:
    return [OpDraft(OpKind.PUT, key.encode(), b"1")]
