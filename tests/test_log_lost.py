"""What is gone is missed, what nothing else remembers is kept, and a full disk keeps no log from being opened."""

from __future__ import annotations

import errno
import random
import struct
from pathlib import Path

import pytest
from log_support import DIRECTORY, TOPIC_ID, append, batch, config, open_log, run, sync

from shmlog.errors import Backpressure, CorruptLog
from shmlog.log import opened, paths
from shmlog.log.log import Log, move_to_deleted
from shmlog.log.os_storage import OsStorage
from shmlog.log.storage import MemoryStorage
from shmlog.records.layout import MAGIC

PRODUCER = 7


def restarted(storage: MemoryStorage) -> MemoryStorage:
    return storage.after_kill(random.Random(0))


# -- producers of trimmed segments ---------------------------------------------------------------------


def with_a_producer_in_the_first_segment(storage: MemoryStorage) -> Log:
    """Producer 7 wrote sequences 0 and 1 into the first segment; no snapshot on disk knows it."""
    log = open_log(storage)
    append(log, 1, producer_id=1, producer_epoch=0, sequence=0)
    sync(log)
    run(log.checkpoint_job(log.synced_end_offset))
    log._snapshot_due_ns = 1 << 60  # the second since the last snapshot is not over yet
    for sequence in (0, 1):
        one = batch(log.log_end_offset, producer_id=PRODUCER, producer_epoch=0, sequence=sequence)
        log.producers.apply(one[0], one[0].base_offset, 0, 0)
        log.append([one], 0)
    sync(log)
    return log


def remembers(log: Log) -> bool:
    again = batch(9, producer_id=PRODUCER, producer_epoch=0, sequence=1)
    return log.producers.check(again[0]) is not None


@pytest.mark.parametrize("synced", [True, False])
def test_a_trim_never_takes_what_only_the_log_remembers_of_a_producer(synced: bool) -> None:
    storage = MemoryStorage()
    log = with_a_producer_in_the_first_segment(storage)
    while log.segment_count == 1:
        append(log, 10, value=b"x" * 50)
        if synced:
            sync(log)
    end = log.log_end_offset - 10
    images: list[MemoryStorage] = []
    log.set_log_start(end)
    storage.on_operation = lambda *_: images.append(restarted(storage))
    run(log.checkpoint_job(log.synced_end_offset))
    storage.on_operation = None
    assert len(images) > 3
    assert all(remembers(open_log(image)) for image in images)
    assert remembers(open_log(restarted(storage)))
    for _ in range(2):  # as the loop does, until all is done
        sync(log)
        run(log.checkpoint_job(log.synced_end_offset))
        again = open_log(restarted(storage))
        assert remembers(again)
    assert log.segment_count == 1
    assert not log.trim_waits
    assert again.log_start_offset == end
    assert not storage.exists(f"{DIRECTORY}/{paths.segment_log(0)}")


# -- lost directories ----------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["the directory", "its files"])
def test_a_lost_partition_is_not_taken_for_an_empty_one(what: str) -> None:
    storage = MemoryStorage()
    log = open_log(storage)
    append(log, 4)
    log.close(4)
    if what == "the directory":
        storage.remove_tree(DIRECTORY)
    else:
        for name in storage.list(DIRECTORY):
            storage.unlink(f"{DIRECTORY}/{name}")
    with pytest.raises(CorruptLog, match="put it back from a copy, or remove data/opened/events-3"):
        open_log(storage, clean=True)
    again = open_log(storage, clean=True, replicated=True)  # the others have it
    assert again.recovery.lossy
    assert "at an earlier start" in again.recovery.lossy_reason
    assert again.log_end_offset == 0
    run(again.forget_lossy())
    assert not open_log(storage, replicated=True).recovery.lossy


def test_in_a_directory_that_was_replaced_every_log_is_lossy() -> None:
    storage = MemoryStorage()
    with pytest.raises(CorruptLog, match="the data directory was replaced"):
        open_log(storage, replaced=True)
    again = open_log(storage, replicated=True, replaced=True)
    assert again.recovery.lossy
    append(again, 4)
    again.close(4)
    assert open_log(storage, clean=True, replaced=True).log_end_offset == 4  # put back from a copy
    run(again.forget_lossy())
    assert not open_log(storage, clean=True, replicated=True).recovery.lossy
    assert open_log(storage, clean=True, replicated=True, replaced=True).recovery.lossy


