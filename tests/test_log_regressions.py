"""What a log must not do: each test here stands for one way of losing or hiding records."""

from __future__ import annotations

import errno
import random

import pytest
from log_support import DIRECTORY, add, batch, checkpoint, config, open_log, read_stamped, sync

from shmlog.errors import CorruptLog
from shmlog.log import paths
from shmlog.log.storage import MemoryStorage
from shmlog.log.verify import verify
from shmlog.settings import MIB

D = DIRECTORY


def restarted(storage: MemoryStorage) -> MemoryStorage:
    return storage.after_kill(random.Random(0))


def test_an_index_older_than_its_segment_is_not_believed() -> None:
    storage = MemoryStorage()
    log = open_log(storage)
    first = add(log, 2)
    log.close(2)
    stale = bytes(storage.files[f"{D}/00000000000000000000.index"].data)
    log = open_log(storage, clean=True)
    more = add(log, 2) + add(log, 20) + add(log, 20)
    sync(log)
    checkpoint(log)
    assert log.segment_count > 2
    storage.files[f"{D}/00000000000000000000.index"].data[:] = stale
    log = open_log(restarted(storage))
    assert read_stamped(log) == first + more


def test_segments_that_vanished_are_reported_not_skipped() -> None:
    storage = MemoryStorage()
    log = open_log(storage)
    for _ in range(6):
        add(log, 10)
    sync(log)
    checkpoint(log)
    assert log.segment_count > 2
    storage.unlink(f"{D}/00000000000000000000.log")
    with pytest.raises(CorruptLog):
        open_log(restarted(storage))


def test_a_directory_without_any_segment_but_with_a_recovery_point_is_not_taken_for_empty() -> None:
    storage = MemoryStorage()
    log = open_log(storage)
    add(log, 4)
    sync(log)
    checkpoint(log)
    storage.unlink(f"{D}/00000000000000000000.log")
    with pytest.raises(CorruptLog):
        open_log(restarted(storage))


def test_a_kill_between_a_trim_and_the_checkpoint_loses_nothing_and_starts() -> None:
    storage = MemoryStorage()
    log = open_log(storage)
    batches = [add(log, 10)[0] for _ in range(6)]
    sync(log)
    checkpoint(log)
    log.set_log_start(35)
    images: list[MemoryStorage] = []
    storage.on_operation = lambda *_: images.append(restarted(storage))
    checkpoint(log)
    storage.on_operation = None
    images.append(restarted(storage))
    assert len(images) > 8
    starts = []
    for image in images:
        again = open_log(image)
        starts.append(again.log_start_offset)
        assert [one for one in read_stamped(again) if one[0].base_offset >= 30] == batches[3:]
    assert starts == sorted(starts)
    assert starts[-1] == 35


@pytest.mark.parametrize("where", ["synced", "not synced"])
def test_an_epoch_that_rose_before_a_roll_keeps_its_start_offset_over_a_kill(where: str) -> None:
    storage = MemoryStorage()
    log = open_log(storage)
    add(log, 10, epoch=1)
    sync(log)
    checkpoint(log)
    add(log, 1, epoch=2)
    add(log, 20, epoch=2)
    add(log, 20, epoch=2)
    assert log.segment_count > 2
    if where == "synced":
        sync(log)
    log = open_log(restarted(storage))
    assert log.epochs.entries == [(1, 0), (2, 10)]


def test_a_damaged_epoch_file_is_rebuilt_from_the_batches() -> None:
    storage = MemoryStorage()
    log = open_log(storage)
    for epoch in range(4):
        add(log, 20, epoch=epoch)
        sync(log)
        checkpoint(log)
    storage.files[f"{D}/epochs"].data[-1] ^= 1
    log = open_log(restarted(storage))
    assert log.epochs.entries == [(0, 0), (1, 20), (2, 40), (3, 60)]


def test_a_batch_of_another_topic_is_never_cut_away() -> None:
    storage = MemoryStorage()
    log = open_log(storage, topic_id=bytes(16))
    log.append([batch(0, values=[b"x" * 40] * 5, topic_id=bytes(16))], 0)
    sync(log)
    for name in ("checkpoint", "checkpoint.previous"):
        storage.files.pop(f"{D}/{name}", None)
    before = bytes(storage.files[f"{D}/00000000000000000000.log"].data)
    with pytest.raises(CorruptLog):
        open_log(storage)
    assert bytes(storage.files[f"{D}/00000000000000000000.log"].data) == before


