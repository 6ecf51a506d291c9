"""What the kernel was asked: between the read of a PUT and the write of its 201 stands a completed sync.

Separate from kills, which prove nothing here: the page cache outlives the process.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from lattice.client import calls
from lattice.testing.cluster import make_nodes, wait_for

from .process_kit import HTTP_ONLY

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

PUTS = 25
CALLS = "trace=recvfrom,read,sendto,write,writev,sendmsg,pwrite64,fdatasync,fsync"

strace = shutil.which("strace")

_LINE = re.compile(r"^(?P<thread>\d+)\s+(?P<call>.*)$")
_REQUEST = re.compile(r'^(?:recvfrom|read)\((?P<fd>\d+)<[^>]*>, "PUT (?P<target>\S+)')
_ANSWER = re.compile(r'^(?:sendto|write|writev|sendmsg)\((?P<fd>\d+)<[^>]*>, .*"HTTP/1\.1 201')
_WRITTEN = re.compile(r"^pwrite64\(\d+<[^>]*-wal>.* = \d+$")
_SYNCED = re.compile(r"^f(?:data)?sync\(\d+<[^>]*-wal>.*\) += 0$")


def whole_calls(lines: list[str]) -> list[tuple[int, str]]:
    """The calls in the order in which they ended, each with the number of the line where it began;
    what strace shows in two parts is put together.

    An answer counts where it begins: from then on the client may have the bytes.
    """
    begun: dict[str, tuple[int, str]] = {}
    found = []
    for number, line in enumerate(lines):
        match = _LINE.match(line)
        if match is None:
            continue
        thread, call = match["thread"], match["call"]
        if call.endswith("<unfinished ...>"):
            begun[thread] = number, call.removesuffix("<unfinished ...>").rstrip()
            if _ANSWER.match(call):
                found.append((number, call))
        elif call.startswith("<... "):
            began, start = begun.pop(thread, (number, ""))
            if not _ANSWER.match(start):
                found.append((began, start + call.partition("resumed>")[2]))
        else:
            found.append((number, call))
    return found


def unsynced_answers(lines: list[str]) -> tuple[int, list[str]]:
    """How many PUTs were answered by 201, and what is wrong with those that were answered without
    their log having been written, and then synced, after the request was read."""
    answered = 0
    faults = []
    waiting: dict[str, str] = {}
    log, written_at = "untouched", 0
    for began, call in whole_calls(lines):
        if match := _REQUEST.match(call):
            waiting[match["fd"]] = match["target"]
            log = "untouched"
        elif _WRITTEN.match(call):
            log, written_at = "written", began
        elif _SYNCED.match(call) and log == "written" and began > written_at:
            log = "synced"
        elif match := _ANSWER.match(call):
            answered += 1
            target = waiting.pop(match["fd"], "a request that was not seen")
            if log != "synced":
                faults.append(f"{target} was answered when the log was {log}")
    return answered, faults


@pytest.mark.skipif(strace is None, reason="strace is not installed")
def test_every_201_follows_a_completed_sync_of_its_write(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    (node,) = make_nodes(tmp_path, ["node"], environ=HTTP_ONLY)
    # -DD: the node stays our child and the tracer leaves the group that a signal goes to.
    node.prefix = (str(strace), "-DD", "-f", "-y", "-s", "200", "-o", str(trace), "-e", CALLS)
    node.start()
    try:
        with node.client() as client:
            for number in range(PUTS):
                client.send(calls.put(f"traced/{number}", b'"value"'))
    finally:
        node.stop()
    wait_for("the trace is whole", lambda: "+++ exited with 0 +++" in last_line(trace), within_s=10)
    lines = trace.read_text(errors="replace").splitlines()
    assert unsynced_answers(lines) == (PUTS, [])

    # The control: the same trace without its syncs, and with syncs that failed.
    without = [line for line in lines if "sync" not in line]
    answered, faults = unsynced_answers(without)
    assert (answered, len(faults)) == (PUTS, PUTS)
    failing = [re.sub(r"(f(?:data)?sync.*\) += )0$", r"\g<1>-1 EIO", line) for line in lines]
    assert len(unsynced_answers(failing)[1]) == PUTS


def last_line(path: Path) -> str:
    return path.read_text(errors="replace").rstrip().rpartition("\n")[2]


REQUEST = '7 recvfrom(9<socket:[1]>, "PUT /api/lattice/keys/a HTTP/1.1"..., 65536, 0, NULL, NULL) = 99'
WRITE = '8 pwrite64(5</d/ledger.sqlite-wal>, "x"..., 4096, 32) = 4096'
SYNC = "8 fdatasync(5</d/ledger.sqlite-wal>) = 0"
ANSWER = '7 sendto(9<socket:[1]>, "HTTP/1.1 201 \\r\\n"..., 300, 0, NULL, 0) = 300'
TORN_SYNC = ["6 fdatasync(5</d/ledger.sqlite-wal> <unfinished ...>", "6 <... fdatasync resumed>) = 0"]
TORN_ANSWER = ['7 sendto(9<socket:[1]>, "HTTP/1.1 201 "... <unfinished ...>', "7 <... sendto resumed>) = 300"]


@pytest.mark.parametrize(
    ("lines", "faults"),
    [
        ([REQUEST, WRITE, SYNC, ANSWER], 0),
        ([REQUEST, WRITE, *TORN_SYNC, ANSWER], 0),
        ([REQUEST, WRITE, ANSWER, SYNC], 1),
        ([REQUEST, WRITE, TORN_SYNC[0], ANSWER, TORN_SYNC[1]], 1),
        ([REQUEST, WRITE, TORN_ANSWER[0], SYNC, TORN_ANSWER[1]], 1),
        ([REQUEST, SYNC, WRITE, ANSWER], 1),
        ([REQUEST, TORN_SYNC[0], WRITE, TORN_SYNC[1], ANSWER], 1),
        ([WRITE, SYNC, REQUEST, ANSWER], 1),
        ([REQUEST, WRITE, SYNC.replace("-wal", ""), ANSWER], 1),
        ([REQUEST, WRITE, SYNC.replace("= 0", "= -1 EIO (Input/output error)"), ANSWER], 1),
    ],
)
def test_the_reader_of_traces_notices_a_missing_or_late_sync(lines: list[str], faults: int) -> None:
    answered, found = unsynced_answers(lines)
    assert (answered, len(found)) == (1, faults)
