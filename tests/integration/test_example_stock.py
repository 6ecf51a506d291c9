"""The stock-keeping example, run from its own page: every command in the README's console blocks, at two
real nodes, with its output compared. Separate from the API's tests because here the page is under test."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from lattice.client import calls
from lattice.testing.cluster import LocalNode, make_nodes, roots_equal, wait_for

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "examples" / "stock-keeping" / "README.md"
STOCK = ROOT / "examples" / "stock-keeping" / "stock.py"
AGREE_WITHIN_S = 90.0  # the bound of the design, which counts one lung gone
PORTS = ("8000", "8001")  # of the page

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@dataclass(frozen=True)
class Step:
    """A command of the page, the terminal it is typed in ("" for the main one), and what it prints."""

    terminal: str
    command: str
    printed: list[str]


def steps_of(page: str) -> list[Step]:
    """The commands of all console blocks, in order."""
    steps: list[Step] = []
    for block in re.findall(r"(?ms)^```console\n(.*?)^```$", page):
        for line in block.splitlines():
            typed = re.fullmatch(r"(A|B|watch|)\$ (.*)", line)
            if typed:
                steps.append(Step(typed[1], typed[2], []))
            else:
                steps[-1].printed.append(line)
    return steps


@dataclass
class Desk:
    """A project directory as the page takes it for granted, with two nodes on free ports."""

    root: Path
    nodes: list[LocalNode]
    prelude: str = ""
    watcher: subprocess.Popen[str] | None = None
    watched: Path = field(init=False)

    def __post_init__(self) -> None:
        self.watched = self.root / "watched"
        (self.root / "examples").symlink_to(ROOT / "examples")
        bin_directory = self.root / ".venv" / "bin"
        bin_directory.mkdir(parents=True)
        for name, rest in (("python", ""), ("lattice", " -m lattice")):
            program = bin_directory / name
            program.write_text(f'#!/bin/sh\nexec "{sys.executable}"{rest} "$@"\n')
            program.chmod(0o755)
        for node in self.nodes:
            lines = [f"{name}={value}\n" for name, value in node.settings().items()]
            (self.root / f".env.{node.name}").write_text("".join(lines))

    def environ(self) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("LATTICE_")}
        urls = " ".join(node.url for node in self.nodes)
        return {**inherited, "PYTHONPATH": str(ROOT), "STOCK_NODES": urls}

    def here(self, text: str) -> str:
        """A command of the page with the ports of these nodes."""
        for port, node in zip(PORTS, self.nodes, strict=True):
            text = text.replace(f"127.0.0.1:{port}", f"127.0.0.1:{node.api_port}")
        return text

    def shown(self, text: str) -> list[str]:
        """What was printed, as the page would show it: ports and process ids vary."""
        for port, node in zip(PORTS, self.nodes, strict=True):
            text = text.replace(f"127.0.0.1:{node.api_port}", f"127.0.0.1:{port}")
        return re.sub(r"\(process \d+\)", "(process 4711)", text).splitlines()

    def up(self) -> list[LocalNode]:
        return [node for node in self.nodes if node.process is not None and node.process.poll() is None]

    def run(self, step: Step) -> list[str]:
        """Type it, and what it prints; of the watcher what comes at the end."""
        match step.terminal:
            case "":
                return self.type(step.command)
            case "watch":
                self.watch(step.command)
            case name:
                assert step.command == f"./launch_lattice.sh node{name}"
                self.nodes["AB".index(name)].start()
        return []

    def type(self, command: str) -> list[str]:
        if re.match(r"\w+\(\) \{", command):
            self.prelude += command + "\n"
            return []
        done = subprocess.run(
            ["bash", "-c", self.prelude + self.here(command)],
            cwd=self.root, env=self.environ(), text=True, timeout=60,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        return self.shown(done.stdout)

    def watch(self, command: str) -> None:
        with self.watched.open("w") as output:
            self.watcher = subprocess.Popen(
                ["bash", "-c", self.prelude + self.here(command)],
                cwd=self.root, env=self.environ(), text=True, start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def end_watch(self) -> list[str]:
        """Ctrl-C in the watcher's terminal; what it had printed. A node that is on its way down may take
        one more connection and end it at once: the pair of lines that this adds is left out."""
        watcher, self.watcher = self.watcher, None
        if watcher is None:
            return []
        os.killpg(watcher.pid, signal.SIGINT)
        watcher.wait(timeout=20)
        text = self.watched.read_text()
        return self.shown(re.sub(r"((stock: watching \S+\n)(stock: \S+ has gone\n))\1+", r"\1", text))

    def settle(self) -> None:
        """What a person's reading of the last output takes: nodes agree, the watcher has told its line."""
        if len(self.up()) == len(self.nodes):
            wait_for("the nodes agree", lambda: roots_equal(self.nodes), within_s=AGREE_WITHIN_S)
        if self.watcher is not None and self.up():
            wait_for("the watcher has told it", self.watcher_is_level, within_s=AGREE_WITHIN_S)

    def watcher_is_level(self) -> bool:
        """Whether it has told what a node holds; that one may hold less than another that is gone."""
        assert self.watcher is not None
        assert self.watcher.poll() is None, self.watched.read_text()
        seen = self.root / "reorder.json"
        if not seen.exists():
            return False
        told = json.loads(seen.read_text())["levels"]
        held = levels(self.up()[0])
        return told.keys() == held.keys() and all(
            told[sku][0] > adds or told[sku] == [adds, total] for sku, (adds, total) in held.items()
        )


