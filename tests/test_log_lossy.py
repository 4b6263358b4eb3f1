"""Is a replica lossy? The table of docs/rules.md, and what a replicated log does about damage."""

from __future__ import annotations

import random

import msgspec
import pytest
from log_support import (
    DIRECTORY,
    TOPIC_ID,
    append,
    checkpoint,
    config,
    open_log,
    read_all,
    run,
    sync,
)

from shmlog.errors import CorruptLog
from shmlog.log import checkpoint as files
from shmlog.log import paths
from shmlog.log.checkpoint import Checkpoint, Level
from shmlog.log.log import Log
from shmlog.log.storage import MemoryStorage

PATH = f"{DIRECTORY}/{paths.CHECKPOINT}"
STOPS = {
    "clean": {"clean": True, "same_boot": False},
    "kill": {"clean": False, "same_boot": True},
    "power cut": {"clean": False, "same_boot": False},
}


def killed(storage: MemoryStorage) -> MemoryStorage:
    return storage.after_kill(random.Random(0))


def written(storage: MemoryStorage, level: Level) -> tuple[Log, list[bytes]]:
    """Ten batches of four records in several segments; the first eight synced and in the checkpoint."""
    log = open_log(storage, replicated=True, config=config(segment_bytes=500))
    run(log.set_level(level))
    data = []
    for number in range(10):
        if number == 8:
            sync(log)
            checkpoint(log)
        data.append(append(log, 4)[1])
    return log, data


def flip(storage: MemoryStorage, offset: int, by: int) -> None:
    """Damage the batch at `offset`."""
    for path in sorted(storage.files):
        if path.endswith(".log") and int(path[-24:-4]) <= offset:
            name = path
    data = storage.files[name].data
    at = data.find(offset.to_bytes(8, "little"), 16)
    while at % 8 or at < 16 or bytes(data[at - 16 : at - 12]) != bytes(data[:4]):
        at = data.find(offset.to_bytes(8, "little"), at + 1)
    data[at - 16 + by] ^= 0x10


def test_damage_is_put_where_it_is_meant_to_be() -> None:
    storage = MemoryStorage()
    written(storage, "os")
    for path in [path for path in storage.files if path.endswith(".index")]:
        storage.unlink(path)  # else a sealed segment is not looked at
    flip(storage, 12, 0)
    with pytest.raises(CorruptLog) as raised:
        open_log(killed(storage))
    assert raised.value.log_start == 12


# -- the table ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("replicated", [True, False])
@pytest.mark.parametrize("level", ["os", "disk"])
@pytest.mark.parametrize("stop", STOPS)
def test_without_damage_only_a_power_cut_at_level_os_makes_lossy(
    stop: str, level: Level, replicated: bool
) -> None:
    storage = MemoryStorage()
    log, data = written(storage, level)
    if stop == "clean":
        log.close(40)
    again = open_log(killed(storage), replicated=replicated, **STOPS[stop])
    assert again.recovery.lossy == (stop == "power cut" and level == "os")
    assert bool(again.recovery.lossy_reason) == again.recovery.lossy
    assert again.level == level
    assert read_all(again) == data


@pytest.mark.parametrize("level", ["os", "disk"])
@pytest.mark.parametrize(("stop", "lossy"), [("kill", False), ("power cut", None)])
def test_a_torn_tail_above_the_mark_makes_no_difference(
    stop: str, lossy: bool | None, level: Level
) -> None:
    storage = MemoryStorage()
    log, data = written(storage, level)
    active = log._segments[-1]
    storage.open(active.path).pwrite([data[-1][:70]], active.size)
    again = open_log(killed(storage), replicated=True, **STOPS[stop])
    assert again.recovery.cut_bytes == 70
    assert again.recovery.lossy == (level == "os" if lossy is None else lossy)
    assert read_all(again) == data


