"""Mistakes, one row each: what the program says, how it ends, and that nothing stored is damaged.

Every row is a process of its own on a copy of one good data directory. It must end with the code of
the reference, say what happened and what to do in one line, show no secret and no traceback, and
leave the ledger as it was.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import pytest

from lattice.client import calls
from lattice.core.errors import CODES
from lattice.storage.schema import SCHEMA_VERSION
from lattice.testing.cluster import LocalNode, free_ports, make_nodes, running, wait_for
from tests.integration.mistakes_kit import (
    LIKE_A_USER,
    REFERENCE,
    Bench,
    Mistake,
    Truth,
    error_codes,
    exit_codes,
    fingerprints,
)
from tests.integration.processes.process_kit import HTTP_ONLY

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name != "posix", reason="rights of files, and signals"),
]

IS_ROOT = hasattr(os, "geteuid") and os.geteuid() == 0
CAN_BE_DENIED = bool(LIKE_A_USER) or not IS_ROOT
FAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
KEYS = 6
# In a mount namespace of its own, so that the mount ends with the process.
READ_ONLY = (
    "unshare",
    "-m",
    "sh",
    "-c",
    'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"',
)


def chmod(name: str, mode: int) -> Callable[[Bench], None]:
    return lambda bench: (bench.directory / name).chmod(mode)


def write(name: str, data: bytes) -> Callable[[Bench], None]:
    def act(bench: Bench) -> None:
        (bench.directory / name).write_bytes(data)

    return act


def aside(*names: str) -> Callable[[Bench], None]:
    def act(bench: Bench) -> None:
        for name in names:
            (bench.data / name).rename(bench.directory / f"kept {name}")

    return act


def back(*names: str) -> Callable[[Bench], None]:
    def act(bench: Bench) -> None:
        for name in names:
            (bench.directory / f"kept {name}").rename(bench.data / name)

    return act


def in_turn(*acts: Callable[[Bench], None]) -> Callable[[Bench], None]:
    def act(bench: Bench) -> None:
        for each in acts:
            each(bench)

    return act


def truncate(share: float) -> Callable[[Bench], None]:
    return lambda bench: os.truncate(bench.store, int(bench.store.stat().st_size * share))


def garble_table(table: str) -> Callable[[Bench], None]:
    """Fill the first page of a table with nonsense, as a bad disk would."""

    def act(bench: Bench) -> None:
        with closing(sqlite3.connect(bench.store)) as connection:
            (page_bytes,) = connection.execute("PRAGMA page_size").fetchone()
            found = connection.execute(
                "SELECT rootpage FROM sqlite_master WHERE name = ?", (table,)
            ).fetchone()
        with bench.store.open("r+b") as file:
            file.seek((found[0] - 1) * page_bytes)
            file.write(bytes(range(256)) * (page_bytes // 256))

    return act


def user_version(version: int) -> Callable[[Bench], None]:
    def act(bench: Bench) -> None:
        with closing(sqlite3.connect(bench.store)) as connection:
            connection.execute(f"PRAGMA user_version = {version}")

    return act


def foreign_store(bench: Bench) -> None:
    shutil.copy(bench.foreign_store, bench.store)


def shell(line: str) -> tuple[str, ...]:
    """A prefix: what a shell does before it becomes the command."""
    return ("sh", "-c", line, "sh")


def setting(name: str, value: str, *says: str) -> Mistake:
    """A value that a setting does not take."""
    return Mistake(f"{name}={value}", 78, (f"LATTICE_{name}=", *says), {name: value})


MISTAKES = [
    # Ports and addresses.
    Mistake(
        "api port busy",
        78,
        ("LATTICE_API_BIND", "in use", "choose another port"),
        {"API_BIND": "127.0.0.1:{busy}"},
    ),
    Mistake(
        "sync port busy",
        78,
        ("LATTICE_SYNC_BIND", "in use", "choose another port"),
        {"SYNC_BIND": "127.0.0.1:{busy}"},
    ),
    Mistake(
        "an address of another machine",
        78,
        ("LATTICE_API_BIND", "does not have that address", "use 127.0.0.1"),
        {"API_BIND": "192.0.2.1:8000"},
    ),
    Mistake(
        "one port twice",
        78,
        ("LATTICE_API_BIND and LATTICE_SYNC_BIND", "give each its own"),
        {"API_BIND": "127.0.0.1:{busy}", "SYNC_BIND": "127.0.0.1:{busy}"},
    ),
    Mistake(
        "open to others without a token",
        78,
        ("reachable from other machines", "lattice init"),
        {"API_BIND": "0.0.0.0:0"},
        before=aside("api.token"),
        undo=back("api.token"),
    ),
    # Settings.
    setting("API_BIND", "127.0.0.1:70000", "not a port (0 to 65535)"),
    setting("SYNC_BIND", "8100", "write HOST:PORT"),
    setting("P2P_LISTEN", "/ip4/300.0.0.1/tcp/1", "not an ip4 address"),
    setting("P2P_LISTEN", "127.0.0.1:9000", "write /ip4/ADDRESS/tcp/PORT"),
    setting("P2P_LISTEN", "/ip4/127.0.0.1/udp/9000", "speaks tcp, not 'udp'"),
    setting("P2P_ANNOUNCE", "/ip4/0.0.0.0/tcp/9000", "name a concrete one"),
    setting("P2P_BOOTSTRAP", "/ip4/192.0.2.7/tcp/9000", "end the address with /p2p/PEER_ID"),
    setting("NODES", "192.0.2.7:8100", "starts with http:// or https://"),
    setting("SYNC_PUBLIC_URL", "http://user:secret@example.org", "no user and no password"),
    setting("HEARTBEAT_INTERVAL_S", "fast", "write a number of seconds from 0.1 to 15"),
    setting("PEERLESS_TIMEOUT_S", "1e9", "write a number of seconds from 1 to 3600"),
    setting("HTTP_POLL_INTERVAL_S", "nan", "write a number of seconds"),
    setting("P2P_ENABLED", "maybe", "write true or false"),
    setting("DISK_RESERVE", "-5", "256MiB"),
    setting("SYNC_MODE", "fast", "write one of auto, p2p, http"),
    setting("NODE_NAME", "a b", "letters, digits, dots"),
    setting("CORS_ORIGINS", "*", "name each origin"),
    setting("TLS_CA_FILE", "{dir}/none", "there is no file", "leave the setting out"),
    Mistake(
        "no certificates",
        78,
        ("LATTICE_TLS_CA_FILE", "certificates in PEM"),
        {"TLS_CA_FILE": "{dir}/ca"},
        before=write("ca", b"hello"),
    ),
    Mistake(
        "contradiction", 78, ("LATTICE_SYNC_MODE=p2p needs LATTICE_P2P_ENABLED=true",), {"SYNC_MODE": "p2p"}
    ),
    Mistake(
        "no room for two missed beats",
        78,
        ("LATTICE_PEERLESS_TIMEOUT_S=10", "write 12 or more", "LATTICE_HEARTBEAT_INTERVAL_S"),
        {"PEERLESS_TIMEOUT_S": "10", "HEARTBEAT_INTERVAL_S": "5"},
    ),
    Mistake(
        "a name of the earlier system",
        78,
        ("LATTICE_STATE_DIR", "is now LATTICE_DATA_DIR: rename it"),
        {"STATE_DIR": "{dir}/data"},
    ),
    Mistake(
        "the same in a file",
        78,
        ("LATTICE_STATE_DIR in {dir}/env", "is now LATTICE_DATA_DIR"),
        arguments=("start", "--env-file", "{dir}/env"),
        before=write("env", b"LATTICE_STATE_DIR=data\n"),
    ),
    Mistake(
        "an unknown name in a file",
        78,
        ("LATTICE_NODES_NAME", "did you mean LATTICE_NODE_NAME?"),
        arguments=("start", "--env-file", "{dir}/env"),
        before=write("env", b"LATTICE_NODES_NAME=x\n"),
    ),
    Mistake(
        "a line that is none",
        78,
        ("line 2", "write NAME=value"),
        arguments=("start", "--env-file", "{dir}/env"),
        before=write("env", b"# ok\nfoo bar baz\n"),
    ),
    Mistake(
        "a file that is no text",
        78,
        ("save it as UTF-8",),
        arguments=("start", "--env-file", "{dir}/env"),
        before=write("env", b"\xff\xfe\0"),
    ),
    Mistake(
        "a file that is not there",
        78,
        ("there is no file {dir}/env", "--env-file"),
        arguments=("start", "--env-file", "{dir}/env"),
    ),
    Mistake(
        "an unknown flag",
        2,
        ("did you mean --api-bind?", "lattice start --help"),
        arguments=("start", "--api-bnd", "x"),
    ),
    Mistake("an unknown command", 2, ("'strat'", "lattice --help"), arguments=("strat",)),
    # Paths. A file name has at most 255 bytes, and bytes on a command line need not be text.
    *(
        setting(name, f"{before}~nosuchuser/x", "~nosuchuser is the home directory of nobody", "whole path")
        for name, before in (("DATA_DIR", ""), ("LOG_DIR", ""), ("API_TOKEN_FILE", ""), ("TLS_CA_FILE", ""))
    ),
    Mistake(
        "a ticket file of an unknown user",
        78,
        ("LATTICE_JOIN", "~nosuchuser is the home directory of nobody", "write the whole path"),
        {"JOIN": "@~nosuchuser/x"},
    ),
    *(
        Mistake(
            f"a {name} that is too long, {command}",
            78,
            (f"LATTICE_{name}=xxx", "longer than this system takes", "choose a shorter one"),
            {name: "x" * 300},
            arguments=(command,),
        )
        for name, commands in (
            ("DATA_DIR", ("start", "status", "stop", "export")),
            ("LOG_DIR", ("logs",)),
            ("API_TOKEN_FILE", ("status",)),
            ("TLS_CA_FILE", ("status",)),
        )
        for command in commands
    ),
    Mistake(
        "an --env-file that is too long",
        78,
        ("there is no file xxx", "--env-file"),
        arguments=("start", "--env-file", "x" * 300),
    ),
    Mistake(
        "a --token-file that is too long",
        5,
        ("token file xxx", "File name too long"),
        arguments=("status", "--token-file", "x" * 300),
    ),
    *(
        Mistake(
            f"{what} in a directory that was removed",
            78,
            ("current directory", "change into another"),
            arguments=arguments,
            prefix=shell('mkdir gone && cd gone && rmdir ../gone && exec "$@"'),
        )
        for what, arguments in (
            ("start", ("start",)),
            ("status", ("status",)),
            ("export", ("export", "--out", "facts")),
            ("a ticket file", ("init", "--join", "@ticket")),
            ("a cluster", ("dev", "2")),
            ("a cluster's directory", ("dev", "2", "--dir", "cluster")),
        )
    ),
    *(
        Mistake(f"bytes that are no text as {what}", 1, ("\\udcff", says), arguments=arguments)
        for what, says, arguments in (
            ("a key to put", "not Unicode text", ("put", "k\udcff", "1")),
            ("a key to get", "not Unicode text", ("get", "k\udcff")),
            ("a key to delete", "not Unicode text", ("delete", "k\udcff")),
            ("a key to prove", "not Unicode text", ("proof", "k\udcff")),
            ("a prefix", "not Unicode text", ("keys", "k\udcff")),
            ("the key before", "not Unicode text", ("keys", "--after", "k\udcff")),
            ("the version before", "not Unicode text", ("history", "k", "--after", "k\udcff")),
            ("a version", "no version", ("put", "k", "1", "--if-match", "k\udcff")),
            ("a mode", "not Unicode text", ("switch", "p2p\udcff")),
            ("a new peer", "not Unicode text", ("peers", "add", "http://h\udcff")),
            ("an old peer", "not Unicode text", ("peers", "forget", "http://h\udcff")),
            ("a prefix of events", "not Unicode text", ("events", "--prefix", "k\udcff")),
            ("a type of events", "not Unicode text", ("events", "--type", "k\udcff")),
            ("an event", "no id of an event", ("events", "--after", "k\udcff")),
            ("a prefix of an export", "not Unicode text", ("export", "--prefix", "k\udcff")),
            ("a file to import", "No such file", ("import", "f\udcff")),
            ("a file of a value", "No such file", ("put", "k", "@f\udcff")),
            ("a proof", "No such file", ("verify", "f\udcff")),
        )
    ),
    Mistake("bytes that are no text as a value", 1, ("not JSON", "--text"), arguments=("put", "k", "\udcff")),
    Mistake(
        "bytes that are no text as a text", 1, ("not UTF-8",), arguments=("put", "k", "\udcff", "--text")
    ),
    Mistake(
        "bytes that are no text as a URL",
        78,
        ("--url", "printable ASCII"),
        arguments=("status", "--url", "http://h\udcff"),
    ),
    setting("NODES", "http://h\udcff:8100", "printable ASCII"),
    setting("CORS_ORIGINS", "http://h\udcff", "printable ASCII"),
    # Files to read and to write.
    Mistake(
        "a directory to import", 1, ("cannot read {dir}", "Is a directory"), arguments=("import", "{dir}")
    ),
    Mistake(
        "a file to import whose name is too long",
        1,
        ("cannot read xxx", "File name too long"),
        arguments=("import", "x" * 300),
    ),
    *(
        Mistake(f"an export to {what}", 1, ("cannot write", says), arguments=("export", *how, "--out", out))
        for how in ((), ("--sealed",))
        for what, says, out in (
            (f"a directory{' sealed' if how else ''}", "Is a directory", "{dir}"),
            (f"the current directory{' sealed' if how else ''}", "Is a directory", "."),
            (f"a name that is too long{' sealed' if how else ''}", "File name too long", "x" * 300),
            (f"no directory{' sealed' if how else ''}", "No such file or directory", "none/facts"),
            (f"a name in a file{' sealed' if how else ''}", "Not a directory", "data/identity.key/facts"),
        )
    ),
    # Standard streams that are closed, or lead to a full disk.
    Mistake(
        "a value from a closed input",
        1,
        ("not JSON",),
        arguments=("put", "k", "-"),
        prefix=shell('exec "$@" <&-'),
    ),
    Mistake(
        "a ticket from a closed input",
        78,
        ("there is no ticket in the standard input",),
        arguments=("init", "--join", "-"),
        prefix=shell('exec "$@" <&-'),
    ),
    Mistake("a closed output", 3, ("does not answer",), arguments=("status",), prefix=shell('exec "$@" >&-')),
    *(
        Mistake(
            f"{what} on a full disk",
            1,
            ("No space left on device",),
            arguments=arguments,
            prefix=shell('exec "$@" > /dev/full'),
        )
        for what, arguments in (("an export", ("export",)), ("a ticket", ("invite",)))
        if Path("/dev/full").exists()
    ),
    # Tickets.
    Mistake("no ticket", 78, ("not a ticket", "lattice1-"), {"JOIN": "hello"}),
    Mistake(
        "a truncated ticket", 78, ("cut off or mistyped", "copy the whole word"), {"JOIN": "{cut ticket}"}
    ),
    Mistake(
        "a truncated ticket on a new machine",
        78,
        ("cut off or mistyped", "copy the whole word"),
        {"JOIN": "{cut ticket}", "DATA_DIR": "{dir}/new"},
    ),
    Mistake(
        "a ticket of another network",
        78,
        ("of another network", "choose another LATTICE_DATA_DIR"),
        {"JOIN": "{foreign ticket}"},
    ),
    Mistake(
        "init with a ticket of another network",
        78,
        ("of another network", "choose another LATTICE_DATA_DIR"),
        arguments=("init", "--join", "{foreign ticket}"),
    ),
    Mistake(
        "a ticket file that is not there",
        78,
        ("cannot read the ticket", "lattice invite"),
        {"JOIN": "@{dir}/ticket"},
    ),
    Mistake(
        "an empty ticket file",
        78,
        ("there is no ticket in {dir}/ticket", "lattice invite"),
        {"JOIN": "@{dir}/ticket"},
        before=write("ticket", b"\n"),
    ),
    # The files of the node.
    Mistake(
        "identity.key unreadable",
        78,
        ("identity.key is not readable", "run as its owner, or chown it"),
        before=chmod("data/identity.key", 0),
        undo=chmod("data/identity.key", 0o600),
        prefix=LIKE_A_USER,
    ),
    Mistake(
        "identity.key readable by all",
        78,
        ("readable by others", "chmod 600 {dir}/data/identity.key"),
        before=chmod("data/identity.key", 0o644),
        undo=chmod("data/identity.key", 0o600),
    ),
    Mistake(
        "network.json readable by all",
        78,
        ("readable by others", "chmod 600 {dir}/data/network.json"),
        before=chmod("data/network.json", 0o640),
        undo=chmod("data/network.json", 0o600),
    ),
    Mistake(
        "network.json unreadable",
        78,
        ("network.json is not readable", "run as its owner"),
        before=chmod("data/network.json", 0),
        undo=chmod("data/network.json", 0o600),
        prefix=LIKE_A_USER,
    ),
    Mistake(
        "api.token unreadable",
        78,
        ("LATTICE_API_TOKEN_FILE", "run as its owner, or delete it"),
        before=chmod("data/api.token", 0),
        undo=chmod("data/api.token", 0o600),
        prefix=LIKE_A_USER,
    ),
    Mistake(
        "identity.key damaged",
        78,
        ("identity.key is damaged", "restore it from a backup"),
        before=in_turn(
            aside("identity.key"), write("data/identity.key", b"zz\n"), chmod("data/identity.key", 0o600)
        ),
        undo=back("identity.key"),
    ),
    Mistake(
        "network.json damaged",
        78,
        ("network.json is damaged", "join again with a ticket"),
        before=in_turn(
            aside("network.json"), write("data/network.json", b"{"), chmod("data/network.json", 0o600)
        ),
        undo=back("network.json"),
    ),
    Mistake(
        "identity.key gone",
        78,
        ("identity.key is missing beside existing data", "restore it"),
        before=aside("identity.key"),
        undo=back("identity.key"),
    ),
    Mistake(
        "identity.key and network.json gone",
        78,
        ("identity.key is missing beside existing data", "restore it"),
        before=aside("identity.key", "network.json"),
        undo=back("identity.key", "network.json"),
    ),
    Mistake(
        "network.json gone",
        78,
        ("network.json is missing beside existing data", "join its network again"),
        before=aside("network.json"),
        undo=back("network.json"),
    ),
    Mistake(
        "init where network.json is gone",
        78,
        ("network.json is missing beside existing data", "join its network again"),
        arguments=("init",),
        before=aside("network.json"),
        undo=back("network.json"),
    ),
    Mistake(
        "another network joined where network.json is gone",
        78,
        ("of another network", "choose another LATTICE_DATA_DIR"),
        arguments=("init", "--join", "{foreign ticket}"),
        before=aside("network.json"),
        undo=back("network.json"),
    ),
    Mistake(
        "not a network yet",
        78,
        ("there is no node in {dir}/new", "run `lattice init`"),
        {"DATA_DIR": "{dir}/new"},
        arguments=("invite",),
    ),
    Mistake(
        "identity alone",
        78,
        ("there is no node in", "run `lattice init`"),
        before=aside("network.json", "ledger.sqlite"),
        undo=back("network.json", "ledger.sqlite"),
    ),
    Mistake(
        "missing data directory, checked",
        78,
        ("there is no node in {dir}/new", "run `lattice init`"),
        {"DATA_DIR": "{dir}/new"},
        arguments=("fsck",),
    ),
    Mistake(
        "missing data directory, stopped",
        3,
        ("no node is running in {dir}/new",),
        {"DATA_DIR": "{dir}/new"},
        arguments=("stop",),
    ),
    Mistake(
        "the data directory is a file",
        78,
        ("{dir}/file cannot be used", "choose another LATTICE_DATA_DIR"),
        {"DATA_DIR": "{dir}/file"},
        before=write("file", b""),
    ),
    Mistake(
        "data directory not writable",
        78,
        ("cannot be written by this user", "choose another LATTICE_DATA_DIR"),
        before=chmod("data", 0o500),
        undo=chmod("data", 0o700),
        prefix=LIKE_A_USER,
    ),
    Mistake(
        "data directory not readable",
        78,
        ("{dir}/data cannot be used", "this user may read and write"),
        before=chmod("data", 0),
        undo=chmod("data", 0o700),
        prefix=LIKE_A_USER,
    ),
    Mistake(
        "log directory not writable",
        78,
        ("log directory {dir}/log/in cannot be written", "LATTICE_LOG_DIR"),
        {"LOG_DIR": "{dir}/log/in"},
        before=write("log", b""),
    ),
    Mistake(
        "read-only disk",
        78,
        ("mounted read-only", "choose another LATTICE_DATA_DIR"),
        prefix=(*READ_ONLY, "{dir}/data"),
        needs_root=True,
    ),
    # The store.
    Mistake(
        "a page of garbage in the heads",
        1,
        ("damaged", "Nothing was changed", "move its store file (not identity.key) aside"),
        before=garble_table("logs"),
        damaged=True,
    ),
    Mistake(
        "a page of garbage in the state tree",
        1,
        ("damaged", "move its store file (not identity.key) aside"),
        before=garble_table("leaf_log"),
        damaged=True,
    ),
    Mistake(
        "a truncated store",
        1,
        ("damaged", "move its store file (not identity.key) aside"),
        before=truncate(0.5),
        damaged=True,
    ),
    Mistake(
        "an empty store",
        1,
        ("not a store of this program", "move its store file"),
        before=truncate(0),
        damaged=True,
    ),
    Mistake(
        "not a database",
        1,
        ("not a database", "move its store file"),
        before=write("data/ledger.sqlite", b"hello\n" * 9999),
        damaged=True,
    ),
    Mistake(
        "the store gone, its log there",
        1,
        ("is gone, and its log", "Nothing was changed"),
        before=in_turn(aside("ledger.sqlite"), write("data/ledger.sqlite-wal", b"x" * 99)),
        undo=in_turn(lambda bench: (bench.data / "ledger.sqlite-wal").unlink(), back("ledger.sqlite")),
    ),
    Mistake(
        "a store of a newer program",
        78,
        ("knows formats up to", "Nothing was changed", "Start the newer program again"),
        before=user_version(99),
        undo=user_version(SCHEMA_VERSION),
    ),
    Mistake(
        "a store that is not readable",
        78,
        ("cannot be written by this user", "Run as its owner"),
        before=chmod("data/ledger.sqlite", 0),
        undo=chmod("data/ledger.sqlite", 0o600),
        prefix=LIKE_A_USER,
    ),
    Mistake(
        "a store that is not writable",
        78,
        ("cannot be written by this user", "make it and its directory writable"),
        before=chmod("data/ledger.sqlite", 0o400),
        undo=chmod("data/ledger.sqlite", 0o600),
        prefix=LIKE_A_USER,
    ),
    Mistake(
        "a store of another network",
        78,
        ("is of another network", "Restore the network.json"),
        before=in_turn(aside("ledger.sqlite"), foreign_store),
        undo=back("ledger.sqlite"),
    ),
    # Commands to a node.
    Mistake(
        "a write to a node that is not running",
        3,
        ("does not answer", "lattice start"),
        arguments=("put", "k", "1"),
    ),
    Mistake("a malformed --url", 78, ("--url hello", "http://"), arguments=("status", "--url", "hello")),
    Mistake(
        "a token file that is not there",
        5,
        ("token file {dir}/none cannot be read", "api.token"),
        arguments=("status", "--token-file", "{dir}/none"),
    ),
]


@dataclass(frozen=True)
class Good:
    """A good node, stopped, that every row copies; and what it holds."""

    node: LocalNode
    truth: Truth
    ticket: str
    foreign: LocalNode
    foreign_ticket: str
    busy_port: int


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Good]:
    base = tmp_path_factory.mktemp("good")
    (node,) = make_nodes(base, ["nodeA"], environ=HTTP_ONLY)
    (foreign,) = make_nodes(base / "foreign", ["nodeF"], environ=HTTP_ONLY)
    with running([node, foreign]):
        for number in range(KEYS):
            node.send(calls.put(f"k/{number}", json.dumps({"n": number}).encode()))
        foreign.send(calls.put("k", b"1"))
    tickets = [each.command("invite").split()[-1] for each in (node, foreign)]
    truth = Truth.of(node.data_dir)
    assert len(truth.entries) == KEYS
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        yield Good(node, truth, tickets[0], foreign, tickets[1], taken.getsockname()[1])


@pytest.fixture
def bench(good: Good, tmp_path: Path) -> Bench:
    return make_bench(good, tmp_path)


def make_bench(good: Good, directory: Path) -> Bench:
    api, sync, p2p = free_ports(3)
    node = replace(good.node, directory=directory, api_port=api, sync_port=sync, p2p_port=p2p, process=None)
    shutil.copytree(good.node.data_dir, node.data_dir)
    secrets = [(node.data_dir / name).read_text().strip() for name in ("identity.key", "api.token")]
    secrets += json.loads((node.data_dir / "network.json").read_text())["keys"].values()
    secrets += [good.ticket[:-9], good.foreign_ticket]
    return Bench(
        directory,
        node,
        good.ticket,
        good.foreign_ticket,
        good.foreign.data_dir / "ledger.sqlite",
        good.busy_port,
        tuple(secrets),
    )


@dataclass(frozen=True)
class Outcome:
    bench: Bench
    before: dict[str, str]
    code: int


def attempt(bench: Bench, mistake: Mistake) -> Outcome:
    if mistake.before is not None:
        mistake.before(bench)
    before = fingerprints(bench.data)
    return Outcome(bench, before, bench.run(mistake.arguments, mistake.settings, mistake.prefix))


@pytest.fixture(scope="module")
def outcomes(
    good: Good, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Future[Outcome]]]:
    """The rows that were chosen, two processes at a time; each test waits for its own."""
    asked_for = {
        item.callspec.params.get("mistake") for item in request.session.items if hasattr(item, "callspec")
    }
    with ThreadPoolExecutor(2) as pool:
        yield {
            mistake.name: pool.submit(attempt, make_bench(good, tmp_path_factory.mktemp("bench")), mistake)
            for mistake in MISTAKES
            if mistake in asked_for and possible(mistake) is None
        }


def possible(mistake: Mistake) -> str | None:
    """Why a row cannot be tried here; None if it can."""
    if mistake.needs_root and not IS_ROOT:
        return "only root may mount"
    if mistake.prefix == LIKE_A_USER and not CAN_BE_DENIED:
        return "setpriv is missing, and root passes over the rights of files"
    return None


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name)
def test_a_mistake_is_told_in_one_line_and_damages_nothing(
    mistake: Mistake, outcomes: dict[str, Future[Outcome]], good: Good
) -> None:
    if (reason := possible(mistake)) is not None:
        pytest.skip(reason)
    outcome = outcomes[mistake.name].result()
    bench, code = outcome.bench, outcome.code

    assert code == mistake.code, bench.said
    assert code in exit_codes(), f"{REFERENCE.name} does not say what {code} means"
    assert "Traceback" not in bench.said
    (line,) = bench.complaints()
    assert [words for words in map(bench.fill, mistake.says) if words not in line] == [], line
    assert not [secret for secret in bench.secrets if secret in bench.said]
    assert fingerprints(bench.data) == outcome.before
    if mistake.undo is not None:
        mistake.undo(bench)
    if not mistake.damaged:
        assert Truth.of(bench.data) == good.truth
    assert not (bench.directory / "new").exists()


def test_there_are_rows_enough() -> None:
    assert len(MISTAKES) >= 30
    assert len({mistake.name for mistake in MISTAKES}) == len(MISTAKES)


def test_the_node_starts_again_once_the_mistake_is_gone(bench: Bench, good: Good) -> None:
    """The control of all rows: the same directory, without a mistake, is a good node."""
    assert bench.run(("start",), {"API_BIND": f"127.0.0.1:{good.busy_port}"}) == 78
    bench.node.start()
    try:
        state = bench.node.state()
        assert (state.entry_count, state.state_size) == (KEYS, KEYS)
        assert (bytes.fromhex(state.merkle_root), bytes.fromhex(state.log_root)) == good.truth.roots
    finally:
        bench.node.stop()


def test_the_reference_names_every_code() -> None:
    kinds = {code: (kind.status, kind.exit_code) for code, kind in CODES.items()}
    assert error_codes() == kinds
    assert {exit_code for _, exit_code in kinds.values()} | {0, 2} == set(exit_codes())
    help_text = subprocess.run(
        [sys.executable, "-m", "lattice", "--help"], capture_output=True, text=True, check=True
    ).stdout
    shown = " ".join(help_text.split())
    assert [f"{code} {text}" for code, text in exit_codes().items() if f"{code} {text}" not in shown] == []


# What starts all the same, and says so.


@contextmanager
def started(bench: Bench, **settings: str) -> Iterator[LocalNode]:
    """The bench's node, running with these settings."""
    bench.node.environ = {
        **bench.node.environ,
        **{f"LATTICE_{name}": bench.fill(value) for name, value in settings.items()},
    }
    bench.node.start()
    try:
        yield bench.node
    finally:
        bench.node.stop()


