"""What a reader asks the shipped turn for: waiting, limits, by time."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
from memory_broker import MemoryBroker

from shmlog.clock import NS_PER_MS


@pytest.fixture
def broker(tmp_path: Path) -> MemoryBroker:
    made = MemoryBroker(tmp_path)
    made.create("t")
    return made


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


def test_a_search_by_time_does_not_hold_up_the_turn(broker: MemoryBroker) -> None:
    broker.produce("t", b"v")
    question = {"topic": "t", "partition": 0, "timestamp": "0"}
    reply, _ = broker.ask({"op": "list_offsets", "partitions": [question] * 2049})
    assert reply["error"] == 42


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


def test_fresh_data_comes_from_the_ring_without_a_read_of_files(broker: MemoryBroker) -> None:
    for i in range(5):
        broker.produce("t", b"%d" % i)
    before = len(broker.storage.operations)
    assert broker.fetch("t", 4)[1] == [b"", b"4"]
    assert "pread" not in {kind for kind, _, _ in broker.storage.operations[before:]}


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
