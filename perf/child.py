"""The processes that make load and read: `python -m perf.child NAME`, driven by perf.harness."""

from __future__ import annotations

import json
import os
import select
import struct
import sys
import tempfile
import time
from typing import Any

import numpy as np

from perf.histogram import Histogram
from perf.members import count_up, follow, pour, read_all, tell, work
from perf.writers import write_bare, write_python
from shmlog import process
from shmlog.client.consumer import Consumer
from shmlog.client.producer import Producer

_STAMP = struct.Struct("<qq")  # sequence, intended time (CLOCK_MONOTONIC, ns)


def _say(**fields: Any) -> None:
    print(json.dumps(fields), flush=True)


def _wait_for_go() -> None:
    sys.stdin.readline()


def _values(count: int, size: int) -> list[bytes]:
    """Records that begin with their number; the rest is random, as incompressible as it gets."""
    noise = np.random.default_rng(7).bytes(size * 64)
    return [i.to_bytes(8, "little") + noise[i % 64 * 7 :][: size - 8] for i in range(count)]


def produce(
    where: str,
    topic: str,
    count: int,
    size: int,
    api: str,
    options: dict[str, Any],
    partition: int = 0,
) -> None:
    """As many records as possible: by `send_many` in slices of 10,000, one by one, or as arrays."""
    slice_count = 10_000
    values = _values(slice_count, size)
    array = np.frombuffer(b"".join(values), f"V{size}")
    with Producer(where=where, **options) as producer:
        for _ in range(3):
            producer.send_many(topic, values, partition=partition)
        producer.flush()
        _say(ready=True)
        _wait_for_go()
        cpu_before = process.cpu_seconds()
        began = time.monotonic_ns()
        for _ in range(count // slice_count):
            if api == "send_many":
                producer.send_many(topic, values, partition=partition)
            elif api == "send_array":
                producer.send_array(topic, array, partition=partition)
            else:
                send = producer.send
                for value in values:
                    send(topic, value)
        producer.flush()
        ended = time.monotonic_ns()
        _say(seconds=(ended - began) / 1e9, cpu_seconds=process.cpu_seconds() - cpu_before)


def consume(where: str, topic: str, count: int, ring: bool, view: str, follow: bool) -> None:
    """Read `count` records of one partition: as `bytes`, as batches only, or as Record objects."""
    seen = nbytes = 0
    with Consumer(topic, where=where, partitions=[0], start="earliest", ring=ring) as consumer:
        _say(ready=True)
        _wait_for_go()
        cpu_before = process.cpu_seconds()
        began = time.monotonic_ns()
        if view == "records":
            for record in consumer:
                nbytes += len(record.value)
                seen += 1
                if seen >= count:
                    break
        else:
            for batch in consumer.batches(timeout=10.0):
                if not len(batch):
                    break
                if view == "bytes":
                    for value in batch.values:
                        nbytes += len(value)
                seen += len(batch)
                if seen >= count:
                    break
        ended = time.monotonic_ns()
    _say(
        seconds=(ended - began) / 1e9, records=seen, cpu_seconds=process.cpu_seconds() - cpu_before
    )


def verify(where: str, topic: str, count: int, slice_count: int, partition: int = 0) -> None:
    """Read everything back by fetch: every number once, in order."""
    seen = 0
    with Consumer(
        topic,
        where=where,
        partitions=[partition],
        start="earliest",
        stop="latest",
        ring=False,
    ) as consumer:
        for batch in consumer.batches():
            firsts = [int.from_bytes(value[:8], "little") for value in batch.values]
            expected = [(batch.base_offset + i) % slice_count for i in range(len(firsts))]
            if firsts != expected:
                _say(ok=False, records=seen, at=batch.base_offset)
                return
            seen += len(firsts)
    _say(ok=seen == count, records=seen)


def generate(
    where: str, topic: str, rate: int, count: int, size: int, options: dict[str, Any]
) -> None:
    """Open loop: record i is due at t0 + i / rate; what is due is sent, late or not."""
    process.set_timer_slack(1)
    lateness = np.zeros(count, np.int64)
    filler = os.urandom(size - _STAMP.size)
    with Producer(where=where, **options) as producer:
        producer.produce(topic, _STAMP.pack(-1, 0) + filler)
        _say(ready=True)
        _wait_for_go()
        start = time.monotonic_ns() + 50_000_000
        for i in range(count):
            due = start + i * 1_000_000_000 // rate
            left = due - time.monotonic_ns()
            if left > 0:
                time.sleep(left / 1e9)
            lateness[i] = time.monotonic_ns() - due
            producer.send(topic, _STAMP.pack(i, due) + filler)
        producer.flush()
    late = Histogram()
    late.add(lateness)
    _say(lateness_us=late.summary_us())


def receive(where: str, topic: str, count: int, ring: bool, skip: int) -> None:
    """One-way latency of each record from its intended time; the first `skip` are warm-up."""
    process.set_timer_slack(1)
    histogram = Histogram()
    expected = 0
    with Consumer(topic, where=where, start="latest", ring=ring) as consumer:
        _say(ready=True)
        latencies = []
        for batch in consumer.batches(timeout=20.0):
            now = time.monotonic_ns()
            if not len(batch):
                break
            for value in batch.values:
                number, due = _STAMP.unpack_from(value)
                if number < 0:
                    continue
                if number != expected:
                    _say(ok=False, at=number, expected=expected)
                    return
                expected += 1
                if number >= skip:
                    latencies.append(now - due)
            if expected >= count:
                break
    histogram.add(np.array(latencies, np.int64))
    _say(ok=expected == count, latency_us=histogram.summary_us())


def press(where: str, size: int) -> None:
    """Overwrite one file from end to end, again and again, until told to stop; `slow`: writes of over 5 ms."""
    piece = os.urandom(1 << 20)
    places = max(1, size // len(piece))
    with tempfile.TemporaryFile(dir=where) as file:
        _say(ready=True)
        _wait_for_go()
        began = time.monotonic()
        written = slow = 0
        while not select.select([sys.stdin], [], [], 0)[0]:
            before = time.monotonic()
            os.pwrite(file.fileno(), piece, written % places * len(piece))
            slow += time.monotonic() - before > 0.005
            written += 1
        seconds = time.monotonic() - began
    _say(bytes=written * len(piece), seconds=seconds, slow=slow)


_TASKS: dict[str, Any] = {
    f.__name__: f
    for f in (
        produce,
        consume,
        verify,
        generate,
        receive,
        press,
        write_python,
        write_bare,
        read_all,
        follow,
        pour,
        tell,
        count_up,
        work,
    )
}

if __name__ == "__main__":
    _TASKS[sys.argv[1]](**json.loads(sys.stdin.readline()))