def loud_lines(node: LocalNode) -> list[str]:
    return [line for line in node.log_text().splitlines() if re.search(r" (WARNING|ERROR) \[", line)]


def test_a_second_process_on_one_data_directory_is_refused(bench: Bench, good: Good) -> None:
    with started(bench) as node:
        ports = free_ports(2)
        second = {"API_BIND": f"127.0.0.1:{ports[0]}", "SYNC_BIND": f"127.0.0.1:{ports[1]}"}
        assert bench.run(("start",), {**second, "LOG_DIR": "{dir}/logs2"}) == 78
        (line,) = bench.complaints()
        assert f"is in use by process {node.pid}" in line
        assert "Stop that node, or give this one a directory of its own" in line
        assert node.state().entry_count == KEYS
    assert Truth.of(bench.data) == good.truth


def test_a_busy_p2p_port_is_an_alarm_and_http_carries_alone(bench: Bench, good: Good) -> None:
    with started(bench, P2P_ENABLED="true", P2P_LISTEN="/ip4/127.0.0.1/tcp/{busy}") as node:
        status = node.status()
        (line,) = loud_lines(node)
        for text in (line, status.alarms[0]):
            assert f"/ip4/127.0.0.1/tcp/{good.busy_port}" in text
            assert "choose another port in LATTICE_P2P_LISTEN" in text
        assert status.error is not None
        assert not status.started
        node.send(calls.put("k/0", b"2"))


