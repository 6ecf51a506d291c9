"""What a mixture of programs means for this node, in words: who has other numbers, what is not applied.

Separate because it only compares numbers that others keep, and because the sentences are what an
operator acts on in the middle of an upgrade.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ..core.messages import RULES_VERSION, WIRE_VERSION
from .registry import Peer


def version_warnings(peers: Iterable[Peer], novelties: Mapping[str, int]) -> list[str]:
    """One sentence for each thing to upgrade, sorted."""
    found = []
    if novelties:
        listed = ", ".join(f"{what}: {count}" for what, count in novelties.items())
        found.append(
            f"{sum(novelties.values())} ops of a newer program are stored, passed on and not applied "
            f"({listed}): upgrade this node"
        )
    for peer in peers:
        theirs = peer.roots.rules if peer.roots is not None else RULES_VERSION
        if theirs != RULES_VERSION:
            which = "this node" if theirs > RULES_VERSION else "that one"
            found.append(
                f"{_shown(peer)} computes its state by rules {theirs}, this node by rules {RULES_VERSION}: "
                f"entries go both ways, state roots are not compared; upgrade {which}"
            )
        elif peer.wire not in (0, WIRE_VERSION):
            which = "this node" if peer.wire > WIRE_VERSION else "that one"
            found.append(
                f"{_shown(peer)} speaks wire version {peer.wire}, this node {WIRE_VERSION}: what one of them "
                f"does not know is skipped and counted; upgrade {which}"
            )
    return sorted(found)


def _shown(peer: Peer) -> str:
    return f"{peer.name} ({peer.key})" if peer.name else peer.key
