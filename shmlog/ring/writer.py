"""The one writer of a ring: reserve, copy, publish.

    reserve   move oldest_valid past what will be overwritten, THEN hand out the bytes
    publish   index entries, then index_count, then tail: who sees the new tail sees the bytes

x86 keeps the order of stores, and CPython does not reorder them: so a reader never sees a word
before what it vouches for (the reader's module has the whole argument). Nothing here waits for a
reader.

Between reserve and publish a batch is in the ring but unseen: `abort` forgets it. No reader has
looked at bytes behind the tail, so the same positions are used again. The words are kept in Python
integers too, so that reading them costs nothing.
"""

from __future__ import annotations

import numpy as np

from shmlog.ring import layout as L
from shmlog.ring.memory import SharedMemory


class RingFull(Exception):  # a state, not a failure
    """What is reserved and not published fills the ring: publish first."""


class RingWriter:
    """The ring's only writer, from its making on.

    Invariants: oldest_valid <= tail and high_watermark <= tail <= reserved end, and the reserved
    end is at most `capacity` ahead of the tail and of oldest_valid.
    """

    def __init__(self, memory: SharedMemory, capacity: int) -> None:
        self._memory = memory
        self._words = memory.buffer[: L.PAGE].cast("Q")
        self._data = memory.buffer[L.DATA : L.DATA + capacity]
        self._index_offsets, self._index_positions = L.index_of(memory.buffer)
        self._stride = capacity // L.ENTRIES
        self._index_count = 0
        self._last_indexed = -self._stride
        self._pending: list[tuple[int, int]] = []  # base offset, position
        self.capacity = capacity
        self.oldest_valid = self.tail = self.high_watermark = 0
        self._end = 0

    @classmethod
    def create(
        cls, memory: SharedMemory, identity: L.RingIdentity, capacity: int, *, leader_epoch: int
    ) -> RingWriter:
        """Make a ring in new memory. Raises ValueError for a size or identity that does not fit."""
        if capacity % L.PAGE or capacity < L.CAPACITY_MIN or memory.size != L.ring_size(capacity):
            raise ValueError(f"capacity {capacity} in {memory.size} bytes of memory")
        cluster = identity.cluster.encode()
        if len(cluster) > L.CLUSTER_SIZE or len(identity.topic_id) != 16:
            raise ValueError(f"cluster id of {len(cluster)} bytes, topic id {identity.topic_id!r}")
        words = memory.buffer[: L.PAGE].cast("Q")
        words[L.MAGIC_AND_LAYOUT] = L.MAGIC | L.LAYOUT_VERSION << 32
        words[L.CAPACITY] = capacity
        words[L.ENTRY_COUNT] = L.ENTRIES
        words[L.BROKER] = identity.broker
        words[L.INCARNATION] = identity.incarnation
        words[L.PARTITION] = identity.partition
        owner = identity.topic_id + cluster.ljust(L.CLUSTER_SIZE, b"\0")
        memory.buffer[L.TOPIC_ID_AT : L.CLUSTER_AT + L.CLUSTER_SIZE] = owner
        words[L.LEADER_EPOCH] = leader_epoch
        words[L.READY] = 1  # last: who sees it sees all of the above
        words.release()
        return cls(memory, capacity)

    @property
    def pending(self) -> bool:
        """Is anything reserved and not published?"""
        return bool(self._pending)

    def reserve(self, size: int, base_offset: int) -> memoryview:
        """Bytes for a batch of `size` (a multiple of 8), behind what is reserved already.

        Raises: RingFull: unpublished bytes would be overwritten. ValueError: over half of the ring.
        """
        if size % L.ALIGNMENT or not 0 < size <= self.capacity // 2:
            raise ValueError(f"a batch of {size} bytes in a ring of {self.capacity}")
        position = self._end
        slot = position % self.capacity
        left = self.capacity - slot
        padded = left if size > left else 0
        end = position + padded + size
        if end - self.tail > self.capacity:  # this keeps oldest_valid <= tail, too
            raise RingFull(f"{end - self.tail} unpublished bytes in a ring of {self.capacity}")
        if end - self.capacity > self.oldest_valid:
            # Before the bytes change: a reader that copies them now finds out when it looks again.
            self.oldest_valid = end - self.capacity
            self._words[L.OLDEST_VALID] = self.oldest_valid
        if padded:
            self._data[slot : slot + 4] = b"\0\0\0\0"
            position += padded
            slot = 0
        self._end = end
        self._pending.append((base_offset, position))
        return self._data[slot : slot + size]

    def publish(self) -> int:
        """Make everything reserved visible; the new tail."""
        for base_offset, position in self._pending:
            if position - self._last_indexed >= self._stride:
                place = self._index_count % L.ENTRIES
                self._index_offsets[place] = base_offset
                self._index_positions[place] = position
                self._last_indexed = position
                self._index_count += 1
        self._pending.clear()
        self._words[L.INDEX_COUNT] = self._index_count
        self.tail = self._end
        self._words[L.TAIL] = self.tail  # last: the bytes and the index are in place
        return self.tail

    def abort(self) -> None:
        """Forget what is reserved. What it overwrote is gone: oldest_valid stays where it is."""
        self._pending.clear()
        self._end = self.tail

    def set_high_watermark(self, position: int) -> None:
        """Readers may go up to `position`, a batch boundary at or below the tail; never back."""
        assert self.high_watermark <= position <= self.tail, (self.high_watermark, position)
        self.high_watermark = position
        self._words[L.HIGH_WATERMARK] = position
        self._memory.ring_bell()

    def beat(self, now_ns: int) -> None:
        """The writer's loop is alive."""
        self._words[L.HEARTBEAT] = now_ns

    def seal(self) -> None:
        """Nothing will be published here any more: readers look for the partition anew."""
        self._words[L.SEALED] = 1
        self._memory.ring_bell()

    def boundary_before(self, offset: int) -> int | None:
        """A valid batch boundary from which to walk to the first batch with a base offset >= `offset`; maybe its own.

        None: all that is valid lies behind `offset` already. Where the index cannot tell (the entry before was
        overwritten, some batches behind it were not) it is the next entry: less than capacity / entries too far.
        """
        known = min(self._index_count, L.ENTRIES)
        places = np.arange(self._index_count - known, self._index_count) % L.ENTRIES
        positions = self._index_positions[places]
        entry = int(np.searchsorted(self._index_offsets[places], offset, side="right")) - 1
        if entry >= 0 and positions[entry] >= self.oldest_valid:
            return int(positions[entry])
        following = int(positions[entry + 1]) if entry + 1 < known else self.tail
        return following if following > self.oldest_valid else None

    def drop_below(self, position: int) -> None:
        """What lies below `position`, a batch boundary, must not be read any more."""
        position = min(position, self.tail)
        if position > self.oldest_valid:
            self.oldest_valid = position
            self._words[L.OLDEST_VALID] = position
