"""Sealed envelopes: membership, secrecy, authorship and freshness of everything between nodes.

Separate because it is the only gate: what has passed `open_envelope` and `Freshness` is from a
holder of the network key, signed by the named sender, meant for us, and not a replay, on whichever
lung, through whichever proxy.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from hashlib import sha256
from typing import Final

from nacl.bindings import crypto_secretbox, crypto_secretbox_open
from nacl.exceptions import CryptoError

from .errors import LatticeError
from .identity import ENVELOPE_TAG, SIGNATURE_BYTES, NodeKey, is_valid_public_key, verify
from .limits import (
    BOOTS_MAX,
    CHALLENGE_LIFE_S,
    CHALLENGES_MAX,
    CHALLENGES_PER_KEY_MAX,
    COUNTER_OVERLAP,
    COUNTER_WINDOW,
    ENVELOPE_BYTES_MAX,
)

NONCE_BYTES: Final = 24
NOBODY: Final = bytes(32)  # the addressee of gossip, files, and a first Hello by URL alone
_MAGIC: Final = b"LTC1"
_OUTER: Final = struct.Struct(">4sI24s")
# sender, kind, addressee, boot, counter, reply to
_INNER: Final = struct.Struct(">32sB32sQQ32s")


class Kind(IntEnum):
    REQUEST = 1
    ANSWER = 2
    ONE_WAY = 3


@dataclass(frozen=True, slots=True)
class Opened:
    """What an envelope says, verified. `digest` is SHA-256 of the sealed bytes: an answer names
    the digest of its request in `reply_to` (zeros otherwise)."""

    sender: bytes
    kind: Kind
    to: bytes
    boot: int
    counter: int
    reply_to: bytes
    body: bytes
    digest: bytes


class Sealer:
    """Seals and opens envelopes for one process of one node: its key, network and boot."""

    def __init__(
        self, key: NodeKey, network_id: bytes, network_keys: Mapping[int, bytes], *, boot: int
    ) -> None:
        """`network_keys`: 32-byte keys by key number; the highest number seals, all open."""
        self.key = key
        self.boot = boot
        self._network_id = network_id
        self._keys = dict(network_keys)
        self._number = max(self._keys)
        self._counter = 0
        self._senders: OrderedDict[bytes, None] = OrderedDict()

    def seal(
        self, kind: Kind, body: bytes, nonce: bytes, *, to: bytes = NOBODY, reply_to: bytes = NOBODY
    ) -> bytes:
        """The sealed envelope. `nonce`: 24 fresh random bytes. Each call takes the next counter."""
        self._counter += 1
        inner = _INNER.pack(self.key.public_key, kind, to, self.boot, self._counter, reply_to)
        signature = self.key.sign(ENVELOPE_TAG, self._network_id, _signed(self._number, inner, body))
        box = crypto_secretbox(inner + signature + body, nonce, self._keys[self._number])
        sealed = _OUTER.pack(_MAGIC, self._number, nonce) + box
        if len(sealed) > ENVELOPE_BYTES_MAX:
            raise AssertionError(f"an envelope of {len(sealed)} bytes was built")
        return sealed

    def open(
        self,
        data: bytes,
        is_refused: Callable[[bytes, int, int], str | None] = lambda sender, boot, counter: None,
    ) -> Opened:
        """Raises LatticeError `envelope` with a reason that is for our log, not for the sender.

        What costs nothing is judged first, the signature last. `is_refused(sender, boot, counter)` may
        give a reason not to look at it, as that this envelope was taken before: it is then refused
        unverified, which is safe, because only verified envelopes use up a counter.
        """
        if len(data) > ENVELOPE_BYTES_MAX:
            raise LatticeError("envelope", "too_large")
        if len(data) < _OUTER.size + _INNER.size + SIGNATURE_BYTES:
            raise LatticeError("envelope", "too_short")
        magic, number, nonce = _OUTER.unpack_from(data)
        if magic != _MAGIC:
            raise LatticeError("envelope", "not_an_envelope")
        key = self._keys.get(number)
        if key is None:
            raise LatticeError("envelope", "unknown_key_number")
        try:
            plain = crypto_secretbox_open(data[_OUTER.size :], nonce, key)
        except CryptoError as error:
            raise LatticeError("envelope", "foreign") from error
        inner, signature = plain[: _INNER.size], plain[_INNER.size : _INNER.size + SIGNATURE_BYTES]
        body = plain[_INNER.size + SIGNATURE_BYTES :]
        sender, kind, to, boot, counter, reply_to = _INNER.unpack(inner)
        if to not in (self.key.public_key, NOBODY):
            raise LatticeError("envelope", "for_another_node")
        try:
            kind = Kind(kind)
        except ValueError as error:
            raise LatticeError("envelope", "unknown_kind") from error
        refusal = is_refused(sender, boot, counter)
        if refusal is not None:
            raise LatticeError("envelope", refusal)
        if not self._sender_is_acceptable(sender):
            raise LatticeError("envelope", "bad_sender_key")
        if not verify(ENVELOPE_TAG, self._network_id, sender, _signed(number, inner, body), signature):
            raise LatticeError("envelope", "bad_signature")
        return Opened(sender, kind, to, boot, counter, reply_to, body, sha256(data).digest())

    def _sender_is_acceptable(self, sender: bytes) -> bool:
        if sender in self._senders:
            return True
        if not is_valid_public_key(sender):
            return False
        self._senders[sender] = None
        if len(self._senders) > BOOTS_MAX:
            self._senders.popitem(last=False)
        return True


def _signed(number: int, inner: bytes, body: bytes) -> bytes:
    return number.to_bytes(4, "big") + inner + sha256(body).digest()


@dataclass(slots=True)
class _Window:
    """Counters seen of one boot: the highest, and a bit for each of the 1,024 below it."""

    highest: int = 0
    seen: int = 0

    @classmethod
    def beginning_at(cls, counter: int) -> _Window:
        """The window of a boot that proved itself with this counter: what it sent long before was
        never looked at, and must not be usable now."""
        first = max(0, counter - COUNTER_OVERLAP)
        return cls(first, (1 << COUNTER_WINDOW) - 1) if first else cls()

    def is_used(self, counter: int) -> bool:
        back = self.highest - counter
        return back >= COUNTER_WINDOW or (back >= 0 and bool(self.seen >> back & 1))

    def take(self, counter: int) -> bool:
        ahead = counter - self.highest
        if ahead > 0:
            # A counter may be anything up to 2^64: a shift by that much is never computed.
            kept = self.seen << ahead if ahead < COUNTER_WINDOW else 0
            self.seen = (kept | 1) & ((1 << COUNTER_WINDOW) - 1)
            self.highest = counter
            return True
        if self.is_used(counter):
            return False
        self.seen |= 1 << (self.highest - counter)
        return True


@dataclass(slots=True)
class _Key:
    """The boots under which one key has answered a challenge, oldest first."""

    order: list[int] = field(default_factory=list)
    last: int = 0
    twin: bool = False


class Freshness:
    """Which boots have proven that they live, and which of their counters were used.

    A boot proves itself by answering a challenge: a Hello that signs our nonce, or an answer to a
    request of ours. Two live processes under one key show as a boot that answers after a later
    boot of that key has answered.
    """

    def __init__(self) -> None:
        self._windows: OrderedDict[tuple[bytes, int], _Window] = OrderedDict()
        self._challenges: OrderedDict[tuple[bytes, int], tuple[bytes, float]] = OrderedDict()
        self._challenged: dict[bytes, OrderedDict[int, None]] = {}  # the boots of each key among them
        self._keys: OrderedDict[bytes, _Key] = OrderedDict()

    def is_known(self, sender: bytes, boot: int) -> bool:
        return (sender, boot) in self._windows

    def is_superseded(self, sender: bytes, boot: int) -> bool:
        """Whether another boot of this key has proven itself since this one did. Whether this one
        still lives then decides whether there are twins; once that is known it is not asked again."""
        key = self._keys.get(sender)
        return key is not None and not key.twin and boot != key.last

    def is_used(self, sender: bytes, boot: int, counter: int) -> bool:
        """Whether `take` would refuse this counter of a known boot; uses up nothing."""
        window = self._windows.get((sender, boot))
        return window is not None and window.is_used(counter)

    def take(self, sender: bytes, boot: int, counter: int) -> bool:
        """Use up the counter of a request; False for a replay, one too old, or an unknown boot."""
        window = self._windows.get((sender, boot))
        if window is None:
            return False
        self._windows.move_to_end((sender, boot))
        return window.take(counter)

    def challenge(self, sender: bytes, boot: int, nonce: bytes, now: float) -> bytes:
        """The challenge that this boot has to sign; `nonce` is used if none is outstanding."""
        held = self._challenges.get((sender, boot))
        if held is not None and now - held[1] < CHALLENGE_LIFE_S:
            return held[0]
        boots = self._challenged.setdefault(sender, OrderedDict())
        if boot not in boots and len(boots) >= CHALLENGES_PER_KEY_MAX:
            # One key with very many boots pushes out its own challenges, and nobody else's.
            self._drop_challenge(sender, next(iter(boots)))
            boots = self._challenged.setdefault(sender, OrderedDict())
        boots[boot] = None
        boots.move_to_end(boot)
        self._challenges[(sender, boot)] = (nonce, now)
        self._challenges.move_to_end((sender, boot))
        if len(self._challenges) > CHALLENGES_MAX:
            self._drop_challenge(*next(iter(self._challenges)))
        return nonce

    def _drop_challenge(self, sender: bytes, boot: int) -> None:
        del self._challenges[(sender, boot)]
        del self._challenged[sender][boot]
        if not self._challenged[sender]:
            del self._challenged[sender]

    def answer(self, sender: bytes, boot: int, answering: bytes, now: float, counter: int = 0) -> bool:
        """Whether `answering` is the outstanding challenge of this boot; then the boot is known.

        A challenge is used up by its answer, so a Hello cannot be replayed. `counter` is that of
        the envelope that brought it: see `proven`.
        """
        held = self._challenges.get((sender, boot))
        if held is None or held[0] != answering or now - held[1] >= CHALLENGE_LIFE_S:
            return False
        self._drop_challenge(sender, boot)
        self.proven(sender, boot, counter)
        return True

    def proven(self, sender: bytes, boot: int, counter: int = 0) -> bool:
        """Note that this boot has just answered a challenge. True when that shows a twin.

        `counter` is that of the envelope that answered: what the boot sent more than
        COUNTER_OVERLAP before it counts as used, since it may be a recording.
        """
        if (sender, boot) not in self._windows:
            self._windows[(sender, boot)] = _Window.beginning_at(counter)
            if len(self._windows) > BOOTS_MAX:
                self._windows.popitem(last=False)
        key = self._keys.setdefault(sender, _Key())
        self._keys.move_to_end(sender)
        if len(self._keys) > BOOTS_MAX:
            self._keys.popitem(last=False)
        if boot not in key.order:
            key.order = [*key.order[-7:], boot]
        elif boot != key.last:
            key.twin = True
        key.last = boot
        return key.twin

    def has_twin(self, sender: bytes) -> bool:
        """Whether two live processes under this key were seen."""
        key = self._keys.get(sender)
        return key is not None and key.twin

    def newest_boot(self, sender: bytes) -> int | None:
        key = self._keys.get(sender)
        return key.order[-1] if key is not None else None
