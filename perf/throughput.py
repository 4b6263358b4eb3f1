"""Records per second in and out."""

from __future__ import annotations

import argparse
from typing import Any

from perf import harness
from perf.harness import Child, Cluster, cluster, create_topic
from shmlog.client.admin import Admin

_SLICE = 10_000
_Shape = tuple[str, int, dict[str, Any]]
_ALONE: list[_Shape] = [
    ("send_many", 5_000_000, {}),
    ("send_array", 5_000_000, {}),
    ("send", 2_000_000, {}),
    ("send_many", 2_000_000, {"durability": "disk"}),
]
_REPLICATED: list[_Shape] = [
    ("send_many", 5_000_000, {}),
    ("send_array", 5_000_000, {}),
    ("send_many", 2_000_000, {"durability": "disk"}),
]


def _whole_slices(count: float) -> int:
    return max(_SLICE, int(count) // _SLICE * _SLICE)


def _produce_once(
    brokers: int, api: str, count: int, arguments: argparse.Namespace, topic: dict[str, Any]
) -> dict[str, Any]:
    options = {"batch_bytes": arguments.batch_bytes} if arguments.batch_bytes else {}
    with cluster(brokers, profile=arguments.profile, **topic) as made:
        create_topic(made, "t")
        with Admin(made.dir) as admin:
            led_by = harness.leader(admin, "t")
        child = Child(
            "produce",
            where=str(made.dir),
            topic="t",
            count=count,
            size=arguments.size,
            api=api,
            options=options,
        )
        child.line()
        before = made.cpu()
        made.sample()
        child.go()
        result = child.line()
        made.sample()
        broker_cpu = {broker: spent - before[broker] for broker, spent in made.cpu().items()}
        child.end()
        written = count + 3 * _SLICE
        check = Child("verify", where=str(made.dir), topic="t", count=written, slice_count=_SLICE)
        correct = check.line()
        check.end()
        with Admin(made.dir) as admin:
            moved = harness.leader(admin, "t") != led_by
    if arguments.profile:
        harness.print_profiles(made, led_by)
    millions = count / 1e6
    row = {
        "records/s": count / result["seconds"],
        "MB/s": count * arguments.size / result["seconds"] / 1e6,
        "cpu s/M producer": result["cpu_seconds"] / millions,
        "cpu s/M leader": broker_cpu.pop(led_by) / millions,
    }
    if brokers > 1:
        row["cpu s/M followers"] = sum(broker_cpu.values()) / millions
    return {
        **row,
        "read back": "ok" if correct["ok"] else f"WRONG {correct}",
        **({"leader": "MOVED"} if moved else {}),
        **made.longest_turn(),
    }


def produce(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """How many records per second go in, acks=all: one replica, and three."""
    rows = []
    for brokers in arguments.brokers:
        for api, count, topic in _ALONE if brokers == 1 else _REPLICATED:
            durability = topic.get("durability", "os")
            if arguments.only and arguments.only != f"{api}/{durability}":
                continue
            for run in range(arguments.runs):
                wanted = _whole_slices(count * arguments.scale)
                row = _produce_once(brokers, api, wanted, arguments, topic)
                shape = {"replicas": min(3, brokers), "api": api, "durability": durability}
                rows.append({**shape, "run": run, **row})
    return rows


def _fill(made: Cluster, count: int, size: int) -> None:
    child = Child(
        "produce",
        where=str(made.dir),
        topic="t",
        count=count,
        size=size,
        api="send_many",
        options={},
    )
    child.line()
    child.go()
    child.line()
    child.end()


def consume(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """How many records per second come out: all of it is in the ring when the reader begins."""
    rows = []
    for brokers in arguments.brokers:
        rows += _consume(brokers, arguments)
    return rows


def _consume(brokers: int, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    count = _whole_slices(4_000_000 * arguments.scale)
    with cluster(brokers, ring_bytes="1GiB") as made:
        create_topic(made, "t")
        harness.make_ring(made, "t")
        _fill(made, count, arguments.size)
        for run in range(arguments.runs):
            for ring, view in (
                (True, "bytes"),
                (True, "batches"),
                (True, "records"),
                (False, "bytes"),
            ):
                child = Child(
                    "consume",
                    where=str(made.dir),
                    topic="t",
                    count=count,
                    ring=ring,
                    view=view,
                    follow=False,
                )
                child.line()
                before = sum(made.cpu().values())
                child.go()
                result = child.line()
                child.end()
                spent = sum(made.cpu().values()) - before
                rows.append(
                    {
                        "replicas": min(3, brokers),
                        "path": "ring" if ring else "fetch",
                        "view": view,
                        "run": run,
                        "records/s": result["records"] / result["seconds"],
                        "MB/s": result["records"] * arguments.size / result["seconds"] / 1e6,
                        "cpu s/M reader": result["cpu_seconds"] / (result["records"] / 1e6),
                        "cpu s/M brokers": spent / (result["records"] / 1e6),
                    }
                )
    rows[-1] |= made.longest_turn()
    return rows
