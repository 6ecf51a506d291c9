"""Export and import in process: what of a store becomes lines, and what of a file becomes writes."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import count
from pathlib import Path

import pytest

from lattice.config import load
from lattice.core.draft import OpDraft
from lattice.core.engine import Append, Engine, EngineInput, Gossiped
from lattice.core.entry import OpKind, encode_op, make_entry, make_seal
from lattice.core.identity import NodeKey
from lattice.core.messages import Entries
from lattice.node.home import load_home
from lattice.storage.datadir import open_store
from lattice.storage.port import Store
from tests.integration.cli.cli_kit import ServedNode, Shell, served_node, write_env

NOW_MS = 1_790_000_000_000


class Hand:
    """Writes into the store of a node that does not run, at any time, as that node or as another."""

    def __init__(self, key: NodeKey, network_id: bytes, store: Store) -> None:
        self._network_id = network_id
        self._store = store
        self._engine = Engine(key, network_id, store)
        self._tokens = count(1)

    def writes(self, *drafts: OpDraft, at_ms: int = NOW_MS) -> None:
        self._commit(Append(next(self._tokens), drafts, (), b"", b""), at_ms)

    def receives(self, *ops: bytes, written_ms: int = NOW_MS, at_ms: int = NOW_MS) -> None:
        """An entry of another author, by a clock of its own."""
        number = next(self._tokens)
        author = NodeKey(number.to_bytes(32, "big"))
        entry = make_entry(
            self._network_id,
            author=author.public_key,
            epoch=1,
            seq=0,
            prev=bytes(32),
            clock=written_ms << 16,
            ops=ops,
        )
        seal = make_seal(author, self._network_id, entry.header, entry.id)
        message = Entries(((entry.header_bytes, entry.ops),), (seal,))
        self._commit(Gossiped(number, author.public_key, "gossip", message), at_ms)

    def _commit(self, event: EngineInput, at_ms: int) -> None:
        self._engine.handle(event, now_ms=at_ms, entropy=next(self._tokens).to_bytes(8, "big"))
        batch = self._engine.settle()
        assert batch is not None
        self._store.commit(batch)
        self._engine.committed()


@contextmanager
def hand(shell: Shell) -> Iterator[Hand]:
    """The store of the shell's own node, made if need be."""
    shell.ok("init")
    settings = load(env_file=shell.env_file, environ={})
    home = load_home(settings)
    store = open_store(settings.data_dir, home.network_id)
    try:
        yield Hand(home.key, home.network_id, store)
    finally:
        store.close()


def put(key: str, value: bytes) -> bytes:
    return encode_op(OpKind.PUT, key.encode(), value=value)


