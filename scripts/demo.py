"""Three nodes, one real data set through node A only, and the proof that B and C hold all of it.

Separate from the tests because it is for a person to watch, and measures. The count and the digest
are computed here with nothing of Lattice: from the input, and from the pages that each node serves.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from lattice.testing.cluster import ClusterError, LocalNode, make_nodes, running

ROOT = Path(__file__).resolve().parent.parent
ELSEWHERE = ROOT / "scripts" / "demo-tzdata.zi"
API = "/api/lattice"
OPS_MAX = 256
BODY_BYTES_MAX = 250_000  # of the ops alone; an entry has 256 KiB with its framing
WRITERS = 4
EQUAL_WITHIN_S = 120.0
PAGE = 1000

Record = tuple[str, dict[str, str]]


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="./scripts/demo", description="Feed a real data set through one of three nodes."
    )
    parser.add_argument(
        "--records",
        type=Path,
        metavar="FILE",
        help="stanzas like those of `apt-cache dumpavail`, which is asked by default; where there is no "
        "apt-cache, the time zone database (public domain) of this repository",
    )
    parser.add_argument("--keep", action="store_true", help="keep the nodes' directories and print where")
    arguments = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="lattice-demo-"))
    try:
        source, records = read_records(arguments.records)
        print(f"{len(records)} records from {source}")
        return show(make_nodes(directory, ["A", "B", "C"]), records)
    except (ClusterError, OSError, ValueError) as error:
        print(f"lattice: {error}", file=sys.stderr)
        return 1
    finally:
        if arguments.keep:
            print(f"kept in {directory}")
        else:
            shutil.rmtree(directory, ignore_errors=True)


def show(nodes: list[LocalNode], records: list[Record]) -> int:
    expected = digest_of(records)
    with running(nodes):
        print("three nodes are up; all records go through node A")
        began = time.monotonic()
        took_s = feed(nodes[0], records)
        last = time.monotonic()
        print(f"fed in {took_s:.1f} s: {len(records) / took_s:.0f} ops/s into node A, each acknowledged")
        states = wait_equal(nodes)
        print(f"all three equal {time.monotonic() - last:.2f} s after the last write was acknowledged")
        with ThreadPoolExecutor(1) as pool:  # one at a time: they share this machine's cores
            found = list(pool.map(lambda node: digest_of(pages_of(node)), nodes))
        for node, state, (count, digest) in zip(nodes, states, found, strict=True):
            print(f"node {node.name}  entries {state['entry_count']}  keys {count}")
            print(f"        state root {state['merkle_root']}")
            print(f"        log root   {state['log_root']}")
            print(f"        digest     {digest}  (over all keys and values)")
        print(f"input   keys {expected[0]}\n        digest     {expected[1]}")
        whole_s = time.monotonic() - began
    same = all(each == expected for each in found)
    verdict = "every node holds the input" if same else "A NODE DIFFERS FROM THE INPUT"
    print(f"{verdict}; {whole_s:.0f} s from the first write to the last page, load {os.getloadavg()[0]:.1f}")
    return 0 if same else 1


def read_records(path: Path | None) -> tuple[str, list[Record]]:
    """The records under distinct keys, and where they are from."""
    if path is not None:
        return str(path), distinct(stanzas(path.read_text(encoding="utf-8")))
    apt_cache = shutil.which("apt-cache")
    if apt_cache is not None:
        done = subprocess.run([apt_cache, "dumpavail"], capture_output=True, check=True)
        found = distinct(stanzas(done.stdout.decode("utf-8")))
        if len(found) > 1000:
            return "apt-cache dumpavail", found
    lines = ELSEWHERE.read_text(encoding="utf-8").splitlines()
    return "the time zone database", [
        (f"tz/{number:05}", {"line": line}) for number, line in enumerate(lines, 1)
    ]


def stanzas(text: str) -> Iterator[dict[str, str]]:
    """RFC 822 paragraphs: `Name: value`, continued on lines that start with a space."""
    for block in text.split("\n\n"):
        fields: dict[str, str] = {}
        name = ""
        for line in block.splitlines():
            if line[:1] in (" ", "\t"):
                fields[name] += "\n" + line[1:]
            else:
                name, _, value = line.partition(": ")
                fields[name] = value
        if "Package" in fields:
            yield fields


def distinct(found: Iterable[dict[str, str]]) -> list[Record]:
    """Each record under a key of its own; the archive lists a few packages twice, word for word."""
    records: dict[str, dict[str, str]] = {}
    for fields in found:
        key = "/".join(
            ("package", fields["Package"], fields.get("Version", "-"), fields.get("Architecture", "-"))
        )
        records.setdefault(key, fields)
    return list(records.items())


def batches(records: Iterable[Record]) -> Iterator[bytes]:
    """Bodies of POST entries: up to 256 ops, and within the size of an entry."""
    ops: list[bytes] = []
    size = 0
    for key, value in records:
        op = json.dumps({"op": "put", "key": key, "value": value}, ensure_ascii=False).encode()
        if ops and (len(ops) == OPS_MAX or size + len(op) > BODY_BYTES_MAX):
            yield b'{"ops":[' + b",".join(ops) + b"]}"
            ops, size = [], 0
        ops.append(op)
        size += len(op)
    if ops:
        yield b'{"ops":[' + b",".join(ops) + b"]}"


def feed(node: LocalNode, records: list[Record]) -> float:
    """Write all records over a few connections; the seconds from the first request to the last 201."""
    bodies = list(batches(records))
    waiting = iter(bodies)
    lock = threading.Lock()
    began = time.monotonic()

    def write() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", node.api_port, timeout=60)
        while True:
            with lock:
                body = next(waiting, None)
            if body is None:
                connection.close()
                return
            connection.request("POST", f"{API}/entries", body, {"content-type": "application/json"})
            answer = connection.getresponse()
            text = answer.read()
            if answer.status != 201:
                raise ClusterError(f"a batch was answered by {answer.status}: {text[:500]!r}")

    with ThreadPoolExecutor(WRITERS) as pool:
        for writer in [pool.submit(write) for _ in range(WRITERS)]:
            writer.result()
    return time.monotonic() - began


def get(node: LocalNode, path: str) -> dict[str, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", node.api_port, timeout=60)
    try:
        connection.request("GET", f"{API}{path}")
        answer = connection.getresponse()
        body = answer.read()
        if answer.status != 200:
            raise ClusterError(f"GET {path} was answered by {answer.status}: {body[:500]!r}")
        found: dict[str, Any] = json.loads(body)
        return found
    finally:
        connection.close()


def wait_equal(nodes: list[LocalNode]) -> list[dict[str, Any]]:
    deadline = time.monotonic() + EQUAL_WITHIN_S
    while time.monotonic() < deadline:
        states = [get(node, "/state") for node in nodes]
        if len({(state["entry_count"], state["merkle_root"], state["log_root"]) for state in states}) == 1:
            return states
        time.sleep(0.1)
    raise ClusterError(f"the nodes were not equal within {EQUAL_WITHIN_S:.0f} s")


def pages_of(node: LocalNode) -> Iterator[Record]:
    after: str | None = None
    while True:
        query = {"limit": str(PAGE), **({"after": after} if after is not None else {})}
        page = get(node, f"/keys?{urlencode(query)}")
        for item in page["keys"]:
            if item["siblings"]:
                raise ClusterError(f"{item['key']} has siblings though one node wrote it once")
            yield item["key"], item["value"]
        after = page["next"]
        if after is None:
            return


def digest_of(records: Iterable[Record]) -> tuple[int, str]:
    """How many, and SHA-256 over the lines `key NUL canonical JSON LF`, sorted by the key's bytes."""
    digest = hashlib.sha256()
    count = 0
    for key, value in sorted(records, key=lambda record: record[0].encode()):
        text = json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
        digest.update(key.encode() + b"\0" + text.encode() + b"\n")
        count += 1
    return count, digest.hexdigest()


if __name__ == "__main__":
    sys.exit(main())
