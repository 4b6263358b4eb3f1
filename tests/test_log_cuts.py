"""Truncation, beginning anew and epochs: what replication asks of a log (docs/rules.md: T1, T2, E8)."""

from __future__ import annotations

import errno
import itertools
import random
import threading
from pathlib import Path
from typing import Any

import pytest
from log_support import (
    DIRECTORY,
    TOPIC_ID,
    Stamped,
    append,
    append_replicated,
    batch,
    checkpoint,
    config,
    open_log,
    read_all,
    read_stamped,
    run,
    sync,
)

from shmlog.errors import CorruptLog, DiskFull, OffsetOutOfRange
from shmlog.log import paths
from shmlog.log.checkpoint import Checkpoint, EpochHistory, read, read_one
from shmlog.log.log import Log
from shmlog.log.os_storage import OsStorage
from shmlog.log.producers import Snapshot
from shmlog.log.storage import MemoryStorage
from shmlog.log.verify import verify

CHECKPOINT = f"{DIRECTORY}/{paths.CHECKPOINT}"


def restarted(storage: MemoryStorage) -> MemoryStorage:
    return storage.after_kill(random.Random(0))


def many(log: Log, count: int = 12, *, epoch: int = 1, value: bytes = b"v") -> list[Stamped]:
    """Batches of three records, in several segments."""
    return [append(log, 3, epoch=epoch, value=value) for _ in range(count)]


def produced(log: Log, number: int, count: int = 2, *, epoch: int = 1) -> Stamped:
    """The `number`-th batch of producer 7, admitted as a leader or a follower would."""
    one = batch(
        log.log_end_offset,
        count,
        epoch=epoch,
        producer_id=7,
        producer_epoch=0,
        sequence=count * number,
    )
    append_replicated(log, one)
    return one


# -- truncation ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", range(12))
def test_what_lies_below_a_cut_stays_and_what_is_appended_then_lies_behind_it(count: int) -> None:
    storage = MemoryStorage()
    log = open_log(storage)
    kept = many(log)[:count]
    sync(log)
    checkpoint(log)
    log.truncate_to(3 * count)
    assert log.log_end_offset == log.synced_end_offset == 3 * count
    assert read_stamped(log) == kept
    with pytest.raises(OffsetOutOfRange):
        log.read(3 * count + 1, max_bytes=1, end_offset=100)
    kept += many(log, 5, epoch=2, value=b"other")
    for again in (log, open_log(restarted(storage)), reopened(log, storage)):
        assert read_stamped(again) == kept
        assert again.offset_for_time(1000, 100) == (0, 1000)
        assert again.last_append_time_ns == 1000


def reopened(log: Log, storage: MemoryStorage) -> Log:
    log.close(log.log_end_offset)
    assert (verify(storage, DIRECTORY).damage, verify(storage, DIRECTORY).notes) == ([], [])
    return open_log(storage, clean=True)


def test_the_newest_times_of_a_log_are_those_of_what_a_cut_has_left() -> None:
    log = open_log(MemoryStorage(), config=config(segment_bytes=1 << 20))
    append(log, 2, timestamps=[5, 90], append_time_ns=10)
    append(log, 2, timestamps=[7, 8], append_time_ns=20)
    append(log, 2, timestamps=[500, 600], append_time_ns=30)
    log.truncate_to(4)
    assert log.last_append_time_ns == 20
    assert log._segments[0].index.max_timestamp_ns == 90
    append(log, 2, timestamps=[100, 110], append_time_ns=21)
    assert log.offset_for_time(91, 6) == (4, 100)


def test_a_cut_inside_a_batch_is_refused_and_changes_nothing() -> None:
    storage = MemoryStorage()
    log = open_log(storage)
    written = many(log)
    sync(log)
    before = {path: bytes(content.data) for path, content in storage.files.items()}
    with pytest.raises(CorruptLog, match="no batch ends at offset 7"):
        log.truncate_to(7)
    assert {path: bytes(content.data) for path, content in storage.files.items()} == before
    assert read_stamped(log) == written
    assert log.synced_end_offset == log.log_end_offset


