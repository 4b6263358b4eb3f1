"""The broker's compactor, a child process: python -P -m node.compactor BROKER_PID. See node/io/compactor.py.

It is niced, goes at most RATE_BYTES_PER_S through what it reads and writes, and waits for nothing but its stdin: while
it holds back it would see the broker end.
"""

from __future__ import annotations

import select
import sys
from collections.abc import Callable
from typing import BinaryIO

import msgspec

from node.io.compactor import SIZE
from shmlog import process
from shmlog.clock import NS_PER_MS, NS_PER_S, SYSTEM_CLOCK, Clock
from shmlog.log.cleaner import run_task
from shmlog.log.cleaning_task import CleaningTask
from shmlog.log.os_storage import OsStorage

RATE_BYTES_PER_S = 64 << 20
BURST_NS = 20 * NS_PER_MS
IDLE_S = 60.0


class BrokerGone(Exception):
    """Nobody wants the rest."""


Wait = Callable[[float], bool]


class Throttle:
    """Lets `size` bytes at a time pass, and no more of them a second than the rate. `wait(s)` is True at the end."""

    def __init__(self, clock: Clock, wait: Wait, rate: int = RATE_BYTES_PER_S) -> None:
        self._clock = clock
        self._wait = wait
        self._rate = rate
        self._free_ns = clock.monotonic_ns()  # when all that has passed is paid for

    def __call__(self, size: int) -> None:
        """Raises BrokerGone."""
        now_ns = self._clock.monotonic_ns()
        self._free_ns = max(self._free_ns, now_ns - BURST_NS) + size * NS_PER_S // self._rate
        ahead_ns = self._free_ns - now_ns
        if ahead_ns > BURST_NS and self._wait(ahead_ns / NS_PER_S):
            raise BrokerGone


def _has_input(timeout_s: float) -> bool:
    return bool(select.select([0], [], [], timeout_s)[0])


def _next_task(stdin: BinaryIO) -> CleaningTask | None:
    head = stdin.read(SIZE.size)
    if len(head) < SIZE.size:
        return None
    return msgspec.msgpack.decode(stdin.read(SIZE.unpack(head)[0]), type=CleaningTask)


def main() -> int:
    """Serve tasks until the broker ends, or none comes for IDLE_S."""
    process.end_with_parent(int(sys.argv[1]))
    process.step_back()
    storage = OsStorage()
    stdin, stdout = sys.stdin.buffer, sys.stdout.buffer
    while _has_input(IDLE_S):
        task = _next_task(stdin)
        if task is None:
            break
        try:
            result = run_task(storage, task, Throttle(SYSTEM_CLOCK, _has_input))
        except BrokerGone:
            break
        answer = msgspec.msgpack.encode(result)
        stdout.write(SIZE.pack(len(answer)) + answer)
        stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
