"""Hostile callers of the API and of the sync listener of a real node: each is refused by its reason, and an
honest caller at another address is served all the while."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from lattice.client import calls
from lattice.testing.cluster import wait_for

from .http_kit import Rise, Scene, say, scene

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

KEYS = "/api/lattice/keys/"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with scene(tmp_path_factory.mktemp("callers")) as found:
        yield found


@pytest.fixture
def caller(made: Scene) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=made.victim.url, trust_env=False, timeout=30) as client:
        yield client


# Who calls, and from where.


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({"Host": "evil.example"}, 400, "bad_host"),
        ({"Host": "127.0.0.1.evil.example"}, 400, "bad_host"),
        ({"Host": "127.0.0.1:80:80"}, 400, "bad_host"),
        ({"Origin": "https://evil.example"}, 403, "bad_origin"),
        ({"Origin": "null"}, 403, "bad_origin"),
        ({"Authorization": "Bearer 00000000000000000000000000000000"}, 401, "unauthorized"),
        ({"X-Forwarded-For": "127.0.0.1"}, 401, "unauthorized"),
        ({"Content-Encoding": "gzip"}, 400, "bad_request"),
        ({"Idempotency-Key": "two words"}, 400, "bad_request"),
        ({"Idempotency-Key": "x" * 256}, 400, "bad_request"),
        ({"If-Match": '"' + "x" * 5000}, 400, "bad_request"),
    ],
)
def test_a_wrong_caller_is_refused_by_reason(
    made: Scene, caller: httpx.Client, headers: dict[str, str], status: int, code: str
) -> None:
    rise, before = Rise(made.victim), made.victim.state().entry_count
    response = caller.put(f"{KEYS}k", content=b"1", headers=headers)
    assert (response.status_code, response.json()["code"]) == (status, code)
    assert rise.of("lattice_http_refused_total", code) == 1
    assert made.victim.state().entry_count == before
    assert caller.put(f"{KEYS}control", content=b"1").status_code == 201


# What is said.

BAD_VALUES = {
    "10,000 arrays deep": b"[" * 10_000 + b"]" * 10_000,
    "10,000 objects deep": b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
    "65 deep": b"[" * 65 + b"]" * 65,
    "NaN": b"NaN",
    "Infinity": b"[Infinity]",
    "1e400": b"1e400",
    "2^63": b"9223372036854775808",
    "2^64": b"18446744073709551616",
    "-2^63": b"-9223372036854775808",
    "2^53 + 1": b"9007199254740993",
    "a million digits": b"1" * 1_000_000,
    "overlong UTF-8": b'"\xc0\xaf"',
    "overlong NUL": b'"\xc0\x80"',
    "half a surrogate pair": b'"\xed\xa0\x80"',
    "half an escaped pair": b'"\\ud800"',
    "a raw NUL": b'"\x00"',
    "beyond Unicode": b'"\xf4\x90\x80\x80"',
    "nothing": b"",
    "two documents": b"1 2",
    "a trailing comma": b"[1,]",
    "a byte order mark": b"\xef\xbb\xbf1",
}


@pytest.mark.parametrize("name", BAD_VALUES)
def test_a_value_that_is_no_json_is_400(made: Scene, caller: httpx.Client, name: str) -> None:
    rise, before = Rise(made.victim), made.victim.state().entry_count
    response = caller.put(f"{KEYS}k", content=BAD_VALUES[name])
    assert (response.status_code, response.json()["code"]) == (400, "bad_value")
    batch = b'{"ops":[{"op":"put","key":"k","value":' + BAD_VALUES[name] + b"}]}"
    in_batch = caller.post("/api/lattice/entries", content=batch)
    assert in_batch.status_code == 400, in_batch.text
    assert rise.of("lattice_http_refused_total", "bad_value") >= 1
    assert made.victim.state().entry_count == before
    assert caller.put(f"{KEYS}control", content=b"1").status_code == 201


def test_duplicate_keys_are_one_value_for_everybody(made: Scene, caller: httpx.Client) -> None:
    """The writer's own node parses once and stores what it understood: nobody can read it otherwise."""
    assert caller.put(f"{KEYS}twice", content=b'{"a":1,"a":2}').status_code == 201
    seen = []
    for node in (made.victim, made.honest):
        wait_for("the key", lambda node=node: _has(node, "twice"), within_s=10)  # type: ignore[misc]
        seen.append(node.send(calls.get("twice")).value)
    assert seen == [{"a": 2}, {"a": 2}]


