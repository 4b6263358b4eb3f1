"""Processes that read in groups: `python -m perf.child NAME`, see perf/groups.py and perf/rebalances.py."""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from shmlog import process
from shmlog.client.consumer import Consumer
from shmlog.client.producer import Producer
from shmlog.errors import PartitionMoved
from shmlog.ids import TopicPartition


def _say(**fields: Any) -> None:
    print(json.dumps(fields), flush=True)


def read_all(where: str, topic: str, group: str) -> None:
    """Everything, as the only member of a group: counts, and a checksum of each partition in its order."""
    sums: dict[int, int] = {}
    ends: dict[int, int] = {}
    in_order = True
    with Consumer(topic, where=where, group=group, stop="latest") as consumer:
        _say(ready=True)
        sys.stdin.readline()
        cpu, began = process.cpu_seconds(), time.monotonic_ns()
        for batch in consumer.batches():
            partition = batch.partition
            in_order &= batch.base_offset == ends.get(partition, 0)
            ends[partition] = batch.end_offset
            for value in batch.raw_values:
                sums[partition] = zlib.crc32(value or b"", sums.get(partition, 0))
        seconds = (time.monotonic_ns() - began) / 1e9
    sums = dict(sorted(sums.items()))
    _say(
        seconds=seconds, records=sum(ends.values()), in_order=in_order,
        sums=list(sums.values()), cpu_seconds=process.cpu_seconds() - cpu,
    )  # fmt: skip


def follow(where: str, topic: str, group: str | None) -> None:
    """What comes from now on, by ring, until nothing comes; in a group of its own, or in none."""
    records = 0
    policy = "start" if group is None else "reset"
    with Consumer(topic, where=where, group=group, **{policy: "latest"}) as consumer:
        for _ in consumer.batches(timeout=0.05):
            if consumer.assignment:
                break  # and it knows where its partitions end
        _say(ready=True)
        for batch in consumer.batches(timeout=0.2):
            records += len(batch)
            if not len(batch) and records:
                break
    _say(records=records)


def pour(where: str, topic: str, partitions: int, rate: int, seconds: float, size: int) -> None:
    """Records at a steady rate, 100 slices a second, spread over the partitions."""
    slice_count = max(1, rate // 100)
    values = [bytes(size)] * slice_count
    with Producer(where=where) as producer:
        _say(ready=True)
        sys.stdin.readline()
        began = time.monotonic()
        for number in range(int(seconds * 100)):
            producer.send_many(topic, values, partition=number % partitions)
            time.sleep(max(0.0, began + (number + 1) / 100 - time.monotonic()))
        producer.flush()
        _say(seconds=time.monotonic() - began)


def tell(where: str, topic: str, group: str) -> None:
    """A member that tells when the first record of each partition that it gets has come."""
    fresh: set[int] = set()

    def assigned(partitions: Sequence[TopicPartition]) -> None:
        fresh.update(tp.partition for tp in partitions)

    with Consumer(topic, where=where, group=group, reset="latest", on_assign=assigned) as consumer:
        for batch in consumer.batches():
            if batch.partition in fresh:
                fresh.discard(batch.partition)
                _say(first=batch.partition, at_ns=time.monotonic_ns())


def mean_and_tail(values: list[float]) -> dict[str, float]:
    """p50, p90 and the largest."""
    p50, p90, most = np.percentile(values, (50, 90, 100))
    return {"p50 ms": float(p50), "p90 ms": float(p90), "max ms": float(most)}


def count_up(where: str, topic: str, partitions: int, rate: int) -> None:
    """Until told to stop: the numbers from 0 on to each partition, as their offsets are; 100 slices a second."""
    count = max(1, rate // 100)
    ends = [0] * partitions
    with Producer(where=where) as producer:
        _say(ready=True)
        turn = 0
        began = time.monotonic()
        while not select.select([sys.stdin], [], [], 0)[0]:
            partition = turn % partitions
            base = ends[partition]
            ends[partition] = base + count
            values = [b"%d" % number for number in range(base, base + count)]
            producer.send_many(topic, values, partition=partition)
            turn += 1
            time.sleep(max(0.0, began + turn / 100 - time.monotonic()))
        producer.flush()
    _say(ends=ends)


class _Diary:
    """A file that holds what happened, even when its writer is killed (perf/ownership.py)."""

    def __init__(self, file: str) -> None:
        self._fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def note(self, what: str, *numbers: int) -> None:
        """One line."""
        line = " ".join(map(str, (time.monotonic_ns(), what, *numbers)))
        os.write(self._fd, line.encode() + b"\n")

    def assigned(self, partitions: Sequence[TopicPartition]) -> None:
        """`on_assign`."""
        for tp in partitions:
            self.note("assigned", tp.partition)

    def revoked(self, partitions: Sequence[TopicPartition], lost: bool) -> None:
        """`on_revoke`."""
        for tp in partitions:
            self.note("lost" if lost else "revoked", tp.partition)


def work(where: str, topic: str, group: str, commit: str, diary: str) -> None:
    """A member. SIGTERM: it leaves. SIGUSR1: the next batch takes it 3 seconds."""
    leaving, slow = [], []
    signal.signal(signal.SIGTERM, lambda *_: leaving.append(True))
    signal.signal(signal.SIGUSR1, lambda *_: slow.append(True))
    book = _Diary(diary)
    options: dict[str, Any] = {"on_assign": book.assigned, "on_revoke": book.revoked}
    with Consumer(topic, where=where, group=group, commit=commit, **options) as consumer:
        for batch in consumer.batches(timeout=0.05):
            if leaving:
                break
            if not len(batch):
                continue
            place = (batch.partition, batch.base_offset, batch.end_offset)
            book.note("took", *place)
            for number, value in enumerate(batch.raw_values, batch.base_offset):
                if value != b"%d" % number:
                    book.note("wrong", batch.partition, number)
            if slow:
                slow.clear()
                time.sleep(3)
            book.note("worked", *place)
            if commit == "manual":
                try:
                    consumer.commit(batch)
                except PartitionMoved:
                    book.note("refused", batch.partition)
                else:
                    book.note("committed", batch.partition, batch.end_offset)
    book.note("left")
