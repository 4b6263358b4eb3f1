"""A finite part of a topic, for those who analyse: Arrow, pandas, polars, duckdb, numpy.

Where it begins and ends is fixed when `read` returns, as offsets; what is appended later is not in it, and reading it
again gives the same records (as long as retention leaves them). Partitions follow each other, each in offset order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from shmlog.client import arrow, positions
from shmlog.client.admin import Admin
from shmlog.client.batch import Batch
from shmlog.client.bootstrap import Where
from shmlog.client.consumer import Consumer
from shmlog.client.positions import EARLIEST, LATEST, Position, Positionable
from shmlog.clock import SYSTEM_CLOCK
from shmlog.errors import InvalidConfig, UnknownTopic, from_wire
from shmlog.serde import Numpy, Serde

if TYPE_CHECKING:
    import pandas
    import pyarrow

_LATEST, _EARLIEST = -1, -2
_COLUMNS: dict[str, Callable[[Batch], NDArray[np.int64]]] = {
    "offset": lambda batch: batch.offsets,
    "timestamp": lambda batch: batch.timestamps,
    "partition": lambda batch: np.full(len(batch), batch.partition, np.int64),
}


class Table:
    """Some partitions of a topic, each from an offset to an offset. See `read`."""

    def __init__(
        self,
        topic: str,
        ranges: dict[int, tuple[int, int]],
        *,
        where: Where,
        key: Serde | None,
        value: Serde | None,
        headers: bool,
    ) -> None:
        self.topic = topic
        self.ranges = ranges
        self._where = where
        self._serdes = (key, value)
        self._headers = headers

    def __len__(self) -> int:
        """How many offsets it spans: as many records, unless compaction has taken some."""
        return sum(stop - start for start, stop in self.ranges.values())

    def batches(self) -> Iterator[Batch]:
        """Its batches, as a consumer gives them."""
        key, value = self._serdes
        for partition, (start, stop) in self.ranges.items():
            if start >= stop:
                continue
            with Consumer(
                self.topic,
                where=self._where,
                partitions=[partition],
                start=start,
                stop=stop,
                key=key,
                value=value,
            ) as consumer:
                yield from consumer.batches()

    def to_batches(self) -> Iterator[pyarrow.RecordBatch]:
        """Its batches as Arrow's, one by one."""
        for batch in self.batches():
            yield arrow.record_batch(batch, headers=self._headers)

    @property
    def schema(self) -> pyarrow.Schema:
        """Columns and their types (see arrow.py)."""
        return arrow.schema(*self._serdes, headers=self._headers)

    def reader(self) -> pyarrow.RecordBatchReader:
        """A stream of its record batches: what is larger than memory goes through it."""
        return arrow.pyarrow().RecordBatchReader.from_batches(self.schema, self.to_batches())

    def __arrow_c_schema__(self) -> Any:
        return self.schema.__arrow_c_schema__()

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        return self.reader().__arrow_c_stream__(requested_schema)

    def to_arrow(self) -> pyarrow.Table:
        """All of it in memory."""
        return self.reader().read_all()

    def to_pandas(self) -> pandas.DataFrame:
        """All of it as a data frame."""
        return self.to_arrow().to_pandas()

    def to_numpy(self, column: str, dtype: DTypeLike | None = None) -> NDArray[Any]:
        """A column as one array: "offset", "timestamp" (ns), "partition"; "value" as items of `dtype`.

        Raises: InvalidConfig: another column, or values without a dtype. InvalidRecord: a value of another width.
        """
        if column == "value":
            serde = self._serdes[1]
            if dtype is None and not isinstance(serde, Numpy):
                raise InvalidConfig('to_numpy("value", dtype): name the dtype of the values')
            numpy = Numpy(dtype) if dtype is not None else serde
            assert isinstance(numpy, Numpy)
            table = Table(
                self.topic, self.ranges, where=self._where, key=None, value=numpy, headers=False
            )
            pieces = [batch.array for batch in table.batches()]
            return np.concatenate(pieces) if pieces else np.empty(0, numpy.dtype)
        if column not in _COLUMNS:
            raise InvalidConfig(
                f"to_numpy({column!r}): there are offset, timestamp, partition and value"
            )
        pieces = [_COLUMNS[column](batch) for batch in self.batches()]
        return np.concatenate(pieces) if pieces else np.empty(0, np.int64)

    def __repr__(self) -> str:
        return f"<Table {self.topic} {self.ranges}>"


def read(
    topic: str,
    *,
    where: Where = None,
    start: Positionable = "earliest",
    stop: Positionable = "latest",
    partitions: Iterable[int] | None = None,
    key: Serde | None = None,
    value: Serde | None = None,
    headers: bool = False,
) -> Table:
    """A topic, or the part of it between two positions as of now, as a Table.

    Raises: UnknownTopic; InvalidConfig: a position, or, when it is read as Arrow, a serde without a type there.
    """
    first, last = positions.parse_range(start)
    with Admin(where) as admin:
        chosen = _partitions(admin, topic, partitions)
        begins = _offsets(admin, topic, chosen, first or EARLIEST)
        ends = _offsets(admin, topic, chosen, last or positions.parse(stop))
        highest = _offsets(admin, topic, chosen, LATEST)
    ranges = {
        p: (begin, min(end, high))
        for p, begin, end, high in zip(chosen, begins, ends, highest, strict=True)
    }
    return Table(topic, ranges, where=where, key=key, value=value, headers=headers)


def _partitions(admin: Admin, topic: str, partitions: Iterable[int] | None) -> list[int]:
    info = next((t for t in admin.metadata([topic]).topics if t.topic == topic), None)
    if info is None or info.error:
        error = from_wire(3 if info is None else info.error, f"no topic {topic!r}", topic=topic)
        raise error
    count = len(info.partitions)
    chosen = list(range(count)) if partitions is None else list(partitions)
    for number in chosen:
        if not 0 <= number < count:
            raise UnknownTopic(f"topic {topic!r} has partitions 0..{count - 1}, not {number}")
    return chosen


def _offsets(admin: Admin, topic: str, partitions: list[int], position: Position) -> list[int]:
    time = position.timestamp_ns(SYSTEM_CLOCK.wall_ns())
    asked = {_LATEST, _EARLIEST} | (set() if time is None else {time})
    found = admin.list_offsets([(topic, p, which) for p in partitions for which in asked])
    return [
        position.resolve(
            found[topic, p, _EARLIEST],
            found[topic, p, _LATEST],
            -1 if time is None else found[topic, p, time],
        )
        for p in partitions
    ]
