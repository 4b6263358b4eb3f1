"""Compaction of the hosted partitions: which one is next, and the swaps of what its pass has made.

    turn, each second: a pass is due --COMPACT--> made --FILES--> what is dropped, and the epochs, are written down
        --FILES--> open the first new segment, swap it in memory --FILES--> on disk --> the next one --> complete

One pass at a time, each replica for itself. Swaps go from the oldest segment on, so that a tombstone is never gone
before what it deleted; and each is begun only while the log is what it was when the pass began. A pass that is given
up leaves nothing but files that are removed; what it has swapped by then was right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from node import journal
from node.io.compactor import Compactor
from node.io.workers import Lane, Workers, is_no_space
from node.partition import Partition
from shmlog.clock import NS_PER_MS, NS_PER_S, Clock
from shmlog.errors import DiskFull
from shmlog.log.cleaner import remove_cleaned
from shmlog.log.cleaning import Plan, plan, wants_roll
from shmlog.log.cleaning_task import CleaningResult
from shmlog.log.jobs import CheckpointJob
from shmlog.log.segment import Segment
from shmlog.log.storage import Storage
from shmlog.log.swapping import SwapJob, open_cleaned

PAUSE_NS = 60 * NS_PER_S  # before a log that could not be compacted is tried again


@dataclass(slots=True, eq=False)
class _Pass:
    """A pass under way. `left`: what it has made and is not swapped yet."""

    partition: Partition
    generation: int
    log_start: int
    result: CleaningResult = CleaningResult()  # noqa: RUF009 - immutable
    left: list[tuple[int, int]] | None = None


class Compaction:
    """One owner: the loop. `changed(partition)`: its checkpoint is due; `grown(partition)`: its sync is."""

    def __init__(
        self,
        clock: Clock,
        workers: Workers,
        storage: Storage,
        compactor: Compactor,
        is_hosted: Callable[[Partition], bool],
        is_clock_doubtful: Callable[[], bool],
        changed: Callable[[Partition], None],
        grown: Callable[[Partition], None],
    ) -> None:
        self._clock = clock
        self._workers = workers
        self._storage = storage
        self._compactor = compactor
        self._is_hosted = is_hosted
        self._is_clock_doubtful = is_clock_doubtful
        self._changed = changed
        self._grown = grown
        self._pass: _Pass | None = None
        self._paused: dict[Partition, int] = {}
        self._last: Partition | None = None  # whose turn it was

    def turn(self, partitions: Iterable[Partition], now_ns: int) -> None:
        """Begin a pass if one is due and none is under way; seal active segments that have waited too long."""
        compacted = [p for p in partitions if p.config.is_compacted and not p.cutting]
        for partition in compacted:
            self._maybe_roll(partition)
        if self._pass is not None:
            return
        self._paused = {p: at for p, at in self._paused.items() if at > now_ns}
        if self._last in compacted:
            place = compacted.index(self._last) + 1
            compacted = compacted[place:] + compacted[:place]
        for partition in compacted:
            due = None if partition in self._paused else self._plan(partition)
            if due is not None:
                self._begin(partition, due)
                return

    def _plan(self, partition: Partition) -> Plan | None:
        log = partition.log
        return plan(
            log.swaps.facts(),
            log.compaction,
            partition.config,
            safe_end=min(partition.high_watermark, log.compactable_end),
            tombstones_end=0 if self._is_clock_doubtful() else partition.tombstones_end,
            now_ns=self._clock.wall_ns(),
        )

    def _maybe_roll(self, partition: Partition) -> None:
        log = partition.log
        if partition.config.max_compaction_lag < 0 or log.first_active_time_ns < 0:
            return
        committed = partition.high_watermark >= log.log_end_offset
        now_ns = self._clock.wall_ns()
        if not wants_roll(log.first_active_time_ns, committed, partition.config, now_ns):
            return
        try:
            log.roll()
        except DiskFull:
            return  # again in a second
        self._grown(partition)

    # -- one pass -------------------------------------------------------------------------------------

    def _begin(self, partition: Partition, due: Plan) -> None:
        log = partition.log
        self._last = partition
        self._pass = under_way = _Pass(partition, log.generation, log.log_start_offset)
        task = log.cleaning_task(due)
        run = partial(self._compactor.run, task)
        self._workers.submit(Lane.COMPACT, run, partial(self._made, under_way))

    def _goes_on(self, under_way: _Pass) -> bool:
        """Is the log still the one that the pass has read?"""
        partition = under_way.partition
        return (
            self._is_hosted(partition)
            and not partition.cutting
            and partition.log.generation == under_way.generation
        )

    def _give_up(self, under_way: _Pass) -> None:
        self._pass = None
        removal = partial(_remove_if_there, self._storage, under_way.partition.log.directory)
        self._workers.submit(Lane.COMPACT, removal, _raise_error)

    def _made(self, under_way: _Pass, result: object, error: BaseException | None) -> None:
        if error is not None:
            raise error
        assert isinstance(result, CleaningResult)
        partition = under_way.partition
        if not self._goes_on(under_way):
            self._give_up(under_way)
            return
        if result.error:
            if (
                partition.log.log_start_offset == under_way.log_start
            ):  # else files went under its hands
                journal.warning(
                    "compaction failed", partition=str(partition.name), reason=result.error
                )
                self._paused[partition] = self._clock.monotonic_ns() + PAUSE_NS
            self._give_up(under_way)
            return
        under_way.result, under_way.left = result, list(result.made)
        job = partition.log.before_swaps(result.tombstones_dropped)
        self._workers.submit(Lane.FILES, job.run, partial(self._written_down, under_way, job))

    def _written_down(
        self, under_way: _Pass, job: CheckpointJob, _: object, error: BaseException | None
    ) -> None:
        partition = under_way.partition
        if is_no_space(error):
            if self._goes_on(under_way):
                partition.log.checkpoint_failed(job)
                self._changed(partition)
                self._paused[partition] = self._clock.monotonic_ns() + PAUSE_NS
            self._give_up(under_way)
        elif error is not None:
            raise error
        else:
            self._swap_next(under_way)

    def _swap_next(self, under_way: _Pass) -> None:
        if not self._goes_on(under_way):
            self._give_up(under_way)
        elif under_way.left:
            base, end = under_way.left.pop(0)
            log = under_way.partition.log
            opening = partial(
                _open_if_there,
                self._storage,
                log.directory,
                base,
                end,
                log.config.index_interval_bytes,
            )
            self._workers.submit(Lane.FILES, opening, partial(self._opened, under_way))
        else:
            self._complete(under_way)

    def _opened(self, under_way: _Pass, segment: object, error: BaseException | None) -> None:
        if error is not None:
            raise error
        job = None
        if isinstance(segment, Segment):
            if self._goes_on(under_way):
                job = under_way.partition.log.swaps.begin(segment)
            if job is None:
                segment.close()
        if job is None:
            self._give_up(under_way)
            return
        self._workers.submit(Lane.FILES, job.run, partial(self._swapped, under_way, job))

    def _swapped(
        self, under_way: _Pass, job: SwapJob, _: object, error: BaseException | None
    ) -> None:
        partition = under_way.partition
        if not self._is_hosted(partition):
            job.segment.close()
        elif job.begun or not partition.cutting:
            partition.log.swaps.finish(job)
        if error is None:
            self._swap_next(under_way)
        elif is_no_space(error) and not job.begun:
            self._paused[partition] = self._clock.monotonic_ns() + PAUSE_NS
            self._give_up(under_way)
        else:
            raise error

    def _complete(self, under_way: _Pass) -> None:
        partition, result = under_way.partition, under_way.result
        self._pass = None
        log = partition.log
        retention_ns = partition.config.delete_retention * NS_PER_MS
        log.compaction = log.compaction.completed(
            result.end_offset, result.oldest_tombstone, self._clock.wall_ns(), retention_ns
        )
        partition.window.drop_below(result.end_offset)
        self._changed(partition)
        journal.event(
            "compacted",
            partition=str(partition.name),
            end_offset=result.end_offset,
            records=[result.records_before, result.records_after],
            bytes=[result.bytes_before, result.bytes_after],
        )


# A topic may be deleted, or a log begun anew, at any moment of a pass.


def _open_if_there(
    storage: Storage, directory: str, base_offset: int, end_offset: int, interval_bytes: int
) -> Segment | None:
    try:
        return open_cleaned(storage, directory, base_offset, end_offset, interval_bytes)
    except FileNotFoundError:
        return None


def _remove_if_there(storage: Storage, directory: str) -> None:
    try:
        remove_cleaned(storage, directory)
    except FileNotFoundError:
        pass


def _raise_error(_: object, error: BaseException | None) -> None:
    if error is not None:
        raise error
