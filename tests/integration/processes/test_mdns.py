"""Two real nodes on one wire, in two network namespaces, that no setting and no ticket introduces."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lattice.core.messages import Addresses
from lattice.core.ticket import decode_ticket, encode_ticket
from lattice.testing.cluster import ClusterError, LocalNode, wait_for

pytestmark = [
    pytest.mark.slow,
    pytest.mark.netns,
    pytest.mark.timeout(240),
    pytest.mark.skipif(
        not hasattr(os, "geteuid") or os.geteuid() != 0 or shutil.which("ip") is None,
        reason="network namespaces need root and the program ip",
    ),
]


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@pytest.fixture
def wire() -> Iterator[tuple[str, str]]:
    """Two namespaces joined by one cable, each with one address and no route beyond it."""
    names = (f"mdns{os.getpid()}a", f"mdns{os.getpid()}b")
    made = []
    try:
        for name in names:
            made_by = subprocess.run(
                ["ip", "netns", "add", name], capture_output=True, text=True, check=False
            )
            if made_by.returncode:
                pytest.skip(f"no network namespace can be made here: {made_by.stderr.strip()}")
            made.append(name)
        ip(
            "link",
            "add",
            "wire",
            "netns",
            names[0],
            "type",
            "veth",
            "peer",
            "name",
            "wire",
            "netns",
            names[1],
        )
        for number, name in enumerate(names, 1):
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "addr", "add", f"192.0.2.{number}/24", "dev", "wire")
            ip("-n", name, "link", "set", "wire", "up")
        yield names
    finally:
        for name in made:
            ip("netns", "del", name)


def status(node: LocalNode) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(node.command("status", "--json"))
    return found


def answers(node: LocalNode) -> bool:
    try:
        return bool(status(node))
    except ClusterError:
        return False


def heard(node: LocalNode) -> int:
    return int(status(node)["peer_count"])


def reads(node: LocalNode, key: str) -> bool:
    try:
        return node.command("get", key).strip() == "1"
    except ClusterError:
        return False


def introduce(first: LocalNode, second: LocalNode, *, named: bool) -> None:
    """A ticket from which every address is taken, and unless `named` the peers themselves."""
    first.command("init")
    ticket = decode_ticket(first.command("invite").split()[-1])
    peers = tuple(peer._replace(addresses=Addresses()) for peer in ticket.peers if named)
    second.command("init", "--join", "-", text_in=encode_ticket(ticket._replace(peers=peers)) + "\n")


@pytest.mark.parametrize(("p2p", "named"), [("true", True), ("true", False), ("false", False)])
def test_nodes_find_each_other_and_remember(
    p2p: str, named: bool, wire: tuple[str, str], tmp_path: Path
) -> None:
    nodes = [
        LocalNode(
            name,
            tmp_path / name,
            8000,
            8100,
            9000,
            host="0.0.0.0",
            prefix=("ip", "netns", "exec", name),
            environ={"LATTICE_MDNS": "true", "LATTICE_P2P_ENABLED": p2p},
        )
        for name in wire
    ]
    first, second = nodes
    introduce(first, second, named=named)
    try:
        for node in nodes:
            node.start(wait=False)
        for node in nodes:
            wait_for(f"{node.name} answers", lambda node=node: answers(node), within_s=60)
        second.command("put", "k", "1")
        took = wait_for("the entry arrives", lambda: reads(first, "k"), within_s=60)
        print(f"P2P {p2p}: found and replicated {took:.1f} s after both were up")
        sources = {source for p in json.loads(first.command("peers", "--json")) for source in p["addresses"]}
        assert any("192.0.2.2" in address for address in sources)
        if p2p == "true":
            wait_for("P2P both ways", lambda: heard(first) == heard(second) == 1, within_s=30)

        # The next process finds the other again without discovery: it remembers.
        second.stop()
        second.environ["LATTICE_MDNS"] = "false"
        first.stop()
        first.environ["LATTICE_MDNS"] = "false"
        for node in nodes:
            node.start(wait=False)
        for node in nodes:
            wait_for(f"{node.name} answers", lambda node=node: answers(node), within_s=60)
        first.command("put", "later", "1")
        wait_for("the later entry arrives", lambda: reads(second, "later"), within_s=90)
    finally:
        for node in nodes:
            node.stop()
