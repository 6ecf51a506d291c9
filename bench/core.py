"""How fast the core is: own writes, entries of others, and a sync round between equal replicas.

Separate from the tests because it measures and asserts nothing. It uses the memory store, so no
disk is in the figures. Times are of the process's CPU; each line gives the median over repetitions
and the fastest, since other programs share the machine.

    python -m bench.core [--profile accept|append]
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import statistics
import time
from collections.abc import Callable, Sequence
from hashlib import sha256

from lattice.core.draft import OpDraft
from lattice.core.engine import Append, Engine, EngineInput, Gossiped, Output, Publish
from lattice.core.entry import OpKind, parse_entry
from lattice.core.envelope import NONCE_BYTES, Kind, Sealer
from lattice.core.identity import NodeKey
from lattice.core.messages import Entries, Message, decode_messages, encode_messages
from lattice.core.reconcile import Round
from lattice.storage.memory import MemoryStore

NETWORK = bytes(32)
NOW_MS = 1_700_000_000_000
VALUE = b'{"amount": 1250, "currency": "EUR", "from": "branch-17", "to": "branch-4"}'


class Bench:
    """One engine with its store."""

    def __init__(self, number: int) -> None:
        self.key = NodeKey(sha256(b"bench %d" % number).digest())
        self.store = MemoryStore()
        self.engine = Engine(self.key, NETWORK, self.store)
        self._draws = 0

    def run(self, events: Sequence[EngineInput]) -> list[Output]:
        """One commit of these inputs."""
        for event in events:
            self._draws += 1
            entropy = sha256(self.key.public_key + b"%d" % self._draws).digest()[:8]
            self.engine.handle(event, now_ms=NOW_MS, entropy=entropy)
        batch = self.engine.settle()
        if batch is not None:
            self.store.commit(batch)
        return self.engine.committed()


def put(key: bytes, size: int) -> OpDraft:
    return OpDraft(OpKind.PUT, key, (VALUE * (size // len(VALUE) + 1))[:size])


def measure(name: str, unit: str, count: int, repeat: int, make: Callable[[], Callable[[], object]]) -> None:
    """Print how many `unit` a second `make()()` does, of which each run does `count`."""
    seconds = []
    for _ in range(repeat):
        run = make()
        started = time.process_time()
        run()
        seconds.append(time.process_time() - started)
    median, best = statistics.median(seconds), min(seconds)
    print(
        f"{name:<44} {count / median:>10,.0f} {unit}/s (best {count / best:,.0f}), "
        f"{median / count * 1e6:,.1f} µs each"
    )


def batches(first: int, count: int) -> list[Append]:
    """Appends of 256 puts to new keys, about 100 KiB each."""
    return [
        Append(n, tuple(put(b"key/%d/%d" % (n, i), 340) for i in range(256)))
        for n in range(first, first + count)
    ]


def singles(first: int, count: int) -> list[Append]:
    return [Append(n, (put(b"single/%d" % n, 100),)) for n in range(first, first + count)]


def published(node: Bench, groups: Sequence[Sequence[EngineInput]]) -> list[Entries]:
    return [out.entries for group in groups for out in node.run(group) if isinstance(out, Publish)]


def accepting(payloads: Sequence[Entries], sender: bytes) -> Callable[[], Callable[[], object]]:
    """A fresh node that takes these payloads, one commit each."""

    def make() -> Callable[[], object]:
        node = Bench(99)
        return lambda: [node.run([Gossiped(0, sender, "gossip", entries)]) for entries in payloads]

    return make


def append_rates() -> None:
    def each(groups: Sequence[Sequence[EngineInput]]) -> Callable[[], Callable[[], object]]:
        def make() -> Callable[[], object]:
            node = Bench(1)
            return lambda: [node.run(group) for group in groups]

        return make

    def again() -> Callable[[], object]:
        node = Bench(1)
        for append in batches(0, 10):
            node.run([append])
        return lambda: [node.run([append]) for append in batches(0, 10)]

    many = singles(0, 5120)
    measure("append: 256 ops in one write, new keys", "op", 2560, 9, each([[a] for a in batches(0, 10)]))
    measure("append: 256 ops in one write, known keys", "op", 2560, 9, again)
    measure("append: 256 writes of one op share a commit", "op", 5120, 5, each(slices(many, 256)))
    measure("append: one op a commit", "op", 1000, 5, each([[a] for a in many[:1000]]))


def slices(events: Sequence[Append], size: int) -> list[Sequence[Append]]:
    return [events[at : at + size] for at in range(0, len(events), size)]


def accept_rates() -> None:
    writer = Bench(1)
    large = published(writer, [[append] for append in batches(0, 20)])
    measure("accept: entries of 256 ops, 100 KiB", "entry", 20, 9, accepting(large, writer.key.public_key))
    writer = Bench(1)
    small = published(writer, [[append] for append in singles(0, 1280)])
    frames = [entries.frames[0] for entries in small]
    seals = [entries.seals[0] for entries in small]
    pages = [Entries(tuple(frames[at : at + 64]), (seals[at + 63],)) for at in range(0, 1280, 64)]
    page = Entries(tuple(frames), tuple(seals[63::64]))
    sender = writer.key.public_key
    measure("accept: one-op entries, one page of 1,280", "entry", 1280, 9, accepting([page], sender))
    measure("accept: one-op entries, 64 under one seal", "entry", 1280, 9, accepting(pages, sender))
    measure("accept: one-op entries, each its own seal", "entry", 1280, 5, accepting(small, sender))
    header, ops = large[0].frames[0]
    measure(
        "  of which parse_entry, 256 ops", "entry", 20, 9,
        lambda: lambda: [parse_entry(NETWORK, header, ops) for _ in range(20)],
    )  # fmt: skip


def round_cost() -> None:
    """A round between equal replicas, as sealed envelopes."""
    a, b = Bench(1), Bench(2)
    for entries in published(a, [[append] for append in singles(0, 50)]):
        b.run([Gossiped(0, a.key.public_key, "gossip", entries)])
    keys = {1: bytes(32)}
    sealers = [Sealer(node.key, NETWORK, keys, boot=node.key.public_key[0]) for node in (a, b)]
    sizes: list[int] = []

    def carry(sealer: Sealer, opener: Sealer, messages: Sequence[Message]) -> list[Message]:
        sealed = sealer.seal(
            Kind.REQUEST, encode_messages(messages), bytes(NONCE_BYTES), to=opener.key.public_key
        )
        sizes.append(len(sealed))
        return decode_messages(opener.open(sealed).body)

    def one_round(number: int) -> None:
        opened: Round = a.engine._reconciler.round(number, padded=False)
        request = carry(sealers[0], sealers[1], next(opened))
        answer, _ = b.engine._reconciler.answer((a.key.public_key, 1), request)
        try:
            opened.send(carry(sealers[1], sealers[0], answer))
        except StopIteration as stop:
            if not (stop.value.good and stop.value.equal):
                raise AssertionError("the replicas are not equal") from stop

    measure("round: equal replicas, sealed both ways", "round", 200, 5,
            lambda: lambda: [one_round(number) for number in range(200)])  # fmt: skip
    print(f"  a round is {len(sizes) // (5 * 200)} envelopes of {sizes[0]} and {sizes[1]} bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description="measure the core")
    parser.add_argument("--profile", choices=["accept", "append"])
    chosen = parser.parse_args().profile
    if chosen is None:
        append_rates()
        accept_rates()
        round_cost()
        return
    writer = Bench(1)
    profile = cProfile.Profile()
    if chosen == "append":
        groups = [[append] for append in batches(0, 40)]
        profile.runcall(published, writer, groups)
    else:
        payloads = published(writer, [[append] for append in batches(0, 40)])
        profile.runcall(accepting(payloads, writer.key.public_key)())
    pstats.Stats(profile).sort_stats("tottime").print_stats(20)


if __name__ == "__main__":
    main()
