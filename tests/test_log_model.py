"""A log against a list: whatever is done to it in whatever order, it holds what the list holds."""

from __future__ import annotations

import random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from log_support import DIRECTORY, Stamped, batch, config, open_log, read_all, run, sync

from shmlog.errors import OffsetOutOfRange
from shmlog.log.log import Log
from shmlog.log.storage import MemoryStorage
from shmlog.log.verify import verify
from shmlog.records.batch import iterate

SIZES = st.lists(st.integers(1, 12), min_size=1, max_size=4)
TIMES = st.integers(0, 40)
PRODUCER = 7


class LogMachine(RuleBasedStateMachine):
    """The model: every batch ever appended, the log start, the synced end."""

    def __init__(self) -> None:
        super().__init__()
        self.storage = MemoryStorage()
        self.batches: list[Stamped] = []
        self.times: list[int] = []  # of the records from `start_of_times` on
        self.start_of_times = 0
        self.was_cut = False
        self.marks: list[tuple[int, int]] = []  # the producer's next sequence at each end
        self.start = self.synced = self.epoch = self.sequence = 0
        self.begun = -1  # the epoch in which the next batch will be, if it begins at the end
        self.log: Log

    @initialize(
        segment_bytes=st.sampled_from([600, 1500, 6000]), interval=st.sampled_from([1, 500])
    )
    def open(self, segment_bytes: int, interval: int) -> None:
        self.config = config(segment_bytes=segment_bytes, index_interval_bytes=interval)
        self.log = open_log(self.storage, config=self.config)

    @property
    def end(self) -> int:
        return self.start_of_times + len(self.times)

    @rule(sizes=SIZES, data=st.data(), new_epoch=st.booleans())
    def append(self, sizes: list[int], data: st.DataObject, new_epoch: bool) -> None:
        self.epoch += new_epoch
        turn = []
        for size in sizes:
            times = data.draw(st.lists(TIMES, min_size=size, max_size=size))
            one = batch(
                self.end,
                size,
                epoch=self.epoch,
                timestamps=times,
                append_time_ns=self.end,
                producer_id=PRODUCER,
                producer_epoch=0,
                sequence=self.sequence,
            )
            assert self.log.producers.check(one[0]) is None
            self.log.producers.apply(one[0], self.end, self.end, 0)
            self.sequence += size
            self.times += times
            turn.append(one)
            self.marks.append((self.end, self.sequence))
        self.log.append(turn, now_ns=0)
        self.batches += turn
        self.begun = -1

    @rule(data=st.data(), limit=st.sampled_from([1, 300, 1000, 1 << 20]))
    def read(self, data: st.DataObject, limit: int) -> None:
        offset = data.draw(st.integers(self.start, self.end))
        ends = [self.start, *(header.end_offset for header, _ in self.batches)]
        end = data.draw(st.sampled_from(ends))
        got = self.log.read(offset, max_bytes=limit, end_offset=end)
        wanted = [one for one in self.batches if offset < one[0].end_offset <= end]
        assert b"".join(one for _, one in wanted).startswith(got)
        assert bool(got) == bool(wanted)
        headers = [header for _, header in iterate(got)]
        assert sum(header.batch_size for header in headers) == len(got)
        assert len(got) <= limit or len(headers) == 1

    @rule(beyond=st.integers(1, 5))
    def read_outside(self, beyond: int) -> None:
        for offset in (self.start - beyond, self.end + beyond):
            try:
                self.log.read(offset, max_bytes=1, end_offset=self.end)
            except OffsetOutOfRange:
                continue
            raise AssertionError(f"offset {offset} was read")

    @rule(time=TIMES, data=st.data())
    def find_time(self, time: int, data: st.DataObject) -> None:
        end = data.draw(st.sampled_from([h.base_offset for h, _ in self.batches] + [self.end]))
        known = enumerate(self.times, self.start_of_times)
        hits = ((o, t) for o, t in known if self.start <= o < end and t >= time)
        assert self.log.offset_for_time(time, end) == next(hits, None)

    @rule()
    def sync(self) -> None:
        sync(self.log)
        self.synced = self.end
        assert self.log.synced_end_offset == self.end

    @rule(behind=st.integers(0, 3))
    def checkpoint(self, behind: int) -> None:
        run(self.log.checkpoint_job(max(0, self.end - behind)))

    @rule()
    def allocate(self) -> None:
        job = self.log.allocation_job()
        if job is not None:
            job.run()
            self.log.finish_allocation(job)

    @rule()
    def roll(self) -> None:
        """As the age of the active segment would have it."""
        if self.log.segments[-1].size:
            self.log.roll()
            assert self.log.has_rolled
            assert self.log.segments[-1].base_offset == self.end

    @rule(data=st.data())
    def trim(self, data: st.DataObject) -> None:
        self.start = data.draw(st.integers(self.start, self.synced))
        self.log.set_log_start(self.start)
        run(self.log.checkpoint_job(self.synced))

    @rule()
    def stop_and_start(self) -> None:
        self.log.close(self.end)
        found = verify(self.storage, DIRECTORY)
        assert (found.damage, found.notes) == ([], [])
        self.log = open_log(self.storage, config=self.config, clean=True)
        self.synced = self.end

    @rule()
    def begin_epoch(self) -> None:
        self.epoch += 1
        self.begun = self.epoch
        run(self.log.begin_epoch(self.epoch))

    @rule(data=st.data(), syncing=st.booleans())
    def truncate(self, data: st.DataObject, syncing: bool) -> None:
        """To any boundary; a sync that is under way meanwhile vouches for nothing behind it (B21)."""
        ends = [header.end_offset for header, _ in self.batches if header.end_offset > self.start]
        offset = data.draw(st.sampled_from([self.start, *ends]))
        job = self.log.sync_job() if syncing else None
        if job is not None:
            job.run()
        self.log.truncate_to(offset)
        if job is not None:
            self.log.finish_sync(job)
        self.synced = offset if syncing else min(self.synced, offset)
        if offset < self.end or self.begun >= 0:
            self.epoch += 1  # who cuts follows a new leader
        self.batches = [one for one in self.batches if one[0].end_offset <= offset]
        if offset == self.start:
            self.batches = []
        del self.times[offset - self.start_of_times :]
        self.was_cut = True
        self.marks = [mark for mark in self.marks if mark[0] <= offset]
        if len(self.log.producers) == 0:
            self.marks = []  # no batch and no snapshot knows of it any more (P06)
        self.sequence = self.marks[-1][1] if self.marks else 0
        self.begun = -1

    @rule(offset=st.integers(0, 60), syncing=st.booleans())
    def start_anew(self, offset: int, syncing: bool) -> None:
        job = self.log.sync_job() if syncing else None
        self.log.start_anew(offset)
        if job is not None:
            job.run()
            self.log.finish_sync(job)
        self.batches, self.times, self.start_of_times = [], [], offset
        self.start = self.synced = offset
        self.sequence, self.marks = 0, []
        self.epoch += 1
        self.begun = -1
        assert self.log.epochs.entries == []
        assert self.log.synced_end_offset == offset

    @rule(seed=st.integers(0, 1000), torn=st.booleans())
    def kill_and_start(self, seed: int, torn: bool) -> None:
        in_flight = None
        if torn:
            active = self.log._segments[-1].path
            half = batch(self.end, 3)[1][:-8]
            in_flight = (active, self.log._segments[-1].size, half)
        self.storage = self.storage.after_kill(random.Random(seed), in_flight=in_flight)
        assert verify(self.storage, DIRECTORY).damage == []
        self.log = open_log(self.storage, config=self.config)
        assert self.log.synced_end_offset == self.end
        self.synced = self.end

    @invariant()
    def the_ends_agree(self) -> None:
        if not hasattr(self, "log"):
            return
        assert self.log.log_end_offset == self.end
        assert self.log.log_start_offset == self.start
        assert self.log.log_start_offset <= self.log.synced_end_offset <= self.end

    @invariant()
    def all_batches_are_there_with_their_epochs(self) -> None:
        if not hasattr(self, "log"):
            return
        wanted = [one for one in self.batches if one[0].end_offset > self.start]
        assert read_all(self.log) == [data for _, data in wanted]
        for header, _ in wanted:
            offset = max(header.base_offset, self.start)
            assert self.log.epochs.epoch_for(offset) == header.leader_epoch

    @invariant()
    def the_epochs_are_those_of_the_batches_and_the_one_begun(self) -> None:
        if not hasattr(self, "log"):
            return
        known = {epoch for epoch, _ in self.log.epochs.entries}
        used = {one[0].leader_epoch for one in self.batches if one[0].end_offset > self.start}
        if self.begun >= 0:
            assert self.log.epochs.last_epoch == self.begun
            assert self.log.epochs.end_of(self.begun, self.end) == (self.begun, self.end)
        assert used <= known
        assert all(start <= self.end for _, start in self.log.epochs.entries)

    @invariant()
    def the_last_batches_are_known_as_duplicates(self) -> None:
        if not hasattr(self, "log"):
            return
        for header, _ in self.batches[-5:]:
            if (
                self.was_cut
                and header.end_offset <= self.start
                and header is not self.batches[-1][0]
            ):
                continue  # it had left the window, and retention its batch: nothing knows of it
            found = self.log.producers.check(header)
            assert found is not None, header
            assert found.base_offset == header.base_offset
        if self.batches and self.batches[-1][0].end_offset > self.start:
            assert self.log.last_append_time_ns == self.batches[-1][0].append_time_ns

    @invariant()
    def the_segments_know_their_first_and_last_append_times(self) -> None:
        for segment in self.log.segments if hasattr(self, "log") else ():
            held = range(segment.base_offset, segment.end_offset)
            times = [h.append_time_ns for h, _ in self.batches if h.base_offset in held]
            if times and segment.size and segment.base_offset >= self.start:
                assert segment.first_append_time_ns == times[0]
                assert segment.last_append_time_ns == times[-1]


LogMachine.TestCase.settings = settings(
    deadline=None, max_examples=150, stateful_step_count=30, derandomize=True
)
test_a_log_holds_what_a_list_holds = LogMachine.TestCase
