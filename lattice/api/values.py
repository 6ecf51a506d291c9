"""The checks of what writers send: JSON values, keys, versions in ETags, idempotency keys.

Separate because only the writer's own API judges these; a node that receives an entry never parses
a value, and validity that went through a JSON parser would split replicas.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from contextlib import suppress
from typing import Final

import orjson

from ..core.entry import Version
from ..core.errors import LatticeError, MalformedError
from ..core.limits import KEY_BYTES_MAX, VALUE_BYTES_MAX, VALUE_DEPTH_MAX

INTEGER_MAX: Final = 2**53  # what every JSON parser holds exactly
IDEMPOTENCY_KEY_CHARS_MAX: Final = 255

# orjson turns integers beyond 64 bits into floats without a word, so its result alone does not tell.
# 2^53 has 16 digits: without such a run of digits (found at the speed of C) there is nothing to look
# at, and without one where an integer may stand, perhaps within a string, nothing either.
_DIGITS_ONLY: Final = bytes(0x30 if 0x30 <= byte <= 0x39 else 0x20 for byte in range(256))
_LONG_RUN: Final = b"0" * 16
_LONG_INTEGER: Final = re.compile(rb"[\[:,\s]-?[0-9]{16,}(?=[\s,\]}]|$)")
_INTEGER_DIGITS_MAX: Final = 20
_IDEMPOTENCY_KEY: Final = re.compile(r"[\x21-\x7e]{1,255}")
_ETAG: Final = re.compile(r'\s*(W/)?(?:"([^"]*)"|([^\s",]+))\s*')


class _IntegerTooLargeError(ValueError):
    """Raised within a parse by the hook that sees the digits of an integer."""


def parse_json(body: bytes, what: str = "value") -> object:
    """The JSON document, with integers checked; depth is left to `check_depth`.

    Raises `bad_value`: not JSON (NaN, overlong UTF-8, lone surrogates, numbers beyond a double), or
    an integer outside ±2^53.
    """
    try:
        parsed: object = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise LatticeError("bad_value", f"The {what} is not JSON: {error}.") from error
    if _LONG_RUN in body.translate(_DIGITS_ONLY) and _LONG_INTEGER.search(b" " + body):
        _check_integers(body, what)
    return parsed


def _check_integers(body: bytes, what: str) -> None:
    # The standard parser hands over the digits themselves. Its recursion is bounded: orjson has
    # already refused anything deeper than its own limit.
    try:
        json.loads(body, parse_int=_checked_integer)
    except _IntegerTooLargeError as error:
        raise LatticeError(
            "bad_value", f"The {what} has an integer outside ±2^53 ({error}…); send it as a string."
        ) from error
    except RecursionError as error:
        raise _too_deep(what) from error


def _checked_integer(digits: str) -> int:
    if len(digits) > _INTEGER_DIGITS_MAX or abs(int(digits)) > INTEGER_MAX:
        raise _IntegerTooLargeError(digits[:24])
    return int(digits)


def check_depth(packed: bytes, parsed: object, what: str = "value") -> None:
    """Refuse nesting beyond the limit. `packed` is the text of `parsed`. Raises `bad_value`."""
    # Brackets bound the depth from above, at the speed of C; strings with brackets cost a walk.
    if packed.count(b"[") + packed.count(b"{") <= VALUE_DEPTH_MAX:
        return
    level: list[object] = [parsed]
    for _ in range(VALUE_DEPTH_MAX):
        nested: list[object] = []
        for one in level:
            if isinstance(one, dict):
                nested.extend(one.values())
            elif isinstance(one, list):
                nested.extend(one)
        level = [one for one in nested if isinstance(one, (dict, list))]
        if not level:
            return
    raise _too_deep(what)


def _too_deep(what: str) -> LatticeError:
    return LatticeError(
        "bad_value", f"The {what} is nested deeper than {VALUE_DEPTH_MAX} levels; flatten it."
    )


def pack(parsed: object, what: str = "value") -> bytes:
    """The bytes that are stored. Raises `bad_value` for depth, `too_large` for size."""
    try:
        packed = orjson.dumps(parsed)
    except orjson.JSONEncodeError as error:  # orjson writes at most 254 levels
        raise _too_deep(what) from error
    check_depth(packed, parsed, what)
    if len(packed) > VALUE_BYTES_MAX:
        raise LatticeError(
            "too_large", f"The {what} has {len(packed)} bytes as JSON, {VALUE_BYTES_MAX} are allowed."
        )
    return packed


def is_readable(stored: bytes) -> bool:
    """Whether stored bytes are a value that this API would have taken: another writer's may not be."""
    try:
        check_depth(stored, parse_json(stored))
    except LatticeError:
        return False
    return True


def check_key(key: str, what: str = "key") -> bytes:
    """The bytes of a key: 1 to 1,024 of UTF-8, any characters. Raises `bad_key`."""
    try:
        raw = key.encode("utf-8")
    except UnicodeEncodeError as error:
        raise LatticeError("bad_key", f"The {what} has half of a surrogate pair.") from error
    if not 0 < len(raw) <= KEY_BYTES_MAX:
        raise LatticeError("bad_key", f"The {what} has {len(raw)} bytes; 1 to {KEY_BYTES_MAX} are allowed.")
    return raw


def parse_etags(header: str) -> list[tuple[str, bool]]:
    """The entity tags of If-Match or If-None-Match as (opaque tag, weak); `*` stays as it is.

    Tags without quotes are taken as well: people type them. Raises `bad_request`.
    """
    tags: list[tuple[str, bool]] = []
    for part in header.split(","):
        match = _ETAG.fullmatch(part)
        if match is None:
            raise LatticeError("bad_request", f"{part.strip()[:100]!r} is not an entity tag.")
        tags.append((match[2] if match[2] is not None else match[3], match[1] is not None))
    return tags


def versions_of_tags(tags: Iterable[tuple[str, bool]]) -> tuple[Version | None, ...]:
    """The versions in a key's entity tags (see `tag_of`), None for that of a counter without a version.
    Weak tags and those that cannot be one of a key are left out: they never match (RFC 9110, 13.1.1)."""
    found: list[Version | None] = []
    for tag, weak in tags:
        version, plus, adds = tag.partition("+")
        if weak:
            continue
        if not version and plus and adds.isdecimal():
            found.append(None)
            continue
        with suppress(MalformedError):
            found.append(Version.parse(version))
    return tuple(found)


def check_idempotency_key(text: str | None) -> str | None:
    """Raises `bad_request` unless it is 1 to 255 visible ASCII characters."""
    if text is not None and not _IDEMPOTENCY_KEY.fullmatch(text):
        raise LatticeError(
            "bad_request",
            f"An Idempotency-Key is 1 to {IDEMPOTENCY_KEY_CHARS_MAX} visible ASCII characters, no spaces.",
        )
    return text
