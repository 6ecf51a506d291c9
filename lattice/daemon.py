"""The daemon: the one place that builds everything and runs it in one trio loop.

Separate so that nothing else knows how the parts are put together: settings in, a running node
out, an exit code at the end.
"""

from __future__ import annotations

import base64
import gc
import os
import secrets
import signal
import sys
import time
from collections.abc import Callable
from contextlib import AsyncExitStack, ExitStack
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Final

import trio

from .api.access import Access, read_token
from .api.app import create_app, create_sync_app
from .api.listener import open_listener, serve_listener
from .api.refusals import Refusals
from .api.turnstile import Turnstile
from .config import Settings
from .core.addresses import Bind, ip_of, parse_multiaddr
from .core.errors import CODES, ConfigError, LatticeError
from .core.identity import peer_id_of
from .core.messages import Addresses
from .node.home import Home, announced, has_home, init_home, load_home, ticket_error
from .node.interfaces import reachable_hosts
from .node.node import Node
from .node.ports import NodeOptions, Ports
from .observability.logs import Logs, opened_logs
from .storage.datadir import open_store, refuse_foreign
from .storage.sqlite import SqliteStore
from .transport.http_poll import HttpPoll
from .transport.port import Discovery, P2PLung

if TYPE_CHECKING:
    from .transport.mdns import Offer

_SETTLE_LOGS_S: Final = 5.0


def run(settings: Settings) -> int:
    """Run a node until SIGTERM or SIGINT; the exit code (0, or that of the error's kind)."""
    with ExitStack() as stack:
        try:
            logs = stack.enter_context(
                opened_logs(
                    settings.node_name, settings.log_dir, level=settings.log_level, form=settings.log_format
                )
            )
        except OSError as error:
            where = f"the log directory {settings.log_dir} cannot be written: {error.strerror or error}"
            print(f"lattice: {where}; make it writable, or choose another LATTICE_LOG_DIR", file=sys.stderr)
            return CODES["config"].exit_code
        return _run_logged(settings, logs)


def _run_logged(settings: Settings, logs: Logs) -> int:
    for warning in settings.source.warnings:
        logs.warning("STARTUP", warning)
    if settings.source.env_file is not None:
        logs.info("STARTUP", "settings read", file=settings.source.env_file, count=settings.source.file_count)
    try:
        home = _open_home(settings, logs)
        _hide_secrets(settings, logs, home)
        store = open_store(settings.data_dir, home.network_id)
    except LatticeError as error:
        logs.error("STARTUP", error.message, code=error.code)
        return error.kind.exit_code
    code = 0
    try:
        refuse_foreign(store, home.network_id)
        trio.run(_main, settings, logs, home, store, strict_exception_groups=True)
    except* LatticeError as group:
        code = _report(group, logs)
    finally:
        store.close()
    if code == 0:
        logs.info("STARTUP", "stopped")
    return code


def _hide_secrets(settings: Settings, logs: Logs, home: Home) -> None:
    """No part of the node logs these on purpose; a caller may send them where they do not belong, and a
    message that quotes it would keep them."""
    for secret in (home.seed, *home.network_keys.values()):
        logs.hide(secret.hex())
        logs.hide(base64.b64encode(secret).decode().rstrip("="))
        logs.hide(base64.urlsafe_b64encode(secret).decode().rstrip("="))
    token = read_token(settings.api_token_file)
    if token is not None:
        logs.hide(token)


def _report(group: BaseExceptionGroup[LatticeError], logs: Logs) -> int:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if not isinstance(error, LatticeError):
        raise error
    logs.error("STARTUP", error.message, code=error.code)
    return error.kind.exit_code


def _open_home(settings: Settings, logs: Logs) -> Home:
    """The node's home. Without one, and without a ticket, a network is made, loudly."""
    if settings.join:
        logs.hide(settings.join)
        try:
            return init_home(settings, settings.join)
        except LatticeError as error:
            if error.code == "ticket":
                raise ticket_error(error) from error
            raise
    if has_home(settings):
        return load_home(settings)
    home = init_home(settings, None)
    logs.warning(
        "STARTUP",
        "NO DATA AND NO TICKET: A NEW NETWORK WAS MADE. If this machine was meant to join one, stop it, "
        "delete the data directory and run `lattice init --join TICKET`; else run `lattice invite`",
        data_dir=settings.data_dir,
        network=home.network_id.hex()[:16],
    )
    return home


async def _main(settings: Settings, logs: Logs, home: Home, store: SqliteStore) -> None:
    access = Access.from_settings(settings)
    api_socket = open_listener(settings.api_bind, "LATTICE_API_BIND")
    sync_socket = (
        open_listener(settings.sync_bind, "LATTICE_SYNC_BIND") if settings.sync_bind is not None else None
    )
    async with AsyncExitStack() as stack:
        http = await stack.enter_async_context(HttpPoll(ca_file=settings.tls_ca_file))
        lung = _build_p2p(settings, logs, home)
        node = _build_node(settings, logs, home, store, lung, http)
        shutdown = trio.Event()
        async with trio.open_nursery() as nursery:
            await nursery.start(_watch_signals, shutdown, logs)
            await nursery.start(node.run)
            nursery.start_soon(_settle_logs, logs)
            if settings.mdns:
                await nursery.start(_build_discovery(settings, logs, home, lung).run, node.hint_peer)
            # What start-up made lives as long as the process: the collector need not walk it again.
            gc.collect()
            gc.freeze()
            async with trio.open_nursery() as faces:
                turnstile, refusals = Turnstile(), Refusals()
                app = create_app(node, access, logs=logs, turnstile=turnstile, refusals=refusals)
                await faces.start(serve_listener, app, api_socket, shutdown, logs, refusals)
                logs.info("STARTUP", "API listening", url=settings.api_url)
                if sync_socket is not None:
                    sync_app = create_sync_app(node, logs=logs, turnstile=turnstile, refusals=refusals)
                    await faces.start(serve_listener, sync_app, sync_socket, shutdown, logs, refusals)
                    logs.info("STARTUP", "sync listening", bind=settings.sync_bind)
                logs.info("STARTUP", "node ready", name=node.name, peer_id=node.peer_id, pid=os.getpid())
            # The listeners have ended, with the requests that were under way; the rest holds nothing.
            nursery.cancel_scope.cancel()


