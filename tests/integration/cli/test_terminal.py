"""What is drawn on a terminal and nowhere else: the bar of a long command, the table of `lattice dev`."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path

import pytest

from lattice.cli.progress import Progress
from lattice.core.draft import OpDraft
from lattice.core.entry import OpKind
from lattice.testing.cluster import wait_for
from tests.integration.cli.cli_kit import Shell
from tests.integration.cli.test_carrying import hand

if sys.platform == "win32":
    pytest.skip("pseudo-terminals", allow_module_level=True)
else:
    import termios

    from tests.integration.cli.terminal_kit import CTRL_C, OnTerminal, Screen

pytestmark = pytest.mark.slow

FULL = "[####################] 100 %"


def on_terminal(shell: Shell, *arguments: str, columns: int = 120) -> OnTerminal:
    return OnTerminal(*arguments, "--env-file", str(shell.env_file), environ={}, columns=columns)


def bars(written: str) -> list[str]:
    """Each drawing of the bar, in order: every one begins by wiping the line."""
    return re.findall(r"\r\x1b\[K(\[[#.]{20}\][^\r\n\x1b]*)", written)


@pytest.mark.parametrize("form", ["parcel", "lines"])
def test_an_export_draws_its_bar_and_wipes_it(form: str, lonely_shell: Shell, tmp_path: Path) -> None:
    with hand(lonely_shell) as store:
        for number in range(5):
            store.writes(OpDraft(OpKind.PUT, b"k/%d" % number, b"1"))
    sealed = ["--sealed"] if form == "parcel" else []
    what = "entries" if form == "parcel" else "keys"
    with on_terminal(lonely_shell, "export", *sealed, "--out", str(tmp_path / "out")) as it:
        assert it.wait() == 0
        assert bars(it.text) == [f"{FULL}  5 of 5 {what} exported"]
        (said,) = [line for line in it.screen() if line]
        assert said.startswith(f"lattice: 5 {what} exported")


def test_an_import_draws_its_bar_and_wipes_it(shell: Shell, tmp_path: Path) -> None:
    file = tmp_path / "facts.jsonl"
    file.write_bytes(b"".join(b'{"op":"put","key":"k/%03d","value":1}\n' % number for number in range(600)))
    with on_terminal(shell, "import", str(file)) as it:
        assert it.wait() == 0
        line_bytes = file.stat().st_size // 600
        # The line that opens the second group has been read when the first is written.
        done = f"{257 * line_bytes} of {600 * line_bytes} bytes read"
        assert bars(it.text)[0] == f"[########............] 42 %  {done}"
        assert [line for line in it.screen() if line] == ["600 written, 0 repeated"]


@contextmanager
def standard_error_on_a_terminal(columns: int) -> Iterator[Callable[[str], str]]:
    """Within the block `sys.stderr` is a terminal; the function reads what is written on it up to a word."""
    master, slave = os.openpty()
    termios.tcsetwinsize(master, (40, columns))

    def written_to(end: str) -> str:
        written = b""
        while not written.endswith(end.encode()):  # a terminal hands it over in parts
            written += os.read(master, 65_536)
        return written.decode()

    try:
        with os.fdopen(slave, "w") as stream, redirect_stderr(stream):
            yield written_to
    finally:
        os.close(master)


def test_the_bar_never_wraps_and_leaves_its_line_to_a_complaint() -> None:
    with standard_error_on_a_terminal(30) as written_to:
        with pytest.raises(ZeroDivisionError), Progress("things done") as progress:
            progress.show(1, 3)
            progress.show(2, 3)  # so soon after the first it is not drawn
            progress.show(3, 3)
            raise ZeroDivisionError
        print("lattice: why", file=sys.stderr, flush=True)
        written = written_to("why\r\n")
    assert bars(written) == ["[######..............] 33 %  1 of 3"[:29], f"{FULL}  3 of 3"[:29]]
    screen = Screen(30, 40)
    screen.write(written)
    assert screen.lines == ["lattice: why", ""]


def test_the_table_of_a_cluster_is_drawn_over_until_ctrl_c(tmp_path: Path) -> None:
    with OnTerminal("dev", "2", environ={"TMPDIR": str(tmp_path)}) as it:

        def rows() -> list[str]:
            assert it.process.poll() is None, it.text
            return [line for line in it.screen() if re.match(r"node[AB] +127\.0\.0\.1:\d+ +P2P ", line)]

        wait_for("both nodes stand in the table", lambda: len(rows()) == 2, within_s=60)
        drawn = it.text.count("STATE ROOT")
        wait_for("it is drawn again", lambda: it.text.count("STATE ROOT") > drawn + 1, within_s=20)
        assert len(rows()) == 2
        assert sum("STATE ROOT" in line for line in it.screen()) == 1
        pids = [int(path.read_text()) for path in tmp_path.glob("*/node[AB]/data/lock")]
        assert len(pids) == 2
        it.press(CTRL_C)
        assert it.wait() == 0, it.text
        assert it.screen()[-2:] == ["All nodes have ended.", ""]
        for pid in pids:
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)
    assert not list(tmp_path.iterdir())
