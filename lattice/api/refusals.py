"""What the listeners of a node refused, counted by reason.

Separate from the guards and from the connections, because both refuse, one with an answer and the
other often without, and an operator asks one question: who is turned away here, and why.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

# In the start of an answer: the stable code of the problem that it carries. Servers ignore it.
CODE: Final = "lattice.code"

# What is refused before there is a request to answer; all other reasons are codes of problems.
CONNECTIONS: Final = "connections"  # the listener holds as many as it may
CONNECTIONS_OF_ADDRESS: Final = "connections_of_address"
NOT_HTTP: Final = "not_http"  # bytes that are no HTTP/1.1 request
HEAD_TOO_LARGE: Final = "head_too_large"
SLOW_HEAD: Final = "slow_head"  # a request that was begun and not ended in time
SLOW_READER: Final = "slow_reader"  # a client that does not take its answer


@dataclass(slots=True)
class Refusals:
    """One is shared by all listeners of a node. Reasons come from this program alone, so that a
    stranger cannot make it grow."""

    by_reason: dict[str, int] = field(default_factory=dict)

    def add(self, reason: str) -> None:
        self.by_reason[reason] = self.by_reason.get(reason, 0) + 1
