"""The only user of psutil, pidfd and flock: who is alive, and who owns a file.

A lock held with flock dies with its process, whatever killed it, so *a free lock is a proof of death*
(flock(2)); a pid alone proves nothing, it may have been given to another process.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import resource
import signal
from pathlib import Path

import psutil

_PR_SET_PDEATHSIG = 1
_PR_SET_TIMERSLACK = 29


def boot_id() -> str:
    """The kernel's id of this boot: another one means that page cache and shared memory are gone."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def open_pidfd(pid: int) -> int | None:
    """A descriptor that becomes readable when `pid` ends; None if there is no such process."""
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None


def is_alive(pid: int) -> bool:
    """True while the process runs; a zombie is dead."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def lock_exclusive(fd: int) -> bool:
    """Take the exclusive lock of an open file without waiting; False if another process holds it.

    The lock lives until the descriptor is closed or its process dies; descriptors made by Python are not
    inherited, so no child can hold it on.
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def lock_is_held(fd: int) -> bool:
    """True if another open file, of whatever process, holds the exclusive lock of this file."""
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(fd, fcntl.LOCK_UN)
    return False


def is_locked(path: str | os.PathLike[str]) -> bool:
    """True if a living process holds the exclusive lock of the file; False if it is free or missing."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        return lock_is_held(fd)
    finally:
        os.close(fd)


def kill(pid: int, signum: int = signal.SIGKILL) -> bool:
    """Send a signal; False if the process is gone."""
    try:
        os.kill(pid, signum)
    except ProcessLookupError:
        return False
    return True


def end_with_parent(parent_pid: int) -> None:
    """Get SIGTERM when the parent (the thread of it that started this process) ends (prctl(2))."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent_pid:  # it ended before the kernel was told
        os.kill(os.getpid(), signal.SIGTERM)


def children(pid: int) -> list[int]:
    """The living descendants of a process, of any depth; none if it is gone."""
    try:
        found = psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    return [child.pid for child in found if is_alive(child.pid)]


def rss_bytes(pid: int | None = None) -> tuple[int, int]:
    """(resident, shared) bytes of a process; mapped rings count as shared."""
    info = psutil.Process(pid).memory_info()
    return int(info.rss), int(info.shared)


def cpu_seconds(pid: int | None = None) -> float:
    """User plus system CPU seconds that a process has used."""
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def raise_descriptor_limit() -> int:
    """Raise the soft limit of open descriptors to the hard one; return it.

    libzmq aborts its process when accept fails for lack of descriptors, so the limit has to be far away.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def open_descriptors() -> int:
    """How many descriptors this process has open."""
    return len(os.listdir("/proc/self/fd"))


def set_timer_slack(ns: int) -> None:
    """Let sleeps of this thread end within `ns` of their time instead of 50 us (prctl(2))."""
    ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, ns, 0, 0, 0)
