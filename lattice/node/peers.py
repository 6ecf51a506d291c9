"""Known peers as operators see, add and name them: text in, rows of the registry out.

Separate from the registry, which takes addresses that are already judged, and from the node, which
carries out what is decided here.
"""

from __future__ import annotations

from ..core.addresses import parse_multiaddr, parse_node_url
from ..core.errors import LatticeError, MalformedError
from ..core.failover_events import MonitorView
from ..core.limits import ADDRESSES_MAX, KNOWN_NODES_MAX
from ..core.messages import Addresses
from ..schemas import KnownPeer
from .registry import Peer, Registry

_SCHEMES = ("http://", "https://")


def known_peers(registry: Registry, view: MonitorView) -> list[KnownPeer]:
    """All known peers, with where each is reached and how this node came to know it."""
    states = {peer.peer: peer.liveness.value for peer in view.peers}
    return [
        KnownPeer(
            peer.key,
            peer.name,
            states.get(peer.key, "dead"),
            sorted(peer.sources),
            [*peer.multiaddrs, *peer.urls],
        )
        for peer in registry.all()
    ]


def judge_address(text: str, registry: Registry, own_id: str, own: Addresses) -> tuple[Addresses, str | None]:
    """The address that an operator wants to add, and the peer id in it. Raises `bad_request`."""
    peer_id: str | None = None
    try:
        if text.lower().startswith(_SCHEMES):
            found = Addresses(http=(parse_node_url(text),))
        else:
            parsed = parse_multiaddr(text, peer_id="required", concrete=True)
            found, peer_id = Addresses(p2p=(str(parsed),)), parsed.peer_id
    except MalformedError as error:
        raise LatticeError(
            "bad_request",
            f"{text[:200]!r} is no address of a node: {error.message}. Give a multiaddr that ends in "
            "/p2p/PEER_ID, or a base URL.",
        ) from error
    if peer_id == own_id or set(found.http) & set(own.http):
        raise LatticeError("bad_request", f"{text[:200]!r} is this node's own address.")
    peer = registry.get(peer_id) if peer_id is not None else registry.find_url(found.http[0])
    if peer is None and len(registry) >= KNOWN_NODES_MAX:
        raise LatticeError(
            "bad_request", f"This node knows {KNOWN_NODES_MAX} peers, and no more fit: forget one first."
        )
    if peer is not None and len({*peer.added.p2p, *found.p2p}) > ADDRESSES_MAX:
        raise LatticeError(
            "bad_request", f"{ADDRESSES_MAX} addresses were added for this peer: forget it and add anew."
        )
    return found, peer_id


def find_peer(registry: Registry, text: str) -> Peer | None:
    """The peer of this id, base URL or multiaddr."""
    found = registry.get(text)
    if found is not None:
        return found
    try:
        if text.lower().startswith(_SCHEMES):
            return registry.find_url(parse_node_url(text))
        named = parse_multiaddr(text)
    except MalformedError:
        return None
    if named.peer_id is not None:
        return registry.get(named.peer_id)
    return next((peer for peer in registry.all() if _listens_at(peer, str(named))), None)


def _listens_at(peer: Peer, address: str) -> bool:
    return any(text.partition("/p2p/")[0] == address for text in peer.multiaddrs)
