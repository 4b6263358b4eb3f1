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
from pathlib import Path
from typing import Any

import click

from shmlog import __version__, clock, control, directory, launch, process
from shmlog.cli.main import INTERRUPTED
from shmlog.cli.run import BROKERS
from shmlog.errors import ServerError
from shmlog.settings import TOPIC_SETTINGS, format_size

_INDENT = " " * 24
_READY = """ready in {took_s:.1f} s. In another shell:
  echo hello | shmlog produce greetings
  shmlog consume greetings
Ctrl-C stops the brokers{ending}."""


@click.command()
@BROKERS
@click.option("--keep", is_flag=True, help="Keep the directory at the end.")
def dev(brokers: int | None, keep: bool) -> int:
    """Throw-away cluster in the foreground; topics appear on first use."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.default_int_handler)
    started_ns = clock.SYSTEM_CLOCK.monotonic_ns()
    path = Path(tempfile.mkdtemp(prefix="shmlog-dev-", dir="/tmp"))
    try:
        made = directory.create_cluster(path, brokers or 1, settings={"auto_create_topics": True})
        count = f"{len(made.brokers)} broker{'s' if len(made.brokers) > 1 else ''}"
        _say(f"shmlog {__version__}   throw-away cluster, {count}, topics appear on first use")
        _say(f"  directory  {path}     {_shared_memory_text()}")
        with directory.register_dev(path):
            _run(path, started_ns, keep)
    finally:
        if not keep:
            shutil.rmtree(path, ignore_errors=True)
    _say(f"stopped, {'kept' if keep else 'removed'} {path}")
    return INTERRUPTED


def _run(path: Path, started_ns: int, keep: bool) -> None:
    """Show a supervisor's life until Ctrl-C. Raises ServerError if it ends by itself."""
    options = ["--logs", "--owner-pid", str(os.getpid()), *([] if keep else ["--remove"])]
    supervisor = subprocess.Popen(
        launch.supervisor_command(path, *options),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )
    assert supervisor.stderr is not None
    waiting = set(directory.load_cluster(path).brokers)  # for the first word that they are ready
    stopping = False
    with supervisor.stderr as lines:
        while supervisor.poll() is None:
            try:
                for line in lines:
                    event = json.loads(line) if line.startswith("{") else {"event": line.rstrip()}
                    _show(event, path, first=event.get("broker") in waiting)
                    if waiting and event["event"] == "ready":
                        waiting.discard(event["broker"])
                        if not waiting:
                            _say_all_ready(started_ns, keep)
                supervisor.wait()
            except KeyboardInterrupt:
                stopping = True
                _say("\nstopping")
                process.kill(supervisor.pid, signal.SIGTERM)
    if supervisor.returncode < 0:  # killed: its brokers end by themselves, what they mapped stays
        launch.stop_orphans(path, launch.STOP_TIMEOUT_S)
    if not stopping:
        raise ServerError(f"the supervisor ended with exit code {supervisor.returncode}")


def _show(event: dict[str, Any], path: Path, *, first: bool) -> None:
    """Say what is worth it; `first`: the broker has not been ready before."""
    match event["event"]:
        case "ready" if first:
            _say(f"  {control.event_text(event)}")
        case "ready":
            _say(f"{_INDENT}broker {event['broker']} (pid {event['pid']}) ready again")
        case "exit" if event.get("unexpected", True):
            _say(_INDENT + control.event_text(event))
            if "code" in event:
                _say(launch.log_tail(path, 0).lstrip("\n"))
        case "killed":
            _say(_INDENT + control.event_text(event))
        case "started" | "stopping" | "stopped" | "exit":
            pass
        case text:  # a line for people
            _say(text)


def _say_all_ready(started_ns: int, keep: bool) -> None:
    took_s = (clock.SYSTEM_CLOCK.monotonic_ns() - started_ns) / clock.NS_PER_S
    _say(_READY.format(took_s=took_s, ending="" if keep else " and removes everything"))


def _say(text: str) -> None:
    click.echo(text, err=True)


def _shared_memory_text() -> str:
    info = os.statvfs("/dev/shm")
    total = info.f_frsize * info.f_blocks
    ring = format_size(TOPIC_SETTINGS["ring_bytes"].default)
    most = format_size(total // 2)
    return f"rings of {ring}, in all at most {most} of the {format_size(total)} in /dev/shm"