@pytest.mark.parametrize("level", ["os", "disk"])
@pytest.mark.parametrize("stop", STOPS)
@pytest.mark.parametrize("where", ["rot", "middle", "front", "end", "all"])
def test_rot_and_missing_files_below_the_mark_make_lossy_at_any_level(
    where: str, stop: str, level: Level
) -> None:
    storage = MemoryStorage()
    log, data = written(storage, level)
    if stop == "clean":
        log.close(40)
    logs = [path for path in sorted(storage.files) if path.endswith(".log")]
    assert len(logs) >= 3
    lost = {"middle": logs[1:2], "front": logs[:1], "end": logs[1:], "all": logs, "rot": []}[where]
    kept = 12 if where == "rot" else 0 if where in ("front", "all") else int(logs[1][-24:-4])
    for path in lost:
        storage.unlink(path)
    if where == "rot":
        storage.unlink(f"{DIRECTORY}/{paths.segment_index(8)}")
        for path in logs:
            storage.unlink(path.replace(".log", ".index"))
        flip(storage, 12, 0)
    storage = killed(storage)
    before = {path: bytes(content.data) for path, content in storage.files.items()}
    with pytest.raises(CorruptLog):
        open_log(storage, **STOPS[stop])
    assert {path: bytes(content.data) for path, content in storage.files.items()} == before
    again = open_log(storage, replicated=True, **STOPS[stop])
    assert again.recovery.lossy
    assert again.log_end_offset == again.synced_end_offset == kept
    assert read_all(again) == data[: kept // 4]
    assert_nothing_deleted(storage, before)
    append(again, 4, epoch=3)
    assert read_all(open_log(killed(storage), replicated=True))[:-1] == data[: kept // 4]


def assert_nothing_deleted(storage: MemoryStorage, before: dict[str, bytes]) -> None:
    """Every segment's bytes are still there, under whatever name."""
    now = [bytes(c.data) for path, c in storage.files.items() if ".log" in path]
    for path, data in before.items():
        if path.endswith(".log"):
            assert any(found.startswith(data) for found in now), path


def test_rot_above_the_mark_in_the_same_boot_is_set_aside_and_lossy() -> None:
    storage = MemoryStorage()
    log, data = written(storage, "disk")
    many = [append(log, 4)[1] for _ in range(6)]
    flip(storage, 44, 70)
    storage = killed(storage)
    before = {path: bytes(content.data) for path, content in storage.files.items()}
    again = open_log(storage, replicated=True)
    assert again.recovery.lossy
    assert read_all(again) == [*data, *many][:11]
    assert again.recovery.quarantined
    assert_nothing_deleted(storage, before)


def test_damage_behind_a_believed_index_is_found_when_headers_are_needed() -> None:
    storage = MemoryStorage()
    log, data = written(storage, "disk")
    log.close(40)
    for name in ("epochs", "epochs.previous", "producers", "producers.previous"):
        storage.files.pop(f"{DIRECTORY}/{name}", None)
    flip(storage, 4, 0)
    with pytest.raises(CorruptLog):
        open_log(killed(storage), clean=True)
    again = open_log(killed(storage), replicated=True, clean=True)
    assert again.recovery.lossy
    assert read_all(again) == data[:1]


def test_nothing_at_all_is_said_to_be_fresh() -> None:
    assert open_log(MemoryStorage(), replicated=True, same_boot=False).recovery.fresh
    storage = MemoryStorage()
    open_log(storage)
    assert not open_log(killed(storage), replicated=True).recovery.fresh


# -- quarantine ---------------------------------------------------------------------------------------


def test_a_second_quarantine_keeps_the_files_of_the_first() -> None:
    storage = MemoryStorage()
    for round_ in range(3):
        log = open_log(storage, replicated=True)
        while log.log_end_offset < 40:
            append(log, 4, epoch=round_, value=b"%d" % round_)
        sync(log)
        checkpoint(log)
        for path in [path for path in storage.files if path.endswith(".index")]:
            storage.unlink(path)
        flip(storage, 4, 0)
        storage = killed(storage)
        open_log(storage, replicated=True)
    names = [name for name in storage.list(DIRECTORY) if ".corrupt" in name]
    assert sum(name.startswith(paths.segment_log(0)) for name in names) == 3


@pytest.mark.parametrize(
    ("where", "power"),
    [(where, power) for where in ("rot", "middle", "front") for power in (False, True)]
    # Above the mark a power cut is a reason of its own for batches that do not follow each other.
    + [("rot above", False)],
)
def test_a_quarantine_that_is_stopped_anywhere_is_finished_and_stays_lossy(
    where: str, power: bool
) -> None:
    storage = MemoryStorage()
    log, data = written(storage, "disk")
    if where == "rot above":
        data += [append(log, 4)[1] for _ in range(6)]
    logs = [path for path in sorted(storage.files) if path.endswith(".log")]
    if where in ("middle", "front"):
        storage.unlink(logs[where == "middle"])
    else:
        for path in logs:
            storage.unlink(path.replace(".log", ".index"))
        flip(storage, 12 if where == "rot" else 44, 0)
    storage = killed(storage)
    before = {path: bytes(content.data) for path, content in storage.files.items()}
    images = []
    rng = random.Random(4)

    def stop(kind: str, path: str) -> None:
        if kind != "pread":
            images.append(storage.after_power_cut(rng) if power else storage.after_kill(rng))

    storage.on_operation = stop
    end = open_log(storage, replicated=True).log_end_offset
    storage.on_operation = None
    assert len(images) > 8
    for image in images:
        again = open_log(image, replicated=True, same_boot=not power)
        assert again.recovery.lossy
        assert read_all(again) == data[: again.log_end_offset // 4]
        assert again.log_end_offset <= max(end, 40)
        assert_nothing_deleted(image, before)


# -- lossy and level in the checkpoint ----------------------------------------------------------------


def test_lossy_stays_until_the_cluster_has_taken_note() -> None:
    """A kill between recovery and registration must not make a replica good again."""
    storage = MemoryStorage()
    written(storage, "os")
    storage = storage.after_power_cut(random.Random(3))
    log = open_log(storage, replicated=True, same_boot=False)
    assert log.recovery.lossy
    for _ in range(2):
        append(log, 4)
        checkpoint(log)
        storage = killed(storage)
        log = open_log(storage, replicated=True)
        assert log.recovery.lossy
    run(log.forget_lossy())
    assert not open_log(killed(storage), replicated=True).recovery.lossy


def test_lossy_is_written_before_anything_else_is_changed() -> None:
    storage = MemoryStorage()
    written(storage, "os")
    storage = killed(storage)
    images = []

    def stop(kind: str, path: str) -> None:
        if kind in ("pwrite", "truncate", "unlink", "sync") and path.endswith(".log"):
            images.append(killed(storage))

    storage.on_operation = stop
    open_log(storage, replicated=True, same_boot=False)
    assert images
    # The machine's boot id is the new one by now.
    assert all(open_log(image, replicated=True).recovery.lossy for image in images)


def test_an_older_checkpoint_without_a_level_is_read_as_os() -> None:
    class Older(msgspec.Struct, frozen=True):
        topic_id: bytes
        log_start: int
        high_watermark: int
        recovery_point: int

    storage = MemoryStorage()
    storage.make_dir(DIRECTORY)
    files.replace(storage, PATH, Older(TOPIC_ID, 0, 0, 0))
    log = open_log(storage, config=config(durability="disk"), replicated=True, same_boot=False)
    assert (log.level, log.recovery.lossy) == ("os", True)


def test_a_new_log_has_the_level_of_its_topic() -> None:
    for durability in ("os", "disk"):
        assert open_log(MemoryStorage(), config=config(durability=durability)).level == durability


def test_level_os_is_durable_in_both_generations_once_its_job_has_run() -> None:
    storage = MemoryStorage()
    log, _ = written(storage, "disk")
    job = log.set_level("os")
    run(job)
    for name in (PATH, f"{PATH}.previous"):
        found = files.read_one(storage, name, Checkpoint)
        assert found is not None
        assert found.level == "os"
    for seed in range(10):
        image = storage.after_power_cut(random.Random(seed))
        assert open_log(image, replicated=True, same_boot=False).recovery.lossy


def test_level_disk_is_refused_while_something_reported_is_not_synced() -> None:
    log, _ = written(MemoryStorage(), "os")
    assert log.synced_end_offset == 32
    with pytest.raises(AssertionError, match="reported up to 40, synced up to 32"):
        log.set_level("disk")
    run(log.set_level("disk", reported_end=32))
    assert log.level == "disk"
    run(log.set_level("os"))
    sync(log)
    run(log.set_level("disk"))


@pytest.mark.parametrize("cut", ["truncate", "anew"])
def test_a_level_whose_job_is_overtaken_by_a_cut_is_durable_with_the_cut(cut: str) -> None:
    storage = MemoryStorage()
    log, _ = written(storage, "disk")
    job = log.set_level("os")
    if cut == "truncate":
        log.truncate_to(8)
    else:
        log.start_anew(8)
    run(job)
    assert open_log(killed(storage), replicated=True).level == "os"


def test_a_replicas_high_watermark_is_what_its_leader_said_not_its_end() -> None:
    storage = MemoryStorage()
    log, _ = written(storage, "disk")
    sync(log)
    checkpoint(log, 12)
    for _ in range(2):
        storage = killed(storage)
        log = open_log(storage, replicated=True)
        assert log.high_watermark == log.recovery.high_watermark == 12
    log.truncate_to(8)
    assert log.high_watermark == 8
    assert open_log(killed(storage), replicated=True).high_watermark == 8
    assert open_log(killed(storage)).high_watermark == 8  # alone: all there is was committed
