"""All file access of a log behind one small interface, so that faults can be injected.

`OsStorage` (os_storage.py) is the real one. `MemoryStorage` here keeps files in memory and knows, for each,
what was synced: it fails operations on demand, and gives the image that a crash would leave.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

Buffer = bytes | bytearray | memoryview
SECTOR = 512


class DiskSpace(NamedTuple):
    """Of the file system that holds a path, in bytes: what this process may still write, and all of it."""

    free: int
    total: int


class File(Protocol):
    """An open file. Positions and sizes in bytes."""

    def size(self) -> int:
        """How long the file is, preallocation included."""
        ...

    def pread(self, size: int, position: int) -> bytes:
        """At most `size` bytes from `position`; fewer only at the end of the file."""
        ...

    def pwrite(self, buffers: Sequence[Buffer], position: int) -> None:
        """Write all of the buffers, one behind the other, from `position` on."""
        ...

    def sync(self) -> None:
        """Make content and size durable (fdatasync(2))."""
        ...

    def allocate(self, position: int, size: int) -> None:
        """Reserve zeros, growing the file (posix_fallocate(3))."""
        ...

    def truncate(self, size: int) -> None:
        """Cut the file."""
        ...

    def dup(self) -> File:
        """A second handle of the same open file: whoever has it closes it, the other stays usable."""
        ...

    def close(self) -> None:
        """Let go of the descriptor."""
        ...


class Storage(Protocol):
    """A file system, as far as a log needs one. Errors are OSErrors."""

    def open(self, path: str, *, create: bool = False, read_only: bool = False) -> File:
        """Open a file for reading and writing, or only for reading."""
        ...

    def exists(self, path: str) -> bool:
        """Is there a file or directory of this name?"""
        ...

    def list(self, path: str) -> list[str]:
        """The names in a directory, sorted."""
        ...

    def make_dir(self, path: str) -> None:
        """Make a directory, and those above it, mode 0700; it may be there already."""
        ...

    def rename(self, source: str, target: str) -> None:
        """Rename atomically, replacing the target."""
        ...

    def unlink(self, path: str) -> None:
        """Remove a file; it may be missing."""
        ...

    def remove_tree(self, path: str) -> None:
        """Remove a directory and all in it; it may be missing."""
        ...

    def sync_dir(self, path: str) -> None:
        """Make the names in a directory durable."""
        ...

    def disk_space(self, path: str) -> DiskSpace:
        """How full the disk of an existing path is. Reads no disk."""
        ...


class _Content:
    """A file's bytes now, and as of the last sync."""

    def __init__(self, data: bytes = b"") -> None:
        self.data = bytearray(data)
        self.synced = bytes(data)