def test_a_cut_outside_the_log_is_our_own_error() -> None:
    log = open_log(MemoryStorage())
    many(log, 2)
    with pytest.raises(AssertionError, match="the log holds 0 to 6"):
        log.truncate_to(7)


def test_an_old_batch_behind_the_cut_never_follows_a_new_one() -> None:
    """File bytes behind the cut are gone, durably, before the next append."""
    for seed in range(60):
        storage = MemoryStorage()
        log = open_log(storage)
        old = many(log, 3)
        sync(log)
        log.truncate_to(3)
        new = append(log, 3, epoch=2, value=b"w")  # as long as the old one at its place
        assert len(new[1]) == len(old[1][1])
        image = storage.after_power_cut(random.Random(seed))
        found = read_stamped(open_log(image, same_boot=False))
        assert found in ([old[0]], [old[0], new])


def test_space_is_reserved_again_behind_a_cut_and_its_lack_is_no_error() -> None:
    storage = MemoryStorage()
    log = open_log(storage, config=config(segment_bytes=1 << 20))
    many(log)
    log.truncate_to(9)
    segment = log._segments[-1]
    assert segment.allocated == segment.file().size() == 1 << 20
    storage.fail("allocate", 1, errno.ENOSPC)
    log.truncate_to(6)
    assert segment.allocated == segment.file().size() == segment.size


def test_a_sealed_segments_index_is_not_found_beside_other_batches() -> None:
    storage = MemoryStorage()
    log = open_log(storage)
    many(log)
    sync(log)
    checkpoint(log)
    index = f"{DIRECTORY}/{paths.segment_index(0)}"
    assert storage.exists(index)
    log.truncate_to(6)
    assert not storage.exists(index)
    assert sum(name.endswith(".log") for name in storage.list(DIRECTORY)) == 1


def test_no_generation_of_the_checkpoint_knows_of_what_was_cut() -> None:
    storage = MemoryStorage()
    log = open_log(storage)
    many(log)
    sync(log)
    checkpoint(log)
    log.truncate_to(6)
    for name in (CHECKPOINT, f"{CHECKPOINT}.previous"):
        found = read_one(storage, name, Checkpoint)
        assert found is not None
        assert (found.recovery_point, found.high_watermark) == (6, 6)
    storage.files[CHECKPOINT].data[-1] ^= 1
    assert open_log(restarted(storage)).log_end_offset == 6


@pytest.mark.parametrize("which", ["checkpoint", "epoch"])
def test_a_job_made_before_a_cut_writes_nothing_after_it(which: str) -> None:
    storage = MemoryStorage()
    log = open_log(storage)
    many(log)
    sync(log)
    job = log.checkpoint_job(36) if which == "checkpoint" else log.begin_epoch(2)
    log.truncate_to(6)
    run(job)
    again = open_log(restarted(storage))
    assert again.log_end_offset == 6
    assert again.epochs.entries == [(1, 0)]


def test_lack_of_space_before_a_cut_leaves_the_batches_and_can_be_tried_again() -> None:
    for kind, nth in (("create", 1), ("pwrite", 1), ("pwrite", 4)):
        storage = MemoryStorage()
        log = open_log(storage)
        written = many(log)
        sync(log)
        checkpoint(log)
        if kind == "create":
            for name in ("checkpoint", "epochs", "producers"):
                storage.unlink(f"{DIRECTORY}/{name}.new")
        attempts = itertools.count(1)

        def no_room(
            did: str, path: str, kind: str = kind, nth: int = nth, attempts: Any = attempts
        ) -> None:
            if did == kind and next(attempts) >= nth:
                raise OSError(errno.ENOSPC, "full", path)

        storage.on_operation = no_room
        with pytest.raises(DiskFull):
            log.truncate_to(6)
        storage.on_operation = None
        assert read_stamped(log) == read_stamped(open_log(restarted(storage))) == written
        assert log.epochs.entries == [(1, 0)]
        assert log.synced_end_offset == 6
        sync(log)
        assert log.synced_end_offset == 36
        log.truncate_to(6)
        assert read_stamped(log) == written[:2]


