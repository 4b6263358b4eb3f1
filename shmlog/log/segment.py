"""One segment: a file of batches, byte for byte, back to back, and its index.

The file may be longer than its batches: it is preallocated in steps, and a zero magic word means the end. All
writing is pwrite at `size`; all reading goes through `walk`, which reads in pieces and hands out whole batches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from shmlog.errors import CorruptMessage, InvalidRecord
from shmlog.log import paths
from shmlog.log.index import IndexFile, SparseIndex
from shmlog.log.storage import Buffer, File, Storage
from shmlog.records.header import BatchHeader, decode_header, read_size
from shmlog.records.layout import BATCH_SIZE_MAX, HEADER_SIZE

WALK_BYTES = 1 << 20
READ_BYTES_MIN = 4096
PLACE_BYTES = 64 << 10
NOT_A_BATCH = (CorruptMessage, InvalidRecord)


class Found(NamedTuple):
    """A batch in a segment: its place, its header, its bytes."""

    position: int
    header: BatchHeader
    data: memoryview


class Place(NamedTuple):
    """A batch boundary in a segment, and what is known of the batches before it."""

    position: int
    end_offset: int
    max_timestamp_ns: int
    last_append_time_ns: int


class Segment:
    """Invariants: batches are contiguous in bytes [0, size) and, but for declared gaps, in offsets
    [base_offset, end_offset). The last one always ends at `end_offset`, so segments have no gaps between them. Append
    times never fall from one batch to the next (the log sees to it).

    Of an empty segment the first append time means nothing; the last one is that of the segment before.
    """

    def __init__(
        self, storage: Storage, directory: str, base_offset: int, interval_bytes: int
    ) -> None:
        self._storage = storage
        self._path = f"{directory}/{paths.segment_log(base_offset)}"
        self.index_path = f"{directory}/{paths.segment_index(base_offset)}"
        self._file: File | None = None
        self.base_offset = base_offset
        self.end_offset = base_offset
        self.size = 0
        self.allocated = 0
        self.first_append_time_ns = 0
        self.last_append_time_ns = 0
        self.swapping = False  # its file has not got its name yet: the descriptor must stay
        self.index = SparseIndex(interval_bytes)
        self.index_saved = False

    @property
    def path(self) -> str:
        """The file of the batches."""
        return self._path

    @property
    def is_open(self) -> bool:
        """Is a descriptor held?"""
        return self._file is not None

    def take_file(self, path: str, size: int) -> None:
        """Let the preallocated file at `path` be this segment's, instead of a new one."""
        self._storage.rename(path, self._path)
        self.allocated = size

    def file(self, *, create: bool = False, read_only: bool = False) -> File:
        """The open file."""
        if self._file is None:
            self._file = self._storage.open(self._path, create=create, read_only=read_only)
        return self._file

    def open_at(self, path: str) -> None:
        """Take the file at `path`, read only; it will get this segment's name."""
        self._file = self._storage.open(path, read_only=True)

    def append(self, batches: Sequence[tuple[BatchHeader, Buffer]]) -> None:
        """Write batches behind the last one, in one piece. On an OSError nothing here has changed."""
        self.file().pwrite([data for _, data in batches], self.size)
        for header, _ in batches:
            self.note(header, self.size)

    def note(self, header: BatchHeader, position: int) -> None:
        """A batch lies at `position`, behind all others."""
        if position == 0:
            self.first_append_time_ns = header.append_time_ns
        self.index.add(header.base_offset, position, header.max_timestamp_ns)
        self.size = position + header.batch_size
        self.allocated = max(self.allocated, self.size)
        self.end_offset = header.end_offset
        if position == 0:
            self.first_append_time_ns = header.append_time_ns
        self.last_append_time_ns = header.append_time_ns
        self.index_saved = False

    @property
    def end_place(self) -> Place:
        """Where the next batch goes."""
        return Place(
            self.size, self.end_offset, self.index.max_timestamp_ns, self.last_append_time_ns
        )

    def place_of(self, offset: int) -> Place:
        """The boundary behind the batch that ends at `offset`, base < offset <= end. Reads headers only.

        Raises: CorruptMessage, InvalidRecord: no batch ends there, or damage on the way.
        """
        position = self.index.position_for_offset(offset - 1)
        newest_ns = self.index.newest_before(position)
        for found in self.walk(position, read_bytes=PLACE_BYTES):
            header = found.header
            newest_ns = max(newest_ns, header.max_timestamp_ns)
            if header.end_offset == offset:
                behind = found.position + header.batch_size
                return Place(behind, offset, newest_ns, header.append_time_ns)
            if header.end_offset > offset:
                break
        raise CorruptMessage(f"{self._path}: no batch ends at offset {offset}")

    def cut(self, place: Place) -> None:
        """Throw away everything behind `place`; preallocation goes too."""
        self.file().truncate(place.position)
        self.size = self.allocated = place.position
        self.end_offset = place.end_offset
        self.last_append_time_ns = place.last_append_time_ns
        self.index.truncate(place.position, place.max_timestamp_ns)
        self.index_saved = False

    def give_back(self) -> None:
        """Let go of the preallocation."""
        self.file().truncate(self.size)
        self.allocated = self.size

    def walk(
        self, position: int, *, read_bytes: int = WALK_BYTES, end: int | None = None
    ) -> Iterator[Found]:
        """Whole batches from `position` (a batch boundary) up to `end` (default: size).

        Raises: CorruptMessage, InvalidRecord: there is no batch where one should be. CRCs are the caller's.
        """
        end = self.size if end is None else end
        while position < end:
            piece = memoryview(self.file().pread(min(read_bytes, end - position), position))
            at = 0
            while len(piece) - at >= HEADER_SIZE:
                size = read_size(piece, at)
                if size == 0 or at + size > len(piece):
                    break
                data = piece[at : at + size]
                yield Found(position + at, decode_header(data), data)
                at += size
            if at == 0:
                if read_bytes > BATCH_SIZE_MAX or len(piece) < min(read_bytes, end - position):
                    raise CorruptMessage(f"{self._path}: no whole batch at position {position}")
                if len(piece) >= 4 and read_size(piece, 0) == 0:
                    raise CorruptMessage(f"{self._path}: zeros at position {position}")
                if len(piece) == end - position:
                    raise CorruptMessage(f"{self._path}: half a batch at position {position}")
                read_bytes = BATCH_SIZE_MAX + HEADER_SIZE
            position += at

    def save_index(self) -> None:
        """Write the index file (a hint: not synced)."""
        data = self.index.encode(
            self.size, self.end_offset, self.first_append_time_ns, self.last_append_time_ns
        )
        file = self._storage.open(self.index_path, create=True)
        try:
            file.truncate(0)
            file.pwrite([data], 0)
        finally:
            file.close()

    def read_index(self) -> bytes:
        """The index file's bytes; none if there is no such file."""
        if not self._storage.exists(self.index_path):
            return b""
        file = self._storage.open(self.index_path, read_only=True)
        try:
            return file.pread(file.size(), 0)
        finally:
            file.close()

    def load_index(self, end_offset: int) -> bool:
        """Take the index file of a segment that ends at `end_offset`.

        False if it is missing, damaged, or of less or more than this segment: an index is not synced, so
        after a power cut an older one may be found.
        """
        found = SparseIndex.decode(self.read_index())
        if found is None or found.end_offset != end_offset or found.size > self.file_size():
            return False
        self.take_index(found)
        return True

    def take_index(self, found: IndexFile) -> None:
        """The index of this segment's file, as it was saved: what it says of the file holds."""
        self.index, self.size, self.end_offset = found.sparse, found.size, found.end_offset
        self.first_append_time_ns = found.first_append_time_ns
        self.last_append_time_ns = found.last_append_time_ns
        self.allocated = self.size
        self.index_saved = True

    def file_size(self) -> int:
        """Bytes of the file, whatever they hold; leaves no descriptor open."""
        if self._file is not None:
            return self._file.size()
        file = self._storage.open(self._path, read_only=True)
        try:
            return file.size()
        finally:
            file.close()

    def close(self) -> None:
        """Let go of the descriptor."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def unlink(self) -> None:
        """Remove both files, the index first: it must never be found beside another segment of this name."""
        self._storage.unlink(self.index_path)
        self._storage.unlink(self._path)
