"""Whatever bytes stand where a batch should be: a typed error or the batch, and bounded memory."""

from __future__ import annotations

import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shmlog.errors import CorruptMessage, InvalidRecord, RecordTooLarge, ShmlogError
from shmlog.records.batch import RecordBatch, decode_header, iterate, read_size
from shmlog.records.builder import build, stamp
from shmlog.records.compression import compress, crc32c
from shmlog.records.layout import (
    COLUMNS_SIZE_MAX,
    HEADER_SIZE,
    Codec,
    Flag,
    padded,
)

VALUES = [b"abc", None, b"", b"de"]
KEYS = [b"k1", b"", None, b"k4"]
HEADERS = [[("h", b"v"), ("n", None)], [], [("é", b"")], []]
TIMES = [10, 30, 20, 40]
quick = settings(deadline=None, max_examples=200, derandomize=True)


def sample(codec=Codec.NONE, stamped=True):
    batch = build(VALUES, keys=KEYS, headers=HEADERS, timestamps=TIMES)
    if codec:
        batch = build(VALUES * 30, keys=KEYS * 30, timestamps=TIMES * 30, codec=codec)
    if stamped:
        stamp(
            batch, base_offset=5, leader_epoch=1, append_time_ns=50, topic_id=b"t" * 16, partition=2
        )
    return batch


def content(buffer, **options):
    """Everything a reader can see of a batch."""
    batch = RecordBatch(buffer, **options)
    batch.validate()
    headers = [batch.headers(i) for i in range(len(batch))]
    return batch.header, batch.values(), batch.keys(), headers, batch.timestamps.tolist()


def sealed(batch):
    """`batch` with the body CRC that fits, as a hostile producer sends it."""
    struct.pack_into("<I", batch, 8, crc32c(memoryview(batch)[64:]))
    return bytes(batch)


def with_columns(columns, flags=0, count=1, **fields):
    """A batch of handmade columns; `fields` are those of the producer's half to be bent."""
    batch = bytearray(build([b""] * 2, timestamps=0)[:HEADER_SIZE]) + columns
    batch += bytes(-len(columns) & 7)
    given_fields = {
        "<B65": fields.get("codec", 0),
        "<H66": flags,
        "<I68": count,
        "<I72": fields.get("last_offset_delta", (count - 1) & 0xFFFFFFFF),
        "<q80": fields.get("base", 0),
        "<q88": fields.get("latest", 0),
        "<I108": fields.get("width", 0),
        "<I112": fields.get("columns_size", padded(len(columns))),
        "<I116": fields.get("stored_size", len(columns)),
        "<I4": len(batch),
    }
    for place, value in given_fields.items():
        struct.pack_into(place[:2], batch, int(place[2:]), value)
    return sealed(batch)


def positions(*ends):
    return np.array(ends, dtype="<i4").tobytes() + bytes(len(ends) % 2 * 4)


@pytest.mark.parametrize("codec", Codec)
@pytest.mark.parametrize("stamped", [True, False])
def test_every_truncation_is_an_error(codec, stamped):
    batch = bytes(sample(codec, stamped))
    for size in range(len(batch)):
        with pytest.raises(CorruptMessage):
            content(batch[:size])


@pytest.mark.parametrize("codec", Codec)
@pytest.mark.parametrize("stamped", [True, False])
def test_every_flipped_bit_is_an_error(codec, stamped):
    batch = sample(codec, stamped)
    for bit in range(8 * len(batch)):
        batch[bit >> 3] ^= 1 << (bit & 7)
        with pytest.raises((CorruptMessage, InvalidRecord)):
            content(batch)
        batch[bit >> 3] ^= 1 << (bit & 7)
    content(batch)


@pytest.mark.parametrize("codec", Codec)
def test_a_flipped_bit_under_a_fitting_crc_is_a_typed_error_or_a_batch(codec):
    batch = sample(codec, stamped=False)
    for bit in range(8 * 64, 8 * len(batch)):
        batch[bit >> 3] ^= 1 << (bit & 7)
        try:
            content(sealed(batch))
        except ShmlogError:
            pass
        batch[bit >> 3] ^= 1 << (bit & 7)