def test_an_unknown_name_in_the_environment_is_a_warning(bench: Bench) -> None:
    with started(bench, NODES_NAME="x") as node:
        (line,) = loud_lines(node)
        assert (
            "LATTICE_NODES_NAME in the environment is not a setting: did you mean LATTICE_NODE_NAME?" in line
        )
        assert node.state().entry_count == KEYS


def test_a_missing_data_directory_without_a_ticket_is_a_loud_new_network(bench: Bench, good: Good) -> None:
    with started(bench, DATA_DIR="{dir}/new") as node:
        (line,) = loud_lines(node)
        assert "A NEW NETWORK WAS MADE" in line
        assert "delete the data directory and run `lattice init --join TICKET`" in line
        assert node.state().entry_count == 0
    assert Truth.of(bench.data) == good.truth


@pytest.mark.skipif(FAKETIME is None, reason="libfaketime is not installed")
def test_a_clock_that_was_never_set_is_an_alarm_and_loses_no_order(bench: Bench) -> None:
    bench.node.prefix = ("env", f"LD_PRELOAD={FAKETIME}", "FAKETIME=@1999-01-01 00:00:00")
    with started(bench) as node:
        wait_for("the alarm", lambda: node.status().alarms != [], within_s=15)
        (line,) = loud_lines(node)
        assert "this machine's clock says 1999-01-0" in line
        assert "set the clock and keep it by NTP" in line
        before = node.send(calls.get("k/0")).clock
        node.send(calls.put("k/0", b'"later"'))
        after = node.send(calls.get("k/0"))
        assert after.value == "later"
        assert [int(part) for part in after.clock.split("-")] > [int(part) for part in before.split("-")]


