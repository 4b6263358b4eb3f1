"""What a client sees when the leader is killed or hangs: three brokers, three replicas, a minimum of two in sync.

For each of the two writers (perf/writers.py) a cluster of its own; for each trial the leader of the next partition is
killed (SIGKILL) or stopped (SIGSTOP; SIGCONT once all partitions ack again, after 20 s at the latest), or (a storm)
all brokers are killed, when everything is healthy.

silence    the longest time without an ack around the kill, of the partitions that the victim led
next ack   from the kill to the ack that ended it
death, controller, leading   from the kill to the first line in a broker's log that says so; the controller's
           only where the victim was it (0: nothing to elect)

Afterwards everything is read back: an acked record that is not at its offset is lost.
"""

from __future__ import annotations

import argparse
import os
import signal
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from perf import harness, timeline
from perf.harness import Child, Cluster, cluster, create_topic
from perf.writers import NUMBER
from shmlog.client.admin import Admin
from shmlog.client.consumer import Consumer

PARTITIONS = 3
RATE = 500
_BEFORE_NS = 200_000_000
_AFTER_S = 0.1
_SETTLE_S = 0.3
_PATIENCE_S = 60
_HANG_S = 20
_MS = 1e6


class Trial(NamedTuple):
    """One kill or hang."""

    kind: str
    victim: int
    was_controller: bool
    partitions: tuple[int, ...]
    at_ns: int  # CLOCK_MONOTONIC
    end_ns: int  # everything acks again
    wall_ns: int


class _Writer:
    """A writer process, and how far it is."""

    def __init__(self, name: str, made: Cluster, rate: int) -> None:
        self.name = name
        self._out = made.dir / f"{name}.npz"
        progress = made.dir / f"{name}.progress"
        progress.write_bytes(bytes(8 * PARTITIONS))
        self._counts = np.memmap(progress, np.int64, "r", shape=(PARTITIONS,))
        self._child = Child(
            f"write_{name}",
            where=str(made.dir),
            topic=name,
            partitions=PARTITIONS,
            rate=rate,
            progress=str(progress),
            out=str(self._out),
        )
        self._child.line()
        self._child.go()
        self.wait_moving()

    def is_moving(self, timeout_s: float) -> bool:
        """Does every partition ack 20 more records in time?"""
        wanted = np.array(self._counts) + 20
        deadline = time.monotonic() + timeout_s
        while (self._counts < wanted).any():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.002)
        return True

    def wait_moving(self) -> None:
        """Every partition acks 20 more records."""
        if not self.is_moving(_PATIENCE_S):
            raise SystemExit(f"the {self.name} writer is stuck at {self._counts} acks")

    def stop(self) -> tuple[list[NDArray[np.int64]], dict[str, Any]]:
        """The acks of each partition (number, offset, when), and what the writer said."""
        self._child.go()
        said = self._child.line()
        self._child.end()
        with np.load(self._out) as saved:
            return [saved[str(p)] for p in range(PARTITIONS)], said


def _wait_healthy(made: Cluster, admin: Admin, topic: str) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while set(made.pids) != set(made.brokers):
        if time.monotonic() > deadline:
            raise SystemExit(f"brokers {sorted(made.pids)} of {made.brokers}")
        time.sleep(0.01)
    harness.wait_in_sync(admin, topic, _PATIENCE_S)
    time.sleep(_SETTLE_S)


def _try(made: Cluster, admin: Admin, writer: _Writer, kind: str, number: int) -> Trial:
    _wait_healthy(made, admin, writer.name)
    found = admin.metadata([writer.name]).topics[0].partitions
    victim = found[number % PARTITIONS].leader
    led = tuple(p.partition for p in found if p.leader == victim)
    was_controller = admin.describe_cluster().controller == victim
    pids = list(made.pids.values()) if kind == "storm" else [made.pids[victim]]
    at_ns, wall_ns = time.monotonic_ns(), time.time_ns()
    for pid in pids:
        os.kill(pid, signal.SIGSTOP if kind == "hang" else signal.SIGKILL)
    if kind == "hang":
        writer.is_moving(_HANG_S)
        os.kill(pids[0], signal.SIGCONT)
    writer.wait_moving()
    time.sleep(_AFTER_S)
    return Trial(kind, victim, was_controller, led, at_ns, time.monotonic_ns(), wall_ns)


def _silence(times: NDArray[np.int64], trial: Trial) -> tuple[float, float]:
    """(longest gap in ms, when it ended in ms after the fault) of the acks around it."""
    around = times[(times >= trial.at_ns - _BEFORE_NS) & (times <= trial.end_ns)]
    gaps = np.diff(around)
    # One that ended before the kill is none of the kill's.
    longest = int(np.argmax(np.where(around[1:] >= trial.at_ns, gaps, 0)))
    return gaps[longest] / _MS, (int(around[longest + 1]) - trial.at_ns) / _MS


