"""Records into topics.

`send` queues and returns a promise; one I/O thread sends, retries and takes acks (io_thread.py), so
nobody has to poll. While the byte budget is used up, `send` waits; nothing is dropped silently. The
topic's partitioner places keyed records by key; records without a key stay on one partition until
its batch is closed.
"""

from __future__ import annotations

import contextlib
import functools
import random
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shmlog.client import forks
from shmlog.client.accumulator import BATCH_OVERHEAD, Accumulator, Batch, Headers, PartitionQueue
from shmlog.client.arguments import Duration, duration_ns, optional_ns, size_in
from shmlog.client.bootstrap import Where, look_around
from shmlog.client.delivery import Deliveries, Delivery, RecordMeta, wait_done
from shmlog.client.io_thread import IoThread, TopicState
from shmlog.clock import NS_PER_S, SYSTEM_CLOCK
from shmlog.errors import (
    BufferFull,
    ClientClosed,
    DeliveryError,
    InvalidConfig,
    InvalidRecord,
    RecordTooLarge,
    RequestTimedOut,
    SerializationError,
    ShmlogError,
    UnknownTopic,
)
from shmlog.records import builder
from shmlog.records.compression import codec_named
from shmlog.records.layout import RECORD_HEADERS_MAX
from shmlog.records.partitioner import partition_for_key
from shmlog.serde import Serde, raw

RECORD_OVERHEAD = builder.RECORD_OVERHEAD
Step = Callable[[], tuple[Batch, int, int]]
_MIB = 1 << 20


