"""Members of the network who lie over HTTP: every answer is checked against the very request, the logs that
they name are asked for within bounds, and what they may write costs the others little."""

from __future__ import annotations

import itertools
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from hashlib import sha256

import pytest

from lattice.client import calls
from lattice.core.budget import NEVER_COMPLETE
from lattice.core.codec import Writer
from lattice.core.envelope import NONCE_BYTES, Kind, Opened
from lattice.core.limits import MESSAGES_MAX, REFUSAL_BYTES_MIN, WANT_RANGES_MAX
from lattice.core.messages import (
    RULES_VERSION,
    Addresses,
    Entries,
    Heads,
    HeadsFlag,
    Hello,
    Message,
    Roots,
    Want,
    WantEntries,
    encode_messages,
)
from lattice.core.rows import LogHead
from lattice.schemas import PeerStatus
from lattice.testing.cluster import LocalNode, wait_for

from .http_kit import Behave, Liar, Member, Rise, Scene, forged, scene

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

OPEN = 2**64 - 1


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with scene(tmp_path_factory.mktemp("members")) as found:
        yield found


def peer_at(node: LocalNode, url: str) -> PeerStatus | None:
    return next((peer for peer in node.status().peers if url in peer.addresses), None)


def forget(node: LocalNode, liars: Sequence[Liar]) -> None:
    for liar in liars:
        node.send(calls.forget_peer(liar.url))


# Answers that are none to this request.


def hello_first(member: Member, then: Callable[[Opened, list[Message]], Sequence[Message] | bytes]) -> Behave:
    """Honest at the first contact, so that it is known; then not."""

    def behave(opened: Opened, messages: list[Message]) -> Sequence[Message] | bytes:
        if all(isinstance(message, Hello) for message in messages):
            return [member.hello()]
        return then(opened, messages)

    return behave


def heads_of(messages: Sequence[Message]) -> Heads:
    return next(message for message in messages if isinstance(message, Heads))


def same_heads(messages: list[Message]) -> list[Message]:
    asked = heads_of(messages)
    return [Heads(asked.round, HeadsFlag(0), asked.roots)]


def replaying(member: Member) -> Behave:
    first: list[bytes] = []

    def then(opened: Opened, messages: list[Message]) -> bytes:
        first.append(member.answer(opened, same_heads(messages)))
        return first[0]

    return hello_first(member, then)


def sealed_anew(member: Member, change: Callable[[Opened, bytes], bytes]) -> Behave:
    return hello_first(member, lambda opened, messages: change(opened, encode_messages(same_heads(messages))))


def false_answers(made: Scene) -> dict[str, tuple[Member, Behave, str, str]]:
    """Name, who answers and how, the word in the status, and the counter that must rise."""
    found: dict[str, tuple[Member, Behave, str, str]] = {}

    def case(name: str, make: Callable[[Member], Behave], word: str, counter: str) -> None:
        member = made.member.another()
        found[name] = (member, make(member), word, counter)

    other = made.member.another()
    outside = Member(sha256(b"another network").digest(), made.member.network_keys)
    stranger = Member(made.member.network_id, {1: os.urandom(32)})
    rotated = Member(made.member.network_id, {77: os.urandom(32)})
    wrong, envelope = "not_an_answer", "envelope"
    case("an answer from before", replaying, wrong, "answer_not_to_this_request")
    case(
        "sealed by another member",
        lambda member: sealed_anew(
            member, lambda opened, body: other.answer_raw(body, to=opened.sender, reply_to=opened.digest)
        ),
        wrong,
        "answer_not_to_this_request",
    )
    case(
        "to another request",
        lambda member: sealed_anew(
            member, lambda opened, body: member.answer_raw(body, to=opened.sender, reply_to=os.urandom(32))
        ),
        wrong,
        "answer_not_to_this_request",
    )
    case(
        "to nobody",
        lambda member: sealed_anew(
            member, lambda opened, body: member.answer_raw(body, to=bytes(32), reply_to=opened.digest)
        ),
        wrong,
        "answer_not_to_this_request",
    )
    case(
        "a request for an answer",
        lambda member: sealed_anew(
            member,
            lambda opened, body: member.sealer.seal(
                Kind.REQUEST, body, os.urandom(NONCE_BYTES), to=opened.sender, reply_to=opened.digest
            ),
        ),
        wrong,
        "answer_not_to_this_request",
    )
    case(
        "to another node",
        lambda member: sealed_anew(
            member, lambda opened, body: member.answer_raw(body, to=os.urandom(32), reply_to=opened.digest)
        ),
        envelope,
        "answer_for_another_node",
    )
    for name, by, counter in (
        ("of another network", outside, "answer_bad_signature"),
        ("under another key", stranger, "answer_foreign"),
        ("under a key number that nobody has", rotated, "answer_unknown_key_number"),
    ):
        case(
            name,
            lambda member, by=by: sealed_anew(  # type: ignore[misc]
                member,
                lambda opened, body, by=by: by.answer_raw(body, to=opened.sender, reply_to=opened.digest),
            ),
            envelope,
            counter,
        )
    for name, body in malformed_bodies().items():
        case(
            name,
            lambda member, body=body: sealed_anew(  # type: ignore[misc]
                member,
                lambda opened, _, body=body: member.answer_raw(
                    body, to=opened.sender, reply_to=opened.digest
                ),
            ),
            "malformed",
            "answer_malformed",
        )

    def asking(member: Member) -> Behave:
        return lambda opened, messages: [member.hello(challenge=secrets.token_bytes(32))]

    case("a challenge without end", asking, "challenge_loop", "")
    return found


