"""The body of an atomic batch: from JSON to op drafts and conditions, checked by hand.

Separate because it is the hot path of writers: 256 ops are parsed once, and no model is built of
what becomes bytes at once.
"""

from __future__ import annotations

from typing import Any, Final

from ..core.draft import Condition, OpDraft
from ..core.entry import OpKind, Version
from ..core.errors import LatticeError, MalformedError
from ..core.limits import AMOUNT_MAX, ENTRY_BYTES_MAX, NAMES_MAX, OPS_MAX
from ..writable import check_key, pack, parse_json
from .request import match_condition

_CONDITIONAL: Final = frozenset({"over", "if_match", "if_none_match"})
_PUT: Final = frozenset({"op", "key", "value"})
_DELETE: Final = frozenset({"op", "key"})
_ADD: Final = frozenset({"op", "key", "amount"})
# Each op costs at least its kind, its key and the lengths around them in the entry.
_OP_BYTES_MIN: Final = 4 + 3 + 2 + 4

Batch = tuple[list[OpDraft], list[Condition]]


def parse_batch(body: bytes) -> Batch:
    """`{"ops": [...]}` as drafts and conditions.

    Raises `bad_request` (with the number of the op), `bad_key`, `bad_value`, `too_large`.
    """
    parsed = parse_json(body, "body")
    if not isinstance(parsed, dict) or parsed.keys() != {"ops"} or not isinstance(parsed["ops"], list):
        raise LatticeError("bad_request", 'The body is an object with "ops", a list, and nothing else.')
    ops = parsed["ops"]
    if not ops:
        raise LatticeError("bad_request", "A batch has at least one op.")
    if len(ops) > OPS_MAX:
        raise LatticeError(
            "too_large",
            f"A batch has at most {OPS_MAX} ops, not {len(ops)}; it is never split: send several.",
        )
    drafts: list[OpDraft] = []
    conditions: list[Condition] = []
    size = 0
    for index, op in enumerate(ops):
        draft = _op(op, index, conditions)
        size += len(draft.key) + len(draft.value) + _OP_BYTES_MIN
        drafts.append(draft)
    if size > ENTRY_BYTES_MAX:
        raise LatticeError(
            "too_large",
            f"The batch is over {ENTRY_BYTES_MAX} bytes; it is never split: send several.",
        )
    return drafts, conditions


def _op(op: object, index: int, conditions: list[Condition]) -> OpDraft:
    if type(op) is not dict:
        raise _bad(index, "is not an object")
    kind = op.get("op")
    text = op.get("key")
    if type(text) is not str:
        raise _bad(index, 'has no "key", a string')
    key = check_key(text, f"key of op {index}")
    if kind == "put":
        over = None if op.keys() == _PUT else _conditional(op, _PUT, index, key, conditions)
        return OpDraft(OpKind.PUT, key, pack(op["value"], f"value of op {index}"), over)
    if kind == "delete":
        over = None if op.keys() == _DELETE else _conditional(op, _DELETE, index, key, conditions)
        return OpDraft(OpKind.DELETE, key, b"", over)
    if kind == "add":
        if op.keys() != _ADD:
            raise _bad(index, f"has the fields {sorted(op)}; an add has op, key and amount")
        amount = op["amount"]
        if type(amount) is not int or abs(amount) > AMOUNT_MAX:
            raise _bad(index, f"has an amount that is not an integer within ±{AMOUNT_MAX}")
        return OpDraft(OpKind.ADD, key, b"", None, amount)
    raise _bad(index, f"is {str(kind)[:50]!r}; an op is put, delete or add")


def _conditional(
    op: dict[str, Any],
    needed: frozenset[str],
    index: int,
    key: bytes,
    conditions: list[Condition],
) -> tuple[Version, ...] | None:
    """The versions of `over`; `if_match` and `if_none_match` go into `conditions`."""
    given = op.keys()
    if not needed <= given:
        raise _bad(index, f"lacks {', '.join(sorted(needed - given))}")
    unknown = given - needed - _CONDITIONAL
    if unknown:
        raise _bad(index, f"has unknown fields: {', '.join(sorted(unknown))[:100]}")
    match = op.get("if_match")
    if match is not None:
        if type(match) is not str:
            raise _bad(index, "has an if_match that is not a string")
        conditions.append(match_condition(match, key))
    if "if_none_match" in op:
        if op["if_none_match"] != "*":
            raise _bad(index, "has an if_none_match other than *")
        conditions.append(Condition(key, absent=True))
    over = op.get("over")
    if over is None:
        return None
    if type(over) is not list or len(over) > NAMES_MAX:
        raise _bad(index, f'has an "over" that is not a list of at most {NAMES_MAX} versions')
    try:
        return tuple(Version.parse(name) if type(name) is str else _no_version(name) for name in over)
    except MalformedError as error:
        raise _bad(index, error.message) from error


def _no_version(name: object) -> Version:
    raise MalformedError(f"{str(name)[:50]!r} is not a version")


def _bad(index: int, text: str) -> LatticeError:
    return LatticeError("bad_request", f"Op {index} {text}.")
