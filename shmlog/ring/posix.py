"""POSIX shared memory: the only user of posix_ipc and mmap.

`create` reserves the memory before it is mapped: a sparse object would kill its writer by SIGBUS
at the first touch of a page for which there is no room, and Python cannot catch that. Nobody
unlinks but the owner; there is no resource tracker here that could take a segment away from under
its users.
"""

from __future__ import annotations

import mmap
import os
import struct

import numpy as np
import posix_ipc

from shmlog.ring.layout import BELL

DESCRIPTORS = 2  # of memory that was made here: the mapping has one of its own
_TOUCH_BYTES = 4 << 20
_PAGE = 4096
_WORD = struct.Struct("<Q")


class PosixMemory:
    """A mapping of a named segment; its maker keeps the descriptor `fd`, to ring its bell."""

    def __init__(self, name: str, mapping: mmap.mmap, fd: int = -1) -> None:
        self.name: str | None = name
        self.size = len(mapping)
        self._fd = fd
        self._rings = 0
        self._mapping: mmap.mmap | None = mapping
        self.buffer = memoryview(mapping)

    def ring_bell(self) -> None:
        """Write the ring's bell word through the file, which those hear who watch it (doorbell.py)."""
        self._rings += 1
        if self._fd >= 0:
            os.pwrite(self._fd, _WORD.pack(self._rings), 8 * BELL)

    def close(self) -> None:
        """Unmap it; while views are held, the last of them does. May be called twice."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
        mapping, self._mapping = self._mapping, None
        if mapping is None:
            return
        try:
            self.buffer.release()
            mapping.close()
        except BufferError:
            pass  # a view (of a batch read without copy) still needs the bytes; it owns them now


def create(name: str, size: int) -> PosixMemory:
    """Make and reserve a segment of `size` bytes, mode 0600.

    Raises: FileExistsError: the name is taken. OSError ENOSPC: /dev/shm has no room; nothing is
    left.
    """
    try:
        segment = posix_ipc.SharedMemory(name, posix_ipc.O_CREX, mode=0o600)
    except posix_ipc.ExistentialError:
        raise FileExistsError(f"shared memory {name} exists") from None
    try:
        os.posix_fallocate(segment.fd, 0, size)
        return PosixMemory(name, mmap.mmap(segment.fd, size), segment.fd)
    except BaseException:
        segment.close_fd()
        unlink(name)
        raise


def touch(memory: PosixMemory) -> None:
    """Touch every page of new memory, so that the first lap costs no page faults. For a worker
    thread.

    It stores zeros, so it must be done before a ring is made there. A strided numpy store of more
    than 500 items lets go of the GIL (a piece has 1024); madvise would hold it all along.
    """
    pages = np.frombuffer(memory.buffer, np.uint8)
    for start in range(0, memory.size, _TOUCH_BYTES):
        pages[start : start + _TOUCH_BYTES : _PAGE] = 0


def attach(name: str) -> PosixMemory:
    """Map an existing segment, read-only.

    Raises: FileNotFoundError: no such name, or it is just being made. PermissionError: another
    user's.
    """
    try:
        segment = posix_ipc.SharedMemory(name, read_only=True)
    except posix_ipc.ExistentialError:
        raise FileNotFoundError(f"no shared memory {name}") from None
    except posix_ipc.PermissionsError:
        raise PermissionError(f"shared memory {name} belongs to another user") from None
    try:
        size = os.fstat(segment.fd).st_size
        if size == 0:  # its maker is between shm_open and fallocate
            raise FileNotFoundError(f"shared memory {name} is being made")
        mapping = mmap.mmap(segment.fd, size, prot=mmap.PROT_READ)
    finally:
        segment.close_fd()
    return PosixMemory(name, mapping)


def unlink(name: str) -> bool:
    """Take the name away; who has it mapped keeps it. False if there is no such name."""
    try:
        posix_ipc.unlink_shared_memory(name)
    except posix_ipc.ExistentialError:
        return False
    return True
