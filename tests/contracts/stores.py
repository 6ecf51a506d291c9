"""Opening either store for the contract suite, and opening it again on the same disk."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from lattice.storage.datadir import open_store
from lattice.storage.memory import MemoryStore
from lattice.storage.port import Store

from .ledgers import NETWORK

Kind = Literal["memory", "sqlite"]
KINDS: tuple[Kind, ...] = ("memory", "sqlite")


class Opened:
    """A store, and what its disk holds after a clean end."""

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory
        self.store: Store = MemoryStore() if directory is None else open_store(directory, NETWORK)

    def reopen(self) -> Store:
        self.store.close()
        if isinstance(self.store, MemoryStore):
            self.store = self.store.reopened()
        else:
            assert self._directory is not None
            self.store = open_store(self._directory, NETWORK)
        return self.store


@contextmanager
def opened(kind: Kind) -> Iterator[Opened]:
    """A new store of one kind, closed at the end."""
    with TemporaryDirectory() as directory:
        made = Opened(None if kind == "memory" else Path(directory) / "data")
        try:
            yield made
        finally:
            made.store.close()
