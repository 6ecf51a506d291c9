"""A process of its own that uses a store, for the tests that kill it or break its disk.

Run as `python store_child.py DIRECTORY ENTRIES_MAX COMMITS`. It goes on with the commits
of `workload` where the store stands, up to so many, and prints each one's number as soon as it is
acknowledged.
After an error it prints the error's code, once for the commit and once for the next.
"""

from __future__ import annotations

import os
import sys
from itertools import islice
from pathlib import Path

from lattice.core.errors import LatticeError
from lattice.storage.datadir import open_store

# Not as tests.contracts: an installed package of another project may be called `tests`.
sys.path.insert(0, str(Path(__file__).parents[1] / "contracts"))
from ledgers import NETWORK, Ledger, workload


def say(word: str) -> None:
    os.write(1, f"{word}\n".encode())


def main(directory: str, entries_max: str, commits: str) -> None:
    store = open_store(Path(directory), NETWORK)
    done = store.meta("commit")
    say("open")
    failures = 0
    batches = islice(workload(Ledger(), int(entries_max)), int(commits))
    for number, batch in enumerate(batches):
        if done is not None and number <= int.from_bytes(done, "big"):
            continue
        try:
            store.commit(batch)
        except LatticeError as error:
            say(error.code)
            failures += 1
            if failures == 2:
                # What was committed before is still read.
                say(str(int.from_bytes(store.meta("commit") or b"", "big")))
                store.close()
                return
        else:
            say(str(number))
    store.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