# -- syncs and allocations that were begun before -----------------------------------------------------


@pytest.mark.parametrize("cut", [0, 3, 6, 30])
def test_a_sync_begun_before_a_cut_vouches_for_nothing_behind_it(cut: int) -> None:
    """B21: also where the log has grown beyond its old end meanwhile."""
    storage = MemoryStorage()
    log = open_log(storage)
    many(log, 10)
    first, _ = log.sync_job(), append(log, 3, epoch=1)
    second = log.sync_job()
    assert first is not None
    assert second is not None
    log.truncate_to(cut)
    assert log.synced_end_offset == 0
    many(log, 20, epoch=2, value=b"other")
    for job in (second, first):
        job.run()
        log.finish_sync(job)
        assert log.synced_end_offset == min(job.end_offset, cut) == cut
    checkpoint(log)
    for seed in range(10):
        image = storage.after_power_cut(random.Random(seed))
        assert open_log(image, same_boot=False).log_end_offset >= cut
    sync(log)
    assert log.synced_end_offset == log.log_end_offset


def test_the_lowest_of_several_cuts_counts() -> None:
    """B21"""
    log = open_log(MemoryStorage())
    many(log, 10)
    job = log.sync_job()
    assert job is not None
    job.run()
    log.truncate_to(6)
    many(log, 10, epoch=2)
    log.truncate_to(24)
    many(log, 10, epoch=3)
    log.finish_sync(job)
    assert log.synced_end_offset == 6


def test_a_sync_begun_before_a_new_beginning_vouches_for_nothing() -> None:
    """B21"""
    for offset in (0, 5, 100):
        log = open_log(MemoryStorage())
        many(log, 10)
        job = log.sync_job()
        assert job is not None
        log.start_anew(offset)
        many(log, 20, epoch=2)
        job.run()
        log.finish_sync(job)
        assert log.synced_end_offset == offset


def test_the_producers_of_a_sync_begun_before_a_cut_are_not_written() -> None:
    storage = MemoryStorage()
    log = open_log(storage)
    written = [produced(log, number) for number in range(10)]
    job = log.sync_job()
    assert job is not None
    assert job.snapshot is not None
    log.truncate_to(6)
    for _ in range(11):
        append(log, 2, epoch=2)
    job.run()
    log.finish_sync(job)
    checkpoint(log)
    sync(log)
    again = open_log(restarted(storage))
    assert again.producers.check(written[2][0]) is not None
    assert again.producers.snapshot(0).producers[7].batches[-1].last_sequence == 5


def test_an_allocation_begun_before_a_cut_revives_nothing() -> None:
    storage = MemoryStorage()
    log = open_log(storage, config=config(segment_bytes=1 << 20))
    many(log, 3)
    job = log.allocation_job()
    assert job is not None
    log.truncate_to(3)
    reserved = log._segments[-1].allocated
    job.run()
    log.finish_allocation(job)
    assert log._segments[-1].allocated == reserved
    kept = read_all(log)
    assert read_all(open_log(restarted(storage), config=config(segment_bytes=1 << 20))) == kept


def test_an_allocation_of_a_segment_that_was_cut_away_ends_quietly() -> None:
    storage = MemoryStorage()
    log = open_log(storage)
    many(log)
    job = log.allocation_job()
    log.truncate_to(3)
    names = storage.list(DIRECTORY)
    run(job)
    if job is not None:
        log.finish_allocation(job)
    assert [name for name in storage.list(DIRECTORY) if name != paths.SPARE] == names


