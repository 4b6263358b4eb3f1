"""Keyed records in a log, and a compaction pass as a broker and its cleaner would make it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import log_support as ls

from shmlog.clock import NS_PER_MS
from shmlog.log.cleaner import Cleaner
from shmlog.log.cleaning import plan
from shmlog.log.cleaning_task import CleaningResult
from shmlog.log.log import Log
from shmlog.log.storage import Storage
from shmlog.log.swapping import open_cleaned
from shmlog.records.batch import RecordBatch
from shmlog.records.builder import build, stamp
from shmlog.records.header import decode_header
from shmlog.records.layout import Codec

Row = tuple[bytes | None, bytes | None]  # key, value
MS = NS_PER_MS


def keyed(offset: int, rows: Sequence[Row], **fields: Any) -> ls.Stamped:
    """A batch as a leader would append it."""
    identity = {"producer_id": -1, "producer_epoch": -1, "base_sequence": -1}
    identity |= {name: fields[name] for name in identity if name in fields}
    data = build(
        [value for _, value in rows],
        keys=[key for key, _ in rows],
        timestamps=fields.get("timestamps", 1000),
        codec=fields.get("codec", Codec.NONE),
        **identity,
    )
    stamp(
        data,
        base_offset=offset,
        leader_epoch=fields.get("epoch", 0),
        append_time_ns=fields.get("append_time_ns", 1000),
        topic_id=ls.TOPIC_ID,
        partition=3,
    )
    return decode_header(data), bytes(data)


def put(log: Log, *rows: Row, **fields: Any) -> ls.Stamped:
    """Append one batch, its producer remembered."""
    one = keyed(log.log_end_offset, rows, **fields)
    ls.append_replicated(log, one)
    return one


def records(log: Log) -> list[tuple[int, bytes | None, bytes | None]]:
    """(offset, key, value) of every record."""
    found = []
    for _, data in ls.read_stamped(log):
        batch = RecordBatch(data)
        batch.validate()
        found += list(zip(batch.offsets.tolist(), batch.keys(), batch.values(), strict=True))
    return found


def table(rows: Sequence[tuple[int, bytes | None, bytes | None]]) -> dict[bytes, bytes]:
    """The newest value of each key that was not deleted."""
    newest = {key: value for _, key, value in rows if key is not None}
    return {key: value for key, value in newest.items() if value is not None}


def clean(
    storage: Storage,
    log: Log,
    *,
    now_ns: int = 0,
    high_watermark: int | None = None,
    tombstones_end: int = 1 << 62,
    keys_max: int = 1 << 19,
    stop_after: int | None = None,
) -> CleaningResult | None:
    """One pass, if one is due; only its first `stop_after` swaps, if given: then it is not complete."""
    safe_end = min(
        log.compactable_end, log.log_end_offset if high_watermark is None else high_watermark
    )
    due = plan(
        log.swaps.facts(),
        log.compaction,
        log.config,
        safe_end=safe_end,
        tombstones_end=tombstones_end,
        now_ns=now_ns,
    )
    if due is None:
        return None
    task = log.cleaning_task(due)
    task = type(task)(
        **{name: getattr(task, name) for name in task.__struct_fields__} | {"keys_max": keys_max}
    )
    result = Cleaner(storage, task, lambda size: None).run()
    log.before_swaps(result.tombstones_dropped).run()
    for base, end in result.made[:stop_after]:
        segment = open_cleaned(storage, log.directory, base, end, log.config.index_interval_bytes)
        job = log.swaps.begin(segment)
        assert job is not None
        job.run()
        log.swaps.finish(job)
    if stop_after is None or stop_after >= len(result.made):
        log.compaction = log.compaction.completed(
            result.end_offset, result.oldest_tombstone, now_ns, log.config.delete_retention * MS
        )
    return result
