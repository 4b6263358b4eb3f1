"""Compaction stopped before every single file operation, by kill -9 and by power cut.

Whatever image that leaves opens unaided, holds for every key what was newest, lets no deleted key come back, and
knows which tombstones are missing, and all epochs. Opened again, or stopped in its own recovery, it comes to the same.
"""

from __future__ import annotations

import random

import cleaning_support as cs
import log_support as ls
import pytest

from shmlog.log.log import Log
from shmlog.log.storage import MemoryStorage
from shmlog.log.verify import verify

RETENTION_MS = 10


def config(segment_bytes: int = 700):
    return ls.config(
        cleanup_policy="compact",
        segment_bytes=segment_bytes,
        min_cleanable_dirty_ratio=0.0,
        delete_retention=RETENTION_MS,
    )


class World:
    """A log that is written, compacted and trimmed, and all that was ever written to it."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.storage = MemoryStorage()
        self.log: Log = ls.open_log(self.storage, config=config())
        self.rows: list[cs.Row] = []
        self.written = self.synced = self.sequence = 0
        self.now_ns = self.epoch = 0

    def write(self, count: int) -> None:
        for _ in range(count):
            rows = [
                (self.rng.choice([b"a", b"b", b"c"]), self.rng.choice([b"v" * 80, b"w", None]))
                for _ in range(self.rng.randint(1, 3))
            ]
            self.rows += rows
            self.epoch += self.sequence % 3 == 0
            producer = {"producer_id": 7, "producer_epoch": 0, "base_sequence": self.sequence}
            cs.put(self.log, *rows, epoch=self.epoch, **producer)
            self.sequence += len(rows)
            self.written = len(self.rows)

    def sync(self) -> None:
        ls.sync(self.log)
        self.synced = self.log.synced_end_offset

    def clean(self) -> None:
        self.now_ns += RETENTION_MS * cs.MS
        cs.clean(self.storage, self.log, now_ns=self.now_ns)

    def checkpoint(self) -> None:
        ls.checkpoint(self.log)

    def reopen(self) -> None:
        self.log.close(self.log.log_end_offset)
        self.synced = self.written
        self.log = ls.open_log(self.storage, config=config(), clean=True)


def check(image: MemoryStorage, world: World, least: int, *, same_boot: bool) -> None:
    if same_boot:  # else a segment that was not synced may be missing before one that has arrived
        assert verify(image, ls.DIRECTORY).damage == []
    log = ls.open_log(image, config=config(), same_boot=same_boot)
    end = log.log_end_offset
    assert least <= end
    known = [entry for entry in world.log.epochs.entries if entry[1] < end]
    assert log.epochs.entries == known
    found = cs.records(log)
    assert all(world.rows[offset] == (key, value) for offset, key, value in found)
    written = [(offset, *row) for offset, row in enumerate(world.rows[:end])]
    assert cs.table(found) == cs.table(written)
    there = {offset for offset, _, _ in found}
    for offset, key, value in {row[1]: row for row in written}.values():
        if offset not in there:
            assert value is None, f"the newest of {key!r} is gone"
            assert offset < log.compaction.tombstones_dropped
    assert not [n for n in image.list(ls.DIRECTORY) if n.endswith((".cleaned", ".swap"))]
    log.close(end)
    assert cs.records(ls.open_log(image, config=config(), clean=True)) == found


def check_deep(image: MemoryStorage, world: World, least: int, *, same_boot: bool) -> None:
    """The recovery is stopped before each of its operations too."""
    images: list[MemoryStorage] = []
    rng = random.Random(1)

    def stop(kind: str, path: str) -> None:
        if kind != "pread":
            images.append(image.after_kill(rng) if same_boot else image.after_power_cut(rng))

    copy = image.after_kill(random.Random(0))
    image.on_operation = stop
    ls.open_log(image, config=config(), same_boot=same_boot)
    image.on_operation = None
    check(copy, world, least, same_boot=same_boot)
    for again in images:
        check(again, world, least, same_boot=same_boot)


def run(world: World, steps: list[str], *, deep: int) -> int:
    rng = random.Random(5)
    points = 0

    def stop(kind: str, path: str) -> None:
        nonlocal points
        if kind == "pread":
            return
        points += 1
        look = check_deep if points % deep == 0 else check
        look(world.storage.after_kill(rng), world, world.written, same_boot=True)
        look(world.storage.after_power_cut(rng), world, world.synced, same_boot=False)

    for step in steps:
        # Writes alone have their own test: here it is what compaction does that is stopped.
        world.storage.on_operation = None if step.isdigit() else stop
        world.write(int(step)) if step.isdigit() else getattr(world, step)()
    return points


@pytest.mark.parametrize("seed", range(3))
def test_every_point_of_passes_that_drop_and_merge(seed: int) -> None:
    steps = (
        "16 sync clean checkpoint 6 sync clean 12 sync clean checkpoint reopen 8 sync clean clean"
    )
    assert run(World(seed), steps.split(), deep=40) > 80


@pytest.mark.parametrize("seed", range(3))
def test_every_point_of_a_pass_over_what_has_no_checkpoint_yet(seed: int) -> None:
    assert run(World(seed + 50), "30 sync clean clean".split(), deep=17) > 30
