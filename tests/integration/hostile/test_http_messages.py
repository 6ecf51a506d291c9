"""Hostile requests to the one route that strangers reach: what can be refused unverified is, everything is
counted by its reason, nothing grows, and an honest node is served all the while."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from hashlib import sha256

import httpx
import pytest

from lattice.core.envelope import Kind
from lattice.core.identity import public_key_of
from lattice.core.limits import ENVELOPE_BYTES_MAX
from lattice.core.messages import Heads, HeadsFlag, Hello, decode_messages

from .http_kit import OCTETS, SYNC_PATH, Member, Rise, Scene, memory_kib, peak_memory_kib, scene
from .test_http_members import malformed_bodies

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

REPLAYS = 10_000


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with scene(tmp_path_factory.mktemp("messages")) as found:
        yield found


@pytest.fixture
def poster(made: Scene) -> Iterator[httpx.Client]:
    url = f"http://127.0.0.1:{made.victim.sync_port}"
    with httpx.Client(base_url=url, trust_env=False, timeout=30) as client:
        yield client


def key_of(made: Scene) -> bytes:
    return public_key_of(made.victim.status().peer_id)


def proven(made: Scene, poster: httpx.Client) -> tuple[Member, bytes]:
    """A member whose boot the node knows, and the node's public key."""
    member, victim = made.member.another(), key_of(made)
    (asked,) = told(member, poster.post(SYNC_PATH, content=member.request([member.hello()], victim)))
    assert isinstance(asked, Hello)
    answer = member.request([member.hello(answering=asked.challenge)], victim)
    assert poster.post(SYNC_PATH, content=answer).status_code == 200
    return member, victim


def told(member: Member, response: httpx.Response) -> Sequence[object]:
    assert response.status_code == 200, response.text
    return decode_messages(member.sealer.open(response.content).body)


def envelopes(made: Scene, victim: bytes) -> dict[str, tuple[bytes, str]]:
    """Name, envelope, and the counter that must rise."""
    member = made.member.another()
    good = member.request([member.hello()], victim)
    outside = Member(sha256(b"another network").digest(), made.member.network_keys)
    stranger = Member(made.member.network_id, {1: os.urandom(32)})
    rotated = Member(made.member.network_id, {77: os.urandom(32)})
    flipped = bytearray(good)
    flipped[-1] ^= 1
    heads = Heads(1, HeadsFlag(0), _no_roots())
    found = {
        "nothing": (b"", "request_too_short"),
        "an envelope of zeros": (bytes(500), "request_not_an_envelope"),
        "json": (b'{"a":' * 10_000, "request_not_an_envelope"),
        "a cut one": (good[:200], "request_too_short"),
        "one with a flipped bit": (bytes(flipped), "request_foreign"),
        "one of another key": (stranger.request([member.hello()], victim), "request_foreign"),
        "one of another key number": (
            rotated.request([member.hello()], victim),
            "request_unknown_key_number",
        ),
        "one of another network": (outside.request([member.hello()], victim), "request_bad_signature"),
        "one to another node": (
            member.request([member.hello()], os.urandom(32)),
            "request_for_another_node",
        ),
        "an answer": (member.answer_raw(b"", to=victim, reply_to=bytes(32)), "request_not_a_request"),
        "gossip": (member.sealer.seal(Kind.ONE_WAY, b"", os.urandom(24)), "request_not_a_request"),
        "a question to nobody": (member.request([heads], bytes(32)), "request_no_addressee"),
        "the largest, of noise": (
            b"LTC1" + b"\0\0\0\1" + os.urandom(ENVELOPE_BYTES_MAX - 8),
            "request_foreign",
        ),
    }
    for name, body in malformed_bodies().items():
        sealed = member.sealer.seal(Kind.REQUEST, body, os.urandom(24), to=victim)
        found[name] = (sealed, "request_malformed")
    return found


def _no_roots() -> object:
    from lattice.core.messages import RULES_VERSION, Roots

    return Roots(bytes(32), bytes(32), RULES_VERSION, 0)


def test_each_bad_envelope_is_refused_alike_and_counted_apart(made: Scene, poster: httpx.Client) -> None:
    for name, (data, counter) in envelopes(made, key_of(made)).items():
        rise = Rise(made.victim)
        response = poster.post(SYNC_PATH, content=data)
        assert (name, response.status_code) == (name, 400)
        assert response.json()["detail"] == "The envelope was refused.", "a stranger learns nothing"
        assert (name, rise.of("lattice_messages_total", counter)) == (name, 1)
        assert rise.of("lattice_http_refused_total", "envelope") == 1
    made.control()


