"""Which segments are compacted, when, and what a pass may drop: decisions only, no files.

    clean                 dirty                     not yet
    |---------------------|-------------------------|------------------|
    log start             cleaned                   cleanable end      log end

A *pass* notes the newest offset of every key from `cleaned` on, up to its end, and rewrites every cleanable segment
below that end without the records that a newer one of their key replaces. So below the end of a pass each key stands
once: whatever was there before a tombstone is gone once the pass that saw the tombstone is complete, and only
`delete_retention` after that may a later pass drop the tombstone itself.

Cleanable is a prefix of the sealed segments: below the high watermark and the synced end, since what is not committed
may still be cut, and old enough. Age is append time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import msgspec

from shmlog.clock import NS_PER_MS
from shmlog.log.retention import may_delete
from shmlog.settings import TopicConfig

PASSES_MAX = 16  # remembered of one log, while their tombstones wait


class SegmentFacts(NamedTuple):
    """A sealed segment. `size` in bytes of batches; the append times of its first and last batch in ns."""

    base_offset: int
    end_offset: int
    size: int
    first_append_time_ns: int
    last_append_time_ns: int


class Compaction(msgspec.Struct, frozen=True):
    """What a log remembers of its compaction; part of the checkpoint.

    `passes`: (end, wall clock in ns when it was complete), both rising. `tombstones_dropped`: no tombstone at or above
    it was ever dropped here, nor was one missing in what this log was copied from. `compacted_below`: no record at or
    above it has replaced one that is gone from here. `oldest_tombstone`: a later pass may drop one from there on; -1:
    there is none.
    """

    passes: tuple[tuple[int, int], ...] = ()
    tombstones_dropped: int = 0
    compacted_below: int = 0
    oldest_tombstone: int = -1

    @property
    def cleaned(self) -> int:
        """The end of the last complete pass."""
        return self.passes[-1][0] if self.passes else 0

    def horizon(self, now_ns: int, retention_ns: int) -> int:
        """Tombstones below it have been kept long enough."""
        return max((end for end, at in self.passes if now_ns - at >= retention_ns), default=0)

    def completed(
        self, end_offset: int, oldest_tombstone: int, now_ns: int, retention_ns: int
    ) -> Compaction:
        """A pass up to `end_offset` is complete."""
        due = self.horizon(now_ns, retention_ns)
        passes = [entry for entry in self.passes if entry[0] >= due]
        # A clock that went back must not make them fall; tombstones of a forgotten pass wait as long as the next one's.
        at = max(now_ns, passes[-1][1]) if passes else now_ns
        if len(passes) >= PASSES_MAX:
            del passes[1]
        if passes and passes[-1][0] == end_offset:
            return msgspec.structs.replace(
                self, passes=tuple(passes), oldest_tombstone=oldest_tombstone
            )
        return msgspec.structs.replace(
            self,
            passes=(*passes, (end_offset, at)),
            compacted_below=max(self.compacted_below, end_offset),
            oldest_tombstone=oldest_tombstone,
        )

    def cut(self, end_offset: int) -> Compaction:
        """The log ends at `end_offset` now: what was seen behind it was seen for nothing."""
        if max(self.cleaned, self.tombstones_dropped) <= end_offset:
            return self
        passes = [(end, at) for end, at in self.passes if end <= end_offset]
        below = [at for end, at in self.passes if end > end_offset]
        if below and end_offset > max((end for end, _ in passes), default=0):
            passes.append((end_offset, below[0]))
        return msgspec.structs.replace(
            self,
            passes=tuple(passes),
            tombstones_dropped=min(self.tombstones_dropped, end_offset),
        )


@dataclass(frozen=True, slots=True)
class Plan:
    """A pass that is due: the segments to be rewritten, in groups that become one segment each.

    `map_from`: the first offset whose key is noted. `tombstones_below`: those below may go.
    """

    groups: tuple[tuple[SegmentFacts, ...], ...]
    map_from: int
    end_offset: int
    tombstones_below: int


def plan(
    segments: Sequence[SegmentFacts],
    done: Compaction,
    config: TopicConfig,
    *,
    safe_end: int,
    tombstones_end: int,
    now_ns: int,
) -> Plan | None:
    """The pass that is due at wall clock `now_ns`; None if none is.

    `segments`: the sealed ones, in order. `safe_end`: committed and synced below. `tombstones_end`: others still have
    to see the tombstones from there on.
    """
    cleanable = _cleanable(segments, config, safe_end, now_ns)
    if not cleanable:
        return None
    end = cleanable[-1].end_offset
    horizon = done.horizon(now_ns, config.delete_retention * NS_PER_MS)
    tombstones_below = min(horizon, tombstones_end, end)
    waiting = 0 <= done.oldest_tombstone < tombstones_below
    if not (waiting or _is_due(cleanable, done.cleaned, config, now_ns)):
        return None
    groups = _groups(cleanable, config)
    return Plan(groups, min(done.cleaned, end), end, tombstones_below)


def wants_roll(
    first_append_time_ns: int, high_watermark_reached: bool, config: TopicConfig, now_ns: int
) -> bool:
    """Is the active segment to be sealed, since its first record has waited `max_compaction_lag`?"""
    lag_ns = config.max_compaction_lag * NS_PER_MS
    return high_watermark_reached and lag_ns >= 0 and now_ns - first_append_time_ns >= lag_ns


def _cleanable(
    segments: Sequence[SegmentFacts], config: TopicConfig, safe_end: int, now_ns: int
) -> list[SegmentFacts]:
    lag_ns = config.min_compaction_lag * NS_PER_MS
    found = []
    for segment in segments:
        young = lag_ns > 0 and now_ns - segment.last_append_time_ns < lag_ns
        if segment.end_offset > safe_end or young:
            break
        found.append(segment)
    return found


def _is_due(
    cleanable: Sequence[SegmentFacts], cleaned: int, config: TopicConfig, now_ns: int
) -> bool:
    dirty = [segment for segment in cleanable if segment.end_offset > cleaned]
    if not dirty:
        return False
    lag_ns = config.max_compaction_lag * NS_PER_MS
    if lag_ns >= 0 and now_ns - dirty[0].first_append_time_ns >= lag_ns:
        return True
    total = sum(segment.size for segment in cleanable)
    dirty_bytes = sum(segment.size for segment in dirty)
    return dirty_bytes > 0 and dirty_bytes >= config.min_cleanable_dirty_ratio * total


def _groups(
    segments: Sequence[SegmentFacts], config: TopicConfig
) -> tuple[tuple[SegmentFacts, ...], ...]:
    """Neighbours that are no more than one segment may be: what a pass shrinks, the next one merges.

    In a segment append times never fall; and where retention deletes by age, it spans no more than `segment_age`.
    """
    span_ns = config.roll_after_ms * NS_PER_MS if may_delete(config) else 1 << 63
    groups: list[list[SegmentFacts]] = []
    size = 0
    for segment in segments:
        fits = groups and (
            size + segment.size <= config.segment_bytes
            and groups[-1][-1].last_append_time_ns <= segment.first_append_time_ns
            and segment.last_append_time_ns - groups[-1][0].first_append_time_ns <= span_ns
        )
        if fits:
            groups[-1].append(segment)
            size += segment.size
        else:
            groups.append([segment])
            size = segment.size
    return tuple(map(tuple, groups))