def test_a_suspicion_has_the_next_start_look_at_every_checksum() -> None:
    storage = MemoryStorage()
    log = open_log(storage)
    for _ in range(3):
        append(log, 1, value=b"some value")
    log.close(3)
    file = storage.open(f"{DIRECTORY}/{paths.segment_log(0)}")
    position = file.pread(file.size(), 0).index(b"some value")
    file.pwrite([b"X"], position)
    assert open_log(storage, clean=True, replicated=True).log_end_offset == 3
    log.suspect()
    again = open_log(storage, clean=True, replicated=True)
    assert (again.log_end_offset, again.recovery.lossy) == (0, True)
    assert len(again.recovery.quarantined) == 1
    assert paths.SUSPECT not in storage.list(DIRECTORY)


def test_a_partition_that_was_never_opened_or_was_deleted_or_is_another_topics_is_new() -> None:
    storage = MemoryStorage()
    log = open_log(storage)
    assert not log.recovery.lossy
    move_to_deleted(storage, "data", log)
    assert opened.marks(storage, "data") == []
    log = open_log(storage)
    log.close(0)
    storage.remove_tree(DIRECTORY)
    assert open_log(storage, topic_id=bytes(15) + b"\1").log_end_offset == 0


def test_the_marks_of_topics_that_are_gone_are_forgotten() -> None:
    storage = MemoryStorage()
    open_log(storage)
    open_log(storage, "data/other-0")
    opened.keep_only(storage, "data", {"other-0"})
    assert opened.marks(storage, "data") == ["other-0"]


def test_a_damaged_checkpoint_alone_is_no_loss() -> None:
    storage = MemoryStorage()
    log = open_log(storage)
    append(log, 4)
    log.close(4)
    for name in ("checkpoint", "checkpoint.previous"):
        storage.unlink(f"{DIRECTORY}/{name}")
    assert open_log(storage).log_end_offset == 4


# -- names ---------------------------------------------------------------------------------------------


def test_a_stray_name_fits_into_a_file_name_whatever_the_topic_is_called() -> None:
    directory = "data/" + "a" * 249 + "-1023"
    names = {paths.stray_dir(directory, 10**15), paths.stray_dir(directory[:-1] + "2", 10**15)}
    assert len(names) == 2
    for name in names:
        assert name.startswith("data/aaa")
        assert len(name.removeprefix("data/")) <= 255
        assert paths.parse_partition_dir(name.removeprefix("data/")) is None
    assert paths.stray_dir("data/a-0", 3) == "data/a-0.stray.3"


# -- no space ------------------------------------------------------------------------------------------


def test_opening_a_log_in_which_nothing_has_changed_writes_nothing() -> None:
    storage = MemoryStorage()
    log = open_log(storage)
    append(log, 10)
    sync(log)
    run(log.checkpoint_job(10))
    storage = restarted(storage)
    storage.operations.clear()
    assert open_log(storage).log_end_offset == 10
    assert {kind for kind, _, _ in storage.operations} <= {"pread", "sync", "sync_dir"}


def test_a_file_that_a_killed_broker_made_has_a_durable_name_before_anything_in_it_counts() -> None:
    storage = MemoryStorage()
    log = open_log(storage)
    append(log, 10)
    sync(log)
    run(log.checkpoint_job(10))
    log.roll()
    log.close_files()  # killed before the directory was synced: the new file's name is in the page cache
    log = open_log(storage, same_boot=True)
    append(log, 5)
    sync(log)
    for seed in range(20):
        after = storage.after_power_cut(random.Random(seed))
        assert open_log(after, same_boot=False).log_end_offset == 15


