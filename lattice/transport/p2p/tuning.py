"""Times and sizes of the P2P lung that are nobody else's business, each with its reason.

Separate so that a test can run the same code faster and a reader finds every number in one place;
caps that are part of the design live in `lattice.core.limits`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Tuning:
    """Seconds end in `_s`, bytes in `_bytes`. The defaults are for production."""

    # The host's life.
    rebuild_first_s: float = 0.5
    rebuild_max_s: float = 30.0
    rebuild_reset_s: float = 60.0  # a life this long proves the fault was not a standing one
    close_s: float = 3.0  # each step of an orderly close; peers that do not read must not hold it up

    # The gate.
    admission_s: float = 10.0  # from connected to admitted; a Hello takes two round trips

    # Connections.
    stalled_write_s: float = 15.0  # one 64 KiB frame; a live link of 35 kbit/s still passes
    frame_bytes_max: int = 256 * 1024  # yamux peers cut their frames at 64 KiB
    streams_max: int = 64  # per connection; a peer needs about eight
    unread_bytes_max: int = 32 * 1024 * 1024  # two streams with yamux's largest window
    unread_stranger_bytes_max: int = 1024 * 1024  # before admission: four streams with the first window

    # Links.
    link_grace_s: float = 2.0  # the larger peer id opens only after this time without a link
    link_open_s: float = 10.0
    link_settled_s: float = 10.0  # a link that lived this long clears the back-off
    link_backoff_first_s: float = 0.25
    link_backoff_max_s: float = 30.0
    link_close_s: float = 2.0  # to flush the close frame
    exchanges_max: int = 16  # started by us and unanswered, per link; more wait
    requests_running: int = 2  # of theirs, per link, until their answers are written: a page each
    requests_waiting: int = 24  # read ahead, so that an answer behind them is still found
    request_bytes_max: int = 4 * 1024 * 1024  # of theirs in memory, per link; one may be as large
    request_stranger_bytes_max: int = 256 * 1024
    frame_first_s: float = 20.0  # for any frame, either way; an exchange is given up sooner
    frame_bytes_per_s: float = 32 * 1024  # and for a larger one more, as a slow line needs

    # Dialling.
    dial_s: float = 8.0  # a peer with another pre-shared setting never refuses, it only hangs
    dial_grace_s: float = 5.0  # the larger peer id dials only after this time without a connection
    dial_backoff_first_s: float = 1.0
    dial_backoff_few_s: float = 8.0  # the longest wait while few peers are known
    dial_backoff_max_s: float = 30.0  # and with sixty or more
    dials_at_once: int = 16  # most of the time of a dial is waiting for somebody who is not there
    dial_until: int = 48  # of 64 connections: the others stay free for whoever dials us
    addresses_per_dial: int = 4

    # Gossip.
    watch_interval_s: float = 1.0
    deaf_s: float = 5.0  # a gossip path seen working and then broken for this long is cut
    deaf_first_s: float = 12.0  # not yet seen working: the other side may still be judging our Hello
    heartbeat_s: float = 1.0
    gossip_rate: float = 200.0  # messages a second from one forwarder, what one core can verify
    gossip_burst: float = 2000.0
    wanted_bytes_per_s: float = 512 * 1024  # of old messages, to one peer; fresh ones need no asking
    wanted_bytes_burst: float = 2 * 1024 * 1024
    gossip_judging: int = 64  # handler calls at once
    gossip_judging_s: float = 10.0
    gossip_remembered: int = 16384  # ids and payloads of messages already judged: two each
    outbound_messages_max: int = 4096  # per peer, in libp2p's own queue
    outbound_pause_at: int = 1000
    outbound_pause_s: float = 1.0

    def frame_s(self, size: int) -> float:
        """How long one frame of a link may take, from its head to its last byte."""
        return self.frame_first_s + size / self.frame_bytes_per_s
