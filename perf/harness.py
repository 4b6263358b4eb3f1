"""What every question shares: a cluster of real processes, load and readers as processes, facts, the report.

A child process is this package again (`python -m perf.child NAME`), told what to do as JSON on its standard
input; it answers with one JSON line on its standard output. The clock of both is CLOCK_MONOTONIC.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from perf import yardsticks
from shmlog import directory, process
from shmlog.client.admin import Admin

ROOT = Path(__file__).parents[1]
SHMLOG = "from shmlog.cli.main import run; run()"


class Cluster:
    """`shmlog up` on a fresh directory, and what its broker said when it stopped."""

    def __init__(self, **topic: Any) -> None:
        self.dir = Path(tempfile.mkdtemp(prefix="slperf-"))
        directory.create_cluster(self.dir, 1, topic=topic)
        self.broker_log: list[dict[str, Any]] = []

    def start(self) -> None:
        _shmlog("up", "--dir", str(self.dir), "-n", "1", "--detach")

    def stop(self) -> None:
        _shmlog("-d", str(self.dir), "down")
        lines = directory.broker_log(self.dir, 0).read_text().splitlines()
        self.broker_log = [json.loads(line) for line in lines]

    @property
    def pid(self) -> int:
        return directory.read_brokers(self.dir)[0].pid

    def turns(self) -> dict[str, Any]:
        """What the loop said of its turns: the longest, and its cause."""
        wanted = ("count", "busy_ms", "longest_us", "longest_cause", "longest_write_us")
        said = [line for line in self.broker_log if line["event"] == "turns"]
        return {key: said[-1][key] for key in wanted} if said else {}


@contextmanager
def cluster(**topic: Any) -> Iterator[Cluster]:
    """A running cluster; stopped and removed at the end."""
    made = Cluster(**topic)
    try:
        made.start()
        try:
            yield made
        finally:
            made.stop()
    finally:
        shutil.rmtree(made.dir, ignore_errors=True)


def _shmlog(*arguments: str) -> None:
    subprocess.run(
        [sys.executable, "-c", SHMLOG, *arguments],
        check=True,
        capture_output=True,
        cwd=ROOT,
    )


class Child:
    """A load or reader process."""

    def __init__(self, name: str, **task: Any) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "perf.child", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(task) + "\n")
        self._process.stdin.flush()
        self.pid = self._process.pid

    def line(self) -> dict[str, Any]:
        """Its next line."""
        assert self._process.stdout is not None
        text = self._process.stdout.readline()
        if not text:
            raise RuntimeError(f"a measuring process ended with {self._process.wait()}")
        answer: dict[str, Any] = json.loads(text)
        return answer

    def go(self) -> None:
        """Let it begin."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()

    def end(self) -> None:
        """Wait for its end."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)

    def kill(self) -> None:
        """End it, however it stands."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()


def create_topic(made: Cluster, name: str, partitions: int = 1, **configs: Any) -> None:
    """Make a topic, ready to serve."""
    with Admin(made.dir) as admin:
        admin.create_topic(name, partition_count=partitions, configs=configs)


def make_ring(made: Cluster, topic: str) -> None:
    """Append one record and wait until the partition's ring can be read: it is made at the first append."""
    from shmlog.client.producer import Producer
    from shmlog.ring import posix
    from shmlog.ring.layout import RingIdentity, ring_name
    from shmlog.ring.reader import RingMismatch, RingReader

    with Producer(where=made.dir) as producer:
        producer.produce(topic, b"first")
    with Admin(made.dir) as admin:
        topic_id = bytes.fromhex(admin.describe_topic(topic).topic_id)
    entry = directory.read_brokers(made.dir)[0]
    identity = RingIdentity(entry.cluster, entry.broker, entry.incarnation, topic_id, 0)
    for _ in range(10_000):
        try:
            RingReader(posix.attach(ring_name(identity)), identity)
        except (FileNotFoundError, RingMismatch):
            time.sleep(0.001)
        else:
            return
    raise RuntimeError("no ring within 10 s")


def facts() -> dict[str, Any]:
    """The machine and the versions."""
    import msgspec
    import numpy as np
    import zmq

    model = ""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    ).stdout.strip()
    return {
        "commit": commit,
        "cpu": model,
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "pyzmq": zmq.__version__,
        "libzmq": zmq.zmq_version(),
        "msgspec": msgspec.__version__,
        "shm_bytes": shutil.disk_usage("/dev/shm").total,
        "load_before": os.getloadavg()[0],
    }


def cpu_steal() -> tuple[int, int]:
    """(steal, total) jiffies of the machine so far."""
    fields = list(map(int, Path("/proc/stat").read_text().splitlines()[0].split()[1:]))
    return fields[7], sum(fields[:8])


def report(
    question: str, rows: list[dict[str, Any]], out: str | None, before: dict[str, Any]
) -> None:
    """One table on standard output, one JSON file if asked for."""
    after = yardsticks.measure(tempfile.gettempdir())
    columns: list[str] = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[_text(row.get(c, "")) for c in columns] for row in rows]
    widths = [max(len(c), *(len(r[i]) for r in cells)) for i, c in enumerate(columns)]
    print(f"perf {question}")
    print("  ".join(c.ljust(w) for c, w in zip(columns, widths, strict=True)))
    for row in cells:
        print("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)))
    print("yardsticks (before, after):")
    for key, value in before.items():
        print(f"  {key}: {_text(value)}, {_text(after[key])}")
    if out:
        document = {
            "question": question,
            "command": sys.argv,
            "facts": facts(),
            "rows": rows,
            "yardsticks_before": before,
            "yardsticks_after": after,
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        Path(out).write_text(json.dumps(document, indent=1) + "\n")
        print(f"report: {out}")


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.3g}" if value < 1000 else f"{value:,.0f}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, dict):
        return " ".join(f"{k} {_text(v)}" for k, v in value.items())
    return str(value)


def cpu(*pids: int) -> float:
    """CPU seconds of processes so far."""
    return sum(process.cpu_seconds(pid) for pid in pids)
