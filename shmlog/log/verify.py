"""Check one partition's files and change nothing: what `shmlog fsck` does to a stopped cluster.

Batches are the truth: every one is read, both CRCs are checked, offsets and partition tags have to follow. Index,
epochs and checkpoint are then held against them. Behind a damaged place the walk goes on at the next whole batch, so
that one report names every damaged range.

Not damage: zeros behind the last batch (preallocation); a torn write behind everything that was synced, which the
next start cuts (`torn_bytes`); small files that lag behind the batches or are not there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from shmlog.log import checkpoint, paths, recovery
from shmlog.log.checkpoint import Checkpoint, EpochHistory, EpochTable
from shmlog.log.index import SparseIndex
from shmlog.log.segment import NOT_A_BATCH, Found, Segment
from shmlog.log.storage import Storage
from shmlog.records.header import BatchHeader, check_body_crc, check_header_crc

_PARTITION = re.compile(r".+-(\d{1,4})")


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is not as it was written. `position` and `offset` are -1 where there is none."""

    file: str
    position: int
    offset: int
    text: str

    def __str__(self) -> str:
        if self.position < 0:
            return f"{self.file}: {self.text}"
        return f"{self.file} at position {self.position} (offset {self.offset}): {self.text}"


@dataclass(slots=True)
class VerifyReport:
    """What was found in one partition's directory; only whole batches are counted."""

    directory: str
    batches: int = 0
    records: int = 0
    bytes: int = 0
    torn_bytes: int = 0
    problems: list[Problem] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Is everything as it was written?"""
        return not self.problems


def verify(storage: Storage, directory: str) -> VerifyReport:
    """Check all files of a partition directory whose broker is stopped. Raises OSError."""
    return _Verifier(storage, directory).run()


class _Verifier:
    def __init__(self, storage: Storage, directory: str) -> None:
        self._storage = storage
        self._directory = directory
        self.report = VerifyReport(directory)
        self._tag: tuple[bytes, int] | None = None
        self._mark: int | None = None  # what was synced; None: not known
        self._log_start = 0
        self._epochs: EpochHistory | None = None
        self._end = -1  # where the next batch begins

    def run(self) -> VerifyReport:
        found = self._load(paths.CHECKPOINT, Checkpoint)
        if found is not None:
            self._mark = max(found.recovery_point, found.high_watermark)
            self._log_start = found.log_start
            match = _PARTITION.fullmatch(self._directory.rpartition("/")[2])
            if match is not None:
                self._tag = (found.topic_id, int(match[1]))
        epochs = self._load(paths.EPOCHS, EpochTable)
        self._epochs = EpochHistory(epochs.entries) if epochs is not None else None
        names = self._storage.list(self._directory)
        bases = sorted(base for base in map(paths.parse_segment_log, names) if base is not None)
        for place, base in enumerate(bases):
            self._segment(base, last=place == len(bases) - 1)
        self._ends(found, bases)
        return self.report

    def _load(self, name: str, kind: type[checkpoint.Kind]) -> checkpoint.Kind | None:
        path = f"{self._directory}/{name}"
        if self._storage.exists(path) and checkpoint.read_one(self._storage, path, kind) is None:
            self._problem(name, "damaged; the generation before is used")
        return checkpoint.read(self._storage, path, kind)

    def _problem(self, file: str, text: str, position: int = -1, offset: int = -1) -> None:
        self.report.problems.append(Problem(file, position, offset, text))

    def _ends(self, found: Checkpoint | None, bases: list[int]) -> None:
        if found is None:
            return
        first, end = (bases[0], self._end) if bases else (0, 0)
        if first > found.log_start:
            text = f"the log begins at {found.log_start}, the first segment at {first}"
            self._problem(paths.CHECKPOINT, text)
        for what, offset in (
            ("log start", found.log_start),
            ("high watermark", found.high_watermark),
            ("recovery point", found.recovery_point),
        ):
            if offset > end:
                self._problem(paths.CHECKPOINT, f"{what} {offset}, but the batches end at {end}")

    def _segment(self, base: int, *, last: bool) -> None:
        segment = Segment(self._storage, self._directory, base, 1)
        name = paths.segment_log(base)
        if self._end >= 0 and base != self._end:
            self._problem(name, f"begins at {base}, the one before ends at {self._end}", 0, base)
        self._end = base
        places: dict[int, tuple[int, int]] = {}  # position: offset, newest timestamp before it
        newest_ns = -1
        try:
            for found in self._batches(segment, name, last=last):
                header = found.header
                places[found.position] = (header.base_offset, newest_ns)
                newest_ns = max(newest_ns, header.max_timestamp_ns)
                self._end = header.end_offset
                segment.size = found.position + header.batch_size
            self._index(segment, base, places)
        finally:
            segment.close()

    def _batches(self, segment: Segment, name: str, *, last: bool) -> Iterator[Found]:
        """The whole batches of a segment, undamaged ones; damage goes into the report."""
        file_size = segment.file(read_only=True).size()
        position: int | None = 0
        while position is not None and position < file_size:
            at = position
            try:
                for found in segment.walk(at, end=file_size):
                    at = found.position + found.header.batch_size
                    if self._check(name, found):
                        yield found
                return
            except NOT_A_BATCH as error:
                position = self._resume(segment, name, at, file_size, str(error), last=last)

    def _resume(
        self, segment: Segment, name: str, at: int, file_size: int, text: str, *, last: bool
    ) -> int | None:
        """Where to go on behind a place that holds no batch."""
        if recovery.all_zero(segment, at, file_size):
            return None
        topic_id = self._tag[0] if self._tag else None
        behind = recovery.find_valid(segment, at + 8, file_size, topic_id, self._end)
        torn = last and behind is None and self._mark is not None and self._end >= self._mark
        if torn:
            self.report.torn_bytes += file_size - at
            return None
        size = (file_size if behind is None else behind) - at
        self._problem(name, f"no batch in {size} bytes: {text}", at, self._end)
        return behind

    def _check(self, name: str, found: Found) -> bool:
        """Is the batch whole and where it belongs? If not, it is in the report."""
        header = found.header
        fault = _crc_fault(found)
        if not fault:
            fault = self._misplaced(header)
        if fault:
            self._problem(name, fault, found.position, self._end)
            if header.base_offset == self._end:  # believable: the next one is not to blame
                self._end = header.end_offset
            return False
        self.report.batches += 1
        self.report.records += header.record_count
        self.report.bytes += header.batch_size
        wrong = self._wrong_epoch(header)
        if wrong:
            self._problem(paths.EPOCHS, wrong, found.position, header.base_offset)
        return True

    def _misplaced(self, header: BatchHeader) -> str:
        tag = (header.topic_id, header.partition)
        self._tag = self._tag or tag
        if tag != self._tag:
            return f"the batch belongs to {header.topic_id.hex()}-{header.partition}"
        if header.base_offset != self._end:
            end, self._end = self._end, header.base_offset
            return f"the batch begins at offset {header.base_offset}, the one before ends at {end}"
        return ""

    def _wrong_epoch(self, header: BatchHeader) -> str:
        """Epochs are written with the checkpoint: only below its mark they have to be there."""
        if self._epochs is None or header.end_offset <= self._log_start:
            return ""
        if self._mark is None or header.end_offset > self._mark:
            return ""
        epoch = self._epochs.epoch_for(max(header.base_offset, self._log_start))
        if epoch == header.leader_epoch:
            return ""
        return f"epoch {epoch} for a batch of epoch {header.leader_epoch}"

    def _index(self, segment: Segment, base: int, places: dict[int, tuple[int, int]]) -> None:
        """The index holds for as much of the segment as it covers; an empty file is none."""
        name = paths.segment_index(base)
        data = segment.read_index()
        if not data:
            return
        decoded = SparseIndex.decode(data)
        if decoded is None:
            self._problem(name, "damaged; the next start makes it anew")
            return
        for offset, position, before_ns in decoded.sparse.entries():
            if places.get(position) != (offset, before_ns) and not self._in_damage(
                segment, position
            ):
                self._problem(name, "no such batch, or another newest time", position, offset)

    def _in_damage(self, segment: Segment, position: int) -> bool:
        """Has this segment damage at or before `position`? Then the index is not to blame."""
        name = segment.path.rpartition("/")[2]
        return any(p.file == name and p.position <= position for p in self.report.problems)


def _crc_fault(found: Found) -> str:
    try:
        check_header_crc(found.data, found.header)
        check_body_crc(found.data, found.header)
    except NOT_A_BATCH as error:
        return str(error)
    return ""
