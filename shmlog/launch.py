"""Starting a supervisor as a process of its own, and stopping what one left behind.

`shmlog` never imports `node`: a supervisor is started by its module's name, and heard through its
event log, by whoever waits for the start and by whoever goes on watching. What it says while it
starts decides: every broker ready, or a cause to show.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from shmlog import clock, directory, process, registry
from shmlog.control import cause_of_death
from shmlog.errors import CorruptLog, InvalidConfig, RequestTimedOut, ServerError, ShmlogError

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 30.0
FAILED_STARTS_MAX = 3  # of one broker
_POLL_S = 0.005
_WATCH_S = 0.1
_TAIL_BYTES = 64 << 10  # one traceback is a line of several KiB


def supervisor_command(path: Path, *options: str) -> list[str]:
    """The command that supervises a directory."""
    return [sys.executable, "-P", "-m", "node.supervisor", "--dir", str(path), *options]


class Background:
    """A supervisor with its streams closed or in log files, in a session of its own."""

    def __init__(self, path: Path, *options: str) -> None:
        """Start it. `path` is a cluster already: its `run/` takes the logs."""
        self.path = path
        self._log = directory.supervisor_log(path)
        with directory.open_log(self._log) as log:
            self._position = self._heard = log.tell()
            self.process = subprocess.Popen(
                supervisor_command(path, "--logs", *options),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait_ready(
        self,
        timeout_s: float = START_TIMEOUT_S,
        heard: Callable[[dict[str, Any]], None] = lambda event: None,
    ) -> dict[int, directory.BrokerEntry]:
        """Wait until every broker serves; their registrations. `heard` gets each event meanwhile.

        Raises: ShmlogError: the supervisor ended, a broker fails again and again (said once all others
        serve), or time is up; the message ends with the last lines of the log.
        """
        brokers = set(directory.load_cluster(self.path).brokers)
        failures: dict[int, ShmlogError] = {}
        started: set[int] = set()
        deaths: Counter[int] = Counter()
        deadline_ns = clock.SYSTEM_CLOCK.monotonic_ns() + int(timeout_s * clock.NS_PER_S)
        while True:
            ended = self.process.poll()
            if ended is not None:
                raise self._failure(f"the supervisor ended with exit code {ended}", ended)
            for event in self._events():
                heard(event)
                if event["event"] == "ready":
                    started.add(event["pid"])
                elif event["event"] == "exit":
                    deaths[event["broker"]] += 1
                    if deaths[event["broker"]] >= FAILED_STARTS_MAX or "backoff_ms" not in event:
                        broker = event["broker"]
                        text = f"broker {broker} {cause_of_death(event)}"
                        failures[broker] = self._failure(text, event.get("code"), broker)
            # Only its own word counts: a broker of an earlier supervisor may still be registered.
            living = directory.read_brokers(self.path)
            if living.keys() | failures.keys() == brokers and (
                {entry.pid for entry in living.values()} <= started
            ):
                if failures.keys() - living.keys():
                    raise failures[min(failures.keys() - living.keys())]
                return living
            if clock.SYSTEM_CLOCK.monotonic_ns() > deadline_ns:
                raise RequestTimedOut(f"not ready after {timeout_s:g} s{self._tail()}")
            clock.sleep(_POLL_S)

    def watch(self, heard: Callable[[dict[str, Any]], None]) -> int:
        """Hear each event as it comes, until the supervisor ends; its exit code."""
        ended = None
        while ended is None:
            if not wait_for_end([self.process.pid], _WATCH_S):
                ended = self.process.wait()
            for event in self._events():
                heard(event)
        return ended

    def _events(self) -> Iterator[dict[str, Any]]:
        """What this supervisor has said since the last call."""
        try:
            with self._log.open("rb") as log:
                log.seek(self._heard)
                lines = log.read().split(b"\n")[:-1]
        except FileNotFoundError:
            return  # it was told to stop, and has removed a throw-away cluster
        for line in lines:
            self._heard += len(line) + 1
            if line.startswith(b"{"):
                yield json.loads(line)

    def _failure(self, text: str, code: int | None, broker: int | None = None) -> ShmlogError:
        kind = {2: InvalidConfig, 7: CorruptLog}.get(code or 0, ServerError)
        return kind(text + self._tail(broker))

    def _tail(self, broker: int | None = None) -> str:
        return log_tail(self.path, self._position, broker)

    def stop(self) -> None:
        """Stop it and its brokers; it kills those that do not stop by themselves."""
        process.kill(self.process.pid, signal.SIGTERM)
        if wait_for_end([self.process.pid], STOP_TIMEOUT_S):
            self.process.kill()
        self.process.wait()


def log_tail(path: Path, supervisor_position: int, broker: int | None = None) -> str:
    """The last lines for people in the logs of brokers (or of one) and supervisor (from a position on)."""
    log = directory.supervisor_log(path)
    which = "*" if broker is None else str(broker)
    text = ""
    for file in (log, *sorted(directory.run_dir(path).glob(f"broker-{which}.log"))):
        if file.exists():
            content = file.read_bytes()[supervisor_position if file == log else 0 :]
            lines = content[-_TAIL_BYTES:].decode(errors="replace").splitlines()
            lines = lines[len(content) > _TAIL_BYTES :]  # the first one was cut in two
            shown = [told for line in lines if (told := _for_people(line))]
            text += "".join(f"\n  {file.name}: {line}" for line in shown[-10:])
    return text


def _for_people(line: str) -> str:
    """A line of a log as an error message shows it; nothing of what went well."""
    try:
        read = json.loads(line)
    except ValueError:
        return line
    if not isinstance(read, dict) or read.get("level", "info") == "info":
        return ""
    trace = str(read.get("traceback", "")).strip().splitlines()
    facts = {k: v for k, v in read.items() if k not in ("time_ns", "level", "event", "traceback")}
    return f"{read['event']} {facts}" + (f": {trace[-1]}" if trace else "")


def wait_for_end(pids: Sequence[int], timeout_s: float) -> list[int]:
    """Wait until the processes have ended; those that have not."""
    deadline_ns = clock.SYSTEM_CLOCK.monotonic_ns() + int(timeout_s * clock.NS_PER_S)
    running = {pid: fd for pid in pids if (fd := process.open_pidfd(pid)) is not None}
    left = []
    for pid, fd in running.items():
        poller = select.poll()
        poller.register(fd, select.POLLIN)
        left_ns = deadline_ns - clock.SYSTEM_CLOCK.monotonic_ns()
        if not poller.poll(max(0, left_ns) / clock.NS_PER_MS):
            left.append(pid)
        os.close(fd)
    return left


def stop_orphans(path: Path, timeout_s: float) -> list[int]:
    """Stop the brokers that have no supervisor, and clean up after them; their pids.

    Raises: RequestTimedOut: one has not ended within `timeout_s`.
    """
    cluster = directory.load_cluster(path)
    owners = [registry.data_dir_owner(place) for place in cluster.data_dirs.values()]
    orphans = [pid for pid in owners if pid is not None and pid > 0]
    for pid in orphans:
        process.kill(pid, signal.SIGTERM)
        process.kill(pid, signal.SIGCONT)  # one that was paused hears it only so
    left = wait_for_end(orphans, timeout_s)
    if left:
        raise RequestTimedOut(f"broker process {left[0]} has not ended within {timeout_s:g} s")
    for broker in cluster.brokers:
        directory.unlink_memory_of_dead(cluster, broker)
    return orphans
