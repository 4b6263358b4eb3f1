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
    """`shmlog up` on a fresh directory, and what its brokers said when they stopped.

    `parent`: where to make it, by default the directory for temporary files. `profile`: brokers without a supervisor,
    sampled (perf/profiled.py); it takes what each had to say.
    """

    def __init__(
        self, brokers: int = 1, *, parent: str | None = None, profile: bool = False, **topic: Any
    ) -> None:
        self.dir = Path(tempfile.mkdtemp(prefix="slperf-", dir=parent))
        self.brokers = tuple(range(brokers))
        directory.create_cluster(self.dir, brokers, topic=topic)
        self.logs: dict[int, list[dict[str, Any]]] = {}
        self.profiles: dict[int, dict[str, Any]] = {}
        self._profile = profile
        self._sampled: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        if self._profile:
            self._start_sampled()
        else:
            shmlog_command("up", "--dir", str(self.dir), "-n", str(len(self.brokers)), "--detach")

    def _start_sampled(self) -> None:
        for broker in self.brokers:
            command = [sys.executable, "-m", "perf.profiled", "--dir", str(self.dir)]
            with directory.broker_log(self.dir, broker).open("wb") as log:
                self._sampled.append(
                    subprocess.Popen([*command, "--id", str(broker)], stderr=log, cwd=ROOT)
                )
        deadline = time.monotonic() + 30
        while set(self.pids) != set(self.brokers):
            if time.monotonic() > deadline:
                raise RuntimeError("brokers do not come up")
            time.sleep(0.01)

    def stop(self) -> None:
        if self._profile:
            for broker in self._sampled:
                broker.terminate()
            for broker in self._sampled:
                broker.wait()
        else:
            shmlog_command("-d", str(self.dir), "down")
        self.logs = {broker: self.read_log(broker) for broker in self.brokers}
        for broker in self.brokers if self._profile else ():
            file = self.dir / f"profile-{broker}.json"
            self.profiles[broker] = json.loads(file.read_text())

    def read_log(self, broker: int) -> list[dict[str, Any]]:
        """What a broker has logged so far."""
        try:
            lines = directory.broker_log(self.dir, broker).read_text().splitlines()
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in lines if line.startswith("{")]

    @property
    def pids(self) -> dict[int, int]:
        """{broker: pid} of those that serve."""
        return {b: entry.pid for b, entry in directory.read_brokers(self.dir).items()}

    def sample(self) -> None:
        """Begin, or end, the sampling of the brokers."""
        for pid in self.pids.values() if self._profile else ():
            os.kill(pid, signal.SIGUSR1)

    def cpu(self) -> dict[int, float]:
        """CPU seconds of each broker so far."""
        return {broker: process.cpu_seconds(pid) for broker, pid in self.pids.items()}

    def turns(self) -> dict[int, dict[str, Any]]:
        """What each loop said of its turns at its end: the longest, and its cause."""
        wanted = ("count", "busy_ms", "longest_us", "longest_cause", "longest_write_us")
        said = {
            broker: [line for line in log if line["event"] == "turns"]
            for broker, log in self.logs.items()
        }
        return {b: {key: lines[-1][key] for key in wanted} for b, lines in said.items() if lines}

    def longest_turn(self) -> dict[str, Any]:
        """The longest turn of all brokers, as columns of a row."""
        turns = self.turns()
        if not turns:
            return {}
        broker = max(turns, key=lambda b: turns[b]["longest_us"])
        where = f" (broker {broker})" if len(self.brokers) > 1 else ""
        return {
            "longest turn us": turns[broker]["longest_us"],
            "cause": f"{turns[broker]['longest_cause']}{where}",
        }


@contextmanager
def cluster(brokers: int = 1, **options: Any) -> Iterator[Cluster]:
    """A running cluster; stopped and removed at the end."""
    made = Cluster(brokers, **options)
    try:
        made.start()
        try:
            yield made
        finally:
            made.stop()
    finally:
        shutil.rmtree(made.dir, ignore_errors=True)


def environment() -> dict[str, str]:
    """Of a process started with `-P`: it finds this checkout."""
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def shmlog_command(*arguments: str) -> None:
    """Run the command line."""
    subprocess.run(
        [sys.executable, "-c", SHMLOG, *arguments],
        check=True,
        capture_output=True,
        cwd=ROOT,
        env=environment(),
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
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(60)
        self._process.stdout.close()

    def kill(self) -> None:
        """End it, however it stands."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()


def create_topic(made: Cluster, name: str, partitions: int = 1, **configs: Any) -> None:
    """Make a topic with a replica on each of up to three brokers, ready to serve and in sync."""
    with Admin(made.dir) as admin:
        admin.create_topic(name, partition_count=partitions, configs=configs)
        wait_in_sync(admin, name)


def leader(admin: Admin, topic: str, partition: int = 0) -> int:
    """Who leads a partition."""
    return admin.metadata([topic]).topics[0].partitions[partition].leader


def wait_in_sync(admin: Admin, topic: str, timeout_s: float = 60) -> None:
    """Wait until every replica of a topic is in sync."""
    deadline = time.monotonic() + timeout_s
    while any(set(p.isr) < set(p.replicas) for p in admin.metadata([topic]).topics[0].partitions):
        if time.monotonic() > deadline:
            raise RuntimeError(f"{topic}: not in sync after {timeout_s} s")
        time.sleep(0.01)


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
        led_by = leader(admin, topic)
    entry = directory.read_brokers(made.dir)[led_by]
    identity = RingIdentity(entry.cluster, entry.broker, entry.incarnation, topic_id, 0)
    for _ in range(10_000):
        try:
            RingReader(posix.attach(ring_name(identity)), identity)
        except (FileNotFoundError, RingMismatch):
            time.sleep(0.001)
        else:
            return
    raise RuntimeError("no ring within 10 s")


def print_profiles(made: Cluster, led_by: int) -> None:
    """Where the leader and a follower spent their CPU time: by lines, then by functions with all they call."""
    follower = next((b for b in made.brokers if b != led_by), led_by)
    for broker in dict.fromkeys((led_by, follower)):
        profile = made.profiles[broker]
        role = "leader" if broker == led_by else "follower"
        print(f"broker {broker}, {role}: {profile['samples']} samples of a millisecond")
        for kind in ("own", "below"):
            for name, share in list(profile[kind].items())[:25]:
                print(f"  {kind:5} {share:5.1f} %  {name}")


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
    """One table on standard output, one JSON file if asked for; what begins with "_" stands only in the file."""
    after = yardsticks.measure(tempfile.gettempdir()) if before else {}
    columns = list(dict.fromkeys(key for row in rows for key in row if key[0] != "_"))
    cells = [[_text(row.get(c, "")) for c in columns] for row in rows]
    widths = [max(len(c), *(len(r[i]) for r in cells)) for i, c in enumerate(columns)]
    print(f"perf {question}")
    print("  ".join(c.ljust(w) for c, w in zip(columns, widths, strict=True)))
    for row in cells:
        print("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)))
    load, steal = os.getloadavg()[0], cpu_steal()
    print(f"load now {load:.1f}; steal since boot {100 * steal[0] / steal[1]:.1f} %")
    if before:
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
