"""Files whose lock tells that their owner lives.

A *registration* is a JSON file that is written to a temporary name, locked with flock, renamed, and
kept locked while its process lives. So a reader never sees half a file, and a free lock is a proof
of death: the kernel frees it whatever killed the process, while a pid may have a new owner by now.

Invariants:

- content and lock are read through one descriptor, so both belong to the same process;
- at most one process publishes a name: whoever loses the race for the temporary file, or finds the
  published one locked, is refused and changes nothing;
- the modification time is the start until whoever saw the owner die sets it to the time of death.

Beside them: the lock of a data directory, the counter of its incarnations, and the list of
shared-memory names, written before each object is made, so that nothing is left without a name.
Cluster files are no log: they are written here, with plain system calls.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

from shmlog import clock, process
from shmlog.errors import DiskFull, InvalidConfig

_MEMORY_NAME = re.compile(r"/sl[A-Za-z0-9]{1,28}")
LOCK_ATTEMPTS, LOCK_PAUSE_S = 100, 0.01
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW


def write_durably(file: Path, content: bytes, *, replace: bool = True) -> None:
    """Write a small file as a whole: readers and crashes see the old content or the new one.

    Raises: FileExistsError: the file is there and `replace` is False.
    """
    temporary = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    try:
        with _opened(temporary, _NEW_FILE | os.O_TRUNC) as fd:
            if os.write(fd, content) < len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(temporary))
            os.fsync(fd)
        (os.replace if replace else os.link)(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)
    with _opened(file.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC) as fd:
        os.fsync(fd)


@contextlib.contextmanager
def _opened(file: Path, flags: int) -> Iterator[int]:
    fd = os.open(file, flags, 0o600)
    try:
        yield fd
    finally:
        os.close(fd)


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """What every registration says of its process."""

    v: int = 1
    pid: int
    boot_id: str
    started: int  # wall-clock ns


EntryT = TypeVar("EntryT", bound=Entry)


@dataclass(frozen=True, slots=True)
class Found(Generic[EntryT]):
    """A registration as read; `died_ns` (wall clock) only if somebody saw its process die."""

    entry: EntryT
    alive: bool
    died_ns: int | None

    def __str__(self) -> str:
        who = f"(pid {self.entry.pid})"
        if self.died_ns is None:
            return f"{who} {'runs' if self.alive else 'is dead'}"
        age_ms = max(0, clock.SYSTEM_CLOCK.wall_ns() - self.died_ns) // clock.NS_PER_MS
        return f"{who} died {age_ms} ms ago"


def read(file: Path, kind: type[EntryT]) -> Found[EntryT] | None:
    """The registration in `file`; None if there is none, or only what a power cut left of one."""
    try:
        with open(file, "rb") as opened:
            content = opened.read()
            alive = process.lock_is_held(opened.fileno())
            stamped_ns = os.fstat(opened.fileno()).st_mtime_ns
        entry = msgspec.json.decode(content, type=kind)
    except (FileNotFoundError, msgspec.MsgspecError):
        return None
    return Found(entry, alive, stamped_ns if stamped_ns > entry.started and not alive else None)


class Registration:
    """This process's own entry in a registry file; held from `publish` to `close` or death."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._fd = -1

    def publish(self, entry: Entry) -> None:
        """Make the entry visible and lock it. The entry's `started` becomes the file's time.

        Raises: InvalidConfig: a living process holds this name. DiskFull.
        """
        temporary = self.file.with_suffix(".new")
        fd = os.open(temporary, _NEW_FILE, 0o600)
        try:
            if not process.lock_exclusive(fd) or process.is_locked(self.file):
                raise InvalidConfig(f"{self.file} belongs to a living process")
            os.ftruncate(fd, 0)
            os.write(fd, msgspec.json.encode(entry) + b"\n")
            os.utime(fd, ns=(entry.started, entry.started))
            os.rename(temporary, self.file)
        except BaseException as error:
            os.close(fd)
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DiskFull(f"{self.file}: {error.strerror}: make some, then start") from None
            raise
        self._fd = fd

    def close(self, *, remove: bool = True) -> None:
        """Give the name up; `remove` unlinks the file (a clean stop). May be called twice."""
        if self._fd < 0:
            return
        with contextlib.suppress(FileNotFoundError):
            if remove and os.path.samestat(os.stat(self.file), os.fstat(self._fd)):
                self.file.unlink()  # and not a successor's
        os.close(self._fd)
        self._fd = -1