def malformed_bodies() -> dict[str, bytes]:
    roots = Roots(bytes(32), bytes(32), RULES_VERSION, 0)
    hello = encode_messages([Heads(1, HeadsFlag(0), roots)])
    return {
        "a length prefix of 4 GB": b"\x03\xff\xff\xff\xff" + bytes(100),
        "a count of 4 billion authors": b"\x03"
        + Writer().blob(bytes(8 + 1 + 32 + 32 + 2 + 8 + 4) + b"\xff" * 4).done(),
        "more messages than an envelope may hold": hello * (MESSAGES_MAX + 1),
        "a cut message": hello[:-1],
        "a range that ends before it begins": encode_messages([WantEntries((Want(bytes(32), 1, 5, 4),))]),
    }


def test_answers_that_are_none_to_the_request_are_refused_and_counted(made: Scene) -> None:
    listed = false_answers(made)
    with ExitStack() as stack:
        liars = {
            name: stack.enter_context(Liar(member, behave)) for name, (member, behave, _, _) in listed.items()
        }
        rise = Rise(made.victim)
        for liar in liars.values():
            made.victim.send(calls.add_peer(liar.url))

        def words() -> dict[str, str | None]:
            peers = made.victim.status().peers
            return {
                name: next((peer.http.last_error for peer in peers if liar.url in peer.addresses), None)
                for name, liar in liars.items()
            }

        wait_for("a word for each liar", lambda: all(words().values()), within_s=30)
        assert words() == {name: word for name, (_, _, word, _) in listed.items()}
        for counter in {counter for _, _, _, counter in listed.values() if counter}:
            number = sum(counter == row[3] for row in listed.values())
            assert rise.of("lattice_messages_total", counter) >= number, counter
        assert rise.of("lattice_polls_failed_total", "challenge_loop") >= 1
        charged = sum(word in NEVER_COMPLETE for _, _, word, _ in listed.values()) * REFUSAL_BYTES_MIN
        assert rise.of("lattice_charged_bytes_total", "http") >= charged > 0
        made.control()
        forget(made.victim, list(liars.values()))


# Heads that lie.


def lying_heads(member: Member, named: Callable[[], Sequence[tuple[int, LogHead]]]) -> Behave:
    """Roots that change at each look, lists of logs that do not exist, nothing of what is asked for."""

    def then(opened: Opened, messages: list[Message]) -> list[Message]:
        asked = next((message for message in messages if isinstance(message, Heads)), None)
        if asked is None:
            return []
        roots = Roots(os.urandom(32), os.urandom(32), RULES_VERSION, 10**6)
        if HeadsFlag.FINAL in asked.flags:
            return [Heads(asked.round, HeadsFlag.FINAL | HeadsFlag.HOLDS_ALL, roots)]
        if HeadsFlag.LISTS in asked.flags:
            logs = ((member.key.public_key, tuple(sorted(named()))),)
            return [Heads(asked.round, HeadsFlag.LISTS, roots, logs=logs)]
        authors = ((member.key.public_key, os.urandom(32)),)
        return [Heads(asked.round, HeadsFlag.AUTHORS, roots, authors=authors)]

    return hello_first(member, then)


def invented() -> list[tuple[int, LogHead]]:
    return [(secrets.randbits(60), LogHead(10_000, os.urandom(32), OPEN)) for _ in range(50)]


def test_heads_that_name_what_is_never_delivered_lead_nowhere(made: Scene) -> None:
    member = made.member.another()
    rise = Rise(made.victim)
    before = made.victim.state()
    with Liar(member, lying_heads(member, invented)) as liar:
        made.victim.send(calls.add_peer(liar.url))
        rise.wait("lattice_rounds_total", "incomplete", "http", by=2)
        made.control()
        after = made.victim.state()
        assert (after.entry_count, len(after.heads)) == (before.entry_count + 2, len(before.heads))
        # A round asks once for what was named, and ends when nothing of it comes.
        wants = [m for _, messages in liar.rounds for m in messages if isinstance(m, WantEntries)]
        rounds = {m.round for _, messages in liar.rounds for m in messages if isinstance(m, Heads)}
        assert 0 < len(wants) <= len(rounds)
        # Three fruitless rounds, and it is asked less and less, however alive it is.
        waits = []

        def six() -> bool:
            waits.append(made.control())
            return rise.of("lattice_polls_failed_total", "fruitless") >= 6

        wait_for("six fruitless rounds", six, within_s=30)
        gaps = [after - before for before, after in itertools.pairwise(starts(liar)[:6])]
        assert gaps[-1] > 3 * 0.5, gaps
        assert gaps[-1] > 1.5 * gaps[-2], gaps
        assert max(waits) < 5, waits
        forget(made.victim, [liar])


