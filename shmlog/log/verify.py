"""Check the files of one partition and change nothing: every CRC, offset, epoch, and the index.

*Damage* is what recovery would not repair: a batch that does not fit where whole batches follow or
where something was synced, a gap between segments, an epoch that falls, an end below what was
synced. A *note* is what the next start puts right by itself: a torn tail, an index or an epoch
history that must be rebuilt.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from shmlog.log import checkpoint, paths
from shmlog.log.checkpoint import Checkpoint, EpochTable
from shmlog.log.index import SparseIndex
from shmlog.log.recovery import scan
from shmlog.log.segment import Segment
from shmlog.log.storage import Storage

_EVERY_OFFSET = -1  # scan checks CRCs from this offset on
_ANY_INTERVAL_BYTES = 4096  # an index that is only read does not use it


@dataclass(slots=True)
class Verification:
    """What the files of one partition hold, and what is wrong with them."""

    directory: str
    segments: int = 0
    batches: int = 0
    records: int = 0
    size_bytes: int = 0
    log_start: int = 0
    end_offset: int = 0
    damage: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def verify(storage: Storage, directory: str) -> Verification:
    """Read all of a partition's files. Raises OSError where the system cannot read them."""
    found = Verification(directory)
    parsed = paths.parse_partition_dir(directory.rpartition("/")[2])
    if parsed is None:
        raise ValueError(f"{directory} is no partition's directory")
    known = checkpoint.read(storage, f"{directory}/{paths.CHECKPOINT}", Checkpoint)
    bases = [b for b in map(paths.parse_segment_log, storage.list(directory)) if b is not None]
    bases.sort()
    if known is None:
        found.notes.append("no checkpoint: all of the log is scanned at the next start")
    found.log_start = known.log_start if known else (bases[0] if bases else 0)
    found.end_offset = bases[0] if bases else found.log_start
    _Check(storage, found, known, parsed[1]).segments(bases)
    mark = max(known.recovery_point, known.high_watermark) if known else 0
    if found.end_offset < mark and not found.damage:
        found.damage.append(f"offsets {found.end_offset} to {mark} were synced and are missing")
    return found


class _Check:
    def __init__(
        self, storage: Storage, found: Verification, known: Checkpoint | None, partition: int
    ) -> None:
        self._storage = storage
        self._found = found
        self._topic_id = known.topic_id if known else b""
        self._mark = max(known.recovery_point, known.high_watermark) if known else 0
        self._partition = partition
        self._epoch = -1
        self._epochs: list[tuple[int, int]] = []

    def segments(self, bases: list[int]) -> None:
        """All segments in order, then the epoch history."""
        for base in bases:
            if base != self._found.end_offset:
                self._found.damage.append(
                    f"offsets {self._found.end_offset} to {base} are missing: no segment holds them"
                )
            segment = Segment(self._storage, self._found.directory, base, _ANY_INTERVAL_BYTES)
            try:
                self._segment(segment, last=base == bases[-1])
            finally:
                segment.close()
        table = checkpoint.read(
            self._storage, f"{self._found.directory}/{paths.EPOCHS}", EpochTable
        )
        kept = [(epoch, start) for epoch, start in table.entries] if table else []
        missing = [entry for entry in self._epochs if entry[0] not in dict(kept)]
        if missing:
            self._found.notes.append(f"the epoch history lacks {missing[0]}: it is rebuilt")

    def _segment(self, segment: Segment, *, last: bool) -> None:
        found = self._found
        file_size = segment.file(read_only=True).size()
        topic_id = self._topic_id or self._first_topic_id(segment, file_size)
        wrong = scan(segment, topic_id, self._partition, _EVERY_OFFSET, file_size=file_size)
        if wrong is not None:
            torn = last and wrong.valid_behind is None and wrong.offset >= self._mark
            (found.notes if torn else found.damage).append(
                f"torn tail: {wrong}" if torn else str(wrong)
            )
        found.segments += 1
        found.size_bytes += segment.size
        found.end_offset = segment.end_offset
        positions = self._batches(segment)
        self._index(segment, positions, last=last)

    def _first_topic_id(self, segment: Segment, file_size: int) -> bytes:
        for batch in segment.walk(0, end=file_size):
            self._topic_id = batch.header.topic_id
            break
        return self._topic_id

    def _batches(self, segment: Segment) -> dict[int, int]:
        """Count them and follow their epochs; {position: base offset}."""
        positions = {}
        for place, header, _ in segment.walk(0):
            positions[place] = header.base_offset
            self._found.batches += 1
            self._found.records += header.record_count
            if header.leader_epoch < self._epoch:
                self._found.damage.append(
                    f"{segment.path} at position {place} (offset {header.base_offset}): leader "
                    f"epoch {header.leader_epoch} behind {self._epoch}"
                )
            elif header.leader_epoch > self._epoch:
                self._epoch = header.leader_epoch
                self._epochs.append((header.leader_epoch, header.base_offset))
        return positions

    def _index(self, segment: Segment, positions: dict[int, int], *, last: bool) -> None:
        path = f"{self._found.directory}/{paths.segment_index(segment.base_offset)}"
        if not self._storage.exists(path):
            if not last:
                self._found.notes.append(f"{path} is missing: it is rebuilt")
            return
        file = self._storage.open(path, read_only=True)
        try:
            decoded = SparseIndex.decode(file.pread(file.size(), 0))
        finally:
            file.close()
        if decoded is None:
            self._found.notes.append(f"{path} is damaged: it is rebuilt")
            return
        index, size = decoded.sparse, decoded.size
        for place, offset in positions.items():
            if (
                place < size
                and positions.get(index.position_for_offset(offset), offset + 1) > offset
            ):
                self._found.notes.append(f"{path} points past offset {offset}: delete it")
                return
