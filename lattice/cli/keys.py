"""The commands on keys: put, get, delete, keys.

Separate because they are what scripts call: their output is made to be piped on.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import orjson

from ..client import calls
from ..client.client import Client
from ..core.errors import LatticeError
from ..schemas import Key, Written
from .reach import connect
from .text import printable, say, say_json, warn

_PAGE = 1000


def put(args: argparse.Namespace) -> int:
    value = _value(args.value, is_text=args.text)
    call = calls.put(args.key, value, ack=args.ack, if_match=args.if_match, if_absent=args.if_absent)
    with connect(args) as client:
        _show(client.send(call), as_json=args.json)
    return 0


def delete(args: argparse.Namespace) -> int:
    call = calls.delete(args.key, ack=args.ack, if_match=args.if_match)
    with connect(args) as client:
        _show(client.send(call), as_json=args.json)
    return 0


def _show(done: Written, *, as_json: bool) -> None:
    if as_json:
        say_json(done)
    else:
        say(done.version)


def get(args: argparse.Namespace) -> int:
    with connect(args) as client:
        found = client.send(calls.get(args.key))
    if args.json:
        say_json(found)
    elif args.raw and isinstance(found.value, str):
        say(found.value)
    else:
        say(_shown(found))
    if found.siblings and not args.json:
        count = len(found.siblings)
        warn(f"{count} concurrent {'value' if count == 1 else 'values'} beside this one; --json shows them")
    return 0


def keys(args: argparse.Namespace) -> int:
    with connect(args) as client:
        if args.json:
            return _keys_json(client, args)
        left = None if args.all else args.limit
        after = args.after
        while left is None or left > 0:
            page = client.send(
                calls.keys(prefix=args.prefix, after=after, limit=_PAGE if left is None else min(left, _PAGE))
            )
            for found in page.keys:
                say(f"{printable(found.key)}\t{_shown(found)}")
            after = page.next
            if after is None:
                return 0
            left = None if left is None else left - len(page.keys)
    warn(f"there are more: --all, or --after {after!r}")
    return 0


def _keys_json(client: Client, args: argparse.Namespace) -> int:
    """All pages as one object of the form of a page."""
    found: list[Key] = []
    after: str | None = args.after
    while True:
        wanted = _PAGE if args.all else min(args.limit - len(found), _PAGE)
        page = client.send(calls.keys(prefix=args.prefix, after=after, limit=wanted))
        found += page.keys
        after = page.next
        if after is None or (not args.all and len(found) >= args.limit):
            say_json({"success": True, "keys": found, "count": len(found), "next": after})
            return 0


def _shown(found: Key) -> str:
    """The value as JSON on one line; a counter as its sum."""
    if found.error is not None:
        return f"({found.error})"
    if found.version is None:
        return str(found.total)
    return printable(orjson.dumps(found.value).decode())


def _value(text: str, *, is_text: bool) -> bytes:
    """The JSON text of a value from the command line, a file, or standard input."""
    if text == "-":
        raw = sys.stdin.buffer.read()
    elif text.startswith("@"):
        try:
            raw = Path(text[1:]).read_bytes()
        except OSError as error:
            raise LatticeError("bad_value", f"cannot read {text[1:]}: {error.strerror}") from error
    else:
        raw = text.encode("utf-8", "surrogateescape")
    try:
        if is_text:
            return orjson.dumps(raw.decode("utf-8"))
        orjson.loads(raw)
    except (UnicodeDecodeError, orjson.JSONDecodeError) as error:
        hint = "" if is_text else "; for text add --text"
        raise LatticeError(
            "bad_value", f"the value is not {'UTF-8' if is_text else 'JSON'}: {error}{hint}"
        ) from error
    return raw
