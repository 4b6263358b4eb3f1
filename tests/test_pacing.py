"""Paced replay: what is due when, in which order, and how late; no waiting, the test has the clock."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shmlog.client.fetches import ENDLESS, PartitionReader
from shmlog.client.pacing import Pacer
from shmlog.client.ring_tail import Piece
from shmlog.errors import InvalidConfig
from shmlog.ids import TopicPartition
from shmlog.records import batch as batches
from shmlog.records.builder import build, stamp

SECOND = 10**9


def reader(partition: int, *pieces: list[int], at_end: bool = True) -> PartitionReader:
    """Of a partition with stored batches of records at these seconds."""
    one = PartitionReader(TopicPartition("t", partition), "00" * 16, 0, ENDLESS)
    for times in pieces:
        data = build([b"%d" % at for at in times], timestamps=[at * SECOND for at in times])
        stamp(data, base_offset=one.fetch_offset, leader_epoch=1, append_time_ns=0,
              topic_id=bytes(16), partition=partition)  # fmt: skip
        one.take_in(Piece(memoryview(data), batches.decode_header(data)))
    one.high_watermark = one.fetch_offset if at_end else one.fetch_offset + 1
    return one


def pacer(factor: float = 1) -> Pacer:
    return Pacer(factor, (None, None))


def replay(
    pacer: Pacer, readers: list[PartitionReader], now_ns: int = 0
) -> list[tuple[int, int, int]]:
    """(partition, second, when in ns it came) of all records, by somebody who is always in time."""
    got = []
    while True:
        batch, due_ns = pacer.next(readers, now_ns)
        if batch is not None:
            got += [(batch.partition, int(value), now_ns) for value in batch.raw_values]
        elif due_ns is None:
            return got
        else:
            assert due_ns > now_ns
            now_ns = due_ns


def test_gaps_are_kept_times_the_factor() -> None:
    got = replay(pacer(0.5), [reader(0, [100, 101], [105, 105, 109])], 7)
    assert [(second, at - 7) for _, second, at in got] == [
        (100, 0), (101, SECOND // 2), (105, 5 * SECOND // 2), (105, 5 * SECOND // 2),
        (109, 9 * SECOND // 2),
    ]  # fmt: skip


def test_partitions_are_merged_by_time() -> None:
    readers = [reader(0, [1, 4], [6]), reader(1, [2, 3, 5, 7]), reader(2)]
    got = replay(pacer(), readers)
    assert [second for _, second, _ in got] == [1, 2, 3, 4, 5, 6, 7]
    assert [one.position for one in readers] == [3, 4, 0]


def test_a_partition_that_may_have_something_older_is_waited_for() -> None:
    one, other, mine = reader(0, [5]), reader(1, at_end=False), pacer()
    assert mine.next([one, other], 0) == (None, None)
    other.caught_up = True  # its ring has nothing more
    batch, _ = mine.next([one, other], 0)
    assert batch is not None
    assert batch.raw_values == [b"5"]


def test_who_is_late_gets_what_is_due_at_once_and_the_schedule_stays() -> None:
    mine, one = pacer(), [reader(0, [10, 11, 12, 20])]
    assert len(mine.next(one, 0)[0] or ()) == 1
    batch, _ = mine.next(one, 5 * SECOND)
    assert batch is not None
    assert batch.raw_values == [b"11", b"12"]
    assert mine.lateness_ns == 4 * SECOND
    assert mine.next(one, 5 * SECOND) == (None, 10 * SECOND)
    assert len(mine.next(one, 10 * SECOND)[0] or ()) == 1
    assert (mine.lateness_ns, mine.lateness_max_ns) == (0, 4 * SECOND)


def test_a_timestamp_that_goes_back_is_due_at_once_and_changes_no_places() -> None:
    got = replay(pacer(), [reader(0, [10, 3, 12])])
    assert got == [(0, 10, 0), (0, 3, 0), (0, 12, 2 * SECOND)]


def test_another_place_begins_another_schedule_even_in_the_middle_of_a_batch() -> None:
    mine, one = pacer(), reader(0, [10, 20, 30, 40])
    assert len(mine.next([one], 0)[0] or ()) == 1
    one.position = 2  # what is buffered has the place too
    mine.begin_anew()
    batch, _ = mine.next([one], 1)
    assert batch is not None
    assert batch.raw_values == [b"30"]
    assert mine.next([one], 1) == (None, 10 * SECOND + 1)


def test_the_stop_lies_inside_of_a_batch() -> None:
    one = reader(0, [1, 2, 3, 4], [5])
    one.stop = 2
    assert [second for _, second, _ in replay(pacer(), [one])] == [1, 2]
    assert one.finished
    assert not one.pieces


@pytest.mark.parametrize("factor", [0, -1, float("nan"), float("inf")])
def test_what_is_no_pace_is_refused(factor: Any) -> None:
    with pytest.raises(InvalidConfig, match="pace"):
        pacer(factor)


@given(st.lists(st.lists(st.lists(st.integers(0, 50), min_size=1, max_size=5), max_size=3),
                min_size=1, max_size=4), st.sampled_from([0.1, 1, 3]))  # fmt: skip
def test_each_record_comes_once_in_order_and_never_early(pieces: Any, factor: float) -> None:
    readers = [reader(partition, *each) for partition, each in enumerate(pieces)]
    got = replay(pacer(factor), readers)
    for partition, each in enumerate(pieces):
        assert [s for p, s, _ in got if p == partition] == [s for piece in each for s in piece]
    for _, second, at_ns in got:
        assert at_ns >= round((second - got[0][1]) * SECOND * factor)
    if all(each == sorted(each) for each in ([s for piece in p for s in piece] for p in pieces)):
        assert [s for _, s, _ in got] == sorted(s for _, s, _ in got)
