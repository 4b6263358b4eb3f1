"""`python -m perf produce|consume|latency|startup [--out FILE]`: one question each, yardsticks beside it.

produce   records per second through a DEALER socket, one producer, one partition
consume   records per second of one reader, by ring and by socket, as bytes, batches and records
latency   from a record's intended time to its reader, open loop
startup   from start to ready, memory, and CPU of an idle broker
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from typing import Any

from perf import harness, yardsticks
from perf.harness import Child, Cluster, cluster, cpu, create_topic
from shmlog import process

_SLICE = 10_000


def _produce_once(
    api: str, count: int, size: int, options: dict[str, Any], **topic: Any
) -> dict[str, Any]:
    with cluster(**topic) as made:
        create_topic(made, "t")
        child = Child(
            "produce",
            where=str(made.dir),
            topic="t",
            count=count,
            size=size,
            api=api,
            options=options,
        )
        child.line()
        broker_before = cpu(made.pid)
        child.go()
        result = child.line()
        broker_cpu = cpu(made.pid) - broker_before
        child.end()
        written = count + 3 * _SLICE
        check = Child("verify", where=str(made.dir), topic="t", count=written, slice_count=_SLICE)
        correct = check.line()
        check.end()
    millions = count / 1e6
    return {
        "records/s": count / result["seconds"],
        "MB/s": count * size / result["seconds"] / 1e6,
        "cpu s/M producer": result["cpu_seconds"] / millions,
        "cpu s/M broker": broker_cpu / millions,
        "read back": "ok" if correct["ok"] else f"WRONG {correct}",
        "longest turn us": made.turns()["longest_us"],
        "cause": made.turns()["longest_cause"],
    }


def produce(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """How many records per second go in."""
    rows = []
    shapes: list[tuple[str, int, dict[str, Any], dict[str, Any]]] = [
        ("send_many", 5_000_000, {}, {}),
        ("send_array", 5_000_000, {}, {}),
        ("send", 2_000_000, {}, {}),
        ("send_many", 2_000_000, {}, {"durability": "disk"}),
    ]
    for api, count, options, topic in shapes:
        for run in range(arguments.runs):
            count_now = max(_SLICE, int(count * arguments.scale) // _SLICE * _SLICE)
            row = _produce_once(api, count_now, arguments.size, options, **topic)
            rows.append(
                {"api": api, "durability": topic.get("durability", "os"), "run": run, **row}
            )
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
    count = max(_SLICE, int(4_000_000 * arguments.scale) // _SLICE * _SLICE)
    with cluster(ring_bytes="1GiB") as made:
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
                broker_before = cpu(made.pid)
                child.go()
                result = child.line()
                child.end()
                rows.append(
                    {
                        "path": "ring" if ring else "fetch",
                        "view": view,
                        "run": run,
                        "records/s": result["records"] / result["seconds"],
                        "MB/s": result["records"] * arguments.size / result["seconds"] / 1e6,
                        "cpu s/M reader": result["cpu_seconds"] / (result["records"] / 1e6),
                        "cpu s/M broker": (cpu(made.pid) - broker_before)
                        / (result["records"] / 1e6),
                    }
                )
    rows[-1] |= {
        "longest turn us": made.turns()["longest_us"],
        "cause": made.turns()["longest_cause"],
    }
    return rows


def latency(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """From the intended time of a record to its reader."""
    rows = []
    count = max(2000, int(20_000 * arguments.scale))
    for run in range(arguments.runs):
        for ring, durability in ((True, "os"), (False, "os"), (True, "disk")):
            with cluster(durability=durability) as made:
                create_topic(made, "t")
                reader = Child(
                    "receive", where=str(made.dir), topic="t", count=count, ring=ring, skip=1000
                )
                reader.line()
                load = Child(
                    "generate",
                    where=str(made.dir),
                    topic="t",
                    rate=arguments.rate,
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
            rows.append(
                {
                    "read by": "ring" if ring else "fetch",
                    "durability": durability,
                    "run": run,
                    **{f"{k} us": v for k, v in got["latency_us"].items() if k != "count"},
                    "lateness p99 us": sent["lateness_us"]["p99"],
                    "steal %": 100 * (steal_after - steal) / max(1, total_after - total),
                    "longest turn us": made.turns()["longest_us"],
                    "cause": made.turns()["longest_cause"],
                }
            )
    return rows


def startup(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """From the start of a broker process to its registry entry; memory and CPU when idle."""
    from shmlog import directory

    rows = []
    for run in range(arguments.runs):
        made = Cluster()
        began = time.perf_counter()
        broker = subprocess.Popen(
            [sys.executable, "-P", "-m", "node", "--dir", str(made.dir), "--id", "0"],
            stderr=subprocess.DEVNULL,
            cwd=harness.ROOT,
            env={**os.environ, "PYTHONPATH": str(harness.ROOT)},
        )
        while 0 not in directory.read_brokers(made.dir):
            if broker.poll() is not None:
                raise SystemExit(f"the broker ended with {broker.returncode}")
        ready_ms = (time.perf_counter() - began) * 1000
        time.sleep(1)
        before, at = cpu(broker.pid), time.perf_counter()
        time.sleep(max(2.0, 20 * arguments.scale))
        idle = (cpu(broker.pid) - before) / (time.perf_counter() - at) * 100
        resident, shared = process.rss_bytes(broker.pid)
        broker.terminate()
        broker.wait()
        shutil.rmtree(made.dir)
        help_ms = _help_ms()
        rows.append(
            {
                "run": run,
                "ready ms": ready_ms,
                "RSS MB": resident / 1e6,
                "of it shared MB": shared / 1e6,
                "idle CPU %": idle,
                "shmlog --help ms": help_ms,
            }
        )
    return rows


def _help_ms() -> float:
    took = []
    for _ in range(5):
        began = time.perf_counter()
        subprocess.run(
            [sys.executable, "-c", harness.SHMLOG, "--help"],
            check=True,
            capture_output=True,
            cwd=harness.ROOT,
        )
        took.append((time.perf_counter() - began) * 1000)
    return min(took)


def main() -> None:
    """Ask one question."""
    parser = argparse.ArgumentParser(
        prog="python -m perf",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("question", choices=["produce", "consume", "latency", "startup"])
    parser.add_argument("--out", help="write the JSON report here")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="times the number of records")
    parser.add_argument("--size", type=int, default=100, help="bytes a record")
    parser.add_argument("--rate", type=int, default=1000, help="records per second (latency)")
    arguments = parser.parse_args()
    before = yardsticks.measure(tempfile.gettempdir())
    questions = {"produce": produce, "consume": consume, "latency": latency, "startup": startup}
    harness.report(
        arguments.question, questions[arguments.question](arguments), arguments.out, before
    )


if __name__ == "__main__":
    main()
