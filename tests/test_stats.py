"""The stats page: layout, one writer, what survives whom."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

import shmlog
from shmlog import directory, stats
from shmlog.cli.main import execute
from shmlog.errors import ClusterNotFound, VersionMismatch
from shmlog.ring import posix
from shmlog.ring.memory import HeapMemory
from shmlog.testing.cluster import LocalCluster


def test_what_is_written_is_read(monkeypatch):
    identity = stats.Identity("c", 2, 7)
    memory = HeapMemory(stats.SIZE)
    writer = stats.PageWriter(memory, identity, pid=11, started_ns=12)
    values = [(1 << 60) + i for i in range(len(stats.NAMES))]
    turns = list(range(stats.TURN_BUCKETS))
    writer.write(values, turns, 99)
    monkeypatch.setattr(posix, "attach", lambda name: memory)
    page = stats.read(identity)
    assert page == stats.Stats(
        identity, 11, 12, 99, dict(zip(stats.NAMES, values, strict=True)), tuple(turns)
    )
    memory.buffer[4] = 2  # another layout
    with pytest.raises(VersionMismatch):
        stats.read(identity)


def test_the_page_has_room_and_names_differ():
    assert 192 + 8 * stats.SLOTS <= stats.SIZE
    names = {stats.page_name(stats.Identity("c", b, i)) for b in range(3) for i in range(3)}
    assert len(names) == 9


@pytest.mark.parametrize(
    ("ns", "bucket"), [(0, 0), (999, 0), (1000, 0), (1500, 1), (2000, 2), (1 << 62, 63)]
)
def test_buckets_double_every_second_one(ns, bucket):
    assert stats.bucket_of(ns) == bucket


def test_a_quantile_is_the_upper_end_of_its_bucket():
    counts = [0] * stats.TURN_BUCKETS
    assert stats.quantile_us(counts, 0.5) == 0
    counts[4], counts[10] = 98, 2
    assert stats.quantile_us(counts, 0.5) == 2**2.5
    assert stats.quantile_us(counts, 0.99) == 2**5.5


def test_all_counters_are_explained():
    text = (Path(__file__).parents[1] / "docs" / "operations.md").read_text()
    for name, meaning in stats.MEANINGS.items():
        assert f"| `{name}` | {meaning} |" in text


@pytest.mark.process
def test_a_broker_counts_and_its_page_goes_with_it(capsys):
    with LocalCluster() as cluster:
        with cluster.client() as log:
            log.admin.create_topic("t", 1)
            log.produce("t", b"one")
            log.produce("t", b"two")
            with log.consumer("t", stop="latest", ring=False) as consumer:
                assert len(list(consumer)) == 2
            with pytest.raises(shmlog.errors.UnknownTopic):
                log.admin.describe_topic("nosuch")
        entry = directory.read_brokers(cluster.dir)[0]
        identity = stats.Identity(entry.cluster, 0, entry.incarnation)

        def counted() -> bool:
            seen = stats.read(identity).values
            return seen["records_in"] == 2 and seen["errors"] >= 1

        _until(counted)
        values = stats.read(identity).values
        assert values["batches_in"] == 2
        assert values["bytes_in"] > 0
        assert values["bytes_out"] > 0
        assert values["turns"] >= values["requests"] / 256
        assert values["partitions"] == values["leaders"] == 1
        assert execute(["-d", str(cluster.dir), "stats", "0", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)[0]["records_in"] == 2
        assert execute(["-d", str(cluster.dir), "stats", "5"]) == 5
        cluster.kill(0)
        cluster.wait_ready()
        with pytest.raises(ClusterNotFound):
            stats.read(identity)


def _until(reached) -> None:
    deadline = time.monotonic() + 20
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.02)
