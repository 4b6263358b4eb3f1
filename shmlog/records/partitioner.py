"""Which partition a key belongs to: a pure function, in every language's standard library.

CRC-32 (zlib's, unsigned) modulo the number of partitions; librdkafka calls it `consistent`. An
empty key is a key and is hashed; a record without a key is placed by the producer.
"""

from __future__ import annotations

import zlib


def partition_for_key(key: bytes, partition_count: int) -> int:
    """The partition of `key`, 0 .. partition_count - 1."""
    return zlib.crc32(key) % partition_count
