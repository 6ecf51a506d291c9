"""What a node needs from outside besides its transports and store: clock, randomness, log.

Separate so that a simulated node gets a virtual clock and a seeded generator through the same
constructor as a real one gets those of the machine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from ..core.messages import Addresses
from ..observability.logs import TaggedLogger as Log

__all__ = ["Log", "NodeOptions", "Ports"]


@dataclass(frozen=True, slots=True)
class Ports:
    """`wall_ms`: milliseconds since 1970, may jump. `entropy(n)`: n random bytes. Monotonic time
    is trio's clock, everywhere."""

    wall_ms: Callable[[], int]
    entropy: Callable[[int], bytes]
    log: Log


def _no_addresses() -> Addresses:
    return Addresses()


@dataclass(frozen=True, slots=True)
class NodeOptions:
    """What an operator chose, as far as the node itself needs to know it. Times in seconds.

    `addresses()` gives what is announced to others: multiaddrs and base URLs as of now.
    """

    name: str
    policy: str = "auto"
    topic: str = ""
    bootstrap: tuple[str, ...] = ()
    heartbeat_interval_s: float = 5.0
    peerless_timeout_s: float = 60.0
    poll_interval_s: float = 10.0
    disk_reserve_bytes: int = 0
    addresses: Callable[[], Addresses] = field(default=_no_addresses)
    version: str = ""
