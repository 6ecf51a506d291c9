"""The dialer: stay connected with every known peer, without two ends dialling at once.

Separate because libp2p's own ways of finding and dialling peers (bootstrap, auto-connect, mDNS)
each break the host or the dial rule in some way, and all of them are off.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

import trio
from libp2p.exceptions import BaseLibp2pError
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo

from lattice.core.limits import KNOWN_NODES_MAX
from lattice.transport.p2p import addresses
from lattice.transport.p2p.counters import Counters
from lattice.transport.p2p.roster import Roster
from lattice.transport.p2p.streams import STREAM_ERRORS
from lattice.transport.p2p.tuning import Tuning

if TYPE_CHECKING:
    from multiaddr import Multiaddr

    from lattice.transport.p2p.host import Host

_ED25519_ID_LENGTH: Final = 38


def parse_peer(text: str) -> ID | None:
    """The peer id of an Ed25519 key from its `12D3Koo…` text; None for anything else."""
    try:
        peer = ID.from_base58(text)
    except ValueError:
        return None
    raw = peer.to_bytes()
    return peer if len(raw) == _ED25519_ID_LENGTH and raw.startswith(b"\x00\x24\x08\x01\x12\x20") else None


class Targets:
    """The known peers and their addresses; survives the host's rebuilds."""

    def __init__(self) -> None:
        self._addresses: dict[ID, tuple[str, ...]] = {}
        self._changed = trio.Event()

    def replace(self, known: Mapping[str, Sequence[str]]) -> None:
        """Names that are no Ed25519 peer ids are left out, as is everything over the cap."""
        found: dict[ID, tuple[str, ...]] = {}
        for text, listed in known.items():
            peer = parse_peer(text)
            if peer is not None and listed and len(found) < KNOWN_NODES_MAX:
                found[peer] = tuple(listed)
        if found != self._addresses:
            self._addresses = found
            self._changed.set()
            self._changed = trio.Event()

    def of(self, peer: ID) -> tuple[str, ...]:
        return self._addresses.get(peer, ())

    def peers(self) -> frozenset[ID]:
        return frozenset(self._addresses)

    async def wait_changed(self) -> None:
        await self._changed.wait()


class Dialer:
    """Dials the targets of one life of the host."""

    def __init__(
        self,
        host: Host,
        roster: Roster,
        targets: Targets,
        counters: Counters,
        tuning: Tuning,
        log: logging.Logger,
    ) -> None:
        self._host = host
        self._roster = roster
        self._targets = targets
        self._counters = counters
        self._tuning = tuning
        self._log = log
        self._limit = trio.CapacityLimiter(tuning.dials_at_once)

    async def run(self) -> None:
        """One task for each target, started and cancelled as the targets change."""
        scopes: dict[ID, trio.CancelScope] = {}
        async with trio.open_nursery() as nursery:
            while True:
                wanted = self._targets.peers() - {self._host.peer_id}  # libp2p would dial itself
                for peer in scopes.keys() - wanted:
                    scopes.pop(peer).cancel()
                for peer in sorted(wanted - scopes.keys(), key=ID.to_bytes):
                    scope = scopes[peer] = trio.CancelScope()
                    nursery.start_soon(self._stay_connected, peer, scope)
                await self._targets.wait_changed()

    async def _stay_connected(self, peer: ID, scope: trio.CancelScope) -> None:
        we_are_smaller = self._host.peer_id.to_bytes() < peer.to_bytes()
        failures = 0
        with scope:
            while True:
                present = self._roster.presence(peer)
                if present is not None:
                    await present.ended.wait()
                    failures = 0
                # Two ends that dial at once leave two connections, and losing one of them can
                # silence gossip for good. So the smaller id dials at once, the larger waits.
                pause = 0.0 if we_are_smaller else self._tuning.dial_grace_s
                if failures:
                    pause = max(pause, self._backoff(failures))
                if await self._connected_within(peer, pause):
                    continue
                if len(self._roster) >= self._tuning.dial_until:
                    failures = min(failures + 1, 5)  # enough company: look again later
                    continue
                if not await self._dial(peer):
                    failures += 1

    def _backoff(self, failures: int) -> float:
        tuning = self._tuning
        longest = tuning.dial_backoff_first_s * 2.0 ** min(failures - 1, 16)
        # A handful of peers is tried again within seconds of a healed network; of hundreds that are
        # away together two are dialled a second.
        most = max(tuning.dial_backoff_few_s, len(self._targets.peers()) / 2)
        # Half fixed, half random: peers that lost each other together do not return together.
        return min(longest, most, tuning.dial_backoff_max_s) * random.uniform(0.5, 1.0)

    async def _connected_within(self, peer: ID, seconds: float) -> bool:
        with trio.move_on_after(seconds):
            await self._roster.wait_present(peer)
        return self._roster.presence(peer) is not None

    async def _dial(self, peer: ID) -> bool:
        """Try the peer's addresses one after the other; names are looked up each time."""
        async with self._limit:
            found: list[Multiaddr] = []
            with trio.move_on_after(self._tuning.dial_s):
                found = await addresses.resolve(self._targets.of(peer), self._tuning.addresses_per_dial)
            for address in found:
                if self._roster.presence(peer) is not None or await self._dial_one(peer, address):
                    return True
            return False

    async def _dial_one(self, peer: ID, address: Multiaddr) -> bool:
        network = self._host.network
        # A failed dial blocks the peer for a minute, and of several addresses libp2p tries one that
        # need not be the fresh one: so it is told exactly one, and remembers none.
        network.unblock_peer(peer)
        self._host.basic.get_peerstore().clear_addrs(peer)
        try:
            with trio.fail_after(self._tuning.dial_s):
                await self._host.basic.connect(PeerInfo(peer, [address]))
        except (BaseLibp2pError, trio.TooSlowError, *STREAM_ERRORS) as error:
            self._counters.add("dial_failed")
            self._log.debug("cannot dial %s at %s: %r", peer, address, error)
            return False
        self._counters.add("dial_ok")
        return True
