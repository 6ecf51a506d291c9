"""Network namespaces on one bridge, and the faults that packets can meet there.

Separate from the tests because every test of a hostile network needs the same few things: nodes with
an address of their own, rules that do harm to chosen packets, and a count of the packets harmed.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import httpx

from lattice.client.client import Client
from lattice.testing.cluster import LocalNode, join

API_PORT: Final = 8000
SYNC_PORT: Final = 8100
P2P_PORT: Final = 9000

BOTH_WAYS: Final = ("input", "output")
INBOUND: Final = ("input",)
OUTBOUND: Final = ("output",)

_CLONE_NEWNET: Final = 0x40000000
_WATCH_STEP_S: Final = 0.2
_libc: Final = ctypes.CDLL(None, use_errno=True)


def missing() -> str | None:
    """Why no namespace can be made here; None where it can."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return "network namespaces need root"
    lacking = [tool for tool in ("ip", "nft") if shutil.which(tool) is None]
    if lacking:
        return f"not installed: {', '.join(lacking)}"
    name = f"lt{os.getpid()}-probe"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if made.returncode:
        return f"this machine makes no network namespace: {made.stderr.strip()}"
    try:
        listed = subprocess.run(_in(name, "nft", "list", "ruleset"), capture_output=True, text=True)
        return f"nft does not work here: {listed.stderr.strip()}" if listed.returncode else None
    finally:
        _ip("netns", "del", name)


@dataclass(frozen=True, slots=True)
class Lan:
    """`size` namespaces, numbered from 1, with a cable each to a bridge in a namespace of its own."""

    label: str
    size: int

    @property
    def switch(self) -> str:
        return f"lt{os.getpid()}-{self.label}-sw"

    def namespace(self, number: int) -> str:
        return f"lt{os.getpid()}-{self.label}-{number}"

    def host(self, number: int) -> str:
        return f"10.77.0.{number}"

    def cable(self, number: int, *, plugged: bool) -> None:
        """Pull the cable of one namespace out, or put it back."""
        _ip("-n", self.switch, "link", "set", f"p{number}", "up" if plugged else "down")

    def node(self, number: int, directory: Path) -> LocalNode:
        """A node that runs inside; its API answers inside only, and `client` reaches it there."""
        name = f"node{number}"
        namespace = self.namespace(number)
        return LocalNode(
            name, directory / name, API_PORT, SYNC_PORT, P2P_PORT, self.host(number),
            tuple(_in(namespace)), new_client=lambda node: client_inside(namespace, node.url),
        )  # fmt: skip

    def joined_nodes(self, directory: Path) -> list[LocalNode]:
        """A node in every namespace, all of one network, not started yet."""
        nodes = [self.node(number, directory) for number in range(1, self.size + 1)]
        join(nodes)
        return nodes


@contextmanager
def lan(label: str, size: int) -> Iterator[Lan]:
    """The namespaces, taken away at the end with whatever rules are left in them."""
    made = Lan(label, size)
    names = [made.switch, *(made.namespace(number) for number in range(1, size + 1))]
    try:
        _ip("netns", "add", made.switch)
        _ip("-n", made.switch, "link", "add", "br0", "type", "bridge")
        _ip("-n", made.switch, "link", "set", "br0", "up")
        for number in range(1, size + 1):
            inner, v, p = made.namespace(number), f"v{number}", f"p{number}"
            _ip("netns", "add", inner)
            _ip("link", "add", v, "netns", inner, "type", "veth", "peer", "name", p, "netns", made.switch)
            _ip("-n", made.switch, "link", "set", p, "master", "br0", "up")
            _ip("-n", inner, "addr", "add", f"{made.host(number)}/24", "dev", v)
            _ip("-n", inner, "link", "set", v, "up")
            _ip("-n", inner, "link", "set", "lo", "up")
        yield made
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


# Being inside.


@contextmanager
def inside(namespace: str) -> Iterator[None]:
    """The calling thread makes its sockets in that namespace; a socket stays where it was made."""
    with open("/proc/thread-self/ns/net", "rb") as home, open(f"/run/netns/{namespace}", "rb") as there:
        _enter(there.fileno())
        try:
            yield
        finally:
            _enter(home.fileno())


def _enter(descriptor: int) -> None:
    if _libc.setns(descriptor, _CLONE_NEWNET):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


class InsideTransport(httpx.HTTPTransport):
    """Connects from inside a namespace, whichever thread asks."""

    def __init__(self, namespace: str) -> None:
        super().__init__(verify=False, trust_env=False)
        self._namespace = namespace

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        with inside(self._namespace):
            return super().handle_request(request)


