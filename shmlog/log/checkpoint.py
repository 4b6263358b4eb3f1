"""Small durable files: written aside, synced, renamed; the generation before is kept.

    byte 0  magic    u32  "SLC1"
         4  size     u32  of the payload
         8  crc      u32  CRC-32C of the payload
        12  payload  MessagePack

A damaged file is never taken for an empty one: the reader gets the generation before, or None, and its caller
falls back to what the batches say. What a cut makes untrue is therefore replaced in both generations (`replace`).
"""

from __future__ import annotations

import errno
import struct
from bisect import bisect_right
from collections.abc import Sequence
from typing import Literal, TypeVar

import msgspec

from shmlog.log.cleaning import Compaction
from shmlog.log.storage import Storage
from shmlog.records.compression import crc32c

_HEAD = struct.Struct("<III")
_MAGIC = 0x31434C53  # b"SLC1"
Kind = TypeVar("Kind")
Level = Literal["os", "disk"]


class Checkpoint(msgspec.Struct, frozen=True):
    """What a log knows beside its batches. Invariant: high_watermark and recovery_point <= synced end.

    `level`: the durability by which the replica has counted what it reported; "os" where it is not known.
    `lossy`: it may lack something it reported, and the cluster has not taken note of that yet.
    `compaction`: see cleaning.py. What it says was dropped is written before anything is.
    """

    topic_id: bytes
    log_start: int
    high_watermark: int
    recovery_point: int
    level: Level = "os"
    lossy: bool = False
    compaction: Compaction = Compaction()


class EpochTable(msgspec.Struct, frozen=True):
    """(leader epoch, start offset), both rising."""

    entries: list[tuple[int, int]]


def write(storage: Storage, path: str, value: msgspec.Struct, *, is_gapless: bool = False) -> None:
    """Make `value` durable at `path`. In a worker: this syncs.

    `is_gapless`: a power cut never leaves the generation before alone, also where the file system keeps no order.
    """
    parent = path.rpartition("/")[0]
    exists = storage.exists(path)
    if not exists and storage.exists(path + ".previous") and storage.exists(path + ".new"):
        storage.rename(path + ".new", path)  # stopped between the two renames: that is the newest
        exists = True
    try:
        _write_aside(storage, path, value)
    except OSError as error:
        if not exists or error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        # The generation before gives its block: what is written here may be what makes room.
        storage.unlink(path + ".previous")
        _write_aside(storage, path, value)
    if exists:
        if is_gapless:
            storage.sync_dir(parent)
        storage.rename(path, path + ".previous")
    storage.rename(path + ".new", path)
    storage.sync_dir(parent)


def _write_aside(storage: Storage, path: str, value: msgspec.Struct) -> None:
    payload = msgspec.msgpack.encode(value)
    file = storage.open(path + ".new", create=True)
    try:
        file.truncate(0)
        file.pwrite([_HEAD.pack(_MAGIC, len(payload), crc32c(payload)), payload], 0)
        file.sync()
    finally:
        file.close()


def replace(storage: Storage, path: str, value: msgspec.Struct) -> None:
    """Make `value` durable in both generations: the one before is no longer true. In a worker."""
    write(storage, path, value)
    write(storage, path, value)


def read(storage: Storage, path: str, kind: type[Kind]) -> Kind | None:
    """The newest undamaged generation; None if there is none."""
    value = read_newest(storage, path, kind)
    return read_one(storage, path + ".previous", kind) if value is None else value


def read_newest(storage: Storage, path: str, kind: type[Kind]) -> Kind | None:
    """The newest generation; None if it is damaged or there is none."""
    if not storage.exists(path):
        # Stopped between the two renames of `write`: what was to be put in place is whole and synced.
        path += ".new"
    return read_one(storage, path, kind)


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
    """Which leader epoch begins at which offset. Invariant: epochs and offsets both rise.

    So an epoch without records is known only while it is the last one.
    """

    def __init__(self, entries: Sequence[tuple[int, int]] = ()) -> None:
        self.entries = list(entries)

    @property
    def last_epoch(self) -> int:
        """The newest epoch; -1 if none is known."""
        return self.entries[-1][0] if self.entries else -1

    def assign(self, epoch: int, start_offset: int) -> bool:
        """Batches from `start_offset` on have `epoch`; True if that is news."""
        if self.entries and epoch <= self.entries[-1][0]:
            return False
        while self.entries and self.entries[-1][1] >= start_offset:
            self.entries.pop()
        self.entries.append((epoch, start_offset))
        return True

    def adopt(self, entries: Sequence[tuple[int, int]], end_offset: int) -> bool:
        """Take over a leader's newer entries, as far as the own end reaches them (T1); True if that is news.

        Only after reconciliation: up to the own end both histories are then the same. Called again as the end
        grows, before the batches that go beyond it.
        """
        news = False
        for epoch, start_offset in entries:
            if start_offset <= end_offset:
                news = self.assign(epoch, start_offset) or news
        return news

    def epoch_for(self, offset: int) -> int:
        """The epoch of the record at `offset`; -1 if it is not known."""
        place = bisect_right([start for _, start in self.entries], offset) - 1
        return self.entries[place][0] if place >= 0 else -1

    def end_of(self, epoch: int, log_end: int) -> tuple[int, int]:
        """The largest known epoch at or below `epoch`, and its end; (-1, -1) if there is none.

        Its end is where the next one begins, or the log's end.
        """
        place = bisect_right([known for known, _ in self.entries], epoch) - 1
        if place < 0:
            return -1, -1
        following = self.entries[place + 1 : place + 2]
        return self.entries[place][0], following[0][1] if following else log_end

    def trim_prefix(self, log_start: int) -> None:
        """Forget epochs that end at or below the log start; the one that holds it begins there."""
        while len(self.entries) > 1 and self.entries[1][1] <= log_start:
            del self.entries[0]
        if self.entries and self.entries[0][1] < log_start:
            self.entries[0] = (self.entries[0][0], log_start)

    def truncate_to(self, end_offset: int) -> None:
        """The log was cut at `end_offset`: forget epochs that begin there or behind."""
        while self.entries and self.entries[-1][1] >= end_offset:
            self.entries.pop()

    def forget_behind(self, log_end: int) -> bool:
        """Forget epochs that begin behind the log's end; True if there were any.

        One that begins at the end has no batch yet (E8).
        """
        count = len(self.entries)
        while self.entries and self.entries[-1][1] > log_end:
            self.entries.pop()
        return len(self.entries) < count
