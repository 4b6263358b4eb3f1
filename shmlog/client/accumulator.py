"""Records into batches, batches into flight, fates back: the producer's heart, without I/O.

One queue a partition:

    append --> [open batch] --closed--> batches ... --take_ready--> unresolved (at most 5,
                                           ^                            |       in sequence order)
                                           +--- after a new epoch ------+--> success, final error

- *Natural batching*: the open batch goes out as soon as a slot is free and `linger` is over; while
  the slots are taken it grows, up to its limit. Sequences are given when a batch first goes out.
- *Rewind*: after any failure that may be repeated, nothing of the partition goes out until all of
  it has come back from the wire; then all unresolved batches are sent again in sequence order. So
  the broker never sees a later one first, and a duplicate is always found in its window of five.
- *New epoch* (45 or 59 for the oldest batch, or a batch given up after it had a sequence): nothing
  new goes out anywhere until every batch of every partition has its fate; then epoch + 1, all
  sequences from 0. Of the partition that failed, batches that surely were not written go out again;
  those of unknown fate are failed.
- *Attempts*: each sending of a batch has a number. A batch may be taken back from a broker that is no
  longer the leader (`moved`), and sent to the new one while the old one still has the first
  attempt: whatever becomes of that one later does not count.
- A fate is *unknown* once an attempt ended without a definite answer; from then on only success
  settles it.

Nothing is dropped: a batch leaves by `finished`, with offsets or an error. Callers hold one lock
around all calls; batches handed out by `take_ready` belong to the I/O thread until their fate is
reported.
"""

from __future__ import annotations

import logging
import random
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from numpy.typing import NDArray

from shmlog.client.delivery import Delivery, Waiter
from shmlog.client.session import Backoff
from shmlog.clock import NS_PER_MS, NS_PER_S, Clock
from shmlog.errors import Code, OutOfSequence, RequestTimedOut, ShmlogError
from shmlog.ids import TopicPartition
from shmlog.records import builder
from shmlog.records.layout import HEADER_SIZE, SEQUENCE_END, Codec

IN_FLIGHT_MAX = 5  # the leader remembers so many batches of a producer
BATCH_OVERHEAD = HEADER_SIZE + builder.BATCH_SLACK
EPOCH_MAX = 32767
_EXPIRY_NS = 86_400 * NS_PER_S  # a leader forgets a producer that was idle for longer
FAILURES_MIN = 64
_UNKNOWN_FATE = frozenset(
    {
        Code.NOT_LEADER_OR_FOLLOWER,
        Code.REQUEST_TIMED_OUT,
        Code.NOT_ENOUGH_REPLICAS_AFTER_APPEND,
    }
)
_SEQUENCE = frozenset({Code.OUT_OF_ORDER_SEQUENCE_NUMBER, Code.UNKNOWN_PRODUCER_ID})
_NO_TOPIC = frozenset(
    {Code.UNKNOWN_TOPIC_OR_PARTITION, Code.UNKNOWN_TOPIC_ID, Code.INCONSISTENT_TOPIC_ID}
)
Headers = Sequence[tuple[str, bytes | None]]
_log = logging.getLogger("shmlog.client")


