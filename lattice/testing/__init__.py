"""The testkit: simulated networks of real nodes, their weather and faults, and the oracle.

Separate from the product, which never imports it; public, so that whoever builds on Lattice can
test against networks that fail on command.
"""

from .invariants import Acknowledged, Monotone, Violation
from .network import ALL_KINDS, HTTP_KINDS, P2P_KINDS, Block, Climate, LargeDropped, Weather
from .profiles import Profile, draw_profile
from .scheduler import run_seeded
from .simulator import Outcome, simulate
from .world import Host, World, play

__all__ = [
    "World",
    "Host",
    "play",
    "run_seeded",
    "Climate",
    "Weather",
    "Block",
    "LargeDropped",
    "P2P_KINDS",
    "HTTP_KINDS",
    "ALL_KINDS",
    "Profile",
    "draw_profile",
    "simulate",
    "Outcome",
    "Acknowledged",
    "Monotone",
    "Violation",
]
