"""`shmlog dev`: a throw-away cluster whose life is shown in a terminal.

The supervisor is a child that speaks JSON lines into a pipe. It watches this process: when it
ends, even by kill -9, brokers and directory go. While it runs, the registration of `dev` lets
every client of this user find the cluster without naming it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from shmlog import __version__, clock, control, directory, launch, process
from shmlog.cli.main import INTERRUPTED
from shmlog.errors import ServerError
from shmlog.settings import TOPIC_SETTINGS, format_size

_INDENT = " " * 24


def _shared_memory_text() -> str:
    info = os.statvfs("/dev/shm")
    total = info.f_frsize * info.f_blocks
    ring = TOPIC_SETTINGS["ring_bytes"].default
    return (
        f"rings of {format_size(ring)}, in all at most {format_size(total // 2)} "
        f"of the {format_size(total)} in /dev/shm"
    )


def run_dev(brokers: int, *, keep: bool, say: Callable[[str], None]) -> int:
    """Run until Ctrl-C (raised as KeyboardInterrupt); the exit status."""
    started_ns = clock.SYSTEM_CLOCK.monotonic_ns()
    path = Path(tempfile.mkdtemp(prefix="shmlog-dev-", dir="/tmp"))
    try:
        directory.create_cluster(path, brokers, settings={"auto_create_topics": True})
        count = f"{brokers} broker{'s' if brokers > 1 else ''}"
        say(f"shmlog {__version__}   throw-away cluster, {count}, topics appear on first use")
        say(f"  directory  {path}     {_shared_memory_text()}")
        with directory.register_dev(path):
            return _Dev(path, brokers, started_ns, keep, say).run()
    finally:
        if not keep:
            shutil.rmtree(path, ignore_errors=True)


class _Dev:
    def __init__(
        self, path: Path, brokers: int, started_ns: int, keep: bool, say: Callable[[str], None]
    ) -> None:
        self._path = path
        self._waiting = brokers  # until the first word that all are ready
        self._started_ns = started_ns
        self._keep = keep
        self._say = say
        self._stopping = False

    def run(self) -> int:
        options = ["--logs", "--owner-pid", str(os.getpid())]
        options += [] if self._keep else ["--remove"]
        command = launch.supervisor_command(self._path, *options)
        supervisor = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
            text=True,
        )
        assert supervisor.stderr is not None
        with supervisor.stderr as lines:
            while True:
                try:
                    for line in lines:
                        self._show(line.rstrip("\n"))
                    break
                except KeyboardInterrupt:
                    self._stopping = True
                    self._say("\nstopping")
                    process.kill(supervisor.pid, signal.SIGTERM)
        code = supervisor.wait()
        if code < 0:  # killed: its brokers are ending by themselves, what they had mapped stays
            launch.stop_orphans(self._path, launch.STOP_TIMEOUT_S)
        if not self._stopping:
            raise ServerError(f"the supervisor ended with exit code {code}")
        what = f"kept {self._path}" if self._keep else f"removed {self._path}"
        self._say(f"stopped, {what}")
        return INTERRUPTED

    def _show(self, line: str) -> None:
        if not line.startswith("{"):
            self._say(line)
            return
        event = json.loads(line)
        kind = event["event"]
        if kind == "ready":
            again = f"{_INDENT}broker {event['broker']} (pid {event['pid']}) ready again"
            self._say(f"  {control.event_text(event)}" if self._waiting else again)
            if self._waiting:
                self._waiting -= 1
                if not self._waiting:
                    self._all_ready()
        elif kind == "exit" and not self._stopping:
            self._say(_INDENT + control.event_text(event))
            if "code" in event:
                self._say(launch.log_tail(self._path, 0).lstrip("\n"))
        elif kind == "killed":
            self._say(_INDENT + control.event_text(event))

    def _all_ready(self) -> None:
        took_s = (clock.SYSTEM_CLOCK.monotonic_ns() - self._started_ns) / clock.NS_PER_S
        self._say(f"ready in {took_s:.1f} s. In another shell:")
        self._say("  echo hello | shmlog produce greetings")
        self._say("  shmlog consume greetings")
        ending = "stops the brokers" if self._keep else "stops the brokers and removes everything"
        self._say(f"Ctrl-C {ending}.")
