"""A broker comes back without its data: it begins anew from the others, and promises nothing by what it had."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zmq

from shmlog import directory, process, registry
from shmlog.errors import ShmlogError
from shmlog.sockets import LINGER_MS
from shmlog.testing.cluster import LocalCluster

pytestmark = pytest.mark.process


def _take_data(cluster: LocalCluster, broker: int, *, back: Path | None = None) -> None:
    """Kill a broker and put another directory, an empty one or `back`, in the place of its data."""
    data_dir = directory.load_cluster(cluster.dir).data_dirs[broker]
    cluster.pause(broker)  # else its successor may be there first
    data_dir.rename(data_dir.with_name(f"{data_dir.name}.gone"))
    if back is not None:
        shutil.copytree(back, data_dir)
    cluster.kill(broker)


def _until(test: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 30
    while not test():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


@pytest.mark.parametrize("what", ["empty", "a backup"])
def test_a_broker_whose_disk_was_replaced_begins_anew_from_the_others(what: str) -> None:
    with LocalCluster(brokers=3) as cluster:
        client = cluster.client()
        client.admin.create_topic("t", 2, replication_factor=3)
        with client.producer() as producer:
            for value in range(100):
                producer.send("t", b"%d" % value, partition=value % 2)
            producer.flush()
            victim = cluster.wait_leader("t", 0)
            data_dir = directory.load_cluster(cluster.dir).data_dirs[victim]
            cluster.wait_isr("t")
            backup = cluster.dir / "before"
            shutil.copytree(data_dir, backup)
            cluster.restart(victim)  # a copy is known to be old by the starts that it does not know
            for value in range(100, 200):
                producer.send("t", b"%d" % value, partition=value % 2)
            producer.flush()
            _take_data(cluster, victim, back=backup if what == "a backup" else None)
            for value in range(200, 300):
                producer.send("t", b"%d" % value, partition=value % 2)
            producer.flush()
        cluster.wait_ready()
        cluster.wait_isr("t")
        log = directory.broker_log(cluster.dir, victim).read_text()
        assert "data directory replaced" in log
        assert "this voter abstains" in log
        cluster.restart(victim)  # this time nothing is missing
        cluster.wait_isr("t")
        log = directory.broker_log(cluster.dir, victim).read_text()
        assert log.count("data directory replaced") == log.count("this voter abstains") == 1
        _check_copy(cluster, victim)
        with client.consumer("t", stop="latest") as consumer:
            values = [int(record.value) for record in consumer]
        assert sorted(values) == list(range(300))


def _check_copy(cluster: LocalCluster, broker: int) -> None:
    """The directory of this broker holds the same batches as that of another."""
    dirs = directory.load_cluster(cluster.dir).data_dirs
    mine, other = dirs[broker], dirs[(broker + 1) % 3]
    for partition in ("t-0", "t-1"):
        contents = []
        for place in (mine, other):
            files = sorted((place / partition).glob("*.log"))
            contents.append(b"".join(f.read_bytes().rstrip(b"\0") for f in files))
        assert contents[0] == contents[1]


def _ask(cluster: LocalCluster, broker: int, message: dict[str, Any], *frames: bytes) -> Any:
    """One request in JSON to this broker."""
    endpoint = directory.read_brokers(cluster.dir)[broker].endpoints["client"]
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.linger = LINGER_MS
        socket.connect(endpoint)
        socket.send_multipart([json.dumps({"id": 1, **message}).encode(), *frames])
        assert socket.poll(20_000)
        return json.loads(socket.recv_multipart()[0])


def test_a_copy_that_begins_behind_a_producers_batches_knows_the_producer() -> None:
    """Else whoever sends again what it has no answer for would have it stored twice."""
    with LocalCluster(brokers=3) as cluster:
        admin = cluster.client().admin
        admin.create_topic("t", replication_factor=3)
        first = cluster.wait_leader("t", 0)
        mine = _ask(cluster, first, {"op": "init_producer"})
        record = {"op": "produce", "mode": "simple", "topic": "t", "partition": 0, "count": 1}
        record |= {key: mine[key] for key in ("producer_id", "producer_epoch")}
        sent = _ask(cluster, first, {**record, "base_sequence": 0}, b"k", b"v")
        assert (sent["error"], sent["base_offset"]) == (0, 0)
        cluster.wait_isr("t")
        cluster.pause(first)  # it is not there again before the records are deleted
        _until(lambda: cluster.wait_leader("t", 0) != first, "another leads")
        admin.delete_records([("t", 0, 1)])
        _take_data(cluster, first)
        cluster.wait_ready()
        cluster.wait_isr("t")
        assert admin.elect("t", 0)
        assert cluster.wait_leader("t", 0) == first
        again = _ask(cluster, first, {**record, "base_sequence": 0}, b"k", b"v")
        assert (again["error"], again["base_offset"]) == (0, 0), "it is there already"
        next_one = _ask(cluster, first, {**record, "base_sequence": 1}, b"k", b"w")
        assert (next_one["error"], next_one["base_offset"]) == (0, 1)


def test_the_only_copy_is_missed() -> None:
    cluster = LocalCluster()
    try:
        with cluster:
            cluster.client().admin.create_topic("t")
            _take_data(cluster, 0)
            with pytest.raises(ShmlogError):
                cluster.wait_ready(10)
            log = directory.broker_log(cluster.dir, 0).read_text()
            assert "is gone, and it held a log at an earlier start" in log
            assert "Replacing a disk" in log
    finally:
        cluster.stop()


def test_nobody_counts_the_starts_any_more() -> None:
    with LocalCluster(brokers=3) as cluster:
        cluster.restart(2)  # so that the cluster knows a later incarnation than the first
        starts = directory.starts_file(cluster.dir, 2)
        text = starts.read_text()
        cluster.pause(2)
        starts.unlink()
        _take_data(cluster, 2)
        wanted = f"write {text.strip()} into run/broker-2.incarnation"
        logs = [directory.broker_log(cluster.dir, broker) for broker in (0, 1)]
        _until(lambda: any(wanted in log.read_text() for log in logs), wanted)
        starts.write_text(text)
        pid = registry.data_dir_owner(directory.load_cluster(cluster.dir).data_dirs[2])
        assert pid is not None
        process.kill(pid)
        cluster.wait_ready()


def test_a_leader_that_reads_damage_hands_over_and_its_replica_is_mended() -> None:
    with LocalCluster(brokers=3) as cluster:
        client = cluster.client()
        client.admin.create_topic("t", 2, replication_factor=3)
        values = [b"%d" % value for value in range(200)]
        with client.producer() as producer:
            for value in values:
                producer.send("t", value, partition=0).result()  # each a batch of its own
        cluster.wait_isr("t")
        cluster.restart()  # so that no ring has the records
        cluster.wait_isr("t")
        victim = cluster.wait_leader("t", 0)
        dirs = directory.load_cluster(cluster.dir).data_dirs
        segment = dirs[victim] / "t-0" / f"{0:020d}.log"
        content = segment.read_bytes()
        with segment.open("r+b") as file:
            file.seek(content.index(b"100"))
            file.write(b"X")
        with client.consumer("t", stop="latest") as consumer:
            assert [record.value for record in consumer] == values
        _until(lambda: len(list((dirs[victim] / "t-0").glob("*.corrupt*"))) > 0, "set aside")
        cluster.wait_ready()
        cluster.wait_isr("t")
        assert segment.read_bytes().rstrip(b"\0") == content.rstrip(b"\0")
        log = directory.broker_log(cluster.dir, victim).read_text()
        assert log.count('"damage"') == 1
        assert "t-0 is damaged, and broker" in log
