"""A broker's disk: files in memory that know what was synced, cheap to sync and to kill.

Semantics are those of `MemoryStorage`: names are durable once their directory was synced; a reboot keeps what was
synced and any sectors of the rest. A kill loses nothing, so it is no event here: whoever was writing is stopped by
`Killed` out of the operation it was in, with part of the write done.

A failed sync is what Linux makes of it (B22): the pages count as clean, so a later sync does not write them, and only a
reboot shows that they never arrived. Zeros of a preallocation are not kept, only counted.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Callable, Sequence
from typing import Any

from shmlog.log.storage import SECTOR, Buffer, DiskSpace, File, MemoryStorage


class Killed(BaseException):
    """The process is dead: nothing of it goes on."""


class Content:
    """A file: `data` is what was written (zeros behind it up to `size`), `synced` what a reboot keeps."""

    __slots__ = ("cut", "data", "dirty", "size", "synced", "synced_size")

    def __init__(self) -> None:
        self.data = bytearray()
        self.size = 0
        self.synced = bytearray()
        self.synced_size = 0
        self.dirty: list[tuple[int, int]] = []
        self.cut = -1  # the lowest size it was truncated to since the last sync

    def read(self, size: int, position: int) -> bytes:
        end = min(self.size, position + size)
        found = bytes(self.data[position:end])
        return found + bytes(max(0, end - position - len(found)))

    def write(self, data: bytes, position: int) -> None:
        if not data:
            return
        end = position + len(data)
        if len(self.data) < position:
            self.data.extend(bytes(position - len(self.data)))
        self.data[position:end] = data
        self.size = max(self.size, end)
        self.dirty.append((position, end))

    def truncate(self, size: int) -> None:
        del self.data[size:]
        self.size = size
        self.cut = size if self.cut < 0 else min(self.cut, size)

    def sync(self) -> None:
        synced = self.synced
        if self.cut >= 0:
            del synced[self.cut :]
        for start, end in self.dirty:
            piece = self.data[start:end]
            if len(synced) < start:
                synced.extend(bytes(start - len(synced)))
            synced[start : start + len(piece)] = piece
        del synced[len(self.data) :]
        self.synced_size = self.size
        self.dirty.clear()
        self.cut = -1

    def fail_sync(self) -> None:
        """The pages look clean now, and are not on the disk."""
        self.dirty.clear()

    def power_cut(self, rng: random.Random) -> None:
        """Any sectors of what was not synced, at any of the sizes it had."""
        if not (self.size == self.synced_size and self.data == self.synced):
            sizes = (self.size, self.synced_size)
            size = rng.choice((*sizes, max(sizes)))
            length = min(size, max(len(self.data), len(self.synced)))
            old = bytes(self.synced[:length]).ljust(length, b"\0")
            new = bytes(self.data[:length]).ljust(length, b"\0")
            out = bytearray(old)
            for start in range(0, length, SECTOR):
                if rng.random() < 0.5:
                    out[start : start + SECTOR] = new[start : start + SECTOR]
            self.data, self.size = out, size
        self.synced = bytearray(self.data)
        self.synced_size = self.size
        self.dirty.clear()
        self.cut = -1


class Disk(MemoryStorage):
    """One broker's. `before(kind, path)` may raise: an OSError, or Killed."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__()
        self.files: dict[str, Any] = {}
        self.durable_names: dict[str, Any] = {}
        self._rng = rng
        self.before: Callable[[str, str], None] = lambda kind, path: None
        self.is_low = False  # nearly full: nothing fails yet
        self.make_dir("data")

    def record(self, kind: str, path: str, size: int = 0) -> None:
        self.before(kind, path)

    def open(self, path: str, *, create: bool = False, read_only: bool = False) -> File:
        if path not in self.files:
            if not create:
                raise FileNotFoundError(errno.ENOENT, "no such file", path)
            self.record("create", path)
            self.files[path] = Content()
            self._name_changes.append(("", path, self.files[path]))
        return _OpenFile(self, path, self.files[path])

    def disk_space(self, path: str) -> DiskSpace:
        return DiskSpace(0 if self.is_low else self.disk_bytes, self.disk_bytes)

    def part(self, size: int) -> int:
        """How much of a write that does not succeed is done."""
        return self._rng.randrange(size + 1)

    def reboot(self, rng: random.Random) -> None:
        """A power cut, and the machine is started again."""
        self.dirs = {d for d in sorted(self.dirs) if d in self.durable_dirs or rng.random() < 0.5}
        names = dict(self.durable_names)
        for old, new, content in self._name_changes:
            if rng.random() < 0.5:
                if names.get(old) is content:
                    del names[old]
                if new:
                    names[new] = content
        self.files = {
            path: content for path, content in names.items() if path.rpartition("/")[0] in self.dirs
        }
        done: set[int] = set()
        for content in self.files.values():
            if id(content) not in done:
                done.add(id(content))
                content.power_cut(rng)
        self._name_changes = []
        self.durable_names = dict(self.files)
        self.durable_dirs = set(self.dirs)


class _OpenFile:
    def __init__(self, disk: Disk, path: str, content: Content) -> None:
        self._disk = disk
        self._path = path
        self._open: Content | None = content

    def _content(self) -> Content:
        if self._open is None:
            raise OSError(errno.EBADF, "closed", self._path)
        return self._open

    def size(self) -> int:
        return self._content().size

    def pread(self, size: int, position: int) -> bytes:
        return self._content().read(size, position)

    def pwrite(self, buffers: Sequence[Buffer], position: int) -> None:
        content = self._content()
        data = b"".join(bytes(b) for b in buffers)
        try:
            self._disk.record("pwrite", self._path, len(data))
        except (OSError, Killed):
            content.write(data[: self._disk.part(len(data))], position)
            raise
        content.write(data, position)

    def sync(self) -> None:
        content = self._content()
        try:
            self._disk.record("sync", self._path)
        except OSError:
            content.fail_sync()
            raise
        content.sync()

    def allocate(self, position: int, size: int) -> None:
        content = self._content()
        self._disk.record("allocate", self._path, size)
        content.size = max(content.size, position + size)

    def truncate(self, size: int) -> None:
        content = self._content()
        self._disk.record("truncate", self._path, size)
        content.truncate(size)

    def dup(self) -> File:
        return _OpenFile(self._disk, self._path, self._content())

    def close(self) -> None:
        self._open = None