def test_syncs_may_end_in_the_loop_while_a_worker_cuts(tmp_path: Path) -> None:
    """The contract of a cut: finish_sync is the one thing that may meet it (B21)."""
    log = open_log(OsStorage(), str(tmp_path / "events-3"))
    for round_ in range(20):
        start = log.log_end_offset
        for _ in range(20):
            append(log, 3, epoch=log.epochs.last_epoch + 1)
        job = log.sync_job()
        assert job is not None
        job.run()
        worker = threading.Thread(target=log.truncate_to, args=(start + 6,))
        worker.start()
        log.finish_sync(job)
        worker.join()
        assert log.synced_end_offset == log.log_end_offset == start + 6, round_
    log.close(0)


# -- epochs -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [6, 9, 12, 15])
def test_epochs_are_cut_on_every_truncation_also_at_the_end(end: int) -> None:
    """B09: an entry left behind the end keeps a follower from ever agreeing with its leader."""
    storage = MemoryStorage()
    log = open_log(storage)
    for epoch in (1, 2, 3, 3, 4):
        append(log, 3, epoch=epoch)
    run(log.begin_epoch(5))
    log.truncate_to(end)
    wanted = [entry for entry in [(1, 0), (2, 3), (3, 6), (4, 12)] if entry[1] < end]
    assert log.epochs.entries == wanted
    assert open_log(restarted(storage)).epochs.entries == wanted


def test_a_damaged_epoch_file_brings_no_epoch_back_that_was_cut() -> None:
    storage = MemoryStorage()
    log = open_log(storage)
    for epoch in (1, 2, 3):
        append(log, 3, epoch=epoch)
    sync(log)
    checkpoint(log)
    log.truncate_to(3)
    append(log, 3, epoch=7)
    append(log, 3, epoch=7)
    storage.files[f"{DIRECTORY}/epochs"].data[-1] ^= 1
    assert open_log(restarted(storage)).epochs.entries == [(1, 0), (7, 3)]


def test_an_epoch_is_known_before_its_first_batch_and_over_a_power_cut() -> None:
    """E8: the start of an epoch is synced before anything is appended in it."""
    storage = MemoryStorage()
    log = open_log(storage)
    append(log, 3, epoch=1)
    sync(log)
    run(log.begin_epoch(4))
    assert (log.epochs.last_epoch, log.epochs.entries) == (4, [(1, 0), (4, 3)])
    for seed in range(20):
        again = open_log(storage.after_power_cut(random.Random(seed)), same_boot=False)
        assert again.epochs.entries == [(1, 0), (4, 3)]
        append(again, 1, epoch=4)
        assert again.epochs.entries == [(1, 0), (4, 3)]


def test_an_epoch_without_batches_is_replaced_by_the_next_one() -> None:
    log = open_log(MemoryStorage())
    run(log.begin_epoch(1))
    run(log.begin_epoch(2))
    assert log.epochs.entries == [(2, 0)]
    run(log.begin_epoch(2))
    with pytest.raises(AssertionError):
        log.begin_epoch(1)


def test_epochs_that_rise_inside_one_append_are_all_recorded() -> None:
    storage = MemoryStorage()
    log = open_log(storage)
    append(log, 2, epoch=1)
    turn = [batch(2 + number, epoch=epoch) for number, epoch in enumerate((1, 2, 2, 5, 6, 6))]
    log.append(turn, 0)
    assert log.epochs.entries == [(1, 0), (2, 3), (5, 5), (6, 6)]
    assert open_log(restarted(storage)).epochs.entries == log.epochs.entries


@pytest.mark.parametrize("epochs", [(0,), (1, 2, 1), (3, 1)])
def test_a_batch_whose_epoch_falls_is_our_own_error(epochs: tuple[int, ...]) -> None:
    log = open_log(MemoryStorage())
    append(log, 2, epoch=1)
    before = read_all(log)
    with pytest.raises(AssertionError, match="behind"):
        log.append([batch(2 + i, epoch=epoch) for i, epoch in enumerate(epochs)], 0)
    assert read_all(log) == before


