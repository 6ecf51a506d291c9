"""The status page in a real headless browser against real nodes: what a person sees, in every state.

Separate from the tests of the API because here the page's own script runs, under its own policy.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from nacl.signing import SigningKey

from lattice.client import calls
from lattice.client.client import Client
from lattice.testing.cluster import LocalNode, make_nodes, running
from tests.browser.browser_kit import CHROMIUM, browser
from tests.independent.ledger import Author, Ledger
from tests.independent.real_nodes import call, stranger
from tests.independent.wire_format import PUT, Entries, Ticket, make_op, peer_id, read_ticket

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")]

HTML_NAME = "<img src=x onerror=\"document.title='run'\">"
HURRIED = {
    "LATTICE_HEARTBEAT_INTERVAL_S": "0.5",
    "LATTICE_PEERLESS_TIMEOUT_S": "4",
    "LATTICE_HTTP_POLL_INTERVAL_S": "1",
}


def ticket_of(node: LocalNode) -> Ticket:
    return read_ticket(node.command("invite").split()[-1])


def forged(ticket: Ticket) -> tuple[str, Sequence[Entries]]:
    """An author, and two branches of one log of its own that differ from the first entry on."""
    branches = [Author(Ledger(ticket.network_id), SigningKey.generate())]
    branches.append(Author(Ledger(ticket.network_id), branches[0].key))
    branches[1].epoch = branches[0].epoch
    bodies = []
    for value, branch in enumerate(branches):
        entry = branch.write(make_op(PUT, "<b>contested</b>", json.dumps(value).encode()))
        (seal,) = branch.ledger.logs[branch.public_key, branch.epoch].seals.values()
        bodies.append(Entries(((entry.header_bytes, entry.ops_bytes),), (seal,)))
    return peer_id(branches[0].public_key), bodies


class _Foreign(BaseHTTPRequestHandler):
    """Some other program on a node's port, which answers everything in its own way."""

    def __init__(self, answers: list[bytes], *args: Any) -> None:
        self._answers = answers
        super().__init__(*args)

    def do_GET(self) -> None:
        answer = self._answers[0]
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def foreign_program(port: int) -> Iterator[list[bytes]]:
    """It answers with the one item of the list that comes out."""
    answers = [b"{}"]
    server = ThreadingHTTPServer(("127.0.0.1", port), partial(_Foreign, answers))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield answers
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


async def test_a_node_alone_its_switch_and_how_it_goes_and_comes(tmp_path: Path) -> None:
    nodes = make_nodes(tmp_path, ["nodeA"])
    with running(nodes) as (node,):
        async with browser(tmp_path) as tab:
            await tab.open(f"{node.url}/")
            status = node.status()
            await tab.wait_text("headline", status.headline)
            assert "alone" in status.headline
            assert await tab.text("state-root") == status.merkle_root
            assert await tab.text("mode") == "ISOLATED"
            assert await tab.text("forks") == "none"
            assert await tab.sees("no-peers")
            assert not await tab.sees("peers-frame")

            await tab.click("[data-policy=http]")
            await tab.wait("at('policy').textContent.startsWith('http ')")
            assert node.status().policy == "http"
            pressed = await tab.value("document.querySelector('[aria-pressed=true]').dataset.policy")
            assert pressed == "http"

            await tab.value(
                "let b = document.querySelector('[data-policy=p2p]'); b.dataset.policy = 'x'; b.click()"
            )
            await tab.wait("at('answer').textContent.startsWith('Not switched: ')")
            assert node.status().policy == "http"

            node.stop()
            await tab.wait_text("headline", "The node does not answer")
            first = await tab.text("contact")
            assert "What stands below is from " in first
            assert await tab.text("state-root") == status.merkle_root
            assert await tab.value("document.querySelector('[data-policy=auto]').disabled")
            await tab.wait(f"at('contact').textContent !== {json.dumps(first)}")  # older by now

            node.start()
            await tab.wait("at('headline').textContent.startsWith('Network status')")
            assert await tab.text("contact") == ""
            assert not await tab.value("document.querySelector('[data-policy=auto]').disabled")


def wrong_answers(good: dict[str, Any]) -> list[bytes]:
    """No JSON, no status, and statuses with one thing that is not as it must be."""
    peer = {"id": "12D3KooWx", "name": "nodeX", "state": "alive", "p2p": None, "http": None}
    changed: list[dict[str, Any]] = [
        {"peers": None},
        {"peers": [peer]},
        {"synced": ["nodeX"]},
        {"alarms": "none"},
        {"forks": None},
        {"merkle_root": 7},
    ]
    return [b"<html>hello", b"null", b"[]", b"{}", *(json.dumps(good | each).encode() for each in changed)]


async def test_an_answer_that_cannot_be_read_is_told_and_asking_goes_on(tmp_path: Path) -> None:
    nodes = make_nodes(tmp_path, ["nodeA"])
    with running(nodes) as (node,):
        async with browser(tmp_path) as tab:
            await tab.open(f"{node.url}/")
            code, good = call(node, "GET", "/api/lattice/p2p/status")
            assert code == 200
            await tab.wait_text("state-root", good["merkle_root"])
            node.stop()
            with foreign_program(node.api_port) as answers:
                for wrong in wrong_answers(good):
                    # A good one in between shows that each of them is noticed anew.
                    answers[0] = json.dumps(good | {"headline": "as it was"}).encode()
                    await tab.value("refresh()")
                    await tab.wait_text("headline", "as it was")
                    answers[0] = wrong
                    await tab.value("refresh()")
                    await tab.wait_text("headline", "The last answer could not be read")
                    assert "What stands below is from " in await tab.text("contact")
                    assert await tab.text("state-root") == good["merkle_root"], wrong
            node.start()  # and nobody but the page's own timer asks it
            await tab.wait("at('headline').textContent.startsWith('Network status')")
            assert await tab.text("contact") == ""


