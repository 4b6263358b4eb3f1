"""Records in, one finished batch out.

The producer's half is complete, the broker's half holds magic, batch size and body CRC; `stamp`
adds the leader's fields in place. Compressed columns that would be no smaller are stored as they
are, so that a batch is never larger than `record_size` says.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shmlog.errors import InvalidRecord
from shmlog.records.compression import crc32c
from shmlog.records.layout import (
    BASE_SEQUENCE,
    BASE_SEQUENCE_POSITION,
    CHECKSUM,
    HEADER_CRC_END,
    PRODUCER,
    PRODUCER_POSITION,
    RECORD_HEADER,
    STAMP,
    STAMP_POSITION,
    Codec,
)
from shmlog.records.parts import BatchParts, RecordHeaders, Timestamps, seal

# A record's share of the columns: timestamp delta, three positions, and its bits in two bitmaps.
RECORD_OVERHEAD = 8 + 3 * 4 + 1
# What a batch has besides: three positions of the end, and the padding of nine parts.
BATCH_SLACK = 3 * 4 + 9 * 7 + 5


def record_size(key: bytes | None, value: bytes | None, headers: RecordHeaders = ()) -> int:
    """The most bytes a record takes in a batch without compression.

    The sum over a batch's records + HEADER_SIZE + BATCH_SLACK is never below the batch's size.
    """
    size = RECORD_OVERHEAD
    if key is not None:
        size += len(key)
    if value is not None:
        size += len(value)
    for name, content in headers:
        # A character takes four bytes at most.
        size += RECORD_HEADER.size + 4 * len(name) + (0 if content is None else len(content))
    return size


def build(
    values: Sequence[bytes | None],
    *,
    keys: Sequence[bytes | None] | None = None,
    timestamps: Timestamps,
    headers: Sequence[RecordHeaders] | None = None,
    codec: Codec = Codec.NONE,
    producer_id: int = -1,
    producer_epoch: int = -1,
    base_sequence: int = -1,
) -> bytearray:
    """One batch of the records with these values, and keys and headers if given.

    `timestamps` are ns since the epoch, one for all records or one each. Values that all have one
    size above 0, and no null, become a fixed-width column.

    Raises InvalidRecord for records that break a rule of the format, RecordTooLarge if the batch
    would be larger than BATCH_SIZE_MAX, UnsupportedCompression if the codec's package is missing.
    """
    count = len(values)
    if keys is not None and len(keys) != count:
        raise InvalidRecord(f"{len(keys)} keys for {count} values")
    if headers is not None and len(headers) != count:
        raise InvalidRecord(f"headers of {len(headers)} records for {count} values")
    parts = BatchParts(count)
    parts.add_timestamps(timestamps)
    contents = [] if keys is None else [parts.add_keys(keys)]
    contents.append(parts.add_values(values))
    if headers is not None:
        contents.append(parts.add_headers(headers))
    for content, size in contents:
        parts.add(content, size)
    return parts.finish(codec, producer_id, producer_epoch, base_sequence)


def build_array(
    array: NDArray[Any],
    *,
    timestamps: Timestamps,
    codec: Codec = Codec.NONE,
    producer_id: int = -1,
    producer_epoch: int = -1,
    base_sequence: int = -1,
) -> bytearray:
    """One batch whose values are the items of a 1-D array, of any dtype without Python objects.

    No work is done per record. Raises as `build` does.
    """
    if array.ndim != 1 or array.dtype.hasobject or array.itemsize == 0:
        raise InvalidRecord(
            f"an array of {array.ndim} dimensions and dtype {array.dtype} has no fixed "
            "width; pass one dimension of a dtype without Python objects"
        )
    parts = BatchParts(len(array))
    parts.add_timestamps(timestamps)
    parts.value_width = array.itemsize
    parts.add([np.ascontiguousarray(array).view(np.uint8).data], array.nbytes)
    return parts.finish(codec, producer_id, producer_epoch, base_sequence)


def stamp(
    batch: memoryview | bytearray,
    *,
    base_offset: int,
    leader_epoch: int,
    append_time_ns: int,
    topic_id: bytes,
    partition: int,
) -> None:
    """Write the leader's fields and the header CRC into `batch`, which is writable, in place."""
    STAMP.pack_into(
        batch, STAMP_POSITION, leader_epoch, base_offset, append_time_ns, topic_id, partition
    )
    crc = crc32c(memoryview(batch)[:HEADER_CRC_END])
    CHECKSUM.pack_into(batch, HEADER_CRC_END, crc)


def with_producer(
    batch: memoryview | bytearray, producer_id: int, producer_epoch: int, base_sequence: int
) -> None:
    """Give `batch`, exactly one not yet stamped, another producer id, epoch and sequence."""
    BASE_SEQUENCE.pack_into(batch, BASE_SEQUENCE_POSITION, base_sequence)
    PRODUCER.pack_into(batch, PRODUCER_POSITION, producer_id, producer_epoch)
    seal(batch)
