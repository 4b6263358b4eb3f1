"""The only user of psutil, pidfd and flock: who is alive, and who owns a file.

A lock held with flock dies with its process, whatever killed it, so *a free lock is a proof of death*
(flock(2)); a pid alone proves nothing, it may have been given to another process.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import resource
import select
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
    with contextlib.suppress(ProcessLookupError):
        return os.pidfd_open(pid)
    return None


def start_time(pid: int) -> int | None:
    """When a process was started, in clock ticks since the boot (field 22 of /proc/PID/stat, proc(5)).

    It tells two processes apart that had one pid in turn. None: there is no such process.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return int(stat.rpartition(b")")[2].split()[19])  # the name before it may hold anything


def has_ended(pidfd: int) -> bool:
    """True once the process of a pidfd has ended."""
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    return bool(poller.poll(0))


def signal_to(pidfd: int, signum: int) -> None:
    """Send a signal to the process of a pidfd and no other; nothing happens if it has ended."""
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, signum)


def is_alive(pid: int) -> bool:
    """True while the process runs; a zombie is dead."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def waits_for_device(pid: int) -> bool:
    """Is the process in uninterruptible sleep (kernel state D, proc(5))? It is slow, not hung."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_DISK_SLEEP)
    except psutil.NoSuchProcess:
        return False


def lock_exclusive(fd: int) -> bool:
    """Take the exclusive lock of an open file without waiting; False if another process holds it.

    It lives until the descriptor is closed or its process dies; no child inherits it.
    """
    return _flock(fd, fcntl.LOCK_EX)


def lock_is_held(fd: int) -> bool:
    """True if another open file, of whatever process, holds the exclusive lock of this file."""
    free = _flock(fd, fcntl.LOCK_SH)
    if free:
        fcntl.flock(fd, fcntl.LOCK_UN)
    return not free


def _flock(fd: int, operation: int) -> bool:
    try:
        fcntl.flock(fd, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_locked(path: str | os.PathLike[str]) -> bool:
    """True if a living process holds the exclusive lock of the file; False if it is missing."""
    try:
        with open(path, "rb") as file:
            return lock_is_held(file.fileno())
    except FileNotFoundError:
        return False


def kill(pid: int, signum: int = signal.SIGKILL) -> None:
    """Send a signal; nothing happens if the process is gone."""
    assert pid > 0, "0 and below are groups of processes"
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signum)


def end_with_parent(parent_pid: int) -> None:
    """Get SIGTERM when the parent (the thread of it that started this process) ends (prctl(2))."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent_pid:  # it ended before the kernel was told
        os.kill(os.getpid(), signal.SIGTERM)


def step_back() -> None:
    """Let everybody else go first, to the processor and to the disk (nice(2), ioprio_set(2))."""
    os.nice(19)
    psutil.Process().ionice(psutil.IOPRIO_CLASS_BE, 7)


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
