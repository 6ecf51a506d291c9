"""Forks as an operator sees them: the route, the status, the alarm, the event, the command line."""

from __future__ import annotations

import json

import pytest

from lattice.api.access import Access
from lattice.api.app import create_app
from lattice.cli.text import forks_text
from lattice.client import calls
from lattice.core.forks import proof_verifies, unpack_fork_proof
from lattice.core.identity import peer_id_of
from lattice.core.proofs import parse_proof, verify_proof
from lattice.storage.memory import MemoryStore
from tests.integration.api.api_kit import LOOPBACK, Lines, in_process, running_node
from tests.integration.api.forks_kit import AUTHOR, fork, give, write


async def test_a_fork_is_listed_with_what_it_took_out_and_a_proof_that_verifies() -> None:
    lines = Lines()
    async with running_node(lines=lines) as node, in_process(create_app(node, Access(LOOPBACK, None))) as api:
        empty = await api.get("/api/lattice/forks")
        assert empty.json() == {"success": True, "forks": [], "count": 0, "next": None}
        first = write(node, 0, bytes(32), b"stays")
        one, two = write(node, 1, first.id, b"lost"), write(node, 1, first.id, b"other")
        await give(node, first, one)
        assert (await api.get("/api/lattice/keys/lost")).status_code == 200
        await give(node, two)

        answer = await api.get("/api/lattice/forks")
        found = calls.forks().read(answer.status_code, answer.content)
        assert found.count == 1
        fork = found.forks[0]
        assert (fork.author, fork.epoch, fork.frozen) == (AUTHOR.peer_id, f"{9:016x}", 1)
        assert (fork.removed, fork.keys, fork.lung) == (1, ["lost"], "gossip")
        assert fork.peer == peer_id_of(b"q" * 32)
        proof = unpack_fork_proof(node.network_id, bytes.fromhex(fork.proof))
        assert proof_verifies(node.network_id, proof)
        assert {proof.one.headers[0].id, proof.other.headers[0].id} == {one.id, two.id}
        assert proof.continues == first.id

        for key, status in (("stays", 200), ("lost", 404), ("other", 404)):
            assert (await api.get(f"/api/lattice/keys/{key}")).status_code == status
        shown = (await api.get("/api/lattice/p2p/status")).json()
        assert shown["forks"] == 1
        assert any("frozen at seq 1" in alarm and "lost" in alarm for alarm in shown["alarms"])
        heads = (await api.get("/api/lattice/state")).json()["heads"]
        assert [(head["seq"], head["frozen"]) for head in heads] == [(0, 1)]
        assert [tag for _, tag, text, _ in lines.said if "frozen at seq 1" in text] == ["ALERT"]
        start = node.bus.id_of(0)
        events = await api.get(f"/api/lattice/events?follow=false&type=alarm&after={start}")
        assert any("frozen at seq 1" in line for line in events.text.splitlines())
        # What docs/reference/events.md tells a program to look for.
        assert any('"code":"fork ' in line and "frozen at seq 1" in line for line in events.text.splitlines())
        told = forks_text(found.forks)
        assert f"{AUTHOR.peer_id} epoch {9:016x} is frozen at seq 1" in told
        assert "changed: lost" in told
        assert json.loads(answer.content)["success"] is True


async def test_the_alarm_of_a_fork_stands_after_a_restart_and_is_told_once() -> None:
    async with running_node() as node:
        first, network_id = write(node, 0, bytes(32), b"stays"), node.network_id
        one, two = write(node, 1, first.id, b"lost"), write(node, 1, first.id, b"other")
        await give(node, first, one)
        await give(node, two)
        before = node.alarms
        assert [code[:5] for code in before] == ["fork "]
        store = node.store
    assert isinstance(store, MemoryStore)
    lines = Lines()
    async with (
        running_node(lines=lines, store=store.reopened(), network_id=network_id) as node,
        in_process(create_app(node, Access(LOOPBACK, None))) as api,
    ):
        shown = (await api.get("/api/lattice/p2p/status")).json()
        assert (node.alarms, shown["alarms"], shown["forks"]) == (before, list(before.values()), 1)
        assert "\nlattice_alarms 1.0\n" in (await api.get("/metrics")).text
        alerts = [text for _, tag, text, _ in lines.said if tag == "ALERT"]
        assert alerts == ["1 log is frozen by a fork, since before this start; see `lattice forks`"]
        events = f"/api/lattice/events?follow=false&type=alarm&after={node.bus.id_of(0)}"
        assert "frozen" not in (await api.get(events)).text

        # A lower fork is news, as ever.
        await give(node, write(node, 0, bytes(32), b"another first"))
        assert len(node.alarms) == 1
        assert "frozen at seq 0" in lines.said[-1][2]
        assert "frozen at seq 0" in (await api.get(events)).text


