"""The calls of the API as data: method, path, query, headers, body, and the shape of the answer.

Separate from the clients that carry them out, so that the blocking and the async client are the same
client: neither knows a route.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeVar
from urllib.parse import quote

import orjson

from ..core.errors import CODES, LatticeError
from ..schemas import (
    EntryInfo,
    EntryPage,
    Forks,
    Health,
    History,
    Identity,
    Imported,
    Key,
    KeyPage,
    KnownPeers,
    LedgerState,
    Nodes,
    PeerChange,
    Readiness,
    Status,
    SwitchAnswer,
    Written,
)
from .decode import decode

T = TypeVar("T")

_API: Final = "/api/lattice"
_JSON: Final = "application/json"
_DETAIL_CHARS_MAX: Final = 2000


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One request. `target` is path and query, percent-encoded; `accepted` the statuses that carry
    the answer."""

    method: str
    target: str
    shape: type[T]
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    accepted: tuple[int, ...] = (200, 201)

    def read(self, status: int, body: bytes) -> T:
        """The answer. Raises the LatticeError that the node sent, or `unreachable` for anything that
        a node would not say."""
        try:
            data = orjson.loads(body)
        except orjson.JSONDecodeError as error:
            raise LatticeError(
                "unreachable", f"the answer ({status}) is not JSON, so it is not from a Lattice node"
            ) from error
        if status in self.accepted:
            return decode(self.shape, data)
        raise _problem(status, data)


def _problem(status: int, data: object) -> LatticeError:
    given: dict[str, Any] = data if isinstance(data, dict) else {}
    code = given.get("code")
    detail = str(given.get("detail") or given.get("title") or f"status {status}")[:_DETAIL_CHARS_MAX]
    if isinstance(code, str) and code in CODES:
        return LatticeError(code, detail)
    return LatticeError("internal" if status >= 500 else "bad_request", detail)


def key_path(key: str, under: str = "keys") -> str:
    """The path of a key, every byte that means something in a URL percent-encoded. Raises `bad_key`."""
    encoded = _quoted(key, "key", "bad_key")
    if set(encoded) == {"."}:  # `.` and `..` would be taken for steps in the path
        encoded = encoded.replace(".", "%2E")
    return f"{_API}/{under}/{encoded}"


def _quoted(text: str, what: str, code: str = "bad_request") -> str:
    """The text for a path. Half of a surrogate pair, as bytes of a command line become that are no text,
    cannot be sent."""
    try:
        return quote(text, safe="")
    except UnicodeEncodeError as error:
        raise LatticeError(code, f"the {what} {text[:100]!r} is not Unicode text") from error


def header_value(text: str, what: str) -> str:
    """A version or an id that goes into a header: visible ASCII. Raises `bad_request`."""
    if not (text.isascii() and text.isprintable()):
        raise LatticeError("bad_request", f"{text[:100]!r} is no {what}")
    return text


def new_idempotency_key() -> str:
    """A fresh key: a repeat of the very request answers the first result."""
    return uuid.uuid4().hex


def status() -> Call[Status]:
    return Call("GET", f"{_API}/p2p/status", Status)


def identity() -> Call[Identity]:
    return Call("GET", f"{_API}/p2p/identity", Identity)


def nodes() -> Call[Nodes]:
    return Call("GET", f"{_API}/nodes", Nodes)


def forks(*, after: str | None = None, limit: int = 100) -> Call[Forks]:
    """`after` is the `next` of the page before."""
    return Call("GET", f"{_API}/forks{_query(after=after, limit=limit)}", Forks)


def peers() -> Call[KnownPeers]:
    return Call("GET", f"{_API}/peers", KnownPeers)


def add_peer(address: str) -> Call[PeerChange]:
    _quoted(address, "address")
    body = orjson.dumps({"address": address})
    return Call("POST", f"{_API}/peers", PeerChange, {"content-type": _JSON}, body)


def forget_peer(name: str) -> Call[PeerChange]:
    """`name` is a peer id or one of the peer's addresses."""
    return Call("DELETE", f"{_API}/peers/{_quoted(name, 'address')}", PeerChange)


def state(
    *, with_keys: bool = False, prefix: str = "", after: str | None = None, limit: int = 100
) -> Call[LedgerState]:
    query = _query(include="state", prefix=prefix or None, after=after, limit=limit) if with_keys else ""
    return Call("GET", f"{_API}/state{query}", LedgerState)


