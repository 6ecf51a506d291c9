"""From the text of a setting to its checked value: one small function per kind of value.

Separate from the table so that the table stays a table, and so that each kind is tested alone.
Every function takes the text and the project's directory and raises MalformedError.
"""

from __future__ import annotations

import errno
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Final

from ..core.addresses import Bind, TcpMultiaddr, parse_bind, parse_multiaddr, parse_node_url
from ..core.errors import MalformedError
from ..core.limits import NAME_BYTES_MAX

Parse = Callable[[str, Path], object]

TOPIC_CHARS_MAX: Final = 128
LIST_MAX: Final = 64
SIZE_BYTES_MAX: Final = 1 << 50
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_SIZE: Final = re.compile(r"([0-9]{1,15})\s*(KiB|MiB|GiB)?", re.IGNORECASE)
_SIZE_UNIT: Final = {"": 1, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}
_TRUE: Final = ("true", "yes", "on", "1")
_FALSE: Final = ("false", "no", "off", "0")


def name(text: str, _: Path) -> str:
    if not _NAME.fullmatch(text) or len(text) > NAME_BYTES_MAX:
        raise MalformedError(f"a name is 1 to {NAME_BYTES_MAX} letters, digits, dots, dashes, underscores")
    return text


def path(text: str, project_dir: Path) -> Path:
    try:
        found = Path(os.path.abspath(project_dir / Path(text).expanduser()))
    except RuntimeError as error:
        user = text.partition("/")[0]
        raise MalformedError(f"{user} is the home directory of nobody: write the whole path") from error
    try:
        found.lstat()
    except ValueError as error:
        raise MalformedError("a path holds no NUL character: write another") from error
    except OSError as error:
        # All else, that it is missing or closed, is judged by whoever uses it.
        if error.errno == errno.ENAMETOOLONG:
            raise MalformedError("the path is longer than this system takes: choose a shorter one") from error
    return found


def existing_file(text: str, project_dir: Path) -> Path | None:
    found = path(text, project_dir) if text else None
    if found is not None and not os.path.isfile(found):
        raise MalformedError(f"there is no file {found}: name one, or leave the setting out")
    return found


def bind(text: str, _: Path) -> Bind:
    return parse_bind(text)


def bind_or_off(text: str, _: Path) -> Bind | None:
    return None if text.lower() == "off" else parse_bind(text)


def boolean(text: str, _: Path) -> bool:
    if text.lower() not in _TRUE + _FALSE:
        raise MalformedError("write true or false")
    return text.lower() in _TRUE


def node_url(text: str, _: Path) -> str | None:
    return parse_node_url(text) if text else None


def topic(text: str, _: Path) -> str | None:
    if len(text) > TOPIC_CHARS_MAX or not text.isascii() or not text.isprintable():
        raise MalformedError(f"a topic has at most {TOPIC_CHARS_MAX} printable ASCII characters")
    return text or None


def ticket(text: str, project_dir: Path) -> str | None:
    return f"@{path(text[1:], project_dir)}" if text.startswith("@") else (text or None)


def size(text: str, _: Path) -> int:
    match = _SIZE.fullmatch(text)
    size = int(match[1]) * _SIZE_UNIT[(match[2] or "").lower()] if match else -1
    if not 0 <= size <= SIZE_BYTES_MAX:
        raise MalformedError("write a number of bytes, or one with KiB, MiB or GiB, for example 256MiB")
    return size


def seconds(minimum: float, maximum: float) -> Parse:
    def parse(text: str, _: Path) -> float:
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not minimum <= number <= maximum:  # false for NaN as well
            raise MalformedError(f"write a number of seconds from {minimum:g} to {maximum:g}")
        return number

    return parse


def one_of(*choices: str) -> Parse:
    def parse(text: str, _: Path) -> str:
        found = next((choice for choice in choices if choice.lower() == text.lower()), None)
        if found is None:
            raise MalformedError(f"write one of {', '.join(choices)}")
        return found

    return parse


def list_of(item: Callable[[str], object], *, maximum: int = LIST_MAX) -> Parse:
    def parse(text: str, _: Path) -> tuple[object, ...]:
        found = tuple(dict.fromkeys(item(word) for word in re.split(r"[,\s]+", text) if word))
        if len(found) > maximum:
            raise MalformedError(f"at most {maximum}, not {len(found)}")
        return found

    return parse


def listen(text: str) -> TcpMultiaddr:
    return parse_multiaddr(text, peer_id="forbidden")


def announce(text: str) -> TcpMultiaddr:
    return parse_multiaddr(text, concrete=True)


def bootstrap(text: str) -> TcpMultiaddr:
    return parse_multiaddr(text, peer_id="required", concrete=True)
