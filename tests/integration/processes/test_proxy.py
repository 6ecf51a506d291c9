"""Nodes behind a reverse proxy: nginx with TLS and a path prefix in front of each.

Separate because only a real proxy rewrites paths, ends TLS, buffers bodies and adds headers as real
proxies do; and because whoever comes through one must never count as somebody on the machine.
"""

from __future__ import annotations

import re
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from lattice.client.client import read_token_file
from lattice.testing.cluster import LocalNode, free_ports, join, make_nodes, running, wait_for

from .process_kit import HTTP_ONLY, Journal, history_faults, missing, values_of, wait_equal

nginx = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(120),
    pytest.mark.skipif(nginx is None, reason="nginx is not installed"),
]

NAMES = ("nodeA", "nodeB", "nodeC")
# How proxies tell for whom they ask; one kind in front of each node.
FORWARDING = {
    "nodeA": "proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;",
    "nodeB": 'proxy_set_header Forwarded "for=$remote_addr;proto=https";',
    "nodeC": "proxy_set_header X-Real-IP $remote_addr;",
}
REPLICATED_WITHIN_S = 10.0


@dataclass(frozen=True)
class Proxy:
    """A running nginx: `url` of each node as others see it, and the authority that they trust."""

    port: int
    directory: Path

    @property
    def ca_file(self) -> Path:
        return self.directory / "ca.pem"

    def url(self, node: LocalNode) -> str:
        return f"https://localhost:{self.port}/{node.name}"

    def requests(self) -> list[tuple[str, int]]:
        """(method and path, status) of everything that went through; 499 for what its sender gave up, also
        where that was in the middle of its body: nginx writes 400 then, and answers nothing."""
        text = (self.directory / "access.log").read_text()
        return [
            (match[1], 499 if match[2] == "400 0" else int(match[2].split()[0]))
            for match in re.finditer(r'"(\S+ \S+) HTTP/[\d.]+" (\d{3} \d+)', text)
        ]

    @contextmanager
    def running(self, nodes: Sequence[LocalNode], *, one_port: bool) -> Iterator[None]:
        (self.directory / "nginx.conf").write_text(self._configuration(nodes, one_port=one_port))
        process = subprocess.Popen(
            [str(nginx), "-p", str(self.directory), "-c", "nginx.conf", "-e", "error.log"],
            stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            wait_for("nginx listens", lambda: listens(self.port), within_s=10)
            yield
        finally:
            process.terminate()
            _, said = process.communicate(timeout=10)
            assert process.returncode == 0, said

    def _configuration(self, nodes: Sequence[LocalNode], *, one_port: bool) -> str:
        temporary = "\n".join(
            f"  {kind}_temp_path {kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        locations = "\n".join(
            f"""    location /{node.name}/ {{
      proxy_pass http://127.0.0.1:{node.api_port if one_port else node.sync_port}/;
      proxy_set_header Host $http_host;
      {FORWARDING[node.name]}
    }}"""
            for node in nodes
        )
        return f"""
daemon off;
master_process off;
pid nginx.pid;
events {{}}
http {{
{temporary}
  access_log access.log;
  # A page of entries is larger than what nginx lets through by itself.
  client_max_body_size 8m;
  server {{
    listen 127.0.0.1:{self.port} ssl;
    ssl_certificate server.pem;
    ssl_certificate_key server.key;
{locations}
  }}
}}
"""


def ssl_context(proxy: Proxy) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(proxy.ca_file))


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def write_certificates(directory: Path) -> None:
    """An authority of our own (ca.pem), and a certificate by it for localhost (server.pem, .key)."""
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca_name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "an authority for tests")])
    now = datetime.now(UTC)

    def begun(subject: x509.Name, public: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(ca_name).public_key(public)
        return (
            builder.serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
        )

    authority = begun(ca_name, ca_key.public_key()).add_extension(
        x509.BasicConstraints(ca=True, path_length=0), critical=True
    )
    server = begun(x509.Name([]), key.public_key()).add_extension(
        x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=True
    )
    pem = serialization.Encoding.PEM
    (directory / "ca.pem").write_bytes(authority.sign(ca_key, hashes.SHA256()).public_bytes(pem))
    (directory / "server.pem").write_bytes(server.sign(ca_key, hashes.SHA256()).public_bytes(pem))
    (directory / "server.key").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )


def make_proxied(
    tmp_path: Path, *, one_port: bool, **settings: str
) -> tuple[Proxy, list[LocalNode]]:  # fmt: skip
    """Three nodes of one network that know each other by the proxy's URLs only."""
    directory = tmp_path / "proxy"
    directory.mkdir()
    proxy = Proxy(free_ports(1)[0], directory)
    nodes = make_nodes(tmp_path, NAMES, introduce=False)
    write_certificates(directory)
    for node in nodes:
        node.environ = {
            **HTTP_ONLY,
            "LATTICE_SYNC_PUBLIC_URL": proxy.url(node),
            "LATTICE_TLS_CA_FILE": str(proxy.ca_file),
            **({"LATTICE_SYNC_BIND": "off"} if one_port else {}),
            **settings,
        }
    join(nodes)
    return proxy, nodes


