"""The clients against the real application, and against answers that no node would give."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import orjson
import pytest
from fastapi import FastAPI

from lattice.api.app import create_app
from lattice.client import calls
from lattice.client.client import AsyncClient, Client, read_token_file
from lattice.client.decode import decode
from lattice.core.errors import LatticeError
from lattice.node.node import Node
from lattice.schemas import Key, KeyPage, Sibling, SwitchAnswer
from tests.integration.api.api_kit import BASE, TOKEN, Refusing, operator_access


def over(app: FastAPI, client: str = "127.0.0.1") -> httpx.ASGITransport:
    return httpx.ASGITransport(app, client=(client, 40000))


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(BASE, transport=over(app)) as made:
        yield made


async def test_every_call(client: AsyncClient, node: Node) -> None:
    written = await client.send(calls.put("a/b", b'{"n":1}', if_absent=True))
    assert (written.success, written.author, written.repeated) == (True, node.peer_id, False)
    found = await client.send(calls.get("a/b"))
    assert (found.value, found.version) == ({"n": 1}, written.version)
    await client.send(calls.put("a/b", b"2", if_match=written.version))
    batch = await client.send(calls.batch([{"op": "add", "key": "n", "amount": 2}]))
    assert batch.versions == [batch.version]
    page = await client.send(calls.keys(prefix="a", limit=1))
    assert [type(one) for one in page.keys] == [Key]
    assert (page.count, page.next) == (1, None)
    state = await client.send(calls.state())
    assert (state.state_size, state.state) == (2, None)
    listed = await client.send(calls.state(with_keys=True, limit=1))
    assert listed.state is not None
    assert ([one.key for one in listed.state], listed.next) == (["a/b"], "a/b")
    assert (await client.send(calls.status())).peer_id == node.peer_id
    assert (await client.send(calls.identity())).peer_id == node.peer_id
    assert (await client.send(calls.nodes())).count == 0
    assert (await client.send(calls.switch("http"))).policy == "http"
    assert (await client.send(calls.health())).status == "healthy"
    assert (await client.send(calls.readiness())).ready is True
    await client.send(calls.delete("a/b", if_match="*"))
    with pytest.raises(LatticeError, match="a/b") as caught:
        await client.send(calls.get("a/b"))
    assert caught.value.code == "not_found"


async def test_an_unready_node_is_an_answer_and_not_an_error(node: Node) -> None:
    class Unready(Refusing):
        def ready(self) -> dict[str, str]:
            return {"store": "failed"}

    app = create_app(Unready(node, ValueError()), operator_access())  # type: ignore[arg-type]
    async with AsyncClient(BASE, transport=over(app)) as client:
        found = await client.send(calls.readiness())
    assert (found.ready, found.checks) == (False, {"store": "failed"})


async def test_the_token_is_sent(node: Node) -> None:
    app = create_app(node, operator_access(token=TOKEN))
    async with AsyncClient(BASE, token=TOKEN, transport=over(app, "192.0.2.7")) as client:
        await client.send(calls.status())
    async with AsyncClient(BASE, transport=over(app, "192.0.2.7")) as client:
        with pytest.raises(LatticeError, match="Bearer") as caught:
            await client.send(calls.status())
    assert caught.value.kind.exit_code == 5


def test_every_write_carries_a_fresh_idempotency_key() -> None:
    writes = [calls.put("k", b"1"), calls.put("k", b"1"), calls.delete("k"), calls.batch([])]
    keys = [call.headers["idempotency-key"] for call in writes]
    assert len(set(keys)) == len(writes)
    assert calls.put("k", b"1", idempotency_key="mine").headers["idempotency-key"] == "mine"


async def test_a_call_that_is_sent_again_is_one_write(client: AsyncClient, node: Node) -> None:
    call = calls.put("k", b"1")
    first, again = await client.send(call), await client.send(call)
    assert (again.version, again.repeated) == (first.version, True)
    assert node.engine.roots.entry_count == 1


def answering(status: int, body: bytes) -> Client:
    transport = httpx.MockTransport(lambda request: httpx.Response(status, content=body))
    return Client(BASE, transport=transport)


@pytest.mark.parametrize(
    ("status", "body", "code"),
    [
        (200, b"<html>", "unreachable"),
        (200, b"", "unreachable"),
        (200, b"[]", "unreachable"),
        (200, b'"text"', "unreachable"),
        (200, b'{"success":true}', "unreachable"),
        (502, b"<html>Bad Gateway", "unreachable"),
        (302, b"{}", "bad_request"),
        (404, b'{"code":"not_found","detail":"why"}', "not_found"),
        (418, b'{"code":"from_the_future","detail":"why"}', "bad_request"),
        (599, b'{"code":"from_the_future","detail":"why"}', "internal"),
        (500, b"[1]", "internal"),
        (400, b'{"code":["bad_key"]}', "bad_request"),
    ],
)
def test_answers_that_are_errors(status: int, body: bytes, code: str) -> None:
    with answering(status, body) as client, pytest.raises(LatticeError) as caught:
        client.send(calls.switch("auto"))
    assert caught.value.code == code
    if b"why" in body:
        assert caught.value.message == "why"


@pytest.mark.parametrize("error", [httpx.ConnectError("no"), httpx.ReadTimeout("late"), httpx.ReadError("")])
def test_failures_of_the_network_are_unreachable(error: httpx.TransportError) -> None:
    def fail(request: httpx.Request) -> httpx.Response:
        raise error

    with Client(BASE, transport=httpx.MockTransport(fail)) as client:
        with pytest.raises(LatticeError, match=BASE) as caught:
            client.send(calls.status())
    assert (caught.value.code, caught.value.kind.exit_code) == ("unreachable", 3)


def test_a_newer_node_may_say_more() -> None:
    body = orjson.dumps({"success": True, "mode": "P2P", "policy": "auto", "message": "m", "new": [1]})
    with answering(200, body) as client:
        assert client.send(calls.switch("auto")) == SwitchAnswer(True, "P2P", "auto", "m")


def test_nested_shapes_are_decoded() -> None:
    sibling = {"version": "v", "author": "a", "clock": "1-0", "value": [1]}
    key = {"key": "k", "value": None, "version": None, "author": None, "clock": None, "siblings": [sibling]}
    page = decode(KeyPage, {"success": True, "keys": [key], "count": 1, "next": None})
    assert page.keys[0].siblings == [Sibling("v", "a", "1-0", [1])]
    assert page.keys[0].total is None


@pytest.mark.parametrize(
    ("key", "path"),
    [
        ("a/b", "a%2Fb"),
        (".", "%2E"),
        ("..", "%2E%2E"),
        ("a..b", "a..b"),
        ("%", "%25"),
        ("é?#", "%C3%A9%3F%23"),
    ],
)
def test_the_path_of_a_key(key: str, path: str) -> None:
    assert calls.key_path(key) == f"/api/lattice/keys/{path}"


def test_half_a_surrogate_is_no_key() -> None:
    with pytest.raises(LatticeError, match="Unicode") as caught:
        calls.key_path("\ud800")
    assert caught.value.code == "bad_key"


def test_token_files(tmp_path: Path) -> None:
    path = tmp_path / "token"
    with pytest.raises(LatticeError, match="cannot be read"):
        read_token_file(path)
    path.write_text(" \n")
    with pytest.raises(LatticeError, match="empty"):
        read_token_file(path)
    path.write_text(f"{TOKEN}\n")
    assert read_token_file(path) == TOKEN


def test_a_ca_file_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(LatticeError, match="LATTICE_TLS_CA_FILE") as caught:
        Client("https://192.0.2.7", ca_file=tmp_path / "none.pem")
    assert caught.value.kind.exit_code == 78
