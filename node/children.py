"""A broker process as its supervisor sees it: start, death, what follows.

    backoff --time--> starting --registered--> ready
       ^                  |                      |
       +------------------+-------- death -------+
    any --death while stopping, or exit code 2 or 7--> stopped --restart--> backoff

The first start is a backoff of no time. A child has a session of its own, so that a Ctrl-C at the
terminal reaches only the supervisor. When one dies, its registration is stamped with the time and
its shared memory is unlinked at once, by its list: nothing in a dead incarnation's rings matters.
The pause before the next start doubles from 100 ms to 1 s and begins anew after 10 s of life.

A broker that outlived the supervisor before this one is *adopted*: watched by a pidfd (E4), which
tells of its death but not of an exit code. While somebody owns the data and is not registered, it
starts or stops by itself: it is waited for, and signalled by nobody before it is known.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable
from typing import Any

from shmlog import directory, process, registry
from shmlog.clock import NS_PER_MS, NS_PER_S
from shmlog.control import BrokerStatus, State

BACKOFF_MIN_MS = 100
BACKOFF_MAX_MS = 1000
START_POLL_NS = 10 * NS_PER_MS
SETTLED_NS = 10 * NS_PER_S  # whoever lived so long did not die of its start
EXIT_CONFIGURATION, EXIT_DAMAGED = 2, 7  # the next start would end the same way

Event = dict[str, Any]


def backoff_ms(previous_ms: int, lived_ns: int) -> int:
    """The pause before the next start, from the pause before the last one (0 = none yet)."""
    if previous_ms == 0 or lived_ns >= SETTLED_NS:
        return BACKOFF_MIN_MS
    return min(2 * previous_ms, BACKOFF_MAX_MS)


class Child:
    """One broker and its current process, if any. Every method takes monotonic `now_ns`.

    Invariant: `pidfd` is open exactly while `pid` is known; `_process` is None for an adopted one.
    """

    def __init__(
        self,
        cluster: directory.ClusterFile,
        broker: int,
        command: list[str],
        emit: Callable[[Event], None],
        *,
        log: bool,
    ) -> None:
        self.broker = broker
        self.state = State.BACKOFF
        self.due_ns: int | None = 0  # when to call `turn` though nothing has happened
        self.pid: int | None = None
        self.pidfd: int | None = None  # readable when the process has ended: call `turn`
        self.incarnation = 0  # of the last process that was ready
        self.exit_code = 0
        self._cluster = cluster
        self._path = cluster.path
        self._command = command
        self._emit = emit
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._started_ns = 0
        self._asked_ns: int | None = None  # when it was asked to end
        self._kill_ns = 0
        self._starts_again = False  # it was asked to end for a restart
        self._backoff_ms = 0
        self._lives = 0

    @property
    def status(self) -> BrokerStatus:
        """As `status` answers it."""
        return BrokerStatus(
            broker=self.broker,
            pid=self.pid,
            state=self.state,
            restarts=max(0, self._lives - 1),
        )

    def turn(self, now_ns: int) -> None:
        """Whatever the time, a death or a registration asks for."""
        if self.pidfd is not None and process.has_ended(self.pidfd):
            self._handle_death(now_ns)
        if self.due_ns is None or now_ns < self.due_ns:
            return
        if self.pidfd is None:
            self._begin(now_ns)
        elif self._asked_ns is not None:
            self._kill(now_ns)
        else:
            self._maybe_ready(now_ns)

    def stop(self, now_ns: int, kill_ns: int) -> None:
        """End the process for good, with force at `kill_ns`; or forget the one that was due."""
        self._starts_again = False
        self._ask_to_end(now_ns, kill_ns)

    def restart(self, now_ns: int, kill_ns: int) -> None:
        """End the process as `stop` does and start the next at once; one that is gone, too."""
        self._starts_again = True
        self._ask_to_end(now_ns, kill_ns)

    def _ask_to_end(self, now_ns: int, kill_ns: int) -> None:
        self._asked_ns, self._kill_ns = now_ns, kill_ns
        if self.pidfd is None:
            self.due_ns = now_ns
        else:
            self.due_ns = kill_ns
            process.signal_to(self.pidfd, signal.SIGTERM)
            process.signal_to(self.pidfd, signal.SIGCONT)  # a paused one hears it only so

    def _kill(self, now_ns: int) -> None:
        assert self.pidfd is not None
        assert self._asked_ns is not None
        self.due_ns = None
        self._say("killed", waited_ms=(now_ns - self._asked_ns) // NS_PER_MS)
        process.signal_to(self.pidfd, signal.SIGKILL)

    # -- birth --------------------------------------------------------------------------------

    def _begin(self, now_ns: int) -> None:
        """Adopt the process that lives, wait for one that is not known yet, or start one."""
        living = directory.watch_broker(self._path, self.broker)
        owner = registry.data_dir_owner(self._cluster.data_dirs[self.broker])
        stopping = self._asked_ns is not None
        if living is not None:
            self._adopt(*living, now_ns)
        elif owner is not None and not (stopping and now_ns >= self._kill_ns):
            self.state, self.due_ns = State.STARTING, now_ns + START_POLL_NS
        elif owner is not None:
            self.due_ns = now_ns + START_POLL_NS
            if owner > 0:
                process.kill(owner)
        elif stopping and not self._starts_again:
            self.state, self.due_ns = State.STOPPED, None
        else:
            self._start(now_ns)

    def _adopt(self, entry: directory.BrokerEntry, pidfd: int, now_ns: int) -> None:
        self.pid, self.pidfd, self._started_ns = entry.pid, pidfd, now_ns
        self._lives += 1
        if self._asked_ns is not None:
            self._ask_to_end(self._asked_ns, self._kill_ns)
        else:
            self._be_ready(entry, adopted=True)

    def _start(self, now_ns: int) -> None:
        directory.unlink_memory_of_dead(self._cluster, self.broker)
        log = directory.broker_log(self._path, self.broker)
        with directory.open_log(log) if self._log else contextlib.nullcontext(2) as output:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self.pid, self.pidfd = self._process.pid, os.pidfd_open(self._process.pid)
        self.state, self.due_ns = State.STARTING, now_ns + START_POLL_NS
        self._started_ns = now_ns
        self._lives += 1
        self._asked_ns, self._starts_again = None, False

    def _maybe_ready(self, now_ns: int) -> None:
        """It serves once this very process has published its registration."""
        self.due_ns = now_ns + START_POLL_NS
        entry = directory.read_brokers(self._path).get(self.broker)
        if entry is not None and entry.pid == self.pid:
            self._be_ready(entry)

    def _be_ready(self, entry: directory.BrokerEntry, **how: bool) -> None:
        self.state, self.due_ns = State.READY, None
        self.incarnation = entry.incarnation
        self._say("ready", incarnation=entry.incarnation, **how)

    # -- death --------------------------------------------------------------------------------

    def _handle_death(self, now_ns: int) -> None:
        """Clean up after the process and decide what follows."""
        assert self.pidfd is not None
        os.close(self.pidfd)
        code = None if self._process is None else self._process.wait()
        pid, self.pid = self.pid, None
        self._process = self.pidfd = None
        self.exit_code = code or 0
        directory.stamp_death(self._path, self.broker)
        directory.unlink_memory_of_dead(self._cluster, self.broker)
        lived_ns = now_ns - self._started_ns
        event: Event = {}
        if code is not None:
            event = {"signal": -code} if code < 0 else {"code": code}
        event["lived_ms"] = lived_ns // NS_PER_MS
        event["unexpected"] = self._asked_ns is None
        if self._asked_ns is not None:
            self.state, self.due_ns = State.BACKOFF, now_ns  # `_begin` knows what follows
        elif self._is_final(code):
            self.state, self.due_ns = State.STOPPED, None
        else:
            self.state = State.BACKOFF
            event["backoff_ms"] = self._backoff_ms = backoff_ms(self._backoff_ms, lived_ns)
            self.due_ns = now_ns + self._backoff_ms * NS_PER_MS
        self._say("exit", pid, **event)

    def _is_final(self, code: int | None) -> bool:
        """No other start: unless it only found that another process is this broker."""
        if code == EXIT_CONFIGURATION:
            return registry.data_dir_owner(self._cluster.data_dirs[self.broker]) is None
        return code == EXIT_DAMAGED

    def _say(self, event: str, pid: int | None = None, **fields: Any) -> None:
        who = {"broker": self.broker, "pid": self.pid if pid is None else pid}
        self._emit({"event": event, **who, **fields})
