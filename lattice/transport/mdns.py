"""Discovery on the local network: announce this node by multicast DNS, and report who else answers.

Separate from both lungs because it carries nothing of the ledger: what it finds are places to knock
at, and only a sealed Hello makes a peer. zeroconf runs in threads of its own, never in trio's loop.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

import ifaddr
import trio
import zeroconf

from ..core.errors import LatticeError
from ..core.identity import public_key_of
from ..core.limits import ADDRESSES_MAX
from ..core.messages import Addresses

SERVICE_TYPE: Final = "_lattice._tcp.local."
_TAG_BYTES: Final = 8
_LOOK_AGAIN_S: Final = 10.0  # interfaces come and go; so do the addresses worth announcing
_ASK_MS: Final = 2000
_PORT_MAX: Final = 65535

Found = Callable[[str, Addresses], None]


@dataclass(frozen=True, slots=True)
class Offer:
    """What is announced: concrete IP addresses of this machine, and the port of each lung, 0 for none."""

    hosts: tuple[str, ...] = ()
    p2p_port: int = 0
    sync_port: int = 0


def network_tag(network_id: bytes, network_key: bytes) -> str:
    """What members recognise each other's announcements by. Without the key it names no network."""
    return sha256(b"lattice/mdns/v1\0" + network_key + network_id).digest()[:_TAG_BYTES].hex()


class Mdns:
    """One node's announcement, and its ear for those of the same network."""

    def __init__(
        self, peer_id: str, tags: Sequence[str], offer: Callable[[], Offer], log: logging.Logger
    ) -> None:
        """`tags`: of every network key held; the first is announced, all are heard."""
        self._peer_id = peer_id
        self._tags = tuple(tags)
        self._offer = offer
        self._log = log
        # Two processes under one key must not fight for a name.
        self._instance = f"{self._tags[0]}-{secrets.token_hex(6)}"

    async def run(
        self, found: Found, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Run until cancelled; `found` is called in trio's loop. Without a network it waits for one."""
        task_status.started()
        token = trio.lowlevel.current_trio_token()

        def report(peer_id: str, addresses: Addresses) -> None:
            # The loop may end while a thread of zeroconf still speaks.
            with contextlib.suppress(trio.RunFinishedError):
                token.run_sync_soon(found, peer_id, addresses)

        while True:
            offer = self._offer()
            try:
                session = await trio.to_thread.run_sync(self._open, offer, report)
            except (OSError, zeroconf.Error) as error:
                self._log.warning("multicast DNS cannot start: %s", error)
                await trio.sleep(_LOOK_AGAIN_S)
                continue
            try:
                await self._wait_changed(offer)
            finally:
                with trio.CancelScope(shield=True):
                    await trio.to_thread.run_sync(session.close)

    async def _wait_changed(self, offer: Offer) -> None:
        while self._offer() == offer:  # noqa: ASYNC110  (no event tells of a new interface)
            await trio.sleep(_LOOK_AGAIN_S)

    def _open(self, offer: Offer, report: Found) -> zeroconf.Zeroconf:
        session = zeroconf.Zeroconf(ip_version=zeroconf.IPVersion.V4Only)
        try:
            if offer.hosts:
                session.register_service(self._service(offer))
            zeroconf.ServiceBrowser(session, SERVICE_TYPE, Ear(self._tags, self._peer_id, report))
        except BaseException:
            session.close()
            raise
        return session

    def _service(self, offer: Offer) -> zeroconf.ServiceInfo:
        return zeroconf.ServiceInfo(
            SERVICE_TYPE,
            f"{self._instance}.{SERVICE_TYPE}",
            port=offer.p2p_port or offer.sync_port,
            properties={"v": "1", "id": self._peer_id, "p2p": offer.p2p_port, "sync": offer.sync_port},
            server=f"lattice-{self._instance}.local.",
            parsed_addresses=list(offer.hosts[:ADDRESSES_MAX]),
        )


class Ear(zeroconf.ServiceListener):
    """What zeroconf hears, as hints: where a peer may be, or no addresses when nothing tells of it any more.

    Called in the browser's own thread, one call at a time; `report` is called there too.
    """

    def __init__(
        self,
        tags: tuple[str, ...],
        own_id: str,
        report: Found,
        reachable: Callable[[str], bool] | None = None,
    ) -> None:
        """`reachable`: whether a host is worth a try; None for those on this machine's own networks."""
        self._tags = tags
        self._own_id = own_id
        self._report = report
        self._reachable = reachable or on_link
        # By name, the last heard last. A process that was killed did not withdraw its name: until that
        # runs out, the name of the next process stands beside it.
        self._hints: dict[str, tuple[str, Addresses]] = {}

    def add_service(self, zc: zeroconf.Zeroconf, type_: str, name: str) -> None:
        if name.partition("-")[0] not in self._tags:
            return  # of another network: not even asked
        try:
            info = zc.get_service_info(type_, name, timeout=_ASK_MS)
        except (OSError, zeroconf.Error):
            return
        if info is None:
            return
        hint = read_hint(info.decoded_properties, info.parsed_addresses(), self._reachable)
        if hint is not None and hint[0] != self._own_id:
            self._hints.pop(name, None)
            self._hints[name] = hint
            self._report(*hint)

    def update_service(self, zc: zeroconf.Zeroconf, type_: str, name: str) -> None:
        self.add_service(zc, type_, name)

    def remove_service(self, zc: zeroconf.Zeroconf, type_: str, name: str) -> None:
        gone = self._hints.pop(name, None)
        if gone is not None:
            left = [addresses for peer_id, addresses in self._hints.values() if peer_id == gone[0]]
            self._report(gone[0], left[-1] if left else Addresses())


def read_hint(
    fields: dict[str, str | None], hosts: Sequence[str], reachable: Callable[[str], bool]
) -> tuple[str, Addresses] | None:
    """The peer id and the addresses of an announcement; None for one that is of no use.

    Anybody on the local network can announce anything. So hosts are only taken from the networks
    that this machine is part of: nobody can make it knock at the doors of others.
    """
    peer_id = fields.get("id") or ""
    try:
        public_key_of(peer_id)
    except LatticeError:
        return None
    p2p_port, sync_port = _port(fields.get("p2p")), _port(fields.get("sync"))
    near = [host for host in hosts if reachable(host)][:ADDRESSES_MAX]
    p2p = [f"/ip{6 if ':' in host else 4}/{host}/tcp/{p2p_port}/p2p/{peer_id}" for host in near]
    http = [f"http://[{host}]:{sync_port}" if ":" in host else f"http://{host}:{sync_port}" for host in near]
    found = Addresses(tuple(p2p) if p2p_port else (), tuple(http) if sync_port else ())
    return (peer_id, found) if found.p2p or found.http else None


def _port(text: str | None) -> int:
    if text is None or not (text.isascii() and text.isdigit() and len(text) <= 5):
        return 0
    return int(text) if int(text) <= _PORT_MAX else 0


def on_link(host: str) -> bool:
    """Whether the address lies in a network of one of this machine's interfaces."""
    try:
        wanted = ipaddress.ip_address(host)
    except ValueError:
        return False
    if wanted.is_loopback or wanted.is_link_local or wanted.is_multicast or wanted.is_unspecified:
        return False
    for adapter in ifaddr.get_adapters():
        for held in adapter.ips:
            text = held.ip[0] if isinstance(held.ip, tuple) else held.ip
            if wanted in ipaddress.ip_network(f"{text}/{held.network_prefix}", strict=False):
                return True
    return False
