"""How Hypothesis runs here: no deadline, since the machine may be busy and slowness is no failure."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile("lattice", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("lattice")
