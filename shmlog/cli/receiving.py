"""What `consume` does with the batches it gets: select, format, write; one write a batch.

The order of the tests is -o, then --grep, then -n: what is counted is what is shown.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from shmlog.cli.bytes_text import Octets
from shmlog.cli.printing import Columns, Printer
from shmlog.ids import TopicPartition

if TYPE_CHECKING:
    from shmlog.client.batch import Batch
    from shmlog.client.consumer import Consumer
    from shmlog.client.positions import Position


class Selection:
    """Which records are shown: those that match, up to a count. One thread."""

    def __init__(self, count: int | None, expression: re.Pattern[bytes] | None) -> None:
        self._left = count
        self._found = None if expression is None else expression.search

    @property
    def satisfied(self) -> bool:
        """Nothing more will be selected."""
        return self._left == 0

    def of(self, columns: Columns) -> Columns:
        """The records to show."""
        if self._found is not None:
            columns = columns.keep(_matches(columns, self._found))
        if self._left is not None:
            columns = columns.cut(0, self._left)
            self._left -= len(columns)
        return columns


def _matches(columns: Columns, found: Callable[[bytes], object]) -> list[bool]:
    def any_of(key: Octets, value: Octets) -> bool:
        return bool((value is not None and found(value)) or (key is not None and found(key)))

    return list(map(any_of, columns.keys, columns.values))


def columns_of(batch: Batch, ends: tuple[int, int]) -> Columns:
    """A batch of the client, as the printing steps want it. `ends`: log start, high watermark."""
    from shmlog.records.layout import Codec

    return Columns(
        topic=batch.topic,
        partition=batch.partition,
        leader_epoch=batch.leader_epoch,
        rows=range(len(batch)),
        offsets=batch.offsets.tolist(),
        timestamps=batch.timestamps.tolist(),
        keys=batch.keys,
        values=batch.values,
        header_of=batch.headers,
        codec=Codec(batch.codec).name.lower(),
        producer_id=batch.producer_id,
        producer_epoch=batch.producer_epoch,
        log_start=ends[0],
        high_watermark=ends[1],
    )


def receive(
    *,
    where: str | None,
    topics: Sequence[str],
    partitions: Sequence[int] | None,
    start: Position | None,
    stop: Position | None,
    to_end: bool,
    selection: Selection,
    printer: Printer,
) -> None:
    """Write the selected records to standard output until the ends, the count, or for ever."""
    from shmlog.client.consumer import Consumer
    from shmlog.client.positions import EARLIEST, LATEST

    if selection.satisfied:
        return
    out = sys.stdout.buffer
    with (
        Consumer(
            *topics,
            where=where,
            partitions=partitions,
            start=EARLIEST if start is None else start,
            stop=LATEST if to_end and stop is None else stop,
        ) as consumer,
        _Ends(where, printer.wants_ends) as ends,
    ):
        limits = _limits(consumer, stop) if to_end and stop is not None else None
        if limits is not None and _reached(consumer, limits):
            return
        for batch in consumer.batches():
            columns = columns_of(batch, ends.of(batch))
            if limits is not None:
                left = limits[TopicPartition(batch.topic, batch.partition)] - batch.base_offset
                columns = columns.cut(0, max(left, 0))
            text = printer.format(selection.of(columns))
            if text:
                out.write(text)
                out.flush()
            if selection.satisfied or (limits is not None and _reached(consumer, limits)):
                return


def _limits(consumer: Consumer, stop: Position) -> dict[TopicPartition, int] | None:
    """Where each partition ends if the end as of now counts too; None: `stop` is never later."""
    from shmlog.client.positions import Kind

    if stop.kind is not Kind.OFFSET:
        return None  # all others lie within what is there
    behind = consumer.lag()
    return {tp: min(stop.value, consumer.position(tp) + n) for tp, n in behind.items()}


def _reached(consumer: Consumer, limits: dict[TopicPartition, int]) -> bool:
    return all(consumer.position(tp) >= limit for tp, limit in limits.items())


class _Ends:
    """Log start and high watermark of a batch's partition, asked only if the format shows them."""

    def __init__(self, where: str | None, wanted: bool) -> None:
        from shmlog.client.admin import Admin

        self._admin = Admin(where) if wanted else None

    def of(self, batch: Batch) -> tuple[int, int]:
        """(log start, high watermark) as of now."""
        if self._admin is None:
            return (-1, -1)
        questions = [(batch.topic, batch.partition, which) for which in (-2, -1)]
        answers = self._admin.list_offsets(questions)
        return answers[questions[0]], answers[questions[1]]

    def __enter__(self) -> _Ends:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._admin is not None:
            self._admin.close()