class Producer:
    """Sends records. Usable from several threads; use it in a `with`, or call `close`.

    Records that failed are kept, with their values, for the next `flush` or `close` to raise, unless
    their deliveries were asked: so ask, or flush now and then.

    Args:
        acks: "all" (committed), "1" (stored by the leader), "0" (no promise, no offset, no retry
            after a loss).
        key, value: serdes; without one, keys and values are bytes.
        linger: how long an open batch waits for more records while there is a free slot.
        batch_bytes: the ceiling of a batch.
        buffer_bytes: the ceiling of records without an ack; above it `send` waits.
        max_block: how long it waits.
        delivery_timeout: a record without an ack by then fails.
        idempotent: retries never double or reorder. Off with acks "0".
    """

    def __init__(
        self,
        *,
        where: Where = None,
        acks: str | int = "all",
        key: Serde | None = None,
        value: Serde | None = None,
        linger: Duration = 0,
        batch_bytes: int | str = "256KiB",
        buffer_bytes: int | str = "32MiB",
        max_block: Duration = 60,
        delivery_timeout: Duration = 120,
        compression: str = "none",
        idempotent: bool = True,
        request_timeout: Duration = 30,
        rng: random.Random | None = None,
    ) -> None:
        self._refusal: ShmlogError | None = ClientClosed("not open yet")
        if str(acks) not in ("all", "-1", "1", "0"):
            raise InvalidConfig(f'acks = {acks!r}: must be "all", "1" or "0"')
        acks = "all" if str(acks) == "-1" else str(acks)
        rng = rng or random.Random()
        limit = size_in(batch_bytes, "batch_bytes", 1024, 8 * _MIB)
        self._max_block_ns = duration_ns(max_block, "max_block")
        self._key = key
        self._value = value
        self._plain = value is None
        self._now = SYSTEM_CLOCK.wall_ns
        self._batch_bytes = limit
        self._accumulator = Accumulator(
            SYSTEM_CLOCK,
            rng,
            linger_ns=duration_ns(linger, "linger"),
            buffer_bytes=size_in(buffer_bytes, "buffer_bytes", limit, 1 << 40),
            delivery_timeout_ns=duration_ns(delivery_timeout, "delivery_timeout"),
            codec=codec_named(compression),
            idempotent=idempotent and acks != "0",
            at_most_once=acks == "0",
        )
        # A record may open a batch.
        self._room = self._accumulator.buffer_bytes - BATCH_OVERHEAD
        self._io = IoThread(
            look_around(where),  # nobody there: it says so at once
            self._accumulator,
            SYSTEM_CLOCK,
            rng,
            acks=acks,
            batch_bytes=limit,
            request_timeout_ns=duration_ns(request_timeout, "request_timeout"),
        )
        self._lock = self._io.lock
        self._topics = self._io.topics
        self._io.start()
        self._refusal = None
        forks.guard(self)

    # --- sending

    def send(
        self,
        topic: str,
        value: Any,
        *,
        key: Any = None,
        partition: int | None = None,
        timestamp: int | None = None,
        headers: Headers | None = None,
    ) -> Delivery:
        """Queue one record; `timestamp` in ns since 1970, else now. A value of None deletes the
        key.

        Waits while the byte budget is used up.
        Raises: BufferFull (after `max_block`), RecordTooLarge, UnknownTopic, SerializationError,
        ClientClosed.
        """
        if self._plain and type(value) is bytes:
            size = len(value) + RECORD_OVERHEAD
        else:
            value = self._encoded(self._value, value)
            size = (0 if value is None else len(value)) + RECORD_OVERHEAD
        if key is not None:
            key = self._encoded(self._key, key)
            size += len(key)
        if headers:
            headers = _checked_headers(headers)
            size += builder.record_size(None, None, headers) - RECORD_OVERHEAD
        else:
            headers = None
        if timestamp is None:
            timestamp = self._now()
        state = self._topics.get(topic) or self._learn(topic)
        if size + BATCH_OVERHEAD > state.max_message_bytes:
            _check_size(state, value, key, timestamp, headers)
        accumulator, io = self._accumulator, self._io
        with self._lock:
            if accumulator.buffered + size > self._room:
                self._wait_for_room(size)
            queue = state.sticky
            if key is not None or partition is not None:
                queue = self._place(state, key, partition)
            elif queue is None or queue.open is None:
                queue = state.sticky = accumulator.pick(state.queues)
            delivery = accumulator.append(queue, value, key, timestamp, headers, size)
            if not io.asleep:
                return delivery
            io.asleep = False
        io.go()
        return delivery

    def produce(
        self,
        topic: str,
        value: Any,
        *,
        key: Any = None,
        partition: int | None = None,
        timestamp: int | None = None,
        headers: Headers | None = None,
    ) -> RecordMeta:
        """Send one record and wait for its ack. Raises as `send`, or the delivery's error."""
        delivery = self.send(
            topic, value, key=key, partition=partition, timestamp=timestamp, headers=headers
        )
        try:
            return delivery.result()
        except ShmlogError:
            self._reported(delivery[0])
            raise

    def send_many(
        self,
        topic: str,
        values: Iterable[Any],
        *,
        keys: Iterable[Any] | None = None,
        partition: int | None = None,
        timestamps: Sequence[int] | NDArray[Any] | int | None = None,
    ) -> Deliveries:
        """Queue many records at once, in order; with keys, in order within each partition.

        `timestamps`: one for all, or one each; else now. Raises as `send`; records queued before
        stay queued.
        """
        steps = self._plan_many(topic, values, keys, partition, timestamps)
        return Deliveries([step() for step in steps])

    def _plan_many(
        self,
        topic: str,
        values: Iterable[Any],
        keys: Iterable[Any] | None,
        partition: int | None,
        timestamps: Sequence[int] | NDArray[Any] | int | None,
    ) -> list[Step]:
        """What `send_many` queues: each step one batch, or (BufferFull) nothing."""
        batch_values = self._encoded_all(self._value, values)
        batch_keys = None if keys is None else self._encoded_all(self._key, keys)
        count = len(batch_values)
        if batch_keys is not None and len(batch_keys) != count:
            raise InvalidRecord(f"{len(batch_keys)} keys for {count} values")
        times = self._now() if timestamps is None else timestamps
        if not isinstance(times, int) and len(times) != count:
            raise InvalidRecord(f"{len(times)} timestamps for {count} values")
        state = self._topics.get(topic) or self._learn(topic)
        if not count:
            return []
        if batch_keys is None or partition is not None:
            queue = self._queue_for(state, partition)
            return self._slices(state, queue, batch_values, batch_keys, times)
        steps: list[Step] = []
        for queue, places in self._group(state, batch_keys).items():
            chosen = times if isinstance(times, int) else [times[i] for i in places]
            steps += self._slices(
                state,
                queue,
                [batch_values[i] for i in places],
                [batch_keys[i] for i in places],
                chosen,
            )
        return steps

    def send_array(
        self,
        topic: str,
        array: NDArray[Any],
        *,
        partition: int | None = None,
        timestamp: int | None = None,
    ) -> Deliveries:
        """Queue the items of a 1-D array (structured or not) as fixed-width records, without work
        per record.

        The items are copied, so the array may be changed afterwards. Raises as `send`.
        """
        steps = self._plan_array(topic, array, partition, timestamp)
        return Deliveries([step() for step in steps])

    def _plan_array(
        self, topic: str, array: NDArray[Any], partition: int | None, timestamp: int | None
    ) -> list[Step]:
        """See `_plan_many`."""
        array = np.asarray(array)
        if array.ndim != 1 or array.dtype.hasobject or not array.dtype.itemsize:
            raise InvalidRecord(
                f"an array of shape {array.shape} and dtype {array.dtype}: give 1-D items"
            )
        width = array.dtype.itemsize
        state = self._topics.get(topic) or self._learn(topic)
        queue = self._queue_for(state, partition)
        per_batch = (queue.limit - BATCH_OVERHEAD) // width
        if per_batch == 0:
            raise _too_large(width + BATCH_OVERHEAD, queue.limit, topic)
        timestamp = self._now() if timestamp is None else timestamp
        pieces = [array[start : start + per_batch] for start in range(0, len(array), per_batch)]

        def add(piece: NDArray[Any]) -> tuple[Batch, int, int]:
            return self._add_closed(
                queue, len(piece), piece.nbytes, times=timestamp, array=piece.copy()
            )

        return [functools.partial(add, piece) for piece in pieces]

    # --- ends

    def flush(self, timeout: Duration | None = None) -> None:
        """Send everything now and wait until every record queued before has its fate.

        Raises: DeliveryError with every record that failed since the last flush; RequestTimedOut.
        """
        timeout_ns = optional_ns(timeout, "timeout")
        if self._refusal is not None:
            raise self._refusal
        self._settle(timeout_ns)
        self._raise_failures()

    def close(self, timeout: Duration | None = None) -> None:
        """Flush, then end the I/O thread. Idempotent, from any thread.

        Raises: DeliveryError with every record that failed since the last flush.
        """
        if self._refusal is not None:
            return
        timeout_ns = optional_ns(timeout, "timeout")
        self._refuse(ClientClosed("this producer is closed; make a new one"))
        try:
            self._settle(timeout_ns)
        except RequestTimedOut:
            pass  # what is left fails below, and is raised
        finally:
            self._io.stop()
            self._io.join()
        self._raise_failures()

    def abandon(self) -> None:
        """The producer was copied by fork: refuse everything."""
        self._refuse(ClientClosed(forks.FORKED))
        self._lock = threading.Lock()
        self._topics = {}

    def __enter__(self) -> Producer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_refusal", self) is not None:
            return
        unsent = sum(batch.count for batch in self._accumulator.unfinished())
        if unsent:
            warnings.warn(
                f"a Producer was forgotten with {unsent} records without an ack: "
                "use it in a `with`, or call close()",
                ResourceWarning,
                stacklevel=2,
                source=self,
            )
        self._io.stop()

    # --- inside

    def _refuse(self, why: ClientClosed) -> None:
        """Every call fails from now on; no room is the check that `send` makes anyway."""
        self._refusal = why
        self._room = -1

    def _encoded(self, serde: Serde | None, item: Any) -> Any:
        if item is None:
            return None
        return raw.encode(item) if serde is None else _bytes(serde.encode(item))

    def _encoded_all(self, serde: Serde | None, items: Iterable[Any]) -> list[bytes | None]:
        if serde is None:
            listed = items if isinstance(items, list) else list(items)
            if set(map(type, listed)) <= {bytes, type(None)}:
                return listed
            return [None if item is None else raw.encode(item) for item in listed]
        encode = serde.encode
        return [None if item is None else _bytes(encode(item)) for item in items]

    def _learn(self, topic: str) -> TopicState:
        """The topic's partitions, from the broker at first use."""
        if self._refusal is not None:
            raise self._refusal
        io = self._io
        with self._lock:
            self._want(topic)
            self._wait_changed(lambda: topic in io.topics or topic in io.topic_errors)
            state = io.topics.get(topic)
            if state is not None:
                return state
            error = io.topic_errors.pop(topic, None) or self._accumulator.fatal or self._refusal
        raise error or self._no_metadata(topic)

    def _wait_changed(self, done: Callable[[], bool]) -> bool:
        """Under the lock: wait up to max_block for a condition, or the producer's end."""
        io = self._io
        io.waiters += 1
        try:
            return io.changed.wait_for(
                lambda: done() or io.stopping or self._accumulator.fatal is not None,
                self._max_block_ns / NS_PER_S,
            )
        finally:
            io.waiters -= 1

    def _wait_for_room(self, size: int) -> None:
        """Under the lock: wait until `size` bytes fit into the budget. One record always fits."""
        accumulator = self._accumulator
        if self._refusal is not None:
            raise self._refusal

        def room() -> bool:
            return (
                accumulator.buffered + size <= accumulator.buffer_bytes or not accumulator.buffered
            )

        if not room() and self._io.asleep:
            self._io.asleep = False
            self._io.wake()
        fits = room() or self._wait_changed(room)
        if accumulator.fatal is not None:
            raise accumulator.fatal
        if self._refusal is not None:
            raise self._refusal
        if not fits:
            raise BufferFull(
                f"no room within {self._max_block_ns / NS_PER_S:g} s (max_block): of "
                f"{accumulator.buffer_bytes} bytes {accumulator.buffered} wait for acks; "
                "the record was not queued",
                buffered=accumulator.buffered,
                limit=accumulator.buffer_bytes,
            )

    def _place(self, state: TopicState, key: bytes | None, partition: int | None) -> PartitionQueue:
        queues = state.queues
        if partition is None:
            assert key is not None
            return queues[partition_for_key(key, len(queues))]
        if partition >= len(queues):
            # It may have been added since. `queues` grows in place.
            self._refresh(state)
        if not 0 <= partition < len(queues):
            raise UnknownTopic(
                f"topic {state.name!r} has partitions 0..{len(queues) - 1}, not {partition}",
                topic=state.name,
                partition=partition,
                hint="",
            )
        return queues[partition]

    def _refresh(self, state: TopicState) -> None:
        """Under the lock: wait for newer metadata. Raises: BufferFull: none within max_block."""
        before = self._want(state.name)
        if not self._wait_changed(lambda: self._io.metadata_count > before):
            raise self._no_metadata(state.name)

    def _want(self, topic: str) -> int:
        """Under the lock: ask for metadata; how many answers there were before."""
        self._io.want(topic)
        return self._io.metadata_count

    def _no_metadata(self, topic: str) -> BufferFull:
        return BufferFull(
            f"topic {topic!r}: no metadata within {self._max_block_ns / NS_PER_S:g} s", topic=topic
        )

    def _queue_for(self, state: TopicState, partition: int | None) -> PartitionQueue:
        with self._lock:
            if partition is not None:
                return self._place(state, None, partition)
            queue = state.sticky
            if queue is None or queue.open is None:
                queue = state.sticky = self._accumulator.pick(state.queues)
            return queue

    def _group(
        self, state: TopicState, keys: list[bytes | None]
    ) -> dict[PartitionQueue, list[int]]:
        """Which records go where, each list in the order given."""
        groups: dict[PartitionQueue, list[int]] = {}
        count = len(state.queues)
        keyless = self._queue_for(state, None)
        for index, key in enumerate(keys):
            queue = keyless if key is None else state.queues[partition_for_key(key, count)]
            groups.setdefault(queue, []).append(index)
        return groups

    def _slices(
        self,
        state: TopicState,
        queue: PartitionQueue,
        values: list[bytes | None],
        keys: list[bytes | None] | None,
        times: Any,
    ) -> list[Step]:
        count = len(values)
        ends = _size_ends(values, keys, 0 if isinstance(times, int) else 8)
        room = queue.limit - BATCH_OVERHEAD
        if count and ends[-1] <= room // 4:
            listed = [times] * count if isinstance(times, int) else list(times)
            return [functools.partial(self._extend, queue, values, keys, listed, int(ends[-1]))]
        steps: list[Step] = []
        start, before = 0, 0
        while start < count:
            stop = int(np.searchsorted(ends, before + room, "right"))
            if stop == start:
                stop = start + 1  # bigger than a batch: goes alone, if the topic allows it
                size = int(ends[start]) - before + BATCH_OVERHEAD
                if size > state.max_message_bytes:
                    raise _too_large(size, state.max_message_bytes, state.name)
            step = functools.partial(
                self._add_closed,
                queue,
                stop - start,
                int(ends[stop - 1]) - before,
                times=times if isinstance(times, int) else times[start:stop],
                values=values[start:stop],
                keys=None if keys is None else keys[start:stop],
            )
            steps.append(step)
            before, start = int(ends[stop - 1]), stop
        return steps

    def _extend(
        self,
        queue: PartitionQueue,
        values: list[bytes | None],
        keys: list[bytes | None] | None,
        times: list[int],
        size: int,
    ) -> tuple[Batch, int, int]:
        size += 8 * len(values)  # the open batch has a timestamp a record
        with self._lock:
            self._wait_for_room(size)
            part = self._accumulator.extend(queue, values, keys, times, size)
            wake, self._io.asleep = self._io.asleep, False
        if wake:
            self._io.go()
        return part

    def _add_closed(
        self, queue: PartitionQueue, count: int, size: int, **content: Any
    ) -> tuple[Batch, int, int]:
        with self._lock:
            self._wait_for_room(size)
            batch = self._accumulator.add_closed(queue, size, **content)
            wake, self._io.asleep = self._io.asleep, False
        if wake:
            self._io.wake()
        return batch, 0, count

    def _settle(self, timeout_ns: int | None) -> None:
        """Wait until every batch there is now has its fate; open batches go out without linger."""
        now = SYSTEM_CLOCK.monotonic_ns
        deadline_ns = None if timeout_ns is None else now() + timeout_ns
        with self._flushing() as waiting:
            for batch in waiting:
                left_ns = None if deadline_ns is None else max(deadline_ns - now(), 0)
                if not wait_done(batch, left_ns):
                    raise not_settled(waiting)

    @contextlib.contextmanager
    def _flushing(self) -> Iterator[list[Batch]]:
        """Send everything without linger; the batches without a fate."""
        with self._lock:
            waiting = self._accumulator.unfinished()
            self._accumulator.flushing += 1
        self._io.wake()
        try:
            yield waiting
        finally:
            with self._lock:
                self._accumulator.flushing -= 1

    def _reported(self, batch: Batch) -> None:
        """A failure was raised to its only owner: flush need not raise it again."""
        with self._lock:
            if batch.count == 1 and batch in self._accumulator.failures:
                self._accumulator.failures.remove(batch)

    def _raise_failures(self) -> None:
        with self._lock:
            failed, self._accumulator.failures = self._accumulator.failures, []
        if not failed:
            return
        failed.sort(key=lambda batch: batch.created_ns)
        failures = [(Delivery((b, i)), b.error) for b in failed for i in range(b.count)]
        first = failures[0][1]
        raise DeliveryError(
            f"{len(failures)} records not delivered; the first, of {failed[0].queue.tp}: {first}",
            failures,  # type: ignore[arg-type]
        )


