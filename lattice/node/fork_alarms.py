"""The alarms of frozen logs: the first few by name, all others in one.

Separate because such an alarm stands as long as the store does: it is raised when a log is frozen, and
from what is stored at every start. And because one author can fork any number of its logs: they must not
push every other alarm out of sight.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ..core.identity import peer_id_of
from ..core.limits import FORK_ALARMS_MAX
from ..core.rows import ForkRow, LogKey

_KEYS_SHOWN: Final = 10
_SUM_CODE: Final = "forks"  # begins like the others, which is what programs look for


class ForkAlarms:
    """Which frozen logs have an alarm of their own, and which are only counted. An alarm is a pair of
    its code and its text."""

    def __init__(self) -> None:
        self._named: set[LogKey] = set()
        self._others: set[LogKey] = set()

    def recall(self, named: Sequence[ForkRow], others: Sequence[LogKey]) -> dict[str, str]:
        """The alarms of what was frozen before this start, by code: `named` are FORK_ALARMS_MAX rows, or
        all that there are, and `others` the logs beyond them."""
        self._named.update(LogKey(fork.author, fork.epoch) for fork in named)
        self._others.update(others)
        alarms = dict(map(_own_alarm, named))
        if others:
            alarms[_SUM_CODE] = f"{self._counted()}; see `lattice forks`"
        return alarms

    def frozen(self, fork: ForkRow) -> tuple[str, str]:
        """The alarm that a log raises when it is frozen, or frozen lower. That of all the others names
        the last of them, so that its text is another each time: each was news."""
        log = LogKey(fork.author, fork.epoch)
        if log in self._named or len(self._named) < FORK_ALARMS_MAX:
            self._named.add(log)
            return _own_alarm(fork)
        self._others.add(log)
        return _SUM_CODE, f"{self._counted()}, the last one: {_told(fork)}; see `lattice forks`"

    def _counted(self) -> str:
        count = len(self._others)
        return f"{count} more {'log is' if count == 1 else 'logs are'} frozen by forks"


def _own_alarm(fork: ForkRow) -> tuple[str, str]:
    code = f"fork {peer_id_of(fork.author)} {fork.epoch:016x}"
    return code, f"{_told(fork)}; see `lattice forks`"


def _told(fork: ForkRow) -> str:
    """Whose log it is, where it is frozen, and what that took out of the state."""
    shown = ", ".join(key.decode("utf-8", "replace") for key in fork.keys[:_KEYS_SHOWN])
    more = f" and {len(fork.keys) - _KEYS_SHOWN} more" if len(fork.keys) > _KEYS_SHOWN else ""
    changed = f"; changed keys: {shown}{more}" if fork.keys else ""
    left = "1 entry" if fork.removed == 1 else f"{fork.removed} entries"
    return (
        f"{peer_id_of(fork.author)} wrote two branches of one log (epoch {fork.epoch:016x}): it is frozen "
        f"at seq {fork.frozen}, {left} left the state{changed}"
    )
