"""The commands on this machine's own node: init, start, stop, invite.

Separate because they work with the files of the data directory and the process that holds it, and
not with the API.
"""

from __future__ import annotations

import argparse
import ipaddress
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from ..core.errors import ConfigError
from .reach import load_settings
from .text import printable, say, warn

if TYPE_CHECKING:
    from ..config import Settings

_TICKET_FILE = "give what `lattice invite` printed on a node of the network"


def init(args: argparse.Namespace) -> int:
    from ..node.home import has_home, init_home

    settings = with_ticket(load_settings(args))
    existed = has_home(settings)
    home = init_home(settings, settings.join)
    say(f"{'Kept' if existed else 'Made'} node {settings.node_name} in {settings.data_dir}")
    say(f"peer id  {home.key.peer_id}")
    say(f"network  {home.network_id.hex()} ({printable(home.network_name)})")
    if settings.join is None and not existed:
        say("This is a new network. `lattice invite` prints the ticket with which another machine joins it.")
    say("Start the node with `lattice start`.")
    return 0


def start(args: argparse.Namespace) -> int:
    settings = with_ticket(load_settings(args))
    from ..daemon import run

    return run(settings)


def stop(args: argparse.Namespace) -> int:
    from .stopping import stop_node

    settings = load_settings(args)
    pid = stop_node(settings.data_dir, wait_s=args.wait)
    say(f"Stopped node {settings.node_name} (process {pid}).")
    return 0


def invite(args: argparse.Namespace) -> int:
    """The ticket is the last word of the output, so that a script can take it."""
    from ..node.home import load_home, make_ticket

    settings = load_settings(args)
    ticket, addresses = make_ticket(load_home(settings), settings)
    say("The ticket below lets a machine join this network and write to it: treat it as a secret.")
    say("It names these addresses of this node:")
    for address in addresses:
        say(f"  {printable(address)}")
    if not addresses:
        warn("the ticket names no address: set LATTICE_P2P_ANNOUNCE or LATTICE_SYNC_PUBLIC_URL")
    elif all(is_loopback(address) for address in addresses):
        warn(
            "the ticket names only loopback addresses, which no other machine can reach: listen on another "
            "one, or set LATTICE_P2P_ANNOUNCE and LATTICE_SYNC_PUBLIC_URL"
        )
    say("On the other machine: lattice init --join TICKET, then lattice start.")
    say("")
    say(ticket)
    return 0


def with_ticket(settings: Settings) -> Settings:
    """The settings with the ticket itself in place of `@FILE` or `-` (standard input)."""
    join = settings.join
    if join is None:
        return settings
    if join == "-":
        text = sys.stdin.readline()
    elif join.startswith("@"):
        try:
            text = Path(join[1:]).read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or "it is no text"
            raise ConfigError(f"cannot read the ticket in {join[1:]} ({why}): {_TICKET_FILE}") from error
    else:
        return settings
    # The whole output of `invite` may have been saved: the ticket is its last word.
    words = text.split()
    if not words:
        place = "the standard input" if join == "-" else join[1:]
        raise ConfigError(f"there is no ticket in {place}: {_TICKET_FILE}")
    return replace(settings, join=words[-1])


def is_loopback(address: str) -> bool:
    """Whether a multiaddr or a URL leads back to the machine that follows it."""
    parts = address.split("/")
    host = parts[2] if address.startswith("/") and len(parts) > 2 else urlsplit(address).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
