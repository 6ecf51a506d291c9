"""The commands that ask a running node about itself: id, status, peers, forks, switch.

Separate from those that work on this machine's files, which need far more of the program.
"""

from __future__ import annotations

import argparse

from ..client import calls
from ..core.errors import LatticeError
from ..schemas import Fork, Forks, Identity
from .reach import connect, load_settings
from .text import columns, forks_text, peers_text, say, say_json, status_text, warn


def status(args: argparse.Namespace) -> int:
    with connect(args) as client:
        found = client.send(calls.status())
    if args.json:
        say_json(found)
    else:
        say(status_text(found, columns()))
    if not args.require_sync:
        return 0
    synced = {one.peer for one in found.synced}
    alive = [peer for peer in found.peers if peer.state == "alive"]
    behind = [peer.name or peer.id for peer in alive if peer.id not in synced or not peer.heads_equal]
    if behind or not alive:
        who = ", ".join(behind) if behind else "anybody: no peer is alive"
        raise LatticeError("not_in_sync", f"not in sync with {who}; ask again in a few seconds")
    return 0


def peers(args: argparse.Namespace) -> int:
    if args.action is not None:
        return _change_peer(args)
    with connect(args) as client:
        found = client.send(calls.status())
    if args.json:
        say_json(found.peers)
    elif found.peers:
        say(peers_text(found.peers, columns()))
    else:
        say("No other node is known; `lattice invite` prints a ticket for one.")
    return 0


def forks(args: argparse.Namespace) -> int:
    found: list[Fork] = []
    with connect(args) as client:
        after: str | None = None
        while True:
            page = client.send(calls.forks(after=after))
            if args.json:
                found += page.forks
            elif page.forks:
                say(forks_text(page.forks))
            elif after is None:
                say("No log is forked.")
            after = page.next
            if after is None:
                break
    if args.json:
        say_json(Forks(True, found, len(found)))
    return 0


def _change_peer(args: argparse.Namespace) -> int:
    if args.address is None:
        raise LatticeError("bad_request", f"`lattice peers {args.action}` needs an address or a peer id")
    adding = args.action == "add"
    with connect(args) as client:
        found = client.send(calls.add_peer(args.address) if adding else calls.forget_peer(args.address))
    if args.json:
        say_json(found)
    else:
        say(f"{'known' if adding else 'forgotten'}: {found.peer.id}")
    return 0


def switch(args: argparse.Namespace) -> int:
    with connect(args) as client:
        found = client.send(calls.switch(args.mode))
    if args.json:
        say_json(found)
    else:
        say(found.message)
    return 0


def identity(args: argparse.Namespace) -> int:
    """From the running node; for one's own node from its files when it does not run."""
    try:
        with connect(args) as client:
            found = client.send(calls.identity())
    except LatticeError as error:
        if error.code != "unreachable" or args.url is not None:
            raise
        return _identity_at_rest(args)
    if args.json:
        say_json(found)
    else:
        say(found.peer_id)
        for address in found.listen_addrs:
            say(address)
    return 0


def _identity_at_rest(args: argparse.Namespace) -> int:
    from ..node.home import load_home

    settings = load_settings(args)
    home = load_home(settings)
    found = Identity(True, home.key.peer_id, [], settings.node_name, home.network_id.hex())
    if args.json:
        say_json(found)
    else:
        say(found.peer_id)
        warn("the node is not running")
    return 0