class MemoryStorage:
    """Files in memory, with faults. Not thread-safe.

    `fail(kind, nth, error)` makes the n-th operation of a kind (create, make_dir, pread, pwrite, sync,
    allocate, truncate, rename, unlink, sync_dir) raise. `operations` lists what was done, `on_operation` is
    called before each, so that a test can take an image between any two. `after_kill` and `after_power_cut`
    are new storages as a crash at this moment would leave them.

    The names in a directory, directories too, are durable once that directory was synced. Directories
    without a parent are given. Renaming a directory is taken to be durable at once.
    """

    def __init__(self) -> None:
        self.files: dict[str, _Content] = {}
        self.durable_names: dict[str, _Content] = {}
        # (old name, new name, content) since the directory's sync; "" where there is no old or new name.
        self._name_changes: list[tuple[str, str, _Content]] = []
        self.dirs: set[str] = set()
        self.durable_dirs: set[str] = set()
        self.on_operation: Callable[[str, str], None] | None = None
        self.in_flight: tuple[str, int, bytes] | None = None  # the write that is under way
        self.operations: list[tuple[str, str, int]] = []
        self.disk_bytes = 1 << 50  # what `disk_space` goes by; nothing is refused because of it
        self._faults: dict[tuple[str, int], int] = {}
        self._counts: dict[str, int] = {}

    def fail(self, kind: str, nth: int, error: int = errno.EIO) -> None:
        """Let the `nth` (from 1, counted from now) operation of `kind` fail with `error`."""
        self._faults[kind, self._counts.get(kind, 0) + nth] = error

    def record(self, kind: str, path: str, size: int = 0) -> None:
        """Count an operation; raise if it is one that has to fail."""
        if self.on_operation is not None:
            self.on_operation(kind, path)
        self._counts[kind] = count = self._counts.get(kind, 0) + 1
        self.operations.append((kind, path, size))
        error = self._faults.pop((kind, count), None)
        if error is not None:
            raise OSError(error, f"injected into {kind}", path)

    def open(self, path: str, *, create: bool = False, read_only: bool = False) -> File:
        """See Storage."""
        if path not in self.files:
            if not create:
                raise FileNotFoundError(errno.ENOENT, "no such file", path)
            self.record("create", path)
            self.files[path] = _Content()
            self._name_changes.append(("", path, self.files[path]))
        return _MemoryFile(self, path, self.files[path])

    def disk_space(self, path: str) -> DiskSpace:
        """See Storage."""
        used = sum(len(content.data) for content in self.files.values())
        return DiskSpace(max(0, self.disk_bytes - used), self.disk_bytes)

    def exists(self, path: str) -> bool:
        """See Storage."""
        return path in self.files or path in self.dirs

    def list(self, path: str) -> list[str]:
        """See Storage."""
        start = path + "/"
        inside = [p[len(start) :] for p in [*self.files, *self.dirs] if p.startswith(start)]
        return sorted({name.split("/")[0] for name in inside})

    def make_dir(self, path: str) -> None:
        """See Storage."""
        if path in self.dirs:
            return
        self.record("make_dir", path)
        parts = path.split("/")
        self.dirs.update("/".join(parts[:count]) for count in range(1, len(parts) + 1))
        self.durable_dirs.add(parts[0])

    def rename(self, source: str, target: str) -> None:
        """See Storage."""
        self.record("rename", target)
        if source in self.files:
            self.files[target] = self.files.pop(source)
            self._name_changes.append((source, target, self.files[target]))
            return
        if any(name.startswith(target + "/") for name in self.files):
            raise OSError(errno.ENOTEMPTY, "directory not empty", target)
        for names in (self.dirs, self.durable_dirs):
            moved = {n for n in names if n == source or n.startswith(source + "/")}
            names -= moved
            names |= {target + n[len(source) :] for n in moved}
        self.durable_dirs.add(target)
        for contents in (self.files, self.durable_names):
            for path in [p for p in contents if p.startswith(source + "/")]:
                contents[target + path[len(source) :]] = contents.pop(path)
        self._name_changes = [
            (_moved(old, source, target), _moved(new, source, target), content)
            for old, new, content in self._name_changes
        ]

    def unlink(self, path: str) -> None:
        """See Storage."""
        self.record("unlink", path)
        if path in self.files:
            self._name_changes.append((path, "", self.files.pop(path)))

    def remove_tree(self, path: str) -> None:
        """See Storage."""
        for inside in [p for p in self.files if p.startswith(path + "/")]:
            self._name_changes.append((inside, "", self.files.pop(inside)))
        self.dirs = {d for d in self.dirs if d != path and not d.startswith(path + "/")}

    def sync_dir(self, path: str) -> None:
        """See Storage."""
        self.record("sync_dir", path)
        inside = path + "/"
        self._name_changes = [
            change
            for change in self._name_changes
            if (change[1] or change[0]).rpartition("/")[0] != path
        ]
        for name in [n for n in self.durable_names if n.startswith(inside)]:
            if "/" not in name[len(inside) :] and name not in self.files:
                del self.durable_names[name]
        for name, content in self.files.items():
            if name.startswith(inside) and "/" not in name[len(inside) :]:
                self.durable_names[name] = content
        self.durable_dirs |= {
            name for name in self.dirs if name.startswith(inside) and "/" not in name[len(inside) :]
        }

    def after_kill(
        self, rng: random.Random, *, in_flight: tuple[str, int, bytes] | None = None
    ) -> MemoryStorage:
        """What kill -9 leaves: all that was written, and any prefix of a write that was under way."""
        in_flight = in_flight or self.in_flight
        image = MemoryStorage()
        image.dirs = set(self.dirs)
        for path, content in self.files.items():
            image.files[path] = _Content(bytes(content.data))
        if in_flight is not None:
            path, position, data = in_flight
            part = data[: rng.randrange(len(data) + 1)]
            target = image.files[path].data
            if len(target) < position + len(part):
                target.extend(bytes(position + len(part) - len(target)))
            target[position : position + len(part)] = part
        return image._settled()

    def after_power_cut(self, rng: random.Random) -> MemoryStorage:
        """What a power cut leaves: what was synced; any sectors of the rest; any of the new names."""
        image = MemoryStorage()
        image.dirs = {d for d in self.dirs if self._survives(d, rng)}
        names = dict(self.durable_names)
        # Each change of a name is there or is not, whatever became of those before it; none is torn in two.
        for old, new, content in self._name_changes:
            if rng.random() < 0.5:
                if names.get(old) is content:
                    del names[old]
                if new:
                    names[new] = content
        for path, content in names.items():
            if path.rpartition("/")[0] in image.dirs:
                image.files[path] = _Content(_torn(content, rng))
        return image._settled()

    def _survives(self, directory: str, rng: random.Random) -> bool:
        return directory in self.durable_dirs or rng.random() < 0.5

    def _settled(self) -> MemoryStorage:
        self.durable_dirs = set(self.dirs)
        for path, content in self.files.items():
            content.synced = bytes(content.data)
            self.durable_names[path] = content
        return self


