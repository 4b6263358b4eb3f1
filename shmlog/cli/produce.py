"""`shmlog produce`: records in, handed to a producer, paced and accounted for.

Rows go as they come: nothing waits for a full chunk, so a line typed by hand is on its way at
once. Plain chunks go through `send_many`; records that differ in more than key and value go one
by one. Promises are taken back in order, so memory stays bounded however long the input is, and
the first failure ends the sending: what was queued by then has its fate before the account is
given.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import repeat
from typing import IO, TYPE_CHECKING, Any

import click

from shmlog import clock
from shmlog.cli.bytes_text import Octets
from shmlog.cli.connect import open_admin
from shmlog.cli.formats import FORMAT, given_or_default
from shmlog.cli.interrupts import Interrupts
from shmlog.cli.parsing import Parser, Rows, read_rows
from shmlog.cli.render import in_short, pairs
from shmlog.cli.settings import Settings
from shmlog.client.delivery import Deliveries, Delivery
from shmlog.client.producer import Producer
from shmlog.errors import DeliveryError, InvalidConfig, ShmlogError

if TYPE_CHECKING:
    from click._termui_impl import ProgressBar

BATCH_SLACK_BYTES = 512  # a batch's own header and positions, with room
CHUNK_BYTES = 1 << 18
RECORD_BYTES_MAX = 1 << 20  # of a topic that is made by its first record
PARTLY_DONE = 6


@click.command()
@click.argument("topic")
@click.argument("files", nargs=-1, type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@FORMAT
@click.option("-k", "--key", help="The key of every record.")
@click.option("-p", "--partition", type=click.IntRange(min=0), help="Send all to this one.")
@click.option("-H", "--header", "headers", multiple=True, metavar="K=V", help="On every record.")
@click.option("-z", "--compression", default="none", metavar="CODEC", help="Such as lz4 or zstd.")
@click.option("--acks", type=click.Choice(["all", "1", "0"]), default="all", show_default=True)
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), help="Records a second.")
@click.pass_obj
def produce(
    settings: Settings,
    topic: str,
    files: tuple[str, ...],
    text: str | None,
    key: str | None,
    partition: int | None,
    headers: tuple[str, ...],
    compression: str,
    acks: str,
    rate: float | None,
) -> int:
    """Write records from FILES or standard input, one a line.

    --timeout is for each record: without its ack by then it has failed. Exit 6: the records before
    the one that is named are written, the rest was not read.
    """
    text = given_or_default(text, settings)
    letters = Parser(text).letters
    for given, letter, option in ((key, "k", "-k"), (partition, "p", "-p")):
        if given is not None and letter in letters:
            raise InvalidConfig(f"format {text!r} brings %{letter}: leave out {option}")
    fixed_key = None if key is None else key.encode()
    fixed_headers = [(name, value.encode()) for name, value in pairs(headers, "-H").items()]
    timeout_s = settings.timeout_s
    within: dict[str, Any] = {}
    if timeout_s is not None:
        within = {"max_block": timeout_s, "delivery_timeout": timeout_s}
    with open_admin(settings) as admin:
        [info] = admin.metadata([topic]).topics
        limit = RECORD_BYTES_MAX if info.error else info.max_message_bytes
        with Producer(
            where=settings.where, acks=acks, compression=compression, **within
        ) as producer:
            sender = Sender(producer, topic, fixed_key, partition, fixed_headers, rate, limit)
            trouble = _send_all(sender, files or ("-",), text, settings)
            sender.finish()
        if info.error and sender.queued > sender.failed:
            settings.say(f"created {in_short(admin.describe_topic(topic))}")
        elif info.error and trouble is None and not sender.queued:
            admin.describe_topic(
                topic
            )  # nothing came that would have made it, or shown that it is not there
    if sender.queued or trouble is None:
        settings.say(sender.account())
    if sender.cause is not None:
        click.echo(f"first failure: {sender.cause}", err=True)
        click.echo(f"stopped behind record {sender.queued:,}: the rest was not read", err=True)
        return PARTLY_DONE if sender.queued > sender.failed else sender.cause.exit_status
    if isinstance(trouble, ShmlogError) and sender.queued:
        click.echo(f"{trouble} ({trouble.name})", err=True)
        click.echo(f"stopped behind record {sender.queued:,}: the rest was not read", err=True)
        return PARTLY_DONE
    if trouble is not None:
        raise trouble
    return 0


def _send_all(
    sender: Sender, files: Sequence[str], text: str, settings: Settings
) -> ShmlogError | KeyboardInterrupt | None:
    """Send every file's records until one of them fails; what went wrong on this side."""
    try:
        with ExitStack() as stack:
            stack.enter_context(sender.interrupts)
            bar = None
            if not settings.quiet and sys.stderr.isatty() and "-" not in files:
                size = sum(os.path.getsize(name) for name in files)
                bar = stack.enter_context(click.progressbar(length=size, file=sys.stderr))
            for name in files:
                source = stack.enter_context(click.open_file(name, "rb"))
                if not all(map(sender.send, read_rows(_chunks(source, bar), text))):
                    break
    except (ShmlogError, KeyboardInterrupt) as error:
        return error
    return None


