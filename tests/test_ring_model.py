"""The ring against a list: whatever is written, aborted, dropped or lapped, both hold the same."""

from __future__ import annotations

from typing import NamedTuple

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from shmlog.ring import layout as L
from shmlog.ring.memory import HeapMemory
from shmlog.ring.reader import RingReader
from shmlog.ring.writer import RingFull, RingWriter

CAPACITY = L.CAPACITY_MIN
IDENTITY = L.RingIdentity("c", 0, 1, bytes(16), 0)
SIZES = st.one_of(
    st.integers(1, 16).map(lambda n: 8 * n),
    st.integers(1, CAPACITY // 16).map(lambda n: 8 * n),
    st.just(CAPACITY // 2),
)


class Batch(NamedTuple):
    """One batch of the model."""

    base_offset: int
    position: int
    data: bytes

    @property
    def end(self) -> int:
        return self.position + len(self.data)


class RingAgainstList(RuleBasedStateMachine):
    """The model: every batch ever published, and how much of the end of that list still fits."""

    def __init__(self) -> None:
        super().__init__()
        memory = HeapMemory(L.ring_size(CAPACITY))
        self.writer = RingWriter.create(memory, IDENTITY, CAPACITY, leader_epoch=0)
        self.reader = RingReader(memory, IDENTITY)
        self.published: list[Batch] = []
        self.pending: list[Batch] = []
        self.next_offset = 100
        self.oldest = self.tail = self.reserved = self.committed = 0
        self.version = 0

    @rule(size=SIZES, count=st.integers(1, 5))
    def reserve(self, size: int, count: int) -> None:
        left = CAPACITY - self.reserved % CAPACITY
        position = self.reserved + (left if size > left else 0)
        if position + size - self.tail > CAPACITY:
            before = self.writer.oldest_valid
            try:
                self.writer.reserve(size, self.next_offset)
            except RingFull:
                assert self.writer.oldest_valid == before
                return
            raise AssertionError("unpublished bytes were overwritten")
        self.version += 1
        data = (self.version << 32 | self.next_offset).to_bytes(8, "big") * (size // 8)
        data = b"\1\0\0\0" + data[4:]
        self.writer.reserve(size, self.next_offset)[:] = data
        self.pending.append(Batch(self.next_offset, position, data))
        self.next_offset += count
        self.reserved = position + size
        self.oldest = max(self.oldest, self.reserved - CAPACITY)

    @rule(sizes=st.lists(SIZES, max_size=8), commit=st.booleans())
    def append(self, sizes: list[int], commit: bool) -> None:
        for size in sizes:
            self.reserve(size, 1)
        self.publish()
        if commit:
            self.commit(0)

    @rule()
    def publish(self) -> None:
        self.published += self.pending
        self.pending.clear()
        self.tail = self.reserved
        assert self.writer.publish() == self.tail

    @precondition(lambda self: self.pending)
    @rule()
    def abort(self) -> None:
        self.writer.abort()
        self.next_offset = self.pending[0].base_offset
        self.pending.clear()
        self.reserved = self.tail

    @precondition(lambda self: self.published)
    @rule(back=st.integers(0, 6))
    def commit(self, back: int) -> None:
        if self.published:
            position = self.published[max(0, len(self.published) - 1 - back)].end
            if position >= self.committed:
                self.committed = position
                self.writer.set_high_watermark(position)

    @precondition(lambda self: self.published)
    @rule(back=st.integers(0, 20))
    def drop_below(self, back: int) -> None:
        position = self.published[max(0, len(self.published) - 1 - back)].position
        self.writer.drop_below(position)
        self.oldest = max(self.oldest, position)

    @invariant()
    def words_agree(self) -> None:
        reader = self.reader
        assert (reader.oldest_valid, reader.tail) == (self.oldest, self.tail)
        assert reader.high_watermark == self.committed
        assert reader.oldest_valid <= reader.tail
        assert reader.high_watermark <= reader.tail

    @invariant()
    def every_valid_batch_is_read_and_no_other(self) -> None:
        for batch in self.published[-12:]:
            chunk = self.reader.read(batch.position, len(batch.data), end=self.tail)
            assert self.reader.still_valid(batch.position) == (batch.position >= self.oldest)
            if batch.position < self.oldest:
                assert chunk is None
            else:
                assert chunk is not None
                assert (chunk.position, chunk.data) == (batch.position, batch.data)
                assert self.reader.view(batch.position, len(batch.data)) == batch.data
            if batch.position > self.committed:
                assert self.reader.read(batch.position, 8) is None

    @invariant()
    def a_walk_from_the_oldest_sees_all_that_is_committed(self) -> None:
        wanted = [
            b for b in self.published if b.position >= self.oldest and b.end <= self.committed
        ]
        if not wanted:
            return
        # From the end of the batch before: that is where padding begins.
        position = max([b.end for b in self.published if b.end <= wanted[0].position], default=0)
        if position < self.oldest:  # the padding's own beginning may be overwritten already
            position = wanted[0].position
        for batch in wanted:
            chunk = self.reader.read(position, len(batch.data))
            assert chunk is not None
            assert (chunk.position, chunk.data) == (batch.position, batch.data)
            position = chunk.end
        end = self.reader.read(position, 1 << 20)
        assert end is not None
        assert end.data == b""
        assert end.position == self.committed

    @invariant()
    def seek_leads_to_the_batch_or_a_little_before(self) -> None:
        stride = CAPACITY // L.ENTRIES
        entries: list[Batch] = []
        for batch in self.published:
            if not entries or batch.position - entries[-1].position >= stride:
                entries.append(batch)
        for offset in {b.base_offset + d for b in self.published[-9:] for d in (-1, 0, 1)}:
            below = [e for e in entries if e.base_offset <= offset and e.position < self.committed]
            expected = below[-1].position if below and below[-1].position >= self.oldest else None
            assert self.reader.seek(offset) == expected


TestRing = RingAgainstList.TestCase
TestRing.settings = settings(
    deadline=None, max_examples=40, stateful_step_count=40, derandomize=True
)
