"""Restraint: the budgets of peers, applied: what is charged to whom, what is said of it, what then stops.

Separate because every way in (a link, a gossip message, a poll's answer) asks the same two questions, and
the core's budgets know neither the clock nor the log.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import trio

from ..core.budget import NEVER_COMPLETE, Budgets
from ..core.limits import REFUSAL_BYTES_MIN
from ..core.messages import Entries, Message, Proof
from .ports import Log

# Costs no verification, and comes from honest nodes while a network key is replaced.
_NOT_BLAMED = "unknown_key_number"


class Restraint:
    """`count(name)` counts events; `expel(peer_id)` closes the peer's connections on the P2P lung."""

    def __init__(self, log: Log, count: Callable[[str], None], expel: Callable[[str], None]) -> None:
        self._budgets = Budgets()
        self._log = log
        self._count = count
        self._expel = expel

    @property
    def charged(self) -> Mapping[str, int]:
        """The bytes ever charged, by lung."""
        return dict(self._budgets.charged)

    @property
    def restrained(self) -> int:
        """How many budgets are used up, or on back-off, now."""
        return len(self._budgets.waiting(trio.current_time()))

    def charge(self, peer_id: str, lung: str, size: int) -> None:
        if self._budgets.charge(peer_id, lung, size, trio.current_time()):
            self._count(f"budget_spent_{lung}")
            self._log.warning(
                "SYNC",
                "a peer sent so much that is worth nothing that it is not listened to for a while",
                peer=peer_id,
                lung=lung,
            )
            if lung == "p2p":
                self._expel(peer_id)

    def blame(self, peer_id: str, lung: str, reason: str, size: int) -> None:
        """An envelope of this peer was refused for `reason`."""
        if reason != _NOT_BLAMED:
            self.charge(peer_id, lung, size)

    def failed(self, peer_id: str, lung: str, reason: str) -> None:
        """An exchange with this peer failed for `reason`: its own doing, or the wire's."""
        if reason in NEVER_COMPLETE:
            self.charge(peer_id, lung, REFUSAL_BYTES_MIN)

    def refuses(self, peer_id: str, lung: str, what: str) -> bool:
        """Whether the peer has no budget left; then `what` counts as refused for that."""
        spent = self._budgets.is_spent(peer_id, lung, trio.current_time())
        if spent:
            self._count(f"{what}_over_budget_{lung}")
        return spent

    def sifted(self, peer_id: str, lung: str, messages: Sequence[Message]) -> tuple[Message, ...]:
        """The messages without what would have to be verified, if the peer has no budget left."""
        kept = tuple(message for message in messages if not isinstance(message, Entries | Proof))
        if len(kept) == len(messages) or not self.refuses(peer_id, lung, "entries"):
            return tuple(messages)
        return kept

    def round_ended(self, peer_id: str, *, fruitless: bool) -> None:
        """A round that we opened over P2P; over HTTP the monitor sees to the back-off of its polls."""
        if fruitless:
            self._count("rounds_fruitless_p2p")
        if self._budgets.round_ended(peer_id, "p2p", fruitless=fruitless, now=trio.current_time()):
            self._count("backoff_p2p")
            self._log.debug("SYNC", "rounds with a peer bring nothing: it is asked less often", peer=peer_id)

    def round_failed(self, peer_id: str, reason: str) -> None:
        """A round that we opened over P2P broke off."""
        self.failed(peer_id, "p2p", reason)
        if reason in NEVER_COMPLETE:
            self.round_ended(peer_id, fruitless=True)

    def round_served(self, peer_id: str) -> None:
        """A round that the peer opened over P2P was good."""
        self._budgets.round_served(peer_id, "p2p")

    def may_open(self, peer_id: str) -> bool:
        """Whether a round over P2P may be opened with this peer now."""
        return self._budgets.may_open(peer_id, "p2p", trio.current_time())