def test_what_is_no_request_of_this_lung_is_refused_by_http(made: Scene, poster: httpx.Client) -> None:
    rise = Rise(made.victim)
    assert poster.post(SYNC_PATH, content=bytes(ENVELOPE_BYTES_MAX + 1)).status_code == 413
    assert poster.request("POST", "/health", content=b"x").status_code == 405
    assert poster.get(SYNC_PATH).status_code == 405
    assert poster.get("/api/lattice/keys/k").status_code == 404
    assert poster.request("GET", "/health", content=bytes(100_000)).status_code == 413
    gzipped = poster.post(SYNC_PATH, content=b"x", headers={"content-encoding": "gzip"})
    assert gzipped.status_code == 400
    for reason, number in (("too_large", 2), ("method_not_allowed", 2), ("not_found", 1), ("bad_request", 1)):
        assert rise.of("lattice_http_refused_total", reason) == number, reason
    assert rise.of("lattice_messages_total", "request_too_short") == 0, "none of it reached the envelopes"
    made.control()


def test_a_request_replayed_ten_thousand_times_is_taken_once(made: Scene, poster: httpx.Client) -> None:
    member, victim = proven(made, poster)
    rise, before = Rise(made.victim), memory_kib(made.victim)
    data = member.request([member.hello()], victim)
    assert poster.post(SYNC_PATH, content=data).status_code == 200
    began = time.monotonic()
    request = b"POST %s HTTP/1.1\r\nHost: x\r\n%sContent-Length: %d\r\n\r\n" % (
        SYNC_PATH.encode(), OCTETS, len(data)
    )  # fmt: skip
    waits: list[float] = []
    watcher = threading.Thread(target=lambda: waits.extend(made.control(30) for _ in range(3)))
    watcher.start()
    with closing(socket.create_connection(("127.0.0.1", made.victim.sync_port))) as connection:
        answers = threading.Thread(target=_read_answers, args=(connection, REPLAYS))
        answers.start()
        for _ in range(REPLAYS // 100):
            connection.sendall((request + data) * 100)
        answers.join()
    took = time.monotonic() - began
    watcher.join()
    print(f"{REPLAYS / took:.0f} replays a second refused, the honest pair waited {max(waits):.2f} s at most")
    assert len(waits) == 3
    assert rise.of("lattice_messages_total", "request_replayed") == REPLAYS
    assert memory_kib(made.victim) - before < 16 * 1024


def _read_answers(connection: socket.socket, count: int) -> None:
    """Read until so many answers have come; each is a 400."""
    seen, rest = 0, b""
    connection.settimeout(50)
    while seen < count:
        data = rest + connection.recv(2**20)
        seen += data.count(b"HTTP/1.1 400")
        rest = data[-11:] if not data.endswith(b"HTTP/1.1 400") else b""
    assert seen == count


def test_floods_of_unknown_boots_leave_no_trace_and_lock_nobody_out(
    made: Scene, poster: httpx.Client
) -> None:
    victim = key_of(made)
    before = memory_kib(made.victim)
    member = made.member.another()
    newcomer = made.member.another()
    (asked,) = told(newcomer, poster.post(SYNC_PATH, content=newcomer.request([newcomer.hello()], victim)))
    assert isinstance(asked, Hello)
    for _ in range(3000):
        boot = Member(member.network_id, member.network_keys, key=member.key)
        assert poster.post(SYNC_PATH, content=boot.request([boot.hello()], victim)).status_code == 200
    answer = newcomer.request([newcomer.hello(answering=asked.challenge)], victim)
    (hello,) = told(newcomer, poster.post(SYNC_PATH, content=answer))
    assert isinstance(hello, Hello)
    assert hello.challenge == bytes(32), "the newcomer's challenge was still there: it is known now"
    assert memory_kib(made.victim) - before < 16 * 1024
    made.control()


def test_slow_bodies_from_one_address_take_no_memory_and_no_place_of_others(made: Scene) -> None:
    """A hundred uploads that stand still: some are refused at once, and an honest peer at another address
    is served."""
    rise, before = Rise(made.victim), peak_memory_kib(made.victim)
    head = b"POST %s HTTP/1.1\r\nHost: x\r\n%sContent-Length: %d\r\n\r\n" % (
        SYNC_PATH.encode(), OCTETS, ENVELOPE_BYTES_MAX
    )  # fmt: skip
    with ExitStack() as stack:
        for _ in range(100):
            connection = socket.create_connection(
                ("127.0.0.1", made.victim.sync_port), source_address=("127.0.0.3", 0)
            )
            stack.enter_context(closing(connection))
            connection.settimeout(0.2)
            try:
                connection.sendall(head + bytes(1024 * 1024))
            except OSError:
                pass  # refused in the middle of it
        rise.wait("lattice_http_refused_total", "too_many", by=100 - 64)
        made.control()
        assert peak_memory_kib(made.victim) - before < 96 * 1024
    made.control()


def test_a_body_in_crumbs_is_refused(made: Scene) -> None:
    rise = Rise(made.victim)
    head = b"POST %s HTTP/1.1\r\nHost: x\r\n%sTransfer-Encoding: chunked\r\n\r\n" % (
        SYNC_PATH.encode(),
        OCTETS,
    )
    with closing(socket.create_connection(("127.0.0.1", made.victim.sync_port))) as connection:
        connection.settimeout(20)
        connection.sendall(head + b"1\r\nx\r\n" * 3000)
        assert connection.recv(12) == b"HTTP/1.1 408"
    assert rise.of("lattice_http_refused_total", "too_slow") == 1
    made.control()