def _events(made: Cluster, topic: str, trial: Trial, partition: int) -> dict[str, float | None]:
    """When the brokers that live said what, in ms after the kill."""
    found: dict[str, list[float]] = {"death": [], "controller": [], "leading": []}
    for broker, log in made.logs.items():
        for line in log:
            after_ms = (line["time_ns"] - trial.wall_ns) / _MS
            name = line["event"]
            in_time = 0 <= after_ms <= (trial.end_ns - trial.at_ns) / _MS
            if not in_time or broker == trial.victim:
                continue
            if name == "death" and line["peer"] != trial.victim:
                continue
            if name == "leading" and line["partition"] != f"{topic}-{partition}":
                continue
            if name in found:
                found[name].append(after_ms)
    first = {name: min(times, default=None) for name, times in found.items()}
    if not trial.was_controller:
        first["controller"] = None
    return first


def _read_back(made: Cluster, topic: str, partition: int) -> dict[int, int]:
    """{offset: number} of all records of a partition."""
    stored = {}
    with Consumer(
        topic,
        where=made.dir,
        partitions=[partition],
        start="earliest",
        stop="latest",
        ring=False,
    ) as consumer:
        for batch in consumer.batches():
            for place, value in enumerate(batch.values):
                stored[batch.base_offset + place] = NUMBER.unpack(value)[0]
    return stored


def _check(stored: dict[int, int], acks: NDArray[np.int64], *, all_in_order: bool) -> Counter[str]:
    numbers = [number for _, number in sorted(stored.items()) if number >= 0]
    order = numbers if all_in_order else acks[np.argsort(acks[:, 1], kind="stable"), 0].tolist()
    return Counter(
        acked=len(acks),
        lost=sum(stored.get(offset) != number for number, offset, _ in acks.tolist()),
        duplicates=len(numbers) - len(set(numbers)),
        reordered=sum(b < a for a, b in pairwise(order)),
    )


_Run = tuple[list[dict[str, Any]], dict[str, Any], list[NDArray[np.int64]]]


def _run(name: str, arguments: argparse.Namespace) -> _Run:
    """All trials of one writer: a row for each partition that a victim led, the totals, the acks."""
    trials = []
    with cluster(3, min_insync_replicas=2) as made:
        create_topic(made, name, PARTITIONS)
        with Admin(made.dir) as admin:
            writer = _Writer(name, made, arguments.rate or RATE)
            counts = {"kill": arguments.kills, "hang": arguments.hangs, "storm": arguments.storms}
            kinds = [kind for kind, count in counts.items() for _ in range(count)]
            for number, kind in enumerate(kinds):
                trials.append(_try(made, admin, writer, kind, number))
            _wait_healthy(made, admin, name)
            acks, said = writer.stop()
        total: Counter[str] = Counter()
        for partition, of_partition in enumerate(acks):
            stored = _read_back(made, name, partition)
            total += _check(stored, of_partition, all_in_order=name == "python")
        made.logs = {broker: made.read_log(broker) for broker in made.brokers}
        rows = []
        for trial in trials:
            for partition in trial.partitions:
                silence, next_ack = _silence(acks[partition][:, 2], trial)
                events = _events(made, name, trial, partition)
                rows.append(
                    {**trial._asdict(), "partition": partition, "silence": silence}
                    | {"next ack": next_ack, **events}
                )
    totals = {key: total[key] for key in ("acked", "lost", "duplicates", "reordered")}
    totals["failed"] = said["failed"]
    totals["generator late ms"] = said["late_ms"]
    if said["first_error"]:
        totals["first error"] = said["first_error"][0]
    return rows, totals, acks


def _summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    def percentiles(key: str, *wanted: int) -> dict[str, float]:
        values = [row[key] for row in rows if row[key] is not None]
        return {f"{key} p{p} ms": float(np.percentile(values, p)) for p in wanted if values}

    return {
        "trials": len({row["at_ns"] for row in rows}),
        **percentiles("silence", 50, 90),
        "silence max ms": max(row["silence"] for row in rows),
        **percentiles("next ack", 50),
        **percentiles("death", 50),
        **percentiles("controller", 50),
        **percentiles("leading", 50),
    }


def failover(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """The silence around kills and hangs of leaders, for both writers."""
    if arguments.png:
        timeline.check()
    table: list[dict[str, Any]] = []
    pictures: list[timeline.Picture] = []
    for name in arguments.writers:
        rows, totals, acks = _run(name, arguments)
        for kind in ("kill", "hang", "storm"):
            for controller in (False, True):
                some = [r for r in rows if (r["kind"], r["was_controller"]) == (kind, controller)]
                if some:
                    who = "controller too" if controller else "not controller"
                    row = {"writer": name, "fault": kind, "victim": who, **_summary(some)}
                    table.append(row | {"_trials": some})
        kills = [row for row in rows if row["kind"] == "kill"]
        summary = _summary(kills) if kills else {}
        table.append({"writer": name, "fault": "all kills", **summary, **totals})
        pictures.append(timeline.Picture(name, kills, [of[:, 2] for of in acks]))
    if arguments.png:
        timeline.draw(Path(arguments.png), pictures)
    return table