def lines_of(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize(
    "value",
    [
        b"[" * 300 + b"]" * 300,  # deeper than what can be written as a line
        b"[" * 65 + b"]" * 65,  # deeper than what an import takes
        b"123456789012345678901234567890",
        b'{"n": [18446744073709551616]}',
        b"NaN",
        b'"\xff"',
        b"[" + b",".join([b"1e15"] * 9000) + b"]",  # written out in full it is over the limit
    ],
    ids=["300 deep", "65 deep", "30 digits", "65 bits", "NaN", "no UTF-8", "long"],
)
def test_a_value_that_no_import_would_take_is_left_out_and_named(
    value: bytes, lonely_shell: Shell, tmp_path: Path
) -> None:
    with hand(lonely_shell) as store:
        store.receives(put("strange", value))
        store.writes(OpDraft(OpKind.PUT, b"good", b'{"n": 9007199254740992}'))
    out = tmp_path / "facts.jsonl"
    lonely_shell.ok("export", "--out", str(out))
    assert [(line["key"], line["value"]) for line in lines_of(out)] == [("good", {"n": 2**53})]
    assert "the value of 'strange' is not JSON" in lonely_shell.err
    assert "1 key exported" in lonely_shell.err


DAY_MS = 86_400_000


def moment(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat()


def test_since_goes_by_the_arrival_and_not_by_the_clock_of_the_author(
    lonely_shell: Shell, tmp_path: Path
) -> None:
    out = tmp_path / "facts.jsonl"
    with hand(lonely_shell) as store:
        store.receives(put("ahead", b"1"), written_ms=NOW_MS + DAY_MS, at_ms=NOW_MS - 2 * DAY_MS)
        store.receives(put("old", b"1"), put("also old", b"2"), at_ms=NOW_MS - 2 * DAY_MS)
        store.receives(put("late", b"1"), written_ms=NOW_MS - 9 * DAY_MS, at_ms=NOW_MS)
        store.writes(OpDraft(OpKind.PUT, b"own", b"1"), at_ms=NOW_MS)
    for since, keys in (
        (NOW_MS, ["late", "own"]),
        (NOW_MS - DAY_MS, ["late", "own"]),
        (NOW_MS - 2 * DAY_MS, ["ahead", "also old", "late", "old", "own"]),
        (NOW_MS + 1, []),
    ):
        lonely_shell.ok("export", "--since", moment(since), "--out", str(out))
        assert [line["key"] for line in lines_of(out)] == keys
        assert "left out" not in lonely_shell.err


def test_since_says_how_many_counters_it_leaves_out(lonely_shell: Shell, tmp_path: Path) -> None:
    out = tmp_path / "facts.jsonl"
    with hand(lonely_shell) as store:
        for amount in (5, 2, -7):
            store.writes(OpDraft(OpKind.ADD, b"zero", b"", None, amount))
        store.writes(OpDraft(OpKind.ADD, b"sum", b"", None, -3))
        store.writes(OpDraft(OpKind.PUT, b"sum", b'"and a value"'))
        store.writes(OpDraft(OpKind.ADD, b"elsewhere", b"", None, 1))
    lonely_shell.ok("export", "--since", moment(NOW_MS), "--out", str(out))
    assert [(line["op"], line["key"]) for line in lines_of(out)] == [("put", "sum")]
    assert "3 counters are left out" in lonely_shell.err
    lonely_shell.ok("export", "--since", moment(NOW_MS), "--prefix", "z", "--out", str(out))
    assert "1 counter is left out" in lonely_shell.err
    lonely_shell.ok("export", "--out", str(out))
    assert "left out" not in lonely_shell.err
    told = [(line["key"], line.get("amount", line.get("value"))) for line in lines_of(out)]
    assert told == [("elsewhere", 1), ("sum", "and a value"), ("sum", -3), ("zero", 0)]


GOOD = b'{"op":"put","key":"good","value":1}\n'
NO_FACTS = {
    "op a list": b'{"op":[],"key":"a"}',
    "op an object": b'{"op":{"put":1},"key":"a"}',
    "op null": b'{"op":null,"key":"a"}',
    "op a number": b'{"op":1,"key":"a"}',
    "op true": b'{"op":true,"key":"a"}',
    "op unknown": b'{"op":"take","key":"a"}',
    "no op": b'{"key":"a","value":1}',
    "a list": b"[]",
    "a list of ops": b'[{"op":"delete","key":"a"}]',
    "a number": b"7",
    "a text": b'"put"',
    "null": b"null",
    "no JSON": b"put a 1",
    "half an object": b'{"op":"put","key":"a","value":1',
    "two objects": b'{"op":"delete","key":"a"} {"op":"delete","key":"b"}',
    "NUL": b"\0",
    "no UTF-8": b'{"op":"put","key":"a","value":"\xff"}',
    "key no UTF-8": b'{"op":"put","key":"\xff","value":1}',
    "key half a surrogate pair": b'{"op":"put","key":"\\ud800","value":1}',
    "key absent": b'{"op":"put","value":1}',
    "key a number": b'{"op":"put","key":1,"value":1}',
    "key null": b'{"op":"delete","key":null}',
    "key a list": b'{"op":"add","key":["a"],"amount":1}',
    "key empty": b'{"op":"put","key":"","value":1}',
    "key too long": b'{"op":"put","key":"%s","value":1}' % (b"k" * 1025),
    "value absent": b'{"op":"put","key":"a"}',
    "value NaN": b'{"op":"put","key":"a","value":NaN}',
    "value infinite": b'{"op":"put","key":"a","value":1e400}',
    "value too large": b'{"op":"put","key":"a","value":"%s"}' % (b"v" * (129 << 10)),
    "value too large once written out": b'{"op":"put","key":"a","value":[%s]}' % b",".join([b"1e15"] * 9000),
    "value 65 deep": b'{"op":"put","key":"a","value":%s}' % (b"[" * 65 + b"]" * 65),
    "value 300 deep": b'{"op":"put","key":"a","value":%s}' % (b"[" * 300 + b"]" * 300),
    "value 100,000 deep": b'{"op":"put","key":"a","value":%s}' % (b"[" * 100_000 + b"]" * 100_000),
    "100,000 deep": b"[" * 100_000,
    "value a huge integer": b'{"op":"put","key":"a","value":%s}' % (b"9" * 5000),
    "value beyond 2^53": b'{"op":"put","key":"a","value":{"n":[9007199254740993]}}',
    "amount absent": b'{"op":"add","key":"a"}',
    "amount a float": b'{"op":"add","key":"a","amount":1.0}',
    "amount true": b'{"op":"add","key":"a","amount":true}',
    "amount null": b'{"op":"add","key":"a","amount":null}',
    "amount a text": b'{"op":"add","key":"a","amount":"1"}',
    "amount 2^53": b'{"op":"add","key":"a","amount":9007199254740992}',
    "amount huge": b'{"op":"add","key":"a","amount":%s}' % (b"9" * 5000),
    "a line without end": b'"' + b"x" * (3 << 20),
}


@pytest.fixture(scope="module")
def empty_node() -> Iterator[ServedNode]:
    with served_node() as node:
        yield node


@pytest.mark.parametrize("line", NO_FACTS.values(), ids=NO_FACTS.keys())
def test_a_line_that_is_no_fact_is_named_and_nothing_is_written(
    line: bytes, empty_node: ServedNode, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shell = Shell(write_env(tmp_path, API_BIND=empty_node.bind), capsys)
    file = tmp_path / "facts.jsonl"
    for text, number in ((line, 1), (line + b"\r\n" + GOOD, 1), (GOOD * 300 + b"\n" + line, 302)):
        file.write_bytes(text)
        said = shell.fails(1, "import", str(file))
        assert said.startswith(f"lattice: line {number}: ")
        assert len(said) < 500
    assert empty_node.node.ledger().entry_count == 0


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="a named pipe")
def test_a_pipe_is_judged_line_by_line_as_it_comes(shell: Shell, served: ServedNode, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(GOOD * 300 + b"null\n",))
    writer.start()
    said = shell.fails(1, "import", str(pipe))
    writer.join(10)
    assert "line 301: " in said
    assert served.node.ledger().entry_count > 0


def test_lines_that_grow_when_they_are_written_out_are_grouped_by_what_they_become(
    shell: Shell, tmp_path: Path
) -> None:
    file = tmp_path / "facts.jsonl"
    value = b"[" + b",".join([b"1e15"] * 6000) + b"]"
    file.write_bytes(b"".join(b'{"op":"put","key":"k%d","value":%s}\n' % (n, value) for n in range(6)))
    assert json.loads(shell.ok("import", "--json", str(file))) == {"written": 6, "repeated": 0}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="links and named pipes")
def test_an_export_goes_where_a_link_leads_and_into_a_pipe(lonely_shell: Shell, tmp_path: Path) -> None:
    """A name that is not that of a file keeps being what it is."""
    with hand(lonely_shell) as store:
        store.writes(OpDraft(OpKind.PUT, b"k", b"1"))
    link, pipe, file = tmp_path / "link", tmp_path / "pipe", tmp_path / "file"
    link.symlink_to("file")
    lonely_shell.ok("export", "--out", str(link))
    assert link.is_symlink()
    assert [line["key"] for line in lines_of(file)] == ["k"]
    assert file.stat().st_mode & 0o077 == 0
    os.mkfifo(pipe)
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    lonely_shell.ok("export", "--out", str(pipe))
    reader.join(10)
    assert read == [file.read_bytes()]
    assert pipe.is_fifo()
    assert not list(tmp_path.glob("*.part"))
