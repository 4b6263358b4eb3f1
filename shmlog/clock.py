"""The only reader of time.

Two clocks, never mixed: *monotonic* decides every time-out, *wall* only stamps records and gives their age. A third
one, *boottime*, only tells whether the wall clock was set. All are int64 nanoseconds. Everything that decides takes
`now` as an argument or a `Clock` in its constructor, so a test (and the simulator) can turn it by hand.
"""

from __future__ import annotations

import time
from typing import Protocol

NS_PER_MS = 1_000_000
NS_PER_S = 1_000_000_000


class Clock(Protocol):
    """A source of time."""

    def monotonic_ns(self) -> int:
        """Nanoseconds since an arbitrary start; never goes back; one clock for all processes."""
        ...

    def wall_ns(self) -> int:
        """Nanoseconds since 1970-01-01 UTC; may jump."""
        ...

    def boottime_ns(self) -> int:
        """Nanoseconds since the machine was started, suspension included; never jumps."""
        ...


class SystemClock:
    """The machine's clocks."""

    __slots__ = ()
    monotonic_ns = staticmethod(time.monotonic_ns)
    wall_ns = staticmethod(time.time_ns)

    def boottime_ns(self) -> int:
        """See Clock."""
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class ManualClock:
    """A clock that a test turns: its faces advance together, unless the wall clock is set."""

    def __init__(self, monotonic_ns: int = 0, wall_ns: int = 1_700_000_000 * NS_PER_S) -> None:
        self._monotonic_ns = monotonic_ns
        self._wall_ns = wall_ns

    def monotonic_ns(self) -> int:
        return self._monotonic_ns

    def wall_ns(self) -> int:
        return self._wall_ns

    def boottime_ns(self) -> int:
        return self._monotonic_ns

    def set_wall(self, ns: int) -> None:
        """Let the wall clock jump by `ns` nanoseconds."""
        self._wall_ns += ns

    def advance(self, ns: int) -> None:
        """Move both clocks forward by `ns` nanoseconds."""
        self._monotonic_ns += ns
        self._wall_ns += ns


SYSTEM_CLOCK = SystemClock()


def sleep(seconds: float) -> None:
    """Pause the calling thread: for waits on the outside world that offer nothing to wait on."""
    time.sleep(seconds)
