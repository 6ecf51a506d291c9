"""The shapes of requests and responses that the API and the client share.

Separate, and plain dataclasses, so that the command line can use them without importing FastAPI.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final


@dataclass(frozen=True, slots=True)
class LungStatus:
    """One lung of one peer. Times are seconds ago; None where it never happened."""

    reachable: bool
    last_ok_s: float | None = None
    last_error: str | None = None


@dataclass(frozen=True, slots=True)
class PeerStatus:
    """One known peer. `state` is alive, suspect or dead; `last_heard_s` seconds since it was heard
    over P2P; `heads_equal` whether its last announced log root equals ours; `state_rules` by which rules
    it computes its state: roots are compared only with those of our own number."""

    id: str
    name: str
    state: str
    p2p: LungStatus
    http: LungStatus
    last_heard_s: float | None
    heads_equal: bool
    polled: bool
    addresses: list[str] = field(default_factory=list)
    state_rules: int | None = None


@dataclass(frozen=True, slots=True)
class SyncedWith:
    """A peer with which heads and both roots were equal after recomputation, and when (RFC 3339)."""

    peer: str
    at: str


@dataclass(frozen=True, slots=True)
class Status:
    """`GET /api/lattice/p2p/status`. Roots are hex, times seconds, `peer_count` peers heard over P2P;
    `forks` logs that are frozen (see `GET forks`)."""

    success: bool
    enabled: bool
    started: bool
    libp2p_available: bool
    error: str | None
    topic: str
    listen_multiaddrs: list[str]
    bootstrap_peers: list[str]
    peer_count: int
    has_peers: bool
    http_sync_enabled: bool
    sync_mode: str
    heartbeat_active: bool
    policy: str
    reason: str
    seconds_since_peer: float | None
    fallback_in_s: float | None
    bridged_over_http: list[str]
    resilient: bool
    merkle_root: str
    log_root: str
    synced: list[SyncedWith]
    peers: list[PeerStatus]
    name: str
    peer_id: str
    network: str
    version: str
    entry_count: int
    state_size: int
    forks: int
    uptime_s: float
    alarms: list[str]
    warnings: list[str]
    counters: dict[str, int] = field(default_factory=dict)
    headline: str = ""


def headline(status: Status) -> str:
    """The one sentence: how well the node stands. The command line and the page both say it."""
    if status.sync_mode == "ISOLATED":
        if status.reason == "alone":
            return "Network status: alone (no other node is known; `lattice invite` prints a ticket)"
        known = status.reason in ("", "no answer on either lung")
        why = "" if known else f": {status.reason}"
        return f"Network status: isolated (no peer answers on either lung{why})"
    policy = "" if status.policy == "auto" else f", policy {status.policy}"
    if status.resilient:
        return f"Network status: resilient (hybrid mode{policy})"
    lung = "P2P" if status.sync_mode == "P2P" else "HTTP"
    if not status.peers:
        return f"Network status: waiting for peers ({lung} mode{policy})"
    return f"Network status: on one leg ({lung} mode{policy}: only one lung has a reachable peer)"


@dataclass(frozen=True, slots=True)
class SwitchAnswer:
    """`POST /api/lattice/sync/switch`: the effective mode, the chosen policy, a sentence."""

    success: bool
    mode: str
    policy: str
    message: str


@dataclass(frozen=True, slots=True)
class Identity:
    """`GET /api/lattice/p2p/identity`: the peer id, and the multiaddrs under which it is dialled."""

    success: bool
    peer_id: str
    listen_addrs: list[str]
    name: str
    network: str


@dataclass(frozen=True, slots=True)
class Nodes:
    """`GET /api/lattice/nodes`: the base URLs of the known peers."""

    success: bool
    nodes: list[str]
    count: int


@dataclass(frozen=True, slots=True)
class KnownPeer:
    """One known peer. `id` is its peer id, or `url:` and the base URL until its identity is known;
    `sources` are among configured, ticket, learned, mdns, added."""

    id: str
    name: str
    state: str
    sources: list[str]
    addresses: list[str]


@dataclass(frozen=True, slots=True)
class KnownPeers:
    """`GET /api/lattice/peers`."""

    success: bool
    peers: list[KnownPeer]
    count: int


@dataclass(frozen=True, slots=True)
class PeerChange:
    """The answer to adding or forgetting a peer: the peer, as it is now or as it was."""

    success: bool
    peer: KnownPeer


@dataclass(frozen=True, slots=True)
class Sibling:
    """A live version that lost to the winner.

    `error` is null where `value` is shown. It is `unreadable_value` when the value is not JSON, and
    `value_left_out` when the values of the siblings before it fill the 2 MiB that are shown with one key:
    `value` is null then. `GET entries/{id}`, with what stands before the dot in `version` as the id, shows
    it among its ops, and `GET history/{key}` page by page.
    """

    version: str
    author: str
    clock: str
    value: Any
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Key:
    """One key as `GET keys/{key}` shows it.

    `version` names the winner and is the ETag; it, `author` and `clock` are null for a key that only
    has a counter. `clock` is milliseconds since 1970 and a count, as text (`1763632000000-0`).
    `adds` counts the additions and `total` is their exact sum, null where there are none: a number up
    to ±(2^53 − 1), and beyond that, where JSON numbers stop being exact, its decimal text. `error` is
    `unreadable_value` when the winner's value is not JSON; `value` is null then. `siblings` are all live
    versions beside the winner, the next best first.
    """

    key: str
    value: Any
    version: str | None
    author: str | None
    clock: str | None
    siblings: list[Sibling] = field(default_factory=list)
    adds: int = 0
    total: int | str | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class KeyPage:
    """`GET /api/lattice/keys`: keys in byte order; `next` is the `after` of the next page, or null.

    A page ends at `limit` keys, or before the key with which it would hold more than 4 MiB of keys and
    values, those of siblings included.
    """

    success: bool
    keys: list[Key]
    count: int
    next: str | None


@dataclass(frozen=True, slots=True)
class Head:
    """The newest entry held of one log. `epoch` is 16 hex digits, `id` hex; `frozen` is the seq from
    which a fork froze the log, else null."""

    author: str
    epoch: str
    seq: int
    id: str
    frozen: int | None


@dataclass(frozen=True, slots=True)
class Fork:
    """A log with two branches, frozen at the seq `frozen`, and what that took out here.

    `removed` counts the entries that left the state of this node, `keys` are those whose winner or
    counter changed (at most 256). `peer` and `lung` brought the evidence, null and `local` for ourselves.
    `proof` is the proof in hex, as in docs/reference/wire.md: anybody can verify it offline.
    """

    author: str
    epoch: str
    frozen: int
    removed: int
    keys: list[str]
    peer: str | None
    lung: str
    at: str
    proof: str


@dataclass(frozen=True, slots=True)
class Forks:
    """`GET /api/lattice/forks`: a page of the frozen logs, by author and epoch, at most some 4 MiB of
    them. `count` is how many stand in it, `next` the `after` of the next page, or null; the status says
    how many there are in all."""

    success: bool
    forks: list[Fork]
    count: int
    next: str | None = None


@dataclass(frozen=True, slots=True)
class LedgerState:
    """`GET /api/lattice/state`. Roots are hex; `timestamp` is RFC 3339 with milliseconds.

    `signature` is this node's, in hex, over `lattice/state/v1` NUL, the network id, both roots and
    the timestamp in milliseconds (u64). `state` and `next` come with `include=state`.
    """

    success: bool
    merkle_root: str
    log_root: str
    state_size: int
    entry_count: int
    heads: list[Head]
    timestamp: str
    timestamp_ms: int
    signature: str
    signed: bool
    state: list[Key] | None = None
    next: str | None = None


@dataclass(frozen=True, slots=True)
class Written:
    """The answer to a write: the entry that holds it, one version per op, the roots after it.

    `version` is the first of `versions`. `repeated` tells that an earlier request with the same
    idempotency key had written it.
    """

    success: bool
    id: str
    author: str
    epoch: str
    seq: int
    clock: str
    version: str
    versions: list[str]
    merkle_root: str
    log_root: str
    repeated: bool = False


@dataclass(frozen=True, slots=True)
class HistoryVersion:
    """One op of a key. `op` is put, delete or add; `value` is a put's, null with `error` set to
    `unreadable_value` when it is not JSON; `amount` is an add's.

    `replaces` are the versions that this op replaces, named or the earlier put of its log, held here or
    not; `replaced_by` the ops that replace it. `lung` is how its entry came (local, p2p, http, gossip,
    file), `peer` who sent it (null for our own), `arrived` when (RFC 3339, by this node's clock).
    """

    version: str
    op: str
    value: Any
    error: str | None
    amount: int | None
    live: bool
    winner: bool
    replaces: list[str]
    replaced_by: list[str]
    id: str
    op_index: int
    author: str
    epoch: str
    seq: int
    clock: str
    lung: str
    peer: str | None
    arrived: str
    arrived_ms: int


@dataclass(frozen=True, slots=True)
class History:
    """`GET history/{key}`: newest first by (clock, author, version); `next` is the `after` of the next
    page. `complete` is false when only the newest 10,000 ops of the key are listed (fewer, if they replace
    very many versions), with every live version; `replaced_by` is then of the listed ones."""

    success: bool
    key: str
    versions: list[HistoryVersion]
    count: int
    complete: bool
    next: str | None


@dataclass(frozen=True, slots=True)
class EntryOp:
    """One op of an entry. All but `index` and `size` are null for one that is stored and not applied."""

    index: int
    size: int
    op: str | None
    key: str | None
    value: Any
    error: str | None
    amount: int | None
    over: list[str]


@dataclass(frozen=True, slots=True)
class EntryInfo:
    """A stored entry. `size` is header and ops in bytes; `lung`, `peer` and `arrived` as in a history.

    `ops`, `header` and `seal` (hex; of the lowest sealed entry at or above) come with `entries/{id}`.
    """

    id: str
    author: str
    epoch: str
    seq: int
    prev: str
    clock: str
    op_count: int
    size: int
    lung: str
    peer: str | None
    arrived: str
    arrived_ms: int
    ops: list[EntryOp] | None = None
    header: str | None = None
    seal: str | None = None


@dataclass(frozen=True, slots=True)
class EntryPage:
    """`GET entries`: in log order (author, epoch, seq); `next` is the `after` of the next page."""

    success: bool
    entries: list[EntryInfo]
    count: int
    next: str | None


@dataclass(frozen=True, slots=True)
class ProvenVersion:
    """A live version in a proof: with the hash of its op and the header of its entry (hex)."""

    version: str
    op_hash: str
    header: str


@dataclass(frozen=True, slots=True)
class ProvenWinner:
    """The winner's op, its audit path in the entry, the headers up to the sealed entry, the seal (hex)."""

    op: str
    audit_path: list[str]
    headers: list[str]
    seal: str


@dataclass(frozen=True, slots=True)
class RootStatement:
    """A node's signature under its roots. `log_root` is null in a receipt."""

    signer: str
    state_root: str
    timestamp_ms: int
    signature: str
    log_root: str | None = None


@dataclass(frozen=True, slots=True)
class KeyProof:
    """`GET proof/{key}`; docs/reference/wire.md, sections 17 and 18, says how it is checked.

    `bucket`, `path` and `winner` stand in a proof; `target_hash`, `merkle_root` and `proof` in a receipt
    (`format=merkletools`).
    """

    success: bool
    format: str
    network: str
    key: str
    present: bool
    live: list[ProvenVersion]
    adds: int
    total: str
    statement: RootStatement
    bucket: str | None = None
    path: list[str] | None = None
    winner: ProvenWinner | None = None
    target_hash: str | None = None
    merkle_root: str | None = None
    proof: list[dict[str, str]] | None = None


@dataclass(frozen=True, slots=True)
class Imported:
    """`POST /api/lattice/import`: what became of the entries of one envelope of a parcel."""

    success: bool
    taken: int
    held: int
    waiting: int
    refused: int


@dataclass(frozen=True, slots=True)
class Health:
    """`GET /health`."""

    status: str


@dataclass(frozen=True, slots=True)
class Readiness:
    """`GET /readyz`: `checks` names what fails, with the reason for operators."""

    ready: bool
    checks: dict[str, str]


@dataclass(frozen=True, slots=True)
class Problem:
    """An error (RFC 9457): `code` is stable, `detail` says what happened and what to do."""

    success: bool
    type: str
    title: str
    status: int
    code: str
    detail: str | None = None


# The events of `GET /api/lattice/events`: the `data` of each type. `at` is RFC 3339, by this node's clock.


@dataclass(frozen=True, slots=True)
class EntryEvent:
    """`entry`: one entry was applied and is durable. `keys` are those that it touches.

    `lung` tells how it came (local, p2p, http, gossip, file) and `peer` from whom, null for our own.
    """

    at: str
    id: str
    author: str
    epoch: str
    seq: int
    clock: str
    keys: list[str]
    lung: str
    peer: str | None


@dataclass(frozen=True, slots=True)
class ModeEvent:
    """`mode`: the headline changed; `previous` is null for the first one after a start."""

    at: str
    mode: str
    previous: str | None
    reason: str


@dataclass(frozen=True, slots=True)
class PeerEvent:
    """`peer`: `change` is known, heard or lost (over P2P), state, or forgotten; `state` is alive,
    suspect or dead, as in the status."""

    at: str
    peer: str
    name: str
    change: str
    state: str


@dataclass(frozen=True, slots=True)
class AlarmEvent:
    """`alarm`: `raised` or, if not, cleared; `level` is ERROR or WARNING, as the text is logged."""

    at: str
    code: str
    raised: bool
    level: str
    text: str


@dataclass(frozen=True, slots=True)
class PolicyEvent:
    """`policy`: the operator chose auto, p2p or http; it is durable."""

    at: str
    policy: str


@dataclass(frozen=True, slots=True)
class LostEvent:
    """`lost`: events that this stream does not show, whatever its filter: read the keys again.

    `reason` is `overrun` (the ring moved on: `count` events from `first` to `last`) or `restart`
    (the id was given by another process of this node: count and `first` are null, unknown).
    """

    reason: str
    count: int | None
    first: str | None
    last: str


EventBody = EntryEvent | ModeEvent | PeerEvent | AlarmEvent | PolicyEvent
EVENT_SHAPES: Final[dict[str, type[EventBody | LostEvent]]] = {
    "entry": EntryEvent,
    "mode": ModeEvent,
    "peer": PeerEvent,
    "alarm": AlarmEvent,
    "policy": PolicyEvent,
    "lost": LostEvent,
}
EVENT_TYPES: Final[dict[type[EventBody | LostEvent], str]] = {
    shape: name for name, shape in EVENT_SHAPES.items()
}
