"""Consumer groups: many over one topic, what readers cost a broker, and how long it takes to come and to go.

fan-out    10 groups read the same 8 partitions at once, all of it: each gets everything, once, in order (checked)
readers    the broker's CPU while records come at a steady rate, and 0 to 10 local readers follow by ring; in groups too
join       a new group: from the constructor's call to its first record
death      kill -9 of one of two members: until the other one has the first record of any, and of every, partition of it
"""

from __future__ import annotations

import argparse
import contextlib
import threading
import time
from typing import Any

from perf.harness import Child, Cluster, cluster, create_topic
from perf.members import mean_and_tail
from shmlog.client.consumer import Consumer

PARTITIONS, GROUPS = 8, 10
RATE = 100_000
_PATIENCE_S = 30


def groups(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """All four."""
    rows = []
    for brokers in arguments.brokers:
        with cluster(brokers, ring_bytes="64MiB") as made:
            some = [
                *_fan_out(made, arguments),
                *_readers(made, arguments),
                _joins(made, arguments),
                *_deaths(made, arguments),
            ]
        rows += [{"brokers": brokers, **row} for row in some]
        rows.append({"brokers": brokers, "what": "longest turn", **made.longest_turn()})
    return rows


def _pour(made: Cluster, topic: str, rate: int, seconds: float, size: int) -> Child:
    child = Child(
        "pour", where=str(made.dir), topic=topic, partitions=PARTITIONS, rate=rate,
        seconds=seconds, size=size,
    )  # fmt: skip
    child.line()
    child.go()
    return child


def _fan_out(made: Cluster, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    create_topic(made, "all", PARTITIONS)
    seconds = max(1.0, 20 * arguments.scale)
    poured = _pour(made, "all", RATE, seconds, arguments.size)
    poured.line()
    poured.end()
    readers = [
        Child("read_all", where=str(made.dir), topic="all", group=f"g{n}") for n in range(GROUPS)
    ]
    for reader in readers:
        reader.line()
    before = sum(made.cpu().values())
    for reader in readers:
        reader.go()
    found = [reader.line() for reader in readers]
    for reader in readers:
        reader.end()
    spent = sum(made.cpu().values()) - before
    count = int(seconds * 100) * (RATE // 100)
    complete = all(f["records"] == count and f["in_order"] for f in found)
    same = len({tuple(f["sums"]) for f in found}) == 1
    slowest = max(f["seconds"] for f in found)
    return [
        {
            "what": f"fan-out {GROUPS} groups", "records": count, "each got all, in order": complete and same,
            "records/s in all": GROUPS * count / slowest, "records/s a group": count / slowest,
            "cpu s readers": sum(f["cpu_seconds"] for f in found), "cpu s brokers": spent,
        }
    ]  # fmt: skip


def _readers(made: Cluster, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    seconds = max(1.0, 10 * arguments.scale)
    topic = "readers"
    create_topic(made, topic, PARTITIONS)
    warm = _pour(
        made, topic, RATE, 2, arguments.size
    )  # making the rings costs the broker more than all that follows
    warm.line()
    warm.end()
    for in_groups in (False, True):
        for count in (0, 1, 2, 5, 10):
            names = [f"r{count}-{n}" if in_groups else None for n in range(count)]
            readers = [Child("follow", where=str(made.dir), topic=topic, group=n) for n in names]
            for reader in readers:
                reader.line()
            before, began = sum(made.cpu().values()), time.monotonic()
            poured = _pour(made, topic, RATE, seconds, arguments.size)
            poured.line()
            cpu = (sum(made.cpu().values()) - before) / (time.monotonic() - began)
            poured.end()
            seen = [reader.line()["records"] for reader in readers]
            for reader in readers:
                reader.end()
            wanted = int(seconds * 100) * (RATE // 100)
            rows.append(
                {
                    "what": f"readers {'in groups' if in_groups else 'by ring'}", "readers": count,
                    "records/s": RATE, "brokers' cpu %": 100 * cpu, "each got all": set(seen) <= {wanted},
                }
            )  # fmt: skip
    return rows


def _joins(made: Cluster, arguments: argparse.Namespace) -> dict[str, Any]:
    times = []
    for number in range(max(3, int(30 * arguments.scale))):
        began = time.monotonic_ns()
        with Consumer("all", where=made.dir, group=f"join{number}") as consumer:
            next(iter(consumer.batches()))
            times.append((time.monotonic_ns() - began) / 1e6)
    return {"what": "first join to first record", "trials": len(times), **mean_and_tail(times)}


class _Told:
    """A member's process, and what it has told: when the first record of each partition that it got has come."""

    def __init__(self, made: Cluster, topic: str) -> None:
        self.child = Child("tell", where=str(made.dir), topic=topic, group="deaths")
        self.first: dict[int, int] = {}
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        with contextlib.suppress(RuntimeError):  # it has been killed
            while True:
                said = self.child.line()
                self.first[said["first"]] = said["at_ns"]

    def wait_for(self, count: int, since_ns: int) -> list[int]:
        """Until the first records of so many partitions have come since then; when they did, sorted."""
        deadline = time.monotonic() + _PATIENCE_S
        while len(found := [at for at in self.first.copy().values() if at >= since_ns]) < count:
            if time.monotonic() > deadline:
                raise SystemExit(
                    f"{count} partitions did not come in {_PATIENCE_S} s: {self.first}"
                )
            time.sleep(0.002)
        return sorted(found)


def _deaths(made: Cluster, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    create_topic(made, "deaths", PARTITIONS)
    trials = max(2, int(30 * arguments.scale))
    # More slices than trials take time: every partition has a record each 80 ms.
    children = [_pour(made, "deaths", 20_000, 600, arguments.size)]
    any_of, all_of = [], []
    survivor = _Told(made, "deaths")
    children.append(survivor.child)
    try:
        survivor.wait_for(PARTITIONS, 0)
        for _ in range(trials):
            victim = _Told(made, "deaths")
            children.append(victim.child)
            count = len(victim.wait_for(PARTITIONS // 2, 0))
            at_ns = time.monotonic_ns()
            victim.child.kill()
            moved = survivor.wait_for(count, at_ns)
            any_of.append((moved[0] - at_ns) / 1e6)
            all_of.append((moved[-1] - at_ns) / 1e6)
    finally:
        for child in children:
            child.kill()
    return [
        {"what": "death to first record of any", "trials": trials, **mean_and_tail(any_of)},
        {"what": "death to first record of all", "trials": trials, **mean_and_tail(all_of)},
    ]
