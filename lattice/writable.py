"""What may be written: the checks of keys and JSON values, on this machine, before anything is signed.

Separate from the API because the command line judges by the same rules what it exports and imports, and
from the core because only writers judge values: a node that receives an entry never parses one, and
validity that went through a JSON parser would split replicas.
"""

from __future__ import annotations

import json
import re
from typing import Final

import orjson

from .core.errors import LatticeError
from .core.limits import KEY_BYTES_MAX, VALUE_BYTES_MAX, VALUE_DEPTH_MAX

INTEGER_MAX: Final = 2**53  # what every JSON parser holds exactly

# orjson turns integers beyond 64 bits into floats without a word, so its result alone does not tell.
# 2^53 has 16 digits: without such a run of digits (found at the speed of C) there is nothing to look
# at, and without one where an integer may stand, perhaps within a string, nothing either.
_DIGITS_ONLY: Final = bytes(0x30 if 0x30 <= byte <= 0x39 else 0x20 for byte in range(256))
_LONG_RUN: Final = b"0" * 16
_LONG_INTEGER: Final = re.compile(rb"[\[:,\s]-?[0-9]{16,}(?=[\s,\]}]|$)")
_INTEGER_DIGITS_MAX: Final = 20


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
    """Whether stored bytes are a value that would be taken here: another writer's may not be."""
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
