"""The processes of group members on this machine: a pidfd each, shared by members of one process.

A pid is the kernel's word on who connected (SO_PEERCRED). It may be another process's by the time its pidfd is open;
so a member counts as *watched*, and needs no heartbeats to be alive, only once it has been heard again on the same
connection, or where its start time is the one that stands in the group. A pidfd that ends is a proof of death
either way: whoever has the pid now, the member is not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from node.io.liveness import Kernel, Opened

Key = tuple[str, str]  # group and member


class Members:
    """The watched processes. `watch` and `unwatch` are the poller's."""

    def __init__(
        self, kernel: Kernel, watch: Callable[[int], None], unwatch: Callable[[int], None]
    ) -> None:
        self._kernel = kernel
        self._watch = watch
        self._unwatch = unwatch
        self._open: dict[int, tuple[Opened, dict[Key, None]]] = {}  # by pid
        self._pids: dict[Key, int] = {}

    def add(self, key: Key, pid: int) -> int | None:
        """Watch a member's process; when it was started, None: it cannot be watched, or is dead."""
        if self._pids.get(key) == pid:
            return self._open[pid][0].started
        self.remove(key)
        if pid <= 0:
            return None
        if pid not in self._open:
            opened = self._kernel.open_process(pid)
            if opened is None:
                return None
            self._open[pid] = (opened, {})
            self._watch(opened.descriptor)
        opened, keys = self._open[pid]
        keys[key] = None
        self._pids[key] = pid
        return opened.started

    def remove(self, key: Key) -> None:
        """The member's process does not matter any more."""
        pid = self._pids.pop(key, None)
        if pid is None:
            return
        opened, keys = self._open[pid]
        del keys[key]
        if not keys:
            self._forget(pid, opened)

    def readable(self, descriptors: Iterable[int]) -> list[Key]:
        """These descriptors have become readable: the members that are dead."""
        dead: list[Key] = []
        by_descriptor = {opened.descriptor: pid for pid, (opened, _) in self._open.items()}
        for descriptor in descriptors:
            pid = by_descriptor.get(descriptor)
            if pid is not None:
                opened, keys = self._open[pid]
                dead += keys
                for key in keys:
                    del self._pids[key]
                self._forget(pid, opened)
        return dead

    def _forget(self, pid: int, opened: Opened) -> None:
        del self._open[pid]
        self._unwatch(opened.descriptor)
        self._kernel.close(opened.descriptor)
