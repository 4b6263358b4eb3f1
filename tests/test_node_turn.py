"""The shipped turn, from a request's frames to its one answer, without a socket, a thread or a disk."""

from __future__ import annotations

import errno
import json
import random
from pathlib import Path
from typing import Any

import pytest
from memory_broker import MemoryBroker

from node.io.workers import Lane
from shmlog.clock import NS_PER_MS, NS_PER_S
from shmlog.protocol import header
from shmlog.records.builder import build
from shmlog.ring.layout import RingIdentity, ring_size
from shmlog.ring.reader import RingReader
from shmlog.settings import ClusterConfig


@pytest.fixture
def broker(tmp_path: Path) -> MemoryBroker:
    made = MemoryBroker(tmp_path)
    made.create("t")
    return made


def fast(broker: MemoryBroker, batch: bytes, topic: str = "t", **fields: Any) -> dict[str, Any]:
    message = {"op": "produce", "mode": "fast", "partitions": [{"topic": topic, "partition": 0}]}
    reply, _ = broker.ask({**message, **fields}, bytes(batch))
    assert reply["error"] == 0, reply
    entry: dict[str, Any] = reply["partitions"][0]
    return entry


def test_records_come_back_in_order_without_gaps(broker: MemoryBroker) -> None:
    for i in range(5):
        reply = broker.produce("t", b"%d" % i, b"%d'" % i)
        assert (reply["error"], reply["base_offset"]) == (0, 2 * i)
    assert broker.values("t") == [b"%d%s" % (i, x) for i in range(5) for x in (b"", b"'")]


def test_everything_queued_in_a_turn_is_one_write(broker: MemoryBroker) -> None:
    before = sum(kind == "pwrite" and "t-0" in path for kind, path, _ in broker.storage.operations)
    ids = [
        broker.post(
            {"op": "produce", "mode": "simple", "topic": "t", "partition": 0, "count": 1},
            b"k",
            b"%d" % i,
        )
        for i in range(50)
    ]
    broker.turn()
    writes = sum(kind == "pwrite" and "t-0" in path for kind, path, _ in broker.storage.operations)
    assert writes == before + 1
    offsets = [answer[0]["base_offset"] for i in ids if (answer := broker.answer(i))]
    assert offsets == list(range(50))


def test_at_disk_nothing_is_acked_or_visible_before_its_sync(tmp_path: Path) -> None:
    broker = MemoryBroker(tmp_path)
    broker.create("d", durability="disk")
    broker.workers.held.add(Lane.SYNC)
    message = {"op": "produce", "mode": "simple", "topic": "d", "partition": 0, "count": 1}
    ids = [broker.post({**message, "acks": acks}, b"k", b"v") for acks in ("all", "1")]
    for _ in range(5):
        broker.turn()
    assert [broker.answer(i) for i in ids] == [None, None]
    assert broker.fetch("d")[0]["count"] == 0
    broker.workers.held.clear()
    for _ in range(3):
        broker.turn()
    answers = [answer for i in ids if (answer := broker.answer(i))]
    assert [a[0]["base_offset"] for a in answers] == [0, 1]
    assert broker.fetch("d")[0]["high_watermark"] == 2


def test_one_sync_is_under_way_at_a_time_and_covers_what_gathered(tmp_path: Path) -> None:
    broker = MemoryBroker(tmp_path)
    broker.create("d", durability="disk")
    broker.produce("d", b"first")
    broker.workers.held.add(Lane.SYNC)
    message = {"op": "produce", "mode": "simple", "topic": "d", "partition": 0, "count": 1}
    ids = []
    for i in range(10):
        ids.append(broker.post(message, b"k", b"%d" % i))
        broker.turn()
    queued = [lane for lane, _, _ in broker.workers.queued if lane is Lane.SYNC]
    assert len(queued) == 1
    broker.workers.held.clear()
    for _ in range(4):
        broker.turn()
    assert all(broker.answer(i) for i in ids)


def test_acks_0_is_answered_on_admission_without_an_offset(broker: MemoryBroker) -> None:
    reply = broker.produce("t", b"v", acks="0")
    assert (reply["error"], reply["base_offset"]) == (0, -1)
    assert broker.values("t") == [b"v"]


def test_a_full_disk_takes_the_whole_turn_back_and_the_broker_goes_on(broker: MemoryBroker) -> None:
    broker.produce("t", b"kept")
    batch = build([b"x"], timestamps=1, producer_id=7, producer_epoch=0, base_sequence=0)
    broker.storage.fail("pwrite", 1, errno.ENOSPC)
    entry = fast(broker, batch)
    assert (entry["error"], entry["retriable"]) == (1002, True)
    assert broker.values("t") == [b"kept"]
    assert fast(broker, batch)["base_offset"] == 1  # the sequence was taken back too
    assert fast(broker, batch)["base_offset"] == 1  # and is known now
    assert broker.values("t") == [b"kept", b"x"]


