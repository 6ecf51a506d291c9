"""A stand-in for fastecdsa, which libp2p imports and a Lattice node never uses.

Separate because it must run before libp2p is imported and may therefore import nothing of it.
fastecdsa has no wheel and needs a compiler; libp2p uses it only for P-256 keys and the secio
handshake, and an Ed25519 node that speaks Noise alone does neither.
"""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType
from typing import Never

_SUBMODULES = ("curve", "keys", "point", "encoding", "encoding.sec1", "encoding.util")


class FastecdsaMissingError(NotImplementedError):
    """P-256 was asked for; this node speaks Ed25519 only."""


def _refuse(*_args: object, **_kwargs: object) -> Never:
    raise FastecdsaMissingError("P-256 needs fastecdsa, which Lattice does not install: use Ed25519 keys")


class _Refusing(type):
    """A class that exists, because libp2p names it in annotations, and refuses everything else."""

    def __getattr__(cls, name: str) -> Never:
        if name.startswith("__"):
            raise AttributeError(name)
        _refuse()

    def __call__(cls, *_args: object, **_kwargs: object) -> Never:
        _refuse()


class _Absent(metaclass=_Refusing):
    """Curve, Point and SEC1Encoder alike."""


class _StandIn(ModuleType):
    """A module whose unknown names raise when they are looked up."""

    def __getattr__(self, name: str) -> Never:
        if name.startswith("__"):  # the import system and inspect probe for these
            raise AttributeError(name)
        _refuse()


def install() -> bool:
    """Put the stand-in into `sys.modules` unless the real library is there; True when it was put."""
    if "fastecdsa" in sys.modules or importlib.util.find_spec("fastecdsa") is not None:
        return False
    root = _StandIn("fastecdsa")
    root.__path__ = []
    modules: dict[str, ModuleType] = {"fastecdsa": root}
    for name in _SUBMODULES:
        module = _StandIn(f"fastecdsa.{name}")
        module.__path__ = []
        modules[module.__name__] = module
        parent, _, leaf = module.__name__.rpartition(".")
        setattr(modules[parent], leaf, module)
    # What libp2p resolves while it is being imported: annotations, and one function by name.
    vars(modules["fastecdsa.curve"])["Curve"] = _Absent
    vars(modules["fastecdsa.point"])["Point"] = _Absent
    vars(modules["fastecdsa.encoding.sec1"])["SEC1Encoder"] = _Absent
    vars(modules["fastecdsa.encoding.util"])["int_bytelen"] = _refuse
    sys.modules.update(modules)
    return True
