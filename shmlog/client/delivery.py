"""What `send` hands back: a cheap promise, a pair of the record's batch and its place in it.

Offsets are not stored per record: they are the batch's base offset plus the place, computed when
asked.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, NamedTuple, Protocol

from shmlog.client.arguments import Duration, optional_ns
from shmlog.clock import NS_PER_S, SYSTEM_CLOCK
from shmlog.errors import RequestTimedOut, ShmlogError

if TYPE_CHECKING:
    from shmlog.client.accumulator import Batch

waiter_lock = threading.Lock()  # guards the making of waiters only


class Waiter(Protocol):
    """Somebody waits for the fate of a batch."""

    def set(self) -> None:
        """It is known. Called once, by the I/O thread."""
        ...


class RecordMeta(NamedTuple):
    """Where a record is. offset -1: not known (acks 0). timestamp: ns, as the producer set it."""

    topic: str
    partition: int
    offset: int
    timestamp: int


class RangeMeta(NamedTuple):
    """Where records sent together are: offsets base_offset .. base_offset + record_count."""

    topic: str
    partition: int
    base_offset: int
    record_count: int


def wait_done(batch: Batch, timeout_ns: int | None) -> bool:
    """Wait until the fate of a batch is known; False if it is not in time."""
    if batch.done:
        return True
    with waiter_lock:
        waiter = batch.waiter
        if waiter is None:
            waiter = batch.waiter = threading.Event()
    assert isinstance(waiter, threading.Event)
    # The completing thread writes `done`, then reads `waiter`; here it is the other way round.
    if batch.done:
        return True
    return waiter.wait(None if timeout_ns is None else timeout_ns / NS_PER_S)


class Promise(tuple["Batch", int]):
    """The promise for one record, whoever waits for it."""

    __slots__ = ()

    def done(self) -> bool:
        """Is its fate known?"""
        return self[0].done

    def meta(self) -> RecordMeta:
        """Where the record is, once its fate is known. Raises the delivery's error."""
        batch, index = self
        error = self.failure()
        if error is not None:
            raise error
        times = batch.times
        return RecordMeta(
            batch.queue.tp.topic,
            batch.queue.tp.partition,
            batch.base_offset + index if batch.base_offset >= 0 else -1,
            times if isinstance(times, int) else int(times[index]),
        )

    def failure(self) -> ShmlogError | None:
        """The error, once the fate is known; from then on the asker's, not flush's."""
        batch, index = self
        if batch.error is not None:
            batch.asked.add(index)
        return batch.error

    @property
    def topic(self) -> str:
        """Where the record goes."""
        return self[0].queue.tp.topic

    @property
    def partition(self) -> int:
        """Where the record goes."""
        return self[0].queue.tp.partition

    @property
    def value(self) -> bytes | None:
        """The encoded value of a record that is queued or failed; None after success."""
        batch, index = self
        if batch.array is not None:
            return bytes(batch.array[index].tobytes())
        return None if batch.values is None else batch.values[index]

    @property
    def key(self) -> bytes | None:
        """The encoded key of a record that is queued or failed; None after success."""
        batch, index = self
        return None if batch.keys is None else batch.keys[index]

    def __repr__(self) -> str:
        batch, index = self
        state = "failed" if batch.error else "done" if batch.done else "waiting"
        return f"<Delivery {batch.queue.tp} record {index} of its batch, {state}>"


class Delivery(Promise):
    """The promise for one record."""

    __slots__ = ()

    def result(self, timeout: Duration | None = None) -> RecordMeta:
        """Wait for the ack. Raises the delivery's error, or RequestTimedOut after `timeout`."""
        self._wait(timeout)
        return self.meta()

    def exception(self, timeout: Duration | None = None) -> ShmlogError | None:
        """Wait; the error, or None if the record was delivered."""
        self._wait(timeout)
        return self.failure()

    def _wait(self, timeout: Duration | None) -> None:
        if not wait_done(self[0], optional_ns(timeout, "timeout")):
            raise no_ack(self[0], timeout)


def no_ack(batch: Batch, timeout: Duration | None) -> RequestTimedOut:
    """The error for a fate that is not known in time."""
    return RequestTimedOut(f"{batch.queue.tp}: no ack within {timeout}; it may still come")


class Promises:
    """The promise for records sent together, whoever waits for it; slices of one or more batches, in
    the order of sending.
    """

    __slots__ = ("_parts",)

    def __init__(self, parts: list[tuple[Batch, int, int]]) -> None:
        self._parts = parts  # (batch, first place, count)

    def __len__(self) -> int:
        return sum(count for _, _, count in self._parts)

    def done(self) -> bool:
        """Is the fate of every record known?"""
        return all(batch.done for batch, _, _ in self._parts)

    def failure(self) -> ShmlogError | None:
        """The first error, once all fates are known."""
        return next((b.error for b, _, _ in self._parts if b.error is not None), None)

    def metas(self) -> list[RangeMeta]:
        """Where the records are, once all fates are known. Raises the first error."""
        error = self.failure()
        if error is not None:
            raise error
        return [
            RangeMeta(
                batch.queue.tp.topic,
                batch.queue.tp.partition,
                batch.base_offset + first if batch.base_offset >= 0 else -1,
                count,
            )
            for batch, first, count in self._parts
        ]


class Deliveries(Promises):
    """The promise for records sent together."""

    __slots__ = ()

    def result(self, timeout: Duration | None = None) -> list[RangeMeta]:
        """Wait for all acks; where the records are, one range a batch.

        Raises the first error, or RequestTimedOut when `timeout` passes.
        """
        self._wait(timeout)
        return self.metas()

    def exception(self, timeout: Duration | None = None) -> ShmlogError | None:
        """Wait; the first error, or None if every record was delivered."""
        self._wait(timeout)
        return self.failure()

    def _wait(self, timeout: Duration | None) -> None:
        timeout_ns = optional_ns(timeout, "timeout")
        now = SYSTEM_CLOCK.monotonic_ns
        deadline_ns = None if timeout_ns is None else now() + timeout_ns
        for batch, _, _ in self._parts:
            left_ns = None if deadline_ns is None else max(deadline_ns - now(), 0)
            if not wait_done(batch, left_ns):
                raise no_ack(batch, timeout)