def test_a_failed_write_ends_the_broker_and_nothing_is_acked(broker: MemoryBroker) -> None:
    broker.storage.fail("pwrite", 1, errno.EIO)
    wanted = broker.post(
        {"op": "produce", "mode": "simple", "topic": "t", "partition": 0, "count": 1}, b"", b"v"
    )
    with pytest.raises(OSError, match="injected"):
        broker.turn()
    assert broker.answer(wanted) is None


def test_a_failed_sync_ends_the_broker(tmp_path: Path) -> None:
    broker = MemoryBroker(tmp_path)
    broker.create("d", durability="disk")
    broker.storage.fail("sync", 1)
    wanted = broker.post(
        {"op": "produce", "mode": "simple", "topic": "d", "partition": 0, "count": 1}, b"", b"v"
    )
    with pytest.raises(OSError, match="injected"):
        for _ in range(3):
            broker.turn()
    assert broker.answer(wanted) is None


def test_a_wake_up_call_sleeps_until_the_high_watermark_passes(broker: MemoryBroker) -> None:
    call = {"op": "fetch", "mode": "fast", "max_bytes": 0, "max_wait_ms": 1000}
    wanted = broker.post({**call, "partitions": [{"topic": "t", "partition": 0, "offset": 0}]})
    broker.turn()
    assert broker.answer(wanted) is None
    broker.produce("t", b"v")
    answer = broker.answer(wanted)
    assert answer is not None
    assert answer[0]["partitions"][0]["high_watermark"] == 1
    assert answer[1] == []


def test_who_has_read_what_the_log_does_not_hold_is_told_where_they_part(
    broker: MemoryBroker,
) -> None:
    broker.produce("t", b"0", b"1", b"2")
    epoch = broker.fetch("t")[0]["leader_epoch"]
    # Nine records of this epoch were read; the log was cut since.
    answer, frames = broker.fetch("t", 9, last_epoch=epoch)
    assert (answer["error"], answer["count"], frames) == (0, 0, [])
    assert (answer["diverging_epoch"], answer["diverging_end"], answer["next_offset"]) == (
        epoch,
        3,
        3,
    )
    entry = {"topic": "t", "partition": 0, "offset": 9, "last_epoch": epoch}
    call = {"op": "fetch", "mode": "fast", "max_wait_ms": 60_000, "partitions": [entry]}
    (result,) = broker.ask(call)[0]["partitions"]  # at once
    assert (result["diverging_epoch"], result["diverging_end"]) == (epoch, 3)
    assert "diverging_end" not in broker.fetch("t", 3, last_epoch=epoch)[0]
    assert (
        broker.fetch("t", 9)[0]["name"] == "OFFSET_OUT_OF_RANGE"
    )  # without it, nothing can be told


def test_a_long_poll_ends_empty_at_its_time_and_is_no_error(broker: MemoryBroker) -> None:
    wanted = broker.post(
        {
            "op": "fetch",
            "mode": "simple",
            "topic": "t",
            "partition": 0,
            "offset": 0,
            "max_wait_ms": 100,
        }
    )
    broker.turn()
    broker.clock.advance(99 * NS_PER_MS)
    broker.turn()
    assert broker.answer(wanted) is None
    broker.clock.advance(2 * NS_PER_MS)
    broker.turn()
    answer = broker.answer(wanted)
    assert answer is not None
    assert (answer[0]["error"], answer[0]["count"], answer[0]["next_offset"]) == (0, 0, 0)


def test_min_bytes_waits_for_more_than_is_there(broker: MemoryBroker) -> None:
    broker.produce("t", b"x" * 100)
    entry = {"topic": "t", "partition": 0, "offset": 0}
    wanted = broker.post({"op": "fetch", "mode": "fast", "min_bytes": 500, "partitions": [entry]})
    broker.turn()
    assert broker.answer(wanted) is None
    broker.produce("t", b"x" * 400)
    assert broker.answer(wanted) is not None


def test_a_fetch_that_wants_much_is_not_read_anew_at_every_append(broker: MemoryBroker) -> None:
    wanted = {"op": "fetch", "mode": "fast", "max_bytes": 1 << 20, "min_bytes": 1 << 20}
    wanted |= {"max_wait_ms": 3_600_000, "timeout_ms": 3_600_000}
    simple = {**wanted, "mode": "simple", "topic": "t", "partition": 0, "offset": 0}
    entry = {"topic": "t", "partition": 0, "offset": 0, "max_bytes": 1 << 20}
    ids = [broker.post({**wanted, "partitions": [entry]}), broker.post(simple)]
    broker.turn()
    partition = broker.context.partitions["t", 0]
    reads = 0
    read = partition.read

    def counted(offset: int, max_bytes: int) -> Any:
        nonlocal reads
        reads += 1
        return read(offset, max_bytes)

    partition.read = counted  # type: ignore[method-assign]
    for _ in range(500):
        broker.produce("t", b"x" * 1000)
    assert reads == 0
    assert len(broker.context.purgatory._deadlines) < 300
    while None in map(broker.answer, ids):
        broker.produce("t", b"x" * 1000)
    assert reads < 20
    answers = [answer for i in ids if (answer := broker.answer(i))]
    assert len(answers[0][1][0]) > (1 << 20) - 2 * 1300  # whole batches: all that fit
    assert answers[1][0]["count"] > 700


