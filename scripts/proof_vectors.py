"""Files of proofs and receipts for the vectors: such as a node gives out, and such as must be refused.

Separate from make_vectors because these need a ledger with several authors, and because most of them are
lies: a file with one thing wrong, and where only a signature would tell, signed all the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any, Final

import ed25519_curve as curve

from lattice.core.entry import (
    Entry,
    OpKind,
    Seal,
    encode_op,
    entry_id,
    make_entry,
    make_seal,
    parse_entry,
)
from lattice.core.forks import ForkProof, HeaderNode, HeaderPath, pack_fork_proof
from lattice.core.identity import RECEIPT_TAG, STATE_TAG, NodeKey, peer_id_of
from lattice.core.merkle import MerkleMap, bucket_of, map_root_from_path
from lattice.core.proofs import KeyProof, ProofValue, ProofVersion, Statement, audit_path, proof_fields
from lattice.core.receipts import Receipt, ReceiptStatement, plain_path, receipt_fields, statement_body
from lattice.core.rows import KeyState, LiveVersion
from lattice.core.state import leaf_of

Vector = dict[str, Any]

ALICE: Final = NodeKey(bytes([7]) * 32)
BOB: Final = NodeKey(bytes([8]) * 32)
SIGNER: Final = NodeKey(bytes([9]) * 32)
TIME_MS: Final = 1_700_000_000_123
LOG_ROOT: Final = sha256(b"the log root of the vectors").digest()
KEY: Final = "account/Zürich".encode()
SMALL_KEY: Final = curve.encode(curve.IDENTITY)  # of order 1: every message fits its signatures


def put(key: bytes, value: bytes) -> bytes:
    return encode_op(OpKind.PUT, key, value=value)


@dataclass(slots=True)
class Log:
    """The entries of one author in one epoch."""

    network: bytes
    author: bytes
    epoch: int

    def write(self, clock: int, *ops: bytes, after: Entry | None = None) -> Entry:
        seq, prev = (after.header.seq + 1, after.id) if after else (0, bytes(32))
        return make_entry(
            self.network, author=self.author, epoch=self.epoch, seq=seq, prev=prev, clock=clock << 16, ops=ops
        )

    def write_many(self, count: int, clock: int, after: Entry | None = None) -> list[Entry]:
        made: list[Entry] = []
        for number in range(count):
            last = made[-1] if made else after
            made.append(self.write(clock, put(b"filler", b"%d" % number), after=last))
        return made


def live_of(entry: Entry, index: int = 0) -> LiveVersion:
    place = (entry.header.author, entry.header.epoch, entry.header.seq)
    return LiveVersion(entry.id, index, entry.op_hashes[index], entry.header.clock, *place, 0, 0)


def state_of(key: bytes, *live: LiveVersion, adds: int = 0, total: int = 0) -> KeyState:
    return KeyState(key, tuple(sorted(live, key=lambda one: one.version)), adds, total)


def value_of(entry: Entry, index: int, seal: Seal, above: Iterable[Entry] = ()) -> ProofValue:
    start, end = entry.op_spans[index]
    headers = tuple(one.header_bytes for one in above)
    return ProofValue(entry.ops[start:end], audit_path(entry.op_hashes, index), headers, seal.pack())


@dataclass(slots=True)
class Ledger:
    """States of keys under one tree, with the headers and values that prove them."""

    network: bytes
    states: dict[bytes, KeyState]
    values: dict[bytes, ProofValue]
    headers: dict[bytes, bytes]

    def tree(self) -> MerkleMap:
        tree = MerkleMap()
        for state in self.states.values():
            tree.set(sha256(state.key).digest(), leaf_of(state))
        tree.root()
        return tree

    def proof(self, key: bytes) -> KeyProof:
        tree, state = self.tree(), self.states.get(key, KeyState(key))
        number = bucket_of(sha256(key).digest())
        live = self.versions(state)
        said = self.statement(tree.root())
        bucket, path = tree.bucket(number), tuple(tree.path(number))
        return KeyProof(
            self.network, key, live, state.adds, state.total, bucket, path, self.values.get(key), said
        )

    def versions(self, state: KeyState) -> tuple[ProofVersion, ...]:
        return tuple(
            ProofVersion(one.id, one.op_index, one.op_hash, self.headers[one.id]) for one in state.live
        )

    def statement(self, root: bytes) -> Statement:
        body = root + LOG_ROOT + TIME_MS.to_bytes(8, "big")
        signature = SIGNER.sign(STATE_TAG, self.network, body)
        return Statement(SIGNER.public_key, root, LOG_ROOT, TIME_MS, signature)

    def under(self, proof: KeyProof, bucket: bytes) -> KeyProof:
        """The proof with another bucket, and a root signed that it leads to."""
        root = map_root_from_path(bucket_of(sha256(proof.key).digest()), bucket, proof.path)
        return replace(proof, bucket=bucket, statement=self.statement(root))

    def with_live(self, key: bytes, entry: Entry, index: int, value: ProofValue) -> KeyProof:
        """A proof by a ledger that holds this op as the only version of the key, right or wrong."""
        lying = Ledger(self.network, dict(self.states), dict(self.values), dict(self.headers))
        lying.states[key] = state_of(key, live_of(entry, index))
        lying.values[key] = value
        lying.headers[entry.id] = entry.header_bytes
        return lying.proof(key)


def twins() -> tuple[bytes, bytes]:
    """Two keys of one bucket: their hashes begin with the same 16 bits."""
    seen: dict[bytes, bytes] = {}
    for number in range(3000):
        key = b"crowd/%d" % number
        other = seen.setdefault(sha256(key).digest()[:2], key)
        if other != key:
            return other, key
    raise AssertionError("among so many keys two share a bucket")


def sealed(network: bytes, key: NodeKey, entry: Entry) -> Seal:
    return make_seal(key, network, entry.header, entry.id)


def fork_of(network: bytes, log: Log, stem: Sequence[Entry]) -> ForkProof:
    """Two branches above the stem, each sealed by the author."""
    paths = []
    for clock in (20, 21):
        branch = log.write_many(2, clock, stem[-1])
        nodes = tuple(HeaderNode(one.id, one.header, one.header_bytes) for one in branch)
        paths.append(HeaderPath(nodes, sealed(network, BOB, branch[-1])))
    return ForkProof(*paths)


@dataclass(frozen=True, slots=True)
class Made:
    """The ledger of the vectors and the entries that the lies are made of."""

    ledger: Ledger
    first: Entry
    later: list[Entry]
    sibling: Entry
    fork: ForkProof


def make(network: bytes) -> Made:
    alice, bob = Log(network, ALICE.public_key, 1), Log(network, BOB.public_key, 2**64 - 1)
    first = alice.write(
        5,
        put(b"siblings", b'"the winner"'),
        encode_op(OpKind.ADD, b"counter", amount=-5),
        put(KEY, '{"city":"Zürich"}'.encode()),
        encode_op(OpKind.DELETE, b"gone"),
        put(b"last of five", b"1"),
    )
    later = alice.write_many(2, 6, first)
    over_first = sealed(network, ALICE, later[-1])
    last = alice.write(10, put(b"raw", b"\xff\0{"), put(b"both", b""), after=later[-1])
    sibling = bob.write(4, put(b"siblings", b'"lost"'))
    wide = bob.write(7, *(put(b"wide", b"%d" % number) for number in range(256)), after=sibling)
    deep = Log(network, BOB.public_key, 1).write_many(64, 3)
    frozen = Log(network, BOB.public_key, 2)
    stem = [frozen.write(8, put(b"below", b'"a fork"'))]
    stem += frozen.write_many(1, 9, stem[0])
    fork = fork_of(network, frozen, stem)
    branch = tuple(node.header_bytes for node in fork.one.headers)
    states = (
        state_of(KEY, live_of(first, 2)),
        state_of(b"siblings", live_of(first, 0), live_of(sibling)),
        state_of(b"counter", adds=1, total=-5),
        state_of(b"last of five", live_of(first, 4)),
        state_of(b"wide", live_of(wide, 255)),
        state_of(b"filler", live_of(deep[0])),
        state_of(b"below", live_of(stem[0])),
        state_of(b"raw", live_of(last)),
        state_of(b"both", live_of(last, 1), adds=2, total=2 * (2**53 - 1)),
        state_of(twins()[0], adds=1, total=0),
        state_of(b"k" * 1024, adds=2**64 - 1, total=(1 - 2**64) * (2**53 - 1)),
    )
    values = {
        KEY: value_of(first, 2, over_first, later),
        b"siblings": value_of(first, 0, over_first, later),
        b"last of five": value_of(first, 4, over_first, later),
        b"wide": value_of(wide, 255, sealed(network, BOB, wide)),
        b"filler": value_of(deep[0], 0, sealed(network, BOB, deep[63]), deep[1:]),
        b"below": value_of(stem[0], 0, fork.one.seal)._replace(headers=(stem[1].header_bytes, *branch)),
        b"raw": value_of(last, 0, sealed(network, ALICE, last)),
        b"both": value_of(last, 1, sealed(network, ALICE, last)),
    }
    entries = (first, sibling, wide, deep[0], stem[0], last)
    ledger = Ledger(
        network,
        {state.key: state for state in states},
        values,
        {entry.id: entry.header_bytes for entry in entries},
    )
    return Made(ledger, first, later, sibling, fork)


def proofs(network: bytes) -> Iterator[Vector]:
    made = make(network)
    yield from good_proofs(made)
    yield from bad_proofs(made)
    yield from bad_values(made)
    yield from malformed_proofs(proof_fields(made.ledger.proof(b"siblings")))


def good_proofs(made: Made) -> Iterator[Vector]:
    ledger = made.ledger

    def case(name: str, key: bytes, value: bytes | None = None, **more: str) -> Vector:
        proof = ledger.proof(key)
        shows: Vector = {"present": bool(proof.live) or proof.adds > 0, "version": None, "author": None}
        if value is not None:
            held = max(ledger.states[key].live, key=lambda one: one.clock)
            shows |= {"version": str(held.version), "author": peer_id_of(held.author)}
        shows["value"] = None if value is None else value.hex()
        return {"name": name, "valid": True, "shows": shows, **more, "file": proof_fields(proof)}

    twin, absent_twin = twins()
    yield case("a key", KEY, '{"city":"Zürich"}'.encode())
    yield case("siblings", b"siblings", b'"the winner"')
    yield case("the last of five ops", b"last of five", b"1")
    yield case("the last of 256 ops", b"wide", b"255")
    yield case("63 headers up to the seal", b"filler", b"0")
    fork = pack_fork_proof(made.fork).hex()
    yield case("below a fork", b"below", b'"a fork"', fork_proof=fork)
    yield case("a value that is not text", b"raw", b"\xff\0{")
    yield case("a counter", b"counter")
    yield case("the largest counter, under the longest key", b"k" * 1024)
    yield case("a counter and an empty value", b"both", b"")
    yield case("a counter whose sum is 0, beside another key of its bucket", twin)
    yield case("an absent key", b"absent")
    yield case("an absent key whose bucket holds another", absent_twin)
    empty = Ledger(ledger.network, {}, {}, {})
    nothing = {"present": False, "version": None, "author": None, "value": None}
    yield {"name": "an absent key in an empty state", "valid": True, "shows": nothing,
           "file": proof_fields(empty.proof(b"absent"))}  # fmt: skip


def bad(name: str, proof: KeyProof) -> Vector:
    return {"name": name, "valid": False, "file": proof_fields(proof)}


def bad_proofs(made: Made) -> Iterator[Vector]:
    """What is wrong about statement, tree and leaf."""
    ledger = made.ledger
    good, counter, absent = (ledger.proof(key) for key in (b"siblings", b"counter", b"absent"))
    said = good.statement
    other = flipped(said.log_root)
    yield bad("another network", replace(good, network_id=flipped(good.network_id)))
    yield bad("another signer", replace(good, statement=said._replace(signer=ALICE.public_key)))
    yield bad("another time", replace(good, statement=said._replace(timestamp_ms=TIME_MS + 1)))
    yield bad("another log root", replace(good, statement=said._replace(log_root=other)))
    yield bad("another state root", replace(good, statement=said._replace(state_root=other)))
    yield bad("another signature", replace(good, statement=said._replace(signature=flipped(said.signature))))
    body = said.state_root + LOG_ROOT + TIME_MS.to_bytes(8, "big")
    kind = SIGNER.sign(RECEIPT_TAG, ledger.network, body)
    yield bad("signed as a receipt", replace(good, statement=said._replace(signature=kind)))
    small = said._replace(signer=SMALL_KEY, signature=signed_by_small_key())
    yield bad("a signer of order 1", replace(good, statement=small))
    yield bad("15 hashes of the path", replace(good, path=good.path[:-1]))
    yield bad("another path", replace(good, path=(flipped(good.path[0]), *good.path[1:])))
    yield bad("a path that goes on", replace(good, path=(*good.path, bytes(32))))
    twin, absent_twin = (ledger.proof(key) for key in twins())
    yield bad("a bucket without the pair", replace(twin, bucket=b""))
    pairs = sorted((twin.bucket, sha256(absent_twin.key).digest() + bytes(32)))
    yield bad("pairs that do not ascend", ledger.under(twin, pairs[1] + pairs[0]))
    yield bad("the same pair twice", ledger.under(twin, twin.bucket * 2))
    yield bad("half a pair", ledger.under(twin, twin.bucket + bytes(32)))
    yield bad("a present key as absent", replace(counter, adds=0, total=0))
    yield bad("an absent key as present", replace(absent, adds=1, total=0))
    yield bad("the key of another proof", replace(counter, key=b"Counter"))
    yield bad("another sum", replace(counter, total=counter.total - 1))
    yield bad("another number of adds", replace(counter, adds=2))
    yield bad("a sibling left out", replace(good, live=tuple(v for v in good.live if v.id == made.first.id)))
    yield bad("live versions in another order", replace(good, live=good.live[::-1]))
    turned = Ledger(ledger.network, dict(ledger.states), ledger.values, ledger.headers)
    held = turned.states[good.key]
    turned.states[good.key] = held._replace(live=held.live[::-1])
    yield bad("live versions in another order, under a leaf made so", turned.proof(good.key))
    turned.states[good.key] = held._replace(live=(held.live[0], *held.live))
    yield bad("the same version twice, under a leaf made so", turned.proof(good.key))
    yield bad("another op hash", with_version(good, made.sibling, op_hash=bytes(32)))
    yield bad("another op index", with_version(good, made.sibling, op_index=1))
    later = made.sibling.header._replace(clock=2**63).pack()
    yield bad("a header that makes the loser win", with_version(good, made.sibling, header=later))
    yield bad("an absent key with a value", replace(absent, value=good.value))
    yield bad("a counter with a value", replace(counter, value=good.value))


def with_version(proof: KeyProof, entry: Entry, **changes: Any) -> KeyProof:  # noqa: ANN401 - its fields
    live = tuple(one._replace(**changes) if one.id == entry.id else one for one in proof.live)
    return replace(proof, live=live)


def bad_values(made: Made) -> Iterator[Vector]:
    """What is wrong about the op, its way to its entry, and the entry's to a seal."""
    ledger, first = made.ledger, made.first
    good, small = ledger.proof(b"siblings"), ledger.proof(KEY)
    value = good.value
    assert value is not None

    def shown(name: str, **changes: Any) -> Vector:  # noqa: ANN401 - the fields of ProofValue
        assert value is not None
        return bad(name, replace(good, value=value._replace(**changes)))

    yield bad("no winner", replace(good, value=None))
    lost = value_of(made.sibling, 0, sealed(ledger.network, BOB, made.sibling))
    yield bad("the loser as the winner", replace(good, value=lost))
    yield bad("the op of another key", replace(good, value=small.value))
    yield shown("another op", op=flipped(value.op))
    yield shown("an audit path that is too short", audit_path=value.audit_path[:-1])
    yield shown("an audit path that goes on", audit_path=(*value.audit_path, bytes(32)))
    yield shown("another audit path", audit_path=value.audit_path[::-1])
    yield shown("a header is missing", headers=value.headers[1:])
    yield shown("headers in another order", headers=value.headers[::-1])
    yield shown("a header of another log", headers=(made.sibling.header_bytes, *value.headers[1:]))
    yield shown("a seal above the last header", headers=value.headers[:-1])
    yield shown("a seal below the last header", seal=sealed(ledger.network, ALICE, made.later[0]).pack())
    yield shown("another signature of the seal", seal=flipped(value.seal))
    yield shown("a seal by somebody else", seal=sealed(ledger.network, BOB, made.later[-1]).pack())
    yield from lies(made)
    over = value_of(first, 1, sealed(ledger.network, ALICE, made.later[-1]), made.later)
    yield bad("an add as the winner", ledger.with_live(b"counter", first, 1, over))
    yield bad("a delete as the winner", ledger.with_live(b"gone", first, 3, replace_op(over, first, 3)))
    yield bad("a put of another key", ledger.with_live(b"absent", first, 2, replace_op(over, first, 2)))


