"""Stamped batches and short ways to open a log, for the tests of the log."""

from __future__ import annotations

from collections.abc import Sequence

from shmlog.log.log import Log
from shmlog.log.storage import Storage
from shmlog.records.batch import RecordBatch
from shmlog.records.builder import build, stamp
from shmlog.records.header import BatchHeader, decode_header, iterate
from shmlog.settings import TopicConfig

TOPIC_ID = bytes(range(16))
PARTITION = 3
DIRECTORY = "data/t-3"
TIME_NS = 1_700_000_000_000_000_000
SMALL = TopicConfig(segment_bytes=1024, index_interval_bytes=512)

Stamped = tuple[BatchHeader, bytes]


def make(
    base_offset: int,
    values: Sequence[bytes],
    *,
    epoch: int = 0,
    timestamps: Sequence[int] | int = TIME_NS,
    append_time_ns: int = TIME_NS,
    topic_id: bytes = TOPIC_ID,
    producer: tuple[int, int, int] = (-1, -1, -1),
) -> Stamped:
    """One batch as a leader would hand it to the log; `producer` is (id, epoch, base sequence)."""
    batch = build(
        list(values),
        timestamps=timestamps,
        producer_id=producer[0],
        producer_epoch=producer[1],
        base_sequence=producer[2],
    )
    stamp(
        batch,
        base_offset=base_offset,
        leader_epoch=epoch,
        append_time_ns=append_time_ns,
        topic_id=topic_id,
        partition=PARTITION,
    )
    return decode_header(batch), bytes(batch)


def open_log(
    storage: Storage,
    directory: str = DIRECTORY,
    *,
    config: TopicConfig = SMALL,
    same_boot: bool = True,
    clean: bool = False,
    topic_id: bytes = TOPIC_ID,
) -> Log:
    """The log of a directory, by default after a kill."""
    return Log.open(
        storage,
        directory,
        topic_id=topic_id,
        partition=PARTITION,
        config=config,
        now_ns=0,
        same_boot=same_boot,
        clean=clean,
    )


def add(log: Log, *sizes: int, epoch: int = 0, fill: bytes = b"v") -> list[Stamped]:
    """Append one batch per size, of that many records of 40 bytes, in one call."""
    batches, offset = [], log.log_end_offset
    for size in sizes:
        batches.append(make(offset, [fill * 40] * size, epoch=epoch))
        offset += size
    log.append(batches, 0)
    return batches


def sync(log: Log) -> None:
    """Make everything durable, as a worker and the loop would."""
    job = log.sync_job()
    if job is not None:
        job.run()
        log.finish_sync(job)


def checkpoint(log: Log, high_watermark: int | None = None) -> None:
    """Write the checkpoint, as a worker would."""
    job = log.checkpoint_job(log.synced_end_offset if high_watermark is None else high_watermark)
    if job is not None:
        job.run()


def read_all(log: Log, start: int | None = None) -> list[Stamped]:
    """Every batch from `start` (the log start) on, by repeated reads."""
    offset = log.log_start_offset if start is None else start
    found: list[Stamped] = []
    while offset < log.log_end_offset:
        data = log.read(offset, max_bytes=700, end_offset=log.log_end_offset)
        assert data, f"nothing at offset {offset} of {log.log_end_offset}"
        for position, header in iterate(data):
            assert header.base_offset <= offset
            found.append((header, data[position : position + header.batch_size]))
            offset = header.end_offset
    return found


def values_of(stamped: Stamped) -> list[bytes | None]:
    """The values of a batch."""
    return RecordBatch(stamped[1]).values()
