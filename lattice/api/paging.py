"""Pages of keys and of forks, bounded in bytes as well as in number.

Separate because several routes show pages, and neither a thousand values of 128 KiB nor ten thousand
proofs of 33 KB must become one answer.
"""

from __future__ import annotations

from typing import Final

import trio

from ..core.errors import LatticeError
from ..core.identity import public_key_of
from ..core.limits import KEY_BYTES_MAX, PAGE_VALUES_BYTES
from ..core.rows import LogKey
from ..node.facade import NodeFacade
from ..schemas import Fork, Key
from .answers import KeyWriter, fork_shown, size_of
from .evidence import parse_epoch

_CHUNK: Final = 64  # keys read between two looks at other tasks
_SIBLINGS_CHUNK: Final = 256  # siblings read between two such looks, or those of one key
_FORKS_CHUNK: Final = 8  # the same of forks, each of which may be as long as 16 values


async def key_page(
    node: NodeFacade, prefix: str, after: str | None, limit: int
) -> tuple[list[Key], str | None]:
    """Up to `limit` keys with `prefix` after `after`, and the `after` of the next page, if any.

    Committed rows, each as it is when it is read: a page is not a snapshot. A key that alone is larger
    than a page is one.
    """
    start, last = _bounded(prefix, "prefix"), None if after is None else _bounded(after, "after")
    writer = KeyWriter(node)
    keys: list[Key] = []
    size = 0
    while True:
        # One more than is shown tells whether there is a next page.
        wanted = min(_CHUNK, limit + 1 - len(keys))
        views = node.page(start, last, wanted)
        siblings = 0
        for view in views:
            size += size_of(view)
            if len(keys) == limit or (keys and size > PAGE_VALUES_BYTES):
                return keys, keys[-1].key
            keys.append(writer.key(view))
            last = view.key
            siblings += len(view.live[1:])
            if siblings > _SIBLINGS_CHUNK:  # their values must be read at once, before a fork takes them out
                break
        else:
            if len(views) < wanted:
                return keys, None
        await trio.lowlevel.checkpoint()


async def fork_page(node: NodeFacade, after: str | None, limit: int) -> tuple[list[Fork], str | None]:
    """Up to `limit` frozen logs after `after`, and the `after` of the next page, if any."""
    last = None if after is None else _log(after)
    forks: list[Fork] = []
    size = 0
    while True:
        wanted = min(_FORKS_CHUNK, limit + 1 - len(forks))
        rows = node.forks(last, wanted)
        for row in rows:
            if len(forks) == limit or size > PAGE_VALUES_BYTES:
                return forks, f"{forks[-1].author}-{forks[-1].epoch}"
            forks.append(fork_shown(row))
            size += len(forks[-1].proof) + sum(map(len, row.keys))
            last = LogKey(row.author, row.epoch)
        if len(rows) < wanted:
            return forks, None
        await trio.lowlevel.checkpoint()


def _log(text: str) -> LogKey:
    """The log in the `next` of a page of forks."""
    author, _, epoch = text.rpartition("-")
    try:
        return LogKey(public_key_of(author), parse_epoch(epoch))
    except LatticeError as error:
        raise LatticeError("bad_request", f"after: {text[:80]!r} is no `next` of a page of forks.") from error


def _bounded(text: str, what: str) -> bytes:
    raw = text.encode("utf-8")
    if len(raw) > KEY_BYTES_MAX:
        raise LatticeError("bad_request", f"{what} has at most {KEY_BYTES_MAX} bytes, as a key has.")
    return raw
