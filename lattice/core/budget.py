"""Budgets: what a peer may cost on one lung before it is left alone for a while.

Separate because it is one small rule for both lungs, pure, and blind to what is right: it counts bytes
that had to be verified and were worth nothing, and rounds that brought nothing. What a budget refuses
comes again from somebody else; nothing that is valid ever depends on it.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from .limits import (
    BACKOFF_ROUNDS_FIRST_S,
    BACKOFF_ROUNDS_MAX_S,
    BUDGET_BYTES,
    BUDGET_BYTES_PER_S,
    BUDGETS_MAX,
    FRUITLESS_ROUNDS_MAX,
    REFUSAL_BYTES_MIN,
)

# Why a round broke off through what the peer sent, and not through the wire: as fruitless as one that
# ended. A wire that loses large frames must not be taken for a liar.
NEVER_COMPLETE: Final = frozenset({"malformed", "envelope", "not_an_answer", "challenge_loop"})


@dataclass(slots=True)
class _Budget:
    """One peer on one lung: what it owes, and the rounds with it that brought nothing."""

    owed: float = 0.0
    at: float = 0.0
    fruitless: int = 0
    waits_until: float = 0.0


class Budgets:
    """The budgets of all peers, by (peer, lung). `now` is any clock that does not go back.

    A lung is `p2p`, `http` or `gossip`: a peer that lies on one keeps its budget on the others.
    """

    def __init__(self) -> None:
        self._budgets: OrderedDict[tuple[str, str], _Budget] = OrderedDict()
        self.charged: dict[str, int] = {}  # all bytes ever charged, by lung

    def __len__(self) -> int:
        return len(self._budgets)

    # Bytes.

    def charge(self, peer: str, lung: str, size: int, now: float) -> bool:
        """The peer made us verify `size` bytes for nothing. Whether that has just used its budget up.

        A refusal costs a check whatever its size, so each counts as some bytes at least.
        """
        budget = self._paid(peer, lung, now)
        had = budget.owed < BUDGET_BYTES
        cost = max(size, REFUSAL_BYTES_MIN)
        self.charged[lung] = self.charged.get(lung, 0) + cost
        # Twice the budget is the deepest debt: a flood that goes on must not be punished for years.
        budget.owed = min(budget.owed + cost, 2.0 * BUDGET_BYTES)
        return had and budget.owed >= BUDGET_BYTES

    def is_spent(self, peer: str, lung: str, now: float) -> bool:
        """Whether nothing more of this peer is verified now."""
        return (peer, lung) in self._budgets and self._paid(peer, lung, now).owed >= BUDGET_BYTES

    # Rounds.

    def round_ended(self, peer: str, lung: str, *, fruitless: bool, now: float) -> bool:
        """A round that we opened is over. Whether the peer has to wait from now on: after three that
        brought nothing, longer after each further one. One that was of use ends all that."""
        if not fruitless:
            held = self._budgets.get((peer, lung))
            if held is not None:
                held.fruitless, held.waits_until = 0, 0.0
            return False
        budget = self._paid(peer, lung, now)
        budget.fruitless += 1
        over = budget.fruitless - FRUITLESS_ROUNDS_MAX
        if over < 0:
            return False
        wait_s = min(BACKOFF_ROUNDS_FIRST_S * 2.0 ** min(over, 16), BACKOFF_ROUNDS_MAX_S)
        budget.waits_until = now + wait_s
        return True

    def round_served(self, peer: str, lung: str) -> None:
        """A round that the peer opened was good. It says so itself, and at no cost: so this ends the
        wait and forgives nothing; the next fruitless round is followed by a longer one."""
        budget = self._budgets.get((peer, lung))
        if budget is not None:
            budget.waits_until = 0.0

    def may_open(self, peer: str, lung: str, now: float) -> bool:
        """Whether a round with this peer may be opened now."""
        budget = self._budgets.get((peer, lung))
        return budget is None or now >= budget.waits_until

    def waiting(self, now: float) -> list[tuple[str, str]]:
        """Who is on back-off or has no budget left now, by peer and lung."""
        return sorted(
            key
            for key, held in self._budgets.items()
            if held.waits_until > now or _owed(held, now) >= BUDGET_BYTES
        )

    def _paid(self, peer: str, lung: str, now: float) -> _Budget:
        """The budget of a peer, with what was paid off by the time since it was last looked at."""
        key = (peer, lung)
        budget = self._budgets.setdefault(key, _Budget(at=now))
        budget.owed, budget.at = _owed(budget, now), max(budget.at, now)
        self._budgets.move_to_end(key)
        if len(self._budgets) > BUDGETS_MAX:
            self._budgets.popitem(last=False)
        return budget


def _owed(budget: _Budget, now: float) -> float:
    return max(0.0, budget.owed - max(0.0, now - budget.at) * BUDGET_BYTES_PER_S)
