"""The header of a batch: decoding and checks, in O(1) and without its columns.

A broker looks at no more than this of a batch. The checks hold before either CRC is known to fit:
each size is compared with the buffer, the limits and the other sizes, so that nothing read or
allocated later can go beyond them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from shmlog.errors import CorruptMessage, InvalidRecord
from shmlog.records.compression import Buffer, crc32c
from shmlog.records.layout import (
    ALIGNMENT,
    BATCH_SIZE_MAX,
    BROKER_HALF_SIZE,
    COLUMNS_SIZE_MAX,
    FLAGS_KNOWN,
    FLAGS_OF_COMPACTION,
    HEADER,
    HEADER_CRC_END,
    HEADER_SIZE,
    MAGIC,
    NO_TOPIC_ID,
    RESERVED,
    SEQUENCE_END,
    START,
    VERSION,
    Codec,
    Flag,
    padded,
)

_BATCH_SIZE_MIN = HEADER_SIZE + ALIGNMENT  # one record, one position column or one value
_CODEC_LAST = max(Codec)
_NONE_RESERVED = (0, 0, 0)
_UNSTAMPED = (0, 0, 0, NO_TOPIC_ID, 0, 0)  # leader_epoch .. header_crc
# As plain integers: an operation on an enum costs twenty times as much.
_KEYS = int(Flag.KEYS)
_KEY_NULLS = int(Flag.KEY_NULLS)
_VALUE_NULLS = int(Flag.VALUE_NULLS)
_TIMESTAMPS = int(Flag.TIMESTAMPS)
_OFFSETS = int(Flag.OFFSETS)
_BEHIND_GAP = int(Flag.BEHIND_GAP)


class BatchHeader(NamedTuple):
    """The fields of a batch's header, in the order of the layout, reserved ones left out."""

    magic: int
    batch_size: int
    body_crc: int
    leader_epoch: int
    base_offset: int
    append_time_ns: int
    topic_id: bytes
    partition: int
    header_crc: int
    version: int
    codec: int
    flags: int
    record_count: int
    last_offset_delta: int
    base_sequence: int
    base_timestamp_ns: int
    max_timestamp_ns: int
    producer_id: int
    producer_epoch: int
    value_width: int
    columns_size: int
    stored_size: int

    @property
    def last_offset(self) -> int:
        """The offset of the last record that the batch was made of."""
        return self.base_offset + self.last_offset_delta

    @property
    def end_offset(self) -> int:
        """The offset after the last record that the batch was made of."""
        return self.base_offset + self.last_offset_delta + 1

    def follows(self, end_offset: int) -> bool:
        """May it come next in a log that ends at `end_offset`? Only a gap that is declared is none."""
        return self.base_offset == end_offset or (
            self.base_offset > end_offset and bool(self.flags & _BEHIND_GAP)
        )


def read_size(buffer: Buffer, position: int) -> int:
    """The size in bytes of the batch at `position`, 0 if none begins there (the magic word is 0).

    Raises CorruptMessage if there is something else than a batch, or a size no batch can have.
    """
    if position < 0 or len(buffer) - position < START.size:
        raise CorruptMessage(
            f"{len(buffer) - position} bytes at position {position}; too few for a batch's start"
        )
    magic, size = START.unpack_from(buffer, position)
    if magic != MAGIC:
        if magic == 0:
            return 0
        raise CorruptMessage(f"magic {magic:#010x} at position {position}; no batch begins there")
    if not _BATCH_SIZE_MIN <= size <= BATCH_SIZE_MAX or size % ALIGNMENT:
        raise CorruptMessage(f"batch size {size} at position {position}; no batch has that size")
    return size  # type: ignore[no-any-return]


def decode_header(buffer: Buffer, position: int = 0) -> BatchHeader:
    """The header of the batch at `position`, checked in itself; CRCs are not checked here.

    Raises CorruptMessage if there is no whole batch, InvalidRecord if a field breaks a rule of the
    format.
    """
    available = len(buffer) - position
    if position < 0 or available < HEADER_SIZE:
        raise CorruptMessage(
            f"{available} bytes at position {position}; a header has {HEADER_SIZE}"
        )
    header = BatchHeader._make(HEADER.unpack_from(buffer, position))
    size = header.batch_size
    if (
        header.magic != MAGIC
        or size > available
        or size < _BATCH_SIZE_MIN
        or size > BATCH_SIZE_MAX
        or size % ALIGNMENT
    ):
        raise CorruptMessage(
            f"magic {header.magic:#010x}, batch size {size} with {available} bytes at position "
            f"{position}; no whole batch is there"
        )
    fault = _fault(header)
    if fault or RESERVED.unpack_from(buffer, position) != _NONE_RESERVED:
        raise InvalidRecord(f"batch at position {position}: {fault or 'reserved bytes not zero'}")
    return header


