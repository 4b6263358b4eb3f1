"""Segments as one log: append, read, find by time, sync, recover. It knows no ring and no replica.

The loop's thread appends and reads; everything that may take long (sync, preallocation, checkpoints, unlink) is
handed out as a job. Order of durability: data, then names, then what relies on both (recovery point).

Invariants: log_start_offset <= synced_end_offset <= log_end_offset; the recovery point on disk never exceeds
the synced end; offsets are contiguous over all segments.
"""

from __future__ import annotations

import errno
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from shmlog.errors import Backpressure, CorruptLog, DiskFull, OffsetOutOfRange
from shmlog.log import checkpoint, opened, paths, recovery
from shmlog.log.checkpoint import Checkpoint, EpochHistory, EpochTable
from shmlog.log.index import Stretch
from shmlog.log.jobs import AllocationJob, CallJob, Job, SyncJob
from shmlog.log.producers import ProducerStates, Snapshot
from shmlog.log.recovery import RecoveryReport
from shmlog.log.segment import NOT_A_BATCH, READ_BYTES_MIN, Segment
from shmlog.log.storage import Buffer, Storage
from shmlog.records.batch import RecordBatch
from shmlog.records.header import BatchHeader, check_body_crc, check_header_crc
from shmlog.settings import MIB, TopicConfig

