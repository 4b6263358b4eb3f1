"""From nothing to the first ack; what brokers cost that have nothing to do."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from typing import Any

from perf import harness
from perf.harness import Cluster
from shmlog import directory, process
from shmlog.client.admin import Admin
from shmlog.client.producer import Producer


def startup(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """From the start of the brokers' processes, in a new directory, to the registry and to the first ack.

    In between a topic is made, with a replica on each broker. Then what the idle brokers cost.
    """
    rows = []
    for brokers in arguments.brokers:
        for run in range(arguments.runs):
            rows += _startup_once(brokers, run, max(2.0, 20 * arguments.scale))
    return rows


def _startup_once(brokers: int, run: int, idle_seconds: float) -> list[dict[str, Any]]:
    made = Cluster(brokers)
    began = time.perf_counter()
    started = [
        subprocess.Popen(
            [sys.executable, "-P", "-m", "node", "--dir", str(made.dir), "--id", str(broker)],
            stderr=subprocess.DEVNULL,
            cwd=harness.ROOT,
            env=harness.environment(),
        )
        for broker in made.brokers
    ]
    try:
        while len(directory.read_brokers(made.dir)) < brokers:
            if any(broker.poll() is not None for broker in started):
                raise SystemExit("a broker ended while it started")
            time.sleep(0.001)
        ready_ms = (time.perf_counter() - began) * 1000
        with Producer(where=made.dir) as producer, Admin(made.dir) as admin:
            admin.create_topic("t")
            created_ms = (time.perf_counter() - began) * 1000
            producer.produce("t", b"first")
            first_ack_ms = (time.perf_counter() - began) * 1000
        time.sleep(1)
        before, at = made.cpu(), time.perf_counter()
        time.sleep(idle_seconds)
        after, elapsed = made.cpu(), time.perf_counter() - at
        memory = {broker: process.rss_bytes(pid) for broker, pid in made.pids.items()}
    finally:
        for broker in started:
            broker.terminate()
        for broker in started:
            broker.wait()
        shutil.rmtree(made.dir)
    start = {
        "ready ms": ready_ms,
        "topic ms": created_ms,
        "first ack ms": first_ack_ms,
        "shmlog --help ms": _help_ms(),
    }
    return [
        {
            "brokers": brokers,
            "run": run,
            "broker": broker,
            "RSS MB": memory[broker][0] / 1e6,
            "of it shared MB": memory[broker][1] / 1e6,
            "idle CPU %": (after[broker] - before[broker]) / elapsed * 100,
            **(start if broker == 0 else {}),
        }
        for broker in made.brokers
    ]


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