def _has(node: object, key: str) -> bool:
    return any(found.key == key for found in node.send(calls.keys(prefix=key)).keys)  # type: ignore[attr-defined]


@pytest.mark.parametrize("key", ["a%00b", "%00", "a%0d%0aSet-Cookie:x", "%E2%80%AE", "%7f", "a%2f..%2fb"])
def test_keys_of_any_characters_are_keys_and_nothing_else(
    made: Scene, caller: httpx.Client, key: str
) -> None:
    written = caller.put(KEYS + key, content=b'"v"', headers={"Idempotency-Key": f"odd{key}"})
    assert written.status_code == 201, written.text
    assert "set-cookie" not in written.headers
    read = caller.get(KEYS + key)
    assert (read.status_code, read.json()["value"]) == (200, "v")
    assert "set-cookie" not in read.headers
    assert "Set-Cookie:x\n" not in made.victim.log_text()


@pytest.mark.parametrize(
    "path",
    [
        "//api/lattice/state",
        "/api//lattice/state",
        "/api/lattice//state",
        "/api/lattice/%73tate",
        "/api/lattice/state/",
        "/api/lattice/keys/../state",
        "/api/lattice/x/../state",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/page/..%2f..%2fidentity.key",
        "/page/%2e%2e/app.py",
        "/api%2flattice%2fstate",
        "/api/lattice/state%00",
        "/api/lattice/state;x=1",
        "\\api\\lattice\\state",
        "/API/LATTICE/STATE",
    ],
)
def test_path_tricks_lead_to_no_other_route(made: Scene, path: str) -> None:
    rise = Rise(made.victim)
    answer = say(made.victim, f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    assert answer.startswith((b"HTTP/1.1 404", b"HTTP/1.1 400")), answer[:200]
    assert b"merkle_root" not in answer
    assert (
        rise.of("lattice_http_refused_total", "not_found") + rise.of("lattice_http_refused_total", "not_http")
        == 1
    )


RAW = {
    "two lengths": (
        b"PUT %sk HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n1",
        "not_http",
    ),
    "length and chunks": (
        (
            b"PUT %sk HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"0\r\n\r\nGET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
        ),
        "bad_host",
    ),
    "a header with NUL": (b"GET %sk HTTP/1.1\r\nHost: localhost\r\nX: a\0b\r\n\r\n", "not_http"),
    "a header that goes on": (b"GET %sk HTTP/1.1\r\nHost: localhost\r\nX : a\r\n\r\n", "not_http"),
    "two hosts": (b"GET %sk HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n", "not_http"),
    "no host": (b"GET %sk HTTP/1.1\r\n\r\n", "not_http"),
    "a head of a megabyte": (b"GET %sk HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 2**20, "head_too_large"),
    "a line of a megabyte": (b"GET %sk" + b"x" * 2**20, "head_too_large"),
    "a hundred thousand headers": (b"GET %sk HTTP/1.1\r\n" + b"a:b\r\n" * 100_000, "head_too_large"),
    "another protocol": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100), "not_http"),
    "no HTTP at all": (b"EHLO evil.example\r\n\r\n", "not_http"),
}  # fmt: skip


@pytest.mark.parametrize("name", RAW)
def test_bytes_that_are_no_request_end_alone_and_are_counted(made: Scene, name: str) -> None:
    data, reason = RAW[name]
    rise = Rise(made.victim)
    answer = say(made.victim, data.replace(b"%s", KEYS.encode(), 1))
    assert answer[:12] in (b"", b"HTTP/1.1 400", b"HTTP/1.1 431"), answer[:200]
    assert b'"healthy"' not in answer, "a second request was smuggled in"
    assert rise.of("lattice_http_refused_total", reason) >= 1
