"""A turn may bring more for one partition than its ring holds."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
from memory_broker import MemoryBroker

from shmlog.records.builder import build

COUNT = 12
VALUE = bytes(60 << 10)


@pytest.fixture
def broker(tmp_path: Path) -> MemoryBroker:
    """Its topic's ring holds four batches of the test."""
    made = MemoryBroker(tmp_path)
    made.create("t", ring_bytes=256 << 10, max_message_bytes=64 << 10)
    made.produce("t", b"first")  # the ring is made
    made.turn()
    assert made.context.partitions["t", 0].window.state == "ring"
    return made


def produce_in_one_turn(broker: MemoryBroker) -> list[dict[str, Any]]:
    message = {"op": "produce", "mode": "fast", "partitions": [{"topic": "t", "partition": 0}]}
    ids = [
        broker.post(
            message,
            bytes(
                build(
                    [b"%d" % i + VALUE],
                    timestamps=1,
                    producer_id=7,
                    producer_epoch=0,
                    base_sequence=i,
                )
            ),
        )
        for i in range(COUNT)
    ]
    broker.turn()
    answers = [broker.answer(i) for i in ids]
    assert all(answers), "one turn answers all of them"
    return [answer[0]["partitions"][0] for answer in answers if answer]


def test_it_is_stored_whole_and_in_order(broker: MemoryBroker) -> None:
    found = produce_in_one_turn(broker)
    assert [entry["error"] for entry in found] == [0] * COUNT
    assert [entry["base_offset"] for entry in found] == list(range(1, COUNT + 1))
    ring = broker.context.partitions["t", 0].window._writer
    assert ring is not None
    assert (ring.high_watermark, ring.oldest_valid > 0) == (ring.tail, True)
    assert [v[:2] for v in broker.values("t")[1:]] == [
        (b"%d" % i + VALUE)[:2] for i in range(COUNT)
    ]


@pytest.mark.parametrize(("write", "kept"), [(1, 0), (2, 4)])
def test_a_full_disk_in_its_midst_takes_back_what_was_not_written_and_no_more(
    broker: MemoryBroker, write: int, kept: int
) -> None:
    broker.storage.fail("pwrite", write, errno.ENOSPC)
    found = produce_in_one_turn(broker)
    assert [entry["error"] for entry in found] == [0] * kept + [1002] * (COUNT - kept)
    assert len(broker.values("t")) == 1 + kept
    again = produce_in_one_turn(
        broker
    )  # those that are stored are known, the others are stored now
    assert [entry["base_offset"] for entry in again] == list(range(1, COUNT + 1))