@quick
@given(
    st.lists(
        st.tuples(st.integers(64, 239), st.sampled_from([0, 1, 0x7F, 0x80, 0xFF])),
        min_size=1,
        max_size=6,
    ),
    st.sampled_from(Codec),
)
def test_hostile_bytes_under_a_fitting_crc_give_a_typed_error_or_a_batch(changes, codec):
    batch = sample(codec, stamped=False)
    for position, byte in changes:
        batch[position % len(batch)] = byte
    try:
        content(sealed(batch))
        list(iterate(bytes(batch)))
    except ShmlogError:
        pass


@quick
@given(st.binary(max_size=300), st.integers(-1, 310))
def test_garbage_is_no_batch(garbage, position):
    for read in (read_size, decode_header, lambda *at: list(iterate(*at))):
        try:
            read(garbage, position)
        except CorruptMessage:
            pass


V, K, KN, VN, H, T = (
    Flag(0),
    Flag.KEYS,
    Flag.KEY_NULLS,
    Flag.VALUE_NULLS,
    Flag.HEADERS,
    Flag.TIMESTAMPS,
)
TWO = positions(0, 1, 2)  # two values of one byte
DATA = b"ab".ljust(8, b"\0")


def test_handmade_columns_are_read_when_they_are_right():
    assert content(with_columns(TWO + DATA, count=2))[1] == [b"a", b"b"]
    nulls = with_columns(positions(0, 0, 1) + b"\2".ljust(8, b"\0") + b"a", VN, 2, columns_size=32)
    with pytest.raises(InvalidRecord):  # 25 bytes stored where 32 are stated
        content(nulls)
    nulls = with_columns(positions(0, 0, 1) + b"\2".ljust(8, b"\0") + b"a".ljust(8, b"\0"), VN, 2)
    assert content(nulls)[1] == [None, b"a"]


@pytest.mark.parametrize(
    ("columns", "flags", "count"),
    [
        (positions(0, 2, 1) + DATA, V, 2),  # falls
        (positions(0, -1, 2) + DATA, V, 2),  # below 0
        (positions(1, 1, 2) + DATA, V, 2),  # does not start at 0
        (positions(0, 1, 9) + DATA, V, 2),  # ends outside
        (positions(0, 1, 0x7FFFFFFF) + DATA, V, 2),  # ends far outside
        (TWO + DATA + bytes(8), V, 2),  # bytes left over
        (TWO, V, 2),  # no bytes at all
        (TWO, V, 4),  # too many records
        (positions(0, 0, 0), VN, 2),  # no bitmap
        (bytes(8), T, 2),  # half the timestamps, and nothing after them
        (TWO + b"\1".ljust(8, b"\0") + DATA, VN, 2),  # a null takes bytes
        (TWO + b"\7".ljust(8, b"\0") + DATA, VN, 2),  # a bit too many
        (TWO + TWO + DATA, K, 2),  # keys without bytes
        (TWO + b"\1".ljust(8, b"\0") + TWO + DATA + DATA, K | KN, 2),  # a null key takes bytes
        (TWO + TWO + DATA + b"\1\0", H, 2),  # half a record header
    ],
)
def test_extents_that_do_not_fit_are_refused(columns, flags, count):
    batch = with_columns(columns, int(flags), count)
    with pytest.raises(InvalidRecord):
        content(batch)


@pytest.mark.parametrize(
    ("deltas", "base", "latest"),
    [((0, -1), 5, 5), ((0, 6), 5, 10), ((1, 5), 5, 10), ((0, 4), 5, 10), ((-(1 << 63), 0), 1, 1)],
)
def test_timestamps_outside_what_the_header_says_are_refused(deltas, base, latest):
    columns = struct.pack("<qq", *deltas) + TWO + DATA
    with pytest.raises(InvalidRecord, match="timestamps"):
        content(with_columns(columns, T, 2, base=base, latest=latest))


@pytest.mark.parametrize(
    "encoded",
    [
        struct.pack("<Hi", 1, 0),  # the name is missing
        struct.pack("<Hi", 0, 0),  # no name
        struct.pack("<Hi", 256, 0) + b"a" * 256,  # a long name
        struct.pack("<Hi", 1, -2) + b"a",  # a value below null
        struct.pack("<Hi", 1, 0x7FFFFFFF) + b"a",  # a value beyond the record's headers
        struct.pack("<Hi", 1, 0) + b"\xff",  # not UTF-8
        (struct.pack("<Hi", 1, -1) + b"a") * 65,  # too many
        struct.pack("<H", 1),  # cut short
    ],
)
def test_record_headers_that_do_not_decode_are_refused(encoded):
    data = encoded + bytes(-len(encoded) & 7)
    columns = positions(0, 0) + positions(0, len(encoded)) + data
    with pytest.raises(InvalidRecord):
        content(with_columns(columns, H))