def test_the_end_of_an_epoch_is_where_the_largest_known_one_at_or_below_it_ends() -> None:
    """B02, T1: an answer for an epoch that is not known names the one it is for."""
    history = EpochHistory([(2, 10), (4, 20), (7, 30)])
    found = [history.end_of(epoch, 45) for epoch in range(10)]
    two, four, seven = (2, 20), (4, 30), (7, 45)
    assert found == [(-1, -1), (-1, -1), two, two, four, four, four, seven, seven, seven]
    assert history.last_epoch == 7
    assert EpochHistory().end_of(3, 9) == (-1, -1)
    assert EpochHistory().last_epoch == -1


def test_a_copy_begins_with_the_batch_that_the_log_start_lies_in() -> None:
    log = open_log(MemoryStorage())
    many(log, 3)
    for start, copy in ((0, 0), (3, 3), (4, 3), (8, 6), (9, 9)):
        log.set_log_start(start)
        assert log.copy_start == copy


# -- producers ----------------------------------------------------------------------------------------


def test_producer_states_are_rolled_back_to_what_the_rest_of_the_log_says() -> None:
    """P06"""
    for cut in range(0, 20, 2):
        log = open_log(MemoryStorage())
        written = [produced(log, number) for number in range(10)]
        sync(log)
        checkpoint(log)
        log.truncate_to(cut)
        remains = [header for header, _ in written if header.end_offset <= cut]
        batches = (
            [b.base_offset for b in log.producers.snapshot(0).producers[7].batches]
            if remains
            else []
        )
        assert batches == [header.base_offset for header in remains]
        assert len(log.producers) == bool(remains)


def test_a_producer_whose_batches_retention_removed_is_still_known_after_a_cut() -> None:
    """P06"""
    storage = MemoryStorage()
    log = open_log(storage)
    one = produced(log, 0)
    many(log, 20)
    sync(log)
    checkpoint(log)
    log.set_log_start(50)
    checkpoint(log)
    sync(log)
    many(log, 5)
    log.truncate_to(log.log_end_offset - 6)
    for again in (log, open_log(restarted(storage))):
        assert again.log_start_offset == 50
        assert again.producers.check(one[0]) is not None


def test_a_producer_that_wrote_on_both_sides_of_a_cut_comes_from_the_snapshot() -> None:
    """P06: its batches below the cut are gone from the files, not from what was written down."""
    storage = MemoryStorage()
    log = open_log(storage)
    one = produced(log, 0)
    many(log, 20)
    sync(log)
    checkpoint(log)
    log.set_log_start(50)
    checkpoint(log)
    produced(log, 1)
    log.truncate_to(log.log_end_offset - 2)
    assert log.producers.check(one[0]) is not None


def test_a_producer_snapshot_of_what_was_cut_is_never_used_again() -> None:
    """In either generation, though the log grows beyond it."""
    storage = MemoryStorage()
    log = open_log(storage)
    for number in range(10):
        produced(log, number)
        log._snapshot_due_ns = 0
        sync(log)
        checkpoint(log)
    log.truncate_to(4)
    many(log, 20, epoch=2)
    for name in ("producers", "producers.previous"):
        found = read(storage, f"{DIRECTORY}/{name}", Snapshot)
        assert found is not None
        assert found.end_offset <= 4
    again = open_log(restarted(storage))
    assert again.producers.snapshot(0).producers[7].batches[-1].base_offset == 2


def test_replicated_batches_are_remembered_as_the_leader_remembered_them() -> None:
    """P01"""
    log = open_log(MemoryStorage())
    one = produced(log, 0)
    found = log.producers.check(one[0])
    assert found is not None
    assert (found.base_offset, found.append_time_ns) == (0, 1000)


