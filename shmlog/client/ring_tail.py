"""Committed batches straight from the leader's ring: the bytes that a fetch would give, or nothing.

A tail is one attachment to one ring (one partition of one incarnation). `poll` gives pieces, an
empty list ("caught up": ask the broker to say when there is more), or None: "fetch", for whatever
reason - not in the ring any more, lapped while copying, a header that does not fit. The caller
fetches from the same offset and polls again afterwards, so nothing is left out or repeated at a
change of roads: both sides go by offsets, and every piece is checked to begin where the one before
ended.
"""

from __future__ import annotations

import contextlib
import platform
from typing import NamedTuple

from shmlog.clock import NS_PER_MS
from shmlog.errors import CorruptMessage, InvalidRecord
from shmlog.records.header import (
    BatchHeader,
    check_body_crc,
    check_header_crc,
    decode_header,
    iterate,
    read_size,
)
from shmlog.records.layout import HEADER, HEADER_SIZE
from shmlog.ring import posix
from shmlog.ring.doorbell import Doorbells
from shmlog.ring.layout import RingIdentity, ring_name
from shmlog.ring.reader import RingMismatch, RingReader

HANG_NS = 1500 * NS_PER_MS  # broker.hang.timeout.ms; leaving a ring too early costs a fetch only
CHUNK_BYTES = 512 << 10  # stays in the second-level cache
# Where the processor keeps the order of stores, a copy that `oldest_valid` did not pass is whole.
KEEPS_STORE_ORDER = platform.machine() in ("x86_64", "AMD64")


class Piece(NamedTuple):
    """The bytes of one stored batch. `tail`: they lie in the ring and may be overwritten."""

    buffer: memoryview
    header: BatchHeader
    tail: RingTail | None = None
    position: int = -1

    def valid(self) -> bool:
        """Have the bytes not been overwritten?"""
        return self.tail is None or self.tail.still_valid(self.position)


