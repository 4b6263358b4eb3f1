"""produce, simple and fast: check, append, and answer when the acks level is reached.

An append becomes visible at the end of the turn, when all that the turn appended is written at once; so every
produce but acks "0" is parked first and answered by `ProduceWait.resume`.
"""

from __future__ import annotations

from typing import Any

from node.handlers.exchange import COMMITTED, STORED, Context, Exchange, error_fields
from node.handlers.lookup import find_partition, find_topic, not_leader
from node.partition import Appended, Partition
from shmlog.errors import (
    Code,
    DiskFull,
    InvalidRequest,
    LeaderUnavailable,
    RecordTooLarge,
    RequestTimedOut,
    ShmlogError,
    UnknownTopic,
)
from shmlog.protocol.header import Big
from shmlog.protocol.messages import (
    REQUEST_BYTES_MAX,
    ProduceFast,
    ProduceFastAnswer,
    ProduceResult,
    ProduceSimple,
    ProduceSimpleAnswer,
)
from shmlog.records.builder import build
from shmlog.records.partitioner import partition_for_key


class _Entry:
    """One batch of a produce: appended, or failed."""

    __slots__ = ("appended", "error", "index", "partition", "topic")

    def __init__(self, topic: str, index: int) -> None:
        self.topic = topic
        self.index = index
        self.partition: Partition | None = None
        self.appended: Appended | None = None
        self.error: ShmlogError | None = None


class ProduceWait:
    """A produce whose batches are in the log, or on their way into it."""

    __slots__ = ("_acks", "_context", "_entries", "_exchange", "_simple")

    def __init__(
        self, context: Context, exchange: Exchange, entries: list[_Entry], acks: str, simple: bool
    ) -> None:
        self._context = context
        self._exchange = exchange
        self._entries = entries
        self._acks = acks
        self._simple = simple

    def resume(self) -> None:
        """Answer if every batch has reached its acks level, else wait for the rest."""
        channel = STORED if self._acks == "1" else COMMITTED
        missing: dict[tuple[object, str], int] = {}
        for entry in self._entries:
            if entry.error is not None:
                continue
            assert entry.partition is not None
            assert entry.appended is not None
            if not self._reached(entry):
                missing[entry.partition, channel] = entry.appended.end_offset
        if missing and self._acks != "0":
            self._context.purgatory.wait(self, missing.items(), self._exchange.deadline_ns)
        else:
            self._answer()

    def _reached(self, entry: _Entry) -> bool:
        assert entry.partition is not None
        assert entry.appended is not None
        partition = entry.partition
        if self._context.partitions.get((entry.topic, entry.index)) is not partition:
            entry.error = UnknownTopic(
                f"topic {entry.topic!r} was deleted", code=Code.UNKNOWN_TOPIC_ID, topic=entry.topic
            )
            return True
        ledger = partition.leader
        if ledger is None or partition.leader_epoch != entry.appended.leader_epoch:
            # In the log here; whether it stays is for the new leader to say: fate unknown.
            entry.error = not_leader(self._context, entry.topic, partition.state)
            return True
        if self._acks == "1":
            if not self._context.has_lease:
                entry.error = no_lease(partition)
                return True
            return ledger.stored_end >= entry.appended.end_offset
        if ledger.high_watermark >= entry.appended.end_offset:
            return True
        if not ledger.has_minimum:
            entry.error = partition.too_few(
                "the batch is in the log, not committed", Code.NOT_ENOUGH_REPLICAS_AFTER_APPEND
            )
            return True
        return False

    def taken_back(self, partition: Partition, error: DiskFull) -> None:
        """The write failed for lack of space: what lay above the log's end is not in the log."""
        for entry in self._entries:
            appended = entry.appended
            if entry.partition is not partition or appended is None:
                continue
            if appended.end_offset > partition.next_offset:
                entry.error = error
        self.resume()

    def expire(self) -> None:
        """Time is up: what is in the log may still be committed later."""
        for entry in self._entries:
            if entry.error is None and not self._reached(entry):
                entry.error = RequestTimedOut(
                    f"{entry.topic}-{entry.index}: not stored within timeout_ms; it may be later",
                    topic=entry.topic,
                    partition=entry.index,
                )
        self._answer()

    def _answer(self) -> None:
        if self._simple:
            entry = self._entries[0]
            if entry.error is not None:
                self._exchange.fail(entry.error)
                return
            assert self._exchange.id is not None
            fields = self._result(entry)
            self._exchange.answer(ProduceSimpleAnswer(id=self._exchange.id, error=0, **fields))
            return
        results = [
            {"topic": e.topic, "partition": e.index, **error_fields(e.error)}
            if e.error is not None
            else ProduceResult(**self._result(e))
            for e in self._entries
        ]
        assert self._exchange.id is not None
        self._exchange.answer(ProduceFastAnswer(id=self._exchange.id, partitions=results))

    def _result(self, entry: _Entry) -> dict[str, Any]:
        assert entry.partition is not None
        assert entry.appended is not None
        known = self._acks != "0"
        return {
            "topic": entry.topic,
            "partition": entry.index,
            "base_offset": entry.appended.base_offset if known else -1,
            "append_time": Big(entry.appended.append_time_ns),
            "log_start": entry.partition.log_start,
            "leader_epoch": entry.partition.leader_epoch,
        }


def _check_acks(acks: str) -> None:
    if acks not in ("all", "1", "0"):
        raise InvalidRequest(
            f'acks {acks[:20]!r}: must be "all", "1" or "0"', code=Code.INVALID_REQUIRED_ACKS
        )


