"""What a log does on a good day."""

from __future__ import annotations

import pytest
from log_support import DIRECTORY, append, batch, open_log, read_all, run, sync, values

from shmlog.errors import OffsetOutOfRange
from shmlog.log.storage import MemoryStorage
from shmlog.log.verify import Verification, verify


def test_what_is_appended_is_read_byte_for_byte_over_all_segments() -> None:
    log = open_log(MemoryStorage())
    written = [append(log, count=1 + number % 3)[1] for number in range(30)]
    assert log.segment_count > 3
    assert read_all(log) == written
    assert values(written) == [b"v%d" % offset for offset in range(log.log_end_offset)]


def test_a_read_inside_a_batch_gives_the_whole_batch() -> None:
    log = open_log(MemoryStorage())
    first, second = append(log, 5)[1], append(log, 5)[1]
    assert log.read(3, max_bytes=1, end_offset=10) == first
    assert log.read(7, max_bytes=1, end_offset=10) == second
    assert log.read(3, max_bytes=len(first + second), end_offset=10) == first + second
    assert log.read(3, max_bytes=len(first + second) - 1, end_offset=10) == first


def test_no_batch_that_ends_above_the_asked_end_is_returned() -> None:
    log = open_log(MemoryStorage())
    first = append(log, 5)[1]
    append(log, 5)
    assert log.read(0, max_bytes=1 << 20, end_offset=5) == first
    assert log.read(0, max_bytes=1 << 20, end_offset=9) == first
    assert log.read(5, max_bytes=1 << 20, end_offset=9) == b""


def test_offsets_out_of_range_name_the_range() -> None:
    log = open_log(MemoryStorage())
    append(log, 5)
    for offset in (-1, 6):
        with pytest.raises(OffsetOutOfRange) as raised:
            log.read(offset, max_bytes=1, end_offset=5)
        assert (raised.value.log_start, raised.value.high_watermark) == (0, 5)
    assert log.read(5, max_bytes=1, end_offset=5) == b""


def test_a_time_is_found_to_the_record_also_out_of_order() -> None:
    log = open_log(MemoryStorage())
    append(log, 3, timestamps=[10, 50, 20])
    append(log, 3, timestamps=[5, 40, 60])
    assert log.offset_for_time(20, 6) == (1, 50)
    assert log.offset_for_time(51, 6) == (5, 60)
    assert log.offset_for_time(51, 3) is None
    assert log.offset_for_time(0, 6) == (0, 10)
    assert log.offset_for_time(61, 6) is None


def assert_sound(storage: MemoryStorage) -> Verification:
    report = verify(storage, DIRECTORY)
    assert (report.damage, report.notes) == ([], [])
    return report


def test_a_sound_log_passes_the_check() -> None:
    storage = MemoryStorage()
    log = open_log(storage)
    for number in range(20):
        append(log, 2, epoch=number // 7, timestamps=[number, 50 - number])
    assert_sound(storage)
    sync(log)
    run(log.checkpoint_job(log.log_end_offset))
    assert_sound(storage)
    log.close(log.log_end_offset)
    report = assert_sound(storage)
    assert (report.batches, report.records, report.segments) == (20, 40, log.segment_count)
    assert (report.size_bytes, report.end_offset) == (log.size_bytes, 40)


def test_several_batches_in_one_append_may_span_segments() -> None:
    log = open_log(MemoryStorage())
    many = [batch(number) for number in range(30)]
    log.append(many, now_ns=0)
    assert log.segment_count > 2
    assert read_all(log) == [data for _, data in many]
