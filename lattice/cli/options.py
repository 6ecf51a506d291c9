"""The commands and their options, for argparse.

Separate because this is what every start pays for: it knows the names of all commands and loads none
of them.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from ..config.table import PREFIX, SETTINGS

Run = Callable[[argparse.Namespace], int]

_SETTING = "setting:"  # prefix of the attribute under which a setting's flag is kept


class _Parser(argparse.ArgumentParser):
    """Errors in one line, with a suggestion for a mistyped option."""

    def error(self, message: str) -> NoReturn:
        from ..core.ticket import hide_tickets

        shown = hide_tickets(f"{message}{self._suggestion(message)}")
        sys.stderr.write(f"lattice: {shown}; see `{self.prog} --help`\n")
        raise SystemExit(2)

    def _suggestion(self, message: str) -> str:
        known = [option for action in self._actions for option in action.option_strings]
        for word in message.split():
            if word.startswith("--"):
                close = difflib.get_close_matches(word.partition("=")[0], known, n=1)
                return f": did you mean {close[0]}?" if close else ""
        return ""

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        # A subparser leaves what it does not know to its parent, which knows no better and would
        # blame it on `lattice`: here each command complains itself, and can suggest.
        found, rest = super().parse_known_args(args, namespace)
        if rest:
            self.error(f"there is no {' '.join(rest)}")
        return found, rest


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; the parsed arguments carry the command as `run`."""
    parser = _Parser(
        prog="lattice",
        description="A node of a replicated ledger: start it, ask it, write to it.",
        epilog="Exit codes: 0 ok, 1 failed, 2 usage, 3 node not reachable, 4 not in sync, 5 not allowed, "
        "78 bad configuration.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_local(commands)
    _add_remote(commands)
    _add_keys(commands)
    _add_carried(commands)
    return parser


def flags_of(args: argparse.Namespace) -> dict[str, str]:
    """The settings that were given as flags, by LATTICE_* name."""
    return {
        name.removeprefix(_SETTING): value
        for name, value in vars(args).items()
        if name.startswith(_SETTING) and value is not None
    }


def _add_local(commands: argparse._SubParsersAction[_Parser]) -> None:
    add = _command(commands, "init", "make the identity and the network, or join one", _init)
    _settings(add, shown=True)
    add = _command(commands, "start", "run the node in the foreground", _start)
    _settings(add, shown=True)
    add = _command(commands, "stop", "stop the running node of these settings and wait for its end", _stop)
    add.add_argument("--wait", type=float, default=30.0, metavar="S", help="seconds to wait (default 30)")
    _settings(add)
    add = _command(commands, "invite", "print a ticket for another machine", _invite)
    _settings(add)
    add = _command(commands, "fsck", "verify every entry, seal and root of the store, read-only", _fsck)
    add.add_argument("--json", action="store_true", help="print JSON")
    _settings(add)
    add = _command(commands, "dev", "run a cluster of nodes on this machine until Ctrl-C", _dev)
    add.add_argument("count", type=_cluster_size, metavar="N", help="how many nodes, 2 to 9")
    add.add_argument("--dir", metavar="DIR", help="where the nodes live, and stay (default: a temporary one)")
    add.add_argument("--keep", action="store_true", help="do not remove the temporary directory")
    add = _command(commands, "logs", "show the end of the node's log, and follow it", _logs)
    add.add_argument("-n", "--lines", type=_count, default=40, metavar="N", help="lines first (default 40)")
    add.add_argument(
        "-f",
        "--follow",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="wait for more (the default)",
    )
    _settings(add)


def _add_remote(commands: argparse._SubParsersAction[_Parser]) -> None:
    add = _command(commands, "id", "show the peer id of this node", _id)
    _reading(add)
    add = _command(commands, "status", "show both lungs, the peers, the roots", _status)
    add.add_argument(
        "--require-sync", action="store_true", help="exit with 4 unless equal with every peer that is alive"
    )
    _reading(add)
    add = _command(commands, "peers", "list the known peers; add or forget one", _peers)
    add.add_argument("action", nargs="?", choices=("add", "forget"), help="nothing lists them")
    add.add_argument("address", nargs="?", metavar="ADDRESS", help="a multiaddr, a base URL or a peer id")
    _reading(add)
    add = _command(
        commands, "forks", "list the logs with two branches, and what freezing them took out", _forks
    )
    _reading(add)
    add = _command(commands, "events", "show what happens at the node, until Ctrl-C", _events)
    add.add_argument("--prefix", default="", help="of entries, only those that touch such a key")
    add.add_argument(
        "--type",
        default="",
        metavar="T",
        help="only these, parted by commas: entry, mode, peer, alarm, policy",
    )
    add.add_argument("--after", metavar="ID", help="resume behind this event")
    _reading(add)
    add = _command(commands, "switch", "choose the policy: auto, p2p or http", _switch)
    add.add_argument("mode", metavar="MODE", help="auto, p2p or http")
    _reading(add)


def _add_keys(commands: argparse._SubParsersAction[_Parser]) -> None:
    add = _command(commands, "put", "write a value", _put)
    add.add_argument("key")
    add.add_argument("value", help="JSON text, @FILE, or - for standard input")
    add.add_argument("--text", action="store_true", help="the value is text, not JSON")
    add.add_argument("--if-absent", action="store_true", help="only if the key has no value")
    _writing(add)
    add = _command(commands, "get", "show the value of a key", _get)
    add.add_argument("key")
    add.add_argument("--raw", action="store_true", help="print a text value without quotes")
    _reading(add)
    add = _command(commands, "delete", "delete a key", _delete)
    add.add_argument("key")
    _writing(add)
    add = _command(commands, "keys", "list keys in byte order", _keys)
    add.add_argument("prefix", nargs="?", default="", help="only keys that start so")
    add.add_argument("--after", metavar="KEY", help="only keys behind this one")
    add.add_argument("--limit", type=_count, default=100, metavar="N", help="at most so many (default 100)")
    add.add_argument("--all", action="store_true", help="all of them")
    _reading(add)
    _add_evidence(commands)


def _add_evidence(commands: argparse._SubParsersAction[_Parser]) -> None:
    add = _command(commands, "history", "list every op of a key, newest first", _history)
    add.add_argument("key")
    add.add_argument("--after", metavar="VERSION", help="only what is older than this one")
    add.add_argument("--limit", type=_count, default=100, metavar="N", help="at most so many (default 100)")
    _reading(add)
    add = _command(commands, "proof", "prove a key, or its absence, under the signed state root", _proof)
    add.add_argument("key")
    forms = ("lattice", "merkletools")
    add.add_argument("--format", choices=forms, default="lattice", help="lattice, or a merkletools receipt")
    add.add_argument("--out", metavar="FILE", help="write it there")
    _reading(add)
    add = _command(commands, "verify", "check a proof file; needs no node", _verify)
    add.add_argument("file", help="the file, or - for standard input")
    add.add_argument("--root", metavar="HEX", help="the state root must be this one")
    add.add_argument("--network", metavar="HEX", help="the network must be this one")
    add.add_argument("--peer", metavar="ID", help="the signer must be this node")
    add.add_argument("--json", action="store_true", help="print JSON")


def _add_carried(commands: argparse._SubParsersAction[_Parser]) -> None:
    add = _command(
        commands, "export", "write the state as JSON lines, or a sealed parcel for members", _export
    )
    add.add_argument("--sealed", action="store_true", help="a parcel: all logs, readable by members only")
    add.add_argument("--prefix", default="", help="of JSON lines, only keys that start so")
    add.add_argument(
        "--since", metavar="WHEN", help="only what came here since: 2026-11-20T09:45:00Z, 36h, 7d"
    )
    add.add_argument("--out", metavar="FILE", help="write to this file (default: standard output)")
    _settings(add)
    add = _command(commands, "import", "take in JSON lines as writes of this node, or a parcel", _import)
    add.add_argument("file", metavar="FILE", help="what `lattice export` wrote; - for standard input")
    _reading(add)


def _command(
    commands: argparse._SubParsersAction[_Parser], name: str, text: str, run: Run
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name, help=text, description=f"{text[0].upper()}{text[1:]}.", allow_abbrev=False
    )
    parser.set_defaults(run=run)
    return parser


def _settings(parser: argparse.ArgumentParser, *, shown: bool = False) -> None:
    """The options of `start`: --env-file, and a flag for every setting."""
    parser.add_argument("--env-file", metavar="FILE", help="read settings from this file (default .env)")
    group = parser.add_argument_group("settings", "each as in the environment, and stronger")
    for setting in SETTINGS:
        names = [setting.flag, *(["--name"] if setting.field == "node_name" else [])]
        text = setting.doc.replace("%", "%%") if shown else argparse.SUPPRESS
        group.add_argument(*names, dest=_SETTING + setting.name, metavar="VALUE", help=text)
    assert all(setting.name.startswith(PREFIX) for setting in SETTINGS)


def _node(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--url", help="base URL of another node's API")
    parser.add_argument("--token-file", metavar="FILE", help="file with that node's token")
    _settings(parser)


def _reading(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")
    _node(parser)


def _writing(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ack", type=_count, default=1, metavar="N", help="wait until N nodes hold it")
    parser.add_argument("--if-match", metavar="VERSION", help="only if this is the key's version")
    _reading(parser)


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 10**9):
        raise argparse.ArgumentTypeError(f"{text!r} is not a count")
    return int(text)


def _cluster_size(text: str) -> int:
    if len(text) != 1 or text not in "23456789":
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of nodes from 2 to 9")
    return int(text)


# Each command is loaded here, when it runs, and not before.


def _init(args: argparse.Namespace) -> int:
    from .local import init

    return init(args)


def _start(args: argparse.Namespace) -> int:
    from .local import start

    return start(args)


def _stop(args: argparse.Namespace) -> int:
    from .local import stop

    return stop(args)


def _invite(args: argparse.Namespace) -> int:
    from .local import invite

    return invite(args)


def _fsck(args: argparse.Namespace) -> int:
    from .checking import fsck

    return fsck(args)


def _dev(args: argparse.Namespace) -> int:
    from .dev import dev

    return dev(args)


def _logs(args: argparse.Namespace) -> int:
    from .tail import logs

    return logs(args)


def _id(args: argparse.Namespace) -> int:
    from .remote import identity

    return identity(args)


def _status(args: argparse.Namespace) -> int:
    from .remote import status

    return status(args)


def _peers(args: argparse.Namespace) -> int:
    from .remote import peers

    return peers(args)


def _forks(args: argparse.Namespace) -> int:
    from .remote import forks

    return forks(args)


def _events(args: argparse.Namespace) -> int:
    from .watch import events

    return events(args)


def _switch(args: argparse.Namespace) -> int:
    from .remote import switch

    return switch(args)


def _export(args: argparse.Namespace) -> int:
    from .carrying import export

    return export(args)


def _import(args: argparse.Namespace) -> int:
    from .carrying import import_file

    return import_file(args)


def _put(args: argparse.Namespace) -> int:
    from .keys import put

    return put(args)


def _get(args: argparse.Namespace) -> int:
    from .keys import get

    return get(args)


def _delete(args: argparse.Namespace) -> int:
    from .keys import delete

    return delete(args)


def _keys(args: argparse.Namespace) -> int:
    from .keys import keys

    return keys(args)


def _history(args: argparse.Namespace) -> int:
    from .evidence import history

    return history(args)


def _proof(args: argparse.Namespace) -> int:
    from .evidence import proof

    return proof(args)


def _verify(args: argparse.Namespace) -> int:
    from .evidence import verify

    return verify(args)