def switch(mode: str) -> Call[SwitchAnswer]:
    return Call("POST", f"{_API}/sync/switch{_query(mode=mode)}", SwitchAnswer)


def health() -> Call[Health]:
    return Call("GET", "/health", Health)


def readiness() -> Call[Readiness]:
    return Call("GET", "/readyz", Readiness, accepted=(200, 503))


def keys(*, prefix: str = "", after: str | None = None, limit: int = 100) -> Call[KeyPage]:
    return Call("GET", f"{_API}/keys{_query(prefix=prefix or None, after=after, limit=limit)}", KeyPage)


def events(*, prefix: str = "", types: Sequence[str] = ()) -> Call[object]:
    """For `Client.events`, which follows the answer; it has no end for `send` to wait for."""
    query = _query(prefix=prefix or None, type=",".join(types) or None)
    return Call("GET", f"{_API}/events{query}", object)


def get(key: str) -> Call[Key]:
    return Call("GET", key_path(key), Key)


def history(key: str, *, after: str | None = None, limit: int = 100) -> Call[History]:
    """`after` is the last version of the page before."""
    return Call("GET", f"{key_path(key, 'history')}{_query(after=after, limit=limit)}", History)


def entries(
    *,
    author: str | None = None,
    epoch: str | None = None,
    after: str | None = None,
    limit: int = 100,
    lung: str | None = None,
) -> Call[EntryPage]:
    query = _query(author=author, epoch=epoch, after=after, limit=limit, lung=lung)
    return Call("GET", f"{_API}/entries{query}", EntryPage)


def entry(entry_id: str) -> Call[EntryInfo]:
    return Call("GET", f"{_API}/entries/{_quoted(entry_id, 'id')}", EntryInfo)


def proof(key: str, *, merkletools: bool = False) -> Call[dict[str, Any]]:
    """The proof as it is kept and checked: `core.proofs.parse_proof` reads it, or `parse_receipt`."""
    query = _query(format="merkletools" if merkletools else None)
    return Call("GET", f"{key_path(key, 'proof')}{query}", dict[str, Any])


def put(
    key: str,
    value: bytes,
    *,
    ack: int = 1,
    if_match: str | None = None,
    if_absent: bool = False,
    idempotency_key: str | None = None,
) -> Call[Written]:
    """`value` is JSON text. `if_match` is a version, or `*`."""
    headers = _write_headers(idempotency_key, if_match)
    if if_absent:
        headers["if-none-match"] = "*"
    return Call("PUT", f"{key_path(key)}{_ack(ack)}", Written, headers, value)


def delete(
    key: str, *, ack: int = 1, if_match: str | None = None, idempotency_key: str | None = None
) -> Call[Written]:
    return Call("DELETE", f"{key_path(key)}{_ack(ack)}", Written, _write_headers(idempotency_key, if_match))


def batch(
    ops: Sequence[Mapping[str, Any]], *, ack: int = 1, idempotency_key: str | None = None
) -> Call[Written]:
    """`ops` as in `POST entries`: 1 to 256 objects with op, key, and value or amount."""
    body = orjson.dumps({"ops": list(ops)})
    return Call("POST", f"{_API}/entries{_ack(ack)}", Written, _write_headers(idempotency_key, None), body)


def import_envelope(envelope: bytes) -> Call[Imported]:
    """`envelope` is one of a parcel (see `lattice.core.parcel`)."""
    return Call("POST", f"{_API}/import", Imported, {"content-type": "application/octet-stream"}, envelope)


def _write_headers(idempotency_key: str | None, if_match: str | None) -> dict[str, str]:
    headers = {"content-type": _JSON, "idempotency-key": idempotency_key or new_idempotency_key()}
    if if_match is not None:
        version = header_value(if_match, "version")
        headers["if-match"] = version if version == "*" else f'"{version}"'
    return headers


def _ack(ack: int) -> str:
    return f"?ack={ack}" if ack != 1 else ""


def _query(**given: str | int | None) -> str:
    pairs = [
        f"{name}={_quoted(str(value), f'value of {name!r}')}"
        for name, value in given.items()
        if value is not None
    ]
    return f"?{'&'.join(pairs)}" if pairs else ""
