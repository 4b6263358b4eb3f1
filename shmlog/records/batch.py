"""A batch as its reader sees it: a read-only view over the batch's own bytes.

Nothing is decoded before it is asked for. The first use of a column decompresses, if need be, and
checks all extents (`columns`); after that lists of `bytes`, arrays and slices are taken without
further checks. Whatever the bytes hold, only CorruptMessage, InvalidRecord or
UnsupportedCompression comes out, and memory stays within the sizes that the header was checked for.

The view does not own its memory: a reader of a ring takes what it needs before the bytes are
overwritten.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from shmlog.errors import InvalidRecord, RecordTooLarge
from shmlog.records.columns import Columns, fixed_items
from shmlog.records.compression import Buffer, decompress
from shmlog.records.header import (
    BatchHeader,
    check_body_crc,
    check_header_crc,
    decode_header,
    is_stamped,
    iterate,
    read_size,
)
from shmlog.records.layout import (
    COLUMNS_SIZE_MAX,
    HEADER_NAME_SIZE_MAX,
    HEADER_SIZE,
    RECORD_HEADER,
    RECORD_HEADERS_MAX,
    Codec,
    Flag,
)

__all__ = [
    "BatchHeader",
    "RecordBatch",
    "check_body_crc",
    "check_content",
    "check_header_crc",
    "decode_header",
    "is_stamped",
    "iterate",
    "read_size",
]

_HEADERS = int(Flag.HEADERS)
_OFFSETS = int(Flag.OFFSETS)


def check_content(buffer: Buffer, header: BatchHeader) -> None:
    """Raise CorruptMessage unless the body CRC fits, InvalidRecord unless the columns can be opened.

    Compressed columns are not opened: that would cost more than all else that a broker does with a batch.
    """
    check_body_crc(buffer, header)
    if not header.codec:
        Columns(header, memoryview(buffer)[HEADER_SIZE : HEADER_SIZE + header.stored_size])


class RecordBatch:
    """The batch at the start of `buffer`.

    With `check_crc` the body CRC has to fit, and the header CRC if a leader has stamped the batch.
    Columns larger than `columns_size_max` bytes are refused before anything is decompressed.

    Raises CorruptMessage, InvalidRecord, RecordTooLarge; the columns' own errors come at their
    first use.
    """

    __slots__ = ("_buffer", "_columns", "header")

    def __init__(
        self,
        buffer: Buffer,
        header: BatchHeader | None = None,
        *,
        check_crc: bool = True,
        columns_size_max: int = COLUMNS_SIZE_MAX,
    ) -> None:
        self.header = decode_header(buffer) if header is None else header
        self._buffer = memoryview(buffer)[: self.header.batch_size].toreadonly()
        self._columns: Columns | None = None
        if check_crc:
            if is_stamped(self.header):
                check_header_crc(self._buffer, self.header)
            check_body_crc(self._buffer, self.header)
        if self.header.columns_size > columns_size_max:
            raise RecordTooLarge(
                f"columns of {self.header.columns_size} bytes; the limit is {columns_size_max}",
                size=self.header.columns_size,
                limit=columns_size_max,
            )

    def __len__(self) -> int:
        return self.header.record_count

    def __repr__(self) -> str:
        header = self.header
        return f"<RecordBatch {len(self)} records from offset {header.base_offset}>"

    @property
    def base_offset(self) -> int:
        """Where the batch begins: the offset of its first record, if compaction has left that one."""
        return self.header.base_offset

    @property
    def end_offset(self) -> int:
        """Where the batch ends: the offset after its last record, whether or not that one is left."""
        return self.header.end_offset

    @property
    def has_gaps(self) -> bool:
        """Has compaction taken records out? Else record i is at `base_offset` + i."""
        return bool(self.header.flags & _OFFSETS)

    @property
    def offsets(self) -> NDArray[np.int64]:
        """The offset of each record."""
        deltas = self._open().offsets if self.has_gaps else None
        if deltas is None:
            return np.arange(self.base_offset, self.end_offset, dtype=np.int64)
        return deltas + np.int64(self.base_offset)

    def index_at(self, offset: int) -> int:
        """The index of the first record at or above `offset`; len(self) if all lie below."""
        if not self.has_gaps:
            return min(max(offset - self.base_offset, 0), len(self))
        return int(np.searchsorted(self.offsets, offset))

    @property
    def timestamps(self) -> NDArray[np.int64]:
        """The producer's timestamp of each record, ns since the epoch."""
        deltas = self._open().deltas
        if deltas is None:
            return np.full(len(self), self.header.base_timestamp_ns, dtype=np.int64)
        return deltas + self.header.base_timestamp_ns

    @property
    def has_headers(self) -> bool:
        """Does any record have headers?"""
        return bool(self.header.flags & _HEADERS)

    @property
    def columns(self) -> Columns:
        """All columns, decompressed and checked."""
        return self._open()

    def values(self, start: int = 0, stop: int | None = None) -> list[bytes | None]:
        """The values of records start .. stop, None for null; indices as in slices of a list."""
        start, stop = self._bounds(start, stop)
        columns = self._open()
        if columns.values is not None:
            return columns.values.items(start, stop)
        width = self.header.value_width
        return fixed_items(columns.fixed_values[start * width : stop * width], width)

    def keys(self, start: int = 0, stop: int | None = None) -> list[bytes | None]:
        """The keys of records start .. stop, None for records without one."""
        start, stop = self._bounds(start, stop)
        column = self._open().keys
        return [None] * (stop - start) if column is None else column.items(start, stop)

    def null_values(self) -> NDArray[np.intp]:
        """The indices of the records whose value is null."""
        column = self._open().values
        if column is None or column.validity is None:
            return np.empty(0, np.intp)
        return column.nulls(0, len(self))

    def headers(self, index: int) -> list[tuple[str, bytes | None]]:
        """The headers of record `index`, in the order the producer gave."""
        index = range(len(self))[index]
        column = self._open().headers
        if column is None:
            return []
        start, stop = column.positions[index : index + 2].tolist()
        return _decode_headers(column.data[start:stop].tobytes())

    def array(self, dtype: DTypeLike) -> NDArray[Any]:
        """The values as an array of `dtype`, without a copy of the (decompressed) columns.

        Raises InvalidRecord unless all values have the size of the dtype.
        """
        wanted = np.dtype(dtype)
        width = self.header.value_width
        if wanted.itemsize != width or not width or wanted.hasobject:
            raise InvalidRecord(
                f"dtype {wanted} of {wanted.itemsize} bytes does not fit values of width {width} "
                "(0 = variable)"
            )
        return np.frombuffer(self._open().fixed_values, dtype=wanted)

    def validate(self) -> None:
        """Check every column whole, record headers too. Raises InvalidRecord or CorruptMessage."""
        columns = self._open()
        if columns.keys is not None:
            columns.keys.check_nulls("key")
        if columns.values is not None:
            columns.values.check_nulls("value")
        if columns.headers is not None:
            for index in range(len(self)):
                self.headers(index)

    def _bounds(self, start: int, stop: int | None) -> tuple[int, int]:
        first, end, _ = slice(start, stop).indices(len(self))
        return first, max(first, end)

    def _open(self) -> Columns:
        if self._columns is None:
            header = self.header
            data = self._buffer[HEADER_SIZE : HEADER_SIZE + header.stored_size]
            if header.codec:
                content = decompress(Codec(header.codec), data, header.columns_size)
                data = memoryview(content)
            self._columns = Columns(header, data)
        return self._columns


def _decode_headers(data: bytes) -> list[tuple[str, bytes | None]]:
    headers: list[tuple[str, bytes | None]] = []
    position, end = 0, len(data)
    while position < end:
        if end - position < RECORD_HEADER.size or len(headers) == RECORD_HEADERS_MAX:
            raise InvalidRecord(f"{end - position} bytes after {len(headers)} record headers")
        name_size, value_size = RECORD_HEADER.unpack_from(data, position)
        name_end = position + RECORD_HEADER.size + name_size
        position = name_end + max(value_size, 0)
        if not 1 <= name_size <= HEADER_NAME_SIZE_MAX or value_size < -1 or position > end:
            raise InvalidRecord(
                f"a record header with a name of {name_size} bytes and a value of {value_size}, "
                f"ending at {position} of {end}"
            )
        try:
            name = data[name_end - name_size : name_end].decode()
        except UnicodeDecodeError as wrong:
            raise InvalidRecord(f"a record header's name is not UTF-8: {wrong}") from wrong
        headers.append((name, None if value_size < 0 else data[name_end:position]))
    return headers
