"""A reader of a ring: copy, then check.

The writer never waits. A reader copies bytes, and only then looks whether `oldest_valid` has
passed them; since the writer moves that word before it overwrites, a copy that passes this check
was whole. Being lapped is an answer (None), not an error: the caller goes to the files.

Order of memory operations (a word is one aligned 8-byte load or store; memoryview and numpy give no
barriers, x86 gives these orders by itself, elsewhere the checksum over the copy decides):

    writer                          reader
    1  oldest_valid = ...           a  high_watermark
    2  bytes                        b  bytes
    3  index, index_count, tail     c  oldest_valid
    4  high_watermark

A store is never seen before an earlier one, and a load never happens before an earlier one. So who
sees 4 in (a) sees 2 in (b); and who saw, in (b), any byte of a later lap sees its 1 in (c). A copy
in large pieces (string moves, streaming stores with their closing fence) keeps this order as a
whole.

What decides where to copy is checked like the copy: the first word of padding, read from bytes
that may just be overwritten, counts only while the position it was read at is still valid; an
index entry counts only if its place still holds it. A reader stops at the high watermark and
follows positions only, so no pair of words has to be read as one.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from shmlog.ring import layout as L
from shmlog.ring.memory import SharedMemory


class RingMismatch(Exception):  # an answer: this is not the ring that was looked for
    """Not ready, another layout, or another identity."""


class Chunk(NamedTuple):
    """Bytes copied out of the ring; `position` is where they begin, behind any padding."""

    position: int
    data: bytes

    @property
    def end(self) -> int:
        """The position behind the data."""
        return self.position + len(self.data)


def _closed_words() -> memoryview:
    """The header of a closed ring: sealed, and nothing in it is valid."""
    words = memoryview(bytearray(L.PAGE)).cast("Q")
    words[L.OLDEST_VALID] = (1 << 64) - 1
    words[L.SEALED] = 1
    return words.toreadonly()


_CLOSED = _closed_words()


def _check(memory: SharedMemory, identity: L.RingIdentity) -> None:
    """Raises RingMismatch unless the memory holds exactly this ring."""
    capacity = memory.size - L.DATA
    if capacity < L.CAPACITY_MIN or capacity % L.PAGE:
        raise RingMismatch(f"{memory.size} bytes are no ring")
    wanted = {
        L.READY: 1,  # first: only who sees it may trust the rest
        L.MAGIC_AND_LAYOUT: L.MAGIC | L.LAYOUT_VERSION << 32,
        L.CAPACITY: capacity,
        L.ENTRY_COUNT: L.ENTRIES,
        L.BROKER: identity.broker,
        L.INCARNATION: identity.incarnation,
        L.PARTITION: identity.partition,
    }
    with memory.buffer[: L.PAGE].cast("Q") as words:
        for word, value in wanted.items():
            if words[word] != value:
                raise RingMismatch(f"header word {word} is {words[word]}, expected {value}")
    owner = bytes(memory.buffer[L.TOPIC_ID_AT : L.CLUSTER_AT + L.CLUSTER_SIZE])
    if owner != identity.topic_id + identity.cluster.encode().ljust(L.CLUSTER_SIZE, b"\0"):
        raise RingMismatch("the ring belongs to another topic or cluster")


class RingReader:
    """Reads one ring; any number of readers, in any process.

    After `close` it is the reader of a sealed ring in which nothing is valid.
    """

    def __init__(self, memory: SharedMemory, identity: L.RingIdentity) -> None:
        """Raises RingMismatch unless the memory holds exactly this ring."""
        _check(memory, identity)
        buffer = memory.buffer.toreadonly()
        self.capacity: int = memory.size - L.DATA
        self._memory = memory
        self._words = buffer[: L.PAGE].cast("Q")
        self._data = buffer[L.DATA :]
        self._first_words = self._data.cast("I")
        self._offsets, self._positions = L.index_of(buffer)

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
        """The newest indexed position of a committed batch with base offset <= `offset`.

        None: not in the ring. Also, rarely, when the writer goes all round the index meanwhile.

        The search runs on the living index. Entries are replaced oldest first, and only when their
        batch is overwritten already (an index spans the ring), so an entry replaced during the
        search can only hide entries that are gone. Was the entry found replaced, between search
        and use or between its two halves? The writer stores offset, then position; here position
        is read before offset: a new position comes with a new offset, which is too high, and an
        old position is no longer valid.
        """
        count = self._words[L.INDEX_COUNT]
        high_watermark = self._words[L.HIGH_WATERMARK]
        place = _newest(self._offsets, offset, count)
        if place >= 0 and self._positions[place] >= high_watermark:
            place = _newest(self._positions, high_watermark - 1, count)
        if place < 0:
            return None
        position = int(self._positions[place])
        base_offset = int(self._offsets[place])
        if base_offset > offset or position < self._words[L.OLDEST_VALID]:
            return None
        return position

    def read(self, position: int, size_max: int, *, end: int | None = None) -> Chunk | None:
        """Copy what lies from `position`, where a batch or padding begins, up to the high
        watermark.

        (Or up to `end`, a batch boundary at or below the tail.) At most `size_max` bytes: the last
        batch may be cut off, and behind the last batch of a lap its padding comes along. A chunk
        never spans two laps. Empty at the end; None if the bytes were
        overwritten before they were copied whole, or `position` lies beyond the end.
        """
        words = self._words
        limit = words[L.HIGH_WATERMARK] if end is None else end
        if position > limit or position < words[L.OLDEST_VALID]:
            return None
        slot = position % self.capacity
        if position < limit and self._first_words[slot >> 2] == 0:
            if position < words[L.OLDEST_VALID]:
                return None  # no padding, but a word of a later lap
            position += self.capacity - slot
            slot = 0
        size = min(limit - position, self.capacity - slot, size_max)
        data = self._data[slot : slot + size].tobytes() if size > 0 else b""
        if position < words[L.OLDEST_VALID]:
            return None
        return Chunk(position, data)

    def view(self, position: int, size: int) -> memoryview:
        """The bytes themselves, read-only; what is made of them counts only after `still_valid`."""
        slot = position % self.capacity
        return self._data[slot : slot + size]

    def still_valid(self, position: int) -> bool:
        """True if nothing from `position` on has been overwritten. False once closed."""
        return position >= self._words[L.OLDEST_VALID]

    def close(self) -> None:
        """Let go of the memory; views that were handed out stay readable. May be called twice."""
        if self._words is _CLOSED:
            return
        self._words.release()
        self._first_words.release()
        self._data.release()
        self._words = _CLOSED
        self._offsets = self._positions = np.empty(0, np.int64)
        self._memory.close()


def _newest(values: npt.NDArray[np.int64], value: int, count: int) -> int:
    """The place of the newest of `count` entries that is <= `value`; -1 if there is none.

    Entry i stands in place i % ENTRIES, so both parts of the array rise: [split:] is the older one,
    and [:split] the newer one.
    """
    split = count % L.ENTRIES
    if split and values[0] <= value:
        return int(values[:split].searchsorted(value, "right")) - 1
    if count < L.ENTRIES:
        return -1
    found = int(values[split:].searchsorted(value, "right"))
    return split + found - 1 if found else -1
