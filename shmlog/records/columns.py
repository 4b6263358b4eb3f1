"""Where the columns of a batch lie, checked before any is used.

One walk in the order of the layout gives each column its extent. What the walk guarantees
afterwards: positions start at 0, never fall and end at the size of their bytes; bitmaps have a bit
for each record; the extents add up to exactly `columns_size`. It costs a few numpy calls a batch,
and no allocation that the buffer's own size does not bound.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shmlog.errors import InvalidRecord
from shmlog.records.header import BatchHeader
from shmlog.records.layout import Flag, padded

_TIMESTAMPS = int(Flag.TIMESTAMPS)
_KEYS = int(Flag.KEYS)
_KEY_NULLS = int(Flag.KEY_NULLS)
_VALUE_NULLS = int(Flag.VALUE_NULLS)
_HEADERS = int(Flag.HEADERS)
_OFFSETS = int(Flag.OFFSETS)


class VariableColumn:
    """Byte strings of any size: record i has data[positions[i]:positions[i + 1]], or null."""

    __slots__ = ("data", "positions", "validity")

    def __init__(self, positions: NDArray[np.int32], validity: memoryview | None) -> None:
        self.positions = positions
        self.validity = validity
        self.data = memoryview(b"")

    def items(self, start: int, stop: int) -> list[bytes | None]:
        """Records start .. stop as a list. One copy of the bytes, then one C call a record."""
        positions = self.positions[start : stop + 1]
        # Reading on and on is a third cheaper than slicing with two positions each.
        read = io.BytesIO(self.data[positions[0] : positions[-1]]).read
        found: list[bytes | None] = list(map(read, np.diff(positions).tolist()))
        if self.validity is not None:
            for i in self.nulls(start, stop).tolist():
                found[i] = None
        return found

    def nulls(self, start: int, stop: int) -> NDArray[np.intp]:
        """The nulls among records start .. stop, counted from start."""
        assert self.validity is not None
        bits = np.unpackbits(np.frombuffer(self.validity, dtype=np.uint8), bitorder="little")
        return np.flatnonzero(bits[start:stop] == 0)

    def check_nulls(self, what: str) -> None:
        """Raise InvalidRecord if a null takes bytes, or a bit beyond the records is set."""
        if self.validity is None:
            return
        count = len(self.positions) - 1
        sizes = np.diff(self.positions)
        if sizes[self.nulls(0, count)].any():
            raise InvalidRecord(f"a null {what} takes bytes")
        if count % 8 and self.validity[-1] >> count % 8:
            raise InvalidRecord(f"the bitmap of null {what}s goes on after {count} records")


class Columns:
    """The columns of one batch over `data`, which is columns_size bytes of readable memory."""

    __slots__ = (
        "_data",
        "_place",
        "deltas",
        "fixed_values",
        "headers",
        "keys",
        "offsets",
        "values",
    )

    def __init__(self, header: BatchHeader, data: memoryview) -> None:
        count, flags = header.record_count, header.flags
        self._data, self._place = data, 0
        self.deltas: NDArray[np.int64] | None = None
        self.keys: VariableColumn | None = None
        self.values: VariableColumn | None = None
        self.headers: VariableColumn | None = None
        self.offsets: NDArray[np.int32] | None = None
        self.fixed_values = memoryview(b"")
        if flags & _TIMESTAMPS:
            self.deltas = self._deltas(count, header.max_timestamp_ns - header.base_timestamp_ns)
        if flags & _KEYS:
            self.keys = self._positions("key", count, flags & _KEY_NULLS)
        if not header.value_width:
            self.values = self._positions("value", count, flags & _VALUE_NULLS)
        if flags & _HEADERS:
            self.headers = self._positions("header", count, 0)
        if flags & _OFFSETS:
            self.offsets = self._offset_deltas(count, header.last_offset_delta)
        for column in (self.keys, self.values):
            self._content(column)
        if self.values is None:
            self.fixed_values = self._take("value bytes", count * header.value_width)
        self._content(self.headers)
        if self._place != len(data):
            raise InvalidRecord(f"columns of {self._place} bytes in {len(data)}")

    def _take(self, what: str, size: int) -> memoryview:
        start = self._place
        self._place = start + padded(size)
        if self._place > len(self._data):
            raise InvalidRecord(f"{what}: {size} bytes at {start} of {len(self._data)}")
        return self._data[start : start + size]

    def _deltas(self, count: int, span: int) -> NDArray[np.int64]:
        deltas: NDArray[np.int64] = np.frombuffer(self._take("timestamps", 8 * count), dtype="<i8")
        if int(deltas.min()) != 0 or int(deltas.max()) != span:
            raise InvalidRecord(
                f"timestamps from {deltas.min()} to {deltas.max()} ns after the base; 0 to {span}"
            )
        return deltas

    def _offset_deltas(self, count: int, last: int) -> NDArray[np.int32]:
        deltas: NDArray[np.int32] = np.frombuffer(self._take("offset deltas", 4 * count), "<i4")
        if count and (deltas[0] < 0 or deltas[-1] > last or (deltas[1:] <= deltas[:-1]).any()):
            raise InvalidRecord(f"offset deltas do not rise from 0 to {last}")
        return deltas

    def _positions(self, what: str, count: int, nullable: int) -> VariableColumn:
        column = self._take(f"{what} positions", 4 * (count + 1))
        positions: NDArray[np.int32] = np.frombuffer(column, dtype="<i4")
        if positions[0] != 0 or (positions[1:] < positions[:-1]).any():
            raise InvalidRecord(f"{what} positions do not rise from 0")
        validity = self._take(f"{what} validity", (count + 7) >> 3) if nullable else None
        return VariableColumn(positions, validity)

    def _content(self, column: VariableColumn | None) -> None:
        if column is not None:
            column.data = self._take("bytes", int(column.positions[-1]))


def fixed_items(data: memoryview, width: int) -> list[Any]:
    """The bytes of `data` in pieces of `width`, by one C loop."""
    if len(data) == width:
        return [bytes(data)]
    return np.frombuffer(data, dtype=f"V{width}").tolist()  # type: ignore[no-any-return]
