"""A headless Chromium over the DevTools protocol: one page, and scripts whose value comes back.

Separate from the tests of the page, which say what a person sees and not how a browser is driven.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from trio_websocket import WebSocketConnection, open_websocket_url

CHROMIUM = shutil.which("chromium")
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

    async def text(self, element: str) -> str:
        """The text of the element with this id."""
        return str(await self.value(f"document.getElementById({json.dumps(element)}).textContent"))

    async def sees(self, element: str) -> bool:
        return bool(await self.value(f"document.getElementById({json.dumps(element)}).checkVisibility()"))

    async def click(self, selector: str) -> None:
        await self.value(f"document.querySelector({json.dumps(selector)}).click()")

    async def type(self, text: str) -> None:
        """As from a keyboard: into whatever has the focus."""
        await self.send("Input.insertText", text=text)

    async def press_enter(self) -> None:
        key = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "text": "\r"}
        await self.send("Input.dispatchKeyEvent", type="keyDown", **key)
        await self.send("Input.dispatchKeyEvent", type="keyUp", **key)

    async def wait_text(self, element: str, text: str) -> None:
        await self.wait(f"document.getElementById({json.dumps(element)})?.textContent === {json.dumps(text)}")

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