# A full disk.


@pytest.fixture
def small_disk(bench: Bench) -> Iterator[Path]:
    """The data on a disk of 8 MiB; the path of a file to fill it with."""
    if not IS_ROOT:
        pytest.skip("only root may mount")
    bench.data.rename(bench.directory / "kept")
    bench.data.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m,mode=700", "tmpfs", str(bench.data)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        shutil.copytree(bench.directory / "kept", bench.data, dirs_exist_ok=True)
        yield bench.data / "ballast"
    finally:
        subprocess.run(["umount", str(bench.data)], check=True)


def fill_up(ballast: Path, leave: int) -> None:
    """Fill the disk but for so many bytes."""
    with ballast.open("wb", buffering=0) as file:
        file.write(bytes(shutil.disk_usage(ballast.parent).free - leave))
    assert shutil.disk_usage(ballast.parent).free == leave


def put_status(node: LocalNode, key: str) -> tuple[int, dict[str, object]]:
    answer = httpx.put(f"{node.url}/api/lattice/keys/{key}", content=b"[1]", trust_env=False)
    return answer.status_code, answer.json()


@pytest.mark.parametrize(("reserve", "leave"), [("2MiB", 1 << 20), ("0", 0)])
def test_a_full_disk_answers_507_and_recovers_by_itself(
    reserve: str, leave: int, bench: Bench, small_disk: Path, good: Good
) -> None:
    """With the reserve, before the disk is full; without one, when the commit itself fails."""
    with started(bench, DISK_RESERVE=reserve) as node:
        assert put_status(node, "before")[0] == 201
        fill_up(small_disk, leave)
        refused = 0

        def is_refused() -> bool:
            nonlocal refused
            status, body = put_status(node, f"full/{refused}")
            if status == 201:  # until the reserve is looked at, or while the last page has room
                refused += 1
                return False
            assert (status, body["code"], body["success"]) == (507, "no_space", False)
            assert "free" in str(body["detail"]).lower()
            return True

        wait_for("507", is_refused, within_s=10, step_s=0.05)
        assert httpx.get(f"{node.url}/readyz", trust_env=False).status_code == 503
        assert node.send(calls.get("before")).value == [1]
        (alert,) = [line for line in node.log_text().splitlines() if "[ALERT]" in line]
        assert "free" in alert.lower()
        small_disk.unlink()
        wait_for("room again", lambda: put_status(node, "after")[0] in (200, 201), within_s=15)
        wait_for("no alarm", lambda: not node.status().alarms, within_s=15)
        assert node.state().entry_count == KEYS + 2 + refused
    assert Truth.of(bench.data).entries > good.truth.entries


