"""What `consume` does with the batches it gets: select, format, write; one write a batch.

The order of the tests is -o, then --grep, then -n: what is counted is what is shown.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass

from shmlog.cli.printing import Columns, Printer
from shmlog.client.admin import Admin
from shmlog.client.batch import Batch
from shmlog.client.consumer import Consumer
from shmlog.client.positions import Kind, Position
from shmlog.ids import TopicPartition
from shmlog.records.layout import Codec

_EARLIEST, _LATEST = -2, -1  # in the place of a time


@dataclass(slots=True)
class Selection:
    """Which records are shown: those whose key or value matches, up to a count."""

    left: int | None
    expression: re.Pattern[bytes] | None

    def of(self, columns: Columns) -> Columns:
        """The records to show."""
        if self.expression is not None:
            found = self.expression.search
            pairs = zip(columns.keys, columns.values, strict=True)
            columns = columns.keep([any(d is not None and found(d) for d in p) for p in pairs])
        if self.left is not None:
            columns = columns.cut(0, self.left)
            self.left -= len(columns)
        return columns


def receive(
    consumer: Consumer,
    admin: Admin | None,
    *,
    limit: Position | None,
    selection: Selection,
    printer: Printer,
) -> None:
    """Write the selected records to standard output until the ends, the count, or for ever.

    `limit` is where to end if the ends as of now count too; `admin` is asked for the ends of each
    batch's partition, None if the format does not show them.
    """
    limits = _limits(consumer, limit)
    out = sys.stdout.buffer
    if selection.left == 0 or _reached(consumer, limits):
        return
    for batch in consumer.batches():
        ends = _ends(admin, batch) if admin is not None else (-1, -1)
        columns = _columns_of(batch, ends)
        if limits:
            left = limits[TopicPartition(batch.topic, batch.partition)] - batch.base_offset
            columns = columns.cut(0, max(left, 0))
        out.write(printer.format(selection.of(columns)))
        out.flush()
        if selection.left == 0 or _reached(consumer, limits):
            return


def _columns_of(batch: Batch, ends: tuple[int, int]) -> Columns:
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


def _ends(admin: Admin, batch: Batch) -> tuple[int, int]:
    questions = [(batch.topic, batch.partition, which) for which in (_EARLIEST, _LATEST)]
    answers = admin.list_offsets(questions)
    return answers[questions[0]], answers[questions[1]]


def _limits(consumer: Consumer, limit: Position | None) -> dict[TopicPartition, int]:
    """Where each partition ends, if it may end before `limit`."""
    if limit is None or limit.kind is not Kind.OFFSET:
        return {}  # all other positions lie within what is there
    behind = consumer.lag()
    return {tp: min(limit.value, consumer.position(tp) + n) for tp, n in behind.items()}


def _reached(consumer: Consumer, limits: dict[TopicPartition, int]) -> bool:
    return bool(limits) and all(consumer.position(tp) >= end for tp, end in limits.items())
