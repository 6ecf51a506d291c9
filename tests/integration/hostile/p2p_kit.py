"""What the tests against hostile P2P share: a raw peer whose every plaintext byte is kept, its streams, its
link and its gossip, and an honest pair that goes on syncing beside it."""

from __future__ import annotations

import os
import struct
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

import trio

from lattice.core.envelope import NONCE_BYTES, Kind, Opened
from lattice.core.identity import NodeKey
from lattice.core.messages import (
    Addresses,
    Beat,
    BeatFlag,
    Heads,
    HeadsFlag,
    Hello,
    Message,
    Roots,
    decode_messages,
    encode_messages,
)
from lattice.testing.cluster import LocalNode, wait_for

from lattice.transport.p2p.streams import SYNC_PROTOCOL, STREAM_ERRORS, encode_frame  # isort: skip
from libp2p.crypto.ed25519 import create_new_key_pair  # isort: skip  # importable after lattice.transport.p2p
from libp2p.crypto.keys import KeyPair
from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key_pair
from libp2p.exceptions import BaseLibp2pError
from libp2p.io.trio import TrioTCPStream
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from libp2p.protocol_muxer.multiselect_client import MultiselectClient
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator
from libp2p.pubsub.pb import rpc_pb2
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as NoiseTransport

from .http_kit import Member, Rise, Scene, counted, scene

T = TypeVar("T")

HONEST, HOSTILE = "127.0.0.2", "127.0.0.3"
WITH_P2P = {"LATTICE_P2P_ENABLED": "true"}
MULTISTREAM: Final = b"/multistream/1.0.0"
MESHSUB: Final = "/meshsub/1.1.0"
YAMUX: Final = "/yamux/1.0.0"
DATA, WINDOW, PING, GO_AWAY = range(4)
SYN, ACK, FIN, RST = 1, 2, 4, 8
REQUEST, ANSWER, CLOSE = 1, 2, 3
_HEAD: Final = struct.Struct(">BBHII")
_FRAME: Final = struct.Struct("!IBI")
# What a connection that the node has cut raises, wherever that is noticed.
CUT: Final = (*STREAM_ERRORS, BaseLibp2pError, trio.EndOfChannel)


async def off(act: Callable[..., T], *args: object) -> T:
    """Run what blocks beside the loop in which the hostile peers live."""
    return await trio.to_thread.run_sync(act, *args)


class Closed(Exception):
    """The node closed or reset the stream or the connection."""


# One connection: TCP, Noise, and Yamux by hand.


async def dial_tcp(node: LocalNode, source: str = HOSTILE) -> trio.SocketStream:
    return await trio.open_tcp_stream("127.0.0.1", node.p2p_port, local_address=source)


class Stream:
    """One yamux stream of a raw peer. Writing keeps to the node's window, unless `heeds` is False."""

    def __init__(self, peer: RawPeer, number: int) -> None:
        self.peer = peer
        self.number = number
        self.window = 256 * 1024
        self.heeds = True
        self.gives_credit = True  # else the node may send no more than the first window
        self.buffer = bytearray()
        self.ended = False
        self._changed = trio.Event()

    def wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def write(self, data: bytes) -> None:
        for start in range(0, len(data), 65_536):
            piece = data[start : start + 65_536]
            while self.heeds and self.window < len(piece):
                await self._wait()
            self.window -= len(piece)
            await self.peer.frame(DATA, 0, self.number, piece)

    async def read(self, size: int) -> bytes:
        while len(self.buffer) < size:
            await self._wait()
        taken = bytes(self.buffer[:size])
        del self.buffer[:size]
        return taken

    async def _wait(self) -> None:
        if self.ended or self.peer.gone.is_set():
            raise Closed
        await self._changed.wait()

    async def read_delimited(self) -> bytes:
        size = shift = 0
        while True:
            byte = (await self.read(1))[0]
            size |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return await self.read(size)

    async def write_delimited(self, data: bytes) -> None:
        await self.write(varint(len(data)) + data)

    async def wait_ended(self) -> None:
        with suppress(Closed):
            while True:
                await self._wait()

    async def negotiate(self, protocol: str) -> bool:
        """Ask for a protocol; whether the node speaks it."""
        await self.write_delimited(MULTISTREAM + b"\n")
        await self.write_delimited(protocol.encode() + b"\n")
        assert await self.read_delimited() == MULTISTREAM + b"\n"
        return await self.read_delimited() == protocol.encode() + b"\n"

    async def reset(self) -> None:
        await self.peer.frame(WINDOW, RST, self.number, size=0)


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


