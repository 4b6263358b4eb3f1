"""Crash-point enumeration: short workloads, stopped before every single file operation.

At each point two kinds of image are taken: what kill -9 leaves (all that was written, any prefix of the write
under way) and what a power cut leaves (what was synced, any sectors of the rest, any of the new names). A log
opened on an image has to start unaided, hold what had been promised, invent nothing, and come to the same end
when it is opened again or when its recovery is stopped too.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import log_parts as lp
import pytest

from shmlog.log.log import Log
from shmlog.log.storage import MemoryStorage


@dataclass
class World:
    """A log at work, and what its user knows."""

    storage: MemoryStorage = field(default_factory=MemoryStorage)
    attempted: list[lp.Stamped] = field(default_factory=list)
    written: int = 0  # the end of what append has returned for
    synced: int = 0  # the end of what a finished sync covers
    log_start: int = 0
    epoch: int = 0
    log: Log | None = None

    def opened(self) -> Log:
        if self.log is None:
            self.log = lp.open_log(self.storage)
        return self.log


def append(world: World, *sizes: int) -> None:
    log = world.opened()
    offset, batches = log.log_end_offset, []
    for size in sizes:
        sequence = sum(h.record_count for h, _ in world.attempted)
        values = [b"%04d" % (offset + i) * 9 for i in range(size)]
        one = lp.make(offset, values, epoch=world.epoch, producer=(7, 0, sequence))
        batches.append(one)
        world.attempted.append(one)
        offset += size
    log.append(batches, 0)
    for header, _ in batches:
        log.producers.apply(header, header.base_offset, header.append_time_ns, 0)
    world.written = offset


def one(world: World) -> None:
    append(world, 3)


def rolling(world: World) -> None:
    world.epoch += 1
    append(world, 9, 12, 2, 14)


def sync(world: World) -> None:
    lp.sync(world.opened())
    world.synced = world.opened().synced_end_offset


def late_sync(world: World) -> None:
    """What is appended while a sync is under way is not covered by it."""
    log = world.opened()
    job = log.sync_job()
    append(world, 2)
    if job is not None:
        job.run()
        log.finish_sync(job)
    world.synced = log.synced_end_offset


def checkpoint(world: World) -> None:
    lp.checkpoint(world.opened())


def allocate(world: World) -> None:
    job = world.opened().allocation_job()
    if job is not None:
        job.run()
        world.opened().finish_allocation(job)


def trim(world: World) -> None:
    log = world.opened()
    world.log_start = max(world.log_start, log.synced_end_offset - 2)
    log.set_log_start(world.log_start)
    job = log.checkpoint_job(log.synced_end_offset)
    if job is not None:
        job.run()


def reopen(world: World) -> None:
    log = world.opened()
    log.close(log.log_end_offset)
    world.synced = log.synced_end_offset
    world.log = lp.open_log(world.storage, clean=True)


STEPS: list[Callable[[World], None]] = [
    one, rolling, sync, late_sync, checkpoint, allocate, trim, reopen,
]  # fmt: skip


def check(image: MemoryStorage, world: World, least: int, *, same_boot: bool) -> int:
    """Open the log of an image; its end."""
    log = lp.open_log(image, same_boot=same_boot)
    end = log.log_end_offset
    assert least <= end, f"offsets {end} to {least} are gone"
    assert log.log_start_offset <= world.log_start
    expected = [
        data
        for header, data in world.attempted
        if header.end_offset > log.log_start_offset and header.end_offset <= end
    ]
    assert [data for _, data in lp.read_all(log)] == expected
    assert log.synced_end_offset == end
    check_derived(log)
    return end


def check_derived(log: Log) -> None:
    """Epochs and producers are those of the batches; the log goes on."""
    starts: dict[int, int] = {}
    for header, _ in lp.read_all(log):
        starts.setdefault(header.leader_epoch, max(header.base_offset, log.log_start_offset))
    known = [entry for entry in log.epochs.entries if entry[1] < log.log_end_offset]
    assert known == sorted(starts.items())
    kept = lp.read_all(log)
    if kept:
        header = kept[-1][0]
        assert log.producers.check(header) is not None, "the last batch is not known any more"
    log.append([lp.make(log.log_end_offset, [b"next"], epoch=99)], 0)
    assert lp.values_of(lp.read_all(log)[-1]) == [b"next"]


def recover_with_crashes(image: MemoryStorage, world: World, least: int, same_boot: bool) -> None:
    """Stop the recovery itself before each of its operations; every image of that recovers too."""
    images: list[MemoryStorage] = []
    rng = random.Random(1)

    def stop(kind: str, path: str) -> None:
        if kind not in ("pread", "record"):
            images.append(image.after_kill(rng) if same_boot else image.after_power_cut(rng))

    copy = image.after_kill(random.Random(0))
    image.on_operation = stop
    lp.open_log(image, same_boot=same_boot)
    image.on_operation = None
    end = check(copy, world, least, same_boot=same_boot)
    for again in images:
        assert check(again, world, least, same_boot=same_boot) <= max(end, world.written)


def run(steps: tuple[Callable[[World], None], ...], seed: int, *, every: int, deep: int) -> int:
    """Do the steps; take and check an image before every operation (or each `every`-th)."""
    world = World()
    rng = random.Random(seed)
    points = 0

    def stop(kind: str, path: str) -> None:
        nonlocal points
        if kind == "pread":
            return
        points += 1
        if points % every:
            return
        kill = world.storage.after_kill(rng)
        power = world.storage.after_power_cut(rng)
        if points % deep == 0:
            recover_with_crashes(kill, world, world.written, True)
            recover_with_crashes(power, world, world.synced, False)
        else:
            check(kill, world, world.written, same_boot=True)
            check(power, world, world.synced, same_boot=False)

    world.storage.on_operation = stop
    for step in steps:
        step(world)
    return points


@pytest.mark.parametrize("first", STEPS, ids=lambda step: step.__name__)
def test_every_point_of_every_workload_of_two_steps(first: Callable[[World], None]) -> None:
    for number, second in enumerate(STEPS):
        assert run((first, second), number, every=1, deep=7)


@pytest.mark.parametrize("seed", range(8))
def test_points_of_longer_workloads(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(8):
        run(tuple(rng.choices(STEPS, k=6)), seed, every=3, deep=24)


def test_the_workload_that_rolls_syncs_trims_and_restarts() -> None:
    steps = (rolling, sync, checkpoint, one, rolling, late_sync, trim, checkpoint, reopen, rolling)
    for seed in range(2):
        assert run(steps, seed, every=2, deep=30) > 40


@pytest.mark.slow
def test_every_point_of_every_workload_of_three_steps() -> None:
    for number, steps in enumerate(itertools.product(STEPS, repeat=3)):
        run(steps, number, every=1, deep=11)
