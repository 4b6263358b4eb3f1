"""`shmlog consume -g` and `shmlog group` against a real broker."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import pytest

import shmlog as library
from shmlog.cli.main import execute

pytestmark = pytest.mark.process
COMMAND = [sys.executable, "-c", "from shmlog.cli.main import run; run()"]


@pytest.fixture
def shmlog(shmlog_cluster, capfd):
    """Runs a command line in this process: (exit status, stdout, stderr)."""

    def run(*arguments):
        status = execute(["-d", str(shmlog_cluster.dir), *map(str, arguments)])
        out, err = capfd.readouterr()
        return status, out, err

    return run


@pytest.fixture
def topic(shmlog_topic, shmlog_cluster):
    """Two partitions of ten records."""
    with library.connect(shmlog_cluster.dir) as client, client.producer() as producer:
        client.admin.create_topic(shmlog_topic, 2)
        for number in range(20):
            producer.send(shmlog_topic, b"%d" % (number // 2), partition=number % 2)
    return shmlog_topic


def lags(shmlog, group):
    status, out, _ = shmlog("group", "describe", group, "--json")
    assert status == 0
    found = json.loads(out)
    assert (found["kind"], found["v"], found["group"]) == ("group", 1, group)
    return {p["partition"]: p["lag"] for p in found["partitions"]}


def test_a_group_reads_once_and_goes_on(shmlog, topic):
    read = ("consume", topic, "-g", topic, "-e", "-f", "%p %o\\n")
    status, out, _ = shmlog(*read)
    assert status == 0
    assert sorted(out.split("\n")[:-1]) == sorted(f"{p} {o}" for p in (0, 1) for o in range(10))
    assert lags(shmlog, topic) == {0: 0, 1: 0}
    assert shmlog(*read)[:2] == (0, "")


def test_what_n_does_not_show_is_not_committed(shmlog, topic):
    first = shmlog("consume", topic, "-g", topic, "-n", 3, "-f", "%p %o\\n")[1].split("\n")[:-1]
    assert sum(lags(shmlog, topic).values()) == 17 or len(lags(shmlog, topic)) == 1
    rest = shmlog("consume", topic, "-g", topic, "-e", "-f", "%p %o\\n")[1].split("\n")[:-1]
    assert (len(first), len(rest), len({*first, *rest})) == (3, 17, 20)


def test_ctrl_c_commits_and_leaves(shmlog, topic, shmlog_cluster):
    process = subprocess.Popen(
        [*COMMAND, "-d", shmlog_cluster.dir, "consume", f"{topic}*", "-g", topic],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with process:
        for _ in range(20):
            assert process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
        assert process.stderr.read().strip() == b""
    _, out, _ = shmlog("group", "describe", topic, "--json")
    found = json.loads(out)
    assert (found["state"], found["members"]) == ("empty", [])
    assert sum(p["lag"] for p in found["partitions"]) == 0


def test_a_killed_member_s_partitions_go_to_the_living_at_once(topic, shmlog_cluster):
    command = [*COMMAND, "-d", shmlog_cluster.dir, "consume", topic, "-g", topic]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline()
        process.kill()
    with library.Consumer(topic, where=shmlog_cluster.dir, group=topic) as consumer:
        waiting = consumer.batches(timeout=0.05)
        while len(consumer.assignment) < 2:  # far below the session's 45 s, or the test times out
            next(waiting)


def test_groups_are_listed_and_described_in_each_output(shmlog, topic, shmlog_cluster):
    with library.Consumer(topic, where=shmlog_cluster.dir, group=topic) as consumer:
        next(consumer.batches())
        status, out, _ = shmlog("group", "describe", topic, "--output", "table")
        assert status == 0
        head, *lines = out.splitlines()
        assert head.startswith(f"{topic}  stable  1 member  lag ")
        assert any("10*" in line.split() for line in lines)
        _, out, _ = shmlog("group", "list")
        assert [topic, "stable", "1"] in [line.split("\t")[:3] for line in out.splitlines()]
        assert shmlog("group", "reset", topic, "--to", "latest", "--yes")[0] == 1  # it has members
        assert shmlog("group", "delete", topic, "--yes")[0] == 1
        consumer.commit()
    rows = json.loads(shmlog("group", "list", "--json")[1])
    assert {"kind": "group", "v": 1, "group": topic}.items() <= next(
        row for row in rows if row["group"] == topic
    ).items()


def test_reset_shows_first_and_sets_with_yes(shmlog, topic):
    shmlog("consume", topic, "-g", topic, "-e")
    status, out, err = shmlog("group", "reset", topic, "--to", "earliest", "--dry-run")
    assert (status, out) == (0, f"{topic}\t0\t10\t0\n{topic}\t1\t10\t0\n")
    assert "nothing was changed" in err
    assert lags(shmlog, topic) == {0: 0, 1: 0}
    status, out, err = shmlog("group", "reset", topic, "--to", "earliest")
    assert (status, out) == (2, "")
    assert "--yes" in err
    assert shmlog("group", "reset", topic, "--to", 4, "--yes")[0] == 0
    assert lags(shmlog, topic) == {0: 6, 1: 6}
    assert shmlog("group", "reset", topic, "--shift", -2, "--yes", "-q")[2] == ""
    assert lags(shmlog, topic) == {0: 8, 1: 8}
    assert shmlog("group", "reset", topic, "--shift", 1000, "--yes")[0] == 0  # to what is there
    assert lags(shmlog, topic) == {0: 0, 1: 0}
    assert shmlog("group", "reset", topic, "--to", "@-1h", "--yes")[0] == 0
    assert lags(shmlog, topic) == {0: 10, 1: 10}
    assert shmlog("group", "reset", topic)[0] == 2
    assert shmlog("group", "reset", "nobody", "--to", "latest", "--yes")[0] == 3


def test_delete_forgets_the_group(shmlog, topic):
    shmlog("consume", topic, "-g", topic, "-e")
    status, _, err = shmlog("group", "delete", topic, "--dry-run")
    assert status == 0
    assert "(2 offsets) would be forgotten" in err
    assert shmlog("group", "delete", topic)[0] == 2
    assert shmlog("group", "delete", topic, "--yes")[0] == 0
    assert shmlog("group", "describe", topic)[0] == 3


def test_a_range_is_no_place_where_a_group_begins(shmlog, topic):
    status, _, err = shmlog("consume", topic, "-g", topic, "-o", "1:3")
    assert status == 2
    assert "one position" in err
