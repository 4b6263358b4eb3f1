"""A reader of a ring: copy, then check.

The writer never waits. A reader copies bytes, and only then looks whether `oldest_valid` has passed them; since
the writer moves that word before it overwrites, a copy that passes this check was whole. Being lapped is an
answer (None), not an error: the caller goes to the files.

Readers stop at the high watermark and follow positions only. `tail` bounds what the index may name.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from shmlog.ring import layout as L
from shmlog.ring.memory import SharedMemory


class RingMismatch(Exception):  # noqa: N818 - an answer: this is not the ring that was looked for
    """Not ready, another layout, or another identity."""


class Chunk(NamedTuple):
    """Bytes copied out of the ring; `position` is where they begin, behind any padding."""

    position: int
    data: bytes

    @property
    def end(self) -> int:
        """The position behind the data."""
        return self.position + len(self.data)


class RingReader:
    """Reads one ring; any number of readers, in any process."""

    def __init__(self, memory: SharedMemory, identity: L.RingIdentity) -> None:
        """Raises RingMismatch unless the memory holds exactly this ring."""
        if memory.size < L.DATA:
            raise RingMismatch(f"{memory.size} bytes are no ring")
        words = memory.buffer[: L.PAGE].cast("Q")
        wanted = {
            0: L.MAGIC | L.LAYOUT_VERSION << 32,
            L.READY: 1,
            L.CAPACITY: memory.size - L.DATA,
            L.ENTRY_COUNT: L.ENTRIES,
            L.BROKER: identity.broker,
            L.INCARNATION: identity.incarnation,
            L.PARTITION: identity.partition,
        }
        for word, value in wanted.items():
            if words[word] != value:
                raise RingMismatch(f"header word {word} is {words[word]}, expected {value}")
        topic_id = bytes(memory.buffer[L.TOPIC_ID_AT : L.TOPIC_ID_AT + 16])
        cluster = bytes(memory.buffer[L.CLUSTER_AT : L.CLUSTER_AT + L.CLUSTER_SIZE])
        if topic_id != identity.topic_id or cluster.rstrip(b"\0") != identity.cluster.encode():
            raise RingMismatch("the ring belongs to another topic or cluster")
        self._memory = memory
        self._words = words
        self.capacity: int = wanted[L.CAPACITY]
        self._data = memory.buffer[L.DATA :].toreadonly()
        self._index_offsets = np.frombuffer(memory.buffer, np.int64, L.ENTRIES, L.INDEX_OFFSETS)
        self._index_positions = np.frombuffer(memory.buffer, np.uint64, L.ENTRIES, L.INDEX_POSITIONS)

    @property
    def oldest_valid(self) -> int:
        """Positions below it may be overwritten already."""
        return self._words[L.OLDEST_VALID]

    @property
    def tail(self) -> int:
        """The position behind the newest published batch."""
        return self._words[L.TAIL]

    @property
    def high_watermark(self) -> int:
        """The position behind the newest committed batch."""
        return self._words[L.HIGH_WATERMARK]

    @property
    def leader_epoch(self) -> int:
        """The leader epoch the writer leads under."""
        return self._words[L.LEADER_EPOCH]

    @property
    def heartbeat_ns(self) -> int:
        """When the writer's loop last stamped (CLOCK_MONOTONIC)."""
        return self._words[L.HEARTBEAT]

    @property
    def sealed(self) -> bool:
        """True: nothing will be published any more."""
        return bool(self._words[L.SEALED])

    def seek(self, offset: int) -> int | None:
        """The newest indexed position of a batch with base offset <= `offset`; None: not in the ring."""
        count = self._words[L.INDEX_COUNT]
        known = min(count, L.ENTRIES)
        if known == 0:
            return None
        # Entry i stands in place i % ENTRIES: roll the copy so that the oldest comes first.
        oldest = count % L.ENTRIES if known == L.ENTRIES else 0
        offsets = np.roll(self._index_offsets[:known], -oldest)
        positions = np.roll(self._index_positions[:known], -oldest)
        found = int(np.searchsorted(offsets, offset, side="right")) - 1
        if found < 0:
            return None
        position = int(positions[found])
        # Checked after the copy: an entry that was replaced meanwhile names a position that is gone, or,
        # torn between its two halves, one whose batch the caller finds to be the wrong one.
        if not self.oldest_valid <= position < self.tail:
            return None
        return position

    def read(self, position: int, size_max: int, *, end: int | None = None) -> Chunk | None:
        """Copy what lies from `position` up to the high watermark (or `end`), at most `size_max` bytes.

        A chunk never spans two laps, and its last batch may be cut off by `size_max`. Empty at the end; None
        if the bytes were overwritten before they were copied whole.
        """
        limit = self.high_watermark if end is None else end
        if position > limit or position < self.oldest_valid:
            return None
        slot = position % self.capacity
        if position < limit and self._data[slot : slot + 4] == b"\0\0\0\0":
            position += self.capacity - slot
            slot = 0
        size = min(limit - position, self.capacity - slot, size_max)
        data = bytes(self._data[slot : slot + size]) if size > 0 else b""
        if position < self.oldest_valid:
            return None
        return Chunk(position, data)

    def view(self, position: int, size: int) -> memoryview:
        """The bytes themselves, read-only; what was made of them counts only after `still_valid`."""
        slot = position % self.capacity
        return self._data[slot : slot + size]

    def still_valid(self, position: int) -> bool:
        """True if nothing from `position` on has been overwritten."""
        return position >= self.oldest_valid

    def close(self) -> None:
        """Let go of the memory; views that were handed out stay valid."""
        self._words.release()
        self._data.release()
        del self._index_offsets, self._index_positions
        self._memory.close()
