"""The log of a node: tagged sentences with fields, to the console and to a rotated file.

Separate so that the form of a line, the hiding of secrets and the counting of repetitions are the
same for every part of the node, and so that nobody reaches for a global logger.
"""

from __future__ import annotations

import json
import logging
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Final, Literal, Protocol, TextIO

from ..core.ticket import hide_tickets
from .repeats import Line, Repeats

# The tags are an interface: operators grep for them. LIBRARY is for what dependencies say.
Tag = Literal["STARTUP", "P2P_HEARTBEAT", "HTTP_SYNC", "SYNC", "LEDGER", "API", "ALERT", "LIBRARY"]

FILE_BYTES_MAX: Final = 16 * 1024 * 1024
FILES_KEPT: Final = 5
FIELD_CHARS_MAX: Final = 2048
TRACE_CHARS_MAX: Final = 16_384
REDACTED: Final = "<redacted>"
# libp2p is not here: the P2P lung, the only one that knows it, hands its records on itself.
LIBRARIES: Final = ("hypercorn", "httpx", "httpcore", "fastapi", "zeroconf", "asyncio")

_SECRET_WORDS: Final = ("secret", "password", "token", "ticket", "seed", "authorization", "private", "cookie")
_SECRET_NAMES: Final = ("join", "network_key", "key_bytes", "lattice_join")
_BARE: Final = frozenset("!#$%&'()*+,-./:;<>?@[]^_`{|}~")
_RESERVED: Final = ("time", "level", "tag", "message", "repeated")


class TaggedLogger(Protocol):
    """What the parts of a node are given to speak with.

    `sentence` is constant text for people and for grep; what varies goes into the fields.
    """

    def debug(self, tag: Tag, sentence: str, **fields: object) -> None: ...

    def info(self, tag: Tag, sentence: str, **fields: object) -> None: ...

    def warning(self, tag: Tag, sentence: str, **fields: object) -> None: ...

    def error(self, tag: Tag, sentence: str, **fields: object) -> None: ...

    def defect(self, tag: Tag, sentence: str, error: BaseException, **fields: object) -> None:
        """An exception that nobody expected: an ERROR line with its kind, text and trace."""
        ...