@pytest.mark.parametrize("seed", range(12))
def test_jobs_may_end_in_any_order(tmp_path: Path, seed: int) -> None:
    broker = MemoryBroker(tmp_path, ring_budget=1 << 30, shuffle=seed)
    message = {"op": "produce", "mode": "simple", "topic": "t", "partition": 0, "count": 1}
    try:
        broker.create("t")
        broker.workers.held |= {Lane.FILES, Lane.SYNC}
        first = broker.post(message, b"k", b"0")
        broker.turn()  # the first append: a worker is asked for a ring
        offset = broker.context.metadata.image.offset
        waits = broker.post({**message, "min_metadata": offset + 1}, b"k", b"1")
        broker.post({"op": "alter_topic", "topic": "t", "set": {"sync_interval": 200}})
        broker.turn()
        broker.workers.held.clear()
        for _ in range(4):
            broker.turn()
        assert broker.answer(first)
        assert broker.answer(waits)
        assert broker.context.partitions["t", 0].window.state == "ring"
        assert broker.values("t") == [b"0", b"1"]
    finally:
        broker.rings.close()


def test_the_first_partition_makes_progress_whatever_the_limit(tmp_path: Path) -> None:
    broker = MemoryBroker(tmp_path)
    broker.create("t", partitions=2)
    for partition in (0, 1):
        broker.produce("t", b"x" * 5000, partition=partition)
    entries = [{"topic": "t", "partition": p, "offset": 0, "max_bytes": 10} for p in (0, 1)]
    reply, frames = broker.ask(
        {"op": "fetch", "mode": "fast", "max_bytes": 100, "partitions": entries}
    )
    assert [len(f) > 5000 for f in frames] == [True]
    assert [p["bytes"] > 0 for p in reply["partitions"]] == [True, False]


def test_a_duplicate_is_answered_with_its_first_offset_even_if_it_would_now_be_refused(
    broker: MemoryBroker,
) -> None:
    batch = build([b"x" * 2000], timestamps=1, producer_id=7, producer_epoch=0, base_sequence=0)
    assert fast(broker, batch)["base_offset"] == 0
    reply, _ = broker.ask({"op": "alter_topic", "topic": "t", "set": {"max_message_bytes": 1024}})
    assert reply["error"] == 0
    assert fast(broker, batch)["base_offset"] == 0
    other = build([b"x" * 2000], timestamps=1, producer_id=7, producer_epoch=0, base_sequence=1)
    assert fast(broker, other)["error"] == 10


@pytest.mark.parametrize(
    ("sequence", "epoch", "producer", "error"),
    [(5, 0, 7, 45), (3, 0, 8, 59), (0, -1, 7, 47), (1, 1, 7, 45), (1, 0, 7, 0), (0, 1, 7, 0)],
)
def test_sequences_follow_the_table(
    broker: MemoryBroker, sequence: int, epoch: int, producer: int, error: int
) -> None:
    first = build([b"a"], timestamps=1, producer_id=7, producer_epoch=1, base_sequence=0)
    assert fast(broker, first)["error"] == 0
    batch = build(
        [b"b"], timestamps=1, producer_id=producer, producer_epoch=1 + epoch, base_sequence=sequence
    )
    assert fast(broker, batch)["error"] == error


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda b: b[:-8], 2),
        (lambda b: b + bytes(8), 2),
        (lambda b: b[:200] + bytes([b[200] ^ 1]) + b[201:], 2),
        (lambda b: b"", 2),
        (lambda b: b"x" * len(b), 2),
        (lambda b: bytes(build([b"v"], timestamps=(1 << 62))), 32),
        (lambda b: bytes(build([b"v" * (1 << 20)], timestamps=1)), 10),
    ],
)
def test_a_batch_that_breaks_a_rule_is_refused_and_nothing_is_appended(
    broker: MemoryBroker, change: Any, error: int
) -> None:
    batch = bytes(build([b"v" * 10, b"w" * 200], timestamps=1))
    assert fast(broker, change(batch))["error"] == error
    assert fast(broker, batch)["base_offset"] == 0


