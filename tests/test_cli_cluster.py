"""`shmlog cluster` and what `status` says of it: each output, and the exit statuses."""

from __future__ import annotations

import json
from typing import Any

import pytest

from shmlog.cli.main import execute
from shmlog.client.admin import Admin
from shmlog.errors import UnknownTopic
from shmlog.ids import TopicPartition
from shmlog.protocol.messages import (
    BrokerDescription,
    DescribeClusterAnswer,
    MetadataAnswer,
    PartitionInfo,
    TopicInfo,
)

pytestmark = pytest.mark.process


@pytest.fixture
def shmlog(shmlog_cluster, capfd):
    """Runs a command line in this process: (exit status, stdout, stderr)."""

    def run(*arguments):
        status = execute(["-d", str(shmlog_cluster.dir), *map(str, arguments)])
        out, err = capfd.readouterr()
        return status, out, err

    return run


def documents(shmlog, *arguments) -> Any:
    status, out, err = shmlog(*arguments, "--json")
    assert status == 0, err
    return json.loads(out)


def test_info_shows_the_brokers_and_the_controller(shmlog, shmlog_cluster):
    found = documents(shmlog, "cluster", "info")
    assert (found["kind"], found["v"], found["controller"], found["voters"]) == (
        "cluster",
        1,
        0,
        [0],
    )
    assert found["partitions_without_leader"] == found["partitions_under_minimum"] == 0
    (broker,) = found["brokers"]
    assert (broker["broker"], broker["pid"]) == (0, shmlog_cluster.pids[0])
    assert (broker["alive"], broker["fenced"], broker["reason"]) == (True, False, "")
    assert broker["endpoint"].startswith("ipc://")
    assert broker["leaders"] == broker["replicas"]
    _, out, _ = shmlog("cluster", "info", "--output", "table")
    assert "controller term" in out
    assert out.splitlines()[-1].split()[:3] == ["0", "alive", str(shmlog_cluster.pids[0])]
    _, out, _ = shmlog("cluster", "info")
    assert out.split("\t")[6] == "controller"


def test_leaders_are_listed_by_topic_and_partition(shmlog, shmlog_topic):
    shmlog("topic", "create", shmlog_topic, "-p", 2)
    _, out, _ = shmlog("cluster", "leaders", shmlog_topic)
    rows = [line.split("\t") for line in out.splitlines()]
    assert [(r[0], r[1], r[2], r[3], r[5], r[6]) for r in rows] == [
        (shmlog_topic, "0", "0", "0", "0", "0"),
        (shmlog_topic, "1", "0", "0", "0", "0"),
    ]
    listed = documents(shmlog, "cluster", "leaders")
    assert {row["topic"] for row in listed} >= {shmlog_topic}
    assert (listed[0]["kind"], listed[0]["v"]) == ("leader", 1)
    assert shmlog("cluster", "leaders", "nosuch")[0] == 3


def test_to_elect_who_leads_already_is_done(shmlog, shmlog_topic):
    shmlog("topic", "create", shmlog_topic)
    status, out, err = shmlog("cluster", "elect", shmlog_topic, "-p", 0)
    assert (status, out) == (0, "")
    assert err == f"{shmlog_topic}-0: broker 0 is the preferred leader and leads already\n"
    found = documents(shmlog, "cluster", "elect", shmlog_topic, "-p", 0)
    assert (found["kind"], found["leader"], found["moved"]) == ("elect", 0, False)
    assert shmlog("cluster", "elect", shmlog_topic)[0] == 2
    status, _, err = shmlog("cluster", "elect", shmlog_topic, "-p", 1)
    assert status == 3
    assert "no partition 1" in err
    assert shmlog("cluster", "elect", "nosuch", "-p", 0)[0] == 3


def test_a_balanced_cluster_has_nothing_to_move(shmlog):
    assert shmlog("cluster", "rebalance") == (0, "", "0 partitions moved\n")
    assert documents(shmlog, "cluster", "rebalance") == []


def test_epochs_show_where_each_begins(shmlog, shmlog_topic, shmlog_client):
    shmlog("topic", "create", shmlog_topic)
    shmlog_client.produce(shmlog_topic, b"x")
    (row,) = documents(shmlog, "cluster", "epochs", shmlog_topic, "-p", 0)
    assert (row["kind"], row["start_offset"], row["end_offset"]) == ("epoch", 0, 1)
    _, out, _ = shmlog("cluster", "epochs", shmlog_topic, "-p", 0)
    assert out == f"{row['leader_epoch']}\t0\t1\n"
    assert shmlog("cluster", "epochs", "nosuch", "-p", 0)[0] == 3


def test_the_log_tells_what_was_changed_by_name_even_of_what_is_gone(shmlog, shmlog_topic):
    shmlog("topic", "create", shmlog_topic, "--durability", "disk")
    shmlog("topic", "delete", shmlog_topic, "--yes")
    rows = documents(shmlog, "cluster", "log")
    assert [row["offset"] for row in rows] == list(range(len(rows)))
    first = rows[0]
    assert (first["kind"], first["record"], first["summary"][:8]) == (
        "metadata_record",
        "cluster",
        "cluster ",
    )
    mine = [row for row in rows if shmlog_topic in row["summary"]]
    assert [row["record"] for row in mine] == [
        "topic",
        "partition",
        "config",
        "partition",
        "remove_topic",
    ]
    assert mine[0]["data"]["partition_count"] == 1
    assert mine[1]["summary"].startswith(f"{shmlog_topic}-0: leader 0, epoch 1")
    assert mine[2]["summary"] == f"topic {shmlog_topic}: durability = disk"
    assert mine[3]["summary"].startswith(f"{shmlog_topic}-0: leader 0, epoch 1 from 0")
    assert mine[0]["data"]["topic_id"] == mine[-1]["data"]["topic_id"]
    last = documents(shmlog, "cluster", "log", "-o", -2)
    assert [row["offset"] for row in last] == [row["offset"] for row in rows[-2:]]
    some = documents(shmlog, "cluster", "log", "-o", 1, "-n", 2)
    assert [row["offset"] for row in some] == [1, 2]
    assert documents(shmlog, "cluster", "log", "-n", 0) == []
    _, out, _ = shmlog("cluster", "log", "-n", 1)
    assert out.split("\t")[4] == first["summary"] + "\n"


