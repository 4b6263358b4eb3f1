"""The supervisor (`python -P -m node.supervisor --dir DIR`): starts brokers and keeps them up.

One thread, one poll loop over: the control socket, the death of each broker (pidfd), the death of
the owner (`--owner-pid`), and stop requests from signals. It holds no data: when it is killed the
brokers live on, and until they are stopped with `shmlog down` no other supervisor starts on the
directory.

It ends with 0 when it was stopped, with 2 if it may not start (configuration, somebody lives
there), and, when no broker is left to be started again, with the exit code of the last one that
gave up.

It owns the one zmq socket of `node` beside the brokers' wire: a ROUTER for control (shmlog.control
says what is asked), so small that it answers in line.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import zmq

from node.children import Child, Event
from shmlog import directory, process, registry
from shmlog.clock import NS_PER_MS, NS_PER_S, SYSTEM_CLOCK, Clock
from shmlog.control import State, StatusAnswer, event_text
from shmlog.errors import Code, InvalidConfig, InvalidRequest, ShmlogError
from shmlog.protocol.header import HEADER_SIZE_MAX, codec_of, decode, encode
from shmlog.protocol.messages import Request

START_POLL_MS = 10
STOP_GRACE_NS = 10 * NS_PER_S


def broker_command(path: Path, broker: int) -> list[str]:
    """How a broker process is started."""
    return [sys.executable, "-P", "-m", "node", "--dir", str(path), "--id", str(broker)]


def print_event(event: Event) -> None:
    """One line on standard error: text on a terminal, else JSON. A lost reader ends nothing."""
    text = event_text(event) if sys.stderr.isatty() else json.dumps(event)
    try:
        sys.stderr.write(text + "\n")
        sys.stderr.flush()
    except OSError:
        pass


class Supervisor:
    """Keeps the brokers of one directory running until it is asked to stop."""

    def __init__(
        self,
        path: Path,
        *,
        brokers: int | None = None,
        owner_pid: int | None = None,
        logs: bool = False,
        command: Callable[[Path, int], list[str]] = broker_command,
        emit: Callable[[Event], None] = print_event,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        """Make or load the cluster; refuse a directory where somebody lives. Starts nothing yet.

        Raises: InvalidConfig: the directory, its cluster.toml, or a living owner.
        """
        self.path = directory.absolute(path)
        self._endpoint = f"ipc://{directory.supervisor_socket(self.path)}"
        self._cluster = directory.open_cluster(self.path, brokers)
        self._emit = emit
        self._clock = clock
        self._refuse_the_living()
        self._children = [
            Child(self.path, b, command(self.path, b), emit, log=logs)
            for b in self._cluster.brokers
        ]
        self._owner_fd = -1
        self._reason = ""  # why to stop; empty: go on
        if owner_pid is not None:
            fd = process.open_pidfd(owner_pid)
            self._owner_fd, self._reason = (-1, "owner is gone") if fd is None else (fd, "")
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._stop_since_ns: int | None = None
        self._killed = False
        self._waiting: list[tuple[list[bytes], Request, bytes]] = []  # `down`, not answered yet

    def _refuse_the_living(self) -> None:
        living = directory.read_supervisor(self.path)
        if living is not None:
            raise InvalidConfig(
                f"a supervisor already runs on {self.path} (pid {living.pid})", pid=living.pid
            )
        for broker in self._cluster.brokers:
            owner = registry.data_dir_owner(directory.data_dir(self.path, broker))
            if owner is not None:
                raise InvalidConfig(
                    f"broker {broker} (pid {owner}) runs on {self.path} without a supervisor: "
                    f"stop it first with shmlog -d {self.path} down",
                    pid=owner,
                )

    def request_stop(self, reason: str) -> None:
        """Stop brokers and end `run`. May be called from a signal handler or another thread."""
        self._reason = self._reason or reason
        try:
            os.write(self._wake_write, b"x")
        except BlockingIOError:
            pass  # the pipe is full of wake-ups already

    def run(self) -> int:
        """Supervise until stopped; the exit code of the process."""
        registration = registry.Registration(directory.supervisor_file(self.path))
        registration.publish(
            directory.SupervisorEntry(
                cluster=self._cluster.cluster,
                pid=os.getpid(),
                boot_id=process.boot_id(),
                endpoints={"control": self._endpoint},
                started=self._clock.wall_ns(),
            )
        )
        context = zmq.Context()
        socket = context.socket(zmq.ROUTER)
        try:
            socket.maxmsgsize = HEADER_SIZE_MAX
            socket.bind(self._endpoint)
            self._emit({"event": "started", "pid": os.getpid(), "directory": str(self.path)})
            self._loop(socket)
        finally:
            socket.close(linger=1000)  # the last answer to `down` is on its way
            context.term()
            directory.supervisor_socket(self.path).unlink(missing_ok=True)
            registration.close()
            for fd in (self._wake_read, self._wake_write, self._owner_fd):
                if fd >= 0:
                    os.close(fd)
        self._emit({"event": "stopped", "pid": os.getpid()})
        if self._stop_since_ns is not None:
            return 0
        return max(child.exit_code for child in self._children)

    # -- the loop -----------------------------------------------------------------------------

    def _loop(self, socket: zmq.Socket[bytes]) -> None:
        if not self._reason:
            for child in self._children:
                child.start(self._clock.monotonic_ns())
        while True:
            self._turn(self._clock.monotonic_ns())
            if all(child.state is State.STOPPED for child in self._children):
                break
            poller = zmq.Poller()
            poller.register(socket, zmq.POLLIN)
            for fd in (self._wake_read, self._owner_fd, *(c.pidfd for c in self._children)):
                if fd >= 0:
                    poller.register(fd, zmq.POLLIN)
            ready = dict(poller.poll(self._timeout_ms(self._clock.monotonic_ns())))
            self._handle(ready, socket)
        for envelope, request, header in self._waiting:
            self._answer(socket, envelope, header, self._status(request))

    def _handle(self, ready: dict[object, int], socket: zmq.Socket[bytes]) -> None:
        if self._wake_read in ready:
            os.read(self._wake_read, 4096)
        if self._owner_fd in ready:
            os.close(self._owner_fd)
            self._owner_fd = -1
            self._reason = self._reason or "owner is gone"
        for child in self._children:
            if child.pidfd in ready:
                stopping = self._stop_since_ns is not None or bool(self._reason)
                child.handle_death(self._clock.monotonic_ns(), stopping=stopping)
        if socket in ready:
            self._receive(socket)

    def _turn(self, now_ns: int) -> None:
        """Whatever time or a request for a stop asks for."""
        if self._reason and self._stop_since_ns is None:
            self._stop_since_ns = now_ns
            self._emit({"event": "stopping", "reason": self._reason, "pid": os.getpid()})
            for child in self._children:
                child.stop()
        for child in self._children:
            if child.state is State.STARTING:
                child.maybe_ready()
            elif child.state is State.BACKOFF and now_ns >= child.due_ns:
                child.start(now_ns)
        if self._stop_since_ns is not None and not self._killed:
            waited_ns = now_ns - self._stop_since_ns
            if waited_ns >= STOP_GRACE_NS:
                self._killed = True
                for child in self._children:
                    child.kill(waited_ns // NS_PER_MS)

    def _timeout_ms(self, now_ns: int) -> int | None:
        """How long nothing can be due; None: only an event can matter."""
        if any(child.state is State.STARTING for child in self._children):
            return START_POLL_MS
        due = [child.due_ns for child in self._children if child.state is State.BACKOFF]
        if self._stop_since_ns is not None and not self._killed:
            due.append(self._stop_since_ns + STOP_GRACE_NS)
        return max(0, -(-(min(due) - now_ns) // NS_PER_MS)) if due else None

    # -- control ------------------------------------------------------------------------------

    def _receive(self, socket: zmq.Socket[bytes]) -> None:
        identity, *frames = socket.recv_multipart()
        envelope = [identity]
        if frames and not frames[0]:
            envelope.append(frames.pop(0))  # a REQ socket's; a header is never empty
        header = frames[0] if frames else b"{"
        try:
            request = decode(header, Request)
            if request.op == "down":
                self._waiting.append((envelope, request, header))
                self._reason = self._reason or "down"
                return
            if request.op != "status":
                raise InvalidRequest(f"unknown operation {request.op!r}; there are status and down")
        except InvalidRequest as error:
            answer = StatusAnswer(error=Code.INVALID_REQUEST, name=error.name, message=str(error))
            self._answer(socket, envelope, header, answer)
        else:
            self._answer(socket, envelope, header, self._status(request))

    def _status(self, request: Request) -> StatusAnswer:
        return StatusAnswer(id=request.id, brokers=[child.status for child in self._children])

    def _answer(
        self, socket: zmq.Socket[bytes], envelope: list[bytes], header: bytes, answer: StatusAnswer
    ) -> None:
        # A ROUTER drops what is for somebody who has left: nobody misses it.
        socket.send_multipart([*envelope, encode(answer, codec_of(header))])


def main(arguments: list[str] | None = None) -> int:
    """The process: arguments, signals, and what is left of a throw-away cluster."""
    parser = argparse.ArgumentParser(prog="python -P -m node.supervisor")
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("-n", "--brokers", type=int)
    parser.add_argument("--owner-pid", type=int, help="stop when this process ends")
    parser.add_argument("--remove", action="store_true", help="remove the directory after a stop")
    parser.add_argument("--logs", action="store_true", help="brokers write to run/broker-N.log")
    options = parser.parse_args(arguments)
    os.umask(0o077)
    process.raise_descriptor_limit()
    try:
        supervisor = Supervisor(
            options.dir, brokers=options.brokers, owner_pid=options.owner_pid, logs=options.logs
        )

        def stop(signum: int, frame: FrameType | None) -> None:
            supervisor.request_stop(signal.Signals(signum).name)

        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(signum, stop)
        code = supervisor.run()
    except ShmlogError as error:
        print(error, file=sys.stderr)
        return error.exit_status
    if options.remove and code == 0:  # after a failure whoever reads the logs removes them
        shutil.rmtree(supervisor.path)
    return code


if __name__ == "__main__":
    sys.exit(main())