def replace_op(value: ProofValue, entry: Entry, index: int) -> ProofValue:
    start, end = entry.op_spans[index]
    return value._replace(op=entry.ops[start:end], audit_path=audit_path(entry.op_hashes, index))


def lies(made: Made) -> Iterator[Vector]:
    """Entries that no honest node accepts or applies, under a root that somebody signed all the same."""
    network, ledger = made.ledger.network, made.ledger
    long = Log(network, BOB.public_key, 3)
    chain = [long.write(3, put(b"liar", b"1"))]
    chain += long.write_many(64, 3, chain[0])
    value = value_of(chain[0], 0, sealed(network, BOB, chain[64]), chain[1:])
    yield bad("64 headers up to the seal", ledger.with_live(b"liar", chain[0], 0, value))
    later = parse_entry(network, chain[0].header._replace(version=2).pack(), chain[0].ops)
    value = value_of(later, 0, sealed(network, BOB, later))
    yield bad("an entry of format 2", ledger.with_live(b"liar", later, 0, value))
    nobody = Log(network, SMALL_KEY, 3).write(3, put(b"liar", b"1"))
    seal = Seal(SMALL_KEY, 3, 0, nobody.id, signed_by_small_key())
    yield bad("an author of order 1", ledger.with_live(b"liar", nobody, 0, value_of(nobody, 0, seal)))
    packed = chain[0].header._replace(prev=bytes([1]) * 32).pack()
    begun = replace(chain[0], id=entry_id(network, packed), header_bytes=packed)
    value = value_of(begun, 0, make_seal(BOB, network, begun.header, begun.id))
    yield bad("a first entry with a prev", ledger.with_live(b"liar", begun, 0, value))
    own = Log(network, BOB.public_key, 4).write(3, encode_op(OpKind.PUT, b"liar", value=b"1", over_own=[0]))
    value = value_of(own, 0, sealed(network, BOB, own))
    yield bad("an op that is not applied", ledger.with_live(b"liar", own, 0, value))


