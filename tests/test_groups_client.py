"""Consumers of one group against real brokers: who reads what, what is committed, what a move and a close do."""

from __future__ import annotations

import gc
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import shmlog
from shmlog import LocalCluster
from shmlog.errors import InvalidConfig, InvalidRequest, PartitionMoved
from shmlog.ids import TopicPartition

PARTITIONS = 4
EACH = 50


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster() as running:
        yield running


@pytest.fixture
def where(cluster: LocalCluster) -> Path:
    return cluster.dir


@pytest.fixture
def topic(where: Path, request: pytest.FixtureRequest) -> str:
    """A topic of this test's own, with EACH records in each partition."""
    name = "g" + str(abs(hash(request.node.nodeid)))
    with shmlog.Admin(where) as admin, shmlog.Producer(where=where) as producer:
        admin.create_topic(name, PARTITIONS)
        for partition in range(PARTITIONS):
            send(producer, name, partition, 0, EACH)
    return name


def send(producer: shmlog.Producer, topic: str, partition: int, first: int, last: int) -> None:
    for number in range(first, last):
        producer.send(topic, b"%d" % number, partition=partition)
    producer.flush()


def member(where: Path, topic: str, **options: object) -> shmlog.Consumer:
    return shmlog.Consumer(topic, where=where, group=topic, **options)


def drain(consumer: shmlog.Consumer, count: int) -> list[tuple[int, int]]:
    """(partition, offset) of the next `count` records, batch by batch; the last batch is not finished."""
    found: list[tuple[int, int]] = []
    for batch in consumer.batches():
        found += [(batch.partition, offset) for offset in batch.offsets.tolist()]
        if len(found) >= count:
            break
    return found


def everything() -> list[tuple[int, int]]:
    return [(p, o) for p in range(PARTITIONS) for o in range(EACH)]


def test_a_group_goes_on_where_it_stopped(where: Path, topic: str) -> None:
    with member(where, topic, stop="latest") as c:
        assert c.assignment == [TopicPartition(topic, p) for p in range(PARTITIONS)]
        assert sorted((r.partition, r.offset) for r in c) == everything()
    with shmlog.Producer(where=where) as producer:
        send(producer, topic, 2, EACH, EACH + 1)
    with member(where, topic, stop="latest") as c:
        assert [(r.partition, r.offset, r.value) for r in c] == [(2, EACH, b"%d" % EACH)]
        assert {tp.partition: o.offset for tp, o in c.committed().items()} == {
            p: EACH for p in range(PARTITIONS)
        }


def test_what_is_in_the_application_s_hands_is_not_committed(where: Path, topic: str) -> None:
    with member(where, topic) as c:
        records = iter(c)
        seen = [next(records) for _ in range(10)]  # the tenth is being handled when it ends
    with member(where, topic, stop="latest") as c:
        again = sorted((r.partition, r.offset) for r in c)
    done = {(r.partition, r.offset) for r in seen[:-1]}
    assert again == [place for place in everything() if place not in done]


def test_commit_before_the_work_is_at_most_once(where: Path, topic: str) -> None:
    with member(where, topic, commit="manual") as c:
        batch = next(c.batches(max_records=7))
        c.commit(batch, metadata="before")
        tp = TopicPartition(topic, batch.partition)
        assert c.committed()[tp].metadata == "before"
        next(c.batches(max_records=7))  # handed out, and never committed
    with member(where, topic, stop="latest") as c:
        found = {(r.partition, r.offset) for r in c}
    assert found == set(everything()) - {(batch.partition, o) for o in batch.offsets.tolist()}


