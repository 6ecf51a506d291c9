"""State roots that differ over equal heads: with whom, in which keys, and when it is over.

Separate because a defect is told and never repaired: whatever a peer says of its state ends here, as the
text of an alarm, and nothing of it reaches the engine or the store.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

import trio

from ..core.budget import Budgets
from ..core.descent import Descent, Outcome, Side
from ..core.errors import LatticeError
from ..core.messages import Roots
from ..core.rows import Reader
from ..storage.port import Store
from .ports import Log

_PAGE_KEYS: Final = 500
# The tree knows keys by their hashes, so a name is found by hashing all keys: ten seconds for a million,
# in a thread. A peer that claims another difference each time gets no more than this of it.
_LOOK_UP_EVERY_S: Final = 600.0
_NAMES_KEPT: Final = 1024
# An alarm that comes back so soon after its end stays until the roots were equal for so long: a peer that
# claims now this and now that is one alarm, and not two lines in the log for each claim.
_LINGERS_S: Final = 600.0


@dataclass(slots=True)
class _Defect:
    """What is known of one peer's: the descent that found keys last, None before; since when the roots
    are equal again, where the alarm lingers on."""

    lingers: bool
    descent: Descent | None = None
    equal_since: float | None = None


class Defects:
    """The peers that hold the same entries and compute another state root, each an alarm."""

    def __init__(
        self,
        store: Store,
        log: Log,
        *,
        raise_alarm: Callable[[str, str], None],
        clear_alarm: Callable[[str], None],
    ) -> None:
        """`raise_alarm(code, text)` raises one, or changes its text; `clear_alarm(code)` ends it."""
        self._store = store
        self._log = log
        self._raise_alarm = raise_alarm
        self._clear_alarm = clear_alarm
        self._defects: dict[str, _Defect] = {}
        self._ended: dict[str, float] = {}  # lately, by peer
        # A descent is worth little after the first, whatever it brings, so each counts as one in vain: the
        # fourth waits for 10 s, and in the end there is one a minute.
        self._pace = Budgets()
        self._names: dict[bytes, bytes] = {}
        self._looked_up_at: float | None = None
        self._lock = trio.Lock()

    @property
    def peers(self) -> int:
        """With how many peers the state root differs over equal heads."""
        return len(self._defects)

    @property
    def keys(self) -> int:
        """In how many keys, at least: the most that were found with any of them."""
        return max((each.descent.count for each in self._defects.values() if each.descent), default=0)

    def compare(self, peer_id: str, theirs: Roots, ours: Roots) -> bool:
        """Take what a peer says that it holds. Whether a round should look for the keys now: the peer
        may be the one that opens all rounds of the two, and then finds them for itself alone."""
        if theirs.rules == ours.rules and theirs.log_root != ours.log_root:
            return False  # other entries: that says nothing of the states
        now = trio.current_time()
        defect = self._defects.get(peer_id)
        if theirs.rules != ours.rules or theirs.state_root == ours.state_root:
            if defect is not None:
                self._equal(peer_id, defect, now)
            return False
        if defect is None:
            lingers = now < self._ended.get(peer_id, -_LINGERS_S) + _LINGERS_S
            defect = self._defects[peer_id] = _Defect(lingers)
            self._tell(peer_id)
        defect.equal_since = None
        return self.may_descend(peer_id)

    def _equal(self, peer_id: str, defect: _Defect, now: float) -> None:
        """The roots are equal, or not to be compared any more."""
        if defect.equal_since is None:
            defect.equal_since = now
        if not defect.lingers or now >= defect.equal_since + _LINGERS_S:
            self.end(peer_id)

    def end(self, peer_id: str) -> None:
        """The defect is over, or the peer was forgotten."""
        if self._defects.pop(peer_id, None) is None:
            return
        now = trio.current_time()
        self._ended = {peer: at for peer, at in self._ended.items() if now < at + _LINGERS_S}
        self._ended[peer_id] = now
        self._clear_alarm(_code(peer_id))
        self._log.info("LEDGER", "the state roots differ no longer", peer=peer_id)

    def may_descend(self, peer_id: str) -> bool:
        """Whether a round with this peer may look for the keys now."""
        return self._pace.may_open(peer_id, "", trio.current_time())

    async def descended(self, peer_id: str, descent: Descent) -> None:
        """A round looked for the keys. What it found is named, if it still concerns anybody."""
        self._pace.round_ended(peer_id, "", fruitless=True, now=trio.current_time())
        self._log.debug("SYNC", "state trees were compared", peer=peer_id, outcome=descent.outcome.value)
        defect = self._defects.get(peer_id)
        if defect is None or descent.outcome is not Outcome.FOUND:
            return
        await self._look_up(each.key_hash for each in descent.differences if each.side is not Side.THERE)
        if self._defects.get(peer_id) is defect:
            defect.descent = descent
            self._tell(peer_id)

    def _tell(self, peer_id: str) -> None:
        descent = self._defects[peer_id].descent
        where = "which keys differ is not known" if descent is None else self._described(descent)
        self._raise_alarm(
            _code(peer_id),
            f"{peer_id} holds the same entries and computes another state root: one of the two has a defect; "
            f"{where}; nothing was overwritten, run `lattice fsck` on both",
        )

    def _described(self, descent: Descent) -> str:
        """How many keys differ, and which, as far as they are named."""
        count = "1 key differs" if descent.count == 1 else f"{descent.count} keys differ"
        if not descent.complete:
            count = f"at least {count}"
        parts = []
        for side in Side:
            names = [self._name(each.key_hash) for each in descent.differences if each.side is side]
            if names:
                parts.append(f"{side.value}: {', '.join(names)}")
        if parts and descent.count > len(descent.differences):
            parts.append(f"and {descent.count - len(descent.differences)} more")
        return f"{count} ({'; '.join(parts)})" if parts else count

    # Names.

    def _name(self, key_hash: bytes) -> str:
        """The key as text if this node holds it, else its SHA-256 in hex."""
        key = self._names.get(key_hash)
        return key_hash.hex() if key is None else repr(key.decode("utf-8", "replace"))

    async def _look_up(self, hashes: Iterable[bytes]) -> None:
        """Find the keys with these hashes among those held, if they were not looked for too lately."""
        async with self._lock:
            wanted = {key_hash for key_hash in hashes if key_hash not in self._names}
            now = trio.current_time()
            if not wanted or (self._looked_up_at is not None and now < self._looked_up_at + _LOOK_UP_EVERY_S):
                return
            self._looked_up_at = now
            if len(self._names) > _NAMES_KEPT:
                self._names.clear()
            try:
                await self._search(wanted)
            except LatticeError as error:
                self._log.warning("LEDGER", "keys that differ could not be looked up", reason=error.message)

    async def _search(self, wanted: set[bytes]) -> None:
        after: bytes | None = None
        while wanted:
            if self._store.in_line:
                found, after = _page(self._store, wanted, after)
            else:
                found, after = await trio.to_thread.run_sync(_page, self._store, wanted, after)
            self._names.update(found)
            wanted -= found.keys()
            if after is None:
                return
            await trio.lowlevel.checkpoint()


def _page(store: Reader, wanted: set[bytes], after: bytes | None) -> tuple[dict[bytes, bytes], bytes | None]:
    """The keys of one page whose hashes are wanted, and the last key looked at; None at the end."""
    page = store.page_keys(b"", after, _PAGE_KEYS)
    hashes = {sha256(state.key).digest(): state.key for state in page}
    found = {key_hash: hashes[key_hash] for key_hash in hashes.keys() & wanted}
    return found, page[-1].key if page else None


def _code(peer_id: str) -> str:
    return f"state_defect {peer_id}"
