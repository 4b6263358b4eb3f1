"""What retention would delete, as arithmetic: nothing that its rule keeps, nothing above the high watermark, never the
active segment; and all that the rule gives up. The watch over the wall clock."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.space import reserve_of
from shmlog.clock import NS_PER_MS, NS_PER_S
from shmlog.log.retention import (
    JUMP_NS,
    PAUSE_NS,
    Held,
    JumpWatch,
    goes_at_ns,
    is_internal,
    newest_append_ns,
    over_budget,
    too_much,
    too_old,
    wants_roll,
)

GIB = 1 << 30
exact = settings(deadline=None, derandomize=True, max_examples=300)


class Facts(NamedTuple):
    """A segment of ten records."""

    end_offset: int
    size: int
    allocated: int
    first_append_time_ns: int
    last_append_time_ns: int


@st.composite
def logs(draw: st.DrawFn) -> list[Facts]:
    """Segments as a log has them: only the last may be empty; times do not fall but where a clock was set right."""
    found, end, now = [], draw(st.integers(0, 3)) * 10, draw(st.integers(0, 50))
    for _ in range(draw(st.integers(0, 6))):
        first = now + draw(st.integers(0, 20))
        now = first + draw(st.integers(0, 20))
        end += 10
        size = draw(st.integers(1, 50))
        times = (first * NS_PER_MS, now * NS_PER_MS)
        found.append(Facts(end, size, size + draw(st.integers(0, 9)), *times))
        if draw(st.integers(0, 4)) == 0:
            now = max(0, now - draw(st.integers(1, 60)))
    if not found or draw(st.booleans()):
        found.append(Facts(end, 0, draw(st.integers(0, 9)), 0, now * NS_PER_MS))
    return found


def ends(segments: list[Facts]) -> st.SearchStrategy[int]:
    return st.integers(0, segments[-1].end_offset)


@exact
@given(st.data(), st.integers(0, 200), st.integers(-1, 120))
def test_the_time_rule_takes_what_is_too_old_and_nothing_else(
    data: st.DataObject, now: int, retention: int
) -> None:
    segments = data.draw(logs())
    high_watermark = data.draw(ends(segments))
    count = too_old(segments, now * NS_PER_MS, retention, high_watermark)
    assert 0 <= count < len(segments), "the active one"
    assert retention >= 0 or not count

    def may_go(place: int) -> bool:
        one, following = segments[place], segments[place + 1]
        newest = one.last_append_time_ns
        if following.size:
            newest = min(newest, following.first_append_time_ns)
        return one.end_offset <= high_watermark and now - newest // NS_PER_MS > retention >= 0

    assert all(map(may_go, range(count)))
    assert count == len(segments) - 1 or not may_go(count), "it stopped too early"


@exact
@given(st.data(), st.integers(-1, 200))
def test_the_size_rule_leaves_at_least_what_is_to_be_kept(
    data: st.DataObject, retention_bytes: int
) -> None:
    segments = data.draw(logs())
    high_watermark = data.draw(ends(segments))
    count = too_much(segments, retention_bytes, high_watermark)
    assert 0 <= count < len(segments)
    kept = sum(one.size for one in segments[count:])
    assert not count or (kept >= retention_bytes >= 0)
    assert all(one.end_offset <= high_watermark for one in segments[:count])
    if retention_bytes >= 0 and count < len(segments) - 1:
        following = segments[count]
        enough = kept - following.size >= retention_bytes
        assert not (enough and following.end_offset <= high_watermark), "it stopped too early"


@exact
@given(st.data(), st.integers(1, 400))
def test_the_budget_takes_the_oldest_of_all_and_no_more_than_it_must(
    data: st.DataObject, excess: int
) -> None:
    held = []
    for segments in data.draw(st.lists(logs(), min_size=1, max_size=4)):
        held.append(Held(segments, data.draw(ends(segments))))
    counts = over_budget(held, excess)
    gone, stays = [], []
    for (segments, high_watermark), count in zip(held, counts, strict=True):
        assert count < len(segments)
        gone += [s.allocated for s in segments[:count]]
        assert all(s.end_offset <= high_watermark for s in segments[:count])
        if count + 1 < len(segments) and segments[count].end_offset <= high_watermark:
            stays.append(newest_append_ns(segments[count], segments[count + 1]))
    if sum(gone) < excess:
        assert not stays, "more could have gone"
        return
    last = [
        (newest_append_ns(s[c - 1], s[c]), s[c - 1].allocated)
        for (s, _), c in zip(held, counts, strict=True)
        if c
    ]
    newest, _ = max(last)
    assert sum(gone) - max(size for age, size in last if age == newest) < excess
    # Within a partition the order of offsets rules: only heads of partitions are compared.
    assert all(age >= min(age for age, _ in last) for age in stays)


def test_the_oldest_of_two_partitions_goes_first() -> None:
    one = [Facts(10, 5, 8, 1, 20), Facts(20, 5, 8, 20, 40), Facts(20, 0, 0, 0, 40)]
    two = [Facts(10, 5, 8, 1, 30), Facts(20, 5, 8, 30, 31), Facts(20, 0, 0, 0, 31)]
    held = [Held(one, 20), Held(two, 20)]
    assert [over_budget(held, n) for n in (1, 8, 9, 17, 25, 999)] == [
        [1, 0],
        [1, 0],
        [1, 1],
        [1, 2],
        [2, 2],
        [2, 2],
    ]
    assert over_budget([Held(one, 10), Held(two, 9)], 999) == [1, 0]


def test_a_segment_of_a_clock_that_was_ahead_goes_by_the_time_behind_it() -> None:
    ahead = Facts(10, 5, 5, 1 * NS_PER_S, 9000 * NS_PER_S)
    behind = Facts(20, 5, 5, 2 * NS_PER_S, 3 * NS_PER_S)
    active = Facts(20, 0, 0, 0, 3 * NS_PER_S)
    assert too_old([ahead, behind, active], 60 * NS_PER_S, 50_000, 20) == 2
    assert too_old([ahead, active], 60 * NS_PER_S, 50_000, 20) == 0
    assert goes_at_ns([ahead, behind, active], 50_000) == 52 * NS_PER_S


def test_when_the_oldest_goes() -> None:
    full, empty = Facts(10, 5, 5, 1, 7 * NS_PER_S), Facts(10, 0, 0, 0, 7 * NS_PER_S)
    assert goes_at_ns([full], 1000) == goes_at_ns([full, empty], 1000) == 8 * NS_PER_S
    assert goes_at_ns([full], -1) is None
    assert goes_at_ns([empty], 1000) is None


@pytest.mark.parametrize(
    ("story", "active", "now", "retention", "log_start", "high_watermark", "rolls"),
    [
        ("young", Facts(10, 5, 5, 100, 150), 190, -1, 0, 10, False),
        ("its first batch is old", Facts(10, 5, 5, 100, 199), 200, -1, 0, 10, True),
        ("old and not committed", Facts(10, 5, 5, 100, 199), 200, -1, 0, 5, True),
        ("all of it is too old", Facts(10, 5, 5, 100, 120), 151, 30, 0, 10, True),
        ("not yet", Facts(10, 5, 5, 100, 120), 150, 30, 0, 10, False),
        ("too old, not committed", Facts(10, 5, 5, 100, 120), 151, 30, 0, 9, False),
        ("below the log start", Facts(10, 5, 5, 100, 150), 160, -1, 10, 10, True),
        ("held by the log start", Facts(10, 5, 5, 100, 150), 160, -1, 9, 10, False),
        ("empty", Facts(10, 0, 5, 0, 1), 10**9, 0, 10, 10, False),
    ],
)
def test_when_the_active_segment_is_closed(
    story: str,
    active: Facts,
    now: int,
    retention: int,
    log_start: int,
    high_watermark: int,
    rolls: bool,
) -> None:
    in_ns = active._replace(
        first_append_time_ns=active.first_append_time_ns * NS_PER_MS,
        last_append_time_ns=active.last_append_time_ns * NS_PER_MS,
    )
    found = wants_roll(
        in_ns,
        now * NS_PER_MS,
        retention_ms=retention,
        roll_after_ms=100,
        log_start=log_start,
        high_watermark=high_watermark,
    )
    assert found is rolls, story


def test_names_of_internal_topics() -> None:
    assert is_internal("__consumer_offsets")
    assert not is_internal("_mine")


# -- the clock ------------------------------------------------------------------------------------


def test_a_jump_of_more_than_a_minute_pauses_for_ten() -> None:
    for jump in (JUMP_NS + 1, -JUMP_NS - 1, 10 * 365 * 86400 * NS_PER_S):
        wall, steady = 10**18, 5 * NS_PER_S
        watch = JumpWatch(wall, steady)
        assert watch.look(wall + NS_PER_S, steady + NS_PER_S) == 0
        assert not watch.paused
        wall, steady = wall + jump + 2 * NS_PER_S, steady + 2 * NS_PER_S
        assert watch.look(wall, steady) == jump
        assert watch.paused
        assert watch.look(wall + PAUSE_NS - 1, steady + PAUSE_NS - 1) == 0
        assert watch.paused
        assert watch.look(wall + PAUSE_NS, steady + PAUSE_NS) == 0
        assert not watch.paused


def test_a_small_step_a_suspension_and_a_late_look_are_no_jumps() -> None:
    watch = JumpWatch(10**18, 0)
    assert watch.look(10**18 + JUMP_NS, 0) == 0
    hour = 3600 * NS_PER_S
    assert watch.look(10**18 + JUMP_NS + hour, hour) == 0
    assert not watch.paused


def test_a_second_jump_begins_the_pause_anew() -> None:
    watch = JumpWatch(0, 0)
    watch.look(2 * JUMP_NS, 0)
    watch.look(0, PAUSE_NS // 2)
    assert watch.paused
    watch.look(PAUSE_NS // 2, PAUSE_NS)
    assert watch.paused


@pytest.mark.parametrize(
    ("total", "wanted", "reserve"),
    [
        (100 * GIB, -1, 5 * GIB),
        (10 * GIB, -1, GIB),
        (64 << 20, -1, (64 << 20) // 5),
        (64 << 20, 60 << 20, 60 << 20),
        (100 * GIB, 0, 0),
    ],
)
def test_the_reserve_is_a_gib_or_5_percent_and_at_most_20(
    total: int, wanted: int, reserve: int
) -> None:
    assert reserve_of(total, wanted) == reserve
