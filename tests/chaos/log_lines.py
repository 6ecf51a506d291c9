"""The log of a node as a person reads it: which sentences, how often, and when.

Separate because the sentences are an interface of their own, and the file is read and not the node.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime

from lattice.testing.cluster import LocalNode


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line: its monotonic moment on this machine, and its text from the tag on."""

    at: float
    text: str


def lines_with(node: LocalNode, *parts: str) -> list[LogLine]:
    """The lines that hold each of `parts`."""
    ahead_s = time.time() - time.monotonic()
    found = []
    for line in node.log_text().splitlines():
        if all(part in line for part in parts):
            stamp, _, text = line.split(maxsplit=2)
            found.append(LogLine(datetime.fromisoformat(stamp).timestamp() - ahead_s, text))
    return found


def the_line(node: LocalNode, *parts: str) -> LogLine:
    """The only such line, and said once: a repetition would be counted in it."""
    found = lines_with(node, *parts)
    assert len(found) == 1, f"{node.name}: {parts} stands in the log {len(found)} times"
    assert "(repeated" not in found[0].text
    return found[0]
