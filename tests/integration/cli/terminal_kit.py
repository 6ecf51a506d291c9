"""A pseudo-terminal for tests: a command runs on it as in a person's window, and its screen is read.

Separate because a pipe shows none of this: what is drawn over, what is wiped, and Ctrl-C by the key.
"""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
import termios
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import Self

# The terminal becomes that of the command's own session, so that its keys reach the command.
_LAUNCH = """
import fcntl, os, sys, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, "-m", "lattice", *sys.argv[1:]])
"""
_PIECE = re.compile(r"\x1b\[(\d*)([A-Za-z])|([\r\n])|([^\x1b\r\n]+)")
CTRL_C = b"\x03"


class Screen:
    """What stands on a terminal of this size after some output; it knows what our commands write."""

    def __init__(self, columns: int, rows: int) -> None:
        self._columns = columns
        self._rows = rows
        self._lines = [""]
        self._row = self._column = 0

    @property
    def lines(self) -> list[str]:
        """The lines that the window shows; what scrolled out of it is not among them."""
        return [line.rstrip() for line in self._lines[-self._rows :]]

    def write(self, text: str) -> None:
        at = 0
        for piece in _PIECE.finditer(text):
            assert piece.start() == at, text[at : piece.start()]
            at = piece.end()
            number, code, control, plain = piece.groups()
            if code is not None:
                self._obey(code, int(number or 0))
            elif control == "\r":
                self._column = 0
            elif control == "\n":
                self._row += 1
                if self._row == len(self._lines):
                    self._lines.append("")
            else:
                self._put(plain)
        assert at == len(text), text[at:]

    def _obey(self, code: str, number: int) -> None:
        if code == "F":
            top = max(0, len(self._lines) - self._rows)
            self._row, self._column = max(top, self._row - number), 0
        elif code == "K":
            self._lines[self._row] = self._lines[self._row][: self._column]
        elif code == "J":
            self._lines[self._row] = self._lines[self._row][: self._column]
            del self._lines[self._row + 1 :]
        else:
            raise AssertionError(f"an escape sequence that no command should write: {number}{code}")

    def _put(self, plain: str) -> None:
        for character in plain:
            if self._column == self._columns:
                self.write("\r\n")
            line = self._lines[self._row].ljust(self._column)
            self._lines[self._row] = line[: self._column] + character + line[self._column + 1 :]
            self._column += 1


class OnTerminal:
    """`lattice ARGUMENTS` on a terminal of its own: everything it wrote, and its screen."""

    def __init__(self, *arguments: str, environ: Mapping[str, str], columns: int = 120) -> None:
        self._master, slave = os.openpty()
        termios.tcsetwinsize(self._master, (40, columns))
        self.process = subprocess.Popen(
            [sys.executable, "-c", _LAUNCH, *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={name: value for name, value in os.environ.items() if not name.startswith("LATTICE_")}
            | {"TERM": "xterm", **environ},
        )
        os.close(slave)
        self._columns = columns
        self._written = b""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.terminate()  # in order, so that nothing that it started is left
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._reader.join(10)
        os.close(self._master)

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._master, 65_536)
            except OSError as error:
                if error.errno != errno.EIO:  # how Linux says that nobody has the other side open any more
                    raise
                return
            if not data:
                return
            self._written += data

    @property
    def text(self) -> str:
        """All that was written so far, up to the last whole line."""
        return self._written[: self._written.rfind(b"\n") + 1].decode()

    def press(self, key: bytes) -> None:
        os.write(self._master, key)

    def wait(self, within_s: float = 60) -> int:
        """The exit code, once everything it wrote is here."""
        code = self.process.wait(within_s)
        self._reader.join(10)
        return code

    def screen(self) -> list[str]:
        screen = Screen(self._columns, 40)
        screen.write(self.text)
        return screen.lines
