"""Export and import in process: what of a store becomes lines, and what of a file becomes writes."""

from __future__ import annotations

import json
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
from tests.integration.cli.cli_kit import Shell

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
