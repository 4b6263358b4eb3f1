"""Small durable files: written aside, synced, renamed; the generation before is kept.

    byte 0  magic    u32  "SLC1"
         4  size     u32  of the payload
         8  crc      u32  CRC-32C of the payload
        12  payload  MessagePack

A damaged file is never taken for an empty one: the reader gets the generation before, or None, and its caller
falls back to what the batches say.
"""

from __future__ import annotations

import errno
import struct
from bisect import bisect_right
from typing import TypeVar

import msgspec

from shmlog.log.storage import Storage
from shmlog.records.compression import crc32c

_HEAD = struct.Struct("<III")
_MAGIC = 0x31434C53  # b"SLC1"
Kind = TypeVar("Kind")


class Checkpoint(msgspec.Struct, frozen=True):
    """What a log knows beside its batches. Invariant: high_watermark and recovery_point <= synced end."""

    topic_id: bytes
    log_start: int
    high_watermark: int
    recovery_point: int


class EpochTable(msgspec.Struct, frozen=True):
    """(leader epoch, start offset), both rising."""

    entries: list[tuple[int, int]]


def write(storage: Storage, path: str, value: msgspec.Struct) -> None:
    """Make `value` durable at `path`. In a worker: this syncs."""
    try:
        _write_aside(storage, path, value)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        # The generation before gives its block: what is written here may be what makes room.
        storage.unlink(path + ".previous")
        _write_aside(storage, path, value)
    if storage.exists(path):
        storage.rename(path, path + ".previous")
    storage.rename(path + ".new", path)
    storage.sync_dir(path.rpartition("/")[0])


def _write_aside(storage: Storage, path: str, value: msgspec.Struct) -> None:
    payload = msgspec.msgpack.encode(value)
    file = storage.open(path + ".new", create=True)
    try:
        file.truncate(0)
        file.pwrite([_HEAD.pack(_MAGIC, len(payload), crc32c(payload)), payload], 0)
        file.sync()
    finally:
        file.close()


def read(storage: Storage, path: str, kind: type[Kind]) -> Kind | None:
    """The newest undamaged generation; None if there is none."""
    for name in (path, path + ".previous"):
        value = read_one(storage, name, kind)
        if value is not None:
            return value
    return None


def read_one(storage: Storage, path: str, kind: type[Kind]) -> Kind | None:
    """What one file holds; None if it is missing or damaged."""
    if not storage.exists(path):
        return None
    file = storage.open(path, read_only=True)
    try:
        data = file.pread(file.size(), 0)
    finally:
        file.close()
    if len(data) < _HEAD.size:
        return None
    magic, size, crc = _HEAD.unpack_from(data)
    payload = data[_HEAD.size : _HEAD.size + size]
    if magic != _MAGIC or len(payload) != size or crc32c(payload) != crc:
        return None
    try:
        return msgspec.msgpack.decode(payload, type=kind)
    except msgspec.MsgspecError:
        return None


class EpochHistory:
    """Which leader epoch begins at which offset. Invariant: epochs and offsets both rise."""

    def __init__(self, entries: list[tuple[int, int]] | None = None) -> None:
        self.entries = list(entries or [])

    def assign(self, epoch: int, start_offset: int) -> bool:
        """Batches from `start_offset` on have `epoch`; True if that is news."""
        if self.entries and epoch <= self.entries[-1][0]:
            return False
        while self.entries and self.entries[-1][1] >= start_offset:
            self.entries.pop()
        self.entries.append((epoch, start_offset))
        return True

    def epoch_for(self, offset: int) -> int:
        """The epoch of the record at `offset`; -1 if it is not known."""
        place = bisect_right([start for _, start in self.entries], offset) - 1
        return self.entries[place][0] if place >= 0 else -1

    def trim_prefix(self, log_start: int) -> None:
        """Forget epochs that end at or below the log start; the one that holds it begins there."""
        while len(self.entries) > 1 and self.entries[1][1] <= log_start:
            del self.entries[0]
        if self.entries and self.entries[0][1] < log_start:
            self.entries[0] = (self.entries[0][0], log_start)

    def truncate_to(self, end_offset: int) -> None:
        """Forget epochs that begin at or behind the new end."""
        while self.entries and self.entries[-1][1] >= end_offset:
            self.entries.pop()
