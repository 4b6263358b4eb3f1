"""The last second of a broker: which errors it forgives, and that a second signal changes nothing."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path

import pytest

from shmlog import directory

pytestmark = pytest.mark.process

SECOND_SIGNAL = """
import os, signal
import node.catalog
close_all = node.catalog.Catalog.close_all

def with_a_file(self):
    # What the descriptor that the signal handler wrote to would be now: the lowest free one.
    files = [os.open(f"{path}/victim", os.O_RDWR | os.O_CREAT) for _ in range(8)]
    os.pwrite(files[0], b"A" * 16, 0)
    os.kill(os.getpid(), signal.SIGTERM)
    assert os.pread(files[0], 16, 0) == b"A" * 16
    close_all(self)

node.catalog.Catalog.close_all = with_a_file
"""
FAILED_JOB = """
from node.io import workers

def close(self):
    self.submit(workers.Lane.{lane}, fail, lambda *_: None)
    return shut(self)

def fail():
    raise OSError({error}, "injected")

shut, workers.ThreadWorkers.close = workers.ThreadWorkers.close, close
"""


def run_broker(path: Path, change: str) -> tuple[bool, str]:
    """Start a broker in a process of its own, end it by SIGTERM at once: (was the stop clean, stderr)."""
    directory.create_cluster(path, 1)
    script = f"""
import os, pathlib, signal, threading
path = pathlib.Path({str(path)!r})
{change}
from node.broker import Broker
broker = Broker(path, 0)
publish = broker._publish
def published():
    publish()
    os.kill(os.getpid(), signal.SIGTERM)
broker._node.standing._registered = published
broker.run()
"""
    ran = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    return json.loads((path / "broker-0/uptime.json").read_text())["clean"], ran.stderr


def test_a_second_signal_during_the_stop_writes_into_nobody_s_file(short_dir: Path) -> None:
    clean, stderr = run_broker(short_dir / "c", SECOND_SIGNAL)
    assert clean, stderr


@pytest.mark.parametrize(
    ("lane", "error", "clean"),
    [
        ("FILES", errno.ENOSPC, True),
        ("FILES", errno.EIO, False),
        ("SYNC", errno.ENOSPC, False),
        ("SYNC", errno.EIO, False),
    ],
)
def test_only_the_lack_of_space_for_a_change_of_files_is_forgiven_at_the_stop(
    short_dir: Path, lane: str, error: int, clean: bool
) -> None:
    change = FAILED_JOB.format(lane=lane, error=error)
    assert run_broker(short_dir / "c", change)[0] == clean


def test_a_broker_keeps_room_for_its_next_start(short_dir: Path) -> None:
    clean, stderr = run_broker(short_dir / "c", "")
    assert clean, stderr
    reserve = short_dir / "c/broker-0/reserve"
    assert reserve.stat().st_blocks * 512 >= 1 << 20
