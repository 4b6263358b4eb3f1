"""Checksums, codecs and the key hash against known answers."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shmlog.errors import CorruptMessage, UnsupportedCompression
from shmlog.records import compression
from shmlog.records.compression import available, codec_named, compress, crc32c, decompress
from shmlog.records.layout import Codec
from shmlog.records.partitioner import partition_for_key

CODECS = [Codec.GZIP, Codec.LZ4, Codec.ZSTD]
quick = settings(deadline=None, max_examples=50, derandomize=True)


def test_crc32c_gives_the_known_answers():
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(b"hello world") == 3381945770
    assert crc32c(b"") == 0


def test_crc32c_takes_any_buffer_and_goes_on_from_a_crc():
    data = bytes(range(256))
    whole = crc32c(data)
    assert crc32c(memoryview(bytearray(data))) == whole
    assert crc32c(np.frombuffer(data, np.uint8).data) == whole
    assert crc32c(data[100:], crc32c(data[:100])) == whole


@pytest.mark.parametrize(
    ("key", "partitions"),
    [
        (b"", {3: 0, 12: 0, 16: 0}),
        (b"21", {3: 1, 12: 4, 16: 4}),
        (b"abc", {3: 0, 12: 6, 16: 2}),
        (b"kafka", {3: 2, 12: 11, 16: 7}),
        (b"a-little-bit-long-string", {3: 0, 12: 6, 16: 2}),
        (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", {3: 1, 12: 1, 16: 1}),
        (bytes(range(4)), {3: 0, 12: 3, 16: 3}),
        (b"foobar", {12: 5}),
    ],
)
def test_keys_go_to_the_partitions_that_every_client_knows(key, partitions):
    assert {n: partition_for_key(key, n) for n in partitions} == partitions


@quick
@given(st.sampled_from(CODECS), st.binary(min_size=1, max_size=2000), st.integers(1, 20))
def test_compressed_bytes_come_back(codec, piece, times):
    data = piece * times
    assert decompress(codec, compress(codec, data), len(data)) == data
    assert decompress(codec, memoryview(compress(codec, memoryview(data))), len(data)) == data


@pytest.mark.parametrize("codec", CODECS)
def test_only_the_stated_size_is_right(codec):
    data = b"some data " * 100
    frame = compress(codec, data)
    for size in (1, len(data) - 1, len(data) + 1, 10 * len(data)):
        with pytest.raises(CorruptMessage):
            decompress(codec, frame, size)


@pytest.mark.parametrize("codec", CODECS)
def test_a_frame_cut_short_or_followed_by_more_is_damage(codec):
    data = b"some data " * 100
    frame = compress(codec, data)
    for size in range(len(frame)):
        with pytest.raises(CorruptMessage):
            decompress(codec, frame[:size], len(data))
    for more in (b"\0", b"\0" * 8, frame):
        with pytest.raises(CorruptMessage):
            decompress(codec, frame + more, len(data))


def test_codecs_have_names():
    assert available() == ["gzip", "lz4", "zstd"]
    assert [codec_named(name) for name in ("none", *available())] == list(Codec)
    for name in ("snappy", "GZIP", ""):
        with pytest.raises(UnsupportedCompression, match="use none, gzip, lz4, zstd"):
            codec_named(name)
    for use in (lambda: compress(Codec.NONE, b""), lambda: decompress(Codec.NONE, b"", 8)):
        with pytest.raises(UnsupportedCompression):
            use()


@pytest.fixture
def without_packages(monkeypatch):
    for name in ("cramjam", "backports.zstd", "compression.zstd"):
        monkeypatch.setitem(sys.modules, name, None)
    compression._implementation.cache_clear()
    yield
    compression._implementation.cache_clear()


@pytest.mark.usefixtures("without_packages")
def test_a_missing_package_is_named_with_its_cure():
    assert available() == ["gzip"]
    for name in ("lz4", "zstd"):
        with pytest.raises(UnsupportedCompression, match=r"pip install 'shmlog\[compression\]'"):
            codec_named(name)
    with pytest.raises(UnsupportedCompression, match="compression"):
        decompress(Codec.LZ4, b"", 8)
