"""What is deleted because it is too old or too much: looked at each second, and when a segment was closed.

    time, size   decided by the leader; a follower copies its log start (replication.py)
    budget       decided by each broker for its replicas, whoever leads them

Deleting is raising the log start to the end of a segment: readers below it get OFFSET_OUT_OF_RANGE from then on, and
the next checkpoint, in a worker, unlinks the files. So a pass costs no I/O but for what closing a segment takes, and
it is spread over turns: PARTITIONS_MAX in each.

Invariant: a log start is raised here to the end of a closed segment at or below the partition's high watermark.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from node import journal
from node.partition import Partition
from node.space import Space
from shmlog.clock import NS_PER_MS, NS_PER_S, Clock
from shmlog.errors import DiskFull
from shmlog.log import retention as plans

CHECK_NS = NS_PER_S
PARTITIONS_MAX = 64  # that are looked at in one turn


class Retention:
    """Of one broker. One owner: the loop.

    `trimmed(partition)` and `rolled(partition)` are called when the log start was raised, a segment closed.
    """

    def __init__(
        self,
        clock: Clock,
        partitions: Mapping[tuple[str, int], Partition],
        space: Space,
        budget_bytes: int,
        trimmed: Callable[[Partition], None],
        rolled: Callable[[Partition], None],
    ) -> None:
        self._clock = clock
        self._partitions = partitions
        self._space = space
        self._budget_bytes = budget_bytes
        self._trimmed = trimmed
        self._rolled = rolled
        self._watch = plans.JumpWatch(clock.wall_ns(), clock.boottime_ns())
        self._paused = False
        self._due_ns = clock.monotonic_ns()
        self._waiting: dict[Partition, None] = {}
        self._in_pass = False

    def written(self, partition: Partition) -> None:
        """The partition's log has grown: if a segment was closed, it is looked at in this turn."""
        if partition.log.has_rolled:
            self._waiting[partition] = None

    def next_deadline_ns(self) -> int:
        """When there is something to do."""
        return self._clock.monotonic_ns() if self._waiting else self._due_ns

    def turn(self, now_ns: int) -> None:
        """Begin a pass when it is time; look at some of the partitions that wait for it."""
        if now_ns >= self._due_ns and not self._in_pass:
            self._due_ns, self._in_pass = now_ns + CHECK_NS, True
            self._space.look()
            self._waiting.update(dict.fromkeys(self._partitions.values()))
        if self._in_pass or self._waiting:
            self.is_clock_doubtful()  # before anything is judged by it
        for partition in list(self._waiting)[:PARTITIONS_MAX]:
            del self._waiting[partition]
            if self._is_here(partition):
                self._look(partition)
        if self._in_pass and not self._waiting:
            self._in_pass = False
            self._keep_budget()

    def _is_here(self, partition: Partition) -> bool:
        open_one = self._partitions.get((partition.name.topic, partition.name.partition))
        return open_one is partition and not partition.cutting

    def is_clock_doubtful(self) -> bool:
        """Was the wall clock set lately? Then nothing is deleted by it. Looked at anew."""
        moved_ns = self._watch.look(self._clock.wall_ns(), self._clock.boottime_ns())
        if moved_ns:
            journal.warning(
                "wall clock was set: deleting by time pauses",
                moved_ms=moved_ns // NS_PER_MS,
                pause_ms=plans.PAUSE_NS // NS_PER_MS,
            )
        elif self._paused and not self._watch.paused:
            journal.event("deleting by time goes on")
        self._paused = self._watch.paused
        return self._paused

    # -- time and size --------------------------------------------------------------------------------

    def _look(self, partition: Partition) -> None:
        log, config = partition.log, partition.config
        log.has_rolled = False
        decides = partition.leader is not None and plans.may_delete(config)
        retention_ms = config.retention if decides and not self._paused else -1
        now_ns, high_watermark = self._clock.wall_ns(), partition.high_watermark
        segments = log.segments
        if plans.wants_roll(
            segments[-1],
            now_ns,
            retention_ms=retention_ms,
            roll_after_ms=config.roll_after_ms,
            log_start=log.log_start_offset,
            high_watermark=high_watermark,
        ):
            self._roll(partition)
            segments = log.segments
        old = plans.too_old(segments, now_ns, retention_ms, high_watermark)
        retention_bytes = config.retention_bytes if decides else -1
        many = plans.too_much(segments, retention_bytes, high_watermark)
        if old or many:
            self._drop(partition, max(old, many), "time" if old >= many else "size")

    def _roll(self, partition: Partition) -> None:
        try:
            partition.log.roll()
        except DiskFull:
            return  # tried again in a second
        partition.log.has_rolled = False  # it is being looked at
        self._rolled(partition)

    def _drop(self, partition: Partition, count: int, rule: str) -> None:
        gone = partition.log.segments[:count]
        before, log_start = partition.log_start, gone[-1].end_offset
        partition.trim(log_start)
        journal.event(
            "retention",
            partition=str(partition.name),
            rule=rule,
            from_offset=before,
            to_offset=log_start,
            bytes=sum(segment.size for segment in gone),
        )
        self._trimmed(partition)

    # -- budget ---------------------------------------------------------------------------------------

    def _keep_budget(self) -> None:
        if self._budget_bytes < 0:
            return
        here = [p for p in self._partitions.values() if not p.cutting]
        excess = sum(p.log.allocated_bytes for p in here) - self._budget_bytes
        if excess > 0:
            excess -= self._make_room([p for p in here if _may_make_room(p)], excess)
        self._space.over_budget(max(0, excess))

    def _make_room(self, partitions: list[Partition], excess: int) -> int:
        """Delete the oldest segments of all; how many bytes become free by that."""
        held = [plans.Held(p.log.segments, p.high_watermark) for p in partitions]
        freed = 0
        for partition, count in zip(partitions, plans.over_budget(held, excess), strict=True):
            if count:
                freed += sum(segment.allocated for segment in partition.log.segments[:count])
                self._drop(partition, count, "budget")
        return freed


def _may_make_room(partition: Partition) -> bool:
    return plans.may_delete(partition.config) and not plans.is_internal(partition.name.topic)
