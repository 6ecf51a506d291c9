"""What people read: short, aligned, plain lines from the answers of a node.

Separate from the commands so that the wording is in one place and is tested without a node.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict

import orjson

from ..schemas import Fork, LungStatus, PeerStatus, Status, headline


def say(text: str) -> None:
    """One line or more on standard output."""
    sys.stdout.write(f"{text}\n")


def warn(text: str) -> None:
    """One line on standard error."""
    sys.stderr.write(f"lattice: {text}\n")


def columns() -> int | None:
    """How wide the terminal is; None when the output goes elsewhere and a line may be any length."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def say_json(answer: object) -> None:
    """An answer as the JSON that the API gives."""
    try:
        text = orjson.dumps(answer, option=orjson.OPT_INDENT_2).decode()
    except orjson.JSONEncodeError:
        # A path may hold bytes that are no text. The standard writer has an escape for them.
        text = json.dumps(answer, default=asdict, indent=2)
    say(text)


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


def status_text(status: Status, width: int | None = None) -> str:
    """What `lattice status` prints, on a terminal of `width` columns."""
    rows = [
        ("Node", f"{status.name}  {status.peer_id}"),
        ("Mode", f"{status.sync_mode} (policy {status.policy}: {status.reason})"),
        ("P2P lung", _p2p_text(status)),
        ("HTTP lung", _http_text(status)),
        (
            "Ledger",
            f"{counted(status.entry_count, 'entry', 'entries')}, {counted(status.state_size, 'key', 'keys')}",
        ),
        *(
            [("Forks", f"{counted(status.forks, 'log', 'logs')} frozen (`lattice forks`)")]
            if status.forks
            else []
        ),
        ("State root", status.merkle_root),
        ("Log root", status.log_root),
        *_synced_rows(status),
        ("Up for", span(status.uptime_s)),
    ]
    parts = [headline(status), table(rows)]
    if status.peers:
        parts.append(peers_text(status.peers, width))
    parts += [f"Alarm: {printable(text)}" for text in status.alarms]
    parts += [f"Warning: {printable(text)}" for text in status.warnings]
    return "\n".join(parts)


def counted(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def _p2p_text(status: Status) -> str:
    if not status.enabled:
        return "off (LATTICE_P2P_ENABLED=false)"
    if not status.started:
        return f"down: {status.error or 'not started yet'}"
    heard = f"{counted(status.peer_count, 'peer', 'peers')} heard"
    waiting = "" if status.fallback_in_s is None else f", fallback in {status.fallback_in_s:.0f} s"
    return f"up, {heard}{waiting}"


def _http_text(status: Status) -> str:
    if not status.http_sync_enabled:
        return "idle"
    bridged = len(status.bridged_over_http)
    return f"polling, {bridged} bridged"


def _synced_rows(status: Status) -> list[tuple[str, str]]:
    names = {peer.id: peer.name for peer in status.peers}
    shown = [f"{names.get(one.peer) or one.peer} ({one.at})" for one in status.synced] or ["nobody yet"]
    return [("" if place else "In sync with", text) for place, text in enumerate(shown)]


def peers_text(peers: Sequence[PeerStatus], width: int | None = None) -> str:
    """One line a peer; two, the id on its own, where a terminal of `width` columns would wrap it."""
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
    text = table([head, *rows])
    if width is None or max(map(len, text.splitlines())) <= width:
        return text
    first, *others = table([row[1:] for row in (head, *rows)]).splitlines()
    return "\n".join(
        [first, *(f"{line}\n  {printable(row[0])}" for line, row in zip(others, rows, strict=True))]
    )


def forks_text(forks: Sequence[Fork]) -> str:
    """Some lines a fork: whose log, from where it is frozen, what left the state."""
    lines = []
    for fork in forks:
        lines.append(f"{fork.author} epoch {fork.epoch} is frozen at seq {fork.frozen} (since {fork.at})")
        by = f"by {fork.peer}" if fork.peer else "here"
        lines.append(
            f"  shown {by} over {fork.lung}; {counted(fork.removed, 'entry', 'entries')} left the state"
        )
        lines += [f"  changed: {printable(key)}" for key in fork.keys]
    return "\n".join(lines)


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
