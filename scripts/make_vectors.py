"""Write the vectors of the wire format to tests/core/vectors, or check that they would come out the same.

Separate because the vectors are made once and then frozen: a file that exists is never written
again, and a difference is a change of the format. The tests check them by other code than this.

    python scripts/make_vectors.py [--check]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import ed25519_curve as curve
import proof_vectors

from lattice.core.entry import Entry, OpKind, Seal, Version, encode_op, make_entry, make_seal
from lattice.core.envelope import Kind, Sealer
from lattice.core.heads import author_digest, log_root, pack_log_head
from lattice.core.identity import SEAL_TAG, NodeKey
from lattice.core.merkle import MerkleMap
from lattice.core.messages import (
    Addresses,
    Beat,
    BeatFlag,
    Entries,
    Heads,
    HeadsFlag,
    Hello,
    Message,
    Proof,
    Roots,
    Want,
    WantEntries,
    encode_messages,
)
from lattice.core.rows import KeyState, LiveVersion, LogHead, LogKey
from lattice.core.state import leaf_of
from lattice.core.ticket import Genesis, Ticket, TicketPeer, encode_ticket, network_id_of
from lattice.core.tree_proofs import TREE_ASK, TREE_NODES, TreeAsk, TreeNodes, answer_to, pack_ask, pack_nodes

VECTORS: Final = Path(__file__).resolve().parent.parent / "tests" / "core" / "vectors"
GENESIS: Final = Genesis("vectors", (bytes([2]) * 32, bytes([1]) * 32), bytes(range(32)))
NETWORK: Final = network_id_of(GENESIS.pack())
ALICE: Final = NodeKey(bytes([7]) * 32)
BOB: Final = NodeKey(bytes([8]) * 32)
NETWORK_KEY: Final = sha256(b"the network key of the vectors").digest()
OTHER: Final = Version(sha256(b"an entry elsewhere").digest(), 5)
ADDRESSES: Final = Addresses(
    ("/ip4/192.0.2.1/tcp/9000", "/ip6/2001:db8::1/tcp/9000"), ("https://node.example:8100/lattice",)
)

Vector = dict[str, Any]


def ops() -> Iterator[Vector]:
    def vector(name: str, index: int, data: bytes, applied: bool, **fields: object) -> Vector:
        return {"name": name, "index": index, "applied": applied, **fields, "bytes": data.hex()}

    def names(*over: Version, own: tuple[int, ...] = ()) -> list[list[Any]]:
        return [[name.id.hex(), name.op_index] for name in over] + [[None, index] for index in own]

    yield vector(
        "put", 0, encode_op(OpKind.PUT, b"a", value=b"1"), True, kind=1, key="61", names=[], body="31"
    )
    key = "Konten/Zürich".encode()
    yield vector(
        "put over a foreign version", 0, encode_op(OpKind.PUT, key, value=b"{}", over=[OTHER]), True,
        kind=1, key=key.hex(), names=names(OTHER), body="7b7d",
    )  # fmt: skip
    yield vector(
        "delete over a foreign version and own ops", 3,
        encode_op(OpKind.DELETE, b"a/b", over=[OTHER], over_own=[0, 2]), True,
        kind=2, key="612f62", names=names(OTHER, own=(0, 2)), body="",
    )  # fmt: skip
    for amount in (1, -250, 2**53 - 1, -(2**53) + 1):
        yield vector(
            f"add {amount}", 0, encode_op(OpKind.ADD, b"n", amount=amount), True,
            kind=3, key="6e", names=[], body=amount.to_bytes(8, "big", signed=True).hex(),
        )  # fmt: skip
    yield vector(
        "own index not smaller", 2, encode_op(OpKind.DELETE, b"a", over_own=[2]), False,
        kind=2, key="61", names=names(own=(2,)), body="",
    )  # fmt: skip
    yield vector(
        "add with a name", 1, bytes.fromhex("03 0001 6e 0001 01 0000 00000008 0000000000000001"), False,
        kind=3, key="6e", names=names(own=(0,)), body="0000000000000001",
    )  # fmt: skip
    too_much = (2**53).to_bytes(8, "big").hex()
    yield vector(
        "add beyond the range", 0, encode_op(OpKind.ADD, b"n", amount=2**53), False,
        kind=3, key="6e", names=[], body=too_much,
    )  # fmt: skip
    yield vector("unknown kind", 0, bytes.fromhex("09 0001 61 0000 00000000"), False,
                 kind=9, key="61", names=[], body="")  # fmt: skip
    yield vector("key not UTF-8", 0, bytes.fromhex("01 0002 c080 0000 00000000"), False,
                 kind=1, key="c080", names=[], body="")  # fmt: skip
    yield vector("key empty", 0, bytes.fromhex("01 0000 0000 00000000"), False,
                 kind=1, key="", names=[], body="")  # fmt: skip
    yield vector("no op at all", 0, b"", False)


def an_entry(seq: int = 0, prev: bytes = bytes(32)) -> Entry:
    return make_entry(
        NETWORK,
        author=ALICE.public_key,
        epoch=0x0123456789ABCDEF,
        seq=seq,
        prev=prev,
        clock=1_700_000_000_000 << 16 | 3,
        ops=[
            encode_op(OpKind.PUT, b"a", value=b"1"),
            encode_op(OpKind.ADD, b"n", amount=-5),
            encode_op(OpKind.DELETE, b"a", over=[OTHER], over_own=[0]),
        ],
    )


def entries() -> Iterator[Vector]:
    first = an_entry()
    for entry in (first, an_entry(1, first.id)):
        header = entry.header
        seal = make_seal(ALICE, NETWORK, header, entry.id)
        yield {
            "network_id": NETWORK.hex(),
            "version": header.version,
            "author": header.author.hex(),
            "epoch": header.epoch,
            "seq": header.seq,
            "prev": header.prev.hex(),
            "clock": header.clock,
            "ops": [entry.ops[start:end].hex() for start, end in entry.op_spans],
            "op_hashes": [op_hash.hex() for op_hash in entry.op_hashes],
            "ops_root": header.ops_root.hex(),
            "ops_bytes": entry.ops.hex(),
            "header": entry.header_bytes.hex(),
            "id": entry.id.hex(),
            "seed": (bytes([7]) * 32).hex(),
            "seal": seal.pack().hex(),
        }


def key_states() -> list[KeyState]:
    def live(number: int, index: int) -> LiveVersion:
        name = sha256(b"entry %d" % number).digest()
        return LiveVersion(name, index, sha256(b"op %d" % number).digest(), 0, b"", 0, 0, 0, 0)

    siblings = tuple(sorted((live(2, 0), live(3, 255), live(4, 1))))
    return [
        KeyState(b"one", (live(1, 0),)),
        KeyState(b"siblings", siblings),
        KeyState(b"counter", (), 2, -7),
        KeyState("beide/€".encode(), (live(5, 9),), 1, 10**30),
        KeyState(b"k" * 1024, (live(6, 0),)),
    ]


def states() -> Iterator[Vector]:
    held = key_states()
    # Two keys of one bucket: their hashes begin with the same 16 bits.
    crowd = {number: sha256(b"crowd/%d" % number).digest()[:2] for number in range(2000)}
    twins = next((a, b) for a in crowd for b in crowd if a < b and crowd[a] == crowd[b])
    neighbours = [held[0]._replace(key=b"crowd/%d" % number) for number in twins]
    for name, states in (("empty", []), ("one key", held[:1]), ("several", held), ("a bucket", neighbours)):
        tree = MerkleMap()
        for state in states:
            tree.set(sha256(state.key).digest(), leaf_of(state))
        yield {
            "name": name,
            "keys": [
                {
                    "key": state.key.hex(),
                    "live": [[live.id.hex(), live.op_index, live.op_hash.hex()] for live in state.live],
                    "adds": state.adds,
                    "total": str(state.total),
                    "leaf": (leaf_of(state) or b"").hex(),
                }
                for state in states
            ],
            "state_root": tree.root().hex(),
        }


def heads() -> Iterator[Vector]:
    def head(number: int, seq: int, frozen: int = 2**64 - 1) -> LogHead:
        return LogHead(seq, sha256(b"head %d" % number).digest() if seq >= 0 else bytes(32), frozen)

    one = {LogKey(ALICE.public_key, 5): head(1, 0)}
    several = {
        **one,
        LogKey(ALICE.public_key, 2**64 - 1): head(2, 63),
        LogKey(BOB.public_key, 0): head(3, 2**40, 2**41),
        LogKey(BOB.public_key, 1): head(4, -1, 0),
        LogKey(bytes([9]) * 32, 77): head(5, 12),
    }
    for name, logs in (("none", {}), ("one log", one), ("several", several)):
        authors: dict[bytes, dict[int, LogHead]] = {}
        for log, held in logs.items():
            authors.setdefault(log.author, {})[log.epoch] = held
        yield {
            "name": name,
            "logs": [
                {
                    "author": log.author.hex(),
                    "epoch": log.epoch,
                    "seq": held.seq,
                    "id": held.id.hex(),
                    "frozen": held.frozen,
                    "bytes": pack_log_head(log.epoch, held).hex(),
                }
                for log, held in logs.items()
            ],
            "digests": {author.hex(): author_digest(held).hex() for author, held in authors.items()},
            "log_root": log_root(logs).hex(),
        }


def messages() -> Iterator[Vector]:
    entry = an_entry()
    seal = make_seal(ALICE, NETWORK, entry.header, entry.id)
    roots = Roots(sha256(b"log root").digest(), sha256(b"state root").digest(), 1, 12_345)
    log_head = LogHead(9, entry.id)
    cases: list[tuple[str, Message]] = [
        ("hello", Hello(1, 1, "nodeA", 0, ADDRESSES, sha256(b"challenge").digest(), bytes(32))),
        (
            "beat",
            Beat(roots, "HTTP", BeatFlag.BUSY, 5000, (BOB.public_key,), (7, 9, entry.id), "é", ADDRESSES),
        ),
        ("beat before the first write", Beat(roots, "P2P", BeatFlag(0), 5000, (), None, "", Addresses())),
        ("heads", Heads(3, HeadsFlag(0), roots, 20_000)),
        (
            "heads with digests",
            Heads(3, HeadsFlag.AUTHORS, roots, 0, ((ALICE.public_key, sha256(b"digest").digest()),)),
        ),
        (
            "heads with lists",
            Heads(
                3,
                HeadsFlag.LISTS | HeadsFlag.HOLDS_ALL,
                roots,
                logs=(
                    (ALICE.public_key, ((7, log_head), (8, LogHead(-1, bytes(32), 4)))),
                    (BOB.public_key, ()),
                ),
                padding=5,
            ),
        ),
        ("want", WantEntries((Want(ALICE.public_key, 7, 0, 9), Want(BOB.public_key, 2**64 - 1, 5, 5)))),
        ("entries", Entries(((entry.header_bytes, entry.ops),), (seal,))),
        ("proof", Proof(200, b"of a later kind")),
    ]
    for name, message in cases:
        yield {"name": name, "bytes": encode_messages([message]).hex()}


def envelopes() -> Iterator[Vector]:
    body = encode_messages([WantEntries((Want(ALICE.public_key, 7, 0, 9),))])
    request_sealer = Sealer(ALICE, NETWORK, {3: NETWORK_KEY}, boot=0xA1A2A3A4A5A6A7A8)
    answer_sealer = Sealer(BOB, NETWORK, {3: NETWORK_KEY}, boot=0xB1B2B3B4B5B6B7B8)
    request = request_sealer.seal(Kind.REQUEST, body, bytes(range(24)), to=BOB.public_key)
    digest = sha256(request).digest()
    answer = answer_sealer.seal(Kind.ANSWER, b"", bytes(range(24, 48)), to=ALICE.public_key, reply_to=digest)
    one_way = request_sealer.seal(Kind.ONE_WAY, body, bytes(range(48, 72)))
    common = {"network_id": NETWORK.hex(), "network_key": NETWORK_KEY.hex(), "key_number": 3}
    alice = {"sender": ALICE.public_key.hex(), "boot": 0xA1A2A3A4A5A6A7A8, "body": body.hex()}
    yield {
        **common, **alice, "name": "request", "kind": 1, "to": BOB.public_key.hex(), "counter": 1,
        "reply_to": bytes(32).hex(), "nonce": bytes(range(24)).hex(), "bytes": request.hex(),
    }  # fmt: skip
    yield {
        **common, "name": "answer", "kind": 2, "sender": BOB.public_key.hex(), "boot": 0xB1B2B3B4B5B6B7B8,
        "body": "", "to": ALICE.public_key.hex(), "counter": 1, "reply_to": digest.hex(),
        "nonce": bytes(range(24, 48)).hex(), "bytes": answer.hex(),
    }  # fmt: skip
    yield {
        **common, **alice, "name": "one-way", "kind": 3, "to": bytes(32).hex(), "counter": 2,
        "reply_to": bytes(32).hex(), "nonce": bytes(range(48, 72)).hex(), "bytes": one_way.hex(),
    }  # fmt: skip


def networks() -> Iterator[Vector]:
    peers = (TicketPeer(ALICE.public_key, "nodeA", ADDRESSES), TicketPeer(BOB.public_key, "", Addresses()))
    genesis = GENESIS.pack()
    yield {
        "name": GENESIS.name,
        "admins": [admin.hex() for admin in GENESIS.admins],
        "nonce": GENESIS.nonce.hex(),
        "genesis": genesis.hex(),
        "network_id": NETWORK.hex(),
        "network_key": NETWORK_KEY.hex(),
        "key_number": 3,
        "peers": [
            {
                "public_key": peer.public_key.hex(),
                "name": peer.name,
                "p2p": list(peer.addresses.p2p),
                "http": list(peer.addresses.http),
                "peer_id": NodeKey(seed * 32).peer_id,
            }
            for peer, seed in zip(peers, (b"\7", b"\10"), strict=True)
        ],
        "ticket": encode_ticket(Ticket(genesis, 3, NETWORK_KEY, peers)),
    }


def bad_signatures() -> Iterator[Vector]:
    """Seals that must be refused, by the key or by the signature, and one that must not."""
    scalar = curve.secret_scalar(bytes([7]) * 32)
    base = curve.base_point()
    honest = curve.multiply(scalar, base)
    small = curve.small_points()
    nonce = 0xC0FFEE

    def case(
        name: str, key: bytes, r: bytes, key_valid: bool, valid: bool, *, k: int = nonce, excess: int = 0
    ) -> Vector:
        body = Seal(key, 1, 0, sha256(name.encode()).digest(), bytes(64)).pack()[:-64]
        message = SEAL_TAG + NETWORK + body
        s = (k + curve.challenge(r, key, message) * scalar) % curve.ORDER + excess
        seal = body + r + s.to_bytes(32, "little")
        return {
            "name": name, "network_id": NETWORK.hex(), "key_valid": key_valid, "valid": valid,
            "seal": seal.hex(),
        }  # fmt: skip

    key = curve.encode(honest)
    r = curve.encode(curve.multiply(nonce, base))
    yield case("an honest one, made by the same formulas", key, r, True, True)
    yield case("S of L or more", key, r, True, False, excess=curve.ORDER)
    yield case("R the identity", key, curve.encode(curve.IDENTITY), True, False, k=0)
    not_canonical = (curve.P + 1).to_bytes(32, "little")
    yield case("R the identity, not canonical", key, not_canonical, True, False, k=0)
    mixed_r = curve.encode(curve.add(curve.multiply(nonce, base), small[1]))
    yield case("R of mixed order, right with a cofactor", key, mixed_r, True, False)
    for order, point in ((1, small[0]), (2, small[4]), (4, small[2]), (8, small[1])):
        yield case(f"key of order {order}", curve.encode(point), r, False, False)
        if order > 1:
            mixed = curve.encode(curve.add(honest, point))
            yield case(f"key of mixed order with {order}", mixed, r, False, False)
    for y in (0, 1, 3):
        beyond = (curve.P + y).to_bytes(32, "little")
        yield case(f"key not canonical, y = p + {y}", beyond, r, False, False)
    off = next(y for y in range(2, 100) if curve.x_of(y, 0) is None)
    yield case("key not on the curve", off.to_bytes(32, "little"), r, False, False)


def fork_proofs() -> Iterator[Vector]:
    """Payloads of fork proofs with what they prove, and such that prove nothing though signatures hold."""

    def chain(count: int, prev: Entry | None = None, *, clock: int = 0, by: NodeKey = ALICE) -> list[Entry]:
        made: list[Entry] = []
        for _ in range(count):
            seq = prev.header.seq + 1 if prev else 0
            prev = make_entry(
                NETWORK,
                author=by.public_key,
                epoch=77,
                seq=seq,
                prev=prev.id if prev else bytes(32),
                clock=clock << 16,
                ops=[encode_op(OpKind.PUT, b"k", value=b"%d" % seq)],
            )
            made.append(prev)
        return made

    def path(links: list[Entry], *, seal: bytes | None = None, by: NodeKey = ALICE) -> bytes:
        top = links[-1]
        seal = seal or make_seal(by, NETWORK, top.header, top.id).pack()
        return len(links).to_bytes(4, "big") + b"".join(link.header_bytes for link in links) + seal

    def case(name: str, payload: bytes, first: Entry | None = None) -> Vector:
        proven = {"seq": first.header.seq, "continues": first.header.prev.hex()} if first else {}
        return {"name": name, "network_id": NETWORK.hex(), "valid": first is not None, **proven,
                "payload": payload.hex()}  # fmt: skip

    stem = chain(66)
    other = chain(3, stem[1], clock=1)
    at_two = path(stem[2:4])
    yield case("two entries at one seq", at_two + path(other), stem[2])
    yield case("one header each", path(stem[2:3]) + path(other[:1]), stem[2])
    root = chain(2, clock=1)
    yield case("from the first entry on", path(stem[:1]) + path(root), stem[0])
    yield case("another prev above", at_two + path(other[1:]), stem[2])
    across = chain(2, stem[63], clock=1)
    yield case("above an entry that must be sealed", path(stem[64:]) + path(across), stem[64])
    yield case("the longest path", path(stem[:64]) + path(root[:1]), stem[0])
    yield case("the other way round, with another prev above", path(other[1:]) + at_two)
    yield case("the same branch twice", at_two + path(stem[2:5]))
    yield case("paths that begin below the fork", path(stem[1:4]) + path([stem[1], *other]))
    yield case("two logs", at_two + path(chain(3, clock=1, by=BOB)[2:], by=BOB))
    yield case("a seal of somebody else", at_two + path(other, by=BOB))
    seal = make_seal(ALICE, NETWORK, other[2].header, other[2].id).pack()
    yield case("a signature that does not hold", at_two + path(other, seal=seal[:-1] + bytes([seal[-1] ^ 1])))
    below = make_seal(ALICE, NETWORK, other[1].header, other[1].id).pack()
    yield case("a seal below the last header", at_two + path(other, seal=below))
    yield case("headers that do not follow each other", at_two + path([other[0], other[2]]))
    yield case("across an entry that must be sealed", path(stem[63:]) + path(chain(1, stem[62], clock=1)))
    yield case("a path without headers", at_two + bytes(4) + seal)
    yield case("more than 64 headers", path(stem[:65]) + path(root[:1]))
    yield case("one path", at_two)
    yield case("a byte too many", at_two + path(other) + b"\0")


def tree_proofs() -> Iterator[Vector]:
    """Payloads of both kinds: questions about a tree of three keys with their answers, and malformed ones."""
    tree = MerkleMap()
    for state in key_states()[:3]:
        tree.set(sha256(state.key).digest(), leaf_of(state))
    root = tree.root()
    pairs = dict(tree.items())
    common = {"state_root": root.hex(), "pairs": [[name.hex(), leaf.hex()] for name, leaf in pairs.items()]}
    buckets = sorted(int.from_bytes(name[:2], "big") for name in pairs)
    bucket = tree.bucket(buckets[0])
    absent = next(number for number in range(2**16) if number not in buckets)

    def case(name: str, kind: int, payload: bytes, **fields: object) -> Vector:
        valid = {"valid": bool(fields), **fields}
        return {"name": name, "kind": kind, **valid, "payload": payload.hex()}

    def asked(name: str, ask: TreeAsk) -> Iterator[Vector]:
        told = {"root": ask.root.hex(), "depth": ask.depth, "numbers": list(ask.numbers)}
        answer = answer_to(ask, tree, root)
        yield case(f"a question for {name}", TREE_ASK, pack_ask(ask), **told)
        told = {"root": root.hex(), "depth": ask.depth, "numbers": [number for number, _ in answer.parts]}
        yield case(f"the answer for {name}", TREE_NODES, pack_nodes(answer), **told, **common)

    yield from asked("the top", TreeAsk(root, 0, (0,)))
    yield from asked("two subtrees", TreeAsk(root, 8, (buckets[0] >> 8, 255)))
    yield from asked("buckets", TreeAsk(root, 16, tuple(sorted({*buckets, absent}))))
    yield from asked("another tree", TreeAsk(sha256(b"another root").digest(), 16, (0, 65_535)))

    def ask(depth: int, *numbers: int) -> bytes:
        return pack_ask(TreeAsk(root, depth, numbers))

    yield case("no node", TREE_ASK, ask(8))
    yield case("two tops", TREE_ASK, ask(0, 0, 1))
    yield case("a top that is none", TREE_ASK, ask(0, 1))
    yield case("17 subtrees", TREE_ASK, ask(8, *range(17)))
    yield case("65 buckets", TREE_ASK, ask(16, *range(65)))
    yield case("a subtree that is none", TREE_ASK, ask(8, 256))
    yield case("numbers that fall", TREE_ASK, ask(16, 2, 1))
    yield case("a number twice", TREE_ASK, ask(16, 1, 1))
    yield case("a depth between", TREE_ASK, root + b"\x04" + (1).to_bytes(4, "big") + bytes(2))
    yield case("a byte too many", TREE_ASK, ask(16, 1) + b"\0")
    yield case("a byte too few", TREE_ASK, ask(16, 1)[:-1])

    def nodes(*parts: tuple[int, bytes], depth: int = 16) -> bytes:
        return pack_nodes(TreeNodes(root, depth, parts))

    first = buckets[0]
    second = bucket[:2] + bytes(62)
    yield case("half a pair", TREE_NODES, nodes((first, bucket[:32])))
    yield case("pairs that fall", TREE_NODES, nodes((first, bucket + second)))
    yield case("a pair twice", TREE_NODES, nodes((first, bucket + bucket)))
    yield case("a key of another bucket", TREE_NODES, nodes((absent, bucket)))
    yield case("buckets that fall", TREE_NODES, nodes((2, b""), (1, b"")))
    yield case("65 empty buckets", TREE_NODES, nodes(*((number, b"") for number in range(65))))
    yield case("a subtree of 255 hashes", TREE_NODES, nodes((0, bytes(255 * 32)), depth=8))
    yield case("no depth", TREE_NODES, root + b"\x11" + bytes(4))
    yield case("an answer with a byte too many", TREE_NODES, nodes((first, bucket)) + b"\0")


FILES: Final[dict[str, Callable[[], Iterator[Vector]]]] = {
    "op": ops,
    "entry": entries,
    "state": states,
    "heads": heads,
    "messages": messages,
    "envelope": envelopes,
    "network": networks,
    "bad_signatures": bad_signatures,
    "fork_proofs": fork_proofs,
    "proofs": lambda: proof_vectors.proofs(NETWORK),
    "receipts": lambda: proof_vectors.receipts(NETWORK),
    "tree_proofs": tree_proofs,
}


def main() -> int:
    check = sys.argv[1:] == ["--check"]
    differing = []
    for name, make in FILES.items():
        path = VECTORS / f"{name}.json"
        text = json.dumps({"cases": list(make())}, indent=1, ensure_ascii=True) + "\n"
        if path.exists():
            if path.read_text(encoding="ascii") != text:
                differing.append(path.name)
        elif check:
            differing.append(path.name)
        else:
            path.write_text(text, encoding="ascii")
            print(f"wrote {path.name}")
    if differing:
        print("these vectors would come out differently, so the format has changed:", *differing)
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