def test_a_long_log_comes_in_pieces(shmlog_cluster, shmlog_topic):
    with Admin(shmlog_cluster.dir) as admin:
        admin.create_topic(shmlog_topic, 20)
        seen, offset = [], 0
        while True:
            piece = admin.metadata_log(offset, 7)
            seen += [record.offset for record in piece.records]
            offset = piece.next_offset
            if offset >= piece.end_offset:
                break
        assert seen == list(range(piece.end_offset))
        beyond = admin.metadata_log(piece.end_offset + 5)
        assert (beyond.records, beyond.next_offset) == ([], piece.end_offset + 5)


# -- what one broker alone cannot show: the answers of others -------------------------------------


def partition(number: int, leader: int, isr: list[int]) -> PartitionInfo:
    return PartitionInfo(
        partition=number, leader=leader, leader_epoch=3, replicas=[0, 1, 2], isr=isr
    )


@pytest.fixture
def three_brokers(monkeypatch):
    """Partition 0 is led by another than its preferred leader, 1 as it should be, 2 by nobody;
    of partition 3 the preferred leader is not in sync."""
    topic = TopicInfo(
        topic="t",
        partitions=[
            partition(0, 1, [0, 1, 2]),
            partition(1, 0, [0, 1]),
            partition(2, -1, [2]),
            partition(3, 1, [1, 2]),
        ],
    )
    metadata = MetadataAnswer(
        id=1, cluster="c", controller=1, brokers=[], topics=[topic], metadata_offset=9
    )
    cluster = DescribeClusterAnswer(
        id=1,
        cluster="c",
        controller=1,
        controller_term=4,
        metadata_offset=9,
        voters=[0, 1, 2],
        brokers=[
            BrokerDescription(broker=0, incarnation=2, pid=7, alive=True, leaders=1, replicas=4),
            BrokerDescription(broker=1, incarnation=2, pid=8, alive=True, leaders=2, replicas=4),
            BrokerDescription(broker=2, incarnation=1, pid=9, fenced=True, reason="hung"),
            BrokerDescription(broker=3),
        ],
        partitions_without_leader=1,
        partitions_under_minimum=1,
        partitions_not_full=3,
    )
    elected = []
    monkeypatch.setattr(Admin, "metadata", lambda self, topics=None: metadata)
    monkeypatch.setattr(Admin, "describe_cluster", lambda self: cluster)
    monkeypatch.setattr(Admin, "elect", lambda self, *tp: elected.append(tp) or True)
    return elected


def test_rebalance_moves_what_can_be_moved_and_names_what_is_left(shmlog, three_brokers):
    status, out, err = shmlog("cluster", "rebalance")
    assert (status, out) == (6, "")
    assert err.splitlines() == [
        "1 partition moved",
        "t-2: left alone, its preferred leader is not in sync",
        "t-3: left alone, its preferred leader is not in sync",
    ]
    assert three_brokers == [("t", 0)]


def test_status_warns_and_exits_5_where_a_leader_is_missing(shmlog, three_brokers):
    status, out, err = shmlog("status", "--json")
    assert status == 5
    assert err == "warning: 1 partition under min_insync_replicas: acks=all is refused\n"
    found = json.loads(out)
    assert (found["leaderless"], found["under_minimum"], found["not_full"]) == (["t-2"], 1, 3)
    marks = [(b["broker"], b["leaders"], b["controller"], b["fenced"]) for b in found["brokers"]]
    assert marks[:3] == [(0, 1, False, False), (1, 2, True, False), (2, 0, False, True)]
    _, out, _ = shmlog("status")
    rows = [line.split("\t") for line in out.splitlines()]
    assert [row[1] for row in rows] == ["ready", "stopped", "fenced", "stopped"]
    assert [row[6] for row in rows] == ["-", "controller", "-", "-"]


def test_info_says_why_a_broker_is_fenced_and_who_never_came(shmlog, three_brokers):
    _, out, _ = shmlog("cluster", "info")
    rows = [line.split("\t") for line in out.splitlines()]
    assert [row[1] for row in rows] == ["alive", "alive", "fenced: hung", "unknown"]
    assert [row[6] for row in rows] == ["voter", "controller", "voter", "observer"]
    assert rows[3][2] == "-"


def test_rebalance_of_python_says_the_same(shmlog_cluster, three_brokers):
    with Admin(shmlog_cluster.dir) as admin:
        assert admin.rebalance() == {
            TopicPartition("t", 0): True,
            TopicPartition("t", 2): False,
            TopicPartition("t", 3): False,
        }


def test_an_unknown_partition_of_a_known_topic_is_said_so(shmlog_cluster, shmlog_topic):
    with Admin(shmlog_cluster.dir) as admin:
        admin.create_topic(shmlog_topic)
        with pytest.raises(UnknownTopic, match="partition 1"):
            admin.epochs(shmlog_topic, 1)
