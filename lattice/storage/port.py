"""The port to durable storage.

Separate so that the node depends on a contract with one test suite, which the memory store and
the SQLite store both pass.
"""

from __future__ import annotations

from typing import Protocol

from ..core.rows import Batch, Reader


class Store(Reader, Protocol):
    """A Reader that can also commit.

    Reads and `commit` may run at the same time in different threads; there is one committer.
    """

    @property
    def in_line(self) -> bool:
        """Whether `commit` returns at once without blocking, so that no thread is needed (a
        simulated node must not use threads: the virtual clock would run on while one works)."""
        ...

    def commit(self, batch: Batch) -> None:
        """Apply the batch durably in one transaction.

        Raises LatticeError `no_space` when the disk is full (nothing of the batch is stored, a
        later commit may succeed) and `store_failed` when a write or sync failed (the store must
        be opened anew).
        """
        ...

    def free_bytes(self) -> int:
        """Free space on the file system of the store, in bytes."""
        ...

    def close(self) -> None: ...
