"""Paced replay: records with the gaps that lay between them, times a factor. Without I/O; the caller has the clock.

The first record is due when it is there, and each other one as long after it as its timestamp is, times the factor. A
reader that falls behind gets what is due at once, and is told how late it is; the schedule does not shift.

Over several partitions it is a merge by timestamp of what each has next. A partition of which nothing is buffered may
still have something older, so it is waited for until it is known that all of it has been read. Within a partition
records never change places: one whose timestamp goes back is due at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shmlog.client.batch import Batch
from shmlog.client.fetches import PartitionReader
from shmlog.client.ring_tail import Piece
from shmlog.errors import InvalidConfig
from shmlog.serde import Serde


@dataclass(slots=True)
class _Head:
    """What a partition has next: records of one stored batch, the first `taken` of them handed out."""

    reader: PartitionReader
    piece: Piece
    batch: Batch
    timestamps: NDArray[np.int64]
    taken: int

    @property
    def next_ns(self) -> int:
        """The timestamp of the next record."""
        return int(self.timestamps[self.taken])

    def count_until(self, timestamp_ns: int) -> int:
        """How many of the records to come, up to the first later one, are not later than that."""
        later = self.timestamps[self.taken :] > timestamp_ns
        return int(np.argmax(later)) if later.any() else len(later)

    def take(self, count: int) -> Batch:
        """The next `count` records. The reader's position is behind them."""
        start, self.taken = self.taken, self.taken + count
        part = self.batch.part(start, self.taken)
        if self.taken < len(self.batch):
            self.reader.position = part.end_offset
        else:
            skip(self.reader)
        self.reader.handed_epoch = self.piece.header.leader_epoch
        return part


def skip(reader: PartitionReader) -> None:
    """Be done with the reader's next stored batch."""
    piece = reader.next_piece()
    reader.position = min(piece.header.end_offset, reader.stop)
    if reader.finished:
        reader.pieces.clear()


class Pacer:
    """When records are due. One owner: the consumer.

    `factor`: of the gaps; 1 as they were, 0.1 ten times as fast. `lateness_ns`: how late the last ones were handed
    out, `lateness_max_ns`: the latest ones. Raises InvalidConfig.
    """

    def __init__(self, factor: float, serdes: tuple[Serde | None, Serde | None]) -> None:
        if not (math.isfinite(factor) and factor > 0):
            raise InvalidConfig(f"pace = {factor!r}: must be a factor above 0 of the gaps")
        self.lateness_ns = self.lateness_max_ns = 0
        self._factor = factor
        self._serdes = serdes
        self._heads: dict[PartitionReader, _Head] = {}
        self._first: tuple[int, int] | None = (
            None  # timestamp of the first record, when it was handed out
        )

    def begin_anew(self) -> None:
        """Another place is read: its first record is due at once."""
        self._first = None

    def next(
        self, readers: Iterable[PartitionReader], now_ns: int
    ) -> tuple[Batch | None, int | None]:
        """Records of one partition that are due; else (None, when the next one is); or (None, None): not all of
        `readers`, which have been filled with what is there, can say what they have next.
        """
        found = {reader: self._head_of(reader) for reader in readers}
        self._heads = {reader: head for reader, head in found.items() if head is not None}
        if not self._heads or any(h is None and not r.is_at_end for r, h in found.items()):
            return None, None
        heads = sorted(self._heads.values(), key=lambda head: head.next_ns)
        head = heads[0]
        if self._first is None:
            self._first = head.next_ns, now_ns
        first_ns, began_ns = self._first
        due_ns = began_ns + round((head.next_ns - first_ns) * self._factor)
        if due_ns > now_ns:
            return None, due_ns
        until_ns = max(head.next_ns, first_ns + int((now_ns - began_ns) / self._factor))
        if len(heads) > 1:
            until_ns = min(until_ns, heads[1].next_ns)
        self.lateness_ns = now_ns - due_ns
        self.lateness_max_ns = max(self.lateness_max_ns, self.lateness_ns)
        return head.take(head.count_until(until_ns)), None

    def _head_of(self, reader: PartitionReader) -> _Head | None:
        while reader.pieces:
            piece, head = reader.pieces[0], self._heads.get(reader)
            known = head is not None and head.piece is piece
            if head is not None and known and reader.position == head.batch.offset_at(head.taken):
                return head
            topic = reader.tp.topic
            batch = Batch(topic, piece, reader.position, reader.stop, self._serdes, check_crc=False)
            if len(batch):
                reader.position = batch.base_offset
                return _Head(reader, piece, batch, batch.timestamps, 0)
            skip(reader)  # compaction has left no record of it
        return None