class Batch:
    """Records of one partition that share their fate."""

    __slots__ = (
        "array",
        "asked",
        "attempt",
        "base_offset",
        "count",
        "created_ns",
        "done",
        "encoded",
        "error",
        "headers",
        "keys",
        "leader_epoch",
        "on_wire",
        "queue",
        "refreshed",
        "sequence",
        "size",
        "times",
        "uncertain",
        "values",
        "waiter",
    )

    def __init__(self, queue: PartitionQueue, created_ns: int) -> None:
        self.queue = queue
        self.created_ns = created_ns
        self.values: list[bytes | None] | None = []
        self.keys: list[bytes | None] | None = None
        self.times: list[int] | NDArray[Any] | int = []
        self.headers: list[Headers] | None = None
        self.array: NDArray[Any] | None = None
        self.count = 0
        self.size = BATCH_OVERHEAD
        self.encoded: bytearray | None = None
        self.sequence = -1
        self.on_wire = False
        self.attempt = 0  # counts how often it was sent
        self.leader_epoch = -1  # of the leader that it was sent to last
        self.uncertain = False
        self.refreshed = False  # the metadata has been renewed because of it
        self.done = False
        self.error: ShmlogError | None = None
        self.asked: set[int] = set()  # the records whose owners were told the error
        self.base_offset = -1
        self.waiter: Waiter | None = None

    def trim(self) -> None:
        """Adding was interrupted by a signal handler: columns as long as `count` says."""
        for column in (self.keys, self.headers, self.values, self.times):
            if isinstance(column, list):
                del column[self.count :]

    def told(self) -> bool:
        """Has the owner of each record been told that it failed?"""
        return len(self.asked) == self.count

    def encode(self, codec: Codec, producer_id: int, epoch: int) -> None:
        """Make the bytes, or give them to another producer epoch. Raises InvalidRecord and the
        like.
        """
        if self.encoded is not None:
            builder.with_producer(self.encoded, producer_id, epoch, self.sequence)
        elif self.array is not None:
            self.encoded = builder.build_array(
                self.array,
                timestamps=self.times,
                codec=codec,
                producer_id=producer_id,
                producer_epoch=epoch,
                base_sequence=self.sequence,
            )
        else:
            assert self.values is not None
            self.encoded = builder.build(
                self.values,
                keys=self.keys,
                timestamps=self.times,
                headers=self.headers,
                codec=codec,
                producer_id=producer_id,
                producer_epoch=epoch,
                base_sequence=self.sequence,
            )


class PartitionQueue:
    """One partition's batches and its place in the sequence."""

    __slots__ = (
        "acked_ns",
        "attempts",
        "batches",
        "broken",
        "cause",
        "gone",
        "has_leader",
        "leader_epoch",
        "limit",
        "open",
        "retry_at_ns",
        "rewind",
        "sequence",
        "slots",
        "tp",
        "unresolved",
    )

    def __init__(self, tp: TopicPartition, limit: int) -> None:
        self.tp = tp
        self.limit = limit  # bytes of a batch
        self.batches: deque[Batch] = deque()  # not sent yet; the last may be open
        self.open: Batch | None = None
        self.unresolved: deque[Batch] = deque()  # have a sequence, and no fate yet
        self.sequence = 0
        self.slots = IN_FLIGHT_MAX
        self.attempts = 0
        self.retry_at_ns = 0
        self.rewind = False
        self.broken: ShmlogError | None = None  # its sequence is refused: waits for the new epoch
        self.has_leader = True
        self.leader_epoch = -1  # the newest that is known
        self.acked_ns: int | None = None  # the last ack
        self.cause: ShmlogError | None = None  # of the last failure, until a success
        self.gone: ShmlogError | None = (
            None  # its topic does not exist any more: every failure is final
        )

    def queued_bytes(self) -> int:
        """Bytes without a fate."""
        return sum(b.size for b in self.batches) + sum(b.size for b in self.unresolved)

    def on_wire(self) -> bool:
        """Is an answer outstanding?"""
        return any(batch.on_wire for batch in self.unresolved)