# -- beginning anew -----------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [0, 5, 36, 100])
def test_a_log_that_begins_anew_is_empty_there_and_goes_on(offset: int) -> None:
    storage = MemoryStorage()
    log = open_log(storage)
    produced(log, 0)
    many(log)
    sync(log)
    checkpoint(log)
    log.set_log_start(20)
    checkpoint(log)
    log.start_anew(offset)
    assert len(log.producers) == 0
    for again in (log, open_log(restarted(storage))):
        ends = (again.log_start_offset, again.synced_end_offset, again.log_end_offset)
        assert ends == (offset, offset, offset)
        assert again.high_watermark == offset  # B08: never below the log start
        assert (again.epochs.entries, again.segment_count) == ([], 1)
        assert len(again.producers) == 0
    assert [name for name in storage.list(DIRECTORY) if name.endswith(".log")] == [
        paths.segment_log(offset)
    ]
    written = many(log, 8, epoch=9)
    for again in (log, open_log(restarted(storage)), reopened(log, storage)):
        assert read_stamped(again) == written
        assert again.epochs.entries == [(9, offset)]


def test_segments_that_a_trim_could_not_remove_go_with_a_new_beginning() -> None:
    storage = MemoryStorage()
    log = open_log(storage)
    many(log, 30)
    sync(log)
    log.set_log_start(60)  # no checkpoint is written, as on a full disk
    log.start_anew(100)
    assert [name for name in storage.list(DIRECTORY) if name.endswith(".log")] == [
        paths.segment_log(100)
    ]


def test_a_cut_at_the_log_start_leaves_a_log_that_begins_there() -> None:
    storage = MemoryStorage()
    log = open_log(storage)
    many(log)
    sync(log)
    log.set_log_start(31)  # inside a batch
    checkpoint(log)
    log.truncate_to(31)
    for again in (log, open_log(restarted(storage))):
        assert (again.log_start_offset, again.log_end_offset) == (31, 31)
        assert again.epochs.entries == []
    assert read_stamped(log) == []
    assert log.topic_id == TOPIC_ID


# -- the next segment ---------------------------------------------------------------------------------


def allocate(log: Log) -> None:
    while (job := log.allocation_job()) is not None:
        job.run()
        log.finish_allocation(job)


def test_the_next_segments_file_is_there_before_the_roll() -> None:
    storage = MemoryStorage()
    log = open_log(storage)
    append(log, 3)
    allocate(log)
    assert storage.exists(f"{DIRECTORY}/{paths.SPARE}")
    before = log.segment_count
    creates = sum(kind == "create" for kind, _, _ in storage.operations)
    while log.segment_count == before:
        append(log, 3)
    assert sum(kind == "create" for kind, _, _ in storage.operations) == creates
    active = log._segments[-1]
    assert active.allocated == active.file().size() == 1200
    assert not storage.exists(f"{DIRECTORY}/{paths.SPARE}")
    written = read_all(log)
    assert read_all(open_log(restarted(storage))) == written


def test_a_spare_file_that_was_left_is_removed() -> None:
    storage = MemoryStorage()
    log = open_log(storage)
    append(log, 3)
    allocate(log)
    image = restarted(storage)
    open_log(image)
    assert not image.exists(f"{DIRECTORY}/{paths.SPARE}")
    log.close(3)
    assert not storage.exists(f"{DIRECTORY}/{paths.SPARE}")


def test_lack_of_space_for_the_next_segment_shows_in_the_worker_and_appends_go_on() -> None:
    storage = MemoryStorage()
    log = open_log(storage)
    append(log, 3)
    first = log.allocation_job()
    run(first)
    assert first is not None
    log.finish_allocation(first)
    for kind in ("create", "allocate"):
        job = log.allocation_job()
        assert job is not None
        storage.fail(kind, 1, errno.ENOSPC)
        with pytest.raises(OSError, match="injected"):
            job.run()
        log.finish_allocation(job)
    written = read_all(log) + [append(log, 3)[1] for _ in range(20)]
    assert read_all(log) == written
    allocate(log)
    written += [append(log, 3)[1] for _ in range(20)]
    assert read_all(open_log(restarted(storage))) == written
