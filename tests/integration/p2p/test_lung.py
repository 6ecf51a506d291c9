"""The lung as the node sees it: started or not, lost and rebuilt, and leaving nothing behind."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import psutil
import pytest
import trio

from lattice.transport.p2p import fastecdsa_shim, host
from lattice.transport.p2p.fastecdsa_shim import FastecdsaMissingError
from lattice.transport.p2p.host import HostLostError, LibraryVersionError
from lattice.transport.p2p.lung import Libp2pLung
from lattice.transport.p2p.tuning import Tuning
from lattice.transport.port import P2PLung, PeerLink
from tests.integration.p2p.p2p_kit import ENTRIES, FAST, LOG, LOOPBACK, PRESENCE, Recorder, until


def make(listen: str = LOOPBACK, *, seed: bytes | None = None, tuning: Tuning = FAST) -> Libp2pLung:
    return Libp2pLung(seed or os.urandom(32), [listen], [], ENTRIES, PRESENCE, LOG, tuning=tuning)


def admitting(lung: Libp2pLung) -> Recorder:
    handler = Recorder()

    async def admit(link: PeerLink) -> None:
        lung.admit(link.peer_id)

    handler.on_new_link = admit
    return handler


def address(lung: P2PLung) -> dict[str, tuple[str, ...]]:
    report = lung.report()
    return {report.peer_id: report.announced_multiaddrs}


@contextlib.asynccontextmanager
async def running(*lungs: Libp2pLung) -> AsyncIterator[list[Recorder]]:
    async with trio.open_nursery() as nursery:
        handlers = [admitting(lung) for lung in lungs]
        for lung, handler in zip(lungs, handlers, strict=True):
            await nursery.start(lung.run, handler)
        yield handlers
        nursery.cancel_scope.cancel()


def listeners_on(port: int) -> int:
    return sum(
        connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
        for connection in psutil.Process().net_connections("tcp")
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def test_a_lung_is_a_p2plung_and_reports() -> None:
    lung = make()
    check: P2PLung = lung
    before = check.report()
    assert (before.enabled, before.started) == (True, False)
    assert before.peer_id.startswith("12D3Koo")
    assert not lung.publish_nowait("entries", b"x")
    assert lung.report().counters["gossip_host_down"] == 1
    lung.admit(before.peer_id)  # nothing runs: nothing happens
    lung.expel(before.peer_id)
    async with running(lung):
        report = lung.report()
        assert report.started
        assert report.error is None
        assert report.peer_id == before.peer_id
        assert report.listen_multiaddrs[0].startswith("/ip4/127.0.0.1/tcp/")
        assert report.announced_multiaddrs == (f"{report.listen_multiaddrs[0]}/p2p/{report.peer_id}",)
        assert report.connected == report.gossip_ready == ()
        lung.admit("nonsense")
        lung.expel("nonsense")


@pytest.mark.slow
async def test_two_lungs_find_each_other_and_gossip() -> None:
    a, b = make(), make()
    async with running(a, b) as (at_a, at_b):
        a.set_known(address(b))
        b.set_known(address(a))
        await until(lambda: bool(a.report().gossip_ready) and bool(b.report().gossip_ready))
        assert a.report().connected == (b.report().peer_id,)
        assert a.publish_nowait("entries", b"hello")
        await until(lambda: at_b.payloads() == [b"hello"])
        assert at_b.gossip[0][:2] == (a.report().peer_id, "entries")
        assert at_a.gossip == []


@pytest.mark.slow
async def test_ipv6_works_and_is_named() -> None:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            pass
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")
    a, b = make("/ip6/::1/tcp/0"), make("/ip6/::1/tcp/0")
    async with running(a, b) as (at_a, _):
        a.set_known(address(b))
        b.set_known(address(a))
        await until(lambda: bool(a.report().gossip_ready) and bool(b.report().gossip_ready))
        assert at_a.links[0].remote_address.startswith("[::1]:")


async def test_the_configured_addresses_are_announced() -> None:
    lung = Libp2pLung(
        os.urandom(32), [LOOPBACK], ["/dns4/node.example/tcp/9000"], ENTRIES, PRESENCE, LOG, tuning=FAST
    )
    async with running(lung):
        report = lung.report()
        assert report.announced_multiaddrs == (f"/dns4/node.example/tcp/9000/p2p/{report.peer_id}",)


async def test_an_unspecified_address_is_never_announced() -> None:
    lung = make("/ip4/0.0.0.0/tcp/0")
    async with running(lung):
        report = lung.report()
        assert "/0.0.0.0/" in report.listen_multiaddrs[0]
        assert report.announced_multiaddrs
        assert not any("/0.0.0.0/" in text for text in report.announced_multiaddrs)


@pytest.mark.slow
async def test_a_busy_port_is_said_and_tried_again() -> None:
    port = free_port()
    listen = f"/ip4/127.0.0.1/tcp/{port}"
    first, second = make(listen), make(listen)
    async with running(first), trio.open_nursery() as nursery:
        with trio.fail_after(5):
            await nursery.start(second.run, Recorder())
        report = second.report()
        assert not report.started
        assert report.error is not None
        assert "port busy" in report.error
        assert listeners_on(port) == 1
        assert first.report().error is None
        nursery.cancel_scope.cancel()
    async with trio.open_nursery() as nursery:
        with socket.create_server(("127.0.0.1", port)):
            await nursery.start(second.run, Recorder())
            assert not second.report().started
        await until(lambda: second.report().started)  # the port became free: it starts by itself
        assert second.report().error is None
        assert second.report().restarts == 0
        assert second.report().counters["start_failed"] >= 1
        nursery.cancel_scope.cancel()


@pytest.mark.slow
async def test_the_library_alone_lets_two_hosts_share_a_port() -> None:
    from libp2p import new_host
    from multiaddr import Multiaddr

    where = Multiaddr(f"/ip4/127.0.0.1/tcp/{free_port()}")
    async with new_host().run([where]), new_host().run([where]):
        assert listeners_on(int(where.value_for_protocol("tcp"))) == 2


@pytest.mark.parametrize(
    ("listen", "word"), [("/ip4/1.2.3.4/tcp/0", "cannot listen"), ("nonsense", "multiaddr")]
)
async def test_a_bad_listen_address_is_said(listen: str, word: str) -> None:
    lung = make(listen)
    async with running(lung):
        report = lung.report()
        assert not report.started
        assert word in (report.error or "")


async def boom() -> None:
    raise RuntimeError("raised on purpose")


def crash_in_own_nursery(lung: Libp2pLung) -> None:
    lung._life._nursery.start_soon(boom)  # type: ignore[union-attr]


def crash_in_a_pubsub_task(lung: Libp2pLung) -> None:
    lung._life.host.pubsub.manager._task_nursery.start_soon(boom)  # type: ignore[union-attr, attr-defined]


def crash_in_the_swarm(lung: Libp2pLung) -> None:
    lung._life.host.network.manager._task_nursery.start_soon(boom)  # type: ignore[union-attr, attr-defined]


def end_the_pubsub_service(lung: Libp2pLung) -> None:
    lung._life.host.pubsub.manager.cancel()  # type: ignore[union-attr]


def cancel_the_host(lung: Libp2pLung) -> None:
    lung._life._nursery.cancel_scope.cancel()  # type: ignore[union-attr]


CRASHES: tuple[Callable[[Libp2pLung], None], ...] = (
    crash_in_own_nursery,
    crash_in_a_pubsub_task,
    crash_in_the_swarm,
    end_the_pubsub_service,
    cancel_the_host,
)


@pytest.mark.slow
async def test_a_lost_host_is_rebuilt_and_leaves_nothing_behind() -> None:
    port = free_port()
    # A restart that follows another within a minute waits longer: not what this is about.
    tuning = dataclasses.replace(FAST, rebuild_reset_s=0.0)
    lung, other = make(f"/ip4/127.0.0.1/tcp/{port}", tuning=tuning), make()
    longest_pause = 0.0

    async def sibling() -> None:
        nonlocal longest_pause
        while True:
            began = trio.current_time()
            await trio.sleep(0.01)
            longest_pause = max(longest_pause, trio.current_time() - began)

    async with running(lung, other) as (_, at_other), trio.open_nursery() as nursery:
        nursery.start_soon(sibling)
        other.set_known(address(lung))
        lung.set_known(address(other))
        await until(lambda: bool(lung.report().gossip_ready) and bool(other.report().gossip_ready))
        await trio.sleep(0.3)
        threads = threading.active_count()
        tasks = trio.lowlevel.current_statistics().tasks_living
        descriptors = psutil.Process().num_fds()
        for count, crash in enumerate((*CRASHES, *CRASHES), start=1):
            crash(lung)
            # Two seconds, with slack for a busy machine.
            await until(lambda: lung.report().restarts == count, 5)  # noqa: B023
            assert listeners_on(port) == 1, crash.__name__
            await until(lambda: bool(lung.report().gossip_ready) and bool(other.report().gossip_ready), 10)
            mark = b"after %d" % count
            assert lung.publish_nowait("entries", mark)
            await until(lambda: mark in at_other.payloads())  # noqa: B023
        await trio.sleep(0.3)
        assert lung.report().counters["host_lost"] == 2 * len(CRASHES)
        # Fewer, where a worker that an earlier test had left idle has gone meanwhile.
        assert threading.active_count() <= threads
        assert trio.lowlevel.current_statistics().tasks_living <= tasks + 3
        assert psutil.Process().num_fds() <= descriptors + 2
        assert longest_pause < 3.0
        nursery.cancel_scope.cancel()
    assert listeners_on(port) == 0


async def test_leaving_a_plain_host_by_cancellation_leaves_its_listener_open() -> None:
    from libp2p import new_host
    from multiaddr import Multiaddr

    host_alone: Any = new_host()
    port = free_port()
    with trio.CancelScope() as scope:
        async with host_alone.run([Multiaddr(f"/ip4/127.0.0.1/tcp/{port}")]):
            scope.cancel()
            await trio.sleep_forever()
    assert listeners_on(port) == 1
    await host_alone.close()


@pytest.mark.slow
async def test_repeated_losses_back_off_and_a_long_life_resets() -> None:
    lung = make(tuning=dataclasses.replace(FAST, rebuild_first_s=0.1, rebuild_max_s=0.4))
    gaps = []
    async with running(lung):
        for count in range(1, 5):
            crash_in_own_nursery(lung)
            began = trio.current_time()
            await until(lambda: lung.report().restarts == count)  # noqa: B023
            gaps.append(trio.current_time() - began)
    for gap, least in zip(gaps, (0.1, 0.2, 0.4, 0.4), strict=True):
        assert least <= gap < least + 1.0  # the fourth is not 0.8


@pytest.mark.slow
async def test_a_lost_host_says_so_while_it_is_down() -> None:
    lung = make(tuning=dataclasses.replace(FAST, rebuild_first_s=0.5))
    async with running(lung):
        crash_in_a_pubsub_task(lung)
        # While what is left of it is being closed, it only says that it is not running.
        await until(lambda: "RuntimeError: raised on purpose" in (lung.report().error or ""))
        report = lung.report()
        assert report.started  # it did start; a lung that never did is another matter
        assert report.connected == ()
        await until(lambda: lung.report().error is None)


async def test_cancelling_the_lung_ends_it_at_once() -> None:
    lung = make()
    async with running(lung):
        port = int(lung.report().listen_multiaddrs[0].rpartition("/")[2])
        assert listeners_on(port) == 1
    assert listeners_on(port) == 0
    assert lung.report().listen_multiaddrs == ()


def test_another_version_of_libp2p_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host.importlib.metadata, "version", lambda _name: "0.8.2")
    with pytest.raises(LibraryVersionError, match=r"0\.8\.2.*libp2p==0\.8\.1"):
        make()


def test_a_service_that_ends_is_a_lost_host() -> None:
    assert issubclass(HostLostError, Exception)
    assert not issubclass(HostLostError, trio.Cancelled)


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        Libp2pLung(b"short", [LOOPBACK], [], ENTRIES, PRESENCE, LOG)
    with pytest.raises(ValueError, match="differ"):
        Libp2pLung(bytes(32), [LOOPBACK], [], ENTRIES, ENTRIES, LOG)


@pytest.mark.skipif(
    "fastecdsa" not in sys.modules or not isinstance(sys.modules["fastecdsa"], fastecdsa_shim._StandIn),
    reason="the real fastecdsa is installed",
)
def test_the_stand_in_for_fastecdsa_refuses_every_use() -> None:
    from libp2p.crypto.ecc import ECCPublicKey, create_new_key_pair, infer_local_type

    for use in (
        lambda: infer_local_type("P-256"),
        lambda: create_new_key_pair("P-256"),
        lambda: ECCPublicKey.from_bytes(b"\x04" * 65, "P-256"),
        lambda: ECCPublicKey(None, None).to_bytes(),
    ):
        with pytest.raises(FastecdsaMissingError):
            use()


@pytest.mark.slow
def test_only_the_p2p_package_pulls_in_libp2p() -> None:
    program = (
        "import sys, lattice.transport, lattice.transport.port\n"
        "assert 'libp2p' not in sys.modules\n"
        "import lattice.transport.p2p\n"
        "assert 'libp2p' not in sys.modules\n"
        "import lattice.transport.p2p.lung\n"
        "assert 'libp2p' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