def _chunks(source: IO[bytes], bar: ProgressBar[int] | None) -> Iterator[bytes]:
    # One read each: what a pipe holds now, not what it will hold when the chunk is full.
    read = getattr(source, "read1", source.read)
    while chunk := read(CHUNK_BYTES):
        if bar is not None:
            bar.update(len(chunk))
        yield chunk


@dataclass(slots=True)
class Sender:
    """Sends rows to one topic, and keeps account of them. One thread.

    `key`, `partition` and `headers` are those of every record; `rate`: records a second. Records
    near `record_bytes_max` are sent one by one, so that the account is right about which one was
    refused. `ranges`: partition to (first, last) offset; empty at acks 0. Within `interrupts` a Ctrl-C
    comes when the account has what was sent.
    """

    producer: Producer
    topic: str
    key: bytes | None
    partition: int | None
    headers: Sequence[tuple[str, Octets]]
    rate: float | None
    record_bytes_max: int
    queued: int = 0
    failed: int = 0
    size: int = 0
    cause: ShmlogError | None = None
    ranges: dict[int, tuple[int, int]] = field(default_factory=dict)
    interrupts: Interrupts = field(default_factory=Interrupts)
    _open: deque[Delivery | Deliveries] = field(default_factory=deque)
    _started_ns: int = field(default_factory=clock.SYSTEM_CLOCK.monotonic_ns)

    def send(self, rows: Rows) -> bool:
        """Queue rows, at the rate asked for. False: something failed before, stop."""
        if self._are_plain(rows):
            self._send_many(rows)
            return self._take_back()
        return all(map(self._send_one, *self._columns(rows)))

    def finish(self) -> None:
        """Wait for the fate of everything queued."""
        try:
            self.producer.flush()
        except DeliveryError as error:
            self.failed = len(error.failures)
            self.cause = error.failures[0][1]
        while self._open:
            self._settle(self._open.popleft())

    def account(self) -> str:
        """The last line of `produce`."""
        sent = self.queued - self.failed
        where = f"{self.topic}, {len(self.ranges)} partitions"
        if len(self.ranges) == 1:
            [(partition, (first, last))] = self.ranges.items()
            where = f"{self.topic}-{partition} @ {first}" + (f"..{last}" if last > first else "")
        elif not self.ranges:
            where = self.topic
        return f"sent {sent:,}, failed {self.failed:,}: {self.size:,} bytes, {where}"

    def _are_plain(self, rows: Rows) -> bool:
        special = self.rate or self.headers or rows.partitions or any(rows.headers or ())
        largest = _largest(rows.values) + _largest(rows.keys or [self.key])
        timed = rows.timestamps is None or None not in rows.timestamps
        return not special and timed and largest <= self.record_bytes_max - BATCH_SLACK_BYTES

    def _send_many(self, rows: Rows) -> None:
        keys = rows.keys
        if self.key is not None:
            keys = [self.key] * len(rows)
        with self.interrupts.held():
            promise = self.producer.send_many(
                self.topic,
                rows.values,
                keys=keys,
                partition=self.partition,
                timestamps=rows.timestamps,  # type: ignore[arg-type]  # none is None
            )
            self._open.append(promise)
            self.queued += len(rows)
            self.size += _size(rows.values) + _size(keys or ())

    def _columns(self, rows: Rows) -> tuple[Iterable[Any], ...]:
        """Values, keys, partitions, timestamps, headers: what there is, else what is fixed."""
        return (
            rows.values,
            rows.keys or repeat(self.key),
            rows.partitions or repeat(self.partition),
            rows.timestamps or repeat(None),
            rows.headers or repeat([]),
        )

    def _send_one(
        self,
        value: Octets,
        key: Octets,
        partition: int | None,
        timestamp: int | None,
        headers: list[tuple[str, Octets]],
    ) -> bool:
        self._wait_until_due()
        with self.interrupts.held():
            promise = self.producer.send(
                self.topic,
                value,
                key=key,
                partition=partition,
                timestamp=timestamp,
                headers=[*headers, *self.headers],
            )
            self._open.append(promise)
            self.queued += 1
            self.size += _size([value, key])
        return self._take_back()

    def _wait_until_due(self) -> None:
        if self.rate is not None:
            due_ns = self._started_ns + int(self.queued / self.rate * clock.NS_PER_S)
            wait_ns = due_ns - clock.SYSTEM_CLOCK.monotonic_ns()
            if wait_ns > 0:
                clock.sleep(wait_ns / clock.NS_PER_S)

    def _take_back(self) -> bool:
        while self._open and self._open[0].done():
            if not self._settle(self._open.popleft()):
                return False
        return True

    def _settle(self, promise: Delivery | Deliveries) -> bool:
        if promise.exception() is not None:
            return False
        found = promise.result()
        if isinstance(found, list):
            for part in found:
                self._note(part.partition, part.base_offset, part.record_count)
        else:
            self._note(found.partition, found.offset, 1)
        return True

    def _note(self, partition: int, offset: int, count: int) -> None:
        if offset >= 0:
            first, last = self.ranges.get(partition, (offset, offset))
            self.ranges[partition] = (min(first, offset), max(last, offset + count - 1))


def _size(column: Iterable[Octets]) -> int:
    return sum(len(item) for item in column if item is not None)


def _largest(column: Iterable[Octets]) -> int:
    return max((len(item) for item in column if item is not None), default=0)