async def pong(stream: Stream) -> None:
    while True:
        await stream.write(await stream.read(32))


class RawPeer:
    """A libp2p identity on one connection with the node. `plain` is all that the node ever said to it
    beneath the encryption; `serves` are the protocols on which it lets the node open streams."""

    def __init__(self, seed: bytes, secured: Any) -> None:
        self.key = NodeKey(seed)
        self.keys = create_new_key_pair(seed)
        self.secured = secured
        self.plain = bytearray()
        self.streams: dict[int, Stream] = {}
        # Who does not answer a ping is taken for dead within seconds, whatever else it does.
        self.serves: dict[str, Callable[[Stream], Awaitable[None]]] = {"/ipfs/ping/1.0.0": pong}
        self.asked_for: list[str] = []
        self.gone = trio.Event()
        self.reads = True
        self._next = 1
        self._nursery: trio.Nursery
        self._lock = trio.Lock()

    async def frame(
        self, kind: int, flags: int, stream: int, body: bytes = b"", size: int | None = None
    ) -> None:
        """Send a frame; `size` is what its head says where that is not the body's length."""
        async with self._lock:
            await self.secured.write(
                _HEAD.pack(0, kind, flags, stream, len(body) if size is None else size) + body
            )

    async def open(self, number: int | None = None) -> Stream:
        if number is None:
            number, self._next = self._next, self._next + 2
        stream = self.streams[number] = Stream(self, number)
        await self.frame(WINDOW, SYN, number, size=0)
        return stream

    async def opened(self, protocol: str) -> Stream:
        stream = await self.open()
        assert await stream.negotiate(protocol)
        return stream

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            try:
                await self._read()
            except CUT:
                pass
            except Closed:
                pass
            finally:
                self.gone.set()
                for stream in list(self.streams.values()):
                    stream.wake()
                nursery.cancel_scope.cancel()

    async def _read(self) -> None:
        ahead = bytearray()

        async def take(size: int) -> bytes:
            while len(ahead) < size:
                while not self.reads:
                    await trio.sleep(0.1)
                data = await self.secured.read(None)
                if not data:
                    raise Closed
                self.plain += data
                ahead.extend(data)
            taken = bytes(ahead[:size])
            del ahead[:size]
            return taken

        while True:
            _, kind, flags, number, size = _HEAD.unpack(await take(_HEAD.size))
            body = await take(size) if kind == DATA else b""
            if kind == GO_AWAY:
                raise Closed
            if kind == PING:
                if flags & SYN:
                    await self.frame(PING, ACK, 0, size=size)
                continue
            stream = self.streams.get(number)
            if flags & SYN and stream is None:
                stream = self.streams[number] = Stream(self, number)
                await self.frame(WINDOW, ACK, number, size=0)
                self._nursery.start_soon(self._let_in, stream)
            if stream is None:
                continue
            if kind == WINDOW:
                stream.window += size
            if body:
                stream.buffer += body
                if stream.gives_credit:
                    await self.frame(WINDOW, 0, number, size=len(body))
            if flags & (FIN | RST):
                stream.ended = True
            stream.wake()

    async def _let_in(self, stream: Stream) -> None:
        """Speak multistream with the node, which opens a stream."""
        with suppress(Closed, *CUT):
            await stream.write_delimited(MULTISTREAM + b"\n")
            assert await stream.read_delimited() == MULTISTREAM + b"\n"
            while True:
                protocol = (await stream.read_delimited()).decode().strip()
                self.asked_for.append(protocol)
                serve = self.serves.get(protocol)
                if serve is not None:
                    await stream.write_delimited(protocol.encode() + b"\n")
                    await serve(stream)
                    return
                await stream.write_delimited(b"na\n")

    # Links.

    async def link(self, member: Member, behave: Behave | None = None) -> RawLink:
        """A link of ours with the node, its Hello answered: the node has admitted us."""
        link = RawLink(await self.opened(SYNC_PROTOCOL), member, behave or polite(member))
        self._nursery.start_soon(link.serve)
        with trio.fail_after(15):
            await link.greeted.wait()
        return link


@asynccontextmanager
async def raw_peer(
    node: LocalNode, *, seed: bytes | None = None, keys: KeyPair | None = None, source: str = HOSTILE
) -> AsyncIterator[RawPeer]:
    """Any libp2p identity with an upgraded connection to the node."""
    seed = seed or os.urandom(32)
    tcp = await dial_tcp(node, source)
    raw = RawConnection(TrioTCPStream(tcp), True)
    try:
        with trio.fail_after(20):
            await MultiselectClient().select_one_of([NOISE], MultiselectCommunicator(raw))
            noise = NoiseTransport(
                keys or create_new_key_pair(seed), noise_privkey=create_noise_key_pair().private_key
            )
            secured = await noise.secure_outbound(raw, await node_id(node))
            await MultiselectClient().select_one_of([YAMUX], MultiselectCommunicator(secured))
        peer = RawPeer(seed, secured)
        async with trio.open_nursery() as nursery:
            await nursery.start(peer.run)
            yield peer
            nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):
            await tcp.aclose()


