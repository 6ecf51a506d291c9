"""Members who lie on their link: every frame and envelope that no honest node sends is refused by reason, and
an honest pair goes on syncing."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from hashlib import sha256

import pytest
import trio

from lattice.core.entry import OpKind, encode_op, make_entry, make_seal
from lattice.core.envelope import NONCE_BYTES, Kind, Opened
from lattice.core.identity import NodeKey, public_key_of
from lattice.core.limits import BUDGET_BYTES, MIB
from lattice.core.messages import Entries, Heads, HeadsFlag, Message, Roots, encode_messages
from lattice.transport.p2p.streams import SYNC_PROTOCOL, encode_frame

from .http_kit import Member, Rise, Scene, counted, forged
from .p2p_kit import (
    ANSWER,
    CHARGED,
    CLOSE,
    EVENTS,
    MESSAGES,
    REFUSED,
    REQUEST,
    Behave,
    Closed,
    RawLink,
    beat,
    off,
    p2p_scene,
    polite,
    raw_peer,
    rises,
    syncing,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with p2p_scene(tmp_path_factory.mktemp("links")) as found:
        yield found


def victim_key(made: Scene) -> bytes:
    return public_key_of(made.victim.status().peer_id)


def head(length: int, kind: int, number: int = 1) -> bytes:
    return struct.pack("!IBI", length, kind, number)


FRAMES = {
    "a length of 1 GB": (head(1 << 30, REQUEST), "link_oversize"),
    "the greatest length": (head(2**32 - 1, ANSWER), "link_oversize"),
    "a length below the head's": (head(2, REQUEST), "link_oversize"),
    "an unknown kind": (encode_frame(9, 1, b"?"), "link_malformed"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", FRAMES)
async def test_a_malformed_frame_ends_the_link(made: Scene, name: str) -> None:
    frame, counter = FRAMES[name]
    seed = os.urandom(32)
    async with syncing(made) as rise, raw_peer(made.victim, seed=seed) as peer:
        link = await peer.link(made.member.another(key=NodeKey(seed)))
        await link.stream.write(frame)
        await rises(rise, EVENTS, counter)
        with trio.fail_after(5):
            await link.ended.wait()


async def test_answers_that_nobody_waits_for_are_dropped_and_end_nothing(made: Scene) -> None:
    seed = os.urandom(32)
    async with syncing(made) as rise, raw_peer(made.victim, seed=seed) as peer:
        link = await peer.link(made.member.another(key=NodeKey(seed)))
        await link.stream.write(b"".join(encode_frame(ANSWER, 7000 + n, b"x") for n in range(1000)))  # type: ignore[arg-type]
        await rises(rise, EVENTS, "link_late_answer", by=1000)
        victim = await off(victim_key, made)
        assert await link.ask([link.member.hello()], victim)


def envelopes(made: Scene, member: Member, victim: bytes) -> dict[str, tuple[bytes, str]]:
    """What is sent as a request, and the reason for which it is refused."""
    hello = [member.hello()]
    other = made.member.another()

    def sealed(
        who: Member, kind: Kind = Kind.REQUEST, to: bytes = victim, body: bytes | None = None
    ) -> bytes:
        return who.sealer.seal(
            kind, encode_messages(hello) if body is None else body, os.urandom(NONCE_BYTES), to=to
        )

    key, number = member.key, next(iter(member.network_keys))
    return {
        "garbage": (os.urandom(500), "not_an_envelope"),
        "nothing": (b"", "too_short"),
        "a wrong key number": (
            sealed(Member(member.network_id, {77: os.urandom(32)}, key)),
            "unknown_key_number",
        ),
        "another key": (sealed(Member(member.network_id, {number: os.urandom(32)}, key)), "foreign"),
        "another network": (
            sealed(Member(sha256(b"another").digest(), member.network_keys, key)),
            "bad_signature",
        ),
        "sealed by another member": (sealed(other), "not_the_channels_peer"),
        "for another node": (sealed(member, to=other.key.public_key), "for_another_node"),
        "a one-way envelope": (sealed(member, Kind.ONE_WAY, to=bytes(32)), "not_a_request"),
        "a malformed body": (sealed(member, body=b"\x03\x00\x00\x00\x02xx"), "malformed"),
        "a length of 1 GB within": (sealed(member, body=b"\x03\x40\x00\x00\x00"), "malformed"),
    }


async def test_a_false_envelope_ends_the_link_and_is_counted_by_reason(made: Scene) -> None:
    victim = await off(victim_key, made)
    names = list(envelopes(made, made.member, victim))
    async with syncing(made) as rise:
        for name in names:
            seed = os.urandom(32)
            async with raw_peer(made.victim, seed=seed) as peer:
                member = made.member.another(key=NodeKey(seed))
                link = await peer.link(member)
                envelope, reason = envelopes(made, member, victim)[name]
                before = await off(rise.of, MESSAGES, f"request_{reason}")
                with pytest.raises(Closed):
                    await link.ask_raw(envelope)
                await rises(rise, MESSAGES, f"request_{reason}", by=before + 1)


def altered(made: Scene, member: Member) -> dict[str, tuple[Entries, str]]:
    whole = member.write(3, epoch=7)
    (header, ops), seal = whole.frames[0], whole.seals[-1]
    foreign = Member(sha256(b"another").digest(), member.network_keys, member.key).write(3, epoch=8)
    big = member.write(70, epoch=9)
    return {
        "a forged seal": (Entries(whole.frames, (forged(seal),)), "bad_seal"),
        "altered ops": (
            Entries(((header, ops[:-1] + b"?"), *whole.frames[1:]), whole.seals),
            "malformed_entry",
        ),
        "an altered header": (
            Entries(((header[:-1] + bytes([header[-1] ^ 1]), ops), *whole.frames[1:]), whole.seals),
            "malformed_entry",
        ),
        "no seal": (Entries(whole.frames, ()), "unsealed"),
        "entries of another network": (foreign, "unsealed"),
        "another's log, sealed by oneself": (
            Entries(whole.frames, (make_seal(made.member.another().key, member.network_id, *_last(member)),)),
            "unsealed",
        ),
        "no seal where one must be": (Entries(big.frames, big.seals[-1:]), "unsealed"),
        "a false author key": (_by_nobody(member), "bad_author_key"),
    }


def _last(member: Member) -> tuple:  # type: ignore[type-arg]
    entry = make_entry(
        member.network_id,
        author=member.key.public_key,
        epoch=7,
        seq=0,
        prev=bytes(32),
        clock=1,
        ops=(encode_op(OpKind.PUT, b"x", value=b"1"),),
    )
    return entry.header, entry.id


def _by_nobody(member: Member) -> Entries:
    """Written by the neutral element of the curve, a key under which a signature may mean anything."""
    entry = make_entry(
        member.network_id,
        author=b"\x01" + bytes(31),
        epoch=1,
        seq=0,
        prev=bytes(32),
        clock=1,
        ops=(encode_op(OpKind.PUT, b"x", value=b"1"),),
    )
    seal = make_seal(member.key, member.network_id, entry.header, entry.id)
    seal = seal._replace(author=b"\x01" + bytes(31))
    return Entries(((entry.header_bytes, entry.ops),), (seal,))


async def test_false_entries_are_refused_by_reason_charged_and_never_stored(made: Scene) -> None:
    victim = await off(victim_key, made)
    async with syncing(made) as rise:
        for name in altered(made, made.member):
            seed = os.urandom(32)
            async with raw_peer(made.victim, seed=seed) as peer:
                member = made.member.another(key=NodeKey(seed))
                link = await peer.link(member)
                message, reason = altered(made, member)[name]
                before = await off(rise.of, REFUSED, reason)
                charged = await off(rise.of, CHARGED, "p2p")
                await link.ask([message], victim)
                await rises(rise, REFUSED, reason, by=before + 1)
                assert await off(rise.of, CHARGED, "p2p") > charged, name


def clocked(member: Member, clock: int, epoch: int) -> Entries:
    entry = make_entry(
        member.network_id,
        author=member.key.public_key,
        epoch=epoch,
        seq=0,
        prev=bytes(32),
        clock=clock,
        ops=(encode_op(OpKind.PUT, b"clocks/%d" % epoch, value=b"1"),),
    )
    seal = make_seal(member.key, member.network_id, entry.header, entry.id)
    return Entries(((entry.header_bytes, entry.ops),), (seal,))


async def test_clocks_of_any_age_are_flagged_and_never_drag_ours(made: Scene) -> None:
    victim = await off(victim_key, made)
    century_ms = 100 * 365 * 86_400_000
    async with syncing(made) as rise:
        seed = os.urandom(32)
        async with raw_peer(made.victim, seed=seed) as peer:
            member = made.member.another(key=NodeKey(seed))
            link = await peer.link(member)
            now_ms = (await off(made.victim.state)).timestamp_ms
            clocks = [0, 1, (now_ms + century_ms) << 16, 2**64 - 1]
            for epoch, clock in enumerate(clocks):
                await link.ask([clocked(member, clock, 100 + epoch)], victim)
            await rises(rise, "lattice_clocks_skewed_total", by=2)
            written = await off(made.journal.put, made.victim, "clocks/after", 1)
            assert int(written.clock.partition("-")[0]) < now_ms + 600_000


async def test_a_jump_in_seq_waits_within_bounds_and_is_not_applied(made: Scene) -> None:
    victim = await off(victim_key, made)
    seed = os.urandom(32)
    async with syncing(made), raw_peer(made.victim, seed=seed) as peer:
        member = made.member.another(key=NodeKey(seed))
        link = await peer.link(member)
        entries = (await off(counted, made.victim))["lattice_pending_bytes", ()]
        for first in (5, 2**32, 2**63):
            await link.ask([member.write(2, epoch=55, first=first)], victim)
        assert (await off(counted, made.victim))["lattice_pending_bytes", ()] > entries
        heads = (await off(made.victim.state)).heads
        assert not any(found.author == member.peer_id for found in heads)


async def test_ten_thousand_replays_of_beats_and_hellos(made: Scene) -> None:
    victim = await off(victim_key, made)
    sent = 0
    async with syncing(made) as rise:
        seed = os.urandom(32)
        while sent < 10_000:
            async with raw_peer(made.victim, seed=seed) as peer:
                member = made.member.another(key=NodeKey(seed))
                link = await peer.link(member)
                roots = next(
                    (m.roots for _, messages in link.requests for m in messages if isinstance(m, Heads)), None
                )
                old = [member.request([member.hello()], victim)]
                if roots is not None:
                    old.append(member.request([beat(victim, roots)], victim))
                for request in old:
                    await link.ask_raw(request)
                frames = b"".join(
                    encode_frame(REQUEST, 50_000 + n, old[n % len(old)])  # type: ignore[arg-type]
                    for n in range(1000)
                )
                link.stream.heeds = False
                try:
                    await link.stream.write(frames)
                finally:
                    sent += 1000
                await rises(rise, MESSAGES, "request_replayed", by=sent // 1000)
                with trio.fail_after(5):
                    await link.ended.wait()


def fruitless(member: Member) -> Behave:
    """Answers every round with roots that nobody has and lists that name nothing."""
    honest = polite(member)

    def behave(opened: Opened, messages: list[Message]) -> list[Message]:
        out: list[Message] = []
        for message in messages:
            if isinstance(message, Heads):
                flags = HeadsFlag.LISTS if HeadsFlag.LISTS in message.flags else HeadsFlag.AUTHORS
                flags = HeadsFlag.FINAL if HeadsFlag.FINAL in message.flags else flags
                out.append(Heads(message.round, flags, lying(message.roots)))
            else:
                out += honest(opened, [message]) or []  # type: ignore[arg-type]
        return out

    return behave


async def test_three_fruitless_rounds_lead_to_back_off(made: Scene) -> None:
    seed = os.urandom(32)
    async with syncing(made) as rise, raw_peer(made.victim, seed=seed) as peer:
        member = made.member.another(key=NodeKey(seed))
        link = await peer.link(member, fruitless(member))
        victim = await off(victim_key, made)
        roots = None
        while not (await off(rise.of, MESSAGES, "backoff_p2p")):
            found = [m.roots for _, messages in link.requests for m in messages if isinstance(m, Heads)]
            roots = found[-1] if found else roots
            if roots is not None:
                await link.ask([beat(victim, lying(roots))], victim)  # heads differ: it opens a round
            await trio.sleep(0.3)
        assert await off(rise.of, MESSAGES, "rounds_fruitless_p2p") == 3
        assert (await off(counted, made.victim))["lattice_peers_restrained", ()] == 1
        assert roots is not None
        rounds = opened_rounds(link)
        for _ in range(5):  # and now a beat with other heads opens none
            await link.ask([beat(victim, lying(roots))], victim)
        assert opened_rounds(link) == rounds


def lying(roots: Roots) -> Roots:
    return roots._replace(log_root=os.urandom(32))


def opened_rounds(link: RawLink) -> int:
    return len({m.round for _, messages in link.requests for m in messages if isinstance(m, Heads)})


async def test_who_brings_nothing_but_waste_is_no_longer_listened_to(made: Scene) -> None:
    victim = await off(victim_key, made)
    seed = os.urandom(32)
    async with syncing(made) as rise, raw_peer(made.victim, seed=seed) as peer:
        member = made.member.another(key=NodeKey(seed))
        link = await peer.link(member)
        page = member.write(8, epoch=3, value=b'"' + b"x" * 120_000 + b'"')
        waste = Entries(page.frames, tuple(map(forged, page.seals)))
        with pytest.raises(Closed):
            for _ in range(2 * BUDGET_BYTES // MIB):
                await link.ask([waste], victim)
        await rises(rise, MESSAGES, "budget_spent_p2p")
        assert await off(rise.of, CHARGED, "p2p") >= BUDGET_BYTES
        await _refused_at_the_door(made, rise, seed)


async def _refused_at_the_door(made: Scene, rise: Rise, seed: bytes) -> None:
    """The peer comes back with a new connection: no Hello is spent on it."""
    async with raw_peer(made.victim, seed=seed) as peer:
        stream = await peer.opened(SYNC_PROTOCOL)
        assert struct.unpack("!IBI", await stream.read(9)) == (5, CLOSE, 0)
        with pytest.raises(Closed):
            await stream.read(1)
        await rises(rise, MESSAGES, "links_over_budget_p2p")
