"""Clients of three brokers: leaders die, hang and come back; nothing is lost, doubled, reordered or stuck."""

from __future__ import annotations

import itertools
import json
import os
import signal
import threading
from collections.abc import Iterator

import pytest

import shmlog
from shmlog import directory
from shmlog.cli import main as cli
from shmlog.errors import DeliveryError, InvalidConfig, LogTruncated, RequestTimedOut
from shmlog.protocol.messages import DescribeTopic
from shmlog.testing.cluster import LocalCluster

pytestmark = pytest.mark.process
PARTITIONS = 2


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(brokers=3) as running:
        yield running


@pytest.fixture
def topic(cluster: LocalCluster, request: pytest.FixtureRequest) -> str:
    name = "t" + str(abs(hash(request.node.nodeid)))
    with shmlog.Admin(cluster.dir) as admin:
        admin.create_topic(name, PARTITIONS, replication_factor=3)
    cluster.wait_isr(name)
    return name


def test_an_admin_that_was_given_one_endpoint_outlives_its_broker() -> None:
    with LocalCluster(brokers=3) as cluster:
        endpoint = directory.read_brokers(cluster.dir)[2].endpoints["client"]
        with shmlog.Admin(endpoint, timeout=20) as admin:
            os.kill(cluster.supervisor_pid, signal.SIGSTOP)
            try:
                cluster.kill(2)
                for number in range(6):
                    admin.create_topic(f"t{number}")
            finally:
                os.kill(cluster.supervisor_pid, signal.SIGCONT)


class Along(threading.Thread):
    """Reads a topic while it is written, until it has `count` records."""

    def __init__(self, cluster: LocalCluster, topic: str, count: int, *, ring: bool) -> None:
        super().__init__(daemon=True)
        self.values: dict[int, list[int]] = {p: [] for p in range(PARTITIONS)}
        self.offsets: dict[int, list[int]] = {p: [] for p in range(PARTITIONS)}
        self._consumer = shmlog.Consumer(topic, where=cluster.dir, ring=ring)
        self._count = count
        self.start()

    def run(self) -> None:
        got = 0
        with self._consumer:
            for record in self._consumer:
                self.values[record.partition].append(int(record.value))
                self.offsets[record.partition].append(record.offset)
                got += 1
                if got == self._count:
                    return

    def check(self, count: int) -> None:
        self.join(60)
        assert not self.is_alive()
        for partition, values in self.values.items():
            assert values == list(range(partition, count, PARTITIONS))
            assert self.offsets[partition] == list(range(len(values)))


@pytest.mark.parametrize("trouble", ["kill", "pause"])
def test_the_loss_of_a_leader_under_load_is_no_event_for_producer_and_consumers(
    cluster: LocalCluster, topic: str, trouble: str
) -> None:
    count = 20_000
    readers = [Along(cluster, topic, count, ring=ring) for ring in (True, False)]
    with shmlog.Producer(where=cluster.dir, batch_bytes=4096) as producer:
        for number in range(count):
            producer.send(topic, b"%d" % number, partition=number % PARTITIONS)
            if number == count // 2:
                victim = cluster.leader(topic, 0)
                getattr(cluster, trouble)(victim)
        # Far below the request's own time-out (30 s): nobody waits for the one that hangs.
        producer.flush(10)
        assert producer._accumulator.epoch == 0
    if trouble == "pause":
        assert cluster.wait_leader(topic, 0) != victim
        cluster.resume(victim)
    for reader in readers:
        reader.check(count)
    cluster.wait_ready()
    cluster.wait_isr(topic)


def test_questions_are_answered_while_a_broker_hangs(cluster: LocalCluster, topic: str) -> None:
    with shmlog.Admin(cluster.dir, timeout=10) as admin, shmlog.Producer(where=cluster.dir) as out:
        out.produce(topic, b"x", partition=0)
        out.produce(topic, b"x", partition=1)
        hung = cluster.leader(topic, 0)
        cluster.pause(hung)
        try:
            for _ in range(6):  # each broker's turn comes
                assert len(admin.describe_topic(topic).partitions) == PARTITIONS
            ends = admin.list_offsets([(topic, p, -1) for p in range(PARTITIONS)])
            assert set(ends.values()) == {1}
            assert set(
                admin.delete_records([(topic, p, 1) for p in range(PARTITIONS)]).values()
            ) == {1}
        finally:
            cluster.resume(hung)
    cluster.wait_isr(topic)


