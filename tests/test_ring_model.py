"""Writer and reader against a list: whatever is done, a read gives the batches as written, or nothing."""

from __future__ import annotations

import struct
from typing import NamedTuple

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from shmlog.ring import layout
from shmlog.ring.layout import RingIdentity, ring_size
from shmlog.ring.memory import HeapMemory
from shmlog.ring.reader import RingReader
from shmlog.ring.writer import RingFull, RingWriter

CAPACITY = 64 << 10
STRIDE = CAPACITY // layout.ENTRIES
IDENTITY = RingIdentity("model", 1, 1, bytes(16), 0)

small = st.integers(1, 64).map(lambda n: 8 * n)
large = st.integers(1, CAPACITY // 16).map(lambda n: 8 * n)


class Batch(NamedTuple):
    """What the model remembers."""

    position: int
    base_offset: int
    data: bytes

    @property
    def end(self) -> int:
        return self.position + len(self.data)


class RingMachine(RuleBasedStateMachine):
    """The model: published batches for ever, and how far the ring may have forgotten them."""

    def __init__(self) -> None:
        super().__init__()
        memory = HeapMemory(ring_size(CAPACITY))
        memory.buffer[layout.DATA :] = b"\xff" * CAPACITY  # so that nothing is padding by chance
        self.writer = RingWriter.create(memory, IDENTITY, CAPACITY, leader_epoch=0)
        self.reader = RingReader(memory, IDENTITY)
        self.published: list[Batch] = []
        self.unpublished: list[Batch] = []
        self.next_offset = 0
        self.mark = 1
        self.tail = self.reserved = self.oldest = self.high_watermark = 0

    @rule(size=small | large, record_count=st.integers(1, 5))
    def reserve(self, size: int, record_count: int) -> None:
        left = CAPACITY - self.reserved % CAPACITY
        position = self.reserved if size <= left else self.reserved + left
        if position + size - self.tail > CAPACITY:
            try:
                self.writer.reserve(size, self.next_offset)
            except RingFull:
                return
            raise AssertionError("unpublished bytes were overwritten")
        data = struct.pack("<I", self.mark) * (size // 4)
        self.mark += 1
        self.writer.reserve(size, self.next_offset)[:] = data
        self.unpublished.append(Batch(position, self.next_offset, data))
        self.next_offset += record_count
        self.reserved = position + size
        self.oldest = max(self.oldest, self.reserved - CAPACITY)

    @rule()
    def publish(self) -> None:
        self.tail = self.reserved
        assert self.writer.publish() == self.tail
        self.published += self.unpublished
        self.unpublished.clear()

    @rule()
    def abort(self) -> None:
        if self.unpublished:
            self.next_offset = self.unpublished[0].base_offset
        self.writer.abort()
        self.reserved = self.tail
        self.unpublished.clear()

    @precondition(lambda self: self.published)
    @rule(data=st.data())
    def commit(self, data: st.DataObject) -> None:
        ends = [b.end for b in self.published[-20:] if b.end > self.high_watermark]
        if ends:
            self.high_watermark = data.draw(st.sampled_from(ends))
            self.writer.set_high_watermark(self.high_watermark)

    @rule(size=large)
    def append(self, size: int) -> None:
        """A turn of a broker: everything published and committed."""
        self.reserve(size, 1)
        self.publish()
        self.high_watermark = self.tail
        self.writer.set_high_watermark(self.tail)

    @precondition(lambda self: self.published)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        batch = data.draw(st.sampled_from(self.published[-20:]))
        self.writer.drop_below(batch.position)
        self.oldest = max(self.oldest, batch.position)

    @rule()
    def drop_everything(self) -> None:
        self.writer.drop_below(self.tail)
        self.oldest = self.tail

    @precondition(lambda self: self.published)
    @rule(data=st.data(), size_max=st.integers(8, CAPACITY), committed=st.booleans())
    def read(self, data: st.DataObject, size_max: int, committed: bool) -> None:
        index = data.draw(st.integers(max(0, len(self.published) - 40), len(self.published) - 1))
        start = self.published[index]
        end = self.high_watermark if committed else self.tail
        chunk = self.reader.read(start.position, size_max, end=None if committed else end)
        if start.position < self.oldest:
            assert chunk is None
            return
        if start.position >= end:
            assert chunk is None or not chunk.data
            return
        assert chunk is not None
        assert chunk.position == start.position
        self.check(chunk.data, index, end, size_max)

    def check(self, data: bytes, index: int, end: int, size_max: int) -> None:
        """`data` are the batches from `index` on, up to `end`, the end of the lap or `size_max`."""
        lap_end = (self.published[index].position // CAPACITY + 1) * CAPACITY
        expected, position = b"", self.published[index].position
        for batch in self.published[index:]:
            if batch.position >= min(end, lap_end):
                break
            expected += batch.data
            position = batch.end
        assert data[: len(expected)] == expected[:size_max]
        rest = data[len(expected) :]
        if rest:
            assert position + len(rest) <= lap_end < end
            assert rest[:4] == bytes(4), "padding begins with a zero word"
        assert len(data) >= min(size_max, len(expected))

    @rule(size_max=st.integers(CAPACITY // 2, CAPACITY))
    def follow(self, size_max: int) -> None:
        """A reader that starts with the oldest batch gets every committed one, across the wrap."""
        valid = [b for b in self.published if self.oldest <= b.position]
        position = valid[0].position if valid else self.tail
        for batch in valid:
            if batch.end > self.high_watermark:
                break
            chunk = self.reader.read(position, size_max)
            assert chunk is not None
            assert chunk.position == batch.position
            assert chunk.data[: len(batch.data)] == batch.data
            position = batch.end
        if position == self.high_watermark:
            chunk = self.reader.read(position, size_max)
            assert chunk is not None
            assert not chunk.data

    @precondition(lambda self: self.published)
    @rule(back=st.integers(0, 60))
    def seek(self, back: int) -> None:
        committed = [b for b in self.published if b.end <= self.high_watermark]
        if not committed:
            return
        offset = committed[max(0, len(committed) - 1 - back)].base_offset
        found = self.reader.seek(offset)
        valid = [b for b in committed if b.base_offset <= offset and b.position >= self.oldest]
        if found is None:
            assert all(b.position < self.oldest + STRIDE for b in valid)
        else:
            assert found in [b.position for b in valid]
            assert valid[-1].position < found + STRIDE

    @invariant()
    def words_agree(self) -> None:
        reader, writer = self.reader, self.writer
        expected = (self.oldest, self.tail, self.high_watermark)
        assert (reader.oldest_valid, reader.tail, reader.high_watermark) == expected
        assert (writer.oldest_valid, writer.tail, writer.high_watermark) == expected
        assert writer.pending == bool(self.unpublished)


TestRing = RingMachine.TestCase
TestRing.settings = settings(
    deadline=None, max_examples=60, stateful_step_count=60, derandomize=True
)
