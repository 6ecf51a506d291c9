"""`lattice events`: what happens at a node, a line for each event.

Separate because it goes on until somebody stops it, and goes on too when the node is started anew.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import closing

import orjson

from ..client.events import Event
from ..schemas import AlarmEvent, EntryEvent, LostEvent, ModeEvent, PeerEvent, PolicyEvent
from .reach import connect
from .text import printable, say

_KEYS_SHOWN = 4


def events(args: argparse.Namespace) -> int:
    types = [name for name in args.type.split(",") if name]
    with (
        connect(args) as client,
        closing(client.events(prefix=args.prefix, types=types, after=args.after)) as stream,
    ):
        try:
            for event in stream:
                say(event_json(event) if args.json else event_text(event))
                sys.stdout.flush()  # whoever pipes it wants each line when it happens
        except KeyboardInterrupt:  # how one leaves it
            return 0
    return 0


def event_json(event: Event) -> str:
    """One line of JSON: id, type, data."""
    return orjson.dumps(event).decode()


def event_text(event: Event) -> str:
    """One line to read. The id is in the JSON form only."""
    at = getattr(event.data, "at", "-")
    return printable(f"{at}  {event.type:<6}  {_said(event.data)}")


def _said(data: object) -> str:
    match data:
        case EntryEvent():
            more = len(data.keys) - _KEYS_SHOWN
            keys = ", ".join(data.keys[:_KEYS_SHOWN]) + (f" and {more} more" if more > 0 else "")
            sender = "" if data.peer in (None, data.author) else f" from {data.peer}"
            return f"{keys}  by {data.author} ({data.lung}{sender})"
        case ModeEvent():
            return f"{data.previous or 'none'} -> {data.mode}: {data.reason}"
        case PeerEvent():
            return f"{data.name or data.peer} {data.change} ({data.state})"
        case AlarmEvent():
            return f"{data.code} {'raised' if data.raised else 'cleared'}: {data.text}"
        case PolicyEvent():
            return data.policy
        case LostEvent():
            count = "an unknown number of" if data.count is None else str(data.count)
            return f"{count} events ({data.reason}): read the keys again"
        case _:
            return orjson.dumps(data).decode()