def _check_size(frames: list[bytes]) -> None:
    size = sum(map(len, frames))
    if size > REQUEST_BYTES_MAX:
        raise RecordTooLarge(
            f"a produce of {size} bytes, the limit is {REQUEST_BYTES_MAX}",
            size=size,
            limit=REQUEST_BYTES_MAX,
        )


def produce_fast(
    context: Context, exchange: Exchange, request: ProduceFast, frames: list[bytes]
) -> None:
    """One batch a partition."""
    _check_acks(request.acks)
    _check_size(frames)
    if len(frames) != len(request.partitions) or not frames:
        raise InvalidRequest(
            f"{len(request.partitions)} partitions and {len(frames)} batches: one frame an entry"
        )
    names = {(entry.topic, entry.partition) for entry in request.partitions}
    if len(names) != len(request.partitions):
        raise InvalidRequest("a partition stands twice in one produce")
    entries = []
    for wanted, frame in zip(request.partitions, frames, strict=True):
        entry = _Entry(wanted.topic, wanted.partition)
        try:
            partition = find_partition(
                context, wanted.topic, wanted.partition, wanted.topic_id, wanted.leader_epoch
            )
            _append(context, exchange, entry, partition, frame, request.acks)
        except ShmlogError as error:
            entry.error = error
        entries.append(entry)
    _park(context, exchange, entries, request.acks, simple=False)


def _append(
    context: Context,
    exchange: Exchange,
    entry: _Entry,
    partition: Partition,
    frame: bytes,
    acks: str,
) -> None:
    if not context.has_lease:
        raise no_lease(partition)
    if partition.moving_to is not None:
        raise LeaderUnavailable(
            f"{partition.name} moves to broker {partition.moving_to}",
            topic=entry.topic,
            partition=entry.index,
        )
    before = partition.next_offset
    entry.partition = partition
    entry.appended = partition.append(frame, acks, context.no_space)
    exchange.appended = True
    context.dirty[partition] = None
    counters, count = context.counters, partition.next_offset - before
    if count:
        counters.batches_in += 1
        counters.records_in += count
        counters.bytes_in += len(frame)
    else:
        counters.duplicates += 1


def no_lease(partition: Partition) -> ShmlogError:
    """This broker may have been fenced: it must not ack (E7)."""
    return LeaderUnavailable(
        f"{partition.name}: this broker has not heard from the controller for a session",
        topic=partition.name.topic,
        partition=partition.name.partition,
    )


def _park(
    context: Context, exchange: Exchange, entries: list[_Entry], acks: str, *, simple: bool
) -> None:
    ProduceWait(context, exchange, entries, acks, simple).resume()


def _with_nulls(frames: list[bytes], nulls: list[int], name: str) -> list[bytes | None]:
    column: list[bytes | None] = list(frames)
    for index in nulls:
        if index >= len(column):
            raise InvalidRequest(f"{name}: there is no record {index}, there are {len(column)}")
        if column[index]:
            raise InvalidRequest(f"{name}: the frame of record {index} is not empty")
        column[index] = None
    return column


def _choose(context: Context, topic: str, count: int, keys: list[bytes | None]) -> int:
    """The partition of a batch that names none: by its keys, else the next one led here."""
    hashed = {partition_for_key(key, count) for key in keys if key is not None}
    if len(hashed) > 1:
        raise InvalidRequest(
            f"the keys belong to partitions {sorted(hashed)}: one partition a request; "
            f"send them apart, or name the partition"
        )
    if hashed:
        return hashed.pop()
    context.spread += 1
    for step in range(count):
        index = (context.spread + step) % count
        partition = context.partitions.get((topic, index))
        if partition is not None and partition.leader is not None:
            return index
    state = context.metadata.image.topics[topic].partitions[context.spread % count]
    raise not_leader(context, topic, state)


def produce_simple(
    context: Context, exchange: Exchange, request: ProduceSimple, frames: list[bytes]
) -> None:
    """Records as plain frames; the broker builds the batch."""
    _check_acks(request.acks)
    _check_size(frames)
    count = request.count
    if len(frames) != 2 * count:
        raise InvalidRequest(f"count {count} and {len(frames)} frames: two a record, key and value")
    keys = _with_nulls(frames[0::2], request.null_keys, "null_keys")
    values = _with_nulls(frames[1::2], request.null_values, "null_values")
    for column, name in ((request.timestamps, "timestamps"), (request.headers, "headers")):
        if column is not None and len(column) != count:
            raise InvalidRequest(f"{len(column)} {name} for {count} records")
    producer = (request.producer_id, request.producer_epoch, request.base_sequence)
    if any(x >= 0 for x in producer) and (min(producer) < 0 or request.partition < 0):
        raise InvalidRequest(
            "producer_id, producer_epoch and base_sequence go together, with a partition named"
        )
    try:
        topic = find_topic(context, request.topic, request.topic_id)
    except UnknownTopic:
        if not (context.settings.auto_create_topics and not request.topic_id):
            raise
        context.create_default_topic(
            exchange, request.topic, lambda: context.handle(exchange, request, frames)
        )
        return
    index = request.partition
    if index < 0:
        index = _choose(context, topic.name, len(topic.partitions), keys)
    partition = find_partition(
        context, request.topic, index, request.topic_id, request.leader_epoch
    )
    context.simple_records += count
    batch = build(
        values,
        keys=keys,
        timestamps=request.timestamps or context.clock.wall_ns(),
        headers=request.headers,
        producer_id=producer[0],
        producer_epoch=producer[1],
        base_sequence=producer[2],
    )
    entry = _Entry(request.topic, index)
    _append(context, exchange, entry, partition, bytes(batch), request.acks)
    _park(context, exchange, [entry], request.acks, simple=True)
