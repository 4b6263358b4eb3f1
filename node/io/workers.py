"""Threads that make the system calls which may take long: sync, preallocate, unlink, make rings.

A job is any object with `run()`; nothing else of the broker is touched by a worker. A finished job comes back
to the loop through `completions`, and an eventfd wakes the loop's poller. Queues of their own, so that nothing
long holds up what others wait for:

    METADATA  one thread: the metadata log's syncs, which elections wait for
    SYNC      two threads: fdatasync of different files overlaps
    FILES     one thread, which keeps file jobs in the order in which they were given
    OPEN      four threads: recovery at the start; logs do not know each other
    COMPACT   one thread, which waits for the compactor's passes
"""

from __future__ import annotations

import enum
import errno
import os
import queue
import threading
from collections import deque
from collections.abc import Callable
from typing import NamedTuple, Protocol

Runnable = Callable[[], object]
_SCARCE = (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE)


class Lane(enum.Enum):
    """Which queue a job goes to."""

    METADATA = "metadata"
    SYNC = "sync"
    FILES = "files"
    OPEN = "open"
    COMPACT = "compact"


THREADS = {Lane.METADATA: 1, Lane.SYNC: 2, Lane.FILES: 1, Lane.OPEN: 4, Lane.COMPACT: 1}


class Completion(NamedTuple):
    """A job that has run. `error` is what it raised; `done` is for the loop to call."""

    lane: Lane
    done: Callable[[object, BaseException | None], None]
    result: object
    error: BaseException | None


def is_no_space(error: BaseException | None) -> bool:
    """Is this the lack of space, or of descriptors, that a broker survives?"""
    return isinstance(error, OSError) and error.errno in _SCARCE


class Workers(Protocol):
    """What the loop needs of its workers."""

    def fileno(self) -> int:
        """Readable while completions wait."""
        ...

    def submit(
        self,
        lane: Lane,
        run: Runnable,
        done: Callable[[object, BaseException | None], None],
    ) -> None:
        """Run `run` on a worker; `done(result, error)` is called later by the loop."""
        ...

    def completions(self) -> list[Completion]:
        """The jobs that have finished since the last call."""
        ...

    def wake(self) -> None:
        """Make `fileno` readable once; may be called from a signal handler."""
        ...

    def close(self) -> list[Completion]:
        """Run what is queued, end the threads; the completions that nobody has taken."""
        ...


class ThreadWorkers:
    """Workers as threads."""

    def __init__(self) -> None:
        self._eventfd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._done: deque[Completion] = deque()
        self._queues: dict[Lane, queue.SimpleQueue[tuple[Runnable, Callable[..., None]] | None]] = {
            lane: queue.SimpleQueue() for lane in Lane
        }
        lanes = [lane for lane, count in THREADS.items() for _ in range(count)]
        self._threads = [
            threading.Thread(
                target=self._work, args=(lane,), name=f"shmlog-{lane.value}", daemon=True
            )
            for lane in lanes
        ]
        for thread in self._threads:
            thread.start()
        self._lanes = lanes

    def fileno(self) -> int:
        return self._eventfd

    def submit(
        self,
        lane: Lane,
        run: Runnable,
        done: Callable[[object, BaseException | None], None],
    ) -> None:
        self._queues[lane].put((run, done))

    def completions(self) -> list[Completion]:
        try:
            os.eventfd_read(self._eventfd)
        except BlockingIOError:
            return []
        finished = []
        while self._done:
            finished.append(self._done.popleft())
        return finished

    def wake(self) -> None:
        os.eventfd_write(self._eventfd, 1)

    def close(self) -> list[Completion]:
        for lane in self._lanes:
            self._queues[lane].put(None)
        for thread in self._threads:
            thread.join()
        os.close(self._eventfd)
        return list(self._done)

    def _work(self, lane: Lane) -> None:
        jobs = self._queues[lane]
        while (job := jobs.get()) is not None:
            run, done = job
            result: object = None
            error: BaseException | None = None
            try:
                result = run()
            except BaseException as raised:  # noqa: BLE001 - handed to the loop, which decides
                error = raised
            self._done.append(Completion(lane, done, result, error))
            os.eventfd_write(self._eventfd, 1)
