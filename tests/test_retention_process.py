"""Retention in three real brokers: under load, over the death of a leader, and for who was away too long."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import shmlog
from shmlog.errors import OffsetOutOfRange
from shmlog.testing.cluster import LocalCluster

pytestmark = pytest.mark.process
KEPT = 1 << 20
SMALL = {"segment.bytes": 1 << 18, "retention.bytes": KEPT}
RECORD = 1000


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(brokers=3) as running:
        yield running


def make(cluster: LocalCluster, topic: str, **more: object) -> None:
    with shmlog.Admin(cluster.dir) as admin:
        admin.create_topic(topic, 1, replication_factor=3, configs={**SMALL, **more})
    cluster.wait_isr(topic)


def fill(cluster: LocalCluster, topic: str, first: int, count: int) -> None:
    with shmlog.Producer(where=cluster.dir, batch_bytes=8192) as producer:
        for number in range(first, first + count):
            producer.send(topic, (b"%d" % number).ljust(RECORD, b"."), partition=0)
        producer.flush(30)


def eventually(test: Callable[[], bool], what: str, timeout_s: float = 20) -> None:
    end = time.monotonic() + timeout_s
    while not test():
        assert time.monotonic() < end, what
        time.sleep(0.02)


def bases(cluster: LocalCluster, broker: int, topic: str) -> list[int]:
    """Of the segment files that a broker has."""
    names = (Path(cluster.dir) / f"broker-{broker}" / f"{topic}-0").glob("*.log")
    found = (re.fullmatch(r"(\d{20})\.log", path.name) for path in names)
    return sorted(int(match[1]) for match in found if match)


def settle(cluster: LocalCluster, topic: str, broker: int, count: int) -> None:
    """Until there is too little left behind a broker's oldest segment for that to go as well."""

    def is_settled() -> bool:
        oldest = bases(cluster, broker, topic)
        return len(oldest) > 1 and oldest[0] > 0 and (count - oldest[1]) * RECORD * 1.03 < KEPT

    eventually(is_settled, f"the files of broker {broker} going")


def check_kept(cluster: LocalCluster, topic: str, count: int) -> int:
    """What is left is the newest part, without gaps, as it was sent; where it begins."""
    with shmlog.Consumer(topic, where=cluster.dir, start="earliest", stop="latest") as consumer:
        records = [(r.offset, int(r.value.rstrip(b"."))) for r in consumer if r.value]
    first = records[0][0]
    assert records == [(n, n) for n in range(first, count)]
    assert (count - first) * (RECORD + 50) >= KEPT
    assert (count - first) * RECORD < 2 * KEPT
    return first


def test_under_load_the_newest_part_is_left_though_the_leader_is_killed(
    cluster: LocalCluster,
) -> None:
    make(cluster, "load")
    half = 6000
    fill(cluster, "load", 0, half)
    killed = cluster.leader("load", 0)
    with shmlog.Producer(where=cluster.dir, batch_bytes=8192) as producer:
        for number in range(half, 2 * half):
            producer.send("load", (b"%d" % number).ljust(RECORD, b"."), partition=0)
            if number == half + half // 2:
                cluster.kill(killed)
        producer.flush(30)
    cluster.wait_ready()
    cluster.wait_isr("load")
    for broker in range(3):
        settle(cluster, "load", broker, 2 * half)
    first = check_kept(cluster, "load", 2 * half)
    with (
        pytest.raises(OffsetOutOfRange) as raised,
        shmlog.Consumer("load", where=cluster.dir, start=first - 1) as consumer,
    ):
        next(iter(consumer))
    assert raised.value.log_start == first


def test_the_log_start_is_the_same_after_restarts_and_at_every_leader(
    cluster: LocalCluster,
) -> None:
    make(cluster, "again")
    fill(cluster, "again", 0, 5000)
    for broker in range(3):
        settle(cluster, "again", broker, 5000)
    first = check_kept(cluster, "again", 5000)
    for _ in range(3):
        before = cluster.leader("again", 0)
        cluster.kill(before)
        eventually(lambda before=before: cluster.wait_leader("again", 0) != before, "a new leader")  # type: ignore[misc]
        assert check_kept(cluster, "again", 5000) == first
        cluster.wait_ready()
        cluster.wait_isr("again")


def test_a_follower_that_was_away_longer_than_the_log_reaches_begins_anew(
    cluster: LocalCluster,
) -> None:
    make(cluster, "away")
    fill(cluster, "away", 0, 100)
    leader = cluster.leader("away", 0)
    follower = (leader + 1) % 3
    cluster.pause(follower)
    try:
        fill(cluster, "away", 100, 6000)
        settle(cluster, "away", leader, 6100)
        assert bases(cluster, follower, "away") == [0]
    finally:
        cluster.resume(follower)
    eventually(
        lambda: bases(cluster, follower, "away")[:1] > [1000], "the follower's new beginning"
    )
    cluster.wait_isr("away")
    cluster.kill(leader)
    assert check_kept(cluster, "away", 6100) > 1000
