"""The gossip watchdog: cut a connection over which gossip has silently died.

Separate from gossip itself because its remedy is about connections: when one of two connections to
a peer closes, libp2p can go on sending into nothing while every counter looks healthy. Only
disconnecting and greeting anew repairs it.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import trio

from lattice.transport.p2p.counters import Counters
from lattice.transport.p2p.gossip import Gossip
from lattice.transport.p2p.tuning import Tuning

if TYPE_CHECKING:
    from libp2p.peer.id import ID

    from lattice.transport.p2p.host import Host


async def watch(host: Host, gossip: Gossip, counters: Counters, tuning: Tuning, log: logging.Logger) -> None:
    """Disconnect admitted peers that gossip does not reach for too long; runs until cancelled."""
    deaf_since: dict[ID, float] = {}
    worked: set[ID] = set()
    while True:
        await trio.sleep(tuning.watch_interval_s)
        now = trio.current_time()
        admitted = host.gate.admitted_peers
        reached = gossip.reached()
        worked = (worked & admitted) | reached
        deaf_since = {peer: deaf_since.get(peer, now) for peer in admitted - reached}
        for peer, since in list(deaf_since.items()):
            limit = tuning.deaf_s if peer in worked else tuning.deaf_first_s
            if now - since < limit:
                continue
            counters.add("gossip_watchdog")
            log.debug("gossip with %s is dead: disconnecting", peer)
            del deaf_since[peer]
            with trio.move_on_after(tuning.close_s):
                await host.basic.disconnect(peer)