def test_a_second_member_gets_half_and_nothing_is_read_twice(where: Path, topic: str) -> None:
    moves: list[tuple[str, int]] = []
    first = member(
        where, topic,
        on_assign=lambda parts: moves.append(("assign", len(parts))),
        on_revoke=lambda parts, *, lost: moves.append(("lost" if lost else "revoke", len(parts))),
    )  # fmt: skip
    with first:
        got = drain(first, PARTITIONS * EACH)
        joined: list[shmlog.Consumer] = []
        thread = threading.Thread(target=lambda: joined.append(member(where, topic)))
        thread.start()
        # The first one gives up when it asks for more, no sooner.
        asking = first.batches(timeout=0.05)
        while len(first.assignment) == PARTITIONS:
            assert not len(next(asking))
        thread.join()
        second = joined[0]
        with second:
            waiting = second.batches(timeout=0.05)
            while len(second.assignment) < PARTITIONS // 2:
                assert not len(next(waiting))
            assert not set(first.assignment) & set(second.assignment)
            assert moves == [("assign", PARTITIONS), ("revoke", PARTITIONS // 2)]
            assert sorted(got) == everything()
            moved = second.assignment[0]
            with shmlog.Consumer(topic, where=where, partitions=[moved.partition]) as outside:
                batch = next(outside.batches())
            with pytest.raises(PartitionMoved):
                first.commit(batch)


def test_a_slow_batch_keeps_its_partitions_until_it_is_finished(where: Path, topic: str) -> None:
    with member(where, topic) as slow:
        batches = slow.batches(max_records=5)
        batch = next(batches)
        tp = TopicPartition(topic, batch.partition)
        with member(where, topic) as other:
            next(other.batches(timeout=0.5))
            assert tp not in other.assignment  # it is still being worked on
            assert tp in slow.assignment
            slow.commit(batch)


def test_positions_pause_and_seek_in_a_group(where: Path, topic: str) -> None:
    with member(where, topic) as c:
        for tp in c.assignment[1:]:
            c.pause(tp)
        only = c.assignment[0]
        assert {p for p, _ in drain(c, EACH)} == {0}
        assert not len(next(c.batches(timeout=0.1)))
        c.seek(only, EACH - 3)
        assert drain(c, 3) == [(0, o) for o in range(EACH - 3, EACH)]
        c.seek(only, 7)
        c.resume()
    with member(where, topic) as c:
        assert c.committed()[only].offset == 7  # sought back, so committed back
        assert c.position(only) == 7


def test_topics_that_come_and_go_are_followed(where: Path, topic: str) -> None:
    gone: list[TopicPartition] = []
    later = topic + "-later"
    with (
        shmlog.Admin(where) as admin,
        shmlog.Consumer(
            topic + "*", where=where, group=topic,
            on_revoke=lambda parts, *, lost: gone.extend(parts if lost else []),
        ) as c,
    ):  # fmt: skip
        drain(c, PARTITIONS * EACH)
        admin.create_topic(later, 1)
        with shmlog.Producer(where=where) as producer:
            producer.produce(later, b"first")
        assert next(r for r in c if r.topic == later).value == b"first"
        admin.delete_topic(later)
        waiting = c.batches(timeout=0.05)
        while not gone:
            assert not len(next(waiting))
        assert gone == [TopicPartition(later, 0)]
        assert len(c.assignment) == PARTITIONS


def test_where_a_new_group_begins(where: Path, topic: str) -> None:
    with pytest.raises(InvalidRequest, match="no committed offset"):
        member(where, topic, reset="error")
    with member(where, topic, reset="latest"):
        pass
    with shmlog.Producer(where=where) as producer:
        send(producer, topic, 1, EACH, EACH + 2)
    with member(where, topic, stop="latest") as c:  # where it began was committed at once
        assert [(r.partition, r.offset) for r in c] == [(1, EACH), (1, EACH + 1)]
    with pytest.raises(InvalidConfig, match="reset"):
        member(where, topic, start="latest")


def test_a_consumer_that_is_forgotten_leaves_its_group(where: Path, topic: str) -> None:
    forgotten = member(where, topic)
    assert len(forgotten.assignment) == PARTITIONS
    del forgotten
    gc.collect()
    with member(where, topic) as c:
        waiting = c.batches(timeout=0.05)
        while len(c.assignment) < PARTITIONS:
            next(waiting)


def test_an_instance_id_is_one_living_consumer_s(where: Path, topic: str) -> None:
    with member(where, topic, instance_id="one") as c:
        with pytest.raises(InvalidRequest, match="one") as caught:
            member(where, topic, instance_id="one")
        assert caught.value.code == 111
        assert len(c.assignment) == PARTITIONS


def test_an_idle_member_costs_next_to_nothing(where: Path, topic: str) -> None:
    with member(where, topic) as c:
        drain(c, PARTITIONS * EACH)
        before = resource.getrusage(resource.RUSAGE_SELF)
        assert not len(next(c.batches(timeout=1)))
        after = resource.getrusage(resource.RUSAGE_SELF)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.2


class Worker(threading.Thread):
    """A member that reads until it is told to stop; what it had in hand it has finished."""

    def __init__(self, where: Path, topic: str) -> None:
        super().__init__(daemon=True)
        self.seen: list[tuple[int, int]] = []
        self.stop = threading.Event()
        self._options = (where, topic)
        self.start()

    def run(self) -> None:
        with member(*self._options) as c:
            for batch in c.batches(max_records=7, timeout=0.02):
                self.seen += [(batch.partition, o) for o in batch.offsets.tolist()]
                if self.stop.is_set() and not len(batch):
                    return


def test_members_that_come_and_go_in_good_order_read_everything_once(
    where: Path, topic: str
) -> None:
    total = EACH + 500
    workers = [Worker(where, topic)]
    with shmlog.Producer(where=where) as producer:
        for first in range(EACH, total, 50):
            for partition in range(PARTITIONS):
                send(producer, topic, partition, first, first + 50)
            workers.append(Worker(where, topic))
            if len(workers) > 3:
                workers[-4].stop.set()
    with shmlog.Admin(where) as admin:
        while sum(p.lag for p in admin.describe_group(topic).partitions) > 0:
            pass  # each look is a request to the broker
    for worker in workers:
        worker.stop.set()
    for worker in workers:
        worker.join(30)
        assert not worker.is_alive()
    seen = sorted(place for worker in workers for place in worker.seen)
    assert seen == [(p, o) for p in range(PARTITIONS) for o in range(total)]


def test_what_on_assign_raises_comes_out_and_the_partitions_are_read_all_the_same(
    where: Path, topic: str
) -> None:
    raised = []

    def assigned(parts: list[TopicPartition]) -> None:
        if not raised:
            raised.append(parts)
            raise ZeroDivisionError("in on_assign")

    with member(where, topic) as first:
        assert len(first.assignment) == PARTITIONS
        second: list[shmlog.Consumer] = []
        with pytest.raises(ZeroDivisionError):
            # The constructor gives nothing yet: the first one has to let go.
            second.append(member(where, topic, on_assign=assigned))
            for _ in range(1000):
                next(iter(first.batches(timeout=0.01)))
                next(iter(second[0].batches(timeout=0.01)))
        with second[0]:
            assert second[0].assignment == raised[0]
            found = drain(second[0], 1)
            assert {partition for partition, _ in found} <= {tp.partition for tp in raised[0]}


def test_what_on_revoke_raises_in_a_close_comes_out_of_it_and_it_is_closed(
    where: Path, topic: str
) -> None:
    def revoked(parts: list[TopicPartition], *, lost: bool) -> None:
        raise ZeroDivisionError("in on_revoke")

    leaving = member(where, topic, on_revoke=revoked)
    with pytest.raises(ZeroDivisionError):
        leaving.close()
    with pytest.raises(shmlog.errors.ClientClosed):
        next(iter(leaving))
    with member(where, topic) as other:  # nobody is left who would have to let go
        assert len(other.assignment) == PARTITIONS
    leaving.close()


STATIC = """
import sys, shmlog
where, topic = sys.argv[1:]
with shmlog.Consumer(topic, where=where, group=topic, instance_id="static") as consumer:
    told = 0
    for batch in consumer.batches(timeout=0.02):
        if len(consumer.assignment) != told:
            told = len(consumer.assignment)
            print(*(tp.partition for tp in consumer.assignment), flush=True)
"""


def _static(where: Path, topic: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", STATIC, str(where), topic]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_what_a_killed_static_member_had_waits_for_its_return(where: Path, topic: str) -> None:
    told: list[tuple[str, int]] = []
    with member(
        where,
        topic,
        on_assign=lambda parts: told.append(("assign", len(parts))),
        on_revoke=lambda parts, *, lost: told.append(("revoke", len(parts))),
    ) as other:
        told.clear()
        with _static(where, topic) as process:
            assert process.stdout is not None
            for _ in other.batches(timeout=0.02):
                if len(other.assignment) == PARTITIONS // 2:
                    break
            had = process.stdout.readline().split()
            assert len(had) == PARTITIONS // 2
            process.kill()
        assert told == [("revoke", PARTITIONS // 2)]
        with _static(where, topic) as process:
            assert process.stdout is not None
            assert process.stdout.readline().split() == had
            process.kill()
        # It has been heard meanwhile, and nothing was given to it.
        next(iter(other.batches(timeout=0.1)))
        assert told == [("revoke", PARTITIONS // 2)]
        left = {tp.partition for tp in other.assignment}
        assert left == set(range(PARTITIONS)) - set(map(int, had))
