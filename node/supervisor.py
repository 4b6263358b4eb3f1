"""The supervisor (`python -P -m node.supervisor --dir DIR`): starts brokers and keeps them up.

One thread, one poll loop over: the control socket, the death of each broker (pidfd), the death of
the owner (`--owner-pid`), and requests to stop. It holds no data: when it is killed its brokers
live on, and the next supervisor of the directory adopts them (children.py).
A cluster that has an owner is not to outlive it: its brokers end with their supervisor.

It ends with 0 when it was stopped, with 2 if it may not start (configuration, somebody lives
there), and, when no broker is left to be started again, with the exit code of the last one that
gave up.

It owns the zmq sockets of `node` beside the brokers' wire: a ROUTER for control (shmlog.control says
what is asked), so small that it answers in line, and during a restart one to ask brokers (health.py).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import zmq

from node.children import Child, Event
from node.health import Asker
from node.restart import Restart
from shmlog import directory, process, registry
from shmlog.clock import NS_PER_MS, NS_PER_S, SYSTEM_CLOCK
from shmlog.control import ControlRequest, State, StatusAnswer, event_text
from shmlog.errors import Backpressure, BrokerGone, InvalidConfig, InvalidRequest, ShmlogError
from shmlog.protocol.header import HEADER_SIZE_MAX, codec_of, decode, encode

STOP_GRACE_NS = 10 * NS_PER_S


def broker_command(path: Path, broker: int) -> list[str]:
    """How a broker process is started."""
    return [sys.executable, "-P", "-m", "node", "--dir", str(path), "--id", str(broker)]


def print_event(event: Event) -> None:
    """One line on standard error: text on a terminal, else JSON. A lost reader ends nothing."""
    with contextlib.suppress(OSError):
        text = event_text(event) if sys.stderr.isatty() else json.dumps(event)
        print(text, file=sys.stderr, flush=True)


class _Asked(NamedTuple):
    """A question to the supervisor, and the way back."""

    envelope: list[bytes]
    header: bytes
    id: int | None


class Supervisor:
    """Keeps the brokers of one directory running until it is asked to stop; used once."""

    def __init__(
        self,
        path: Path,
        *,
        brokers: int | None = None,
        owner_pid: int | None = None,
        logs: bool = False,
        command: Callable[[Path, int], list[str]] = broker_command,
        emit: Callable[[Event], None] = print_event,
    ) -> None:
        """Make or load the cluster; refuse a directory where somebody lives. Starts nothing yet.

        Raises: InvalidConfig: the directory, its cluster.toml, or a living owner.
        """
        self.path = directory.absolute(path)
        self._endpoint = f"ipc://{directory.supervisor_socket(self.path)}"
        self._cluster = directory.open_cluster(self.path, brokers)
        living = directory.read_supervisor(self.path)
        if living is not None:
            raise InvalidConfig(
                f"a supervisor already runs on {self.path} (pid {living.pid})", pid=living.pid
            )
        self._emit = emit
        bound = [] if owner_pid is None else ["--owner-pid", str(os.getpid())]
        self._children = [
            Child(self._cluster, broker, [*command(self.path, broker), *bound], emit, log=logs)
            for broker in self._cluster.brokers
        ]
        self._reason = ""  # why to stop; empty: go on
        self._stopping = False
        self._owner_fd = None if owner_pid is None else process.open_pidfd(owner_pid)
        if owner_pid is not None and self._owner_fd is None:
            self._reason = "owner is gone"
        self._wake_fd = os.eventfd(0)
        self._waiting: list[_Asked] = []  # `down`, not answered yet
        self._restart: Restart | None = None

    def request_stop(self, reason: str) -> None:
        """Stop brokers and end `run`. May be called from a signal handler or another thread."""
        self._reason = self._reason or reason
        os.eventfd_write(self._wake_fd, 1)

    def run(self) -> int:
        """Supervise until stopped; the exit code of the process."""
        registration = registry.Registration(directory.supervisor_file(self.path))
        registration.publish(
            directory.SupervisorEntry(
                cluster=self._cluster.cluster,
                pid=os.getpid(),
                boot_id=process.boot_id(),
                endpoints={"control": self._endpoint},
                started=SYSTEM_CLOCK.wall_ns(),
            )
        )
        with contextlib.closing(registration), zmq.Context() as context:
            with context.socket(zmq.ROUTER) as socket:
                socket.linger = 1000  # the last answer to `down` is on its way when the loop ends
                socket.maxmsgsize = HEADER_SIZE_MAX
                socket.bind(self._endpoint)
                self._asker = Asker(self.path, context)
                directory.supervisor_socket(self.path).chmod(0o600)
                self._emit({"event": "started", "pid": os.getpid(), "directory": str(self.path)})
                try:
                    self._loop(socket)
                finally:
                    self._asker.forget()
            directory.supervisor_socket(self.path).unlink(missing_ok=True)
        self._emit({"event": "stopped", "pid": os.getpid()})
        return 0 if self._stopping else max(child.exit_code for child in self._children)

    def _loop(self, socket: zmq.Socket[bytes]) -> None:
        while True:
            now_ns = SYSTEM_CLOCK.monotonic_ns()
            if self._reason and not self._stopping:
                self._begin_stop(now_ns)
            for child in self._children:
                child.turn(now_ns)
            if self._restart is not None and now_ns >= self._restart.due_ns:
                self._restart = None if self._restart.turn(now_ns) else self._restart
            elif self._restart is None and all(
                child.state is State.STOPPED for child in self._children
            ):
                break
            self._wait(socket)
        for asked in self._waiting:
            self._answer(socket, asked)

    def _begin_stop(self, now_ns: int) -> None:
        self._stopping = True
        self._emit({"event": "stopping", "reason": self._reason, "pid": os.getpid()})
        if self._restart is not None:
            self._restart.cancel(BrokerGone("the cluster is stopped, the restart was given up"))
            self._restart = None
        for child in self._children:
            child.stop(now_ns, now_ns + STOP_GRACE_NS)

    def _wait(self, socket: zmq.Socket[bytes]) -> None:
        """Until something happens or somebody is due."""
        poller = zmq.Poller()
        fds = [child.pidfd for child in self._children]
        for waited in (socket, self._asker.socket, self._wake_fd, self._owner_fd, *fds):
            if waited is not None:
                poller.register(waited, zmq.POLLIN)
        due = [child.due_ns for child in self._children if child.due_ns is not None]
        due += [] if self._restart is None else [self._restart.due_ns]
        left_ns = max(0, min(due) - SYSTEM_CLOCK.monotonic_ns()) if due else None
        ready = dict(poller.poll(None if left_ns is None else -(-left_ns // NS_PER_MS)))
        if self._wake_fd in ready:
            os.eventfd_read(self._wake_fd)
        if self._owner_fd is not None and self._owner_fd in ready:
            os.close(self._owner_fd)
            self._owner_fd = None
            self._reason = self._reason or "owner is gone"
        if socket in ready:
            self._receive(socket)

    # -- control ------------------------------------------------------------------------------

    def _receive(self, socket: zmq.Socket[bytes]) -> None:
        identity, *frames = socket.recv_multipart()
        envelope = [identity]
        if frames and not frames[0]:
            envelope.append(frames.pop(0))  # a REQ socket's; a header is never empty
        asked = _Asked(envelope, frames[0] if frames else b"{", None)
        try:
            request = decode(asked.header, ControlRequest)
            asked = asked._replace(id=request.id)
            if request.op == "down":
                self._waiting.append(asked)
                self._reason = self._reason or "down"
            elif request.op == "restart":
                self._begin_restart(request, lambda error: self._answer(socket, asked, error))
            elif request.op == "status":
                self._answer(socket, asked)
            else:
                raise InvalidRequest(
                    f"unknown operation {request.op!r}; there are status, down and restart"
                )
        except ShmlogError as error:
            self._answer(socket, asked, error)

    def _begin_restart(
        self, request: ControlRequest, done: Callable[[ShmlogError | None], None]
    ) -> None:
        if request.rolling == (request.broker is not None):
            raise InvalidRequest("restart: name a broker, or say rolling")
        wanted = [c for c in self._children if request.rolling or c.broker == request.broker]
        if not wanted:
            known = ", ".join(str(child.broker) for child in self._children)
            raise InvalidRequest(f"restart: there is no broker {request.broker}, only {known}")
        if self._restart is not None:
            raise Backpressure(f"{self._restart.text} is being restarted\n  wait until it is done")
        if self._reason:
            raise BrokerGone("the cluster is stopped, nothing is restarted")
        now_ns = SYSTEM_CLOCK.monotonic_ns()
        self._restart = Restart(wanted, self._asker, now_ns, STOP_GRACE_NS, done)

    def _answer(
        self, socket: zmq.Socket[bytes], asked: _Asked, error: ShmlogError | None = None
    ) -> None:
        answer = StatusAnswer(id=asked.id)
        if error is None:
            answer.brokers = [child.status for child in self._children]
        else:
            answer.error, answer.name, answer.message = int(error.code), error.name, str(error)
        # A ROUTER drops what is for somebody who has left: nobody misses it.
        socket.send_multipart([*asked.envelope, encode(answer, codec_of(asked.header))])


def main() -> int:
    """The process: arguments, signals, and what is left of a throw-away cluster."""
    parser = argparse.ArgumentParser(prog="python -P -m node.supervisor")
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("-n", "--brokers", type=int)
    parser.add_argument("--owner-pid", type=int, help="stop when this process ends")
    parser.add_argument("--remove", action="store_true", help="remove the directory after a stop")
    parser.add_argument("--logs", action="store_true", help="brokers write to run/broker-N.log")
    options = parser.parse_args()
    os.umask(0o077)
    process.raise_descriptor_limit()
    try:
        supervisor = Supervisor(
            options.dir, brokers=options.brokers, owner_pid=options.owner_pid, logs=options.logs
        )
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(
                signum, lambda number, _: supervisor.request_stop(signal.Signals(number).name)
            )
        code = supervisor.run()
    except ShmlogError as error:
        print(error, file=sys.stderr)
        return error.exit_status
    if options.remove and code == 0:  # after a failure whoever reads the logs removes them
        shutil.rmtree(supervisor.path)
    return code


if __name__ == "__main__":
    sys.exit(main())