ALLOCATION_MIN, ALLOCATION_MAX = 4 * MIB, 16 * MIB
SNAPSHOT_INTERVAL_NS = 1_000_000_000
SEALED_OPEN_MAX = 4
OPEN_FILES_MAX = 1 + SEALED_OPEN_MAX  # descriptors of one log
SEARCH_BYTES = 64 << 10
# A search for what lies behind damage, in a turn: what only looks like batches must not hold up everybody.
SEARCH_HEADERS_MAX, SEARCH_BODIES_BYTES_MAX = 4096, 32 * MIB
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


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
        self._directory_dirty = False
        self._epochs_dirty = False
        # At or below the synced end. Invariant: on disk before a checkpoint or an unlink relies on it.
        self._snapshot = Snapshot(0, {})
        self._snapshot_handed_out: Snapshot | None = None
        self._snapshot_due_ns = 0
        self._now_ns = 0
        self._checkpointed: Checkpoint | None = None
        self._allocation = ALLOCATION_MIN

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
        missing_ok: bool = False,
    ) -> Log:
        """Open or make a partition's log, and recover it after an unclean stop.

        `missing_ok`: what was here and is gone begins anew, and `recovery.missing` says so; else it is refused.
        Raises: CorruptLog: damage that is no torn tail; nothing has been changed. OSError. No descriptor
        stays open then.
        """
        log = cls(storage, directory, topic_id, partition, config)
        found, newest = log._set_foreign_aside()
        if found is None:
            log._check_not_lost(missing_ok)
        if not storage.exists(directory):
            storage.make_dir(directory)
            storage.sync_dir(directory.rpartition("/")[0] or ".")
        try:
            log._recover(found, newest, same_boot=same_boot, clean=clean, now_ns=now_ns)
            log._remember()
        except BaseException:
            log.close_files()
            raise
        return log

    def _check_not_lost(self, missing_ok: bool) -> None:
        """There is no checkpoint: a new partition, one whose checkpoint is damaged, or one that was lost."""
        if not opened.was_opened(self._storage, self.directory, self.topic_id):
            return
        exists = self._storage.exists(self.directory)
        names = self._storage.list(self.directory) if exists else []
        if any(paths.parse_segment_log(name) is not None for name in names):
            return  # the batches say what there is
        if not missing_ok:
            what = "is empty" if exists else "is gone"
            raise CorruptLog(
                f"{self.directory} {what}, and it held a log at an earlier start: put it back from a copy, or "
                f"remove {opened.mark_path(self.directory)} to begin with an empty one",
                log_start=0,
                high_watermark=-1,
            )
        self.recovery.missing = True

    def _remember(self) -> None:
        if not opened.was_opened(self._storage, self.directory, self.topic_id):
            try:
                opened.remember(self._storage, self.directory, self.topic_id)
            except OSError as error:
                if error.errno not in _NO_SPACE:
                    raise  # else the next start tries again

    def _set_foreign_aside(self) -> tuple[Checkpoint | None, bool]:
        """The directory's checkpoint. One of another topic id means another topic's: kept, renamed."""
        path = f"{self.directory}/{paths.CHECKPOINT}"
        found = checkpoint.read(self._storage, path, Checkpoint)
        newest = checkpoint.read_one(self._storage, path, Checkpoint) is not None
        if found is None or found.topic_id == self.topic_id:
            return found, newest
        number = 0
        while self._storage.exists(aside := paths.stray_dir(self.directory, number)):
            number += 1
        self._storage.rename(self.directory, aside)
        self._storage.sync_dir(self.directory.rpartition("/")[0] or ".")
        return None, False

    def _recover(
        self,
        found: Checkpoint | None,
        newest: bool,
        *,
        same_boot: bool,
        clean: bool,
        now_ns: int,
    ) -> None:
        names = self._storage.list(self.directory)
        bases = sorted(b for b in map(paths.parse_segment_log, names) if b is not None)
        mark = max(found.recovery_point, found.high_watermark) if found else 0
        log_start = found.log_start if found else 0
        if bases and newest and bases[0] > log_start:
            self._missing(log_start, bases[0])
        if not bases and mark > 0:
            self._missing(log_start, mark)
        bases = self._remove_trimmed(bases, log_start)
        for place, base in enumerate(bases):
            next_base = bases[place + 1] if place + 1 < len(bases) else None
            if not self._recover_segment(base, next_base, mark, same_boot=same_boot):
                self._drop_segments_behind(bases[place + 1 :])
                break
        if not self._segments:
            self._segments.append(self._make_segment(0))
        if mark > self.log_end_offset:
            self._missing(self.log_end_offset, mark)
        self.log_start_offset = max(log_start, self._segments[0].base_offset)
        self._recover_epochs(found.recovery_point if found and newest else 0)
        self._recover_producers(now_ns)
        if not clean:
            self._rewrite(mark)
        self._sync_all()
        for segment in self._segments[:-1]:
            segment.close()
        self._snapshot = self.producers.snapshot(self.log_end_offset)
        self._checkpointed = found if newest else None
        self._write_recovered(known=found is not None)

    def _write_recovered(self, *, known: bool) -> None:
        """Write the checkpoint, unless the one that was found says the same already: a full disk must not
        keep a log from being opened. What a log that is `known` has found out is found out again."""
        value = self._checkpoint_value(self.log_end_offset)
        if value == self._checkpointed and not self._epochs_dirty:
            return
        epochs = EpochTable(list(self.epochs.entries)) if self._epochs_dirty else None
        try:
            self._write_files(value, epochs, self._snapshot, [])
        except OSError as error:
            if not known or error.errno not in _NO_SPACE:
                raise
            self.forget_checkpoint()
            return
        self._epochs_dirty = False
        self._checkpointed, self._snapshot_handed_out = value, self._snapshot

    def _remove_trimmed(self, bases: list[int], log_start: int) -> list[int]:
        """Finish a trim that a crash has stopped; some of its unlinks may have been lost, in any order."""
        kept = [
            base
            for base, end in zip(bases, [*bases[1:], None], strict=False)
            if end is None or end > log_start
        ]
        for base in bases[: len(bases) - len(kept)]:
            self._storage.unlink(f"{self.directory}/{paths.segment_log(base)}")
            self._storage.unlink(f"{self.directory}/{paths.segment_index(base)}")
        return kept

    def _missing(self, first: int, end: int) -> None:
        raise CorruptLog(
            f"{self.directory}: offsets {first} to {end} were synced and are missing",
            log_start=first,
            high_watermark=end,
        )

    def _recover_segment(
        self, base: int, next_base: int | None, mark: int, *, same_boot: bool
    ) -> bool:
        """Take one segment in; False if the log ends in it although there are more."""
        segment = Segment(self._storage, self.directory, base, self.config.index_interval_bytes)
        try:
            return self._take_in(segment, next_base, mark, same_boot=same_boot)
        except BaseException:
            segment.close()
            raise

    def _take_in(
        self, segment: Segment, next_base: int | None, mark: int, *, same_boot: bool
    ) -> bool:
        base = segment.base_offset
        if self._segments and base != self._segments[-1].end_offset:
            self._rot(
                f"{segment.path} begins at {base}, the one before ends at {self._segments[-1].end_offset}",
                self._segments[-1].end_offset,
                base,
            )
        if next_base is not None and next_base <= mark and segment.load_index(next_base):
            self._segments.append(segment)
            return True
        file_size = segment.file().size()
        if self._segments:
            segment.last_append_time_ns = self.last_append_time_ns
        damage = recovery.scan(segment, self.topic_id, self.partition, mark, file_size=file_size)
        self.recovery.scanned_bytes += segment.size
        self.recovery.rebuilt_indexes += 1
        short = next_base is not None and segment.end_offset < next_base
        if damage is not None:
            torn = damage.valid_behind is None and next_base is None
            if damage.below_mark or damage.misplaced or (same_boot and not torn):
                self._rot(str(damage), damage.offset, damage.end_offset)
        elif short and (same_boot or segment.end_offset < mark):
            self._rot(f"{segment.path} ends early", segment.end_offset, next_base or mark)
        if damage is not None:
            self.recovery.cut_bytes += file_size - segment.size
            segment.cut(segment.size, segment.end_offset)
            segment.file().sync()
        else:
            segment.allocated = file_size
        self._segments.append(segment)
        return next_base is None or segment.end_offset == next_base

    def _rot(self, text: str, first: int, end: int) -> None:
        raise CorruptLog(
            f"damaged, offsets {first} to {end}: {text}", log_start=first, high_watermark=end
        )

    def _drop_segments_behind(self, bases: list[int]) -> None:
        """After a reboot the log ends at the first bad batch: what lies behind is set aside, not deleted."""
        for base in bases:
            path = f"{self.directory}/{paths.segment_log(base)}"
            self._storage.rename(path, f"{path}.corrupt")
            self._storage.unlink(f"{self.directory}/{paths.segment_index(base)}")
        self._storage.sync_dir(self.directory)

    def _recover_epochs(self, recovery_point: int) -> None:
        # Written before the checkpoint whose recovery point this is: below it the table has all there is.
        # An older generation may lack epochs, so it is not used at all.
        path = f"{self.directory}/{paths.EPOCHS}"
        table = checkpoint.read_one(self._storage, path, EpochTable)
        if table and not (table.entries and table.entries[0][1] <= self.log_start_offset):
            table = None  # trimmed for a log start that was not written any more
        self.epochs = EpochHistory(table.entries if table else [])
        self.epochs.truncate_to(self.log_end_offset)
        for header in self._headers_from(recovery_point if table else 0):
            if self.epochs.assign(header.leader_epoch, header.base_offset):
                self._epochs_dirty = True
        self.epochs.trim_prefix(self.log_start_offset)

    def _headers_from(self, offset: int) -> Iterator[BatchHeader]:
        """The headers of all batches that begin at or behind `offset`."""
        for segment in self._segments:
            if segment.end_offset <= offset:
                continue
            start = max(offset, segment.base_offset)
            for found in segment.walk(segment.index.position_for_offset(start)):
                if found.header.base_offset >= offset:
                    yield found.header

    def _recover_producers(self, now_ns: int) -> None:
        path = f"{self.directory}/{paths.PRODUCERS}"
        snapshot = checkpoint.read(self._storage, path, Snapshot)
        if snapshot is not None and snapshot.end_offset > self.log_end_offset:
            snapshot = None  # it knows of batches that a power cut took
        self.producers = ProducerStates(snapshot, now_ns)
        for header in self._headers_from(snapshot.end_offset if snapshot else 0):
            self.producers.apply(header, header.base_offset, header.append_time_ns, now_ns)

    def _rewrite(self, mark: int) -> None:
        """Write what lies above the recovery point once more, so that the next sync covers it.

        After a sync that failed Linux marks the pages clean although they never reached the disk (ATC'20,
        "Can Applications Recover from fsync Failures?"); only writing them again makes them dirty.
        """
        for segment in self._segments:
            if segment.end_offset <= mark:
                continue
            position = segment.index.position_for_offset(max(mark, segment.base_offset))
            while position < segment.size:
                piece = segment.file().pread(min(4 * MIB, segment.size - position), position)
                segment.file().pwrite([piece], position)
                position += len(piece)
                self.recovery.rewritten_bytes += len(piece)
            self._dirty[segment] = None

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

    @property
    def segment_count(self) -> int:
        """How many segments there are."""
        return len(self._segments)

    # -- append ---------------------------------------------------------------------------------------

    def append(self, batches: Sequence[tuple[BatchHeader, Buffer]], now_ns: int) -> None:
        """Write stamped batches, contiguous from `log_end_offset`: one write a segment.

        Raises: DiskFull: nothing has changed. OSError: the broker must end.
        """
        assert batches[0][0].base_offset == self.log_end_offset, (
            f"batch at {batches[0][0].base_offset}, the log ends at {self.log_end_offset}"
        )
        self._now_ns = now_ns
        count, active = len(self._segments), self._segments[-1]
        before = (active.size, active.end_offset, active.last_append_time_ns)
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
        start, size = 0, self._segments[-1].size
        for place, (header, _) in enumerate(batches):
            if size and size + header.batch_size > self.config.segment_bytes:
                self._write(batches[start:place])
                self._roll(header.base_offset)
                start, size = place, 0
            size += header.batch_size
        self._write(batches[start:])

    def _write(self, batches: Sequence[tuple[BatchHeader, Buffer]]) -> None:
        if batches:
            segment = self._segments[-1]
            segment.append(batches)
            self._dirty[segment] = None

    def _roll(self, base_offset: int) -> None:
        self._segments.append(self._make_segment(base_offset))
        self._directory_dirty = True

    def _make_segment(self, base_offset: int) -> Segment:
        segment = Segment(
            self._storage, self.directory, base_offset, self.config.index_interval_bytes
        )
        if self._segments:
            segment.last_append_time_ns = (
                self.last_append_time_ns
            )  # never falls from one to the next
        segment.file(create=True)
        self._directory_dirty = True
        return segment

    def _take_back(self, count: int, before: tuple[int, int, int]) -> None:
        while len(self._segments) > count:
            segment = self._segments.pop()
            self._dirty.pop(segment, None)
            segment.close()
            segment.unlink()
        active = self._segments[-1]
        active.cut(before[0], before[1])
        active.last_append_time_ns = before[2]
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
                f"offset {offset}: {self.directory} holds {self.log_start_offset} to "
                f"{self.log_end_offset}",
                log_start=self.log_start_offset,
                high_watermark=end_offset,
            )
        if offset >= end_offset:
            return b""
        segment = self._segment_for(offset)
        try:
            return self._read_segment(segment, offset, max_bytes, end_offset)
        finally:
            self._close_cold(segment)

    def _read_segment(
        self, segment: Segment, offset: int, max_bytes: int, end_offset: int
    ) -> bytes:
        expected, place = segment.index.entry_for_offset(offset)
        while True:
            pieces, place, expected, reason = self._gather(
                segment, place, expected, offset, max_bytes, end_offset
            )
            if pieces or not reason:
                return b"".join(pieces)  # damage behind them is named when it is asked for
            behind, following = self._behind(segment, place, expected)
            if behind < 0 or following > offset:
                raise self._damaged(segment, place, expected, following, reason)
            # All of the damage lies before what was asked for, on the way from the index's entry.
            place, expected = behind, following

    def _gather(
        self,
        segment: Segment,
        place: int,
        expected: int,
        offset: int,
        max_bytes: int,
        end_offset: int,
    ) -> tuple[list[memoryview], int, int, str]:
        """Walk from the batch at `place`, which begins at offset `expected`, and take what is wanted.

        Returns it with the place and offset where the walk stopped, and the damage that stopped it or "".
        """
        pieces: list[memoryview] = []
        size = 0
        window = max(READ_BYTES_MIN, min(max_bytes + self.config.index_interval_bytes, 4 * MIB))
        try:
            for found in segment.walk(place, read_bytes=window):
                header, place = found.header, found.position
                if header.base_offset != expected or header.topic_id != self.topic_id:
                    reason = f"a batch at offset {header.base_offset}, expected {expected}"
                    return pieces, place, expected, reason
                if pieces and (expected >= end_offset or size + header.batch_size > max_bytes):
                    return pieces, place, expected, ""
                # The header CRC vouches for base offset and size, the body CRC for the number of
                # records: without both a batch cannot even be passed over.
                check_header_crc(found.data, header)
                check_body_crc(found.data, header)
                if header.end_offset > end_offset:
                    return pieces, place, expected, ""
                expected, place = header.end_offset, found.position + header.batch_size
                if expected > offset:
                    pieces.append(found.data)
                    size += header.batch_size
        except NOT_A_BATCH as error:
            return pieces, place, expected, str(error)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return pieces, place, expected, f"the device cannot read it: {error.strerror}"
        return pieces, place, expected, "the segment ends"

    def _behind(self, segment: Segment, position: int, offset: int) -> tuple[int, int]:
        """(position, offset) of the first whole batch behind damage; (-1, the segment's end) if none."""
        try:
            effort = recovery.Effort(SEARCH_HEADERS_MAX, SEARCH_BODIES_BYTES_MAX)
            place, following = recovery.extent(
                segment, position, segment.size, self.topic_id, offset, effort
            )
        except OSError:
            place = following = None  # the device cannot say
        if place is None or following is None:
            return -1, segment.end_offset
        return place, following

    def _damaged(
        self, segment: Segment, position: int, offset: int, end_offset: int, reason: str
    ) -> CorruptLog:
        return CorruptLog(
            f"{segment.path} is damaged at position {position}, offsets {offset} to {end_offset}: "
            f"{reason}",
            log_start=offset,
            high_watermark=end_offset,
        )

    def _segment_for(self, offset: int) -> Segment:
        return self._segments[bisect_right(self._segments, offset, key=_base_offset) - 1]

    def _close_cold(self, used: Segment) -> None:
        """Keep few descriptors of sealed segments open; never close one that waits for a sync."""
        opened = [s for s in self._segments[:-1] if s.is_open and s not in self._dirty]
        for segment in opened[: max(0, len(opened) - SEALED_OPEN_MAX)]:
            if segment is not used and segment.index_saved:
                segment.close()

    def offset_for_time(
        self, timestamp_ns: int, end_offset: int, enough: Callable[[], bool] = lambda: False
    ) -> tuple[int, int] | None:
        """(offset, timestamp) of the first record, in offset order, at or after a time; None if there is none.

        Exact to the record also where timestamps are out of order.
        Raises: Backpressure: `enough` was searched for now. Asked again, the search goes on behind that.
        """
        for segment in self._segments:
            if segment.base_offset >= end_offset:
                break
            if (
                segment.end_offset > self.log_start_offset
                and segment.index.max_timestamp_ns >= timestamp_ns
            ):
                answer = self._first_created(segment, timestamp_ns, end_offset, enough)
                if answer is not None:
                    return answer
        return None

    def _first_created(
        self,
        segment: Segment,
        timestamp_ns: int,
        end_offset: int,
        enough: Callable[[], bool],
    ) -> tuple[int, int] | None:
        index = segment.index
        for stretch in index.stretches_for_time(timestamp_ns, self.log_start_offset):
            answer = self._first_created_in(segment, stretch, timestamp_ns, end_offset)
            if answer is not None:
                return answer
            if enough():
                raise Backpressure("enough searched for one turn: ask again", retry_after_ms=1)
        return None

    def _first_created_in(
        self, segment: Segment, stretch: Stretch, timestamp_ns: int, end_offset: int
    ) -> tuple[int, int] | None:
        newest_ns = -1
        for header, data in self._checked(segment, stretch.position, stretch.end):
            if header.base_offset >= end_offset:
                return None
            if header.end_offset <= self.log_start_offset:
                continue
            newest_ns = max(newest_ns, header.max_timestamp_ns)
            if header.max_timestamp_ns < timestamp_ns:
                continue
            times = RecordBatch(data, header, check_crc=False).timestamps
            first = max(0, self.log_start_offset - header.base_offset)
            hits = (times[first:] >= timestamp_ns).nonzero()[0]
            if len(hits):
                index = first + int(hits[0])
                return header.base_offset + index, int(times[index])
        segment.index.learn(stretch.place, newest_ns)
        return None

    def _checked(
        self, segment: Segment, position: int, end: int | None
    ) -> Iterator[tuple[BatchHeader, memoryview]]:
        place, expected = position, -1
        try:
            for found in segment.walk(position, read_bytes=SEARCH_BYTES, end=end):
                place = found.position
                check_header_crc(found.data, found.header)
                check_body_crc(found.data, found.header)
                expected = found.header.end_offset
                yield found.header, found.data
        except NOT_A_BATCH as error:
            first = max(expected, segment.base_offset)
            _, end_offset = self._behind(segment, place, first)
            raise self._damaged(segment, place, first, end_offset, str(error)) from None
        finally:
            self._close_cold(segment)

    def last_epoch_before(self, offset: int) -> int:
        """The leader epoch of the record before `offset`; -1 if there is none."""
        return self.epochs.epoch_for(offset - 1) if offset > self.log_start_offset else -1

    # -- jobs -----------------------------------------------------------------------------------------

    def sync_job(self) -> SyncJob | None:
        """Make all that is written so far durable; None if it is."""
        if not self._dirty and not self._directory_dirty:
            return None
        snapshot = None
        if self._now_ns >= self._snapshot_due_ns or len(self._dirty) > 1 or self.trim_waits:
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
        return job

    def finish_sync(self, job: SyncJob) -> None:
        """The job has run: what was written when it was made is durable, less what was cut since."""
        self.synced_end_offset = max(
            self.synced_end_offset, min(job.end_offset, self.log_end_offset)
        )
        if job.snapshot is not None and job.snapshot.end_offset <= self.log_end_offset:
            self._snapshot = job.snapshot

    def allocation_job(self) -> AllocationJob | None:
        """Preallocate the next step of the active segment; None while there is enough."""
        segment = self._segments[-1]
        if segment.size + self._allocation // 2 < segment.allocated:
            return None
        start = max(segment.allocated, segment.size)
        size = min(self._allocation, self.config.segment_bytes - start)
        if size <= 0:
            return None
        self._allocation = min(2 * self._allocation, ALLOCATION_MAX)
        return AllocationJob(segment, segment.file().dup(), start, size)

    def finish_allocation(self, job: AllocationJob) -> None:
        """The job has run."""
        if job.done:
            job.segment.allocated = max(job.segment.allocated, job.position + job.size)

    def _checkpoint_value(self, high_watermark: int) -> Checkpoint:
        # A log start above the recovery point would, after a power cut, hide what is appended then. One above
        # the producer snapshot would have the next start unlink batches that only the log remembers.
        end = min(self.synced_end_offset, self._snapshot.end_offset)
        return Checkpoint(
            topic_id=self.topic_id,
            log_start=min(self.log_start_offset, end),
            high_watermark=min(high_watermark, self.synced_end_offset),
            recovery_point=self.synced_end_offset,
        )

    def checkpoint_job(self, high_watermark: int) -> Job | None:
        """Write what has changed since the last checkpoint, then unlink what waited for it; None if nothing
        has. Between turns: what the producer states know is written."""
        if self.trim_waits and self.synced_end_offset == self.log_end_offset:
            self._snapshot = self.producers.snapshot(self.log_end_offset)
        removed = self._below_log_start()
        if removed:
            self._checkpointed = None
        job = self._checkpoint_job(high_watermark)
        if job is None or not removed:
            return job
        return CallJob(partial(_write_and_remove, job, removed))

    def _checkpoint_job(self, high_watermark: int) -> Job | None:
        value = self._checkpoint_value(high_watermark)
        sealed = [s for s in self._segments[:-1] if not s.index_saved]
        if value == self._checkpointed and not sealed and not self._epochs_dirty:
            return None
        epochs = EpochTable(list(self.epochs.entries)) if self._epochs_dirty else None
        snapshot = None if self._snapshot is self._snapshot_handed_out else self._snapshot
        self._snapshot_handed_out = self._snapshot
        self._epochs_dirty = False
        self._checkpointed = value
        for segment in sealed:
            segment.index_saved = True
        return CallJob(partial(self._write_files, value, epochs, snapshot, sealed))

    def _write_files(
        self,
        value: Checkpoint,
        epochs: EpochTable | None,
        snapshot: Snapshot | None,
        sealed: list[Segment],
    ) -> None:
        for segment in sealed:
            segment.save_index()
        if epochs is not None:
            checkpoint.write(self._storage, f"{self.directory}/{paths.EPOCHS}", epochs)
        if snapshot is not None:
            checkpoint.write(self._storage, f"{self.directory}/{paths.PRODUCERS}", snapshot)
        checkpoint.write(self._storage, f"{self.directory}/{paths.CHECKPOINT}", value)

    def forget_checkpoint(self) -> None:
        """A checkpoint job failed for lack of space: the next one writes everything."""
        self._checkpointed = self._snapshot_handed_out = None
        self._epochs_dirty = True

    def set_log_start(self, offset: int) -> list[Job]:
        """Records below `offset` are gone; the jobs, in this order, unlink segments wholly below.

        The first job writes the checkpoint: else a start after a kill would miss what was unlinked, and the
        producer snapshot: only it remembers their sequences then. What is not covered by a sync and a
        snapshot yet goes with a later checkpoint (`trim_waits`).
        """
        assert offset <= self.log_end_offset, (offset, self.log_end_offset)
        if offset <= self.log_start_offset:
            return []
        self.log_start_offset = offset
        self.epochs.trim_prefix(offset)
        self._epochs_dirty = True
        removed = self._below_log_start()
        if not removed:
            return []
        known = self._checkpointed.high_watermark if self._checkpointed else 0
        self._snapshot_handed_out = None  # whatever became of the job that has it
        written = self._checkpoint_job(max(known, offset))
        assert written is not None, "the epochs are dirty"
        return [written, *(CallJob(partial(_remove, segment)) for segment in removed)]

    @property
    def trim_waits(self) -> bool:
        """Are there segments below the log start that wait for a sync, a snapshot and a checkpoint?"""
        return len(self._segments) > 1 and self._segments[0].end_offset <= self.log_start_offset

    @property
    def open_files(self) -> int:
        """Descriptors that this log holds."""
        return sum(segment.is_open for segment in self._segments)

    def _below_log_start(self) -> list[Segment]:
        """Take out the segments that lie wholly below the log start, the synced end and the snapshot."""
        end = min(self.log_start_offset, self.synced_end_offset, self._snapshot.end_offset)
        removed = []
        while len(self._segments) > 1 and self._segments[0].end_offset <= end:
            removed.append(self._segments.pop(0))
            self._dirty.pop(removed[-1], None)
        return removed

    def _sync_all(self) -> None:
        job = self.sync_job()
        if job is not None:
            job.run()
            self.finish_sync(job)
        self.synced_end_offset = self.log_end_offset

    def close(self, high_watermark: int) -> None:
        """A clean stop: everything synced, the preallocation given back, a checkpoint. In the caller's thread."""
        active = self._segments[-1]
        active.cut(active.size, active.end_offset)
        self._dirty[active] = None
        self._sync_all()
        unsaved = [s for s in self._segments if not s.index_saved]
        epochs = EpochTable(list(self.epochs.entries)) if self._epochs_dirty else None
        snapshot = self.producers.snapshot(self.log_end_offset)
        self._write_files(self._checkpoint_value(high_watermark), epochs, snapshot, unsaved)
        self.close_files()

    def close_files(self) -> None:
        """Let go of all descriptors, as a kill would."""
        for segment in self._segments:
            segment.close()


def _base_offset(segment: Segment) -> int:
    return segment.base_offset


def _remove(segment: Segment) -> None:
    segment.close()
    segment.unlink()


def _write_and_remove(written: Job, removed: list[Segment]) -> None:
    written.run()
    for segment in removed:
        _remove(segment)


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
