"""The settings of a node, from one table of every LATTICE_* name.

Separate so that nothing else looks at the environment: whoever needs a setting is handed it.
"""

from .settings import LogFormat, LogLevel, Origin, Policy, Settings, Source, absolute, load
from .table import PREFIX, SETTINGS, Setting, closest

__all__ = [
    "Settings",
    "Source",
    "load",
    "absolute",
    "PREFIX",
    "SETTINGS",
    "Setting",
    "closest",
    "LogFormat",
    "LogLevel",
    "Origin",
    "Policy",
]
