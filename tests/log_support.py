"""Stamped batches for tests of the log, and what a log's bytes hold."""

from __future__ import annotations

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
    epoch: int = 0,
    topic_id: bytes = TOPIC_ID,
    partition: int = 3,
    timestamps: Any = 1000,
    append_time_ns: int = 1000,
    producer_id: int = -1,
    producer_epoch: int = -1,
    sequence: int = -1,
) -> Stamped:
    """A batch as a leader would append it; record i's value is `value` and its offset."""
    data = build(
        [b"%s%d" % (value, base_offset + i) for i in range(count)],
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


def read_all(log: Log, end_offset: int | None = None) -> list[bytes]:
    """The batches from the log start to the end, each as bytes."""
    end_offset = log.log_end_offset if end_offset is None else end_offset
    offset, found = log.log_start_offset, []
    while offset < end_offset:
        data = log.read(offset, max_bytes=1 << 20, end_offset=end_offset)
        assert data, f"nothing at {offset} below {end_offset}"
        for position, header in iterate(data):
            found.append(data[position : position + header.batch_size])
            offset = header.end_offset
    return found


def values(batches: list[bytes]) -> list[bytes]:
    """The records' values."""
    return [value for one in batches for value in RecordBatch(one).values() if value is not None]
