"""The P2P lung over py-libp2p: the only package of Lattice that may import libp2p.

Not empty, unlike its neighbours: this line has to run before the first libp2p import of any module
here, and a package's own `__init__` is the one place that import sorting cannot move.
"""

from lattice.transport.p2p.fastecdsa_shim import install

install()
