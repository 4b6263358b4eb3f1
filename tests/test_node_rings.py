"""The shipped turn and the rings of its partitions."""

from __future__ import annotations

from pathlib import Path

import pytest
from memory_broker import MemoryBroker

from node.io.workers import Lane
from shmlog.clock import NS_PER_MS
from shmlog.records.builder import build
from shmlog.ring.layout import RingIdentity, ring_size
from shmlog.ring.reader import RingReader


@pytest.fixture
def broker(tmp_path: Path) -> MemoryBroker:
    made = MemoryBroker(tmp_path)
    made.create("t")
    return made


def test_a_ring_is_made_anew_when_its_size_is_changed(broker: MemoryBroker) -> None:
    for _ in range(3):
        broker.produce("t", b"v")
    partition = broker.context.partitions["t", 0]
    assert partition.window.memory is not None
    change = {"ring_bytes": "64MiB", "max_message_bytes": "8MiB", "max_uncompressed_bytes": "64MiB"}
    assert broker.ask({"op": "alter_topic", "topic": "t", "set": change})[0]["error"] == 0
    assert broker.produce_fast(build([b"x" * (7 << 20)], timestamps=1))["error"] == 0
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


def test_rings_are_stamped_while_the_loop_lives(broker: MemoryBroker) -> None:
    for _ in range(3):
        broker.produce("t", b"v")
    reader = broker.context.partitions["t", 0].window._reader
    assert reader is not None
    assert broker.loop.timeout_ms() <= 250
    broker.clock.advance(300 * NS_PER_MS)
    broker.turn()
    assert reader.heartbeat_ns == broker.clock.monotonic_ns()
