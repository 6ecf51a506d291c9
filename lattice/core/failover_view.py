"""The heartbeat monitor as status shows it: ages, reachability, liveness.

Separate because what is shown must never feed back into what is decided.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import MappingProxyType

from .failover_events import HTTP, P2P, Liveness, LungView, MonitorConfig, PeerView
from .failover_peer import LungRecord, PeerRecord, age, latest


def legs(records: Iterable[PeerRecord], now: float, config: MonitorConfig) -> tuple[bool, bool]:
    """Whether P2P, and whether HTTP, has a reachable peer."""
    on_p2p = on_http = False
    for record in records:
        on_p2p = on_p2p or record.p2p.reachable(now, config)
        on_http = on_http or record.http.reachable(now, config)
        if on_p2p and on_http:
            break
    return on_p2p, on_http


def lung_view(lung: LungRecord, now: float, config: MonitorConfig) -> LungView:
    return LungView(
        reachable=lung.reachable(now, config),
        last_ok_s=age(now, lung.ok_at),
        last_good_round_s=age(now, lung.good_at),
        last_error=lung.last_error,
    )


def liveness(
    record: PeerRecord, now: float, now_e: float, config: MonitorConfig, *, heard: bool, polled: bool
) -> Liveness:
    """Alive by the lung that carries the peer, suspect while that is in doubt, dead on both lungs."""
    if heard or (polled and record.poll_answered and record.http.reachable(now, config)):
        return Liveness.ALIVE
    waiting = now_e - record.timer_from_e() < record.timeout_s(config)
    http_age = age(now, latest(record.http_heard_at, record.http.ok_at))
    if waiting or (http_age is not None and http_age <= config.reachable_s):
        return Liveness.SUSPECT
    return Liveness.DEAD


def peer_view(
    record: PeerRecord, now: float, now_e: float, config: MonitorConfig, *, polled: bool, rounds_run: bool
) -> PeerView:
    """Everything about one peer at `now`."""
    heard = record.heard(now_e, config, rounds_run=rounds_run)
    return PeerView(
        peer=record.peer,
        liveness=liveness(record, now, now_e, config, heard=heard, polled=polled),
        direct=record.direct,
        heard_over_p2p=heard,
        polled=polled,
        known_s=max(0.0, now - record.known_at),
        last_heard_p2p_s=age(now, record.heard_at),
        last_heard_http_s=age(now, record.http_heard_at),
        return_after_s=record.return_after_s,
        lungs=MappingProxyType(
            {P2P: lung_view(record.p2p, now, config), HTTP: lung_view(record.http, now, config)}
        ),
    )
