"""The alarms of frozen logs.

Separate because such an alarm stands as long as the store does: it is raised when a log is frozen, and
from what is stored at every start.
"""

from __future__ import annotations

from typing import Final

from ..core.identity import peer_id_of
from ..core.rows import ForkRow

_KEYS_SHOWN: Final = 10


def fork_alarm(fork: ForkRow) -> tuple[str, str]:
    """The code of a frozen log's alarm, and its text: whose log it is, where it is frozen, and what that
    took out of the state."""
    author = peer_id_of(fork.author)
    shown = ", ".join(key.decode("utf-8", "replace") for key in fork.keys[:_KEYS_SHOWN])
    more = f" and {len(fork.keys) - _KEYS_SHOWN} more" if len(fork.keys) > _KEYS_SHOWN else ""
    changed = f"; keys with another winner: {shown}{more}" if fork.keys else ""
    left = "1 entry" if fork.removed == 1 else f"{fork.removed} entries"
    text = (
        f"{author} wrote two branches of one log (epoch {fork.epoch:016x}): it is frozen at seq "
        f"{fork.frozen}, {left} left the state{changed}; see `lattice forks`"
    )
    return f"fork {author} {fork.epoch:016x}", text
