"""`shmlog dev`: a throw-away cluster whose life is shown in a terminal.

The supervisor watches this process: when it ends, even by kill -9, brokers and directory go. While
it runs, the registration of `dev` lets every client of this user find the cluster without naming
it.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from pathlib import Path
from typing import Any

import click

from shmlog import __version__, clock, control, directory, launch
from shmlog.cli.main import INTERRUPTED
from shmlog.cli.render import plural
from shmlog.cli.run import brokers_option
from shmlog.client.admin import Admin
from shmlog.errors import ServerError
from shmlog.settings import TOPIC_SETTINGS, format_size

_INDENT = " " * 24
_READY = """ready in {took_s:.1f} s. In another shell:
  echo hello | shmlog produce greetings
  shmlog consume greetings
Ctrl-C stops the brokers{ending}."""


@click.command()
@brokers_option(default=3)
@click.option("--keep", is_flag=True, help="Keep the directory at the end.")
def dev(brokers: int, keep: bool) -> int:
    """Throw-away cluster in the foreground; topics appear on first use."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.default_int_handler)
    started_ns = clock.SYSTEM_CLOCK.monotonic_ns()
    path = Path(tempfile.mkdtemp(prefix="shmlog-dev-", dir="/tmp"))
    try:
        directory.create_cluster(path, brokers, settings={"auto_create_topics": True})
        count = plural(brokers, "broker")
        _say(f"shmlog {__version__}   throw-away cluster, {count}, topics appear on first use")
        _say(f"  directory  {path}     {_shared_memory_text()}")
        with directory.register_dev(path):
            code = _run(path, started_ns, keep)
    finally:
        if not keep:
            shutil.rmtree(path, ignore_errors=True)
    _say(f"stopped, {'kept' if keep else 'removed'} {path}")
    return code


def _run(path: Path, started_ns: int, keep: bool) -> int:
    """Show a supervisor's life until Ctrl-C, or `shmlog down`; the exit status.

    Raises ServerError if it ends by itself.
    """
    remove = [] if keep else ["--remove"]
    supervisor = launch.Background(path, "--owner-pid", str(os.getpid()), *remove)
    show = _Show(path)
    try:
        entries = supervisor.wait_ready(heard=show)
        with Admin(path) as admin:
            controller = admin.describe_cluster().controller
        for broker, entry in sorted(entries.items()):
            mark = "   controller" if broker == controller else ""
            _say(f"  broker {broker}   ready   pid {entry.pid}{mark}")
        took_s = (clock.SYSTEM_CLOCK.monotonic_ns() - started_ns) / clock.NS_PER_S
        _say(_READY.format(took_s=took_s, ending="" if keep else " and removes everything"))
        code = supervisor.watch(show)
    except KeyboardInterrupt:
        _say("\nstopping")
        supervisor.stop()
        return INTERRUPTED
    except BaseException:
        supervisor.stop()
        raise
    if code == 0:
        _say("told to stop")
        return 0
    if code < 0:  # killed: its brokers end by themselves, what they mapped stays
        launch.stop_orphans(path, launch.STOP_TIMEOUT_S)
    raise ServerError(f"the supervisor ended with exit code {code}")


class _Show:
    """Says of a supervisor's events what is worth it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: set[int] = set()  # brokers that have been ready

    def __call__(self, event: dict[str, Any]) -> None:
        match event["event"]:
            case "ready":
                broker = event["broker"]
                if broker in self._seen:
                    _say(f"{_INDENT}broker {broker} (pid {event['pid']}) ready again")
                self._seen.add(broker)
            case "exit" if event["unexpected"]:
                _say(_INDENT + control.event_text(event))
                if "code" in event:
                    _say(launch.log_tail(self._path, 0).lstrip("\n"))
            case "killed":
                _say(_INDENT + control.event_text(event))


def _say(text: str) -> None:
    click.echo(text, err=True)


def _shared_memory_text() -> str:
    info = os.statvfs("/dev/shm")
    total = info.f_frsize * info.f_blocks
    ring = format_size(TOPIC_SETTINGS["ring_bytes"].default)
    most = format_size(total // 2)
    return f"rings of {ring}, in all at most {most} of the {format_size(total)} in /dev/shm"
