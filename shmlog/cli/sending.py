"""What `produce` does with the rows it reads: hand them to a producer, pace them, account for
them.

Rows go as they come: nothing waits for a full chunk, so a line typed by hand is on its way at
once. Plain chunks go through `send_many`; records that differ in more than key and value go one
by one. Promises are taken back in order, so memory stays bounded however long the input is, and
the first failure ends the sending: what was queued by then has its fate before the account is
given.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from typing import TYPE_CHECKING, Any

from shmlog import clock
from shmlog.cli.bytes_text import Octets
from shmlog.cli.parsing import Rows
from shmlog.errors import DeliveryError, ShmlogError

if TYPE_CHECKING:
    from shmlog.client.delivery import Deliveries, Delivery
    from shmlog.client.producer import Producer

BATCH_SLACK_BYTES = 512  # a batch's own header and positions, with room


@dataclass(frozen=True, slots=True, kw_only=True)
class Fixed:
    """What the command line says of every record."""

    key: bytes | None = None
    partition: int | None = None
    headers: Sequence[tuple[str, Octets]] = ()


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
        if self._are_plain(rows):
            self._send_many(rows)
            return self._take_back()
        return all(map(self._send_one, *self._columns(rows)))

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

    def _are_plain(self, rows: Rows) -> bool:
        special = self._rate or self._fixed.headers or rows.partitions or any(rows.headers or ())
        largest = _largest(rows.values) + _largest(rows.keys or [self._fixed.key])
        timed = rows.timestamps is None or None not in rows.timestamps
        return not special and timed and largest <= self._bulk_bytes_max

    def _send_many(self, rows: Rows) -> None:
        keys = rows.keys
        if self._fixed.key is not None:
            keys = [self._fixed.key] * len(rows)
        promise = self._producer.send_many(
            self._topic,
            rows.values,
            keys=keys,
            partition=self._fixed.partition,
            timestamps=rows.timestamps,  # type: ignore[arg-type]  # none is None
        )
        self._open.append(promise)
        self.account.queued += len(rows)
        self.account.size += _size(rows.values) + _size(keys or ())

    def _columns(self, rows: Rows) -> tuple[Iterable[Any], ...]:
        """Values, keys, partitions, timestamps, headers: what there is, else what is fixed."""
        return (
            rows.values,
            rows.keys or repeat(self._fixed.key),
            rows.partitions or repeat(self._fixed.partition),
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
        promise = self._producer.send(
            self._topic,
            value,
            key=key,
            partition=partition,
            timestamp=timestamp,
            headers=[*headers, *self._fixed.headers],
        )
        self._open.append(promise)
        self.account.queued += 1
        self.account.size += _size([value, key])
        return self._take_back()

    def _wait_until_due(self) -> None:
        if self._rate is not None:
            due_ns = self._started_ns + int(self.account.queued / self._rate * clock.NS_PER_S)
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
            first, last = self.account.ranges.get(partition, (offset, offset))
            self.account.ranges[partition] = (min(first, offset), max(last, offset + count - 1))


def _size(column: Iterable[Octets]) -> int:
    return sum(len(item) for item in column if item is not None)


def _largest(column: Iterable[Octets]) -> int:
    return max((len(item) for item in column if item is not None), default=0)
