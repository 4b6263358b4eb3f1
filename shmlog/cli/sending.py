"""What `produce` does with the rows it reads: hand them to a producer, pace them, account for
them.

Rows go as they come: nothing waits for a full chunk, so a line typed by hand is on its way at
once. Whole chunks go through `send_many`; only records with headers go one by one. Promises are
taken back in order, so memory stays bounded however long the input is, and the first failure
ends the sending: what was queued by then has its fate before the account is given.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from shmlog import clock
from shmlog.cli.bytes_text import Octets
from shmlog.cli.parsing import Rows
from shmlog.errors import DeliveryError, ShmlogError

if TYPE_CHECKING:
    from shmlog.client.delivery import Deliveries, Delivery
    from shmlog.client.producer import Producer

SLICES_PER_S = 20  # how even a rate is
BATCH_SLACK_BYTES = 512  # a batch's own header and positions, with room
Headers = Sequence[tuple[str, Octets]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fixed:
    """What the command line says of every record."""

    key: bytes | None = None
    partition: int | None = None
    headers: Headers = ()


@dataclass(slots=True)
class Account:
    """What became of the records. `ranges`: partition to (first, last) offset; empty at acks 0."""

    queued: int = 0
    failed: int = 0
    size: int = 0
    cause: ShmlogError | None = None
    ranges: dict[int, tuple[int, int]] = field(default_factory=dict)

    def text(self, topic: str) -> str:
        """The last line of `produce`."""
        sent = self.queued - self.failed
        where = f"{topic}, {len(self.ranges)} partitions"
        if len(self.ranges) == 1:
            [(partition, (first, last))] = self.ranges.items()
            where = f"{topic}-{partition} @ {first}" + (f"..{last}" if last > first else "")
        elif not self.ranges:
            where = topic
        return f"sent {sent:,}, failed {self.failed:,}: {self.size:,} bytes, {where}"


class Sender:
    """Sends rows to one topic. One thread."""

    def __init__(
        self,
        producer: Producer,
        topic: str,
        fixed: Fixed,
        *,
        rate: float | None,
        record_bytes_max: int,
    ) -> None:
        """`rate`: records a second. Records near `record_bytes_max` are sent one by one, so that
        the account is right about which one was refused."""
        self.account = Account()
        self._producer = producer
        self._topic = topic
        self._fixed = fixed
        self._rate = rate
        self._bulk_bytes_max = record_bytes_max - BATCH_SLACK_BYTES
        self._open: deque[Delivery | Deliveries] = deque()
        self._started_ns = clock.SYSTEM_CLOCK.monotonic_ns()

    def send(self, rows: Rows) -> bool:
        """Queue rows, at the rate asked for. False: something failed before, stop."""
        for piece in self._slices(rows):
            self._wait_until_due()
            self._queue(piece)
            if not self._take_back():
                return False
        return True

    def finish(self) -> Account:
        """Wait for the fate of everything queued."""
        try:
            self._producer.flush()
        except DeliveryError as error:
            self.account.failed = len(error.failures)
            self.account.cause = error.failures[0][1]
        while self._open:
            self._settle(self._open.popleft())
        return self.account

    def _slices(self, rows: Rows) -> Iterator[Rows]:
        if self._rate is None:
            yield rows
            return
        step = max(1, int(self._rate / SLICES_PER_S))
        for start in range(0, len(rows), step):
            yield rows.cut(start, start + step)

    def _wait_until_due(self) -> None:
        if self._rate is not None:
            due_ns = self._started_ns + int(self.account.queued / self._rate * clock.NS_PER_S)
            wait_ns = due_ns - clock.SYSTEM_CLOCK.monotonic_ns()
            if wait_ns > 0:
                clock.sleep(wait_ns / clock.NS_PER_S)

    def _queue(self, rows: Rows) -> None:
        headers = self._fixed.headers or (rows.headers is not None and any(rows.headers))
        if headers or _largest(rows, self._fixed.key) > self._bulk_bytes_max:
            self._queue_each(rows)
        elif rows.partitions is None:
            self._queue_many(rows, self._fixed.partition)
        else:
            for partition in dict.fromkeys(rows.partitions):
                self._queue_many(rows.of_partition(partition), partition)

    def _queue_many(self, rows: Rows, partition: int | None) -> None:
        keys = rows.keys
        if self._fixed.key is not None:
            keys = [self._fixed.key] * len(rows)
        promise = self._producer.send_many(
            self._topic,
            rows.values,
            keys=keys,
            partition=partition,
            timestamps=_times(rows),
        )
        self._open.append(promise)
        self._count(rows.values, keys)

    def _count(self, values: Sequence[Octets], keys: Sequence[Octets] | None) -> None:
        self.account.queued += len(values)
        self.account.size += _size(values) + _size(keys or ())

    def _queue_each(self, rows: Rows) -> None:
        for index, value in enumerate(rows.values):
            headers = [] if rows.headers is None else rows.headers[index]
            key = self._fixed.key if rows.keys is None else rows.keys[index]
            promise = self._producer.send(
                self._topic,
                value,
                key=key,
                partition=rows.partitions[index] if rows.partitions else self._fixed.partition,
                timestamp=None if rows.timestamps is None else rows.timestamps[index],
                headers=[*headers, *self._fixed.headers],
            )
            self._open.append(promise)
            self._count([value], [key])

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
            first, last = self.account.ranges.get(partition, (offset, offset))
            self.account.ranges[partition] = (min(first, offset), max(last, offset + count - 1))


def _size(column: Sequence[Octets]) -> int:
    return sum(len(item) for item in column if item is not None)


def _largest(rows: Rows, key: bytes | None) -> int:
    """An upper bound of the bytes of any of the records."""
    columns = (rows.values, rows.keys or (key,))
    return sum(max((len(d) for d in column if d is not None), default=0) for column in columns)


def _times(rows: Rows) -> list[int] | None:
    if rows.timestamps is None:
        return None
    now_ns = clock.SYSTEM_CLOCK.wall_ns()
    return [now_ns if time_ns is None else time_ns for time_ns in rows.timestamps]