def lock_data_dir(data_dir: Path) -> int:
    """Take a broker's data directory (made if missing) for this process: a descriptor to keep open.

    Raises: InvalidConfig: another process has it; names its pid if it is a broker.
    """
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = os.open(data_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    attempts = LOCK_ATTEMPTS
    while not process.lock_exclusive(fd):
        attempts -= 1
        if attempts and not process.lock_is_held(fd):
            clock.sleep(LOCK_PAUSE_S)  # somebody has only just asked who the owner is
            continue
        owner = os.pread(fd, 32, 0).decode(errors="replace").strip()
        os.close(fd)
        if not attempts:
            raise InvalidConfig(
                f"{data_dir}/lock is held (shared) by another program, which is no broker: end it first"
            )
        raise InvalidConfig(f"a broker already runs on {data_dir} (pid {owner})", pid=owner)
    os.ftruncate(fd, 0)
    os.pwrite(fd, b"%d\n" % os.getpid(), 0)
    return fd


def data_dir_owner(data_dir: Path) -> int | None:
    """The pid of the living process that has locked the data directory; None if nobody has."""
    lock = data_dir / "lock"
    if not process.is_locked(lock):
        return None
    text = lock.read_text().strip()
    return int(text) if text.isdigit() else -1


class Starts:
    """The count of a broker's starts: in its data directory, with a copy outside of it.

    A directory whose count lags behind the copy is not the one of the last start: it was emptied, replaced or
    put back from a backup, and may lack what this broker has promised. It goes on counting from the copy.
    Raises: InvalidConfig: a count is damaged. Guessing could give a number of the past again.
    """

    def __init__(self, data_dir: Path, copy: Path) -> None:
        self._files = data_dir / "incarnation", copy
        own, seen = map(_count, self._files)
        self.is_replaced = own < seen
        self.incarnation = max(own, seen) + 1

    def count(self) -> int:
        """Give the next number; durable before it returns, so never given twice. The directory's first: a crash
        in between must not make it look replaced.
        """
        for file in self._files:
            write_durably(file, b"%d\n" % self.incarnation)
        return self.incarnation


def _count(counter: Path) -> int:
    text = counter.read_text(errors="replace").strip() if counter.exists() else "0"
    if not re.fullmatch(r"\d{1,15}", text):
        raise InvalidConfig(
            f"{counter} is damaged: {text[:40]!r} is not a count of starts; write a number into it "
            "that is above every incarnation this broker has had"
        )
    return int(text)


class MemoryList:
    """The names of a broker's shared-memory objects, one a line, each written before creation."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def append(self, name: str) -> None:
        """Put a name on record. To be called before the object is created."""
        if not _MEMORY_NAME.fullmatch(name):
            raise ValueError(f"not a name of ours: {name!r}")
        with _opened(self.file, _NEW_FILE | os.O_APPEND) as fd:
            os.write(fd, f"{name}\n".encode())

    def names(self) -> list[str]:
        """The names on record, each once; a torn or foreign line is no name."""
        if not self.file.exists():
            return []
        lines = self.file.read_text(errors="replace").splitlines()
        return list(dict.fromkeys(x for x in lines if _MEMORY_NAME.fullmatch(x)))

    def clear(self) -> None:
        """Empty the list: every object on it is gone."""
        with contextlib.suppress(FileNotFoundError):
            os.truncate(self.file, 0)
