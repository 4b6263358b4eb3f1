"""A log under retention: when segments are closed, what is known of their times, and a life against a simple model,
looked at as a kill would leave it before each operation of the disk."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import log_support as ls
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shmlog.clock import NS_PER_MS, NS_PER_S
from shmlog.errors import DiskFull
from shmlog.log.jobs import GiveBackJob
from shmlog.log.log import Log
from shmlog.log.retention import too_much, too_old, wants_roll
from shmlog.log.storage import MemoryStorage

RETENTION_MS, SEGMENT_MS = 4000, 500


def put(log: Log, at_ms: int, count: int = 1) -> None:
    ls.append(log, count, append_time_ns=at_ms * NS_PER_MS)


def times(log: Log) -> list[tuple[int, int, int]]:
    """(base offset, first and last append time in ms) of the segments that are not empty."""
    return [
        (s.base_offset, s.first_append_time_ns // NS_PER_MS, s.last_append_time_ns // NS_PER_MS)
        for s in log.segments
        if s.size
    ]


def test_an_append_closes_a_segment_whose_first_batch_is_too_old() -> None:
    log = ls.open_log(MemoryStorage(), config=ls.config(segment_age=SEGMENT_MS))
    for at_ms in (100, 300, 599, 600, 1000, 1100, 9000):
        put(log, at_ms)
    assert times(log) == [(0, 100, 599), (3, 600, 1000), (5, 1100, 1100), (6, 9000, 9000)]


def test_the_batches_of_one_write_are_spread_over_segments_by_their_age() -> None:
    log = ls.open_log(MemoryStorage(), config=ls.config(segment_age=SEGMENT_MS))
    ages = (100, 599, 600, 1099, 1100)
    turn = [ls.batch(n, append_time_ns=at * NS_PER_MS) for n, at in enumerate(ages)]
    log.append(turn, 0)
    assert times(log) == [(0, 100, 599), (2, 600, 1099), (4, 1100, 1100)]
    assert ls.read_all(log) == [data for _, data in turn]


def test_append_time_never_falls_within_a_segment() -> None:
    log = ls.open_log(MemoryStorage())
    for at_ms in (100, 9000, 200, 300, 299):
        put(log, at_ms)
    assert times(log) == [(0, 100, 9000), (2, 200, 300), (4, 299, 299)]


@pytest.mark.parametrize("clean", [True, False])
def test_the_times_of_segments_are_known_after_a_restart(clean: bool) -> None:
    storage = MemoryStorage()
    log = ls.open_log(storage, config=ls.config(segment_age=SEGMENT_MS))
    for at_ms in (100, 300, 700, 800, 2000, 2100):
        put(log, at_ms)
    known = times(log)
    assert len(known) == 3
    if clean:
        log.close(log.log_end_offset)
    else:
        storage = storage.after_kill(random.Random(1))
    assert times(ls.open_log(storage, clean=clean)) == known


def test_a_cut_to_the_beginning_forgets_the_first_append_time() -> None:
    log = ls.open_log(MemoryStorage())
    put(log, 100)
    put(log, 200)
    log.truncate_to(1)
    assert times(log) == [(0, 100, 100)]
    log.truncate_to(0)
    put(log, 700)
    assert times(log) == [(0, 700, 700)]


def test_a_roll_without_space_changes_nothing() -> None:
    storage = MemoryStorage()
    log = ls.open_log(storage)
    put(log, 100)
    storage.fail("create", 1, 28)
    with pytest.raises(DiskFull):
        log.roll()
    assert log.segment_count == 1
    log.roll()
    put(log, 200)
    assert times(log) == [(0, 100, 100), (1, 200, 200)]


def test_a_segment_closed_by_age_gives_back_what_it_has_preallocated() -> None:
    storage = MemoryStorage()
    log = ls.open_log(
        storage,
        config=ls.config(
            segment_bytes=1 << 20, max_message_bytes=1024, max_uncompressed_bytes=4096
        ),
    )
    put(log, 100)
    ls.run(job := log.allocation_job())
    assert job is not None
    log.finish_allocation(job)
    path = log.segments[0].path
    assert len(storage.files[path].data) == 1 << 20
    log.roll()
    put(log, 200)
    job = log.allocation_job()
    assert isinstance(job, GiveBackJob)
    job.run()
    log.finish_allocation(job)
    assert len(storage.files[path].data) == log.segments[0].size == log.segments[0].allocated
    assert not isinstance(log.allocation_job(), GiveBackJob)
    again = ls.open_log(storage.after_kill(random.Random(1)), config=log.config)
    assert ls.read_all(again) == ls.read_all(log)


def test_a_log_that_nobody_reads_keeps_few_files_open() -> None:
    log = ls.open_log(MemoryStorage(), config=ls.config(segment_age=100))
    for second in range(30):
        put(log, 1000 * second)
        ls.sync(log)
        ls.checkpoint(log)
    assert log.segment_count == 30
    assert log.open_files <= 7


# -- a life under retention -----------------------------------------------------------------------


@dataclass
class Model:
    """What was appended and when; what retention may have taken by now."""

    batches: list[ls.Stamped] = field(default_factory=list)
    start: int = 0
    high_watermark: int = 0

    @property
    def end(self) -> int:
        return self.batches[-1][0].end_offset if self.batches else 0


class Life:
    """A log, its model, and a pass of retention as a broker makes it."""

    def __init__(self, seed: int, retention_bytes: int) -> None:
        self.rng = random.Random(seed)
        self.retention_bytes = retention_bytes
        self.config = ls.config(
            segment_age=SEGMENT_MS, retention=RETENTION_MS, retention_bytes=retention_bytes
        )
        self.storage = MemoryStorage()
        self.log = ls.open_log(self.storage, config=self.config)
        self.model = Model()
        self.now_ms = 1000
        self.points = 0
        self.storage.on_operation = self.look

    def look(self, kind: str, path: str) -> None:
        """Before an operation: what would a kill leave?"""
        self.points += 1
        if kind != "pread" and self.points % 3 == 0:
            self.check(ls.open_log(self.storage.after_kill(self.rng), config=self.config))

    def check(self, log: Log) -> None:
        """All from the log start on is there, and nothing was taken that was not given up."""
        assert log.log_start_offset <= self.model.start
        assert log.log_end_offset >= self.model.end
        kept = [b for h, b in self.model.batches if h.end_offset > log.log_start_offset]
        assert ls.read_all(log)[: len(kept)] == kept

    def append(self) -> None:
        self.now_ms += self.rng.choice((0, 10, 200, 1500))
        offset = self.log.log_end_offset
        count = self.rng.randrange(1, 9)
        one = ls.batch(
            offset,
            values=[b"%04d" % (offset + i) * 8 for i in range(count)],
            append_time_ns=self.now_ms * NS_PER_MS,
        )
        self.log.append([one], 0)
        self.model.batches.append(one)

    def commit(self) -> None:
        ends = [h.end_offset for h, _ in self.model.batches[-4:]]
        self.model.high_watermark = max(self.model.high_watermark, self.rng.choice([0, *ends]))

    def sync(self) -> None:
        ls.sync(self.log)

    def checkpoint(self) -> None:
        ls.checkpoint(self.log, self.model.high_watermark)

    def wait(self) -> None:
        self.now_ms += self.rng.choice((100, 1000, 5000))

    def restart(self) -> None:
        self.storage.on_operation = None
        self.storage = self.storage.after_kill(self.rng)
        self.log = ls.open_log(self.storage, config=self.config)
        self.check(self.log)
        self.model.start = self.log.log_start_offset  # it may not have been written down
        self.storage.on_operation = self.look

    def retain(self) -> None:
        log, hw, now_ns = self.log, self.model.high_watermark, self.now_ms * NS_PER_MS
        if wants_roll(
            log.segments[-1],
            now_ns,
            retention_ms=RETENTION_MS,
            roll_after_ms=SEGMENT_MS,
            log_start=log.log_start_offset,
            high_watermark=hw,
        ):
            log.roll()
        segments = log.segments
        old = too_old(segments, now_ns, RETENTION_MS, hw)
        count = max(old, too_much(segments, self.retention_bytes, hw))
        if count:
            self.judge(segments[count - 1].end_offset)
            self.model.start = segments[count - 1].end_offset
            log.set_log_start(self.model.start)
        self.judge_what_stays()

    def judge(self, start: int) -> None:
        """What goes is committed, and too old or more than is to be kept."""
        assert self.model.start < start <= self.model.high_watermark
        left = sum(len(b) for h, b in self.model.batches if h.base_offset >= start)
        for header, _ in self.model.batches:
            if self.model.start <= header.base_offset < start:
                age_ms = self.now_ms - header.append_time_ns // NS_PER_MS
                assert age_ms > RETENTION_MS or left >= self.retention_bytes >= 0

    def judge_what_stays(self) -> None:
        """A record outlives its time by less than the age of a segment, once it is committed."""
        for header, _ in self.model.batches:
            if self.model.start <= header.base_offset < self.model.high_watermark:
                segment = next(s for s in self.log.segments if s.end_offset > header.base_offset)
                if segment.end_offset <= self.model.high_watermark:
                    age_ms = self.now_ms - header.append_time_ns // NS_PER_MS
                    assert age_ms <= RETENTION_MS + SEGMENT_MS


@settings(deadline=None, derandomize=True, max_examples=40)
@given(st.integers(0, 10**6), st.sampled_from([-1, 0, 2500]))
def test_a_life_under_retention_keeps_what_it_must_whenever_it_is_killed(
    seed: int, retention_bytes: int
) -> None:
    life = Life(seed, retention_bytes)
    steps: list[Callable[[], None]] = [life.append, life.append, life.commit, life.sync]
    steps += [life.checkpoint, life.retain, life.retain, life.wait, life.restart]
    for _ in range(60):
        life.rng.choice(steps)()
        life.check(life.log)
    assert life.points > 10


def test_after_a_pass_its_sync_and_its_checkpoint_the_files_are_gone() -> None:
    life = Life(5, -1)
    for _ in range(30):
        life.append()
    life.model.high_watermark = life.model.end
    life.now_ms += 60 * NS_PER_S // NS_PER_MS
    life.retain()
    life.sync()
    life.checkpoint()
    assert life.model.start == life.model.end == life.log.log_start_offset
    assert [n for n in life.storage.list(ls.DIRECTORY) if n.endswith(".log")] == [
        f"{life.model.end:020}.log"
    ]
    life.append()
    life.restart()
    assert ls.read_all(life.log) == [life.model.batches[-1][1]]
