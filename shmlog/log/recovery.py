"""Where a segment's valid batches end, and why: a report first, the act is the log's.

A write that was under way when its process died leaves a *torn tail*: some of its bytes, and nothing behind
them. That is cut. Anything else that does not fit is *rot* and is never cut: damage below M, where M is what
was synced or known to be committed; or damage above M with whole batches behind it, which a torn write cannot
leave (FAST'18, "Protocol-Aware Recovery": cutting at the first mismatch removes committed entries). Only after a
reboot may pages have been written back out of order, so there the first bad batch ends the log.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from shmlog.errors import CorruptMessage
from shmlog.log.segment import NOT_A_BATCH, WALK_BYTES, Segment
from shmlog.records.compression import crc32c
from shmlog.records.header import (
    BatchHeader,
    check_body_crc,
    check_header_crc,
    decode_header,
    read_size,
)
from shmlog.records.layout import (
    ALIGNMENT,
    BROKER_HALF_SIZE,
    HEADER,
    HEADER_CRC_END,
    HEADER_SIZE,
    MAGIC,
)


@dataclass(frozen=True, slots=True)
class Damage:
    """A place where a batch should be and is not.

    `offset` to `end_offset`: the records concerned. `below_mark`: it was synced or committed once.
    `misplaced`: there is a whole batch, but of another partition or with another offset.
    """

    path: str
    position: int
    offset: int
    end_offset: int
    reason: str
    valid_behind: int | None  # position of the first whole batch behind it
    below_mark: bool
    misplaced: bool

    def __str__(self) -> str:
        behind = "" if self.valid_behind is None else f"; whole batches from {self.valid_behind} on"
        place = f"{self.path} at position {self.position} (offset {self.offset})"
        return f"{place}: {self.reason}{behind}"


@dataclass(slots=True)
class RecoveryReport:
    """What opening a log found and did.

    `lossy`: the replica may lack something that it once reported as stored, and why. `fresh`: there was
    nothing at all, so whoever knows that there ought to be something takes it for lost. `high_watermark`: as
    the last checkpoint had it, within the log. `quarantined`: files renamed, not deleted.
    """

    scanned_bytes: int = 0
    cut_bytes: int = 0
    rebuilt_indexes: int = 0
    rewritten_bytes: int = 0
    fresh: bool = False
    lossy: bool = False
    lossy_reason: str = ""
    high_watermark: int = 0
    quarantined: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Effort:
    """What a search for a whole batch may still look at. Used up: it ends as if there were none."""

    headers: int
    body_bytes: int


def scan(
    segment: Segment,
    topic_id: bytes,
    partition: int,
    mark: int,
    *,
    file_size: int,
    verify: bool = False,
) -> Damage | None:
    """Walk a segment from its start and note every valid batch; None if it ends in zeros or at its end.

    Below `mark` (an offset) only structure is checked, from it on both CRCs; with `verify` everywhere.
    """
    expected = segment.base_offset
    reason = ""
    misplaced = False
    try:
        for found in segment.walk(0, end=file_size):
            header = found.header
            belongs = header.topic_id == topic_id and header.partition == partition
            in_place = belongs and header.follows(expected)
            if verify or not in_place or header.end_offset > mark:
                check_header_crc(found.data, header)
                check_body_crc(found.data, header)
            if not in_place:
                whose = f"{header.topic_id.hex()}-{header.partition}"
                reason = f"a batch of {whose} at offset {header.base_offset}, expected {expected}"
                misplaced = True
                break
            segment.note(header, found.position)
            expected = segment.end_offset
    except NOT_A_BATCH as error:
        reason = str(error)
    if not reason or all_zero(segment, segment.size, file_size):
        return None
    behind, next_offset = extent(segment, segment.size, file_size, topic_id, expected)
    return Damage(
        path=segment.path,
        position=segment.size,
        offset=expected,
        end_offset=next_offset or max(mark, expected + 1),
        reason=reason,
        valid_behind=behind,
        below_mark=expected < mark,
        misplaced=misplaced,
    )


def all_zero(segment: Segment, position: int, end: int) -> bool:
    """Is there nothing but preallocation from `position` on?"""
    while position < end:
        piece = segment.file().pread(WALK_BYTES, position)
        if not piece:
            break
        if piece.count(0) != len(piece):
            return False
        position += len(piece)
    return True


def find_valid(
    segment: Segment,
    position: int,
    end: int,
    topic_id: bytes | None,
    from_offset: int,
    effort: Effort | None = None,
) -> int | None:
    """The first position at or behind `position` of a batch that is whole and belongs here.

    `topic_id` None: whatever topic it belongs to. Reads in pieces; a body only behind a header whose CRC fits,
    for a value may be made of what looks like the beginning of batches.
    """
    while position < end:
        data = segment.file().pread(min(WALK_BYTES, end - position), position)
        words = np.frombuffer(data, "<u4", len(data) // ALIGNMENT * 2)[::2]
        for candidate in np.flatnonzero(words == MAGIC).tolist():
            at = position + candidate * ALIGNMENT
            half = data[candidate * ALIGNMENT : candidate * ALIGNMENT + HEADER_SIZE]
            if len(half) < HEADER_SIZE:
                half = segment.file().pread(HEADER_SIZE, at)
            header = _trusted_header(half, end - at)
            if effort is not None:
                effort.headers -= 1
                effort.body_bytes -= header.batch_size if header else 0
                if min(effort.headers, effort.body_bytes) < 0:
                    return None
            if header is None or header.base_offset < from_offset:
                continue
            if topic_id in (None, header.topic_id) and _whole_batch(segment, at, end):
                return at
        position += WALK_BYTES
    return None


def _trusted_header(data: bytes, room: int) -> BatchHeader | None:
    """The header in `data` if its CRC fits and the batch fits into `room` bytes; its body is not looked at."""
    if len(data) < HEADER_SIZE:
        return None
    header = BatchHeader._make(HEADER.unpack_from(data))
    if not HEADER_SIZE <= header.batch_size <= room:
        return None
    return header if crc32c(data[:HEADER_CRC_END]) == header.header_crc else None


def extent(
    segment: Segment,
    damaged: int,
    end: int,
    topic_id: bytes | None,
    offset: int,
    effort: Effort | None = None,
) -> tuple[int | None, int | None]:
    """(position, base offset) of the first whole batch behind the damaged one at position `damaged`.

    Where the damaged batch's own header is whole, all of it is stepped over: a value may look like a batch.
    """
    start = damaged + _trusted_size(segment, damaged)
    behind = find_valid(segment, start, end, topic_id, offset + 1, effort)
    if behind is None:
        return None, None
    header = _whole_batch(segment, behind, end)
    return behind, None if header is None else header.base_offset


def _trusted_size(segment: Segment, position: int) -> int:
    """How many bytes the batch at `position` has, if its header's CRC fits; else one step."""
    half = segment.file().pread(BROKER_HALF_SIZE, position)
    if len(half) == BROKER_HALF_SIZE:
        crc = int.from_bytes(half[HEADER_CRC_END:], "little")
        try:
            if crc32c(half[:HEADER_CRC_END]) == crc:
                return max(read_size(half, 0), ALIGNMENT)
        except CorruptMessage:
            pass  # a CRC that fits over something else than a batch
    return ALIGNMENT


def _whole_batch(segment: Segment, position: int, end: int) -> BatchHeader | None:
    try:
        size = read_size(segment.file().pread(ALIGNMENT, position), 0)
        if position + size > end:
            return None
        data = segment.file().pread(size, position)
        header = decode_header(data)
        check_header_crc(data, header)
        check_body_crc(data, header)
    except NOT_A_BATCH:
        return None
    return header