def starts(liar: Liar) -> list[float]:
    """When the rounds with this peer began."""
    return [
        when
        for when, messages in liar.rounds
        if any(isinstance(m, Heads) and not m.flags & (HeadsFlag.LISTS | HeadsFlag.FINAL) for m in messages)
    ]


@pytest.mark.parametrize("lie", ["the very same roots", "other roots each time, and nothing named"])
def test_who_answers_at_once_and_never_holds_back_is_not_asked_without_pause(made: Scene, lie: str) -> None:
    """Each round is good, and moves nothing: nothing to blame, and nothing to hurry for."""
    member = made.member.another()
    nothing = lying_heads(member, list)
    behave = nothing if "other" in lie else hello_first(member, lambda opened, told: same_heads(told))
    rise = Rise(made.victim)
    with Liar(member, behave) as liar:
        made.victim.send(calls.add_peer(liar.url))
        wait_for("ten rounds", lambda: len(starts(liar)) >= 10, within_s=40)
        first, last = starts(liar)[3], starts(liar)[9]
        assert last - first > 6 * 0.8
        assert rise.of("lattice_rounds_total", "complete" if "other" in lie else "equal", "http") >= 9
        made.control()
        forget(made.victim, [liar])


def test_want_lists_without_end_end_the_round(made: Scene) -> None:
    """It always wants something, and always something else, of what the node holds."""
    member = made.member.another()
    held = [(head.author, int(head.epoch, 16)) for head in made.victim.state().heads]
    numbers = itertools.count(1)

    def wanting(opened: Opened, messages: list[Message]) -> list[Message]:
        from lattice.core.identity import public_key_of

        author, epoch = held[0]
        number = next(numbers)
        wanted = [
            Want(public_key_of(author), epoch, 0, number * WANT_RANGES_MAX + n)
            for n in range(WANT_RANGES_MAX)
        ]
        answer = list(lying_heads(member, invented)(opened, messages))
        return [*answer, WantEntries(tuple(wanted))]

    rise = Rise(made.victim)
    with Liar(member, hello_first(member, wanting)) as liar:
        made.victim.send(calls.add_peer(liar.url))
        rise.wait("lattice_rounds_total", "incomplete", "http", by=2)
        made.control()
        exchanges = len(liar.rounds) / rise.of("lattice_rounds_total", "incomplete", "http")
        assert exchanges < 20, "a round with such a peer is short"
        forget(made.victim, [liar])


# Entries that are none, and entries that are of no use.


def delivering(member: Member, page: Callable[[], Entries]) -> Behave:
    behave = lying_heads(member, invented)

    def then(opened: Opened, messages: list[Message]) -> Sequence[Message] | bytes:
        answer = behave(opened, messages)
        return answer if isinstance(answer, bytes) else [*answer, page()]

    return hello_first(member, then)


def test_forged_entries_are_refused_by_reason_and_never_stored(made: Scene) -> None:
    member = made.member.another()
    pages = {
        "bad_seal": lambda: _with_bad_seals(member.write(3, epoch=5)),
        "malformed_entry": lambda: Entries(
            (tuple((b"\xff" * len(h), o) for h, o in member.write(2).frames)), ()
        ),
    }
    rise = Rise(made.victim)
    for reason, page in pages.items():
        with Liar(member, delivering(member, page)) as liar:
            made.victim.send(calls.add_peer(liar.url))
            rise.wait("lattice_entries_refused_total", reason)
            made.control()
            forget(made.victim, [liar])
    assert not any(head.author == member.peer_id for head in made.victim.state().heads)


def _with_bad_seals(page: Entries) -> Entries:
    return Entries(page.frames, tuple(forged(seal) for seal in page.seals))


# Where members say that they are.


def test_addresses_that_lead_nowhere_are_not_learned(made: Scene) -> None:
    member = made.member.another()
    member.addresses = Addresses(
        ("/ip4/169.254.169.254/tcp/80", "/ip4/224.0.0.1/tcp/9000", "nonsense"),
        ("http://169.254.169.254/latest", "http://[fe80::1]:80", "http://user:pass@192.0.2.1"),
    )
    rise = Rise(made.victim)
    with Liar(member, hello_first(member, lambda opened, messages: same_heads(messages))) as liar:
        made.victim.send(calls.add_peer(liar.url))
        rise.wait("lattice_messages_total", "addresses_refused_unroutable", by=4)
        rise.wait("lattice_messages_total", "addresses_refused_malformed", by=2)
        found = peer_at(made.victim, liar.url)
        assert found is not None
        assert (found.id, found.addresses) == (member.peer_id, [liar.url])
        made.control()
        forget(made.victim, [liar])
