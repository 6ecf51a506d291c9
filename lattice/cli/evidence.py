"""The commands on evidence: history, proof, and verify, which needs no node.

Separate from the commands on keys because their output is meant to be kept and shown to others.
"""

from __future__ import annotations

import argparse
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import orjson

from ..client import calls
from ..core.errors import LatticeError, MalformedError
from ..core.identity import peer_id_of
from ..core.proofs import KeyProof, Proven, parse_proof, verify_proof
from ..core.receipts import FORMAT as RECEIPT_FORMAT
from ..core.receipts import Receipt, parse_receipt, verify_receipt
from ..schemas import HistoryVersion
from .reach import connect
from .text import printable, say, say_json, table, warn

_PAGE: Final = 1000
_FILE_BYTES_MAX: Final = 64 * 1024 * 1024
_VALUE_CHARS_MAX: Final = 60


def history(args: argparse.Namespace) -> int:
    found: list[HistoryVersion] = []
    after = args.after
    with connect(args) as client:
        while True:
            wanted = min(args.limit - len(found), _PAGE)
            page = client.send(calls.history(args.key, after=after, limit=wanted))
            found += page.versions
            after = page.next
            if after is None or len(found) >= args.limit:
                break
    if args.json:
        say_json({
            "success": True, "key": page.key, "versions": found, "count": len(found),
            "complete": page.complete, "next": after,
        })  # fmt: skip
        return 0
    head = ("VERSION", "OP", "STANDS", "VALUE", "AUTHOR", "CAME BY", "FROM", "ARRIVED")
    say(table([head, *(_row(one) for one in found)]))
    if after is not None:
        warn(f"there are more: --after {after}")
    if not page.complete:
        warn("the key has more ops than one history lists; the older ones are left out")
    return 0


def _row(one: HistoryVersion) -> tuple[str, ...]:
    if one.op == "put":
        stands = "winner" if one.winner else "live" if one.live else "replaced"
        value = f"({one.error})" if one.error else orjson.dumps(one.value).decode()
    else:
        stands, value = "-", "" if one.amount is None else f"{one.amount:+d}"
    if len(value) > _VALUE_CHARS_MAX:
        value = f"{value[:_VALUE_CHARS_MAX]}…"
    return one.version, one.op, stands, value, one.author, one.lung, one.peer or "-", one.arrived


def proof(args: argparse.Namespace) -> int:
    with connect(args) as client:
        found = client.send(calls.proof(args.key, merkletools=args.format == "merkletools"))
    if args.out is None:
        say_json(found)
        return 0
    path = Path(args.out)
    try:
        path.write_bytes(orjson.dumps(found, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
    except OSError as error:
        raise LatticeError("bad_request", f"cannot write {path}: {error.strerror}") from error
    what = "is there" if found["present"] else "is absent"
    if args.json:
        say_json({"success": True, "key": found["key"], "present": found["present"], "file": str(path)})
    else:
        say(f"{printable(args.key)} {what}; check it anywhere with `lattice verify {printable(str(path))}`")
    return 0


def verify(args: argparse.Namespace) -> int:
    """Whether a file proves what it says. 0 and one line, or an error."""
    data = _read(args.file)
    if isinstance(data, dict) and data.get("format") == RECEIPT_FORMAT:
        checked: KeyProof | Receipt = parse_receipt(data)
    else:
        checked = parse_proof(data)
    proven = None
    if isinstance(checked, KeyProof):
        proven = verify_proof(checked)
    else:
        verify_receipt(checked)
    said = checked.statement
    signer = peer_id_of(said.signer)
    for what, wanted, got in (
        ("state root", args.root, said.state_root.hex()),
        ("network", args.network, checked.network_id.hex()),
        ("signer", args.peer, signer),
    ):
        if wanted is not None and wanted != got:
            raise MalformedError(f"the proof holds in itself, but its {what} is {got}, not {wanted}")
    present = proven is None or proven.present
    if args.json:
        winner = None if proven is None or proven.winner is None else str(proven.winner)
        say_json({
            "valid": True, "key": checked.key.decode(), "present": present, "version": winner,
            "author": None if proven is None or proven.author is None else peer_id_of(proven.author),
            "adds": checked.adds, "total": str(checked.total), "network": checked.network_id.hex(),
            "state_root": said.state_root.hex(), "signer": signer, "timestamp_ms": said.timestamp_ms,
        })  # fmt: skip
    else:
        where = f"state root {said.state_root.hex()}, signed by {signer} at {_moment(said.timestamp_ms)}"
        say(f"valid: {_claim(checked, proven)} under {where}")
    return 0


def _claim(checked: KeyProof | Receipt, proven: Proven | None) -> str:
    key = printable(repr(checked.key.decode()))
    if isinstance(checked, Receipt):
        return f"{key} is in the tree of the receipt {checked.root.hex()}"
    if proven is None or not proven.present:
        return f"{key} is absent"
    parts = []
    if proven.value is not None and proven.author is not None:
        shown = printable(proven.value.decode("utf-8", "backslashreplace"))
        if len(shown) > _VALUE_CHARS_MAX:
            shown = f"{shown[:_VALUE_CHARS_MAX]}… ({len(proven.value)} bytes)"
        parts.append(f"is {shown}, written and sealed by {peer_id_of(proven.author)}")
    if checked.adds:
        parts.append(f"counts {checked.total} in {checked.adds} adds")
    return f"{key} {' and '.join(parts)},"


def _read(name: str) -> object:
    try:
        if name == "-":
            raw = sys.stdin.buffer.read(_FILE_BYTES_MAX + 1)
        else:
            with Path(name).open("rb") as file:
                raw = file.read(_FILE_BYTES_MAX + 1)
    except OSError as error:
        raise LatticeError("bad_request", f"cannot read {name}: {error.strerror}") from error
    if len(raw) > _FILE_BYTES_MAX:
        raise MalformedError(f"{name} is larger than any proof")
    try:
        data: object = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise MalformedError(f"{name} is no proof: it is not JSON ({error})") from error
    return data


def _moment(time_ms: int) -> str:
    try:
        return f"{datetime.fromtimestamp(time_ms / 1000, UTC):%Y-%m-%d %H:%M:%S} UTC"
    except (OverflowError, ValueError, OSError):  # a signed time may be any number
        return f"{time_ms} ms"
