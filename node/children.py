"""A broker process as its supervisor sees it: start, death, what follows.

    starting --registered--> ready --death--> backoff --time--> starting
        |                                        ^
        +----------------- death ----------------+
    any --death while stopping, or exit code 2 or 7--> stopped

A child has a session of its own, so that a Ctrl-C at the terminal reaches only the supervisor.
When one dies, its registration is stamped with the time and its shared memory is unlinked at once,
by its list: nothing in a dead incarnation's rings matters. The pause before the next start doubles
from 100 ms to 1 s and begins anew after 10 s of life.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shmlog import process, registry
from shmlog.clock import NS_PER_MS, NS_PER_S
from shmlog.control import BrokerStatus, State
from shmlog.directory import (
    BrokerEntry,
    broker_log,
    registry_file,
    stamp_death,
    unlink_memory_of_dead,
)

BACKOFF_MIN_MS = 100
BACKOFF_MAX_MS = 1000
SETTLED_NS = 10 * NS_PER_S  # whoever lived so long did not die of its start
FINAL_EXIT_CODES = (2, 7)  # wrong configuration, damage: the next start would end the same way

Event = dict[str, Any]


def backoff_ms(previous_ms: int, lived_ns: int) -> int:
    """The pause before the next start, from the pause before the last one (0 = none yet)."""
    if previous_ms == 0 or lived_ns >= SETTLED_NS:
        return BACKOFF_MIN_MS
    return min(2 * previous_ms, BACKOFF_MAX_MS)


class Child:
    """One broker and its current process, if any. Every method takes monotonic `now_ns`."""

    def __init__(
        self,
        path: Path,
        broker: int,
        command: list[str],
        emit: Callable[[Event], None],
        *,
        log: bool,
    ) -> None:
        self.broker = broker
        self.state = State.STOPPED
        self.restarts = 0
        self.pidfd = -1
        self.exit_code = 0
        self.due_ns = 0  # in BACKOFF: when to start again
        self._path = path
        self._command = command
        self._emit = emit
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._started_ns = 0
        self._backoff_ms = 0

    @property
    def status(self) -> BrokerStatus:
        """As `status` answers it."""
        pid = self._process.pid if self._process is not None else None
        return BrokerStatus(broker=self.broker, pid=pid, state=self.state, restarts=self.restarts)

    @property
    def running(self) -> bool:
        """A process exists that has not been waited for."""
        return self._process is not None

    def start(self, now_ns: int) -> None:
        """Start a process; `pidfd` becomes readable when it ends."""
        unlink_memory_of_dead(self._path, self.broker)
        output = self._open_output()
        try:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        finally:
            if self._log:
                os.close(output)
        self.pidfd = os.pidfd_open(self._process.pid)
        self.state = State.STARTING
        self._started_ns = now_ns

    def maybe_ready(self) -> bool:
        """STARTING -> READY once this very process has published its registration."""
        assert self._process is not None
        found = registry.read(registry_file(self._path, self.broker), BrokerEntry)
        if found is None or not found.alive or found.entry.pid != self._process.pid:
            return False
        self.state = State.READY
        self._emit(
            {
                "event": "ready",
                "broker": self.broker,
                "pid": self._process.pid,
                "incarnation": found.entry.incarnation,
            }
        )
        return True

    def handle_death(self, now_ns: int, *, stopping: bool) -> None:
        """The process has ended: clean up after it and decide what follows."""
        assert self._process is not None
        returncode = self._process.wait()
        event: Event = {"event": "exit", "broker": self.broker, "pid": self._process.pid}
        event |= {"signal": -returncode} if returncode < 0 else {"code": returncode}
        lived_ns = now_ns - self._started_ns
        event["lived_ms"] = lived_ns // NS_PER_MS
        os.close(self.pidfd)
        self._process, self.pidfd = None, -1
        self.exit_code = returncode
        stamp_death(self._path, self.broker)
        unlink_memory_of_dead(self._path, self.broker)
        if stopping or returncode in FINAL_EXIT_CODES:
            self.state = State.STOPPED
            event["unexpected"] = not stopping
        else:
            self.state = State.BACKOFF
            self.restarts += 1
            self._backoff_ms = backoff_ms(self._backoff_ms, lived_ns)
            self.due_ns = now_ns + self._backoff_ms * NS_PER_MS
            event["backoff_ms"] = self._backoff_ms
        self._emit(event)

    def stop(self) -> None:
        """Ask the process to end, or forget the one that was due."""
        if self._process is None:
            self.state = State.STOPPED
        else:
            process.kill(self._process.pid, signal.SIGTERM)

    def kill(self, waited_ms: int) -> None:
        """End a process that did not stop when asked."""
        if self._process is not None:
            self._emit(
                {
                    "event": "killed",
                    "broker": self.broker,
                    "pid": self._process.pid,
                    "waited_ms": waited_ms,
                }
            )
            process.kill(self._process.pid, signal.SIGKILL)

    def _open_output(self) -> int:
        if not self._log:
            return 2
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        return os.open(broker_log(self._path, self.broker), flags, 0o600)
