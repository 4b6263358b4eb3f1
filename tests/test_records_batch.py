"""Records go into a batch and come out the same, whatever columns they need."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shmlog.errors import InvalidRecord, RecordTooLarge
from shmlog.records import layout
from shmlog.records.batch import RecordBatch, decode_header, iterate, read_size
from shmlog.records.builder import (
    BATCH_SLACK,
    build,
    build_array,
    record_size,
    stamp,
    with_producer,
)
from shmlog.records.layout import HEADER_SIZE, Codec, Flag

TOPIC_ID = bytes(range(16))
STAMP = {
    "base_offset": 1 << 40,
    "leader_epoch": 3,
    "append_time_ns": 1_700_000_000_000_000_000,
    "topic_id": TOPIC_ID,
    "partition": 11,
}

quick = settings(deadline=None, max_examples=60, derandomize=True)
blobs = st.binary(max_size=40)
names = st.text(min_size=1, max_size=8)
record_headers = st.lists(st.tuples(names, st.none() | blobs), max_size=4)
times = st.integers(0, (1 << 63) - 1)
records = st.tuples(st.none() | blobs, st.none() | blobs, record_headers, times)


@quick
@given(st.lists(records, min_size=1, max_size=40), st.sampled_from(Codec), st.booleans())
def test_every_record_comes_back_as_it_went_in(rows, codec, stamped):
    values, keys, headers, timestamps = (list(column) for column in zip(*rows, strict=True))
    built = build(values, keys=keys, timestamps=timestamps, headers=headers, codec=codec)
    if stamped:
        stamp(built, **STAMP)
    batch = RecordBatch(bytes(built))
    batch.validate()
    assert batch.values() == values
    assert batch.keys() == keys
    assert [batch.headers(i) for i in range(len(batch))] == headers
    assert batch.timestamps.tolist() == timestamps
    assert batch.has_headers == any(headers)
    assert len(batch) == len(rows)
    start = len(rows) // 3
    assert batch.values(start) == values[start:]
    assert batch.values(start, -1) == values[start:-1]
    assert batch.keys(start, start + 2) == keys[start : start + 2]


@quick
@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from(Codec), st.randoms())
def test_values_of_one_size_become_a_fixed_width_column(width, count, codec, random):
    values = [random.randbytes(width) for _ in range(count)]
    batch = RecordBatch(build(values, timestamps=7, codec=codec))
    assert batch.header.value_width == width
    assert batch.values() == values
    assert batch.array(f"V{width}").tolist() == values
    assert batch.values(1, 3) == values[1:3]
    assert batch.timestamps.tolist() == [7] * count


@quick
@given(st.lists(records, min_size=1, max_size=30), st.sampled_from(Codec))
def test_no_batch_is_larger_than_its_estimate(rows, codec):
    values, keys, headers, timestamps = (list(column) for column in zip(*rows, strict=True))
    batch = build(values, keys=keys, timestamps=timestamps, headers=headers, codec=codec)
    sizes = [record_size(key, value, record) for value, key, record, _ in rows]
    assert len(batch) <= sum(sizes) + HEADER_SIZE + BATCH_SLACK


def test_only_columns_that_are_needed_are_stored():
    assert RecordBatch(build([b"a", b"b"], timestamps=5)).header.flags == 0
    assert RecordBatch(build([b"a"], keys=[None], timestamps=[5], headers=[[]])).header.flags == 0
    keyed = RecordBatch(build([b"a", None], keys=[b"", None], timestamps=[5, 4])).header
    assert keyed.flags == Flag.TIMESTAMPS | Flag.KEYS | Flag.KEY_NULLS | Flag.VALUE_NULLS
    assert (keyed.base_timestamp_ns, keyed.max_timestamp_ns) == (4, 5)


def test_an_array_is_a_batch_without_work_per_record():
    dtype = np.dtype([("price", "<f8"), ("count", "<u2"), ("at", "<M8[ns]")])
    array = np.zeros(300, dtype=dtype)
    array["count"] = np.arange(300)
    batch = RecordBatch(build_array(array[::2], timestamps=np.arange(150)))
    assert batch.header.value_width == dtype.itemsize
    view = batch.array(dtype)
    assert (view == array[::2]).all()
    assert not view.flags.owndata
    assert not view.flags.writeable
    assert batch.values() == [item.tobytes() for item in array[::2]]
    assert batch.timestamps.tolist() == list(range(150))
    with pytest.raises(InvalidRecord, match="width 18"):
        batch.array("<f8")
    with pytest.raises(InvalidRecord, match="variable"):
        RecordBatch(build([b"a", b"bc"], timestamps=0)).array("V1")


@pytest.mark.parametrize("array", [np.zeros((2, 2)), np.array(["a", None]), np.zeros(3, "V0")])
def test_an_array_without_fixed_width_values_is_refused(array):
    with pytest.raises(InvalidRecord):
        build_array(array, timestamps=0)


def test_a_stamp_writes_the_leaders_half_and_leaves_the_rest():
    batch = build([b"abc"], timestamps=1, producer_id=9, producer_epoch=2, base_sequence=77)
    before = bytes(batch)
    stamp(memoryview(batch), **STAMP)
    assert batch[:12] == before[:12]
    assert batch[64:] == before[64:]
    header = RecordBatch(batch).header
    assert {name: getattr(header, name) for name in STAMP} == STAMP
    assert (header.last_offset, header.end_offset) == (1 << 40, (1 << 40) + 1)
    assert (header.producer_id, header.producer_epoch, header.base_sequence) == (9, 2, 77)


def test_a_batch_can_be_given_to_another_producer_epoch():
    batch = build([b"abc"], timestamps=1, producer_id=9, producer_epoch=2, base_sequence=77)
    with_producer(batch, 10, 3, 0)
    same = build([b"abc"], timestamps=1, producer_id=10, producer_epoch=3, base_sequence=0)
    assert batch == same


def test_offsets_count_from_the_base_offset():
    batch = build([b"a", b"b", b"c"], timestamps=1)
    stamp(batch, **STAMP)
    read = RecordBatch(batch)
    assert read.offsets.tolist() == [(1 << 40) + i for i in range(3)]
    assert (read.base_offset, read.end_offset) == (1 << 40, (1 << 40) + 3)


def test_batches_follow_each_other_until_one_is_partial_or_none_begins():
    batches = [bytes(build([b"x" * size], timestamps=size)) for size in range(5)]
    sizes = [len(batch) for batch in batches]
    places = [sum(sizes[:i]) for i in range(5)]
    whole = b"".join(batches)
    assert [place for place, _ in iterate(whole)] == places
    assert [place for place, _ in iterate(whole + bytes(64))] == places
    assert [header.base_timestamp_ns for _, header in iterate(whole, places[2])] == [2, 3, 4]
    for cut in range(1, sizes[-1] + 1):
        assert [place for place, _ in iterate(whole[:-cut])] == places[:4]
    assert read_size(whole, places[1]) == sizes[1]
    assert read_size(bytes(8), 0) == 0


def test_compression_is_applied_and_dropped_where_it_does_not_help():
    plain = build([b"abc" * 100] * 50, timestamps=1)
    for codec in (Codec.GZIP, Codec.LZ4, Codec.ZSTD):
        batch = build([b"abc" * 100] * 50, timestamps=1, codec=codec)
        assert decode_header(batch).codec == codec
        assert len(batch) < len(plain) / 10
        assert decode_header(build([b"abc"], timestamps=1, codec=codec)).codec == Codec.NONE


@pytest.mark.parametrize(
    "call",
    [
        lambda: build([], timestamps=1),
        lambda: build([b"a"], keys=[], timestamps=1),
        lambda: build([b"a"], headers=[], timestamps=1),
        lambda: build([b"a"], timestamps=[1, 2]),
        lambda: build([b"a"], timestamps=-1),
        lambda: build([b"a", b"b"], timestamps=[1, -1]),
        lambda: build([b"a"], timestamps=1, headers=[[("", b"")]]),
        lambda: build([b"a"], timestamps=1, headers=[[("é" * 128, b"")]]),
        lambda: build([b"a"], timestamps=1, headers=[[("\ud800", b"")]]),
        lambda: build([b"a"], timestamps=1, headers=[[("a", b"")] * 65]),
        lambda: build(["a"], timestamps=1),
        lambda: build([1], timestamps=1),
        lambda: build([b"a"], keys=["a"], timestamps=1),
        lambda: build([b"a"], keys=[7], timestamps=1),
        lambda: build([memoryview(np.zeros(3))], timestamps=1),
        lambda: build([b"a"], timestamps=1, headers=[[("a", "b")]]),
        lambda: build([b"a"], timestamps=1, headers=[[(b"a", b"b")]]),
        lambda: build([b"a"], timestamps=1, headers=[[("a", 7)]]),
        lambda: build([b"a"], timestamps=1, headers=[[("a" * 70_000, b"")]]),
        lambda: build([b"a"], timestamps=1 << 63),
        lambda: build([b"a"], timestamps=[1 << 63]),
        lambda: build([b"a"], timestamps=[1.5]),
        lambda: build([b"a"], timestamps=np.array([1.5])),
        lambda: build([b"a"], timestamps=np.array([1 << 63], dtype=np.uint64)),
        lambda: build([b"a"], timestamps=[None]),
    ],
)
def test_a_record_that_breaks_a_rule_is_refused(call):
    with pytest.raises(InvalidRecord):
        call()


def test_a_batch_over_the_limit_is_refused_with_its_size():
    value = bytes(layout.BATCH_SIZE_MAX - HEADER_SIZE)
    assert len(build([value], timestamps=1)) == layout.BATCH_SIZE_MAX
    with pytest.raises(RecordTooLarge) as refused:
        build([value, b""], timestamps=1)
    assert refused.value.limit == layout.BATCH_SIZE_MAX
    assert refused.value.size > layout.BATCH_SIZE_MAX
    with pytest.raises(RecordTooLarge):
        build([value] * 33, timestamps=1)
    with pytest.raises(RecordTooLarge):
        build([*[value] * 33, b""], timestamps=1)
    assert len(build([value] * 2, timestamps=1, codec=Codec.ZSTD)) < 10_000


def test_the_drawing_says_what_the_structs_do():
    codes = {"u8": "B", "u16": "H", "u32": "I", "i16": "h", "i32": "i", "i64": "q"}
    drawn, names = "<", []
    for place, name, kind in _drawn_fields():
        if place:
            assert int(place) == struct.calcsize(drawn), name
        if name == "reserved":
            drawn += f"{kind}x"
        else:
            drawn += codes.get(kind) or f"{kind}s"
            names.append(name)
    assert struct.calcsize(drawn) == HEADER_SIZE
    assert drawn.replace("2x", "xx") == layout.HEADER.format
    fields = decode_header(build([b""], timestamps=0))._fields
    assert names == [field.removesuffix("_ns") for field in fields]


def _drawn_fields():
    """(position or "", name, type or size) of each line of the header's drawing."""
    for line in layout.__doc__.split("\n\nThe columns")[0].splitlines():
        place, bar, cell = line.partition("|")
        if bar and not cell.strip().startswith(("columns,", "padding")):
            yield place.strip(), *cell.split()[:2]


@pytest.mark.parametrize(
    ("position", "field"),
    [
        (layout.BODY_CRC_POSITION, "body_crc"),
        (layout.STAMP_POSITION, "leader_epoch"),
        (layout.HEADER_CRC_END, "header_crc"),
        (layout.BASE_SEQUENCE_POSITION, "base_sequence"),
        (layout.PRODUCER_POSITION, "producer_id"),
    ],
)
def test_positions_of_single_fields_are_those_of_the_drawing(position, field):
    assert [int(place) for place, name, _ in _drawn_fields() if name == field] == [position]
