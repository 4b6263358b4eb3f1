"""Opening a partition's directory: take the segments in, repair what a stop left, derive the rest from the batches.

Order: checkpoint, segments, epoch history, producer states. It may be stopped anywhere and begun again.

What is done about damage that is no torn tail (*rot*, see recovery.py) depends on who else has the records. With
one replica opening refuses, names the range and changes nothing. With more (`replicated`) the damaged segment
and all behind it are set aside under another name, the log ends before the damage, and the replica is *lossy*.

Lossy is decided here (docs/rules.md) and is written into the checkpoint before anything is changed that it was
decided by: a second start finds no damage any more, and the boot id of the one before. It stays there until the
cluster has taken note (`Log.forget_lossy`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import msgspec

from shmlog.errors import CorruptLog
from shmlog.log import checkpoint, paths, recovery
from shmlog.log import opened as marks
from shmlog.log.checkpoint import Checkpoint, EpochHistory, EpochTable, Level
from shmlog.log.cleaning import Compaction
from shmlog.log.producers import ProducerStates
from shmlog.log.recovery import Damage, RecoveryReport
from shmlog.log.segment import NOT_A_BATCH, WALK_BYTES, Segment
from shmlog.log.small_files import SmallFiles
from shmlog.log.storage import Storage
from shmlog.log.swapping import begun_swaps, finish_swap
from shmlog.records.header import BatchHeader
from shmlog.records.layout import FLAGS_OF_COMPACTION
from shmlog.settings import MIB, TopicConfig


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What whoever opens a log knows of the stop before, and of other replicas."""

    same_boot: bool
    clean: bool
    replicated: bool
    now_ns: int
    replaced: bool = False
    verify: bool = False


@dataclass(slots=True)
class Opened:
    """A log as it was found; what is in `dirty` and the directory are still to be synced."""

    log_start: int = 0
    segments: list[Segment] = field(default_factory=list)
    dirty: list[Segment] = field(default_factory=list)
    directory_dirty: bool = False
    epochs: EpochHistory = field(default_factory=EpochHistory)
    epochs_dirty: bool = False
    producers: ProducerStates = field(default_factory=ProducerStates)
    compaction: Compaction = field(default_factory=Compaction)
    checkpoint: Checkpoint | None = None  # the newest generation, if it is in its place
    level: Level = "os"
    report: RecoveryReport = field(default_factory=RecoveryReport)

    @property
    def end_offset(self) -> int:
        """The end of the last segment."""
        return self.segments[-1].end_offset


def headers_from(segments: list[Segment], offset: int) -> Iterator[BatchHeader]:
    """The headers of all batches that end behind `offset` (a log start may lie inside a batch)."""
    for segment in segments:
        if segment.end_offset <= offset:
            continue
        start = max(offset, segment.base_offset)
        for found in segment.walk(segment.index.position_for_offset(start)):
            if found.header.end_offset > offset:
                yield found.header


