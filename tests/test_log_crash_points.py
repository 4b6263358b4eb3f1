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

import log_support as ls
import pytest

from shmlog.log.log import Log
from shmlog.log.producers import Producer, ProducerStates, Remembered
from shmlog.log.retention import too_much
from shmlog.log.storage import MemoryStorage


@dataclass
class World:
    """A log at work, and what its user knows."""

    storage: MemoryStorage = field(default_factory=MemoryStorage)
    attempted: list[ls.Stamped] = field(default_factory=list)
    written: int = 0  # the end of what append has returned for
    synced: int = 0  # the end of what a finished sync covers
    log_start: int = 0
    epoch: int = 0
    life: int = 0  # how often the log was cut: what is appended then has other bytes
    anew: int | None = None  # where a log that is being emptied will begin
    remembers: bool = False  # a producer none of whose batches it has, since it was emptied
    begun: tuple[int, int] | None = None  # an epoch whose start is durable
    level: str | None = "os"  # None while it changes
    log: Log | None = None

    def opened(self) -> Log:
        if self.log is None:
            self.log = ls.open_log(self.storage)
        return self.log


def append(world: World, *sizes: int) -> None:
    log = world.opened()
    offset, batches = log.log_end_offset, []
    for size in sizes:
        sequence = sum(h.record_count for h, _ in world.attempted)
        values = [b"%04d" % (offset + i + 1000 * world.life) * 9 for i in range(size)]
        one = ls.batch(
            offset,
            values=values,
            epoch=world.epoch,
            producer_id=7,
            producer_epoch=0,
            sequence=sequence,
        )
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
    ls.sync(world.opened())
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
    ls.checkpoint(world.opened())


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


def retain(world: World) -> None:
    """As a pass of retention: close the active segment, keep the newest 900 bytes, whole segments only."""
    log = world.opened()
    if log.segments[-1].size:
        log.roll()
    sync(world)
    segments = log.segments
    count = too_much(segments, 900, world.synced)
    if count:
        kept = sum(segment.size for segment in segments[count:])
        assert kept >= 900
        log.set_log_start(segments[count - 1].end_offset)
        world.log_start = max(world.log_start, segments[count - 1].end_offset)
    ls.checkpoint(log)


def reopen(world: World) -> None:
    log = world.opened()
    log.close(log.log_end_offset)
    world.synced = log.synced_end_offset
    world.log = ls.open_log(world.storage, clean=True)