def test_a_topic_recreated_twice_under_one_name_keeps_every_old_directory() -> None:
    storage = MemoryStorage()
    for generation in range(4):
        log = open_log(storage, topic_id=bytes([generation % 2]) * 16)
        log.append(
            [batch(0, values=[b"%d" % generation], topic_id=bytes([generation % 2]) * 16)],
            0,
        )
        sync(log)
    logs = [p for p in storage.files if p.endswith(".log")]
    assert len(logs) == 4


def test_a_batch_inside_a_torn_batch_is_payload_not_rot() -> None:
    storage = MemoryStorage()
    log = open_log(storage)
    kept = add(log, 2)
    _, inner = batch(3, values=[b"looks like the batch behind this one"])
    _, outer = batch(2, values=[inner, b"tail" * 50])
    # Values lie side by side at a multiple of 8 in the batch, so the inner one is aligned.
    storage.open(f"{D}/00000000000000000000.log").pwrite([outer[:-40]], len(kept[0][1]))
    log = open_log(storage)
    assert log.log_end_offset == 2
    assert read_stamped(log) == kept


def test_a_new_directory_is_durable_before_anything_in_it_counts() -> None:
    storage = MemoryStorage()
    log = open_log(storage)
    batches = add(log, 3)
    sync(log)
    for seed in range(20):
        image = storage.after_power_cut(random.Random(seed))
        assert read_stamped(open_log(image, same_boot=False)) == batches


def test_a_batch_with_a_damaged_header_is_not_skipped_by_a_read_behind_it() -> None:
    storage = MemoryStorage()
    large = config(segment_bytes=64 * MIB, index_interval_bytes=1 << 20)
    log = open_log(storage, config=large)
    add(log, 5)
    (_, second), *_ = add(log, 5)
    add(log, 5)
    data = storage.files[f"{D}/00000000000000000000.log"].data
    at = bytes(data).index(second)
    data[at + 16 : at + 24] = (0).to_bytes(8, "little")
    with pytest.raises(CorruptLog) as raised:
        log.read(7, max_bytes=1 << 20, end_offset=15)
    assert (raised.value.log_start, raised.value.high_watermark) == (5, 10)


def test_a_read_error_of_the_device_names_the_range_and_does_not_end_the_broker() -> None:
    storage = MemoryStorage()
    log = open_log(storage)
    add(log, 5)
    storage.fail("pread", 1, errno.EIO)
    with pytest.raises(CorruptLog):
        log.read(0, max_bytes=1000, end_offset=5)
    assert log.read(0, max_bytes=1000, end_offset=5)


def test_no_file_is_closed_or_removed_while_a_worker_syncs_or_allocates_it() -> None:
    storage = MemoryStorage()
    log = open_log(storage)
    allocation = log.allocation_job()
    for _ in range(12):
        add(log, 12)
    job = log.sync_job()
    assert job is not None
    checkpoint(log, 0)
    log.set_log_start(120)
    trim = log.checkpoint_job(120)
    assert trim is not None
    for offset in range(120, 144, 12):
        log.read(offset, max_bytes=100, end_offset=144)
    trim.run()
    job.run()
    if allocation is not None:
        allocation.run()
        log.finish_allocation(allocation)
    log.finish_sync(job)
    assert log.synced_end_offset == 144


def test_rot_far_behind_in_a_large_segment_is_found_in_pieces() -> None:
    storage = MemoryStorage()
    large = config(segment_bytes=64 * MIB, index_interval_bytes=1 << 20)
    log = open_log(storage, config=large)
    for _ in range(40):
        log.append([batch(log.log_end_offset, values=[bytes(200_000)])], 0)
    data = storage.files[f"{D}/00000000000000000000.log"].data
    data[0:64] = b"\xff" * 64
    with pytest.raises(CorruptLog) as raised:
        open_log(restarted(storage), config=large)
    assert (raised.value.log_start, raised.value.high_watermark) == (0, 1)


def test_a_directory_set_aside_never_looks_like_a_partition_again() -> None:
    assert paths.parse_partition_dir(paths.partition_dir("t", 3)) == ("t", 3)
    for number in (0, 7, 9999, 10_000):
        assert paths.parse_partition_dir(paths.stray_dir("t-3", number)) is None


def test_no_batch_that_ends_above_the_asked_end_is_read() -> None:
    log = open_log(MemoryStorage())
    (_, first), _ = add(log, 5, 5)
    assert log.read(0, max_bytes=1 << 20, end_offset=9) == first
    assert log.read(5, max_bytes=1 << 20, end_offset=9) == b""


