"""Compaction in real brokers: under load, with leaders killed at random moments; and the child process that does it."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import log_support as ls
import pytest
from cleaning_support import put, records

import shmlog
from node.compactor import BrokerGone, Throttle
from node.io.compactor import ChildCompactor
from shmlog import directory, process
from shmlog.clock import NS_PER_S, SYSTEM_CLOCK, ManualClock, sleep
from shmlog.log.cleaning_task import CleaningTask
from shmlog.log.os_storage import OsStorage
from shmlog.log.verify import verify
from shmlog.testing.cluster import LocalCluster

PATIENCE_S = 60
SETTINGS = {
    "cleanup_policy": "compact",
    "segment_bytes": 65536,
    "min_cleanable_dirty_ratio": 0.05,
    "delete_retention": 300,
}


def until(test: Callable[[], bool], what: str) -> None:
    deadline_ns = SYSTEM_CLOCK.monotonic_ns() + PATIENCE_S * NS_PER_S
    while not test():
        assert SYSTEM_CLOCK.monotonic_ns() < deadline_ns, what
        sleep(0.02)


def read(cluster: LocalCluster) -> list[tuple[int, bytes, bytes | None]]:
    """(offset, key, value) of what a reader without the ring gets."""
    with shmlog.Consumer("table", where=cluster.dir, stop="latest", ring=False) as consumer:
        return [(record.offset, record.key, record.value) for record in consumer]


class Writer(threading.Thread):
    """Puts and deletes a few keys as fast as it goes; `told` is where each ended up."""

    def __init__(self, cluster: LocalCluster, seed: int) -> None:
        super().__init__(daemon=True)
        self._where = cluster.dir
        self._rng = random.Random(seed)
        self.enough = threading.Event()
        self.written: dict[int, tuple[bytes, bytes | None]] = {}
        self.failure: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            with shmlog.Producer(where=self._where, batch_bytes=8192) as producer:
                number = 0
                while not self.enough.is_set():
                    sent = []
                    for _ in range(200):
                        key = b"k%d" % self._rng.randrange(40)
                        value = None if self._rng.random() < 0.1 else b"%d" % number + b"." * 90
                        sent.append((producer.send("table", value, key=key), key, value))
                        number += 1
                    producer.flush()
                    for delivery, key, value in sent:
                        self.written[delivery.result().offset] = (key, value)
        except BaseException as error:
            self.failure = error
            raise


@pytest.mark.process
def test_three_brokers_compact_under_load_while_leaders_are_killed() -> None:
    rng = random.Random(11)
    with LocalCluster(brokers=3) as cluster:
        with shmlog.Admin(cluster.dir) as admin:
            admin.create_topic("table", 1, replication_factor=3, configs=SETTINGS)
        cluster.wait_isr("table")
        writer = Writer(cluster, 5)
        for _ in range(5):
            grown = len(writer.written) + rng.randrange(2000, 8000)
            until(lambda grown=grown: len(writer.written) > grown or not writer.is_alive(), "load")
            assert writer.failure is None
            cluster.kill(cluster.wait_leader("table", 0))
            cluster.wait_ready()
            found = read(cluster)
            offsets = [offset for offset, _, _ in found]
            assert offsets == sorted(set(offsets))
        writer.enough.set()
        writer.join(PATIENCE_S)
        assert not writer.is_alive()
        assert writer.failure is None
        cluster.wait_isr("table")
        written = writer.written
        assert sorted(written) == list(range(len(written)))
        until(lambda: len(read(cluster)) < 1500, "the compaction of what was written")
        expected = dict(written[offset] for offset in sorted(written))
        led: set[int] = set()
        while len(led) < 2:  # each compacts for itself; the simulation looks at all three
            led.add(cluster.wait_leader("table", 0))
            cluster.kill(cluster.wait_leader("table", 0))
            cluster.wait_ready()
            cluster.wait_isr("table")
            found = read(cluster)
            assert all(written[offset] == (key, value) for offset, key, value in found)
            table = {key: value for _, key, value in found if value is not None}
            for _, key, value in found:
                if (
                    value is None
                    and written[max(o for o, w in written.items() if w[0] == key)][1] is None
                ):
                    table.pop(key, None)
            assert {key: table.get(key) for key in expected} == expected
        with shmlog.Admin(cluster.dir) as admin:
            assert admin.describe_topic("table") is not None
        data_dirs = directory.load_cluster(cluster.dir).data_dirs
        for broker in range(3):
            os.kill(cluster.pids[broker], 0)
        places = [str(place / "table-0") for place in data_dirs.values()]
        compactors = [p for pid in cluster.pids.values() for p in process.children(pid)]
        assert compactors
        for pid in compactors:
            assert os.getpriority(os.PRIO_PROCESS, pid) == 19
            held = {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in _descriptors(pid)}
            assert not [path for path in held if "lock" in path or "socket" in path]
        cluster.kill(0)
        for place in places:
            assert verify(OsStorage(), place).damage == []
    for pid in compactors:
        until(lambda pid=pid: not process.is_alive(pid), "a compactor outlived its broker")


def _descriptors(pid: int) -> list[str]:
    return [fd for fd in os.listdir(f"/proc/{pid}/fd") if os.path.lexists(f"/proc/{pid}/fd/{fd}")]


# -- the child alone ------------------------------------------------------------------------------------


def task_of(tmp_path: Path) -> tuple[CleaningTask, int]:
    """A pass over a log on this disk; how many records there are."""
    storage = OsStorage()
    place = f"{tmp_path}/data/events-3"
    os.makedirs(f"{tmp_path}/data")
    config = ls.config(cleanup_policy="compact", min_cleanable_dirty_ratio=0.0)
    log = ls.open_log(storage, place, config=config)
    for number in range(60):
        put(log, (b"a", b"%d" % number * 30), (b"b", b"v"))
    ls.sync(log)
    from shmlog.log.cleaning import plan

    due = plan(
        log.swaps.facts(),
        log.compaction,
        config,
        safe_end=log.log_end_offset,
        tombstones_end=0,
        now_ns=0,
    )
    assert due is not None
    task = log.cleaning_task(due)
    count = len(records(log))
    log.close_files()
    return task, count


def test_a_pass_is_made_by_a_child_that_is_started_when_it_is_needed(tmp_path: Path) -> None:
    task, _ = task_of(tmp_path)
    compactor = ChildCompactor()
    others = process.children(os.getpid())  # of other tests, such as a server of fork
    assert _my_children(others) == []
    result = compactor.run(task)
    assert result.error == ""
    assert result.records_after < result.records_before
    assert result.made
    (child,) = _my_children(others)
    assert compactor.run(task).made == result.made
    assert _my_children(others) == [child]
    os.kill(child, signal.SIGKILL)
    until(lambda: not process.is_alive(child), "the child is killed")
    assert "status -9" in compactor.run(task).error
    assert compactor.run(task).made == result.made
    compactor.close()
    assert compactor.run(task).error
    until(lambda: _my_children(others) == [], "the child ends")


def _my_children(others: list[int]) -> list[int]:
    return [pid for pid in process.children(os.getpid()) if pid not in others]


def test_what_a_pass_cannot_do_is_its_answer(tmp_path: Path) -> None:
    task, _ = task_of(tmp_path)
    os.unlink(f"{task.directory}/{0:020d}.log")
    compactor = ChildCompactor()
    assert "FileNotFoundError" in compactor.run(task).error
    compactor.close()
    compactor.run(task)


def test_a_child_ends_with_its_broker(tmp_path: Path) -> None:
    program = (
        "import os, sys, msgspec\n"
        "from node.io.compactor import ChildCompactor\n"
        "from shmlog.log.cleaning_task import CleaningTask\n"
        "c = ChildCompactor(); c.run(msgspec.msgpack.decode(sys.stdin.buffer.read(), type=CleaningTask))\n"
        "print(c._process.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    import msgspec

    task, _ = task_of(tmp_path)
    done = subprocess.run(
        ["python", "-c", program],
        input=msgspec.msgpack.encode(task),
        capture_output=True,
        check=False,
    )
    child = int(done.stdout)
    until(lambda: not process.is_alive(child), "the child outlived its broker")


def test_the_throttle_lets_through_no_more_than_its_rate() -> None:
    clock = ManualClock()
    waited: list[float] = []

    def wait(seconds: float) -> bool:
        waited.append(seconds)
        clock.advance(int(seconds * NS_PER_S))
        return len(waited) > 100

    throttle = Throttle(clock, wait, rate=1000)
    for _ in range(50):
        throttle(100)
    assert 4.9 <= clock.monotonic_ns() / NS_PER_S <= 5.0
    with pytest.raises(BrokerGone):
        for _ in range(100):
            throttle(100)
