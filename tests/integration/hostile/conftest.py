"""Makes libp2p importable before any test module here imports it."""

import lattice.transport.p2p  # noqa: F401 - puts the stand-in for fastecdsa in place
