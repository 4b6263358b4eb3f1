"""One compaction pass: read sealed segments, write what is left of them beside them. It changes no file that is there.

Two walks. The first notes, for each key from `map_from` on, the offset of its newest record: as 16 bytes of BLAKE2b,
so that memory does not depend on the keys' sizes and nobody can make two keys meet. Where there are more keys than
`keys_max` the pass ends before the rest. The second walk copies:

    a record goes      a newer one of its key was noted; or it is a tombstone below `tombstones_below`
    a record stays     all others, those without a key and those at or behind the pass's end among them
    a batch goes       no record is left of it; but its header stays where it is its producer's newest batch (else its
                       sequences would be forgotten) or its group's last (so that segments have no gaps between them)

Every batch is checked whole before anything is concluded from it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from shmlog.errors import CorruptMessage, ShmlogError
from shmlog.log import paths
from shmlog.log.cleaning_task import CleaningResult, CleaningTask
from shmlog.log.index import SparseIndex
from shmlog.log.segment import Found, Segment
from shmlog.log.storage import Buffer, File, Storage
from shmlog.records.batch import RecordBatch
from shmlog.records.header import BatchHeader, check_body_crc, check_header_crc, decode_header
from shmlog.records.rewriting import header_only, only, with_gap

WRITE_BYTES = 1 << 20

Pause = Callable[[int], None]


class Cleaner:
    """One pass. `pause(size)` is called for so many bytes read or written; it may wait, or raise to stop the pass."""

    def __init__(self, storage: Storage, task: CleaningTask, pause: Pause) -> None:
        self._storage = storage
        self._task = task
        self._pause = pause
        self._newest: dict[bytes, int] = {}
        self._end_offset = task.end_offset
        self._headers_kept = frozenset(task.headers_kept)
        self._tombstones_dropped = 0
        self._oldest_tombstone = -1
        self._records = [0, 0]
        self._bytes = [0, 0]

    def run(self) -> CleaningResult:
        """Raises: OSError; CorruptMessage, InvalidRecord: damage; UnsupportedCompression; RecordTooLarge. Nothing is
        left of the pass then.
        """
        task = self._task
        self._remove_leftovers()
        try:
            self._note_keys()
            made = [place for group in task.groups if (place := self._clean(group)) is not None]
            self._storage.sync_dir(task.directory)
        except Exception:
            self._remove_leftovers()
            raise
        return CleaningResult(
            end_offset=self._end_offset,
            made=made,
            tombstones_dropped=self._tombstones_dropped,
            oldest_tombstone=self._oldest_tombstone,
            records_before=self._records[0],
            records_after=self._records[1],
            bytes_before=self._bytes[0],
            bytes_after=self._bytes[1],
        )

    def _remove_leftovers(self) -> None:
        remove_cleaned(self._storage, self._task.directory)

    # -- reading --------------------------------------------------------------------------------------

    def _batches(self, base_offset: int, size: int) -> Iterator[Found]:
        """The batches of one segment, checked."""
        task = self._task
        segment = Segment(self._storage, task.directory, base_offset, task.index_interval_bytes)
        segment.file(read_only=True)
        try:
            for found in segment.walk(0, end=size):
                header = found.header
                if (header.topic_id, header.partition) != (task.topic_id, task.partition):
                    raise CorruptMessage(f"{segment.path}: a batch of another partition")
                check_header_crc(found.data, header)
                check_body_crc(found.data, header)
                self._pause(header.batch_size)
                yield found
        finally:
            segment.close()

    def _note_keys(self) -> None:
        task, newest = self._task, self._newest
        segments = [segment for group in task.groups for segment in group]
        ends = [base for base, _ in segments[1:]] + [task.end_offset]
        for (base, size), end in zip(segments, ends, strict=True):
            if end <= task.map_from:
                continue
            for found in self._batches(base, size):
                if found.header.end_offset <= task.map_from or not found.header.record_count:
                    continue
                batch = RecordBatch(found.data, found.header, check_crc=False)
                for key, offset in zip(batch.keys(), batch.offsets.tolist(), strict=True):
                    if key is not None and offset >= task.map_from:
                        newest[_digest(key)] = offset
                if len(newest) >= task.keys_max:
                    self._end_offset = found.header.end_offset
                    return

    # -- writing --------------------------------------------------------------------------------------

    def _clean(self, group: list[tuple[int, int]]) -> tuple[int, int] | None:
        """Write what is left of a group of segments; (base, end) of it, None if nothing had to change."""
        base = group[0][0]
        output = _Output(self._storage, self._task, base, self._pause)
        changed = len(group) > 1
        try:
            pending: Found | None = None  # one behind: the last one is written in any case
            for segment in group:
                for found in self._batches(*segment):
                    if pending is not None:
                        changed = self._copy(pending, output, last=False) or changed
                    pending = found
            if pending is not None:
                changed = self._copy(pending, output, last=True) or changed
            if changed:
                output.finish()
        finally:
            output.close()
        if not changed:
            output.remove()
            return None
        return base, output.end_offset

    def _copy(self, found: Found, output: _Output, *, last: bool) -> bool:
        """Write what is left of a batch; is that something else than it was?"""
        header, data = found.header, found.data
        self._records[0] += header.record_count
        self._bytes[0] += header.batch_size
        behind_gap = header.base_offset != output.end_offset
        needed = last or header.base_offset in self._headers_kept
        if not header.record_count:
            if not needed:
                return True
            left: Buffer = with_gap(data, header, behind_gap=behind_gap)
        else:
            batch = RecordBatch(data, header, check_crc=False)
            kept = self._kept(batch)
            if len(kept) == len(batch):
                left = with_gap(data, header, behind_gap=behind_gap)
            elif len(kept):
                left = only(batch, kept, behind_gap=behind_gap)
            elif needed:
                left = header_only(header, behind_gap=behind_gap)
            else:
                return True
        written = header if left is data else decode_header(left)
        self._records[1] += written.record_count
        self._bytes[1] += written.batch_size
        output.write(written, left)
        return left is not data

    def _kept(self, batch: RecordBatch) -> NDArray[np.intp]:
        """The indices of the records that stay."""
        task, newest = self._task, self._newest
        nulls = frozenset(batch.null_values().tolist())
        kept = []
        offsets = batch.offsets.tolist()
        for index, (key, offset) in enumerate(zip(batch.keys(), offsets, strict=True)):
            if key is None or offset >= self._end_offset:
                kept.append(index)
                continue
            if newest.get(_digest(key), -1) > offset:
                continue
            if index in nulls:
                if offset < task.tombstones_below:
                    self._tombstones_dropped = max(self._tombstones_dropped, offset + 1)
                    continue
                if self._oldest_tombstone < 0:
                    self._oldest_tombstone = offset
            kept.append(index)
        return np.array(kept, np.intp)


def run_task(storage: Storage, task: CleaningTask, pause: Pause) -> CleaningResult:
    """A pass whose failure is a result: whoever asked for it has to say so, and try again later."""
    try:
        return Cleaner(storage, task, pause).run()
    except (OSError, ShmlogError) as error:
        return CleaningResult(error=f"{type(error).__name__}: {error}")


class _Output:
    """A new segment and its index, under names of their own."""

    def __init__(
        self, storage: Storage, task: CleaningTask, base_offset: int, pause: Pause
    ) -> None:
        self._storage = storage
        self._path = f"{task.directory}/{paths.cleaned_log(base_offset)}"
        self._index_path = f"{task.directory}/{paths.cleaned_index(base_offset)}"
        self._index = SparseIndex(task.index_interval_bytes)
        self._pause = pause
        self._file: File = storage.open(self._path, create=True)
        self._pending: list[Buffer] = []
        self._pending_bytes = 0
        self._size = 0
        self._append_times_ns = (0, 0)  # of the first and the last batch
        self.end_offset = base_offset

    def write(self, header: BatchHeader, data: Buffer) -> None:
        """The next batch."""
        self._index.add(
            header.base_offset, self._size + self._pending_bytes, header.max_timestamp_ns
        )
        # A view would keep the whole piece that was read.
        self._pending.append(bytes(data))
        self._pending_bytes += header.batch_size
        first_ns = self._append_times_ns[0] if self._append_times_ns[1] else header.append_time_ns
        self._append_times_ns = (first_ns, header.append_time_ns)
        self.end_offset = header.end_offset
        if self._pending_bytes >= WRITE_BYTES:
            self._flush()

    def _flush(self) -> None:
        self._file.pwrite(self._pending, self._size)
        self._size += self._pending_bytes
        self._pause(self._pending_bytes)
        self._pending, self._pending_bytes = [], 0

    def finish(self) -> None:
        """All of it is written: sync it, and write the index."""
        self._flush()
        self._file.sync()
        index = self._storage.open(self._index_path, create=True)
        try:
            data = self._index.encode(self._size, self.end_offset, *self._append_times_ns)
            index.pwrite([data], 0)
        finally:
            index.close()

    def close(self) -> None:
        self._file.close()

    def remove(self) -> None:
        """Nothing of it is wanted."""
        self._storage.unlink(self._path)


def remove_cleaned(storage: Storage, directory: str) -> None:
    """Remove what a pass has made and nobody has taken."""
    for name in storage.list(directory):
        if name.endswith(paths.CLEANED):
            storage.unlink(f"{directory}/{name}")


def _digest(key: bytes) -> bytes:
    return blake2b(key, digest_size=16).digest()