def test_the_ends_of_a_topic_are_those_of_its_leaders_whoever_is_asked(
    cluster: LocalCluster, topic: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name, here = topic + "spread", ["-d", str(cluster.dir), "topic"]
    with shmlog.Admin(cluster.dir) as admin, shmlog.Producer(where=cluster.dir) as out:
        admin.create_topic(name, 3, replication_factor=1)
        for partition in range(3):
            for value in (b"0", b"1")[: partition + 1]:
                out.produce(name, value, partition=partition)
        for _ in cluster.pids:  # each broker's turn comes
            found = admin.describe_topic(name).partitions
            assert [(p.log_start, p.high_watermark, p.end_offset) for p in found] == [
                (0, 1, 1), (0, 2, 2), (0, 2, 2)
            ]  # fmt: skip
            assert all(p.size and p.segments == 1 for p in found)
            assert cli.execute([*here, "delete", name, "--dry-run"]) == 0
            assert "(3 partitions, 5 records)" in capsys.readouterr().err
            assert cli.execute([*here, "trim", name, "-p", "2", "-o", "1", "--dry-run"]) == 0
            assert "0 -> 1, 1 record would be dropped" in capsys.readouterr().err
        message = DescribeTopic(op="describe_topic", id=0, topic=name)
        for answer in admin._engine.ask_brokers(lambda: message):
            [led] = [p for p in answer.partitions if p.end_offset >= 0]
            others = [p for p in answer.partitions if p.partition != led.partition]
            assert {(p.log_start, p.high_watermark, p.end_offset, p.size) for p in others} == {
                (-1, -1, -1, None)
            }
        hung = cluster.leader(name, 2)
        cluster.pause(hung)
        try:
            lost = admin.describe_topic(name).partitions[2]
            assert (lost.leader, lost.high_watermark, lost.size) == (-1, -1, None)
            assert cli.execute([*here, "delete", name, "--dry-run"]) == 0
            assert (
                "3 records and what 1 partition without a leader holds" in capsys.readouterr().err
            )
            assert cli.execute([*here, "trim", name, "-p", "2", "-o", "1", "--dry-run"]) == 5
        finally:
            cluster.resume(hung)
    cluster.wait_ready()


def test_a_record_that_finds_no_leader_in_time_says_what_became_of_it(
    cluster: LocalCluster,
) -> None:
    with shmlog.Admin(cluster.dir) as admin:
        admin.create_topic("alone", 1, replication_factor=1)
    leader = cluster.wait_leader("alone", 0)
    producer = shmlog.Producer(where=cluster.dir, delivery_timeout=4)
    producer.produce("alone", b"0")
    cluster.pause(leader)
    try:
        with pytest.raises(RequestTimedOut) as caught:
            producer.send("alone", b"1").result(20)
    finally:
        cluster.resume(leader)
    with pytest.raises(DeliveryError):
        producer.close()
    text = str(caught.value)
    assert "fate unknown" in text
    assert f"broker {leader} does not answer and was fenced" in text
    assert "alone-0 has no leader" in text


@pytest.mark.slow
def test_records_that_an_unclean_election_gave_up_are_told_to_readers_and_operators(
    cluster: LocalCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    with shmlog.Admin(cluster.dir) as admin:
        configs = {"unclean_leader_election": True, "min_insync_replicas": 1}
        admin.create_topic("cut", 1, replication_factor=2, configs=configs)
        cluster.wait_isr("cut")
        leader = cluster.leader("cut", 0)
        [partition] = admin.describe_topic("cut").partitions
        [follower] = set(partition.replicas) - {leader}
        assert partition.lost is None
        told: list[Exception] = []
        with (
            shmlog.Producer(where=cluster.dir) as producer,
            shmlog.Producer(where=cluster.dir) as other,
            shmlog.Consumer("cut", where=cluster.dir) as strict,
            shmlog.Consumer(
                "cut", where=cluster.dir, on_truncation="continue", on_error=told.append
            ) as easy,
        ):
            for number in range(5):
                producer.produce("cut", b"%d" % number)
            cluster.pause(follower)
            for number in range(5, 10):
                producer.produce(
                    "cut", b"%d" % number
                )  # the first waits until the ISR is the leader
            for consumer in (strict, easy):
                assert values(consumer, 10) == [b"%d" % number for number in range(10)]
            cluster.pause(leader)
            cluster.resume(follower)
            other.produce("cut", b"new")
            assert cluster.leader("cut", 0) == follower
            with pytest.raises(LogTruncated) as cut:
                values(strict, 1)
            first, end = cut.value.facts["offset"], cut.value.facts["end_offset"]
            # 6: the follower's fetch was answered with the first one while it was paused.
            assert (first in (5, 6), end) == (True, 10)
            for consumer in (strict, easy):
                assert values(consumer, 1) == [b"new"]
        assert [error.facts["offset"] for error in told] == [first]
        cluster.resume(leader)
        cluster.wait_isr("cut")
        [partition] = admin.describe_topic("cut").partitions
        assert partition.lost == [first, first]  # nobody had told how far the one before had come
        arguments = ["-d", str(cluster.dir), "--output", "table", "topic", "describe", "cut"]
        assert cli.execute(arguments) == 0
        assert f"what was acked from offset {first} on may be lost\n" in capsys.readouterr().out
        log = directory.broker_log(cluster.dir, follower).read_text()
        [entry] = [line for line in log.splitlines() if "elected though not in sync" in line]
        assert json.loads(entry)["lost"] == [first, first]


def values(consumer: shmlog.Consumer, count: int) -> list[bytes]:
    return [record.value for record in itertools.islice(consumer, count)]


def test_what_to_do_about_a_cut_log_is_one_of_two_things() -> None:
    with pytest.raises(InvalidConfig, match='"raise" or "continue"'):
        shmlog.Consumer("t", on_truncation="no")