_IDS: dict[int, ID] = {}


async def node_id(node: LocalNode) -> ID:
    if node.p2p_port not in _IDS:
        _IDS[node.p2p_port] = ID.from_base58((await off(node.status)).peer_id)
    return _IDS[node.p2p_port]


Behave = Callable[[Opened, list[Message]], Sequence[Message] | bytes | None]


@dataclass
class RawLink:
    """The sync stream of a raw peer who is a member. It answers the node's requests as `behave` says:
    by messages, by raw bytes for an envelope, or not at all (None)."""

    stream: Stream
    member: Member
    behave: Behave
    greeted: trio.Event = field(default_factory=trio.Event)
    ended: trio.Event = field(default_factory=trio.Event)
    requests: list[tuple[float, list[Message]]] = field(default_factory=list)
    _answers: dict[int, bytes] = field(default_factory=dict)
    _arrived: trio.Event = field(default_factory=trio.Event)
    _number: int = 0
    _lock: trio.Lock = field(default_factory=trio.Lock)

    async def send(self, kind: int, number: int, payload: bytes) -> None:
        async with self._lock:
            await self.stream.write(encode_frame(kind, number, payload))  # type: ignore[arg-type]

    async def serve(self) -> None:
        try:
            while True:
                length, kind, number = _FRAME.unpack(await self.stream.read(_FRAME.size))
                payload = await self.stream.read(length - 5)
                if kind == REQUEST:
                    await self._serve(number, payload)
                elif kind == ANSWER:
                    self._answers[number] = payload
                    self._arrived.set()
                    self._arrived = trio.Event()
                else:
                    return
        except (Closed, *CUT):
            pass
        finally:
            self.ended.set()
            self._arrived.set()

    async def _serve(self, number: int, payload: bytes) -> None:
        opened = self.member.sealer.open(payload)
        messages = decode_messages(opened.body)
        self.requests.append((trio.current_time(), messages))
        told = self.behave(opened, messages)
        if told is None:
            return
        await self.send(ANSWER, number, told if isinstance(told, bytes) else self.member.answer(opened, told))
        if any(isinstance(message, Hello) for message in messages):
            self.greeted.set()

    async def ask_raw(self, request: bytes) -> bytes:
        """The node's answer to these bytes. Raises Closed where it closes the link instead."""
        self._number += 1
        number = self._number
        await self.send(REQUEST, number, request)
        while number not in self._answers:
            if self.ended.is_set():
                raise Closed
            await self._arrived.wait()
        return self._answers.pop(number)

    async def ask(self, messages: Sequence[Message], to: bytes) -> list[Message]:
        raw = await self.ask_raw(self.member.request(messages, to))
        return decode_messages(self.member.sealer.open(raw).body)


def polite(member: Member, roots: Roots | None = None) -> Behave:
    """What any honest node does: greets, beats, and says that it holds what the other holds."""

    def behave(opened: Opened, messages: list[Message]) -> Sequence[Message]:
        out: list[Message] = []
        for message in messages:
            match message:
                case Hello():
                    out.append(member.hello(answering=message.challenge))
                case Beat():
                    out.append(beat(opened.sender, roots or message.roots))
                case Heads():
                    out.append(Heads(message.round, message.flags & HeadsFlag.FINAL, roots or message.roots))
                case _:
                    pass
        return out

    return behave


def beat(heard: bytes, roots: Roots) -> Beat:
    return Beat(roots, "P2P", BeatFlag(0), 5000, (heard,), None, "liar", Addresses())


# Gossip.


