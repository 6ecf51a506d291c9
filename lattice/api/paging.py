"""Pages of keys, bounded in bytes as well as in number.

Separate because two routes show pages, and a thousand values of 128 KiB must not become one answer.
"""

from __future__ import annotations

from typing import Final

import trio

from ..core.errors import LatticeError
from ..core.limits import KEY_BYTES_MAX, PAGE_VALUES_BYTES
from ..node.facade import NodeFacade
from ..schemas import Key
from .answers import KeyWriter, size_of

_CHUNK: Final = 64  # keys read between two looks at other tasks
_SIBLINGS_CHUNK: Final = 256  # siblings read between two such looks, or those of one key


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


def _bounded(text: str, what: str) -> bytes:
    raw = text.encode("utf-8")
    if len(raw) > KEY_BYTES_MAX:
        raise LatticeError("bad_request", f"{what} has at most {KEY_BYTES_MAX} bytes, as a key has.")
    return raw