# Calls to a running node.


@pytest.fixture(scope="module")
def asked(good: Good, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalNode]:
    directory = tmp_path_factory.mktemp("asked")
    api, sync, p2p = free_ports(3)
    node = replace(good.node, directory=directory, api_port=api, sync_port=sync, p2p_port=p2p, process=None)
    shutil.copytree(good.node.data_dir, node.data_dir)
    with running([node]):
        yield node


JSON = {"content-type": "application/json"}
CALLS = [
    (
        "bad token",
        "PUT",
        "keys/k",
        b"1",
        {"authorization": "Bearer nonsense"},
        401,
        "unauthorized",
        "LATTICE_API_TOKEN_FILE",
    ),
    (
        "no such mode",
        "POST",
        "sync/switch?mode=fast",
        b"",
        {},
        400,
        "bad_mode",
        "allowed are auto, p2p and http",
    ),
    ("no mode at all", "POST", "sync/switch", b"", {}, 400, "bad_mode", "auto, p2p and http"),
    (
        "foreign host",
        "PUT",
        "keys/k",
        b"1",
        {"host": "evil.example"},
        400,
        "bad_host",
        "LATTICE_ALLOWED_HOSTS",
    ),
    (
        "foreign origin",
        "PUT",
        "keys/k",
        b"1",
        {"origin": "https://evil.example"},
        403,
        "bad_origin",
        "LATTICE_CORS_ORIGINS",
    ),
    (
        "through a proxy without a token",
        "PUT",
        "keys/k",
        b"1",
        {"x-forwarded-for": "192.0.2.1"},
        401,
        "unauthorized",
        "Bearer",
    ),
    ("no JSON", "PUT", "keys/k", b"{", {}, 400, "bad_value", "JSON"),
    ("a key too long", "PUT", "keys/" + "k" * 1025, b"1", {}, 400, "bad_key", "1024"),
    (
        "a value too large",
        "PUT",
        "keys/k",
        b'"' + b"x" * (129 << 10) + b'"',
        {},
        413,
        "too_large",
        "131072 are allowed",
    ),
    (
        "an op that is none",
        "POST",
        "entries",
        b'{"ops":[{"op":"pat","key":"k"}]}',
        JSON,
        400,
        "bad_request",
        "put",
    ),
    ("no such key", "GET", "keys/none", b"", {}, 404, "not_found", "none"),
    ("no such route", "GET", "kyes/k", b"", {}, 404, "not_found", "/docs"),
    ("wrong method", "PATCH", "keys/k", b"1", {}, 405, "method_not_allowed", "GET"),
    (
        "a stale version",
        "PUT",
        "keys/k/0",
        b"1",
        {"if-match": '"' + "0" * 64 + '.0"'},
        412,
        "precondition_failed",
        "again",
    ),
    (
        "a peer that is no address",
        "POST",
        "peers",
        b'{"address":"hello"}',
        JSON,
        400,
        "bad_request",
        "a base URL",
    ),
]


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status", "code", "remedy"),
    [row[1:] for row in CALLS],
    ids=[row[0] for row in CALLS],
)
def test_a_wrong_call_is_answered_with_what_to_do(
    method: str, path: str, body: bytes, headers: dict[str, str], status: int, code: str, remedy: str,
    asked: LocalNode, good: Good,
) -> None:  # fmt: skip
    url = f"{asked.url}/api/lattice/{path}"
    answer = httpx.request(method, url, content=body, headers=headers, trust_env=False)
    problem = answer.json()
    assert (answer.status_code, problem["code"], problem["success"]) == (status, code, False)
    assert code == "method_not_allowed" or error_codes()[code][0] == status
    assert remedy in problem.get("detail", "") + problem.get("message", ""), problem
    assert "Traceback" not in answer.text
    state = asked.state()
    assert (bytes.fromhex(state.merkle_root), bytes.fromhex(state.log_root)) == good.truth.roots
    assert " ERROR [" not in asked.log_text()


@pytest.mark.parametrize(
    ("code", "says", "arguments"),
    [
        (5, "token", ("put", "k", "1", "--token-file", "{dir}/wrong")),
        (1, "JSON", ("put", "k", "{")),
        (1, "none", ("get", "none")),
    ],
    ids=["a wrong token", "no JSON", "no such key"],
)
def test_a_wrong_command_to_a_running_node(
    code: int, says: str, arguments: tuple[str, ...], asked: LocalNode, bench: Bench
) -> None:
    (bench.directory / "wrong").write_text("nonsense\n")
    url = f"127.0.0.1:{asked.api_port}"
    assert bench.run(arguments, {"API_BIND": url}) == code, bench.said
    (line,) = bench.complaints()
    assert says in line
    assert code in exit_codes()
