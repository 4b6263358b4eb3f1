"""The parts of a batch under construction, in the order of the layout.

The work per record is done by C loops: lengths by `map(len)`, positions by one cumulative sum,
bytes by one join of all parts, the values themselves among them, so that each value is copied once.
Only nulls and record headers cost Python steps per record. Sizes are checked before the join.
"""

from __future__ import annotations

import array
import struct
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from shmlog.errors import InvalidRecord, RecordTooLarge
from shmlog.records import compression
from shmlog.records.compression import Buffer, crc32c
from shmlog.records.layout import (
    BATCH_SIZE_MAX,
    BODY_CRC_POSITION,
    BROKER_HALF_SIZE,
    CHECKSUM,
    COLUMNS_SIZE_MAX,
    HEADER,
    HEADER_NAME_SIZE_MAX,
    HEADER_SIZE,
    MAGIC,
    NO_TOPIC_ID,
    RECORD_HEADER,
    RECORD_HEADERS_MAX,
    VERSION,
    Codec,
    Flag,
    padded,
)

RecordHeaders = Sequence[tuple[str, bytes | None]]
Timestamps = int | Sequence[int] | NDArray[np.int64]

Content = tuple[Sequence[Buffer], int]  # the bytes of a column in parts, and their size

# As plain integers: an operation on an enum costs twenty times as much.
_TIMESTAMPS = int(Flag.TIMESTAMPS)
_KEYS = int(Flag.KEYS)
_KEY_NULLS = int(Flag.KEY_NULLS)
_VALUE_NULLS = int(Flag.VALUE_NULLS)
_HEADERS = int(Flag.HEADERS)
_OFFSETS = int(Flag.OFFSETS)

_TIMESTAMP_MAX_NS = (1 << 63) - 1
_PADDING = [bytes(size) for size in range(8)]
_HEADER_SPACE = bytes(HEADER_SIZE)


class BatchParts:
    """The parts of a batch under construction, in the order of the layout, and their sizes."""

    __slots__ = (
        "base_timestamp_ns",
        "count",
        "flags",
        "last_offset_delta",
        "max_timestamp_ns",
        "parts",
        "size",
        "value_width",
    )

    def __init__(self, count: int) -> None:
        if count == 0:
            raise InvalidRecord("a batch of no records; give at least one")
        self.count = count
        self.last_offset_delta = count - 1
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
        if type(timestamps) is list and self.count == len(timestamps) == 1:
            # A record alone: without numpy in a third of the time. A float is still refused.
            timestamps = timestamps[0] if type(timestamps[0]) is int else timestamps
        if isinstance(timestamps, (int, np.integer)):
            self.base_timestamp_ns = self.max_timestamp_ns = int(timestamps)
            if self.max_timestamp_ns > _TIMESTAMP_MAX_NS:
                raise InvalidRecord(f"timestamp {timestamps} is beyond 64 bits of nanoseconds")
        else:
            times = _times(timestamps, self.count)
            self.base_timestamp_ns, self.max_timestamp_ns = int(times.min()), int(times.max())
        if self.base_timestamp_ns < 0:
            raise InvalidRecord(f"timestamp {self.base_timestamp_ns} ns is before 1970")
        if self.base_timestamp_ns != self.max_timestamp_ns:
            self.flags |= _TIMESTAMPS
            self.add([(times - self.base_timestamp_ns).data], 8 * self.count)

    def add_keys(self, keys: Sequence[bytes | None]) -> Content:
        """Add positions and validity of the keys; return the key bytes, added later."""
        lengths, present, validity = _measured(keys)
        if not present:
            return (), 0
        self.flags |= _KEYS
        size = self._add_positions(lengths)
        if validity is not None:
            self.flags |= _KEY_NULLS
            self.add([validity], len(validity))
        return present, size

    def add_values(self, values: Sequence[bytes | None]) -> Content:
        """Add positions and validity of the values, if any; return the value bytes."""
        lengths, present, validity = _measured(values)
        width = lengths[0]
        if validity is None and width and lengths.count(width) == self.count:
            self.value_width = width
            return present, width * self.count
        size = self._add_positions(lengths)
        if validity is not None:
            self.flags |= _VALUE_NULLS
            self.add([validity], len(validity))
        return present, size

    def add_headers(self, headers: Sequence[RecordHeaders]) -> Content:
        """Add the positions of the record headers; return the header bytes."""
        encoded = [_encode_headers(record) for record in headers]
        if not any(encoded):
            return (), 0
        self.flags |= _HEADERS
        return encoded, self._add_positions([len(part) for part in encoded])

    def add_offsets(self, deltas: NDArray[np.int32], last_offset_delta: int) -> None:
        """Records that compaction has left: where each was, and where the last one of all was."""
        self.flags |= _OFFSETS
        self.last_offset_delta = last_offset_delta
        self.add([deltas.astype("<i4").data], 4 * self.count)

    def _add_positions(self, lengths: list[int]) -> int:
        """Add a column of positions; return the bytes they span."""
        ends = np.cumsum(np.fromiter(lengths, np.int64, self.count))
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
            VERSION, codec, self.flags, self.count, self.last_offset_delta, base_sequence,
            self.base_timestamp_ns, self.max_timestamp_ns, producer_id, producer_epoch,
            self.value_width, self.size, stored_size,
        )  # fmt: skip
        seal(batch)
        return batch


def _times(timestamps: Sequence[int] | NDArray[np.int64], count: int) -> NDArray[np.int64]:
    if not isinstance(timestamps, np.ndarray):
        try:  # faster than numpy finding out the dtype of a list, and no float gets through
            timestamps = np.frombuffer(array.array("q", timestamps), dtype=np.int64)
        except (TypeError, OverflowError) as wrong:
            raise InvalidRecord(f"timestamps are 64-bit integers of ns: {wrong}") from wrong
    if timestamps.shape != (count,) or timestamps.dtype.kind not in "iu":
        raise InvalidRecord(
            f"timestamps of shape {timestamps.shape} and dtype {timestamps.dtype} for {count} "
            "values; one integer each, in ns"
        )
    return timestamps.astype(np.int64, copy=False)


def seal(batch: memoryview | bytearray) -> None:
    """Write the body CRC into `batch`, which is exactly one batch, in place."""
    CHECKSUM.pack_into(batch, BODY_CRC_POSITION, crc32c(memoryview(batch)[BROKER_HALF_SIZE:]))


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


def _measured(
    items: Sequence[bytes | None],
) -> tuple[list[int], Sequence[bytes], bytes | None]:
    """The size of each item, 0 for None; the items that are not None; their bitmap if any is."""
    try:
        return list(map(len, items)), items, None  # type: ignore[arg-type, return-value]
    except TypeError:
        pass  # a None is among them, or what is no bytes at all
    try:
        lengths = [0 if item is None else len(item) for item in items]
    except TypeError as wrong:
        raise _not_bytes(wrong) from wrong
    present = np.array([item is not None for item in items])
    validity = np.packbits(present, bitorder="little").tobytes()
    return lengths, [item for item in items if item is not None], validity


def _not_bytes(wrong: Exception) -> InvalidRecord:
    return InvalidRecord(f"keys and values are bytes or None; serialize them first: {wrong}")


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