class RingTail:
    """A place in a ring, moving with the reader's offset."""

    def __init__(
        self,
        identity: RingIdentity,
        reader: RingReader,
        *,
        check_body: bool,
        bells: Doorbells | None = None,
    ) -> None:
        self.identity = identity
        self._reader = reader
        self._bells = bells
        self._bell = self._listen()
        self._check_body = check_body
        self._position = -1
        self._offset = -1  # of the batch that begins at the position, once it is known
        self._epoch = -1

    def _listen(self) -> int:
        """The number of the watch at the ring's doorbell; -1: none is to be had."""
        if self._bells is not None:
            with contextlib.suppress(OSError):  # its name is gone, or the user has too many watches
                return self._bells.watch(ring_name(self.identity))
        return -1

    @property
    def has_doorbell(self) -> bool:
        """Does news of the ring end the sleep of this client?"""
        return self._bell >= 0

    @property
    def sealed(self) -> bool:
        """True: look for the leader anew."""
        return self._reader.sealed

    @property
    def leader_epoch(self) -> int:
        """The leader epoch of whoever writes this ring."""
        return self._reader.leader_epoch

    def is_stale(self, now: int) -> bool:
        """Has the writer's loop not stamped for so long that it counts as hung, or dead?"""
        return now - self._reader.heartbeat_ns > HANG_NS

    def poll(self, offset: int, *, copy: bool = True) -> list[Piece] | None:
        """The committed batches from `offset` on, some of them; []: there are none; None: fetch."""
        if offset != self._offset and not self._seek(offset):
            return None
        try:
            pieces = self._read(offset) if copy else self._look(offset)
        except (CorruptMessage, InvalidRecord):
            pieces = None
        if pieces is None:
            self._offset = -1
        return pieces

    def still_valid(self, position: int) -> bool:
        """Is what was seen at `position` still there?"""
        return self._reader.still_valid(position)

    def close(self) -> None:
        """Let the ring go; views handed out stay readable. May be called twice."""
        self._reader.close()
        if self._bells is not None and self._bell >= 0:
            self._bells.unwatch(self._bell)
            self._bell = -1

    def _seek(self, offset: int) -> bool:
        """Move to the batch that holds `offset` or begins there."""
        self._offset = -1
        position = self._reader.seek(offset)
        if position is None:
            return False
        while True:
            chunk = self._reader.read(position, HEADER_SIZE)
            if chunk is None:
                return False
            if len(chunk.data) < HEADER_SIZE:
                # The end; whether `offset` is it, the batch before has told.
                return self._offset == offset
            header = self._header_at(chunk.data)
            if header is None or header.base_offset > offset:
                return False
            position = chunk.position
            if header.end_offset > offset:
                self._position, self._offset = position, offset
                return True
            position += header.batch_size
            self._position, self._offset = position, header.end_offset

    def _header_at(self, data: bytes) -> BatchHeader | None:
        """The header in `data`, which holds no more of the batch; None if it does not fit."""
        try:
            if not read_size(data, 0):
                return None
            header = BatchHeader._make(HEADER.unpack_from(data))
            check_header_crc(data, header)
        except CorruptMessage:
            return None
        return header

    def _read(self, offset: int) -> list[Piece] | None:
        reader = self._reader
        chunk = reader.read(self._position, CHUNK_BYTES)
        if chunk is not None and len(chunk.data) >= HEADER_SIZE:
            size = read_size(chunk.data, 0)
            if size > len(chunk.data):
                chunk = reader.read(chunk.position, size)  # one big batch
        if chunk is None:
            return None
        pieces: list[Piece] = []
        buffer = memoryview(chunk.data)
        expected, end = offset, 0
        for position, header in iterate(chunk.data):
            if not self._fits(header, expected, first=not pieces):
                return None
            end = position + header.batch_size
            piece = buffer[position:end]
            check_header_crc(piece, header)
            if self._check_body:
                check_body_crc(piece, header)
            self._epoch = header.leader_epoch
            expected = header.end_offset
            pieces.append(Piece(piece, header))
        if chunk.data and not pieces:
            return None
        self._position, self._offset = chunk.position + end, expected
        return pieces

    def _look(self, offset: int) -> list[Piece] | None:
        """One batch without copying it; what is made of it counts only while it is valid."""
        reader = self._reader
        chunk = reader.read(self._position, HEADER_SIZE)
        if chunk is None:
            return None
        if not chunk.data:
            return []
        view = reader.view(chunk.position, read_size(chunk.data, 0))
        header = decode_header(view)
        check_header_crc(view, header)
        if not self._fits(header, offset, first=True):
            return None
        if self._check_body:
            check_body_crc(view, header)
        if not reader.still_valid(chunk.position):
            return None
        self._epoch = header.leader_epoch
        self._position, self._offset = chunk.position + header.batch_size, header.end_offset
        return [Piece(view, header, self, chunk.position)]

    def _fits(self, header: BatchHeader, expected: int, *, first: bool) -> bool:
        """Is this the batch that comes next in this partition?"""
        if first:
            in_place = header.base_offset <= expected < header.end_offset
        else:
            in_place = header.base_offset == expected
        return (
            in_place
            and header.topic_id == self.identity.topic_id
            and header.partition == self.identity.partition
            and header.leader_epoch >= self._epoch
        )


def attach(
    identity: RingIdentity, *, check_crcs: bool | None, bells: Doorbells | None
) -> RingTail | None:
    """The ring of that identity, None if there is none (yet, or any more).

    `bells` watch its doorbell from before the first look into it. `check_crcs` None: the body CRC
    only where the processor does not keep the order of stores.
    """
    try:
        memory = posix.attach(ring_name(identity))
    except (FileNotFoundError, PermissionError):
        return None  # not made, or not yet of any size, or another user's
    try:
        reader = RingReader(memory, identity)
    except RingMismatch:
        memory.close()
        return None
    check_body = not KEEPS_STORE_ORDER if check_crcs is None else check_crcs
    return RingTail(identity, reader, check_body=check_body, bells=bells)
