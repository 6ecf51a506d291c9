"""How much strangers may hold of a node at once: requests in flight, and the bytes of bodies either way.

Separate from the middleware that asks it, because one is shared by all listeners of a node: what the
sync listener has given away, the API must not give away again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from ..core.errors import LatticeError
from ..core.limits import HTTP_BODIES_BYTES_MAX, HTTP_BODIES_BYTES_PER_ADDRESS_MAX

# Long polls of many nodes may come from behind one address; each request may hold a whole body.
PEER_REQUESTS_MAX: Final = 256
PEER_REQUESTS_PER_ADDRESS_MAX: Final = 64


@dataclass(slots=True)
class Turnstile:
    """Bounds the peer requests in flight, and the bytes of all bodies held, of requests and of answers
    that are not sent yet; in all and by address (see `source_of`)."""

    requests_max: int = PEER_REQUESTS_MAX
    per_address_max: int = PEER_REQUESTS_PER_ADDRESS_MAX
    bytes_max: int = HTTP_BODIES_BYTES_MAX
    bytes_per_address_max: int = HTTP_BODIES_BYTES_PER_ADDRESS_MAX
    _by_address: dict[str, int] = field(default_factory=dict)
    _bytes_by_address: dict[str, int] = field(default_factory=dict)

    @property
    def bytes_held(self) -> int:
        """Of all bodies that are being read, answered or sent."""
        return sum(self._bytes_by_address.values())

    def enter(self, address: str) -> None:
        """Raises `too_many`."""
        held = self._by_address.get(address, 0)
        if held >= self.per_address_max or sum(self._by_address.values()) >= self.requests_max:
            raise LatticeError("too_many", "Too many requests at once; try again in a second.")
        self._by_address[address] = held + 1

    def leave(self, address: str) -> None:
        _lower(self._by_address, address, 1)

    def hold(self, address: str, size: int) -> None:
        """Room for so many more bytes of a body. Raises `too_many`."""
        held = self._bytes_by_address.get(address, 0)
        if held + size > self.bytes_per_address_max or self.bytes_held + size > self.bytes_max:
            raise LatticeError("too_many", "Too many bytes at once; try again in a second.")
        self._bytes_by_address[address] = held + size

    def let_go(self, address: str, size: int) -> None:
        _lower(self._bytes_by_address, address, size)


def _lower(counts: dict[str, int], address: str, by: int) -> None:
    """An address that holds nothing any more leaves no row behind: there are very many addresses."""
    left = counts.get(address, 0) - by
    if left > 0:
        counts[address] = left
    else:
        counts.pop(address, None)
