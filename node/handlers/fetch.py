"""fetch, simple and fast: whole committed batches, a long poll, and the wake-up call (`max_bytes` 0)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from node.handlers.exchange import COMMITTED, LEADERSHIP, Context, Exchange, error_fields
from node.handlers.lookup import find_partition
from node.partition import Partition
from shmlog.clock import NS_PER_MS
from shmlog.errors import InvalidRequest, ShmlogError
from shmlog.protocol.header import Big, Octets
from shmlog.protocol.messages import (
    FETCH_BYTES_MAX,
    SIMPLE_BYTES_MAX,
    SIMPLE_RECORDS_MAX,
    FetchDiverged,
    FetchFast,
    FetchFastAnswer,
    FetchPartition,
    FetchResult,
    FetchSimple,
    FetchSimpleAnswer,
    FetchSimpleDiverged,
)
from shmlog.records import batch as batches

_ENTRIES_MAX = 2048
HEADER_OVERHEAD = 16  # brackets, quotes and what base64 may add to a short value

Divergence = tuple[int, int] | None  # the epoch, and where the log ends it


class FetchWait:
    """A fetch that looks again whenever one of its partitions has something new."""

    __slots__ = ("_context", "_deadline_ns", "_exchange", "_request")

    def __init__(
        self, context: Context, exchange: Exchange, request: FetchFast | FetchSimple
    ) -> None:
        self._context = context
        self._exchange = exchange
        self._request = request
        now_ns = context.clock.monotonic_ns()
        self._deadline_ns = min(now_ns + request.max_wait_ms * NS_PER_MS, exchange.deadline_ns)

    def resume(self) -> None:
        """Answer, or wait on."""
        self._look(last=self._deadline_ns <= self._context.clock.monotonic_ns())

    def expire(self) -> None:
        """Time is up: answer with what there is, nothing is no error."""
        self._look(last=True)

    def _look(self, *, last: bool) -> None:
        request = self._request
        entries: Sequence[FetchPartition | FetchSimple]
        if isinstance(request, FetchSimple):
            entries, answered = [request], self._look_simple(request, last=last)
            channel = COMMITTED
        else:
            entries, answered = request.partitions, self._look_fast(request, last=last)
            channel = LEADERSHIP if request.doorbell else COMMITTED
        if answered:
            return
        keys = {}
        for entry in entries:
            partition = self._context.partitions[entry.topic, entry.partition]
            # With min_bytes above one, what is there already did not suffice: wait for more than that.
            keys[partition, channel] = max(entry.offset, partition.high_watermark) + 1
        self._context.purgatory.wait(self, keys.items(), self._deadline_ns)

    def _size_wanted(self, entries: Sequence[FetchPartition | FetchSimple], budget: int) -> int:
        limits = sum(min(entry.max_bytes, budget) for entry in entries)
        return min(self._request.min_bytes, budget, limits)

    def _size_there(
        self, entries: Sequence[FetchPartition | FetchSimple], *, least: bool = False
    ) -> int:
        """How many bytes of batches the partitions can give: at most that many, or `least` at least.

        By the index alone, so up to an index interval a partition apart. It is what lets a fetch that
        wants much sleep on without reading everything again at each append.
        """
        size = 0
        for entry in entries:
            partition = self._context.partitions[entry.topic, entry.partition]
            there = partition.log.bytes_from(entry.offset, entry.max_bytes)
            if least:
                there -= partition.config.index_interval_bytes
            size += min(max(there, 0), entry.max_bytes)
        return size

    # -- fast -----------------------------------------------------------------------------------------

    def _look_fast(self, request: FetchFast, *, last: bool) -> bool:
        wake_up = request.max_bytes == 0
        budget = min(request.max_bytes, FETCH_BYTES_MAX)
        wanted_size = self._size_wanted(request.partitions, budget)
        if (
            wanted_size > 1
            and not last
            and self._all_there(request.partitions)
            and self._size_there(request.partitions) < wanted_size
        ):
            return False
        results: list[Any] = []
        frames: list[bytes] = []
        total = 0
        news = False
        for wanted in request.partitions:
            try:
                result, data = self._read_entry(wanted, wake_up, budget - total, total == 0)
            except ShmlogError as error:
                results.append(
                    {"topic": wanted.topic, "partition": wanted.partition, **error_fields(error)}
                )
                news = True
                continue
            results.append(result)
            if data:
                frames.append(data)
                total += len(data)
            elif isinstance(result, FetchDiverged) or (
                wake_up and not request.doorbell and result.high_watermark > wanted.offset
            ):
                news = True
        enough = total >= max(1, wanted_size) or (
            total > 0
            and not news
            and self._size_there(request.partitions, least=True) >= wanted_size
        )
        if not (enough or news or last or not request.partitions):
            return False
        assert self._exchange.id is not None
        self._context.counters.bytes_out += total
        self._exchange.answer(FetchFastAnswer(id=self._exchange.id, partitions=results), frames)
        return True

    def _all_there(self, entries: Sequence[FetchPartition]) -> bool:
        """May every entry be answered with data? What may not is an answer at once."""
        try:
            return all(self._find(entry)[1] is None for entry in entries)
        except ShmlogError:
            return False

    def _find(self, entry: FetchPartition | FetchSimple) -> tuple[Partition, Divergence]:
        partition = find_partition(
            self._context, entry.topic, entry.partition, entry.topic_id, entry.leader_epoch
        )
        diverging = partition.divergence(entry.offset, entry.last_epoch)
        if diverging is None:
            partition.check_offset(entry.offset)
        return partition, diverging

    def _read_entry(
        self, wanted: FetchPartition, wake_up: bool, room: int, first: bool
    ) -> tuple[FetchResult, bytes]:
        partition, diverging = self._find(wanted)
        if diverging is not None:
            return _diverged(wanted, partition, *diverging), b""
        data = b""
        limit = min(wanted.max_bytes, room)
        # The progress rule: the first partition with data gets a whole batch whatever the limits are.
        if not wake_up and (first or limit > 0) and wanted.offset < partition.high_watermark:
            data = partition.read(wanted.offset, max(limit, 0)).data
            if not first and len(data) > limit:
                data = b""
        result = FetchResult(
            topic=wanted.topic,
            partition=wanted.partition,
            bytes=len(data),
            high_watermark=partition.high_watermark,
            log_start=partition.log_start,
            leader_epoch=partition.leader_epoch,
        )
        return result, data

    # -- simple ---------------------------------------------------------------------------------------

    def _look_simple(self, request: FetchSimple, *, last: bool) -> bool:
        try:
            partition, diverging = self._find(request)
            if diverging is not None:
                self._answer_simple(request, partition, _Opened(request.offset), diverging)
                return True
            there = request.offset < partition.high_watermark
            if not (there or last):
                return False
            if not there or request.max_bytes == 0:
                self._answer_simple(request, partition, _Opened(request.offset))
                return True
            limit = min(request.max_bytes, SIMPLE_BYTES_MAX)
            wanted_size = self._size_wanted([request], limit)
            if not last and self._size_there([request]) < wanted_size:
                return False
            data = partition.read(request.offset, limit).data
            opened = _open(data, request.offset, limit)
        except ShmlogError as error:
            self._exchange.fail(error)
            return True
        self._context.simple_records += opened.count
        if (
            opened.size < wanted_size
            and (opened.count or opened.next_offset == request.offset)  # else: move on
            and opened.count < SIMPLE_RECORDS_MAX
            and not last
            and self._size_there([request], least=True) < wanted_size
        ):
            return False
        self._answer_simple(request, partition, opened)
        return True

    def _answer_simple(
        self,
        request: FetchSimple,
        partition: Partition,
        opened: _Opened,
        diverging: Divergence = None,
    ) -> None:
        assert self._exchange.id is not None
        base, offsets = request.offset, opened.offsets
        if offsets:
            base = offsets[0]
        if diverging is not None:
            base = opened.next_offset = min(base, diverging[1])
        answer = FetchSimpleAnswer(
            id=self._exchange.id,
            error=0,
            topic=request.topic,
            partition=request.partition,
            base_offset=base,
            count=opened.count,
            next_offset=opened.next_offset,
            high_watermark=partition.high_watermark,
            log_start=partition.log_start,
            leader_epoch=partition.leader_epoch,
            null_keys=opened.null_keys,
            null_values=opened.null_values,
            timestamps=opened.timestamps,
            headers=opened.headers if any(opened.headers) else None,
            offsets=offsets if offsets and offsets[-1] - base >= len(offsets) else None,
        )
        if diverging is not None:
            epoch, end = diverging
            answer = FetchSimpleDiverged(
                **msgspec.structs.asdict(answer), diverging_epoch=epoch, diverging_end=end
            )
        self._context.counters.bytes_out += opened.size
        self._exchange.answer(answer, opened.frames)


def _diverged(wanted: FetchPartition, partition: Partition, epoch: int, end: int) -> FetchDiverged:
    return FetchDiverged(
        topic=wanted.topic,
        partition=wanted.partition,
        bytes=0,
        high_watermark=partition.high_watermark,
        log_start=partition.log_start,
        leader_epoch=partition.leader_epoch,
        diverging_epoch=epoch,
        diverging_end=end,
    )


class _Opened:
    """Records taken out of batches, at most SIMPLE_RECORDS_MAX and a number of bytes."""

    def __init__(self, offset: int) -> None:
        self.next_offset = offset
        self.offsets: list[int] = []
        self.frames: list[bytes] = []
        self.timestamps: list[Big] = []
        self.null_keys: list[int] = []
        self.null_values: list[int] = []
        self.headers: list[list[tuple[str, Octets | None]]] = []
        self.size = 0

    @property
    def count(self) -> int:
        return len(self.timestamps)

    def add(self, batch: batches.RecordBatch, first: int, limit: int) -> bool:
        """Add the batch's records from index `first`; False when a limit is reached."""
        stop = min(len(batch), first + SIMPLE_RECORDS_MAX - self.count)
        keys = batch.keys(first, stop)
        values = batch.values(first, stop)
        timestamps = batch.timestamps[first:stop].tolist()
        offsets = batch.offsets[first:stop].tolist()
        for i, (key, value) in enumerate(zip(keys, values, strict=True)):
            found = batch.headers(first + i) if batch.has_headers else []
            size = len(key or b"") + len(value or b"")
            size += sum(len(name) + len(data or b"") + HEADER_OVERHEAD for name, data in found)
            if self.count and self.size + size > limit:
                self.next_offset = offsets[i]
                return False
            self.offsets.append(offsets[i])
            if key is None:
                self.null_keys.append(self.count)
            if value is None:
                self.null_values.append(self.count)
            self.size += size
            self.frames += (key or b"", value or b"")
            self.timestamps.append(Big(timestamps[i]))
            self.headers.append(
                [(name, None if data is None else Octets(data)) for name, data in found]
            )
        self.next_offset = batch.end_offset if stop == len(batch) else offsets[-1] + 1
        return stop == len(batch) and self.count < SIMPLE_RECORDS_MAX and self.size < limit


def _open(data: bytes, offset: int, limit: int) -> _Opened:
    opened = _Opened(offset)
    view = memoryview(data)
    for position, header in batches.iterate(view):
        batch = batches.RecordBatch(view[position : position + header.batch_size], header)
        if not opened.add(batch, batch.index_at(offset), limit):
            break
    return opened


def fetch_simple(
    context: Context, exchange: Exchange, request: FetchSimple, frames: list[bytes]
) -> None:
    """One partition, records as plain frames."""
    if frames:
        raise InvalidRequest(f"a fetch has no frames, this one has {len(frames)}")
    FetchWait(context, exchange, request).resume()


def fetch_fast(
    context: Context, exchange: Exchange, request: FetchFast, frames: list[bytes]
) -> None:
    """Many partitions, whole batches."""
    if frames:
        raise InvalidRequest(f"a fetch has no frames, this one has {len(frames)}")
    if len(request.partitions) > _ENTRIES_MAX:
        raise InvalidRequest(f"{len(request.partitions)} partitions: at most {_ENTRIES_MAX}")
    if request.doorbell and request.max_bytes:
        raise InvalidRequest(
            "a fetch that leaves the news to the doorbell brings none: max_bytes must be 0"
        )
    FetchWait(context, exchange, request).resume()
