"""What the tests against hostile HTTP share: servers that answer as they like, members of the network that
lie, raw connections, and what a node's process shows of itself from outside."""

from __future__ import annotations

import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from lattice.client import calls
from lattice.core.entry import OpKind, Seal, encode_op, make_entry, make_seal
from lattice.core.envelope import NONCE_BYTES, Kind, Opened, Sealer
from lattice.core.errors import LatticeError
from lattice.core.identity import NodeKey, peer_id_of
from lattice.core.messages import (
    RULES_VERSION,
    WIRE_VERSION,
    ZERO_NONCE,
    Addresses,
    Entries,
    Hello,
    Message,
    decode_messages,
    encode_messages,
)
from lattice.core.ticket import decode_ticket, network_id_of
from lattice.testing.cluster import LocalNode, make_nodes, running, wait_for
from tests.integration.processes.process_kit import (
    HTTP_ONLY,
    Journal,
    history_faults,
    missing,
    values_of,
    wait_equal,
)

SYNC_PATH = "/api/lattice/sync/messages"
OCTETS = b"Content-Type: application/octet-stream\r\n"
LOCAL = {**HTTP_ONLY, "LATTICE_HTTP_POLL_INTERVAL_S": "0.5"}
# What a node under attack may grow by, over what it held when it was ready: DESIGN.md gives a node
# under ten attackers 64 MiB, and the bodies that may be held at once are as much again.
MEMORY_MAX_KIB = 128 * 1024


# Strangers: whoever listens at an address that the node polls.