def test_a_restart_keeps_what_was_acked_and_raises_the_leader_epoch(tmp_path: Path) -> None:
    broker = MemoryBroker(tmp_path)
    broker.create("t", partitions=3)
    for i in range(10):
        broker.produce("t", b"%d" % i, partition=i % 3)
    for incarnation in (2, 3):
        killed = broker.storage.after_kill(random.Random(incarnation))
        broker = MemoryBroker(tmp_path, storage=killed, clock=broker.clock, incarnation=incarnation)
        assert [broker.values("t", p) for p in range(3)] == [
            [b"%d" % i for i in range(10) if i % 3 == p] for p in range(3)
        ]
        topic, _ = broker.ask({"op": "describe_topic", "topic": "t"})
        assert min(p["leader_epoch"] for p in topic["partitions"]) >= incarnation


def test_a_deleted_topic_answers_whoever_waits_and_its_name_can_be_used_again(
    broker: MemoryBroker,
) -> None:
    broker.produce("t", b"old")
    before, _ = broker.ask({"op": "describe_topic", "topic": "t"})
    waiting = broker.post(
        {
            "op": "fetch",
            "mode": "simple",
            "topic": "t",
            "partition": 0,
            "offset": 1,
            "max_wait_ms": 60000,
        }
    )
    broker.turn()
    assert broker.ask({"op": "delete_topic", "topic": "t"})[0]["error"] == 0
    broker.turn()
    answer = broker.answer(waiting)
    assert answer is not None
    assert answer[0]["error"] == 3
    broker.turn()
    assert not [name for name in broker.storage.list("data") if name.startswith("t-")]
    broker.create("t")
    assert broker.values("t") == []
    reply = broker.produce("t", b"new", topic_id=before["topic_id"])
    assert reply["error"] == 100


def test_delete_records_raises_the_log_start_for_good(tmp_path: Path) -> None:
    broker = MemoryBroker(tmp_path)
    broker.create("t")
    for i in range(10):
        broker.produce("t", b"%d" % i)
    trim = {"op": "delete_records", "partitions": [{"topic": "t", "partition": 0, "offset": 4}]}
    assert broker.ask(trim)[0]["partitions"][0]["log_start"] == 4
    assert broker.fetch("t", 3)[0]["error"] == 1
    assert broker.fetch("t", 4)[1][1] == b"4"
    storage = broker.storage.after_kill(random.Random(1))
    again = MemoryBroker(tmp_path, storage=storage, clock=broker.clock, incarnation=2)
    assert again.fetch("t", 3)[0]["error"] == 1
    trim["partitions"] = [{"topic": "t", "partition": 0, "offset": 11}]
    assert again.ask(trim)[0]["partitions"][0]["error"] == 1


def test_min_metadata_holds_a_request_until_the_image_is_there(broker: MemoryBroker) -> None:
    now = broker.context.metadata.image.offset
    wanted = broker.post({"op": "metadata", "min_metadata": now + 1})
    late = broker.post({"op": "metadata", "min_metadata": now + 50, "timeout_ms": 10})
    broker.turn()
    assert broker.answer(wanted) is None
    broker.create("u")
    assert broker.answer(wanted) is not None
    broker.clock.advance(11 * NS_PER_MS)
    broker.turn()
    answer = broker.answer(late)
    assert answer is not None
    assert answer[0]["error"] == 7


def test_above_the_memory_budget_requests_are_busy_and_it_recovers(tmp_path: Path) -> None:
    broker = MemoryBroker(tmp_path, settings=ClusterConfig(request_memory_bytes=16 << 20))
    broker.create("d", durability="disk")
    broker.workers.held.add(Lane.SYNC)
    message = {"op": "produce", "mode": "simple", "topic": "d", "partition": 0, "count": 1}
    ids = []
    for _ in range(25):
        ids.append(broker.post(message, b"", b"x" * 900_000))
        broker.turn()
    busy = [a[0] for i in ids if (a := broker.answer(i))]
    assert busy
    assert {a["error"] for a in busy} == {1000}
    assert busy[0]["retry_after_ms"] > 0
    broker.workers.held.clear()
    for _ in range(5):
        broker.turn()
    assert all(broker.answer(i) for i in ids)
    assert broker.context.admitted_bytes == 0
    assert broker.produce("d", b"again")["error"] == 0


def test_a_turn_is_bounded_in_requests(broker: MemoryBroker) -> None:
    for _ in range(300):
        broker.post({"op": "hello"})
    broker.turn()
    assert len(broker.wire.waiting) == 300 - 256


