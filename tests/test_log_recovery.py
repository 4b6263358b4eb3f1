"""Torn tail or rot: what opening a log cuts, rebuilds, sets aside, and what it refuses to touch."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from log_support import (
    DIRECTORY,
    append,
    batch,
    config,
    open_log,
    read_all,
    run,
    sync,
)

from shmlog.errors import CorruptLog
from shmlog.log.log import Log
from shmlog.log.storage import MemoryStorage
from shmlog.log.verify import verify

FIRST = f"{DIRECTORY}/{0:020d}.log"
BIG = config(segment_bytes=1 << 20)


def image(storage: MemoryStorage) -> dict[str, bytes]:
    return {path: bytes(content.data) for path, content in storage.files.items()}


def killed(storage: MemoryStorage) -> MemoryStorage:
    return storage.after_kill(random.Random(0))


def flip(storage: MemoryStorage, path: str, position: int) -> None:
    storage.files[path].data[position] ^= 0x10


def ten(storage: MemoryStorage, *, synced: int, **settings: int) -> tuple[Log, list[bytes]]:
    """Ten batches of four records; the first `synced` of them are below the recovery point."""
    log = open_log(storage, config=config(**{"segment_bytes": 1 << 20} | settings))
    written = []
    for number in range(10):
        if number == synced:
            sync(log)
            run(log.checkpoint_job(log.log_end_offset))
        written.append(append(log, 4, epoch=number // 4)[1])
    return log, written


@pytest.mark.parametrize("same_boot", [True, False])
@pytest.mark.parametrize("left", [1, 7, 63, 64, 65, 127, 128, 140, -1])
def test_a_torn_tail_is_cut_and_all_before_it_stays(left: int, same_boot: bool) -> None:
    storage = MemoryStorage()
    _, written = ten(storage, synced=5)
    storage = killed(storage)
    torn = batch(40, 4, epoch=2)[1][:left]
    file = storage.open(FIRST)
    file.pwrite([torn], file.size())
    log = open_log(storage, config=BIG, same_boot=same_boot)
    assert log.log_end_offset == log.synced_end_offset == 40
    assert log.recovery.cut_bytes == len(torn)
    assert read_all(log) == written
    written.append(append(log, 2, epoch=2)[1])
    log = open_log(killed(storage), config=BIG)
    assert read_all(log) == written


def test_zeros_behind_the_last_batch_are_preallocation() -> None:
    storage = MemoryStorage()
    log, written = ten(storage, synced=5)
    job = log.allocation_job()
    assert job is not None
    job.run()
    log = open_log(killed(storage), config=BIG)
    assert log.recovery.cut_bytes == 0
    assert read_all(log) == written


@pytest.mark.parametrize("same_boot", [True, False])
@pytest.mark.parametrize("at", [0, 4, 16, 70])  # magic, size, base offset, flags and count
def test_damage_below_the_mark_is_named_and_nothing_is_changed(at: int, same_boot: bool) -> None:
    storage = MemoryStorage()
    _, written = ten(storage, synced=8)
    storage = killed(storage)
    flip(storage, FIRST, len(b"".join(written[:3])) + at)
    before = image(storage)
    with pytest.raises(CorruptLog) as raised:
        open_log(storage, config=BIG, same_boot=same_boot)
    assert (raised.value.log_start, raised.value.high_watermark) == (12, 16)
    assert FIRST in str(raised.value)
    assert image(storage) == before
    assert any("offset 12" in text for text in verify(storage, DIRECTORY).damage)


def test_a_damaged_value_below_the_mark_is_named_when_it_is_read() -> None:
    storage = MemoryStorage()
    _, written = ten(storage, synced=8)
    storage = killed(storage)
    flip(storage, FIRST, len(b"".join(written[:3])) + 140)
    before = image(storage)[FIRST]
    log = open_log(storage, config=BIG)
    assert log.read(0, max_bytes=1 << 20, end_offset=40) == b"".join(written[:3])
    for offset in (12, 15):
        with pytest.raises(CorruptLog) as raised:
            log.read(offset, max_bytes=1 << 20, end_offset=40)
        assert (raised.value.log_start, raised.value.high_watermark) == (12, 16)
    assert log.read(16, max_bytes=1 << 20, end_offset=40) == b"".join(written[4:])
    assert image(storage)[FIRST] == before


@pytest.mark.parametrize("at", [0, 4, 16, 70, 140])
def test_damage_above_the_mark_with_whole_batches_behind_it_is_rot_unless_rebooted(at: int) -> None:
    storage = MemoryStorage()
    _, written = ten(storage, synced=5)
    storage = killed(storage)
    flip(storage, FIRST, len(b"".join(written[:7])) + at)
    before = image(storage)
    with pytest.raises(CorruptLog) as raised:
        open_log(storage, config=BIG)
    assert (raised.value.log_start, raised.value.high_watermark) == (28, 32)
    assert image(storage) == before
    log = open_log(storage, config=BIG, same_boot=False)
    assert log.log_end_offset == 28
    assert read_all(log) == written[:7]
    assert read_all(open_log(killed(storage), config=BIG)) == written[:7]


def test_after_a_reboot_segments_behind_the_cut_are_kept_under_another_name() -> None:
    storage = MemoryStorage()
    log, written = ten(storage, synced=1, segment_bytes=450)
    assert log.segment_count > 3
    storage = killed(storage)
    flip(storage, FIRST, len(b"".join(written[:1])) + 130)
    small = config(segment_bytes=450)
    log = open_log(storage, config=small, same_boot=False)
    assert read_all(log) == written[:1]
    assert sum(path.endswith(".corrupt") for path in storage.files) >= 3
    written[1:] = [append(log, 4)[1]]
    assert read_all(open_log(killed(storage), config=small)) == written


def test_a_missing_segment_in_the_middle_is_named_and_nothing_is_changed() -> None:
    storage = MemoryStorage()
    log, _ = ten(storage, synced=8, segment_bytes=1000)
    middle = sorted(path for path in storage.files if path.endswith(".log"))[1]
    storage = killed(storage)
    del storage.files[middle]
    for same_boot in (True, False):
        before = image(storage)
        with pytest.raises(CorruptLog) as raised:
            open_log(storage, config=config(segment_bytes=1000), same_boot=same_boot)
        assert raised.value.log_start < raised.value.high_watermark <= log.log_end_offset
        assert image(storage) == before


def cut_short(data: bytearray) -> None:
    del data[len(data) // 2 :]


def one_bit(data: bytearray) -> None:
    data[-3] ^= 4


def nothing(data: bytearray) -> None:
    data.clear()


@pytest.mark.parametrize("damage", [cut_short, one_bit, nothing, None])
@pytest.mark.parametrize("name", ["index", "epochs", "producers", "checkpoint"])
@pytest.mark.parametrize("both", [False, True])
def test_damaged_small_files_are_made_anew(
    name: str, damage: Callable[[bytearray], None] | None, both: bool
) -> None:
    storage = MemoryStorage()
    small = config(segment_bytes=1000)
    log = open_log(storage, config=small)
    written = []
    for number in range(12):
        one = append(
            log, 4, epoch=number // 4, producer_id=9, producer_epoch=0, sequence=4 * number
        )
        log.producers.apply(one[0], one[0].base_offset, 1000, 0)
        written.append(one)
        if number % 3 == 2:
            log.close(log.log_end_offset)
            log = open_log(storage, config=small, clean=True)
    storage = killed(storage)
    for path in list(storage.files):
        wanted = path.rpartition("/")[2]
        if wanted == name or path.endswith(f".{name}") or (both and wanted == f"{name}.previous"):
            if damage is None:
                del storage.files[path]
            else:
                damage(storage.files[path].data)
    log = open_log(storage, config=small)
    assert read_all(log) == [data for _, data in written]
    assert log.epochs.entries == [(0, 0), (1, 16), (2, 32)]
    assert [log.offset_for_time(time, 48) for time in (0, 1000, 1001)] == [
        (0, 1000),
        (0, 1000),
        None,
    ]
    for header, _ in written[-5:]:
        duplicate = log.producers.check(header)
        assert duplicate is not None
        assert duplicate.base_offset == header.base_offset
    log.close(log.log_end_offset)
    assert verify(storage, DIRECTORY).damage == []


def test_the_log_of_another_topic_is_set_aside_whole() -> None:
    storage = MemoryStorage()
    log, _ = ten(storage, synced=10)
    log.close(40)
    before = image(storage)
    other = open_log(storage, topic_id=bytes(15) + b"\1")
    assert other.log_end_offset == 0
    assert other.epochs.entries == []
    aside = {
        path: data
        for path, data in image(storage).items()
        if not path.startswith((f"{DIRECTORY}/", "data/opened/"))
    }
    before.pop("data/opened/events-3")
    assert sorted(aside.values()) == sorted(before.values())


@pytest.mark.parametrize("foreign", [{"topic_id": bytes(16)}, {"partition": 4}])
def test_a_whole_batch_of_another_partition_is_rot_and_never_cut(
    foreign: dict[str, object],
) -> None:
    storage = MemoryStorage()
    ten(storage, synced=10)
    storage = killed(storage)
    file = storage.open(FIRST)
    file.pwrite([batch(40, 4, **foreign)[1]], file.size())  # type: ignore[arg-type]
    before = image(storage)
    for same_boot in (True, False):
        with pytest.raises(CorruptLog):
            open_log(storage, config=BIG, same_boot=same_boot)
        assert image(storage) == before


def test_no_flipped_bit_of_a_sealed_segment_is_ever_read() -> None:
    storage = MemoryStorage()
    log = open_log(storage, config=config(segment_bytes=500))
    written = [append(log, 2)[1] for _ in range(4)]
    sealed = bytes(storage.files[FIRST].data)
    assert log.segment_count > 1
    content = storage.files[FIRST]
    count = sealed_batches = 0
    while len(b"".join(written[:sealed_batches])) < len(sealed):
        sealed_batches += 1
    for bit in range(8 * len(sealed)):
        content.data[bit // 8] ^= 1 << bit % 8
        for offset in range(0, 2 * sealed_batches, 2):
            place = offset // 2
            try:
                data = log.read(offset, max_bytes=1 << 20, end_offset=8)
            except CorruptLog as error:
                damaged = range(error.log_start, error.high_watermark)
            else:
                assert data, "nothing, and no error"
                assert b"".join(written[place:]).startswith(data)
                continue
            assert offset in damaged
            count += 1
        content.data[bit // 8] ^= 1 << bit % 8
    assert count >= 8 * len(sealed)