def malformed_proofs(good: Vector) -> Iterator[Vector]:
    """What is no proof before anything is computed."""
    changes: list[tuple[str, list[Any], object]] = [
        ("another format", ["format"], "lattice/proof/v2"),
        ("hex in capitals", ["network"], good["network"].upper()),
        ("half a byte", ["bucket"], good["bucket"][:-1]),
        ("a network of 31 bytes", ["network"], good["network"][2:]),
        ("an empty key", ["key"], ""),
        ("a key of 1,025 bytes", ["key"], "k" * 1025),
        ("a key that is no text", ["key"], 7),
        ("present as text", ["present"], "true"),
        ("present though nothing is listed", ["live"], []),
        ("live that is no array", ["live"], {}),
        ("a version without an index", ["live", 0, "version"], good["live"][0]["version"].partition(".")[0]),
        ("an index with a leading zero", ["live", 0, "version"], good["live"][0]["version"][:-1] + "00"),
        ("an index of 256", ["live", 0, "version"], good["live"][0]["version"][:-1] + "256"),
        ("a header of 126 bytes", ["live", 0, "header"], good["live"][0]["header"][2:]),
        ("adds below 0", ["adds"], -1),
        ("adds as text", ["adds"], "0"),
        ("adds that are true", ["adds"], True),
        ("adds with a fraction", ["adds"], 0.5),
        ("a total that is a number", ["total"], 0),
        ("a total of -0", ["total"], "-0"),
        ("a total with a leading zero", ["total"], "00"),
        ("a total larger than the adds can be", ["total"], "1"),
        ("a path that is a text", ["path"], "".join(good["path"])),
        ("a winner that is an array", ["winner"], []),
        ("a seal of 143 bytes", ["winner", "seal"], good["winner"]["seal"][2:]),
        ("a time as text", ["statement", "timestamp_ms"], str(TIME_MS)),
        ("a time beyond 64 bits", ["statement", "timestamp_ms"], 2**64),
        ("a signer that is no peer id", ["statement", "signer"], "12D3KooW0"),
        ("a signature of 63 bytes", ["statement", "signature"], good["statement"]["signature"][2:]),
    ]
    for name, place, new in changes:
        yield {"name": name, "valid": False, "file": changed(good, place, new)}
    for missing in ("live", "winner", "statement", "total"):
        left = {field: held for field, held in good.items() if field != missing}
        yield {"name": f"no field {missing}", "valid": False, "file": left}