def test_a_sync_does_not_take_back_the_level_that_is_on_its_way(broker: MemoryBroker) -> None:
    broker.create("d", durability="disk")
    assert broker.produce("d", b"1")["error"] == 0
    partition = broker.context.partitions["d", 0]
    broker.workers.held.add(Lane.FILES)
    broker.ask({"op": "alter_topic", "topic": "d", "set": {"durability": "os"}})
    broker.post(
        {"op": "produce", "mode": "simple", "topic": "d", "partition": 0, "count": 1}, b"", b"2"
    )
    broker.turn()
    broker.clock.advance(NS_PER_S)
    broker.until(lambda: partition.log.synced_end_offset == 2)
    broker.turn()
    assert (partition.counted_by, partition.log.level) == ("disk", "os")
    broker.workers.held.clear()
    broker.until(lambda: partition.counted_by == "os")
    assert partition.log.level == "os"  # else a power cut would not make this replica lossy


def test_settings_are_changed_whole_or_not_at_all(broker: MemoryBroker) -> None:
    reply, _ = broker.ask(
        {"op": "alter_topic", "topic": "t", "set": {"durability": "disk", "sync_interval": 1}}
    )
    assert reply["error"] == 40
    topic, _ = broker.ask({"op": "describe_topic", "topic": "t"})
    assert topic["configs"]["durability"] == {"value": "os", "source": "default", "default": "os"}
    assert (
        broker.ask({"op": "alter_topic", "topic": "t", "set": {"durability": "disk"}})[0]["error"]
        == 0
    )
    topic, _ = broker.ask({"op": "describe_topic", "topic": "t"})
    assert topic["configs"]["durability"]["source"] == "topic"
    assert broker.produce("t", b"v")["error"] == 0
    for bad in ({"ring.mode": 1}, {"nosuch": 1}, {"ring_bytes": 1}):
        reply, _ = broker.ask({"op": "alter_topic", "topic": "t", "set": bad})
        assert reply["error"] == 40, bad


def test_a_ring_is_made_anew_when_its_size_is_changed(broker: MemoryBroker) -> None:
    for _ in range(3):
        broker.produce("t", b"v")
    partition = broker.context.partitions["t", 0]
    assert partition.window.memory is not None
    change = {"ring_bytes": "64MiB", "max_message_bytes": "8MiB", "max_uncompressed_bytes": "64MiB"}
    assert broker.ask({"op": "alter_topic", "topic": "t", "set": change})[0]["error"] == 0
    assert fast(broker, build([b"x" * (7 << 20)], timestamps=1))["error"] == 0
    for _ in range(3):
        broker.produce("t", b"v")
    assert partition.window.memory is not None
    assert partition.window.memory.size == ring_size(64 << 20)
    assert (
        broker.ask({"op": "alter_topic", "topic": "t", "set": {"max_message_bytes": "1MiB"}})[0][
            "error"
        ]
        == 0
    )
    assert (
        broker.ask({"op": "alter_topic", "topic": "t", "set": {"ring_bytes": 0}})[0]["error"] == 0
    )
    assert broker.produce("t", b"last")["base_offset"] == 7
    assert partition.window.memory is None
    assert [len(v) for v in broker.values("t")] == [1, 1, 1, 7 << 20, 1, 1, 1, 4]


def test_a_produce_that_waited_for_its_topic_is_written_in_the_same_turn(tmp_path: Path) -> None:
    broker = MemoryBroker(tmp_path, settings=ClusterConfig(auto_create_topics=True))
    message = {"op": "produce", "mode": "simple", "partition": 0, "count": 1}
    ids = [broker.post({**message, "topic": name}, b"", b"v") for name in ("t1", "t2", "t1")]
    for _ in range(12):
        broker.turn()
        assert not broker.context.dirty
    answers = [broker.answer(i) for i in ids]
    assert [a and a[0]["error"] for a in answers] == [0, 0, 0]
    assert broker.values("t1") == [b"v", b"v"]


def test_a_ring_that_is_being_made_may_change_its_size(broker: MemoryBroker) -> None:
    broker.workers.held.add(Lane.FILES)
    broker.produce("t", b"v")
    for size in ("16MiB", "32MiB"):
        assert (
            broker.ask({"op": "alter_topic", "topic": "t", "set": {"ring_bytes": size}})[0]["error"]
            == 0
        )
        broker.produce("t", b"v")
    broker.workers.held.clear()
    for _ in range(4):
        broker.produce("t", b"v")
    memory = broker.context.partitions["t", 0].window.memory
    assert memory is not None
    assert memory.size == ring_size(32 << 20)


def test_a_checkpoint_that_found_no_space_is_written_later_and_whole(broker: MemoryBroker) -> None:
    broker.produce("t", b"v")
    broker.turn()
    partition = broker.context.partitions["t", 0]
    for _ in range(3):
        broker.clock.advance(200 * NS_PER_MS)
        broker.turn()
    broker.storage.fail("create", 1, errno.ENOSPC)
    for _ in range(12):
        broker.clock.advance(300 * NS_PER_MS)
        broker.turn()
    found = partition.log.checkpoint_job(partition.high_watermark)
    assert found is None  # written by now
    assert broker.produce("t", b"w")["error"] == 0


