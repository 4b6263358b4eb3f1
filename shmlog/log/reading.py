"""Reading a log's segments: whole checked batches from an offset, and the first record of a time.

Both CRCs of every batch are checked before it leaves; damage is named with its range of offsets and never passed
over silently. The reader shares the list of segments with the log and changes nothing but which descriptors of
sealed segments are open.
"""

from __future__ import annotations

import errno
from bisect import bisect_right
from collections.abc import Callable, Container, Iterator, Sequence

from shmlog.errors import Backpressure, CorruptLog
from shmlog.log import recovery
from shmlog.log.index import Stretch
from shmlog.log.segment import NOT_A_BATCH, READ_BYTES_MIN, Segment
from shmlog.records.batch import RecordBatch
from shmlog.records.header import BatchHeader, check_body_crc, check_header_crc
from shmlog.settings import MIB

SEALED_OPEN_MAX = 4
SEARCH_BYTES = 64 << 10
# A search for what lies behind damage, in a turn: what only looks like batches must not hold up everybody.
SEARCH_HEADERS_MAX, SEARCH_BODIES_BYTES_MAX = 4096, 32 * MIB


class LogReader:
    """Reads what is in `segments`. In the thread of the log's owner.

    `waiting`: the segments whose descriptor a sync still needs.
    """

    def __init__(
        self, segments: Sequence[Segment], waiting: Container[Segment], topic_id: bytes
    ) -> None:
        self._segments = segments
        self._waiting = waiting
        self._topic_id = topic_id

    def read(
        self, offset: int, *, max_bytes: int, end_offset: int, index_interval_bytes: int
    ) -> bytes:
        """Whole batches from the one that holds `offset`, which is below `end_offset`; see Log.read."""
        segment = self._segment_for(offset)
        window_bytes = max(READ_BYTES_MIN, min(max_bytes + index_interval_bytes, 4 * MIB))
        try:
            return self._read_segment(segment, offset, max_bytes, end_offset, window_bytes)
        finally:
            self.close_cold(segment)

    def _read_segment(
        self, segment: Segment, offset: int, max_bytes: int, end_offset: int, window_bytes: int
    ) -> bytes:
        expected, place = segment.index.entry_for_offset(offset)
        while True:
            pieces, place, expected, reason = self._gather(
                segment, place, expected, offset, max_bytes, end_offset, window_bytes
            )
            if pieces or not reason:
                return b"".join(pieces)  # damage behind them is named when it is asked for
            behind, following = self._behind(segment, place, expected)
            if behind < 0 or following > offset:
                raise self._damaged(segment, place, expected, following, reason)
            # All of the damage lies before what was asked for, on the way from the index's entry.
            place, expected = behind, following

    def _gather(
        self,
        segment: Segment,
        place: int,
        expected: int,
        offset: int,
        max_bytes: int,
        end_offset: int,
        window_bytes: int,
    ) -> tuple[list[memoryview], int, int, str]:
        """Walk from the batch at `place`, which begins at offset `expected`, and take what is wanted.

        Returns it with the place and offset where the walk stopped, and the damage that stopped it or "".
        """
        pieces: list[memoryview] = []
        size = 0
        try:
            for found in segment.walk(place, read_bytes=window_bytes):
                header, place = found.header, found.position
                if not header.follows(expected) or header.topic_id != self._topic_id:
                    reason = f"a batch at offset {header.base_offset}, expected {expected}"
                    return pieces, place, expected, reason
                if pieces and (expected >= end_offset or size + header.batch_size > max_bytes):
                    return pieces, place, expected, ""
                # The header CRC vouches for base offset and size, the body CRC for the number of
                # records: without both a batch cannot even be passed over.
                check_header_crc(found.data, header)
                check_body_crc(found.data, header)
                if header.end_offset > end_offset:
                    return pieces, place, expected, ""
                expected, place = header.end_offset, found.position + header.batch_size
                if expected > offset:
                    pieces.append(found.data)
                    size += header.batch_size
        except (*NOT_A_BATCH, OSError) as error:
            return pieces, place, expected, _unreadable(error)
        return pieces, place, expected, "the segment ends"

    def _behind(self, segment: Segment, position: int, offset: int) -> tuple[int, int]:
        """(position, offset) of the first whole batch behind damage; (-1, the segment's end) if none."""
        effort = recovery.Effort(SEARCH_HEADERS_MAX, SEARCH_BODIES_BYTES_MAX)
        try:
            place, following = recovery.extent(
                segment, position, segment.size, self._topic_id, offset, effort
            )
        except OSError:
            place = following = None  # the device cannot say
        if place is None or following is None:
            return -1, segment.end_offset
        return place, following

    def _damaged(
        self, segment: Segment, position: int, offset: int, end_offset: int, reason: str
    ) -> CorruptLog:
        return CorruptLog(
            f"{segment.path} is damaged at position {position}, offsets {offset} up to, not including, "
            f"{end_offset}: {reason}",
            log_start=offset,
            high_watermark=end_offset,
        )

    def _segment_for(self, offset: int) -> Segment:
        return self._segments[bisect_right(self._segments, offset, key=_base_offset) - 1]

    def close_cold(self, used: Segment) -> None:
        """Keep few descriptors of sealed segments open; never close one that waits for a sync."""
        opened = [s for s in self._segments[:-1] if s.is_open and s not in self._waiting]
        for segment in opened[: max(0, len(opened) - SEALED_OPEN_MAX)]:
            if segment is not used and segment.index_saved and not segment.swapping:
                segment.close()

    def offset_for_time(
        self, timestamp_ns: int, log_start: int, end_offset: int, enough: Callable[[], bool]
    ) -> tuple[int, int] | None:
        """(offset, timestamp) of the first record from `log_start` on at or after a time; see Log."""
        for segment in self._segments:
            if segment.base_offset >= end_offset:
                break
            if segment.end_offset > log_start and segment.index.max_timestamp_ns >= timestamp_ns:
                answer = self._first_created(segment, timestamp_ns, log_start, end_offset, enough)
                if answer is not None:
                    return answer
        return None

    def _first_created(
        self,
        segment: Segment,
        timestamp_ns: int,
        log_start: int,
        end_offset: int,
        enough: Callable[[], bool],
    ) -> tuple[int, int] | None:
        for stretch in segment.index.stretches_for_time(timestamp_ns, log_start):
            answer = self._first_created_in(segment, stretch, timestamp_ns, log_start, end_offset)
            if answer is not None:
                return answer
            if enough():
                raise Backpressure("enough searched for one turn: ask again", retry_after_ms=1)
        return None

    def _first_created_in(
        self, segment: Segment, stretch: Stretch, timestamp_ns: int, log_start: int, end_offset: int
    ) -> tuple[int, int] | None:
        newest_ns = -1
        for header, data in self._checked(segment, stretch.position, stretch.end):
            if header.base_offset >= end_offset:
                return None
            if header.end_offset <= log_start:
                continue
            newest_ns = max(newest_ns, header.max_timestamp_ns)
            if header.max_timestamp_ns < timestamp_ns:
                continue
            batch = RecordBatch(data, header, check_crc=False)
            times, first = batch.timestamps, batch.index_at(log_start)
            hits = (times[first:] >= timestamp_ns).nonzero()[0]
            if len(hits):
                index = first + int(hits[0])
                return int(batch.offsets[index]), int(times[index])
        segment.index.learn(stretch.place, newest_ns)
        return None

    def _checked(
        self, segment: Segment, position: int, end: int | None
    ) -> Iterator[tuple[BatchHeader, memoryview]]:
        place, expected = position, -1
        try:
            for found in segment.walk(position, read_bytes=SEARCH_BYTES, end=end):
                place = found.position
                check_header_crc(found.data, found.header)
                check_body_crc(found.data, found.header)
                expected = found.header.end_offset
                yield found.header, found.data
        except (*NOT_A_BATCH, OSError) as error:
            reason = _unreadable(error)
            first = max(expected, segment.base_offset)
            _, end_offset = self._behind(segment, place, first)
            raise self._damaged(segment, place, first, end_offset, reason) from None
        finally:
            self.close_cold(segment)


def _base_offset(segment: Segment) -> int:
    return segment.base_offset


def _unreadable(error: Exception) -> str:
    """Why a batch cannot be read: it is none, or the device cannot say. Raises all other errors."""
    if not isinstance(error, OSError):
        return str(error)
    if error.errno != errno.EIO:
        raise error
    return f"the device cannot read it: {error.strerror}"
