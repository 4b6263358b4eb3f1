"""Requests that wait: for an end to be reached, for a key to vanish, or for their deadline. Sans-IO.

A waiter waits on any number of keys, each with a threshold, and is handed back exactly once: by `advance`
when a key's value has reached its threshold (in any mode "any key is enough"; the caller parks it again if
it wants more), by `drop_key` when the key is gone, or by `expire`. A waiter is taken out of every key the
moment it is handed back, so a quiet key never collects the waiters of the past.

Most waiters are answered in the turn in which they came. So a deadline is put into the heap only by `arm`,
at the end of the turn, for those that are left. A waiter that waits again finds the entry of its last time
still there; dead heap entries are swept once they outnumber the living.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar

W = TypeVar("W")
K = TypeVar("K", bound=Hashable)


class Purgatory(Generic[K, W]):
    """Waiters by key and by deadline.

    Invariants: a waiter is in `_keys_of` exactly while it waits, and in `_waiting[key]` for each of its keys;
    at most one heap entry of a waiter counts, the one in `_armed`.
    """

    def __init__(self) -> None:
        self._waiting: dict[K, dict[W, int]] = {}
        self._keys_of: dict[W, list[K]] = {}
        self._deadlines: list[tuple[int, int, W]] = []
        self._armed: dict[W, tuple[int, int, W]] = {}
        self._unarmed: dict[W, int] = {}
        self._count = 0

    def __len__(self) -> int:
        return len(self._keys_of)

    def wait(self, waiter: W, thresholds: Iterable[tuple[K, int]], deadline_ns: int) -> None:
        """Park `waiter` until one of its keys reaches its threshold, or `deadline_ns` (monotonic)."""
        keys = []
        for key, threshold in thresholds:
            self._waiting.setdefault(key, {})[waiter] = threshold
            keys.append(key)
        self._keys_of[waiter] = keys
        armed = self._armed.get(waiter)
        if armed is None or armed[0] != deadline_ns:
            self._armed.pop(waiter, None)
            self._unarmed[waiter] = deadline_ns

    def advance(self, key: K, value: int) -> list[W]:
        """Hand back, in order of arrival, the waiters whose threshold for `key` is at most `value`."""
        waiting = self._waiting.get(key)
        if not waiting:
            return []
        ready = [waiter for waiter, threshold in waiting.items() if threshold <= value]
        for waiter in ready:
            self.remove(waiter)
        return ready

    def drop_key(self, key: K) -> list[W]:
        """Hand back every waiter of a key that will never advance again."""
        gone = list(self._waiting.get(key, ()))
        for waiter in gone:
            self.remove(waiter)
        return gone

    def remove(self, waiter: W) -> bool:
        """Take a waiter out; False if it does not wait."""
        keys = self._keys_of.pop(waiter, None)
        if keys is None:
            return False
        for key in keys:
            waiting = self._waiting.get(key)
            if waiting is not None:
                waiting.pop(waiter, None)
                if not waiting:
                    del self._waiting[key]
        return True

    def arm(self) -> None:
        """Give every waiter that came since the last call its place in the heap of deadlines."""
        for waiter, deadline_ns in self._unarmed.items():
            if waiter in self._keys_of:
                self._count += 1
                self._armed[waiter] = entry = (deadline_ns, self._count, waiter)
                heapq.heappush(self._deadlines, entry)
        self._unarmed.clear()
        if len(self._deadlines) > 64 + 2 * len(self._keys_of):
            self._deadlines = [entry for entry in self._deadlines if self._counts(entry)]
            heapq.heapify(self._deadlines)
            self._armed = {entry[2]: entry for entry in self._deadlines}

    def _counts(self, entry: tuple[int, int, W]) -> bool:
        return entry[2] in self._keys_of and self._armed.get(entry[2]) is entry

    def _pop(self) -> None:
        entry = heapq.heappop(self._deadlines)
        if self._armed.get(entry[2]) is entry:
            del self._armed[entry[2]]

    def expire(self, now_ns: int) -> list[W]:
        """Hand back the waiters whose deadline has come."""
        late = []
        while self._deadlines and self._deadlines[0][0] <= now_ns:
            entry = self._deadlines[0]
            if self._counts(entry):
                self.remove(entry[2])
                late.append(entry[2])
            self._pop()
        return late

    def next_deadline_ns(self) -> int | None:
        """The earliest deadline that may matter; None if nobody waits."""
        while self._deadlines and not self._counts(self._deadlines[0]):
            self._pop()
        return self._deadlines[0][0] if self._deadlines else None