@pytest.mark.parametrize("one_port", [False, True], ids=["to the sync listener", "to the API port"])
def test_nodes_behind_tls_and_a_path_prefix_replicate(tmp_path: Path, one_port: bool) -> None:
    proxy, nodes = make_proxied(tmp_path, one_port=one_port)
    journal = Journal()
    with proxy.running(nodes, one_port=one_port), running(nodes):
        before = len(proxy.requests())  # who is up first meets 502 where the others are to be
        for node in nodes:
            journal.put_many(node, f"by {node.name}", 5)
            # More than nginx keeps in memory, and together more than its usual limit of a body.
            for number in range(12):
                journal.put(node, f"large by {node.name}/{number}", "x" * 120_000)
        wait_equal(nodes, within_s=REPLICATED_WITHIN_S)
        assert [missing(journal, values_of(node)) for node in nodes] == [[], [], []]
        for node in nodes:
            status = node.status()
            assert (status.sync_mode, status.alarms) == ("HTTP", [])
            urls = {address for peer in status.peers for address in peer.addresses}
            assert urls
            assert urls <= {proxy.url(other) for other in nodes if other is not node}
        journal.put(nodes[2], "one more", 1)
        wait_equal(nodes, within_s=8)
        # nodeA is polled by both, and polls them: all of it goes through the proxy and its prefixes. What
        # waits for news is written down when it ends.
        asked = {f"POST /{name}/api/lattice/sync/messages" for name in NAMES}
        wait_for("all were asked", lambda: {each for each, _ in proxy.requests()} >= asked, within_s=45)
        meanwhile = proxy.requests()[before:]
    assert history_faults([node.data_dir for node in nodes], journal) == []
    assert {request for request, _ in proxy.requests()} == asked
    assert {200} <= {status for _, status in meanwhile} <= {200, 499}


def test_through_the_proxy_an_operator_needs_the_token(tmp_path: Path) -> None:
    name = "ledger.example.org"
    proxy, nodes = make_proxied(tmp_path, one_port=True)
    nodes[0].environ = {**nodes[0].environ, "LATTICE_ALLOWED_HOSTS": name}
    with proxy.running(nodes, one_port=True), running(nodes):
        with httpx.Client(verify=ssl_context(proxy), trust_env=False) as browser:
            for node in nodes:
                base = f"{proxy.url(node)}/api/lattice"
                token = read_token_file(node.data_dir / "api.token")
                bearer = {"authorization": f"Bearer {token}"}
                for method, path in (
                    ("GET", "/p2p/status"),
                    ("GET", "/keys"),
                    ("POST", "/sync/switch?mode=p2p"),
                ):
                    refused = browser.request(method, base + path)
                    assert refused.status_code in (401, 403), (node.name, path)
                    assert refused.json()["success"] is False
                    wrong = browser.request(method, base + path, headers={"authorization": "Bearer no"})
                    assert wrong.status_code == 401
                refused = browser.put(f"{base}/keys/smuggled", content=b"1")
                assert refused.status_code in (401, 403)
                shown = browser.get(f"{base}/p2p/status", headers=bearer)
                assert shown.status_code == 200
                assert (shown.json()["name"], shown.json()["policy"]) == (node.name, "auto")
                written = browser.put(f"{base}/keys/by/{node.name}", content=b"1", headers=bearer)
                assert written.status_code == 201
                # The name by which it is called must be allowed, with the token too.
                other_host = {**bearer, "host": name}
                answer = browser.get(f"{base}/p2p/status", headers=other_host)
                if node is nodes[0]:
                    assert answer.status_code == 200
                    assert browser.get(f"{base}/p2p/status", headers={"host": name}).status_code in (401, 403)
                else:
                    assert (answer.status_code, answer.json()["code"]) == (400, "bad_host")
                # The control: the same client without the proxy is somebody on this machine.
                assert browser.get(f"{node.url}/api/lattice/keys/smuggled").status_code == 404
        wait_equal(nodes, within_s=REPLICATED_WITHIN_S)


def test_behind_a_proxy_the_sync_listener_serves_no_operator(tmp_path: Path) -> None:
    proxy, nodes = make_proxied(tmp_path, one_port=False)
    with proxy.running(nodes, one_port=False), running(nodes[:1]):
        with httpx.Client(verify=ssl_context(proxy), trust_env=False) as browser:
            token = read_token_file(nodes[0].data_dir / "api.token")
            for path in ("/api/lattice/p2p/status", "/api/lattice/keys", "/metrics", "/docs"):
                answer = browser.get(proxy.url(nodes[0]) + path, headers={"authorization": f"Bearer {token}"})
                assert answer.status_code == 404
            assert browser.get(f"{proxy.url(nodes[0])}/health").json() == {"status": "healthy"}


def test_without_the_authority_nobody_is_trusted(tmp_path: Path) -> None:
    """The control of TLS: a node that trusts other authorities replicates nothing, and says why."""
    proxy, nodes = make_proxied(tmp_path, one_port=False)
    pair = nodes[:2]
    stranger = tmp_path / "stranger"
    stranger.mkdir()
    write_certificates(stranger)
    for node in pair:
        node.environ = {**node.environ, "LATTICE_TLS_CA_FILE": str(stranger / "ca.pem")}
    with proxy.running(nodes, one_port=False), running(pair):
        joined = pair[1]
        wait_for(
            "the peer's certificate is refused",
            lambda: any(peer.http.last_error == "tls" for peer in joined.status().peers),
            within_s=10,
        )
        assert proxy.requests() == []
