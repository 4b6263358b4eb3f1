"""Retention and the disk reserve in a whole broker with a clock, a disk and workers that the test drives."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from memory_broker import MemoryBroker

from node import retention
from node.partition import Partition
from shmlog.clock import NS_PER_MS, NS_PER_S
from shmlog.log import paths
from shmlog.ring.layout import RingIdentity
from shmlog.ring.reader import RingReader
from shmlog.settings import ClusterConfig

SMALL = {"segment_bytes": 65536, "max_message_bytes": 16384, "max_uncompressed_bytes": 16384}
YEARS_10 = 10 * 365 * 86400 * NS_PER_S


@pytest.fixture
def broker(tmp_path: Path) -> MemoryBroker:
    return MemoryBroker(tmp_path)


@pytest.fixture
def events() -> Iterator[list[tuple[str, dict[str, Any]]]]:
    """What the journal says."""
    found: list[tuple[str, dict[str, Any]]] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append((record.getMessage(), getattr(record, "facts", {})))

    journal, handler = logging.getLogger("shmlog.node"), Handler()
    level = journal.level
    journal.addHandler(handler)
    journal.setLevel(logging.INFO)
    yield found
    journal.removeHandler(handler)
    journal.setLevel(level)


def part(broker: MemoryBroker, topic: str = "t") -> Partition:
    return broker.context.partitions[topic, 0]


def fill(broker: MemoryBroker, count: int, topic: str = "t", size: int = 10_000) -> None:
    for _ in range(count):
        assert broker.produce(topic, b"x" * size)["error"] == 0


def wait(broker: MemoryBroker, seconds: float, step: float = 1.0) -> None:
    """Let time pass in steps, with the turns that a broker would make."""
    for _ in range(max(1, round(seconds / step))):
        broker.clock.advance(round(step * NS_PER_S))
        for _ in range(3):
            broker.turn()


def files(broker: MemoryBroker, topic: str = "t") -> list[int]:
    names = broker.storage.list(f"data/{topic}-0")
    return sorted(base for base in map(paths.parse_segment_log, names) if base is not None)


# -- time and size --------------------------------------------------------------------------------


def test_what_is_too_old_goes_all_of_it_and_the_log_goes_on(
    broker: MemoryBroker, events: list[tuple[str, dict[str, Any]]]
) -> None:
    broker.create("t", retention="60s", **SMALL)
    fill(broker, 20)
    wait(broker, 50)
    assert part(broker).log_start == 0
    wait(broker, 12)
    assert part(broker).log_start == 20
    assert files(broker) == [20]
    reply, _ = broker.fetch("t", 19)
    assert (reply["error"], reply["log_start"], reply["high_watermark"]) == (1, 20, 20)
    said = [facts for name, facts in events if name == "retention"]
    assert {facts["rule"] for facts in said} == {"time"}
    assert said[-1]["to_offset"] == 20
    assert broker.produce("t", b"new")["base_offset"] == 20
    assert broker.fetch("t", 20)[1] == [b"", b"new"]
    again = MemoryBroker(
        Path("/nowhere"),
        storage=broker.storage.after_kill(random.Random(1)),
        incarnation=2,
        clock=broker.clock,
    )
    assert part(again).log_start == 20
    assert again.fetch("t", 20)[1] == [b"", b"new"]


def test_a_record_outlives_its_time_by_the_age_of_a_segment_and_a_second(
    broker: MemoryBroker,
) -> None:
    broker.create("t", retention="80s", **SMALL)  # so a segment is closed after 10 s
    appended: list[int] = []
    for _ in range(200):
        appended.append(broker.clock.wall_ns())
        fill(broker, 1, size=100)
        wait(broker, 1)
        now_ns, start = broker.clock.wall_ns(), part(broker).log_start
        ages = [(now_ns - at) / NS_PER_S for at in appended]
        assert all(age > 80 for age in ages[:start]), "taken too early"
        assert all(age <= 80 + 10 + 2 for age in ages[start:]), "kept too long"
    assert part(broker).log_start > 50


def test_the_size_rule_keeps_the_newest_bytes_in_whole_segments(broker: MemoryBroker) -> None:
    broker.create("t", retention_bytes=200_000, **SMALL)
    fill(broker, 100)
    wait(broker, 2)
    log = part(broker).log
    assert 200_000 <= log.size_bytes < 200_000 + 65536
    assert files(broker)[0] == part(broker).log_start > 60
    assert broker.fetch("t", 99)[0]["count"] == 1


def test_a_closed_segment_is_looked_at_in_the_same_turn_not_after_a_second(
    broker: MemoryBroker,
) -> None:
    broker.create("t", retention_bytes=0, **SMALL)
    fill(broker, 20)  # the clock stands still
    assert part(broker).log_start == 18


def test_what_is_not_committed_stays_whatever_the_rules_say(tmp_path: Path) -> None:
    broker = MemoryBroker(tmp_path)
    broker.create("t", retention="0", retention_bytes=0, **SMALL)
    leader = part(broker).leader
    assert leader is not None
    fill(broker, 3)
    wait(broker, 2)
    start = part(broker).log_start
    leader._may_move = False  # as with too few in-sync replicas
    for _ in range(20):
        broker.post(_message("t"), b"", b"x" * 10_000)
        broker.turn()
    wait(broker, 30)
    assert part(broker).log.log_end_offset == 23
    assert part(broker).log_start == start == part(broker).high_watermark == 3


def _message(topic: str) -> dict[str, Any]:
    produce = {"op": "produce", "mode": "simple", "topic": topic, "partition": 0, "count": 1}
    return {**produce, "null_keys": [0], "acks": "1"}


def test_the_settings_act_at_once(broker: MemoryBroker) -> None:
    broker.create("t", retention=-1, **SMALL)
    fill(broker, 30)
    wait(broker, 2)
    broker.clock.advance(30 * 86400 * NS_PER_S)
    wait(broker, 2)
    assert part(broker).log_start == 0
    alter = {"op": "alter_topic", "topic": "t", "set": {"retention.bytes": 100_000}}
    assert broker.ask(alter)[0]["error"] == 0
    wait(broker, 2)
    assert 0 < part(broker).log_start < 30
    assert broker.ask({**alter, "set": {"retention.ms": 1000}})[0]["error"] == 0
    wait(broker, 2)
    assert part(broker).log_start == 30


def test_a_segment_is_closed_by_its_age_and_an_empty_one_never(broker: MemoryBroker) -> None:
    broker.create("t", segment_age="10s", retention=-1)
    fill(broker, 1)
    wait(broker, 8)
    assert files(broker) == [0]
    wait(broker, 3)
    assert files(broker) == [0, 1]
    wait(broker, 60)
    assert files(broker) == [0, 1]


def test_what_a_trim_leaves_of_the_active_segment_goes_too(broker: MemoryBroker) -> None:
    broker.create("t")
    fill(broker, 10)
    trim = {"op": "delete_records", "partitions": [{"topic": "t", "partition": 0, "offset": -1}]}
    assert broker.ask(trim)[0]["partitions"][0]["log_start"] == 10
    wait(broker, 3)
    assert files(broker) == [10]


def test_a_producer_whose_batches_are_gone_is_still_known(broker: MemoryBroker) -> None:
    broker.create("t", retention="10s")
    producer = int(broker.ask({"op": "init_producer"})[0]["producer_id"])
    fields = {"producer_id": producer, "producer_epoch": 0}
    assert broker.produce("t", b"a", **fields, base_sequence=0)["base_offset"] == 0
    wait(broker, 15)
    assert part(broker).log_start == 1
    assert broker.produce("t", b"a", **fields, base_sequence=0)["base_offset"] == 0
    assert broker.produce("t", b"b", **fields, base_sequence=1)["base_offset"] == 1


def test_a_pass_is_spread_over_turns(broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "PARTITIONS_MAX", 2)
    broker.create("t", partitions=7, retention="10s")
    for index in range(7):
        broker.produce("t", b"v", partition=index)
    wait(broker, 2)
    broker.until(lambda: not broker.catalog.retention._waiting)
    broker.clock.advance(60 * NS_PER_S)
    gone = []
    for _ in range(4):
        assert broker.loop.timeout_ms() == 0
        broker.turn()
        gone.append(sum(p.log_start for p in broker.context.partitions.values()))
    assert gone == [2, 4, 6, 7]


# -- rings ----------------------------------------------------------------------------------------


def test_readers_of_the_ring_are_not_disturbed_by_what_goes_far_below(
    broker: MemoryBroker,
) -> None:
    broker.create("t", retention_bytes=400_000, ring_bytes=262144, **SMALL)
    fill(broker, 42)
    window = part(broker).window
    assert window.state == "ring"
    assert window.memory is not None
    reader = RingReader(window.memory, RingIdentity("c", 0, 1, part(broker).topic_id, 0))
    known = reader.seek(41)
    assert known is not None
    oldest = reader.oldest_valid
    part(broker).trim(6)
    assert reader.oldest_valid == oldest
    assert reader.seek(41) == known


@pytest.mark.parametrize("start", range(43))
def test_the_ring_keeps_exactly_what_begins_at_or_above_the_log_start(
    broker: MemoryBroker, start: int
) -> None:
    broker.create("t", ring_bytes=262144, **SMALL)
    fill(broker, 42)
    window = part(broker).window
    assert window.memory is not None
    reader = RingReader(window.memory, RingIdentity("c", 0, 1, part(broker).topic_id, 0))
    before = {n for n in range(42) if reader.seek(n) is not None and n >= 18}
    assert len(before) > 15
    part(broker).trim(start)
    after = {n for n in range(42) if reader.seek(n) is not None and n >= 18}
    assert after == {n for n in before if n >= start}
    for n in range(max(start, 18), 42):
        assert broker.fetch("t", n)[0]["base_offset"] == n


def test_a_batch_that_the_log_start_cuts_is_read_from_the_file(broker: MemoryBroker) -> None:
    broker.create("t", ring_bytes=262144, **SMALL)
    for n in range(6):
        broker.produce("t", *(b"%d.%d" % (n, i) for i in range(4)))
    broker.ask(
        {"op": "delete_records", "partitions": [{"topic": "t", "partition": 0, "offset": 10}]}
    )
    reply, frames = broker.fetch("t", 10)
    assert (reply["base_offset"], frames[1]) == (10, b"2.2")
    assert part(broker).window.read(12, 1 << 20, 24, 16384)
    assert not part(broker).window.read(10, 1 << 20, 24, 16384)


# -- the clock ------------------------------------------------------------------------------------


@pytest.mark.parametrize("jump_ns", [YEARS_10, 3600 * NS_PER_S])
def test_a_clock_that_jumps_deletes_nothing_for_ten_minutes(
    broker: MemoryBroker, events: list[tuple[str, dict[str, Any]]], jump_ns: int
) -> None:
    broker.create("t", retention="600s")
    fill(broker, 3)
    wait(broker, 3)
    broker.clock.set_wall(jump_ns)
    wait(broker, 590, 10)
    assert part(broker).log_start == 0
    assert [name for name, _ in events if "wall clock" in name] == [
        "wall clock was set: deleting by time pauses"
    ]
    wait(broker, 30, 10)
    assert part(broker).log_start == 3
    assert ("deleting by time goes on", {}) in events


def test_size_and_age_go_on_while_time_pauses(broker: MemoryBroker) -> None:
    broker.create("t", retention_bytes=100_000, **SMALL)
    wait(broker, 2)
    broker.clock.set_wall(YEARS_10)
    fill(broker, 40)
    wait(broker, 3)
    assert 0 < part(broker).log_start < 40


def test_a_clock_that_was_ahead_for_a_while_keeps_nothing_for_years(broker: MemoryBroker) -> None:
    broker.create("t", retention="3600s")
    fill(broker, 1)
    broker.clock.set_wall(YEARS_10)
    fill(broker, 2)
    broker.clock.set_wall(-YEARS_10)
    wait(broker, 2)
    fill(broker, 2)
    assert files(broker) == [0, 1, 3], "a segment of its own for what comes after"
    wait(broker, 3590, 10)
    assert part(broker).log_start == 0
    wait(broker, 500, 10)
    assert part(broker).log_start == 5


def test_a_clock_that_is_set_back_a_little_moves_no_append_time_back(broker: MemoryBroker) -> None:
    broker.create("t")
    times = []
    for step_ns in (0, -59 * NS_PER_S, 0, -2 * NS_PER_S, 0):
        broker.clock.set_wall(step_ns)
        times.append(int(broker.produce("t", b"v")["append_time"]))
    assert times[0] == times[1] == times[2]
    assert times[3] == times[4] == times[0] - 61 * NS_PER_S


# -- budget ---------------------------------------------------------------------------------------


def budgeted(tmp_path: Path, size: int) -> MemoryBroker:
    return MemoryBroker(tmp_path, settings=ClusterConfig(disk_budget_bytes=size))


def test_the_budget_takes_the_oldest_over_all_topics(tmp_path: Path) -> None:
    broker = budgeted(tmp_path, 700_000)
    for topic in ("old", "new"):
        broker.create(topic, **SMALL)
    fill(broker, 30, "old")
    wait(broker, 1)
    assert part(broker, "old").log_start == 0
    fill(broker, 40, "new")
    wait(broker, 3)
    assert part(broker, "old").log_start > 0
    assert part(broker, "new").log_start == 0
    here = [p for p in broker.context.partitions.values()]
    assert sum(p.log.allocated_bytes for p in here) <= 700_000
    for _ in range(12):
        fill(broker, 5, "new")
        wait(broker, 1)
        assert broker.context.no_space == "", "something may go"
    assert part(broker, "new").log_start > 0
    assert part(broker, "old").log.segment_count == 1
    assert broker.context.no_space == ""


def test_the_budget_takes_no_more_than_it_must_while_the_files_are_on_their_way(
    tmp_path: Path,
) -> None:
    broker = budgeted(tmp_path, 700_000)
    broker.create("t", **SMALL)
    fill(broker, 100)
    wait(broker, 3)
    left = part(broker).log.allocated_bytes
    assert 700_000 - 2 * 65536 < left <= 700_000
    start = part(broker).log_start
    wait(broker, 5)
    assert part(broker).log_start == start


def test_where_nothing_may_go_produce_is_refused_until_something_may(tmp_path: Path) -> None:
    broker = budgeted(tmp_path, 100_000)
    broker.create("t", retention=-1, segment_age="60s", **SMALL)
    broker.create("u", retention=-1, segment_age="60s", **SMALL)
    fill(broker, 1)
    fill(broker, 1, "u")
    wait(broker, 2)
    reply = broker.produce("t", b"v")
    assert (reply["error"], reply["retriable"]) == (1002, True)
    assert "disk_budget_bytes" in reply["message"]
    assert broker.fetch("t")[0]["count"] == 1
    assert broker.ask({"op": "delete_topic", "topic": "u"})[0]["error"] == 0
    wait(broker, 2)
    assert broker.produce("t", b"v")["error"] == 0


# -- disk nearly full -----------------------------------------------------------------------------

MIB = 1 << 20


def full(tmp_path: Path, reserve: int = 10 * MIB) -> MemoryBroker:
    broker = MemoryBroker(tmp_path, settings=ClusterConfig(disk_reserve_bytes=reserve))
    broker.create("t", **SMALL)
    fill(broker, 3)
    return broker


def leave(broker: MemoryBroker, free: int) -> None:
    """So much is free on the disk, within a second."""
    used = sum(len(content.data) for content in broker.storage.files.values())
    broker.storage.disk_bytes = used + free
    wait(broker, 1)


def test_produce_stops_below_the_reserve_and_goes_on_by_itself(
    tmp_path: Path, events: list[tuple[str, dict[str, Any]]]
) -> None:
    broker = full(tmp_path)
    leave(broker, 10 * MIB)
    assert broker.produce("t", b"v")["error"] == 0
    leave(broker, 10 * MIB - 8192)
    reply = broker.produce("t", b"v")
    assert (reply["error"], reply["retriable"]) == (1002, True)
    assert "disk_reserve_bytes" in reply["message"]
    assert broker.fetch("t", 0)[0]["count"] == 4
    assert broker.ask({"op": "metadata"})[0]["error"] == 0
    assert broker.ask({"op": "create_topic", "topic": "u", "partition_count": 1})[0]["error"] == 0
    leave(broker, 15 * MIB - 8192)
    assert broker.produce("t", b"v")["error"] == 1002
    leave(broker, 15 * MIB)
    assert broker.produce("t", b"v")["base_offset"] == 4
    assert [name for name, _ in events if "disk" in name] == [
        "disk nearly full",
        "disk has room again",
    ]


def test_a_duplicate_of_what_is_in_the_log_is_not_refused(tmp_path: Path) -> None:
    broker = full(tmp_path)
    producer = int(broker.ask({"op": "init_producer"})[0]["producer_id"])
    fields = {"producer_id": producer, "producer_epoch": 0}
    assert broker.produce("t", b"a", **fields, base_sequence=0)["base_offset"] == 3
    leave(broker, MIB)
    assert broker.produce("t", b"a", **fields, base_sequence=0)["base_offset"] == 3
    assert broker.produce("t", b"b", **fields, base_sequence=1)["error"] == 1002


def test_retention_goes_on_below_the_reserve(tmp_path: Path) -> None:
    broker = full(tmp_path)
    leave(broker, MIB)
    alter = {"op": "alter_topic", "topic": "t", "set": {"retention": "5s"}}
    assert broker.ask(alter)[0]["error"] == 0
    wait(broker, 10)
    assert part(broker).log_start == 3
    assert files(broker) == [3]


def test_without_a_reserve_only_the_write_itself_decides(tmp_path: Path) -> None:
    broker = full(tmp_path, 0)
    leave(broker, 0)
    assert broker.produce("t", b"v")["error"] == 0


def test_by_default_a_fifth_of_a_small_disk_stays_free(tmp_path: Path) -> None:
    broker = full(tmp_path, -1)
    broker.storage.disk_bytes = 100 * MIB
    wait(broker, 1)
    assert broker.produce("t", b"v")["error"] == 0
    broker.storage.files["ballast"] = type(broker.storage.files["data/t-0/checkpoint"])(
        bytes(80 * MIB)
    )
    wait(broker, 1)
    assert broker.produce("t", b"v")["error"] == 1002


def test_describe_says_when_the_oldest_record_goes(broker: MemoryBroker) -> None:
    broker.create("t", retention="1h")
    ask = {"op": "describe_topic", "topic": "t"}
    found = broker.ask(ask)[0]["partitions"][0]
    assert (found["size"], found["segments"]) == (0, 1)
    assert "oldest_append_time" not in found
    at_ns = broker.clock.wall_ns()
    fill(broker, 2)
    found = broker.ask(ask)[0]["partitions"][0]
    assert found["size"] == part(broker).log.size_bytes
    assert int(found["oldest_append_time"]) == at_ns
    assert int(found["oldest_goes_at"]) == at_ns + 3600 * NS_PER_S
    alter = {"op": "alter_topic", "topic": "t", "set": {"retention": 2**63 - 1}}
    assert broker.ask(alter)[0]["error"] == 0
    assert int(broker.ask(ask)[0]["partitions"][0]["oldest_goes_at"]) == 2**63 - 1
    assert at_ns % NS_PER_MS == 0