def _moved(name: str, source: str, target: str) -> str:
    return target + name[len(source) :] if name.startswith(source + "/") else name


def _torn(content: _Content, rng: random.Random) -> bytes:
    """The synced bytes, with any subset of the sectors that have changed since."""
    now, synced = bytes(content.data), content.synced
    if now == synced:
        return now
    size = rng.choice((len(now), len(synced), max(len(now), len(synced))))
    old, new = synced.ljust(size, b"\0"), now.ljust(size, b"\0")
    out = bytearray(old[:size])
    for start in range(0, size, SECTOR):
        if rng.random() < 0.5:
            out[start : start + SECTOR] = new[start : start + SECTOR]
    return bytes(out[:size])


class _MemoryFile:
    def __init__(self, storage: MemoryStorage, path: str, content: _Content) -> None:
        self._storage = storage
        self._path = path
        self._open: _Content | None = content

    def _content(self) -> _Content:
        if self._open is None:
            raise OSError(errno.EBADF, "closed", self._path)
        return self._open

    def size(self) -> int:
        return len(self._content().data)

    def pread(self, size: int, position: int) -> bytes:
        self._storage.record("pread", self._path, size)
        return bytes(self._content().data[position : position + size])

    def pwrite(self, buffers: Sequence[Buffer], position: int) -> None:
        data = b"".join(bytes(b) for b in buffers)
        content = self._content().data
        self._storage.in_flight = (self._path, position, data)
        try:
            self._storage.record("pwrite", self._path, len(data))
        finally:
            self._storage.in_flight = None
        if len(content) < position + len(data):
            content.extend(bytes(position + len(data) - len(content)))
        content[position : position + len(data)] = data

    def sync(self) -> None:
        content = self._content()
        self._storage.record("sync", self._path)
        content.synced = bytes(content.data)

    def allocate(self, position: int, size: int) -> None:
        content = self._content().data
        self._storage.record("allocate", self._path, size)
        if len(content) < position + size:
            content.extend(bytes(position + size - len(content)))

    def truncate(self, size: int) -> None:
        content = self._content().data
        self._storage.record("truncate", self._path, size)
        del content[size:]

    def dup(self) -> File:
        return _MemoryFile(self._storage, self._path, self._content())

    def close(self) -> None:
        self._open = None