def client_inside(namespace: str, url: str) -> Client:
    return Client(url, transport=InsideTransport(namespace))


# Faults.


@dataclass(frozen=True, slots=True)
class Fault:
    """A table of nft rules in one namespace, in force since `impose`. As a context manager it heals
    at the end of its block."""

    namespace: str
    table: str

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.heal()

    def packets(self) -> int:
        """How many packets its rules have met."""
        listed = _run(*_in(self.namespace, "nft", "-j", "list", "table", "inet", self.table))
        return sum(
            part["counter"]["packets"]
            for item in json.loads(listed)["nftables"]
            for part in item.get("rule", {}).get("expr", ())
            if "counter" in part
        )

    def heal(self) -> None:
        _run(*_in(self.namespace, "nft", "delete", "table", "inet", self.table))


def impose(
    namespace: str,
    matches: Sequence[str],
    *,
    verdict: str = "drop",
    hooks: Sequence[str] = BOTH_WAYS,
    table: str = "chaos",
    priority: int = 0,
) -> Fault:
    """Judge every packet that one of `matches` meets; the whole table comes into force at once.

    Silent dropping is the default, since a refusal or an ended process tells the other side at once
    what a cut cable never does.
    """
    rules = "\n".join(f"{match} counter {verdict}" for match in matches)
    chains = "\n".join(
        f"chain {hook} {{ type filter hook {hook} priority {priority}; policy accept;\n{rules}\n}}"
        for hook in hooks
    )
    _run(*_in(namespace, "nft", "-f", "-"), text_in=f"table inet {table} {{\n{chains}\n}}\n")
    return Fault(namespace, table)


def port(number: int) -> list[str]:
    """Every packet of connections to that port, whoever opened them."""
    return [f"tcp dport {number}", f"tcp sport {number}"]


def port_with(number: int, peers: Sequence[str]) -> list[str]:
    """The same, of connections with these addresses only."""
    listed = "{ " + ", ".join(peers) + " }"
    return [f"ip {side} {listed} {match}" for side in ("saddr", "daddr") for match in port(number)]


def larger_than(size: int, matches: Sequence[str]) -> list[str]:
    """Of these packets those over `size` bytes, headers included: a path with a hole for large ones."""
    return [f"{match} meta length gt {size}" for match in matches]


def drop_port(namespace: str, number: int, *, hooks: Sequence[str] = BOTH_WAYS) -> Fault:
    """Silence on that port. With `hooks=INBOUND` packets get out and no answer comes in."""
    return impose(namespace, port(number), hooks=hooks, table=f"drop{number}")


def refuse_port(namespace: str, number: int) -> Fault:
    """An active refusal: every packet to or from that port is answered with a reset."""
    # The resets themselves must get out.
    matches = [f"{match} tcp flags & rst == 0" for match in port(number)]
    return impose(namespace, matches, verdict="reject with tcp reset", table=f"reset{number}")


def lose(namespace: str, percent: int) -> Fault:
    """Random loss, under 100 %, of everything that comes in from other machines."""
    match = f'meta iifname != "lo" numgen random mod 100 < {percent}'
    return impose(namespace, [match], hooks=INBOUND, table="loss")


# Counting what passes.


@dataclass(slots=True)
class PacketWatch:
    """When the last packet of a port passed: a counter behind every fault, read all the time."""

    namespace: str
    number: int
    last_passed_at: float = 0.0  # monotonic seconds; the true moment lies up to a reading before
    packets: int = 0
    _fault: Fault | None = None
    _ended: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        # The priority puts it behind the faults: what they drop never comes here.
        matches = port(self.number)
        self._fault = impose(self.namespace, matches, verdict="accept", table="watch", priority=10)
        self._thread = threading.Thread(target=self._read)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        if self._fault is not None:
            self._fault.heal()

    def _read(self) -> None:
        while self._fault is not None and not self._ended.wait(_WATCH_STEP_S):
            at = time.monotonic()
            packets = self._fault.packets()
            if packets > self.packets:
                self.packets, self.last_passed_at = packets, at


def _in(namespace: str, *command: str) -> list[str]:
    return ["ip", "netns", "exec", namespace, *command]


def _ip(*arguments: str) -> None:
    _run("ip", *arguments)


def _run(*command: str, text_in: str = "") -> str:
    done = subprocess.run(command, input=text_in, capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr.strip()}")
    return done.stdout
