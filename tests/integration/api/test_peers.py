"""The routes of the known peers."""

from __future__ import annotations

from urllib.parse import quote

import httpx
import pytest

from lattice.node.node import Node
from tests.integration.api.api_kit import problem

PEERS = "/api/lattice/peers"
URL = "http://node.example:8100/prefix"


async def test_add_list_forget(operator: httpx.AsyncClient, node: Node) -> None:
    assert (await operator.get(PEERS)).json() == {"success": True, "peers": [], "count": 0}
    added = await operator.post(PEERS, json={"address": URL})
    assert added.status_code == 201
    shown = {"id": f"url:{URL}", "name": "", "sources": ["added"], "addresses": [URL]}
    assert added.json()["peer"].items() >= shown.items()
    assert (await operator.post(PEERS, json={"address": URL})).status_code == 201  # twice is once
    assert (await operator.get(PEERS)).json()["peers"] == [added.json()["peer"]]
    gone = await operator.delete(f"{PEERS}/{quote(URL, safe='')}")
    assert (gone.status_code, gone.json()["peer"]["id"]) == (200, f"url:{URL}")
    assert node.known_peers() == []
    problem(await operator.delete(f"{PEERS}/{quote(URL, safe='')}"), 404, "not_found")


@pytest.mark.parametrize(
    "body",
    [
        b"", b"1", b"[]", b"{}", b'{"address":1}', b'{"address":"http://a.example","x":1}',
        b'{"address":"a.example:80"}', b'{"address":"/ip4/192.0.2.7/tcp/9000"}',
    ],
)  # fmt: skip
async def test_what_is_no_address(body: bytes, operator: httpx.AsyncClient, node: Node) -> None:
    problem(await operator.post(PEERS, content=body), 400, "bad_request")
    assert node.known_peers() == []


async def test_the_own_id_is_refused(operator: httpx.AsyncClient, node: Node) -> None:
    address = f"/dns4/node.example/tcp/9000/p2p/{node.peer_id}"
    assert "own" in problem(await operator.post(PEERS, json={"address": address}), 400, "bad_request")
