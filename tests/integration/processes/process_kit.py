"""What the tests of real processes share: writers with a journal outside the node, copies of data
directories, and the judgement of a stopped node's store by two codes that share nothing."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from lattice.client import calls
from lattice.core.errors import LatticeError
from lattice.core.identity import public_key_of
from lattice.core.limits import FROZEN_NEVER
from lattice.core.rows import LogKey
from lattice.schemas import Written
from lattice.storage.datadir import open_reader
from lattice.storage.verify import verify_all
from lattice.testing.cluster import LocalNode, free_ports, roots_equal, wait_for
from lattice.testing.invariants import (
    Acknowledged,
    Monotone,
    check_authentic,
    check_converged,
    check_kept,
    check_one_entry_a_place,
    check_roots,
)
from lattice.testing.reference import Ledger, read_ledger

HTTP_ONLY = {"LATTICE_P2P_ENABLED": "false"}


@dataclass
class Journal:
    """What writers were told is stored, kept outside the nodes."""

    lines: list[Acknowledged] = field(default_factory=list)
    values: dict[str, object] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __len__(self) -> int:
        return len(self.lines)

    def add(self, node: str, key: str, value: object, written: Written) -> None:
        log = LogKey(public_key_of(written.author), int(written.epoch, 16))
        line = Acknowledged(node, log, written.seq, bytes.fromhex(written.id), 0.0)
        with self._lock:
            self.lines.append(line)
            self.values[key] = value

    def put(self, node: LocalNode, key: str, value: object) -> Written:
        written = node.send(calls.put(key, json.dumps(value).encode()))
        self.add(node.name, key, value, written)
        return written

    def put_many(self, node: LocalNode, prefix: str, count: int) -> list[Written]:
        return [self.put(node, f"{prefix}/{number}", [prefix, number]) for number in range(count)]


class Writer(threading.Thread):
    """Writes new keys, one after the other, until it is told to stop or the node does not answer."""

    def __init__(self, node: LocalNode, journal: Journal, prefix: str) -> None:
        super().__init__()
        self._node = node
        self._journal = journal
        self._prefix = prefix
        self._stop_asked = threading.Event()
        self.error: LatticeError | None = None

    def run(self) -> None:
        number = 0
        try:
            with self._node.client() as client:
                while not self._stop_asked.is_set():
                    key = f"{self._prefix}/{number}"
                    value = {"key": key, "text": "x" * (number * 37 % 500)}
                    written = client.send(calls.put(key, json.dumps(value).encode()))
                    self._journal.add(self._node.name, key, value, written)
                    number += 1
        except LatticeError as error:
            self.error = error

    def stop(self) -> None:
        self._stop_asked.set()
        self.join()


@contextmanager
def writing(node: LocalNode, journal: Journal, prefix: str, *, writers: int) -> Iterator[list[Writer]]:
    """Concurrent writers, ended whatever happens inside."""
    threads = [Writer(node, journal, f"{prefix}/{number}") for number in range(writers)]
    for thread in threads:
        thread.start()
    try:
        yield threads
    finally:
        for thread in threads:
            thread.stop()


def values_of(node: LocalNode) -> dict[str, object]:
    """Every key of a running node with its value, page by page over the API."""
    found: dict[str, object] = {}
    after: str | None = None
    with node.client() as client:
        while True:
            page = client.send(calls.keys(after=after, limit=1000))
            found.update({key.key: key.value for key in page.keys})
            if page.next is None:
                return found
            after = page.next


def missing(journal: Journal, values: dict[str, object]) -> list[str]:
    """The acknowledged keys that are not there with their value."""
    return [key for key, value in journal.values.items() if key not in values or values[key] != value]


def network_id_in(data_dir: Path) -> bytes:
    return bytes.fromhex(json.loads((data_dir / "network.json").read_text())["network_id"])


def read_stopped(data_dir: Path) -> tuple[Ledger, list[str]]:
    """The ledger in a data directory that no process uses, and what the store's own verification
    and the reference's recomputation of chains, seals and both roots find wrong with it."""
    network_id = network_id_in(data_dir)
    name = data_dir.parent.name
    reader = open_reader(data_dir)
    try:
        faults = list(verify_all(reader, network_id).problems)
        ledger = read_ledger(reader)
        state_root, log_root = reader.meta("state_root") or b"", reader.meta("log_root") or b""
    finally:
        reader.close()
    faults += map(str, check_authentic(network_id, name, ledger))
    faults += map(str, check_roots(network_id, name, ledger, state_root=state_root, log_root=log_root))
    return ledger, faults


def history_faults(data_dirs: Sequence[Path], journal: Journal, *, forks: int = 0) -> list[str]:
    """What is wrong with stopped nodes that should be sound, hold the same and everything that was
    acknowledged, with so many logs frozen and no place of a log given twice."""
    network_id = network_id_in(data_dirs[0])
    ledgers: dict[str, Ledger] = {}
    faults = [] if journal.lines else ["nothing was acknowledged"]
    for data_dir in data_dirs:
        ledgers[data_dir.parent.name], found = read_stopped(data_dir)
        faults += found
    faults += map(str, check_kept(network_id, journal.lines, ledgers))
    faults += map(str, check_converged(network_id, ledgers))
    faults += map(str, check_one_entry_a_place(network_id, ledgers))
    for name, ledger in ledgers.items():
        frozen = [
            f"log {log.epoch:016x} at {head.frozen}"
            for log, head in ledger.heads.items()
            if head.frozen != FROZEN_NEVER
        ]
        if len(frozen) != forks:
            faults.append(f"{name}: {forks} logs should be frozen, not these: {frozen}")
    monotone = Monotone()
    return faults + [str(found) for line in journal.lines for found in monotone.acknowledged(line)]


def wait_equal(nodes: Sequence[LocalNode], *, within_s: float) -> float:
    """How long it took until all nodes showed the same roots."""
    return wait_for("equal roots", lambda: roots_equal(nodes), within_s=within_s, step_s=0.05)


def copy_of(node: LocalNode, name: str) -> LocalNode:
    """A node on other ports with a copy of the data directory of a stopped one."""
    ports = free_ports(3)
    copy = replace(
        node,
        name=name,
        directory=node.directory.with_name(name),
        api_port=ports[0],
        sync_port=ports[1],
        p2p_port=ports[2],
        process=None,
    )
    shutil.copytree(node.data_dir, copy.data_dir)
    return copy


def put_back(backup: Path, node: LocalNode) -> None:
    """Replace a stopped node's data directory by a backup."""
    shutil.rmtree(node.data_dir)
    shutil.copytree(backup, node.data_dir)