async def test_peers_are_shown_as_text_and_both_lungs_as_they_are(tmp_path: Path) -> None:
    nodes = make_nodes(tmp_path, ["nodeA", "nodeB"], environ=HURRIED)
    with running(nodes) as (node, other):
        async with browser(tmp_path) as tab:
            await tab.open(f"{node.url}/")
            await tab.wait_text("mode", "P2P")
            await tab.wait("at('peers').innerText.includes('nodeB')")
            await tab.wait(r"/^nodeB at (\S+ )?\d\d:\d\d:\d\d UTC$/.test(at('synced').textContent)")
            assert await tab.sees("peers-frame")
            assert not await tab.sees("no-peers")

            other.send(calls.switch("http"))
            await tab.click("[data-policy=http]")
            await tab.wait("at('mode').textContent === 'HTTP'")
            await tab.wait("at('http').textContent.startsWith('polling')")

            liar = stranger(ticket_of(node), node)
            liar.name = HTML_NAME
            liar.sync()
            await tab.wait(f"at('peers').innerText.includes({json.dumps(HTML_NAME)})")
            assert await tab.value("document.images.length") == 0
            assert "run" not in await tab.value("document.title")

            other.stop()
            await tab.wait("at('headline').textContent.includes('isolated')", within_s=40)
            assert await tab.text("mode") == "ISOLATED"
            assert await tab.value("at('headline').dataset.tone") == "bad"
            await tab.wait("at('notices').innerText.includes('Alarm: ')")


async def test_forks_are_an_alarm_and_the_link_lists_them(tmp_path: Path) -> None:
    nodes = make_nodes(tmp_path, ["nodeA"])
    with running(nodes) as (node,):
        async with browser(tmp_path) as tab:
            await tab.open(f"{node.url}/")
            await tab.wait_text("forks", "none")
            assert await tab.value("at('forks').getAttribute('href')") == "/api/lattice/forks"
            ticket = ticket_of(node)
            author, bodies = forged(ticket)
            for body in bodies:
                stranger(ticket, node).ask([body])
            await tab.wait_text("forks", "Alarm: 1 log is frozen")
            assert await tab.value("at('forks').dataset.tone") == "bad"
            await tab.wait("at('notices').innerText.includes('is frozen at seq 0')")
            await tab.click("#forks")
            await tab.wait("at('fork-list').innerText.includes('is frozen at seq 0')")
            assert await tab.value("at('fork-list').querySelector('code').title") == author
            assert await tab.value("document.querySelectorAll('b').length") == 0
            assert await tab.value("at('fork-list').children.length") == 1

            teller = stranger(ticket, node)
            for body in [body for _ in range(100) for body in forged(ticket)[1]]:
                teller.ask([body])
            await tab.wait_text("forks", "Alarm: 101 logs are frozen")
            await tab.click("#forks")
            await tab.wait("at('fork-list').innerText.includes('`lattice forks` lists all')")
            assert await tab.value("at('fork-list').children.length") == 101


async def test_a_token_is_asked_for_checked_and_used(tmp_path: Path) -> None:
    (node,) = make_nodes(tmp_path, ["nodeA"], introduce=False)
    node.environ["LATTICE_API_BIND"] = f"0.0.0.0:{node.api_port}"
    node.command("init")
    token = (node.data_dir / "api.token").read_text().strip()
    with running([node]):
        async with browser(tmp_path) as tab:
            await tab.open(f"{node.url}/")
            await tab.wait("!at('token-form').hidden")
            assert not await tab.sees("main")
            assert await tab.text("token-answer") == ""

            await tab.type("not the token")  # the field has the focus already
            await tab.press_enter()
            await tab.wait_text("token-answer", "This is not the token of this node.")
            assert not await tab.sees("main")
            assert await tab.value("sessionStorage.length") == 0

            await tab.type(token)
            await tab.press_enter()
            await tab.wait("at('headline').textContent.startsWith('Network status')")
            assert await tab.sees("main")
            assert not await tab.sees("token-form")
            await tab.click("[data-policy=http]")
            await tab.wait("at('policy').textContent.startsWith('http ')")
            await tab.click("#forks")
            await tab.wait_text("fork-list", "No log is forked.")
            with Client(node.url, token=token) as client:
                assert client.send(calls.status()).policy == "http"


async def test_where_everybody_may_read_a_token_is_asked_for_by_the_switch(tmp_path: Path) -> None:
    (node,) = make_nodes(tmp_path, ["nodeA"], introduce=False)
    node.environ |= {"LATTICE_API_BIND": f"0.0.0.0:{node.api_port}", "LATTICE_PUBLIC_STATUS": "true"}
    node.command("init")
    token = (node.data_dir / "api.token").read_text().strip()
    with running([node]):
        async with browser(tmp_path) as tab:
            await tab.open(f"{node.url}/")
            await tab.wait("at('policy').textContent.startsWith('auto ')")
            assert not await tab.sees("token-form")
            await tab.click("[data-policy=http]")
            await tab.wait("!at('token-form').hidden")
            assert (await tab.text("answer")).startswith("Not switched: ")

            await tab.type("not the token")
            await tab.press_enter()
            await tab.wait_text("token-answer", "This is not the token of this node.")
            await tab.wait("!at('main').hidden")  # what everybody may read is still shown
            assert (await tab.text("policy")).startswith("auto ")

            await tab.type(token)
            await tab.press_enter()
            await tab.wait("at('token-form').hidden")
            await tab.click("[data-policy=http]")
            await tab.wait("at('policy').textContent.startsWith('http ')")
