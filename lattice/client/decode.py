"""From the JSON of an answer to the dataclass of schemas.py that describes it.

Separate so that the client needs no model library: it starts in a fraction of the time.
"""

from __future__ import annotations

import types
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from ..core.errors import LatticeError

T = TypeVar("T")


def decode(shape: type[T], data: object) -> T:
    """`data` as a `shape`. Fields that it does not know are ignored: the node may be newer.

    Raises LatticeError `unreachable` when required fields are missing: no Lattice node said this.
    """
    return cast(T, _decode(shape, data))


def _decode(shape: Any, data: Any) -> Any:  # noqa: ANN401 - the shape decides
    if is_dataclass(shape):
        return _decode_fields(shape, data)
    origin = get_origin(shape)
    if origin in (Union, types.UnionType):
        if data is None:
            return None
        inner = [one for one in get_args(shape) if one is not types.NoneType]
        return _decode(inner[0], data) if len(inner) == 1 else data
    if origin is list and isinstance(data, list):
        (item,) = get_args(shape)
        return [_decode(item, one) for one in data]
    return data


def _decode_fields(shape: Any, data: Any) -> Any:  # noqa: ANN401 - the shape decides
    hints = get_type_hints(shape)
    given: dict[str, Any] = {}
    for one in fields(shape):
        if isinstance(data, dict) and one.name in data:
            given[one.name] = _decode(hints[one.name], data[one.name])
        elif one.default is MISSING and one.default_factory is MISSING:
            raise LatticeError(
                "unreachable",
                f"the answer has no {one.name!r}, so it is not from a Lattice node; check the address",
            )
    return shape(**given)
