"""Making and removing rings: the budget, the list of names, the heap where there is no room."""

from __future__ import annotations

import os

from node import journal
from shmlog.registry import MemoryList
from shmlog.ring import posix
from shmlog.ring.layout import RingIdentity, ring_name, ring_size
from shmlog.ring.memory import HeapMemory, SharedMemory
from shmlog.settings import format_size


def default_budget(brokers: int) -> int:
    """A broker's equal share of half of /dev/shm, in bytes."""
    info = os.statvfs("/dev/shm")
    return info.f_blocks * info.f_frsize // 2 // brokers


class Rings:
    """The shared memory of one broker.

    Invariants: a name stands in the list before its object exists; bytes of living rings <= budget.
    """

    def __init__(self, names: MemoryList, budget_bytes: int) -> None:
        self._names = names
        self._budget_bytes = budget_bytes
        self._used_bytes = 0
        self._said = False

    def reserve(self, capacity: int) -> bool:
        """Take a ring's bytes out of the budget; False (said once) if there is no room."""
        size = ring_size(capacity)
        if self._used_bytes + size > self._budget_bytes:
            self.say_no_room("the next partition")
            return False
        self._used_bytes += size
        return True

    def release(self, capacity: int) -> None:
        """Give a ring's bytes back."""
        self._used_bytes -= ring_size(capacity)

    def make(self, identity: RingIdentity, capacity: int) -> SharedMemory:
        """Create and touch the memory of a ring; in a worker. OSError ENOSPC: no room in /dev/shm."""
        name = ring_name(identity)
        self._names.append(name)
        memory = posix.create(name, ring_size(capacity))
        posix.touch(memory)
        return memory

    def heap(self, capacity: int) -> SharedMemory:
        """Private memory for a ring: readers fetch by socket."""
        return HeapMemory(ring_size(capacity))

    def remove(self, memory: SharedMemory) -> None:
        """Close a ring's memory and take its name away; who has it mapped keeps it."""
        memory.close()
        if memory.name is not None:
            self._used_bytes -= memory.size
            posix.unlink(memory.name)

    def say_no_room(self, what: str) -> None:
        """Once per broker: rings are out of room."""
        if not self._said:
            self._said = True
            journal.warning(
                "no room for rings: further partitions are read by socket",
                partition=what,
                budget=format_size(self._budget_bytes),
            )

    def close(self) -> None:
        """Remove what is left (a ring whose making ended after the loop did), and forget the names."""
        for name in self._names.names():
            posix.unlink(name)
        self._names.clear()