@pytest.mark.parametrize(
    "fields",
    [
        {"count": 0},
        {"count": 2, "last_offset_delta": 2},
        {"flags": 128},
        {"flags": 0x8000},
        {"flags": int(Flag.OFFSETS), "count": 3, "last_offset_delta": 1},
        {"flags": int(Flag.OFFSETS), "last_offset_delta": 1 << 31},
        {"flags": int(Flag.OFFSETS | Flag.KEYS), "count": 0, "last_offset_delta": 1},
        {"flags": int(Flag.OFFSETS), "count": 0, "last_offset_delta": 1, "width": 8},
        {"flags": int(Flag.OFFSETS), "count": 0, "last_offset_delta": 1, "codec": 1},
        {"flags": int(Flag.VALUE_NULLS), "width": 1},
        {"flags": int(Flag.KEY_NULLS)},
        {"codec": 4},
        {"columns_size": 32},
        {"columns_size": 12},
        {"codec": 1, "columns_size": COLUMNS_SIZE_MAX + 8},
        {"codec": 1, "columns_size": 20},
        {"stored_size": 8},
        {"stored_size": 0xFFFFFFFF},
        {"count": 0xFFFFFFFF},
        {"width": 0xFFFFFFFF},
        {"count": 0xFFFFFFFF, "width": 0xFFFFFFFF},
        {"base": 2, "latest": 1},
        {"base": 2, "latest": 1, "flags": int(Flag.TIMESTAMPS)},
        {"base": 1, "latest": 2},
    ],
)
def test_a_header_that_breaks_a_rule_is_refused_before_its_columns(fields):
    batch = with_columns(TWO + DATA, **({"count": 2} | fields))
    with pytest.raises(InvalidRecord):
        decode_header(batch)


@pytest.mark.parametrize("position", [64, 106, 107, *range(52, 60), *range(120, 128)])
def test_a_version_or_a_reserved_byte_of_later_times_is_refused(position):
    batch = bytearray(with_columns(TWO + DATA, count=2))
    batch[position] ^= 2
    with pytest.raises(InvalidRecord):
        decode_header(batch)


@pytest.mark.parametrize("size", [0, 8, 128, 132, 145, 1 << 24, 0xFFFFFFF8])
def test_a_size_that_no_batch_has_is_refused(size):
    batch = bytearray(with_columns(TWO + DATA, count=2))
    struct.pack_into("<I", batch, 4, size)
    for read in (read_size, decode_header):
        with pytest.raises(CorruptMessage):
            read(batch, 0)


CODECS = [Codec.GZIP, Codec.LZ4, Codec.ZSTD]


def bomb(codec, stated):
    return with_columns(compress(codec, bytes(32 << 20)), codec=codec, columns_size=stated)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("stated", [8, 4096, 1 << 20])
def test_a_bomb_is_cut_at_the_size_it_states(codec, stated):
    batch = RecordBatch(bomb(codec, stated))
    tracemalloc.start()
    try:
        with pytest.raises(CorruptMessage):
            batch.values()
        assert tracemalloc.get_traced_memory()[1] < 2 * stated + (1 << 20)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("codec", CODECS)
def test_a_bomb_that_states_its_size_is_refused_by_the_readers_limit(codec):
    batch = bomb(codec, 32 << 20)
    with pytest.raises(RecordTooLarge):
        RecordBatch(batch, columns_size_max=1 << 20)


@pytest.mark.parametrize("codec", CODECS)
def test_a_size_stated_too_large_allocates_only_what_there_is(codec):
    stored = compress(codec, bytes(4096))
    batch = RecordBatch(with_columns(stored, codec=codec, columns_size=COLUMNS_SIZE_MAX))
    tracemalloc.start()
    try:
        with pytest.raises(CorruptMessage):
            batch.values()
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_view_is_read_only_and_ends_with_the_batch():
    batch = build([b"abcdefgh"], timestamps=0)
    read = RecordBatch(batch + b"x" * 100)
    assert read.values() == [b"abcdefgh"]
    with pytest.raises(ValueError, match="read-only"):
        read.array("<u8")[0] = 1
