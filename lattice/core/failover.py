"""The heartbeat monitor: which lung carries each peer, what the headline says, who is polled and when.

Separate from its driver because it decides everything and does nothing: inputs with their times go in,
an ordered list of outputs comes out, and the same inputs always give the same outputs.

How to drive it: say `PeerKnown` for every remembered peer, then `Tick` at once and then about every
second. A silence is judged only at a tick, because only a tick says how late the loop is; a sign of life is
taken at once. Inputs about peers that are not known change nothing. Words in `failover_events`, every
transition in `failover_table`, the rules of a single peer in `failover_peer`.
"""

from __future__ import annotations

from typing import Final, assert_never

from .failover_events import (
    Alarm,
    BeatHeard,
    DirectSet,
    Lung,
    Mode,
    ModeChanged,
    MonitorConfig,
    MonitorInput,
    MonitorOutput,
    MonitorView,
    P2PFailed,
    P2PStarted,
    PeerForgotten,
    PeerIdentified,
    PeerKnown,
    Policy,
    PolicySet,
    PollDue,
    PollEnded,
    PollsStopped,
    PresenceHeard,
    ProbeDue,
    ProbeEnded,
    Reason,
    RequestServed,
    RoundDue,
    RoundGood,
    Tick,
)
from .failover_headline import ISOLATED_TEXTS, ON_HTTP, ON_P2P, Facts, find_reason, find_situation
from .failover_peer import PeerEvidence, PeerRecord, is_sign_over_http
from .failover_table import (
    HEADLINE,
    LEVELS,
    MODES,
    PEER_MOVES,
    Footing,
    Sentence,
    Sign,
    Stance,
)
from .failover_view import legs, peer_view
from .failover_voice import Voice
from .membership import ring_point
from .polling import Polls, Probes

_MARKS: Final = (0.25, 0.5, 0.75)  # shares of the timer that are announced while it runs out


