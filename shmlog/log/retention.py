"""Which segments of a log may go, and when the active one is closed for that. Pure plans over facts of segments.

    time     now - the append time of a segment's newest batch > retention
    size     the partition holds at least retention_bytes without it
    budget   the files of one broker are larger than its budget: the oldest go first, over all partitions

Only whole segments go, from the oldest on, and what is behind one that stays, stays. Never the active one (the last
of the list), never what is not wholly below the high watermark. A plan says how many of the oldest go; the log start
is then the end of the last of them.

Age is append time: what is loaded today is new today, however old its records say they are. Append times never fall
within a segment, but the next segment may begin lower: the leader's clock was far ahead before and was set right. Then
the next one's first append time is the better measure, else such a segment would stay until that wrong time has come.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple, Protocol

from shmlog.clock import NS_PER_MS, NS_PER_S
from shmlog.settings import TopicConfig

JUMP_NS = 60 * NS_PER_S
PAUSE_NS = 600 * NS_PER_S


class SegmentFacts(Protocol):
    """What the plans look at; sizes in bytes, times in ns since 1970."""

    @property
    def end_offset(self) -> int:
        """The offset behind its last record."""
        ...

    @property
    def size(self) -> int:
        """Bytes of batches."""
        ...

    @property
    def allocated(self) -> int:
        """Bytes of the file, preallocation included."""
        ...

    @property
    def first_append_time_ns(self) -> int:
        """Of its first batch; counts only if it has one."""
        ...

    @property
    def last_append_time_ns(self) -> int:
        """Of its newest batch; counts only if it has one."""
        ...


def may_delete(config: TopicConfig) -> bool:
    """May retention take anything from a topic with these settings? The one place that says so."""
    return "delete" in config.cleanup_policy


def is_internal(topic: str) -> bool:
    """Topics of the cluster itself: no budget takes anything from them."""
    return topic.startswith("__")


def newest_append_ns(segment: SegmentFacts, following: SegmentFacts | None) -> int:
    """By what a segment's age counts; `following` is the one behind it."""
    if following is None or not following.size:
        return segment.last_append_time_ns
    return min(segment.last_append_time_ns, following.first_append_time_ns)


def too_old(
    segments: Sequence[SegmentFacts], now_ns: int, retention_ms: int, high_watermark: int
) -> int:
    """How many of the oldest segments the time rule takes; `retention_ms` -1: none."""
    count = 0
    for segment, following in pairwise(segments) if retention_ms >= 0 else ():
        age_ns = now_ns - newest_append_ns(segment, following)
        if segment.end_offset > high_watermark or age_ns <= retention_ms * NS_PER_MS:
            break
        count += 1
    return count


def too_much(segments: Sequence[SegmentFacts], retention_bytes: int, high_watermark: int) -> int:
    """How many of the oldest segments the size rule takes; `retention_bytes` -1: none."""
    if retention_bytes < 0:
        return 0
    count, left = 0, sum(segment.size for segment in segments)
    for segment in segments[:-1]:
        left -= segment.size
        if segment.end_offset > high_watermark or left < retention_bytes:
            break
        count += 1
    return count


class Held(NamedTuple):
    """What the budget may look at of one partition."""

    segments: Sequence[SegmentFacts]
    high_watermark: int


def over_budget(held: Sequence[Held], excess: int) -> list[int]:
    """How many of the oldest segments of each partition go, so that `excess` allocated bytes become free.

    The one whose newest batch is the oldest goes first, over all partitions; all that may go if it is not enough.
    """
    counts = [0] * len(held)
    oldest: list[tuple[int, int]] = []

    def offer(place: int) -> None:
        (segments, high_watermark), count = held[place], counts[place]
        if count + 1 < len(segments) and segments[count].end_offset <= high_watermark:
            age = newest_append_ns(segments[count], segments[count + 1])
            heapq.heappush(oldest, (age, place))

    for place in range(len(held)):
        offer(place)
    while excess > 0 and oldest:
        _, place = heapq.heappop(oldest)
        excess -= held[place].segments[counts[place]].allocated
        counts[place] += 1
        offer(place)
    return counts


def wants_roll(
    active: SegmentFacts,
    now_ns: int,
    *,
    retention_ms: int,
    roll_after_ms: int,
    log_start: int,
    high_watermark: int,
) -> bool:
    """Is the active segment to be closed: by its age, because all of it is too old, or below the log start already?

    An empty one never is: there would be two of one name. Closing deletes nothing, so age alone may close what is not
    committed yet.
    """
    if not active.size:
        return False
    if now_ns - active.first_append_time_ns >= roll_after_ms * NS_PER_MS:
        return True
    if active.end_offset <= log_start:
        return True
    age_ns = now_ns - active.last_append_time_ns
    return 0 <= retention_ms * NS_PER_MS < age_ns and active.end_offset <= high_watermark


def goes_at_ns(segments: Sequence[SegmentFacts], retention_ms: int) -> int | None:
    """When the time rule takes the oldest record, if nothing is appended behind it; None: never, or there is none."""
    oldest = segments[0]
    if retention_ms < 0 or not oldest.size:
        return None
    following = segments[1] if len(segments) > 1 else None
    return newest_append_ns(oldest, following) + retention_ms * NS_PER_MS


class JumpWatch:
    """Has the wall clock been set? Compared with a clock that counts on and on, suspension included.

    What deletes by wall-clock time pauses for ten minutes after a jump of more than a minute, so that a clock which is
    wrong for a moment costs no data. A jump before it is made cannot be seen.
    """

    def __init__(self, wall_ns: int, steady_ns: int) -> None:
        self._last = (wall_ns, steady_ns)
        self._until_ns = 0  # by the steady clock
        self.paused = False

    def look(self, wall_ns: int, steady_ns: int) -> int:
        """The two clocks now; by how many ns the wall clock has jumped since the last look, 0 if it has not."""
        last, self._last = self._last, (wall_ns, steady_ns)
        moved_ns = (wall_ns - last[0]) - (steady_ns - last[1])
        if abs(moved_ns) <= JUMP_NS:
            moved_ns = 0
        else:
            self.paused, self._until_ns = True, steady_ns + PAUSE_NS
        if self.paused and steady_ns >= self._until_ns:
            self.paused = False
        return moved_ns
