"""What a consumer hands out: records, and batches of them with whole columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import repeat
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from shmlog.client import arrow
from shmlog.client.ring_tail import Piece
from shmlog.errors import SerializationError
from shmlog.records.batch import RecordBatch
from shmlog.records.columns import VariableColumn
from shmlog.records.header import check_body_crc
from shmlog.serde import Numpy, Serde, decode_all

RecordHeaders = list[tuple[str, bytes | None]]


class Record(NamedTuple):
    """One record. `timestamp` in ns since 1970; key and value None: there is none."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: Any
    value: Any
    headers: RecordHeaders

    @property
    def text(self) -> str:
        """The value as UTF-8 text. Raises SerializationError."""
        try:
            return self.value if isinstance(self.value, str) else str(self.value or b"", "utf-8")
        except (UnicodeDecodeError, TypeError) as error:
            raise SerializationError(f"offset {self.offset}: no text: {error}") from None

    def json(self) -> Any:
        """The value as JSON. Raises SerializationError."""
        try:
            return msgspec.json.decode(self.value)
        except (msgspec.MsgspecError, TypeError) as error:
            raise SerializationError(f"offset {self.offset}: no JSON: {error}") from None


class Batch:
    """Records of one partition, in offset order: all or a part of a stored batch.

    Nothing is decoded before it is asked for. An empty batch (a time-out) has no topic.
    """

    __slots__ = (
        "_end",
        "_first",
        "_keys",
        "_offset",
        "_piece",
        "_records",
        "_serdes",
        "_stop",
        "_values",
        "partition",
        "topic",
    )

    def __init__(
        self,
        topic: str,
        piece: Piece | None,
        first_offset: int,
        end_offset: int,
        serdes: tuple[Serde | None, Serde | None],
        *,
        check_crc: bool,
        partition: int = -1,
    ) -> None:
        self.topic = topic
        self._serdes = serdes
        self._piece = piece
        self._offset = first_offset
        self._values: Sequence[Any] | None = None
        self._keys: Sequence[Any] | None = None
        self._records: RecordBatch | None = None
        self._first = self._stop = 0
        self._end = first_offset
        self.partition = partition
        if piece is not None:
            header = piece.header
            self.partition = header.partition
            if check_crc:
                check_body_crc(piece.buffer, header)
            self._records = RecordBatch(piece.buffer, header, check_crc=False)
            self._first = self._records.index_at(first_offset)
            self._stop = max(self._first, self._records.index_at(end_offset))
            self._end = min(max(end_offset, first_offset), header.end_offset)
            self._offset = self._end if self._stop == self._first else self._offset_of(self._first)

    def part(self, start: int, stop: int) -> Batch:
        """Records start .. stop as a batch of their own, over the same bytes."""
        piece = self._piece
        return Batch(
            self.topic,
            piece,
            self.offset_at(start),
            self.offset_at(stop),
            self._serdes,
            check_crc=False,
            partition=self.partition,
        )

    def __len__(self) -> int:
        return self._stop - self._first

    def _offset_of(self, index: int) -> int:
        """The offset of a record, counted from the stored batch's first one."""
        assert self._records is not None
        if self._records.has_gaps:
            return int(self._records.offsets[index])
        return self._records.base_offset + index

    def offset_at(self, index: int) -> int:
        """The offset of record `index`; where there is none, `end_offset`."""
        if index >= len(self):
            return self._end
        return self._offset_of(self._first + index)

    @property
    def base_offset(self) -> int:
        """The offset of the first record."""
        return self._offset

    @property
    def end_offset(self) -> int:
        """Where to read on: behind the last record, and behind what compaction has taken out there."""
        return self._end

    @property
    def leader_epoch(self) -> int:
        """The epoch of the leader that took the batch; -1 if empty."""
        return self._piece.header.leader_epoch if self._piece else -1

    @property
    def producer_id(self) -> int:
        """The producer's id, -1 = none."""
        return self._piece.header.producer_id if self._piece else -1

    @property
    def producer_epoch(self) -> int:
        """The producer's epoch, -1 = none."""
        return self._piece.header.producer_epoch if self._piece else -1

    @property
    def codec(self) -> int:
        """How the stored batch is compressed: records.layout.Codec."""
        return self._piece.header.codec if self._piece else 0

    @property
    def append_time(self) -> int:
        """When the leader took the batch, ns since 1970; -1 if empty."""
        return self._piece.header.append_time_ns if self._piece else -1

    @property
    def offsets(self) -> NDArray[np.int64]:
        """The offset of each record."""
        if self._records is None:
            return np.empty(0, np.int64)
        if self._records.has_gaps:
            return self._records.offsets[self._first : self._stop]
        return np.arange(self._offset, self._offset + len(self), dtype=np.int64)

    @property
    def timestamps(self) -> NDArray[np.int64]:
        """The timestamp of each record, ns since 1970."""
        if self._records is None:
            return np.empty(0, np.int64)
        return self._records.timestamps[self._first : self._stop]

    @property
    def raw_values(self) -> list[bytes | None]:
        """The values as bytes."""
        if self._records is None:
            return []
        return self._records.values(self._first, self._stop)

    @property
    def values(self) -> Sequence[Any]:
        """The values, decoded by the consumer's serde. Raises SerializationError."""
        serde = self._serdes[1]
        if self._values is None:
            raw = self.raw_values
            self._values = raw if serde is None else decode_all(serde, raw)
        return self._values

    @property
    def keys(self) -> Sequence[Any]:
        """The keys, decoded by the consumer's serde. Raises SerializationError."""
        if self._records is None:
            return []
        if self._keys is None:
            raw = self._records.keys(self._first, self._stop)
            serde = self._serdes[0]
            self._keys = raw if serde is None else decode_all(serde, raw)
        return self._keys

    @property
    def array(self) -> NDArray[Any]:
        """The values as one array of the dtype of `serde.numpy`, read-only, over the batch's bytes.

        Raises SerializationError without such a serde; InvalidRecord if the values' width differs.
        """
        serde = self._serdes[1]
        if not isinstance(serde, Numpy):
            raise SerializationError("a consumer with value=shmlog.serde.numpy(dtype) has arrays")
        if self._records is None:
            return np.empty(0, serde.dtype)
        return self._records.array(serde.dtype)[self._first : self._stop]

    @property
    def serdes(self) -> tuple[Serde | None, Serde | None]:
        """Of keys and of values."""
        return self._serdes

    @property
    def first(self) -> int:
        """Where the records begin in the stored batch."""
        return self._first

    def column(self, name: str) -> tuple[VariableColumn | None, int, memoryview]:
        """The stored batch's column "key" or "value": of any size, or (None, width, the bytes of all); width 0:
        there is none.
        """
        if self._records is None:
            return None, 0, memoryview(b"")
        columns = self._records.columns
        if name == "key":
            return columns.keys, 0, memoryview(b"")
        return columns.values, self._records.header.value_width, columns.fixed_values

    def owned(self) -> Batch:
        """The same records over bytes of their own; itself, unless it is a view (copy=False).

        Raises CorruptMessage: a view that was overwritten.
        """
        piece = self._piece
        if piece is None or piece.tail is None:
            return self
        copied = Piece(memoryview(bytes(piece.buffer)), piece.header)
        return Batch(
            self.topic, copied, self._offset, self.end_offset, self._serdes, check_crc=True
        )

    def __arrow_c_schema__(self) -> Any:
        return arrow.schema(*self._serdes, headers=False).__arrow_c_schema__()

    def __arrow_c_array__(self, requested_schema: Any = None) -> Any:
        return arrow.record_batch(self).__arrow_c_array__(requested_schema)

    def headers(self, index: int) -> RecordHeaders:
        """The headers of one record."""
        if self._records is None:
            raise IndexError(index)
        return self._records.headers(self._first + range(len(self))[index])

    def valid(self) -> bool:
        """Are the bytes still what they were? Always, unless the batch is a view (copy=False)."""
        return self._piece is None or self._piece.valid()

    def __getitem__(self, index: int) -> Record:
        index = range(len(self))[index]
        assert self._records is not None
        return Record(
            self.topic,
            self.partition,
            self.offset_at(index),
            int(self.timestamps[index]),
            self.keys[index],
            self.values[index],
            self._records.headers(self._first + index),
        )

    def __iter__(self) -> Iterator[Record]:
        records = self._records
        if records is None:
            return iter(())
        if records.has_headers:
            headers: Iterator[RecordHeaders] = map(records.headers, range(self._first, self._stop))
        else:
            headers = ([] for _ in range(len(self)))
        return map(
            Record,
            repeat(self.topic),
            repeat(self.partition),
            self.offsets.tolist() if records.has_gaps else range(self._offset, self._end),
            self.timestamps.tolist(),
            self.keys,
            self.values,
            headers,
        )

    def __repr__(self) -> str:
        if self._records is None:
            return "<Batch empty>"
        return (
            f"<Batch {self.topic}-{self.partition} offsets {self.base_offset}..{self.end_offset}>"
        )
