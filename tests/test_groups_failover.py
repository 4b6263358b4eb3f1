"""A group while brokers and members die: the coordinator's failover is a pause, a member's death moves partitions."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import shmlog
from shmlog.clock import SYSTEM_CLOCK
from shmlog.ids import TopicPartition
from shmlog.testing.cluster import LocalCluster

pytestmark = pytest.mark.process
PARTITIONS = 3


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(brokers=3) as running:
        yield running


@pytest.mark.parametrize("trouble", ["kill", "pause"])
def test_the_loss_of_the_coordinator_is_a_short_pause(cluster: LocalCluster, trouble: str) -> None:
    name = f"failover-{trouble}"
    revoked: list[object] = []
    with (
        shmlog.Admin(cluster.dir) as admin,
        shmlog.Producer(where=cluster.dir) as producer,
    ):
        admin.create_topic(name, PARTITIONS, replication_factor=3)
        cluster.wait_isr(name)
        with shmlog.Consumer(
            name, where=cluster.dir, group=name,
            on_revoke=lambda parts, *, lost: revoked.append((parts, lost)),
        ) as consumer:  # fmt: skip
            coordinator = admin.describe_group(name).coordinator
            seen: dict[int, list[int]] = {p: [] for p in range(PARTITIONS)}
            for number in range(300):
                producer.send(name, b"%d" % number, partition=number % PARTITIONS)
                if number == 150:
                    producer.flush(20)
                    getattr(cluster, trouble)(coordinator)
            producer.flush(20)
            for batch in consumer.batches():
                seen[batch.partition] += batch.offsets.tolist()
                if sum(map(len, seen.values())) == 300:
                    break
            began_ns = SYSTEM_CLOCK.monotonic_ns()
            consumer.commit()
            assert SYSTEM_CLOCK.monotonic_ns() - began_ns < 20 * 10**9
            assert all(offsets == list(range(100)) for offsets in seen.values())
            assert revoked == []
            assert {tp: o.offset for tp, o in consumer.committed().items()} == {
                TopicPartition(name, p): 100 for p in range(PARTITIONS)
            }
            found = admin.describe_group(name)
            assert (found.coordinator != coordinator, len(found.members)) == (True, 1)
            # It still is a member for the new coordinator: a second one gets its share.
            with shmlog.Consumer(name, where=cluster.dir, group=name) as second:
                mine, its = consumer.batches(timeout=0.02), second.batches(timeout=0.02)
                while not second.assignment:
                    next(mine), next(its)
                assert len(consumer.assignment) + len(second.assignment) == PARTITIONS
        if trouble == "pause":
            cluster.resume(coordinator)
        cluster.wait_isr(name)
