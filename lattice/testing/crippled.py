"""A build of the node that never repairs: no sync rounds over either lung.

Separate, and never part of a product, because a simulator that lets this build pass is not looking.
"""

from __future__ import annotations

from ..core.failover_events import PollDue, RoundDue
from ..core.messages import Beat
from ..node.heartbeat import Order
from ..node.node import Node


class NodeWithoutAntiEntropy(Node):
    """Gossip, beats and probes work; whatever gossip loses stays lost."""

    def _act(self, order: Order) -> None:
        if isinstance(order, RoundDue | PollDue):
            return
        super()._act(order)

    def _beaten(self, peer_id: str, beat: Beat) -> bool:
        super()._beaten(peer_id, beat)
        return False
