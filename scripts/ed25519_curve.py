"""Points of edwards25519 by the formulas of RFC 8032, section 5.1, slow and in the open.

Separate because it exists to make the keys and signatures that no library will make: of small or
mixed order, with an S that is too large. Nothing but the making of test vectors uses it.
"""

from __future__ import annotations

import hashlib
from typing import Final

Point = tuple[int, int]

P: Final = 2**255 - 19
ORDER: Final = 2**252 + 27742317777372353535851937790883648493
D: Final = -121665 * pow(121666, P - 2, P) % P
IDENTITY: Final[Point] = (0, 1)


def x_of(y: int, sign: int) -> int | None:
    """The x with this sign bit, or None when y is not on the curve."""
    square = (y * y - 1) * pow(D * y * y + 1, P - 2, P) % P
    x = pow(square, (P + 3) // 8, P)
    if (x * x - square) % P:
        x = x * pow(2, (P - 1) // 4, P) % P
    if (x * x - square) % P or (x == 0 and sign):
        return None
    return P - x if x & 1 != sign else x


def add(a: Point, b: Point) -> Point:
    k = D * a[0] * b[0] * a[1] * b[1] % P
    x = (a[0] * b[1] + b[0] * a[1]) * pow(1 + k, P - 2, P)
    y = (a[1] * b[1] + a[0] * b[0]) * pow(1 - k, P - 2, P)
    return x % P, y % P


def multiply(k: int, point: Point) -> Point:
    result = IDENTITY
    while k:
        if k & 1:
            result = add(result, point)
        point = add(point, point)
        k >>= 1
    return result


def encode(point: Point) -> bytes:
    return (point[1] | (point[0] & 1) << 255).to_bytes(32, "little")


def base_point() -> Point:
    y = 4 * pow(5, P - 2, P) % P
    x = x_of(y, 0)
    if x is None:
        raise AssertionError("the base point is not on the curve")
    return x, y


def small_points() -> list[Point]:
    """The eight points whose order divides 8, as multiples of one of order 8."""
    y = 2
    while True:
        x = x_of(y, 0)
        if x is not None:
            torsion = multiply(ORDER, (x, y))
            if multiply(4, torsion) != IDENTITY:
                return [multiply(k, torsion) for k in range(8)]
        y += 1


def secret_scalar(seed: bytes) -> int:
    scalar = int.from_bytes(hashlib.sha512(seed).digest()[:32], "little")
    return scalar & ((1 << 254) - 8) | 1 << 254


def challenge(r: bytes, public_key: bytes, message: bytes) -> int:
    return int.from_bytes(hashlib.sha512(r + public_key + message).digest(), "little") % ORDER
