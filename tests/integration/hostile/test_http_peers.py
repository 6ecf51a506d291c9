"""A node that polls servers which are no nodes: each answer is refused by its own word and counted, none is
followed, unpacked or waited for, and an honest peer is polled all the while."""

from __future__ import annotations

import gzip
import itertools
import socket
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from lattice.client import calls
from lattice.testing.cluster import LocalNode, wait_for

from .http_kit import OCTETS, SYNC_PATH, Rise, Scene, Stranger, plain, scene

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

CHUNKED = b"HTTP/1.1 200 OK\r\n" + OCTETS + b"Transfer-Encoding: chunked\r\n\r\n"
MANY_MIB = 64
FIRST_CONTACT_S = 8.0  # how long a node waits for the first word of a stranger


def redirect(status: bytes, to: str) -> bytes:
    return plain(b"", status, OCTETS + f"Location: {to}\r\n".encode())


def encoded(name: bytes, body: bytes) -> bytes:
    return plain(body, headers=OCTETS + b"Content-Encoding: " + name + b"\r\n")


def endless(head: bytes, piece: bytes) -> Callable[[socket.socket, bytes], None]:
    """Sends until nobody listens; ends by itself far above what anybody should have taken."""

    def answer(connection: socket.socket, request: bytes) -> None:
        connection.sendall(head)
        for _ in range(MANY_MIB * 2**20 // len(piece)):
            connection.sendall(piece)

    return answer


def slow(first: bytes, drop: bytes) -> Callable[[socket.socket, bytes], None]:
    def answer(connection: socket.socket, request: bytes) -> None:
        connection.sendall(first)
        while True:
            time.sleep(0.2)
            connection.sendall(drop)

    return answer


def cut(part: bytes) -> Callable[[socket.socket, bytes], None]:
    def answer(connection: socket.socket, request: bytes) -> None:
        connection.sendall(part)
        connection.shutdown(socket.SHUT_RDWR)

    return answer


def bomb() -> bytes:
    return gzip.compress(bytes(20 * 2**20), 9)


def cases(trap: str, own: str) -> dict[str, tuple[bytes | Callable[[socket.socket, bytes], None], str]]:
    """Name, what is answered, and the word by which it is refused. `trap` must never be called."""
    return {
        "html": (plain(b"<html>", headers=b"Content-Type: text/html\r\n"), "not_octets"),
        "json": (plain(b"{}", headers=b"Content-Type: application/json\r\n"), "not_octets"),
        "no type": (plain(b"x", headers=b""), "not_octets"),
        "octets that are no envelope": (plain(b"x" * 500), "envelope"),
        "nothing": (plain(b""), "envelope"),
        "an envelope too large": (plain(bytes(4 * 2**20 + 1)), "envelope"),
        "a redirect elsewhere": (redirect(b"302 Found", trap + SYNC_PATH), "status_302"),
        "a redirect that keeps the method": (redirect(b"307 Temporary", trap + SYNC_PATH), "status_307"),
        "a redirect to the metadata of clouds": (
            redirect(b"301 Moved", "http://169.254.169.254/latest/meta-data/"),
            "status_301",
        ),
        "a redirect to itself": (redirect(b"308 Permanent", SYNC_PATH), "status_308"),
        "a redirect to the node": (redirect(b"303 See Other", own + "/api/lattice/keys/x"), "status_303"),
        "a gzip bomb": (encoded(b"gzip", bomb()), "encoded"),
        "a deflate bomb": (encoded(b"deflate", zlib.compress(bytes(20 * 2**20), 9)), "encoded"),
        "brotli": (encoded(b"br", b"\x1b\xff\xff\xff" * 100), "encoded"),
        "zstd": (encoded(b"zstd", b"\x28\xb5\x2f\xfd" * 100), "encoded"),
        "twice compressed": (encoded(b"gzip, gzip", gzip.compress(bomb())), "encoded"),
        "a length of 99 GB": (
            b"HTTP/1.1 200 OK\r\n" + OCTETS + b"Content-Length: 99999999999\r\n\r\n",
            "too_large",
        ),
        "an endless chunked body": (endless(CHUNKED, b"10000\r\n" + bytes(65_536) + b"\r\n"), "too_large"),
        "an endless body without length": (
            endless(b"HTTP/1.1 200 OK\r\n" + OCTETS + b"\r\n", bytes(65_536)),
            "too_large",
        ),
        "a body in crumbs": (endless(CHUNKED, b"1\r\nx\r\n" * 10_000), "drips"),
        "endless headers": (endless(b"HTTP/1.1 200 OK\r\n", b"X: " + b"x" * 65_533), "not_http"),
        "endless many headers": (endless(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n" * 10_000), "not_http"),
        "a flood of 1xx": (endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 1000), "interim"),
        "another protocol": (plain(b"")[9:], "not_http"),
        "a chunk that ends early": (cut(CHUNKED + b"ffff\r\nabc"), "not_http"),
        "a chunk size of no number": (
            plain(b"")[:17] + OCTETS + CHUNKED[-30:] + b"zz\r\nabc\r\n",
            "not_http",
        ),
        "a body that ends early": (cut(plain(bytes(5000))[:-100]), "not_http"),
        "no answer at all": (cut(b""), "reset"),
        "a slow head": (slow(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n"), "timeout"),
        "a slow body": (slow(CHUNKED, b"1\r\nx\r\n"), "timeout"),
        "silence": (slow(b"", b""), "timeout"),
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with scene(tmp_path_factory.mktemp("peers")) as found:
        yield found


def errors_by_url(node: LocalNode) -> dict[str, str | None]:
    return {peer.id.removeprefix("url:"): peer.http.last_error for peer in node.status().peers}


def test_every_answer_that_is_none_is_refused_by_its_word(made: Scene) -> None:
    with ExitStack() as stack:
        trap = stack.enter_context(Stranger(plain(b"you should not be here")))
        own = f"http://127.0.0.1:{made.victim.api_port}"
        listed = cases(trap.url, own)
        strangers = {name: stack.enter_context(Stranger(answer)) for name, (answer, _) in listed.items()}
        rise = Rise(made.victim)
        began = time.monotonic()
        for stranger in strangers.values():
            made.victim.send(calls.add_peer(stranger.url))
        waits = []

        def all_told() -> bool:
            waits.append(made.control())
            told = errors_by_url(made.victim)
            return all(told.get(stranger.url) for stranger in strangers.values())

        wait_for("a word for each stranger", all_told, within_s=45)
        took = time.monotonic() - began
        told = errors_by_url(made.victim)
        for name, (_, word) in listed.items():
            assert (name, told[strangers[name].url]) == (name, word)
        for word, number in Counter(word for _, word in listed.values()).items():
            assert rise.of("lattice_polls_failed_total", word) >= number, word
        assert trap.requests == [], "a redirect was followed"
        for stranger in strangers.values():
            # The path of the one route, and as many requests as polls: nothing is tried again at once.
            assert all(request.startswith(b"POST " + SYNC_PATH.encode()) for _, request in stranger.requests)
            assert len(stranger.requests) <= took / 0.5 + 1
        assert max(waits) < 5, waits
        for stranger in strangers.values():
            made.victim.send(calls.forget_peer(stranger.url))
    made.control()
    made.check_bounds()
    assert len(made.victim.status().peers) == 1


def test_who_never_answers_well_is_asked_less_and_less(made: Scene) -> None:
    rise = Rise(made.victim)
    with Stranger(plain(b"no", b"500 No")) as stranger:
        made.victim.send(calls.add_peer(stranger.url))
        wait_for("six polls", lambda: len(stranger.requests) >= 6, within_s=40)
        times = [when for when, _ in stranger.requests[:6]]
        gaps = [after - before for before, after in itertools.pairwise(times)]
        assert gaps[-1] > 3 * 0.5, gaps
        assert gaps[-1] > 1.5 * gaps[-2], gaps
        assert rise.of("lattice_polls_failed_total", "status_500") == len(stranger.requests)
        made.control()
        made.victim.send(calls.forget_peer(stranger.url))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_an_address_or_a_name_of_our_own_is_no_peer(made: Scene, host: str) -> None:
    rise = Rise(made.victim)
    made.victim.send(calls.add_peer(f"http://{host}:{made.victim.api_port}"))
    rise.wait("lattice_polls_failed_total", "ourselves")
    wait_for("forgotten", lambda: len(made.victim.status().peers) == 1, within_s=5)
    assert "twin" not in " ".join(made.victim.status().alarms)
    made.control()


def test_a_name_that_nobody_has(made: Scene) -> None:
    rise = Rise(made.victim)
    made.victim.send(calls.add_peer("http://no-such-name.invalid:8100"))
    rise.wait("lattice_polls_failed_total", "unresolved", within_s=30)
    made.control()
    made.victim.send(calls.forget_peer("http://no-such-name.invalid:8100"))
