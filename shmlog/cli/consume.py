"""`shmlog consume`: select, format, write; one write a batch, so what arrives is shown at once.

The order of the tests is -o, then --grep, then -n: what is counted is what is shown.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import click

from shmlog import clock
from shmlog.cli.connect import open_admin
from shmlog.cli.formats import FORMAT, given_or_default
from shmlog.cli.interrupts import Interrupts
from shmlog.cli.printing import Columns, Printer
from shmlog.cli.render import integers
from shmlog.cli.settings import Settings
from shmlog.client import consumer as client
from shmlog.client.admin import Admin
from shmlog.client.batch import Batch
from shmlog.client.positions import EARLIEST, LATEST, Kind, Position, parse_range
from shmlog.errors import InvalidConfig, PartitionMoved, RequestTimedOut
from shmlog.ids import TopicPartition
from shmlog.records.layout import Codec

_now = clock.SYSTEM_CLOCK.monotonic_ns
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


@click.command()
@click.argument("topics", nargs=-1, required=True, metavar="TOPIC...")
@click.option(
    "-o",
    "--offset",
    "position",
    default="earliest",
    metavar="POS",
    help="earliest, latest, 123, +10, -10, @2026-11-22T10:00:00Z, @-1h, or A:B.",
)
@click.option("-n", "--count", type=click.IntRange(min=0), help="Stop after so many records.")
@click.option("-e", "--end", "to_end", is_flag=True, help="Stop at the ends as of now.")
@FORMAT
@click.option("-p", "--partitions", metavar="LIST", help="Such as 0,2-4.")
@click.option("--grep", metavar="RE", help="Only records whose key or value matches.")
@click.option("-g", "--group", metavar="GROUP", help="Share the topics with this group's members.")
@click.option("--pace", type=float, metavar="X", help="Keep the gaps between timestamps, times X.")
@click.pass_obj
def consume(
    settings: Settings,
    topics: tuple[str, ...],
    position: str,
    count: int | None,
    to_end: bool,
    text: str | None,
    partitions: str | None,
    grep: str | None,
    group: str | None,
    pace: float | None,
) -> None:
    """Read records of TOPICs (names or patterns such as 'orders.*') and go on following.

    With -g the group's offsets say where to go on, and -o where to begin if there are none; what was written
    is committed, also at Ctrl-C. -e is then at the ends of the partitions that this member has.

    --pace 1 replays as it was, 0.1 ten times as fast, in the order of time over all partitions; how late the
    latest record was is said at the end.

    With -e or -n, --timeout is for the command: exit 4 if the end has not come by then.
    The format language: docs/operations.md, or -f '%k\\t%v\\n'.
    """
    printer = Printer(given_or_default(text, settings), terminal=sys.stdout.isatty())
    start, stop = parse_range(position)
    if group is not None and stop is not None:
        raise InvalidConfig(f"-o {position!r}: with -g, one position, where the group begins")
    begin: dict[str, Any] = {"start": start or EARLIEST}
    if group is not None:
        begin = {"group": group, "reset": start or EARLIEST}
    chosen = None if partitions is None else integers(partitions, "-p")
    try:
        selection = Selection(count, None if grep is None else re.compile(os.fsencode(grep)))
    except re.error as error:
        raise InvalidConfig(f"--grep {grep!r}: {error}") from None
    deadline = _Deadline(settings.timeout_s if to_end or count is not None else None)
    with (
        open_admin(settings) if printer.wants_ends else nullcontext() as admin,
        client.Consumer(
            *topics,
            where=settings.where,
            partitions=chosen,
            **begin,
            stop=LATEST if to_end and stop is None else stop,
            pace=pace,
        ) as consumer,
        _lateness_said(consumer) if pace is not None else nullcontext(),
        _Shares(consumer) if group is not None else nullcontext() as shares,
    ):
        limits = _limits(consumer, stop) if to_end else {}
        if count == 0 or _reached(consumer, limits):
            return
        while (batch := next(consumer.batches(timeout=deadline.left_s()), None)) is not None:
            deadline.check()
            if not len(batch):
                continue
            columns = columns_of(batch, admin)
            if limits:
                left = limits[TopicPartition(batch.topic, batch.partition)] - batch.base_offset
                columns = columns.cut(0, max(left, 0))
            shown = selection.of(columns)
            with shares.step(batch) if shares is not None else nullcontext():
                sys.stdout.buffer.write(printer.format(shown))
                sys.stdout.buffer.flush()
            if shares is not None and selection.left == 0 and len(shown):
                shares.ends_at(batch, shown.offsets[-1] + 1)
            if selection.left == 0 or _reached(consumer, limits):
                return


class _Shares:
    """Reading with a group: a batch is finished when it is written, also if Ctrl-C comes right then."""

    def __init__(self, consumer: client.Consumer) -> None:
        self._consumer = consumer
        self._interrupts = Interrupts()
        self._written: Batch | None = None

    def __enter__(self) -> _Shares:
        self._interrupts.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is KeyboardInterrupt and self._written is not None:
                with suppress(PartitionMoved):
                    self._consumer.commit(self._written)
        finally:
            self._interrupts.__exit__()

    @contextmanager
    def step(self, batch: Batch) -> Iterator[None]:
        """The writing of a batch, which Ctrl-C does not cut short."""
        with self._interrupts.held():
            yield
            self._written = batch

    def ends_at(self, batch: Batch, offset: int) -> None:
        """Only the records below `offset` of the batch were shown, and are to be committed."""
        self._consumer.seek(TopicPartition(batch.topic, batch.partition), offset)
        self._written = None


@contextmanager
def _lateness_said(consumer: client.Consumer) -> Iterator[None]:
    try:
        yield
    finally:
        click.echo(f"at most {consumer.lateness()[1]:.3f} s late", err=True)


class _Deadline:
    """When a command that has an end must have reached it."""

    def __init__(self, timeout_s: float | None) -> None:
        self._timeout_s = timeout_s
        self._due_ns = 0 if timeout_s is None else _now() + int(timeout_s * clock.NS_PER_S)

    def left_s(self) -> float | None:
        """What is left of it; None: there is none."""
        left_ns = max(self._due_ns - _now(), clock.NS_PER_MS)
        return None if self._timeout_s is None else left_ns / clock.NS_PER_S

    def check(self) -> None:
        """Raises RequestTimedOut if it has passed."""
        if self._timeout_s is not None and _now() >= self._due_ns:
            raise RequestTimedOut(f"the end did not come within {self._timeout_s:g} s")


def columns_of(batch: Batch, admin: Admin | None) -> Columns:
    """A batch as the printing steps want it; the ends of its partition if `admin` can be asked."""
    log_start, high_watermark = -1, -1
    if admin is not None:
        questions = [(batch.topic, batch.partition, which) for which in (_EARLIEST, _LATEST)]
        answers = admin.list_offsets(questions)
        log_start, high_watermark = (answers[question] for question in questions)
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
        log_start=log_start,
        high_watermark=high_watermark,
    )


def _limits(consumer: client.Consumer, stop: Position | None) -> dict[TopicPartition, int]:
    """Where each partition ends, if its end as of now may come before `stop`."""
    if stop is None or stop.kind is not Kind.OFFSET:
        return {}  # all other positions lie within what is there
    behind = consumer.lag()
    return {tp: min(stop.value, consumer.position(tp) + n) for tp, n in behind.items()}


def _reached(consumer: client.Consumer, limits: dict[TopicPartition, int]) -> bool:
    return bool(limits) and all(consumer.position(tp) >= end for tp, end in limits.items())
