"""Check the files of one partition and change nothing: CRCs, offsets, tags, epochs, the index.

Batches are the truth: every one is read, both CRCs are checked, offsets (but for gaps that compaction
has declared) and partition tags have to follow. Epochs and index are then held against them. Behind a
damaged place the walk goes on at the next whole batch, so that one report names every damaged range.

*Damage* is what recovery would not repair: bytes that are no batch where whole batches follow or
where something was synced, a gap, an epoch that falls, an end below what was synced. A *note* is
what the next start puts right by itself: a torn tail, a small file that must be made anew.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from shmlog.log import checkpoint, paths, recovery
from shmlog.log.checkpoint import Checkpoint, EpochHistory, EpochTable
from shmlog.log.index import SparseIndex
from shmlog.log.producers import Snapshot
from shmlog.log.segment import NOT_A_BATCH, Found, Segment
from shmlog.log.storage import Storage
from shmlog.log.swapping import begun_swaps
from shmlog.records.header import BatchHeader, check_body_crc, check_header_crc

_PARTITION = re.compile(r".+-(\d{1,4})")


@dataclass(slots=True)
class Verification:
    """What the files of one partition hold, and what is wrong. Only whole batches count."""

    directory: str
    segments: int = 0
    batches: int = 0
    records: int = 0
    gaps: int = 0  # batches with gaps in them or before them: compaction has taken records out
    size_bytes: int = 0
    log_start: int = 0
    end_offset: int = 0
    damage: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def verify(storage: Storage, directory: str) -> Verification:
    """Read all of a partition's files. Raises OSError where the system cannot read them."""
    return _Verifier(storage, directory).run()