def receipts(network: bytes) -> Iterator[Vector]:
    """`path_holds` is what merkletools' validate_proof says of the file; null where it is not asked."""
    made = make(network)
    keys = list(made.ledger.states)
    for count, key in ((1, KEY), (2, KEY), (2, b"siblings"), (3, b"counter"), (5, b"wide"), (11, b"both")):
        fields = receipt_fields(receipt(made.ledger, keys[:count], key))
        name = f"{key.decode()}, one of {count}"
        yield {"name": name, "valid": True, "path_holds": True, "file": fields}
    good = receipt(made.ledger, keys, b"siblings")
    yield from bad_receipts(made, good)
    yield from malformed_receipts(receipt_fields(good))


def receipt(ledger: Ledger, keys: Sequence[bytes], key: bytes, tag: bytes = RECEIPT_TAG) -> Receipt:
    some = Ledger(ledger.network, {name: ledger.states[name] for name in keys}, {}, ledger.headers)
    tree, state = some.tree(), some.states[key]
    target = leaf_of(state)
    assert target is not None
    leaves = [leaf for _, leaf in tree.items()]
    root, steps = plain_path(leaves, leaves.index(target))
    signature = SIGNER.sign(tag, ledger.network, statement_body(tree.root(), root, TIME_MS))
    said = ReceiptStatement(SIGNER.public_key, tree.root(), TIME_MS, signature)
    live = some.versions(state)
    return Receipt(ledger.network, key, live, state.adds, state.total, target, root, steps, said)


