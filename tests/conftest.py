"""Hygiene: a test leaves no shared memory and no process behind.

Shared memory is one name space for all that runs on the machine, other workers of the session too.
So a new name counts as left behind only if it belongs to no cluster that this process still
runs and no process that is not ours maps it.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shmlog import clock, process
from shmlog.testing import cluster

_SHM = Path("/dev/shm")
_PATIENCE_S = (
    5.0  # another process's new name is mapped by nobody for a moment, on a busy machine for long
)
_LOOK_AGAIN_S = 0.02


def _living_processes() -> set[int]:
    supervisors = {one.supervisor_pid for one in cluster._living}
    return supervisors.union(*map(process.children, supervisors))


def _living_memory() -> set[str]:
    return {name.lstrip("/") for one in cluster._living for name in cluster._memory_names(one)}


def _memory() -> set[str]:
    return {file.name for file in _SHM.glob("sl*")}


def _mapped_by_others() -> str:
    mine = {os.getpid(), *process.children(os.getpid())}
    maps = ""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) not in mine:
            try:
                maps += (entry / "maps").read_text()
            except OSError:
                continue  # it has ended, or belongs to somebody else
    return maps


def _left_behind(before: set[str]) -> set[str]:
    """The new names that belong to nobody, and still do when the patience is over."""
    deadline = time.monotonic() + _PATIENCE_S
    while left := _memory() - before - _living_memory():
        maps = _mapped_by_others()
        left = {name for name in left if f"/dev/shm/{name}" not in maps and (_SHM / name).exists()}
        if not left or time.monotonic() > deadline:
            break
        clock.sleep(_LOOK_AGAIN_S)
    return left


@pytest.fixture(autouse=True)
def _hygiene() -> Iterator[None]:
    memory, children = _memory(), set(process.children(os.getpid()))
    yield
    left = set(process.children(os.getpid())) - children - _living_processes()
    assert not left, f"processes left: {left}"
    names = _left_behind(memory)
    assert not names, f"left in /dev/shm: {sorted(names)}"


@pytest.fixture
def short_dir() -> Iterator[Path]:
    """A directory whose path leaves room for a socket's name (107 bytes in all)."""
    path = Path(tempfile.mkdtemp(prefix="slt-", dir="/tmp"))
    yield path
    shutil.rmtree(path, ignore_errors=True)
