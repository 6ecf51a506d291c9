"""`python -m lattice`: the command line.

Separate because Python asks for a module of this name.
"""

from .cli.main import main

raise SystemExit(main())