async def _settle_logs(logs: Logs) -> None:
    """Sum up held-back repetitions now and then, so that none waits for the next line."""
    while True:
        await trio.sleep(_SETTLE_LOGS_S)
        logs.settle()


async def _watch_signals(
    shutdown: trio.Event, logs: Logs, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    wanted = [signal.SIGINT, signal.SIGTERM]
    with trio.open_signal_receiver(*wanted) as received:
        task_status.started()
        async for number in received:
            logs.info("STARTUP", "stopping", signal=signal.Signals(number).name)
            break
    # Whoever is impatient asks twice, and a service manager may: that must not cut the closing of the store
    # short. A node that does not end can still be killed.
    for each in wanted:
        signal.signal(each, signal.SIG_IGN)
    shutdown.set()


def _build_p2p(settings: Settings, logs: Logs, home: Home) -> P2PLung | None:
    """The P2P lung, or None when it is switched off. Importing libp2p takes a second, so it is
    imported only here."""
    if not settings.p2p_enabled:
        logs.info("STARTUP", "P2P is switched off", variable="LATTICE_P2P_ENABLED")
        return None
    from .transport.p2p.lung import Libp2pLung

    topic = _topic(settings, home)
    return Libp2pLung(
        home.seed,
        [str(address) for address in settings.p2p_listen],
        [str(address) for address in settings.p2p_announce],
        f"{topic}/entries",
        f"{topic}/presence",
        logs.standard("LIBRARY", "libp2p"),
    )


def _build_discovery(settings: Settings, logs: Logs, home: Home, lung: P2PLung | None) -> Discovery:
    """Multicast DNS; imported only here, where it is wanted."""
    from .transport.mdns import Mdns, network_tag

    tags = [network_tag(home.network_id, home.network_keys[n]) for n in sorted(home.network_keys)[::-1]]
    logs.info("STARTUP", "multicast DNS is on", variable="LATTICE_MDNS")
    return Mdns(home.key.peer_id, tags, lambda: _offer(settings, lung), logs.standard("LIBRARY", "mdns"))


def _offer(settings: Settings, lung: P2PLung | None) -> Offer:
    """What the local network may be told: where both listeners are, as far as others can reach them."""
    from .transport.mdns import Offer

    p2p: list[Bind] = []
    for text in lung.report().listen_multiaddrs if lung is not None else ():
        address = parse_multiaddr(text)
        p2p.append(Bind(address.host, address.port))
    sync = settings.sync_bind or settings.api_bind
    hosts = {bind: _hosts(bind) for bind in (*p2p, sync)}
    return Offer(
        tuple(sorted({host for group in hosts.values() for host in group})),
        next((bind.port for bind in p2p if hosts[bind]), 0),
        sync.port if hosts[sync] else 0,
    )


def _hosts(bind: Bind) -> list[str]:
    found = reachable_hosts(":" in bind.host) if bind.is_wildcard else [bind.host]
    return [host for host in found if not Bind(host, bind.port).is_loopback and ip_of(host) is not None]


def _topic(settings: Settings, home: Home) -> str:
    return settings.p2p_topic or f"lattice/{home.network_id.hex()[:32]}"


def _build_node(
    settings: Settings, logs: Logs, home: Home, store: SqliteStore, lung: P2PLung | None, http: HttpPoll
) -> Node:
    options = NodeOptions(
        name=settings.node_name,
        policy=settings.sync_mode,
        topic=_topic(settings, home),
        bootstrap=tuple(str(address) for address in settings.p2p_bootstrap),
        heartbeat_interval_s=settings.heartbeat_interval_s,
        peerless_timeout_s=settings.peerless_timeout_s,
        poll_interval_s=settings.http_poll_interval_s,
        disk_reserve_bytes=settings.disk_reserve_bytes,
        addresses=_address_book(settings, home, lung),
        version=program_version(),
    )
    ports = Ports(wall_ms=_wall_ms, entropy=secrets.token_bytes, log=logs)
    node = Node(home.key, home.network_id, home.network_keys, store, ports, options, p2p=lung, http=http)
    for peer in home.peers:
        node.know_peer(peer_id_of(peer.public_key), peer.name, peer.addresses, "ticket")
    for address in settings.p2p_bootstrap:
        if address.peer_id is None:
            raise ConfigError(f"LATTICE_P2P_BOOTSTRAP: {address} must end in /p2p/PEER_ID")
        node.know_peer(address.peer_id, "", Addresses(p2p=(str(address),)))
    for url in settings.nodes:
        node.know_url(url)
    return node


def _address_book(settings: Settings, home: Home, lung: P2PLung | None) -> Callable[[], Addresses]:
    """What is announced; interfaces come and go, so it is looked up again every half minute."""
    held: tuple[float, Addresses] | None = None

    def addresses() -> Addresses:
        nonlocal held
        now = time.monotonic()
        if held is None or now - held[0] > 30:
            listening = lung.report().announced_multiaddrs if lung is not None else ()
            held = (now if listening or lung is None else now - 29, announced(home, settings, listening))
        return held[1]

    return addresses


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000


def program_version() -> str:
    """The version of the installed program."""
    try:
        return version("lattice")
    except PackageNotFoundError:
        return "0.0.0+source"
