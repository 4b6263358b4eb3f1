"""Checksums and codecs. Nothing here trusts a size it is told.

CRC-32C is one function, so that another package could stand in for it in one place.

Codecs write the frames that every language's tools know: gzip (RFC 1952), LZ4 frame, Zstandard
frame; one frame a batch. gzip is in the standard library; the packages of lz4 and zstd are imported
at first use, and an error names the extra that brings them.

Decompression is bounded by the size the batch states: output is cut at that size before more is
allocated, so that a bomb costs its stated size at most, and what is stated has been checked against
its limit before. Anything but exactly that many bytes is damage.
"""

from __future__ import annotations

import functools
import importlib
import sys
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import crc32c as _crc32c
import numpy as np

from shmlog.errors import CorruptMessage, UnsupportedCompression
from shmlog.records.layout import Codec

Buffer = bytes | bytearray | memoryview

_GZIP_WBITS = 31  # zlib's number for "a gzip frame"
_GZIP_LEVEL = 6
_LZ4_LEVEL = 1  # from 3 on it is the slow variant, six times the time for a twentieth less
_LZ4_RATIO_MAX = 255  # a byte of a match's length stands for at most 255 bytes of output
_CODEC_NAMES = {codec.name.lower(): codec for codec in Codec}


def crc32c(data: Buffer, crc: int = 0) -> int:
    """CRC-32C of `data`, going on from `crc`."""
    return _crc32c.crc32c(data, crc)


class _Implementation(NamedTuple):
    """One codec: both ways, and the errors its package makes of damaged input."""

    compress: Callable[[Buffer], bytes]
    decompress: Callable[[Buffer, int], bytes]
    damage: tuple[type[Exception], ...]


def _gzip() -> _Implementation:
    def decompress(data: Buffer, size: int) -> bytes:
        frame = zlib.decompressobj(_GZIP_WBITS)
        return _whole_frame(frame, frame.decompress(data, size + 1))

    return _Implementation(
        lambda data: zlib.compress(data, _GZIP_LEVEL, _GZIP_WBITS), decompress, (zlib.error,)
    )


def _lz4() -> _Implementation:
    import cramjam

    def decompress(data: Buffer, size: int) -> bytes:
        if size > _LZ4_RATIO_MAX * len(data):
            raise CorruptMessage(f"{len(data)} bytes of lz4 cannot hold the {size} stated")
        output = np.empty(size, dtype=np.uint8)  # pages are taken as output comes, not before
        return output[: cramjam.lz4.decompress_into(data, output.data)].tobytes()

    return _Implementation(
        lambda data: bytes(cramjam.lz4.compress(data, level=_LZ4_LEVEL)),
        decompress,
        (cramjam.DecompressionError,),
    )


def _zstd() -> _Implementation:
    name = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"
    zstd: Any = importlib.import_module(name)

    def decompress(data: Buffer, size: int) -> bytes:
        frame = zstd.ZstdDecompressor()
        return _whole_frame(frame, frame.decompress(data, size + 1))

    return _Implementation(zstd.compress, decompress, (zstd.ZstdError,))


def _whole_frame(frame: Any, output: bytes) -> bytes:
    """`output`, if the frame ends with it and nothing follows.

    One byte more than the size stated is asked for: with room left, the end of the frame and its
    checksum are read too.
    """
    if not frame.eof or frame.unused_data:
        raise CorruptMessage(f"the compressed columns do not end after {len(output)} bytes")
    return output


_LOADERS = {Codec.GZIP: _gzip, Codec.LZ4: _lz4, Codec.ZSTD: _zstd}


@functools.cache
def _implementation(codec: Codec) -> _Implementation:
    if codec not in _LOADERS:
        raise UnsupportedCompression(f"codec {int(codec)} does not compress; use gzip, lz4 or zstd")
    try:
        return _LOADERS[codec]()
    except ImportError as missing:
        raise UnsupportedCompression(
            f"{codec.name.lower()} needs a package that is not installed ({missing.name}): "
            "pip install 'shmlog[compression]'"
        ) from missing


def available() -> list[str]:
    """The names of the codecs that work in this process, "none" left out."""
    names = []
    for codec in _LOADERS:
        try:
            _implementation(codec)
        except UnsupportedCompression:
            continue
        names.append(codec.name.lower())
    return names


def codec_named(name: str) -> Codec:
    """The codec called "none", "gzip", "lz4" or "zstd".

    Raises UnsupportedCompression if there is no such codec, or its package is missing here.
    """
    codec = _CODEC_NAMES.get(name)
    if codec is None:
        raise UnsupportedCompression(f"no codec {name!r}; use {', '.join(_CODEC_NAMES)}")
    if codec is not Codec.NONE:
        _implementation(codec)
    return codec


def compress(codec: Codec, data: Buffer) -> bytes:
    """`data` as one frame of `codec`. Raises UnsupportedCompression if its package is missing."""
    return _implementation(codec).compress(data)


def decompress(codec: Codec, data: Buffer, size: int) -> bytes:
    """The `size` bytes that the frame `data` holds.

    Raises CorruptMessage if it is damaged or holds any other number of bytes,
    UnsupportedCompression if the codec's package is missing.
    """
    implementation = _implementation(codec)
    try:
        output = implementation.decompress(data, size)
    except implementation.damage as damage:
        raise CorruptMessage(
            f"{len(data)} bytes of {codec.name.lower()} do not decompress to {size} bytes: {damage}"
        ) from damage
    if len(output) != size:
        raise CorruptMessage(f"columns of {len(output)} bytes instead of the {size} stated")
    return output
