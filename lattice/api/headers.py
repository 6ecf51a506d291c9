"""The checks of what writers send in headers: versions in ETags, idempotency keys.

Separate from what is written (`lattice.writable`) because only HTTP has these.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress
from typing import Final

from ..core.entry import Version
from ..core.errors import LatticeError, MalformedError

IDEMPOTENCY_KEY_CHARS_MAX: Final = 255

_IDEMPOTENCY_KEY: Final = re.compile(r"[\x21-\x7e]{1,255}")
_ETAG: Final = re.compile(r'\s*(W/)?(?:"([^"]*)"|([^\s",]+))\s*')


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
