"""The ring: a partition's newest batches in shared memory; one writer, any number of readers.

All words are little-endian and aligned; each published word has a cache line (64 bytes) of its own.

    byte     0 +----------------------------------+  written once, `ready` last
               | magic           u32  "SLR1"      |
             4 | layout          u32  1           |
             8 | ready           u64  1           |
            16 | capacity        u64  bytes       |  of the data, a multiple of 4096, at least 65536
            24 | entries         u64  4096        |  of the index
            32 | broker          u64              |
            40 | incarnation     u64              |
            48 | partition       u64              |
            56 | topic_id        16 bytes         |
            72 | cluster         64 bytes, UTF-8  |  filled with zeros
           192 +----------------------------------+  published words
               | oldest_valid    u64  position    |  moved BEFORE bytes are overwritten
           256 | tail            u64  position    |  moved AFTER the bytes are there and in the file
           320 | high_watermark  u64  position    |  readers stop here
           384 | leader_epoch    u64              |
           448 | heartbeat       u64  ns          |  CLOCK_MONOTONIC, stamped by the writer's loop
           512 | sealed          u64  0 or 1      |  1: nothing will be published any more
           576 | index_count     u64              |  entries ever written
           640 | bell            u64              |  written through the file
          4096 +----------------------------------+  the index: entry i in place i % entries
               | base offsets    i64[entries]     |
         36864 | positions       i64[entries]     |
         69632 +----------------------------------+  the data
               | capacity bytes                   |
               +----------------------------------+

A *position* counts bytes ever written, padding included; it never goes back and stays below 2^63.
Its place in the data (its slot) is position % capacity. A batch is a multiple of 8 bytes, at most
half the capacity, and is never split at the end of a lap: what is left of the lap is padding,
whose first word (u32) is 0, which no batch's first word is. That is all the ring knows of what it
carries.

An index entry is written only when a batch begins at least capacity / entries bytes behind the last
entry, so a full index spans the ring: an entry is replaced only after its batch was overwritten. A
reader walks the few batches from an entry to the offset it wants.

The name of the shared memory is "/sl" and the first 26 characters of the lower-case base32 of
SHA-256("CLUSTER|BROKER|INCARNATION|TOPIC ID IN HEX|PARTITION"), numbers in decimal. A new
incarnation has new names, so two writers never meet on one; the long identity stands in the header
and is checked.

Invariants: oldest_valid <= tail; high_watermark <= tail; tail - oldest_valid <= capacity.
oldest_valid may lie inside a batch (the rest of it is not valid either), and above the high
watermark when more is waiting to be committed than the ring holds: then there is nothing to read
in it. After a store to high_watermark or sealed the bell is written with pwrite(2), so that inotify(7) tells those who
watch the file: they need not ask anybody.
"""

from __future__ import annotations

import base64
import hashlib
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

MAGIC = 0x31524C53  # b"SLR1"
LAYOUT_VERSION = 1
PAGE = 4096
ENTRIES = 4096
INDEX_OFFSETS = PAGE
INDEX_POSITIONS = INDEX_OFFSETS + 8 * ENTRIES
DATA = INDEX_POSITIONS + 8 * ENTRIES
ALIGNMENT = 8
CAPACITY_MIN = 16 * PAGE

# Word numbers: byte / 8 in the header page.
MAGIC_AND_LAYOUT, READY, CAPACITY, ENTRY_COUNT, BROKER, INCARNATION, PARTITION = range(7)
TOPIC_ID_AT, CLUSTER_AT, CLUSTER_SIZE = 56, 72, 64
OLDEST_VALID, TAIL, HIGH_WATERMARK, LEADER_EPOCH = 24, 32, 40, 48
HEARTBEAT, SEALED, INDEX_COUNT, BELL = 56, 64, 72, 80


class RingIdentity(NamedTuple):
    """Whose ring it is."""

    cluster: str
    broker: int
    incarnation: int
    topic_id: bytes
    partition: int


def ring_name(identity: RingIdentity) -> str:
    """The name of the ring's shared memory."""
    text = (
        f"{identity.cluster}|{identity.broker}|{identity.incarnation}"
        f"|{identity.topic_id.hex()}|{identity.partition}"
    )
    digest = hashlib.sha256(text.encode()).digest()
    return "/sl" + base64.b32encode(digest).decode().lower()[:26]


def ring_size(capacity: int) -> int:
    """Bytes of the whole memory of a ring with `capacity` bytes of data."""
    return DATA + capacity


def index_of(buffer: memoryview) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The index as it lies in the ring: (base offsets, positions), each int64[ENTRIES]."""
    return (
        np.frombuffer(buffer[INDEX_OFFSETS:INDEX_POSITIONS], np.int64),
        np.frombuffer(buffer[INDEX_POSITIONS:DATA], np.int64),
    )
