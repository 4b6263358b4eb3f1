"""A broker process as its supervisor sees it: start, death, what follows.

    backoff --time--> starting --registered--> ready
       ^                  |                      |
       +------------------+-------- death -------+
    any --death while stopping, or exit code 2 or 7--> stopped

The first start is a backoff of no time. A child has a session of its own, so that a Ctrl-C at the
terminal reaches only the supervisor. When one dies, its registration is stamped with the time and
its shared memory is unlinked at once, by its list: nothing in a dead incarnation's rings matters.
The pause before the next start doubles from 100 ms to 1 s and begins anew after 10 s of life.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shmlog import directory, process
from shmlog.clock import NS_PER_MS, NS_PER_S
from shmlog.control import BrokerStatus, State

BACKOFF_MIN_MS = 100
BACKOFF_MAX_MS = 1000
START_POLL_NS = 10 * NS_PER_MS
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
        self.state = State.BACKOFF
        self.due_ns: int | None = 0  # when to call `turn` though nothing has happened
        self.pidfd: int | None = None  # readable when the process has ended: call `turn`
        self.exit_code = 0
        self._path = path
        self._broker = broker
        self._command = command
        self._emit = emit
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._started_ns = 0
        self._stopped_ns: int | None = None  # when it was asked to stop
        self._backoff_ms = 0
        self._restarts = 0

    @property
    def status(self) -> BrokerStatus:
        """As `status` answers it."""
        return BrokerStatus(
            broker=self._broker,
            pid=self._process.pid if self._process is not None else None,
            state=self.state,
            restarts=self._restarts,
        )

    def turn(self, now_ns: int) -> None:
        """Whatever the time, a death or a registration asks for."""
        if self._process is None:
            if self.due_ns is not None and now_ns >= self.due_ns:
                self._start(now_ns)
        elif (code := self._process.poll()) is not None:
            self._handle_death(self._process.pid, code, now_ns)
        elif self._stopped_ns is not None:
            if self.due_ns is not None and now_ns >= self.due_ns:
                self.due_ns = None
                waited_ms = (now_ns - self._stopped_ns) // NS_PER_MS
                self._say("killed", self._process.pid, waited_ms=waited_ms)
                process.kill(self._process.pid)
        elif self.state is State.STARTING:
            self.due_ns = now_ns + START_POLL_NS
            self._maybe_ready(self._process.pid)

    def stop(self, now_ns: int, kill_ns: int) -> None:
        """Ask the process to end, and kill it at `kill_ns`; or forget the one that was due."""
        self._stopped_ns = now_ns
        if self._process is None:
            self.state, self.due_ns = State.STOPPED, None
        else:
            self.due_ns = kill_ns
            process.kill(self._process.pid, signal.SIGTERM)

    def _start(self, now_ns: int) -> None:
        directory.unlink_memory_of_dead(self._path, self._broker)
        log = directory.broker_log(self._path, self._broker)
        with directory.open_log(log) if self._log else contextlib.nullcontext(2) as output:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self.pidfd = os.pidfd_open(self._process.pid)
        self.state, self.due_ns = State.STARTING, now_ns + START_POLL_NS
        self._started_ns = now_ns

    def _maybe_ready(self, pid: int) -> None:
        """It serves once this very process has published its registration."""
        entry = directory.read_brokers(self._path).get(self._broker)
        if entry is not None and entry.pid == pid:
            self.state, self.due_ns = State.READY, None
            self._say("ready", pid, incarnation=entry.incarnation)

    def _handle_death(self, pid: int, code: int, now_ns: int) -> None:
        """Clean up after the process and decide what follows."""
        assert self.pidfd is not None
        os.close(self.pidfd)
        self._process = self.pidfd = self.due_ns = None
        self.exit_code = code
        directory.stamp_death(self._path, self._broker)
        directory.unlink_memory_of_dead(self._path, self._broker)
        lived_ns = now_ns - self._started_ns
        event: Event = {"signal": -code} if code < 0 else {"code": code}
        event["lived_ms"] = lived_ns // NS_PER_MS
        if self._stopped_ns is not None or code in FINAL_EXIT_CODES:
            self.state = State.STOPPED
            event["unexpected"] = self._stopped_ns is None
        else:
            self.state = State.BACKOFF
            self._restarts += 1
            event["backoff_ms"] = self._backoff_ms = backoff_ms(self._backoff_ms, lived_ns)
            self.due_ns = now_ns + self._backoff_ms * NS_PER_MS
        self._say("exit", pid, **event)

    def _say(self, event: str, pid: int, **fields: Any) -> None:
        self._emit({"event": event, "broker": self._broker, "pid": pid, **fields})
