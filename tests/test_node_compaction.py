"""Compaction in a broker whose clock, disk and workers are driven by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from memory_broker import MemoryBroker

from shmlog.clock import NS_PER_S, ManualClock
from shmlog.errors import Code
from shmlog.records.header import decode_header
from shmlog.records.layout import Flag

SETTINGS = {
    "cleanup.policy": "compact",
    "segment.bytes": 65536,
    "min.cleanable.dirty.ratio": 0.1,
    "delete.retention.ms": 5000,
}
Row = tuple[bytes, bytes | None]


@pytest.fixture
def broker(tmp_path: Path) -> MemoryBroker:
    return MemoryBroker(tmp_path)


def put(broker: MemoryBroker, *rows: Row, **fields: Any) -> dict[str, Any]:
    frames = [x for key, value in rows for x in (key, value or b"")]
    nulls = [i for i, (_, value) in enumerate(rows) if value is None]
    message = {"op": "produce", "mode": "simple", "topic": "t", "partition": 0}
    return broker.ask(message | {"count": len(rows), "null_values": nulls} | fields, *frames)[0]


def rows(broker: MemoryBroker) -> list[tuple[int, bytes, bytes | None]]:
    """(offset, key, value) of all that is committed, as a client of simple mode finds it."""
    found, offset = [], broker.context.partitions["t", 0].log_start
    while True:
        reply, frames = broker.fetch("t", offset)
        assert reply["error"] == 0, reply
        count, base = reply["count"], reply["base_offset"]
        offsets = reply.get("offsets") or range(base, base + count)
        assert len(offsets) == count
        for place, at in enumerate(offsets):
            null = place in reply["null_values"]
            found.append((at, frames[2 * place], None if null else frames[2 * place + 1]))
        if reply["next_offset"] == offset:
            return found
        assert reply["next_offset"] > max([offset, *offsets])
        offset = reply["next_offset"]


def pass_time(broker: MemoryBroker, seconds: int) -> None:
    """Chores come each second; jobs run in the turns between."""
    assert isinstance(broker.clock, ManualClock)
    for _ in range(seconds):
        broker.clock.advance(NS_PER_S)
        for _ in range(12):
            broker.turn()


def fill(broker: MemoryBroker, count: int, keys: int = 7) -> list[Row]:
    """Values of a kilobyte: some segments of 64 KiB."""
    written: list[Row] = []
    for start in range(0, count, 20):
        batch: list[Row] = [
            (b"k%d" % (i % keys), b"%d" % i + b"." * 1000) for i in range(start, start + 20)
        ]
        assert put(broker, *batch)["error"] == 0
        written += batch
    return written


def test_a_compacted_topic_shrinks_to_its_table_and_offsets_stay(broker: MemoryBroker) -> None:
    broker.create("t", **SETTINGS)
    written = fill(broker, 400)
    pass_time(broker, 3)
    found = rows(broker)
    assert len(found) < 150
    assert all(written[offset] == (key, value) for offset, key, value in found)
    assert {key: value for _, key, value in found} == dict(written)
    partition = broker.context.partitions["t", 0]
    assert partition.log.compaction.cleaned > 300
    assert partition.log.log_end_offset == 400
    assert not [name for name in broker.storage.list("data/t-0") if "cleaned" in name]


def test_the_ring_does_not_show_what_the_files_have_lost(broker: MemoryBroker) -> None:
    broker.create("t", **SETTINGS | {"ring.bytes": "8MiB"})
    fill(broker, 20)
    assert broker.context.partitions["t", 0].window.state == "ring"
    fill(broker, 400)
    pass_time(broker, 3)
    window = broker.context.partitions["t", 0].window
    cleaned = broker.context.partitions["t", 0].log.compaction.cleaned
    assert window.read(0, 1000, 420, 1 << 20) == b""
    assert window.read(cleaned - 1, 1000, 420, 1 << 20) == b""
    assert window.read(cleaned, 1000, 420, 1 << 20) != b""
    assert len(rows(broker)) < 150


def test_a_delete_is_seen_for_its_retention_and_then_gone(broker: MemoryBroker) -> None:
    broker.create("t", **SETTINGS)
    fill(broker, 200)
    put(broker, (b"k3", None))
    fill(broker, 200, keys=3)
    pass_time(broker, 2)
    assert (200, b"k3", None) in rows(broker)
    pass_time(broker, 8)
    assert b"k3" not in {key for _, key, _ in rows(broker)}
    compaction = broker.context.partitions["t", 0].log.compaction
    assert (compaction.tombstones_dropped, compaction.oldest_tombstone) == (201, -1)


def test_a_clock_that_jumps_takes_no_delete_from_those_who_have_to_see_it(
    broker: MemoryBroker,
) -> None:
    broker.create("t", **SETTINGS | {"delete.retention.ms": 3_600_000})
    fill(broker, 200)
    put(broker, (b"k3", None))
    fill(broker, 200, keys=3)
    pass_time(broker, 5)
    assert broker.context.partitions["t", 0].log.compaction.oldest_tombstone == 200
    assert isinstance(broker.clock, ManualClock)
    broker.clock.set_wall(7200 * NS_PER_S)
    pass_time(broker, 590)
    assert (200, b"k3", None) in rows(broker)
    pass_time(broker, 20)
    assert b"k3" not in {key for _, key, _ in rows(broker)}


@pytest.mark.parametrize("policy", ["compact", "compact,delete"])
def test_only_a_policy_that_says_so_deletes_by_age_and_size(
    broker: MemoryBroker, policy: str
) -> None:
    rules = {"cleanup.policy": policy, "retention.ms": 1000, "retention.bytes": 1}
    broker.create("t", **SETTINGS | rules)
    put(broker, (b"old", b"1"))
    fill(broker, 400)
    pass_time(broker, 10)
    keys = {key for _, key, _ in rows(broker)}
    assert (b"old" in keys) == (policy == "compact")
    assert (broker.context.partitions["t", 0].log_start > 0) == (policy == "compact,delete")


def test_a_quiet_topic_is_sealed_and_compacted_after_its_longest_lag(broker: MemoryBroker) -> None:
    broker.create("t", **SETTINGS | {"max.compaction.lag.ms": 3000})
    put(broker, (b"a", b"1"))
    put(broker, (b"a", b"2"), (b"b", b"1"))
    pass_time(broker, 2)
    assert [row[0] for row in rows(broker)] == [0, 1, 2]
    pass_time(broker, 4)
    assert [row[0] for row in rows(broker)] == [1, 2]
    put(broker, (b"c", b"1"))
    assert [row[0] for row in rows(broker)] == [1, 2, 3]


def test_records_without_a_key_and_batches_with_gaps_are_refused(broker: MemoryBroker) -> None:
    broker.create("t", **SETTINGS)
    reply = put(broker, (b"a", b"1"), (b"", b"2"), null_keys=[1])
    assert (reply["error"], reply["name"]) == (Code.INVALID_RECORD, "INVALID_RECORD")
    reply = put(broker, (b"", b"2"), null_keys=[0])
    assert reply["error"] == Code.INVALID_RECORD
    assert put(broker, (b"", b"an empty key is one"))["error"] == 0
    fill(broker, 200)
    pass_time(broker, 2)
    partition = broker.context.partitions["t", 0]
    data = partition.log.read(1, max_bytes=1, end_offset=partition.log.log_end_offset)
    assert decode_header(data).flags & (Flag.OFFSETS | Flag.BEHIND_GAP)
    message = {
        "op": "produce",
        "mode": "fast",
        "partitions": [{"topic": "t", "partition": 0}],
    }
    size = decode_header(data).batch_size
    reply = broker.ask(message, data[:size])[0]["partitions"][0]
    assert reply["error"] == Code.INVALID_RECORD
    assert "compaction" in reply["message"]


def test_a_policy_that_comes_later_acts_at_once(broker: MemoryBroker) -> None:
    broker.create("t", **SETTINGS | {"cleanup.policy": "delete"})
    fill(broker, 300)
    pass_time(broker, 2)
    assert len(rows(broker)) == 300
    reply, _ = broker.ask(
        {"op": "alter_topic", "topic": "t", "set": {"cleanup.policy": "compact,delete"}}
    )
    assert reply["error"] == 0, reply
    pass_time(broker, 2)
    assert len(rows(broker)) < 150


def test_a_topic_that_is_deleted_under_a_pass_leaves_nothing(broker: MemoryBroker) -> None:
    broker.create("t", **SETTINGS)
    fill(broker, 200)
    assert isinstance(broker.clock, ManualClock)
    broker.clock.advance(NS_PER_S)
    broker.loop.turn()
    for turns in range(1, 9):  # the topic goes one job later each time
        for _ in range(turns):
            broker.turn()
        broker.ask({"op": "delete_topic", "topic": "t"})
        pass_time(broker, 1)
        broker.create("t", **SETTINGS)
        fill(broker, 200)
        pass_time(broker, 1)
        broker.clock.advance(NS_PER_S)
        broker.loop.turn()
    pass_time(broker, 3)
    assert len(rows(broker)) < 150


def test_a_log_that_cannot_be_compacted_is_left_alone_for_a_while(
    broker: MemoryBroker, caplog: pytest.LogCaptureFixture
) -> None:
    broker.create("t", **SETTINGS)
    fill(broker, 200)
    content = broker.storage.files[f"data/t-0/{0:020d}.log"].data
    content[300] ^= 1
    pass_time(broker, 10)
    assert [record.message for record in caplog.records].count("compaction failed") == 1
    content[300] ^= 1
    pass_time(broker, 55)
    assert len(rows(broker)) < 150
