"""The sparse index of one segment: offset, position, running maximum of timestamps.

One entry per `index_interval_bytes`, at batch boundaries. In memory three growing numpy columns; on disk 24 bytes
an entry behind a head with a CRC, written when the segment is sealed or closed. It is a hint: missing or damaged,
it is rebuilt from the batches.

A running maximum says little behind a record far in the future. So in memory each entry has a bound of its own too:
no record between it and the next one is newer. A search that has walked them lowers it (`learn`).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from shmlog.records.compression import crc32c

_HEAD = struct.Struct("<IIII")
# Bytes of log, its end offset, newest timestamp, first and last append time.
_EXTENT = struct.Struct("<qqqqq")
_MAGIC = 0x32494C53  # b"SLI2"
_ENTRY = np.dtype([("offset", "<i8"), ("position", "<i8"), ("max_timestamp_ns", "<i8")])


class SparseIndex:
    """Invariant: offsets, positions and maximum timestamps never fall; the first entry is position 0."""

    def __init__(self, interval_bytes: int) -> None:
        self._interval_bytes = interval_bytes
        self._entries = np.zeros(16, _ENTRY)
        self._newest = np.zeros(16, np.int64)  # per entry: no record up to the next one is newer
        self._count = 0
        self._last_position = -interval_bytes
        self.max_timestamp_ns = -1  # of all batches seen, in the index or not

    def __len__(self) -> int:
        return self._count

    def add(self, offset: int, position: int, timestamp_ns: int) -> None:
        """A batch begins at `position`; its newest record has `timestamp_ns`.

        The entry carries the maximum *before* this batch: a search for a time begins where it can first occur.
        """
        if position - self._last_position >= self._interval_bytes:
            if self._count == len(self._entries):
                more = max(16, self._count)
                self._entries = np.concatenate([self._entries, np.zeros(more, _ENTRY)])
                self._newest = np.concatenate([self._newest, np.zeros(more, np.int64)])
            self._entries[self._count] = (offset, position, self.max_timestamp_ns)
            self._newest[self._count] = timestamp_ns
            self._count += 1
            self._last_position = position
        elif timestamp_ns > self._newest[self._count - 1]:
            self._newest[self._count - 1] = timestamp_ns
        self.max_timestamp_ns = max(self.max_timestamp_ns, timestamp_ns)

    def entry_for_offset(self, offset: int) -> tuple[int, int]:
        """(offset, position) of the last entry at or below `offset`; there is one where there is a batch."""
        offsets = self._entries["offset"][: self._count]
        entry = self._entries[max(int(np.searchsorted(offsets, offset, side="right")) - 1, 0)]
        return int(entry["offset"]), int(entry["position"])

    def position_for_offset(self, offset: int) -> int:
        """Where to begin walking for `offset`: the last entry at or below it."""
        offsets = self._entries["offset"][: self._count]
        place = int(np.searchsorted(offsets, offset, side="right")) - 1
        return int(self._entries["position"][place]) if place >= 0 else 0

    def stretches_for_time(self, timestamp_ns: int, from_offset: int) -> Iterator[Stretch]:
        """Where a record at or after a time may lie at or behind `from_offset`, in order."""
        entries = self._entries[: self._count]
        first = max(int(np.searchsorted(entries["offset"], from_offset, side="right")) - 1, 0)
        for at in np.flatnonzero(self._newest[first : self._count] >= timestamp_ns).tolist():
            place = first + at
            last = place + 1 == self._count
            end = None if last else int(entries["position"][place + 1])
            yield Stretch(place, int(entries["position"][place]), end)

    def learn(self, place: int, newest_ns: int) -> None:
        """No record between entry `place` and the next one is newer than this."""
        self._newest[place] = newest_ns

    def truncate(self, position: int, max_timestamp_ns: int) -> None:
        """Forget entries at or behind `position`; the newest timestamp of what remains is given."""
        positions = self._entries["position"][: self._count]
        self._count = int(np.searchsorted(positions, position, side="left"))
        last = self._count - 1
        self._last_position = int(positions[last]) if last >= 0 else -self._interval_bytes
        self.max_timestamp_ns = max_timestamp_ns

    def newest_before(self, position: int) -> int:
        """The newest timestamp before the last entry at or below `position`; -1 if there is none."""
        positions = self._entries["position"][: self._count]
        place = int(np.searchsorted(positions, position, side="right")) - 1
        return int(self._entries["max_timestamp_ns"][place]) if place >= 0 else -1

    def entries(self) -> Iterator[tuple[int, int, int]]:
        """(offset, position, newest timestamp before it) of each entry."""
        yield from self._entries[: self._count].tolist()

    def encode(
        self, size: int, end_offset: int, first_append_time_ns: int, last_append_time_ns: int
    ) -> bytes:
        """The file's bytes, for a segment of `size` bytes of batches that ends at `end_offset`."""
        times = (self.max_timestamp_ns, first_append_time_ns, last_append_time_ns)
        body = _EXTENT.pack(size, end_offset, *times)
        body += self._entries[: self._count].tobytes()
        return _HEAD.pack(_MAGIC, self._count, self._interval_bytes, crc32c(body)) + body

    @classmethod
    def decode(cls, data: bytes) -> IndexFile | None:
        """What a file holds; None if it is damaged."""
        if len(data) < _HEAD.size + _EXTENT.size:
            return None
        magic, count, interval_bytes, crc = _HEAD.unpack_from(data)
        body = data[_HEAD.size :]
        whole = len(body) == _EXTENT.size + count * _ENTRY.itemsize
        if magic != _MAGIC or not whole or crc32c(body) != crc:
            return None
        size, end_offset, max_timestamp_ns, first_ns, last_ns = _EXTENT.unpack_from(body)
        index = cls(interval_bytes)
        index._entries = np.frombuffer(body, _ENTRY, count, _EXTENT.size).copy()
        index._newest = np.append(index._entries["max_timestamp_ns"], max_timestamp_ns)[1:]
        index._count = count
        index._last_position = int(index._entries["position"][-1]) if count else -interval_bytes
        index.max_timestamp_ns = max_timestamp_ns
        return IndexFile(index, size, end_offset, first_ns, last_ns)


class Stretch(NamedTuple):
    """From one entry to the next; `end` None: to the segment's end."""

    place: int
    position: int
    end: int | None


class IndexFile(NamedTuple):
    """An index and what it is the index of."""

    sparse: SparseIndex
    size: int  # bytes of batches
    end_offset: int
    first_append_time_ns: int
    last_append_time_ns: int
