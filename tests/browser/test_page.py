"""The status page in a real headless browser, over the DevTools protocol, against a real node."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import trio
from nacl.signing import SigningKey
from trio_websocket import WebSocketConnection, open_websocket_url

from lattice.testing.cluster import make_nodes, running
from tests.independent.ledger import Author, Ledger
from tests.independent.peer import Peer
from tests.independent.wire_format import PUT, Range, make_op, read_ticket

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed"),
]
_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-port=0",
)


class Tab:
    """One page of the browser; scripts run in it and their value comes back."""

    def __init__(self, socket: WebSocketConnection, session: str = "") -> None:
        self._socket = socket
        self._session = session
        self._number = 0

    async def send(self, method: str, **params: Any) -> Any:
        self._number += 1
        call = {"id": self._number, "method": method, "params": params}
        await self._socket.send_message(
            json.dumps(call | ({"sessionId": self._session} if self._session else {}))
        )
        while True:
            found = json.loads(await self._socket.get_message())
            if found.get("id") == self._number:
                return found["result"]

    async def open(self, url: str) -> None:
        target = (await self.send("Target.createTarget", url=url))["targetId"]
        self._session = (await self.send("Target.attachToTarget", targetId=target, flatten=True))["sessionId"]

    async def value(self, script: str) -> Any:
        return (await self.send("Runtime.evaluate", expression=script))["result"].get("value")

    async def wait(self, script: str, within_s: float = 15) -> None:
        with trio.move_on_after(within_s):
            while not await self.value(script):
                await trio.sleep(0.1)
            return
        pytest.fail(f"not so: {script}; the page says {await self.value('document.body.innerText')}")


def _launch(directory: Path) -> subprocess.Popen[bytes]:
    with (directory / "console").open("wb") as console:
        return subprocess.Popen(
            ["chromium", *_FLAGS, f"--user-data-dir={directory / 'profile'}"],
            stdout=console,
            stderr=console,
            start_new_session=True,
        )


@asynccontextmanager
async def browser(directory: Path) -> AsyncIterator[Tab]:
    process = _launch(directory)
    try:
        file = directory / "profile" / "DevToolsActivePort"
        with trio.fail_after(20):
            while not file.exists() or len(file.read_text().split()) < 2:
                await trio.sleep(0.1)
        port, path = file.read_text().split()
        async with open_websocket_url(f"ws://127.0.0.1:{port}{path}", max_message_size=2**24) as socket:
            yield Tab(socket)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


async def test_status_switch_wrong_answer_and_a_node_that_goes_and_comes(tmp_path: Path) -> None:
    nodes = make_nodes(tmp_path, ["nodeA"])
    with running(nodes) as (node,):
        async with browser(tmp_path) as tab:
            await tab.open(f"{node.url}/")
            sentence = json.dumps(node.status().headline)
            await tab.wait(f"document.getElementById('headline')?.textContent === {sentence}")
            root = await tab.value("document.getElementById('state-root').textContent")
            assert root == node.status().merkle_root

            await tab.value("document.querySelector('[data-policy=http]').click()")
            await tab.wait("document.getElementById('policy').textContent.startsWith('http ')")
            assert node.status().policy == "http"

            await tab.value(
                "let b = document.querySelector('[data-policy=p2p]'); b.dataset.policy = 'x'; b.click()"
            )
            await tab.wait("document.getElementById('answer').textContent.startsWith('Not switched: ')")
            assert node.status().policy == "http"

            node.stop()
            await tab.wait("document.getElementById('headline').textContent === 'The node does not answer'")
            node.start()
            await tab.wait("document.getElementById('headline').textContent.startsWith('Network status')")


def text_is(element: str, text: str) -> str:
    return f"document.getElementById('{element}').textContent === {json.dumps(text)}"


def text_holds(element: str, text: str) -> str:
    return f"document.getElementById('{element}').textContent.includes({json.dumps(text)})"


async def test_a_peers_name_is_text_and_frozen_logs_are_told(tmp_path: Path) -> None:
    name = "<img src=x onerror=\"document.title='taken'\"><b>bold</b>"
    nodes = make_nodes(tmp_path, ["nodeA"])
    with running(nodes) as (node,):
        ticket = read_ticket(node.command("invite").split()[-1])
        peer = Peer(ticket, f"http://127.0.0.1:{node.sync_port}", SigningKey.generate(), name=name)
        assert peer.sync().good
        async with browser(tmp_path) as tab:
            await tab.open(f"{node.url}/")
            await tab.wait(text_is("forks", "none"))
            await tab.wait(text_holds("peers", name))
            assert await tab.value("document.querySelectorAll('#peers img, #peers b').length") == 0
            assert await tab.value("document.title") != "taken"
            key, epoch = SigningKey.generate(), 1
            for value in (b"1", b"2"):
                branch = Author(Ledger(ticket.network_id), key)
                branch.epoch = epoch
                branch.write(make_op(PUT, "contested", value), clock=1)
                peer.ask([branch.ledger.page([Range(branch.public_key, epoch, 0, 0)])])
            await tab.wait(text_holds("forks", "1 log is frozen"))
            assert await tab.value("document.getElementById('forks').dataset.tone") == "bad"
            await tab.wait(text_holds("notices", "is frozen at seq 0"))


async def test_a_node_that_asks_for_its_token(tmp_path: Path) -> None:
    (node,) = nodes = make_nodes(tmp_path, ["nodeA"])
    node.environ["LATTICE_API_BIND"] = (
        f"0.0.0.0:{node.api_port}"  # not of this machine alone: everybody is asked
    )
    fill = "(t => {{ t.value = {}; t.form.requestSubmit() }})(document.getElementById('token'))"
    with running(nodes):
        async with browser(tmp_path) as tab:
            await tab.open(f"{node.url}/")
            await tab.wait("!document.getElementById('token-form').hidden")
            assert await tab.value("document.getElementById('main').hidden")
            await tab.value(fill.format(json.dumps("a wrong one")))
            await tab.wait(text_holds("contact", "The token is not this node's"))
            token = (node.data_dir / "api.token").read_text().strip()
            await tab.value(fill.format(json.dumps(token)))
            await tab.wait("!document.getElementById('main').hidden")
            assert await tab.value("document.getElementById('token-form').hidden")
            assert token not in await tab.value("document.documentElement.outerHTML")
            await tab.value("document.querySelector('[data-policy=http]').click()")
            await tab.wait("document.getElementById('policy').textContent.startsWith('http ')")


@contextmanager
def another_program(port: int) -> Iterator[None]:
    """It has the node's port, and answers every question with JSON that means nothing."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"success": true, "peers": 7}')

        def log_message(self, *arguments: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", port), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


async def test_an_answer_that_is_no_status_is_told_and_the_page_goes_on(tmp_path: Path) -> None:
    nodes = make_nodes(tmp_path, ["nodeA"])
    with running(nodes) as (node,):
        async with browser(tmp_path) as tab:
            await tab.open(f"{node.url}/")
            await tab.wait(text_is("mode", "ISOLATED"))
            node.stop()
            with another_program(node.api_port):
                await tab.wait(text_holds("contact", "it is not a status"))
                assert await tab.value("document.getElementById('main').classList.contains('stale')")
                assert await tab.value("document.querySelector('[data-policy=http]').disabled")
            node.start()
            await tab.wait("document.getElementById('contact').textContent === ''")
            assert not await tab.value("document.querySelector('[data-policy=http]').disabled")


async def test_alone_on_http_and_isolated(tmp_path: Path) -> None:
    nodes = make_nodes(tmp_path, ["nodeA", "nodeB"], environ={"LATTICE_P2P_ENABLED": "false"})
    node, other = nodes
    with running(nodes[:1]):
        async with browser(tmp_path) as tab:
            await tab.open(f"{node.url}/")
            await tab.wait(text_holds("headline", "Network status: alone"))
            assert await tab.value("document.getElementById('headline').dataset.tone") == "warn"
            await tab.wait(text_is("p2p", "off (LATTICE_P2P_ENABLED=false)"))
            with running([other]):
                await tab.wait(text_is("mode", "HTTP"), within_s=30)
                await tab.wait(text_holds("peers", "nodeB"))
                await tab.wait(text_holds("synced", "nodeB"), within_s=30)
            await tab.wait(text_is("mode", "ISOLATED"), within_s=90)
            await tab.wait(text_holds("notices", "Alarm: "))
            assert await tab.value("document.getElementById('headline').dataset.tone") == "bad"