def bad_receipts(made: Made, good: Receipt) -> Iterator[Vector]:
    said = good.statement
    live = tuple(
        one._replace(header=flipped(one.header)) if one.id == made.sibling.id else one for one in good.live
    )
    inner = sha256(
        good.steps[0].sibling + good.target
        if good.steps[0].side == "left"
        else good.target + good.steps[0].sibling
    ).digest()
    turned = good.steps[0]._replace(side="left" if good.steps[0].side == "right" else "right")
    kind = receipt(made.ledger, list(made.ledger.states), good.key, STATE_TAG)
    small = said._replace(signer=SMALL_KEY, signature=signed_by_small_key())
    cases = [
        ("another network", replace(good, network_id=flipped(good.network_id)), True),
        ("another signer", replace(good, statement=said._replace(signer=ALICE.public_key)), True),
        ("another time", replace(good, statement=said._replace(timestamp_ms=TIME_MS + 1)), True),
        ("another state root", replace(good, statement=said._replace(state_root=LOG_ROOT)), True),
        ("signed as a statement of roots", kind, True),
        ("a signer of order 1", replace(good, statement=small), True),
        ("another root", replace(good, root=flipped(good.root)), False),
        ("another target", replace(good, target=flipped(good.target)), False),
        ("another key", replace(good, key=b"Siblings"), True),
        ("another number of adds", replace(good, adds=1), True),
        ("a sibling left out", replace(good, live=good.live[1:]), True),
        ("live versions in another order", replace(good, live=good.live[::-1]), True),
        ("another header", replace(good, live=live), True),
        ("a key that is absent", replace(good, live=()), True),
        ("an inner node as the leaf", replace(good, target=inner, steps=good.steps[1:]), True),
        ("a step on the other side", replace(good, steps=(turned, *good.steps[1:])), False),
        ("a step is missing", replace(good, steps=good.steps[:-1]), False),
        ("a step too many", replace(good, steps=(*good.steps, good.steps[0])), False),
    ]
    for name, lie, holds in cases:
        yield {"name": name, "valid": False, "path_holds": holds, "file": receipt_fields(lie)}


