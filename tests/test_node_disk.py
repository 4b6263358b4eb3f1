"""The shipped turn and its disk: full, failing, slow, and what a restart finds."""

from __future__ import annotations

import errno
import random
from pathlib import Path

import pytest
from memory_broker import MemoryBroker

from node.io.workers import Lane
from shmlog.clock import NS_PER_MS, NS_PER_S
from shmlog.records.builder import build


@pytest.fixture
def broker(tmp_path: Path) -> MemoryBroker:
    made = MemoryBroker(tmp_path)
    made.create("t")
    return made


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


def test_a_full_disk_takes_the_whole_turn_back_and_the_broker_goes_on(broker: MemoryBroker) -> None:
    broker.produce("t", b"kept")
    batch = build([b"x"], timestamps=1, producer_id=7, producer_epoch=0, base_sequence=0)
    broker.storage.fail("pwrite", 1, errno.ENOSPC)
    entry = broker.produce_fast(batch)
    assert (entry["error"], entry["retriable"]) == (1002, True)
    assert broker.values("t") == [b"kept"]
    assert broker.produce_fast(batch)["base_offset"] == 1  # the sequence was taken back too
    assert broker.produce_fast(batch)["base_offset"] == 1  # and is known now
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


def test_a_leader_that_does_not_know_yet_what_is_committed_says_so(tmp_path: Path) -> None:
    """And not that an offset is behind the end, which would be no reason to ask again."""
    first = MemoryBroker(tmp_path)
    first.create("t")
    assert [first.produce("t", b"%d" % i)["base_offset"] for i in range(5)] == [0, 1, 2, 3, 4]
    killed = first.storage.after_kill(random.Random(1))
    broker = MemoryBroker(tmp_path, storage=killed, clock=first.clock, incarnation=2)
    ledger = broker.context.partitions["t", 0].leader
    assert ledger is not None
    ledger.high_watermark = 2  # as of a leader that was a follower: the others have not told yet
    latest = {"topic": "t", "partition": 0, "timestamp": -1}
    trims = [{"topic": "t", "partition": 0, "offset": offset} for offset in (3, -1)]
    questions = [
        {"op": "list_offsets", "partitions": [latest]},
        *({"op": "delete_records", "partitions": [trim]} for trim in trims),
    ]
    answers = [broker.ask(question)[0]["partitions"][0] for question in questions]
    assert [answer["name"] for answer in answers] == ["OFFSET_NOT_AVAILABLE"] * 3
    ledger.high_watermark = 5
    answers = [broker.ask(question)[0]["partitions"][0] for question in questions]
    assert [answer.get("offset", answer.get("log_start")) for answer in answers] == [5, 3, 5]


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