def test_a_full_disk_keeps_no_log_from_being_opened() -> None:
    storage = MemoryStorage()
    log = open_log(storage)
    append(log, 10)
    sync(log)  # the checkpoint does not know of it
    storage = restarted(storage)
    storage.fail("create", 1, errno.ENOSPC)
    log = open_log(storage)
    assert log.log_end_offset == 10
    run(log.checkpoint_job(10))
    storage = restarted(storage)
    storage.operations.clear()
    open_log(storage)
    assert "pwrite" not in {kind for kind, _, _ in storage.operations}


def test_a_new_log_that_finds_no_space_is_tried_again_and_leaves_no_descriptor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened_files: list[object] = []
    closed: list[object] = []
    from shmlog.log import os_storage

    class Counted(os_storage.OsFile):
        def __init__(self, fd: int) -> None:
            super().__init__(fd)
            opened_files.append(self)

        def close(self) -> None:
            super().close()
            closed.append(self)

        def sync(self) -> None:
            raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os_storage, "OsFile", Counted)
    with pytest.raises(OSError, match="full"):
        Log.open(
            OsStorage(),
            str(tmp_path / "a-0"),
            topic_id=TOPIC_ID,
            partition=0,
            config=config(),
            now_ns=0,
            same_boot=True,
            clean=False,
        )
    assert opened_files
    assert set(map(id, opened_files)) == set(map(id, closed))


# -- searches ------------------------------------------------------------------------------------------


def hostile(storage: MemoryStorage) -> Log:
    """A value made of beginnings of batches, in a batch whose header is damaged; a whole batch behind."""
    log = open_log(storage, config=config(segment_bytes=8 << 20))
    fake = struct.pack("<II", MAGIC, 1 << 16) * 20_000
    one = batch(0, value=fake)
    log.append([one], 0)
    append(log, 1, value=b"good" * 20_000)
    sync(log)
    return log


def test_what_only_looks_like_batches_is_not_read_body_by_body() -> None:
    storage = MemoryStorage()
    log = hostile(storage)
    run(log.checkpoint_job(2))
    path = f"{DIRECTORY}/{paths.segment_log(0)}"
    storage.files[path].data[20] ^= 1
    storage.operations.clear()
    with pytest.raises(CorruptLog) as raised:
        log.read(0, max_bytes=1 << 20, end_offset=2)
    read = sum(size for kind, _, size in storage.operations if kind == "pread")
    assert read < 4 << 20
    assert raised.value.log_start == 0
    # At a start there is time: the whole batch behind is found, so this is no torn tail.
    with pytest.raises(CorruptLog):
        open_log(restarted(storage))


def with_a_trimmed_record_of_the_future(storage: MemoryStorage) -> Log:
    log = open_log(storage, config=config(segment_bytes=8 << 20))
    append(log, 1, timestamps=10**12)
    for number in range(400):
        append(log, 1, timestamps=number)
    sync(log)
    log.set_log_start(1)
    return log


def reads(storage: MemoryStorage, log: Log, timestamp_ns: int) -> tuple[int, object]:
    storage.operations.clear()
    found = log.offset_for_time(timestamp_ns, log.log_end_offset)
    return sum(size for kind, _, size in storage.operations if kind == "pread"), found


def test_a_search_by_time_reads_little_behind_a_trimmed_record_of_the_future() -> None:
    storage = MemoryStorage()
    log = with_a_trimmed_record_of_the_future(storage)
    size, found = reads(storage, log, 10**9)
    assert found is None
    assert size < 1000
    assert log.offset_for_time(250, log.log_end_offset) == (251, 250)
    append(log, 1, timestamps=10**10)
    assert log.offset_for_time(10**9, log.log_end_offset) == (401, 10**10)


def test_a_search_by_time_that_is_stopped_goes_on_where_it_was() -> None:
    storage = MemoryStorage()
    log = with_a_trimmed_record_of_the_future(storage)
    index = log._segments[0].index
    index._newest[: len(index)] = 10**12  # as read from a file, which has running maxima only
    stops = 0
    while True:
        try:
            found = log.offset_for_time(10**9, log.log_end_offset, lambda: True)
        except Backpressure:
            stops += 1
            assert stops <= len(index)
        else:
            break
    assert found is None
    assert stops > 5
    assert reads(storage, log, 10**9) == (0, None)
