"""The real storage: the only pwrite, fdatasync, fallocate and directory sync of log files.

Files are written with pwritev in large pieces, never through a mapping (a full disk would then kill by SIGBUS).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence

from shmlog.log.storage import Buffer, DiskSpace, File

_IOV_MAX = 1024  # sysconf(_SC_IOV_MAX) on Linux


class OsFile:
    """A file by its descriptor."""

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def size(self) -> int:
        """See File."""
        return os.fstat(self._fd).st_size

    def pread(self, size: int, position: int) -> bytes:
        """See File."""
        data = os.pread(self._fd, size, position)
        while 0 < len(data) < size:  # a signal, or the end of the file
            more = os.pread(self._fd, size - len(data), position + len(data))
            if not more:
                break
            data += more
        return data

    def pwrite(self, buffers: Sequence[Buffer], position: int) -> None:
        """See File."""
        for start in range(0, len(buffers), _IOV_MAX):
            position = self._pwrite_some(buffers[start : start + _IOV_MAX], position)

    def _pwrite_some(self, buffers: Sequence[Buffer], position: int) -> int:
        left = [memoryview(b) for b in buffers]
        while left:
            written = os.pwritev(self._fd, left, position)
            position += written
            while left and written >= len(left[0]):
                written -= len(left.pop(0))
            if written:
                left[0] = left[0][written:]
        return position

    def sync(self) -> None:
        """See File."""
        os.fdatasync(self._fd)

    def allocate(self, position: int, size: int) -> None:
        """See File."""
        os.posix_fallocate(self._fd, position, size)

    def truncate(self, size: int) -> None:
        """See File."""
        os.ftruncate(self._fd, size)

    def dup(self) -> OsFile:
        """See File."""
        return OsFile(os.dup(self._fd))  # not inherited (PEP 446)

    def close(self) -> None:
        """See File."""
        os.close(self._fd)


class OsStorage:
    """The machine's file system."""

    def open(self, path: str, *, create: bool = False, read_only: bool = False) -> File:
        """See Storage."""
        flags = os.O_RDONLY if read_only else os.O_RDWR
        if create:
            flags |= os.O_CREAT
        return OsFile(os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))

    def exists(self, path: str) -> bool:
        """See Storage."""
        return os.path.lexists(path)

    def list(self, path: str) -> list[str]:
        """See Storage."""
        return sorted(os.listdir(path))

    def make_dir(self, path: str) -> None:
        """See Storage."""
        os.makedirs(path, mode=0o700, exist_ok=True)

    def rename(self, source: str, target: str) -> None:
        """See Storage."""
        os.rename(source, target)

    def unlink(self, path: str) -> None:
        """See Storage."""
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass

    def remove_tree(self, path: str) -> None:
        """See Storage."""
        try:
            shutil.rmtree(path)
        except FileNotFoundError:
            pass

    def sync_dir(self, path: str) -> None:
        """See Storage."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def disk_space(self, path: str) -> DiskSpace:
        """See Storage. What is kept for root is not free."""
        found = os.statvfs(path)
        return DiskSpace(found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize)
