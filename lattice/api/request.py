"""What a write route reads from a request besides its body: key, conditions, idempotency, ack.

Separate because keys and entries share it, and because the digest that protects an idempotency key
must be made the same way everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256

from starlette.requests import Request

from ..core.draft import Condition
from ..core.errors import LatticeError
from ..core.limits import KNOWN_NODES_MAX
from ..writable import check_key
from .access import decode_text
from .guards import body_of
from .headers import check_idempotency_key, parse_etags, versions_of_tags


@dataclass(frozen=True, slots=True)
class WriteTerms:
    """How a write is to be done. `digest` tells a repeated request from another with the same key."""

    idempotency_key: str | None
    digest: bytes
    ack: int


def key_of(request: Request) -> tuple[str, bytes]:
    """The key in the path, as text and bytes. Raises `bad_key`, `bad_request`."""
    # The router saw the raw path, so `%2F` and `%0A` are still what the writer sent.
    text = decode_text(request.path_params["key"].encode("latin-1"), "key")
    return text, check_key(text)


def terms_of(request: Request) -> WriteTerms:
    """Raises `bad_request`."""
    scope = request.scope
    key = check_idempotency_key(request.headers.get("idempotency-key"))
    digest = b""
    if key is not None:
        parts = (
            scope["method"].encode("ascii"),
            scope["path"].encode("latin-1"),
            scope["query_string"],
            body_of(scope),
        )
        digest = sha256(b"".join(len(part).to_bytes(8, "big") + part for part in parts)).digest()
    return WriteTerms(key, digest, _ack_of(request.query_params.get("ack", "1")))


def _ack_of(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and 1 <= int(text) <= KNOWN_NODES_MAX):
        raise LatticeError(
            "bad_request",
            f"ack is how many nodes must hold the write: 1 to {KNOWN_NODES_MAX}, not {text[:50]!r}.",
        )
    return int(text)


def conditions_of(request: Request, key: bytes) -> list[Condition]:
    """If-Match and If-None-Match (RFC 9110, section 13.1) as conditions that the node will judge.

    Raises `bad_request`, and `precondition_failed` where no tag could be one of a key.
    """
    found: list[Condition] = []
    none_match = request.headers.get("if-none-match")
    if none_match is not None:
        if [tag for tag, _ in parse_etags(none_match)] != ["*"]:
            raise LatticeError(
                "bad_request", "For a write If-None-Match takes * only: the key must be absent."
            )
        found.append(Condition(key, absent=True))
    match = request.headers.get("if-match")
    if match is not None:
        found.append(match_condition(match, key))
    return found


def match_condition(header: str, key: bytes) -> Condition:
    """The condition of an If-Match header. All its tags go to the node, which judges them in the write's
    turn: a repeat with its Idempotency-Key must be known as one, whatever the key holds by then."""
    tags = parse_etags(header)
    if [tag for tag, _ in tags] == ["*"]:
        return Condition(key, present=True)
    match = versions_of_tags(tags)
    if not match:
        raise LatticeError("precondition_failed", "The key does not have the version that If-Match names.")
    return Condition(key, match=match)