class Gossiper:
    """A member's stream of gossip to the node, admitted by a link; every message is signed as libp2p asks."""

    def __init__(self, peer: RawPeer, link: RawLink, stream: Stream, topics: dict[str, str]) -> None:
        self.peer = peer
        self.link = link
        self.stream = stream
        self.topics = topics
        self._seqno = time.time_ns()

    async def send(self, rpc: rpc_pb2.RPC) -> None:
        await self.stream.write_delimited(rpc.SerializeToString())

    async def subscribe(self, *topics: str) -> None:
        await self.send(
            rpc_pb2.RPC(subscriptions=[rpc_pb2.RPC.SubOpts(subscribe=True, topicid=t) for t in topics])
        )

    def message(self, data: bytes, topic: str = "entries", /, **changed: Any) -> rpc_pb2.Message:
        self._seqno += 1
        message = rpc_pb2.Message(
            from_id=ID.from_pubkey(self.peer.keys.public_key).to_bytes(),
            data=data,
            seqno=self._seqno.to_bytes(8, "big"),
            topicIDs=[self.topics.get(topic, topic)],
        )
        message.signature = self.peer.keys.private_key.sign(b"libp2p-pubsub:" + message.SerializeToString())
        message.key = self.peer.keys.public_key.serialize()
        for name, value in changed.items():
            setattr(message, name, value)
        return message

    async def publish(self, *messages: rpc_pb2.Message) -> None:
        await self.send(rpc_pb2.RPC(publish=messages))


def one_way(member: Member, messages: Sequence[Message], *, to: bytes = bytes(32)) -> bytes:
    return member.sealer.seal(Kind.ONE_WAY, encode_messages(messages), os.urandom(NONCE_BYTES), to=to)


@asynccontextmanager
async def gossiper(node: LocalNode, made: Scene, seed: bytes | None = None) -> AsyncIterator[Gossiper]:
    seed = seed or os.urandom(32)
    async with raw_peer(node, seed=seed) as peer:
        peer.serves[MESHSUB] = Stream.wait_ended  # else the node takes the connection for deaf
        link = await peer.link(made.member.another(key=NodeKey(seed)))
        stream = await peer.opened(MESHSUB)
        topics = await off(topics_of, node)
        found = Gossiper(peer, link, stream, topics)
        await found.subscribe(*topics.values())
        yield found


def topics_of(node: LocalNode) -> dict[str, str]:
    topic = node.status().topic
    assert topic is not None
    return {"entries": f"{topic}/entries", "presence": f"{topic}/presence"}


# An honest pair beside it all.


class Syncing(threading.Thread):
    """Writes at each of two honest nodes and waits for it at the other, over and over, while a case runs.

    At its end the pair has kept syncing: several laps, none of them long, and over P2P."""

    def __init__(self, made: Scene, lap_s_max: float = 8.0) -> None:
        super().__init__(daemon=True)
        self._made = made
        self._lap_s_max = lap_s_max
        self._over = threading.Event()
        self.laps_s: list[float] = []
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            while not self._over.is_set() or len(self.laps_s) < 2:
                self.laps_s.append(self._made.control(within_s=20.0))
                self._over.wait(0.1)
        except BaseException as error:  # noqa: BLE001 - raised in the test, where it belongs
            self.error = error

    def finish(self) -> None:
        self._over.set()
        self.join()
        if self.error is not None:
            raise self.error
        assert max(self.laps_s) < self._lap_s_max, self.laps_s


@asynccontextmanager
async def syncing(made: Scene, lap_s_max: float = 8.0) -> AsyncIterator[Rise]:
    """The honest pair keeps syncing within; the counters' rise since the beginning."""
    rise = await off(Rise, made.victim)
    pair = Syncing(made, lap_s_max)
    pair.start()
    try:
        yield rise
    finally:
        with trio.CancelScope(shield=True):
            await off(pair.finish)
    assert (await off(restarts, made.victim)) == 0


def restarts(node: LocalNode) -> float:
    """How often the P2P host was lost: a hostile peer must not be able to."""
    return counted(node)["lattice_p2p_restarts_total", ()]


@contextmanager
def p2p_scene(directory: Path) -> Iterator[Scene]:
    """Two nodes that hear each other over P2P, with HTTP as the other lung."""
    with scene(directory, WITH_P2P) as made:
        wait_for("both speak P2P", lambda: hears(made.victim) and hears(made.honest), within_s=30)
        yield made
        wait_for("both still speak P2P", lambda: hears(made.victim) and hears(made.honest), within_s=30)
        for node in (made.victim, made.honest):
            assert "Traceback" not in node.log_text()


def hears(node: LocalNode) -> bool:
    status = node.status()
    return status.sync_mode == "P2P" and status.peer_count >= 1


async def rises(rise: Rise, name: str, *labels: str, by: float = 1, within_s: float = 15) -> None:
    await off(lambda: rise.wait(name, *labels, by=by, within_s=within_s))


EVENTS = "lattice_p2p_events_total"
MESSAGES = "lattice_messages_total"
REFUSED = "lattice_entries_refused_total"
CHARGED = "lattice_charged_bytes_total"
