"""From the intended time of a record to its reader."""

from __future__ import annotations

import argparse
from typing import Any

from perf import harness
from perf.harness import Child, cluster, create_topic

_SHAPES = ((True, "os"), (False, "os"), (True, "disk"))


def latency(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """From the intended time of a record to its reader, open loop: one replica, and three."""
    rows = []
    count = max(2000, int(20_000 * arguments.scale))
    for brokers in arguments.brokers:
        for run in range(arguments.runs):
            for ring, durability in _SHAPES:
                row = _latency_once(brokers, ring, durability, count, arguments.rate or 1000)
                shape = {"replicas": min(3, brokers), "read by": "ring" if ring else "fetch"}
                rows.append({**shape, "durability": durability, "run": run, **row})
    return rows


def _latency_once(
    brokers: int, ring: bool, durability: str, count: int, rate: int
) -> dict[str, Any]:
    with cluster(brokers, durability=durability) as made:
        create_topic(made, "t")
        reader = Child(
            "receive", where=str(made.dir), topic="t", count=count, ring=ring, skip=count // 20
        )
        reader.line()
        load = Child(
            "generate",
            where=str(made.dir),
            topic="t",
            rate=rate,
            count=count,
            size=100,
            options={},
        )
        load.line()
        steal, total = harness.cpu_steal()
        load.go()
        sent = load.line()
        load.end()
        got = reader.line()
        reader.end()
        steal_after, total_after = harness.cpu_steal()
    if not got["ok"]:
        raise SystemExit(f"records lost or out of order: {got}")
    return {
        **{f"{k} us": v for k, v in got["latency_us"].items() if k != "count"},
        "lateness p99 us": sent["lateness_us"]["p99"],
        "steal %": 100 * (steal_after - steal) / max(1, total_after - total),
        **made.longest_turn(),
    }