class _Verifier:
    def __init__(self, storage: Storage, directory: str) -> None:
        self._storage = storage
        self._directory = directory
        self._found = Verification(directory)
        self._tag: tuple[bytes, int] | None = None
        self._mark = 0  # what was synced or committed
        self._in_doubt = False  # behind damage the next offset is taken as it comes
        self._epoch = -1
        self._epochs: EpochHistory | None = None
        self._swaps: dict[int, str] = {}

    def run(self) -> Verification:
        found = self._found
        known = self._load(paths.CHECKPOINT, Checkpoint)
        names = self._storage.list(self._directory)
        bases = self._bases(names)
        found.log_start = found.end_offset = bases[0] if bases else 0
        match = _PARTITION.fullmatch(self._directory.rpartition("/")[2])
        if known is None:
            found.notes.append("no checkpoint: all of the log is scanned at the next start")
        else:
            self._mark = max(known.recovery_point, known.high_watermark)
            self._tag = (known.topic_id, int(match[1])) if match else None
            found.log_start = known.log_start
            if found.end_offset > known.log_start or not bases:
                found.end_offset = known.log_start
        epochs = self._load(paths.EPOCHS, EpochTable)
        self._epochs = EpochHistory(epochs.entries) if epochs is not None else None
        self._load(paths.PRODUCERS, Snapshot)
        for base in bases:
            self._segment(base, last=base == bases[-1])
        if found.end_offset < self._mark and not found.damage:
            found.damage.append(
                f"offsets {found.end_offset} up to, not including, {self._mark} were synced and are missing"
            )
        return found

    def _bases(self, names: list[str]) -> list[int]:
        """The segments as the next start will have them."""
        bases = {base for base in map(paths.parse_segment_log, names) if base is not None}
        for base, end in begun_swaps(self._storage, self._directory):
            self._found.notes.append(
                f"{self._directory}: a compacted segment waits to take the place of {base} to {end}"
            )
            bases = {other for other in bases if not base < other < end} | {base}
            self._swaps[base] = f"{self._directory}/{paths.swap_log(base, end)}"
        return sorted(bases)

    def _load(self, name: str, kind: type[checkpoint.Kind]) -> checkpoint.Kind | None:
        path = f"{self._directory}/{name}"
        if self._storage.exists(path) and checkpoint.read_one(self._storage, path, kind) is None:
            self._found.notes.append(f"{path} is damaged: the one before it, or none, is used")
        return checkpoint.read(self._storage, path, kind)

    def _segment(self, base: int, *, last: bool) -> None:
        found = self._found
        if base != found.end_offset and not self._in_doubt:
            found.damage.append(
                f"offsets {found.end_offset} up to, not including, {base} are missing: no segment holds them"
                if base > found.end_offset
                else f"segment {base} begins below the end of the one before, {found.end_offset}"
            )
        found.end_offset = base
        found.segments += 1
        self._in_doubt = False
        segment = Segment(self._storage, self._directory, base, 1)
        if base in self._swaps:
            segment.open_at(self._swaps[base])
        damage_before = len(found.damage)
        entries: dict[int, tuple[int, int]] = {}  # position: offset, newest timestamp before it
        newest_ns = -1
        try:
            for position, header, _ in self._batches(segment, last=last):
                entries[position] = (header.base_offset, newest_ns)
                newest_ns = max(newest_ns, header.max_timestamp_ns)
        finally:
            segment.close()
        if len(found.damage) == damage_before and base not in self._swaps:
            self._index(segment, entries)

    def _batches(self, segment: Segment, *, last: bool) -> Iterator[Found]:
        """The undamaged batches of a segment; damage goes into the report."""
        file_size = segment.file(read_only=True).size()
        at = 0
        while at < file_size:
            try:
                for found in segment.walk(at, end=file_size):
                    check_header_crc(found.data, found.header)
                    check_body_crc(found.data, found.header)
                    at = found.position + found.header.batch_size
                    if self._take(segment.path, found):
                        yield found
            except NOT_A_BATCH as error:
                at = self._resume(segment, at, file_size, str(error), last=last)

    def _resume(self, segment: Segment, at: int, file_size: int, text: str, *, last: bool) -> int:
        """The position of the next whole batch behind one where there is none."""
        found = self._found
        if recovery.all_zero(segment, at, file_size):
            return file_size
        topic_id = self._tag[0] if self._tag else None
        behind, following = recovery.extent(segment, at, file_size, topic_id, found.end_offset)
        place = f"{segment.path} at position {at} (offset {found.end_offset})"
        if last and behind is None and found.end_offset >= self._mark:
            found.notes.append(f"torn tail: {place}: {text}")
            return file_size
        size = (file_size if behind is None else behind) - at
        self._fault(f"{place}: {size} bytes are damaged: {text}", following)
        self._in_doubt = True
        return file_size if behind is None else behind

    def _fault(self, text: str, end_offset: int | None) -> None:
        """What lies wholly below the log start is read by nobody, and goes with its segment."""
        if end_offset is not None and end_offset <= self._found.log_start:
            self._found.notes.append(f"below the log start: {text}")
        else:
            self._found.damage.append(text)

    def _take(self, path: str, batch: Found) -> bool:
        """Is this whole batch where it belongs? If not, it is in the report."""
        found, header = self._found, batch.header
        fault = self._misplaced(header)
        if fault:
            found.damage.append(
                f"{path} at position {batch.position} (offset {found.end_offset}): {fault}"
            )
            self._in_doubt = True
            return False
        self._in_doubt = False
        found.batches += 1
        found.records += header.record_count
        found.gaps += (
            header.base_offset > found.end_offset or header.record_count <= header.last_offset_delta
        )
        found.size_bytes += header.batch_size
        found.end_offset = header.end_offset
        self._check_epoch(path, batch)
        return True

    def _misplaced(self, header: BatchHeader) -> str:
        self._tag = self._tag or (header.topic_id, header.partition)
        if (header.topic_id, header.partition) != self._tag:
            return f"the batch belongs to {header.topic_id.hex()}-{header.partition}"
        end_offset = self._found.end_offset
        if header.base_offset < end_offset:
            return f"base offset {header.base_offset}, expected {end_offset}"
        if not header.follows(end_offset) and not self._in_doubt:
            self._found.end_offset = header.base_offset
            return f"base offset {header.base_offset}, expected {end_offset}"
        return ""

    def _check_epoch(self, path: str, batch: Found) -> None:
        """Epochs never fall; the history of them lags behind at most by what was not synced."""
        header = batch.header
        place = f"{path} at position {batch.position} (offset {header.base_offset})"
        if header.leader_epoch < self._epoch:
            self._found.damage.append(
                f"{place}: leader epoch {header.leader_epoch} behind {self._epoch}"
            )
        if header.leader_epoch <= self._epoch:
            return
        self._epoch = header.leader_epoch
        if header.end_offset <= self._found.log_start or header.end_offset > self._mark:
            return
        offset = max(header.base_offset, self._found.log_start)
        known = self._epochs.epoch_for(offset) if self._epochs else -1
        if known != header.leader_epoch:
            self._found.notes.append(
                f"{place}: epoch {header.leader_epoch}, in the history {known}: it is rebuilt"
            )

    def _index(self, segment: Segment, entries: dict[int, tuple[int, int]]) -> None:
        """An index covers the segment or its beginning; none at all, or an empty file, is none."""
        data = segment.read_index()
        if not data:
            return
        decoded = SparseIndex.decode(data)
        if decoded is None:
            self._found.notes.append(f"{segment.index_path} is damaged: it is rebuilt")
            return
        for offset, position, before_ns in decoded.sparse.entries():
            if entries.get(position) != (offset, before_ns):
                self._found.notes.append(
                    f"{segment.index_path} does not fit at offset {offset}, position {position}: "
                    "it is rebuilt"
                )
                return
