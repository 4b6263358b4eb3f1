"""Taking batches away at the end of a log: the files' part of a truncation. In a worker: this syncs.

The small files have been cut before (small_files.py): from then on nothing says any more that what goes here was
synced, so wherever a stop comes the next start finds a shorter or the whole old log and takes it as it is.
Newest first: a kill leaves no gap. A power cut may leave any of the unlinked files; then the log ends at the
first gap and what lies behind it is set aside. All is durable on return: an old batch behind the cut must never
line up with what is appended next.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence

from shmlog.log import paths
from shmlog.log.segment import Place, Segment
from shmlog.log.storage import Storage

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


def cut_behind(
    storage: Storage, directory: str, last: Segment, place: Place, behind: Sequence[Segment]
) -> None:
    """Let the log end at `place` in `last`; the segments `behind` it go."""
    for segment in reversed(behind):
        segment.close()
        segment.unlink()
    # Sealed again, the segment may end at the same offset with other batches.
    storage.unlink(last.index_path)
    last.cut(place)
    storage.sync_dir(directory)


def reserve(segment: Segment, size: int) -> None:
    """Preallocate behind a cut, if there is space, and sync file and cut."""
    try:
        if size > 0:
            segment.file().allocate(segment.size, size)
            segment.allocated = segment.size + size
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
    segment.file().sync()


def remove_all(storage: Storage, directory: str, segments: Sequence[Segment]) -> None:
    """Remove every segment. The oldest goes last: alone it ends at or above the log start."""
    names = storage.list(directory)
    for name in names:
        if name.endswith(paths.CLEANED):
            storage.unlink(f"{directory}/{name}")
    known = {segment.base_offset for segment in segments}
    for base in sorted(b for b in map(paths.parse_segment_log, names) if b is not None):
        if base not in known:  # trimmed or replaced, but for lack of space not removed yet
            storage.unlink(f"{directory}/{paths.segment_index(base)}")
            storage.unlink(f"{directory}/{paths.segment_log(base)}")
    for segment in reversed(segments[1:]):
        segment.close()
        segment.unlink()
    storage.sync_dir(directory)
    segments[0].close()
    segments[0].unlink()
    storage.sync_dir(directory)