def levels(node: LocalNode) -> dict[str, tuple[int, int]]:
    """By article how many additions there are and what they sum up to."""
    found: dict[str, tuple[int, int]] = {}
    for key in node.send(calls.keys(prefix="stock/", limit=1000)).keys:
        sku = key.key.split("/")[1]
        adds, total = found.get(sku, (0, 0))
        found[sku] = (adds + key.adds, total + int(key.total or 0))
    return found


def totals(node: LocalNode) -> dict[str, int]:
    return {sku: total for sku, (_, total) in levels(node).items()}


@contextmanager
def desk(directory: Path) -> Iterator[Desk]:
    nodes = make_nodes(directory / "nodes", ["nodeA", "nodeB"])
    (directory / "project").mkdir()
    made = Desk(directory / "project", nodes)
    try:
        yield made
    finally:
        if made.watcher is not None:
            os.killpg(made.watcher.pid, signal.SIGKILL)
            made.watcher.wait()
        for node in nodes:
            node.stop()


def play(made: Desk, steps: list[Step]) -> list[list[str]]:
    """What each step prints; the watcher's is known when the others are done."""
    printed: list[list[str]] = []
    for step in steps:
        printed.append(made.run(step))
        made.settle()
    told = made.end_watch()
    return [told if step.terminal == "watch" else lines for step, lines in zip(steps, printed, strict=True)]


def test_the_page_is_true(tmp_path: Path) -> None:
    steps = steps_of(PAGE.read_text(encoding="utf-8"))
    assert {step.terminal for step in steps} == {"", "A", "B", "watch"}
    with desk(tmp_path) as made:
        printed = play(made, steps)
        assert [(step.command, lines) for step, lines in zip(steps, printed, strict=True)] == [
            (step.command, step.printed) for step in steps
        ]

        # Beside the page: both nodes hold what the bookings sum up to, and the watcher's lines are a chain.
        booked = [amount for step in steps for amount in amounts(step)]
        assert totals(made.nodes[0]) == totals(made.nodes[1]) == {"A-100": sum(booked)}
        told = next(lines for step, lines in zip(steps, printed, strict=True) if step.terminal == "watch")
        changes = [(int(one), int(two)) for one, two in re.findall(r": (\d+) -> (\d+)", "\n".join(told))]
        assert len(changes) >= 4
        assert [before for before, _ in changes[1:]] == [after for _, after in changes[:-1]]
        assert changes[-1][1] == sum(booked)


def amounts(step: Step) -> list[int]:
    """The additions that the output of a booking names, unless it says that they were counted before."""
    lines = [line for line in step.printed if re.match(r"(receipt|sale|move|count): ", line)]
    return [int(amount) for line in lines for amount in re.findall(r" ([+-]\d+)\b", line)]


