"""The commands that carry a ledger by hand: export and import.

Separate because they work through whole stores and files, step by step, and must be able to go on after
any interruption: what was imported once is recognised, as lines by their idempotency keys, as entries
by their ids.
"""

from __future__ import annotations

import argparse
import os
import re
import secrets
import stat
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

import orjson

from ..client import calls
from ..core import parcel
from ..core.clock import clock_text
from ..core.envelope import NONCE_BYTES, Kind, Sealer
from ..core.errors import ConfigError, LatticeError, MalformedError
from ..core.limits import AMOUNT_MAX, ENTRY_BYTES_MAX, OPS_MAX, PAGE_KEYS_MAX
from ..core.state import winner_first
from ..writable import check_key, pack, parse_json
from .progress import Progress
from .reach import connect, load_settings
from .text import counted, say, say_json, warn

if TYPE_CHECKING:
    from ..client.client import Client
    from ..core.rows import KeyState, LiveVersion, Reader

_SPAN: Final = re.compile(r"([0-9]{1,6})([smhd])", re.ASCII)
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_LINE_BYTES_MAX: Final = 1 << 20  # a value of 128 KiB, every character of it escaped
_ARRIVALS_KEPT: Final = 4096
# A group of lines leaves room for what frames the ops of an entry: 256 bytes each.
_GROUP_BYTES: Final = ENTRY_BYTES_MAX * 3 // 4


def export(args: argparse.Namespace) -> int:
    """Beside a running node as well: it reads one snapshot of the store."""
    from ..node.home import load_home
    from ..storage.datadir import open_reader

    settings = load_settings(args)
    since_ms = _since(args.since)
    prefix = _prefix(args.prefix)
    home = load_home(settings)
    reader = open_reader(settings.data_dir)
    try:
        with _output(args.out, binary=args.sealed) as out:
            if args.sealed:
                sealer = Sealer(home.key, home.network_id, home.network_keys, boot=_random_boot())
                count = _write_parcel(reader, sealer, home.network_id, since_ms, out)
                warn(f"{counted(count, 'entry', 'entries')} exported, for members of this network alone")
            else:
                count = _write_lines(reader, prefix, since_ms, out)
                warn(f"{counted(count, 'key', 'keys')} exported; these lines are not encrypted")
    finally:
        reader.close()
    return 0


def _random_boot() -> int:
    return int.from_bytes(secrets.token_bytes(8), "big")


