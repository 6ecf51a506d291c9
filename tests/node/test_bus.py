"""The event bus alone: order, resuming, filters, what is lost and how it is told."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from lattice.core.errors import LatticeError
from lattice.core.failover_events import Alarm as AlarmCode
from lattice.core.failover_events import AlarmCleared, AlarmRaised, Liveness, PeerView
from lattice.node.bus import Bus, Event, Filter, Reader, parse_types
from lattice.node.watch import Watch
from lattice.schemas import AlarmEvent, EntryEvent, LostEvent, PeerEvent, PolicyEvent

BOOT = 0xABC
OTHER = f"{0xDEF:016x}-7"


def entry(*keys: str) -> EntryEvent:
    return EntryEvent("now", "id", "author", "epoch", 0, "1-0", list(keys), "local", None)


def policy(name: str) -> PolicyEvent:
    return PolicyEvent("now", name)


def number(event: Event) -> int:
    return int(event.id.partition("-")[2])


def drain(reader: Reader) -> list[Event]:
    found: list[Event] = []
    while reader.behind:
        found += reader.take_nowait()
    return found


def bus_with(count: int, **limits: int) -> Bus:
    bus = Bus(BOOT, **limits)
    for index in range(count):
        bus.publish_nowait(entry(f"k{index + 1}"))
    return bus


def test_a_new_reader_gets_what_comes_and_nothing_before() -> None:
    bus = bus_with(2)
    with bus.reader() as reader:
        assert not reader.behind
        bus.publish_nowait(entry("k3"))
        assert [number(event) for event in drain(reader)] == [3]
        assert drain(reader) == []


def test_resuming_gives_every_later_event_once() -> None:
    bus = bus_with(3000)
    with bus.reader(bus.id_of(1)) as reader:
        assert [number(event) for event in drain(reader)] == list(range(2, 3001))


def test_an_overrun_is_told_with_its_ends_and_only_once() -> None:
    bus = bus_with(10, events_max=4)
    with bus.reader(bus.id_of(2)) as reader:
        first, *rest = drain(reader)
        assert first.body == LostEvent("overrun", 4, bus.id_of(3), bus.id_of(6))
        assert (first.type, first.id) == ("lost", bus.id_of(6))
        assert [number(event) for event in rest] == [7, 8, 9, 10]
    with bus.reader(first.id) as resumed:
        assert [event.type for event in drain(resumed)] == ["entry"] * 4
    assert bus.statistics()["events_lost"] == 4


def test_the_last_that_is_held_is_not_lost() -> None:
    bus = bus_with(10, events_max=4)
    with bus.reader(bus.id_of(6)) as reader:
        assert [number(event) for event in drain(reader)] == [7, 8, 9, 10]
    with bus.reader(bus.id_of(5)) as reader:
        assert drain(reader)[0].body == LostEvent("overrun", 1, bus.id_of(6), bus.id_of(6))


def test_a_slow_reader_loses_in_the_middle_and_is_told() -> None:
    bus = bus_with(0, events_max=4)
    with bus.reader() as reader:
        bus.publish_nowait(entry("a"))
        assert len(drain(reader)) == 1
        for _ in range(9):
            bus.publish_nowait(entry("b"))
        lost, *rest = drain(reader)
        assert lost.body == LostEvent("overrun", 5, bus.id_of(2), bus.id_of(6))
        assert [number(event) for event in rest] == [7, 8, 9, 10]


@pytest.mark.parametrize(("published", "kept", "gone"), [(0, 100, 0), (3, 100, 0), (10, 4, 6)])
def test_an_id_of_another_process_is_told_as_unknown(published: int, kept: int, gone: int) -> None:
    bus = bus_with(published, events_max=kept)
    with bus.reader(OTHER) as reader:
        assert reader.behind
        lost, *rest = drain(reader)
        assert lost.body == LostEvent("restart", None, None, bus.id_of(gone))
        assert [number(event) for event in rest] == list(range(gone + 1, published + 1))
    with bus.reader(lost.id) as resumed:
        assert drain(resumed) == rest


@pytest.mark.parametrize("after", ["", "7", "x-1", f"{BOOT:016x}-", f"{BOOT:016x}-4", f"{BOOT:016x}--1", "é"])
def test_an_id_that_no_node_gave_is_refused(after: str) -> None:
    bus = bus_with(3)
    with pytest.raises(LatticeError) as refused, bus.reader(after):
        pass
    assert refused.value.code == "bad_request"
    with bus.reader(bus.id_of(3)) as reader:
        assert drain(reader) == []


def test_filters() -> None:
    bus = Bus(BOOT)
    for body in (entry("a/1", "b/1"), entry("b/2"), policy("http"), entry("a")):
        bus.publish_nowait(body)

    def seen(wanted: Filter) -> list[int]:
        with bus.reader(bus.id_of(0), wanted) as reader:
            return [number(event) for event in drain(reader)]

    assert seen(Filter()) == [1, 2, 3, 4]
    assert seen(Filter(prefix="a/")) == [1, 3]
    assert seen(Filter(parse_types("entry"), "b/")) == [1, 2]
    assert seen(Filter(parse_types(" policy , alarm"))) == [3]
    with pytest.raises(LatticeError, match="no event type 'nonsense'"):
        parse_types("entry,nonsense")


def test_a_loss_is_told_whatever_the_filter() -> None:
    bus = bus_with(5, events_max=2)
    with bus.reader(bus.id_of(0), Filter(parse_types("mode"))) as reader:
        assert [event.type for event in drain(reader)] == ["lost"]
        assert reader.position == bus.id_of(5)


def test_the_place_moves_past_what_the_filter_left_out() -> None:
    bus = bus_with(3000)
    with bus.reader(bus.id_of(0), Filter(prefix="none")) as reader:
        assert reader.take_nowait() == []
        assert reader.behind, "a narrow filter must give the loop a turn"
        assert drain(reader) == []
        assert reader.position == bus.id_of(3000)


def test_the_ring_is_bounded_in_bytes() -> None:
    bus = Bus(BOOT, bytes_max=64 * 1024)
    for _ in range(100):
        bus.publish_nowait(entry("k" * 1000))
    held = bus.statistics()
    assert held["events_held_bytes"] <= 64 * 1024
    assert 5 < held["events_held"] < 20
    bus.publish_nowait(entry(*["k" * 1024] * 256))
    assert bus.statistics()["events_held"] == 1


def test_a_chunk_is_bounded_in_bytes() -> None:
    bus = Bus(BOOT)
    for _ in range(10):
        bus.publish_nowait(entry("k" * 1000))
    with bus.reader(bus.id_of(0)) as reader:
        assert len(reader.take_nowait(bytes_max=10_000)) == 2
        assert len(drain(reader)) == 8


def test_readers_are_bounded_and_leave_their_place() -> None:
    bus = Bus(BOOT, readers_max=1)
    with bus.reader():
        with pytest.raises(LatticeError) as refused, bus.reader():
            pass
        assert refused.value.code == "too_many"
        assert bus.statistics()["event_streams"] == 1
    with pytest.raises(ZeroDivisionError), bus.reader():
        raise ZeroDivisionError
    held = bus.statistics()
    assert (held["event_streams"], held["event_streams_refused"]) == (0, 1)


async def test_waiting_ends_with_the_next_event_for_every_reader(autojump_clock: object) -> None:
    bus = Bus(BOOT)
    woken: list[str] = []

    async def follow(name: str) -> None:
        with bus.reader() as reader:
            await reader.wait()
            woken.append(f"{name} {number(drain(reader)[0])}")

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(follow, "one")
            nursery.start_soon(follow, "two")
            await trio.testing.wait_all_tasks_blocked()
            assert woken == []
            bus.publish_nowait(entry("a"))
    assert sorted(woken) == ["one 1", "two 1"]


@given(st.lists(st.integers(0, 6), max_size=40), st.integers(1, 5), st.booleans())
def test_nothing_is_missed_in_silence(steps: list[int], kept: int, reconnects: bool) -> None:
    """Publish some, read some, perhaps reconnect: seen and told-as-lost together are everything, once."""
    bus = Bus(BOOT, events_max=kept)
    last = bus.id_of(0)
    covered: list[int] = []
    for step in steps:
        for _ in range(step):
            bus.publish_nowait(entry("k"))
        with bus.reader(last) as reader:
            for event in reader.take_nowait() if reconnects else drain(reader):
                if isinstance(event.body, LostEvent):
                    assert event.body.first is not None
                    first = int(event.body.first.partition("-")[2])
                    assert event.body.count == number(event) - first + 1
                    covered += range(first, number(event) + 1)
                else:
                    covered.append(number(event))
                last = event.id
    with bus.reader(last) as reader:
        assert not reader.behind
    assert covered == list(range(1, sum(steps) + 1))


def watched() -> tuple[Bus, Watch]:
    bus = Bus(BOOT)
    return bus, Watch(bus, wall_ms=lambda: 1_767_605_400_120, name_of=lambda peer: peer.upper())


def bodies(bus: Bus) -> list[object]:
    with bus.reader(bus.id_of(0)) as reader:
        return [event.body for event in drain(reader)]


def test_alarms_are_told_when_they_change() -> None:
    bus, watch = watched()
    at = "2026-01-05T09:30:00.120Z"
    watch.raised("no_space", "1 byte")
    watch.raised("no_space", "1 byte")
    watch.monitor_alarm(AlarmRaised(AlarmCode.ONE_LEG, "one", "WARNING"))
    watch.cleared("no_space")
    watch.cleared("no_space")
    watch.monitor_alarm(AlarmCleared(AlarmCode.ONE_LEG))
    assert bodies(bus) == [
        AlarmEvent(at, "no_space", True, "ERROR", "1 byte"),
        AlarmEvent(at, "one_leg", True, "WARNING", "one"),
        AlarmEvent(at, "no_space", False, "ERROR", "1 byte"),
        AlarmEvent(at, "one_leg", False, "WARNING", "one"),
    ]


def test_peers_are_told_when_they_change() -> None:
    bus, watch = watched()

    def view(liveness: Liveness, *, heard: bool) -> PeerView:
        return PeerView("p", liveness, False, heard, False, 0.0, None, None, 15.0, {})

    for views in (
        [],
        [view(Liveness.DEAD, heard=False)],
        [view(Liveness.DEAD, heard=False)],
        [view(Liveness.ALIVE, heard=True)],
        [view(Liveness.SUSPECT, heard=True)],
        [view(Liveness.DEAD, heard=False)],
        [],
    ):
        watch.peers(views)
    told = [
        (body.peer, body.name, body.change, body.state) for body in bodies(bus) if isinstance(body, PeerEvent)
    ]
    assert told == [
        ("p", "P", "known", "dead"),
        ("p", "P", "heard", "alive"),
        ("p", "P", "state", "alive"),
        ("p", "P", "state", "suspect"),
        ("p", "P", "lost", "dead"),
        ("p", "P", "state", "dead"),
        ("p", "P", "forgotten", "dead"),
    ]
