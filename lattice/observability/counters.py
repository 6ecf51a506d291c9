"""Counters and gauges by name, and their rendering as Prometheus text.

Separate, and an object that is passed around, so that two nodes in one process count apart and a
test can ask what rose. Nothing here is global.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

LABEL_SETS_MAX: Final = 64  # a metric's distinct label values; what comes later is counted as `other`
OVERFLOW: Final = "other"

_NAME: Final = re.compile(r"lattice_[a-z][a-z0-9_]*")
_LABEL: Final = re.compile(r"[a-z][a-z0-9_]*")
_DOC_ESCAPES: Final = str.maketrans({"\\": r"\\", "\n": r"\n"})
_ESCAPES: Final = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})


@dataclass(frozen=True, slots=True)
class Sample:
    """One number: `labels` in the order of the metric's label names."""

    name: str
    labels: tuple[tuple[str, str], ...]
    value: float


class _Metric:
    """A number per set of label values. A caller's mistake in labels raises ValueError at once."""

    kind: Literal["counter", "gauge"]

    def __init__(self, name: str, doc: str, labels: tuple[str, ...]) -> None:
        self.name = name
        self.doc = doc
        self.labels = labels
        self._values: dict[tuple[str, ...], float] = {} if labels else {(): 0.0}

    def value(self, **labels: str) -> float:
        """The present number; 0 for labels that were never seen."""
        return self._values.get(self._key(labels), 0.0)

    def total(self) -> float:
        """The sum over all labels."""
        return math.fsum(self._values.values())

    def samples(self) -> Iterator[Sample]:
        for key, value in sorted(self._values.items()):
            yield Sample(self.name, tuple(zip(self.labels, key, strict=True)), value)

    def _key(self, labels: dict[str, str]) -> tuple[str, ...]:
        if set(labels) != set(self.labels):
            raise ValueError(f"{self.name} takes the labels {self.labels}, not {tuple(labels)}")
        return tuple(str(labels[name]) for name in self.labels)

    def _slot(self, labels: dict[str, str]) -> tuple[str, ...]:
        key = self._key(labels)
        if key in self._values or len(self._values) < LABEL_SETS_MAX:
            return key
        return (OVERFLOW,) * len(self.labels)  # labels may come from peers: memory stays bounded


class Counter(_Metric):
    """A number that only rises."""

    kind = "counter"

    def add(self, amount: float = 1, **labels: str) -> None:
        if amount < 0:
            raise ValueError(f"{self.name} only rises")
        slot = self._slot(labels)
        self._values[slot] = self._values.get(slot, 0.0) + amount


class Gauge(_Metric):
    """A number that is set to what is true now."""

    kind = "gauge"

    def set(self, value: float, **labels: str) -> None:
        self._values[self._slot(labels)] = float(value)


class Counters:
    """The metrics of one node. Asking again for a name gives the same metric."""

    def __init__(self) -> None:
        self._metrics: dict[str, Counter | Gauge] = {}

    def counter(self, name: str, doc: str, labels: tuple[str, ...] = ()) -> Counter:
        """`name` starts with `lattice_`, is in base units and ends with `_total`."""
        if not name.endswith("_total"):
            raise ValueError(f"a counter's name ends with _total: {name}")
        metric = self._metric(Counter, name, doc, labels)
        assert isinstance(metric, Counter)
        return metric

    def gauge(self, name: str, doc: str, labels: tuple[str, ...] = ()) -> Gauge:
        """`name` starts with `lattice_`, is in base units and does not end with `_total`."""
        if name.endswith("_total"):
            raise ValueError(f"only a counter's name ends with _total: {name}")
        metric = self._metric(Gauge, name, doc, labels)
        assert isinstance(metric, Gauge)
        return metric

    def value(self, name: str, **labels: str) -> float:
        """The present number of a metric. Raises KeyError for a name that nobody asked for."""
        return self._metrics[name].value(**labels)

    def snapshot(self) -> dict[str, float]:
        """Every metric's sum over its labels, by name."""
        return {name: metric.total() for name, metric in sorted(self._metrics.items())}

    def render(self) -> str:
        """The Prometheus text exposition format, version 0.0.4."""
        lines: list[str] = []
        for name, metric in sorted(self._metrics.items()):
            lines.append(f"# HELP {name} {metric.doc.translate(_DOC_ESCAPES)}")
            lines.append(f"# TYPE {name} {metric.kind}")
            lines += [_render(sample) for sample in metric.samples()]
        return "\n".join(lines) + "\n" if lines else ""

    def _metric(
        self, kind: type[Counter] | type[Gauge], name: str, doc: str, labels: tuple[str, ...]
    ) -> Counter | Gauge:
        if not _NAME.fullmatch(name) or not all(_LABEL.fullmatch(label) for label in labels):
            raise ValueError(f"not a metric's name or labels: {name} {labels}")
        found = self._metrics.get(name)
        if found is None:
            found = self._metrics[name] = kind(name, doc, labels)
        elif not isinstance(found, kind) or found.labels != labels:
            raise ValueError(f"{name} exists with another kind or other labels")
        return found


def _render(sample: Sample) -> str:
    labels = ",".join(f'{name}="{value.translate(_ESCAPES)}"' for name, value in sample.labels)
    shown = int(sample.value) if sample.value.is_integer() else sample.value
    return f"{sample.name}{{{labels}}} {shown}" if labels else f"{sample.name} {shown}"
