"""A compacted log against a dict: whatever is put, deleted, compacted, stopped halfway or started again.

The model has every record ever written. What the log holds is always a part of that, at the same offsets; its table is
the model's; and a tombstone is missing only where a pass had kept it for as long as it must be kept.
"""

from __future__ import annotations

import random

import cleaning_support as cs
import log_support as ls
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from shmlog.log.log import Log
from shmlog.log.storage import MemoryStorage
from shmlog.log.verify import verify
from shmlog.records.layout import Codec

KEYS = st.sampled_from([b"a", b"b", b"c", b"d", None])
VALUES = st.sampled_from([b"x" * 60, b"y", None])
ROWS = st.lists(st.tuples(KEYS, VALUES), min_size=1, max_size=5)
RETENTION_MS = 100


class CompactedLog(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.storage = MemoryStorage()
        self.rows: list[cs.Row] = []
        self.sequence = self.now_ns = self.synced = 0
        self.kept_since: dict[int, int] = {}  # offset of a tombstone: when a pass had first kept it
        self.log: Log

    @initialize(segment_bytes=st.sampled_from([400, 900]), interval=st.sampled_from([1, 500]))
    def open(self, segment_bytes: int, interval: int) -> None:
        self.config = ls.config(
            cleanup_policy="compact",
            segment_bytes=segment_bytes,
            index_interval_bytes=interval,
            min_cleanable_dirty_ratio=0.0,
            delete_retention=RETENTION_MS,
        )
        self.log = ls.open_log(self.storage, config=self.config)

    @rule(batches=st.lists(ROWS, min_size=1, max_size=4), codec=st.sampled_from([0, 0, 1]))
    def put(self, batches: list[list[cs.Row]], codec: int) -> None:
        for rows in batches:
            cs.put(
                self.log,
                *rows,
                producer_id=7,
                producer_epoch=0,
                base_sequence=self.sequence,
                codec=Codec(codec),
            )
            self.sequence += len(rows)
            self.rows += rows

    @rule()
    def sync(self) -> None:
        ls.sync(self.log)
        self.synced = len(self.rows)

    @rule(later_ms=st.sampled_from([0, 30, 110]))
    def wait(self, later_ms: int) -> None:
        self.now_ns += later_ms * cs.MS

    @rule(keys_max=st.sampled_from([2, 1 << 19]), stop_after=st.none() | st.integers(0, 2))
    def clean(self, keys_max: int, stop_after: int | None) -> None:
        before = self.log.compaction
        result = cs.clean(
            self.storage,
            self.log,
            now_ns=self.now_ns,
            keys_max=keys_max,
            stop_after=stop_after,
        )
        if result is None:
            return
        assert result.end_offset >= before.cleaned
        if self.log.compaction != before and self.log.compaction.cleaned == result.end_offset:
            for offset, (_, value) in enumerate(self.rows[: result.end_offset]):
                if value is None:
                    self.kept_since.setdefault(offset, self.now_ns)

    @rule()
    def roll(self) -> None:
        if self.log.segments[-1].size:
            self.log.roll()

    @rule()
    def checkpoint(self) -> None:
        ls.checkpoint(self.log)

    @rule()
    def stop_and_start(self) -> None:
        self.log.close(len(self.rows))
        found = verify(self.storage, ls.DIRECTORY)
        assert (found.damage, found.notes) == ([], [])
        self.log = ls.open_log(self.storage, config=self.config, clean=True)

    @rule(seed=st.integers(0, 1000))
    def kill_and_start(self, seed: int) -> None:
        self.storage = self.storage.after_kill(random.Random(seed))
        assert verify(self.storage, ls.DIRECTORY).damage == []
        self.log = ls.open_log(self.storage, config=self.config)

    @invariant()
    def what_is_there_was_written_there(self) -> None:
        if not hasattr(self, "log"):
            return
        found = cs.records(self.log)
        assert [offset for offset, _, _ in found] == sorted({offset for offset, _, _ in found})
        assert all(self.rows[offset] == (key, value) for offset, key, value in found)
        assert self.log.log_end_offset == len(self.rows)

    @invariant()
    def the_newest_of_every_key_is_there(self) -> None:
        if not hasattr(self, "log"):
            return
        written = [(offset, key, value) for offset, (key, value) in enumerate(self.rows)]
        found = {offset for offset, _, _ in cs.records(self.log)}
        assert cs.table(cs.records(self.log)) == cs.table(written)
        for offset, key, value in {key: row for row in written for key in [row[1]]}.values():
            if offset in found or key is None:
                continue
            assert value is None, f"the newest of {key!r} is gone"
            assert offset < self.log.compaction.tombstones_dropped
            assert self.now_ns - self.kept_since[offset] >= RETENTION_MS * cs.MS
        assert all(key is not None or offset in found for offset, key, _ in written)

    @invariant()
    def it_can_be_read_from_everywhere(self) -> None:
        if not hasattr(self, "log"):
            return
        found = [offset for offset, _, _ in cs.records(self.log)]
        for offset in range(0, len(self.rows), 3):
            at, first = offset, None
            while first is None and at < len(self.rows):
                batch = cs.RecordBatch(self.log.read(at, max_bytes=1, end_offset=len(self.rows)))
                later = batch.offsets[batch.index_at(at) :].tolist()
                first, at = (later[0] if later else None), batch.end_offset
            assert first == next((o for o in found if o >= offset), None)

    @invariant()
    def the_producer_goes_on(self) -> None:
        if hasattr(self, "log"):
            one = cs.keyed(
                0, [(b"k", b"v")], producer_id=7, producer_epoch=0, base_sequence=self.sequence
            )
            assert self.log.producers.check(one[0]) is None


CompactedLog.TestCase.settings = settings(
    deadline=None, max_examples=150, stateful_step_count=30, derandomize=True
)
test_a_compacted_log_is_the_table_of_what_was_written = CompactedLog.TestCase
