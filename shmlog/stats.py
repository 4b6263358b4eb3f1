"""The stats page: a broker's counters in shared memory, read without asking it.

All words are little-endian int64 at their own place, each written with one store by the broker's loop; a reader may
see one counter a moment before another.

    byte     0 +--------------------------------+  written once, `ready` last
               | magic          u32  "SLS1"     |
             4 | layout         u32  1          |
             8 | ready          i64  1          |
            16 | broker         i64             |
            24 | incarnation    i64             |
            32 | pid            i64             |
            40 | started        i64  ns, UTC    |
            48 | slots          i64             |  how many words there are from 192 on
            64 | cluster        64 bytes, UTF-8 |  filled with zeros
           128 +--------------------------------+
               | written        i64  ns         |  CLOCK_MONOTONIC of the newest values
           192 +--------------------------------+  the values, in the order of `SLOTS`
               | counters and gauges, i64[...]  |  see `MEANINGS`
               | turns by duration, i64[64]     |  number i: of 2^(i/2) to 2^((i+1)/2) us, the last one: longer
               +--------------------------------+

A later version appends slots, and never changes what one means. The name of the shared memory is "/sl" and the first
26 characters of the lower-case base32 of SHA-256("stats|CLUSTER|BROKER|INCARNATION"). It goes when its broker's rings
go.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from shmlog.errors import ClusterNotFound, VersionMismatch
from shmlog.ring import posix
from shmlog.ring.memory import SharedMemory

MAGIC = 0x31534C53  # b"SLS1"
LAYOUT_VERSION = 1
MEANINGS = {
    "turns": "turns of the loop",
    "busy_ns": "time spent in them",
    "longest_turn_ns": "the longest one",
    "requests": "requests of clients",
    "errors": "requests answered with an error, BUSY included",
    "busy_answers": "requests answered BUSY",
    "peer_messages": "messages of other brokers",
    "batches_in": "batches appended for producers",
    "records_in": "records in them",
    "bytes_in": "their bytes",
    "duplicates": "batches that were in the log already",
    "bytes_out": "bytes of records fetched by socket",
    "commits": "commits of consumer groups",
    "groups": "consumer groups that it coordinates",
    "members": "members of these groups",
    "waiting": "requests that wait now",
    "admitted_bytes": "bytes of requests without an answer now",
    "partitions": "partitions hosted now",
    "leaders": "partitions led now",
}
NAMES = tuple(MEANINGS)
TURN_BUCKETS = 64
SLOTS = len(NAMES) + TURN_BUCKETS
_READY, _BROKER, _INCARNATION, _PID, _STARTED, _SLOT_COUNT, _WRITTEN, _FIRST = (
    1,
    2,
    3,
    4,
    5,
    6,
    16,
    24,
)
_CLUSTER_AT, _CLUSTER_SIZE = 64, 64
SIZE = 4096


class Identity(NamedTuple):
    """Whose page it is."""

    cluster: str
    broker: int
    incarnation: int


class Stats(NamedTuple):
    """What a page says. `written_ns`: when (CLOCK_MONOTONIC); `turn_counts`: turns by duration."""

    identity: Identity
    pid: int
    started_ns: int
    written_ns: int
    values: dict[str, int]
    turn_counts: tuple[int, ...]


def page_name(identity: Identity) -> str:
    """The name of the page's shared memory."""
    digest = hashlib.sha256("|".join(map(str, ("stats", *identity))).encode()).digest()
    return "/sl" + base64.b32encode(digest).decode().lower()[:26]


def bucket_of(duration_ns: int) -> int:
    """Which number of `turn_counts` a turn of that duration belongs to."""
    us = duration_ns / 1000
    return 0 if us < 1 else min(int(2 * math.log2(us)), TURN_BUCKETS - 1)


def quantile_us(turn_counts: Sequence[int], share: float) -> float:
    """The duration, us, that a share of the turns does not exceed: the upper end of its bucket. 0: no turns."""
    total = sum(turn_counts)
    seen = 0
    for bucket, count in enumerate(turn_counts):
        seen += count
        if count and seen >= share * total:
            return float(2 ** ((bucket + 1) / 2))
    return 0.0


class PageWriter:
    """The one writer of a page, over memory of SIZE zero bytes."""

    def __init__(
        self, memory: SharedMemory, identity: Identity, *, pid: int, started_ns: int
    ) -> None:
        self._words = words = np.frombuffer(memory.buffer, np.int64)
        words[_BROKER], words[_INCARNATION] = identity.broker, identity.incarnation
        words[_PID], words[_STARTED], words[_SLOT_COUNT] = pid, started_ns, SLOTS
        name = identity.cluster.encode()[:_CLUSTER_SIZE]
        memory.buffer[_CLUSTER_AT : _CLUSTER_AT + len(name)] = name
        words[0] = MAGIC | LAYOUT_VERSION << 32
        words[_READY] = 1

    def write(self, values: Sequence[int], turn_counts: Sequence[int], now_ns: int) -> None:
        """All values, in the order of NAMES."""
        words = self._words
        words[_FIRST : _FIRST + SLOTS] = (*values, *turn_counts)
        words[_WRITTEN] = now_ns


def read(identity: Identity) -> Stats:
    """What the page of that incarnation says now.

    Raises: ClusterNotFound: there is no such page. VersionMismatch: one of another layout. PermissionError: another
    user's.
    """
    try:
        memory = posix.attach(page_name(identity))
    except FileNotFoundError:
        raise ClusterNotFound(
            f"broker {identity.broker} has no stats page: it is just starting, or /dev/shm is full"
        ) from None
    try:
        words = np.frombuffer(bytes(memory.buffer[:SIZE]), np.int64).tolist()
    finally:
        memory.close()
    if words[0] != MAGIC | LAYOUT_VERSION << 32 or words[_READY] != 1 or words[_SLOT_COUNT] < SLOTS:
        raise VersionMismatch(f"the stats page of broker {identity.broker} has another layout")
    values = words[_FIRST : _FIRST + len(NAMES)]
    return Stats(
        identity=identity,
        pid=words[_PID],
        started_ns=words[_STARTED],
        written_ns=words[_WRITTEN],
        values=dict(zip(NAMES, values, strict=True)),
        turn_counts=tuple(words[_FIRST + len(NAMES) : _FIRST + SLOTS]),
    )
