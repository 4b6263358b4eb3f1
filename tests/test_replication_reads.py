"""Fetches between brokers: what a leader reads for one follower serves the other; how long an idle follower waits."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from node import replication
from node.core.replica.follower import Follower, State
from node.replication import FETCH_WAIT_MS, QUIET_WAIT_MS, Replication
from shmlog.clock import NS_PER_MS
from shmlog.errors import Code
from shmlog.ids import TopicPartition
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
    leader.partition.log_start = leader.partition.log.copy_start = 4
    assert leader.fetch(2) == b""
    assert leader.sent[-1][1].partitions[0].error == Code.OFFSET_OUT_OF_RANGE


def test_a_copy_may_begin_below_the_log_start_with_the_batch_that_it_lies_in() -> None:
    leader = Leader()
    leader.partition.log_start, leader.partition.log.copy_start = 4, 3
    assert leader.fetch(2, 2) == b""
    assert leader.sent[-1][1].partitions[0].error == Code.OFFSET_OUT_OF_RANGE
    assert leader.fetch(1, 3) == bytes([3]) * 100
    assert leader.partition.reads == [4]


@pytest.mark.parametrize(("theirs", "answered"), [(0, True), (4, False), (-1, False)])
def test_a_log_start_that_rose_is_told_at_once_also_where_nothing_is_to_be_fetched(
    theirs: int, answered: bool
) -> None:
    leader = Leader()
    end = leader.partition.log.log_end_offset
    wanted = peers.FetchPosition(TOPIC, 0, 3, end, end, "os", 3, log_start=theirs)
    fetch = peers.ReplicaFetch(seq=1, partitions=[wanted], max_wait_ms=FETCH_WAIT_MS)
    fetch.broker, fetch.incarnation = 1, 1
    leader.partition.log_start = 4
    leader.replication.handle_fetch(fetch, 0)
    leader.replication.turn(0)
    assert bool(leader.sent) is answered
    if answered:
        (entry,) = leader.sent[-1][1].partitions
        assert (entry.error, entry.log_start, entry.size) == (0, 4, 0)


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


class FollowedPartition:
    """A partition that is followed, fetching at 0."""

    def __init__(self) -> None:
        self.topic_id, self.name = TOPIC, TopicPartition("t", 0)
        self.follower = Follower(high_watermark=0)
        self.follower.leader, self.follower.leader_epoch = 1, 3
        self.follower.state = State.FETCHING
        self.stored_end, self.counted_by = 0, "os"
        self.log_start = self.high_watermark = 0
        self.log = SimpleNamespace(log_end_offset=0, epochs=SimpleNamespace(last_epoch=3))

    def append_replica(self, frame: bytes, compacted_below: int) -> None:
        pass


def test_a_fetch_waits_longer_while_there_is_nothing_and_a_lost_one_is_sent_again() -> None:
    sent: list[Any] = []
    partition: Any = FollowedPartition()
    ignore: Any = lambda *_: None  # noqa: E731
    follower = Replication(
        0,
        SimpleNamespace(),  # type: ignore[arg-type]
        lambda to, message, frames: sent.append(message),
        lambda *_: partition,
        ignore,
        ignore,
        ignore,
        ignore,
    )
    follower.follow(partition)
    follower.turn(0)

    def answer(frames: list[bytes]) -> int:
        """How long the next fetch is to wait, ms."""
        size = sum(map(len, frames))
        entry = peers.FetchedPartition(TOPIC, 0, 0, 3, size, 0, 0)
        message = peers.ReplicaFetched(seq=sent[-1].seq, partitions=[entry])
        message.broker, message.incarnation = 1, 1
        follower.handle_fetched(message, frames, 0)
        follower.turn(0)
        return int(sent[-1].max_wait_ms)

    assert sent[-1].max_wait_ms == FETCH_WAIT_MS
    assert answer([]) == QUIET_WAIT_MS
    assert answer([b"x" * 128]) == FETCH_WAIT_MS
    assert answer([]) == QUIET_WAIT_MS
    lost = sent[-1].seq
    assert follower.next_deadline_ns() == 2 * QUIET_WAIT_MS * NS_PER_MS
    follower.turn(2 * QUIET_WAIT_MS * NS_PER_MS)
    assert sent[-1].seq == lost
    follower.turn(2 * QUIET_WAIT_MS * NS_PER_MS + 1)
    assert sent[-1].seq > lost
    assert sent[-1].max_wait_ms == FETCH_WAIT_MS
