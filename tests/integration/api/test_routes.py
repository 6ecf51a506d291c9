"""Every route against every kind of caller, from the table of rules itself."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

import httpx
import pytest
import trio
import trio.testing
from fastapi import FastAPI
from fastapi.routing import iter_route_contexts
from starlette.types import Message as ASGIMessage
from starlette.types import Receive, Scope, Send

from lattice.api.access import RULES, RouteClass, Rule, rules_for
from lattice.api.app import create_app
from lattice.api.refusals import Refusals
from lattice.api.turnstile import Turnstile
from lattice.core.addresses import Bind
from lattice.core.errors import LatticeError
from lattice.core.limits import (
    ENVELOPE_BYTES_MAX,
    HTTP_BODY_BYTES_MAX,
    HTTP_BODY_TIMEOUT_S,
    HTTP_BODYLESS_BYTES_MAX,
)
from lattice.node.node import Node
from tests.integration.api.api_kit import (
    TOKEN,
    Lines,
    Refusing,
    in_process,
    operator_access,
    problem,
)

# What makes each route succeed, and the status of that success.
_SUCCESS: dict[tuple[str, str], tuple[str, bytes, int]] = {
    # It is reached; an envelope of this network is another test's.
    ("POST", "/api/lattice/import"): ("", b"x", 400),
    ("POST", "/api/lattice/sync/switch"): ("?mode=auto", b"", 200),
    ("GET", "/api/lattice/events"): ("?follow=false", b"", 200),
    ("POST", "/api/lattice/peers"): ("", b'{"address":"http://192.0.2.7:8100"}', 201),
    ("PUT", "/api/lattice/keys/{key}"): ("", b"1", 201),
    # No entry has this id: whoever may call is told that there is none.
    ("GET", "/api/lattice/entries/{key}"): ("", b"", 404),
    ("POST", "/api/lattice/entries"): ("", b'{"ops":[{"op":"put","key":"k","value":1}]}', 201),
}


@dataclass(frozen=True)
class Call:
    """One request to a route that would succeed if the caller may make it."""

    rule: Rule

    @property
    def path(self) -> str:
        query = _SUCCESS.get((self.rule.method, self.rule.path), ("", b"", 200))[0]
        name = "http%3A%2F%2F192.0.2.7%3A8100" if "/peers/" in self.rule.path else "some/key"
        name = "00" * 32 if "/entries/" in self.rule.path else name
        return self.rule.path.replace("{key}", name) + query

    @property
    def body(self) -> bytes:
        return _SUCCESS.get((self.rule.method, self.rule.path), ("", b"", 200))[1]

    @property
    def status(self) -> int:
        return _SUCCESS.get((self.rule.method, self.rule.path), ("", b"", 200))[2]

    async def send(self, client: httpx.AsyncClient, headers: dict[str, str] | None = None) -> httpx.Response:
        return await client.request(self.rule.method, self.path, content=self.body, headers=headers)


CALLS = [Call(rule) for rule in RULES]
GUARDED = [call for call in CALLS if call.rule.kind is not RouteClass.PEER]
OPERATORS = [call for call in CALLS if call.rule.kind is RouteClass.OPERATOR]


def _name(call: Call) -> str:
    return f"{call.rule.method} {call.rule.path}"


async def _prepare(node: Node) -> None:
    async with in_process(create_app(node, operator_access())) as client:
        assert (await client.put("/api/lattice/keys/some/key", content=b"1")).status_code == 201
        await node.add_peer("http://192.0.2.7:8100")


async def test_every_route_is_in_a_class_and_every_class_has_its_route(app: FastAPI) -> None:
    served = {
        (method, context.path.replace("{key:path}", "{key}"))
        for context in iter_route_contexts(app.routes)
        for method in context.methods or {"any method"}
    }
    assert served == {(rule.method, rule.path) for rule in RULES}


async def test_an_operator_on_this_machine(
    subtests: pytest.Subtests, node: Node, operator: httpx.AsyncClient
) -> None:
    await _prepare(node)
    for call in GUARDED:
        with subtests.test(call=_name(call)):
            response = await call.send(operator)
            assert response.status_code == call.status, response.text
            assert response.headers["cache-control"] == "no-store"


async def test_a_stranger_is_asked_for_the_token(subtests: pytest.Subtests, app: FastAPI, node: Node) -> None:
    await _prepare(node)
    for call in OPERATORS:
        with subtests.test(call=_name(call)):
            before = node.engine.roots
            async with in_process(app, client="192.0.2.7") as stranger:
                response = await call.send(stranger)
            assert "token" in problem(response, 401, "unauthorized").lower() or "Bearer" in response.text
            assert response.headers["www-authenticate"].startswith("Bearer")
            assert node.engine.roots == before


@pytest.mark.parametrize(
    "header", ["Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "Via", "X-Real-IP"]
)
async def test_behind_a_proxy_loopback_is_nobody(
    subtests: pytest.Subtests, header: str, node: Node, operator: httpx.AsyncClient
) -> None:
    await _prepare(node)
    for call in OPERATORS:
        with subtests.test(call=_name(call)):
            problem(await call.send(operator, {header: "127.0.0.1"}), 401, "unauthorized")


@pytest.mark.slow
async def test_the_token_opens_from_anywhere_and_a_wrong_one_nowhere(
    subtests: pytest.Subtests, node: Node
) -> None:
    await _prepare(node)
    for call in OPERATORS:
        with subtests.test(call=_name(call)):
            app = create_app(node, operator_access(token=TOKEN))
            async with in_process(app, client="192.0.2.7") as stranger, in_process(app) as operator:
                right = {"Authorization": f"Bearer {TOKEN}"}
                problem(
                    await call.send(stranger, {"Authorization": f"Bearer {TOKEN[1:]}0"}), 401, "unauthorized"
                )
                problem(
                    await call.send(operator, {"Authorization": f"Bearer {TOKEN[1:]}0"}), 401, "unauthorized"
                )
                assert (await call.send(stranger, right | {"Via": "1.1 proxy"})).status_code == call.status


@pytest.mark.slow
async def test_beyond_loopback_everybody_needs_the_token(subtests: pytest.Subtests, node: Node) -> None:
    await _prepare(node)
    for call in OPERATORS:
        with subtests.test(call=_name(call)):
            app = create_app(node, operator_access(bind=Bind("0.0.0.0", 8000), token=TOKEN))
            async with in_process(app) as local:
                problem(await call.send(local), 401, "unauthorized")
                assert (
                    await call.send(local, {"Authorization": f"Bearer {TOKEN}"})
                ).status_code == call.status


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example:8000", ""])
async def test_a_wrong_host_is_400(
    subtests: pytest.Subtests, host: str, node: Node, operator: httpx.AsyncClient
) -> None:
    await _prepare(node)
    for call in GUARDED:
        with subtests.test(call=_name(call)):
            problem(await call.send(operator, {"Host": host}), 400, "bad_host")


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:8001"])
async def test_a_cross_site_origin_is_403(
    subtests: pytest.Subtests, origin: str, node: Node, operator: httpx.AsyncClient
) -> None:
    await _prepare(node)
    for call in GUARDED:
        with subtests.test(call=_name(call)):
            problem(await call.send(operator, {"Origin": origin}), 403, "bad_origin")
            assert (await call.send(operator, {"Origin": "http://127.0.0.1:8000"})).status_code == call.status


async def test_a_body_over_the_cap_is_413(
    subtests: pytest.Subtests, node: Node, operator: httpx.AsyncClient
) -> None:
    await _prepare(node)
    for call in CALLS:
        with subtests.test(call=_name(call)):
            before = node.engine.roots

            async def chunks() -> AsyncIterator[bytes]:
                for _ in range(HTTP_BODY_BYTES_MAX // 2**20 + 1):
                    yield bytes(2**20)

            announced = await operator.request(
                call.rule.method, call.path, headers={"Content-Length": str(HTTP_BODY_BYTES_MAX + 1)}
            )
            problem(announced, 413, "too_large")
            streamed = await operator.request(call.rule.method, call.path, content=chunks())
            problem(streamed, 413, "too_large")
            assert node.engine.roots == before


async def test_a_slow_body_is_408_on_every_route(
    subtests: pytest.Subtests,
    node: Node,
    operator: httpx.AsyncClient,
    refusals: Refusals,
    autojump_clock: trio.testing.MockClock,
) -> None:
    await _prepare(node)
    for call in CALLS:
        with subtests.test(call=_name(call)):
            before, refused = node.engine.roots, refusals.by_reason.get("too_slow", 0)
            began = trio.current_time()

            async def drops() -> AsyncIterator[bytes]:
                while True:
                    yield b"1"
                    await trio.sleep(1)

            response = await operator.request(call.rule.method, call.path, content=drops())
            problem(response, 408, "too_slow")
            assert HTTP_BODY_TIMEOUT_S <= trio.current_time() - began < HTTP_BODY_TIMEOUT_S + 3
            assert node.engine.roots == before
            assert refusals.by_reason["too_slow"] == refused + 1


async def test_a_route_takes_no_larger_body_than_it_can_use(
    subtests: pytest.Subtests, node: Node, operator: httpx.AsyncClient
) -> None:
    await _prepare(node)
    for call in CALLS:
        with subtests.test(call=_name(call)):
            writes = call.rule.method in ("PUT", "POST")
            cap = HTTP_BODY_BYTES_MAX if writes else HTTP_BODYLESS_BYTES_MAX
            if call.rule.kind is RouteClass.PEER:
                cap = ENVELOPE_BYTES_MAX
            over = await operator.request(call.rule.method, call.path, content=bytes(cap + 1))
            problem(over, 413, "too_large")
            full = await operator.request(call.rule.method, call.path, content=bytes(cap))
            assert full.status_code != 413, full.text


async def test_all_bodies_together_are_bounded(node: Node) -> None:
    """Slow uploads of many clients: what is held stays under its cap, a stranger's address cannot take
    the room of another, and all of it is given back."""
    turnstile, refusals = Turnstile(bytes_max=300_000, bytes_per_address_max=200_000), Refusals()
    app = create_app(node, operator_access(token=TOKEN), turnstile=turnstile, refusals=refusals)
    gate = trio.Event()
    statuses: list[int] = []

    async def slow() -> AsyncIterator[bytes]:
        yield bytes(90_000)
        await gate.wait()
        yield b"1"

    async def upload() -> None:
        async with in_process(app, client="192.0.2.7") as client:
            response = await client.post("/api/lattice/sync/messages", content=slow())
            statuses.append(response.status_code)
            assert response.status_code != 429 or response.headers["retry-after"] == "1"

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(upload)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert turnstile.bytes_held == 180_000
        async with in_process(app) as honest:
            assert (await honest.put("/api/lattice/keys/k", content=b"1" * 90_000)).status_code == 400
            assert (await honest.put("/api/lattice/keys/k", content=b"1")).status_code == 201
        gate.set()
    assert sorted(statuses) == [400, 400, 429, 429, 429]
    assert refusals.by_reason == {"too_many": 3, "envelope": 2, "bad_value": 1}
    assert turnstile.bytes_held == 0


async def test_answers_that_nobody_reads_are_bounded(node: Node) -> None:
    """A request of some bytes asks for an answer of many, which stays in memory until it is sent."""

    class Talking(Refusing):
        async def serve_sync(self, body: bytes, remote: str) -> bytes:
            return bytes(90_000)

    turnstile = Turnstile(bytes_max=300_000, bytes_per_address_max=200_000)
    app = create_app(Talking(node, LatticeError("internal", "")), operator_access(), turnstile=turnstile)
    gate, begun = trio.Event(), 0
    statuses: list[int] = []

    async def unread(scope: Scope, receive: Receive, send: Send) -> None:
        async def stalled(message: ASGIMessage) -> None:
            nonlocal begun
            if message["type"] == "http.response.body" and len(message.get("body", b"")) == 90_000:
                begun += 1
                await gate.wait()
            await send(message)

        await app(scope, receive, stalled)

    async def ask() -> None:
        async with in_process(unread, client="2001:db8::7") as client:
            response = await client.post("/api/lattice/sync/messages", content=b"x")
            statuses.append(response.status_code)
            if response.status_code == 429:
                problem(response, 429, "too_many")

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert (begun, statuses) == (2, [429] * 3)
        async with in_process(app, client="2001:db8::8") as neighbour:  # of the same /64: the same sender
            assert (await neighbour.post("/api/lattice/sync/messages", content=b"x")).status_code == 429
        async with in_process(app, client="192.0.2.7") as other:
            assert (await other.post("/api/lattice/sync/messages", content=b"x")).status_code == 200
        gate.set()
    assert sorted(statuses) == [200, 200, 429, 429, 429]
    assert turnstile.bytes_held == 0


async def test_a_compressed_body_is_refused(subtests: pytest.Subtests, operator: httpx.AsyncClient) -> None:
    for call in [call for call in CALLS if call.rule.method in ("PUT", "POST")]:
        with subtests.test(call=_name(call)):
            problem(await call.send(operator, {"Content-Encoding": "gzip"}), 400, "bad_request")


async def test_the_peer_route_asks_for_an_envelope_and_nothing_else(app: FastAPI) -> None:
    async with in_process(app, client="192.0.2.7", base_url="http://whatever.example") as stranger:
        for body in (b"", b"{}", bytes(200)):
            response = await stranger.post(
                "/api/lattice/sync/messages", content=body, headers={"Origin": "https://evil.example"}
            )
            assert problem(response, 400, "envelope") == "The envelope was refused."


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.method} {rule.path}")
async def test_methods_that_a_route_does_not_know(rule: Rule, operator: httpx.AsyncClient) -> None:
    path = rule.path.replace("{key}", "some/key")
    known = set(rules_for(path))
    for method in {"GET", "PUT", "POST", "DELETE", "PATCH", "TRACE", "BREW"} - known:
        response = await operator.request(method, path)
        problem(response, 405, "method_not_allowed")
        assert known <= set(response.headers["allow"].split(", "))
    options = await operator.options(path)
    assert (options.status_code, options.content) == (204, b"")
    assert known <= set(options.headers["allow"].split(", "))


async def test_head_is_get_without_a_body(
    subtests: pytest.Subtests, node: Node, operator: httpx.AsyncClient
) -> None:
    await _prepare(node)
    for call in [call for call in GUARDED if call.rule.method == "GET"]:
        with subtests.test(call=_name(call)):
            get, head = await call.send(operator), await operator.head(call.path)
            assert (head.status_code, head.content) == (call.status, b"")
            assert head.headers["content-type"] == get.headers["content-type"]


@pytest.mark.parametrize(
    "path",
    [
        "/page",
        "/page/../app.py",
        "/api/lattice",
        "/health/",
        "//health",
        "/api/lattice/%6Beys",
        "/favicon.ico",
        "/docs/x",
    ],
)
async def test_unknown_paths_are_404_in_problem_form(path: str, operator: httpx.AsyncClient) -> None:
    # Joined by hand: as a relative address `//health` would be a host and ask for `/`.
    url = str(operator.base_url).rstrip("/") + path
    problem(await operator.get(url), 404, "not_found")
    problem(await operator.post(url, content=b"x"), 404, "not_found")


async def test_the_page_and_what_it_loads_run_nothing_from_elsewhere(app: FastAPI) -> None:
    async with in_process(app, client="192.0.2.7") as stranger:
        for path, kind in (("/", "html"), ("/page/page.css", "css"), ("/page/page.js", "javascript")):
            response = await stranger.get(path)
            assert response.status_code == 200
            assert response.headers["content-type"].startswith(f"text/{kind}")
            policy = response.headers["content-security-policy"]
            assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
            assert "unsafe" not in policy
            assert "://" not in response.text


async def test_status_carries_the_sentence_that_the_command_line_says(operator: httpx.AsyncClient) -> None:
    status = (await operator.get("/api/lattice/p2p/status")).json()
    assert status["headline"].startswith("Network status: alone ")


@pytest.mark.parametrize("query", ["prefix=%ff", "prefix=%c0%af", "after=%ed%a0%80"])
async def test_a_query_that_is_not_utf8_is_400(query: str, operator: httpx.AsyncClient) -> None:
    problem(await operator.get(f"/api/lattice/keys?{query}"), 400, "bad_request")


async def test_cors_for_listed_origins_only(node: Node) -> None:
    app = create_app(node, operator_access(cors_origins=("https://app.example",)))
    async with in_process(app) as client:
        origin = {"Origin": "https://app.example"}
        preflight = await client.options(
            "/api/lattice/keys/k", headers=origin | {"Access-Control-Request-Method": "PUT"}
        )
        assert preflight.status_code == 204
        assert preflight.headers["access-control-allow-origin"] == "https://app.example"
        assert "PUT" in preflight.headers["access-control-allow-methods"]
        assert "idempotency-key" in preflight.headers["access-control-allow-headers"]
        written = await client.put("/api/lattice/keys/k", content=b"1", headers=origin)
        assert written.headers["access-control-allow-origin"] == "https://app.example"
        assert "etag" in written.headers["access-control-expose-headers"]
        assert "Origin" in written.headers["vary"]
        refused = await client.get("/api/lattice/keys/none", headers=origin)
        assert refused.headers["access-control-allow-origin"] == "https://app.example"
        plain = await client.get("/api/lattice/keys/k")
        assert "access-control-allow-origin" not in plain.headers


async def test_a_defect_is_a_problem_and_a_line_in_the_log(node: Node, lines: Lines) -> None:
    broken = Refusing(node, ZeroDivisionError("secret detail"))
    async with in_process(create_app(broken, operator_access(), logs=lines)) as client:
        response = await client.put("/api/lattice/keys/k", content=b"1")
    assert "secret" not in problem(response, 500, "internal")
    assert [said[0] for said in lines.said if said[1] == "API"] == ["DEFECT"]


@pytest.mark.parametrize(
    ("code", "status", "retry"),
    [
        ("not_ready", 503, "10"),
        ("store_failed", 503, "10"),
        ("no_space", 507, "10"),
        ("not_replicated", 504, None),
        ("idempotency_mismatch", 422, None),
    ],
)
async def test_errors_of_the_node_keep_their_code(
    code: str, status: int, retry: str | None, node: Node
) -> None:
    broken = Refusing(node, LatticeError(code, "why, and what to do"))
    async with in_process(create_app(broken, operator_access())) as client:
        response = await client.put("/api/lattice/keys/k", content=b"1")
    assert problem(response, status, code) == "why, and what to do"
    assert response.headers.get("retry-after") == retry


async def test_peer_requests_in_flight_are_bounded_by_address(node: Node) -> None:
    gate, entered = trio.Event(), trio.Semaphore(0)

    class Slow(Refusing):
        async def serve_sync(self, body: bytes, remote: str) -> bytes:
            entered.release()
            await gate.wait()
            return b"answer"

    turnstile = Turnstile(requests_max=3, per_address_max=2)
    app = create_app(Slow(node, LatticeError("internal", "")), operator_access(), turnstile=turnstile)
    statuses: list[tuple[str, int]] = []

    async def post(address: str) -> None:
        async with in_process(app, client=address) as client:
            response = await client.post("/api/lattice/sync/messages", content=b"x")
            statuses.append((address, response.status_code))
            if response.status_code == 429:
                problem(response, 429, "too_many")
                assert response.headers["retry-after"] == "1"

    async with trio.open_nursery() as nursery:
        for address in ("192.0.2.1", "192.0.2.1", "192.0.2.2"):
            nursery.start_soon(post, address)
            await entered.acquire()
        await post("192.0.2.1")
        await post("192.0.2.3")
        assert statuses == [("192.0.2.1", 429), ("192.0.2.3", 429)]
        async with in_process(app) as client:  # the others go on
            assert (await client.get("/health")).status_code == 200
        gate.set()
    assert sorted(statuses[2:]) == [("192.0.2.1", 200), ("192.0.2.1", 200), ("192.0.2.2", 200)]
    await post("192.0.2.1")
    assert statuses[-1] == ("192.0.2.1", 200)


async def test_a_slow_body_is_408(node: Node) -> None:
    from lattice.api.guards import Fence, Intake

    app = Fence(Intake(create_app(node, operator_access()), timeout_s=0.05))

    async def never() -> AsyncIterator[bytes]:
        yield b"1"
        await trio.sleep_forever()

    with trio.fail_after(5):
        async with in_process(app) as client:
            response = await client.put("/api/lattice/keys/k", content=never())
    problem(response, 408, "too_slow")
    assert response.headers["connection"] == "close"
    assert node.engine.roots.entry_count == 0
