"""What a broker counts, and its page in shared memory (shmlog/stats.py has the layout)."""

from __future__ import annotations

import errno
from dataclasses import dataclass, field

from node import journal
from shmlog import stats
from shmlog.registry import MemoryList
from shmlog.ring import posix
from shmlog.ring.memory import SharedMemory


@dataclass(slots=True)
class Counters:
    """What handlers have done since the start. One owner: the loop."""

    errors: int = 0
    busy_answers: int = 0
    batches_in: int = 0
    records_in: int = 0
    bytes_in: int = 0
    duplicates: int = 0
    bytes_out: int = 0
    commits: int = 0


@dataclass(slots=True)
class TurnStatistics:
    """What the turns of this loop have cost."""

    count: int = 0
    requests: int = 0
    messages: int = 0
    busy_ns: int = 0
    longest_ns: int = 0
    longest_cause: str = "none"
    longest_write_ns: int = 0
    by_duration: list[int] = field(default_factory=lambda: [0] * stats.TURN_BUCKETS)


class Page:
    """The stats page of one incarnation. Where /dev/shm has no room there is none, and that is said."""

    def __init__(
        self, names: MemoryList, identity: stats.Identity, *, pid: int, started_ns: int
    ) -> None:
        self._memory: SharedMemory | None = None
        name = stats.page_name(identity)
        names.append(name)
        try:
            self._memory = posix.create(name, stats.SIZE)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            journal.warning("no room for the stats page", reason=str(error))
            return
        self._writer = stats.PageWriter(self._memory, identity, pid=pid, started_ns=started_ns)

    def write(self, values: dict[str, int], turns: TurnStatistics, now_ns: int) -> None:
        """Show these values."""
        if self._memory is not None:
            row = [values[name] for name in stats.NAMES]
            self._writer.write(row, turns.by_duration, now_ns)

    def close(self) -> None:
        """Take the page's name away; who has it mapped keeps it. May be called without a page."""
        if self._memory is not None:
            self._memory.close()
            posix.unlink(str(self._memory.name))
            self._memory = None
