"""Who of the other brokers lives: the kernel says so.

For each registered incarnation a pidfd is taken (E4: pid from the registry file, pidfd_open, then look whether the
same entry is still there and its lock still held, else a reused pid might be watched). A readable pidfd is a proof of
death, and so is a free lock of the registry entry of that very incarnation, for who came later (E3). No entry yet
means nothing: it is looked for again at each `retry`. Beats, for those that live and do not work, are not here but
in the messages of the metadata log. E: docs/rules.md.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

from shmlog import directory, process, registry


class Death(NamedTuple):
    """That incarnation is proven dead."""

    broker: int
    incarnation: int


class Opened(NamedTuple):
    """A process's pidfd, and when it was started, as /proc says (clock ticks since the boot)."""

    descriptor: int
    started: int


class Kernel(Protocol):
    """What is asked of the operating system."""

    def open(self, broker: int, incarnation: int) -> int | None:
        """A descriptor that becomes readable when that incarnation ends; None: not known yet.

        Raises ProcessLookupError: it is proven dead.
        """
        ...

    def open_process(self, pid: int) -> Opened | None:
        """Any process of this machine; None if there is none of that pid, or none that may be seen."""
        ...

    def close(self, descriptor: int) -> None:
        """Let go of a descriptor."""
        ...

    def is_blocked(self, broker: int) -> bool:
        """Does the broker's process wait for a device (kernel state D)?"""
        ...


class OsKernel:
    """The operating system, and the registry of the cluster at `path`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._pids: dict[int, int] = {}

    def open(self, broker: int, incarnation: int) -> int | None:
        file = directory.registry_file(self._path, broker)
        found = registry.read(file, directory.BrokerEntry)
        if found is None or found.entry.incarnation < incarnation:
            return None
        if found.entry.incarnation > incarnation or not found.alive:
            raise ProcessLookupError(f"broker {broker}, incarnation {incarnation}")
        descriptor = process.open_pidfd(found.entry.pid)
        again = registry.read(file, directory.BrokerEntry)
        if descriptor is not None and again == found:
            self._pids[broker] = found.entry.pid
            return descriptor
        if descriptor is not None:
            os.close(descriptor)
        return None  # it changes just now: the next look tells

    def open_process(self, pid: int) -> Opened | None:
        descriptor = process.open_pidfd(pid)
        if descriptor is None:
            return None
        started = process.start_time(pid)
        if started is None or process.has_ended(descriptor):
            os.close(descriptor)
            return None
        return Opened(descriptor, started)

    def close(self, descriptor: int) -> None:
        os.close(descriptor)

    def is_blocked(self, broker: int) -> bool:
        return process.waits_for_device(self._pids[broker])


class Liveness:
    """The watched incarnations. `watch` and `unwatch` are the poller's."""

    def __init__(
        self, kernel: Kernel, watch: Callable[[int], None], unwatch: Callable[[int], None]
    ) -> None:
        self._kernel = kernel
        self._watch = watch
        self._unwatch = unwatch
        self._wanted: dict[int, int] = {}  # broker -> incarnation
        self._descriptors: dict[int, int] = {}  # broker -> descriptor
        self._dead: dict[int, int] = {}  # broker -> newest incarnation that is proven dead

    def is_dead(self, broker: int, incarnation: int) -> bool:
        """Is that incarnation proven dead?"""
        return self._dead.get(broker, -1) >= incarnation

    def follow(self, incarnations: Mapping[int, int]) -> list[Death]:
        """Watch these incarnations of the other brokers; those found dead already."""
        for broker in sorted(incarnations):
            incarnation = incarnations[broker]
            if self._wanted.get(broker) != incarnation:
                self._forget(broker)
                self._wanted[broker] = incarnation
        return self.retry()

    def retry(self) -> list[Death]:
        """Look again for those whose entry was not there yet; those found dead."""
        deaths = []
        for broker, incarnation in self._wanted.items():
            if broker in self._descriptors or self.is_dead(broker, incarnation):
                continue
            try:
                descriptor = self._kernel.open(broker, incarnation)
            except ProcessLookupError:
                deaths.append(self._died(broker))
                continue
            if descriptor is not None:
                self._descriptors[broker] = descriptor
                self._watch(descriptor)
        return deaths

    def readable(self, descriptors: Iterable[int]) -> list[Death]:
        """These descriptors have become readable: who died."""
        owners = {descriptor: broker for broker, descriptor in self._descriptors.items()}
        return [self._died(owners[found]) for found in descriptors if found in owners]

    def blocked(self) -> frozenset[int]:
        """The brokers that wait for a device: slow, not hung."""
        return frozenset(b for b in self._descriptors if self._kernel.is_blocked(b))

    def close(self) -> None:
        """Let go of every descriptor."""
        for broker in list(self._descriptors):
            self._forget(broker)

    def _died(self, broker: int) -> Death:
        self._forget(broker)
        incarnation = self._dead[broker] = self._wanted[broker]
        return Death(broker, incarnation)

    def _forget(self, broker: int) -> None:
        descriptor = self._descriptors.pop(broker, None)
        if descriptor is not None:
            self._unwatch(descriptor)
            self._kernel.close(descriptor)
