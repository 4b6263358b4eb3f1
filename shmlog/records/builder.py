"""Records in, one finished batch out.

The work per record is done by C loops: lengths by `map(len)`, positions by one cumulative sum,
bytes by one join of the header's space, the columns and the values themselves, so that each value
is copied once. Only nulls cost a Python step a batch more, and record headers one a record.

The producer's half is complete, the broker's half holds magic, batch size and body CRC; `stamp`
adds the leader's fields in place. Compressed columns that would be no smaller are stored as they
are, so that a batch is never larger than `batch_size_estimate` says.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shmlog.errors import InvalidRecord, RecordTooLarge
from shmlog.records import compression
from shmlog.records.compression import Buffer, crc32c
from shmlog.records.layout import (
    BASE_SEQUENCE,
    BASE_SEQUENCE_POSITION,
    BATCH_SIZE_MAX,
    BODY_CRC_POSITION,
    BROKER_HALF_SIZE,
    CHECKSUM,
    COLUMNS_SIZE_MAX,
    HEADER,
    HEADER_CRC_END,
    HEADER_NAME_SIZE_MAX,
    HEADER_SIZE,
    MAGIC,
    NO_TOPIC_ID,
    PRODUCER,
    PRODUCER_POSITION,
    RECORD_HEADER,
    RECORD_HEADERS_MAX,
    STAMP,
    STAMP_POSITION,
    VERSION,
    Codec,
    Flag,
    padded,
)

RecordHeaders = Sequence[tuple[str, bytes | None]]
Timestamps = int | Sequence[int] | NDArray[np.int64]

# A record's share of the columns: timestamp delta, three positions, and its bits in two bitmaps.
RECORD_OVERHEAD = 8 + 3 * 4 + 1
# What a batch has besides: three positions of the end, and the padding of nine parts.
BATCH_SLACK = 3 * 4 + 9 * 7 + 5

# As plain integers: an operation on an enum costs twenty times as much.
_TIMESTAMPS = int(Flag.TIMESTAMPS)
_KEYS = int(Flag.KEYS)
_KEY_NULLS = int(Flag.KEY_NULLS)
_VALUE_NULLS = int(Flag.VALUE_NULLS)
_HEADERS = int(Flag.HEADERS)

_TIMESTAMP_MAX_NS = (1 << 63) - 1
_PADDING = [bytes(size) for size in range(8)]
_HEADER_SPACE = bytes(HEADER_SIZE)


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


def batch_size_estimate(
    count: int, value_bytes: int, key_bytes: int = 0, header_bytes: int = 0
) -> int:
    """The most bytes a batch of `count` records takes; the other arguments are sums over them.

    `header_bytes` counts each record header as 6 + name + value.
    """
    content = value_bytes + key_bytes + header_bytes
    return HEADER_SIZE + BATCH_SLACK + count * RECORD_OVERHEAD + content


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
    columns = _Columns(count)
    columns.add_timestamps(timestamps)
    key_parts = header_parts = None
    if keys is not None:
        key_parts = columns.add_keys(keys)
    value_parts = columns.add_values(values)
    if headers is not None:
        header_parts = columns.add_headers(headers)
    for content in (key_parts, value_parts, header_parts):
        if content is not None:
            columns.add(*content)
    return columns.finish(codec, producer_id, producer_epoch, base_sequence)


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
    columns = _Columns(len(array))
    columns.add_timestamps(timestamps)
    columns.value_width = array.itemsize
    columns.add([np.ascontiguousarray(array).view(np.uint8).data], array.nbytes)
    return columns.finish(codec, producer_id, producer_epoch, base_sequence)


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
    CHECKSUM.pack_into(batch, BODY_CRC_POSITION, crc32c(memoryview(batch)[BROKER_HALF_SIZE:]))


class _Columns:
    """The parts of a batch under construction, in the order of the layout, and their sizes."""

    __slots__ = (
        "base_timestamp_ns",
        "count",
        "flags",
        "max_timestamp_ns",
        "parts",
        "size",
        "value_width",
    )

    def __init__(self, count: int) -> None:
        if count == 0:
            raise InvalidRecord("a batch of no records; give at least one")
        self.count = count
        self.flags = 0
        self.value_width = 0
        self.base_timestamp_ns = self.max_timestamp_ns = 0
        self.parts: list[Buffer] = [_HEADER_SPACE]
        self.size = 0

    def add(self, content: Sequence[Buffer], size: int) -> None:
        """Append one column of `size` bytes and its padding."""
        if self.size + size > COLUMNS_SIZE_MAX:
            raise _too_large("columns", self.size + size, COLUMNS_SIZE_MAX)
        self.parts += content
        padding = -size & 7
        if padding:
            self.parts.append(_PADDING[padding])
        self.size += size + padding

    def add_timestamps(self, timestamps: Timestamps) -> None:
        if isinstance(timestamps, (int, np.integer)):
            self.base_timestamp_ns = self.max_timestamp_ns = int(timestamps)
            if self.max_timestamp_ns > _TIMESTAMP_MAX_NS:
                raise InvalidRecord(f"timestamp {timestamps} is beyond 64 bits of nanoseconds")
        else:
            times = np.asarray(timestamps)
            if times.shape != (self.count,) or times.dtype.kind not in "iu":
                raise InvalidRecord(
                    f"timestamps of shape {times.shape} and dtype {times.dtype} for {self.count} "
                    "values; one integer each, in ns"
                )
            times = times.astype(np.int64, copy=False)
            self.base_timestamp_ns, self.max_timestamp_ns = int(times.min()), int(times.max())
        if self.base_timestamp_ns < 0:
            raise InvalidRecord(f"timestamp {self.base_timestamp_ns} ns is before 1970")
        if self.base_timestamp_ns != self.max_timestamp_ns:
            self.flags |= _TIMESTAMPS
            self.add([(times - self.base_timestamp_ns).data], 8 * self.count)

    def add_keys(self, keys: Sequence[bytes | None]) -> tuple[Sequence[Buffer], int] | None:
        """Add positions and validity of the keys; return the key bytes, added later."""
        nulls = _null_bitmap(keys)
        present = [key for key in keys if key is not None] if nulls is not None else keys
        if not present:
            return None
        self.flags |= _KEYS
        size = self._add_positions(_sizes(keys))
        if nulls is not None:
            self.flags |= _KEY_NULLS
            self.add([nulls], len(nulls))
        return present, size  # type: ignore[return-value]

    def add_values(self, values: Sequence[bytes | None]) -> tuple[Sequence[Buffer], int]:
        """Add positions and validity of the values, if any; return the value bytes."""
        try:
            lengths = list(map(len, values))  # type: ignore[arg-type]
        except TypeError:
            return self._add_nullable_values(values)
        width = lengths[0]
        if width and lengths.count(width) == self.count:
            self.value_width = width
            return values, width * self.count  # type: ignore[return-value]
        return values, self._add_positions(lengths)  # type: ignore[return-value]

    def _add_nullable_values(self, values: Sequence[bytes | None]) -> tuple[Sequence[Buffer], int]:
        nulls = _null_bitmap(values)
        present = [value for value in values if value is not None]
        size = self._add_positions(_sizes(values))
        assert nulls is not None  # or all of them would have had a size
        self.flags |= _VALUE_NULLS
        self.add([nulls], len(nulls))
        return present, size

    def add_headers(self, headers: Sequence[RecordHeaders]) -> tuple[Sequence[Buffer], int] | None:
        """Add the positions of the record headers; return the header bytes."""
        encoded = [_encode_headers(record) for record in headers]
        if not any(encoded):
            return None
        self.flags |= _HEADERS
        return encoded, self._add_positions([len(part) for part in encoded])

    def _add_positions(self, lengths: list[int]) -> int:
        """Add a column of positions; return the bytes they span."""
        ends = np.cumsum(np.array(lengths, dtype=np.int64))
        size = int(ends[-1])
        if size > COLUMNS_SIZE_MAX:
            raise _too_large("a column", size, COLUMNS_SIZE_MAX)
        # With the padding, when n + 1 is odd, as one position more.
        positions = np.zeros((self.count + 2) & ~1, dtype="<i4")
        positions[1 : self.count + 1] = ends
        self.add([positions.data], positions.nbytes)
        return size

    def finish(
        self, codec: Codec, producer_id: int, producer_epoch: int, base_sequence: int
    ) -> bytearray:
        """The batch, with the broker's half not stamped."""
        if codec is Codec.NONE and HEADER_SIZE + self.size > BATCH_SIZE_MAX:
            raise _too_large("a batch", HEADER_SIZE + self.size, BATCH_SIZE_MAX)
        try:
            batch = bytearray().join(self.parts)
        except TypeError as wrong:
            raise _not_bytes(wrong) from wrong
        if len(batch) != HEADER_SIZE + self.size:
            raise InvalidRecord("keys and values are bytes; cast memoryviews to bytes first")
        stored_size = self.size
        if codec is not Codec.NONE:
            codec, stored_size = _compress(codec, batch)
        HEADER.pack_into(
            batch, 0, MAGIC, len(batch), 0, 0, 0, 0, NO_TOPIC_ID, 0, 0,
            VERSION, codec, self.flags, self.count, self.count - 1, base_sequence,
            self.base_timestamp_ns, self.max_timestamp_ns, producer_id, producer_epoch,
            self.value_width, self.size, stored_size,
        )  # fmt: skip
        CHECKSUM.pack_into(batch, BODY_CRC_POSITION, crc32c(memoryview(batch)[BROKER_HALF_SIZE:]))
        return batch