def test_a_topic_that_finds_no_space_is_opened_later(broker: MemoryBroker) -> None:
    broker.storage.fail("create", 1, errno.ENOSPC)
    wanted = broker.post({"op": "create_topic", "topic": "u"})
    for _ in range(8):
        broker.clock.advance(400 * NS_PER_MS)
        broker.turn()
    answer = broker.answer(wanted)
    assert answer is not None
    assert answer[0]["ready"]
    assert broker.produce("u", b"v")["error"] == 0


def test_committed_metadata_is_behind_the_recovery_point(broker: MemoryBroker) -> None:
    for _ in range(3):
        broker.turn()
    log = broker.context.metadata.log
    assert log.checkpoint_job(log.synced_end_offset) is None  # it has been written
    assert log.synced_end_offset == log.log_end_offset


def test_a_search_by_time_does_not_hold_up_the_turn(broker: MemoryBroker) -> None:
    broker.produce("t", b"v")
    question = {"topic": "t", "partition": 0, "timestamp": "0"}
    reply, _ = broker.ask({"op": "list_offsets", "partitions": [question] * 2049})
    assert reply["error"] == 42


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"topic": ""}, 17),
        ({"topic": "a/b"}, 17),
        ({"topic": "x" * 250}, 17),
        ({"topic": "__mine"}, 17),
        ({"topic": "T"}, 17),
        ({"topic": "t"}, 36),
        ({"topic": "u", "partition_count": 0}, 37),
        ({"topic": "u", "partition_count": 1025}, 37),
        ({"topic": "u", "replication_factor": 2}, 38),
        ({"topic": "u", "configs": {"segment_bytes": "1KiB"}}, 40),
    ],
)
def test_a_topic_that_breaks_a_rule_is_not_created(
    broker: MemoryBroker, fields: dict[str, Any], error: int
) -> None:
    assert broker.ask({"op": "create_topic", **fields})[0]["error"] == error
    topics, _ = broker.ask({"op": "metadata"})
    assert [t["topic"] for t in topics["topics"]] == ["t"]


def test_every_request_gets_exactly_one_answer_however_broken(broker: MemoryBroker) -> None:
    rng = random.Random(5)
    bodies = [
        {"op": "produce", "mode": "simple", "topic": "t", "count": 3},
        {
            "op": "fetch",
            "mode": "fast",
            "partitions": [{"topic": "t", "partition": 0, "offset": -1}],
        },
        {"op": "list_offsets", "partitions": [{"topic": "t", "partition": 9, "timestamp": "1"}]},
        {"op": "delete_records", "partitions": []},
        {"op": "nope"},
        {"op": "produce", "mode": "odd"},
        {"op": "produce", "mode": "fast", "partitions": []},
        {"op": "fetch", "mode": "simple", "topic": "t", "partition": 0, "offset": 2**60},
        {"op": "create_topic", "topic": None},
        {"op": "hello", "versions": [2, 9]},
    ]
    ids = []
    for _ in range(400):
        body = dict(rng.choice(bodies))
        if rng.random() < 0.3:
            body[rng.choice(["partition", "offset", "count", "acks", "topic"])] = rng.choice(
                [-1, "x", None, [], {}, 2**70, "ü" * 300]
            )
        frames = [rng.randbytes(rng.randrange(20)) for _ in range(rng.randrange(4))]
        ids.append(broker.post({**body, "max_wait_ms": 0}, *frames))
    for _ in range(10):
        broker.turn()
    assert len(broker.wire.sent) >= len(ids)
    nulls = sum(json.loads(f[0])["id"] is None for _, f in broker.wire.sent)
    answered = sum(broker.answer(i) is not None for i in ids)
    assert answered + nulls == len(ids)
    assert broker.context.admitted_bytes == 0
    assert broker.produce("t", b"still here")["error"] == 0


def test_an_envelope_is_echoed_and_an_unreadable_header_is_answered_42(
    broker: MemoryBroker,
) -> None:
    from node.io.wire import Received

    data = header.encode({"op": "hello", "id": 9}, header.Codec.MSGPACK)
    broker.wire.waiting.append(Received(b"req", [b"", data]))
    for junk in (b"{", b"{}", b"\x80", b"\xdf\xff\xff\xff\xff", b"null", b"{" * 100_000):
        broker.wire.waiting.append(Received(b"junk", [junk]))
    for silent in ([], [b""], [b"", b""]):
        broker.wire.waiting.append(Received(b"junk", silent))
    broker.turn()
    client, frames = broker.wire.sent[-7]
    assert (client, frames[0]) == (b"req", b"")
    assert header.decode(frames[1], dict)["id"] == 9
    for _, frames in broker.wire.sent[-6:]:
        assert header.decode(frames[0], dict)["error"] == 42
        assert header.decode(frames[0], dict)["id"] is None


