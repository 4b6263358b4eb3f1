"""What is true of a partition, and what was seen of its replicas: the memory of the checker."""

from __future__ import annotations

from bisect import bisect_right
from typing import Any

from shmlog.records import batch as batches


class Batch:
    """One committed batch."""

    __slots__ = ("_values", "base", "committed_ns", "data", "end", "header")

    def __init__(self, header: Any, data: bytes, now_ns: int) -> None:
        self.header = header
        self.base, self.end = header.base_offset, header.end_offset
        self.data = data
        self.committed_ns = now_ns
        self._values: list[bytes | None] | None = None

    def values(self) -> list[bytes | None]:
        if self._values is None:
            self._values = batches.RecordBatch(self.data, self.header, check_crc=False).values()
        return self._values


class Truth:
    """What was committed of one partition."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.batches: list[Batch] = []
        self.bases: list[int] = []
        self.start = 0  # of what is known: a topic may have been trimmed before
        self.end = 0
        self.highest = 0  # the end it ever had
        self.losses: list[tuple[int, int, int]] = []  # when, from, to
        self.lost_values: set[bytes | None] = set()
        self.producers: dict[int, tuple[int, int]] = {}  # id -> epoch, next sequence
        self.always_disk = True
        self.given_up = 0  # the highest log start that a rule of retention has justified

    def append_times_from(self, offset: int) -> dict[int, int]:
        """Base offset -> the lowest append time from that batch on: where one is higher, its clock was wrong."""
        lowest, times = 1 << 63, {}
        for batch in reversed(self.batches):
            if batch.end <= offset:
                break
            lowest = times[batch.base] = min(lowest, batch.header.append_time_ns)
        return times

    def at(self, offset: int) -> Batch | None:
        """The batch that holds an offset."""
        place = bisect_right(self.bases, offset) - 1
        if place < 0 or self.batches[place].end <= offset:
            return None
        return self.batches[place]

    def cut(self, offset: int, now_ns: int) -> None:
        """A recovery election has given up what lies behind."""
        self.losses.append((now_ns, offset, self.end))
        while self.batches and self.batches[-1].end > offset:
            self.lost_values.update(self.batches.pop().values())
            self.bases.pop()
        self.end = self.batches[-1].end if self.batches else min(self.end, offset)
        self.producers = {}
        for batch in self.batches:
            self._remember(batch.header)

    def _remember(self, header: Any) -> None:
        if header.producer_id >= 0:
            after = header.base_sequence + header.record_count
            self.producers[header.producer_id] = (header.producer_epoch, after)

    def extend(self, batch: Batch) -> str | None:
        """One more batch is committed; what is wrong with it (I14)."""
        header, wrong = batch.header, None
        if header.producer_id >= 0:
            epoch, expected = self.producers.get(header.producer_id, (header.producer_epoch, 0))
            if header.producer_epoch > epoch:
                expected = 0
            if header.producer_epoch < epoch or header.base_sequence != expected:
                wrong = (
                    f"I14 {self.name}: producer {header.producer_id} has sequence "
                    f"{header.base_sequence} at offset {batch.base}, expected {expected}"
                )
            self._remember(header)
        self.batches.append(batch)
        self.bases.append(batch.base)
        self.end = batch.end
        self.highest = max(self.highest, self.end)
        return wrong


class Replica:
    """A replica as it was seen last, be its broker dead or alive."""

    __slots__ = (
        "checked",
        "end",
        "epoch",
        "generation",
        "high_watermark",
        "incarnation",
        "leads",
        "log",
        "losses",
        "lossy",
        "start",
        "unknown",
    )

    def __init__(self) -> None:
        self.incarnation = -1
        self.log: Any = None
        self.end = 0
        self.checked = 0
        self.start = 0
        self.generation = 0
        self.high_watermark = 0
        self.epoch = -1
        self.leads = False
        self.lossy = False  # found so, and not yet taken out of the in-sync replicas
        self.unknown = False  # rebooted, not opened yet
        self.losses = 0


class Seen:
    """What was seen of one process."""

    __slots__ = ("acks", "commit", "image", "leader_of", "opened", "term")

    def __init__(self) -> None:
        self.commit = self.term = self.image = 0
        self.leader_of = -1
        self.acks: list[tuple[Any, Any]] = []
        self.opened: dict[tuple[bytes, int], int] = {}  # session, id -> until when to be answered
