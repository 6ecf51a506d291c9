"""Which node a command talks to, and with which token.

Separate because every such command resolves it in the same way: `--url`, or the settings of `start`.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from ..client.client import Client, read_token_file
from ..core.addresses import parse_node_url
from ..core.errors import ConfigError, MalformedError
from .options import flags_of

if TYPE_CHECKING:
    from ..config import Settings


def load_settings(args: argparse.Namespace) -> Settings:
    """The settings of the flags, the environment and the file. Raises ConfigError."""
    from ..config import absolute, load

    env_file = Path(args.env_file) if args.env_file is not None else None
    if env_file is not None and not os.path.isfile(env_file):
        raise ConfigError(f"there is no file {env_file}; --env-file names the one with this node's settings")
    flags = flags_of(args)
    join = flags.get("LATTICE_JOIN", "")
    if join.startswith("@"):  # a path on the command line is meant from where the command is given
        flags["LATTICE_JOIN"] = f"@{absolute(Path(join[1:]))}"
    return load(env_file=env_file, flags=flags)


def connect(args: argparse.Namespace) -> Client:
    """A client of the node that the command is about. Raises LatticeError."""
    if args.url is None:
        settings = load_settings(args)
        token = _given_token(args)
        if token is None:
            token = _readable_token(settings.api_token_file)
        return Client(settings.api_url, token=token, ca_file=settings.tls_ca_file)
    try:
        url = parse_node_url(args.url)
    except MalformedError as error:
        raise ConfigError(f"--url {args.url}: {error.message}") from error
    # The token of our own node is not sent to another one.
    return Client(url, token=_given_token(args))


def _given_token(args: argparse.Namespace) -> str | None:
    return read_token_file(Path(args.token_file)) if args.token_file is not None else None


def _readable_token(path: Path) -> str | None:
    """The token, if it is there and this user may read it: on the node's own machine it is not always
    needed."""
    try:
        return path.read_text(encoding="ascii").strip() or None
    except (OSError, UnicodeDecodeError):
        return None