def logs_of(broker: MemoryBroker) -> list[str]:
    return [name for name in broker.storage.list("data/t-0") if name.endswith(".log")]


def test_a_trim_on_a_full_disk_is_done_as_soon_as_a_block_can_be_had(tmp_path: Path) -> None:
    broker = MemoryBroker(tmp_path)
    broker.create("t", segment_bytes=65536, max_message_bytes=16384, max_uncompressed_bytes=16384)
    for _ in range(40):
        broker.produce("t", b"x" * 10000)
    before = len(logs_of(broker))
    full = True

    def no_room(kind: str, path: str) -> None:
        if full and kind == "create" and path.startswith("data/t-0/"):
            raise OSError(errno.ENOSPC, "full", path)

    broker.storage.on_operation = no_room
    trim = {"op": "delete_records", "partitions": [{"topic": "t", "partition": 0, "offset": -1}]}
    assert broker.ask(trim)[0]["partitions"][0]["log_start"] == 40
    for _ in range(4):
        broker.clock.advance(10**9)
        broker.turn()
    assert len(logs_of(broker)) == before + 1 > 6  # the active one was closed: its file was there
    full = False
    for _ in range(4):
        broker.clock.advance(10**9)
        broker.turn()
    assert len(logs_of(broker)) == broker.context.partitions["t", 0].log.segment_count == 1
    killed = broker.storage.after_kill(random.Random(1))
    again = MemoryBroker(tmp_path, storage=killed, incarnation=2)
    found = again.fetch("t", 39)[0]
    assert found["error"] == 1


@pytest.mark.parametrize("question", ["offset", "time"])
def test_what_the_device_cannot_read_is_an_answer_by_offset_and_by_time(
    broker: MemoryBroker, question: str
) -> None:
    broker.produce("t", b"v")
    broker.context.partitions["t", 0].window.detach()
    broker.storage.fail("pread", 1, errno.EIO)
    if question == "offset":
        answer = broker.fetch("t")[0]
    else:
        entry = {"topic": "t", "partition": 0, "timestamp": "5"}
        answer = broker.ask({"op": "list_offsets", "partitions": [entry]})[0]["partitions"][0]
    assert answer["error"] == 1003
    assert "device" in answer["message"]


def test_while_a_client_is_stuck_the_idle_loop_looks_again_ever_more_seldom(
    broker: MemoryBroker,
) -> None:
    pauses = iter((1, 2, 100, 0))
    broker.wire.flush = lambda: next(pauses)  # type: ignore[method-assign]
    broker.post({"op": "hello"})
    asked: list[int] = []
    poll = broker.wire.poll

    def polled(timeout_ms: int) -> bool:
        asked.append(timeout_ms)
        return poll(timeout_ms)

    broker.wire.poll = polled  # type: ignore[method-assign]
    for _ in range(5):
        broker.turn()
    assert asked[1:4] == [1, 2, 100]
    assert asked[4] > 100


def test_a_trimmed_partition_s_ring_gives_nothing_that_is_gone(broker: MemoryBroker) -> None:
    for i in range(10):
        broker.produce("t", b"%d" % i)
    partition = broker.context.partitions["t", 0]
    assert partition.window.state == "ring"
    trim = {"op": "delete_records", "partitions": [{"topic": "t", "partition": 0, "offset": 4}]}
    broker.ask(trim)
    assert partition.window._reader is not None
    assert partition.window._reader.seek(9) is None
    assert broker.fetch("t", 4)[1] == [x for i in range(4, 10) for x in (b"", b"%d" % i)]


def test_a_ring_that_is_given_up_is_seen_sealed(broker: MemoryBroker) -> None:
    for _ in range(3):
        broker.produce("t", b"v")
    partition = broker.context.partitions["t", 0]
    assert partition.window.memory is not None
    reader = RingReader(partition.window.memory, RingIdentity("c", 0, 1, partition.topic_id, 0))
    assert not reader.sealed
    partition.window.detach()
    assert reader.sealed


def test_append_time_never_goes_back(broker: MemoryBroker) -> None:
    times = []
    for step_ns in (0, -5 * 10**9, -(10**9), 20 * 10**9):
        broker.clock._wall_ns += step_ns
        times.append(int(broker.produce("t", b"v")["append_time"]))
    assert times == sorted(times)
    assert times[0] == times[2] < times[3]


def test_fresh_data_comes_from_the_ring_without_a_read_of_files(broker: MemoryBroker) -> None:
    for i in range(5):
        broker.produce("t", b"%d" % i)
    before = len(broker.storage.operations)
    assert broker.fetch("t", 4)[1] == [b"", b"4"]
    assert "pread" not in {kind for kind, _, _ in broker.storage.operations[before:]}


