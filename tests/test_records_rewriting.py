"""What compaction leaves of a batch: the kept records at their offsets, under the batch's own identity."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shmlog.errors import CorruptMessage, InvalidRecord
from shmlog.records.batch import RecordBatch, decode_header
from shmlog.records.builder import build, stamp
from shmlog.records.layout import BATCH_SIZE_MAX, Codec, Flag
from shmlog.records.rewriting import is_header_only, only, with_gap

ROWS = st.lists(
    st.tuples(
        st.none() | st.binary(max_size=4),
        st.none() | st.binary(max_size=6),
        st.integers(0, 10),
        st.sampled_from([[], [("a", b"x")], [("b", None), ("a", b"")]]),
    ),
    min_size=1,
    max_size=12,
)
IDENTITY = (
    "leader_epoch base_offset append_time_ns topic_id partition codec last_offset_delta".split()
)
IDENTITY += "base_sequence producer_id producer_epoch".split()


def stamped(rows, codec=Codec.NONE):
    keys, values, times, headers = map(list, zip(*rows, strict=True))
    data = build(
        values,
        keys=keys,
        timestamps=times,
        headers=headers,
        codec=codec,
        producer_id=5,
        producer_epoch=1,
        base_sequence=40,
    )
    stamp(
        data,
        base_offset=1000,
        leader_epoch=3,
        append_time_ns=77,
        topic_id=b"t" * 16,
        partition=2,
    )
    return bytes(data)


def records(batch):
    batch.validate()
    columns = (batch.offsets.tolist(), batch.keys(), batch.values(), batch.timestamps.tolist())
    headers = [batch.headers(i) for i in range(len(batch))]
    return list(zip(*columns, headers, strict=True))


@given(ROWS, st.sampled_from([Codec.NONE, Codec.GZIP]), st.data(), st.booleans())
def test_what_is_kept_is_as_it_was_be_it_rewritten_twice(rows, codec, data, gap):
    batch = RecordBatch(stamped(rows, codec))
    before = records(batch)
    for _ in range(2):
        kept = sorted(data.draw(st.sets(st.sampled_from(range(len(batch))))) if len(batch) else [])
        expected = [records(batch)[i] for i in kept]
        if len(kept) == len(batch):
            continue
        again = RecordBatch(only(batch, np.array(kept, np.intp), behind_gap=gap))
        assert records(again) == expected
        assert is_header_only(again.header) == (not expected)
        assert bool(again.header.flags & Flag.BEHIND_GAP) == gap
        assert again.header.end_offset == 1000 + len(rows)
        if expected and codec == batch.header.codec == again.header.codec:
            assert again.header[3:8] == batch.header[3:8]
        for name in IDENTITY[:5] + IDENTITY[6:]:
            assert getattr(again.header, name) == getattr(batch.header, name), name
        for offset in range(998, 1002 + len(rows)):
            at = again.index_at(offset)
            assert [row[0] for row in records(again)[at:]] == [
                row[0] for row in expected if row[0] >= offset
            ]
        batch = again
    assert set(map(repr, records(batch))) <= set(map(repr, before))


def test_the_gap_flag_alone_leaves_the_records_and_both_checksums_fit():
    data = stamped([(b"k", b"v", 1, [])])
    header = decode_header(data)
    assert with_gap(data, header, behind_gap=False) is data
    behind = RecordBatch(with_gap(data, header, behind_gap=True))
    assert records(behind) == records(RecordBatch(data))
    assert [behind.header.follows(end) for end in (999, 1000, 1001)] == [True, True, False]
    assert [header.follows(end) for end in (999, 1000, 1001)] == [False, True, False]
    back = with_gap(bytes(behind._buffer), behind.header, behind_gap=False)
    assert bytes(back) == data


def test_a_batch_that_its_offsets_would_make_too_large_is_compressed():
    count = BATCH_SIZE_MAX // 6 - 100  # a value, a key and its position
    noise = random.Random(1).randbytes(count)
    data = build([noise[i : i + 1] for i in range(count)], keys=[b"k"] * count, timestamps=1)
    batch = RecordBatch(data)
    kept = np.arange(1, count)
    again = RecordBatch(only(batch, kept, behind_gap=False))
    assert (again.header.codec, again.header.batch_size <= BATCH_SIZE_MAX) == (Codec.GZIP, True)
    assert again.values(0, 3) == batch.values(1, 4)
    assert again.offsets[:2].tolist() == [1, 2]


@pytest.mark.parametrize("deltas", [[1, 1], [1, 0], [-1, 0], [0, 4]])
def test_offset_deltas_that_do_not_rise_within_the_batch_are_refused(deltas):
    rows = [(b"k", b"v", 1, [])] * 4
    data = bytearray(only(RecordBatch(stamped(rows)), np.array([0, 2]), behind_gap=False))
    good = np.array([0, 2], "<i4").tobytes()
    at = data.index(good, 128)
    data[at : at + 8] = np.array(deltas, "<i4").tobytes()
    with pytest.raises((InvalidRecord, CorruptMessage), match="offset deltas"):
        RecordBatch(data, check_crc=False).validate()
