"""The shipped turn, from a request's frames to its one answer, without a socket, a thread or a disk."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from memory_broker import MemoryBroker

from node.io.workers import Lane
from shmlog.clock import NS_PER_MS
from shmlog.protocol import header
from shmlog.records.builder import build
from shmlog.settings import ClusterConfig


@pytest.fixture
def broker(tmp_path: Path) -> MemoryBroker:
    made = MemoryBroker(tmp_path)
    made.create("t")
    return made


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


def test_acks_0_is_answered_on_admission_without_an_offset(broker: MemoryBroker) -> None:
    reply = broker.produce("t", b"v", acks="0")
    assert (reply["error"], reply["base_offset"]) == (0, -1)
    assert broker.values("t") == [b"v"]


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


def test_a_duplicate_is_answered_with_its_first_offset_even_if_it_would_now_be_refused(
    broker: MemoryBroker,
) -> None:
    batch = build([b"x" * 2000], timestamps=1, producer_id=7, producer_epoch=0, base_sequence=0)
    assert broker.produce_fast(batch)["base_offset"] == 0
    reply, _ = broker.ask({"op": "alter_topic", "topic": "t", "set": {"max_message_bytes": 1024}})
    assert reply["error"] == 0
    assert broker.produce_fast(batch)["base_offset"] == 0
    other = build([b"x" * 2000], timestamps=1, producer_id=7, producer_epoch=0, base_sequence=1)
    assert broker.produce_fast(other)["error"] == 10


@pytest.mark.parametrize(
    ("sequence", "epoch", "producer", "error"),
    [(5, 0, 7, 45), (3, 0, 8, 59), (0, -1, 7, 47), (1, 1, 7, 45), (1, 0, 7, 0), (0, 1, 7, 0)],
)
def test_sequences_follow_the_table(
    broker: MemoryBroker, sequence: int, epoch: int, producer: int, error: int
) -> None:
    first = build([b"a"], timestamps=1, producer_id=7, producer_epoch=1, base_sequence=0)
    assert broker.produce_fast(first)["error"] == 0
    batch = build(
        [b"b"], timestamps=1, producer_id=producer, producer_epoch=1 + epoch, base_sequence=sequence
    )
    assert broker.produce_fast(batch)["error"] == error


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
    assert broker.produce_fast(change(batch))["error"] == error
    assert broker.produce_fast(batch)["base_offset"] == 0


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


def test_append_time_never_goes_back(broker: MemoryBroker) -> None:
    times = []
    for step_ns in (0, -5 * 10**9, -(10**9), 20 * 10**9):
        broker.clock._wall_ns += step_ns
        times.append(int(broker.produce("t", b"v")["append_time"]))
    assert times == sorted(times)
    assert times[0] == times[2] < times[3]


def test_an_idle_producer_is_forgotten(tmp_path: Path) -> None:
    broker = MemoryBroker(tmp_path, settings=ClusterConfig(producer_id_expiration=5000))
    broker.create("t")

    def batch(sequence: int) -> bytes:
        return bytes(
            build([b"x"], timestamps=1, producer_id=7, producer_epoch=0, base_sequence=sequence)
        )

    assert broker.produce_fast(batch(0))["error"] == 0
    broker.clock.advance(4 * 10**9)
    broker.turn()
    assert broker.produce_fast(batch(1))["error"] == 0
    broker.clock.advance(6 * 10**9)
    broker.turn()
    assert broker.produce_fast(batch(2))["error"] == 59


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