async def test_many_forks_are_few_alarms_and_each_is_told() -> None:
    lines = Lines()
    async with running_node(lines=lines) as node, in_process(create_app(node, Access(LOOPBACK, None))) as api:
        await fork(node, range(20))
        own = [f"fork {AUTHOR.peer_id} {epoch:016x}" for epoch in range(16)]
        assert sorted(node.alarms) == [*own, "forks"]
        assert node.alarms["forks"].startswith("4 more logs are frozen by forks, the last one: ")
        assert f"epoch {19:016x}" in node.alarms["forks"]
        assert (await api.get("/api/lattice/p2p/status")).json()["forks"] == 20
        assert "\nlattice_alarms 17.0\n" in (await api.get("/metrics")).text
        told = [text for _, tag, text, _ in lines.said if tag == "ALERT"]
        events = f"/api/lattice/events?follow=false&type=alarm&after={node.bus.id_of(0)}"
        shown = [line for line in (await api.get(events)).text.splitlines() if '"code":"fork' in line]
        for heard in (told, shown):
            assert [f"epoch {epoch:016x}" in line for epoch, line in enumerate(heard)] == [True] * 20
        # To be frozen lower is news too, and not another log.
        first = write(node, 0, bytes(32), b"first", epoch=50)
        await give(node, first, write(node, 1, first.id, b"one", epoch=50))
        for seq, prev in ((1, first.id), (0, bytes(32))):
            await give(node, write(node, seq, prev, b"rival", epoch=50))
            assert node.alarms["forks"].startswith("5 more logs are frozen by forks, the last one: ")
            assert f"(epoch {50:016x}): it is frozen at seq {seq}, " in node.alarms["forks"]
            assert lines.said[-1][2] == node.alarms["forks"]
        store, network_id, alarms = node.store, node.network_id, node.alarms
    assert isinstance(store, MemoryStore)
    async with running_node(store=store.reopened(), network_id=network_id) as node:
        assert node.alarms == {**alarms, "forks": "5 more logs are frozen by forks; see `lattice forks`"}
        await fork(node, [77])
        assert node.alarms["forks"].startswith("6 more logs are frozen by forks, the last one: ")


async def test_forks_are_shown_page_by_page(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_node() as node, in_process(create_app(node, Access(LOOPBACK, None))) as api:
        epochs = [*range(1, 19), 2**64 - 1]
        await fork(node, epochs)

        async def pages(limit: int) -> list[list[int]]:
            found: list[list[int]] = []
            after: str | None = None
            while True:
                call = calls.forks(after=after, limit=limit)
                answer = await api.get(call.target)
                page = call.read(answer.status_code, answer.content)
                assert page.count == len(page.forks)
                found.append([int(fork.epoch, 16) for fork in page.forks])
                after = page.next
                if after is None:
                    return found

        assert await pages(100) == await pages(19) == [epochs]
        assert await pages(18) == [epochs[:18], epochs[18:]]
        assert await pages(7) == [epochs[:7], epochs[7:14], epochs[14:]]
        assert (await api.get("/api/lattice/forks")).json()["count"] == 19
        # However many are asked for, an answer has a bound in bytes.
        proof = (await api.get("/api/lattice/forks?limit=1")).json()["forks"][0]["proof"]
        monkeypatch.setattr("lattice.api.paging.PAGE_VALUES_BYTES", 10 * len(proof))
        assert await pages(1000) == [epochs[:10], epochs[10:]]
        author = AUTHOR.peer_id
        for after in ("", "x", author, f"{author}-9", f"{author}-{'g' * 16}", f"x-{9:016x}"):
            refused = await api.get("/api/lattice/forks", params={"after": after})
            assert (refused.status_code, refused.json()["code"]) == (400, "bad_request")
        assert (await api.get("/api/lattice/forks?limit=1001")).status_code in (400, 422)


async def test_what_lies_below_a_fork_can_still_be_proven() -> None:
    """The seal that stood over it went with its branch; the fork proof holds the way to it."""
    async with running_node() as node, in_process(create_app(node, Access(LOOPBACK, None))) as api:
        first = write(node, 0, bytes(32), b"stays")
        second = write(node, 1, first.id, b"stays/too")
        one, two = write(node, 2, second.id, b"lost"), write(node, 2, second.id, b"other")
        await give(node, first, second, one)
        await give(node, two)
        for key in ("stays", "stays/too"):
            answer = await api.get(f"/api/lattice/proof/{key}")
            assert answer.status_code == 200, answer.text
            proven = verify_proof(parse_proof(answer.json()))
            assert (proven.present, proven.author, proven.value) == (True, AUTHOR.public_key, b"1")
        absent = await api.get("/api/lattice/proof/lost")
        assert not verify_proof(parse_proof(absent.json())).present
