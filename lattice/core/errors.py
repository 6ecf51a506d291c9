"""The errors of Lattice, each with a stable code and one row in one table.

Separate so that every face (HTTP status, exit code, log level, metric label) is derived from the
same table and a new code cannot be half introduced.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class ErrorKind:
    """What a code means to each face: HTTP status, exit code of the command line, log level."""

    status: int
    exit_code: int
    level: str
    title: str


CODES: Final[dict[str, ErrorKind]] = {
    "bad_request": ErrorKind(400, 1, "INFO", "The request is malformed"),
    "bad_key": ErrorKind(400, 1, "INFO", "The key is not acceptable"),
    "bad_value": ErrorKind(400, 1, "INFO", "The value is not acceptable"),
    "bad_mode": ErrorKind(400, 1, "INFO", "There is no such mode"),
    "bad_host": ErrorKind(400, 1, "WARNING", "The Host header is not allowed"),
    "unauthorized": ErrorKind(401, 5, "INFO", "A token is needed"),
    "forbidden": ErrorKind(403, 5, "INFO", "Not allowed"),
    "bad_origin": ErrorKind(403, 5, "WARNING", "The Origin is not allowed"),
    "not_found": ErrorKind(404, 1, "INFO", "There is nothing under this name"),
    "too_slow": ErrorKind(408, 1, "INFO", "The request body took too long"),
    "idempotency_mismatch": ErrorKind(422, 1, "INFO", "The idempotency key was used for another request"),
    "precondition_failed": ErrorKind(412, 1, "INFO", "The precondition does not hold"),
    "too_large": ErrorKind(413, 1, "INFO", "The request is too large"),
    "too_many": ErrorKind(429, 1, "INFO", "Too many requests"),
    "not_replicated": ErrorKind(504, 1, "WARNING", "Stored here, not yet confirmed by enough peers"),
    "unreadable_value": ErrorKind(409, 1, "WARNING", "The stored value is not JSON"),
    "no_space": ErrorKind(507, 1, "ERROR", "The disk reserve is reached"),
    "not_ready": ErrorKind(503, 1, "ERROR", "The node cannot take this now"),
    "store_failed": ErrorKind(503, 1, "ERROR", "The store failed"),
    "store_locked": ErrorKind(503, 78, "ERROR", "The data directory is in use"),
    "store_busy": ErrorKind(503, 1, "ERROR", "Another program still reads the store"),
    "store_denied": ErrorKind(503, 78, "ERROR", "The data directory may not be used"),
    "store_corrupt": ErrorKind(503, 1, "ERROR", "The store does not verify"),
    "store_too_new": ErrorKind(503, 78, "ERROR", "The store was written by a newer program"),
    "store_foreign": ErrorKind(503, 78, "ERROR", "The store is of another network"),
    "config": ErrorKind(500, 78, "ERROR", "The configuration is wrong"),
    "ticket": ErrorKind(400, 78, "ERROR", "The ticket is not usable"),
    "unreachable": ErrorKind(502, 3, "WARNING", "The node does not answer"),
    "not_in_sync": ErrorKind(409, 4, "WARNING", "The nodes are not in sync"),
    "malformed": ErrorKind(400, 1, "INFO", "The bytes do not follow the format"),
    "envelope": ErrorKind(400, 1, "INFO", "The envelope was refused"),
    "internal": ErrorKind(500, 1, "ERROR", "A defect in this program"),
}


class LatticeError(Exception):
    """An error with a stable `code` (a row of CODES); the text says what happened and what to do."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        if code not in CODES:
            raise AssertionError(f"error code {code!r} has no row in the table")
        self.code = code
        self.message = message

    @property
    def kind(self) -> ErrorKind:
        return CODES[self.code]


class MalformedError(LatticeError):
    """Bytes from outside that do not follow the format. Never an exception of the program's flow:
    whoever decodes remote bytes catches it at the seam and counts it."""

    def __init__(self, message: str) -> None:
        super().__init__("malformed", message)


class ConfigError(LatticeError):
    """A configuration mistake; the process exits with 78 (EX_CONFIG of sysexits.h)."""

    def __init__(self, message: str) -> None:
        super().__init__("config", message)