def test_every_flipped_bit_is_found_by_the_check_and_never_read() -> None:
    storage = MemoryStorage()
    log = open_log(storage)
    batches = [data for _, data in add(log, 2, 1, 3)]
    sync(log)
    checkpoint(log)
    data = storage.files[f"{D}/00000000000000000000.log"].data
    for bit in range(len(b"".join(batches)) * 8):
        data[bit // 8] ^= 1 << bit % 8
        assert verify(storage, D).damage, f"bit {bit} of byte {bit // 8}"
        for offset in (0, 2, 3):
            try:
                found = log.read(offset, max_bytes=1, end_offset=6)
            except CorruptLog:
                continue
            assert found == batches[(0, 2, 3).index(offset)], f"bit {bit}"
        data[bit // 8] ^= 1 << bit % 8


def test_a_torn_tail_leaves_the_file_and_not_only_the_count() -> None:
    storage = MemoryStorage()
    log = open_log(storage)
    kept = add(log, 2)
    name = f"{D}/00000000000000000000.log"
    _, torn = batch(2, values=[b"x" * 300])
    storage.open(name).pwrite([torn[:-40]], len(kept[0][1]))
    log = open_log(storage)
    assert log.recovery.cut_bytes == len(torn) - 40
    assert bytes(storage.files[name].data) == kept[0][1]
    assert storage.files[name].synced == kept[0][1]


def test_a_log_start_above_the_synced_end_hides_nothing_after_a_power_cut() -> None:
    storage = MemoryStorage()
    log = open_log(storage)
    add(log, 5)
    sync(log)
    add(log, 5)
    log.set_log_start(9)
    checkpoint(log)
    for seed in range(10):
        again = open_log(storage.after_power_cut(random.Random(seed)), same_boot=False)
        assert again.log_start_offset <= 5 <= again.log_end_offset
        more = add(again, 1)
        assert read_stamped(again)[-1:] == more


def test_few_descriptors_of_sealed_segments_stay_open() -> None:
    storage = MemoryStorage()
    log = open_log(storage)
    for _ in range(60):
        add(log, 5)
    sync(log)
    checkpoint(log)
    assert log.segment_count > 10
    read_stamped(log)
    assert sum(segment.is_open for segment in log._segments[:-1]) <= 5


def test_what_a_checkpoint_without_space_did_not_write_is_written_by_the_next() -> None:
    storage = MemoryStorage()
    log = open_log(storage)
    for _ in range(30):
        add(log, 5)
    sync(log)
    full = True

    def no_room(kind: str, path: str) -> None:
        if full and kind == "pwrite" and not path.endswith(".log"):
            raise OSError(errno.ENOSPC, "full", path)

    storage.on_operation = no_room
    job = log.checkpoint_job(log.synced_end_offset)
    assert job is not None
    with pytest.raises(OSError, match="full"):
        job.run()
    log.checkpoint_failed(job)
    full = False
    checkpoint(log)
    indexes = [
        n for n in storage.list(D) if n.endswith(".index") and storage.files[f"{D}/{n}"].data
    ]
    assert len(indexes) == log.segment_count - 1 > 3
    assert "producers" in storage.list(D)


def test_a_checkpoint_takes_the_block_of_the_generation_before() -> None:
    storage = MemoryStorage()
    log = open_log(storage)
    for _ in range(2):
        add(log, 5)
        sync(log)
        checkpoint(log)
    add(log, 5)
    sync(log)
    assert "checkpoint.previous" in storage.list(D)

    def one_block_missing(kind: str, path: str) -> None:
        taken = f"{D}/checkpoint.previous" in storage.files
        if taken and kind == "pwrite" and path.endswith("checkpoint.new"):
            raise OSError(errno.ENOSPC, "full", path)

    storage.on_operation = one_block_missing
    checkpoint(log)
    storage.on_operation = None
    assert open_log(restarted(storage)).log_end_offset == 15


def test_a_clean_start_reads_no_batches() -> None:
    storage = MemoryStorage()
    log = open_log(storage)
    for _ in range(30):
        add(log, 5)
    log.close(log.log_end_offset)
    before = len(storage.operations)
    again = open_log(storage, clean=True)
    read = [p for kind, p, _ in storage.operations[before:] if kind == "pread"]
    assert not [path for path in read if path.endswith(".log")]
    assert again.log_end_offset == 150
    more = add(again, 5)
    assert read_stamped(again)[-1:] == more
