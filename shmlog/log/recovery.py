"""Where a segment's valid batches end, and why: a report first, the act is the log's.

A write that was under way when its process died leaves a *torn tail*: some of its bytes, and nothing behind
them. That is cut. Anything else that does not fit is *rot* and is never cut: damage below M, where M is what
was synced or known to be committed; or damage above M with whole batches behind it, which a torn write cannot
leave (FAST'18, "Protocol-Aware Recovery": cutting at the first mismatch removes committed entries). Only after a
reboot may pages have been written back out of order, so there the first bad batch ends the log.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from shmlog.log.segment import NOT_A_BATCH, Segment
from shmlog.records.header import check_body_crc, check_header_crc, decode_header, read_size
from shmlog.records.layout import HEADER_SIZE, MAGIC


@dataclass(frozen=True, slots=True)
class Damage:
    """A place where a batch should be and is not. `below_mark`: it was synced or committed once."""

    path: str
    position: int
    offset: int
    reason: str
    valid_behind: int | None  # position of the first whole batch behind it
    below_mark: bool

    def __str__(self) -> str:
        behind = "" if self.valid_behind is None else f"; whole batches from {self.valid_behind} on"
        return (
            f"{self.path} at position {self.position} (offset {self.offset}): {self.reason}{behind}"
        )


@dataclass(slots=True)
class RecoveryReport:
    """What opening a log found and did."""

    scanned_bytes: int = 0
    cut_bytes: int = 0
    rebuilt_indexes: int = 0
    rewritten_bytes: int = 0


def scan(
    segment: Segment, topic_id: bytes, partition: int, mark: int, *, file_size: int
) -> Damage | None:
    """Walk a segment from its start and note every valid batch; None if it ends in zeros or exactly.

    Below `mark` (an offset) only structure is checked, from it on both CRCs.
    """
    position = 0
    expected = segment.base_offset
    reason = ""
    try:
        for found in segment.walk(0, end=file_size):
            header = found.header
            if header.base_offset != expected:
                reason = f"base offset {header.base_offset}, expected {expected}"
                break
            if header.topic_id != topic_id or header.partition != partition:
                reason = f"the batch belongs to {header.topic_id.hex()}-{header.partition}"
                break
            if header.end_offset > mark:
                check_header_crc(found.data, header)
                check_body_crc(found.data, header)
            segment.note(header, found.position)
            position, expected = segment.size, segment.end_offset
    except NOT_A_BATCH as error:
        reason = str(error)
    if not reason or all_zero(segment, position, file_size):
        return None
    behind = find_valid(segment, position + 8, file_size, topic_id, expected)
    return Damage(segment.path, position, expected, reason, behind, expected < mark)


def all_zero(segment: Segment, position: int, end: int) -> bool:
    """Is there nothing but preallocation from `position` on?"""
    while position < end:
        piece = segment.file().pread(1 << 20, position)
        if not piece:
            break
        if piece.count(0) != len(piece):
            return False
        position += len(piece)
    return True


def find_valid(
    segment: Segment, position: int, end: int, topic_id: bytes | None, from_offset: int
) -> int | None:
    """The first position at or behind `position` of a batch that is whole and belongs here.

    `topic_id` None: whatever topic it belongs to.
    """
    data = memoryview(segment.file().pread(end - position, position)) if end > position else b""
    words = np.frombuffer(data, "<u4", len(data) // 8 * 2)[::2]
    for candidate in np.flatnonzero(words == MAGIC).tolist():
        at = candidate * 8
        try:
            size = read_size(data, at)
            if len(data) - at < max(size, HEADER_SIZE):
                continue
            header = decode_header(data, at)
            check_header_crc(data, header, at)
            check_body_crc(data, header, at)
        except NOT_A_BATCH:
            continue
        if topic_id in (None, header.topic_id) and header.base_offset >= from_offset:
            return position + at
    return None
