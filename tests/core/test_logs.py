"""The form of a log line, what is hidden, what is counted, and sinks that fail."""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from lattice.observability import logs as module
from lattice.observability.logs import REDACTED, Logs, opened_logs
from lattice.observability.repeats import SENTENCES_MAX, WINDOW_LINES_MAX, WINDOW_S

NOON = 1_795_167_917.1239  # 2026-11-20T09:45:17.123Z


class Collected(logging.Handler):
    """A sink that keeps the lines."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())

    def texts(self) -> list[str]:
        """The lines without their time stamps."""
        return [line.split(" ", 1)[1] for line in self.lines]


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def sink() -> Collected:
    return Collected()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def log(sink: Collected, clock: Clock) -> Logs:
    return Logs([sink], level="DEBUG", now_s=lambda: NOON, monotonic_s=clock)


def test_the_form_of_a_line(log: Logs, sink: Collected) -> None:
    log.info("P2P_HEARTBEAT", "Peers found, system stable", peers=3, mode="P2P", wait_s=1.5, ok=True)
    (line,) = sink.lines
    assert line == (
        "2026-11-20T09:45:17.123Z INFO [P2P_HEARTBEAT] Peers found, system stable"
        " peers=3 mode=P2P wait_s=1.5 ok=true"
    )


def test_levels(sink: Collected) -> None:
    log = Logs([sink], level="WARNING")
    log.debug("SYNC", "a")
    log.info("SYNC", "b")
    log.warning("SYNC", "c")
    log.error("ALERT", "d")
    assert sink.texts() == ["WARNING [SYNC] c", "ERROR [ALERT] d"]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("plain", "x=plain"),
        ("/ip4/192.0.2.7/tcp/9000", "x=/ip4/192.0.2.7/tcp/9000"),
        ("two words", 'x="two words"'),
        ("", 'x=""'),
        ("a=b", 'x="a=b"'),
        ('say "no" \\', 'x="say \\"no\\" \\\\"'),
        ("a\nFAKE line", 'x="a\\nFAKE line"'),
        ("a\r\x1b[31m\u2028\x00", 'x="a\\r\\x1b[31m\\u2028\\x00"'),
        ("grün", 'x="grün"'),
        (b"\x01\xff", "x=01ff"),
        (("b", "a"), "x=b,a"),
        ({"b", "a"}, "x=a,b"),
        (0.1234567, "x=0.123"),
        (60.0, "x=60"),
        (0, "x=0"),
    ],
)
def test_a_field_is_always_one_word_of_one_line(
    log: Logs, sink: Collected, value: object, shown: str
) -> None:
    log.info("API", "m", x=value)
    assert sink.texts() == [f"INFO [API] m {shown}"]


def test_a_field_without_a_value_is_left_out_and_a_long_one_is_cut(log: Logs, sink: Collected) -> None:
    log.info("API", "m", gone=None, long="y" * 10_000)
    assert "gone" not in sink.lines[0]
    assert len(sink.lines[0]) < 2200


@pytest.mark.parametrize(
    "name", ["ticket", "network_key", "api_token", "Authorization", "seed", "join", "password"]
)
def test_the_value_of_a_secret_field_is_never_written(log: Logs, sink: Collected, name: str) -> None:
    log.info("STARTUP", "m", **{name: "hunter2-hunter2"})
    assert (
        sink.texts() == [f'INFO [STARTUP] m {name}="{REDACTED}"'.replace('"', "")]
        or REDACTED in sink.lines[0]
    )
    assert "hunter2" not in sink.lines[0]


def test_a_known_secret_is_hidden_wherever_it_turns_up(log: Logs, sink: Collected) -> None:
    log.hide("lattice1secretticket")
    log.hide("a")  # too short to be told from ordinary text
    log.warning("STARTUP", "bad lattice1secretticket", text="x lattice1secretticket y")
    log.defect("STARTUP", "m", ValueError("lattice1secretticket"))
    assert not [line for line in sink.lines if "secretticket" in line]
    assert sink.texts()[0] == f'WARNING [STARTUP] bad {REDACTED} text="x {REDACTED} y"'


def test_a_defect_carries_its_trace_on_one_line(log: Logs, sink: Collected) -> None:
    try:
        raise KeyError("lost")
    except KeyError as error:
        log.defect("SYNC", "The task ended", error, peer="12D3")
    (line,) = sink.texts()
    assert line.startswith(
        'ERROR [SYNC] The task ended peer=12D3 error="KeyError: \'lost\'" trace="Traceback'
    )
    assert "test_logs.py" in line
    assert "\n" not in line


def test_json(sink: Collected) -> None:
    log = Logs([sink], form="json", now_s=lambda: NOON)
    log.info("LEDGER", 'a "b"\n', level="x", ticket="t", key="grün")
    assert json.loads(sink.lines[0]) == {
        "time": "2026-11-20T09:45:17.123Z",
        "level": "INFO",
        "tag": "LEDGER",
        "message": 'a "b"\n',
        "field_level": "x",
        "ticket": REDACTED,
        "key": "grün",
    }
    assert "\n" not in sink.lines[0]


def test_a_repeated_line_is_counted_and_summed_up_when_the_tag_says_something_else(
    log: Logs, sink: Collected
) -> None:
    for _ in range(5):
        log.info("HTTP_SYNC", "Monitoring 3 peer node(s)", peers=3)
    log.info("SYNC", "another tag")
    log.info("HTTP_SYNC", "done")
    assert sink.texts() == [
        "INFO [HTTP_SYNC] Monitoring 3 peer node(s) peers=3",
        "INFO [SYNC] another tag",
        "INFO [HTTP_SYNC] Monitoring 3 peer node(s) (repeated 4 times) peers=3",
        "INFO [HTTP_SYNC] done",
    ]


def test_a_change_and_the_way_back_are_three_lines(log: Logs, sink: Collected) -> None:
    for sentence in ("Peers found, system stable", "No peers detected, starting 60s timer") * 2:
        log.info("P2P_HEARTBEAT", sentence)
    assert len(sink.lines) == 4


def test_other_fields_are_another_line(log: Logs, sink: Collected) -> None:
    log.info("ALERT", "peer is dead", peer="a")
    log.info("ALERT", "peer is dead", peer="b")
    assert len(sink.lines) == 2


def test_what_goes_on_for_ever_is_one_line_a_minute(log: Logs, sink: Collected, clock: Clock) -> None:
    for _ in range(61):
        log.info("HTTP_SYNC", "Monitoring 3 peer node(s)")
        clock.now_s += 10
    sums = [line for line in sink.texts() if "repeated" in line]
    assert len(sink.lines) == 1 + len(sums)
    assert 9 <= len(sums) <= 11
    assert sink.texts()[1].endswith("(repeated 5 times)")


def test_the_sum_comes_at_the_end_of_the_minute_though_nothing_is_said(
    log: Logs, sink: Collected, clock: Clock
) -> None:
    log.info("API", "m")
    log.info("API", "m")
    clock.now_s += WINDOW_S - 1
    log.settle()
    assert len(sink.lines) == 1
    clock.now_s += 1
    log.settle()
    assert sink.texts()[1:] == ["INFO [API] m (repeated 1 time)"]


def test_after_a_quiet_minute_the_same_line_is_news(log: Logs, sink: Collected, clock: Clock) -> None:
    log.info("API", "m")
    clock.now_s += WINDOW_S
    log.info("API", "m")
    assert sink.texts() == ["INFO [API] m", "INFO [API] m"]


def test_a_flood_of_one_sentence_with_changing_fields_is_bounded(
    log: Logs, sink: Collected, clock: Clock
) -> None:
    for number in range(1000):
        log.warning("SYNC", "envelope refused", peer=number)
    assert len(sink.lines) == WINDOW_LINES_MAX
    clock.now_s += WINDOW_S
    log.settle()
    assert f"(repeated {1000 - WINDOW_LINES_MAX} times)" in sink.lines[-1]


def test_the_number_of_sentences_remembered_is_bounded(log: Logs, sink: Collected) -> None:
    for number in range(3 * SENTENCES_MAX):
        log.debug("LIBRARY", f"sentence {number}")
    assert len(sink.lines) == 3 * SENTENCES_MAX
    assert len(log._repeats._topics) == SENTENCES_MAX


def test_closing_says_what_was_held_back(log: Logs, sink: Collected) -> None:
    log.info("API", "m")
    log.info("API", "m")
    log.close()
    assert sink.texts()[1:] == ["INFO [API] m (repeated 1 time)"]


def test_a_sink_without_space_loses_lines_and_never_raises(sink: Collected) -> None:
    class Full(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise OSError(28, "No space left on device")

    log = Logs([Full(), sink])
    log.info("API", "m")
    assert log.lost == 1
    assert len(sink.lines) == 1


@pytest.fixture
def console() -> Iterator[io.StringIO]:
    with io.StringIO() as stream:
        yield stream


def test_console_and_file_hold_the_same(tmp_path: Path, console: io.StringIO) -> None:
    with opened_logs("nodeA", tmp_path / "logs", console=console) as log:
        log.info("STARTUP", "P2P started successfully")
    text = (tmp_path / "logs" / "nodeA.log").read_text()
    assert text == console.getvalue()
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z INFO \[STARTUP\] P2P started successfully\n", text
    )


def test_the_file_is_rotated(tmp_path: Path, console: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FILE_BYTES_MAX", 1000)
    with opened_logs("nodeA", tmp_path, console=console) as log:
        for number in range(300):
            log.info("API", f"sentence {number}")
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["nodeA.log", *(f"nodeA.log.{number}" for number in range(1, 6))]
    assert all(path.stat().st_size <= 1000 for path in tmp_path.iterdir())


def test_a_closed_console_does_not_stop_the_file(tmp_path: Path) -> None:
    stream = io.StringIO()
    with opened_logs("nodeA", tmp_path, console=stream) as log:
        stream.close()
        log.info("API", "m")
        assert log.lost == 1
    assert "[API] m" in (tmp_path / "nodeA.log").read_text()


@pytest.mark.parametrize(("level", "lines"), [("DEBUG", 1), ("INFO", 0)])
def test_what_libraries_say_is_debug(tmp_path: Path, console: io.StringIO, level: str, lines: int) -> None:
    library = logging.getLogger("hypercorn.error")
    with opened_logs("nodeA", tmp_path, level=level, console=console):
        library.warning("%s of %s", "trouble", "a\nlibrary")
    library.warning("after the end")
    text = console.getvalue()
    assert text.count("\n") == lines
    if lines:
        assert "DEBUG [LIBRARY] trouble of a\\nlibrary library=hypercorn.error severity=WARNING" in text


def test_two_nodes_in_one_process_log_apart(tmp_path: Path) -> None:
    first, second = io.StringIO(), io.StringIO()
    with opened_logs("a", tmp_path, console=first) as a, opened_logs("b", tmp_path, console=second) as b:
        a.info("API", "from a")
        b.info("API", "from b")
    assert "from b" not in first.getvalue()
    assert "from a" not in second.getvalue()


def test_a_standard_logger_speaks_under_its_tag(log: Logs, sink: Collected) -> None:
    standard = log.standard("SYNC", "p2p")
    standard.debug("%s left", "peer")
    standard.error("bad %d", "number")
    assert sink.texts() == ["DEBUG [SYNC] peer left", "ERROR [SYNC] bad %d"]