def cut(world: World, at: int | None = None) -> None:
    """Cut at the start, in the middle or at the last batch, whichever turn it is."""
    log = world.opened()
    ends = [h.end_offset for h, _ in world.attempted if h.end_offset > world.log_start]
    ends.insert(0, world.log_start)
    at = ends[(0, len(ends) // 2, max(0, len(ends) - 2))[world.life % 3]] if at is None else at
    world.written, world.synced = min(world.written, at), min(world.synced, at)
    world.begun = None
    log.truncate_to(at)
    world.attempted = [one for one in world.attempted if one[0].end_offset <= at]
    if at == world.log_start:
        world.attempted = []  # no batch is left, not even the one that held the log start
    world.life += 1
    world.epoch += 1


def cut_under_a_sync(world: World) -> None:
    """The sync began before the cut and ends after the log has grown again (B21)."""
    log = world.opened()
    job = log.sync_job()
    cut(world)
    append(world, 1, 3, 9, 9)
    if job is not None:
        job.run()
        log.finish_sync(job)
    world.synced = log.synced_end_offset
    ls.checkpoint(log, log.log_end_offset)


def anew(world: World) -> None:
    """Begin behind the end, or before the start."""
    log = world.opened()
    world.anew = log.log_end_offset + 7 if world.life % 2 else max(0, world.log_start - 5)
    before, world.written, world.synced, world.begun = world.log_start, 0, 0, None
    world.log_start, world.remembers = max(world.anew, before), False
    remembered = {ABSENT: Producer(3, (Remembered(0, 0, world.anew - 1, 9),))} if world.anew else {}
    log.start_anew(world.anew, 0, remembered)
    world.log_start = world.written = world.synced = world.anew
    world.attempted, world.anew, world.remembers = [], None, bool(remembered)
    world.life += 1
    world.epoch += 1


def begin_epoch(world: World) -> None:
    log = world.opened()
    world.epoch += 1
    log.begin_epoch(world.epoch).run()
    world.begun = (world.epoch, log.log_end_offset)


def change_level(world: World) -> None:
    log = world.opened()
    if log.level == "disk":
        world.level = None
        log.set_level("os").run()
    else:
        sync(world)
        world.level = None
        log.set_level("disk").run()
    world.level = log.level


ABSENT = 77  # a producer none of whose batches is in the log

STEPS: list[Callable[[World], None]] = [
    one, rolling, sync, late_sync, checkpoint, allocate, trim, retain, reopen,
]  # fmt: skip
CUTS: list[Callable[[World], None]] = [cut, cut_under_a_sync, anew, begin_epoch, change_level]
ALL = STEPS + CUTS


def check(image: MemoryStorage, world: World, least: int, *, same_boot: bool) -> int:
    """Open the log of an image; its end."""
    log = ls.open_log(image, same_boot=same_boot)
    end = log.log_end_offset
    check_lossy(log, world, same_boot=same_boot)
    knows_absent = ABSENT in log.producers.snapshot(end).producers
    assert knows_absent or not world.remembers
    if world.anew is not None and log.log_start_offset == end:
        if end == world.anew > 0:
            assert knows_absent, "it begins there, and nobody will tell again what was before"
        check_derived(log)
        return end
    assert least <= end, f"offsets {end} to {least} are gone"
    assert log.log_start_offset <= world.log_start
    if world.begun is not None and end == world.begun[1]:
        epoch, start = log.epochs.entries[-1]
        assert (start, epoch >= world.begun[0]) == (world.begun[1], True)
    expected = [
        data
        for header, data in world.attempted
        if header.end_offset > log.log_start_offset and header.end_offset <= end
    ]
    assert [data for _, data in ls.read_stamped(log)] == expected
    assert log.synced_end_offset == end
    check_derived(log)
    return end


def check_lossy(log: Log, world: World, *, same_boot: bool) -> None:
    """The table of lossy replicas (docs/rules.md), as far as crashes go."""
    if log.recovery.fresh:
        assert world.log is None
    if same_boot or log.recovery.fresh:
        assert not log.recovery.lossy
    elif world.level is not None:
        assert log.recovery.lossy == (world.level == "os")


def check_derived(log: Log) -> None:
    """Epochs and producers are those of the batches; the log goes on."""
    starts: dict[int, int] = {}
    for header, _ in ls.read_stamped(log):
        starts.setdefault(header.leader_epoch, max(header.base_offset, log.log_start_offset))
    known = [entry for entry in log.epochs.entries if entry[1] < log.log_end_offset]
    assert known == sorted(starts.items())
    assert all(start <= log.log_end_offset for _, start in log.epochs.entries)
    kept = ls.read_stamped(log)
    if kept:
        header = kept[-1][0]
        assert log.producers.check(header) is not None, "the last batch is not known any more"
    if log.log_start_offset == 0:
        states = ProducerStates()
        for header, _ in kept:
            states.apply(header, header.base_offset, header.append_time_ns, 0)
        assert log.producers.snapshot(0) == states.snapshot(0)
    log.append([ls.batch(log.log_end_offset, values=[b"next"], epoch=99)], 0)
    assert ls.values(ls.read_all(log)[-1:]) == [b"next"]


def recover_with_crashes(image: MemoryStorage, world: World, least: int, same_boot: bool) -> None:
    """Stop the recovery itself before each of its operations; every image of that recovers too."""
    images: list[MemoryStorage] = []
    rng = random.Random(1)

    def stop(kind: str, path: str) -> None:
        if kind not in ("pread", "record"):
            images.append(image.after_kill(rng) if same_boot else image.after_power_cut(rng))

    copy = image.after_kill(random.Random(0))
    image.on_operation = stop
    ls.open_log(image, same_boot=same_boot)
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


@pytest.mark.parametrize("first", CUTS, ids=lambda step: step.__name__)
def test_every_point_of_every_cut_of_several_segments(first: Callable[[World], None]) -> None:
    for number, second in enumerate(ALL):
        assert run((rolling, sync, first, second), number, every=1, deep=13)
        assert run((rolling, checkpoint, one, first, rolling, second), number, every=3, deep=13)


@pytest.mark.parametrize("seed", range(8))
def test_points_of_longer_workloads(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(8):
        run(tuple(rng.choices(ALL, k=7)), seed, every=4, deep=28)


def test_the_workload_that_grows_under_retention() -> None:
    for seed in range(3):
        assert run((rolling, retain, one, retain, rolling, retain, one), seed, every=1, deep=9) > 40


def test_the_workload_that_rolls_syncs_trims_and_restarts() -> None:
    steps = (rolling, sync, checkpoint, one, rolling, late_sync, trim, checkpoint, reopen, rolling)
    for seed in range(2):
        assert run(steps, seed, every=2, deep=30) > 40


@pytest.mark.slow
@pytest.mark.parametrize("first", ALL, ids=lambda step: step.__name__)
def test_the_points_of_every_workload_of_three_steps(first: Callable[[World], None]) -> None:
    for number, rest in enumerate(itertools.product(ALL, repeat=2)):
        steps = (first, *rest)
        run(steps, number, every=4 if set(steps) & set(CUTS) else 1, deep=12)
