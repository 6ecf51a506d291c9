"""The heartbeat monitor in small worlds: text scripts with their recorded transcripts.

Separate from the rules' own tests because a transcript is reviewed as a whole: what an operator would read,
second by second. A script stands above the line `---`, what it must print below; after a change that
is meant, `python tests/core/test_failover_scenarios.py` writes the transcripts anew, to be read as a diff.
"""

from __future__ import annotations

import heapq
import sys
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import pytest

from lattice.core import failover_events as ev
from lattice.core.failover import Monitor

FOLDER = Path(__file__).parents[1] / "scenarios" / "failover"
SCRIPTS = sorted(FOLDER.glob("*.txt"))
SEPARATOR = "---\n"

DEFAULT_SHOWN = ("mode", "log", "alarm", "clear", "stop", "view")


@dataclass
class Link:
    """What passes between this node and one peer. `p2p`: up, down, or small (beats, no rounds)."""

    p2p: str = "down"
    http: str = "down"  # up, down, or bad (answers, its rounds are never good)
    presence_s: float | None = None
    head_held: bool = True


@dataclass
class World:
    """Drives one monitor: a tick every second, a beat every five, answers as the links allow."""

    shown: tuple[str, ...] = DEFAULT_SHOWN
    links: dict[str, Link] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    monitor: Monitor | None = None
    paused_until: float = 0.0
    now: float = 0.0
    queue: list[tuple[float, int, ev.MonitorInput]] = field(default_factory=list)
    numbers: count[int] = field(default_factory=count)

    def start(self, words: list[str]) -> None:
        options = dict(word.split("=") for word in words)
        config = ev.MonitorConfig(peerless_timeout_s=float(options.get("timeout", "60")))
        self.monitor = Monitor(
            config,
            self_id="self",
            policy=ev.Policy(options.get("policy", "auto")),
            p2p_enabled=options.get("p2p", "on") == "on",
            http_enabled=options.get("http", "on") == "on",
            started_at=self.now,
        )

    def feed(self, event: ev.MonitorInput) -> None:
        assert self.monitor is not None
        for output in self.monitor.handle(event):
            self.react(event.t, output)

    def later(self, event: ev.MonitorInput) -> None:
        heapq.heappush(self.queue, (event.t, next(self.numbers), event))

    def react(self, t: float, output: ev.MonitorOutput) -> None:
        match output:
            case ev.ModeChanged(mode, previous, reason):
                self.write(t, "mode", f"mode {mode} from {previous or 'the start'}: {reason}")
            case ev.LogLine(level, tag, sentence):
                self.write(t, "log", f"{level} [{tag}] {sentence}")
            case ev.AlarmRaised(code, text):
                self.write(t, "alarm", f"alarm {code}: {text.split(';')[0]}")
            case ev.AlarmCleared(code):
                self.write(t, "clear", f"clear {code}")
            case ev.PollsStopped(peers):
                self.write(t, "stop", f"stop {' '.join(peers)}")
            case ev.PollDue(peer):
                self.write(t, "poll", f"poll {peer}")
                up = self.links[peer].http != "down"
                good = self.links[peer].http == "up"
                self.later(ev.PollEnded(peer, t + (0.25 if up else 5), up, good, None if up else "timeout"))
            case ev.ProbeDue(peer, lung):
                self.write(t, "probe", f"probe {peer} {lung}")
                link = self.links[peer]
                ok = (link.p2p if lung == "p2p" else link.http) != "down"
                self.later(ev.ProbeEnded(peer, lung, t + (0.25 if ok else 5), ok, None if ok else "timeout"))
            case ev.RoundDue(peer, padded):
                self.write(t, "round", f"round {peer}{' padded' if padded else ''}")
                if self.links[peer].p2p == "up":
                    self.later(ev.RoundGood(peer, "p2p", t + 0.25, padded))

    def write(self, t: float, kind: str, text: str) -> None:
        if kind in self.shown:
            self.lines.append(f"{t:8.2f}  {text}")

    def second(self, t: float) -> None:
        """One second: what was under way arrives, beats and presence come, the loop ticks."""
        if t < self.paused_until:
            return
        while self.queue and self.queue[0][0] <= t:
            self.feed(heapq.heappop(self.queue)[2])
        for peer, link in self.links.items():
            if link.p2p != "down" and t % 5 == 0:
                self.feed(ev.BeatHeard(peer, t))
            if link.presence_s is not None and t % link.presence_s == 0:
                self.feed(ev.PresenceHeard(peer, t, link.presence_s, link.head_held))
        late = t - self.now - 1 if t > self.now else 0.0
        self.feed(ev.Tick(t, max(0.0, late)))
        self.now = t

    def command(self, t: float, words: list[str]) -> None:
        match words:
            case ["start", *options]:
                self.start(options)
            case ["known", *peers]:
                for peer in peers:
                    self.links.setdefault(peer, Link())
                    self.feed(ev.PeerKnown(peer, t))
            case ["direct", *peers]:
                self.feed(ev.DirectSet(tuple(peers), t))
            case ["p2p", "failed", *reason]:
                self.feed(ev.P2PFailed(t, " ".join(reason)))
            case ["p2p", "started"]:
                self.feed(ev.P2PStarted(t))
            case ["p2p", *peers, state]:
                for peer in peers:
                    self.links[peer].p2p = state
            case ["http", *peers, state]:
                for peer in peers:
                    self.links[peer].http = state
            case ["presence", peer, "off"]:
                self.links[peer].presence_s = None
            case ["presence", peer, interval, head]:
                self.links[peer].presence_s, self.links[peer].head_held = float(interval), head == "held"
            case ["identified", placeholder, peer]:
                self.links[peer] = self.links[placeholder]
                self.feed(ev.PeerIdentified(placeholder, peer, t))
            case ["forget", peer]:
                del self.links[peer]
                self.feed(ev.PeerForgotten(peer, t))
            case ["policy", name]:
                self.feed(ev.PolicySet(ev.Policy(name), t))
            case ["request", peer, lung]:
                self.feed(ev.RequestServed(peer, "http" if lung == "http" else "p2p", t))
            case ["pause", seconds]:
                self.paused_until = t + float(seconds)
            case ["view"]:
                self.write(t, "view", self.view_text(t))
            case _:
                raise ValueError(f"no such command: {' '.join(words)}")

    def view_text(self, t: float) -> str:
        assert self.monitor is not None
        view = self.monitor.view(t)
        left = "none" if view.fallback_in_s is None else f"{view.fallback_in_s:g}"
        peers = ", ".join(
            f"{peer.peer} {peer.liveness}"
            + "".join(f" {lung}" for lung, shown in peer.lungs.items() if shown.reachable)
            + (" polled" if peer.polled else "")
            for peer in view.peers
        )
        return (
            f"view {view.mode} ({view.reason}) policy={view.policy} peer_count={view.peer_count} "
            f"http_sync_enabled={view.http_sync_enabled} since={view.seconds_since_peer:g} left={left} "
            f"bridged=[{' '.join(view.bridged_over_http)}] resilient={view.resilient} "
            f"alarms=[{' '.join(view.alarms)}]: {peers}"
        )


def play(script: str) -> str:
    """Run a script and return its transcript."""
    world = World()
    commands: list[tuple[float, list[str]]] = []
    for line in script.splitlines():
        words = line.split("#")[0].split()
        if words and words[0] == "show":
            world.shown = (*DEFAULT_SHOWN, *words[1:])
        elif words:
            commands.append((float(words[0]), words[1:]))
    end = int(commands[-1][0])
    assert commands[-1][1] == ["end"], "a script ends with the time of its end"
    for second in range(end + 1):
        while commands[0][0] <= second and commands[0][1] != ["end"]:
            world.command(*commands.pop(0))
        world.second(float(second))
    return "\n".join(world.lines) + "\n"


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_transcript(path: Path) -> None:
    script, _, expected = path.read_text(encoding="utf-8").partition(SEPARATOR)
    assert play(script) == expected


def test_there_are_scripts() -> None:
    assert len(SCRIPTS) >= 12


def write_transcripts() -> None:
    for path in SCRIPTS:
        script = path.read_text(encoding="utf-8").partition(SEPARATOR)[0]
        path.write_text(script + SEPARATOR + play(script), encoding="utf-8")
        sys.stdout.write(f"{path.name}\n")


if __name__ == "__main__":
    write_transcripts()
