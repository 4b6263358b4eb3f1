"""Doorbells of rings: how readers that sleep at a ring's end hear of news, without a message to any of them.

    writer                                  reader
    batches, tail, high watermark           watch the ring's file (inotify)        once
    ring: pwrite(2) the `bell` word  ~~~~>  look into the ring, nothing there
                                            sleep on the watch's descriptor
                                            hush, look again                       on every ring

A write to a file is told to all who watch it (IN_MODIFY, inotify(7)); stores through a mapping are
not. So the writer makes one system call a turn and partition, however many readers there are; the
kernel wakes those that sleep. Messages instead would cost the writer a request and an answer a
reader.

No ring is missed: a reader that did not see the news had looked before they were stored, so the
write that followed them found its watch in place, and the event ends its sleep, or keeps it from
falling asleep. For the same reason `hush` comes before the look, never after it.

The calls are made through ctypes: Python has none of its own, and the well-known package starts a
process to find the C library.
"""

from __future__ import annotations

import contextlib
import ctypes
import os

IN_MODIFY = 0x2
_READ_BYTES = 64 << 10  # 4096 events; what is left over makes the descriptor readable again

_libc = ctypes.CDLL(None, use_errno=True)


def _call(function: str, *arguments: int | bytes) -> int:
    result: int = getattr(_libc, function)(*arguments)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{function}: {os.strerror(number)}")
    return result


class Doorbells:
    """The bells that one reader listens to. `fd` is readable when one of them has rung."""

    def __init__(self) -> None:
        """Raises OSError EMFILE: the user has fs.inotify.max_user_instances of them."""
        self.fd = _call("inotify_init1", os.O_NONBLOCK | os.O_CLOEXEC)

    def watch(self, name: str) -> int:
        """Hear the bell of the ring in shared memory `name` from now on; a number for `unwatch`.

        A ring is watched once at a time. Raises FileNotFoundError: the name is gone. OSError ENOSPC: the user has
        fs.inotify.max_user_watches of them.
        """
        return _call("inotify_add_watch", self.fd, os.fsencode(f"/dev/shm{name}"), IN_MODIFY)

    def unwatch(self, number: int) -> None:
        """Hear it no more."""
        with contextlib.suppress(OSError):  # EINVAL: the ring is gone, and its watch with it
            _call("inotify_rm_watch", self.fd, number)

    def hush(self) -> None:
        """What rang until now has been heard."""
        with contextlib.suppress(BlockingIOError):
            os.read(self.fd, _READ_BYTES)

    def close(self) -> None:
        """Hear nothing more. May be called twice."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)
