"""What people read: short, aligned, plain lines from the answers of a node.

Separate from the commands so that the wording is in one place and is tested without a node.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

import orjson

from ..schemas import LungStatus, PeerStatus, Status, headline


def say(text: str) -> None:
    """One line or more on standard output."""
    sys.stdout.write(f"{text}\n")


def warn(text: str) -> None:
    """One line on standard error."""
    sys.stderr.write(f"lattice: {text}\n")


def say_json(answer: object) -> None:
    """An answer as the JSON that the API gives."""
    say(orjson.dumps(answer, option=orjson.OPT_INDENT_2).decode())


def printable(text: str) -> str:
    """Nothing that a terminal would obey: keys, names and messages may come from anybody."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "replace").decode() for c in text)


def table(rows: Iterable[Sequence[str]], indent: str = "") -> str:
    """Rows with aligned columns."""
    held = [[printable(cell) for cell in row] for row in rows]
    if not held:
        return ""
    widths = [max(len(row[column]) for row in held) for column in range(len(held[0]))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in held)
    return "\n".join(indent + line.rstrip() for line in lines)


def status_text(status: Status) -> str:
    """What `lattice status` prints."""
    rows = [
        ("Node", f"{status.name}  {status.peer_id}"),
        ("Mode", f"{status.sync_mode} (policy {status.policy}: {status.reason})"),
        ("P2P lung", _p2p_text(status)),
        ("HTTP lung", _http_text(status)),
        (
            "Ledger",
            f"{_count(status.entry_count, 'entry', 'entries')}, {_count(status.state_size, 'key', 'keys')}",
        ),
        ("State root", status.merkle_root),
        ("Log root", status.log_root),
        ("In sync with", _synced_text(status)),
        ("Up for", span(status.uptime_s)),
    ]
    parts = [headline(status), table(rows)]
    if status.peers:
        parts.append(peers_text(status.peers))
    parts += [f"Alarm: {printable(text)}" for text in status.alarms]
    parts += [f"Warning: {printable(text)}" for text in status.warnings]
    return "\n".join(parts)


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def _p2p_text(status: Status) -> str:
    if not status.enabled:
        return "off (LATTICE_P2P_ENABLED=false)"
    if not status.started:
        return f"down: {status.error or 'not started yet'}"
    heard = f"{_count(status.peer_count, 'peer', 'peers')} heard"
    waiting = "" if status.fallback_in_s is None else f", fallback in {status.fallback_in_s:.0f} s"
    return f"up, {heard}{waiting}"


def _http_text(status: Status) -> str:
    if not status.http_sync_enabled:
        return "idle"
    bridged = len(status.bridged_over_http)
    return f"polling, {bridged} bridged"


def _synced_text(status: Status) -> str:
    if not status.synced:
        return "nobody yet"
    names = {peer.id: peer.name for peer in status.peers}
    return ", ".join(f"{names.get(one.peer) or one.peer} ({one.at})" for one in status.synced)


def peers_text(peers: Sequence[PeerStatus]) -> str:
    """One line a peer."""
    head = ("PEER", "NAME", "STATE", "P2P", "HTTP", "HEARD", "HEADS", "POLLED")
    rows = [
        (
            peer.id,
            peer.name or "-",
            peer.state,
            _lung(peer.p2p),
            _lung(peer.http),
            "-" if peer.last_heard_s is None else f"{span(peer.last_heard_s)} ago",
            "equal" if peer.heads_equal else "differ",
            "yes" if peer.polled else "no",
        )
        for peer in peers
    ]
    return table([head, *rows])


def _lung(lung: LungStatus) -> str:
    if lung.reachable:
        return "ok"
    return lung.last_error or "-"


def span(seconds: float) -> str:
    """A span of time in its largest two units."""
    whole = int(seconds)
    days, rest = divmod(whole, 86_400)
    hours, rest = divmod(rest, 3600)
    minutes, left = divmod(rest, 60)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {left} s" if minutes else f"{left} s"