class Monitor:
    """The machine. One instance a node; `handle` for every input, `view` for status."""

    def __init__(
        self,
        config: MonitorConfig,
        *,
        self_id: str,
        policy: Policy,
        p2p_enabled: bool,
        http_enabled: bool,
        started_at: float,
    ) -> None:
        self._config = config
        self._self_id = self_id
        self._policy = policy
        self._policy_since = started_at
        self._p2p_enabled = p2p_enabled
        self._p2p_failed = False
        self._http_enabled = http_enabled
        self._records: dict[str, PeerRecord] = {}
        self._aliases: dict[str, str] = {}  # placeholder: the peer behind it
        self._polled: dict[str, PeerRecord] = {}
        self._now = started_at  # of the last tick; silences are judged by it alone
        self._lost_s = 0.0  # all lateness so far
        self._first_known_at = started_at  # since when there has always been a peer
        self._first_known_e = started_at
        self._heard_at = started_at
        self._stance = Stance.NEW
        self._reason = Reason.ALONE
        self._last_mark_s = config.peerless_timeout_s
        self._polls = Polls(config, self_id)
        self._probes = Probes(config, self_id)
        self._voice = Voice(config.peerless_timeout_s)

    def handle(self, event: MonitorInput) -> list[MonitorOutput]:
        """Take one input and return what follows from it, to be carried out in order."""
        match event:
            case Tick():
                self._pass_time(event)
            case PeerKnown():
                self._know(event.peer, event.t)
            case PeerIdentified():
                self._identify(event)
            case PeerForgotten():
                self._forget(self._resolve(event.peer))
            case PolicySet():
                self._set_policy(event)
            case P2PStarted():
                self._p2p_failed = False
                self._voice.clear_alarm(Alarm.P2P_FAILED)
            case P2PFailed():
                self._fail_p2p(event)
            case DirectSet():
                names = {self._resolve(peer) for peer in event.peers}
                for record in self._records.values():
                    record.set_direct(record.peer in names, event.t, event.t - self._lost_s)
            case BeatHeard() | PresenceHeard() | RoundGood() | PollEnded() | ProbeEnded() | RequestServed():
                record_heard = self._records.get(self._resolve(event.peer))
                if record_heard is not None:
                    self._take_evidence(record_heard, event)
            case _:
                assert_never(event)
        if self._stance is Stance.NEW and not isinstance(event, Tick):
            return self._voice.take()  # nothing is said before the peers of old are known
        self._judge_headline()
        self._judge_polled()
        if isinstance(event, Tick | PolicySet | P2PFailed):
            self._schedule(max(self._now, event.t))
        return self._voice.take()

    # Peers come, turn out to be others, and go.

    def _resolve(self, peer: str) -> str:
        return self._aliases.get(peer, peer)

    def _know(self, peer: str, t: float) -> None:
        peer = self._resolve(peer)
        if peer == self._self_id or peer in self._records or len(self._records) >= self._config.peers_max:
            return
        t_e = t - self._lost_s
        record = PeerRecord(peer, known_at=t, known_e=t_e, return_after_s=self._config.return_after_s)
        if not self._p2p_usable:
            record.fall(t_e, self._config)
        if not self._records:
            self._first_known_at, self._first_known_e = t, t_e
        self._records[peer] = record

    def _identify(self, event: PeerIdentified) -> None:
        placeholder, peer = event.placeholder, event.peer
        if placeholder == peer:
            return
        if peer == self._self_id:
            self._forget(placeholder)
            return
        old = self._records.pop(placeholder, None)
        if len(self._aliases) < self._config.peers_max:
            self._aliases[placeholder] = peer
        if old is None:
            self._know(peer, event.t)
            return
        self._polls.rename(placeholder, peer)
        known = self._records.get(peer)
        if known is None:
            old.peer, old.point = peer, ring_point(peer)
            self._records[peer] = old
        else:
            known.merge(old)

    def _forget(self, peer: str) -> None:
        self._records.pop(peer, None)
        self._aliases = {name: target for name, target in self._aliases.items() if target != peer}
        self._polls.forget(peer)

    # The lungs of this node.

    @property
    def _p2p_usable(self) -> bool:
        return self._p2p_enabled and not self._p2p_failed

    @property
    def _rounds_run(self) -> bool:
        return self._p2p_usable and self._policy is not Policy.HTTP

    def _fail_p2p(self, event: P2PFailed) -> None:
        if not self._p2p_enabled:
            return
        self._p2p_failed = True
        self._voice.raise_alarm(
            Alarm.P2P_FAILED, f"P2P could not be started: {event.error}; HTTP carries alone until it is"
        )
        for record in self._records.values():
            if record.footing is not Footing.FALLEN:
                record.fall(event.t - self._lost_s, self._config)

    def _set_policy(self, event: PolicySet) -> None:
        if event.policy is self._policy:
            return
        self._policy, self._policy_since = event.policy, event.t
        self._polls.begin()
        self._voice.clear_alarm(Alarm.MANUAL_POLICY)
        self._voice.log(
            "INFO", "P2P_HEARTBEAT", f"Policy is now {event.policy}", {"policy": event.policy.value}
        )
        if not self._rounds_run:
            return
        # Judged by the last beat alone: under policy http there were no rounds to go by.
        t_e = event.t - self._lost_s
        for record in self._records.values():
            if t_e - record.timer_from_e() >= record.timeout_s(self._config):
                if record.footing is not Footing.FALLEN:
                    record.fall(t_e, self._config)
                continue
            record.hold(Footing.WAITING if record.heard_e is None else Footing.HELD)
            record.round_e = max(record.round_e, t_e)

    # Evidence.

    def _take_evidence(self, record: PeerRecord, event: PeerEvidence) -> None:
        t_e = event.t - self._lost_s
        match event:
            case BeatHeard():
                record.p2p.answered(event.t)
                record.hear(event.t, t_e, self._config)
                self._greet(record, event.t)
            case PresenceHeard():
                if record.take_presence(event, t_e, self._config):
                    self._greet(record, event.t)
            case RoundGood():
                record.take_round(event, t_e, self._config)
            case PollEnded():
                record.take_poll(event, t_e)
                self._polls.ended(record.peer, answered=event.answered)
            case ProbeEnded():
                record.take_probe(event)
            case RequestServed():
                record.take_request(event)
            case _:
                assert_never(event)
        if is_sign_over_http(event):
            self._polls.alive()

    def _greet(self, record: PeerRecord, t: float) -> None:
        """A sign of life is taken at once, if the headline stands on P2P: else it must be proven."""
        self._heard_at = max(self._heard_at, t)
        on_p2p = self._stance is Stance.NEW or self._stance in ON_P2P
        if self._rounds_run and on_p2p and record.heard(self._now_e, self._config, rounds_run=True):
            record.footing = PEER_MOVES[record.footing, Sign.HEARD]

    # Time.

    @property
    def _now_e(self) -> float:
        return self._now - self._lost_s

    def _pass_time(self, tick: Tick) -> None:
        if tick.t < self._now:
            return
        late = min(max(0.0, tick.lateness_s), tick.t - self._now)
        self._now = tick.t
        self._lost_s += late
        now_e = self._now_e
        if late:
            self._first_known_e = min(self._first_known_e, now_e)
        for record in self._records.values():
            if late:
                record.clamp(now_e)
            record.break_streak(self._now, self._config)
            self._judge_peer(record, now_e)
        for peer in self._polls.lost(self._now):
            report = PollEnded(peer, self._now, answered=False, error="no report of the poll")
            self._take_evidence(self._records[peer], report)
        self._judge_alarms()

    def _read_sign(self, record: PeerRecord, now_e: float) -> Sign | None:
        """What a tick sees of one peer; None while nothing changes."""
        config = self._config
        if record.footing is not Footing.FALLEN and record.silent(now_e, config):
            return Sign.SILENT
        if record.footing is Footing.HELD:
            return None
        if self._policy is Policy.P2P:
            # With polling switched off there is no other lung to stay on until the peer has proven itself.
            proven = record.fresh(now_e, config) and record.heard(now_e, config, rounds_run=True)
        else:
            proven = record.proven(self._now, now_e, config, polled=record.peer in self._polled)
        return Sign.PROVEN if proven else None

    def _judge_peer(self, record: PeerRecord, now_e: float) -> None:
        if not self._rounds_run:
            return  # policy http freezes the footings, and without a lung nobody stands on it
        sign = self._read_sign(record, now_e)
        if sign is None:
            return
        before, after = record.footing, PEER_MOVES[record.footing, sign]
        if after is Footing.FALLEN:
            record.fall(now_e, self._config)
        elif before is Footing.FALLEN and self._policy is Policy.AUTO:
            record.return_to_p2p(now_e, self._config)
        else:
            record.hold()

    def _judge_alarms(self) -> None:
        config = self._config
        if self._policy is not Policy.AUTO and self._now - self._policy_since >= config.manual_policy_warn_s:
            text = f"Policy {self._policy} was set by hand over an hour ago; set auto to let lungs switch"
            self._voice.raise_alarm(Alarm.MANUAL_POLICY, text, "WARNING")
        known_for = self._now - self._first_known_at
        # Both lungs get the time in which an answer makes one reachable, and isolation says more.
        judged = self._p2p_enabled and self._http_enabled and MODES[self._stance] is not Mode.ISOLATED
        on_p2p, on_http = legs(self._records.values(), self._now, config)
        if judged and known_for >= config.reachable_s and on_p2p != on_http:
            standing, missing = ("P2P", "HTTP") if on_p2p else ("HTTP", "P2P")
            text = f"Standing on one leg: only {standing} reaches a peer, {missing} reaches none"
            self._voice.raise_alarm(Alarm.ONE_LEG, text, "WARNING")
        else:
            self._voice.clear_alarm(Alarm.ONE_LEG)

    # The headline.

    def _carriers(self) -> list[PeerRecord]:
        """The peers on which a headline of P2P stands. It stays for any that is heard, and comes back only
        for one that has proven itself."""
        stays = self._stance not in ON_HTTP
        return [
            record
            for record in self._records.values()
            if record.footing is Footing.HELD or (stays and record.lingers(self._now_e, self._config))
        ]

    def _deadline_e(self) -> float | None:
        """When the last carrier falls, or the first 60 s end; None once both are past."""
        ends = [record.carries_until_e(self._config) for record in self._carriers()]
        first_e = self._first_known_e + self._config.peerless_timeout_s
        if self._records and self._now_e < first_e:
            ends.append(first_e)
        return max(ends, default=None)

    def _facts(self) -> Facts:
        now_e, config = self._now_e, self._config
        records = self._records.values()
        carriers = self._carriers()
        return Facts(
            policy=self._policy,
            p2p_enabled=self._p2p_enabled,
            p2p_failed=self._p2p_failed,
            http_enabled=self._http_enabled,
            known=bool(self._records),
            held=bool(carriers),
            fresh=any(record.fresh(now_e, config) for record in carriers),
            lingering=any(record.lingers(now_e, config) for record in records),
            starved=any(record.starved(now_e, config) for record in records),
            since_first_s=now_e - self._first_known_e,
            unanswered_rounds=self._polls.unanswered_rounds,
        )

    def _judge_headline(self) -> None:
        facts = self._facts()
        situation = find_situation(facts, self._stance, self._config)
        row = HEADLINE[self._stance, situation]
        self._reason = find_reason(facts, situation, self._reason)
        before, self._stance = self._stance, row.to
        mode_before = None if before is Stance.NEW else MODES[before]
        if MODES[row.to] is not mode_before:
            self._voice.emit(ModeChanged(MODES[row.to], mode_before, self._reason))
        if row.to is Stance.FALLBACK and before not in ON_HTTP:
            self._polls.begin()
        if row.to is Stance.CUT:
            self._voice.raise_alarm(Alarm.ISOLATED, ISOLATED_TEXTS[self._reason])
        else:
            self._voice.clear_alarm(Alarm.ISOLATED)
        meant = self._reason in (Reason.POLICY_HTTP, Reason.P2P_DISABLED)
        for sentence in row.says:
            level = "INFO" if meant else LEVELS[sentence]
            self._voice.say("P2P_HEARTBEAT", sentence, level, fields={"reason": self._reason.value})
        if row.to is Stance.COUNTING:
            self._say_marks(is_new=before is not Stance.COUNTING)

    def _say_marks(self, *, is_new: bool) -> None:
        """Announce what is left of the timer, each mark once and of several passed the last."""
        deadline_e = self._deadline_e()
        if deadline_e is None or self._policy is not Policy.AUTO or not self._http_enabled:
            return
        left_s = deadline_e - self._now_e
        if is_new:
            # A mark that passed before the timer was announced is not announced after it.
            self._last_mark_s = left_s
            return
        for share in _MARKS:
            mark_s = share * self._config.peerless_timeout_s
            if left_s <= mark_s < self._last_mark_s:
                self._voice.say("P2P_HEARTBEAT", Sentence.REMAINING, left_s=mark_s)
                self._last_mark_s = mark_s
                break

    # Polls, rounds and probes.

    def _carried_by_http(self, record: PeerRecord) -> bool:
        if not self._http_enabled or self._policy is Policy.P2P:
            return False
        return self._policy is Policy.HTTP or record.footing is Footing.FALLEN

    def _judge_polled(self) -> None:
        before = self._polled
        self._polled = {peer: r for peer, r in self._records.items() if self._carried_by_http(r)}
        stopped = tuple(sorted(before.keys() - self._polled.keys()))
        if stopped:
            # Nobody will report on what is cancelled: the next poll must not wait for it.
            for peer in stopped:
                self._polls.forget(peer)
            self._voice.emit(PollsStopped(stopped))
        if len(before) != len(self._polled):
            self._voice.say("HTTP_SYNC", Sentence.MONITORING, count=len(self._polled))

    def _idle_lung(self, record: PeerRecord) -> Lung | None:
        if record.peer not in self._polled:
            return "http" if self._http_enabled else None
        return "p2p" if self._p2p_usable and not record.is_placeholder else None

    def _schedule(self, now: float) -> None:
        isolated = MODES[self._stance] is Mode.ISOLATED
        for peer in self._polls.due(now, list(self._polled.values()), isolated=isolated):
            self._voice.emit(PollDue(peer))
        if self._rounds_run:
            for record in self._records.values():
                if record.direct and record.streak_e is not None and record.round_due(now):
                    padded = now >= record.padded_due_at
                    record.plan_rounds(now, self._config, padded=padded)
                    self._voice.emit(RoundDue(record.peer, padded))
        probe = self._probes.due(now, self._records.values(), self._idle_lung)
        if probe is not None:
            self._voice.emit(ProbeDue(*probe))

    # Status.

    def view(self, now: float) -> MonitorView:
        """A snapshot at `now`, which may lie after the last tick; changes nothing."""
        now = max(now, self._now)
        now_e, config = now - self._lost_s, self._config
        peers = tuple(
            peer_view(
                self._records[peer],
                now,
                now_e,
                config,
                polled=peer in self._polled,
                rounds_run=self._policy is not Policy.HTTP,
            )
            for peer in sorted(self._records)
        )
        mode = MODES[self._stance]
        deadline_e = self._deadline_e()
        runs_out = (
            self._stance in (Stance.STARTING, Stance.COUNTING)
            and self._policy is Policy.AUTO
            and self._http_enabled
        )
        heard = sum(1 for peer in peers if peer.heard_over_p2p)
        return MonitorView(
            mode=mode,
            policy=self._policy,
            reason=self._reason,
            peer_count=heard,
            has_peers=heard > 0,
            http_sync_enabled=bool(self._polled),
            seconds_since_peer=max(0.0, now - self._heard_at),
            fallback_in_s=max(0.0, deadline_e - now_e) if runs_out and deadline_e is not None else None,
            bridged_over_http=tuple(sorted(self._polled)) if mode is Mode.P2P else (),
            # Reachable is said for two minutes after the last answer; isolation is known sooner.
            resilient=mode is not Mode.ISOLATED and legs(self._records.values(), now, config) == (True, True),
            alarms=tuple(sorted(self._voice.alarms)),
            peers=peers,
        )
