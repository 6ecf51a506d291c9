"""Counters and gauges: what they take, what they refuse, how they are rendered."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from lattice.observability.counters import LABEL_SETS_MAX, Counters


def test_a_counter_rises() -> None:
    counters = Counters()
    polls = counters.counter("lattice_http_polls_total", "HTTP polls.")
    polls.add()
    polls.add(2)
    assert polls.value() == 3
    assert counters.value("lattice_http_polls_total") == 3
    with pytest.raises(ValueError, match="only rises"):
        polls.add(-1)


def test_a_gauge_is_what_it_was_set_to() -> None:
    gauge = Counters().gauge("lattice_peers", "Peers heard.", ("lung",))
    gauge.set(3, lung="p2p")
    gauge.set(1, lung="http")
    gauge.set(2, lung="p2p")
    assert gauge.value(lung="p2p") == 2
    assert gauge.total() == 3
    assert gauge.value(lung="none") == 0


def test_the_same_name_is_the_same_metric_in_one_registry_only() -> None:
    first, second = Counters(), Counters()
    first.counter("lattice_a_total", "A.").add()
    first.counter("lattice_a_total", "A.").add()
    assert first.value("lattice_a_total") == 2
    assert second.counter("lattice_a_total", "A.").value() == 0


def test_mistakes_are_loud() -> None:
    counters = Counters()
    counters.counter("lattice_a_total", "A.", ("kind",))
    with pytest.raises(ValueError, match="ends with _total"):
        counters.counter("lattice_a", "A.")
    with pytest.raises(ValueError, match="ends with _total"):
        counters.gauge("lattice_a_total", "A.")
    with pytest.raises(ValueError, match="other labels"):
        counters.counter("lattice_a_total", "A.", ("other",))
    with pytest.raises(ValueError, match="not a metric's name"):
        counters.counter("a_total", "A.")
    with pytest.raises(ValueError, match="takes the labels"):
        counters.counter("lattice_a_total", "A.", ("kind",)).add(sort="x")
    with pytest.raises(KeyError):
        counters.value("lattice_b_total")


def test_labels_from_outside_do_not_fill_the_memory() -> None:
    counter = Counters().counter("lattice_refused_total", "Refused.", ("peer",))
    for number in range(1000):
        counter.add(peer=str(number))
    assert len(list(counter.samples())) == LABEL_SETS_MAX + 1
    assert counter.total() == 1000
    assert counter.value(peer="other") == 1000 - LABEL_SETS_MAX


def test_prometheus_reads_what_is_rendered() -> None:
    counters = Counters()
    counters.counter("lattice_refused_total", "Refused\nentries.", ("reason",)).add(5, reason='a "b"\\\nc')
    counters.gauge("lattice_wait_seconds", "Wait.").set(0.25)
    families = {family.name: family for family in text_string_to_metric_families(counters.render())}
    (refused,) = families["lattice_refused"].samples
    assert refused.labels == {"reason": 'a "b"\\\nc'}
    assert refused.value == 5
    assert families["lattice_wait_seconds"].samples[0].value == 0.25
    assert Counters().render() == ""


def test_a_snapshot_is_the_sums_by_name() -> None:
    counters = Counters()
    counters.counter("lattice_b_total", "B.", ("kind",)).add(2, kind="x")
    counters.counter("lattice_b_total", "B.", ("kind",)).add(3, kind="y")
    counters.gauge("lattice_a", "A.").set(1)
    assert counters.snapshot() == {"lattice_a": 1, "lattice_b_total": 5}