def malformed_receipts(good: Vector) -> Iterator[Vector]:
    side, sibling = next(iter(good["proof"][0].items()))
    changes: list[tuple[str, list[Any], object]] = [
        ("another format", ["format"], "lattice/proof/v1"),
        ("hex in capitals", ["target_hash"], good["target_hash"].upper()),
        ("a root of 31 bytes", ["merkle_root"], good["merkle_root"][2:]),
        ("a step of 31 bytes", ["proof", 0, side], sibling[2:]),
        ("a step without a side", ["proof", 0], {}),
        ("a step with both sides", ["proof", 0], {"left": sibling, "right": sibling}),
        ("a step on an unknown side", ["proof", 0], {"up": sibling}),
        ("65 steps", ["proof"], [good["proof"][0]] * 65),
        ("a total that is a number", ["total"], 0),
        ("present that is false", ["present"], False),
        ("no statement", ["statement"], None),
    ]
    for name, place, new in changes:
        yield {"name": name, "valid": False, "path_holds": None, "file": changed(good, place, new)}


def changed(data: Vector, place: Sequence[Any], new: object) -> Vector:
    """A copy with another value at this place."""
    copy: Vector = json.loads(json.dumps(data))
    inner: Any = copy
    for step in place[:-1]:
        inner = inner[step]
    inner[place[-1]] = new
    return copy


def flipped(data: bytes) -> bytes:
    """The bytes with the last bit another one."""
    return data[:-1] + bytes([data[-1] ^ 1])


def signed_by_small_key() -> bytes:
    """A signature that fits every message under the key of order 1, for a verifier that lets it pass."""
    nonce = 0xC0FFEE
    return curve.encode(curve.multiply(nonce, curve.base_point())) + nonce.to_bytes(32, "little")
