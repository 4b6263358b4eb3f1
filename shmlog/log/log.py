"""Segments as one log: append, read, find by time, sync, recover, cut. It knows no ring and no replica.

The loop's thread appends and reads; everything that may take long (sync, preallocation, checkpoints, unlink) is
handed out as a job. Order of durability: data, then names, then what relies on both (recovery point).

A cut (`truncate_to`, `start_anew`) is one long call for a worker, in the thread that runs this log's file jobs in
their order. Until it has returned the log is that worker's: nobody appends, reads or asks for jobs. Only
`finish_sync` and `finish_allocation` may be called meanwhile: jobs begun before the cut end when they end, and
vouch for nothing behind it.

Invariants: log_start_offset <= synced_end_offset <= log_end_offset; the recovery point on disk never exceeds
the synced end; offsets are contiguous over all segments, but for gaps that compaction has left and declared,
and leader epochs never fall.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType

import msgspec

from shmlog.clock import NS_PER_MS
from shmlog.errors import CorruptLog, DiskFull, OffsetOutOfRange
from shmlog.log import cutting, opened, paths
from shmlog.log.checkpoint import Checkpoint, EpochHistory, EpochTable, Level
from shmlog.log.cleaning import Compaction, Plan
from shmlog.log.cleaning_task import CleaningTask
from shmlog.log.jobs import (
    AllocationJob,
    CallJob,
    CheckpointJob,
    GiveBackJob,
    Job,
    SpareJob,
    SyncJob,
)
from shmlog.log.opening import Circumstances, Opening, headers_from
from shmlog.log.producers import Producer, ProducerStates, Snapshot
from shmlog.log.reading import SEALED_OPEN_MAX, LogReader
from shmlog.log.recovery import RecoveryReport
from shmlog.log.segment import NOT_A_BATCH, Place, Segment
from shmlog.log.small_files import SmallFiles
from shmlog.log.storage import Buffer, Storage
from shmlog.log.swapping import SegmentSwaps
from shmlog.records.header import BatchHeader
from shmlog.settings import MIB, TopicConfig

ALLOCATION_MIN, ALLOCATION_MAX = 4 * MIB, 16 * MIB
SNAPSHOT_INTERVAL_NS = 1_000_000_000
OPEN_FILES_MAX = 1 + SEALED_OPEN_MAX  # descriptors of one log
_NO_SPACE = cutting.NO_SPACE
_NOTHING = Snapshot(0, {})


class Log:
    """One partition's files. One owner."""

    def __init__(
        self, storage: Storage, directory: str, topic_id: bytes, partition: int, config: TopicConfig
    ) -> None:
        self._storage = storage
        self.directory = directory
        self.topic_id = topic_id
        self.partition = partition
        self.config = config
        self.recovery = RecoveryReport()
        self.epochs = EpochHistory()
        self.producers = ProducerStates()
        self.log_start_offset = 0
        self.synced_end_offset = 0
        self._segments: list[Segment] = []
        self._dirty: dict[Segment, None] = {}
        self._reader = LogReader(self._segments, self._dirty, topic_id)
        self.swaps = SegmentSwaps(storage, directory, self._segments, self._dirty)
        self.compaction = Compaction()
        self._files = SmallFiles(storage, directory)
        self._directory_dirty = False
        self._epochs_dirty = False
        # At or below the synced end. Invariant: on disk before a checkpoint or an unlink relies on it.
        self._snapshot = _NOTHING
        self._snapshot_handed_out: Snapshot | None = None  # to a job that writes it
        self._snapshot_due_ns = 0
        self._now_ns = 0
        self._level: Level = "os"
        self.level_changes = 0
        self._lossy = False
        self._high_watermark = 0  # as last told
        self._checkpointed: Checkpoint | None = None
        self._allocation = ALLOCATION_MIN
        self.has_rolled = (
            False  # a segment was closed; for the owner to take note of, and to set back
        )
        self._spare_bytes = 0  # of the file that waits to be the next segment's; 0 if there is none
        # A cut and the end of a sync may meet: what a sync vouches for is changed under this lock only.
        self._vouching = threading.Lock()
        self._syncing: list[SyncJob] = []
        self._generation = 0  # how often the log has been cut; a job of an older one writes nothing

    # -- opening --------------------------------------------------------------------------------------

    @classmethod
    def open(
        cls,
        storage: Storage,
        directory: str,
        *,
        topic_id: bytes,
        partition: int,
        config: TopicConfig,
        now_ns: int,
        same_boot: bool,
        clean: bool,
        replicated: bool = False,
        replaced: bool = False,
        verify: bool = False,
    ) -> Log:
        """Open or make a partition's log, and recover it after an unclean stop.

        With `replicated` damage does not refuse the start: see `recovery.lossy` and opening.py. `replaced`: the
        directory is not the one that the log was in. `verify`: look at every checksum.
        Raises: CorruptLog: damage that is no torn tail; nothing has been changed. OSError. No descriptor
        stays open then.
        """
        log = cls(storage, directory, topic_id, partition, config)
        circumstances = Circumstances(same_boot, clean, replicated, now_ns, replaced, verify)
        found = Opening(storage, directory, topic_id, partition, config, circumstances).run()
        log._segments.extend(found.segments)
        log._dirty.update(dict.fromkeys(found.dirty))
        log._directory_dirty = found.directory_dirty
        log.epochs, log._epochs_dirty = found.epochs, found.epochs_dirty
        log.producers, log.recovery = found.producers, found.report
        log.log_start_offset = found.log_start
        log.compaction = found.compaction
        log._level, log._lossy = found.level, replicated and found.report.lossy
        # Alone, everything that is there was committed; with others only the leader can say.
        log._high_watermark = found.report.high_watermark if replicated else log.log_end_offset
        log._snapshot = log.producers.snapshot(log.log_end_offset)
        log._checkpointed = found.checkpoint
        try:
            log._sync_all()
            log._write_recovered(known=not found.report.fresh)
            log._remember()
        except BaseException:
            log.close_files()
            raise
        for segment in log._segments[:-1]:
            segment.close()
        return log

    def _remember(self) -> None:
        if not opened.was_opened(self._storage, self.directory, self.topic_id):
            try:
                opened.remember(self._storage, self.directory, self.topic_id)
            except OSError as error:
                if error.errno not in _NO_SPACE:
                    raise  # else the next start tries again

    # -- ends -----------------------------------------------------------------------------------------

    @property
    def log_end_offset(self) -> int:
        """The offset of the next record."""
        return self._segments[-1].end_offset

    @property
    def last_append_time_ns(self) -> int:
        """Append time of the newest batch; 0 if there is none."""
        return self._segments[-1].last_append_time_ns

    @property
    def size_bytes(self) -> int:
        """Bytes of batches in all segments."""
        return sum(segment.size for segment in self._segments)

    def bytes_from(self, offset: int, enough: int) -> int:
        """At most how many bytes of batches lie from `offset` on; not counted further than `enough`.

        By the index alone: less than an index interval too many.
        """
        size = 0
        for segment in reversed(self._segments):
            if segment.base_offset <= offset:
                return size + segment.size - segment.index.position_for_offset(offset)
            size += segment.size
            if size - self.config.index_interval_bytes >= enough:
                break
        return size

    @property
    def generation(self) -> int:
        """How often the log has been cut or begun anew since it was opened."""
        return self._generation

    @property
    def open_files(self) -> int:
        """Descriptors that this log holds."""
        return sum(segment.is_open for segment in self._segments)

    @property
    def segments(self) -> Sequence[Segment]:
        """Those that are not wholly below the log start, and the active one, which is the last."""
        first = 0
        while first + 1 < len(self._segments) and (
            self._segments[first].end_offset <= self.log_start_offset
        ):
            first += 1
        return self._segments[first:]

    @property
    def allocated_bytes(self) -> int:
        """Bytes of the files of `segments`, preallocation included, and of the file that waits to be the next one."""
        return self._spare_bytes + sum(segment.allocated for segment in self.segments)

    @property
    def segment_count(self) -> int:
        """How many segments there are."""
        return len(self._segments)

    # -- append ---------------------------------------------------------------------------------------

    def append(self, batches: Sequence[tuple[BatchHeader, Buffer]], now_ns: int) -> None:
        """Write stamped batches that follow `log_end_offset` and each other: one write a segment.

        Each has its own leader epoch; the history learns of those that are new.
        Raises: DiskFull: nothing has changed. OSError: the broker must end.
        """
        assert batches[0][0].follows(self.log_end_offset), (
            f"batch at {batches[0][0].base_offset}, the log ends at {self.log_end_offset}"
        )
        last_epoch = self.epochs.last_epoch
        for header, _ in batches:
            assert header.leader_epoch >= last_epoch, (
                f"batch at {header.base_offset} of epoch {header.leader_epoch} behind {last_epoch}"
            )
            last_epoch = header.leader_epoch
        self._now_ns = now_ns
        count, before = len(self._segments), self._segments[-1].end_place
        try:
            self._append_all(batches)
        except OSError as error:
            if error.errno not in _NO_SPACE:
                raise
            self._take_back(count, before)
            raise DiskFull(f"no space for {self.directory}: {error.strerror}") from None
        for header, _ in batches:
            if self.epochs.assign(header.leader_epoch, header.base_offset):
                self._epochs_dirty = True

    def _append_all(self, batches: Sequence[tuple[BatchHeader, Buffer]]) -> None:
        active = self._segments[-1]
        start, size, end_offset = 0, active.size, self.log_end_offset
        first_ns, last_ns = active.first_append_time_ns, active.last_append_time_ns
        age_ns, size_max = self.config.roll_after_ms * NS_PER_MS, self.config.segment_bytes
        for place, (header, _) in enumerate(batches):
            # Also where append time falls, for within a segment it does not: a leader's clock was set right.
            in_time = last_ns <= header.append_time_ns < first_ns + age_ns
            if size and (size + header.batch_size > size_max or not in_time):
                self._write(batches[start:place])
                self._begin_segment(end_offset)
                start, size = place, 0
            if not size:
                first_ns = header.append_time_ns
            last_ns = header.append_time_ns
            size += header.batch_size
            end_offset = header.end_offset
        self._write(batches[start:])

    def roll(self) -> None:
        """Close the active segment, which is not empty, and begin the next one.

        Raises: DiskFull: nothing has changed. OSError: the broker must end.
        """
        assert self._segments[-1].size, f"{self.directory}: an empty segment is not closed"
        try:
            self._begin_segment(self.log_end_offset)
        except OSError as error:
            if error.errno not in _NO_SPACE:
                raise
            raise DiskFull(f"no space for {self.directory}: {error.strerror}") from None

    def _begin_segment(self, base_offset: int) -> None:
        self._segments.append(self._make_segment(base_offset))
        self._reader.close_cold(self._segments[-1])  # a log that nobody reads closes none otherwise
        self.has_rolled = True

    def _write(self, batches: Sequence[tuple[BatchHeader, Buffer]]) -> None:
        if batches:
            segment = self._segments[-1]
            segment.append(batches)
            self._dirty[segment] = None

    def _make_segment(self, base_offset: int) -> Segment:
        segment = Segment(
            self._storage, self.directory, base_offset, self.config.index_interval_bytes
        )
        if self._segments:
            segment.last_append_time_ns = self.last_append_time_ns  # until it has one of its own
        if self._spare_bytes:
            segment.take_file(self._spare_path, self._spare_bytes)
            self._spare_bytes = 0
        segment.file(create=True)
        self._directory_dirty = True
        return segment

    def _take_back(self, count: int, before: Place) -> None:
        while len(self._segments) > count:
            segment = self._segments.pop()
            self._dirty.pop(segment, None)
            segment.close()
            segment.unlink()
        active = self._segments[-1]
        active.cut(before)
        # Before the next append: else, after a power cut, a whole batch of what was cut could lie right
        # behind a new one and count as its successor.
        active.file().sync()
        self._dirty[active] = None

    # -- read -----------------------------------------------------------------------------------------

    def read(self, offset: int, *, max_bytes: int, end_offset: int) -> bytes:
        """Whole batches from the one that holds `offset` up to `end_offset`; at least one if there is any.

        Both CRCs of every batch are checked before it is returned.
        Raises: OffsetOutOfRange. CorruptLog: naming the damaged range.
        """
        if not self.log_start_offset <= offset <= self.log_end_offset:
            raise OffsetOutOfRange(
                f"offset {offset}: {self.directory} holds {self.log_start_offset} up to, not including, "
                f"{self.log_end_offset}",
                log_start=self.log_start_offset,
                high_watermark=end_offset,
            )
        if offset >= end_offset:
            return b""
        return self._reader.read(
            offset,
            max_bytes=max_bytes,
            end_offset=end_offset,
            index_interval_bytes=self.config.index_interval_bytes,
        )

    def offset_for_time(
        self, timestamp_ns: int, end_offset: int, enough: Callable[[], bool] = lambda: False
    ) -> tuple[int, int] | None:
        """(offset, timestamp) of the first record, in offset order, at or after a time; None if there is none.

        Exact to the record also where timestamps are out of order.
        Raises: Backpressure: `enough` was searched for now. Asked again, the search goes on behind that.
        """
        return self._reader.offset_for_time(timestamp_ns, self.log_start_offset, end_offset, enough)

    # -- epochs ---------------------------------------------------------------------------------------

    def last_epoch_before(self, offset: int) -> int:
        """The leader epoch of the record before `offset`; -1 if there is none."""
        return self.epochs.epoch_for(offset - 1) if offset > self.log_start_offset else -1

    def begin_epoch(self, epoch: int) -> Job:
        """The broker leads from the log's end on; the job makes that durable, before the first batch (E8)."""
        assert epoch >= self.epochs.last_epoch, (epoch, self.epochs.last_epoch)
        if self.epochs.assign(epoch, self.log_end_offset):
            self._epochs_dirty = True
        table = EpochTable(list(self.epochs.entries))
        return CallJob(partial(self._files.write_epochs, table), self._until_cut())

    # -- sync and preallocation -----------------------------------------------------------------------

    def sync_job(self) -> SyncJob | None:
        """Make all that is written so far durable; None if it is. Its end is told to `finish_sync`."""
        if not self._dirty and not self._directory_dirty:
            return None
        snapshot = None
        # What is closed may be compacted or removed, once a snapshot knows it.
        closed_end = self._segments[-1].base_offset
        if self._now_ns >= self._snapshot_due_ns or closed_end > self._snapshot.end_offset:
            snapshot = self.producers.snapshot(self.log_end_offset)
            self._snapshot_due_ns = self._now_ns + SNAPSHOT_INTERVAL_NS
        job = SyncJob(
            storage=self._storage,
            files=[segment.file().dup() for segment in self._dirty],
            directory=self.directory if self._directory_dirty else None,
            end_offset=self.log_end_offset,
            snapshot=snapshot,
        )
        self._dirty.clear()
        self._directory_dirty = False
        with self._vouching:
            self._syncing.append(job)
        return job

    def finish_sync(self, job: SyncJob) -> None:
        """The job has run: what was written when it was made is durable, less what was cut since."""
        with self._vouching:
            self._syncing.remove(job)
            self.synced_end_offset = max(
                self.synced_end_offset, min(job.end_offset, self.log_end_offset)
            )
            if job.snapshot is not None:
                self._snapshot = job.snapshot

    def _vouch_below(self, offset: int) -> None:
        """Whatever was begun before says nothing of what is at or behind `offset` (B21)."""
        with self._vouching:
            self._generation += 1
            for job in self._syncing:
                job.end_offset = min(job.end_offset, offset)
                job.snapshot = None
            self.synced_end_offset = min(self.synced_end_offset, offset)

    def _sync_all(self) -> None:
        job = self.sync_job()
        if job is not None:
            job.run()
            self.finish_sync(job)
        self.synced_end_offset = self.log_end_offset

    def allocation_job(self) -> AllocationJob | SpareJob | GiveBackJob | None:
        """Preallocate the next step of the active segment, or the next segment; None while there is enough.

        So it is the roll that finds no space, in a worker and ahead of time, and not an append. Before that: give back
        what the segment before has too much, when its age has closed it and not its size.
        """
        for closed in self._segments[-2:-1]:
            if closed.allocated - closed.size > self.config.max_message_bytes:
                return GiveBackJob(closed, closed.file().dup(), self._generation)
        segment = self._segments[-1]
        if segment.size + self._allocation // 2 < segment.allocated:
            return None
        start = max(segment.allocated, segment.size)
        size = min(self._allocation, self.config.segment_bytes - start)
        if size > 0:
            self._allocation = min(2 * self._allocation, ALLOCATION_MAX)
            file = segment.file().dup()
            return AllocationJob(segment, file, start, size, self._generation)
        if self._spare_bytes:
            return None
        size = min(ALLOCATION_MIN, self.config.segment_bytes)
        return SpareJob(self._storage, self._spare_path, size)

    def finish_allocation(self, job: AllocationJob | SpareJob | GiveBackJob) -> None:
        """The job has run."""
        if not job.done:
            return
        if isinstance(job, SpareJob):
            self._spare_bytes = job.size
        elif job.generation != self._generation:
            pass  # the cut has taken its bytes, if not its segment
        elif isinstance(job, GiveBackJob):
            job.segment.allocated = job.segment.size
        else:
            job.segment.allocated = max(job.segment.allocated, job.position + job.size)

    @property
    def _spare_path(self) -> str:
        return f"{self.directory}/{paths.SPARE}"

    # -- checkpoints ----------------------------------------------------------------------------------

    @property
    def high_watermark(self) -> int:
        """The newest high watermark that the log was told of, or found at its opening; never below its start."""
        return max(self.log_start_offset, min(self._high_watermark, self.log_end_offset))

    @property
    def level(self) -> Level:
        """By which durability this replica has counted what it reported (docs/rules.md, lossy)."""
        return self._level

    def set_level(self, level: Level, *, reported_end: int | None = None) -> CheckpointJob:
        """Count what is reported from now on by another durability. The job makes that durable.

        To "os": nothing is reported by it before the job has run. To "disk": everything ever reported, up to
        `reported_end` (None: the log's end), is synced already.
        """
        end = self.log_end_offset
        reported = end if reported_end is None else min(reported_end, end)
        assert level == "os" or reported <= self.synced_end_offset, (
            f"reported up to {reported}, synced up to {self.synced_end_offset}"
        )
        self._level = level
        self.level_changes += 1
        # In both generations: the one before must not call durable what the newest, damaged, did not.
        return self._planned_checkpoint(twice=level == "os")

    def suspect(self) -> None:
        """Damage was read: the next start is to look at every checksum. Durable when it returns. Raises OSError."""
        self._storage.open(f"{self.directory}/{paths.SUSPECT}", create=True).close()
        self._storage.sync_dir(self.directory)

    @property
    def is_lossy(self) -> bool:
        """Is it still to be said, or on record, that something may have been lost?"""
        return self._lossy

    def forget_lossy(self) -> CheckpointJob:
        """The cluster has taken note that this replica was lossy at its start; the job makes that durable."""
        self._lossy = False
        return self._planned_checkpoint()

    def _checkpoint_value(self) -> Checkpoint:
        # A log start above the recovery point would, after a power cut, hide what is appended then. One above
        # the producer snapshot would have the next start unlink batches that only the log remembers.
        log_start = min(self.log_start_offset, self.synced_end_offset, self._snapshot.end_offset)
        return Checkpoint(
            topic_id=self.topic_id,
            log_start=log_start,
            high_watermark=max(log_start, min(self._high_watermark, self.synced_end_offset)),
            recovery_point=self.synced_end_offset,
            level=self._level,
            lossy=self._lossy,
            compaction=self.compaction,
        )

    def checkpoint_job(self, high_watermark: int) -> CheckpointJob | None:
        """Write what has changed since the last checkpoint; None if nothing has.

        Segments wholly below the log start, the synced end and the producer snapshot go with it. Between turns:
        what the producer states know is written. If it finds no space: `checkpoint_failed`.
        """
        self._high_watermark = high_watermark
        if self.trim_waits and self.synced_end_offset == self.log_end_offset:
            self._snapshot = self.producers.snapshot(self.log_end_offset)
        removed = self._below_log_start()
        sealed = any(not segment.index_saved for segment in self._segments[:-1])
        changed = self._epochs_dirty or self._checkpoint_value() != self._checkpointed
        return self._planned_checkpoint(removed) if changed or sealed or removed else None

    def _planned_checkpoint(
        self, removed: Sequence[Segment] = (), *, twice: bool = False
    ) -> CheckpointJob:
        job = CheckpointJob(
            files=self._files,
            value=self._checkpoint_value(),
            epochs=EpochTable(list(self.epochs.entries)) if self._epochs_dirty else None,
            snapshot=None if self._snapshot is self._snapshot_handed_out else self._snapshot,
            removed=list(removed),
            sealed=[s for s in self._segments[:-1] if not s.index_saved],
            twice=twice,
            is_true=self._until_cut(),
            generation=self._generation,
        )
        self._epochs_dirty = False
        self._checkpointed, self._snapshot_handed_out = job.value, self._snapshot
        for segment in job.sealed:
            segment.index_saved = True
        return job

    def _write_recovered(self, *, known: bool) -> None:
        """Write the checkpoint, unless the one that was found says the same already: a full disk must not
        keep a log from being opened. What a log that is `known` has found out is found out again.
        """
        if not self._epochs_dirty and self._checkpoint_value() == self._checkpointed:
            return
        job = self._planned_checkpoint()
        job.sealed, sealed = [], job.sealed
        for segment in sealed:
            segment.index_saved = False  # later, by a worker
        try:
            job.run()
        except OSError as error:
            if not known or error.errno not in _NO_SPACE:
                raise
            self._forget_checkpoint()

    def _until_cut(self) -> Callable[[], bool]:
        """What is about to be written is no longer true once the log has been cut; the cut writes its own."""
        generation = self._generation
        return lambda: generation == self._generation

    def checkpoint_failed(self, job: CheckpointJob) -> None:
        """It found no space: the next one does everything that it had to do. Not while a cut is under way."""
        if job.generation != self._generation:
            return  # the cut has written its own
        self._forget_checkpoint()
        for segment in job.sealed:
            segment.index_saved = False
        self._segments[:0] = job.removed

    def _forget_checkpoint(self) -> None:
        self._checkpointed = self._snapshot_handed_out = None
        self._epochs_dirty = True

    # -- compaction -----------------------------------------------------------------------------------

    @property
    def first_active_time_ns(self) -> int:
        """Append time of the first batch of the active segment; -1 if it has none."""
        active = self._segments[-1]
        return active.first_append_time_ns if active.size else -1

    @property
    def compactable_end(self) -> int:
        """Below it all is synced, and in a producer snapshot: a start finds who has written it once it is compacted."""
        return min(self.synced_end_offset, self._snapshot.end_offset)

    def cleaning_task(self, plan: Plan) -> CleaningTask:
        """A pass for the cleaner."""
        return CleaningTask(
            directory=self.directory,
            topic_id=self.topic_id,
            partition=self.partition,
            groups=[[(s.base_offset, s.size) for s in group] for group in plan.groups],
            map_from=plan.map_from,
            end_offset=plan.end_offset,
            tombstones_below=plan.tombstones_below,
            headers_kept=self.producers.newest_below(plan.end_offset),
            index_interval_bytes=self.config.index_interval_bytes,
        )

    def before_swaps(self, tombstones_dropped: int) -> CheckpointJob:
        """Batches are about to go, tombstones below `tombstones_dropped` among them. The job makes durable what only
        they tell: that such are gone, their epochs and their producers, which a start would else find in no batch any
        more.
        """
        dropped = max(self.compaction.tombstones_dropped, tombstones_dropped)
        self.compaction = msgspec.structs.replace(self.compaction, tombstones_dropped=dropped)
        self._epochs_dirty = True
        return self._planned_checkpoint(twice=True)

    def copied_from_compacted(self, end_offset: int) -> None:
        """What is appended comes from a log that is compacted up to `end_offset`."""
        if end_offset > max(self.compaction.compacted_below, self.log_end_offset):
            self.compaction = msgspec.structs.replace(self.compaction, compacted_below=end_offset)

    # -- the log's start ------------------------------------------------------------------------------

    @property
    def copy_start(self) -> int:
        """Where a copy of this log begins: the log start, or the base of the batch that it lies in."""
        try:
            first = next(headers_from(self._segments, self.log_start_offset), None)
        except NOT_A_BATCH:
            first = None  # damage: who reads it says so
        return (
            self.log_start_offset
            if first is None
            else min(first.base_offset, self.log_start_offset)
        )

    def set_log_start(self, offset: int) -> None:
        """Records below `offset` are gone. The next checkpoint removes the segments wholly below."""
        assert offset <= self.log_end_offset, (offset, self.log_end_offset)
        if offset > self.log_start_offset:
            self.log_start_offset = offset
            self.epochs.trim_prefix(offset)
            self._epochs_dirty = True

    @property
    def trim_waits(self) -> bool:
        """Are there segments below the log start that wait for a sync, a snapshot and a checkpoint?"""
        return len(self._segments) > 1 and self._segments[0].end_offset <= self.log_start_offset

    def _below_log_start(self) -> list[Segment]:
        """Take out the segments that may be removed."""
        end = min(self.log_start_offset, self.synced_end_offset, self._snapshot.end_offset)
        removed = []
        while len(self._segments) > 1 and self._segments[0].end_offset <= end:
            removed.append(self._segments.pop(0))
            self._dirty.pop(removed[-1], None)
        return removed

    # -- cuts -----------------------------------------------------------------------------------------

    def truncate_to(self, offset: int) -> None:
        """Cut the log at `offset`, a batch boundary from the log start to the end: T2. In a worker, see above.

        Files, epoch history (also where the cut is the end: B09), producer states and ends are cut, durably.
        Whether the high watermark allows it was asserted before (T3).
        Raises: CorruptLog: no batch ends there, or damage below; nothing has changed. DiskFull: the batches
        have not changed, `synced_end_offset` may be lower until the next sync. OSError: the broker must end.
        """
        assert self.log_start_offset <= offset <= self.log_end_offset, (
            f"cut at {offset}, the log holds {self.log_start_offset} to {self.log_end_offset}"
        )
        epochs = EpochHistory(self.epochs.entries)
        epochs.truncate_to(offset)
        if offset == self.log_end_offset and epochs.entries == self.epochs.entries:
            return
        try:
            producers = self._producers_at(offset)
            last, place = self._place_of(offset)
        except NOT_A_BATCH as error:
            raise CorruptLog(
                f"{self.directory} cannot be cut at {offset}: {error}",
                log_start=self.log_start_offset,
                high_watermark=offset,
            ) from None
        self._cut_small_files(offset, epochs, producers.snapshot(offset))
        self.producers = producers
        if place is None:
            self._remove_all()
            self._begin_at(offset)
            return
        cutting.cut_behind(
            self._storage, self.directory, self._segments[last], place, self._segments[last + 1 :]
        )
        for segment in self._segments[last + 1 :]:
            self._dirty.pop(segment, None)
        del self._segments[last + 1 :]
        self._reserve()
        self._vouch_below(offset)

    def start_anew(
        self,
        offset: int,
        tombstones_dropped: int = 0,
        remembered: Mapping[int, Producer] = MappingProxyType({}),
    ) -> None:
        """Empty the log and let it begin at `offset`: T1. In a worker, see above.

        Epochs and producer states go too. Of the log that is copied from now on: `tombstones_dropped` by it, and what
        it has `remembered` of the producers of what lies below `offset`.
        Raises: DiskFull: as `truncate_to`. OSError: the broker must end.
        """
        # Were this to stop halfway, the next start must find the producers of what is still there.
        start = min(self.log_start_offset, self.synced_end_offset)
        try:
            producers = self._producers_at(start).snapshot(start)
        except NOT_A_BATCH:
            producers = Snapshot(start, {})  # damaged: one more reason to begin anew
        self._cut_small_files(start, EpochHistory(), producers)
        self.compaction = Compaction(tombstones_dropped=tombstones_dropped)
        after = Snapshot(offset, dict(remembered))
        self.producers = ProducerStates(after, self._now_ns)
        self._snapshot = self._snapshot_handed_out = after
        self._remove_all()
        # Until the checkpoint says where the log begins it may be opened at either place, with the producers of that.
        self._files.write_producers(producers, after)
        self._begin_at(offset)
        self._files.replace_producers(after)

    def _place_of(self, offset: int) -> tuple[int, Place | None]:
        """The segment in which the log will end, and where in it; no place if no batch remains."""
        if offset == self.log_start_offset:
            return 0, None
        last = max(i for i, s in enumerate(self._segments) if i == 0 or s.base_offset < offset)
        return last, self._segments[last].place_of(offset)

    def _producers_at(self, offset: int) -> ProducerStates:
        """What the log up to `offset` says of its producers."""
        known = (self._snapshot, self._files.snapshot_within(offset))
        usable = [s for s in known if s is not None and s.end_offset <= offset]
        snapshot = max(usable, key=lambda s: s.end_offset, default=_NOTHING)
        states = ProducerStates(snapshot, self._now_ns)
        for header in headers_from(self._segments, snapshot.end_offset):
            if header.end_offset > offset:
                break
            states.apply(header, header.base_offset, header.append_time_ns, self._now_ns)
        states.complete_from(self.producers, offset)
        return states

    def _cut_small_files(self, offset: int, epochs: EpochHistory, snapshot: Snapshot) -> None:
        """The first half of a cut: nothing says any more that what lies behind `offset` was synced."""
        self._vouch_below(offset)
        before = self._high_watermark, self._snapshot
        self._high_watermark, self._snapshot = min(self._high_watermark, offset), snapshot
        self.compaction = self.compaction.cut(offset)
        value = self._checkpoint_value()
        try:
            self._files.cut(value, EpochTable(list(epochs.entries)), snapshot)
        except OSError as error:
            if error.errno not in _NO_SPACE:
                raise
            self._high_watermark, self._snapshot = before
            self._dirty.update(dict.fromkeys(self._segments))  # what was synced counts again then
            self._forget_checkpoint()
            raise DiskFull(f"no space to cut {self.directory}: {error.strerror}") from None
        self.epochs, self._epochs_dirty = epochs, False
        self._checkpointed, self._snapshot_handed_out, self._snapshot_due_ns = value, snapshot, 0

    def _remove_all(self) -> None:
        """No batch remains."""
        cutting.remove_all(self._storage, self.directory, self._segments)
        self._dirty.clear()

    def _begin_at(self, offset: int) -> None:
        """All files are removed: say that the log begins at `offset`, then make its file."""
        self.log_start_offset = self.synced_end_offset = self._high_watermark = offset
        self._checkpointed = value = self._checkpoint_value()
        self._files.write_twice(value)
        first = Segment(self._storage, self.directory, offset, self.config.index_interval_bytes)
        first.file(create=True)
        self._segments[:] = [first]
        self._reserve()
        self._storage.sync_dir(self.directory)
        self._vouch_below(offset)

    def _reserve(self) -> None:
        active = self._segments[-1]
        self._allocation = ALLOCATION_MIN
        room = self.config.segment_bytes - active.size
        cutting.reserve(active, min(self._allocation, room))
        self._dirty[active] = (
            None  # the next sync moves the synced end also where this one began nothing
        )

    # -- closing --------------------------------------------------------------------------------------

    def close(self, high_watermark: int) -> None:
        """A clean stop: everything synced, the preallocation given back, a checkpoint. In the caller's thread."""
        active = self._segments[-1]
        active.give_back()
        self._storage.unlink(self._spare_path)
        self._dirty[active] = None
        self._sync_all()
        self._high_watermark = high_watermark
        self._snapshot = self.producers.snapshot(self.log_end_offset)
        job = self._planned_checkpoint(self._below_log_start())
        if not active.index_saved:
            job.sealed.append(active)
        job.run()
        self.close_files()

    def close_files(self) -> None:
        """Let go of all descriptors, as a kill would."""
        for segment in self._segments:
            segment.close()


def move_to_deleted(storage: Storage, data_dir: str, log: Log) -> None:
    """A deleted topic's partition: rename its directory out of the way, durably, then remove it."""
    log.close_files()
    opened.forget(storage, log.directory, log.topic_id)
    target = f"{data_dir}/{paths.deleted_dir(log.topic_id, log.partition)}"
    try:
        storage.make_dir(f"{data_dir}/{paths.DELETED}")
        storage.rename(log.directory, target)
        storage.sync_dir(data_dir)
    except OSError as error:
        if error.errno not in _NO_SPACE:
            raise
        target = log.directory  # a full disk: to make room is what this is for
    storage.remove_tree(target)