class Stranger(threading.Thread):
    """A server on a free port of loopback; `answer(connection, request)` says what each request gets,
    by raw bytes on the socket. It ends with the `with` block, and so do all its connections."""

    def __init__(
        self, answer: Callable[[socket.socket, bytes], object] | bytes, host: str = "127.0.0.1"
    ) -> None:
        super().__init__(daemon=True)
        self._answer = answer
        self._listener = socket.create_server((host, 0), backlog=64)
        self._held: set[socket.socket] = set()
        self._lock = threading.Lock()
        self.requests: list[tuple[float, bytes]] = []
        self.sent = 0
        self.url = f"http://{host}:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            held = list(self._held)
        for connection in held:
            with_nobody(connection.shutdown, socket.SHUT_RDWR)
        self.join()

    def run(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                self._held.add(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection:
                while request := read_request(connection):
                    self.requests.append((time.monotonic(), request))
                    if isinstance(self._answer, bytes):
                        connection.sendall(self._answer)
                    else:
                        self._answer(connection, request)
        except OSError:
            pass  # the node has had enough, or the test is over
        finally:
            with self._lock:
                self._held.discard(connection)


def with_nobody(act: Callable[[int], object], argument: int) -> None:
    """Carry out what fails when the other side has gone already."""
    try:
        act(argument)
    except OSError:
        pass


def read_request(connection: socket.socket) -> bytes:
    """One request, head and body; nothing when the client has left."""
    data = b""
    while b"\r\n\r\n" not in data:
        chunk = connection.recv(65_536)
        if not chunk:
            return b""
        data += chunk
    head, _, body = data.partition(b"\r\n\r\n")
    found = re.search(rb"\r\ncontent-length: *(\d+)", head.lower())
    length = int(found[1]) if found else 0
    while len(body) < length:
        chunk = connection.recv(65_536)
        if not chunk:
            return b""
        body += chunk
    return head + b"\r\n\r\n" + body


def plain(body: bytes, status: bytes = b"200 OK", headers: bytes = OCTETS) -> bytes:
    return b"HTTP/1.1 %s\r\n%sContent-Length: %d\r\n\r\n%s" % (status, headers, len(body), body)


def sealed_in(request: bytes) -> bytes:
    """The envelope that a request of the HTTP lung carries."""
    return request.partition(b"\r\n\r\n")[2]


# Members who lie: they hold the network key, and a key of their own.


@dataclass
class Member:
    """One process of a member of the node's network, with everything that it needs to seal and to write."""

    network_id: bytes
    network_keys: dict[int, bytes]
    key: NodeKey = field(default_factory=lambda: NodeKey(os.urandom(32)))
    boot: int = field(default_factory=lambda: int.from_bytes(os.urandom(8), "big"))
    addresses: Addresses = field(default_factory=Addresses)

    def __post_init__(self) -> None:
        self.sealer = Sealer(self.key, self.network_id, self.network_keys, boot=self.boot)

    @classmethod
    def of(cls, node: LocalNode, **named: object) -> Member:
        """Whoever has been given a ticket of this node's network."""
        ticket = decode_ticket(node.command("invite").split()[-1])
        keys = {ticket.key_number: ticket.network_key}
        return cls(network_id_of(ticket.genesis), keys, **named)  # type: ignore[arg-type]

    def another(self, **named: object) -> Member:
        """Another identity of the same network."""
        return Member(self.network_id, self.network_keys, **named)  # type: ignore[arg-type]

    @property
    def peer_id(self) -> str:
        return peer_id_of(self.key.public_key)

    def hello(self, challenge: bytes = ZERO_NONCE, answering: bytes = ZERO_NONCE) -> Hello:
        return Hello(WIRE_VERSION, RULES_VERSION, "liar", 0, self.addresses, challenge, answering)

    def request(self, messages: Sequence[Message], to: bytes) -> bytes:
        return self.sealer.seal(Kind.REQUEST, encode_messages(messages), os.urandom(NONCE_BYTES), to=to)

    def answer(self, opened: Opened, messages: Sequence[Message]) -> bytes:
        return self.answer_raw(encode_messages(messages), to=opened.sender, reply_to=opened.digest)

    def answer_raw(self, body: bytes, *, to: bytes, reply_to: bytes) -> bytes:
        return self.sealer.seal(Kind.ANSWER, body, os.urandom(NONCE_BYTES), to=to, reply_to=reply_to)

    def write(self, count: int, *, epoch: int = 1, value: bytes = b"1", first: int = 0) -> Entries:
        """A sealed log of valid entries that nobody asked for."""
        frames, seals, prev = [], [], bytes(32)
        for seq in range(first, first + count):
            ops = (encode_op(OpKind.PUT, b"useless/%d/%d" % (epoch, seq), value=value),)
            entry = make_entry(
                self.network_id,
                author=self.key.public_key,
                epoch=epoch,
                seq=seq,
                prev=prev,
                clock=1,
                ops=ops,
            )
            frames.append((entry.header_bytes, entry.ops))
            if entry.must_be_sealed or seq == first + count - 1:
                seals.append(make_seal(self.key, self.network_id, entry.header, entry.id))
            prev = entry.id
        return Entries(tuple(frames), tuple(seals))


def forged(seal: Seal) -> Seal:
    return seal._replace(signature=bytes([seal.signature[0] ^ 1]) + seal.signature[1:])


Behave = Callable[[Opened, list[Message]], Sequence[Message] | bytes]


class Liar(Stranger):
    """A member's node on the HTTP lung: `behave(request, messages)` gives the messages of its answer, or
    the bytes of a whole envelope."""

    def __init__(self, member: Member, behave: Behave) -> None:
        super().__init__(self._reply)
        self.member = member
        self._behave = behave
        self.rounds: list[tuple[float, list[Message]]] = []

    def _reply(self, connection: socket.socket, request: bytes) -> None:
        opened = self.member.sealer.open(sealed_in(request))
        messages = decode_messages(opened.body)
        self.rounds.append((time.monotonic(), messages))
        told = self._behave(opened, messages)
        body = told if isinstance(told, bytes) else self.member.answer(opened, told)
        connection.sendall(plain(body))


# Callers of the API.

HONEST, HOSTILE = "127.0.0.2", "127.0.0.3"


def dial(port: int, address: str = HOSTILE, timeout_s: float = 45) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=10, source_address=(address, 0))
    connection.settimeout(timeout_s)
    return connection


def say(node: LocalNode, data: bytes, *, ends: bool = True) -> bytes:
    """Send the bytes to the API, say that this was all where it `ends`, and listen to the end."""
    answer = b""
    with closing(dial(node.api_port)) as connection:
        try:
            connection.sendall(data)
            if ends:
                connection.shutdown(socket.SHUT_WR)
            while chunk := connection.recv(65_536):
                answer += chunk
        except OSError:
            pass  # it was cut off, perhaps after an answer
    return answer


class Bystander(threading.Thread):
    """An honest caller at another address, who writes and reads one key after the other."""

    def __init__(self, node: LocalNode) -> None:
        super().__init__()
        self._node = node
        self._over = threading.Event()
        self.waits_s: list[float] = []
        self.errors: list[str] = []

    def __enter__(self) -> Bystander:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()
        assert self.errors == []
        assert len(self.waits_s) >= 3
        assert max(self.waits_s) < 10, self.waits_s

    def run(self) -> None:
        transport = httpx.HTTPTransport(local_address=HONEST)
        with httpx.Client(base_url=self._node.url, transport=transport, timeout=20) as client:
            while not (self._over.is_set() and len(self.waits_s) >= 3):
                number = len(self.waits_s)
                began = time.monotonic()
                try:
                    written = client.put("/api/lattice/keys/bystander", json=number)
                    read = client.get("/api/lattice/keys/bystander")
                    if (written.status_code, read.json().get("value")) != (201, number):
                        self.errors.append(f"{written.status_code} {read.text[:200]}")
                except httpx.HTTPError as error:
                    self.errors.append(repr(error))
                if self.errors:
                    return
                self.waits_s.append(time.monotonic() - began)
                self._over.wait(0.1)


# A node, seen from outside.


def counted(node: LocalNode) -> dict[tuple[str, tuple[str, ...]], float]:
    """Every sample of `/metrics`, by name and label values."""
    answer = httpx.get(f"{node.url}/metrics", timeout=10, trust_env=False)
    assert answer.status_code == 200
    found = {}
    for line in answer.text.splitlines():
        match = re.fullmatch(r"(\w+)(?:\{(.*)\})? (\S+)", line)
        if match and not line.startswith("#"):
            found[match[1], tuple(re.findall(r'="([^"]*)"', match[2] or ""))] = float(match[3])
    return found


class Rise:
    """How much each counter of a node has risen since this was made."""

    def __init__(self, node: LocalNode) -> None:
        self._node = node
        self._before = counted(node)

    def of(self, name: str, *labels: str) -> float:
        return counted(self._node).get((name, labels), 0) - self._before.get((name, labels), 0)

    def wait(self, name: str, *labels: str, by: float = 1, within_s: float = 15) -> None:
        wait_for(f"{name}{labels} + {by}", lambda: self.of(name, *labels) >= by, within_s=within_s)


def memory_kib(node: LocalNode) -> int:
    """The resident memory of the node's process."""
    text = Path(f"/proc/{node.pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", text)
    assert found
    return int(found[1])


def peak_memory_kib(node: LocalNode) -> int:
    """The most that it ever was."""
    text = Path(f"/proc/{node.pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", text)
    assert found
    return int(found[1])


def descriptors(node: LocalNode) -> int:
    return len(os.listdir(f"/proc/{node.pid}/fd"))


def value_of(node: LocalNode, key: str) -> object:
    """The value of a key, None while there is none."""
    try:
        return node.send(calls.get(key)).value
    except LatticeError as error:
        if error.code != "not_found":
            raise
        return None


@dataclass
class Scene:
    """A node under attack and an honest one, in one network, with HTTP alone; what was written stands in
    the journal, outside both."""

    victim: LocalNode
    honest: LocalNode
    member: Member
    journal: Journal = field(default_factory=Journal)
    memory_before_kib: int = 0
    descriptors_before: int = 0

    def control(self, within_s: float = 10.0) -> float:
        """The honest control: what is written on each side is on the other soon; how long it took."""
        number = len(self.journal)
        began = time.monotonic()
        for writer, reader in ((self.honest, self.victim), (self.victim, self.honest)):
            key = f"honest/{writer.name}/{number}"
            self.journal.put(writer, key, number)
            wait_for(
                f"{key} at {reader.name}",
                lambda reader=reader, key=key: value_of(reader, key) == number,  # type: ignore[misc]
                within_s=within_s,
            )
        return time.monotonic() - began

    def check_bounds(self) -> None:
        """Memory and file descriptors are under their caps, and the process is the one that was started."""
        process = self.victim.process
        assert process is not None
        assert process.poll() is None, self.victim.last_words()
        grown = peak_memory_kib(self.victim) - self.memory_before_kib
        assert grown <= MEMORY_MAX_KIB, f"{grown} KiB more than before"
        wait_for(
            "the descriptors are given back",
            lambda: descriptors(self.victim) <= self.descriptors_before + 80,
            within_s=40,
        )


@contextmanager
def scene(directory: Path, environ: dict[str, str] | None = None) -> Iterator[Scene]:
    """Two nodes; at the end nothing foreign is stored, everything acknowledged is, and no log speaks of a
    defect."""
    nodes = make_nodes(directory, ["honest", "victim"], environ={**LOCAL, **(environ or {})})
    with running(nodes):
        honest, victim = nodes
        made = Scene(victim, honest, Member.of(honest))
        made.control()
        made.memory_before_kib, made.descriptors_before = memory_kib(victim), descriptors(victim)
        yield made
        made.control()
        made.check_bounds()
        # Sound entries of a member reached one node alone, and travel on by rounds.
        wait_equal(nodes, within_s=30)
        for node in nodes:
            assert not missing(made.journal, values_of(node))
            assert "defect" not in node.log_text()
    assert history_faults([node.data_dir for node in nodes], made.journal) == []
