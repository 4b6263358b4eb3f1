"""Three brokers write to one disk until the kernel throttles them: slow is not dead, so nothing may be elected.

One topic of three partitions with three replicas each; one producer process a partition writes as fast as it can,
until all logs together hold half of `--bytes`. The brokers sync ten times a second, so they alone leave little dirty:
beside them another process overwrites a file of the other half again and again, as fast as the kernel lets it.
Counted in the metadata log from the start of the load to its end: elections (a partition's leader epoch rises),
fences, changes of the controller (the term rises), replicas that left the in-sync set. Beside it how much of the page
cache was dirty at most, and each broker's longest turn by cause.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from perf.harness import Child, cluster, create_topic
from shmlog.client.admin import Admin

_PARTITIONS = _REPLICAS = 3
_SLICE = 10_000
_SPARE_BYTES = 4 << 30  # left free on the disk


def _threshold_bytes() -> int:
    """From where on whoever writes is throttled: half way between the kernel's two thresholds."""
    pages = dict(line.split() for line in Path("/proc/vmstat").read_text().splitlines())
    both = int(pages["nr_dirty_background_threshold"]) + int(pages["nr_dirty_threshold"])
    return both // 2 * os.sysconf("SC_PAGE_SIZE")


def _dirty_bytes() -> int:
    """Pages that wait to be written, or are being written."""
    for_kinds = {}
    for line in Path("/proc/meminfo").read_text().splitlines():
        kind, _, rest = line.partition(":")
        if kind in ("Dirty", "Writeback"):
            for_kinds[kind] = int(rest.split()[0]) * 1024
    return sum(for_kinds.values())


class _Watch(threading.Thread):
    """Looks every 50 ms how much is dirty."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.highest = 0
        self.ended = threading.Event()

    def run(self) -> None:
        """Until ended."""
        while not self.ended.wait(0.05):
            self.highest = max(self.highest, _dirty_bytes())


def _changes(admin: Admin, since: int) -> Counter[str]:
    """What the metadata log says from a record on."""
    found: Counter[str] = Counter()
    epochs: dict[tuple[str, int], tuple[int, int]] = {}
    offset, terms = 0, set()
    while True:
        answer = admin.metadata_log(offset)
        for record in answer.records:
            new = record.offset >= since
            if new:
                terms.add(record.term)
            if record.kind == "fence" and new:
                found["fences"] += bool(record.data["fenced"])
            if record.kind == "partition":
                place = (str(record.data["topic_id"]), record.data["partition"])
                now = (record.data["leader_epoch"], len(record.data["isr"]))
                before = epochs.get(place, now)
                epochs[place] = now
                if new:
                    found["elections"] += now[0] > before[0]
                    found["left the ISR"] += now[1] < before[1]
        offset = answer.next_offset
        if offset >= answer.end_offset:
            break
    found["controllers"] = max(0, len(terms) - 1)
    return found


def writeback(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Elections under writeback pressure (must be 0), and the longest turns."""
    place = arguments.dir or tempfile.gettempdir()
    free = shutil.disk_usage(place).free
    if free < arguments.bytes + _SPARE_BYTES:
        raise SystemExit(f"{place}: {free >> 30} GiB free, {arguments.bytes >> 30} GiB wanted")
    size = max(arguments.size, 1000)
    slices = arguments.bytes // 2 // (_PARTITIONS * _REPLICAS * size * _SLICE)
    count = max(1, slices) * _SLICE
    with cluster(3, parent=arguments.dir) as made:
        create_topic(made, "t", _PARTITIONS)
        load = [
            Child(
                "produce",
                where=str(made.dir),
                topic="t",
                count=count,
                size=size,
                api="send_many",
                options={},
                partition=partition,
            )
            for partition in range(_PARTITIONS)
        ]
        for child in load:
            child.line()
        with Admin(made.dir) as admin:
            since = admin.metadata_log(max_records=1).end_offset
            watch = _Watch()
            watch.start()
            press = Child("press", where=str(made.dir), size=arguments.bytes // 2)
            press.line()
            press.go()
            began = time.monotonic()
            for child in load:
                child.go()
            for child in load:
                child.line()
            took = time.monotonic() - began
            press.go()
            pressed = press.line()
            press.end()
            watch.ended.set()
            changes = _changes(admin, since)
        for child in load:
            child.end()
        read = [
            Child(
                "verify",
                where=str(made.dir),
                topic="t",
                count=count + 3 * _SLICE,
                slice_count=_SLICE,
                partition=partition,
            )
            for partition in range(_PARTITIONS)
        ]
        correct = [child.line()["ok"] for child in read]
        for child in read:
            child.end()
    written = count * size * _PARTITIONS
    head = {
        "MB/s": written / took / 1e6,
        "MB/s to disk": written * _REPLICAS / took / 1e6,
        "seconds": took,
        "dirty at most MB": watch.highest / 1e6,
        "throttled from MB": _threshold_bytes() / 1e6,
        "other writer MB/s": pressed["bytes"] / pressed["seconds"] / 1e6,
        "its slow writes": pressed["slow"],
        **{k: changes[k] for k in ("elections", "fences", "controllers", "left the ISR")},
        "read back": "ok" if np.all(correct) else "WRONG",
    }
    turns = made.turns()
    return [
        {
            **(head if broker == 0 else {}),
            "broker": broker,
            "longest turn ms": turns[broker]["longest_us"] / 1000,
            "cause": turns[broker]["longest_cause"],
            "longest write ms": turns[broker]["longest_write_us"] / 1000,
        }
        for broker in made.brokers
    ]
