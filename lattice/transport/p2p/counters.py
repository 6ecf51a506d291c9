"""Named counts of everything the P2P lung refused, trapped or dropped.

Separate so that every module of the lung counts into one object and the report shows them all: a
hardening that never shows its number cannot be told from one that never worked.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

# A closed list: a misspelt name is an error at once, and the report shows zeros too.
NAMES: Final = (
    "connections_refused",
    "dial_failed",
    "dial_ok",
    "gate_expired",
    "gate_held",
    "gate_reset",
    "gossip_copies",
    "gossip_foreign",
    "gossip_host_down",
    "gossip_judged",
    "gossip_oversize",
    "gossip_paused",
    "gossip_publish_failed",
    "gossip_published",
    "gossip_queue_full",
    "gossip_refused",
    "gossip_replayed",
    "gossip_throttled",
    "gossip_unreadable",
    "gossip_wants_refused",
    "gossip_watchdog",
    "handler_raised",
    "half_open_refused",
    "host_lost",
    "identity_refused",
    "link_accepted",
    "link_late_answer",
    "link_malformed",
    "link_open_failed",
    "link_opened",
    "link_oversize",
    "link_refused",
    "link_slow",
    "link_stalled",
    "stalled_write",
    "start_failed",
    "streams_refused",
    "topics_foreign",
    "trapped_message",
    "trapped_stream",
    "trapped_task",
    "unread_overflow",
    "upgrade_failed",
)


class Counters:
    """Counts since the lung was made; they survive the host's rebuilds."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = dict.fromkeys(NAMES, 0)

    def add(self, name: str) -> None:
        if name not in self._counts:
            raise AssertionError(f"no counter is called {name!r}")
        self._counts[name] += 1

    def __getitem__(self, name: str) -> int:
        return self._counts[name]

    def snapshot(self) -> Mapping[str, int]:
        return MappingProxyType(dict(self._counts))
