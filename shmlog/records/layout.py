"""The record batch: the same bytes in producer, wire, ring, segment and reader.

All integers are little endian. Every part begins at a multiple of 8 bytes; padding is zero.

    byte   0 +---------------------------------------+  the broker's half
             | magic              u32  "SLB1"        |  0 = no batch: end of a segment or of a lap
           4 | batch_size         u32  bytes         |  of the whole batch, a multiple of 8
           8 | body_crc           u32  CRC-32C       |  of bytes 64 .. batch_size
          12 | leader_epoch       i32                |  stamped by the leader
          16 | base_offset        i64                |  stamped by the leader
          24 | append_time        i64  ns, UTC       |  stamped by the leader
          32 | topic_id           16 bytes           |  partition tag: tells a misplaced batch
          48 | partition          u32                |
          52 | reserved           8 bytes, zero      |
          60 | header_crc         u32  CRC-32C       |  of bytes 0 .. 60, made by whoever stamped
          64 +---------------------------------------+  the producer's half
             | version            u8   1             |
          65 | codec              u8                 |  how the columns are stored, see below
          66 | flags              u16                |  which columns there are, see below
          68 | record_count       u32  >= 1          |  0 only with OFFSETS
          72 | last_offset_delta  u32                |  record_count - 1, but with OFFSETS
          76 | base_sequence      i32  -1 = none     |
          80 | base_timestamp     i64  ns, UTC       |  of the earliest record
          88 | max_timestamp      i64  ns, UTC       |  of the latest record
          96 | producer_id        i64  -1 = none     |
         104 | producer_epoch     i16  -1 = none     |
         106 | reserved           2 bytes, zero      |
         108 | value_width        u32  0 = variable  |  > 0: every value has it, none is null
         112 | columns_size       u32  bytes         |  of the columns not compressed; 8 divides it
         116 | stored_size        u32  bytes         |  of the columns as stored, before padding
         120 | reserved           8 bytes, zero      |
         128 +---------------------------------------+
             | columns, stored_size bytes            |
             | padding to a multiple of 8            |
  batch_size +---------------------------------------+

Codecs: 0 none, 1 gzip (RFC 1952), 2 LZ4 frame, 3 Zstandard frame; one frame a batch.
Flags: 1 TIMESTAMPS, 2 KEYS, 4 KEY_NULLS, 8 VALUE_NULLS, 16 HEADERS, 32 OFFSETS, 64 BEHIND_GAP; every
other bit is 0.

The columns (after decompression), in this order, each padded to 8 bytes, n = record_count:

    TIMESTAMPS    timestamp deltas   i64[n]        >= 0, added to base_timestamp; absent: all 0
    KEYS          key positions      i32[n + 1]    rising from 0, into the key bytes
    KEY_NULLS     key validity       ceil(n/8) B   bit i % 8 of byte i // 8 set = record i has a key
    (width 0)     value positions    i32[n + 1]    rising from 0, into the value bytes
    VALUE_NULLS   value validity     ceil(n/8) B   as for keys; never together with value_width > 0
    HEADERS       header positions   i32[n + 1]    rising from 0, into the header bytes
    OFFSETS       offset deltas      i32[n]        strictly rising, 0 .. last_offset_delta
    KEYS          key bytes          key positions[n] bytes
                  value bytes        value positions[n] bytes, or n * value_width
    HEADERS       header bytes       header positions[n] bytes; per header of a record:
                                     u16 name size, i32 value size (-1 = null), name (UTF-8), value

Without compression columns_size = stored_size. A null takes no bytes in its column. Without KEYS no
record has a key, and there are no KEY_NULLS. Positions are what Arrow calls offsets (variable-size
binary): here an offset is a place in the log.

Compaction takes records out of a batch that lies in a file, and whole batches out of a log; nobody else
makes such batches, and produce refuses them. What is left of a batch keeps its base and last offset, leader
epoch, append time and producer's fields, and has OFFSETS: record i is at base_offset + delta i. Without
OFFSETS it is at base_offset + i. base_timestamp and max_timestamp are those of the records that are left.
A batch of which only the header is left (its producer's newest, or its segment's last) has record_count 0,
no flag but OFFSETS and BEHIND_GAP, value_width 0, codec 0, and as columns the one value position, 0;
both timestamps are then what max_timestamp was. A batch with BEHIND_GAP may begin above the end of the
one before it: what lay between was taken out. Without it a batch begins exactly there. A producer's
sequences go by last_offset_delta: base_sequence .. base_sequence + last_offset_delta.

Two checksums, because two parties write: the leader stamps its half without touching the
producer's. The body CRC lies under the header CRC, so one header CRC vouches for offset, epoch, tag
and content together. Neither CRC is trusted for layout: sizes and extents are checked against each
other before use. A batch that no leader has stamped yet has zeros from leader_epoch to header_crc.
"""

