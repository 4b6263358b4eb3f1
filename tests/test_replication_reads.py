"""What a leader reads for one follower serves the other: once from the ring, for as long as the epoch lasts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from node import replication
from node.replication import FETCH_WAIT_MS, Replication
from shmlog.clock import NS_PER_MS
from shmlog.errors import Code
from shmlog.log.cleaning import Compaction
from shmlog.protocol import peers

TOPIC = b"t" * 16


class LedPartition:
    """A partition led here whose reads are counted."""

    def __init__(self) -> None:
        self.leader = object()
        self.leader_epoch = 3
        self.high_watermark = self.log_start = 0
        self.log = SimpleNamespace(log_end_offset=10, compaction=Compaction())
        self.reads: list[int] = []

    def report(self, *_: object, **__: object) -> bool:
        return False

    def read_for_replica(self, offset: int, max_bytes: int) -> bytes:
        self.reads.append(offset)
        return bytes([self.leader_epoch]) * 100


class Leader:
    """A replication that leads one partition, and what it has sent."""

    def __init__(self) -> None:
        self.partition = LedPartition()
        self.sent: list[tuple[int, Any, bytes]] = []
        ignore: Any = lambda *_: None  # noqa: E731
        self.replication = Replication(
            0,
            SimpleNamespace(),  # type: ignore[arg-type]
            lambda to, message, frames: self.sent.append((to, message, b"".join(frames))),
            lambda *_: self.partition,  # type: ignore[arg-type, return-value]
            ignore,
            ignore,
            ignore,
        )

    def fetch(self, broker: int, position: int = 0, epoch: int = 3) -> bytes:
        """One follower's fetch, answered at once."""
        wanted = peers.FetchPosition(TOPIC, 0, epoch, position, position, "os", epoch)
        fetch = peers.ReplicaFetch(seq=1, partitions=[wanted], max_wait_ms=FETCH_WAIT_MS)
        fetch.broker, fetch.incarnation = broker, 1
        self.replication.handle_fetch(fetch, 0)
        self.replication.turn(0)
        to, _, data = self.sent[-1]
        assert to == broker
        return data


def test_two_followers_at_the_same_position_cost_one_read_also_turns_apart() -> None:
    leader = Leader()
    assert leader.fetch(1) == leader.fetch(2) == bytes([3]) * 100
    assert leader.partition.reads == [0]
    leader.fetch(1, 5)
    assert leader.partition.reads == [0, 5]


def test_what_was_read_in_one_epoch_is_not_given_in_another() -> None:
    leader = Leader()
    leader.fetch(1)
    leader.partition.leader_epoch = 4  # lost and won again: the log may have been cut in between
    assert leader.fetch(2, epoch=4) == bytes([4]) * 100


def test_what_lies_below_the_log_start_now_is_refused_though_it_was_read_before() -> None:
    leader = Leader()
    leader.fetch(1)
    leader.partition.log_start = 4
    assert leader.fetch(2) == b""
    assert leader.sent[-1][1].partitions[0].error == Code.OFFSET_OUT_OF_RANGE


def test_what_is_kept_is_bounded_and_let_go_of_when_nobody_follows_closely(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(replication, "READ_BYTES_MAX", 250)
    leader = Leader()
    for position in (0, 1, 2):  # the third pushes the first one out
        leader.fetch(1, position)
    leader.fetch(2, 2)
    leader.fetch(2, 0)
    assert leader.partition.reads == [0, 1, 2, 0]
    leader.fetch(1, 0)
    fetch = peers.ReplicaFetch(
        seq=2, partitions=[peers.FetchPosition(TOPIC, 0, 3, 10, 10, "os", 3)]
    )
    fetch.broker, fetch.incarnation = 1, 1
    leader.replication.handle_fetch(fetch, 0)
    leader.replication.turn(0)
    leader.replication.turn(FETCH_WAIT_MS * NS_PER_MS)  # without news
    leader.fetch(2, 0)
    assert leader.partition.reads == [0, 1, 2, 0, 0]


def test_who_has_not_seen_a_dropped_tombstone_is_sent_back_to_the_epoch_question() -> None:
    leader = Leader()
    leader.partition.log.compaction = Compaction(tombstones_dropped=8)

    def fetched(position: int, known: int) -> int:
        wanted = peers.FetchPosition(
            TOPIC, 0, 3, position, position, "os", 3, tombstones_known=known
        )
        fetch = peers.ReplicaFetch(seq=1, partitions=[wanted], max_wait_ms=FETCH_WAIT_MS)
        fetch.broker, fetch.incarnation = 1, 1
        leader.replication.handle_fetch(fetch, 0)
        leader.replication.turn(0)
        error: int = leader.sent[-1][1].partitions[0].error
        return error

    assert fetched(7, 0) == 1
    assert fetched(7, 7) == 1
    assert fetched(7, 8) == 0  # it began anew since
    assert fetched(8, 0) == 0
