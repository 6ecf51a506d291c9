"""The faults themselves: each harms the packets that it names, lets the others pass, counts, and heals."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from lattice.testing.cluster import wait_for
from tests.chaos import netns
from tests.chaos.netns import Lan, PacketWatch

OPEN_PORT = 9100
PATIENCE_S = 0.6

pytestmark = [pytest.mark.netns, pytest.mark.slow]


@pytest.fixture(scope="module")
def pair() -> Iterator[Lan]:
    with netns.lan("pair", 2) as made:
        yield made


@pytest.fixture
def echo(pair: Lan) -> Iterator[None]:
    """The first namespace answers on two ports with what it is sent."""
    with contextlib.ExitStack() as stack:
        for number in (netns.P2P_PORT, OPEN_PORT):
            with netns.inside(pair.namespace(1)):
                server = stack.enter_context(socket.create_server((pair.host(1), number)))
            worker = threading.Thread(target=_serve, args=(server,))
            worker.start()
            stack.callback(worker.join)
            stack.callback(server.shutdown, socket.SHUT_RDWR)
        yield


def _serve(server: socket.socket) -> None:
    with ThreadPoolExecutor() as pool:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return  # the test is over
            pool.submit(_answer, connection)


def _answer(connection: socket.socket) -> None:
    with connection, contextlib.suppress(OSError):
        connection.settimeout(PATIENCE_S)
        while received := connection.recv(65536):
            connection.sendall(received)


def call(pair: Lan, number: int, size: int = 100) -> str:
    """Send so many bytes from the second namespace to the first: `ok`, `refused` or `silence`."""
    try:
        with netns.inside(pair.namespace(2)):
            made = socket.create_connection((pair.host(1), number), timeout=PATIENCE_S)
        with made:
            made.sendall(b"x" * size)
            got = 0
            while got < size:
                received = made.recv(65536)
                if not received:  # the other side gave up waiting for the rest
                    return "silence"
                got += len(received)
    except TimeoutError:
        return "silence"
    except ConnectionError:
        return "refused"
    return "ok"


@pytest.mark.parametrize("hooks", [netns.BOTH_WAYS, netns.INBOUND, netns.OUTBOUND])
def test_a_dropped_port_is_silent_and_the_other_open(pair: Lan, echo: None, hooks: tuple[str, ...]) -> None:
    with netns.drop_port(pair.namespace(1), netns.P2P_PORT, hooks=hooks) as fault:
        assert fault.packets() == 0
        assert (call(pair, netns.P2P_PORT), call(pair, OPEN_PORT)) == ("silence", "ok")
        assert fault.packets() > 0
    assert call(pair, netns.P2P_PORT) == "ok"


@pytest.mark.parametrize("side", [1, 2])
def test_a_refused_port_says_so(pair: Lan, echo: None, side: int) -> None:
    with netns.refuse_port(pair.namespace(side), netns.P2P_PORT) as fault:
        assert (call(pair, netns.P2P_PORT), call(pair, OPEN_PORT)) == ("refused", "ok")
        assert fault.packets() > 0
    assert call(pair, netns.P2P_PORT) == "ok"


def test_large_packets_are_dropped_and_small_ones_pass(pair: Lan, echo: None) -> None:
    with netns.impose(pair.namespace(1), netns.larger_than(500, netns.port(netns.P2P_PORT))) as fault:
        assert call(pair, netns.P2P_PORT, size=200) == "ok"
        assert fault.packets() == 0
        assert call(pair, netns.P2P_PORT, size=900) == "silence"
        assert call(pair, OPEN_PORT, size=900) == "ok"
        assert fault.packets() > 0


@pytest.mark.parametrize(("peer", "outcome"), [(2, "silence"), (3, "ok")])
def test_a_pair_is_parted_and_others_are_not(pair: Lan, echo: None, peer: int, outcome: str) -> None:
    matches = netns.port_with(netns.P2P_PORT, [pair.host(peer)])
    with netns.impose(pair.namespace(1), matches) as fault:
        assert call(pair, netns.P2P_PORT) == outcome
        assert (fault.packets() > 0) == (outcome == "silence")


def test_two_faults_at_once(pair: Lan, echo: None) -> None:
    with netns.drop_port(pair.namespace(1), netns.P2P_PORT), netns.drop_port(pair.namespace(1), OPEN_PORT):
        assert (call(pair, netns.P2P_PORT), call(pair, OPEN_PORT)) == ("silence", "silence")
    assert (call(pair, netns.P2P_PORT), call(pair, OPEN_PORT)) == ("ok", "ok")


def test_loss_takes_its_share(pair: Lan) -> None:
    sent = 2000
    with contextlib.ExitStack() as stack:
        with netns.inside(pair.namespace(1)):
            receiver = stack.enter_context(socket.socket(type=socket.SOCK_DGRAM))
            receiver.bind((pair.host(1), OPEN_PORT))
        with netns.inside(pair.namespace(2)):
            sender = stack.enter_context(socket.socket(type=socket.SOCK_DGRAM))
        fault = stack.enter_context(netns.lose(pair.namespace(1), 25))
        got = 0
        receiver.setblocking(False)
        for number in range(sent):
            sender.sendto(b"x", (pair.host(1), OPEN_PORT))
            if number % 50 == 49:  # a full buffer would lose some by itself
                with contextlib.suppress(BlockingIOError):
                    while receiver.recv(16):
                        got += 1
        # A hundred and fifty is nearly eight times the standard deviation.
        assert abs(fault.packets() - sent / 4) < 150
        assert abs(got - sent * 3 / 4) < 150


def test_a_pulled_cable(pair: Lan, echo: None) -> None:
    pair.cable(2, plugged=False)
    assert call(pair, OPEN_PORT) == "silence"
    pair.cable(2, plugged=True)
    assert call(pair, OPEN_PORT) == "ok"


def test_the_watch_sees_what_passes_and_nothing_that_is_dropped(pair: Lan, echo: None) -> None:
    with PacketWatch(pair.namespace(1), netns.P2P_PORT) as watch:
        assert call(pair, netns.P2P_PORT) == "ok"
        wait_for("a packet seen", lambda: watch.packets > 0, within_s=5)
        with netns.drop_port(pair.namespace(1), netns.P2P_PORT) as fault:
            # Longer than a reading takes: what passed before the rule has been read then.
            assert call(pair, netns.P2P_PORT) == "silence"
            seen, last = watch.packets, watch.last_passed_at
            assert call(pair, netns.P2P_PORT) == "silence"
            assert (watch.packets, watch.last_passed_at) == (seen, last)
            assert fault.packets() > 0
        assert call(pair, netns.P2P_PORT) == "ok"
        wait_for("packets seen again", lambda: watch.packets > seen, within_s=5)
