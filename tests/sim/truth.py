"""What is true of a partition, and what was seen of its replicas: the memory of the checker."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from typing import Any

from node.core.cluster.image import Image
from shmlog.records import batch as batches
from shmlog.records.layout import FLAGS_OF_COMPACTION, Flag

Row = tuple[int, bytes | None, bytes | None]  # offset, key, value


def rows_of(header: Any, data: Any) -> list[Row]:
    """The records of one batch."""
    batch = batches.RecordBatch(data, header, check_crc=False)
    return list(zip(batch.offsets.tolist(), batch.keys(), batch.values(), strict=True))


class Batch:
    """One committed batch."""

    __slots__ = ("_rows", "base", "committed_ns", "data", "end", "header")

    def __init__(self, header: Any, data: bytes, now_ns: int) -> None:
        self.header = header
        self.base, self.end = header.base_offset, header.end_offset
        self.data = data
        self.committed_ns = now_ns
        self._rows: dict[int, Row] | None = None

    @property
    def rows(self) -> dict[int, Row]:
        """Its records, by offset."""
        if self._rows is None:
            self._rows = {row[0]: row for row in rows_of(self.header, self.data)}
        return self._rows

    def is_same(self, header: Any, data: Any) -> bool:
        """Is that this batch, or what compaction has left of it?"""
        mine = self.header
        if mine.header_crc == header.header_crc:
            return True
        if not header.flags & FLAGS_OF_COMPACTION and header.record_count:
            return False
        names = ("base_offset", "end_offset", "leader_epoch", "append_time_ns", "producer_id")
        same = all(getattr(mine, name) == getattr(header, name) for name in names)
        return same and all(self.rows.get(row[0]) == row for row in rows_of(header, data))


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
        self.newest: dict[bytes, int] = {}  # key -> offset of its last record
        self.lost_newest: dict[bytes, int] = {}  # the same of what a recovery election has given up

    def append_times_from(self, offset: int, lowest: int = 1 << 63) -> dict[int, int]:
        """Base offset -> the lowest append time from that batch on: where one is higher, its clock was wrong.

        `lowest`: of what is not committed yet.
        """
        times = {}
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

    def row(self, offset: int) -> Row | None:
        """The record at an offset; None if it is not known."""
        batch = self.at(offset)
        return None if batch is None else batch.rows.get(offset)

    def may_be_gone(self, row: Row, wanted_ns: int) -> bool:
        """May compaction have taken a record: an older one of its key, or a tombstone committed by `wanted_ns`?"""
        offset, key, value = row
        if key is None:
            return False
        if max(self.newest.get(key, -1), self.lost_newest.get(key, -1)) > offset:
            return True
        batch = self.at(offset)
        return value is None and batch is not None and batch.committed_ns <= wanted_ns

    def wrong_rows(self, rows: list[Row], start: int, end: int, wanted_ns: int) -> str:
        """What is wrong with what a compacted log has from `start` to `end`; "" if nothing is."""
        there = {row[0]: row for row in rows}
        deleted: dict[bytes | None, int] = {}  # key -> its newest record, a tombstone that is gone
        for batch in self.batches[max(0, bisect_right(self.bases, start) - 1) :]:
            for row in batch.rows.values():
                offset, key, value = row
                if not start <= offset < end or there.get(offset) == row:
                    continue
                if offset in there or not self.may_be_gone(row, wanted_ns):
                    return f"{there.get(offset)} instead of {row}, its key's newest is at {self.newest.get(key)}"
                if value is None and self.newest.get(key) == offset:
                    deleted[key] = offset
        back = [row for row in rows if row[0] < deleted.get(row[1], -1)]
        return f"{back[0]} is there again, deleted at {deleted[back[0][1]]}" if back else ""

    def cut(self, offset: int, now_ns: int) -> None:
        """A recovery election has given up what lies behind."""
        self.losses.append((now_ns, offset, self.end))
        while self.batches and self.batches[-1].end > offset:
            lost = self.batches.pop().rows.values()
            self.lost_values.update(value for _, _, value in lost)
            _note(self.lost_newest, lost)
            self.bases.pop()
        self.end = self.batches[-1].end if self.batches else min(self.end, offset)
        self.producers, self.newest = {}, {}
        for batch in self.batches:
            self._remember(batch)

    def _remember(self, batch: Batch) -> None:
        header = batch.header
        if header.producer_id >= 0:
            after = header.base_sequence + batch.end - batch.base
            self.producers[header.producer_id] = (header.producer_epoch, after)
        if header.flags & Flag.KEYS:
            _note(self.newest, batch.rows.values())

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
        self._remember(batch)
        self.batches.append(batch)
        self.bases.append(batch.base)
        self.end = batch.end
        self.highest = max(self.highest, self.end)
        return wrong


def _note(newest: dict[bytes, int], rows: Iterable[Row]) -> None:
    for offset, key, _ in rows:
        if key is not None:
            newest[key] = max(newest.get(key, -1), offset)


class Replica:
    """A replica as it was seen last, be its broker dead or alive."""

    __slots__ = (
        "checked",
        "compaction",
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
        self.compaction: Any = None
        self.high_watermark = 0
        self.epoch = -1
        self.leads = False
        self.lossy = False  # found so, and not yet taken out of the in-sync replicas
        self.unknown = False  # rebooted, not opened yet
        self.losses = 0


class Seen:
    """What was seen of one process."""

    __slots__ = ("acks", "commit", "image", "image_before", "leader_of", "opened", "term")

    def __init__(self) -> None:
        self.commit = self.term = 0
        self.image = self.image_before = Image()  # after the last turn, and after the one before
        self.leader_of = -1
        self.acks: list[tuple[Any, Any]] = []
        self.opened: dict[tuple[bytes, int], int] = {}  # session, id -> until when to be answered
