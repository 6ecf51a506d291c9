"""Every cap of Lattice with its reason.

Separate so that a limit is found, questioned and changed in one place. The first group is part of
the format: the same on every node for ever. The others are local and only delay.
"""

from __future__ import annotations

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * 1024

# Part of the format. Changing one changes which entries are valid, hence the wire version.
ENTRY_BYTES_MAX: Final = 256 * KIB  # header plus ops: four gossip payloads, one sixth of a page
OPS_MAX: Final = 256  # a tree of eight levels over the ops of an entry
KEY_BYTES_MAX: Final = 1 * KIB  # a key stands in every proof and in every index
VALUE_BYTES_MAX: Final = 128 * KIB  # half an entry, so that two values always fit
NAMES_MAX: Final = 256  # versions that one op may replace; siblings are at most the number of logs
AMOUNT_MAX: Final = 2**53 - 1  # what every JSON parser holds exactly
SEAL_INTERVAL: Final = 64  # seq ≡ 63 (mod 64) must be sealed: an unsealed stretch is 63 entries
UNSEALED_ENTRY_BYTES_MAX: Final = 16 * KIB  # larger entries must be sealed: a stretch is ≤ 1 MiB
FROZEN_NEVER: Final = 2**64 - 1  # the `frozen` field of a log without a fork

# The wire.
ENVELOPE_BYTES_MAX: Final = 4 * MIB  # one sealed envelope on either lung
PAGE_BYTES: Final = 1536 * KIB  # entries in one message: more than any unsealed stretch
GOSSIP_BYTES: Final = 64 * KIB  # a push is gathered up to this; a larger entry travels alone
GOSSIP_BYTES_MAX: Final = 512 * KIB  # py-libp2p loses messages over 1 MiB without an error
PADDING_BYTES: Final = 16 * KIB  # a padded round: larger than any path MTU that could be in doubt
HEADS_AUTHORS_MAX: Final = 4096  # author digests in one message: 256 KiB
HEADS_LOGS_MAX: Final = 16384  # log heads in one message: 0.9 MiB
WANT_RANGES_MAX: Final = 4096
MESSAGES_MAX: Final = 64  # in one envelope: an exchange needs three; empty ones must not fill memory
ENTRIES_MAX: Final = 16_384  # entries in one message: more than a page of the smallest possible ones
ADDRESSES_MAX: Final = 16  # addresses that one node may announce, per lung
ADDRESS_BYTES_MAX: Final = 256
NAME_BYTES_MAX: Final = 64
TREE_SUBTREES_MAX: Final = 16  # of the state tree in one answer: 128 KiB
TREE_BUCKETS_MAX: Final = 64  # in one answer: 64 KiB where the state has a million keys
HEARD_MAX: Final = 16  # direct peers listed in a beat: 4 opened and 8 accepted, with room

