"""What a local writer asks for: ops not yet in an entry, and the conditions they stand under.

Separate because the API, the node and the engine pass these along unchanged.
"""

from __future__ import annotations

from typing import NamedTuple

from .entry import OpKind, Version


class OpDraft(NamedTuple):
    """An op as its writer wants it; `over` None means "whatever this node holds live then"."""

    kind: OpKind
    key: bytes
    value: bytes = b""
    over: tuple[Version, ...] | None = None
    amount: int = 0


class Condition(NamedTuple):
    """A precondition on one key, judged by this node when the write's turn comes.

    `match`: the winner's version must be one of these (If-Match); None among them stands for a key
    that is a counter and has no version. `absent`: the key must have no live version
    (If-None-Match: *). `present`: it must have one (If-Match: *).
    """

    key: bytes
    match: tuple[Version | None, ...] = ()
    absent: bool = False
    present: bool = False


class Appended(NamedTuple):
    """The acknowledged outcome of one write: where it landed and the roots after its commit."""

    id: bytes
    author: bytes
    epoch: int
    seq: int
    clock: int
    versions: tuple[Version, ...]
    state_root: bytes
    log_root: bytes
    repeated: bool = False