class Logs:
    """The TaggedLogger of a process: formats, counts repetitions, writes to every sink.

    `now_s` is the wall clock for the time stamp, `monotonic_s` the clock of the repetitions.
    A sink that fails (a full disk) loses lines and counts them in `lost`; it never raises.
    """

    def __init__(
        self,
        sinks: Iterable[logging.Handler],
        *,
        level: str = "INFO",
        form: Literal["text", "json"] = "text",
        now_s: Callable[[], float] = time.time,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sinks = list(sinks)
        self._level = logging.getLevelNamesMapping()[level]
        self._render = text_line if form == "text" else json_line
        self._now_s = now_s
        self._monotonic_s = monotonic_s
        self._repeats = Repeats()
        self._secrets: set[str] = set()
        self.lost = 0

    def hide(self, secret: str) -> None:
        """Replace this text wherever it turns up: a ticket, a token, a key in hex."""
        if len(secret) >= 8:  # shorter ones would blank out ordinary words
            self._secrets.add(secret)

    def debug(self, tag: Tag, sentence: str, **fields: object) -> None:
        self._say(logging.DEBUG, tag, sentence, fields)

    def info(self, tag: Tag, sentence: str, **fields: object) -> None:
        self._say(logging.INFO, tag, sentence, fields)

    def warning(self, tag: Tag, sentence: str, **fields: object) -> None:
        self._say(logging.WARNING, tag, sentence, fields)

    def error(self, tag: Tag, sentence: str, **fields: object) -> None:
        self._say(logging.ERROR, tag, sentence, fields)

    def defect(self, tag: Tag, sentence: str, error: BaseException, **fields: object) -> None:
        trace = "".join(traceback.format_exception(error))[-TRACE_CHARS_MAX:]
        found = {**fields, "error": f"{type(error).__name__}: {error}", "trace": trace}
        self._say(logging.ERROR, tag, sentence, found)

    def standard(self, tag: Tag, name: str) -> logging.Logger:
        """A standard logger for a part that needs one; its records become lines under `tag`.

        It is not registered anywhere: two nodes in one process have two.
        """
        logger = logging.Logger(name, self._level)
        logger.addHandler(_Bridge(self, tag))
        return logger

    def settle(self) -> None:
        """Write the sums of repetitions whose minute is over. Call it every few seconds."""
        self._write(self._repeats.settle(self._monotonic_s()))

    def close(self) -> None:
        """Write what is still held back and close the sinks. The console stays open."""
        self._write(self._repeats.finish())
        for sink in self._sinks:
            sink.close()
        self._sinks.clear()

    def _say(self, level: int, tag: Tag, sentence: str, fields: dict[str, object]) -> None:
        if level < self._level:
            return
        shown = tuple(
            (name, self._hidden(_field_text(name, value)))
            for name, value in fields.items()
            if value is not None
        )
        line = Line(level, tag, self._hidden(sentence), shown)
        self._write(self._repeats.say(line, self._monotonic_s()))

    def _hidden(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, REDACTED)
        return hide_tickets(text)

    def _write(self, lines: list[Line]) -> None:
        for line in lines:
            text = self._render(line, self._now_s())
            record = logging.LogRecord("lattice", line.level, "", 0, text, None, None)
            for sink in self._sinks:
                try:
                    sink.handle(record)
                except (OSError, ValueError):  # no space, or a stream that is already closed
                    self.lost += 1


class _Console(logging.Handler):
    """Writes to a stream and lets its errors through to `Logs`, which counts them."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream

    def emit(self, record: logging.LogRecord) -> None:
        self._stream.write(f"{record.getMessage()}\n")
        self._stream.flush()


class _File(RotatingFileHandler):
    """The rotated file; its errors go to `Logs`, where the base class would print a trace of each."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the base class names it
        error = sys.exception()
        if error is not None:
            raise error


class _Bridge(logging.Handler):
    """From a standard logger to tagged lines of the same level."""

    def __init__(self, logs: Logs, tag: Tag) -> None:
        super().__init__()
        self._say = {
            logging.DEBUG: logs.debug,
            logging.INFO: logs.info,
            logging.WARNING: logs.warning,
        }
        self._worse = logs.error
        self._tag: Tag = tag

    def emit(self, record: logging.LogRecord) -> None:
        self._say.get(record.levelno, self._worse)(self._tag, _message(record))


class _Library(logging.Handler):
    """Passes on what libraries log. Their warnings are DEBUG here: they warn of every ordinary
    disconnect, and what matters to an operator is said by the node itself."""

    def __init__(self, logs: TaggedLogger) -> None:
        super().__init__()
        self._logs = logs

    def emit(self, record: logging.LogRecord) -> None:
        self._logs.debug("LIBRARY", _message(record), library=record.name, severity=record.levelname)


@contextmanager
def opened_logs(
    name: str,
    log_dir: Path,
    *,
    level: str = "INFO",
    form: Literal["text", "json"] = "text",
    console: TextIO | None = None,
) -> Iterator[Logs]:
    """The logs of node `name`: to the console (standard error, if None) and to <log_dir>/<name>.log.

    A file is set aside at 16 MiB, and five older ones are kept. What the libraries log goes in as
    well, at DEBUG, while this is open. Raises OSError when the file cannot be opened.
    """
    log_dir.mkdir(parents=True, exist_ok=True)
    file = _File(log_dir / f"{name}.log", maxBytes=FILE_BYTES_MAX, backupCount=FILES_KEPT, encoding="utf-8")
    logs = Logs([_Console(sys.stderr if console is None else console), file], level=level, form=form)
    with _libraries_to(logs, level):
        try:
            yield logs
        finally:
            logs.close()


@contextmanager
def _libraries_to(logs: Logs, level: str) -> Iterator[None]:
    handler = _Library(logs)
    loggers = [logging.getLogger(name) for name in LIBRARIES]
    before = [(each.level, each.propagate) for each in loggers]
    for each in loggers:
        each.addHandler(handler)
        each.propagate = False
        # Without DEBUG nobody reads them, so they are not even formatted.
        each.setLevel(logging.DEBUG if level == "DEBUG" else logging.CRITICAL + 1)
    try:
        yield
    finally:
        for each, (old_level, propagate) in zip(loggers, before, strict=True):
            each.removeHandler(handler)
            each.setLevel(old_level)
            each.propagate = propagate


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except (TypeError, ValueError):  # a format string and arguments that do not match
        return str(record.msg)


def text_line(line: Line, now_s: float) -> str:
    """`2026-11-20T09:45:17.123Z INFO [TAG] message key=value`, on one line whatever the fields hold."""
    parts = [_stamp(now_s), logging.getLevelName(line.level), f"[{line.tag}]", _printable(line.sentence)]
    if line.repeats:
        parts.append(_times(line.repeats))
    parts += [f"{name}={_quoted(text)}" for name, text in line.fields]
    return " ".join(parts)


def json_line(line: Line, now_s: float) -> str:
    """The same line as one JSON object; a field named like one of the object's own gets a `field_`."""
    found: dict[str, object] = {
        "time": _stamp(now_s),
        "level": logging.getLevelName(line.level),
        "tag": line.tag,
        "message": line.sentence,
    }
    if line.repeats:
        found["repeated"] = line.repeats
    for name, text in line.fields:
        found[f"field_{name}" if name in _RESERVED else name] = text
    return json.dumps(found, ensure_ascii=True)


def _times(repeats: int) -> str:
    return f"(repeated {repeats} {'time' if repeats == 1 else 'times'})"


def _stamp(now_s: float) -> str:
    moment = datetime.fromtimestamp(now_s, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03d}Z"


def _field_text(name: str, value: object) -> str:
    lowered = name.lower()
    if lowered in _SECRET_NAMES or any(word in lowered for word in _SECRET_WORDS):
        return REDACTED
    if isinstance(value, bool):
        text = "true" if value else "false"
    elif isinstance(value, float):
        text = f"{value:.3f}".rstrip("0").rstrip(".")
    elif isinstance(value, bytes):
        text = value.hex()
    elif isinstance(value, (list, tuple, set, frozenset)):
        text = ",".join(sorted(map(str, value)) if isinstance(value, (set, frozenset)) else map(str, value))
    else:
        text = str(value)
    limit = TRACE_CHARS_MAX if name == "trace" else FIELD_CHARS_MAX
    return text if len(text) <= limit else f"{text[:limit]}…"


def _quoted(text: str) -> str:
    bare = text.isascii() and all(char.isalnum() or char in _BARE for char in text)
    return text if text and bare else '"' + _printable(text, quotes=True) + '"'


def _printable(text: str, *, quotes: bool = False) -> str:
    """One line, and nothing that a terminal would obey: what is remote may hold anything."""
    if text.isprintable() and not (quotes and ('"' in text or "\\" in text)):
        return text
    return "".join(_escaped(char, quotes) for char in text)


def _escaped(char: str, quotes: bool) -> str:
    if char == "\n":
        return "\\n"
    if quotes and char in '"\\':
        return f"\\{char}"
    return char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