def not_settled(waiting: Sequence[Batch]) -> RequestTimedOut:
    """The error of a flush whose time is up."""
    return RequestTimedOut(f"flush: {len(waiting)} batches, not all have their ack yet")


def _bytes(encoded: Any) -> bytes:
    if type(encoded) is bytes:
        return encoded
    try:
        return bytes(memoryview(encoded))
    except TypeError:
        raise SerializationError(f"a serde gave {type(encoded).__name__}, not bytes") from None


def _checked_headers(headers: Headers) -> Headers:
    try:
        checked = [(str(name), None if v is None else bytes(v)) for name, v in headers]
    except (TypeError, ValueError) as error:
        raise InvalidRecord(f"headers are pairs of text and bytes: {error}") from None
    if len(checked) > RECORD_HEADERS_MAX or any(
        not 1 <= len(n.encode()) <= 255 for n, _ in checked
    ):
        raise InvalidRecord(
            f"a record has at most {RECORD_HEADERS_MAX} headers, with names of 1 to 255 bytes"
        )
    return checked


def _check_size(
    state: TopicState, value: bytes | None, key: bytes | None, timestamp: int, headers: Any
) -> None:
    """The bound says too large; the batch itself has the last word."""
    batch = builder.build(
        [value],
        keys=None if key is None else [key],
        timestamps=timestamp,
        headers=[headers] if headers else None,
    )
    if len(batch) > state.max_message_bytes:
        raise _too_large(len(batch), state.max_message_bytes, state.name)


def _too_large(size: int, limit: int, topic: str) -> RecordTooLarge:
    return RecordTooLarge(
        f"a record needs a batch of {size} bytes; max_message_bytes of {topic!r} is {limit}",
        size=size,
        limit=limit,
        topic=topic,
    )


def _size_ends(
    values: list[bytes | None], keys: list[bytes | None] | None, time_bytes: int
) -> NDArray[np.int64]:
    """Running upper bounds of the records' bytes in a batch."""
    lengths = _lengths(values)
    if keys is None and (lengths == lengths[0]).all():
        overhead = time_bytes + (0 if lengths[0] else 8)  # fixed width: no positions
    else:
        overhead = RECORD_OVERHEAD
    if keys is not None:
        lengths += _lengths(keys)
    lengths += overhead
    return np.cumsum(lengths)


def _lengths(items: list[bytes | None]) -> NDArray[np.int64]:
    try:
        return np.fromiter(map(len, items), np.int64, len(items))  # type: ignore[arg-type]
    except TypeError:
        return np.array([0 if item is None else len(item) for item in items], np.int64)
