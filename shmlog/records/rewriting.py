"""What compaction leaves of a batch: some of its records under the same identity, or its header alone.

Base and last offset, leader epoch, append time, producer id, epoch and sequence stay as they were: a batch is known
by them, to the epoch history and to the producers' windows. The codec stays too; where what is left would be larger
than any batch may be (the offset deltas cost four bytes a record), it is compressed.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from shmlog.errors import RecordTooLarge
from shmlog.records.batch import RecordBatch
from shmlog.records.builder import stamp
from shmlog.records.compression import Buffer
from shmlog.records.header import BatchHeader
from shmlog.records.layout import (
    ALIGNMENT,
    FLAGS_OF_COMPACTION,
    HEADER,
    HEADER_SIZE,
    Codec,
    Flag,
)
from shmlog.records.parts import BatchParts, seal

_BEHIND_GAP = int(Flag.BEHIND_GAP)


def with_gap(data: Buffer, header: BatchHeader, *, behind_gap: bool) -> Buffer:
    """The batch `data` with that flag as it is wanted; `data` itself if it is so already."""
    if bool(header.flags & _BEHIND_GAP) == behind_gap:
        return data
    flags = header.flags & ~_BEHIND_GAP | (_BEHIND_GAP if behind_gap else 0)
    return _sealed(bytearray(data), header._replace(flags=flags))


def only(batch: RecordBatch, kept: NDArray[np.intp], *, behind_gap: bool) -> Buffer:
    """Records `kept` (indices, rising) of a stamped batch, which may have been rewritten before; some, not all.

    Raises: RecordTooLarge: the batch would be larger than any may be. UnsupportedCompression. CorruptMessage.
    """
    header = batch.header
    if not len(kept):
        return header_only(header, behind_gap=behind_gap)
    codec = Codec(header.codec)
    try:
        data = _built(batch, kept, codec)
    except RecordTooLarge:
        if codec is not Codec.NONE:
            raise
        data = _built(batch, kept, Codec.GZIP)
    made = BatchHeader._make(HEADER.unpack_from(data))
    return _sealed(
        data, made._replace(flags=made.flags | (_BEHIND_GAP if behind_gap else 0)), header
    )


def header_only(header: BatchHeader, *, behind_gap: bool) -> Buffer:
    """The batch without records."""
    data = bytearray(HEADER_SIZE + ALIGNMENT)
    flags = int(Flag.OFFSETS) | (_BEHIND_GAP if behind_gap else 0)
    empty = header._replace(
        batch_size=len(data),
        codec=0,
        flags=flags,
        record_count=0,
        base_timestamp_ns=header.max_timestamp_ns,
        value_width=0,
        columns_size=ALIGNMENT,
        stored_size=ALIGNMENT,
    )
    return _sealed(data, empty)


def is_header_only(header: BatchHeader) -> bool:
    """Has it no record left?"""
    return header.record_count == 0 and not header.flags & ~FLAGS_OF_COMPACTION


def _built(batch: RecordBatch, kept: NDArray[np.intp], codec: Codec) -> bytearray:
    header = batch.header
    keys, values = batch.keys(), batch.values()
    chosen = kept.tolist()
    parts = BatchParts(len(chosen))
    parts.add_timestamps(batch.timestamps[kept])
    contents = [parts.add_keys([keys[i] for i in chosen])]
    contents.append(parts.add_values([values[i] for i in chosen]))
    if batch.has_headers:
        contents.append(parts.add_headers([batch.headers(i) for i in chosen]))
    parts.add_offsets(
        (batch.offsets[kept] - header.base_offset).astype(np.int32), header.last_offset_delta
    )
    for content, size in contents:
        parts.add(content, size)
    return parts.finish(codec, header.producer_id, header.producer_epoch, header.base_sequence)


def _sealed(data: bytearray, header: BatchHeader, stamped: BatchHeader | None = None) -> bytearray:
    """Write `header` into `data`, and both checksums; the leader's stamp is that of `stamped`."""
    stamped = stamped or header
    HEADER.pack_into(data, 0, *header)
    seal(data)
    stamp(
        data,
        base_offset=stamped.base_offset,
        leader_epoch=stamped.leader_epoch,
        append_time_ns=stamped.append_time_ns,
        topic_id=stamped.topic_id,
        partition=stamped.partition,
    )
    return data
