"""list_offsets, delete_records and init_producer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from node.core.cluster.topics import PRODUCER_ID_BLOCK
from node.handlers.exchange import Context, Exchange, error_fields
from node.handlers.lookup import find_partition
from node.partition import Partition
from shmlog.clock import NS_PER_MS
from shmlog.errors import (
    Backpressure,
    Code,
    InvalidRequest,
    LeaderUnavailable,
    ShmlogError,
)
from shmlog.protocol import peers
from shmlog.protocol.header import Big
from shmlog.protocol.messages import (
    DeleteRecords,
    DeleteRecordsAnswer,
    InitProducer,
    InitProducerAnswer,
    ListOffsets,
    ListOffsetsAnswer,
    OffsetAnswer,
    OffsetQuestion,
    TrimResult,
)

LATEST, EARLIEST = -1, -2
QUESTIONS_MAX = 2048
SEARCH_NS_MAX = 20 * NS_PER_MS


def list_offsets(
    context: Context, exchange: Exchange, request: ListOffsets, frames: list[bytes]
) -> None:
    """Offsets by time, or the ends."""
    if len(request.partitions) > QUESTIONS_MAX:
        raise InvalidRequest(f"{len(request.partitions)} questions: at most {QUESTIONS_MAX}")
    results: list[Any] = []
    began_ns = context.clock.monotonic_ns()

    def enough() -> bool:
        """A search by time opens batches: one request must not hold up everybody else."""
        return context.clock.monotonic_ns() - began_ns > SEARCH_NS_MAX

    for question in request.partitions:
        try:
            if enough():
                raise Backpressure("enough searched for one turn: ask again", retry_after_ms=1)
            results.append(_find(context, question, enough))
        except ShmlogError as error:
            results.append(
                {"topic": question.topic, "partition": question.partition, **error_fields(error)}
            )
    assert exchange.id is not None
    exchange.answer(ListOffsetsAnswer(id=exchange.id, partitions=results))


def _find(context: Context, question: OffsetQuestion, enough: Callable[[], bool]) -> OffsetAnswer:
    partition = find_partition(
        context, question.topic, question.partition, "", question.leader_epoch
    )
    timestamp_ns = -1
    if question.timestamp == LATEST:
        _check_latest_known(partition)
        offset = partition.high_watermark
    elif question.timestamp == EARLIEST:
        offset = partition.log_start
    elif question.timestamp >= 0:
        end = partition.high_watermark
        found = partition.log.offset_for_time(question.timestamp, end, enough)
        offset, timestamp_ns = found if found is not None else (-1, -1)
    else:
        raise InvalidRequest(
            f"timestamp {question.timestamp}: a time in ns, -1 (latest) or -2 (earliest)"
        )
    return OffsetAnswer(
        topic=question.topic,
        partition=question.partition,
        offset=offset,
        timestamp=Big(timestamp_ns),
        last_epoch=partition.log.last_epoch_before(offset) if offset >= 0 else -1,
    )


def _check_latest_known(partition: Partition) -> None:
    """Raises LeaderUnavailable while a new leader's high watermark may lie below what was committed (H7)."""
    assert partition.leader is not None
    if not partition.leader.latest_known:
        raise LeaderUnavailable(
            f"{partition.name}: what is committed is not known yet in leader epoch "
            f"{partition.leader_epoch}",
            code=Code.OFFSET_NOT_AVAILABLE,
            topic=partition.name.topic,
            partition=partition.name.partition,
        )


class _Trim:
    """delete_records: one metadata change a partition; answered when all are committed."""

    def __init__(self, context: Context, exchange: Exchange, request: DeleteRecords) -> None:
        self._context = context
        self._exchange = exchange
        self._results: list[Any] = [None] * len(request.partitions)
        self._left = len(request.partitions)
        for index, wanted in enumerate(request.partitions):
            try:
                partition = find_partition(context, wanted.topic, wanted.partition)
                if not 0 <= wanted.offset <= partition.high_watermark:
                    _check_latest_known(partition)
            except ShmlogError as error:
                self._finish(index, wanted.topic, wanted.partition, error)
                continue
            offset = partition.high_watermark if wanted.offset == -1 else wanted.offset
            change = peers.DeleteRecords(
                name=wanted.topic,
                partition=wanted.partition,
                leader_epoch=partition.leader_epoch,
                offset=offset,
                high_watermark=partition.high_watermark,
            )
            done = self._done(index, wanted.topic, wanted.partition)
            context.metadata.submit(change, done, exchange.deadline_ns)
        if not request.partitions:
            self._answer()

    def _done(
        self, index: int, topic: str, partition: int
    ) -> Callable[[int, ShmlogError | None], None]:
        return lambda _, error: self._finish(index, topic, partition, error)

    def _finish(self, index: int, topic: str, partition: int, error: ShmlogError | None) -> None:
        hosted = self._context.partitions.get((topic, partition))
        if error is not None or hosted is None:
            fields = error_fields(error) if error is not None else {"error": 0, "log_start": -1}
            self._results[index] = {"topic": topic, "partition": partition, **fields}
        else:
            self._results[index] = TrimResult(
                topic=topic, partition=partition, log_start=hosted.log_start
            )
        self._left -= 1
        if self._left == 0:
            self._answer()

    def _answer(self) -> None:
        assert self._exchange.id is not None
        self._exchange.answer(
            DeleteRecordsAnswer(
                id=self._exchange.id,
                partitions=self._results,
                metadata_offset=self._context.metadata.image.offset,
            )
        )


def delete_records(
    context: Context, exchange: Exchange, request: DeleteRecords, frames: list[bytes]
) -> None:
    """Raise the log start of partitions."""
    _Trim(context, exchange, request)


def init_producer(
    context: Context, exchange: Exchange, request: InitProducer, frames: list[bytes]
) -> None:
    """A new producer id out of this broker's block; the metadata log hands out the next block."""
    if context.producer_ids:
        _answer_producer(context, exchange)
        return

    def done(_: int, error: ShmlogError | None) -> None:
        if error is not None:
            exchange.fail(error)
            return
        if not context.producer_ids:
            end = context.metadata.image.producer_blocks[broker]
            context.producer_ids = [end - PRODUCER_ID_BLOCK, end]
        _answer_producer(context, exchange)

    broker = context.identity.broker
    context.metadata.submit(peers.TakeProducerIds(taker=broker), done, exchange.deadline_ns)


def _answer_producer(context: Context, exchange: Exchange) -> None:
    next_id, end = context.producer_ids
    context.producer_ids = [next_id + 1, end] if next_id + 1 < end else []
    assert exchange.id is not None
    exchange.answer(InitProducerAnswer(id=exchange.id, producer_id=Big(next_id), producer_epoch=0))