def stock(made: Desk, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, STOCK, *arguments],
        env=made.environ(), cwd=made.root, text=True, capture_output=True, timeout=60,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["sell", "A-100", "shop", "-3"], 2, "no whole number"),
        (["sell", "A-100", "shop", "1.5"], 2, "no whole number"),
        (["sell", "A-100", "shop", "9999999999"], 2, "no whole number"),
        (["receive", "A-100", "shop", "3"], 2, "--ref"),
        (["sell", "a/b", "shop", "3"], 2, "letters, digits"),
        (["article", "A-100", " "], 2, "printable"),
        (["--node", "no address", "show"], 2, "no address"),
        (["--node", "http://127.0.0.1:1", "watch"], 3, "no node answers"),
        (["--token-file", "missing", "show"], 1, "missing"),
        (["watch", "--seen", "."], 1, "was not written by"),
    ],
)
def test_a_mistake_has_a_sentence_and_an_exit_code(arguments: list[str], code: int, text: str) -> None:
    environ = {**os.environ, "STOCK_NODES": "http://127.0.0.1:1"}
    done = subprocess.run(
        [sys.executable, STOCK, *arguments], env=environ, text=True, capture_output=True, timeout=60
    )
    assert done.returncode == code, done.stderr
    assert text in done.stderr
    assert "Traceback" not in done.stderr


def test_a_killed_node_and_a_watcher_that_was_away(tmp_path: Path) -> None:
    """kill -9 between a receipt and its retry; `watch --once` before, after, and once more."""
    with desk(tmp_path) as made:
        node = made.nodes[0]
        node.start()
        assert stock(made, "article", "T-1", "Tea", "--minimum", "5").returncode == 0
        receipt = ("receive", "T-1", "main", "4", "--ref", "R-1")
        assert stock(made, *receipt).stdout == "receipt: T-1 main +4\n"
        watch = ("watch", "--once", "--seen", "seen.json")
        assert stock(made, *watch).stdout == "T-1 Tea: 4  REORDER, minimum 5\n"
        assert stock(made, "sell", "T-1", "main", "4", "--ref", "S-1").returncode == 0
        node.kill()
        node.start()
        assert "nothing is counted again" in stock(made, *receipt).stdout
        # By the key too, not by the record alone: the node answers the very request with its first result.
        record = {"kind": "receipt", "moves": [["T-1", "main", 4]]}
        put = {"op": "put", "key": "booking/R-1", "value": record, "if_none_match": "*"}
        add = {"op": "add", "key": "stock/T-1/main", "amount": 4}
        assert node.send(calls.batch([put, add], idempotency_key="stock-R-1")).repeated
        # The first try took the last piece: its retry is no sale of too many.
        assert "nothing is counted again" in stock(made, "sell", "T-1", "main", "4", "--ref", "S-1").stdout
        assert "main has 0" in stock(made, "sell", "T-1", "main", "1").stderr
        assert stock(made, *watch).stdout == "T-1 Tea: 4 -> 0  REORDER, minimum 5\n"
        assert stock(made, *watch).stdout == ""
        assert totals(node) == {"T-1": 0}


def test_what_another_program_wrote_is_no_traceback(tmp_path: Path) -> None:
    with desk(tmp_path) as made:
        node = made.nodes[0]
        node.start()
        for key in ("article/X", "booking/X", "stock/X/main", "stock/X", "stock/X/y/z"):
            node.send(calls.put(key, b"[1]"))
        node.send(calls.batch([{"op": "add", "key": "stock/X/y/z", "amount": 1}]))
        for arguments in (
            ["show"],
            ["show", "X"],
            ["rename", "X", "n"],
            ["receive", "X", "m", "1", "--ref", "X"],
        ):
            done = stock(made, *arguments)
            assert (done.returncode, done.stdout) == (1, "")
            assert "article/X holds no article" in done.stderr
        assert stock(made, "article", "Y", "Yarn").returncode == 0
        refused = stock(made, "receive", "Y", "main", "1", "--ref", "X")
        assert refused.returncode == 1
        assert "another program" in refused.stderr
        assert totals(node)["X"] == 1
