"""Putting compacted segments into the place of those they were made of: a stop at any moment leaves one or the other.

    BASE.log.cleaned            the cleaner writes and syncs it, and BASE.index.cleaned; removed at the next opening
    BASE-END.log.swap           renamed to that, durably: from here on whoever opens the log finishes the swap
    BASE.log                    the segments from BASE to END go, durably, then it takes its name

The new file is complete and synced before it has the second name, and nothing else is removed before that name is
durable. In memory the new segment takes the place first, with an open descriptor: readers of the old ones keep theirs,
and nothing is opened by name until the names are right. All of it stands in the queue of the log's file jobs, so that a
cut or a trim comes before or after.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, field

from shmlog.log import paths
from shmlog.log.cleaning import SegmentFacts
from shmlog.log.index import SparseIndex
from shmlog.log.segment import Segment
from shmlog.log.storage import Storage


@dataclass(slots=True)
class SwapJob:
    """One swap's files. `begun`: it is on disk, and can only go on."""

    storage: Storage
    directory: str
    segment: Segment
    replaced: list[Segment] = field(default_factory=list)
    begun: bool = False

    def run(self) -> None:
        """Raises OSError; lack of space only before it has begun."""
        base, end = self.segment.base_offset, self.segment.end_offset
        cleaned = f"{self.directory}/{paths.cleaned_log(base)}"
        self.storage.rename(cleaned, f"{self.directory}/{paths.swap_log(base, end)}")
        self.begun = True
        finish_swap(self.storage, self.directory, base, end)
        # A help to the next start, and wrong beside any other file of this name: last.
        index = f"{self.directory}/{paths.cleaned_index(base)}"
        self.storage.rename(index, self.segment.index_path)


def finish_swap(storage: Storage, directory: str, base: int, end: int) -> None:
    """Go on with a swap that has begun, wherever it was stopped."""
    storage.sync_dir(directory)  # its name must not get lost after what it replaces
    bases = sorted(
        b for b in map(paths.parse_segment_log, storage.list(directory)) if b is not None
    )
    for other in bases:
        if base <= other < end:
            storage.unlink(f"{directory}/{paths.segment_index(other)}")
        if base < other < end:
            storage.unlink(f"{directory}/{paths.segment_log(other)}")
    storage.sync_dir(directory)
    swap = f"{directory}/{paths.swap_log(base, end)}"
    storage.rename(swap, f"{directory}/{paths.segment_log(base)}")
    storage.sync_dir(directory)


def begun_swaps(storage: Storage, directory: str) -> list[tuple[int, int]]:
    """(base, end) of the swaps that a stop has left."""
    names = map(paths.parse_swap_log, storage.list(directory))
    return sorted(name for name in names if name is not None)


def open_cleaned(
    storage: Storage, directory: str, base_offset: int, end_offset: int, interval_bytes: int
) -> Segment:
    """A segment as the cleaner has left it, ready to be swapped in. Raises OSError, ValueError: it is not whole."""
    segment = Segment(storage, directory, base_offset, interval_bytes)
    segment.open_at(f"{directory}/{paths.cleaned_log(base_offset)}")
    file = storage.open(f"{directory}/{paths.cleaned_index(base_offset)}", read_only=True)
    try:
        index = SparseIndex.decode(file.pread(file.size(), 0))
    finally:
        file.close()
    if index is None or index.end_offset != end_offset or index.size != segment.file_size():
        segment.close()
        raise ValueError(f"{directory}: what compaction made of {base_offset} is not whole")
    segment.take_index(index)
    return segment


class SegmentSwaps:
    """The swaps of one log. In the thread of the log's owner; shares the list of segments with the log.

    `waiting`: the segments that a sync is still owed.
    """

    def __init__(
        self, storage: Storage, directory: str, segments: list[Segment], waiting: Container[Segment]
    ) -> None:
        self._storage = storage
        self._directory = directory
        self._segments = segments
        self._waiting = waiting

    def facts(self) -> list[SegmentFacts]:
        """The sealed segments, for a plan."""
        return [
            SegmentFacts(
                segment.base_offset,
                segment.end_offset,
                segment.size,
                segment.first_append_time_ns,
                segment.last_append_time_ns,
            )
            for segment in self._segments[:-1]
        ]

    def begin(self, segment: Segment) -> SwapJob | None:
        """Let `segment` take the place of those it was made of; None if they are not all there any more."""
        base, end = segment.base_offset, segment.end_offset
        replaced = [s for s in self._segments[:-1] if base <= s.base_offset < end]
        whole = replaced and (replaced[0].base_offset, replaced[-1].end_offset) == (base, end)
        if not whole or any(s in self._waiting or s.swapping for s in replaced):
            return None
        place = self._segments.index(replaced[0])
        segment.swapping = True
        segment.last_append_time_ns = replaced[-1].last_append_time_ns
        self._segments[place : place + len(replaced)] = [segment]
        for old in replaced:
            old.close()
        return SwapJob(self._storage, self._directory, segment, replaced)

    def finish(self, job: SwapJob) -> None:
        """The job has run; or it has found no space before it had begun, and all stays as it was."""
        job.segment.swapping = False
        if not job.begun:
            job.segment.close()
            if job.segment in self._segments:
                place = self._segments.index(job.segment)
                self._segments[place : place + 1] = job.replaced