# Local: they delay, they never change what is valid.
PENDING_AUTHOR_BYTES_MAX: Final = 8 * MIB
PENDING_BYTES_MAX: Final = 64 * MIB
PENDING_ENTRY_OVERHEAD_BYTES: Final = 1 * KIB  # what a parsed entry costs in memory beyond its bytes
NOVELTY_NUMBER_MAX: Final = 255  # unknown op kinds and formats counted by number; higher formats as one
KEYS_READ_MAX: Final = 500  # keys that the store is asked for at once
FORK_KEYS_MAX: Final = 256  # keys with another winner or counter that the record of a fork names
FORK_ALARMS_MAX: Final = 16  # frozen logs with an alarm of their own; the others share one
FORK_PROOFS_MAX: Final = 32  # in one message: half a MiB beside a page; the rest goes with the next
PATHS_MAX: Final = 32  # header paths in one message: a quarter of a MiB
KEYS_NAMED_MAX: Final = 16  # keys that differ over equal heads and are named; the others are counted
BAD_SEALS_MAX: Final = 16  # failing seals in one message before its other seals are not looked at
CLOCK_BEFORE_ALL_MS: Final = 1_735_689_600_000  # 2025: a clock that shows less was never set
CLOCK_AHEAD_MS_MAX: Final = 300_000  # a remote clock further ahead than this never advances ours
COUNTER_WINDOW: Final = 1024  # HTTP requests overlap and arrive out of order
COUNTER_OVERLAP: Final = 32  # requests on their way while the first of a boot is challenged
BOOTS_MAX: Final = 4096  # (sender, boot) pairs whose counters are remembered
BOOTS_PER_PEER_MAX: Final = 256  # starts of one peer whose presence is taken while this process runs
CHALLENGES_MAX: Final = 1024
CHALLENGES_PER_KEY_MAX: Final = 8  # a key has one live boot, a cloned one two: more are a flood
CHALLENGE_LIFE_S: Final = 30.0
BEAT_GRACE_S: Final = 1.0  # a beat later than its interval by so much is missed
BUDGET_BYTES: Final = 8 * MIB  # verified for a peer and worth nothing, on one lung: five whole pages
BUDGET_BYTES_PER_S: Final = 32 * KIB  # paid off with time: a liar costs half a per mille of one core
REFUSAL_BYTES_MIN: Final = 4 * KIB  # what a refusal counts for at least: the check itself, 50 µs or more
BUDGETS_MAX: Final = 8192  # (peer, lung) pairs: two for each node that may be known
FRUITLESS_ROUNDS_MAX: Final = 3  # in a row, before a peer is asked less often
BACKOFF_ROUNDS_FIRST_S: Final = 10.0  # one interval of rounds
BACKOFF_ROUNDS_MAX_S: Final = 60.0  # over P2P; a peer that is unheard for so long is polled over HTTP
CONNECTIONS_MAX: Final = 64
HALF_OPEN_PER_ADDRESS_MAX: Final = 16
KNOWN_NODES_MAX: Final = 4096
HINTS_MAX: Final = 64  # places found on the local network, unproved: each costs a dial now and then
LINKS_PER_PEER_MAX: Final = 2  # a cloned identity is served beside the original
DIRECT_OPENED_MAX: Final = 4
DIRECT_ACCEPTED_MAX: Final = 8
HTTP_BODY_BYTES_MAX: Final = 8 * MIB
HTTP_BODY_TIMEOUT_S: Final = 30.0
HTTP_PIECES_FREE: Final = 1024  # pieces of a body whose size is not looked at
HTTP_PIECE_BYTES_MIN: Final = 64  # on average beyond these: a piece costs the loop as much as 10 KiB do
HTTP_BODYLESS_BYTES_MAX: Final = 64 * KIB  # for routes that read no body: some clients send one all the same
HTTP_BODIES_BYTES_MAX: Final = (
    64 * MIB
)  # all bodies held at once, of requests and of answers not sent yet: 16 of the largest envelopes
HTTP_BODIES_BYTES_PER_ADDRESS_MAX: Final = 32 * MIB  # half of it, so that one address never takes all
LONG_POLL_S_MAX: Final = 25.0
VALUE_DEPTH_MAX: Final = 64
PAGE_KEYS_MAX: Final = 1000
PAGE_VALUES_BYTES: Final = 4 * MIB  # keys and values, siblings' too, in one page; what a client holds at once
SIBLINGS_VALUES_BYTES: Final = 2 * MIB  # shown with one key, half a page: siblings may be as many as the logs
SIBLING_BYTES: Final = 256  # what a listed sibling adds to an answer beside its value
HISTORY_OPS_MAX: Final = 10_000  # ops of one key in a history, the newest: some 8 MiB, and 0.5 s in a thread
HISTORY_NAMES_MAX: Final = 100_000  # versions that these ops name, together: 15 MiB
HISTORY_CHUNK: Final = 256  # of one log's ops read at once: the store is held for a millisecond
HISTORY_PAGE_BYTES: Final = 4 * MIB  # of values and names of versions; what a client holds at once
DRIVER_QUEUE: Final = 256  # inputs waiting for the engine; a full queue blocks the sender
TURNS_WAITING_MAX: Final = 4  # pages of one peer in line: rounds of both lungs, and one that was given up
DRIVER_BATCH_BYTES: Final = 4 * MIB  # ops taken into one commit before it is closed
GROUP_BYTES_MAX: Final = 48 * KIB  # waiting writes share an entry up to this, so that it can be gossiped
EVENT_RING: Final = 10_000
EVENT_RING_BYTES: Final = 32 * MIB  # the events held, whatever their number: one may name 256 keys
EVENT_CHUNK_BYTES: Final = 256 * KIB  # written to one stream in one go
EVENT_LINE_BYTES_MAX: Final = 4 * MIB  # 256 keys of 1 KiB, every byte of them escaped
EVENT_STREAMS_MAX: Final = 64  # readers of events at once; each also holds a connection
EVENT_KEEP_ALIVE_S: Final = 15.0  # a silent stream says so often that it lives
PUBLISH_QUEUE: Final = 256
HELLO_TIMEOUT_S: Final = 10.0
EXCHANGE_TIMEOUT_S: Final = 15.0
IDEMPOTENCY_LIFE_S: Final = 86_400


def drips(pieces: int, size: int) -> bool:
    """Whether a body comes in so small pieces that parsing them is the attack."""
    return pieces > HTTP_PIECES_FREE + size // HTTP_PIECE_BYTES_MIN
