"""Stamped batches for tests of the log, and what a log's bytes hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from shmlog.log.jobs import Job
from shmlog.log.log import Log
from shmlog.log.storage import Storage
from shmlog.records.batch import RecordBatch, iterate
from shmlog.records.builder import build, stamp
from shmlog.records.header import BatchHeader, decode_header
from shmlog.settings import TopicConfig

TOPIC_ID = bytes(range(16))
DIRECTORY = "data/events-3"
Stamped = tuple[BatchHeader, bytes]


def batch(
    base_offset: int,
    count: int = 1,
    *,
    value: bytes = b"v",
    values: Sequence[bytes] | None = None,
    epoch: int = 0,
    topic_id: bytes = TOPIC_ID,
    partition: int = 3,
    timestamps: Any = 1000,
    append_time_ns: int = 1000,
    producer_id: int = -1,
    producer_epoch: int = -1,
    sequence: int = -1,
) -> Stamped:
    """A batch as a leader would append it; record i's value is `value` and its offset, unless given."""
    data = build(
        [b"%s%d" % (value, base_offset + i) for i in range(count)] if values is None else values,
        timestamps=timestamps,
        producer_id=producer_id,
        producer_epoch=producer_epoch,
        base_sequence=sequence,
    )
    stamp(
        data,
        base_offset=base_offset,
        leader_epoch=epoch,
        append_time_ns=append_time_ns,
        topic_id=topic_id,
        partition=partition,
    )
    return decode_header(data), bytes(data)


def config(**settings: Any) -> TopicConfig:
    """Small segments and indexes unless told otherwise."""
    return TopicConfig(**{"segment_bytes": 1200, "index_interval_bytes": 300} | settings)


def open_log(storage: Storage, directory: str = DIRECTORY, **changes: Any) -> Log:
    """A log opened as after a kill of the broker, unless told otherwise."""
    arguments: dict[str, Any] = {
        "topic_id": TOPIC_ID,
        "partition": 3,
        "config": config(),
        "now_ns": 0,
        "same_boot": True,
        "clean": False,
    }
    return Log.open(storage, directory, **arguments | changes)


def append(log: Log, count: int = 1, **fields: Any) -> Stamped:
    """One batch at the end."""
    one = batch(log.log_end_offset, count, **fields)
    log.append([one], now_ns=0)
    return one


def add(log: Log, *sizes: int, epoch: int = 0, fill: bytes = b"v") -> list[Stamped]:
    """Append one batch per size, of that many records of 40 bytes, in one call."""
    batches, offset = [], log.log_end_offset
    for size in sizes:
        batches.append(batch(offset, values=[fill * 40] * size, epoch=epoch))
        offset += size
    log.append(batches, 0)
    return batches


def run(job: Job | None) -> None:
    """As a worker would."""
    if job is not None:
        job.run()


def sync(log: Log) -> None:
    """As the loop and a worker would."""
    job = log.sync_job()
    if job is not None:
        job.run()
        log.finish_sync(job)


def append_replicated(log: Log, *batches: Stamped) -> None:
    """Append what a leader has admitted, and remember its producers as the leader did (P01)."""
    log.append(batches, 0)
    for header, _ in batches:
        log.producers.apply(header, header.base_offset, header.append_time_ns, 0)


def checkpoint(log: Log, high_watermark: int | None = None) -> None:
    """Write the checkpoint, as a worker would."""
    run(log.checkpoint_job(log.synced_end_offset if high_watermark is None else high_watermark))


def read_stamped(log: Log, *, max_bytes: int = 1 << 20) -> list[Stamped]:
    """The batches from the log start to the end."""
    offset, found = log.log_start_offset, []
    while offset < log.log_end_offset:
        data = log.read(offset, max_bytes=max_bytes, end_offset=log.log_end_offset)
        assert data, f"nothing at {offset} below {log.log_end_offset}"
        for position, header in iterate(data):
            assert header.base_offset <= offset or header.follows(offset)
            found.append((header, data[position : position + header.batch_size]))
            offset = header.end_offset
    return found


def read_all(log: Log) -> list[bytes]:
    """The batches from the log start to the end, each as bytes."""
    return [data for _, data in read_stamped(log)]


def values(batches: list[bytes]) -> list[bytes]:
    """The records' values."""
    return [value for one in batches for value in RecordBatch(one).values() if value is not None]