def _compress(codec: Codec, batch: bytearray) -> tuple[Codec, int]:
    """Replace the columns of `batch` by compressed ones if that makes it smaller.

    Returns the codec used and the size stored.
    """
    size = len(batch) - HEADER_SIZE
    stored = compression.compress(codec, memoryview(batch)[HEADER_SIZE:])
    if padded(len(stored)) < size:
        batch[HEADER_SIZE:] = stored + _PADDING[-len(stored) & 7]
        size = len(stored)
    else:
        codec = Codec.NONE
    if len(batch) > BATCH_SIZE_MAX:
        raise _too_large("a batch", len(batch), BATCH_SIZE_MAX)
    return codec, size


def _sizes(items: Sequence[bytes | None]) -> list[int]:
    """The size of each item, 0 for None."""
    try:
        return [0 if item is None else len(item) for item in items]
    except TypeError as wrong:
        raise _not_bytes(wrong) from wrong


def _not_bytes(wrong: Exception) -> InvalidRecord:
    return InvalidRecord(f"keys and values are bytes or None; serialize them first: {wrong}")


def _null_bitmap(items: Sequence[bytes | None]) -> bytes | None:
    """A bit for each item, set where it is not None; None if all are set."""
    present = [item is not None for item in items]
    if all(present):
        return None
    return np.packbits(np.array(present), bitorder="little").tobytes()


def _encode_headers(headers: RecordHeaders) -> bytes:
    if len(headers) > RECORD_HEADERS_MAX:
        raise InvalidRecord(f"{len(headers)} headers on a record; at most {RECORD_HEADERS_MAX}")
    parts: list[bytes] = []
    for name, value in headers:
        try:
            encoded = name.encode()
            parts += [
                RECORD_HEADER.pack(len(encoded), -1 if value is None else len(value)),
                encoded,
            ]
            parts.append(b"" if value is None else bytes(memoryview(value)))
        except (AttributeError, TypeError, UnicodeEncodeError, struct.error) as wrong:
            raise InvalidRecord(
                f"record header {name!r} is not text of UTF-8 with bytes or None: {wrong}"
            ) from wrong
        if not 1 <= len(encoded) <= HEADER_NAME_SIZE_MAX:
            raise InvalidRecord(
                f"a header name of {len(encoded)} bytes; 1 to {HEADER_NAME_SIZE_MAX} of UTF-8"
            )
    return b"".join(parts)


def _too_large(what: str, size: int, limit: int) -> RecordTooLarge:
    return RecordTooLarge(
        f"{what} of {size} bytes; the limit is {limit}: send fewer or smaller records",
        size=size,
        limit=limit,
    )
