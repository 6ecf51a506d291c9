"""Settings and how they are read: flag before environment before file before default.

Separate from the table because this is the one place in the program that looks at the environment
and at a file of settings, and it does so when it is called, never at import.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal

from dotenv.parser import parse_stream

from ..core.addresses import Bind, TcpMultiaddr
from ..core.errors import ConfigError, MalformedError
from ..core.limits import BEAT_GRACE_S
from ..core.ticket import hide_tickets
from .table import OBSOLETE, PREFIX, SETTINGS, Setting, closest

Origin = Literal["flag", "environment", "file", "default"]
Policy = Literal["auto", "p2p", "http"]
LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR"]
LogFormat = Literal["text", "json"]

PROJECT_MARK: Final = "launch_lattice.sh"
_SHOWN_CHARS_MAX: Final = 200  # of a value that a message quotes


@dataclass(frozen=True, slots=True)
class Source:
    """Where the settings came from: for the start-up line and for error messages.

    `origins` maps each LATTICE_* name to its origin; `file_count` is the settings that the file holds.
    """

    project_dir: Path
    env_file: Path | None
    file_count: int
    origins: Mapping[str, Origin]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Settings:
    """Every setting of one node, checked. Times in seconds, sizes in bytes, paths absolute."""

    node_name: str
    data_dir: Path
    log_dir: Path
    api_bind: Bind
    sync_bind: Bind | None
    sync_public_url: str | None
    tls_ca_file: Path | None
    api_token_file: Path
    allowed_hosts: tuple[str, ...]
    cors_origins: tuple[str, ...]
    public_status: bool
    p2p_enabled: bool
    p2p_listen: tuple[TcpMultiaddr, ...]
    p2p_announce: tuple[TcpMultiaddr, ...]
    p2p_bootstrap: tuple[TcpMultiaddr, ...]
    p2p_topic: str | None
    nodes: tuple[str, ...]
    join: str | None = field(repr=False)
    mdns: bool
    sync_mode: Policy
    heartbeat_interval_s: float
    peerless_timeout_s: float
    http_poll_interval_s: float
    disk_reserve_bytes: int
    log_level: LogLevel
    log_format: LogFormat
    source: Source

    @property
    def api_url(self) -> str:
        """The base URL under which a program on this machine reaches the API."""
        if not self.api_bind.is_wildcard:
            return f"http://{self.api_bind}"
        return f"http://{Bind('::1' if ':' in self.api_bind.host else '127.0.0.1', self.api_bind.port)}"


def load(
    *,
    env_file: Path | None = None,
    flags: Mapping[str, str] | None = None,
    environ: Mapping[str, str] | None = None,
    project_dir: Path | None = None,
) -> Settings:
    """Read the settings: flag before environment before file before default.

    `flags` and `environ` are keyed by LATTICE_* names (environ: the process's, if None). Without
    `env_file`, `.env` of the project is read if there is one. The project is `project_dir`, else the
    directory of the file, else the nearest one upwards of the current directory that holds the
    launcher. Raises ConfigError with every mistake that was found.
    """
    if project_dir is None:
        project_dir = absolute(env_file).parent if env_file else _find_project(absolute(Path()))
    if env_file is None and os.path.isfile(project_dir / ".env"):
        env_file = project_dir / ".env"
    from_file, problems, warnings = _read_file(env_file) if env_file else ({}, [], [])
    sources: list[tuple[Origin, str, Mapping[str, str]]] = [
        ("flag", "on the command line", flags or {}),
        ("environment", "in the environment", _lattice_names(os.environ if environ is None else environ)),
        ("file", f"in {env_file}", from_file),
    ]
    for origin, where, given in sources:
        for name, text in _unknown(given, where):
            (warnings if origin == "environment" and name not in OBSOLETE else problems).append(text)
    values: dict[str, Any] = {}
    origins: dict[str, Origin] = {}
    for setting in SETTINGS:
        origin, where, text = _pick(setting, sources)
        origins[setting.name] = origin
        try:
            values[setting.field] = setting.parse(_expand(text or setting.default, values), project_dir)
        except MalformedError as error:
            shown = "" if setting.secret else f"={_cut(text)}"
            problems.append(f"{setting.name}{shown} {where}: {error.message}")
            values[setting.field] = setting.parse(_expand(setting.default, values), project_dir)
    source = Source(project_dir, env_file, len(from_file), MappingProxyType(origins), tuple(warnings))
    settings = Settings(**values, source=source)
    problems.extend(_contradictions(settings))
    if problems:
        raise ConfigError(hide_tickets("; ".join(problems)))
    return settings


def absolute(path: Path) -> Path:
    """The whole path of one that may start at the current directory. Raises ConfigError."""
    try:
        return Path(os.path.abspath(path))
    except OSError as error:
        raise ConfigError(
            f"the current directory cannot be told ({error.strerror or error}), perhaps it was removed: "
            "change into another one"
        ) from error


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARS_MAX else f"{text[:_SHOWN_CHARS_MAX]}…"


def _pick(setting: Setting, sources: list[tuple[Origin, str, Mapping[str, str]]]) -> tuple[Origin, str, str]:
    # A name that is set to nothing means the default, and still wins over the sources below it:
    # that is how one start does without what the file says.
    for origin, where, given in sources:
        if setting.name in given:
            return origin, where, given[setting.name].strip()
    return "default", "by default", setting.default


def _expand(text: str, values: Mapping[str, Any]) -> str:
    if "<name>" in text:
        text = text.replace("<name>", str(values["node_name"]))
    return text.replace("<data>", str(values["data_dir"])) if "<data>" in text else text


def _lattice_names(environ: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environ.items() if name.upper().startswith(PREFIX)}


def _unknown(given: Mapping[str, str], where: str) -> Iterator[tuple[str, str]]:
    known = {setting.name for setting in SETTINGS}
    for name in given:
        if name in OBSOLETE:
            yield name, f"{name} {where} is now {OBSOLETE[name]}: rename it"
        elif name not in known:
            guess = closest(name)
            yield name, f"{name} {where} is not a setting" + (f": did you mean {guess}?" if guess else "")


def _read_file(path: Path) -> tuple[dict[str, str], list[str], list[str]]:
    """The LATTICE_* lines of the file, what is wrong with it, and what is only odd."""
    try:
        text = path.read_text(encoding="utf-8-sig")  # an editor may have put a byte order mark in front
    except OSError as error:
        why = f"cannot read {path} ({error.strerror}): make it a file that this user may read"
        raise ConfigError(why) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"cannot read {path}: save it as UTF-8 text, one NAME=value a line") from error
    found: dict[str, str] = {}
    problems: list[str] = []
    foreign: list[str] = []
    for binding in parse_stream(io.StringIO(text)):
        place = f"{path}, line {binding.original.line}"
        if binding.error:
            problems.append(f"{place}: write NAME=value")
        elif binding.key is None:
            continue
        elif not binding.key.upper().startswith(PREFIX):
            foreign.append(binding.key)
        elif binding.value is None:
            problems.append(f"{place}: {binding.key} has no value: write {binding.key}=value")
        elif binding.key in found:
            problems.append(f"{place}: {binding.key} is set a second time")
        else:
            found[binding.key] = binding.value
    odd = [f"{path} also sets {', '.join(foreign)}: a node reads only {PREFIX}* names"] if foreign else []
    return found, problems, odd


def _find_project(start: Path) -> Path:
    return next((place for place in (start, *start.parents) if os.path.isfile(place / PROJECT_MARK)), start)


def _contradictions(settings: Settings) -> Iterator[str]:
    least = 2 * (settings.heartbeat_interval_s + BEAT_GRACE_S)
    if settings.peerless_timeout_s < least:
        yield (
            f"LATTICE_PEERLESS_TIMEOUT_S={settings.peerless_timeout_s:g} leaves no room for two missed "
            f"beats: write {least:g} or more, or a smaller LATTICE_HEARTBEAT_INTERVAL_S"
        )
    if settings.sync_mode == "p2p" and not settings.p2p_enabled:
        yield "LATTICE_SYNC_MODE=p2p needs LATTICE_P2P_ENABLED=true"
    listeners: list[tuple[str, Bind]] = [("LATTICE_API_BIND", settings.api_bind)]
    if settings.sync_bind:
        listeners.append(("LATTICE_SYNC_BIND", settings.sync_bind))
    if settings.p2p_enabled:
        listeners += [("LATTICE_P2P_LISTEN", Bind(each.host, each.port)) for each in settings.p2p_listen]
    for number, (name, bind) in enumerate(listeners):
        for other_name, other in listeners[:number]:
            same_host = bind.host == other.host or bind.is_wildcard or other.is_wildcard
            if bind.port and bind.port == other.port and same_host:
                yield f"{other_name} and {name} both listen on port {bind.port}: give each its own"
