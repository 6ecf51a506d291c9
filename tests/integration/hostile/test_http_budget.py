"""One member that brings valid and useless pages, as many at once as it can: they wait for its own turn, and
an honest pair goes on. The ratio of the honest pair's speed with and without it is printed (`pytest -s`)."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import httpx
import pytest

from lattice.core.identity import public_key_of
from lattice.core.limits import TURNS_WAITING_MAX
from lattice.core.messages import Entries, Hello, decode_messages
from lattice.testing.cluster import LocalNode, roots_equal, wait_for

from .http_kit import SYNC_PATH, Member, Rise, Scene, scene

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

MEASURED_S = 5.0
PAGES, ENTRIES_A_PAGE, AT_ONCE = 80, 300, 16


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with scene(tmp_path_factory.mktemp("budget")) as found:
        yield found


def known_boot(made: Scene, member: Member) -> bytes:
    """Let the node know this boot; the node's public key."""
    victim = public_key_of(made.victim.status().peer_id)
    url = f"http://127.0.0.1:{made.victim.sync_port}{SYNC_PATH}"
    first = httpx.post(url, content=member.request([member.hello()], victim), trust_env=False)
    (asked,) = decode_messages(member.sealer.open(first.content).body)
    assert isinstance(asked, Hello)
    answer = member.request([member.hello(answering=asked.challenge)], victim)
    assert httpx.post(url, content=answer, trust_env=False).status_code == 200
    return victim


def held_of(node: LocalNode, author: str) -> int:
    return sum(head.seq + 1 for head in node.state().heads if head.author == author)


def honest_speed(made: Scene, prefix: str) -> float:
    """Entries a second that were written at the honest node and are held by the one under attack."""
    author = made.honest.status().peer_id
    before, began = held_of(made.victim, author), time.monotonic()
    number = 0
    while time.monotonic() - began < MEASURED_S:
        made.journal.put(made.honest, f"{prefix}/{number}", number)
        number += 1
    return (held_of(made.victim, author) - before) / (time.monotonic() - began)


class Storm:
    """A process of its own, which posts page after page until it is taken, so many at a time; when it is
    over, `answers` counts them by status."""

    def __init__(self, url: str, pages: Sequence[Entries], seal: Callable[[Entries], bytes]) -> None:
        # Forked, so that pages and member are there; and a process, so that it does not share the
        # interpreter's lock with whoever measures.
        fork = multiprocessing.get_context("fork")
        self._over = fork.Event()
        self._told = fork.SimpleQueue()
        self._process = fork.Process(target=self._run, args=(url, list(pages), seal), daemon=True)
        self.answers: Counter[int] = Counter()

    def __enter__(self) -> Storm:
        self._process.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.answers = self._told.get()
        self._process.join()

    def _run(self, url: str, pages: list[Entries], seal: Callable[[Entries], bytes]) -> None:
        answers: Counter[int] = Counter()
        lock = threading.Lock()

        def post() -> None:
            with httpx.Client(trust_env=False, timeout=60) as client:
                while pages and not self._over.is_set():
                    with lock:
                        page, status = pages.pop(), 429
                    while status == 429 and not self._over.is_set():
                        # A new envelope each time: the one that was refused has used up its counter.
                        with lock:
                            sealed = seal(page)
                        status = client.post(url, content=sealed).status_code
                        with lock:
                            answers[status] += 1

        threads = [threading.Thread(target=post) for _ in range(AT_ONCE)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self._told.put(answers)


def test_pages_of_one_member_wait_for_their_turn_and_an_honest_pair_goes_on(made: Scene) -> None:
    member = made.member.another()
    victim = known_boot(made, member)
    pages = [member.write(ENTRIES_A_PAGE, epoch=1000 + number) for number in range(PAGES)]
    url = f"http://127.0.0.1:{made.victim.sync_port}{SYNC_PATH}"
    quiet = honest_speed(made, "quiet")
    rise = Rise(made.victim)
    with Storm(url, pages, lambda page: member.request([page], victim)) as storm:
        stormy = honest_speed(made, "stormy")
        waited = made.control()
    print(
        f"the honest pair: {quiet:.0f} entries a second alone, {stormy:.0f} beside the storm, ratio "
        f"{stormy / quiet:.2f}; a write took {waited:.2f} s to be seen; answers {dict(storm.answers)}"
    )
    refused = sum(
        rise.of("lattice_messages_total", event)
        for event in ("rounds_refused_too_many", "request_too_many_waiting")
    )
    assert storm.answers[429] == refused > 0
    assert storm.answers[200] >= TURNS_WAITING_MAX
    assert set(storm.answers) == {200, 429}
    assert rise.of("lattice_http_refused_total", "too_many") == refused
    # Who tries again at once is not refused more than twice a second for each of its connections.
    assert refused < AT_ONCE * 3 * (MEASURED_S + waited + 2)
    assert stormy > 0
    made.control()
    nodes = [made.honest, made.victim]
    wait_for("equal roots, the useless entries among them", lambda: roots_equal(nodes), within_s=60)
    assert held_of(made.honest, member.peer_id) == storm.answers[200] * ENTRIES_A_PAGE
