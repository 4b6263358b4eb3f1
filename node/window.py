"""The ring of a partition that is led here, or its absence: where stamped batches stand until they are written.

    reserve -> (stamp) -> publish(end offset) -> settle(high watermark)
                 `-> abort

Without a ring (not made yet, switched off, or in no room) batches wait in private memory and are read from the files.

The ring knows positions, the log offsets: `_ends` pairs them for what was published lately, so that the high
watermark can be told as a position and a follower that asks for the newest batches is answered without a search.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque

from shmlog.records import batch as batches
from shmlog.records.header import BatchHeader
from shmlog.records.layout import HEADER, HEADER_SIZE
from shmlog.ring.memory import SharedMemory
from shmlog.ring.reader import RingReader
from shmlog.ring.writer import RingWriter

ENDS_MAX = 64


class Window:
    """Batches in memory. One owner: the loop."""

    def __init__(self) -> None:
        self.state = "none"  # none, asked, ring, off
        self.memory: SharedMemory | None = None
        self._writer: RingWriter | None = None
        self._reader: RingReader | None = None
        self._unsettled: deque[tuple[int, int]] = deque()  # published above the high watermark
        self._ends: deque[tuple[int, int]] = deque(maxlen=ENDS_MAX)

    def attach(self, writer: RingWriter, reader: RingReader, memory: SharedMemory) -> None:
        """Use a fresh ring from the next append on. Between turns only."""
        self._writer, self._reader, self.memory = writer, reader, memory
        self.state = "ring"

    def detach(self) -> SharedMemory | None:
        """Stop using the ring: readers see it sealed and look for the leader anew. Its memory."""
        memory = self.memory
        if self._writer is not None:
            self._writer.seal()
        if self._reader is not None:
            self._reader.close()
        self._writer = self._reader = self.memory = None
        self._unsettled.clear()
        self._ends.clear()
        return memory

    def beat(self, now_ns: int) -> None:
        """The writer's loop is alive."""
        if self._writer is not None:
            self._writer.beat(now_ns)

    def reserve(self, size: int, base_offset: int) -> memoryview:
        """Bytes for a batch. Raises RingFull: publish first."""
        if self._writer is None:
            return memoryview(bytearray(size))
        return self._writer.reserve(size, base_offset)

    def publish(self, end_offset: int) -> None:
        """What was reserved is written to the file, up to `end_offset`."""
        if self._writer is not None and self._writer.pending:
            end = (end_offset, self._writer.publish())
            self._unsettled.append(end)
            self._ends.append(end)

    def abort(self) -> None:
        """Forget what is reserved."""
        if self._writer is not None:
            self._writer.abort()

    def settle(self, high_watermark: int) -> None:
        """Readers may go up to the newest batch that ends at or below the high watermark."""
        position = -1
        while self._unsettled and self._unsettled[0][0] <= high_watermark:
            position = self._unsettled.popleft()[1]
        if position >= 0 and self._writer is not None:
            self._writer.set_high_watermark(position)

    def drop_below(self, offset: int) -> None:
        """What begins below `offset` must not be read here any more: the log start has moved there. Between turns only.

        Readers of what lies above go on undisturbed; the rest of a batch that holds `offset` is read from the file.
        """
        if self._writer is None or self._reader is None:
            return
        position = self._writer.boundary_before(offset)
        if position is None:
            return
        tail = self._writer.tail
        while position < tail:
            chunk = self._reader.read(position, HEADER_SIZE, end=tail)
            assert chunk is not None, f"position {position} of a ring that only this loop writes"
            header = BatchHeader._make(HEADER.unpack_from(chunk.data))  # written by this loop
            if header.base_offset >= offset:
                position = chunk.position
                break
            position = chunk.position + header.batch_size
        self._writer.drop_below(position)
        while self._ends and self._ends[0][1] < position:
            self._ends.popleft()

    def read(self, offset: int, max_bytes: int, end_offset: int, slack: int) -> bytes:
        """Whole batches from the one that holds `offset`, ending at or below `end_offset`; b"" if they are not in
        the ring. `slack`: the largest batch: the index leads to a batch a little before the wanted one.
        """
        if self._reader is None or self._writer is None:
            return b""
        position = self._position(offset)
        if position is None:
            return b""
        chunk = self._reader.read(position, max_bytes + slack, end=self._writer.tail)
        if chunk is None:
            return b""
        view = memoryview(chunk.data)
        start = end = -1
        for at, header in batches.iterate(view):
            if header.end_offset > end_offset:
                break
            if start < 0 and header.end_offset > offset:
                if header.base_offset > offset:
                    return b""
                start = at
            if start >= 0:
                if end > start and at + header.batch_size - start > max_bytes:
                    break
                end = at + header.batch_size
        if start == 0 and end == len(view):
            return (
                chunk.data
            )  # as a follower reads it: from its end to the newest batch, copied once
        return bytes(view[start:end]) if end > start >= 0 else b""

    def _position(self, offset: int) -> int | None:
        """Where a batch with base offset <= `offset` stands."""
        assert self._reader is not None
        ends = self._ends
        place = bisect_right(ends, offset, key=_offset) - 1
        if place >= 0 and (ends[place][0] == offset or place + 1 < len(ends)):
            return ends[place][1]
        return self._reader.seek(offset)


def _offset(end: tuple[int, int]) -> int:
    return end[0]