def _prefix(text: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:  # bytes of the command line that are no text
        raise LatticeError("bad_key", f"--prefix {text[:100]!r} is not Unicode text") from error


def _since(text: str | None) -> int:
    """Milliseconds since 1970; 0 for everything. Raises ConfigError."""
    if text is None:
        return 0
    span = _SPAN.fullmatch(text)
    if span is not None:
        return int((time.time() - int(span[1]) * _SECONDS[span[2]]) * 1000)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(
            f"--since {text}: a time like 2026-11-20T09:45:00Z, or a span like 90m, 36h or 7d"
        ) from None
    return int((moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp() * 1000)


@contextmanager
def _output(path: str | None, *, binary: bool) -> Iterator[IO[bytes]]:
    """The file under a temporary name until it is whole, readable by its owner only; or standard output."""
    if path is None:
        if binary and sys.stdout.isatty():
            raise LatticeError("bad_request", "a parcel is not text: name a file with --out")
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    try:
        # Where a link leads, and the link stays.
        target = Path(os.path.realpath(path))
        with _opened_to_write(target) as file:
            yield file
    except OSError as error:
        raise LatticeError("bad_request", f"cannot write {path}: {error.strerror or error}") from error


@contextmanager
def _opened_to_write(target: Path) -> Iterator[IO[bytes]]:
    mode = target.stat().st_mode if os.path.lexists(target) else None
    if mode is not None and not stat.S_ISREG(mode):
        # A pipe or a device is written to; its name must not become that of a file. A directory refuses.
        with target.open("wb") as file:
            yield file
        return
    temporary = target.with_name(target.name + ".part")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)


def _write_parcel(reader: Reader, sealer: Sealer, network_id: bytes, since_ms: int, out: IO[bytes]) -> int:
    out.write(parcel.MAGIC)
    done, total = 0, reader.entry_count()
    with Progress("entries exported") as progress:
        for body, entries in parcel.bodies(network_id, reader, since_ms):
            out.write(parcel.frame(sealer.seal(Kind.ONE_WAY, body, secrets.token_bytes(NONCE_BYTES))))
            done += entries
            progress.show(done, max(done, total))
    return done


def _write_lines(reader: Reader, prefix: bytes, since_ms: int, out: IO[bytes]) -> int:
    """One line for each winner, some for each counter; losers of a conflict are not facts."""
    count = seen = 0
    after: bytes | None = None
    total = sum(len(packed) for packed in reader.buckets().values()) // 64
    with Progress("keys exported") as progress:

        def leave_out(key: str) -> None:
            progress.clear()
            warn(f"the value of {key!r} is not JSON that an import would take and is left out")

        facts = _Facts(reader, since_ms, leave_out)
        while page := reader.page_keys(prefix, after, PAGE_KEYS_MAX):
            for state in page:
                lines = facts.of(state)
                count += bool(lines)
                for line in lines:
                    out.write(orjson.dumps(line) + b"\n")
            after = page[-1].key
            seen += len(page)
            progress.show(seen, max(seen, total))
    if facts.counters_left:
        warn(
            f"{counted(facts.counters_left, 'counter is', 'counters are')} left out: sums have no time of "
            "their own, only an export without --since has them"
        )
    return count


class _Facts:
    """What an export tells of each key. `leave_out` is called with the key of a value that it cannot tell."""

    def __init__(self, reader: Reader, since_ms: int, leave_out: Callable[[str], None]) -> None:
        self._reader = reader
        self._since_ms = since_ms
        self._leave_out = leave_out
        # Keys of one prefix were often written by one entry.
        self._arrived_ms = lru_cache(_ARRIVALS_KEPT)(self._read_arrival)
        self.counters_left = 0

    def of(self, state: KeyState) -> list[dict[str, Any]]:
        """The lines of a key: of its winner, and of its counter."""
        key = state.key.decode("utf-8", "replace")
        lines: list[dict[str, Any]] = []
        winner = next(iter(winner_first(state.live)), None)
        if winner is not None and self._came_since(winner):
            lines += self._put(key, winner)
        if state.adds and self._since_ms:
            self.counters_left += 1
        elif state.adds:
            lines += self._adds(key, state.total)
        return lines

    def _came_since(self, winner: LiveVersion) -> bool:
        """By the time of its arrival here, as in a parcel: an author's clock says nothing of it."""
        if not self._since_ms:
            return True
        return self._arrived_ms(winner.author, winner.epoch, winner.seq) >= self._since_ms

    def _read_arrival(self, author: bytes, epoch: int, seq: int) -> int:
        entry = self._reader.entry(author, epoch, seq)
        return entry.arrived_ms if entry is not None else 0

    def _put(self, key: str, winner: LiveVersion) -> Iterator[dict[str, Any]]:
        try:
            # Judged as a write would be: another program may have stored what no import takes in again,
            # nested too deep for a line, or with an integer that parsers round.
            value = pack(parse_json(self._reader.value(winner)))
        except LatticeError as error:
            if error.code not in ("bad_value", "too_large"):
                raise  # the store itself is damaged
            self._leave_out(key)
        else:
            yield {
                "op": "put",
                "key": key,
                "value": orjson.Fragment(value),
                "version": str(winner.version),
                "clock": clock_text(winner.clock),
            }

    def _adds(self, key: str, total: int) -> Iterator[dict[str, Any]]:
        """A sum has no bound, an amount has one. A sum of 0 is told too: the key is there."""
        left = total
        while True:
            part = max(-AMOUNT_MAX, min(AMOUNT_MAX, left))
            yield {"op": "add", "key": key, "amount": part}
            left -= part
            if not left:
                return


def import_file(args: argparse.Namespace) -> int:
    with _input(args.file) as (file, size), connect(args) as client:
        head = file.read(len(parcel.MAGIC))
        if head == parcel.MAGIC:
            found = _import_parcel(client, file, size)
        else:
            found = _import_lines(client, head, file, size)
    if args.json:
        say_json(found)
    else:
        say(", ".join(f"{count} {name}" for name, count in found.items()))
    return 0 if not found.get("refused") else 1


@contextmanager
def _input(path: str) -> Iterator[tuple[IO[bytes], int]]:
    """The file and its size in bytes, 0 where that is not known."""
    if path == "-":
        yield sys.stdin.buffer, 0
        return
    try:
        with open(path, "rb") as file:
            yield file, os.fstat(file.fileno()).st_size
    except OSError as error:
        raise LatticeError("not_found", f"cannot read {path}: {error.strerror or error}") from error


def _import_parcel(client: Client, file: IO[bytes], size: int) -> dict[str, int]:
    """Envelope after envelope: what is held is recognised, so an import can be begun again."""
    total = {"taken": 0, "held": 0, "waiting": 0, "refused": 0}
    with Progress("bytes read") as progress:
        while head := file.read(parcel.LENGTH_BYTES):
            try:
                length = parcel.length_of(head)
                envelope = file.read(length)
                if len(envelope) != length:
                    raise MalformedError("the file ends within an envelope")
            except MalformedError as error:
                done = ", ".join(f"{count} {name}" for name, count in total.items())
                raise LatticeError("malformed", f"{error.message}; until there: {done}") from error
            answer = client.send(calls.import_envelope(envelope))
            for name in total:
                total[name] += getattr(answer, name)
            if size:
                progress.show(file.tell(), size)
    return total


def _import_lines(client: Client, head: bytes, file: IO[bytes], size: int) -> dict[str, int]:
    """Lines become writes of this node, grouped; the same lines again, within a day, are written once."""
    if file.seekable():
        # A mistake anywhere in a file is told before any of it is written; a pipe is judged as it comes.
        start = file.tell()
        for _ in _ops(head, file):
            pass
        file.seek(start)
    total = {"written": 0, "repeated": 0}
    group: list[dict[str, Any]] = []
    group_bytes = 0
    digest = sha256()

    def send() -> None:
        # The key covers all lines so far: an equal group elsewhere in the file is another write.
        written = client.send(calls.batch(group, idempotency_key=f"import/{digest.hexdigest()}"))
        total["repeated" if written.repeated else "written"] += len(group)

    with Progress("bytes read") as progress:
        for line, op, op_bytes in _ops(head, file):
            if group and (len(group) == OPS_MAX or group_bytes + op_bytes > _GROUP_BYTES):
                send()
                if size:
                    progress.show(file.tell(), size)
                group, group_bytes = [], 0
            group.append(op)
            group_bytes += op_bytes
            digest.update(line + b"\n")
        if group:
            send()
    return total


def _ops(head: bytes, file: IO[bytes]) -> Iterator[tuple[bytes, dict[str, Any], int]]:
    """Each line that holds something, its op, and the bytes that the op takes in an entry.

    Judged here as the node would, which knows ops of a request and no lines. Raises LatticeError with the
    number of the line.
    """
    for number, line in enumerate(_lines(head, file), 1):
        if line.strip():
            try:
                op, size = _op(line)
            except LatticeError as error:
                raise LatticeError(error.code, f"line {number}: {error.message}") from error
            yield line, op, size


def _lines(head: bytes, file: IO[bytes]) -> Iterator[bytes]:
    rest = head
    number = 1
    while True:
        line, found, after = rest.partition(b"\n")
        if found:
            yield line
            rest = after
            number += 1
            continue
        more = file.readline(_LINE_BYTES_MAX)
        if not more:
            if rest:
                yield rest
            return
        rest += more
        if len(rest) > 2 * _LINE_BYTES_MAX:
            raise LatticeError(
                "bad_request", f"line {number}: longer than any op, so this is no file of JSON lines"
            )


_FIELDS: Final[dict[str, Sequence[str]]] = {
    "put": ("op", "key", "value"),
    "delete": ("op", "key"),
    "add": ("op", "key", "amount"),
}


def _op(line: bytes) -> tuple[dict[str, Any], int]:
    """The op of a line; what an export tells besides is left out."""
    found = parse_json(line, "text")
    kind = found.get("op") if isinstance(found, dict) else None
    fields = _FIELDS.get(kind) if isinstance(kind, str) else None
    if not isinstance(found, dict) or fields is None or not all(name in found for name in fields):
        raise LatticeError(
            "bad_request",
            "this is no op: an object with op (put, delete, add), key, and value or amount",
        )
    if not isinstance(found["key"], str):
        raise LatticeError("bad_key", "the key is not a string")
    size = len(check_key(found["key"]))
    if kind == "put":
        size += len(pack(found["value"]))
    if kind == "add" and (type(found["amount"]) is not int or abs(found["amount"]) > AMOUNT_MAX):
        raise LatticeError("bad_value", f"the amount is not an integer within ±{AMOUNT_MAX}")
    return {name: found[name] for name in fields}, size
