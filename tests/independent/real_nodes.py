"""What the suites beside this module ask of a real node, and what they expect a ledger to share with it.

Separate because two suites need it: that of the peer, and that of forks.
"""

from __future__ import annotations

import http.client
import json
import re
from collections import Counter
from typing import Any
from urllib.parse import quote

from nacl.signing import SigningKey

from lattice.testing.cluster import LocalNode
from tests.independent.ledger import Ledger, LogName
from tests.independent.peer import Peer
from tests.independent.wire_format import OPEN, ZERO32, Ticket, peer_id, public_key_of


def call(node: LocalNode, method: str, path: str, data: object = None) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", node.api_port, timeout=60)
    try:
        body = None if data is None else json.dumps(data)
        connection.request(method, path, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def put(node: LocalNode, key: str, value: object) -> None:
    status, answer = call(node, "PUT", f"/api/lattice/keys/{quote(key)}", value)
    assert status == 201, answer


def state_of(node: LocalNode) -> dict[str, Any]:
    status, answer = call(node, "GET", "/api/lattice/state")
    assert status == 200
    assert isinstance(answer, dict)
    return answer


def keys_of(node: LocalNode) -> dict[str, Any]:
    found: dict[str, Any] = {}
    after = ""
    while True:
        status, page = call(node, "GET", f"/api/lattice/keys?limit=100{after}")
        assert status == 200, page
        found.update({each["key"]: each for each in page["keys"]})
        if page["next"] is None:
            return found
        after = f"&after={quote(page['next'], safe='')}"


def stranger(ticket: Ticket, node: LocalNode) -> Peer:
    return Peer(ticket, f"http://127.0.0.1:{node.sync_port}", SigningKey.generate())


def agrees(ledger: Ledger, node: LocalNode) -> None:
    shown = state_of(node)
    roots = ledger.roots()
    assert (roots.state_root.hex(), roots.log_root.hex()) == (shown["merkle_root"], shown["log_root"])
    assert (roots.entries, len(ledger.state())) == (shown["entry_count"], shown["state_size"])
    ours = [
        (
            peer_id(name[0]),
            f"{name[1]:016x}",
            log.height,
            (log.entries[-1].id if log.entries else ZERO32).hex(),
            None if log.frozen == OPEN else log.frozen,
        )
        for name, log in ledger.held()
    ]
    theirs = [
        (head["author"], head["epoch"], head["seq"], head["id"], head["frozen"]) for head in shown["heads"]
    ]
    assert sorted(ours) == sorted(theirs)


def same_values(ledger: Ledger, node: LocalNode) -> None:
    """Winners, siblings and counters as the API shows them."""
    shown, cells = keys_of(node), ledger.state()
    assert {key.encode() for key in shown} == set(cells)
    for key, cell in cells.items():
        api = shown[key.decode()]
        assert api["adds"] == cell.adds
        assert (None if api["total"] is None else int(api["total"])) == (cell.total if cell.adds else None)
        if not cell.live:
            assert api["version"] is None
            continue
        winner = cell.winner
        entry, op = cell.live[winner]
        assert api["version"] == f"{winner[0].hex()}.{winner[1]}"
        assert api["author"] == peer_id(entry.header.author)
        assert len(api["siblings"]) == len(cell.live) - 1
        if api["error"] is None:
            assert api["value"] == json.loads(op.body)


def pulled(ticket: Ticket, node: LocalNode) -> Peer:
    """A peer that has pulled everything a node holds."""
    peer = stranger(ticket, node)
    outcome = peer.sync()
    assert (outcome.good, outcome.refusals) == (True, [])
    return peer


def flipped(data: bytes, at: int, bit: int = 1) -> bytes:
    return data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :]


def forks_of(node: LocalNode) -> dict[LogName, dict[str, Any]]:
    """The frozen logs as the API shows them."""
    found: dict[LogName, dict[str, Any]] = {}
    query = ""
    while True:
        status, answer = call(node, "GET", f"/api/lattice/forks{query}")
        assert status == 200
        for fork in answer["forks"]:
            found[public_key_of(fork["author"]), int(fork["epoch"], 16)] = fork
        if answer["next"] is None:
            return found
        query = f"?after={answer['next']}"


def entries_refused(node: LocalNode) -> Counter[str]:
    """How often the node has refused entries and proofs, by its reason."""
    connection = http.client.HTTPConnection("127.0.0.1", node.api_port, timeout=60)
    try:
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
    finally:
        connection.close()
    found: Counter[str] = Counter()
    for reason, count in re.findall(r'^lattice_entries_refused_total\{reason="(\w+)"\} (\S+)$', text, re.M):
        found[reason] = int(float(count))
    return found
