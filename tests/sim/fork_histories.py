"""Random forked histories and what becomes of them: `python tests/sim/fork_histories.py --count 20000`.

Separate from the simulator of whole nodes because forks are a matter of the engine alone: thousands of
histories a minute, with branches, forks below forks, missing and late seals, hostile proofs and
newcomers, all through the bytes of real messages and real rounds.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

# As a script it stands outside every package, and some installed package is called tests.
sys.path[:0] = [str(Path(__file__).resolve().parents[at]) + tail for at, tail in ((2, ""), (1, "/core"))]

from core_kit import NETWORK, Author, Replica, altered, page, sync

from lattice.core.engine import Frozen, Gossiped, Output, PublishProof, Served
from lattice.core.entry import Entry, OpKind, Seal, Version, encode_op, make_entry
from lattice.core.limits import FROZEN_NEVER
from lattice.core.messages import Proof
from lattice.core.rows import LogKey
from lattice.storage.memory import MemoryStore
from lattice.storage.port import Store
from lattice.testing.reference import (
    compute_log_root,
    compute_state,
    compute_state_root,
    find_forgeries,
    read_ledger,
)

KEYS = (b"a", b"b", b"c")
ROUNDS_MAX = 12
EPOCH = 1


@dataclass
class History:
    """What one author did: branches as whole chains from seq 0, and the seals that it made."""

    author: Author
    branches: list[list[Entry]] = field(default_factory=list)

    @property
    def log(self) -> LogKey:
        return self.author.log(EPOCH)


def draw_history(rng: Random) -> History:
    """Up to six branches of up to 150 entries, often around the seqs that must be sealed."""
    history = History(Author(rng.randrange(1, 1000)))
    length = rng.choice((rng.randint(1, 8), rng.randint(1, 40), rng.randint(55, 70), rng.randint(60, 150)))
    history.branches.append(grown(rng, history, [], length))
    for _ in range(rng.choice((0, 1, 1, 1, 2, 2, 3, 4, 5))):
        stem = rng.choice(history.branches)
        start = rng.choice((rng.randint(0, len(stem)), min(len(stem), rng.choice((0, 1, 62, 63, 64, 65)))))
        more = rng.choice((rng.randint(1, 5), rng.randint(1, 5), rng.randint(1, 90)))
        history.branches.append(grown(rng, history, stem[:start], more))
    return history


def grown(rng: Random, history: History, stem: Sequence[Entry], count: int) -> list[Entry]:
    chain = list(stem)
    for _ in range(count):
        before = chain[-1] if chain else None
        prev = before.id if before is not None else bytes(32)
        if before is not None and len(chain) > 2 and rng.random() < 0.01:
            prev = rng.choice(chain[:-1]).id  # names an id of another seq
        chain.append(
            make_entry(
                NETWORK,
                author=history.author.key.public_key,
                epoch=EPOCH,
                seq=len(chain),
                prev=prev,
                clock=rng.randrange(1 << 20),
                ops=[draw_op(rng, chain) for _ in range(rng.randint(1, 3))],
            )
        )
    return chain


def draw_op(rng: Random, chain: Sequence[Entry]) -> bytes:
    key = rng.choice(KEYS)
    size = 17_000 if rng.random() < 0.01 else rng.randrange(4)
    over = [Version(rng.choice(chain).id, rng.randrange(3)) for _ in range(rng.randrange(3)) if chain]
    match rng.randrange(4):
        case 0:
            return encode_op(OpKind.ADD, key, amount=rng.randint(-9, 9))
        case 1:
            return encode_op(OpKind.DELETE, key, over=over)
        case _:
            return encode_op(OpKind.PUT, key, value=rng.randbytes(size), over=over)


@dataclass
class World:
    """The replicas of one history, and what was seen of them."""

    rng: Random
    history: History
    replicas: list[Replica] = field(default_factory=list)
    lowest: dict[int, int] = field(default_factory=dict)
    seen: Counter[str] = field(default_factory=Counter)

    def deliver(
        self, replica: Replica, entries: Sequence[Entry], seals: Sequence[Seal], proofs: Sequence[Proof]
    ) -> None:
        message = page(entries, seals)
        number = next(Replica._tokens)
        if self.rng.random() < 0.5:
            outputs = replica.run(Gossiped(number, b"p" * 32, "gossip", message, tuple(proofs)))
        else:
            parts = [message, *proofs]
            self.rng.shuffle(parts)  # type: ignore[arg-type]
            outputs = replica.run(Served(number, b"p" * 32, 1, "http", tuple(parts)))
        self.watch(replica, outputs)

    def watch(self, replica: Replica, outputs: Sequence[Output]) -> None:
        """F only falls; each fall is told once, with a proof."""
        for output in outputs:
            if isinstance(output, Frozen):
                before = self.lowest.get(id(replica), FROZEN_NEVER)
                assert output.fork.frozen < before, "F rose"
                self.lowest[id(replica)] = output.fork.frozen
                self.seen["frozen"] += 1
                self.seen["entries taken out"] += output.fork.removed
        assert sum(isinstance(o, PublishProof) for o in outputs) == sum(
            isinstance(o, Frozen) for o in outputs
        )

    def slice(self) -> tuple[list[Entry], list[Seal]]:
        """A run of one branch with most of its seals, some of them missing or forged."""
        rng, author = self.rng, self.history.author
        chain = rng.choice(self.history.branches)
        first = rng.choice((0, 0, rng.randrange(len(chain))))
        last = rng.choice((len(chain), rng.randint(first + 1, len(chain))))
        run = chain[first:last]
        sealing = rng.choice((0.0, 0.1, 0.6))
        missing = rng.choice((0.0, 0.0, 0.15))
        seals = []
        for entry in run:
            wanted = entry is run[-1] or entry.must_be_sealed or rng.random() < sealing
            if wanted and rng.random() >= missing:
                seal = author.seal(entry)
                if rng.random() < 0.02:
                    seal = seal._replace(signature=altered(seal.signature))
                    self.seen["forged seals"] += 1
                seals.append(seal)
        if rng.random() < 0.2:
            rng.shuffle(run)
        return run, seals

    def hostile_proof(self) -> Proof:
        """A proof from a replica, whole or broken; or of nothing at all."""
        rng = self.rng
        self.seen["hostile proofs"] += 1
        frozen = [r for r in self.replicas if r.store.frozen_logs()]
        if not frozen:
            return Proof(1, rng.randbytes(rng.choice((0, 10, 600))))
        store = rng.choice(frozen).store
        payload = bytearray(store.fork_row(store.frozen_logs()[0]).proof)
        if rng.random() < 0.7:
            payload[rng.randrange(len(payload))] ^= 1 << rng.randrange(8)
        return Proof(1, bytes(payload))

    def equal(self) -> bool:
        return len({replica.engine.roots[:2] for replica in self.replicas}) == 1

    def check(self) -> None:
        """By code that shares nothing with the engine."""
        for replica in self.replicas:
            ledger = read_ledger(replica.store)
            faults = list(find_forgeries(NETWORK, ledger))
            assert not faults, faults
            assert compute_state_root(compute_state(NETWORK, ledger)) == replica.engine.roots.state_root
            assert compute_log_root(ledger.heads.items()) == replica.engine.roots.log_root
            assert replica.engine.roots.entry_count == replica.store.entry_count() == ledger.size


def play(seed: int, make_store: Callable[[], Store] = MemoryStore) -> Counter[str]:
    """One history, to quiet. Raises AssertionError when the replicas do not end equal and sound."""
    rng = Random(seed)
    history = draw_history(rng)
    world = World(rng, history)
    world.replicas = [Replica(number, make_store()) for number in range(1, rng.randint(3, 5))]
    for number, replica in enumerate(world.replicas):
        if rng.random() < 0.5:
            replica.put(rng.choice(KEYS), b"own %d" % number)
    for _ in range(rng.randint(2, 14)):
        replica = rng.choice(world.replicas)
        if rng.random() < 0.25:
            opener, server = rng.sample(world.replicas, 2)
            sync(opener, server)
            world.seen["rounds amid"] += 1
            continue
        proofs = [world.hostile_proof()] if rng.random() < 0.15 else []
        world.deliver(replica, *world.slice(), proofs)
        world.seen["messages"] += 1
        if rng.random() < 0.1 and isinstance(replica.store, MemoryStore):
            world.replicas[world.replicas.index(replica)] = replica.restarted()
            world.seen["restarts"] += 1
    for _ in range(rng.randrange(3)):  # newcomers, each of whom reaches one node only: a line
        world.replicas.append(Replica(len(world.replicas) + 10, make_store()))
        world.seen["newcomers"] += 1
    rounds = 0
    while not world.equal():
        rounds += 1
        assert rounds <= ROUNDS_MAX, "the replicas do not become equal"
        pairs = list(zip(world.replicas, world.replicas[1:], strict=False))
        rng.shuffle(pairs)
        for one, other in pairs:
            result = sync(one, other) if rng.random() < 0.5 else sync(other, one)
            assert not result.result.defect
    for one, other in zip(world.replicas, world.replicas[1:], strict=False):
        assert sync(one, other).result.equal
    world.check()
    world.seen["histories"] += 1
    world.seen["branches"] += len(history.branches)
    world.seen[f"quiet after {rounds}"] += 1
    return world.seen


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--stop", action="store_true", help="end at the first that fails")
    arguments = parser.parse_args()
    total: Counter[str] = Counter()
    failed = []
    began = time.monotonic()
    for seed in range(arguments.first, arguments.first + arguments.count):
        try:
            total += play(seed)
        except Exception as error:
            if arguments.count == 1 and not arguments.stop:
                raise
            failed.append(seed)
            if arguments.stop:
                break
            print(f"seed {seed}: {error}  (replay: --first {seed} --count 1)", flush=True)
    for name, count in sorted(total.items()):
        print(f"{name:>20} {count}")
    print(f"{len(failed)} of {arguments.count} failed in {time.monotonic() - began:.0f} s: {failed[:20]}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
