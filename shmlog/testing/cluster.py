"""A throw-away cluster of real processes, for tests and for a first look.

    with LocalCluster(brokers=3) as cluster:
        cluster.client().produce("t", b"x")
        cluster.kill(cluster.leader("t", 0))
        cluster.wait_leader("t", 0, timeout=1)

The supervisor watches the process that made the cluster: when that ends, however it ends, brokers
and directory go too. The directory is short, because a socket's path has 107 bytes.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import shmlog
from shmlog import clock, control, directory, launch, process, registry
from shmlog.errors import ClusterNotFound, RequestTimedOut, ServerError, UnknownTopic
from shmlog.protocol.messages import PartitionInfo

WAIT_TIMEOUT_S = 10.0
_POLL_S = 0.005
_living: list[LocalCluster] = []


class LocalCluster:
    """Brokers in a temporary directory. A context manager; or call `start` and `stop`."""

    def __init__(
        self,
        brokers: int = 1,
        *,
        settings: Mapping[str, Any] | None = None,
        topic: Mapping[str, Any] | None = None,
    ) -> None:
        """Make the directory; `settings` and `topic` (defaults of topics) go into cluster.toml."""
        self.dir = Path(tempfile.mkdtemp(prefix="shmlog-", dir="/tmp"))
        try:
            made = directory.create_cluster(self.dir, brokers, settings=settings, topic=topic)
        except BaseException:
            shutil.rmtree(self.dir)
            raise
        self.brokers = made.brokers
        self._supervisor: launch.Background | None = None
        self._clients: list[shmlog.Client] = []
        self._admin: shmlog.Admin | None = None

    def start(self) -> LocalCluster:
        """Start the processes and wait until every broker serves.

        Raises: ShmlogError: they do not; the message ends with the last lines of their logs.
        """
        self._supervisor = launch.Background(self.dir, "--owner-pid", str(os.getpid()), "--remove")
        _living.append(self)
        try:
            self._supervisor.wait_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """End everything, remove the directory, and see to it that nothing is left. May be
        repeated.

        Raises: ServerError: a process or shared memory is left, by name.
        """
        for client in self._clients:
            client.close()
        self._clients.clear()
        self._admin = None
        if self._supervisor is not None:
            self._stop_processes(self._supervisor)
        shutil.rmtree(self.dir, ignore_errors=True)

    def _stop_processes(self, supervisor: launch.Background) -> None:
        names = _memory_names(self)
        pids = [supervisor.process.pid, *process.children(supervisor.process.pid)]
        supervisor.stop()
        self._supervisor = None
        _living.remove(self)
        if directory.cluster_file(self.dir).exists():  # the supervisor was killed
            launch.stop_orphans(self.dir, launch.STOP_TIMEOUT_S)
        left = [f"process {pid}" for pid in pids if process.is_alive(pid)]
        left += [f"/dev/shm{name}" for name in names if Path(f"/dev/shm{name}").exists()]
        if left:
            raise ServerError(f"the cluster in {self.dir} left behind: {', '.join(left)}")

    def __enter__(self) -> LocalCluster:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pids(self) -> dict[int, int]:
        """{broker: pid} of the brokers that serve now."""
        return {b: entry.pid for b, entry in directory.read_brokers(self.dir).items()}

    @property
    def supervisor_pid(self) -> int:
        """The pid of the supervisor."""
        if self._supervisor is None:
            raise ClusterNotFound(f"the cluster in {self.dir} is not running")
        return self._supervisor.process.pid

    def client(self) -> shmlog.Client:
        """A client of this cluster; closed with it."""
        client = shmlog.connect(self.dir)
        self._clients.append(client)
        return client

    # -- faults

    def pause(self, broker: int) -> int:
        """Stop a broker's process with SIGSTOP, as if it hung; its pid."""
        return self._signal(broker, signal.SIGSTOP)

    def resume(self, broker: int) -> int:
        """Let a paused broker's process go on; its pid."""
        return self._signal(broker, signal.SIGCONT)

    def _signal(self, broker: int, signum: int) -> int:
        pid = self.pids.get(broker)
        if pid is None:
            raise ClusterNotFound(f"broker {broker} of {self.dir} is not running")
        process.kill(pid, signum)
        return pid

    def kill(self, broker: int) -> int:
        """End a broker's process with SIGKILL and wait for its death; its pid. It is restarted."""
        pid = self._signal(broker, signal.SIGKILL)
        if launch.wait_for_end([pid], launch.STOP_TIMEOUT_S):
            raise RequestTimedOut(f"broker {broker} (pid {pid}) survived SIGKILL")
        return pid

    def restart(self, broker: int | None = None) -> None:
        """Restart one broker, or (None) all in turn, and wait until the cluster is healthy again."""
        supervisor = directory.read_supervisor(self.dir)
        if supervisor is None:
            raise ClusterNotFound(f"the cluster in {self.dir} is not running")
        wanted = {"rolling": True} if broker is None else {"broker": broker}
        timeout_s = control.RESTART_TIMEOUT_S * (len(self.brokers) if broker is None else 1)
        control.ask(supervisor, "restart", timeout_s, **wanted)

    # -- waiting

    def wait_ready(self, timeout_s: float = launch.START_TIMEOUT_S) -> None:
        """Wait until every broker serves (again). Raises RequestTimedOut, ClusterNotFound."""
        self._wait(
            lambda: bool(self.supervisor_pid) and set(self.pids) == set(self.brokers),
            timeout_s,
            lambda: f"brokers {sorted(self.pids)} of {list(self.brokers)}",
        )

    def leader(self, topic: str, partition: int) -> int:
        """Who leads a partition; -1: nobody now."""
        return self._partitions(topic)[partition].leader

    def wait_leader(self, topic: str, partition: int, timeout: float = WAIT_TIMEOUT_S) -> int:
        """Wait until a living broker leads a partition; its id. Raises RequestTimedOut."""
        seen = [-1]  # what was waited for, not what a further question would find

        def leads() -> bool:
            seen[0] = self.leader(topic, partition)
            return seen[0] in self.pids

        self._wait(leads, timeout, lambda: f"{topic}-{partition} is led by {seen[0]}")
        return seen[0]

    def wait_isr(self, topic: str, timeout: float = WAIT_TIMEOUT_S) -> None:
        """Wait until every replica of a topic is in sync. Raises RequestTimedOut."""

        def lacking() -> list[int]:
            return [p.partition for p in self._partitions(topic) if set(p.isr) < set(p.replicas)]

        self._wait(lambda: not lacking(), timeout, lambda: f"{topic}: not in sync: {lacking()}")

    def _partitions(self, topic: str) -> list[PartitionInfo]:
        if self._admin is None:
            self._admin = self.client().admin
        [info] = self._admin.metadata([topic]).topics
        if info.error:
            raise UnknownTopic(f"no topic {topic!r}", topic=topic)
        return info.partitions

    def _wait(self, test: Callable[[], bool], timeout_s: float, what: Callable[[], str]) -> None:
        deadline_ns = clock.SYSTEM_CLOCK.monotonic_ns() + int(timeout_s * clock.NS_PER_S)
        while not test():
            if clock.SYSTEM_CLOCK.monotonic_ns() > deadline_ns:
                raise RequestTimedOut(f"after {timeout_s:g} s {what()}")
            clock.sleep(_POLL_S)


def _memory_names(cluster: LocalCluster) -> set[str]:
    files = [directory.memory_list_file(cluster.dir, broker) for broker in cluster.brokers]
    return {name for file in files for name in registry.MemoryList(file).names()}