class Opening:
    """One opening of one directory. In the caller's thread; reads, writes and syncs."""

    def __init__(
        self,
        storage: Storage,
        directory: str,
        topic_id: bytes,
        partition: int,
        config: TopicConfig,
        circumstances: Circumstances,
    ) -> None:
        self._storage = storage
        self._directory = directory
        self._topic_id = topic_id
        self._partition = partition
        self._config = config
        self._at = circumstances
        self._found: Checkpoint | None = None
        self._newest = False  # is what was found the newest generation?
        self._in_force = False  # or was it, when its successor was about to be put in place?
        self._mark = 0  # below it all was synced or committed
        self._marked_lossy = False
        self._verify = circumstances.verify
        self._opened = Opened()

    @property
    def _report(self) -> RecoveryReport:
        return self._opened.report

    def run(self) -> Opened:
        """Raises: CorruptLog: damage, and no other replica; nothing has been changed. OSError. No descriptor
        stays open then.
        """
        try:
            return self._run()
        except BaseException:
            for segment in self._opened.segments:
                segment.close()
            raise

    def _run(self) -> Opened:
        opened, at = self._opened, self._at
        self._set_foreign_aside()
        lost = self._lost()
        is_here = self._storage.exists(self._directory)
        if not is_here:
            self._storage.make_dir(self._directory)
        if not is_here or not at.clean:
            # Who made it may have been killed before its name was durable.
            self._storage.sync_dir(self._directory.rpartition("/")[0] or ".")
        self._verify |= self._storage.exists(f"{self._directory}/{paths.SUSPECT}")
        for base, end in begun_swaps(self._storage, self._directory):
            finish_swap(self._storage, self._directory, base, end)
        bases = self._bases()
        self._load(bases)
        if lost:
            self._damaged(lost, 0, -1)
        if at.replaced and at.replicated:
            self._lossy("the data directory is not the one of the last start")
        if not (at.clean or at.same_boot or self._report.fresh) and opened.level == "os":
            self._lossy("another boot, and what was reported was not synced")
        self._take_segments(bases, trust_indexes=True)
        try:
            self._derive()
        except NOT_A_BATCH:
            # An index was believed that does not fit, or the batches behind it are damaged: look at them.
            self._take_segments(self._bases(), trust_indexes=False)
            self._derive()
        self._remove_leftovers()
        if not at.clean:
            self._rewrite()
            opened.directory_dirty = True  # the same of its files: what they hold would be acked
        self._report.high_watermark = max(
            opened.log_start,
            min(self._found.high_watermark if self._found else 0, opened.end_offset),
        )
        return opened

    # -- what is known --------------------------------------------------------------------------------

    def _set_foreign_aside(self) -> None:
        """Read the checkpoint. One of another topic id means another topic's directory: kept, renamed."""
        path = f"{self._directory}/{paths.CHECKPOINT}"
        self._found = checkpoint.read(self._storage, path, Checkpoint)
        self._newest = checkpoint.read_newest(self._storage, path, Checkpoint) is not None
        # A power cut between the renames leaves the generation before, and that was the newest then.
        in_place = self._storage.exists(path)
        between = self._found is not None and not in_place
        self._in_force = self._newest or between
        if self._found is None or self._found.topic_id == self._topic_id:
            self._opened.checkpoint = self._found if self._newest and in_place else None
            return
        number = 0
        while self._storage.exists(aside := paths.stray_dir(self._directory, number)):
            number += 1
        self._storage.rename(self._directory, aside)
        self._storage.sync_dir(self._directory.rpartition("/")[0] or ".")
        self._found, self._newest, self._in_force = None, False, False

    def _lost(self) -> str:
        """There is neither checkpoint nor batch, and there was a log at an earlier start: what is to be said."""
        here = self._storage.exists(self._directory)
        if self._found is not None or (here and self._bases()):
            return ""
        how = f"{self._directory} is {'empty' if here else 'gone'}, and it held a log at an earlier start"
        if self._at.replaced:
            text = f"{how}: the data directory was replaced (docs/operations.md, Replacing a disk)"
        elif marks.was_opened(self._storage, self._directory, self._topic_id):
            text = (
                f"{how}: put it back from a copy, or remove {marks.mark_path(self._directory)} to begin with an "
                "empty one"
            )
        else:
            return ""
        if not self._at.replicated:
            raise CorruptLog(text, log_start=0, high_watermark=-1)
        return text

    def _bases(self) -> list[int]:
        names = self._storage.list(self._directory)
        return sorted(base for base in map(paths.parse_segment_log, names) if base is not None)

    def _load(self, bases: list[int]) -> None:
        """Fill in what the checkpoint says."""
        found, opened = self._found, self._opened
        opened.report.fresh = found is None and (not bases or self._was_never_opened(bases))
        if found is not None:
            self._mark = max(found.recovery_point, found.high_watermark)
            opened.log_start = found.log_start
            opened.level = found.level
        elif opened.report.fresh and self._config.durability == "disk":
            opened.level = "disk"  # nothing was ever reported
        if found is not None and found.lossy and self._at.replicated:
            self._marked_lossy = True
            self._lossy("found so at an earlier start")

    def _was_never_opened(self, bases: list[int]) -> bool:
        """Was the first opening stopped before its checkpoint? Nothing is appended or reported before that."""
        path = f"{self._directory}/{paths.CHECKPOINT}"
        if self._storage.exists(path) or self._storage.exists(path + ".previous"):
            return False
        first = self._segment(0)
        try:
            return bases == [0] and first.file().size() == 0
        finally:
            first.close()

    def _lossy(self, reason: str) -> None:
        """Note it, durably: what it was decided by is about to be repaired."""
        if not self._report.lossy:
            self._report.lossy, self._report.lossy_reason = True, reason
        if self._marked_lossy or not self._at.replicated:
            return
        first = min(self._bases(), default=0)
        found = self._found or Checkpoint(self._topic_id, first, 0, 0)
        path = f"{self._directory}/{paths.CHECKPOINT}"
        value = msgspec.structs.replace(found, lossy=True)
        checkpoint.replace(self._storage, path, value)
        self._marked_lossy = True

    # -- segments -------------------------------------------------------------------------------------

    def _take_segments(self, bases: list[int], *, trust_indexes: bool) -> None:
        segments, log_start = self._opened.segments, self._opened.log_start
        for segment in segments:
            segment.close()
        segments.clear()
        known = self._in_force if self._at.replicated else self._newest
        if bases and known and bases[0] > log_start:
            # Without its beginning a log is worth nothing: a leader elected with it would trim the others.
            self._missing(log_start, bases[0])
            self._set_aside(bases)
            bases = []
        if not bases and self._mark > log_start:
            self._missing(log_start, self._mark)
        bases = self._remove_trimmed(bases, log_start)
        for place, base in enumerate(bases):
            if not self._take_segment(base, bases[place + 1 :], trust_indexes=trust_indexes):
                break
        if segments and self._opened.end_offset < log_start:
            # Only where damage was set aside: what is left ends before the log begins.
            segments.clear()
            self._set_aside(self._bases())
        if not segments:
            self._make_segment(log_start)
        if self._mark > self._opened.end_offset:
            self._missing(self._opened.end_offset, self._mark)
        self._opened.log_start = max(log_start, segments[0].base_offset)

    def _remove_trimmed(self, bases: list[int], log_start: int) -> list[int]:
        """Finish a trim that a crash has stopped; some of its unlinks may have been lost, in any order."""
        kept = [
            base
            for base, end in zip(bases, [*bases[1:], None], strict=False)
            if end is None or end > log_start
        ]
        for base in bases[: len(bases) - len(kept)]:
            self._segment(base).unlink()
        return kept

    def _segment(self, base: int) -> Segment:
        return Segment(self._storage, self._directory, base, self._config.index_interval_bytes)

    def _make_segment(self, base: int) -> None:
        segment = self._segment(base)
        segment.file(create=True)
        self._opened.segments.append(segment)
        self._opened.directory_dirty = True

    def _take_segment(self, base: int, behind: list[int], *, trust_indexes: bool) -> bool:
        """Take one segment in; False if the log ends in it or before it, whatever lies behind."""
        segments = self._opened.segments
        segment = self._segment(base)
        if segments and base != segments[-1].end_offset:
            end = segments[-1].end_offset
            text = f"{segment.path} begins at {base}, the one before ends at {end}"
            self._rot(text, end, base)
            self._set_aside([base, *behind])
            return False
        next_base = behind[0] if behind else None
        try:
            return self._take_in(segment, next_base, behind, trust_indexes=trust_indexes)
        except BaseException:
            segment.close()
            raise

    def _take_in(
        self, segment: Segment, next_base: int | None, behind: list[int], *, trust_indexes: bool
    ) -> bool:
        base, segments = segment.base_offset, self._opened.segments
        # The mark of a clean stop is the log's end, and the active segment's index was saved then too.
        sealed_end = self._mark if next_base is None and self._at.clean else next_base
        trusted = trust_indexes and sealed_end is not None and base < sealed_end <= self._mark
        if (
            trusted
            and not self._verify
            and sealed_end is not None
            and segment.load_index(sealed_end)
        ):
            segments.append(segment)
            return True
        file_size = segment.file().size()
        if segments:
            segment.last_append_time_ns = segments[-1].last_append_time_ns
        damage = recovery.scan(
            segment,
            self._topic_id,
            self._partition,
            self._mark,
            file_size=file_size,
            verify=self._verify,
        )
        self._report.scanned_bytes += segment.size
        self._report.rebuilt_indexes += 1
        short = next_base is not None and segment.end_offset < next_base
        if damage is not None and self._is_rot(damage, last=next_base is None):
            self._rot(str(damage), damage.offset, damage.end_offset)
            self._keep_what_is_before(segment)
        elif damage is not None:
            self._cut(segment, file_size)
        else:
            if short and (self._at.same_boot or segment.end_offset < self._mark):
                end = next_base or self._mark
                self._rot(f"{segment.path} ends early", segment.end_offset, end)
            segment.allocated = file_size
        segments.append(segment)
        if next_base is None or segment.end_offset == next_base:
            return True
        # After a reboot too the log ends at the first bad batch: what lies behind is kept, not deleted.
        self._set_aside(behind)
        return False

    def _is_rot(self, damage: Damage, *, last: bool) -> bool:
        torn = damage.valid_behind is None and last
        return damage.below_mark or damage.misplaced or (self._at.same_boot and not torn)

    def _cut(self, segment: Segment, file_size: int) -> None:
        """Throw a torn tail away."""
        if not self._in_force:
            self._lossy("a tail was cut, and it is not known up to where all was synced")
        self._report.cut_bytes += file_size - segment.size
        segment.give_back()
        segment.file().sync()

    def _missing(self, first: int, end: int) -> None:
        text = f"{self._directory}: offsets {first} up to, not including, {end} were synced and are missing"
        self._damaged(text, first, end)

    def _rot(self, text: str, first: int, end: int) -> None:
        self._damaged(f"damaged, offsets {first} up to, not including, {end}: {text}", first, end)

    def _damaged(self, text: str, first: int, end: int) -> None:
        if not self._at.replicated:
            raise CorruptLog(text, log_start=first, high_watermark=end)
        self._lossy(text)

    # -- quarantine -----------------------------------------------------------------------------------

    def _set_aside(self, bases: list[int]) -> None:
        """Rename segments; the last first, so that a kill leaves no gap."""
        for base in reversed(bases):
            segment = self._segment(base)
            self._storage.unlink(segment.index_path)
            self._rename_corrupt(segment)
        self._storage.sync_dir(self._directory)

    def _rename_corrupt(self, segment: Segment) -> None:
        number = 0
        while self._storage.exists(aside := paths.corrupt(segment.path, number)):
            number += 1
        self._storage.rename(segment.path, aside)
        self._report.quarantined.append(aside)

    def _keep_what_is_before(self, segment: Segment) -> None:
        """Set a damaged file aside whole; what lies before the damage goes on in a copy."""
        copy = self._storage.open(f"{segment.path}.new", create=True)
        try:
            copy.truncate(0)
            for position in range(0, segment.size, WALK_BYTES):
                size = min(WALK_BYTES, segment.size - position)
                copy.pwrite([segment.file().pread(size, position)], position)
            copy.sync()
        finally:
            copy.close()
        segment.close()
        self._storage.unlink(segment.index_path)
        self._rename_corrupt(segment)
        segment.take_file(f"{segment.path}.new", segment.size)
        self._storage.sync_dir(self._directory)

    def _remove_leftovers(self) -> None:
        """What a stop has left half made (the next segment, a copy, an index without its segment), and a suspicion
        that has been followed.
        """
        names = self._storage.list(self._directory)
        for name in names:
            base = paths.parse_segment_index(name)
            orphan = base is not None and paths.segment_log(base) not in names
            half = name.endswith((".log.new", paths.CLEANED))
            if name in (paths.SPARE, paths.SUSPECT) or orphan or half:
                self._storage.unlink(f"{self._directory}/{name}")

    # -- what is derived ------------------------------------------------------------------------------

    def _derive(self) -> None:
        self._recover_epochs()
        self._recover_producers()
        self._recover_compaction()

    def _recover_epochs(self) -> None:
        # Written before the checkpoint whose recovery point this is: below it the table has all there is. An
        # older generation may lack epochs, but no more than the batches know.
        opened = self._opened
        path = f"{self._directory}/{paths.EPOCHS}"
        table = checkpoint.read_newest(self._storage, path, EpochTable)
        complete = table is not None and self._found is not None and self._newest
        if table is None:
            table = checkpoint.read(self._storage, path, EpochTable)
        known = EpochHistory(table.entries if table else ())
        opened.epochs_dirty = known.forget_behind(opened.end_offset)
        recovery_point = self._found.recovery_point if self._found and complete else 0
        # It may have been trimmed for a log start that was not written any more.
        first = known.entries[0][1] if known.entries else opened.end_offset
        opened.epochs = EpochHistory()
        for header in headers_from(opened.segments, 0) if first > opened.log_start else ():
            if header.base_offset >= first:
                break
            self._assign(header.leader_epoch, header.base_offset)
        opened.epochs.adopt(known.entries, opened.end_offset)
        for header in headers_from(opened.segments, recovery_point):
            self._assign(header.leader_epoch, header.base_offset)
        opened.epochs.trim_prefix(opened.log_start)

    def _assign(self, epoch: int, start_offset: int) -> None:
        if self._opened.epochs.assign(epoch, start_offset):
            self._opened.epochs_dirty = True

    def _recover_producers(self) -> None:
        opened, now_ns = self._opened, self._at.now_ns
        files = SmallFiles(self._storage, self._directory)
        snapshot = files.snapshot_within(opened.end_offset)
        opened.producers = ProducerStates(snapshot, now_ns)
        for header in headers_from(opened.segments, snapshot.end_offset if snapshot else 0):
            opened.producers.apply(header, header.base_offset, header.append_time_ns, now_ns)
        files.forget_snapshots_behind(
            opened.end_offset, opened.producers.snapshot(opened.end_offset)
        )

    def _recover_compaction(self) -> None:
        opened = self._opened
        if self._found is not None:
            opened.compaction = self._found.compaction.cut(opened.end_offset)
        elif any(h.flags & FLAGS_OF_COMPACTION for h in headers_from(opened.segments, 0)):
            # Nothing says any more what was dropped: it may have been anything.
            end = opened.end_offset
            opened.compaction = Compaction(tombstones_dropped=end, compacted_below=end)

    def _rewrite(self) -> None:
        """Write what lies above the recovery point once more, so that the next sync covers it.

        After a sync that failed Linux marks the pages clean although they never reached the disk (ATC'20,
        "Can Applications Recover from fsync Failures?"); only writing them again makes them dirty.
        """
        for segment in self._opened.segments:
            if segment.end_offset <= self._mark:
                continue
            start = max(self._mark, segment.base_offset)
            position = segment.index.position_for_offset(start)
            while position < segment.size:
                piece = segment.file().pread(min(4 * MIB, segment.size - position), position)
                segment.file().pwrite([piece], position)
                position += len(piece)
                self._report.rewritten_bytes += len(piece)
            self._opened.dirty.append(segment)
