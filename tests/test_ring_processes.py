"""Another process reads while the writer laps it: nothing torn and nothing stale is ever accepted.

A batch of the test describes itself: its first word holds its size, every other word its own position, so
whatever was overwritten during a copy, and whatever is left of an earlier lap, shows.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import uuid
from pathlib import Path

import numpy as np
import pytest

from shmlog.ring import posix
from shmlog.ring.layout import RingIdentity, ring_name, ring_size
from shmlog.ring.reader import Chunk, RingReader
from shmlog.ring.writer import RingWriter

CAPACITY = 256 << 10
SIZE_MAX = 16 << 10
READ_COUNT = 4000
LAPPED_COUNT = 20
BATCHES_MAX = 3_000_000


@pytest.fixture
def identity() -> RingIdentity:
    """One that no other test has, in this or another process."""
    return RingIdentity("cluster", 1, 1, uuid.uuid4().bytes, 3)


def words_of(position: int, size: int) -> np.ndarray:
    """The batch of `size` bytes at `position`."""
    words = np.arange(position, position + size, 8, dtype=np.int64)
    words[0] = size
    return words


def check(chunk: Chunk, expected: int) -> int:
    """Every whole batch in a chunk is the one of its place; the position behind the last one."""
    words = np.frombuffer(chunk.data, np.int64)
    assert chunk.position >= expected
    at = 0
    while at < len(words) and words[at] & 0xFFFFFFFF:
        size = int(words[at])
        assert 8 <= size <= SIZE_MAX, f"size {size} at {chunk.position + 8 * at}"
        end = at + size // 8
        if end > len(words):
            break
        assert (words[at:end] == words_of(chunk.position + 8 * at, size)).all()
        at = end
    return chunk.position + 8 * at


def read_behind(reader: RingReader, rng: random.Random) -> tuple[int, int, int]:
    """Read near the end that is being overwritten: (reads, of them lapped, seeks)."""
    reads = lapped = seeks = 0
    position = 0
    newest = 0
    while reads < READ_COUNT or lapped < LAPPED_COUNT:
        if reads % 16 == 0 or position >= reader.high_watermark:
            # Base offset n begins at position n by construction, so any recent one can be sought.
            newest = reader.high_watermark
            sought = max(0, newest - CAPACITY + rng.randrange(0, CAPACITY // 4))
            found = reader.seek(sought)
            if found is not None:
                assert found <= sought
                position, seeks = found, seeks + 1
        chunk = reader.read(position, rng.choice((SIZE_MAX, CAPACITY)))
        reads += 1
        if chunk is None:
            lapped += 1
            position = reader.high_watermark
            continue
        position = check(chunk, position)
        if reader.sealed:
            break
    return reads, lapped, seeks


@pytest.mark.process
def test_a_reader_in_another_process_accepts_nothing_torn_or_stale(identity: RingIdentity) -> None:
    name = ring_name(identity)
    memory = posix.create(name, ring_size(CAPACITY))
    try:
        writer = RingWriter.create(memory, identity, CAPACITY, leader_epoch=0)
        child = subprocess.Popen(
            [sys.executable, __file__, *map(str, identity[:3]), identity.topic_id.hex()],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        )
        try:
            rng = random.Random(1)
            for _ in range(BATCHES_MAX):
                size = 8 * rng.randint(1, SIZE_MAX // 8)
                end = writer.tail
                padding = CAPACITY - end % CAPACITY
                position = end if size <= padding else end + padding
                writer.reserve(size, position)[:] = words_of(position, size).view(np.uint8).data
                writer.set_high_watermark(writer.publish())
                if child.poll() is not None:
                    break
            writer.seal()
            output, errors = child.communicate(timeout=60)
        finally:
            child.kill()
            child.wait()
    finally:
        posix.unlink(name)
    assert child.returncode == 0, errors
    reads, lapped, seeks = map(int, output.split())
    assert reads >= READ_COUNT
    assert lapped >= LAPPED_COUNT, "the reader was never overtaken: the test shows nothing"
    assert seeks > 0


if __name__ == "__main__":
    cluster, broker, incarnation, topic_id = sys.argv[1:]
    owner = RingIdentity(cluster, int(broker), int(incarnation), bytes.fromhex(topic_id), 3)
    ring = RingReader(posix.attach(ring_name(owner)), owner)
    print(*read_behind(ring, random.Random(2)))