class Accumulator:
    """All partitions of one producer."""

    def __init__(
        self,
        clock: Clock,
        rng: random.Random,
        *,
        linger_ns: int = 0,
        buffer_bytes: int = 32 << 20,
        delivery_timeout_ns: int = 120 * 10**9,
        codec: Codec = Codec.NONE,
        idempotent: bool = True,
        at_most_once: bool = False,
    ) -> None:
        self.linger_ns = linger_ns
        self.buffer_bytes = buffer_bytes
        self.codec = codec
        self.idempotent = idempotent
        self.at_most_once = at_most_once
        self.producer_id = -1
        self.epoch = 0 if idempotent else -1
        self.buffered = 0
        self.flushing = 0
        self.fatal: ShmlogError | None = None
        self.failures: list[Batch] = []  # for flush; swept of those whose owners have asked
        self._sweep_at = FAILURES_MIN
        self.finished: list[Batch] = []
        self.bump_pending = False
        # What is known of a partition's leader, for errors; "" if there is nothing to tell.
        self.whereabouts: Callable[[TopicPartition, int], str] = lambda tp, now: ""
        self._clock = clock
        self._rng = rng
        self._backoff = Backoff(rng)
        self._delivery_timeout_ns = delivery_timeout_ns
        self._queues: list[PartitionQueue] = []
        self._active: dict[PartitionQueue, None] = {}  # queues with a batch without a fate

    # --- records in

    def add_queue(self, tp: TopicPartition, limit: int) -> PartitionQueue:
        """A new partition, whose batches have at most `limit` bytes."""
        queue = PartitionQueue(tp, limit)
        self._queues.append(queue)
        return queue

    def append(
        self,
        queue: PartitionQueue,
        value: bytes | None,
        key: bytes | None,
        timestamp_ns: int,
        headers: Headers | None,
        size: int,
    ) -> Delivery:
        """Put one record into the open batch; `size` is its upper bound in bytes, overhead
        included.
        """
        batch = queue.open
        if batch is None or batch.size + size > queue.limit:
            batch = self.open_batch(queue)
        index = batch.count
        try:
            if key is not None or batch.keys is not None:
                if batch.keys is None:
                    batch.keys = [None] * index
                batch.keys.append(key)
            if headers is not None or batch.headers is not None:
                if batch.headers is None:
                    batch.headers = [()] * index
                batch.headers.append(headers or ())
            batch.values.append(value)  # type: ignore[union-attr]
            batch.times.append(timestamp_ns)  # type: ignore[union-attr]
            batch.count = index + 1
        except BaseException:
            batch.trim()
            raise
        batch.size += size
        self.buffered += size
        return Delivery((batch, index))

    def extend(
        self,
        queue: PartitionQueue,
        values: list[bytes | None],
        keys: list[bytes | None] | None,
        times: list[int],
        size: int,
    ) -> tuple[Batch, int, int]:
        """Put records into one open batch, where they fit together; (batch, first place, count)."""
        batch = queue.open
        if batch is None or batch.size + size > queue.limit:
            batch = self.open_batch(queue)
        first = batch.count
        try:
            if keys is not None or batch.keys is not None:
                batch.keys = batch.keys if batch.keys is not None else [None] * first
                batch.keys += keys if keys is not None else [None] * len(values)
            if batch.headers is not None:
                batch.headers += [()] * len(values)
            batch.values += values  # type: ignore[operator]
            batch.times += times  # type: ignore[operator]
            batch.count = first + len(values)
        except BaseException:
            batch.trim()
            raise
        batch.size += size
        self.buffered += size
        return batch, first, len(values)

    def add_closed(
        self,
        queue: PartitionQueue,
        size: int,
        *,
        times: int | list[int] | NDArray[Any],
        values: list[bytes | None] | None = None,
        keys: list[bytes | None] | None = None,
        array: NDArray[Any] | None = None,
    ) -> Batch:
        """Queue one whole batch of values, or of the items of an array."""
        batch = self.open_batch(queue)
        queue.open = None
        batch.values, batch.keys, batch.array, batch.times = values, keys, array, times
        batch.count = len(array) if array is not None else len(values or ())
        batch.size += size
        self.buffered += size
        return batch

    def open_batch(self, queue: PartitionQueue) -> Batch:
        """Close the open batch of a partition and open a new one."""
        queue.open = None
        batch = Batch(queue, self._clock.monotonic_ns())
        self.buffered += BATCH_OVERHEAD
        self._active[queue] = None
        queue.batches.append(batch)
        queue.open = batch  # last: records go only into a batch that is in its queue
        return batch

    def pick(self, queues: Sequence[PartitionQueue]) -> PartitionQueue:
        """For records without a key: the partition with a leader and the fewest bytes queued."""
        candidates = [q for q in queues if q.has_leader] or list(queues)
        fewest = min(q.queued_bytes() for q in candidates)
        return self._rng.choice([q for q in candidates if q.queued_bytes() == fewest])

    def unfinished(self) -> list[Batch]:
        """Every batch without a fate."""
        return [b for q in self._active for b in (*q.unresolved, *q.batches)]

    # --- batches out

    def take_ready(self, now: int) -> list[Batch]:
        """The batches to send now, in the order to send them; they count as on the wire.

        New ones are encoded here, so that a sequence is given only to what can be sent.
        """
        ready: list[Batch] = []
        self._expire(now)
        if self.fatal is not None or (self.idempotent and self.producer_id < 0):
            return ready
        if self.bump_pending and not self._bump():
            # Only what is unresolved may go on its way.
            for queue in self._active:
                self._take_again(queue, now, ready)
            return ready
        for queue in list(self._active):
            if queue.gone is not None:
                self._bury(queue, queue.gone)
            self._take_again(queue, now, ready)
            self._take_new(queue, now, ready)
            if not queue.batches and not queue.unresolved:
                del self._active[queue]
        return ready

    def next_deadline_ns(self, now: int) -> int | None:
        """When time alone makes `take_ready` give something, or a batch expire."""
        due: int | None = None
        for queue in self._active:
            for batch in (*list(queue.unresolved)[:1], *list(queue.batches)[:1]):
                if batch.on_wire:
                    continue  # bounded by its request's own deadline
                at = batch.created_ns + self._delivery_timeout_ns
                if queue.retry_at_ns > now:
                    at = min(at, queue.retry_at_ns)
                elif batch is queue.open and self._may_send(queue, now):
                    at = min(at, batch.created_ns + self.linger_ns)
                due = at if due is None else min(due, at)
        return due if due is None else max(due, now)

    def time_left_ns(self, batch: Batch, now: int) -> int:
        """How long a batch may still take."""
        return max(batch.created_ns + self._delivery_timeout_ns - now, NS_PER_MS)

    def _take_again(self, queue: PartitionQueue, now: int, ready: list[Batch]) -> None:
        if not queue.rewind or queue.broken or queue.retry_at_ns > now or not queue.has_leader:
            return
        if queue.on_wire():
            return
        queue.rewind = False
        for batch in list(queue.unresolved)[: queue.slots]:
            batch.attempt += 1
            batch.on_wire = True
            ready.append(batch)
        # With fewer slots than before the rest goes once these are through.
        queue.rewind = len(queue.unresolved) > queue.slots

    def _may_send(self, queue: PartitionQueue, now: int) -> bool:
        """May a batch go out that was not sent before?"""
        if self.bump_pending or (self.idempotent and self.producer_id < 0):
            return False
        if queue.rewind or queue.broken or queue.retry_at_ns > now or not queue.has_leader:
            return False
        return len(queue.unresolved) < queue.slots

    def _take_new(self, queue: PartitionQueue, now: int, ready: list[Batch]) -> None:
        while queue.batches and self._may_send(queue, now):
            batch = queue.batches[0]
            if batch is queue.open:
                if self.linger_ns and not self.flushing and now < batch.created_ns + self.linger_ns:
                    return
                queue.open = None
            if not batch.count:  # its first `append` was interrupted
                self.buffered -= batch.size
                queue.batches.popleft()
                continue
            if not self._stamp(batch):
                queue.batches.popleft()
                continue
            # A signal handler may raise between any two steps: better twice in the queue, which
            # `start_over` puts right, than not at all.
            batch.attempt += 1
            batch.on_wire = True
            queue.unresolved.append(batch)
            queue.batches.popleft()
            self._follow(queue, batch)
            ready.append(batch)

    def _stamp(self, batch: Batch) -> bool:
        queue = batch.queue
        if self.idempotent:
            batch.sequence = queue.sequence
        try:
            batch.encode(self.codec, self.producer_id, self.epoch)
        except ShmlogError as error:
            self._finish(batch, error)
            return False
        return True

    def _follow(self, queue: PartitionQueue, batch: Batch) -> None:
        """The sequence goes on behind the newest batch that has one."""
        if self.idempotent:
            queue.sequence = (batch.sequence + batch.count) % SEQUENCE_END

    # --- fates

    def succeeded(self, batch: Batch, base_offset: int) -> None:
        """The batch is stored as its acks ask for."""
        if batch.done:
            return
        queue = batch.queue
        batch.base_offset = base_offset
        queue.attempts = 0
        queue.cause = None
        queue.acked_ns = self._clock.monotonic_ns()
        queue.slots = min(queue.slots + 1, IN_FLIGHT_MAX)
        queue.unresolved.remove(batch)
        self._finish(batch, None)

    def failed(self, batch: Batch, error: ShmlogError, answered: bool, now: int) -> None:
        """An attempt ended otherwise. `answered`: a broker said so; else the attempt's fate is
        unknown.
        """
        if batch.done:
            return
        queue = batch.queue
        queue.cause = error
        batch.on_wire = False
        if not answered or (error.code in _UNKNOWN_FATE and not self.at_most_once):
            batch.uncertain = True
        if queue.gone is not None:
            self._drop(batch, queue.gone)
        elif error.code in _SEQUENCE and self.idempotent:
            self._out_of_sequence(batch, error, now)
        elif error.code == Code.INVALID_PRODUCER_EPOCH:
            self.give_up(error)
        elif self._may_repeat(batch, error):
            self._back_off(queue, error, now)
        else:
            self._drop(batch, error)

    def moved(self, queue: PartitionQueue, leader_epoch: int, error: ShmlogError, now: int) -> bool:
        """The partition has a leader of a newer epoch: what is on the wire to an older one goes to
        the new one, the same sequences, without waiting for the old one. True if there was any.
        """
        behind = [b for b in queue.unresolved if b.on_wire and 0 <= b.leader_epoch < leader_epoch]
        for batch in behind:
            self.failed(batch, error, False, now)
        return bool(behind)

    def led_anew(self, queue: PartitionQueue) -> None:
        """A new leader starts with a clean slate: no backoff that another one has earned."""
        queue.attempts = 0
        if queue.cause is None or queue.cause.code != Code.BUSY:
            queue.retry_at_ns = 0

    def start_over(self, error: ShmlogError, now: int) -> None:
        """`take_ready`, or what should have followed it, was broken off anywhere: whatever is on
        the wire has an unknown fate, and perhaps no request that would tell it.
        """
        for queue in list(self._active):
            if queue.unresolved:
                newest = queue.unresolved[-1]
                if queue.batches and queue.batches[0] is newest:
                    queue.batches.popleft()
                self._follow(queue, newest)
            for batch in [b for b in queue.unresolved if b.on_wire]:
                self.failed(batch, error, False, now)

    def topic_gone(self, topic: str, error: ShmlogError) -> None:
        """The topic does not exist (any more): fail what waits for it, and what comes back failed."""
        for queue in self._queues:
            if queue.tp.topic == topic:
                queue.gone = error
                self._bury(queue, error)
        self._queues = [queue for queue in self._queues if queue.gone is None]

    def give_up(self, error: ShmlogError) -> None:
        """The producer is finished: fail everything, and every call from now on."""
        self.fatal = error
        for queue in self._active:
            for batch in list(queue.unresolved):
                queue.unresolved.remove(batch)
                self._finish(batch, error)
            self._fail_unsent(queue, error)

    def _may_repeat(self, batch: Batch, error: ShmlogError) -> bool:
        if error.code in _NO_TOPIC:
            first, batch.refreshed = not batch.refreshed, True
            return first
        return error.retriable and not (self.at_most_once and batch.uncertain)

    def _back_off(self, queue: PartitionQueue, error: ShmlogError, now: int) -> None:
        queue.rewind = True
        if queue.retry_at_ns > now:
            return  # the other batches of the same failure
        queue.attempts += 1
        wait_ns = self._backoff.ns(queue.attempts)
        if error.code == Code.BUSY:
            queue.slots = max(queue.slots // 2, 1)
            wait_ns = max(wait_ns, int(error.facts.get("retry_after_ms", 0)) * NS_PER_MS)
        if error.code == Code.NOT_LEADER_OR_FOLLOWER and error.facts.get("endpoint"):
            wait_ns = 0 if queue.attempts == 1 else wait_ns  # it said where to go
        queue.retry_at_ns = now + wait_ns

    def _out_of_sequence(self, batch: Batch, error: ShmlogError, now: int) -> None:
        queue = batch.queue
        if batch is not queue.unresolved[0] or queue.broken:
            queue.rewind = True  # it only came before an older one: in order it will fit
            return
        young = queue.acked_ns is not None and now - queue.acked_ns < _EXPIRY_NS
        if batch.sequence > 0 and young:
            _log.warning(
                "%s: acked records are gone: the leader does not know what this producer wrote "
                "before sequence %d (%s)",
                queue.tp,
                batch.sequence,
                error.name,
            )
        queue.broken = error
        self.bump_pending = True

    def _drop(self, batch: Batch, error: ShmlogError) -> None:
        batch.queue.unresolved.remove(batch)
        if self.idempotent:
            self.bump_pending = True  # its sequence is missing from now on
        if batch.uncertain and error.code != Code.DELIVERY_TIMEOUT:
            error = _unknown_fate(batch, error)
        self._finish(batch, error)

    def _expire(self, now: int) -> None:
        created_before = now - self._delivery_timeout_ns
        for queue in self._active:
            while queue.unresolved and queue.unresolved[0].created_ns <= created_before:
                batch = queue.unresolved[0]
                if batch.on_wire:
                    break
                self._drop(batch, self._expired(batch, now))
            while queue.batches and queue.batches[0].created_ns <= created_before:
                batch = queue.batches.popleft()
                if batch is queue.open:
                    queue.open = None
                self._finish(batch, self._expired(batch, now))

    def _expired(self, batch: Batch, now: int) -> RequestTimedOut:
        queue = batch.queue
        if batch.sequence < 0 and not batch.uncertain:
            fate = "not sent"
        else:
            fate = "fate unknown" if batch.uncertain else "not written"
        reasons = [self.whereabouts(queue.tp, now), "" if queue.cause is None else str(queue.cause)]
        why = "; ".join(reason for reason in reasons if reason)
        error = RequestTimedOut(
            f"{queue.tp}: {batch.count} records not delivered in time: {fate}"
            + (f" ({why})" if why else ""),
            code=Code.DELIVERY_TIMEOUT,
            topic=queue.tp.topic,
            partition=queue.tp.partition,
            fate=fate,
        )
        error.__cause__ = queue.cause
        return error

    def _bury(self, queue: PartitionQueue, error: ShmlogError) -> None:
        for batch in [b for b in queue.unresolved if not b.on_wire]:
            self._drop(batch, error)
        self._fail_unsent(queue, error)

    def _fail_unsent(self, queue: PartitionQueue, error: ShmlogError) -> None:
        queue.open = None
        while queue.batches:
            self._finish(queue.batches.popleft(), error)

    def _finish(self, batch: Batch, error: ShmlogError | None) -> None:
        batch.on_wire = False
        self.buffered -= batch.size
        if error is None:
            batch.values = batch.keys = batch.headers = batch.array = None
        else:
            batch.error = error
            if len(self.failures) >= self._sweep_at:
                self.failures = [failed for failed in self.failures if not failed.told()]
                self._sweep_at = 2 * len(self.failures) + FAILURES_MIN
            self.failures.append(batch)
        batch.encoded = None
        batch.done = True
        self.finished.append(batch)

    def _bump(self) -> bool:
        """Begin a new epoch, once every batch that has a sequence has its fate; False: not yet."""
        for queue in self._active:
            if queue.unresolved and (not queue.broken or queue.on_wire()):
                return False
        self.bump_pending = False
        for queue in self._active:
            again: list[Batch] = []
            for batch in list(queue.unresolved):
                if batch.uncertain:
                    assert queue.broken is not None
                    self._finish(batch, _unknown_fate(batch, queue.broken))
                else:
                    again.append(batch)
            queue.unresolved.clear()
            queue.batches.extendleft(reversed(again))
        for queue in self._queues:
            queue.sequence, queue.broken, queue.rewind = 0, None, False
        if self.epoch < EPOCH_MAX:
            self.epoch += 1
        else:
            self.producer_id, self.epoch = -1, 0  # the I/O thread asks for a new id
        return self.producer_id >= 0


def _unknown_fate(batch: Batch, cause: ShmlogError) -> ShmlogError:
    return OutOfSequence(
        f"{batch.queue.tp}: {batch.count} records of unknown fate: an attempt went without answer, "
        f"then the broker said {cause.name}: {cause}",
        code=cause.code if isinstance(cause, OutOfSequence) else None,
        topic=batch.queue.tp.topic,
        partition=batch.queue.tp.partition,
        fate="fate unknown",
    )