def _fault(header: BatchHeader) -> str:
    """The rule of the format that a header's producer half breaks, "" if none."""
    (version, codec, flags, count, last_offset_delta, _, base_timestamp_ns, max_timestamp_ns,
     _, _, width, columns_size, stored_size) = header[9:]  # fmt: skip
    if version != VERSION or codec > _CODEC_LAST or flags > FLAGS_KNOWN:
        return f"version {version}, codec {codec}, flags {flags:#x} are not known"
    if last_offset_delta != count - 1 or count == 0:
        fault = _compaction_fault(header)
        if fault:
            return fault
    if flags & _VALUE_NULLS and width:
        return f"null values beside value width {width}"
    if flags & _KEY_NULLS and not flags & _KEYS:
        return "null keys without keys"
    if max_timestamp_ns != base_timestamp_ns and (
        max_timestamp_ns < base_timestamp_ns or not flags & _TIMESTAMPS
    ):
        return f"timestamps from {base_timestamp_ns} to {max_timestamp_ns} ns, flags {flags:#x}"
    if header.batch_size != HEADER_SIZE + padded(stored_size) or (
        codec == 0 and stored_size != columns_size
    ):
        return (
            f"{columns_size} bytes of columns stored in {stored_size}, {header.batch_size} in all"
        )
    if columns_size > COLUMNS_SIZE_MAX or columns_size % ALIGNMENT:
        return f"{columns_size} bytes of columns; a multiple of 8 up to {COLUMNS_SIZE_MAX}"
    if columns_size < count * (width or 4):
        return f"{count} records do not fit into {columns_size} bytes of columns"
    return ""


def _compaction_fault(header: BatchHeader) -> str:
    """The rule that a batch breaks whose records do not fill its offsets, "" if none."""
    count, flags, last = header.record_count, header.flags, header.last_offset_delta
    if not flags & _OFFSETS or count > last + 1 or last >= SEQUENCE_END:
        return f"{count} records, last offset delta {last}, flags {flags:#x}"
    if count == 0 and (flags & ~FLAGS_OF_COMPACTION or header.codec or header.value_width):
        return f"no records, but flags {flags:#x}, codec {header.codec}, width {header.value_width}"
    return ""


def check_header_crc(buffer: Buffer, header: BatchHeader, position: int = 0) -> None:
    """Raise CorruptMessage unless the header CRC fits; an unstamped batch has none."""
    actual = crc32c(memoryview(buffer)[position : position + HEADER_CRC_END])
    if actual != header.header_crc:
        raise CorruptMessage(
            f"header CRC {actual:#010x} instead of {header.header_crc:#010x}, batch at position "
            f"{position}, offset {header.base_offset}",
            position=position,
        )


def check_body_crc(buffer: Buffer, header: BatchHeader, position: int = 0) -> None:
    """Raise CorruptMessage unless the body CRC fits."""
    body = memoryview(buffer)[position + BROKER_HALF_SIZE : position + header.batch_size]
    actual = crc32c(body)
    if actual != header.body_crc:
        raise CorruptMessage(
            f"body CRC {actual:#010x} instead of {header.body_crc:#010x}, batch at position "
            f"{position}, offset {header.base_offset}",
            position=position,
        )


def is_stamped(header: BatchHeader) -> bool:
    """Has a leader written its fields? A producer's batch has zeros in all of them."""
    return header[3:9] != _UNSTAMPED


def iterate(buffer: Buffer, position: int = 0) -> Iterator[tuple[int, BatchHeader]]:
    """(position, header) of the batches that follow each other from `position` on.

    Ends at the buffer's end, before a batch of which a part is missing, or where the magic word is
    0. Raises as `decode_header` does.
    """
    end = len(buffer)
    while end - position >= START.size:
        size = read_size(buffer, position)
        if size == 0 or size > end - position:
            return
        yield position, decode_header(buffer, position)
        position += size
