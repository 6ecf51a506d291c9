"""The peers that this node knows: where they are, who they turned out to be, what they last said.

Separate because addresses come from four places (settings, ticket, signed Hellos and presence, the
store) and must become one list in which nobody stands twice and we ourselves never stand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final, Literal

import orjson

from ..core.addresses import (
    host_of_url,
    ip_of,
    is_loopback_host,
    is_unroutable,
    parse_multiaddr,
    parse_node_url,
)
from ..core.errors import MalformedError
from ..core.failover_events import PLACEHOLDER_PREFIX
from ..core.limits import ADDRESSES_MAX, BOOTS_PER_PEER_MAX, HINTS_MAX, KNOWN_NODES_MAX
from ..core.messages import Addresses, Roots

# What was learned leaves room for what the settings name, which is read after it.
_ROOM_FOR_SETTINGS: Final = 64

Source = Literal["configured", "ticket", "learned", "mdns", "added"]


@dataclass(slots=True)
class Peer:
    """One known peer. `key` is its peer id, or `url:<base url>` until its identity is known."""

    key: str
    name: str = ""
    configured: Addresses = field(default_factory=Addresses)
    learned: Addresses = field(default_factory=Addresses)
    added: Addresses = field(default_factory=Addresses)
    hinted: Addresses = field(default_factory=Addresses)
    sources: set[Source] = field(default_factory=set)
    roots: Roots | None = None
    wire: int = 0  # of its last Hello
    synced_ms: int | None = None
    held_commit: int = -1
    url_turn: int = 0
    presence: tuple[int, int] = (0, 0)
    past_boots: set[int] = field(default_factory=set)

    @property
    def is_placeholder(self) -> bool:
        return self.key.startswith(PLACEHOLDER_PREFIX)

    @property
    def multiaddrs(self) -> tuple[str, ...]:
        kinds = (self.added, self.configured, self.learned, self.hinted)
        return tuple(dict.fromkeys(text for kind in kinds for text in kind.p2p))

    @property
    def urls(self) -> tuple[str, ...]:
        kinds = (self.added, self.configured, self.learned, self.hinted)
        return tuple(dict.fromkeys(text for kind in kinds for text in kind.http))

    def url(self) -> str | None:
        """The URL to try now; `url_failed` moves on to the next."""
        urls = self.urls
        return urls[self.url_turn % len(urls)] if urls else None

    def url_failed(self) -> None:
        self.url_turn += 1

    def take_presence(self, boot: int, counter: int) -> bool:
        """Whether this presence is newer than the last: one-way messages are not challenged, so at
        least none may be shown twice, and none of a boot that another has followed."""
        last_boot, last_counter = self.presence
        if boot == last_boot:
            if counter <= last_counter:
                return False
        elif boot in self.past_boots or len(self.past_boots) >= BOOTS_PER_PEER_MAX:
            # None is ever let go of: it could be shown again as the newest, and end the true one.
            return False
        elif last_boot:
            self.past_boots.add(last_boot)
        self.presence = (boot, counter)
        return True


class Registry:
    """All known peers, by key. `changed` rises with every change of an address."""

    def __init__(
        self,
        own_id: str,
        *,
        takes_loopback: Callable[[], bool] = lambda: True,
        refused: Callable[[str], None] = lambda reason: None,
        let_go: Callable[[Iterable[str]], str | None] = lambda keys: None,
    ) -> None:
        """`takes_loopback` says whether what others announce may be on loopback: only where this node
        itself is nowhere else. `refused` counts each announced address that was not taken, by reason.
        `let_go` is asked, when the registry is full, which of these peers may make room for another."""
        self._own_id = own_id
        self._takes_loopback = takes_loopback
        self._refused = refused
        self._let_go = let_go
        self._peers: dict[str, Peer] = {}
        self._own_urls: set[str] = set()
        self._hints: dict[str, Addresses] = {}
        self.changed = 0

    def __len__(self) -> int:
        return len(self._peers)

    def all(self) -> list[Peer]:
        return list(self._peers.values())

    def get(self, key: str) -> Peer | None:
        return self._peers.get(key)

    def add_url(self, url: str) -> Peer | None:
        """A configured base URL. None when it is our own; the peer itself if it is known already."""
        if url in self._own_urls:
            return None
        known = self.find_url(url)
        if known is not None:
            return known
        peer = self._add(PLACEHOLDER_PREFIX + url, configured=Addresses(http=(url,)))
        if peer is not None:
            peer.sources.add("configured")
        return peer

    def add_peer(
        self, peer_id: str, name: str, addresses: Addresses, source: Source = "configured"
    ) -> Peer | None:
        """A peer of known identity from the settings or the ticket. None for ourselves."""
        peer = self._add(peer_id)
        if peer is not None:
            peer.sources.add(source)
            peer.name = peer.name or name
            peer.configured = _merged(peer.configured, addresses)
            self.changed += 1
        return peer

    def learn(self, peer_id: str, name: str, addresses: Addresses) -> Peer | None:
        """What a peer has signed about itself; replaces what it said before. Bad ones are dropped."""
        peer = self._add(peer_id)
        if peer is None:
            return None
        peer.sources.add("learned")
        clean = self._clean(addresses, peer_id)
        if peer.learned != clean or (name and peer.name != name):
            peer.learned = clean
            peer.name = name or peer.name
            self.changed += 1
        return peer

    def identify(self, url: str, peer_id: str) -> Peer | None:
        """The node behind a configured URL is `peer_id`: its placeholder becomes that peer."""
        placeholder = self._peers.pop(PLACEHOLDER_PREFIX + url, None)
        if peer_id == self._own_id:
            self._own_urls.add(url)
            self.changed += placeholder is not None
            return None
        peer = self._add(peer_id)
        if peer is not None and placeholder is not None:
            peer.configured = _merged(peer.configured, placeholder.configured)
            peer.added = _merged(peer.added, placeholder.added)
            peer.sources |= placeholder.sources
            self.changed += 1
        return peer

    def add(self, address: Addresses, peer_id: str | None) -> Peer | None:
        """One address that an operator added to the running node; without a peer id it is a URL.

        None for ourselves and when no further peer fits. Remembered until it is forgotten.
        """
        if peer_id is not None:
            peer = self._add(peer_id)
        else:
            url = address.http[0]
            if url in self._own_urls:
                return None
            peer = self.find_url(url) or self._add(PLACEHOLDER_PREFIX + url)
        if peer is not None:
            peer.sources.add("added")
            peer.added = _merged(peer.added, address)
            self.changed += 1
        return peer

    def hint(self, peer_id: str, addresses: Addresses) -> bool:
        """Where a node may be, as discovery says: no proof, so it makes no peer. None are given when it
        is gone. Whether it is a new place of somebody who is not known."""
        clean = self._clean(addresses, peer_id)
        peer = self._peers.get(peer_id)
        if peer is not None:
            if peer.hinted != clean:
                self._take_hint(peer, clean)
                self.changed += 1
            return False
        if peer_id == self._own_id or self._hints.get(peer_id, Addresses()) == clean:
            return False
        self._hints.pop(peer_id, None)
        if clean != Addresses():
            if len(self._hints) >= HINTS_MAX:
                del self._hints[next(iter(self._hints))]
            self._hints[peer_id] = clean
        self.changed += 1
        return peer_id in self._hints

    def hinted(self, peer_id: str) -> Addresses:
        """The places hinted at for somebody who is not known."""
        return self._hints.get(peer_id, Addresses())

    @staticmethod
    def _take_hint(peer: Peer, addresses: Addresses) -> None:
        peer.hinted = addresses
        if addresses != Addresses():
            peer.sources.add("mdns")

    def dial_targets(self) -> dict[str, tuple[str, ...]]:
        """Whom the P2P lung dials: the peers, and those that discovery hints at."""
        hinted = {peer_id: addresses.p2p for peer_id, addresses in self._hints.items() if addresses.p2p}
        known = {
            peer.key: peer.multiaddrs
            for peer in self._peers.values()
            if not peer.is_placeholder and peer.multiaddrs
        }
        return hinted | known

    def find_url(self, url: str) -> Peer | None:
        """The peer that has this base URL."""
        return next((peer for peer in self._peers.values() if url in peer.urls), None)

    def forget(self, key: str) -> bool:
        """Drop a peer with all its addresses; whether there was one."""
        found = self._peers.pop(key, None) is not None
        self.changed += found
        return found

    def _add(self, key: str, configured: Addresses | None = None) -> Peer | None:
        if key == self._own_id:
            return None
        peer = self._peers.get(key)
        if peer is None:
            if len(self._peers) >= KNOWN_NODES_MAX and not self._make_room():
                return None
            peer = self._peers[key] = Peer(key)
            if configured is not None:
                peer.configured = configured
            self._take_hint(peer, self._hints.pop(key, Addresses()))
            self.changed += 1
        return peer

    def _make_room(self) -> bool:
        """Let go of a peer that is known by its own word alone and was never in sync: who makes thousands
        of names must not keep a true node out for ever."""
        # Not yet looked through: whoever is asked may decide without.
        own_word = (
            key
            for key, peer in self._peers.items()
            if peer.sources <= {"learned", "mdns"} and peer.synced_ms is None
        )
        gone = self._let_go(own_word)
        return gone is not None and self.forget(gone)

    def _clean(self, addresses: Addresses, peer_id: str) -> Addresses:
        """Only well-formed, concrete addresses that claim no other identity, at places where another
        machine's node may be: what a member announces must not make us knock at our own services."""
        p2p, http = [], []
        for text in addresses.p2p[:ADDRESSES_MAX]:
            try:
                parsed = parse_multiaddr(text, concrete=True)
            except MalformedError:
                self._refused("malformed")
                continue
            if parsed.peer_id in (None, peer_id) and self._may_be_at(parsed.host):
                p2p.append(str(parsed))
        for text in addresses.http[:ADDRESSES_MAX]:
            try:
                url = parse_node_url(text)
            except MalformedError:
                self._refused("malformed")
                continue
            if self._may_be_at(host_of_url(url)):
                http.append(url)
        return Addresses(tuple(p2p), tuple(http))

    def _may_be_at(self, host: str) -> bool:
        address = ip_of(host)
        if address is not None and is_unroutable(address):
            self._refused("unroutable")
        elif is_loopback_host(host) and not self._takes_loopback():
            self._refused("loopback")
        else:
            return True
        return False

    def dump(self) -> bytes:
        """What is remembered across restarts: identities with the addresses they signed, and what
        an operator added."""
        rows = [
            {
                "id": peer.key,
                "name": peer.name,
                "p2p": peer.learned.p2p,
                "http": peer.learned.http,
                "added": {"p2p": peer.added.p2p, "http": peer.added.http},
            }
            for peer in self._peers.values()
            if not peer.is_placeholder or peer.added.http
        ]
        return orjson.dumps(rows)

    def restore(self, data: bytes) -> None:
        """The inverse of dump, for what this program wrote itself."""
        for row in orjson.loads(data):
            key, added = row["id"], row.get("added", {})  # earlier versions knew no added ones
            if not key.startswith(PLACEHOLDER_PREFIX):
                if len(self._peers) >= KNOWN_NODES_MAX - _ROOM_FOR_SETTINGS and not any(added.values()):
                    continue
                self.learn(key, row["name"], Addresses(tuple(row["p2p"]), tuple(row["http"])))
            for text in added.get("p2p", ()):
                self.add(Addresses(p2p=(text,)), key)
            for text in added.get("http", ()):
                self.add(Addresses(http=(text,)), None if key.startswith(PLACEHOLDER_PREFIX) else key)


def _merged(first: Addresses, second: Addresses) -> Addresses:
    return Addresses(
        tuple(dict.fromkeys((*first.p2p, *second.p2p))), tuple(dict.fromkeys((*first.http, *second.http)))
    )
