"""What partitions need beside appends: syncs, preallocation, checkpoints. Done by workers, decided here.

Group commit: a log has at most one sync under way. What is written meanwhile is covered by the next one, which
begins the moment the first has ended, so at `disk` acks wait for at most two syncs however many producers there
are. At `os` a log is synced `sync_interval` after its first write since the last sync.

A failed sync, checkpoint or unlink is an OSError out of `turn`: it ends the broker (what is in the page cache
after a failed sync looks clean and is not). Lack of space for preallocation is only said: the append itself
decides.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from node import journal
from node.io.workers import Lane, Workers, is_no_space
from node.partition import Partition
from shmlog.clock import NS_PER_MS, NS_PER_S, Clock

CHECKPOINT_INTERVAL_NS = NS_PER_S
NO_SPACE_PAUSE_NS = NS_PER_S


class Upkeep:
    """Chores of every hosted partition. `synced(partition)` is called when a sync has ended."""

    def __init__(self, clock: Clock, workers: Workers, synced: Callable[[Partition], None]) -> None:
        self._clock = clock
        self._workers = workers
        self._ended = synced
        self._sync_due: dict[Partition, int] = {}
        self._checkpoint_due: dict[Partition, int] = {}
        self._syncing: set[Partition] = set()
        self._allocating: set[Partition] = set()
        self._checkpointing: set[Partition] = set()
        self._no_space: dict[Partition, int] = {}  # when to try to preallocate again

    def written(self, partition: Partition) -> None:
        """The partition's log has grown."""
        now_ns = self._clock.monotonic_ns()
        self._checkpoint_due.setdefault(partition, now_ns + CHECKPOINT_INTERVAL_NS)
        if partition.config.durability == "disk":
            self._sync_due[partition] = now_ns
        else:
            interval_ns = partition.config.sync_interval * NS_PER_MS
            self._sync_due.setdefault(partition, now_ns + interval_ns)
        if partition not in self._allocating and now_ns >= self._no_space.get(partition, 0):
            self._allocate(partition)

    def trimmed(self, partition: Partition) -> None:
        """The partition's log start has moved: a checkpoint at once."""
        self._checkpoint_due[partition] = self._clock.monotonic_ns()

    def forget(self, partition: Partition) -> None:
        """The partition is closed."""
        self._sync_due.pop(partition, None)
        self._checkpoint_due.pop(partition, None)
        self._no_space.pop(partition, None)
        self._checkpointing.discard(partition)

    def turn(self) -> None:
        """Begin what is due."""
        now_ns = self._clock.monotonic_ns()
        for partition in [p for p, due in self._sync_due.items() if due <= now_ns]:
            if partition not in self._syncing:
                self._sync(partition)
        for partition in [p for p, due in self._checkpoint_due.items() if due <= now_ns]:
            if partition not in self._checkpointing:
                self._checkpoint(partition)

    def next_deadline_ns(self) -> int | None:
        """When something is due next (what already runs comes back by itself)."""
        due = [at for p, at in self._sync_due.items() if p not in self._syncing]
        due += [at for p, at in self._checkpoint_due.items() if p not in self._checkpointing]
        return min(due, default=None)

    def _sync(self, partition: Partition) -> None:
        del self._sync_due[partition]
        job = partition.log.sync_job()
        if job is None:
            return
        self._syncing.add(partition)
        self._workers.submit(Lane.SYNC, job.run, partial(self._synced, partition, job))

    def _synced(
        self, partition: Partition, job: Any, _: object, error: BaseException | None
    ) -> None:
        self._syncing.discard(partition)
        if error is not None:
            raise error
        partition.log.finish_sync(job)
        if not partition.cutting and partition.log.trim_waits:
            self.trimmed(partition)
        self._ended(partition)

    def _allocate(self, partition: Partition) -> None:
        job = partition.log.allocation_job()
        if job is None:
            return
        self._allocating.add(partition)
        self._workers.submit(Lane.FILES, job.run, partial(self._allocated, partition, job))

    def _allocated(
        self, partition: Partition, job: Any, _: object, error: BaseException | None
    ) -> None:
        self._allocating.discard(partition)
        if is_no_space(error):
            # Said once, and tried again after a pause: the disk may be full for long.
            if partition not in self._no_space:
                journal.warning("no space to preallocate", partition=str(partition.name))
            self._no_space[partition] = self._clock.monotonic_ns() + NO_SPACE_PAUSE_NS
        elif error is not None:
            raise error
        else:
            self._no_space.pop(partition, None)
        partition.log.finish_allocation(job)

    def _checkpoint(self, partition: Partition) -> None:
        del self._checkpoint_due[partition]
        job = partition.log.checkpoint_job(partition.high_watermark)
        if job is None:
            return
        self._checkpointing.add(partition)
        self._workers.submit(Lane.FILES, job.run, partial(self._checkpointed, partition, job))

    def _checkpointed(
        self, partition: Partition, job: Any, _: object, error: BaseException | None
    ) -> None:
        forgotten = partition not in self._checkpointing
        self._checkpointing.discard(partition)
        if is_no_space(error):
            journal.warning("no space for a checkpoint", partition=str(partition.name))
            if not forgotten:  # else it is closed, or being cut, and the cut writes its own
                partition.log.checkpoint_failed(job)
                later_ns = self._clock.monotonic_ns() + CHECKPOINT_INTERVAL_NS
                self._checkpoint_due[partition] = later_ns
        elif error is not None:
            raise error