def test_an_idle_producer_is_forgotten(tmp_path: Path) -> None:
    broker = MemoryBroker(tmp_path, settings=ClusterConfig(producer_id_expiration=5000))
    broker.create("t")

    def batch(sequence: int) -> bytes:
        return bytes(
            build([b"x"], timestamps=1, producer_id=7, producer_epoch=0, base_sequence=sequence)
        )

    assert fast(broker, batch(0))["error"] == 0
    broker.clock.advance(4 * 10**9)
    broker.turn()
    assert fast(broker, batch(1))["error"] == 0
    broker.clock.advance(6 * 10**9)
    broker.turn()
    assert fast(broker, batch(2))["error"] == 59


def test_rings_are_stamped_while_the_loop_lives(broker: MemoryBroker) -> None:
    for _ in range(3):
        broker.produce("t", b"v")
    reader = broker.context.partitions["t", 0].window._reader
    assert reader is not None
    assert broker.loop.timeout_ms() <= 250
    broker.clock.advance(300 * NS_PER_MS)
    broker.turn()
    assert reader.heartbeat_ns == broker.clock.monotonic_ns()


def test_descriptors_are_looked_at_every_second(broker: MemoryBroker) -> None:
    looked: list[int] = []
    broker.wire.guard_descriptors = lambda: looked.append(1)  # type: ignore[method-assign]
    for _ in range(30):
        broker.clock.advance(100 * NS_PER_MS)
        broker.turn()
    assert 2 <= len(looked) <= 4


def test_a_turn_is_bounded_in_bytes(broker: MemoryBroker) -> None:
    for _ in range(20):
        broker.post({"op": "hello"}, b"x" * (1 << 20))
    broker.turn()
    assert len(broker.wire.waiting) == 20 - 8


def test_one_question_by_time_too_many_in_a_turn_is_told_to_ask_again(
    broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker.produce("t", b"v")
    log = broker.context.partitions["t", 0].log
    search = log.offset_for_time

    def slow(timestamp_ns: int, end_offset: int, enough: Any) -> Any:
        broker.clock.advance(15 * NS_PER_MS)
        return search(timestamp_ns, end_offset)

    monkeypatch.setattr(log, "offset_for_time", slow)
    question = {"topic": "t", "partition": 0, "timestamp": "0"}
    reply, _ = broker.ask({"op": "list_offsets", "partitions": [question] * 4})
    assert [entry["error"] for entry in reply["partitions"]] == [0, 0, 1000, 1000]


def test_each_partition_of_a_fetch_keeps_to_its_limit(tmp_path: Path) -> None:
    broker = MemoryBroker(tmp_path)
    broker.create("t", partitions=2)
    for partition in (0, 1):
        for _ in range(3):
            broker.produce("t", b"x" * 5000, partition=partition)
    entries = [{"topic": "t", "partition": p, "offset": 0, "max_bytes": 6000} for p in (0, 1)]
    reply, frames = broker.ask({"op": "fetch", "mode": "fast", "partitions": entries})
    assert [5000 < len(frame) < 6000 for frame in frames] == [True, True]
    entries[1]["max_bytes"] = 100  # not the first: no batch over its limit
    reply, frames = broker.ask({"op": "fetch", "mode": "fast", "partitions": entries})
    assert [entry["bytes"] > 0 for entry in reply["partitions"]] == [True, False]


def test_a_partition_that_found_no_space_is_opened_when_there_is_some(broker: MemoryBroker) -> None:
    full = True

    def no_room(kind: str, path: str) -> None:
        if full and kind in ("create", "make_dir") and "u-0" in path:
            raise OSError(errno.ENOSPC, "full", path)

    broker.storage.on_operation = no_room
    broker.post({"op": "create_topic", "topic": "u"})
    for _ in range(4):
        broker.turn()
    assert broker.produce("u", b"v")["error"] == 5
    full = False
    broker.clock.advance(2 * 10**9)
    for _ in range(4):
        broker.turn()
    assert broker.produce("u", b"v")["error"] == 0


def test_a_broker_that_does_not_know_the_cluster_yet_calls_no_topic_unknown(
    broker: MemoryBroker,
) -> None:
    broker.context.knows_image = False  # as between the start and the quorum's first word
    for topic in ("t", "nosuch"):
        reply, _ = broker.fetch(topic)
        assert (reply["error"], reply["retriable"]) == (8, True)
    assert broker.ask({"op": "hello"})[0]["error"] == 0


def test_the_death_of_an_old_incarnation_says_nothing_of_the_one_that_speaks(
    broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[int] = []
    monkeypatch.setattr(broker.metadata.raft, "peer_died", lambda peer, now: told.append(peer))
    broker.metadata._is_newest(1, 3, 0)
    broker.metadata.peer_died(1, 2, 0)
    assert told == [], "it may lead by now"
    broker.metadata.peer_died(1, 3, 0)
    assert told == [1]