from __future__ import annotations

import enum
import struct

MAGIC = 0x31424C53  # b"SLB1"
VERSION = 1
HEADER_SIZE = 128
BROKER_HALF_SIZE = 64
HEADER_CRC_END = 60  # the header CRC covers bytes 0 .. 60
ALIGNMENT = 8

_BROKER_FIELDS = "IIIiqq16sI8xI"
_PRODUCER_FIELDS = "BBHIIiqqqhxxIII8x"
BROKER_HALF = struct.Struct("<" + _BROKER_FIELDS)
PRODUCER_HALF = struct.Struct("<" + _PRODUCER_FIELDS)
HEADER = struct.Struct("<" + _BROKER_FIELDS + _PRODUCER_FIELDS)
assert BROKER_HALF.size == BROKER_HALF_SIZE
assert PRODUCER_HALF.size == HEADER_SIZE - BROKER_HALF_SIZE

# Parts of the header, to be packed or unpacked at their own position.
START = struct.Struct("<II")  # from 0: magic, batch_size
RESERVED = struct.Struct("<52xQ46xH12xQ")  # from 0: the three reserved fields
STAMP = struct.Struct("<iqq16sI8x")  # from STAMP_POSITION: leader_epoch .. partition
STAMP_POSITION = 12
BASE_SEQUENCE = struct.Struct("<i")
BASE_SEQUENCE_POSITION = 76
PRODUCER = struct.Struct("<qh")  # producer_id, producer_epoch
PRODUCER_POSITION = 96
CHECKSUM = struct.Struct("<I")
BODY_CRC_POSITION = 8
assert RESERVED.size == HEADER_SIZE
assert STAMP_POSITION + STAMP.size == HEADER_CRC_END

RECORD_HEADER = struct.Struct("<Hi")  # name size, value size (-1 = null)

# Limits, checked before anything is allocated.
BATCH_SIZE_MAX = 8 << 20  # a produce request holds no more
COLUMNS_SIZE_MAX = 256 << 20
RECORD_HEADERS_MAX = 64
HEADER_NAME_SIZE_MAX = 255
SEQUENCE_END = 1 << 31  # sequences count 0 .. 2^31 - 1 and wrap to 0
NO_TOPIC_ID = bytes(16)


class Codec(enum.IntEnum):
    """How the columns are stored."""

    NONE = 0
    GZIP = 1
    LZ4 = 2
    ZSTD = 3


class Flag(enum.IntFlag):
    """Which columns a batch has, and may it lie behind a gap. Any other bit makes the batch invalid."""

    TIMESTAMPS = 1
    KEYS = 2
    KEY_NULLS = 4
    VALUE_NULLS = 8
    HEADERS = 16
    OFFSETS = 32
    BEHIND_GAP = 64


FLAGS_KNOWN = sum(Flag)
FLAGS_OF_COMPACTION = int(Flag.OFFSETS | Flag.BEHIND_GAP)


def padded(size: int) -> int:
    """`size` rounded up to the alignment of every part, in bytes."""
    return (size + 7) & ~7
